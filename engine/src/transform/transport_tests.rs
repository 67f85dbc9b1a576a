use super::*;
use crate::transform::{ah, esp};
use crate::wire::frames::*;
use crate::wire::ip;

fn layouts() -> Vec<Layout> {
    let esp = [(0, 4, 12), (8, 4, 16), (8, 8, 12), (16, 16, 16), (16, 16, 32)].map(
        |(iv_length, alignment, icv_length)| Layout::Esp(esp::Layout { iv_length, alignment, icv_length }),
    );
    let ah = [12, 16, 32]
        .map(|icv_length| Layout::Ah(ah::Layout::new(icv_length, IpVersion::V4, ah::Padding::Rfc4302)));
    esp.into_iter().chain(ah).collect()
}

/// Line 48 of RFC 4301 section 8.2.1's arithmetic: the packet at the limit fits, one byte more does not.
#[test]
fn inside_mtu_is_exact() {
    for layout in layouts() {
        for (version, headers) in
            [(IpVersion::V4, 20usize), (IpVersion::V4, 60), (IpVersion::V6, 40), (IpVersion::V6, 112)]
        {
            for outside in [576u32, 1279, 1280, 1281, 1400, 1492, 1500, 9000] {
                let limit = inside_mtu(outside, &layout, version, headers) as usize;
                let sealed = |total: usize| headers + layout.length(total - headers);
                assert!(sealed(limit) <= outside as usize, "{layout:?} {outside}");
                assert!(sealed(limit + 1) > outside as usize, "{layout:?} {outside}");
            }
            assert_eq!(inside_mtu(headers as u32, &layout, version, headers), 0);
        }
    }
}

/// (named at, at, next header).
fn places(packet: &[u8], rule: DestinationOptions) -> (u16, u16, u8) {
    let split = split(packet, &ip::parse(packet).unwrap(), rule);
    (split.named_at, split.at, split.next_header)
}

#[test]
fn esp_goes_behind_what_the_way_reads() {
    use DestinationOptions::{After, Before};
    assert_eq!(places(&bytes(V4_UDP), After), (9, 20, 17));
    assert_eq!(places(&bytes(V4_TCP_OPTIONS), After), (9, 32, 6));
    assert_eq!(places(&bytes(V6_TCP), After), (6, 40, 6));
    // Hop-by-hop, destination options, routing, UDP: options in front of a route are for every hop of it.
    for rule in [After, Before] {
        assert_eq!(places(&bytes(V6_CHAIN), rule), (64, 88, 17));
    }
    // Behind the route they are for its end alone.
    let mut last = bytes(V6_CHAIN);
    last.splice(88..88, [17, 0, 1, 4, 0, 0, 0, 0]);
    last[64] = 60;
    last[5] += 8;
    assert_eq!(places(&last, After), (64, 88, 60));
    assert_eq!(places(&last, Before), (88, 96, 17));
    assert_eq!(places(&bytes(V6_ATOMIC), After), (40, 48, 17));
}

/// Line 37: three fields change, and back they are what they were.
#[test]
fn taken_apart_and_joined() {
    for packet in [V4_UDP, V4_TCP_OPTIONS, V4_ECHO, V6_TCP, V6_CHAIN, V6_ECHO].map(bytes) {
        for protocol in [protocol::ESP, protocol::AH] {
            let parsed = ip::parse(&packet).unwrap();
            let split = split(&packet, &parsed, DestinationOptions::After);
            let (own, payload) = packet.split_at(split.at.into());
            // Some ESP or AH.
            let behind = vec![0x55; payload.len() + 30];
            let mut headers = own.to_vec();
            rewrite(&mut headers, parsed.version, split.named_at, protocol, behind.len());
            let changed: Vec<_> = (0..own.len()).filter(|at| own[*at] != headers[*at]).collect();
            let may_change = match parsed.version {
                IpVersion::V4 => vec![2, 3, 9, 10, 11],
                IpVersion::V6 => vec![4, 5, split.named_at.into()],
            };
            assert!(changed.iter().all(|at| may_change.contains(at)), "{changed:?}");

            let sealed = [&headers[..], &behind].concat();
            let received = ip::parse(&sealed).expect("length and checksum are right");
            assert_eq!(received.flow.protocol, protocol);
            let joint = joint(&sealed, &received).unwrap();
            assert_eq!((joint.at, joint.named_at), (split.at, split.named_at));
            let mut headers = sealed[..usize::from(joint.at)].to_vec();
            rewrite(&mut headers, parsed.version, joint.named_at, split.next_header, payload.len());
            assert_eq!([&headers[..], payload].concat(), packet);
        }
    }
}

#[test]
fn the_middle_of_a_route_is_no_place_to_open() {
    let mut packet = bytes(V6_CHAIN);
    // The Routing header's next header, and its addresses left.
    packet[64] = protocol::ESP;
    let parsed = ip::parse(&packet).unwrap();
    assert_eq!(joint(&packet, &parsed), Some(Split { at: 88, named_at: 64, next_header: protocol::ESP }));
    packet[67] = 1;
    assert_eq!(joint(&packet, &parsed), None);
}
