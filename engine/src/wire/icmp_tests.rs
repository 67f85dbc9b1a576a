use proptest::prelude::*;

use super::*;
use crate::wire::checksum;
use crate::wire::frames::*;

fn gateway(version: u8) -> IpAddr {
    if version == 4 { "10.1.0.1".parse().unwrap() } else { "2001:db8:1::1".parse().unwrap() }
}

fn written(error: IcmpError, offending: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0xaa; 2048];
    let length = write_error(&mut out, error, offending, gateway(offending[0] >> 4))?;
    assert!(out[length..].iter().all(|byte| *byte == 0xaa));
    out.truncate(length);
    Some(out)
}

const TOO_BIG: IcmpError = IcmpError::PacketTooBig { mtu: 1400 };

#[test]
fn equals_what_scapy_builds() {
    assert_eq!(written(TOO_BIG, &big_v4()), Some(bytes(ERROR_V4_TOO_BIG)));
    assert_eq!(written(IcmpError::TimeExceeded, &bytes(V4_UDP)), Some(bytes(ERROR_V4_TIME)));
    assert_eq!(written(IcmpError::PacketTooBig { mtu: 1380 }, &big_v6()), Some(bytes(ERROR_V6_TOO_BIG)));
    assert_eq!(written(IcmpError::TimeExceeded, &bytes(V6_TCP)), Some(bytes(ERROR_V6_TIME)));
}

#[test]
fn quotes_no_more_than_allowed_and_no_ethernet_padding() {
    assert_eq!(written(TOO_BIG, &big_v4()).unwrap().len(), 576);
    assert_eq!(written(TOO_BIG, &big_v6()).unwrap().len(), 1280);
    let mut padded = bytes(V4_UDP);
    padded.extend([0; 25]);
    assert_eq!(written(IcmpError::TimeExceeded, &padded), Some(bytes(ERROR_V4_TIME)));
}

#[test]
fn tells_no_mtu_below_what_every_link_has() {
    let v4 = written(IcmpError::PacketTooBig { mtu: 0 }, &big_v4()).unwrap();
    assert_eq!(v4[26..28], 68u16.to_be_bytes());
    let v4 = written(IcmpError::PacketTooBig { mtu: 70_000 }, &big_v4()).unwrap();
    assert_eq!(v4[24..28], [0, 0, 255, 255]);
    let v6 = written(IcmpError::PacketTooBig { mtu: 1279 }, &big_v6()).unwrap();
    assert_eq!(v6[44..48], 1280u32.to_be_bytes());
}

/// `V4_UDP` with another source, destination or protocol.
fn v4(edit: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = bytes(V4_UDP);
    edit(&mut packet);
    packet[10..12].fill(0);
    let sum = checksum::internet(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn v6(hex: &str, edit: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = bytes(hex);
    edit(&mut packet);
    packet
}

#[test]
fn never_about_these_rfc1812_section_4_3_2_7() {
    for error in [TOO_BIG, IcmpError::TimeExceeded] {
        let allowed = |packet: &[u8]| written(error, packet).is_some();
        assert!(allowed(&v4(|_| {})));
        for source in [[0; 4], [0, 0, 0, 1], [127, 0, 0, 1], [224, 0, 0, 1], [239, 1, 1, 1], [255; 4]] {
            assert!(!allowed(&v4(|p| p[12..16].copy_from_slice(&source))), "source {source:?}");
        }
        for destination in [[0; 4], [224, 0, 0, 251], [255; 4]] {
            assert!(!allowed(&v4(|p| p[16..20].copy_from_slice(&destination))), "{destination:?}");
        }
        for kind in 0..=255 {
            let is_error = [3, 4, 5, 11, 12].contains(&kind);
            assert_eq!(allowed(&v4(|p| (p[9], p[20]) = (1, kind))), !is_error, "type {kind}");
        }
        // ICMP whose type is cut off might be an error.
        let mut cut = v4(|p| (p[9], p[3]) = (1, 21));
        cut.truncate(21);
        assert!(!allowed(&cut));
        // Our own errors are never answered.
        for own in [ERROR_V4_TIME, ERROR_V4_TOO_BIG, ERROR_V6_TIME, ERROR_V6_TOO_BIG] {
            assert!(!allowed(&bytes(own)));
        }
        assert!(allowed(&bytes(V4_LARGE_0)));
        assert!(!allowed(&bytes(V4_LARGE_1)));
        let mut wrong = bytes(V4_UDP);
        wrong[8] ^= 1;
        assert!(!allowed(&wrong), "a wrong header checksum");
    }
}

#[test]
fn never_about_these_rfc4443_section_2_4_e() {
    for error in [TOO_BIG, IcmpError::TimeExceeded] {
        let allowed = |packet: &[u8]| written(error, packet).is_some();
        assert!(allowed(&v6(V6_TCP, |_| {})));
        for source in ["::", "::1", "ff02::1"] {
            let source: Ipv6Addr = source.parse().unwrap();
            assert!(!allowed(&v6(V6_TCP, |p| p[8..24].copy_from_slice(&source.octets()))));
        }
        assert!(!allowed(&v6(V6_TCP, |p| p[24..40].fill(0))));
        for kind in 0..=255u8 {
            let is_error = kind < 128 || kind == 137;
            assert_eq!(allowed(&v6(V6_ECHO, |p| p[40] = kind)), !is_error, "type {kind}");
        }
        assert!(!allowed(&bytes(V6_LATER)));
        // To a group: packet too big only.
        let group: Ipv6Addr = "ff0e::1234".parse().unwrap();
        let to_group = v6(V6_TCP, |p| p[24..40].copy_from_slice(&group.octets()));
        assert_eq!(allowed(&to_group), error == TOO_BIG);
    }
}

#[test]
fn nothing_into_too_little_room_or_from_the_wrong_family() {
    let offending = bytes(V4_UDP);
    let length = 28 + offending.len();
    for room in 0..length {
        assert_eq!(write_error(&mut vec![0; room], TOO_BIG, &offending, gateway(4)), None);
    }
    assert_eq!(write_error(&mut vec![0; length], TOO_BIG, &offending, gateway(4)), Some(length));
    assert_eq!(write_error(&mut [0; 2048], TOO_BIG, &offending, gateway(6)), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 1..200), first in 0usize..3) {
        let mut bytes = bytes;
        bytes[0] = [bytes[0], 0x45, 0x60][first];
        written(TOO_BIG, &bytes);
        written(IcmpError::TimeExceeded, &bytes);
    }

    /// Any length: the packet parses, and its ICMP checksum is right.
    #[test]
    fn checksums_are_right(length in 20u16..1400) {
        let mut offending = big_v4();
        offending.resize(usize::from(length), 7);
        offending[2..4].copy_from_slice(&length.to_be_bytes());
        offending[10..12].fill(0);
        let sum = checksum::internet(&offending[..20]);
        offending[10..12].copy_from_slice(&sum.to_be_bytes());
        let error = written(TOO_BIG, &offending).unwrap();
        prop_assert_eq!(ip::parse(&error).unwrap().total_length as usize, error.len());
        prop_assert_eq!(checksum::internet(&error[20..]), 0);
        prop_assert_eq!(&error[28..], &offending[..error.len() - 28]);
    }
}
