//! The gateway itself at the ends of a tunnel: its packets go in, and come out, as its own stack wrote them.

use std::sync::atomic::Ordering::Relaxed;

use adit_engine::pipeline::{DropReason, HostEnd};
use adit_engine::route::PortId;
use adit_tests::memory::{Gateway, HOST_END, INSIDE, OUTSIDE, Options, Peer, Site, address};
use adit_tests::packet::{
    DONT_FRAGMENT, one_hop_on, tcp_syn, transport_checksum, udp, with_fragment_field, with_ttl,
};

const HOST: PortId = PortId::HOST;

fn pair(options: &Options) -> (Gateway, Gateway) {
    let (a, b) = Gateway::pair(options);
    (a.with_host(), b.with_host())
}

/// In at A by `from`, through the wire, out at B.
fn through(a: &mut Gateway, b: &mut Gateway, from: PortId, packets: &[Vec<u8>]) -> Vec<(PortId, Vec<u8>)> {
    let sealed = a.run(from, packets);
    assert!(
        sealed
            .iter()
            .all(|(port, packet)| *port == OUTSIDE && packet[if packet[0] >> 4 == 4 { 9 } else { 6 }] == 50)
    );
    let sealed: Vec<_> = sealed.into_iter().map(|(_, packet)| packet).collect();
    b.run(OUTSIDE, &sealed)
}

#[test]
fn from_gateway_to_gateway_and_to_hosts() {
    for outer_ipv6 in [false, true] {
        let (mut a, mut b) = pair(&Options { outer_ipv6, ..Options::new() });
        for ipv6 in [false, true] {
            // RFC 4301 section 5.1.2.1: who does not forward does not count the hop down, nor mind that it is the last.
            let own = [64, 1].map(|ttl| with_ttl(udp(Site::A.inside(ipv6), Site::B.inside(ipv6), 100), ttl));
            let expected = own.clone().map(|packet| (HOST, packet));
            assert_eq!(through(&mut a, &mut b, HOST, &own), expected);

            let to_host = udp(Site::A.inside(ipv6), Site::B.host(ipv6), 100);
            assert_eq!(
                through(&mut a, &mut b, HOST, std::slice::from_ref(&to_host)),
                [(INSIDE, one_hop_on(&to_host))]
            );

            let from_host = udp(Site::A.host(ipv6), Site::B.inside(ipv6), 100);
            assert_eq!(
                through(&mut a, &mut b, INSIDE, std::slice::from_ref(&from_host)),
                [(HOST, one_hop_on(&from_host))]
            );
        }
        assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
        assert_eq!(b.engine.counters().delivered.load(Relaxed), 6);
        assert_eq!(b.engine.counters().transmitted.load(Relaxed), 2);
    }
}

/// Whoever is delivered to the gateway was let in by its SA and by the policy, like everybody else.
#[test]
fn what_is_delivered_was_let_in() {
    let options = Options::new();
    let mut b = Gateway::new(Site::B, &options);
    b.engine.frames.host = Some(HOST_END);
    let mut peer = Peer::of(Site::B, &options);
    let mut sealed = |sequence, packet: &[u8]| peer.seal(sequence, 4, packet);
    let stranger = sealed(1, &udp(address("10.3.0.2"), Site::B.inside(false), 10));
    b.assert_drops(OUTSIDE, &stranger, DropReason::SelectorMismatch);
    let to_outside_address = sealed(2, &udp(Site::A.host(false), Site::B.endpoint(false), 10));
    b.assert_drops(OUTSIDE, &to_outside_address, DropReason::SelectorMismatch);
    let own_source = sealed(3, &udp(Site::B.inside(false), Site::B.inside(false), 10));
    b.assert_drops(OUTSIDE, &own_source, DropReason::InnerSource);
    // In clear, there is no way to the host by the engine.
    b.assert_drops(OUTSIDE, &udp(Site::A.host(false), Site::B.inside(false), 10), DropReason::ClearText);
    b.assert_drops(INSIDE, &udp(Site::B.host(false), Site::B.inside(false), 10), DropReason::NoHostPath);
    assert_eq!(b.engine.counters().delivered.load(Relaxed), 0);
}

#[test]
fn what_was_delivered_does_not_lie_about_in_free_frames() {
    let (mut a, mut b) = pair(&Options::new());
    let mut packet = udp(Site::A.inside(false), Site::B.inside(false), 600);
    packet[28..].fill(0xa5);
    let sum = {
        packet[26..28].fill(0);
        transport_checksum(Site::A.inside(false), Site::B.inside(false), 17, &packet[20..])
    };
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(through(&mut a, &mut b, HOST, &[packet.clone()]), [(HOST, packet)]);
    // Traffic-flow confidentiality padding behind a packet (RFC 4303 section 2.7) is plaintext too.
    let padded = [udp(Site::A.inside(false), Site::B.inside(false), 10), vec![0xa5; 64]].concat();
    let sealed = Peer::of(Site::B, &Options::new()).seal(9, 4, &padded);
    assert_eq!(b.run(OUTSIDE, &[sealed])[0].1, padded[..38]);
    assert!(b.engine.frames.free().iter().all(|frame| !frame.windows(16).any(|bytes| bytes == [0xa5; 16])));
}

/// Outside 1500: 20 outer IP, 8 ESP, 8 IV, 16 ICV leave 1448; less pad length and next header, multiple of 4.
const INSIDE_MTU: usize = 1446;

#[test]
fn the_gateways_own_stack_is_told_what_is_too_big() {
    let (mut a, mut b) = pair(&Options::new());
    for (ipv6, header) in [(false, 28), (true, 48)] {
        let own = |length: usize| {
            let packet = udp(Site::A.inside(ipv6), Site::B.inside(ipv6), length);
            if ipv6 { packet } else { with_fragment_field(packet, DONT_FRAGMENT) }
        };
        assert_eq!(through(&mut a, &mut b, HOST, &[own(INSIDE_MTU - header)]).len(), 1);
        let told = a.run(HOST, &[own(INSIDE_MTU - header + 1)]);
        let [(HOST, error)] = &told[..] else { panic!("{told:?}") };
        // RFC 1191 section 4 (3, 4, next-hop MTU at 6), RFC 4443 section 3.2 (2, 0, MTU at 4).
        let (from, to, kind, mtu) = if ipv6 {
            (&error[8..24], &error[24..40], &error[40..42], &error[46..48])
        } else {
            (&error[12..16], &error[16..20], &error[20..22], &error[26..28])
        };
        let HostEnd { v4, v6 } = HOST_END;
        let own_address = if ipv6 { own(0)[8..24].to_vec() } else { own(0)[12..16].to_vec() };
        assert_eq!(from, if ipv6 { v6.octets().to_vec() } else { v4.octets().to_vec() });
        assert_eq!(to, own_address);
        let kind_wanted = if ipv6 { [2, 0] } else { [3, 4] };
        assert_eq!((kind, mtu), (&kind_wanted[..], &(INSIDE_MTU as u16).to_be_bytes()[..]));
    }
    assert_eq!(a.drops(), [(DropReason::TooBig, 2)]);
    assert_eq!(a.engine.counters().originated.load(Relaxed), 2);
    // Without DF it is fragmented, and the first fragment's TTL is the packet's.
    let sent = through(&mut a, &mut b, HOST, &[udp(Site::A.inside(false), Site::B.inside(false), 1472)]);
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|(port, packet)| *port == HOST && packet[8] == 64));
}

#[test]
fn segments_of_the_gateways_own_connections_fit() {
    let (mut a, mut b) = pair(&Options::new());
    let syn = tcp_syn(Site::A.inside(false), Site::B.inside(false), 1460);
    let [(HOST, there)] = &through(&mut a, &mut b, HOST, &[syn])[..] else { panic!("it arrives") };
    assert_eq!(there[42..44], (INSIDE_MTU as u16 - 40).to_be_bytes());
    // A peer that does not clamp: the way in does.
    let options = Options { clamp_mss: false, ..Options::new() };
    let (mut a, _) = pair(&options);
    let syn = tcp_syn(Site::A.inside(false), Site::B.inside(false), 1460);
    let (_, mut b) = pair(&Options::new());
    let [(HOST, there)] = &through(&mut a, &mut b, HOST, &[syn])[..] else { panic!("it arrives") };
    assert_eq!(there[42..44], (INSIDE_MTU as u16 - 40).to_be_bytes());
}

/// Without a way to its own stack, the gateway's packets may still go in; errors about them have nowhere to go.
#[test]
fn nobody_there() {
    let mut a = Gateway::new(Site::A, &Options::new());
    let own = with_fragment_field(udp(Site::A.inside(false), Site::B.inside(false), 1472), DONT_FRAGMENT);
    a.assert_drops(HOST, &own, DropReason::TooBig);
    assert_eq!(a.engine.counters().originated.load(Relaxed), 0);
}
