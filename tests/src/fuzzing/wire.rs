//! Parsers and transforms.

use std::net::IpAddr;

use adit_engine::crypto::Suite;
use adit_engine::transform::ah::{Role, cover};
use adit_engine::transform::ecn::Ecn;
use adit_engine::transform::esp::{Layout, trailer};
use adit_engine::transform::fragment::{fragment_ipv4, write_fragment};
use adit_engine::transform::natt::{self, Datagram};
use adit_engine::transform::transport::{self, DestinationOptions};
use adit_engine::transform::tunnel::{DontFragment, Dscp, OuterHeader, TrafficClass};
use adit_engine::transform::{self, mss};
use adit_engine::wire::icmp::{IcmpError, write_error};
use adit_engine::wire::ip::{self, Fragment, IpPacket, IpVersion, Upper};
use adit_engine::wire::vlan::{self, Tags};
use adit_engine::wire::{ah, esp, ethernet, protocol};

use super::{Input, residue};

/// Input: what to mend, an MTU, a traffic class, a choice of suite, then the bytes that everything reads.
pub fn wire(input: &[u8]) {
    let mut input = Input(input);
    let mend = input.byte();
    let mtu = u32::from(input.word());
    let traffic_class = input.byte();
    let suites: Vec<_> = Suite::all().collect();
    let layout = Layout::new(&suites[usize::from(input.byte()) % suites.len()]);
    let bytes = input.0;

    ethernet_header(bytes);
    esp_header(bytes);
    ah_header(bytes);
    nat_traversal(bytes);
    esp_lengths(bytes, &layout, mtu);
    assert_eq!(Ecn::Copy.ingress(traffic_class), traffic_class & 3);
    assert_eq!(Ecn::Clear.ingress(traffic_class), 0);

    let mut packet = bytes.to_vec();
    mended(&mut packet, mend);
    if let Some(parsed) = ip_packet(&packet) {
        ttl(&packet, &parsed);
        class(&packet, &parsed, traffic_class);
        clamp(&packet, &parsed, mtu);
        fragments(&packet, &parsed, mtu);
        outer(&parsed, &layout, mtu, mend);
        covered(&packet, &parsed, traffic_class);
        transported(&packet, &parsed, mend);
    }
    for error in [IcmpError::TimeExceeded, IcmpError::PacketTooBig { mtu }] {
        icmp_error(error, &packet, mtu as usize);
    }
}

/// What a checksum and a length would stop, as the bits of `mend` say: 1 the IPv4 checksum, 2 the length.
fn mended(packet: &mut [u8], mend: u8) {
    let length = packet.len() as u16;
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => {
            if mend & 2 != 0 {
                packet[2..4].copy_from_slice(&length.to_be_bytes());
            }
            let header = usize::from(packet[0] & 15) * 4;
            if mend & 1 != 0 && (20..=packet.len()).contains(&header) {
                packet[10..12].fill(0);
                let sum = !(residue(&packet[..header]) as u16);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
        }
        Some(6) if packet.len() >= 40 && mend & 2 != 0 => {
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        }
        _ => {}
    }
}

/// Tags that are taken out and put in again are those that were there, but for priorities.
fn vlan_tags(bytes: &[u8]) {
    let Some((tags, length)) = Tags::read(bytes) else { return };
    let mut frame = bytes.to_vec();
    let stripped = vlan::strip(&mut frame, length);
    assert_eq!((&stripped[..12], &stripped[12..]), (&bytes[..12], &bytes[12 + length..]));
    let mut again = [&vec![0; tags.length()][..], stripped].concat();
    tags.write(&mut again);
    assert_eq!(Tags::read(&again), Some((tags, tags.length())));
}

fn ethernet_header(bytes: &[u8]) {
    vlan_tags(bytes);
    match ethernet::parse(bytes) {
        Ok(header) => {
            let mut out = [0; ethernet::HEADER_LENGTH];
            ethernet::write(&mut out, &header);
            assert_eq!(out, bytes[..14]);
        }
        Err(_) => assert!(bytes.len() < 14),
    }
}

fn esp_header(bytes: &[u8]) {
    match esp::parse(bytes) {
        Ok(header) => assert_eq!(header.to_bytes(), bytes[..8]),
        Err(_) => assert!(bytes.len() < 8),
    }
}

fn ah_header(bytes: &[u8]) {
    match ah::parse(bytes) {
        Ok(header) => {
            let mut fixed = bytes[..12].to_vec();
            fixed[2..4].fill(0);
            assert_eq!(header.to_bytes(), fixed[..], "but for the reserved field");
            assert!(header.length >= 12 && usize::from(header.length) <= bytes.len());
        }
        Err(_) => assert!(bytes.len() < 12 || bytes[1] == 0 || (usize::from(bytes[1]) + 2) * 4 > bytes.len()),
    }
}

/// RFC 3948 section 2: what a datagram is, by its length and its first bytes alone.
fn nat_traversal(bytes: &[u8]) {
    let length = bytes.get(4..6).map_or(0, |length| usize::from(u16::from_be_bytes([length[0], length[1]])));
    let payload = if length >= 8 { bytes.get(8..length) } else { None };
    match (natt::read(bytes), payload) {
        (Ok(Datagram::Keepalive), payload) => assert_eq!(payload, Some(&[0xff][..])),
        (Ok(Datagram::Ike), payload) => assert!(payload.is_some_and(|payload| payload.starts_with(&[0; 4]))),
        (Ok(Datagram::Esp(esp)), payload) => {
            assert_eq!(payload, Some(esp));
            assert!(esp.len() >= 4 && esp[..4] != [0; 4]);
        }
        (Err(_), payload) => assert!(payload.is_none_or(|payload| payload.len() < 4 && payload != [0xff])),
    }
}

/// RFC 4302 section 3.3.3.1: what the ICV covers of the headers is the same wherever on its way a packet is.
fn covered(packet: &[u8], parsed: &IpPacket, traffic_class: u8) {
    let headers = &packet[..usize::from(parsed.payload_offset)];
    let cover = |headers: &[u8], role| {
        let mut out = vec![0x55; headers.len()];
        cover(&mut out, headers, parsed.version, role).then_some(out)
    };
    let mut later = headers.to_vec();
    ip::set_traffic_class(&mut later, parsed.version, traffic_class);
    later[if parsed.version == IpVersion::V4 { 8 } else { 7 }] = traffic_class;
    for role in [Role::Sender, Role::Receiver] {
        let Some(out) = cover(headers, role) else { continue };
        assert_eq!(cover(&later, role).as_ref(), Some(&out), "what routers change is not covered");
        assert_eq!(cover(&out, role).as_ref(), Some(&out), "nothing is left that changes");
        let immutable = match parsed.version {
            // Version and length, total length, identification; protocol; source.
            IpVersion::V4 => [(0, 1), (2, 6), (9, 10), (12, 16)],
            IpVersion::V6 => [(4, 6), (6, 7), (8, 16), (16, 24)],
        };
        for (start, end) in immutable {
            assert_eq!(out[start..end], headers[start..end]);
        }
    }
    let arrived = cover(headers, Role::Receiver).is_none() || cover(headers, Role::Sender).is_some();
    assert!(arrived, "what can be received can be sent");
}

/// Transport mode takes a packet apart and puts the same one together.
fn transported(packet: &[u8], parsed: &IpPacket, choice: u8) {
    if parsed.fragment != Fragment::Whole || parsed.total_length > 65_000 {
        return;
    }
    let packet = &packet[..parsed.total_length as usize];
    let protocol = if choice & 4 == 0 { protocol::ESP } else { protocol::AH };
    let rule = if choice & 8 == 0 { DestinationOptions::After } else { DestinationOptions::Before };
    let split = transport::split(packet, parsed, rule);
    assert!(split.at >= parsed.header_length && split.at <= parsed.payload_offset);
    let (own, payload) = packet.split_at(split.at.into());
    let mut headers = own.to_vec();
    transport::rewrite(&mut headers, parsed.version, split.named_at, protocol, payload.len() + 30);
    let sealed = [&headers[..], &[0; 30], payload].concat();
    let received = ip::parse(&sealed).expect("a packet, checksum included");
    assert_eq!((received.flow.protocol, received.payload_offset), (protocol, split.at));
    if let Some(joint) = transport::joint(&sealed, &received) {
        assert_eq!((joint.at, joint.named_at), (split.at, split.named_at));
        transport::rewrite(&mut headers, parsed.version, joint.named_at, split.next_header, payload.len());
        let mut own = own.to_vec();
        if parsed.version == IpVersion::V4 && own[10..12] == [0xff; 2] {
            // One's complement has two zeroes, both are right (RFC 1624 section 3), and the sum of a header is one.
            own[10..12].fill(0);
        }
        assert_eq!(headers, own);
    }
}

/// RFC 4303 section 2: lengths that agree with each other, and trailers.
fn esp_lengths(bytes: &[u8], layout: &Layout, mtu: u32) {
    let alignment = usize::from(layout.alignment);
    let around = 8 + usize::from(layout.iv_length) + usize::from(layout.icv_length);
    match layout.ciphertext_length(bytes.len()) {
        Some(length) => {
            assert_eq!(length + around, bytes.len());
            assert!(length >= 2 && length % alignment == 0);
        }
        None => assert!(bytes.len() <= around || !(bytes.len() - around).is_multiple_of(alignment)),
    }
    match layout.max_payload(mtu as usize) {
        Some(payload) => {
            assert!(layout.esp_length(payload) <= mtu as usize);
            assert!(layout.esp_length(payload + 1) > mtu as usize);
        }
        None => assert!(layout.esp_length(0) > mtu as usize),
    }
    let padded = |payload: usize| {
        let &[.., pad_length, next_header] = bytes else { return None };
        let padding = &bytes[payload..bytes.len() - 2];
        let counts = padding.iter().enumerate().all(|(index, byte)| usize::from(*byte) == index + 1);
        (usize::from(pad_length) == padding.len() && counts).then_some(next_header)
    };
    match trailer(bytes) {
        Ok(trailer) => assert_eq!(padded(trailer.payload_length), Some(trailer.next_header)),
        Err(_) => {
            let pad = bytes.len().checked_sub(2).map(|at| usize::from(bytes[at]));
            let payload = pad.and_then(|pad| (bytes.len() - 2).checked_sub(pad));
            assert!(payload.is_none_or(|payload| padded(payload).is_none()));
        }
    }
}

fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    let octets = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap();
    match packet[0] >> 4 {
        4 => {
            let octets = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap();
            (octets(12).into(), octets(16).into())
        }
        _ => (octets(8).into(), octets(24).into()),
    }
}

/// The parser is total; what it says lies inside the packet and agrees with the bytes.
fn ip_packet(bytes: &[u8]) -> Option<IpPacket> {
    let parsed = ip::parse(bytes).ok()?;
    let total = parsed.total_length as usize;
    let (header, payload) = (usize::from(parsed.header_length), usize::from(parsed.payload_offset));
    assert!(header <= payload && payload <= total && total <= bytes.len());
    let packet = &bytes[..total];
    assert_eq!(ip::parse(packet), Ok(parsed), "Ethernet padding means nothing");
    assert!(ip::parse(&packet[..total - 1]).is_err(), "a packet cut short is none");

    assert_eq!((parsed.flow.source, parsed.flow.destination), addresses(packet));
    match parsed.version {
        IpVersion::V4 => {
            assert_eq!((packet[0] >> 4, usize::from(packet[0] & 15) * 4), (4, header));
            assert_eq!((header, residue(&packet[..header])), (payload, 0));
            assert_eq!((parsed.traffic_class, parsed.ttl), (packet[1], packet[8]));
            assert_eq!(parsed.flow.protocol, packet[9]);
            let field = u16::from_be_bytes([packet[6], packet[7]]);
            assert_eq!(parsed.dont_fragment, field & 0x4000 != 0);
            assert_eq!(parsed.fragment == Fragment::Whole, field & 0x3fff == 0);
            assert_eq!(parsed.fragment == Fragment::Later, field & 0x1fff != 0);
        }
        IpVersion::V6 => {
            assert_eq!((packet[0] >> 4, header), (6, 40));
            assert_eq!(parsed.traffic_class, packet[0] << 4 | packet[1] >> 4);
            assert_eq!((parsed.ttl, parsed.dont_fragment), (packet[7], true));
            assert_eq!(chain(packet), Some((parsed.flow.protocol, payload, parsed.fragment)));
        }
    }
    let upper = &packet[payload..];
    let later = parsed.fragment == Fragment::Later;
    match parsed.flow.upper {
        Upper::Ports { source, destination } => {
            assert!(!later && matches!(parsed.flow.protocol, 6 | 17 | 132));
            assert_eq!(upper[..4], [source.to_be_bytes(), destination.to_be_bytes()].concat());
        }
        Upper::Icmp { kind, code } => {
            assert!(!later && matches!(parsed.flow.protocol, 1 | 58));
            assert_eq!(upper[..2], [kind, code]);
        }
        Upper::Opaque => {
            let readable = match parsed.flow.protocol {
                6 | 17 | 132 => upper.len() >= 4,
                1 | 58 => upper.len() >= 2,
                _ => false,
            };
            assert!(later || !readable);
        }
    }
    if ip::has_partial_checksum(packet, &parsed) {
        let pseudo = residue(&addresses_of(packet)) + u64::from(parsed.flow.protocol) + upper.len() as u64;
        assert_ne!((pseudo + residue(upper)) % 0xffff, 0, "a right checksum is no partial one");
    }
    Some(parsed)
}

fn addresses_of(packet: &[u8]) -> Vec<u8> {
    if packet[0] >> 4 == 4 { packet[12..20].to_vec() } else { packet[8..40].to_vec() }
}

/// RFC 8200 section 4 once more, back to front of the engine's: a list of headers first, then what it comes to.
fn chain(packet: &[u8]) -> Option<(u8, usize, Fragment)> {
    let (mut next, mut at, mut fragment) = (packet[6], 40, Fragment::Whole);
    let mut headers = Vec::new();
    while matches!(next, 0 | 43 | 44 | 60) && fragment != Fragment::Later {
        let header = packet.get(at..at + 8)?;
        if next == 44 {
            let field = u16::from_be_bytes([header[2], header[3]]);
            if field & 0xfff8 != 0 {
                fragment = Fragment::Later;
            } else if field & 1 != 0 {
                fragment = Fragment::First;
            }
        }
        at += if next == 44 { 8 } else { 8 * (usize::from(header[1]) + 1) };
        headers.push(next);
        next = header[0];
    }
    let many = |header: u8| headers.iter().filter(|known| **known == header).count() > 1;
    let misplaced = headers.iter().skip(1).any(|header| *header == 0) || many(44);
    (at <= packet.len() && headers.len() <= 8 && !misplaced).then_some((next, at, fragment))
}

/// `edit` changes nothing in `packet` but `at` and, in IPv4, the checksum.
fn edited(packet: &[u8], version: IpVersion, at: &[usize], edit: impl FnOnce(&mut [u8])) -> IpPacket {
    let mut changed = packet.to_vec();
    edit(&mut changed);
    for (index, (before, after)) in packet.iter().zip(&changed).enumerate() {
        let mended = version == IpVersion::V4 && matches!(index, 10 | 11);
        assert!(before == after || mended || at.contains(&index), "byte {index}");
    }
    ip::parse(&changed).expect("still right, checksum included")
}

fn ttl(packet: &[u8], parsed: &IpPacket) {
    if parsed.ttl > 1 {
        let at = if parsed.version == IpVersion::V4 { 8 } else { 7 };
        let after = edited(packet, parsed.version, &[at], |bytes| ip::decrement_ttl(bytes, parsed.version));
        assert_eq!(after, IpPacket { ttl: parsed.ttl - 1, ..*parsed });
    }
}

fn class(packet: &[u8], parsed: &IpPacket, traffic_class: u8) {
    let set = |bytes: &mut [u8]| ip::set_traffic_class(bytes, parsed.version, traffic_class);
    let after = edited(packet, parsed.version, &[0, 1], set);
    assert_eq!(after, IpPacket { traffic_class, ..*parsed });
}

/// The MSS is only ever lowered, only in a SYN, and the checksum stays as right or wrong as it was.
fn clamp(packet: &[u8], parsed: &IpPacket, mtu: u32) {
    let mut changed = packet.to_vec();
    let says = mss::clamp(&mut changed, parsed, mtu);
    assert_eq!(says, changed != packet);
    assert_eq!(ip::parse(&changed), Ok(*parsed), "addresses, ports and lengths stay");
    if !says {
        return;
    }
    let start = usize::from(parsed.payload_offset);
    let total = parsed.total_length as usize;
    let (before, after) = (&packet[start..total], &changed[start..total]);
    assert!(parsed.flow.protocol == protocol::TCP && before[13] & 2 != 0);
    assert_eq!(residue(before), residue(after));
    let headers = if parsed.version == IpVersion::V4 { 40 } else { 60 };
    let end = usize::from(before[12] >> 4) * 4;
    for index in (0..before.len()).filter(|index| before[*index] != after[*index]) {
        assert!(matches!(index, 16 | 17) || (22..end).contains(&index), "byte {index} of the segment");
    }
    let lowered =
        |at: &usize| after[*at..at + 2] == [2, 4] && before[at + 2..at + 4] != after[at + 2..at + 4];
    for at in (20..end - 3).filter(lowered) {
        let value = |segment: &[u8]| u32::from(u16::from_be_bytes([segment[at + 2], segment[at + 3]]));
        assert!(value(after) < value(before) && value(after) == mtu - headers);
    }
    assert!(!mss::clamp(&mut changed, parsed, mtu), "once is enough");
}

/// RFC 791 section 3.2: what the pieces carry is what the packet carried.
fn fragments(packet: &[u8], parsed: &IpPacket, mtu: u32) {
    let Some(pieces) = fragment_ipv4(packet, parsed, mtu) else { return };
    assert!(parsed.version == IpVersion::V4 && !parsed.dont_fragment);
    let header = usize::from(parsed.header_length);
    let payload = &packet[header..parsed.total_length as usize];
    let field = |bytes: &[u8]| u16::from_be_bytes([bytes[6], bytes[7]]);
    let (first_offset, more) = (field(packet) & 0x1fff, field(packet) & 0x2000);
    let mut whole = Vec::new();
    let mut out = vec![0xaa; (mtu as usize).max(packet.len()) + 1];
    let mut last = None;
    for piece in pieces {
        assert!(last.is_none_or(|more: u16| more != 0), "a piece behind the last");
        let length = write_fragment(&mut out, packet, &piece).expect("there is room");
        assert_eq!(length, piece.total_length());
        assert!(length <= mtu as usize || length == parsed.total_length as usize);
        assert!(write_fragment(&mut vec![0; length - 1], packet, &piece).is_none());
        let fragment = &out[..length];
        let read = ip::parse(fragment).expect("a packet, checksum included");
        assert_eq!(read.total_length as usize, length);
        assert_eq!((read.flow.source, read.flow.destination), (parsed.flow.source, parsed.flow.destination));
        assert_eq!((read.flow.protocol, read.ttl), (parsed.flow.protocol, parsed.ttl));
        assert_eq!(read.traffic_class, parsed.traffic_class);
        assert_eq!(fragment[4..6], packet[4..6], "identification");
        let header = usize::from(read.header_length);
        if whole.is_empty() {
            assert_eq!(packet[20..usize::from(parsed.header_length)], fragment[20..header], "options");
        } else {
            assert!(header <= usize::from(parsed.header_length));
        }
        assert_eq!(whole.len() % 8, 0);
        assert_eq!(usize::from(field(fragment) & 0x1fff), usize::from(first_offset) + whole.len() / 8);
        assert_eq!(field(fragment) & 0xc000, field(packet) & 0xc000);
        whole.extend_from_slice(&fragment[header..]);
        last = Some(field(fragment) & 0x2000);
    }
    assert!(whole == payload, "reassembled");
    assert_eq!(last, Some(more), "the last piece says what the packet said");
}

/// RFC 4301 section 5.1.2: the header around `inner`, where the packet fits.
fn outer(inner: &IpPacket, layout: &Layout, outside_mtu: u32, choice: u8) {
    let dscp = if choice & 4 != 0 { Dscp::Copy } else { Dscp::Fixed(choice >> 2) };
    let ecn = if choice & 2 != 0 { Ecn::Copy } else { Ecn::Clear };
    let traffic_class = TrafficClass::new(dscp, ecn);
    let dont_fragment = match choice >> 3 & 3 {
        0 => DontFragment::Set,
        1 => DontFragment::Clear,
        _ => DontFragment::Copy,
    };
    for (source, destination) in [("192.0.2.1", "198.51.100.9"), ("2001:db8:f::1", "2001:db8:e::9")] {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let ttl = choice.max(1);
        let (protocol, udp_ports) = (protocol::ESP, (choice & 0x40 != 0).then_some((4500, 1024)));
        let header =
            OuterHeader { source, destination, protocol, udp_ports, ttl, traffic_class, dont_fragment };
        let inside = header.inside_mtu(outside_mtu, &transform::Layout::Esp(*layout));
        let sealed = |inner: u32| header.length() + layout.esp_length(inner as usize);
        assert!(inside == 0 || sealed(inside) <= outside_mtu as usize);
        assert!(sealed(inside + 1) > outside_mtu as usize || inside + 1 > 65_000);
        if inner.total_length > inside {
            continue;
        }
        let mut out = vec![0; sealed(inner.total_length)];
        header.write(&mut out, inner, layout.esp_length(inner.total_length as usize), 0x1234);
        let read = ip::parse(&out).expect("a packet");
        assert_eq!(read.total_length as usize, out.len());
        assert_eq!((read.flow.source, read.flow.destination), (source, destination));
        let carrier = if udp_ports.is_some() { protocol::UDP } else { protocol };
        assert_eq!((read.flow.protocol, read.ttl), (carrier, choice.max(1)));
        assert_eq!(read.traffic_class & 3, ecn.ingress(inner.traffic_class), "ECN, RFC 6040 section 4.1");
        let class = if choice & 4 != 0 { inner.traffic_class >> 2 } else { choice >> 2 };
        assert_eq!(read.traffic_class >> 2, class);
        let df = [true, false, inner.dont_fragment, inner.dont_fragment][usize::from(choice >> 3 & 3)];
        assert_eq!(read.dont_fragment, source.is_ipv6() || df);
        assert_eq!(read.fragment, Fragment::Whole);
    }
}

/// RFC 1812 section 4.3.2, RFC 4443 section 2.4: a packet of its own about the one that offends, or nothing.
fn icmp_error(error: IcmpError, offending: &[u8], room: usize) {
    let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8:f::1".parse().unwrap());
    for source in [v4, v6] {
        let mut out = vec![0x55; room.min(2048)];
        let Some(length) = write_error(&mut out, error, offending, source) else {
            assert!(out.len() > 1500 || write_errors_agree(error, offending, source, out.len()));
            continue;
        };
        let about = ip::parse(offending).expect("nothing is said about what is no packet");
        assert!(out[length..].iter().all(|byte| *byte == 0x55), "written beyond the end");
        let packet = &out[..length];
        let read = ip::parse(packet).expect("a packet, checksum included");
        assert_eq!(read.total_length as usize, length);
        assert_eq!((read.flow.source, read.flow.destination), (source, about.flow.source));
        assert_eq!(read.version, about.version);
        let message = &packet[usize::from(read.payload_offset)..];
        let (limit, pseudo) = match read.version {
            IpVersion::V4 => (576, 0),
            IpVersion::V6 => {
                (1280, residue(&packet[8..40]) + u64::from(read.flow.protocol) + message.len() as u64)
            }
        };
        assert!(length <= limit);
        assert_eq!((pseudo + residue(message)) % 0xffff, 0, "checksum");
        let quoted = &message[8..];
        assert_eq!(*quoted, offending[..quoted.len()]);
        assert!(quoted.len() as u32 == about.total_length || length == limit, "as much as may be");
        let again = write_error(&mut [0; 2048], IcmpError::TimeExceeded, packet, source);
        assert_eq!(again, None, "an error about an error");
    }
}

/// Refused for want of room, it is refused with less room too.
fn write_errors_agree(error: IcmpError, offending: &[u8], source: IpAddr, room: usize) -> bool {
    let with = |room: usize| write_error(&mut vec![0; room], error, offending, source);
    with(2048).is_none_or(|length| length > room) && with(room / 2).is_none()
}
