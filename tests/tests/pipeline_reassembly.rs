//! Fragments of ESP and AH (RFC 4303 and RFC 4302 section 3.4.1), made by scapy: whole again before IPsec sees them, or
//! dropped for the one reason that it was, and every one of them in the books.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::{Authentication, Encryption, IvSource};
use adit_engine::offline::Engine;
use adit_engine::pipeline::reassembly::Limits;
use adit_engine::pipeline::{DropReason, Received};
use adit_engine::sa::spec::Protocol;
use adit_engine::transform::ah::Padding;
use adit_engine::transform::tunnel::DontFragment;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, suite};
use adit_tests::packet::{
    MORE_FRAGMENTS, fix_ipv4, frame, in_udp, ip, one_hop_on, udp, unframe, with_fragment_field,
    with_traffic_class,
};
use adit_tests::scapy::fragments;

const PEER_PORT: u16 = 62_001;

fn options() -> Options {
    Options { reassembly: Limits::default(), ..Options::new() }
}

/// Inner packets of B's for A's host, and what A's peer makes of them under `options`.
fn sealed(options: &Options) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let inner: Vec<_> = [700, 1_300, 1_472]
        .iter()
        .flat_map(|&length| {
            [false, true].map(|v6| udp(Site::A.host(v6), Site::B.host(v6), length - if v6 { 20 } else { 0 }))
        })
        .collect();
    // With DF set there is no identification, and nobody who may fragment.
    let dont_fragment = DontFragment::Clear;
    let outside = Options { outside_mtu: 9_000, udp_port: None, dont_fragment, ..options.clone() };
    let sent = Gateway::new(Site::A, &outside).run(INSIDE, &inner);
    let in_udp = |packet: Vec<u8>| match options.udp_port {
        Some(port) if packet[0] >> 4 == 4 => {
            let mut datagram = in_udp(&packet, port);
            datagram[4..6].copy_from_slice(&packet[4..6]);
            fix_ipv4(&mut datagram);
            datagram
        }
        Some(port) => in_udp(&packet, port),
        None => packet,
    };
    let packets: Vec<_> = sent.into_iter().map(|(_, packet)| in_udp(packet)).collect();
    assert_eq!(packets.len(), inner.len());
    // One hop in A, one in B.
    (inner.iter().map(|packet| one_hop_on(&one_hop_on(packet))).collect(), packets)
}

#[test]
fn whatever_was_fragmented_is_whole_again() {
    let sha256 = suite(Encryption::Null, Authentication::Sha256);
    for outer_ipv6 in [false, true] {
        let ah = Options { protocol: Protocol::Ah(Padding::Rfc4302), ..Options::with_suite(sha256) };
        for options in [Options::new(), ah, Options { udp_port: Some(PEER_PORT), ..Options::new() }]
            .map(|options| Options { outer_ipv6, reassembly: Limits::default(), ..options })
        {
            let (inner, packets) = sealed(&options);
            for mtu in if outer_ipv6 { [1280, 1400] } else { [576, 1400] } {
                let made = fragments(&packets, mtu);
                // In order, in reverse, and those of several datagrams among each other.
                let in_order: Vec<_> = made.iter().flatten().cloned().collect();
                let backwards: Vec<_> = in_order.iter().rev().cloned().collect();
                let longest = made.iter().map(Vec::len).max().unwrap();
                let mixed: Vec<_> = (0..longest)
                    .flat_map(|turn| made.iter().filter_map(move |all| all.get(turn)).cloned())
                    .collect();
                for arrivals in [in_order, backwards, mixed] {
                    let mut b = Gateway::new(Site::B, &options);
                    let mut out: Vec<_> =
                        b.run(OUTSIDE, &arrivals).into_iter().map(|(_, packet)| packet).collect();
                    let mut expected = inner.clone();
                    out.sort();
                    expected.sort();
                    assert!(out == expected, "{outer_ipv6} {:?} {mtu}", options.udp_port);
                    let counters = b.engine.counters();
                    let absorbed = arrivals.len() - packets.len();
                    assert_eq!(counters.absorbed.load(Relaxed), absorbed as u64);
                    assert_eq!(counters.opened.load(Relaxed), packets.len() as u64);
                    assert_eq!((b.drops(), b.engine.tables.reassembly.held()), (vec![], 0));
                }
            }
        }
    }
}

#[test]
fn the_fragments_of_a_datagram_may_come_to_different_workers() {
    let options = options();
    let (inner, packets) = sealed(&options);
    let mut b = Gateway::new(Site::B, &options);
    let mut second = Engine::new(Arc::clone(&b.engine.tables), 1, IvSource::from_seed([1; 32]));
    let mut out = Vec::new();
    for (turn, packet) in fragments(&packets, 576).into_iter().flatten().enumerate() {
        let mut frame = frame(&packet);
        let engine = if turn % 2 == 0 { &mut b.engine } else { &mut second };
        engine.process(0, &mut [Received { port: OUTSIDE, frame: &mut frame }]);
        engine.transmit(|output| out.push(unframe(&output.frame[..output.length]).to_vec()));
    }
    assert!(out == inner);
    let sum = |of: fn(&Engine) -> u64| of(&b.engine) + of(&second);
    let received = sum(|engine| engine.counters().received.load(Relaxed));
    let absorbed = sum(|engine| engine.counters().absorbed.load(Relaxed));
    assert_eq!(received, absorbed + inner.len() as u64);
    assert!(b.engine.counters().opened.load(Relaxed) > 0 && second.counters().opened.load(Relaxed) > 0);
}

/// The two halves of an ESP packet under number `sequence`, cut at 104 bytes of payload; with this identification.
fn halves(sequence: u64, identification: u16) -> [Vec<u8>; 2] {
    let inner = udp(Site::A.host(false), Site::B.host(false), 200);
    let mut packet = Peer::of(Site::B, &options()).seal(sequence, 4, &inner);
    packet[4..6].copy_from_slice(&identification.to_be_bytes());
    let cut = |range: std::ops::Range<usize>, field| {
        let mut piece = [&packet[..20], &packet[20..][range]].concat();
        let length = (piece.len() as u16).to_be_bytes();
        piece[2..4].copy_from_slice(&length);
        with_fragment_field(piece, field)
    };
    [cut(0..104, MORE_FRAGMENTS), cut(104..packet.len() - 20, 13)]
}

#[test]
fn each_loss_has_its_name() {
    let limits = |limits| Gateway::new(Site::B, &Options { reassembly: limits, ..options() });
    let gateway = || limits(Limits::default());
    let [first, last] = halves(1, 7);

    let mut b = gateway();
    assert_eq!(b.run(OUTSIDE, std::slice::from_ref(&first)), []);
    assert_eq!(b.engine.tables.reassembly.held(), 1);
    b.assert_drops(OUTSIDE, &first, DropReason::ReassemblyDuplicate);
    assert_eq!(b.run(OUTSIDE, std::slice::from_ref(&last)).len(), 1);
    // Nobody else comes: the clock alone ends it.
    let mut b = gateway();
    b.run(OUTSIDE, std::slice::from_ref(&first));
    b.engine.expire(4_999);
    assert_eq!(b.drops(), []);
    b.engine.expire(5_000);
    assert_eq!(b.drops(), [(DropReason::ReassemblyTimeout, 1)]);
    b.assert_balanced(0);

    // RFC 5722: an overlap costs the whole datagram, and what is still to come of it.
    let mut b = gateway();
    let overlapping = with_fragment_field(last.clone(), 12);
    assert_eq!(b.run(OUTSIDE, &[first.clone(), overlapping, last.clone()]), []);
    assert_eq!(b.drops(), [(DropReason::ReassemblyOverlap, 3)]);
    let again = halves(1, 8);
    assert_eq!(b.run(OUTSIDE, &again).len(), 1, "another datagram, as if nothing had been");

    let mut b = limits(Limits { per_source: 2, ..Limits::default() });
    let many: Vec<_> = (1..=3).map(|id| halves(u64::from(id), id)).collect();
    b.run(OUTSIDE, &many.iter().map(|pair| pair[0].clone()).collect::<Vec<_>>());
    assert_eq!(b.drops(), [(DropReason::ReassemblySource, 1)]);
    assert_eq!(b.run(OUTSIDE, &many[1..].iter().map(|pair| pair[1].clone()).collect::<Vec<_>>()).len(), 2);

    let mut b = limits(Limits { memory: 5_000, ..Limits::default() });
    b.run(OUTSIDE, &many.iter().map(|pair| pair[0].clone()).collect::<Vec<_>>());
    assert_eq!(b.drops(), [(DropReason::ReassemblyMemory, 1)]);
    assert_eq!(b.run(OUTSIDE, &[many[2][1].clone(), many[1][1].clone()]).len(), 2);

    let mut b = limits(Limits { fragments: 2, ..Limits::default() });
    let far = with_fragment_field(first.clone(), MORE_FRAGMENTS | 40);
    let farther = with_fragment_field(first.clone(), MORE_FRAGMENTS | 80);
    assert_eq!(b.run(OUTSIDE, &[first.clone(), far, farther]), []);
    assert_eq!(b.drops(), [(DropReason::ReassemblyFragments, 3)]);

    let (source, destination) = (Site::A.endpoint(false), Site::B.endpoint(false));
    let odd = with_fragment_field(ip(source, destination, 50, &[7; 15]), MORE_FRAGMENTS);
    gateway().assert_drops(OUTSIDE, &odd, DropReason::ReassemblyInvalid);
    let empty = with_fragment_field(ip(source, destination, 50, &[]), 4);
    gateway().assert_drops(OUTSIDE, &empty, DropReason::ReassemblyInvalid);
    let beyond = with_fragment_field(ip(source, destination, 50, &[7; 16]), 8_191);
    gateway().assert_drops(OUTSIDE, &beyond, DropReason::ReassemblyInvalid);

    // RFC 3168 section 5.3: congestion met by one fragment, and another that cannot say so.
    let mut b = gateway();
    let marked = with_traffic_class(first.clone(), 3);
    assert_eq!(b.run(OUTSIDE, &[marked, last.clone()]), []);
    assert_eq!(b.drops(), [(DropReason::EcnForbidden, 2)]);
}

/// A whole datagram is judged like one that came whole (CVE-2007-6282: a first fragment of no ESP header at all).
#[test]
fn what_is_whole_is_still_to_be_proven() {
    let (source, destination) = (Site::A.endpoint(false), Site::B.endpoint(false));
    let piece = |payload: &[u8], field| with_fragment_field(ip(source, destination, 50, payload), field);
    let mut b = Gateway::new(Site::B, &options());
    assert_eq!(b.run(OUTSIDE, &[piece(&[0; 8], MORE_FRAGMENTS), piece(&[1], 1)]), []);
    assert_eq!(b.drops(), [(DropReason::NoState, 1)]);
    let [first, mut last] = halves(1, 9);
    let end = last.len() - 1;
    last[end] ^= 1;
    assert_eq!(b.run(OUTSIDE, &[first.clone(), last.clone()]), []);
    assert_eq!(b.drops(), [(DropReason::NoState, 1), (DropReason::IcvFailed, 1)]);
    last[end] ^= 1;
    assert_eq!(b.run(OUTSIDE, &[last, first]).len(), 1);
    assert_eq!(b.engine.counters().absorbed.load(Relaxed), 3);

    // Later fragments of UDP wait: they may be ESP's. IKE, when it is whole, is nobody's here, as if it came whole.
    let ike = [&4500u16.to_be_bytes()[..], &4500u16.to_be_bytes(), &48u16.to_be_bytes(), &[0; 42]].concat();
    let whole = ip(source, destination, 17, &ike);
    let piece = |payload: &[u8], field| with_fragment_field(ip(source, destination, 17, payload), field);
    let mut b = Gateway::new(Site::B, &options());
    assert_eq!(b.run(OUTSIDE, &[piece(&whole[36..], 2), piece(&whole[20..36], MORE_FRAGMENTS)]), []);
    assert_eq!(b.drops(), [(DropReason::NoHostPath, 1)]);
    // What is not for us is traffic like any other, and never waits.
    let transit = with_fragment_field(ip(source, Site::B.host(false), 50, &[0; 16]), 5);
    b.assert_drops(OUTSIDE, &transit, DropReason::PolicyDiscard);
}
