//! Transport mode through the whole pipeline, ESP and AH, both families: what is for the host, what is not, sizes.

use std::net::IpAddr;

use adit_engine::crypto::{Authentication, Encryption};
use adit_engine::pipeline::DropReason;
use adit_engine::route::PortId;
use adit_engine::sa::selector::{AddressRange, PortRange, Selector, UpperSelector};
use adit_engine::sa::spec::{Mode, Protocol};
use adit_engine::transform::ah::Padding;
use adit_engine::transform::transport::DestinationOptions;
use adit_engine::wire::ip;
use adit_tests::ah_peer::AhPeer;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, suite};
use adit_tests::packet::{
    self, DONT_FRAGMENT, MORE_FRAGMENTS, one_hop_on, tcp_syn, udp, with_fragment_field, with_ttl,
};

fn options(protocol: Protocol, ipv6: bool) -> Options {
    let base = match protocol {
        Protocol::Esp => Options::new(),
        Protocol::Ah(_) => Options::with_suite(suite(Encryption::Null, Authentication::Sha256)),
    };
    Options { protocol, mode: Mode::Transport(DestinationOptions::After), outer_ipv6: ipv6, ..base }
}

const AH: Protocol = Protocol::Ah(Padding::Rfc4302);

fn every() -> impl Iterator<Item = Options> {
    [(Protocol::Esp, false), (Protocol::Esp, true), (AH, false), (AH, true)]
        .into_iter()
        .map(|(protocol, ipv6)| options(protocol, ipv6))
}

fn hosts(options: &Options) -> (IpAddr, IpAddr) {
    (Site::A.host(options.outer_ipv6), Site::B.host(options.outer_ipv6))
}

/// A packet of the peer's with this inside, under a good ICV.
fn sealed(options: &Options, sequence: u64, next_header: u8, payload: &[u8]) -> Vec<u8> {
    match options.protocol {
        Protocol::Esp => Peer::of(Site::B, options).seal(sequence, next_header, payload),
        Protocol::Ah(_) => AhPeer::of(Site::B, options).sign(sequence, next_header, payload),
    }
}

fn payload(packet: &[u8]) -> &[u8] {
    &packet[if packet[0] >> 4 == 4 { 20 } else { 40 }..]
}

#[test]
fn what_one_gateway_seals_is_for_the_other_ones_host() {
    for options in every() {
        let (source, destination) = hosts(&options);
        let (mut a, b) = Gateway::pair(&options);
        let packets =
            [udp(source, destination, 0), udp(source, destination, 999), tcp_syn(source, destination, 900)];
        let sent: Vec<_> = a.run(INSIDE, &packets).into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(sent.len(), 3, "{:?}", a.drops());
        for (packet, sealed) in packets.iter().zip(&sent) {
            let (packet, sealed) = (one_hop_on(packet), ip::parse(sealed).unwrap());
            assert_eq!(sealed.flow.protocol, options.protocol.number());
            let before = ip::parse(&packet).unwrap();
            assert_eq!((sealed.flow.source, sealed.flow.destination), (source, destination));
            assert_eq!((sealed.ttl, sealed.traffic_class), (before.ttl, before.traffic_class));
        }
        let delivered = packets.map(|packet| (PortId::HOST, one_hop_on(&packet)));
        assert_eq!(b.with_host().run(OUTSIDE, &sent), delivered);
    }
}

/// RFC 4301 section 5.2 step 4: the selectors look at the packet as it is put together again.
#[test]
fn ports_are_those_inside() {
    for options in every() {
        let (source, destination) = hosts(&options);
        let port = |first, last| PortRange { first, last };
        let upper = UpperSelector::Ports { local: port(53, 53), remote: port(1024, 65535) };
        let selector = Selector {
            local: AddressRange::single(destination),
            remote: AddressRange::single(source),
            protocol: Some(17),
            upper,
        };
        let options = Options { selectors: Some(vec![selector]), ..options };
        let datagram = |from, to| packet::udp_ports(source, destination, from, to, 20);
        let mut b = Gateway::new(Site::B, &options);
        b.assert_drops(
            OUTSIDE,
            &sealed(&options, 1, 17, payload(&datagram(4660, 53))),
            DropReason::NoHostPath,
        );
        for wrong in [datagram(4660, 54), datagram(80, 53)] {
            let mut b = Gateway::new(Site::B, &options);
            b.assert_drops(OUTSIDE, &sealed(&options, 1, 17, payload(&wrong)), DropReason::SelectorMismatch);
        }
        let syn = tcp_syn(source, destination, 1000);
        let mut b = Gateway::new(Site::B, &options);
        b.assert_drops(OUTSIDE, &sealed(&options, 1, 6, payload(&syn)), DropReason::SelectorMismatch);
    }
}

#[test]
fn the_wrong_mode_and_the_wrong_shape_are_refused() {
    for options in every() {
        let (source, destination) = hosts(&options);
        let whole = udp(source, destination, 60);
        let other = udp(Site::A.host(!options.outer_ipv6), Site::B.host(!options.outer_ipv6), 60);
        for (next_header, inside, reason) in [
            // A tunnel's payload, which nobody would look into.
            (4, &whole[..], DropReason::NextHeader),
            (41, &other, DropReason::NextHeader),
            (59, &whole, DropReason::Dummy),
        ] {
            let mut b = Gateway::new(Site::B, &options);
            b.assert_drops(OUTSIDE, &sealed(&options, 1, next_header, inside), reason);
        }
        // A transport payload in a tunnel.
        let tunnel = Options { mode: Mode::Tunnel, ..options.clone() };
        if options.protocol == Protocol::Esp {
            let sealed = Peer::of(Site::B, &tunnel).seal(1, 17, payload(&whole));
            Gateway::new(Site::B, &tunnel).assert_drops(OUTSIDE, &sealed, DropReason::NextHeader);
        }
    }
    // Extension headers inside that overrun, and a fragment, which is no whole datagram.
    let options = options(Protocol::Esp, true);
    for (next_header, inside) in
        [(60, [17, 200, 0, 0, 0, 0, 0, 0]), (44, [17, 0, 0, 9, 0, 0, 0, 1]), (44, [17, 0, 0, 1, 0, 0, 0, 1])]
    {
        let mut b = Gateway::new(Site::B, &options);
        b.assert_drops(OUTSIDE, &sealed(&options, 1, next_header, &inside), DropReason::InnerMalformed);
    }
}

/// Line 39: whole datagrams only.
#[test]
fn fragments_are_not_for_transport_mode() {
    for protocol in [Protocol::Esp, AH] {
        let options = options(protocol, false);
        let (source, destination) = hosts(&options);
        let mut a = Gateway::new(Site::A, &options);
        for field in [MORE_FRAGMENTS, 9, MORE_FRAGMENTS | 9] {
            let fragment = with_fragment_field(udp(source, destination, 80), field);
            a.assert_drops(INSIDE, &fragment, DropReason::TransportFragment);
        }
        let inbound = with_fragment_field(sealed(&options, 1, 17, &[0; 40]), MORE_FRAGMENTS);
        Gateway::new(Site::B, &options).assert_drops(OUTSIDE, &inbound, DropReason::EspFragment);
        let dying = with_ttl(udp(source, destination, 80), 1);
        let told = a.run(INSIDE, &[dying]);
        assert_eq!(told[0].1[20], 11, "time exceeded");
    }
}

/// Line 48: the packet at the limit fits, one byte more is told so, and without DF it is fragmented behind its seal.
#[test]
fn sizes() {
    for options in every() {
        let options = Options { outside_mtu: 1400, ..options };
        let (source, destination) = hosts(&options);
        let header = if options.outer_ipv6 { 40 } else { 20 };
        let behind = 1400 - header;
        let limit = header
            + match (options.protocol, options.outer_ipv6) {
                // SPI, number, IV and ICV of AES-GCM, two bytes of trailer, a multiple of four.
                (Protocol::Esp, _) => (behind - 32) / 4 * 4 - 2,
                (Protocol::Ah(_), false) => behind - 28,
                (Protocol::Ah(_), true) => behind - 32,
            };
        let sized = |length: usize| {
            let packet = udp(source, destination, length - header - 8);
            if header == 20 { with_fragment_field(packet, DONT_FRAGMENT) } else { packet }
        };
        let mut a = Gateway::new(Site::A, &options);
        let sent = a.run(INSIDE, &[sized(limit)]);
        assert!((1397..=1400).contains(&sent[0].1.len()), "{}", sent[0].1.len());
        let told = a.run(INSIDE, &[sized(limit + 1)]);
        assert_eq!(a.drops(), [(DropReason::TooBig, 1)]);
        let mtu = match header {
            20 => u32::from(u16::from_be_bytes(told[0].1[26..28].try_into().unwrap())),
            _ => u32::from_be_bytes(told[0].1[44..48].try_into().unwrap()),
        };
        assert_eq!((told[0].0, mtu), (INSIDE, limit as u32));
    }
    let options = Options { outside_mtu: 600, ..options(Protocol::Esp, false) };
    let (source, destination) = hosts(&options);
    let mut a = Gateway::new(Site::A, &options);
    let packet = udp(source, destination, 1000);
    let pieces = a.run(INSIDE, std::slice::from_ref(&packet));
    assert_eq!(pieces.len(), 2);
    let mut whole = pieces[0].1.clone();
    whole.extend(payload(&pieces[1].1));
    assert!(pieces.iter().all(|(port, piece)| *port == OUTSIDE && piece.len() <= 600));
    // As the peer's reassembly leaves it.
    let length = (whole.len() as u16).to_be_bytes();
    whole[2..4].copy_from_slice(&length);
    whole[6..8].fill(0);
    packet::fix_ipv4(&mut whole);
    let delivered = Gateway::new(Site::B, &options).with_host().run(OUTSIDE, &[whole]);
    assert_eq!(delivered, [(PortId::HOST, one_hop_on(&packet))]);
}
