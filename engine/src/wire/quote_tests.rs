use super::super::icmp::{IcmpError, write_error};
use super::*;

/// RFC 792 and RFC 1191: type 3, code 4, MTU 1400, about ESP in 1,500 bytes of which 28 came back.
fn too_big_v4() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 203, 0, 113, 1, 192, 0, 2, 1];
    packet.extend([3, 4, 0, 0, 0, 0, 0x05, 0x78]);
    packet.extend([0x45, 0, 0x05, 0xdc, 0, 7, 0x40, 0, 0x3f, 50, 0, 0, 192, 0, 2, 1, 198, 51, 100, 9]);
    packet.extend([0, 0, 0x10, 0x02, 0, 0, 0, 9]);
    fix(&mut packet);
    packet
}

fn fix(packet: &mut [u8]) {
    for (header, range) in [(10, 0..20), (22, 20..packet.len())] {
        packet[header..header + 2].fill(0);
        let sum = crate::wire::checksum::internet(&packet[range]);
        packet[header..header + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

fn read_whole(bytes: &[u8]) -> Option<(ErrorKind, Quote<'_>)> {
    read(bytes, &ip::parse(bytes).expect("a packet"))
}

#[test]
fn what_an_ipv4_error_says() {
    let packet = too_big_v4();
    let (kind, quote) = read_whole(&packet).unwrap();
    assert_eq!(kind, ErrorKind::PacketTooBig { mtu: 1_400 });
    let flow = Flow {
        source: [192, 0, 2, 1].into(),
        destination: [198, 51, 100, 9].into(),
        protocol: 50,
        upper: Upper::Opaque,
    };
    let payload = &[0, 0, 0x10, 2, 0, 0, 0, 9];
    assert_eq!(quote, Quote { flow, length: 1_500, fragment: Fragment::Whole, payload });
    for (kind, code, expected) in [
        (3, 1, Some(ErrorKind::Unreachable)),
        (3, 13, Some(ErrorKind::Unreachable)),
        (11, 0, Some(ErrorKind::TimeExceeded)),
        (12, 0, Some(ErrorKind::ParameterProblem)),
        (4, 0, None),
        (5, 0, None),
        (8, 0, None),
        (0, 0, None),
    ] {
        let mut other = packet.clone();
        (other[20], other[21]) = (kind, code);
        fix(&mut other);
        assert_eq!(read_whole(&other).map(|(kind, _)| kind), expected, "{kind}/{code}");
    }
    let mut wrong = packet.clone();
    wrong[27] ^= 1;
    assert_eq!(read_whole(&wrong), None, "its checksum is wrong");
    // A piece of it: nothing was read that belongs together.
    let mut piece = packet;
    piece[6] = 0x20;
    fix(&mut piece);
    assert_eq!(read_whole(&piece), None);
}

#[test]
fn a_quote_may_end_anywhere_and_say_anything() {
    let whole = too_big_v4();
    for length in 20..whole.len() {
        let mut cut = whole[..length].to_vec();
        cut[3] = length as u8;
        if length >= 24 {
            fix(&mut cut);
        } else {
            let sum = {
                cut[10..12].fill(0);
                crate::wire::checksum::internet(&cut[..20])
            };
            cut[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let quote = read_whole(&cut).map(|(_, quote)| quote.payload.len());
        assert_eq!(quote, length.checked_sub(48), "{length}");
    }
    for (at, value) in [(28, 0x55), (28, 0x44), (28, 0x4f)] {
        let mut strange = whole.clone();
        strange[at] = value;
        fix(&mut strange);
        assert_eq!(read_whole(&strange), None, "{value:#x}");
    }
    // A later fragment has no ports to show.
    let mut later = whole.clone();
    (later[34], later[35], later[37]) = (0, 9, 17);
    fix(&mut later);
    let quote = read_whole(&later).unwrap().1;
    assert_eq!((quote.fragment, quote.flow.upper), (Fragment::Later, Upper::Opaque));
    later[35] = 0;
    fix(&mut later);
    let quote = read_whole(&later).unwrap().1;
    assert_eq!(quote.flow.upper, Upper::Ports { source: 0, destination: 0x1002 });
}

#[test]
fn ipv6_quotes_are_followed_through_their_extension_headers() {
    let mut offending = vec![0x60, 0, 0, 0, 0, 40, 0, 64];
    offending.extend([&[0x20; 16][..], &[0x21; 16]].concat());
    // Hop-by-hop, first fragment, then UDP.
    offending.extend([44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 7]);
    offending
        .extend([0x11, 0x94, 0x11, 0x94, 0, 24, 0, 0, 0, 0, 0x10, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut out = vec![0; 1_500];
    let from: Ipv6Addr = "2001:db8::1".parse().unwrap();
    let error = IcmpError::PacketTooBig { mtu: 1_400 };
    let length = write_error(&mut out, error, &offending, from.into()).unwrap();
    let (kind, quote) = read_whole(&out[..length]).unwrap();
    assert_eq!(kind, ErrorKind::PacketTooBig { mtu: 1_400 });
    assert_eq!(quote.fragment, Fragment::First);
    assert_eq!((quote.flow.protocol, quote.flow.source), (17, Ipv6Addr::from([0x20; 16]).into()));
    assert_eq!(quote.flow.upper, Upper::Ports { source: 4500, destination: 4500 });
    assert_eq!(quote.payload[8..16], [0, 0, 0x10, 2, 0, 0, 0, 9]);
    out[47] ^= 1;
    assert_eq!(read_whole(&out[..length]), None);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(v6: bool, kind in 0_u8..13, code in 0_u8..16, quoted: Vec<u8>) {
        let message = [&[kind, code, 0, 0, 0, 0, 0x05, 0x78][..], &quoted].concat();
        let mut packet = if v6 {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
            header[4..6].copy_from_slice(&(message.len() as u16).to_be_bytes());
            header.extend([7; 32]);
            header
        } else {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 203, 0, 113, 1, 192, 0, 2, 1];
            header[2..4].copy_from_slice(&((20 + message.len()) as u16).to_be_bytes());
            header
        };
        let front = packet.len();
        packet.extend(&message);
        if v6 {
            let sum = Sum::default().pseudo_header(&packet[8..40], message.len() as u32, 58).bytes(&message).checksum();
            packet[front + 2..front + 4].copy_from_slice(&sum.to_be_bytes());
        } else {
            fix(&mut packet);
        }
        if let Some((_, quote)) = read_whole(&packet) {
            proptest::prop_assert!(quote.payload.len() <= quoted.len());
        }
    }
}
