//! ESP in UDP (RFC 3948) through the whole pipeline: what is on the wire, whom the port belongs to, and who may move it.

use adit_engine::pipeline::DropReason;
use adit_engine::route::PortId;
use adit_engine::sa::spec::Mode;
use adit_engine::transform::transport::DestinationOptions;
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
    let port = |b: &Gateway| b.tunnel.outbound.get().unwrap().in_udp.as_ref().unwrap().peer.get().unwrap().1;
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
    // IKE and ESP come to the ports of the tunnels there are, each SA to its own.
    let others = Options { local_udp_port: 4501, ..options.clone() };
    Gateway::new(Site::B, &others).assert_drops(
        OUTSIDE,
        &in_udp(&peer.seal(1, 4, &inner(20)), 9),
        DropReason::NoState,
    );
    let mut to_4501 = in_udp(&peer.seal(1, 4, &inner(20)), 9);
    to_4501[22..24].copy_from_slice(&4501u16.to_be_bytes());
    assert_eq!(Gateway::new(Site::B, &others).run(OUTSIDE, &[to_4501]).len(), 1);
    let sent =
        Gateway::new(Site::B, &others).run(INSIDE, &[udp(Site::B.host(false), Site::A.host(false), 9)]);
    assert_eq!(ports(&sent[0].1), (4501, PEER_PORT));
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

/// RFC 3948 section 4: after so many seconds of silence one octet of 0xff, to where the peer is now.
#[test]
fn keepalives_break_the_silence() {
    for ipv6 in [false, true] {
        let options = options(ipv6);
        let mut b = Gateway::new(Site::B, &options);
        let sent_at = |b: &mut Gateway, second: u64| {
            b.engine.send_keepalives(second * 1000);
            let mut sent = Vec::new();
            b.engine.transmit(|output| sent.push(output.frame[14..output.length].to_vec()));
            sent
        };
        assert!((0..20).all(|second| sent_at(&mut b, second).is_empty()));
        let sent = sent_at(&mut b, 20);
        assert_eq!(sent.len(), 1);
        let parsed = ip::parse(&sent[0]).unwrap();
        let (source, destination) = (options.endpoint(Site::B), options.endpoint(Site::A));
        assert_eq!(
            (parsed.flow.source, parsed.flow.destination, parsed.flow.protocol),
            (source, destination, 17)
        );
        assert_eq!(ports(&sent[0]), (4500, PEER_PORT));
        let datagram = &sent[0][usize::from(parsed.payload_offset)..];
        assert_eq!((datagram.len(), &datagram[4..6], datagram[8]), (9, &[0, 9][..], 0xff));
        if ipv6 {
            assert_eq!(transport_checksum(source, destination, 17, datagram), 0);
        }
        // Any packet of the SA will do, and where the peer moved it is followed.
        assert!((21..39).all(|second| sent_at(&mut b, second).is_empty()));
        assert_eq!(b.run(INSIDE, &[udp(Site::B.host(false), Site::A.host(false), 9)]).len(), 1);
        let mut peer = Peer::of(Site::B, &options);
        assert_eq!(b.run(OUTSIDE, &[in_udp(&peer.seal(1, 4, &inner(20)), 1000)]).len(), 1);
        assert!((39..59).all(|second| sent_at(&mut b, second).is_empty()));
        assert_eq!(
            sent_at(&mut b, 59).iter().map(|packet| ports(packet)).collect::<Vec<_>>(),
            [(4500, 1000)]
        );
        assert_eq!(b.engine.counters().originated.load(std::sync::atomic::Ordering::Relaxed), 2);
        b.assert_balanced(0);
    }
    let mut native = Gateway::new(Site::B, &Options::new());
    native.engine.send_keepalives(1_000_000);
    native.engine.transmit(|_| panic!("not in UDP"));
}

/// RFC 3948 section 3.1.2: a NAT changed the addresses that the checksum inside was computed with.
#[test]
fn transport_mode_through_a_nat() {
    for ipv6 in [false, true] {
        let options = Options {
            mode: Mode::Transport(DestinationOptions::After),
            udp_port: Some(PEER_PORT),
            outer_ipv6: ipv6,
            ..Options::new()
        };
        let (source, destination) = (options.endpoint(Site::A), options.endpoint(Site::B));
        let mut a = Gateway::new(Site::A, &options).with_host();
        let header = if ipv6 { 40 } else { 20 };
        let ping = match ipv6 {
            true => packet::ip(source, destination, 58, &{
                let mut echo = [128, 0, 0, 0, 0, 1, 0, 1, 9, 9, 9];
                let sum = transport_checksum(source, destination, 58, &echo);
                echo[2..4].copy_from_slice(&sum.to_be_bytes());
                echo
            }),
            false => packet::ip(source, destination, 1, &[8, 0, 0xe5, 0xec, 0, 1, 9, 9, 9]),
        };
        let mut unsummed = udp(source, destination, 33);
        unsummed[header + 6..header + 8].fill(0);
        let packets =
            [udp(source, destination, 700), packet::tcp_syn(source, destination, 1000), ping, unsummed];
        let sent: Vec<_> = a.run(PortId::HOST, &packets).into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(sent.len(), 4, "{:?}", a.drops());
        for datagram in &sent {
            let parsed = ip::parse(datagram).unwrap();
            assert_eq!((parsed.flow.protocol, ports(datagram)), (17, (4500, PEER_PORT)));
            assert_eq!(datagram.len(), parsed.total_length as usize);
            if ipv6 {
                assert_eq!(transport_checksum(source, destination, 17, &datagram[40..]), 0);
            }
        }
        // What B knows A by is the NAT's address.
        let nat = address(if ipv6 { "2001:db8:9::77" } else { "203.0.113.77" });
        let mut b = Gateway::new(Site::B, &Options { peer: Some(nat), ..options.clone() }).with_host();
        let translated: Vec<_> = sent
            .iter()
            .map(|datagram| {
                let mut datagram = packet::ip(nat, destination, 17, &datagram[header..]);
                datagram[header..header + 4].copy_from_slice(&[0x30, 0x39, 0x11, 0x94]);
                datagram
            })
            .collect();
        let delivered = b.run(OUTSIDE, &translated);
        assert_eq!(delivered.len(), 4, "{:?}", b.drops());
        for ((port, found), sent) in delivered.iter().zip(&packets) {
            assert_eq!((*port, found.len()), (PortId::HOST, sent.len()));
            let parsed = ip::parse(found).unwrap();
            assert_eq!((parsed.flow.source, parsed.flow.destination), (nat, destination));
            let (segment, original) = (&found[header..], &sent[header..]);
            let at = match parsed.flow.protocol {
                1 => {
                    assert_eq!(segment, original);
                    continue;
                }
                6 => 16,
                17 => 6,
                _ => 2,
            };
            assert_eq!((&segment[..at], &segment[at + 2..]), (&original[..at], &original[at + 2..]));
            match original[at..at + 2] {
                [0, 0] if !ipv6 => assert_eq!(segment[at..at + 2], [0, 0], "none was sent"),
                _ => assert_eq!(transport_checksum(nat, destination, parsed.flow.protocol, segment), 0),
            }
        }
        // Only the port may be another: the address is what the packets inside are between.
        let stranger = packet::ip(source, destination, 17, &translated[0][header..]);
        b.assert_drops(OUTSIDE, &stranger, DropReason::NoState);
        let port = b.tunnel.outbound.get().unwrap().in_udp.as_ref().unwrap().peer.get().unwrap();
        assert_eq!(port, (nat, 12345));
    }
}
