//! Whatever bytes arrive, at whichever port, in whatever company: nothing panics, the books balance, and what leaves
//! outside is ESP.

use adit_engine::pipeline::reassembly::Limits;
use adit_engine::pipeline::{DropReason, HostEnd};
use adit_engine::route::PortId;
use adit_engine::transform::fragment::{fragment_ipv4, fragment_ipv6, write_fragment, write_fragment_ipv6};
use adit_engine::wire::icmp::{IcmpError, write_error};
use adit_engine::wire::{Spi, ip};
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site};
use adit_tests::packet::{fix_ipv4, frame, one_hop_on, tcp_syn, udp, unframe};
use proptest::prelude::*;

/// A packet that would pass, from A's host to B's or to B itself, or from B.
fn good(kind: u8, length: usize) -> Vec<u8> {
    let (v4, v6) = ((Site::A.host(false), Site::B.host(false)), (Site::A.host(true), Site::B.host(true)));
    match kind % 6 {
        // To the gateway itself, and from it.
        0 => udp(v4.0, Site::B.inside(false), length),
        1 => udp(Site::B.inside(true), v6.0, length),
        2 => udp(v4.0, v4.1, length),
        3 => udp(v6.0, v6.1, length),
        4 => tcp_syn(v4.0, v4.1, length as u16),
        _ => tcp_syn(v6.0, v6.1, length as u16),
    }
}

/// Changes some bytes, and cuts or extends.
fn damage(bytes: &mut Vec<u8>, changes: &[(usize, u8)], length: usize, checksum: bool) {
    for (at, value) in changes {
        if let Some(byte) = bytes.get_mut(*at) {
            *byte = *value;
        }
    }
    bytes.resize(length.min(1500), 0xa5);
    if checksum && bytes.len() >= 20 && bytes[0] >> 4 == 4 {
        fix_ipv4(bytes);
    }
}

#[derive(Clone, Debug)]
struct Case {
    kind: u8,
    length: usize,
    changes: Vec<(usize, u8)>,
    cut: Option<usize>,
    checksum: bool,
    sealed: bool,
    next_header: u8,
    port: PortId,
}

fn port() -> impl Strategy<Value = PortId> {
    prop_oneof![Just(INSIDE), Just(OUTSIDE), Just(PortId::HOST)]
}

fn case() -> impl Strategy<Value = Case> {
    let changes = prop::collection::vec((0..80_usize, any::<u8>()), 0..4);
    let cut = prop::option::weighted(0.3, 0..1500_usize);
    let next_header = prop_oneof![6 => Just(4_u8), 3 => Just(41_u8), 1 => any::<u8>()];
    (any::<u8>(), 0..1400_usize, changes, cut, any::<bool>(), any::<bool>(), next_header, port()).prop_map(
        |(kind, length, changes, cut, checksum, sealed, next_header, port)| Case {
            kind,
            length,
            changes,
            cut,
            checksum,
            sealed,
            next_header,
            port,
        },
    )
}

/// What may be said between the two layers of a tunnel in a tunnel.
#[derive(Clone, Debug)]
enum Said {
    /// A piece of one of the inner packets.
    Piece(usize, usize),
    /// That a path is narrower, about the inner tunnel's own packet under this number.
    Narrower(u32, u32),
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        4 => (0..INNER, 0..3_usize).prop_map(|(packet, piece)| Said::Piece(packet, piece)),
        1 => (0..4_u32, 0..2000_u32).prop_map(|(number, mtu)| Said::Narrower(number, mtu)),
    ]
}

/// Inner packets of a case, and the largest fragments of them.
const INNER: usize = 8;
const PIECE: u32 = 600;

fn pieces(packet: &[u8], identification: u32) -> Vec<Vec<u8>> {
    let parsed = ip::parse(packet).unwrap();
    let mut out = vec![0; 2_000];
    if packet.len() <= PIECE as usize {
        return vec![packet.to_vec()];
    }
    match packet[0] >> 4 {
        4 => fragment_ipv4(packet, &parsed, PIECE)
            .unwrap()
            .map(|piece| {
                let length = write_fragment(&mut out, packet, &piece).unwrap();
                out[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
                let mut piece = out[..length].to_vec();
                fix_ipv4(&mut piece);
                piece
            })
            .collect(),
        _ => fragment_ipv6(packet, &parsed, PIECE)
            .unwrap()
            .map(|piece| {
                let length = write_fragment_ipv6(&mut out, packet, &piece, identification).unwrap();
                out[..length].to_vec()
            })
            .collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_burst_is_accounted_for(cases in prop::collection::vec(case(), 1..64)) {
        let options = Options::new();
        let mut b = Gateway::new(Site::B, &options);
        b.engine.frames.host = Some(HostEnd { v4: [169, 254, 173, 1].into(), v6: "fe80::1".parse().unwrap() });
        let mut peer = Peer::of(Site::B, &options);
        let mut frames = Vec::new();
        for (number, case) in cases.iter().enumerate() {
            let mut packet = good(case.kind, case.length);
            let length = case.cut.unwrap_or(packet.len());
            damage(&mut packet, &case.changes, length, case.checksum);
            if case.sealed {
                // A right ICV around it, so that what follows the ICV is reached.
                packet = peer.seal(number as u64 + 1, case.next_header, &packet);
            }
            frames.push((case.port, frame(&packet)));
        }
        // Balances the books itself.
        for (port, frame) in b.run_frames(frames) {
            let packet = unframe(&frame);
            let protocol = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
            prop_assert!(port != OUTSIDE || protocol == 50, "clear text outside: {packet:02x?}");
        }
    }

    /// Between two layers: pieces of inner packets and errors about them, in any order, damaged or not, out of the outer
    /// tunnel or from outside. What gets in is what the peer sealed, and no path is told narrower than the floor.
    #[test]
    fn whatever_comes_out_of_an_outer_tunnel_is_accounted_for(
        outer_ipv6: bool,
        inner_ipv6: bool,
        all in prop::collection::vec(
            (said(), prop::option::weighted(0.2, (0..70_usize, any::<u8>())), prop::bool::weighted(0.9)), 1..64),
    ) {
        let other = |key: &Vec<u8>| key.iter().map(|byte| byte ^ 0x5a).collect();
        let inner = Options { outer_ipv6: inner_ipv6, spi: Some(Spi(0x4000)), ..Options::new() };
        let keys = (other(&inner.keys.0), other(&inner.keys.1));
        let outer =
            Options { name: "outer", is_outer: true, spi: Some(Spi(0x4001)), keys, outer_ipv6, ..Options::new() };
        let (reassembly, through) = (Limits::default(), Some(Box::new(outer.clone())));
        let mut b = Gateway::new(Site::B, &Options { reassembly, through, ..inner.clone() });
        // Numbers of ours, for errors to quote.
        b.run(INSIDE, &[udp(Site::B.host(false), Site::A.host(false), 10), udp(Site::B.host(true), Site::A.host(true), 9)]);

        let mut peer = Peer::of(Site::B, &inner);
        let plain: Vec<_> = (0..INNER).map(|number| good(2 + number as u8 % 2, number * 150)).collect();
        let sealed: Vec<_> = (1..)
            .zip(&plain)
            .map(|(number, packet)| pieces(&peer.seal(number, if packet[0] >> 4 == 4 { 4 } else { 41 }, packet), number as u32))
            .collect();
        let mut around = Peer::of(Site::B, &outer);
        let (ours, peers) = (inner.endpoint(Site::B), inner.endpoint(Site::A));
        let frames = (1..).zip(all).map(|(number, (said, change, from_inside))| {
            let mut packet = match said {
                Said::Piece(packet, piece) => sealed[packet][piece % sealed[packet].len()].clone(),
                Said::Narrower(number, mtu) => {
                    let esp = [&0x4000_u32.to_be_bytes()[..], &number.to_be_bytes(), &[7; 40]].concat();
                    let about = adit_tests::packet::ip(ours, peers, 50, &esp);
                    let mut error = vec![0; 1_500];
                    let length = write_error(&mut error, IcmpError::PacketTooBig { mtu }, &about, peers).unwrap();
                    error[..length].to_vec()
                }
            };
            let length = packet.len();
            damage(&mut packet, &change.into_iter().collect::<Vec<_>>(), length, true);
            if from_inside {
                packet = around.seal(number, if packet[0] >> 4 == 4 { 4 } else { 41 }, &packet);
            }
            (OUTSIDE, frame(&packet))
        });
        let frames = frames.collect();
        // Balances the books itself.
        for (port, frame) in b.run_frames(frames) {
            prop_assert_eq!(port, INSIDE);
            prop_assert!(plain.iter().any(|packet| one_hop_on(packet) == unframe(&frame)));
        }
        let floor = if inner_ipv6 { 1_280 } else { 576 };
        prop_assert!(b.tunnel.path.mtu(0, 1).is_none_or(|mtu| mtu >= floor));
    }

    /// What a worker remembers from packet to packet changes nothing: of what comes from outside, the same gets in and
    /// the same is dropped, whether a burst comes at once or one by one.
    #[test]
    fn a_burst_means_what_its_packets_mean_alone(
        cases in prop::collection::vec((case(), 1..40_u64, prop::collection::vec((0..40_usize, any::<u8>()), 0..2)), 1..64),
    ) {
        let options = Options::new();
        let mut peer = Peer::of(Site::B, &options);
        let frames: Vec<_> = cases
            .iter()
            .map(|(case, number, changes)| {
                let mut packet = good(case.kind, case.length);
                if case.sealed {
                    packet = peer.seal(*number, case.next_header, &packet);
                }
                let length = packet.len();
                damage(&mut packet, changes, length, case.checksum);
                (OUTSIDE, frame(&packet))
            })
            .collect();
        let in_port = |(port, _): &(PortId, Vec<u8>)| *port == INSIDE;
        let [mut at_once, mut alone] = [(); 2].map(|()| Gateway::new(Site::B, &options));
        let mut came_in: Vec<_> = at_once.run_frames(frames.clone()).into_iter().filter(in_port).collect();
        let mut one_by_one: Vec<_> =
            frames.into_iter().flat_map(|frame| alone.run_frames(vec![frame])).filter(in_port).collect();
        came_in.sort();
        one_by_one.sort();
        prop_assert_eq!(came_in, one_by_one);
        // A forged copy of a number: it is refused for the one or the other, by whether the right one was committed.
        let counts = |gateway: &Gateway| {
            let alike = [DropReason::IcvFailed, DropReason::ReplayDuplicate, DropReason::ReplayOld];
            let (replayed, other): (Vec<_>, Vec<_>) =
                gateway.drops().into_iter().partition(|(reason, _)| alike.contains(reason));
            (replayed.iter().map(|(_, count)| count).sum::<u64>(), other)
        };
        prop_assert_eq!(counts(&at_once), counts(&alone));
    }

    #[test]
    fn any_frame_at_all_is_accounted_for(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        ether_type in prop_oneof![Just([8_u8, 0]), Just([0x86, 0xdd]), any::<[u8; 2]>()],
        port in port(),
    ) {
        let mut b = Gateway::new(Site::B, &Options::new());
        let frame = [&[2; 12][..], &ether_type, &bytes].concat();
        let sent = b.run_frames(vec![(port, frame)]);
        prop_assert_eq!(sent.len(), 0);
        prop_assert!(b.drops().iter().all(|(reason, count)| *reason != DropReason::IcvFailed && *count == 1));
    }
}
