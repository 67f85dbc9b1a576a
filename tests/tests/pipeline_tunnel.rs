//! Two pipelines, back to back: what goes in at A's inside comes out at B's inside, and what does not fit is said.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::{Authentication, Encryption, Suite};
use adit_engine::pipeline::{DropReason, Received};
use adit_engine::policy::Action;
use adit_engine::route::PortId;
use adit_engine::sa::selector::{AddressRange, Selector, UpperSelector};
use adit_engine::transform::ecn::Ecn;
use adit_engine::wire::checksum::internet;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, PEER_MAC, Peer, Site, address, policy, suite};
use adit_tests::packet::{
    DONT_FRAGMENT, HOST_MAC, MORE_FRAGMENTS, frame, one_hop_on, tcp_syn, transport_checksum, udp, udp_ports,
    unframe, with_fragment_field, with_traffic_class, with_ttl,
};

fn from_a(ipv6: bool, length: usize) -> Vec<u8> {
    udp(Site::A.host(ipv6), Site::B.host(ipv6), length)
}

/// Everything A seals, carried to B; what comes out there.
fn through(a: &mut Gateway, b: &mut Gateway, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let sealed = a.run(INSIDE, packets);
    assert!(sealed.iter().all(|(port, packet)| *port == OUTSIDE && is_esp(packet)));
    let sealed: Vec<_> = sealed.into_iter().map(|(_, packet)| packet).collect();
    let opened = b.run(OUTSIDE, &sealed);
    assert!(opened.iter().all(|(port, _)| *port == INSIDE));
    opened.into_iter().map(|(_, packet)| packet).collect()
}

fn is_esp(packet: &[u8]) -> bool {
    packet[if packet[0] >> 4 == 4 { 9 } else { 6 }] == 50
}

#[test]
fn every_suite_carries_every_family_in_every_family_in_order() {
    for suite in Suite::all() {
        for (outer_ipv6, esn) in [(false, true), (true, false)] {
            let options = Options { outer_ipv6, esn, ..Options::with_suite(suite) };
            let (mut a, mut b) = Gateway::pair(&options);
            let lengths = [0, 1, 2, 3, 7, 100, 511, 1000, 1300];
            let packets: Vec<_> = (0..160).map(|n| from_a(n % 3 == 0, lengths[n % lengths.len()])).collect();
            let expected: Vec<_> = packets.iter().map(|packet| one_hop_on(&one_hop_on(packet))).collect();
            assert_eq!(through(&mut a, &mut b, &packets), expected, "{suite:?}");
            assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
            let sa = b.inbound_sa();
            assert_eq!(sa.counters.packets.load(Relaxed), 160);
            assert_eq!(sa.replay.right_edge(), 160);
            assert_eq!(a.engine.counters().sealed.load(Relaxed), 160);
            assert_eq!(b.engine.counters().opened.load(Relaxed), 160);
        }
    }
}

/// The largest inner packet, from the lengths RFC 4303 section 2 and the cipher's RFC give, by trying.
fn largest_inner(outer: usize, mtu: usize, iv: usize, block: usize, icv: usize) -> usize {
    (0..mtu).rev().find(|inner| outer + 8 + iv + (inner + 2).next_multiple_of(block) + icv <= mtu).unwrap()
}

#[test]
fn a_packet_at_the_limit_fits_and_one_byte_more_is_told_the_limit() {
    let suites = [
        (suite(Encryption::Aes128Gcm, Authentication::None), 8, 4, 16),
        (suite(Encryption::Aes256Cbc, Authentication::Sha512), 16, 16, 32),
        (suite(Encryption::Null, Authentication::Sha1), 0, 4, 12),
        (suite(Encryption::TripleDes, Authentication::Md5), 8, 8, 12),
    ];
    for (suite, iv, block, icv) in suites {
        for (outer_ipv6, mtu) in [(false, 1500), (true, 1500), (false, 1400), (true, 1401)] {
            let options = Options { outer_ipv6, outside_mtu: mtu, ..Options::with_suite(suite) };
            let limit = largest_inner(if outer_ipv6 { 40 } else { 20 }, mtu as usize, iv, block, icv);
            for ipv6 in [false, true] {
                let (mut a, mut b) = Gateway::pair(&options);
                let headers = if ipv6 { 48 } else { 28 };
                let sized = |length| match ipv6 {
                    true => from_a(true, length - headers),
                    false => with_fragment_field(from_a(false, length - headers), DONT_FRAGMENT),
                };
                let fits = sized(limit);
                assert_eq!(
                    through(&mut a, &mut b, std::slice::from_ref(&fits)),
                    [one_hop_on(&one_hop_on(&fits))]
                );

                let too_big = sized(limit + 1);
                let errors = a.run_frames(vec![(INSIDE, frame(&too_big))]);
                assert_eq!(a.drops(), [(DropReason::TooBig, 1)]);
                assert_eq!(a.engine.counters().originated.load(Relaxed), 1);
                let [(INSIDE, error)] = &errors[..] else { panic!("one error, inside: {errors:?}") };
                assert_eq!(error[..6], HOST_MAC);
                assert_is_too_big(unframe(error), &too_big, limit);
            }
        }
    }
}

/// RFC 1191 section 4, RFC 4443 section 3.2.
fn assert_is_too_big(error: &[u8], offending: &[u8], mtu: usize) {
    if offending[0] >> 4 == 4 {
        assert_eq!(addresses(error), (Site::A.inside(false), Site::A.host(false)));
        let message = &error[20..];
        assert_eq!(error[9], 1);
        assert_eq!(message[..2], [3, 4]);
        assert_eq!(usize::from(u16::from_be_bytes([message[6], message[7]])), mtu);
        assert_eq!(internet(message), 0);
        let quoted = &message[8..];
        assert!(quoted.len() >= 28 && error.len() <= 576);
        assert_eq!(*quoted, offending[..quoted.len()], "the packet as it was received");
    } else {
        assert_eq!(addresses(error), (Site::A.inside(true), Site::A.host(true)));
        let message = &error[40..];
        assert_eq!(error[6], 58);
        assert_eq!(message[..2], [2, 0]);
        assert_eq!(u32::from_be_bytes(message[4..8].try_into().unwrap()) as usize, mtu);
        let (source, destination) = addresses(error);
        assert_eq!(transport_checksum(source, destination, 58, message), 0);
        let quoted = &message[8..];
        assert!(error.len() <= 1280);
        assert_eq!(*quoted, offending[..quoted.len()]);
    }
}

fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 4 {
        let at = |start: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[start..start + 4]).unwrap());
        (at(12), at(16))
    } else {
        let at = |start: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[start..start + 16]).unwrap());
        (at(8), at(24))
    }
}

#[test]
fn an_ipv6_sender_is_never_told_less_than_1280() {
    let options = Options { outside_mtu: 1300, ..Options::new() };
    let mut a = Gateway::new(Site::A, &options);
    let errors = a.run(INSIDE, &[from_a(true, 1281 - 48)]);
    assert_eq!(a.drops(), [(DropReason::TooBig, 1)]);
    assert_is_too_big(&errors[0].1, &from_a(true, 1281 - 48), 1280);
    // And what it sends then passes, in fragments outside.
    let sent = a.run(INSIDE, &[from_a(true, 1280 - 48)]);
    assert_eq!((sent.len(), a.drops().len()), (2, 1));
}

#[test]
fn a_large_packet_that_may_be_fragmented_is_before_encryption() {
    let (mut a, mut b) = Gateway::pair(&Options::new());
    let before = from_a(false, 10);
    let large = from_a(false, 1472);
    let after = from_a(false, 20);
    assert_eq!(large.len(), 1500);
    let opened = through(&mut a, &mut b, &[before.clone(), large.clone(), after.clone()]);
    assert_eq!(opened.len(), 4);
    assert_eq!(a.engine.counters().originated.load(Relaxed), 1);
    assert_eq!(opened[0], one_hop_on(&one_hop_on(&before)));
    assert_eq!(opened[3], one_hop_on(&one_hop_on(&after)), "order is kept around the fragments");

    let mut payload = Vec::<u8>::new();
    for (number, fragment) in opened[1..3].iter().enumerate() {
        let field = u16::from_be_bytes([fragment[6], fragment[7]]);
        assert_eq!(internet(&fragment[..20]), 0);
        assert_eq!(usize::from(field & 0x1fff) * 8, payload.len());
        assert_eq!(field & MORE_FRAGMENTS != 0, number == 0);
        assert_eq!(fragment[4..6], large[4..6]);
        assert_eq!(fragment[8], 62);
        payload.extend(&fragment[20..]);
    }
    assert_eq!(payload, large[20..]);
    let limit = largest_inner(20, 1500, 8, 4, 16);
    assert!(opened[1].len() <= limit && opened[1].len() > limit - 8, "the first is as full as it can be");
}

#[test]
fn syn_is_told_what_the_tunnel_carries_in_both_directions() {
    for ipv6 in [false, true] {
        let headers = if ipv6 { 60 } else { 40 };
        let room = (largest_inner(20, 1500, 8, 4, 16) - headers) as u16;
        let mss_at = headers + 2;
        for (clamp, offered, expected) in [(true, 1460, room), (true, 500, 500), (false, 1460, 1460)] {
            let clamping = Options { clamp_mss: clamp, ..Options::new() };
            let plain = Options { clamp_mss: false, ..Options::new() };
            // On the way in at A, and on the way out at B: either gateway alone suffices.
            for (at_a, at_b) in [(&clamping, &plain), (&plain, &clamping)] {
                let (mut a, mut b) = (Gateway::new(Site::A, at_a), Gateway::new(Site::B, at_b));
                let (source, destination) = (Site::A.host(ipv6), Site::B.host(ipv6));
                let opened = through(&mut a, &mut b, &[tcp_syn(source, destination, offered)]);
                let syn = &opened[0];
                assert_eq!(u16::from_be_bytes([syn[mss_at], syn[mss_at + 1]]), expected);
                let segment = &syn[headers - 20..];
                assert_eq!(transport_checksum(source, destination, 6, segment), 0);
            }
        }
    }
}

#[test]
fn time_exceeded_inside_is_told_and_not_encrypted() {
    let mut a = Gateway::new(Site::A, &Options::new());
    for (ipv6, headers, kind) in [(false, 20, 11), (true, 40, 3)] {
        let dying = with_ttl(from_a(ipv6, 40), 1);
        let errors = a.run(INSIDE, std::slice::from_ref(&dying));
        assert_eq!(errors.len(), 1);
        let (port, error) = &errors[0];
        assert_eq!(*port, INSIDE);
        assert_eq!(addresses(error), (Site::A.inside(ipv6), Site::A.host(ipv6)));
        assert_eq!(error[headers..headers + 2], [kind, 0]);
        assert_eq!(error[headers + 8..], dying[..error.len() - headers - 8]);
    }
    assert_eq!(a.drops(), [(DropReason::TtlExceeded, 2)]);
    assert_eq!(a.tunnel.outbound.get().unwrap().last_sequence(), 0);
}

#[test]
fn errors_about_decrypted_packets_return_through_the_tunnel() {
    for ipv6 in [false, true] {
        let (headers, exceeded, too_big) = if ipv6 { (40, [3, 0], [2, 0]) } else { (20, [11, 0], [3, 4]) };
        let small = Options { inside_mtu: 1300, ..Options::new() };
        let mut a = Gateway::new(Site::A, &Options::new());
        let mut b = Gateway::new(Site::B, &small);
        let dying = with_ttl(from_a(ipv6, 40), 2);
        let mut large = from_a(ipv6, 1301 - headers - 8);
        if !ipv6 {
            large = with_fragment_field(large, DONT_FRAGMENT);
        }
        let sealed: Vec<_> = a.run(INSIDE, &[dying.clone(), large]).into_iter().map(|(_, esp)| esp).collect();
        let errors = b.run(OUTSIDE, &sealed);
        assert_eq!(b.drops(), [(DropReason::TtlExceeded, 1), (DropReason::TooBig, 1)]);
        assert_eq!(b.engine.counters().originated.load(Relaxed), 2);
        assert!(errors.iter().all(|(port, packet)| *port == OUTSIDE && is_esp(packet)), "never in clear");
        let errors: Vec<_> = errors.into_iter().map(|(_, esp)| esp).collect();
        let opened = a.run(OUTSIDE, &errors);
        assert_eq!(opened.len(), 2, "{:?}", a.drops());
        for ((port, error), expected) in opened.iter().zip([exceeded, too_big]) {
            assert_eq!(*port, INSIDE);
            assert_eq!(addresses(error), (Site::B.inside(ipv6), Site::A.host(ipv6)));
            assert_eq!(error[headers..headers + 2], expected);
        }
        let quoted = &opened[0].1[headers + 8..];
        assert_eq!(*quoted, one_hop_on(&dying)[..quoted.len()]);
        assert_eq!(opened[1].1[headers + 6..headers + 8], 1300_u16.to_be_bytes());
    }
}

#[test]
fn policies_count_every_packet_they_decide() {
    let (mut a, mut b) = Gateway::pair(&Options::new());
    let packets = vec![from_a(false, 10); 50];
    through(&mut a, &mut b, &packets);
    for gateway in [&a, &b] {
        let spd = gateway.engine.tables.spd.get().unwrap();
        assert_eq!(spd.policies[0].packets.load(Relaxed), 50);
    }
}

#[test]
fn errors_are_bounded_and_every_packet_is_still_accounted_for() {
    let mut a = Gateway::new(Site::A, &Options::new());
    let errors = a.run(INSIDE, &vec![with_ttl(from_a(false, 40), 1); 500]);
    assert_eq!(errors.len(), 64);
    assert_eq!(a.drops(), [(DropReason::TtlExceeded, 500)]);
}

#[test]
fn outer_header_follows_the_sa_and_the_inner_packet() {
    let mut a = Gateway::new(Site::A, &Options::new());
    let inner = with_traffic_class(with_fragment_field(from_a(false, 64), DONT_FRAGMENT), 0xb8 | 2);
    let sealed = a.run_frames(vec![(INSIDE, frame(&inner))]);
    let outer = unframe(&sealed[0].1);
    assert_eq!(sealed[0].1[..6], PEER_MAC);
    assert_eq!(outer[0], 0x45, "no options");
    assert_eq!(outer[1], 0xb8 | 2, "DSCP and ECN copied");
    assert_eq!(u16::from_be_bytes([outer[6], outer[7]]), DONT_FRAGMENT, "DF copied");
    assert_eq!(outer[8], 64, "TTL constructed");
    assert_eq!(internet(&outer[..20]), 0);
    assert_eq!(addresses(outer), (Site::A.endpoint(false), Site::B.endpoint(false)));
    assert_eq!(usize::from(u16::from_be_bytes([outer[2], outer[3]])), outer.len());
}

#[test]
fn congestion_outside_is_told_inside() {
    let options = Options::new();
    let (mut b, mut peer) = (Gateway::new(Site::B, &options), Peer::of(Site::B, &options));
    let capable = with_traffic_class(from_a(false, 64), 0x28 | 2);
    let sealed = with_traffic_class(peer.seal(1, 4, &capable), 3);
    let opened = b.run(OUTSIDE, &[sealed]);
    assert_eq!(opened[0].1, one_hop_on(&with_traffic_class(capable, 0x28 | 3)));
}

/// RFC 6040 section 4.1: "in compatibility mode, it clears the ECN field in the outer header", and never the inner one.
#[test]
fn a_peer_that_knows_no_congestion_marks_is_not_sent_any() {
    let options = Options { ecn: Ecn::Clear, ..Options::new() };
    let (mut a, mut b) = (Gateway::new(Site::A, &options), Gateway::new(Site::B, &options));
    for ecn in 0..4 {
        let inner = with_traffic_class(from_a(false, 64), 0xb8 | ecn);
        let sealed = a.run(INSIDE, std::slice::from_ref(&inner));
        assert_eq!(sealed[0].1[1], 0xb8);
        let opened = b.run(OUTSIDE, &[sealed[0].1.clone()]);
        assert_eq!(opened[0].1, one_hop_on(&one_hop_on(&inner)));
    }
}

/// RFC 6040 section 4.2, figure 4: what is marked with one or three exclamation marks there, delivered or not.
#[test]
fn congestion_marks_that_no_tunnel_makes_are_counted() {
    let options = Options::new();
    let (mut b, mut peer) = (Gateway::new(Site::B, &options), Peer::of(Site::B, &options));
    let (mut number, mut suspects) = (0, Vec::new());
    for inner in 0..4 {
        for outer in 0..4 {
            number += 1;
            let before = b.engine.counters().ecn_suspect.load(Relaxed);
            let packet = with_traffic_class(from_a(false, 64), inner);
            b.run(OUTSIDE, &[with_traffic_class(peer.seal(number, 4, &packet), outer)]);
            if b.engine.counters().ecn_suspect.load(Relaxed) > before {
                suspects.push((inner, outer));
            }
        }
    }
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    assert_eq!(suspects, [(NOT_ECT, ECT_1), (NOT_ECT, ECT_0), (NOT_ECT, CE), (ECT_1, ECT_0), (CE, ECT_1)]);
    assert_eq!(b.drops(), [(DropReason::EcnForbidden, 1)]);
    // Nor does a forged packet count.
    let mut forged = with_traffic_class(peer.seal(number + 1, 4, &from_a(false, 64)), 1);
    *forged.last_mut().unwrap() ^= 1;
    b.run(OUTSIDE, &[forged]);
    assert_eq!(b.engine.counters().ecn_suspect.load(Relaxed), 5);
}

fn site_to_anywhere() -> Selector {
    let any = AddressRange { first: address("0.0.0.0"), last: address("255.255.255.255") };
    Selector { local: Site::A.network(false), remote: any, protocol: Some(17), upper: UpperSelector::Any }
}

#[test]
fn bypass_forwards_in_clear_as_a_router_does() {
    let options = Options {
        policies: vec![policy("clear", vec![site_to_anywhere()], Action::Bypass)],
        ..Options::new()
    };
    let mut a = Gateway::new(Site::A, &options);
    let elsewhere = address("203.0.113.7");
    let out = udp(Site::A.host(false), elsewhere, 1472);
    let sent = a.run_frames(vec![(INSIDE, frame(&out))]);
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].0, unframe(&sent[0].1)), (OUTSIDE, &one_hop_on(&out)[..]));
    assert_eq!(sent[0].1[..6], PEER_MAC);
    let back = udp(elsewhere, Site::A.host(false), 100);
    assert_eq!(a.run(OUTSIDE, std::slice::from_ref(&back)), [(INSIDE, one_hop_on(&back))]);
    assert_eq!(a.engine.counters().bypassed.load(Relaxed), 2);

    let dying = a.run(INSIDE, &[with_ttl(out.clone(), 1)]);
    assert_eq!((dying.len(), dying[0].0, dying[0].1[20]), (1, INSIDE, 11));
    a.change_network(|ports| ports[1].mtu = 1000);
    let told = a.run(INSIDE, &[with_fragment_field(out.clone(), DONT_FRAGMENT)]);
    assert_is_too_big(&told[0].1, &with_fragment_field(out.clone(), DONT_FRAGMENT), 1000);
    assert_eq!(a.run(INSIDE, &[out]).len(), 2, "fragmented when it may be");
}

#[test]
fn an_error_of_our_own_does_not_leave_in_clear_what_the_policy_protects() {
    // Clear text for UDP only: our ICMP error to the same host falls under the next policy, which protects.
    let any = AddressRange { first: address("0.0.0.0"), last: address("255.255.255.255") };
    let udp_only = Selector { local: any, remote: any, protocol: Some(17), upper: UpperSelector::Any };
    let the_rest = Selector { protocol: None, ..udp_only };
    for (rest, errors) in [(Action::Discard, 0), (Action::Bypass, 1)] {
        let policies =
            vec![policy("udp", vec![udp_only], Action::Bypass), policy("rest", vec![the_rest], rest)];
        let mut a = Gateway::new(Site::A, &Options { policies, ..Options::new() });
        let dying = with_ttl(udp(address("203.0.113.7"), Site::A.host(false), 10), 1);
        assert_eq!(a.run(OUTSIDE, &[dying]).len(), errors);
        assert_eq!(a.drops(), [(DropReason::TtlExceeded, 1)]);
    }
}

#[test]
fn an_unresolved_neighbour_is_named_and_nothing_else_differs() {
    let (mut a, mut b) = Gateway::pair(&Options::new());
    let unknown = address("10.2.0.77");
    let sealed = a.run_frames(vec![(INSIDE, frame(&udp(Site::A.host(false), unknown, 10)))]);
    let mut received = sealed[0].1.clone();
    let mut outputs = Vec::new();
    let mut burst = [Received { port: OUTSIDE, frame: &mut received }];
    b.engine.process(0, &mut burst);
    b.engine.transmit(|output| outputs.push((output.unresolved, output.frame[..14].to_vec())));
    let header = [&[0; 6][..], &[2, 0, 0, 0, 1, 1], &[8, 0]].concat();
    assert_eq!(outputs, [(Some(unknown), header)]);
}

#[test]
fn plaintext_is_decrypted_into_the_wrong_port_once_and_not_left_there() {
    let mut b = Gateway::new(Site::B, &Options::new());
    let options = Options::new();
    let mut peer = Peer::of(Site::B, &options);
    // A second inside port, which B's host is behind: the first guess is wrong.
    b.change_network(|ports| {
        let mut second = ports[0].clone();
        second.addresses.clear();
        ports.insert(0, second);
    });
    let inner = udp_ports(Site::A.host(false), Site::B.host(false), 1, 2, 200);
    let outside = PortId(2);
    let b_outside = |b: &mut Gateway, packet: Vec<u8>| b.engine.run(0, vec![(outside, frame(&packet))]);
    let first = b_outside(&mut b, peer.seal(1, 4, &inner));
    assert_eq!(first.len(), 1, "{:?}", b.drops());
    assert_eq!(unframe(&first[0].1), one_hop_on(&inner));
    let sent_frames = 1;
    let left = b.engine.frames.free().iter().filter(|free| contains(free, &inner[28..]));
    assert!(left.count() <= sent_frames, "only the frame that was sent may still hold it");
}

#[test]
fn plaintext_of_a_dropped_packet_is_wiped() {
    let options = Options::new();
    let inner = udp(Site::A.host(false), address("10.3.0.3"), 300);
    let mut peer = Peer::of(Site::B, &options);
    let mut forged = peer.seal(2, 4, &inner);
    *forged.last_mut().unwrap() ^= 1;
    for (sealed, reason) in
        [(peer.seal(1, 4, &inner), DropReason::SelectorMismatch), (forged, DropReason::IcvFailed)]
    {
        let mut b = Gateway::new(Site::B, &options);
        b.assert_drops(OUTSIDE, &sealed, reason);
        assert!(!b.engine.frames.free().is_empty());
        assert!(b.engine.frames.free().iter().all(|free| !contains(free, &inner[28..60])), "{reason:?}");
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
