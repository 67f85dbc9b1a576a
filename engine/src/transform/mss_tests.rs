use proptest::prelude::*;

use super::*;
use crate::wire::checksum::Sum;
use crate::wire::frames::{self, *};
use crate::wire::ip;

fn clamped(packet: &[u8], inside_mtu: u32) -> (bool, Vec<u8>) {
    let mut out = packet.to_vec();
    let parsed = ip::parse(packet).unwrap();
    (clamp(&mut out, &parsed, inside_mtu), out)
}

#[test]
fn equals_what_scapy_builds_with_the_lower_value() {
    for (before, after, mtu) in [
        (SYN_V4, SYN_V4_CLAMPED, 1400),
        (SYN_V4_ODD, SYN_V4_ODD_CLAMPED, 1400),
        (SYN_V6, SYN_V6_CLAMPED, 1400),
    ] {
        let (before, after) = (frames::bytes(before), frames::bytes(after));
        assert_eq!(clamped(&before, mtu), (true, after.clone()));
        // Already low enough: never raised, not touched.
        assert_eq!(clamped(&after, mtu), (false, after.clone()));
        assert_eq!(clamped(&after, 9000), (false, after));
    }
}

#[test]
fn exactly_at_the_limit() {
    let syn = frames::bytes(SYN_V4);
    assert!(!clamped(&syn, 1500).0);
    let (changed, lower) = clamped(&syn, 1499);
    assert!(changed);
    assert_eq!(lower[42..44], 1459u16.to_be_bytes());
    let syn = frames::bytes(SYN_V6);
    assert!(!clamped(&syn, 1500).0);
    assert!(clamped(&syn, 1499).0);
    // No room for a segment at all: nothing sensible to say.
    assert!(!clamped(&syn, 60).0);
    assert!(clamped(&syn, 61).0);
}

#[test]
fn everything_else_is_left_alone() {
    for hex in [V4_TCP_OPTIONS, V4_UDP, V4_LARGE_1, V6_TCP, V6_LATER, V6_CHAIN, V4_ESP] {
        let packet = frames::bytes(hex);
        assert_eq!(clamped(&packet, 600), (false, packet));
    }
    // Under an AH a change would only break the packet.
    let packet = frames::bytes(V6_AH);
    assert_eq!(clamped(&packet, 600), (false, packet));
    // A SYN without the option, and one without SYN.
    let mut packet = frames::bytes(SYN_V4);
    packet[40] = 254;
    assert_eq!(clamped(&packet, 600), (false, packet));
    let mut packet = frames::bytes(SYN_V4);
    packet[33] = 0x10;
    assert_eq!(clamped(&packet, 600), (false, packet));
}

/// `SYN_V4` with these options and this data offset.
fn syn(options: &[u8], words: u8) -> Vec<u8> {
    let mut packet = frames::bytes(SYN_V4)[..40].to_vec();
    packet[32] = words << 4;
    packet.extend(options);
    let length = packet.len() as u16;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[10..12].fill(0);
    let sum = crate::wire::checksum::internet(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn options_that_lie() {
    let mss = [2, 4, 0x05, 0xb4];
    assert!(clamped(&syn(&mss, 6), 1400).0);
    for (options, words, what) in [
        (&[0, 0, 0, 0, 2, 4, 5, 0xb4][..], 7, "behind the end of options"),
        (&[9, 0, 2, 4, 0x05, 0xb4, 0, 0], 7, "behind an option of length 0"),
        (&[9, 1, 2, 4, 0x05, 0xb4, 0, 0], 7, "behind an option of length 1"),
        (&[9, 9, 2, 4, 0x05, 0xb4, 0, 0], 7, "behind an option that overruns"),
        (&[2, 3, 0x05, 0xb4], 6, "of length 3"),
        (&[2, 6, 0x05, 0xb4, 0, 0, 0, 0], 7, "of length 6"),
        (&[1, 1, 1, 2], 6, "cut off behind its kind"),
        (&[1, 2, 4, 5], 6, "cut off inside its value"),
        (&mss, 5, "behind the header"),
        (&mss, 4, "in a header shorter than TCP's"),
        (&mss, 7, "in a header longer than the packet"),
    ] {
        let packet = syn(options, words);
        assert_eq!(clamped(&packet, 1400), (false, packet), "an MSS {what}");
    }
}

proptest! {
    /// Any options, any place: never a panic; whatever changed, the TCP checksum stays as right as it was.
    #[test]
    fn the_checksum_stays_right(
        options in proptest::collection::vec(prop_oneof![Just(1u8), Just(2), Just(4), any::<u8>()], 0..=40),
        words in 0u8..16, mtu in 0u32..2000,
    ) {
        let mut packet = syn(&options, words);
        let sum = |packet: &[u8]| {
            Sum::default().pseudo_header(&packet[12..20], packet.len() as u32 - 20, 6).bytes(&packet[20..]).checksum()
        };
        packet[36..38].fill(0);
        let right = sum(&packet);
        packet[36..38].copy_from_slice(&right.to_be_bytes());
        let (changed, after) = clamped(&packet, mtu);
        prop_assert_eq!(sum(&after), 0);
        prop_assert_eq!(after.len(), packet.len());
        prop_assert_eq!(&after[..36], &packet[..36]);
        prop_assert_eq!(changed, after != packet);
    }

    #[test]
    fn arbitrary_segments_never_panic(mut tail in proptest::collection::vec(any::<u8>(), 0..80), mtu in any::<u32>()) {
        if let Some(flags) = tail.get_mut(13) { *flags |= SYN; }
        let mut packet = frames::bytes(V6_EMPTY);
        packet[6] = 6;
        packet[5] = tail.len() as u8;
        packet.extend(tail);
        clamped(&packet, mtu);
    }
}
