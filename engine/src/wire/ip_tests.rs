use proptest::prelude::*;

use super::*;
use crate::wire::frames::*;

fn packet(hex: &str) -> (Vec<u8>, IpPacket) {
    let bytes = bytes(hex);
    let parsed = parse(&bytes).unwrap();
    (bytes, parsed)
}

fn ports(source: u16, destination: u16) -> Upper {
    Upper::Ports { source, destination }
}

#[test]
fn ipv4_fields() {
    let (bytes, packet) = packet(V4_UDP);
    assert_eq!(
        packet,
        IpPacket {
            version: IpVersion::V4,
            flow: Flow {
                source: "10.1.0.2".parse().unwrap(),
                destination: "10.2.0.9".parse().unwrap(),
                protocol: 17,
                upper: ports(5000, 53),
            },
            header_length: 20,
            payload_offset: 20,
            total_length: bytes.len() as u32,
            ttl: 63,
            traffic_class: 0xb9,
            dont_fragment: true,
            fragment: Fragment::Whole,
        }
    );
}

#[test]
fn ipv4_options_are_skipped() {
    let (_, packet) = packet(V4_TCP_OPTIONS);
    assert_eq!((packet.header_length, packet.payload_offset), (32, 32));
    assert_eq!((packet.flow.protocol, packet.flow.upper), (6, ports(80, 40_000)));
    assert!(!packet.dont_fragment);
    assert_eq!(packet.ttl, 2);
}

#[test]
fn ipv4_next_layers() {
    let upper = |hex| packet(hex).1.flow.upper;
    assert_eq!(upper(V4_SCTP), ports(2905, 2906));
    assert_eq!(upper(V4_ECHO), Upper::Icmp { kind: 8, code: 0 });
    assert_eq!(upper(V4_ESP), Upper::Opaque);
    assert_eq!(packet(V4_ESP).1.flow.protocol, protocol::ESP);
}

#[test]
fn ipv4_fragments() {
    let (_, first) = packet(V4_LARGE_0);
    assert_eq!((first.fragment, first.flow.upper), (Fragment::First, ports(1111, 2222)));
    for later in [V4_LARGE_1, V4_LARGE_2] {
        let (_, later) = packet(later);
        assert_eq!((later.fragment, later.flow.upper), (Fragment::Later, Upper::Opaque));
        assert_eq!(later.flow.protocol, 17);
    }
}

#[test]
fn ipv6_fields() {
    let (bytes, packet) = packet(V6_TCP);
    assert_eq!(
        packet,
        IpPacket {
            version: IpVersion::V6,
            flow: Flow {
                source: "2001:db8:1::2".parse().unwrap(),
                destination: "2001:db8:2::9".parse().unwrap(),
                protocol: 6,
                upper: ports(443, 50_000),
            },
            header_length: 40,
            payload_offset: 40,
            total_length: bytes.len() as u32,
            ttl: 61,
            traffic_class: 0x5a,
            dont_fragment: true,
            fragment: Fragment::Whole,
        }
    );
}

#[test]
fn ipv6_chains() {
    let read = |hex| {
        let packet = packet(hex).1;
        (packet.flow.protocol, packet.flow.upper, packet.payload_offset, packet.fragment)
    };
    assert_eq!(read(V6_ECHO), (58, Upper::Icmp { kind: 128, code: 0 }, 40, Fragment::Whole));
    assert_eq!(read(V6_CHAIN), (17, ports(7, 8), 40 + 8 + 16 + 24, Fragment::Whole));
    // Next layers themselves, by RFC 4301 section 4.4.1.1's default list.
    assert_eq!(read(V6_AH), (51, Upper::Opaque, 40, Fragment::Whole));
    assert_eq!(read(V6_MOBILITY), (135, Upper::Opaque, 40, Fragment::Whole));
    assert_eq!(read(V6_FIRST), (17, ports(1, 2), 48, Fragment::First));
    assert_eq!(read(V6_LATER), (17, Upper::Opaque, 48, Fragment::Later));
    // RFC 6946.
    assert_eq!(read(V6_ATOMIC), (17, ports(3, 4), 48, Fragment::Whole));
    assert_eq!(read(V6_EMPTY), (59, Upper::Opaque, 40, Fragment::Whole));
    assert_eq!(parse(&bytes(V6_JUMBO)), Err(Malformed::TotalLength));
}

/// An IPv6 packet with these extension headers (type, bytes) in front of UDP.
fn chain(headers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut packet = bytes(V6_EMPTY);
    let mut next_at = 6;
    for (kind, header) in headers {
        packet[next_at] = *kind;
        next_at = packet.len();
        packet.extend(header);
    }
    packet[next_at] = protocol::UDP;
    packet.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    let length = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

fn option_header(units: u8) -> Vec<u8> {
    let mut header = vec![0; 8 * (usize::from(units) + 1)];
    header[1] = units;
    header
}

#[test]
fn ipv6_chain_limits() {
    let destination = |units| (protocol::DESTINATION_OPTIONS, option_header(units));
    let hop = || (protocol::HOP_BY_HOP, option_header(0));
    let fragment = || (protocol::FRAGMENT, vec![0; 8]);
    let longest = vec![destination(0); MAX_EXTENSION_HEADERS];
    assert_eq!(parse(&chain(&longest)).unwrap().flow.upper, ports(1, 2));
    let too_long = vec![destination(0); MAX_EXTENSION_HEADERS + 1];
    assert_eq!(parse(&chain(&too_long)), Err(Malformed::HeaderLength));
    // The middle of a datagram ends the chain, but not a chain that is too long already.
    let mut too_long = vec![destination(0); MAX_EXTENSION_HEADERS];
    too_long.push((protocol::FRAGMENT, vec![0, 0, 0, 8, 0, 0, 0, 0]));
    assert_eq!(parse(&chain(&too_long)), Err(Malformed::HeaderLength));
    assert_eq!(parse(&chain(&too_long[1..])).unwrap().fragment, Fragment::Later);
    assert_eq!(parse(&chain(&[hop(), destination(255)])).unwrap().payload_offset, 40 + 8 + 2048);
    // Hop-by-hop only in front, one Fragment header only.
    assert_eq!(parse(&chain(&[destination(0), hop()])), Err(Malformed::HeaderLength));
    assert_eq!(parse(&chain(&[fragment(), fragment()])), Err(Malformed::HeaderLength));

    // A length that points just behind the end, and the last one that does not.
    let mut packet = chain(&[destination(0)]);
    packet[41] = 1;
    assert_eq!(parse(&packet).unwrap().flow.upper, Upper::Opaque, "UDP was swallowed, nothing is left");
    packet[41] = 2;
    assert_eq!(parse(&packet), Err(Malformed::HeaderLength));
    // A header of which only the first bytes are there.
    let mut packet = bytes(V6_EMPTY);
    packet[6] = protocol::ROUTING;
    for length in 0..8u8 {
        packet[5] = length;
        assert_eq!(parse(&packet), Err(Malformed::HeaderLength), "{length}");
        packet.push(0);
    }
}

#[test]
fn every_ipv4_length_field() {
    let good = bytes(V4_UDP);
    let with = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        edit(&mut packet);
        packet[10..12].fill(0);
        let header = usize::from(packet[0] & 15).max(5) * 4;
        let sum = checksum::internet(&packet[..header.min(packet.len())]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        parse(&packet)
    };
    assert_eq!(parse(&[]), Err(Malformed::TooShort));
    for length in 1..20 {
        assert_eq!(parse(&good[..length]), Err(Malformed::TooShort));
    }
    for length in 20..good.len() {
        assert_eq!(parse(&good[..length]), Err(Malformed::TotalLength));
    }
    for version in [0, 1, 5, 7, 15] {
        assert_eq!(with(&|p| p[0] = version << 4 | 5), Err(Malformed::Version));
    }
    for ihl in 0..5 {
        assert_eq!(with(&|p| p[0] = 0x40 | ihl), Err(Malformed::HeaderLength));
    }
    // 35 bytes in all: IHL 8 is 32, IHL 9 is 36.
    assert_eq!(with(&|p| p[0] = 0x48).unwrap().flow.upper, Upper::Opaque);
    assert_eq!(with(&|p| p[0] = 0x49), Err(Malformed::TotalLength));
    for total in [0u16, 19, 36, 65_535] {
        assert_eq!(with(&|p| p[2..4].copy_from_slice(&total.to_be_bytes())), Err(Malformed::TotalLength));
    }
    // Total length 23: one byte short of the ports.
    assert_eq!(with(&|p| p[3] = 23).unwrap().flow.upper, Upper::Opaque);
    assert_eq!(with(&|p| p[3] = 24).unwrap().flow.upper, ports(5000, 53));
    for bit in 0..160 {
        let mut packet = good.clone();
        packet[bit / 8] ^= 0x80 >> (bit % 8);
        assert!(parse(&packet).is_err(), "bit {bit} is covered by a check");
    }
}

#[test]
fn ethernet_padding_is_ignored() {
    for hex in [V4_UDP, V6_TCP, V6_LATER] {
        let (mut bytes, parsed) = packet(hex);
        bytes.extend([0xff; 20]);
        assert_eq!(parse(&bytes), Ok(parsed));
    }
    let whole = bytes(V6_TCP);
    for length in 0..whole.len() {
        let cause = if length < 40 { Malformed::TooShort } else { Malformed::TotalLength };
        assert_eq!(parse(&whole[..length]), Err(cause));
    }
}

#[test]
fn partial_checksums() {
    let partial = |hex| {
        let (bytes, parsed) = packet(hex);
        has_partial_checksum(&bytes, &parsed)
    };
    for hex in [V4_TCP_PARTIAL, V4_UDP_PARTIAL, V6_TCP_PARTIAL, V6_UDP_PARTIAL] {
        assert!(partial(hex));
    }
    for hex in [
        V4_TCP_FULL,
        V4_UDP,
        V4_TCP_OPTIONS,
        V4_SCTP,
        V4_ECHO,
        V4_ESP,
        V4_LARGE,
        V4_LARGE_0,
        V4_LARGE_1,
        V6_TCP,
        V6_ECHO,
        V6_CHAIN,
        V6_FIRST,
        V6_LATER,
        V6_EMPTY,
    ] {
        assert!(!partial(hex));
    }
    // The one in 65,536 whose right checksum looks like a partial one.
    assert!(!partial(V4_UDP_CHANCE));
    // ... and is one as soon as the payload differs.
    let mut bytes = bytes(V4_UDP_CHANCE);
    *bytes.last_mut().unwrap() ^= 1;
    assert!(has_partial_checksum(&bytes, &parse(&bytes).unwrap()));
}

proptest! {
    /// Whatever the bytes: no panic, and what is accepted lies within what was received.
    #[test]
    fn arbitrary_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), first in 0u8..4, next in 0u8..8) {
        if bytes.len() >= 40 {
            // Mostly something plausible, so that the code behind the first checks is reached.
            match first {
                0 => {
                    bytes[0] = 0x45 + (bytes[0] & 3);
                    let total = bytes.len() as u16 - u16::from(bytes[3] & 7);
                    bytes[2..4].copy_from_slice(&total.to_be_bytes());
                    bytes[10..12].fill(0);
                    let header = usize::from(bytes[0] & 15) * 4;
                    let sum = checksum::internet(&bytes[..header]);
                    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                }
                1 | 2 => {
                    bytes[0] = 0x60;
                    let length = bytes.len() as u16 - 40;
                    bytes[4..6].copy_from_slice(&length.to_be_bytes());
                    bytes[6] = [0, 43, 44, 51, 60, 135, 6, 17][usize::from(next)];
                    for byte in &mut bytes[40..] {
                        *byte = [*byte, 0, 1, 44, 60, 43, 17, 51][usize::from(*byte & 7)];
                    }
                }
                _ => {}
            }
        }
        if let Ok(packet) = parse(&bytes) {
            prop_assert!(packet.header_length <= packet.payload_offset);
            prop_assert!(u32::from(packet.payload_offset) <= packet.total_length);
            prop_assert!(packet.total_length as usize <= bytes.len());
            if packet.fragment == Fragment::Later {
                prop_assert_eq!(packet.flow.upper, Upper::Opaque);
            }
            has_partial_checksum(&bytes, &packet);
        }
    }

    /// RFC 1624 in place: the header stays right and nothing but the field and the checksum changes.
    #[test]
    fn edits_keep_ipv4_right(
        ttl in 2u8.., old in any::<u8>(), new in any::<u8>(),
        id in prop_oneof![Just(0u16), Just(0xffff), any::<u16>()],
        source in prop_oneof![Just([0u8; 4]), Just([255; 4]), any::<[u8; 4]>()],
    ) {
        let header = crate::wire::header::Ipv4Header {
            traffic_class: old, total_length: 20, identification: id, dont_fragment: false, ttl, protocol: 17,
            source: source.into(), destination: [255, 255, 255, 255].into(),
        };
        let mut bytes = header.to_bytes();
        prop_assert_eq!(parse(&bytes).unwrap().ttl, ttl);
        decrement_ttl(&mut bytes, IpVersion::V4);
        prop_assert_eq!(bytes, crate::wire::header::Ipv4Header { ttl: ttl - 1, ..header }.to_bytes());
        set_traffic_class(&mut bytes, IpVersion::V4, new);
        prop_assert_eq!(bytes, crate::wire::header::Ipv4Header { ttl: ttl - 1, traffic_class: new, ..header }.to_bytes());
    }

    #[test]
    fn edits_of_ipv6(new in any::<u8>()) {
        let before = bytes(V6_TCP);
        let mut after = before.clone();
        decrement_ttl(&mut after, IpVersion::V6);
        set_traffic_class(&mut after, IpVersion::V6, new);
        let parsed = parse(&after).unwrap();
        prop_assert_eq!((parsed.ttl, parsed.traffic_class), (60, new));
        prop_assert_eq!(&after[1..4], &[new << 4 | 0x1, 0x23, 0x45][..], "the flow label stays");
        prop_assert_eq!(&after[8..], &before[8..]);
    }
}
