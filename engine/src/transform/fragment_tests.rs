use proptest::prelude::*;

use super::*;
use crate::wire::frames::{self, *};
use crate::wire::ip::{self, Fragment};

fn split(packet: &[u8], mtu: u32) -> Option<Vec<Vec<u8>>> {
    let parsed = ip::parse(packet).unwrap();
    Some(
        fragment_ipv4(packet, &parsed, mtu)?
            .map(|piece| {
                let mut out = vec![0xaa; 2048];
                let length = write_fragment(&mut out, packet, &piece).unwrap();
                assert_eq!(length, piece.total_length());
                assert!(out[length..].iter().all(|byte| *byte == 0xaa));
                out.truncate(length);
                out
            })
            .collect(),
    )
}

/// An IPv4 packet with these options (a multiple of 4 bytes), flags word and payload.
fn packet(options: &[u8], flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = frames::bytes(V4_LARGE)[..20].to_vec();
    packet.extend(options);
    let header = packet.len();
    packet[0] = 0x40 | (header / 4) as u8;
    packet.extend(payload);
    let length = packet.len() as u16;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[6..8].copy_from_slice(&flags.to_be_bytes());
    packet[10..12].fill(0);
    let sum = checksum::internet(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn equals_what_scapy_makes() {
    // scapy's fragsize 80 is payload: an MTU of 100 to 107.
    let expected: Vec<_> = [V4_LARGE_0, V4_LARGE_1, V4_LARGE_2].map(frames::bytes).into();
    for mtu in 100..108 {
        assert_eq!(split(&frames::bytes(V4_LARGE), mtu), Some(expected.clone()));
    }
    assert_ne!(split(&frames::bytes(V4_LARGE), 99), Some(expected.clone()));
    assert_ne!(split(&frames::bytes(V4_LARGE), 108), Some(expected));
}

#[test]
fn a_packet_that_fits_is_one_piece_and_unchanged() {
    for hex in [V4_LARGE, V4_LARGE_0, V4_LARGE_1, V4_LARGE_2, V4_TCP_OPTIONS] {
        let packet = frames::bytes(hex);
        assert_eq!(split(&packet, packet.len() as u32), Some(vec![packet]));
    }
    let empty = packet(&[], 0, &[]);
    assert_eq!(split(&empty, 20), Some(vec![empty]));
}

#[test]
fn refused() {
    assert_eq!(split(&frames::bytes(V4_UDP), 28), None, "DF");
    assert_eq!(split(&frames::bytes(V6_TCP), 60), None, "IPv6");
    assert_eq!(split(&frames::bytes(V4_LARGE), 27), None, "no room for 8 bytes");
    assert!(split(&frames::bytes(V4_LARGE), 28).is_some());
    assert_eq!(split(&packet(&[7, 0, 4, 4], 0, &[0; 64]), 60), None, "an option of length 0");
    assert_eq!(split(&packet(&[7, 5, 4, 4], 0, &[0; 64]), 60), None, "an option that overruns");
    // Offset 8189 * 8 + 20 leaves 3 bytes of a datagram.
    assert_eq!(split(&packet(&[], 8189, &[0; 64]), 60), None, "beyond 65,535 bytes");
}

/// RFC 791 section 3.1: options with the copied flag go into every fragment, the others into the first only.
#[test]
fn options_follow_their_copied_flag() {
    let record_route = [7, 7, 4, 0, 0, 0, 0];
    let router_alert = [0x94, 4, 0, 0];
    let options = [&record_route[..], &router_alert, &[0]].concat();
    let pieces = split(&packet(&options, 0, &[9; 100]), 72).unwrap();
    assert_eq!(pieces.len(), 3);
    assert_eq!(pieces[0][20..32], options);
    assert_eq!(pieces[0].len(), 72);
    for later in &pieces[1..] {
        assert_eq!(later[0], 0x46);
        assert_eq!(later[20..24], router_alert);
        ip::parse(later).unwrap();
    }
    // 3 bytes copied are padded to 4 with "end of options".
    let pieces = split(&packet(&[0x82, 3, 5, 1], 0, &[9; 100]), 72).unwrap();
    assert_eq!(pieces[1][20..24], [0x82, 3, 5, 0]);
    // None copied: 20 bytes.
    let pieces = split(&packet(&[1, 1, 1, 0], 0, &[9; 100]), 72).unwrap();
    assert_eq!(pieces[1][0], 0x45);
}

proptest! {
    /// Reassembled (RFC 791 section 3.2), the pieces are the packet; each fits, parses, and all but the last are as
    /// full as 8-byte units allow. Split again, they still are.
    #[test]
    fn pieces_are_the_packet(
        length in 0usize..1900, mtu in 68u32..1500, again in 68u32..1500,
        offset in prop_oneof![Just(0u16), 0u16..7000], more in any::<bool>(),
        options in prop_oneof![Just(vec![]), Just(vec![0x94, 4, 0, 0, 7, 3, 4, 1])],
    ) {
        let more_flag = if more { MORE_FRAGMENTS } else { 0 };
        let payload: Vec<u8> = (0..length).map(|i| (i * 7 + i / 256) as u8).collect();
        let whole = packet(&options, offset | more_flag, &payload);
        let pieces = split(&whole, mtu).unwrap();
        let smaller: Vec<_> = pieces.iter().flat_map(|piece| split(piece, again).unwrap()).collect();
        for (pieces, mtu) in [(&pieces, mtu), (&smaller, mtu.min(again))] {
            let mut rebuilt: Vec<u8> = Vec::new();
            for (i, piece) in pieces.iter().enumerate() {
                prop_assert!(piece.len() <= mtu as usize);
                let parsed = ip::parse(piece).unwrap();
                let header = usize::from(parsed.header_length);
                let flags = u16::from_be_bytes([piece[6], piece[7]]);
                let last = i + 1 == pieces.len();
                prop_assert_eq!(usize::from(flags & FRAGMENT_OFFSET) * 8, usize::from(offset) * 8 + rebuilt.len());
                prop_assert_eq!(flags & MORE_FRAGMENTS != 0, !last || more);
                prop_assert_eq!(&piece[4..6], &whole[4..6]);
                prop_assert_eq!(&piece[8..10], &whole[8..10]);
                prop_assert_eq!(&piece[12..20], &whole[12..20]);
                if !last { prop_assert_ne!(parsed.fragment, Fragment::Whole); }
                rebuilt.extend(&piece[header..]);
            }
            prop_assert_eq!(&rebuilt, &payload);
        }
        for piece in pieces.iter().rev().skip(1) {
            prop_assert!(piece.len() + 8 > mtu as usize);
        }
    }

    #[test]
    fn arbitrary_options_and_pieces_never_panic(
        options in proptest::collection::vec(any::<u8>(), 0..=10), flags in any::<u16>(), mtu in 0u32..200,
        start in 0usize..300, end in 0usize..300, header_length in 0usize..100, room in 0usize..300,
    ) {
        let options = [options.as_slice(), &vec![0; options.len().next_multiple_of(4) - options.len()]].concat();
        let whole = packet(&options, flags & !0x4000, &[1; 100]);
        split(&whole, mtu);
        let stranger = Piece { offset: 0, more: true, header_length, payload: start..end };
        if start <= end {
            write_fragment(&mut vec![0; room], &whole, &stranger);
        }
    }
}
