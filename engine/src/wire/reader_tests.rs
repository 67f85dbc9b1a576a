use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::wire::checksum;
use crate::wire::frames::*;
use crate::wire::ip::IpVersion;

/// What packets with one [`FlowNumber`] have in common: all of the header but length, identification, checksum and flow
/// label; ports, or type and code.
fn in_common(bytes: &[u8], packet: &IpPacket) -> (Vec<u8>, Upper) {
    let mut header = bytes[..usize::from(packet.payload_offset)].to_vec();
    match packet.version {
        IpVersion::V4 => [2, 3, 4, 5, 10, 11].map(|at| header[at] = 0),
        IpVersion::V6 => {
            header[1] &= 0xf0;
            [2, 3, 4, 5, 2, 3].map(|at| header[at] = 0)
        }
    };
    (header, packet.flow.upper)
}

proptest! {
    /// What is remembered of other packets never changes what is read of this one.
    #[test]
    fn a_reader_reads_what_a_fresh_one_does(
        changes in proptest::collection::vec((0..11_usize, 0..48_usize, any::<u8>(), 0..3_u8), 1..80),
    ) {
        let frames = [
            V4_UDP, V4_TCP_OPTIONS, V4_SCTP, V4_ECHO, V4_LARGE_0, V4_ESP, V6_TCP, V6_ECHO, V6_CHAIN, V6_FIRST, V6_EMPTY,
        ].map(bytes);
        let mut reader = Reader::default();
        let mut numbered = HashMap::new();
        for (frame, at, value, change) in changes {
            let mut bytes = frames[frame].clone();
            // As it was, or with one byte changed, or with that and a checksum that is right again.
            if change > 0 && at < bytes.len() {
                bytes[at] = value;
            }
            if change > 1 && bytes[0] >> 4 == 4 {
                bytes[10..12].fill(0);
                let header = (usize::from(bytes[0] & 15) * 4).min(bytes.len());
                let sum = checksum::internet(&bytes[..header]);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let read = reader.read(&bytes);
            prop_assert_eq!(read.as_ref().map(Seen::packet).map_err(|cause| *cause), ip::parse(&bytes));
            if let Ok(seen @ Seen { flow: Some(number), .. }) = read {
                let packet = seen.packet();
                let common = in_common(&bytes, &packet);
                prop_assert_eq!(numbered.entry(number.0).or_insert(common.clone()), &common);
                prop_assert_eq!((packet.header_length, packet.fragment), (packet.payload_offset, Fragment::Whole));
            }
        }
    }
}

#[test]
fn a_flow_keeps_its_number() {
    let mut reader = Reader::default();
    for frame in [V4_UDP, V4_SCTP, V4_ECHO, V4_ESP, V6_TCP, V6_ECHO] {
        let bytes = bytes(frame);
        assert_eq!(reader.read(&bytes).unwrap().flow, None, "not known yet");
        let numbers = [(); 3].map(|()| reader.read(&bytes).unwrap().flow.expect("of the usual kind"));
        assert!(numbers.iter().all(|number| *number == numbers[0]));
    }
    for frame in [V4_TCP_OPTIONS, V4_LARGE_0, V6_CHAIN, V6_FIRST] {
        let flows = [(); 3].map(|()| reader.read(&bytes(frame)).unwrap().flow);
        assert_eq!(flows, [None; 3]);
    }
}

#[test]
fn numbers_that_come_again_are_of_another_round() {
    let (udp, sctp) = (bytes(V4_UDP), bytes(V4_SCTP));
    let mut reader = Reader::default();
    let number_of = |reader: &mut Reader, bytes: &[u8]| {
        reader.read(bytes).unwrap();
        reader.read(bytes).unwrap().flow.expect("known by now")
    };
    let round = reader.round();
    let first = number_of(&mut reader, &udp);
    assert_eq!(reader.round(), round);
    reader.headers = u64::from(HEADERS_IN_A_ROUND) - 1;
    number_of(&mut reader, &sctp);
    assert_ne!(reader.round(), round);
    assert_eq!(reader.read(&udp).unwrap().flow, None, "forgotten");
    assert_eq!(number_of(&mut reader, &udp), first);
    assert_eq!(reader.round(), round + 1);
}
