//! ESP in UDP (RFC 3948) through the whole pipeline: what is on the wire, whom the port belongs to, and who may move it.

use adit_engine::pipeline::DropReason;
use adit_engine::wire::ip;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, address};
use adit_tests::packet::{
    self, MORE_FRAGMENTS, in_udp, one_hop_on, transport_checksum, udp, udp_ports, with_fragment_field,
};

const PEER_PORT: u16 = 62_001;

fn options(ipv6: bool) -> Options {
    Options { udp_port: Some(PEER_PORT), outer_ipv6: ipv6, ..Options::new() }
}

fn inner(length: usize) -> Vec<u8> {
    udp(Site::A.host(false), Site::B.host(false), length)
}

fn ports(datagram: &[u8]) -> (u16, u16) {
    let at = if datagram[0] >> 4 == 4 { 20 } else { 40 };
    let word = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
    (word(at), word(at + 2))
}

#[test]
fn both_families_both_ways() {
    for ipv6 in [false, true] {
        let options = options(ipv6);
        let (mut a, mut b) = Gateway::pair(&options);
        let packets = [0, 1, 64, 1300].map(inner);
        let sent: Vec<_> = a.run(INSIDE, &packets).into_iter().map(|(_, packet)| packet).collect();
        for datagram in &sent {
            assert_eq!(ports(datagram), (4500, PEER_PORT));
            let at = if ipv6 { 40 } else { 20 };
            let length = usize::from(u16::from_be_bytes([datagram[at + 4], datagram[at + 5]]));
            assert_eq!(length, datagram.len() - at);
            // RFC 3948 section 2.1: zero over IPv4; over IPv6 a real one.
            if ipv6 {
                let mut unsummed = datagram[at..].to_vec();
                unsummed[6..8].fill(0);
                let (source, destination) = (options.endpoint(Site::A), options.endpoint(Site::B));
                let sum = transport_checksum(source, destination, 17, &unsummed);
                assert_eq!(datagram[at + 6..at + 8], sum.to_be_bytes());
            } else {
                assert_eq!(datagram[at + 6..at + 8], [0, 0]);
            }
        }
        // The NAT in between makes our port the peer's, and the peer's 4500.
        let translated: Vec<_> = sent
            .into_iter()
            .map(|mut datagram| {
                let at = if ipv6 { 40 } else { 20 };
                datagram[at..at + 4].copy_from_slice(&[0x30, 0x39, 0x11, 0x94]);
                datagram
            })
            .collect();
        let forwarded: Vec<_> =
            packets.iter().map(|packet| (INSIDE, one_hop_on(&one_hop_on(packet)))).collect();
        assert_eq!(b.run(OUTSIDE, &translated), forwarded, "{:?}", b.drops());
        let reply = b.run(INSIDE, &[udp(Site::B.host(false), Site::A.host(false), 9)]);
        assert_eq!(ports(&reply[0].1), (4500, 12345), "to where the peer's latest packet came from");
    }
}

/// Line 79: whatever is not authenticated, or not the latest, moves nothing.
#[test]
fn only_an_authenticated_latest_packet_moves_the_peer() {
    let options = options(false);
    let (mut b, mut peer) = (Gateway::new(Site::B, &options), Peer::of(Site::B, &options));
    let port = |b: &Gateway| b.tunnel.outbound.get().unwrap().peer.get().unwrap().1;
    assert_eq!(port(&b), PEER_PORT);
    let sealed: Vec<_> = (1..=9).map(|number| peer.seal(number, 4, &inner(20))).collect();
    assert_eq!(b.run(OUTSIDE, &[in_udp(&sealed[4], 1000)]).len(), 1);
    assert_eq!(port(&b), 1000);
    // A replayed one, a forged one with a great number, one that was overtaken.
    b.assert_drops(OUTSIDE, &in_udp(&sealed[4], 2000), DropReason::ReplayDuplicate);
    let mut forged = in_udp(&sealed[8], 3000);
    forged[34] ^= 0x40;
    b.assert_drops(OUTSIDE, &forged, DropReason::IcvFailed);
    assert_eq!(b.run(OUTSIDE, &[in_udp(&sealed[2], 4000)]).len(), 1);
    assert_eq!(port(&b), 1000);
    assert_eq!(b.run(OUTSIDE, &[in_udp(&sealed[5], 5000)]).len(), 1);
    assert_eq!(port(&b), 5000);
    // Without a window a recorded packet could: nothing moves then.
    let options = Options { replay_window: 0, ..options };
    let mut b = Gateway::new(Site::B, &options);
    assert_eq!(b.run(OUTSIDE, &[in_udp(&sealed[4], 1000)]).len(), 1);
    assert_eq!(port(&b), PEER_PORT);
}

/// A NAT may move the address as well, for whoever has the key.
#[test]
fn the_address_follows_too() {
    for ipv6 in [false, true] {
        let options = options(ipv6);
        let elsewhere = address(if ipv6 { "2001:db8:9::77" } else { "203.0.113.77" });
        let (mut b, mut peer) = (Gateway::new(Site::B, &options), Peer::of(Site::B, &options));
        peer.source = elsewhere;
        let mut forged = in_udp(&peer.seal(2, 4, &inner(20)), 1000);
        *forged.last_mut().unwrap() ^= 1;
        b.assert_drops(OUTSIDE, &forged, DropReason::IcvFailed);
        let reply = |b: &mut Gateway| {
            let sent = b.run(INSIDE, &[udp(Site::B.host(false), Site::A.host(false), 9)]);
            (ip::parse(&sent[0].1).unwrap().flow.destination, ports(&sent[0].1).1)
        };
        assert_eq!(reply(&mut b), (options.endpoint(Site::A), PEER_PORT));
        let moved = in_udp(&peer.seal(3, 4, &inner(20)), 1000);
        assert_eq!(b.run(OUTSIDE, &[moved]).len(), 1, "{:?}", b.drops());
        assert_eq!(reply(&mut b), (elsewhere, 1000));
    }
}

#[test]
fn what_else_comes_to_the_port() {
    let options = options(false);
    let gateway = || Gateway::new(Site::B, &options);
    let mut peer = Peer::of(Site::B, &options);
    let (source, destination) = (options.endpoint(Site::A), options.endpoint(Site::B));
    let to_port = |payload: &[u8]| {
        let length = (8 + payload.len()) as u16;
        let header = [4500u16.to_be_bytes(), 4500u16.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
        packet::ip(source, destination, 17, &[&header, payload].concat())
    };
    gateway().assert_drops(OUTSIDE, &to_port(&[0xff]), DropReason::NatKeepalive);
    gateway().assert_drops(OUTSIDE, &to_port(&[0xfe]), DropReason::Malformed);
    // IKE is the daemon's, and other ports are nobody's here.
    gateway().assert_drops(OUTSIDE, &to_port(&[0, 0, 0, 0, 1, 2, 3, 4]), DropReason::NoHostPath);
    let other = udp_ports(source, destination, 4500, 4501, 30);
    gateway().assert_drops(OUTSIDE, &other, DropReason::NoHostPath);
    // An SA is in UDP, or is not.
    let native = peer.seal(1, 4, &inner(20));
    gateway().assert_drops(OUTSIDE, &native, DropReason::NoState);
    Gateway::new(Site::B, &Options::new()).assert_drops(OUTSIDE, &in_udp(&native, 4500), DropReason::NoState);
    // Pieces of ESP in UDP are pieces of ESP.
    let first = with_fragment_field(in_udp(&native, 4500), MORE_FRAGMENTS);
    gateway().assert_drops(OUTSIDE, &first, DropReason::EspFragment);
    // Bytes behind the UDP length are not ESP's.
    let mut longer = in_udp(&native, 4500);
    longer.extend([0; 6]);
    let length = (longer.len() as u16).to_be_bytes();
    longer[2..4].copy_from_slice(&length);
    packet::fix_ipv4(&mut longer);
    assert_eq!(gateway().run(OUTSIDE, &[longer]).len(), 1);
}
