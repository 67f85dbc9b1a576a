use proptest::prelude::*;

use super::*;
use crate::wire::frames::{V4_TCP_OPTIONS, V6_CHAIN, bytes};
use crate::wire::ip;

fn covered(headers: &[u8], version: IpVersion, role: Role) -> Option<Vec<u8>> {
    let mut out = vec![0xaa; headers.len()];
    cover(&mut out, headers, version, role).then_some(out)
}

#[test]
fn header_lengths() {
    // RFC 4302 sections 2.2 and 2.6: 96 bits make 24 bytes in both versions; RFC 4868 section 2.6 for SHA-2.
    let lengths = |version, padding| {
        [12, 16, 24, 32].map(|icv_length| Layout::new(icv_length, version, padding).header_length())
    };
    assert_eq!(lengths(IpVersion::V4, Padding::Rfc4302), [24, 28, 36, 44]);
    assert_eq!(lengths(IpVersion::V6, Padding::Rfc4302), [24, 32, 40, 48]);
    // Linux, net/ipv4/ah4.c: XFRM_ALIGN8(sizeof(struct ip_auth_hdr) + icv_trunc_len).
    assert_eq!(lengths(IpVersion::V4, Padding::Linux), [24, 32, 40, 48]);
    assert_eq!(lengths(IpVersion::V6, Padding::Linux), [24, 32, 40, 48]);
}

#[test]
fn a_header_of_another_length_is_not_this_sas() {
    let layout = Layout::new(16, IpVersion::V4, Padding::Rfc4302);
    let header = |length| AhHeader { next_header: 6, length, spi: crate::wire::Spi(256), sequence_low: 1 };
    assert_eq!(layout.payload_length(&header(28), 28), Some(0));
    assert_eq!(layout.payload_length(&header(28), 100), Some(72));
    assert_eq!(layout.payload_length(&header(24), 100), None);
    assert_eq!(layout.payload_length(&header(32), 100), None, "more padding than needed");
    assert_eq!(layout.payload_length(&header(28), 27), None);
}

/// RFC 4302 section 3.3.3.1.1.1, field by field.
#[test]
fn ipv4_fields() {
    let mut header = bytes(V4_TCP_OPTIONS)[..20].to_vec();
    header[0] = 0x45;
    (header[1], header[6], header[7]) = (0xb9, 0x40, 0x00);
    let out = covered(&header, IpVersion::V4, Role::Sender).unwrap();
    let mutable = [1, 6, 7, 8, 10, 11];
    for at in 0..20 {
        let expected = if mutable.contains(&at) { 0 } else { header[at] };
        assert_eq!(out[at], expected, "byte {at}");
    }
}

fn with_options(options: &[u8]) -> Vec<u8> {
    let mut header = bytes(V4_TCP_OPTIONS)[..20].to_vec();
    header[0] = 0x40 | (5 + options.len() as u8 / 4);
    header.extend(options);
    header
}

#[test]
fn ipv4_options() {
    let cover = |options: &[u8]| {
        covered(&with_options(options), IpVersion::V4, Role::Sender).map(|out| out[20..].to_vec())
    };
    for kept in [130, 133, 134, 148, 149] {
        assert_eq!(cover(&[1, kept, 4, 1, 2, 0, 0, 0]), Some(vec![1, kept, 4, 1, 2, 0, 0, 0]));
    }
    // Record route, timestamp, traceroute, unknown ones, also with the "copied" bit.
    for zeroed in [7, 68, 82, 2, 30, 94, 158, 222, 255] {
        assert_eq!(cover(&[1, zeroed, 4, 4, 2, 1, 0, 0]), Some(vec![1, 0, 0, 0, 0, 1, 0, 0]), "{zeroed}");
    }
    // Behind the end nothing is an option: covered as it is.
    assert_eq!(cover(&[1, 0, 7, 9]), Some(vec![1, 0, 7, 9]));
    for wrong in [&[7, 1, 0, 0][..], &[7, 0, 0, 0], &[7, 5, 0, 0], &[148, 255, 0, 0], &[1, 1, 1, 7]] {
        assert_eq!(cover(wrong), None, "{wrong:?}");
    }
}

/// Section 3.3.3.1.1.1: with a source route, the destination is the last hop, which the receiver is.
#[test]
fn ipv4_source_routes() {
    let route = |kind, pointer| with_options(&[kind, 11, pointer, 10, 9, 9, 1, 10, 9, 9, 2, 0]);
    for kind in [131, 137] {
        let sent = covered(&route(kind, 4), IpVersion::V4, Role::Sender).unwrap();
        assert_eq!(sent[16..20], [10, 9, 9, 2]);
        assert_eq!(sent[20..], [0; 12]);
        // Done: the pointer is behind the end.
        let mut arrived = route(kind, 12);
        arrived[16..20].copy_from_slice(&[10, 9, 9, 2]);
        for role in [Role::Sender, Role::Receiver] {
            assert_eq!(covered(&arrived, IpVersion::V4, role).unwrap(), sent);
        }
        // No room for an address.
        let empty = with_options(&[kind, 3, 4, 0]);
        assert_eq!(covered(&empty, IpVersion::V4, Role::Sender), None);
    }
}

/// IPv6 and these extension headers (kind, bytes), AH behind them.
fn ipv6(extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let mut packet = bytes(V6_CHAIN)[..40].to_vec();
    let mut named_at = 6;
    for (kind, extension) in extensions {
        packet[named_at] = *kind;
        named_at = packet.len();
        packet.extend(*extension);
    }
    packet[named_at] = protocol::AH;
    packet
}

#[test]
fn ipv6_fields_and_options() {
    let mut plain = ipv6(&[]);
    plain[..4].copy_from_slice(&[0x6b, 0x91, 0x23, 0x45]);
    let out = covered(&plain, IpVersion::V6, Role::Sender).unwrap();
    assert_eq!(out[..8], [0x60, 0, 0, 0, plain[4], plain[5], protocol::AH, 0]);
    assert_eq!(out[8..], plain[8..]);

    let options = |kind, options: [u8; 6]| {
        let headers = ipv6(&[(kind, &[&[0, 0][..], &options].concat())]);
        covered(&headers, IpVersion::V6, Role::Receiver).map(|out| out[42..].to_vec())
    };
    for kind in [0, 60] {
        assert_eq!(options(kind, [0x3e, 4, 1, 2, 3, 4]), Some(vec![0x3e, 4, 0, 0, 0, 0]));
        assert_eq!(options(kind, [0x1e, 4, 1, 2, 3, 4]), Some(vec![0x1e, 4, 1, 2, 3, 4]));
        assert_eq!(options(kind, [0, 0x3e, 1, 2, 1, 0]), Some(vec![0, 0x3e, 1, 0, 1, 0]));
        assert_eq!(options(kind, [0x3e, 0, 0x3e, 0, 0x3e, 0]), Some(vec![0x3e, 0, 0x3e, 0, 0x3e, 0]));
        for wrong in [[0x3e, 5, 1, 2, 3, 4], [0x1e, 255, 0, 0, 0, 0], [1, 3, 0, 0, 0, 5]] {
            assert_eq!(options(kind, wrong), None);
        }
    }
}

/// RFC 4302 appendix A2: the sender covers what the receiver will see.
#[test]
fn routing_headers_are_covered_as_they_arrive() {
    let address = |last: u8| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let route = |left: u8, addresses: [u8; 3], destination: u8| {
        let mut header = vec![0, 6, 0, left, 0, 0, 0, 0];
        header.extend(addresses.map(address).concat());
        let mut packet = ipv6(&[(43, &header)]);
        packet[24..40].copy_from_slice(&address(destination));
        packet
    };
    // RFC 2460 section 4.4's example, one hop after the other: from S by I1 and I2 and I3 to D.
    let arrived = covered(&route(0, [1, 2, 3], 4), IpVersion::V6, Role::Receiver).unwrap();
    for (left, addresses, destination) in
        [(3, [2, 3, 4], 1), (2, [1, 3, 4], 2), (1, [1, 2, 4], 3), (0, [1, 2, 3], 4)]
    {
        let sent = covered(&route(left, addresses, destination), IpVersion::V6, Role::Sender);
        assert_eq!(sent.as_ref(), Some(&arrived), "{left} left");
    }
    assert_eq!(covered(&route(4, [2, 3, 4], 1), IpVersion::V6, Role::Sender), None, "more than there are");
    assert_eq!(covered(&route(1, [1, 2, 4], 3), IpVersion::V6, Role::Receiver), None, "not at its end");
    let mut segments = route(1, [1, 2, 4], 3);
    segments[42] = 4;
    assert_eq!(covered(&segments, IpVersion::V6, Role::Sender), None, "a route of another kind");
}

#[test]
fn fragments_and_overruns_are_not_covered() {
    let cover = |headers: &[u8]| covered(headers, IpVersion::V6, Role::Receiver);
    assert_eq!(cover(&ipv6(&[(44, &[0; 8])])), None);
    let long = ipv6(&[(60, &[0, 0, 1, 4, 0, 0, 0, 0])]);
    assert!(cover(&long).is_some());
    assert_eq!(cover(&long[..47]), None);
    let mut beyond = long.clone();
    beyond[41] = 1;
    assert_eq!(cover(&beyond), None);
}

proptest! {
    #[test]
    fn any_headers_are_covered_or_refused(
        headers in proptest::collection::vec(any::<u8>(), 41..300),
        v6 in any::<bool>(),
        sends in any::<bool>(),
        kinds in proptest::collection::vec(prop_oneof![Just(0u8), Just(43), Just(60), any::<u8>()], 2),
    ) {
        let (version, role) = (
            if v6 { IpVersion::V6 } else { IpVersion::V4 },
            if sends { Role::Sender } else { Role::Receiver },
        );
        let mut headers = headers;
        (headers[6], headers[40]) = (kinds[0], kinds[1]);
        if let Some(out) = covered(&headers, version, role) {
            // Once covered, nothing is left that may change.
            let again = covered(&out, version, role);
            prop_assert_eq!(again.as_ref(), Some(&out));
        }
    }

    /// Whatever the way changes, sender and receiver cover the same.
    #[test]
    fn what_routers_change_is_not_covered(class in any::<u8>(), ttl in any::<u8>(), label in any::<u16>()) {
        for packet in [bytes(V4_TCP_OPTIONS), bytes(V6_CHAIN)] {
            let parsed = ip::parse(&packet).unwrap();
            let headers = &packet[..usize::from(parsed.payload_offset)];
            let mut later = headers.to_vec();
            ip::set_traffic_class(&mut later, parsed.version, class);
            match parsed.version {
                IpVersion::V4 => later[8] = ttl,
                IpVersion::V6 => {
                    later[7] = ttl;
                    later[2..4].copy_from_slice(&label.to_be_bytes());
                }
            }
            prop_assert_eq!(
                covered(&later, parsed.version, Role::Receiver),
                covered(headers, parsed.version, Role::Sender)
            );
        }
    }
}
