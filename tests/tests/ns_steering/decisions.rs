//! Every rule of the design, one frame each: the verdict and the counter.

use adit_engine::io::steering::{CoverPrefix, Hook, Outcome, SteeringTables, Verdict};
use adit_engine::policy::cover::Prefix;
use adit_engine::wire::Spi;

use super::frames::{AH, ESP, ICMPV6, Packet, UDP, esp, long_chain, udp};
use super::sandbox::{Place, Programs};
use Outcome::*;
use Place::*;

pub const KNOWN: u32 = 0xad17_0001;
pub const UNKNOWN: u32 = 0xad17_0002;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

const PROTECT: (bool, bool) = (true, false);
const DISCARD: (bool, bool) = (false, true);

pub fn prefix(text: &str, (protect, discard): (bool, bool)) -> CoverPrefix {
    let (network, length) = text.split_once('/').expect("ADDRESS/LENGTH");
    let prefix = Prefix { network: network.parse().unwrap(), length: length.parse().unwrap() };
    CoverPrefix { prefix, protect, discard, bypass: false }
}

fn tables(local: &[(&str, (bool, bool))], remote: &[(&str, (bool, bool))]) -> SteeringTables {
    let side =
        |list: &[(&str, (bool, bool))]| list.iter().map(|(text, actions)| prefix(text, *actions)).collect();
    SteeringTables { local: side(local), remote: side(remote), nat_ports: vec![4501] }
}

/// Two sites, a forbidden network, and a gateway with an address on each side.
fn gateway() -> Programs {
    configured(Programs::new())
}

/// The same with programs of the caller's.
pub fn configured(mut programs: Programs) -> Programs {
    let local = [("10.1.0.0/16", PROTECT), ("2001:db8:1::/48", PROTECT)];
    let remote = [
        ("10.2.0.0/16", PROTECT),
        ("10.3.0.0/16", DISCARD),
        ("2001:db8:2::/48", PROTECT),
        ("2001:db8:3::/48", DISCARD),
    ];
    programs.steering.set_cover(&tables(&local, &remote)).unwrap();
    let own = ["192.0.2.1", "10.1.0.1", "2001:db8:f::1", "2001:db8:1::1", "fe80::1"];
    programs.steering.set_own_addresses(&own.map(|address| address.parse().unwrap())).unwrap();
    programs.steering.set_spis([Spi(KNOWN)]).unwrap();
    programs.listen();
    programs
}

pub fn verdict_of(outcome: Outcome) -> Verdict {
    match outcome.name().split('_').next() {
        Some("pass") => Verdict::Pass,
        Some("engine") => Verdict::Redirect,
        Some("drop") => Verdict::Drop,
        _ if outcome.name().starts_with("guard_pass") => Verdict::Pass,
        _ => Verdict::Drop,
    }
}

#[track_caller]
fn expect(programs: &Programs, place: Place, packet: &Packet, outcome: Outcome) {
    assert_eq!(
        programs.outcome(place, &packet.frame()),
        (verdict_of(outcome), outcome),
        "{place:?} {packet:?}"
    );
}

/// The same addresses in both versions.
pub fn both(source: &str, destination: &str) -> [(String, String); 2] {
    let v6 = |address: &str| match address {
        "192.0.2.1" => "2001:db8:f::1".to_string(),
        "192.0.2.2" => "2001:db8:f::2".to_string(),
        "198.51.100.9" => "2001:db8:99::9".to_string(),
        inner => {
            let bytes: Vec<&str> = inner.split('.').collect();
            format!("2001:db8:{}::{}", bytes[1], bytes[3])
        }
    };
    [(source.into(), destination.into()), (v6(source), v6(destination))]
}

#[test]
fn what_is_not_ip_is_the_kernels() {
    let programs = gateway();
    let mut arp = Packet::tcp("10.1.0.2", "10.2.0.2").frame();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    for place in [FromInside, FromOutside] {
        assert_eq!(programs.outcome(place, &arp), (Verdict::Pass, PassNotIp));
    }
    for place in [ToOutside, ToInside] {
        assert_eq!(programs.outcome(place, &arp), (Verdict::Pass, GuardPass));
    }
    // A tagged one too.
    let mut tagged = Packet::tcp("10.1.0.2", "10.2.0.2").tags(&[VLAN]).frame();
    tagged[16..18].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(programs.outcome(FromInside, &tagged), (Verdict::Pass, PassNotIp));
}

#[test]
fn multicast_link_local_and_neighbour_discovery_are_the_kernels() {
    let programs = gateway();
    for destination in ["224.0.0.5", "239.255.255.255", "255.255.255.255", "169.254.7.7"] {
        for place in [FromInside, FromOutside] {
            expect(&programs, place, &Packet::udp("10.2.0.2", destination, (520, 520), b"hello"), PassLink);
        }
        expect(&programs, ToOutside, &Packet::udp("10.1.0.2", destination, (520, 520), b"hello"), GuardPass);
        expect(&programs, ToInside, &Packet::udp("10.2.0.2", destination, (520, 520), b"hello"), GuardPass);
    }
    for destination in ["ff02::1", "ff0e::5", "fe80::1", "febf::1"] {
        for place in [FromInside, FromOutside] {
            expect(
                &programs,
                place,
                &Packet::udp("2001:db8:2::2", destination, (520, 520), b"hello"),
                PassLink,
            );
        }
    }
    // Just beside those ranges.
    expect(&programs, FromInside, &Packet::tcp("10.1.0.2", "223.255.255.255"), PassOutside);
    expect(&programs, FromInside, &Packet::tcp("10.1.0.2", "255.255.255.254"), PassOutside);
    expect(&programs, FromInside, &Packet::tcp("2001:db8:1::2", "fec0::1"), PassOutside);
    expect(&programs, FromInside, &Packet::tcp("10.1.0.2", "169.253.0.1"), PassOutside);

    // Neighbour discovery, also where a policy means both ends; nothing but that, and only from this link.
    let solicitation = |kind: u8| {
        let body: Vec<u8> = [kind, 0].into_iter().chain([0; 22]).collect();
        Packet::new("2001:db8:2::2", "2001:db8:1::1", ICMPV6, body)
    };
    for kind in 133..=137 {
        expect(&programs, FromOutside, &solicitation(kind).hop_limit(255), PassLink);
        expect(&programs, FromOutside, &solicitation(kind).hop_limit(254), DropClearText);
    }
    expect(&programs, FromOutside, &solicitation(128).hop_limit(255), DropClearText);
    expect(&programs, FromOutside, &solicitation(138).hop_limit(255), DropClearText);
    expect(&programs, FromOutside, &solicitation(135).hop_limit(255).fragment(true, 0), DropClearText);
    // In transit it is a packet like any other: the kernel would forward it, whatever it carries.
    let transit = |from, to| Packet::new(from, to, ICMPV6, [135, 0, 0, 0]).hop_limit(255);
    for (inside, outside) in [("2001:db8:1::2", "2001:db8:2::2"), ("2001:db8:1::2", "2001:db8:3::2")] {
        expect(&programs, FromInside, &transit(inside, outside), EngineOutbound);
        expect(&programs, FromOutside, &transit(outside, inside), EngineInboundClear);
    }
    let leaving = Packet::new("2001:db8:1::1", "2001:db8:2::2", ICMPV6, [135, 0, 0, 0]);
    expect(&programs, ToOutside, &leaving.clone().hop_limit(255), GuardPass);
    expect(&programs, ToOutside, &leaving, GuardDropClearText);
}

#[test]
fn link_local_ipv4_that_a_selector_names_is_the_policys() {
    let mut programs = gateway();
    let named =
        tables(&[("169.254.10.0/30", PROTECT)], &[("169.254.20.0/30", PROTECT), ("0.0.0.0/0", DISCARD)]);
    programs.steering.set_cover(&named).unwrap();
    programs.steering.set_own_addresses(&["169.254.10.1".parse().unwrap()]).unwrap();
    expect(&programs, FromInside, &Packet::tcp("169.254.10.2", "169.254.20.1"), EngineOutbound);
    expect(&programs, FromOutside, &Packet::tcp("169.254.20.1", "169.254.10.2"), EngineInboundClear);
    expect(&programs, FromOutside, &Packet::tcp("169.254.20.1", "169.254.10.1"), DropClearText);
    expect(&programs, ToOutside, &Packet::tcp("169.254.10.1", "169.254.20.1"), GuardDropClearText);
    // Meant by "everything" only.
    expect(&programs, FromInside, &Packet::tcp("169.254.10.2", "169.254.30.1"), PassLink);
}

#[test]
fn one_packet_a_second_that_is_dropped_is_told_of() {
    let mut programs = gateway();
    let unknown = Packet::esp("192.0.2.2", "192.0.2.1", UNKNOWN);
    let clear = Packet::tcp("10.2.0.7", "10.1.0.1");
    // Neither uses up what the other may.
    for (packet, passed, dropped) in
        [(unknown, EngineEsp, DropUnknownSpi), (clear, EngineInboundClear, DropClearText)]
    {
        let frame = packet.frame();
        let (passed, dropped) = ((Verdict::Redirect, passed), (Verdict::Drop, dropped));
        let mut told = |on| {
            programs.steering.tell_of_drops(on).unwrap();
            let outcomes: Vec<_> = (0..200).map(|_| programs.outcome(FromOutside, &frame)).collect();
            assert!(outcomes.iter().all(|outcome| *outcome == passed || *outcome == dropped));
            outcomes.iter().filter(|outcome| **outcome == passed).count()
        };
        assert_eq!(told(false), 0);
        // By each processor that had some, and by the clock.
        assert!((1..100).contains(&told(true)));
    }
}

#[test]
fn esp_to_us_goes_by_its_spi() {
    let programs = gateway();
    for (peer, own) in both("192.0.2.2", "192.0.2.1") {
        for place in [FromInside, FromOutside] {
            expect(&programs, place, &Packet::esp(&peer, &own, KNOWN), EngineEsp);
            expect(&programs, place, &Packet::esp(&peer, &own, UNKNOWN), DropUnknownSpi);
            expect(&programs, place, &Packet::esp(&peer, &own, KNOWN.swap_bytes()), DropUnknownSpi);
            expect(&programs, place, &Packet::ah(&peer, &own, KNOWN), EngineEsp);
            expect(&programs, place, &Packet::ah(&peer, &own, UNKNOWN), DropUnknownSpi);
            expect(&programs, place, &Packet::new(&peer, &own, AH, [0; 24]), DropUnknownSpi);
            expect(
                &programs,
                place,
                &Packet::new(&peer, &own, AH, [6, 4, 0, 0, 0xad, 0x17, 0]),
                DropMalformed,
            );
            // The engine puts fragments together. The SPI is in the first one.
            for (more, offset) in [(true, 0), (true, 5), (false, 5)] {
                for packet in [Packet::esp(&peer, &own, KNOWN), Packet::ah(&peer, &own, KNOWN)] {
                    expect(&programs, place, &packet.fragment(more, offset), EngineFragment);
                }
            }
            expect(&programs, place, &Packet::esp(&peer, &own, UNKNOWN).fragment(true, 0), DropUnknownSpi);
            expect(&programs, place, &Packet::ah(&peer, &own, UNKNOWN).fragment(true, 0), DropUnknownSpi);
            expect(&programs, place, &Packet::esp(&peer, &own, UNKNOWN).fragment(false, 5), EngineFragment);
            expect(
                &programs,
                place,
                &Packet::new(&peer, &own, ESP, [0xad, 0x17]).fragment(true, 0),
                DropMalformed,
            );
            expect(
                &programs,
                place,
                &Packet::new(&peer, &own, ESP, [0xad]).fragment(false, 5),
                EngineFragment,
            );
            expect(&programs, place, &Packet::new(&peer, &own, ESP, [0xad, 0x17, 0]), DropMalformed);
        }
        // To somebody else it is traffic like any other.
        expect(&programs, FromOutside, &Packet::esp(&peer, &peer, UNKNOWN), PassOutside);
    }
    for (inside, behind) in both("10.1.0.2", "10.2.0.2") {
        expect(&programs, FromInside, &Packet::esp(&inside, &behind, UNKNOWN), EngineOutbound);
    }
    // An atomic fragment (RFC 6946) is whole.
    let atomic = Packet::esp("2001:db8:f::2", "2001:db8:f::1", KNOWN).fragment(false, 0);
    expect(&programs, FromOutside, &atomic, EngineEsp);
}

#[test]
fn options_and_extension_headers_hide_nothing() {
    let programs = gateway();
    for options in [4, 12, 40] {
        let known = Packet::esp("192.0.2.2", "192.0.2.1", KNOWN).options(options);
        expect(&programs, FromOutside, &known, EngineEsp);
        expect(
            &programs,
            FromOutside,
            &Packet::esp("192.0.2.2", "192.0.2.1", UNKNOWN).options(options),
            DropUnknownSpi,
        );
    }
    for (kind, length) in [(0, 2), (43, 3), (60, 9)] {
        let known = Packet::ah("2001:db8:f::2", "2001:db8:f::1", KNOWN).extensions(&[(kind, length)]);
        expect(&programs, FromOutside, &known, EngineEsp);
    }
    for headers in 1..=8 {
        let chain = long_chain(headers);
        let known = Packet::esp("2001:db8:f::2", "2001:db8:f::1", KNOWN).extensions(&chain);
        expect(&programs, FromOutside, &known, EngineEsp);
        expect(
            &programs,
            FromInside,
            &Packet::tcp("2001:db8:1::2", "2001:db8:2::2").extensions(&chain),
            EngineOutbound,
        );
    }
    for kind in [0, 43, 60, 135, 139, 140] {
        let known = Packet::esp("2001:db8:f::2", "2001:db8:f::1", KNOWN).extensions(&[(kind, 2)]);
        expect(&programs, FromOutside, &known, EngineEsp);
    }
    // A long first header, and a fragment header behind others.
    let far = Packet::esp("2001:db8:f::2", "2001:db8:f::1", KNOWN).extensions(&[(60, 100)]);
    expect(&programs, FromOutside, &far, EngineEsp);
    let fragment =
        Packet::esp("2001:db8:f::2", "2001:db8:f::1", KNOWN).extensions(&[(0, 0), (43, 1)]).fragment(true, 0);
    expect(&programs, FromOutside, &fragment, EngineFragment);
    // A later fragment only shows what its Fragment header says is next: that the engine has the first one decides.
    let behind_options = |spi, more, offset| {
        let esp = Packet::esp("2001:db8:f::3", "2001:db8:f::1", spi).payload;
        let options = [&[ESP, 0, 1, 4, 0, 0, 0, 0][..], &esp].concat();
        Packet::new("2001:db8:f::3", "2001:db8:f::1", 60, options).fragment(more, offset)
    };
    expect(&programs, FromOutside, &behind_options(KNOWN, false, 9), PassOwn);
    expect(&programs, FromOutside, &behind_options(UNKNOWN, true, 0), DropUnknownSpi);
    expect(&programs, FromOutside, &behind_options(KNOWN, false, 9), PassOwn);
    expect(&programs, FromOutside, &behind_options(KNOWN, true, 0), EngineFragment);
    expect(&programs, FromOutside, &behind_options(KNOWN, false, 9), EngineFragment);
    // Longer than we follow: dropped where the protocol decides, steered where the addresses do.
    let chain = long_chain(9);
    expect(
        &programs,
        FromOutside,
        &Packet::esp("2001:db8:f::2", "2001:db8:f::1", KNOWN).extensions(&chain),
        DropMalformed,
    );
    expect(
        &programs,
        FromOutside,
        &Packet::tcp("2001:db8:f::2", "2001:db8:f::1").extensions(&chain),
        DropMalformed,
    );
    expect(
        &programs,
        FromInside,
        &Packet::tcp("2001:db8:1::2", "2001:db8:2::2").extensions(&chain),
        EngineOutbound,
    );
    expect(
        &programs,
        FromInside,
        &Packet::tcp("2001:db8:1::2", "2001:db8:99::2").extensions(&chain),
        PassOutside,
    );
    // Not even ESP passes the guard behind a chain it cannot follow.
    expect(
        &programs,
        ToOutside,
        &Packet::esp("2001:db8:f::1", "2001:db8:2::2", 1).extensions(&chain),
        GuardDropClearText,
    );
}

#[test]
fn udp_4500_is_ike_by_its_marker_or_esp() {
    let programs = gateway();
    let esp_in_udp = |spi: u32| udp((4500, 4500), &esp(spi));
    let ike = [&[0u8; 4][..], &[7; 60]].concat();
    for (peer, own) in both("192.0.2.2", "192.0.2.1") {
        let packet = |payload: Vec<u8>| Packet::new(&peer, &own, UDP, payload);
        expect(&programs, FromOutside, &packet(udp((500, 500), b"ike")), PassIke);
        expect(&programs, FromOutside, &packet(udp((61000, 500), b"ike")), PassIke);
        expect(&programs, FromOutside, &packet(udp((4500, 4500), &ike)), PassIke);
        expect(&programs, FromOutside, &packet(udp((61000, 4500), &[0xff])), EngineEsp);
        expect(&programs, FromOutside, &packet(udp((4500, 4500), &[0xfe])), DropMalformed);
        expect(&programs, FromOutside, &packet(udp((4500, 4500), &[0, 0, 0])), DropMalformed);
        expect(&programs, FromOutside, &packet(udp((4500, 4500), &[])), DropMalformed);
        expect(&programs, FromOutside, &packet(esp_in_udp(KNOWN)), EngineEsp);
        expect(&programs, FromOutside, &packet(esp_in_udp(UNKNOWN)), DropUnknownSpi);
        // Another port that a tunnel uses, and the guard knows it too; and one that none does.
        expect(&programs, FromOutside, &packet(udp((61000, 4501), &esp(KNOWN))), EngineEsp);
        expect(&programs, FromOutside, &packet(udp((61000, 4501), &ike)), PassIke);
        expect(&programs, FromOutside, &packet(udp((61000, 4502), &esp(KNOWN))), PassOwn);
        // A later fragment has no ports: it goes where the first one went, and that is the kernel for what is not
        // ESP, or unknown.
        let later = packet(esp_in_udp(UNKNOWN)).fragment(false, 9);
        expect(&programs, FromOutside, &later, PassOwn);
        expect(&programs, FromOutside, &packet(udp((4500, 4500), &ike)).fragment(true, 0), PassIke);
        expect(&programs, FromOutside, &packet(esp_in_udp(UNKNOWN)).fragment(true, 0), DropUnknownSpi);
        expect(&programs, FromOutside, &packet(udp((7, 7), &esp(KNOWN))).fragment(true, 0), PassOwn);
        expect(&programs, FromOutside, &later, PassOwn);
        expect(&programs, FromOutside, &packet(esp_in_udp(KNOWN)).fragment(true, 0), EngineFragment);
        expect(&programs, FromOutside, &later, EngineFragment);
        let mut other = later.frame();
        // The lowest byte of the identification.
        let identification = if other[13] == 0 { 19 } else { 61 };
        other[identification] ^= 1;
        assert_eq!(programs.outcome(FromOutside, &other), (Verdict::Pass, PassOwn));
        // Only the destination port counts, and only here.
        expect(&programs, FromOutside, &packet(udp((4500, 53), &esp(KNOWN))), PassOwn);
        expect(&programs, FromOutside, &Packet::new(&peer, &peer, UDP, esp_in_udp(UNKNOWN)), PassOutside);
        // A UDP length that says less than the frame holds is what counts.
        let mut short = esp_in_udp(KNOWN);
        short[4..6].copy_from_slice(&10u16.to_be_bytes());
        expect(&programs, FromOutside, &packet(short), DropMalformed);
    }
}

#[test]
fn errors_about_our_own_esp_are_the_engines_and_all_others_the_kernels() {
    let programs = gateway();
    for (router, own) in both("192.0.2.2", "192.0.2.1") {
        let v6 = own.contains(':');
        let (icmp, kinds, others): (u8, &[u8], &[u8]) =
            if v6 { (ICMPV6, &[1, 2, 3, 4], &[0, 5, 128, 129]) } else { (1, &[3, 11, 12], &[0, 4, 5, 8]) };
        let error = |kind: u8, about: &Packet, most: usize| {
            let quote = about.frame()[14..].to_vec();
            let header = if v6 { 40 } else { 20 + about.options };
            let quote = &quote[..quote.len().min(header + most)];
            Packet::new(&router, &own, icmp, [&[kind, 0, 0, 0, 0, 0, 5, 0][..], quote].concat())
        };
        let esp_packet = |source: &str| Packet::esp(source, &router, UNKNOWN);
        let sent = esp_packet(&own);
        for &kind in kinds {
            expect(&programs, FromOutside, &error(kind, &sent, 8), EngineIcmp);
            expect(&programs, FromOutside, &error(kind, &Packet::ah(&own, &router, 7), 8), EngineIcmp);
        }
        for &kind in others {
            expect(&programs, FromOutside, &error(kind, &sent, 8), PassOwn);
        }
        let kind = kinds[1];
        expect(&programs, FromInside, &error(kind, &sent, 8), PassOwn);
        expect(&programs, FromOutside, &error(kind, &esp_packet(&router), 8), PassOwn);
        expect(&programs, FromOutside, &error(kind, &sent, 8).fragment(true, 0), PassOwn);
        expect(&programs, FromOutside, &error(kind, &Packet::tcp(&own, &router), 8), PassOwn);
        if v6 {
            expect(&programs, FromOutside, &error(kind, &sent.clone().fragment(true, 0), 16), EngineIcmp);
            let other = Packet::tcp(&own, &router).fragment(true, 0);
            expect(&programs, FromOutside, &error(kind, &other, 16), PassOwn);
        } else {
            expect(&programs, FromOutside, &error(kind, &sent.clone().options(12), 8), EngineIcmp);
        }
        // What it quotes of UDP must tell ESP from IKE.
        let in_udp = |port: u16, payload: &[u8]| Packet::new(&own, &router, UDP, udp((port, 4500), payload));
        expect(&programs, FromOutside, &error(kind, &in_udp(4500, &esp(7)), 12), EngineIcmp);
        expect(&programs, FromOutside, &error(kind, &in_udp(4500, &esp(7)), 8), PassOwn);
        expect(&programs, FromOutside, &error(kind, &in_udp(4501, &esp(7)), 12), EngineIcmp);
        expect(&programs, FromOutside, &error(kind, &in_udp(4502, &esp(7)), 12), PassOwn);
        expect(&programs, FromOutside, &error(kind, &in_udp(4500, &[0; 64]), 60), PassOwn);
        // Cut short anywhere, it is nobody's but the kernel's.
        let whole = error(kind, &sent, 8);
        let shortest = if v6 { 48 } else { 28 };
        for length in 0..whole.payload.len() {
            let cut = Packet::new(&router, &own, icmp, &whole.payload[..length]);
            let expected = if length < shortest { PassOwn } else { EngineIcmp };
            expect(&programs, FromOutside, &cut, expected);
        }
    }
    // An error to a host behind us crosses the boundary, and the policy has the say.
    let about = Packet::esp("10.1.0.2", "10.2.0.2", UNKNOWN).frame()[14..].to_vec();
    let error = Packet::new("10.2.0.9", "10.1.0.2", 1, [&[3, 4, 0, 0, 0, 0, 5, 0][..], &about].concat());
    expect(&programs, FromOutside, &error, EngineInboundClear);
}

#[test]
fn clear_text_to_us_that_the_policy_protects_is_dropped() {
    let programs = gateway();
    for (behind, own) in both("10.2.0.2", "10.1.0.1") {
        expect(&programs, FromOutside, &Packet::tcp(&behind, &own), DropClearText);
        // An inside host that claims to be behind the peer.
        expect(&programs, FromInside, &Packet::tcp(&behind, &own), DropClearText);
        for (more, offset) in [(true, 0), (true, 5), (false, 5)] {
            expect(&programs, FromOutside, &Packet::tcp(&behind, &own).fragment(more, offset), DropClearText);
        }
        // The negotiation is not what it negotiates.
        expect(&programs, FromOutside, &Packet::udp(&behind, &own, (500, 500), b"ike"), PassIke);
    }
    for (forbidden, own) in both("10.3.0.2", "10.1.0.1") {
        expect(&programs, FromOutside, &Packet::tcp(&forbidden, &own), DropClearText);
    }
    for (anybody, own) in both("198.51.100.9", "192.0.2.1") {
        expect(&programs, FromOutside, &Packet::tcp(&anybody, &own), PassOwn);
    }
    for (behind, own) in both("10.2.0.2", "192.0.2.1") {
        expect(&programs, FromOutside, &Packet::tcp(&behind, &own), PassOwn);
    }
    for (neighbour, own) in both("10.1.0.2", "10.1.0.1") {
        expect(&programs, FromInside, &Packet::tcp(&neighbour, &own), PassOwn);
    }
}

#[test]
fn a_gateway_is_reachable_from_inside_whatever_the_remote_prefixes() {
    for remote in [[("10.0.0.0/8", PROTECT)], [("0.0.0.0/0", PROTECT)]] {
        let mut programs = gateway();
        programs.steering.set_cover(&tables(&[("10.1.0.0/16", PROTECT)], &remote)).unwrap();
        expect(&programs, FromInside, &Packet::tcp("10.1.0.2", "10.1.0.1"), PassOwn);
        expect(&programs, FromInside, &Packet::tcp("10.1.0.2", "10.200.0.1"), EngineOutbound);
        // From outside the same packet is what a peer should have sent protected.
        expect(&programs, FromOutside, &Packet::tcp("10.1.0.2", "10.1.0.1"), DropClearText);
    }
}

/// BYPASS selectors are no cover; but under it they let the engine decide of clear text for us, and of nothing else.
#[test]
fn clear_text_to_us_that_a_bypass_may_mean_is_the_engines() {
    let mut programs = gateway();
    let bypass = |text| CoverPrefix { bypass: true, ..prefix(text, (false, false)) };
    let mut tables = tables(&[("10.1.0.0/16", PROTECT)], &[("10.2.0.0/16", PROTECT)]);
    tables.local.push(bypass("10.1.0.1/32"));
    tables.remote.extend(["10.2.0.7/32", "10.9.0.0/16"].map(bypass));
    programs.steering.set_cover(&tables).unwrap();
    for (from, to, place, outcome) in [
        ("10.2.0.7", "10.1.0.1", FromOutside, EngineInboundClear),
        ("10.2.0.8", "10.1.0.1", FromOutside, DropClearText),
        ("10.9.0.1", "10.1.0.1", FromOutside, PassOwn),
        ("10.2.0.7", "192.0.2.1", FromOutside, PassOwn),
        ("10.2.0.7", "10.1.0.2", FromOutside, EngineInboundClear),
        ("10.9.0.1", "10.1.0.2", FromOutside, PassOutside),
        ("10.2.0.7", "10.1.0.1", FromInside, DropClearText),
        ("10.1.0.2", "10.9.0.1", FromInside, PassOutside),
        ("10.1.0.1", "10.2.0.7", ToOutside, GuardDropClearText),
        ("10.1.0.1", "10.9.0.1", ToOutside, GuardPass),
    ] {
        expect(&programs, place, &Packet::tcp(from, to), outcome);
    }
}

#[test]
fn under_the_cover_the_engine_has_the_say() {
    let programs = gateway();
    for (inside, behind) in both("10.1.0.2", "10.2.0.2").into_iter().chain(both("10.1.0.2", "10.3.0.2")) {
        expect(&programs, FromInside, &Packet::tcp(&inside, &behind), EngineOutbound);
        expect(&programs, FromOutside, &Packet::tcp(&behind, &inside), EngineInboundClear);
        for (more, offset) in [(true, 0), (true, 5), (false, 5)] {
            expect(
                &programs,
                FromInside,
                &Packet::tcp(&inside, &behind).fragment(more, offset),
                EngineOutbound,
            );
            expect(
                &programs,
                FromOutside,
                &Packet::tcp(&behind, &inside).fragment(more, offset),
                EngineInboundClear,
            );
        }
        // IKE of others is no exception.
        expect(&programs, FromInside, &Packet::udp(&inside, &behind, (500, 500), b"ike"), EngineOutbound);
    }
    for (elsewhere, behind) in both("198.51.100.9", "10.2.0.2") {
        // Whatever the source claims, from inside the destination decides.
        expect(&programs, FromInside, &Packet::tcp(&elsewhere, &behind), EngineOutbound);
        expect(&programs, FromOutside, &Packet::tcp(&behind, &elsewhere), PassOutside);
    }
    for (inside, elsewhere) in both("10.1.0.2", "198.51.100.9") {
        expect(&programs, FromInside, &Packet::tcp(&inside, &elsewhere), PassOutside);
        expect(&programs, FromOutside, &Packet::tcp(&elsewhere, &inside), PassOutside);
    }
}

#[test]
fn tagged_frames_are_dropped_where_the_engine_would_have_them() {
    let programs = gateway();
    for tags in [&[VLAN][..], &[QINQ], &[QINQ, VLAN], &[VLAN, VLAN]] {
        for (inside, behind) in both("10.1.0.2", "10.2.0.2") {
            expect(&programs, FromInside, &Packet::tcp(&inside, &behind).tags(tags), DropVlan);
            expect(&programs, FromOutside, &Packet::tcp(&behind, &inside).tags(tags), DropVlan);
            expect(&programs, ToOutside, &Packet::tcp(&inside, &behind).tags(tags), GuardDropClearText);
        }
        for (peer, own) in both("192.0.2.2", "192.0.2.1") {
            expect(&programs, FromOutside, &Packet::esp(&peer, &own, KNOWN).tags(tags), DropVlan);
            expect(&programs, FromOutside, &Packet::esp(&peer, &own, UNKNOWN).tags(tags), DropUnknownSpi);
            expect(&programs, FromOutside, &Packet::tcp(&peer, &own).tags(tags), PassOwn);
        }
        for (inside, elsewhere) in both("10.1.0.2", "198.51.100.9") {
            expect(&programs, FromInside, &Packet::tcp(&inside, &elsewhere).tags(tags), PassOutside);
        }
    }
    // We do not look behind a third tag, so nothing behind one passes.
    let deep = Packet::tcp("10.1.0.2", "198.51.100.9").tags(&[QINQ, VLAN, VLAN]);
    expect(&programs, FromInside, &deep, DropVlan);
    expect(&programs, ToOutside, &deep, GuardDropMalformed);
}

#[test]
fn without_a_socket_the_engines_frames_are_dropped() {
    let mut programs = gateway();
    let covered = Packet::tcp("10.1.0.2", "10.2.0.2");
    expect(&programs, FromInside, &covered, EngineOutbound);
    programs.hang_up();
    expect(&programs, FromInside, &covered, DropNoSocket);
    expect(&programs, FromOutside, &Packet::tcp("10.2.0.2", "10.1.0.2"), DropNoSocket);
    expect(&programs, FromOutside, &Packet::esp("192.0.2.2", "192.0.2.1", KNOWN), DropNoSocket);
    expect(&programs, FromInside, &Packet::tcp("10.1.0.2", "198.51.100.9"), PassOutside);
    programs.hang_up();
}

#[test]
fn frames_cut_short_anywhere_are_never_the_kernels() {
    let programs = gateway();
    let chain = long_chain(3);
    let covered = [
        (FromInside, Packet::tcp("10.1.0.2", "10.2.0.2").options(8)),
        (FromOutside, Packet::tcp("10.2.0.2", "10.1.0.2").fragment(true, 0)),
        (FromOutside, Packet::tcp("10.2.0.2", "10.1.0.1")),
        (FromOutside, Packet::esp("192.0.2.2", "192.0.2.1", UNKNOWN)),
        (FromOutside, Packet::udp("192.0.2.2", "192.0.2.1", (4500, 4500), &esp(UNKNOWN))),
        (FromInside, Packet::tcp("2001:db8:1::2", "2001:db8:2::2").extensions(&chain)),
        (FromOutside, Packet::tcp("2001:db8:2::2", "2001:db8:1::1").extensions(&chain).fragment(true, 0)),
        (FromOutside, Packet::esp("2001:db8:f::2", "2001:db8:f::1", KNOWN).extensions(&chain)),
        (ToOutside, Packet::tcp("10.1.0.2", "10.2.0.2").options(8)),
        (ToOutside, Packet::tcp("2001:db8:1::2", "2001:db8:2::2").extensions(&chain)),
        (ToInside, Packet::tcp("10.2.0.2", "10.1.0.2").options(8)),
        (ToInside, Packet::tcp("2001:db8:2::2", "2001:db8:1::2").extensions(&chain)),
    ];
    let (mut tried, mut refused) = (0, 0);
    for (place, packet) in covered {
        for tags in [&[][..], &[VLAN], &[QINQ, VLAN]] {
            let frame = packet.clone().tags(tags).frame();
            for length in 14..=frame.len() {
                let (ifindex, hook) = programs.hook(place);
                match programs.steering.try_frame(ifindex, hook, &frame[..length]) {
                    Ok(verdict) => {
                        assert_ne!(verdict, Verdict::Pass, "{place:?} {length} of {packet:?} tags {tags:x?}")
                    }
                    // The test run makes no socket buffer without a whole IP header behind the Ethernet header.
                    Err(_) => {
                        assert!(hook != Hook::Arrival && length < 14 + 40, "{place:?} {length}");
                        refused += 1;
                    }
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 2000 && refused < 200, "{tried} {refused}");
}

#[test]
fn headers_that_contradict_themselves_are_dropped() {
    let programs = gateway();
    let good = Packet::tcp("10.1.0.2", "198.51.100.9").frame();
    for first_byte in [0x65, 0x05, 0x44, 0x40] {
        let mut bad = good.clone();
        bad[14] = first_byte;
        assert_eq!(programs.outcome(FromInside, &bad), (Verdict::Drop, DropMalformed), "{first_byte:#x}");
    }
    let mut bad = Packet::tcp("2001:db8:1::2", "2001:db8:99::9").frame();
    bad[14] = 0x45;
    assert_eq!(programs.outcome(FromInside, &bad), (Verdict::Drop, DropMalformed));
}

#[test]
fn jumbo_frames_of_several_buffers_are_steered() {
    let programs = gateway();
    let payload = vec![0x5a; 8946];
    expect(&programs, FromInside, &Packet::new("10.1.0.2", "10.2.0.2", 6, payload.clone()), EngineOutbound);
    expect(&programs, FromInside, &Packet::new("10.1.0.2", "198.51.100.9", 6, payload.clone()), PassOutside);
    let spi = [&KNOWN.to_be_bytes()[..], &payload].concat();
    expect(&programs, FromOutside, &Packet::new("192.0.2.2", "192.0.2.1", ESP, spi), EngineEsp);
}

#[test]
fn the_guard_holds_back_what_a_selector_names() {
    let programs = gateway();
    for (inside, behind) in both("10.1.0.2", "10.2.0.2") {
        expect(&programs, ToOutside, &Packet::tcp(&inside, &behind), GuardDropClearText);
        for (more, offset) in [(true, 0), (false, 5)] {
            expect(
                &programs,
                ToOutside,
                &Packet::tcp(&inside, &behind).fragment(more, offset),
                GuardDropClearText,
            );
        }
        // ESP and AH leave, whoever made them; IKE only if it is the gateway's.
        expect(&programs, ToOutside, &Packet::esp(&inside, &behind, UNKNOWN), GuardPassIpsec);
        expect(&programs, ToOutside, &Packet::new(&inside, &behind, AH, [0; 24]), GuardPassIpsec);
        expect(&programs, ToOutside, &Packet::udp(&inside, &behind, (500, 500), b"ike"), GuardDropClearText);
    }
    for (own, behind) in both("192.0.2.1", "10.2.0.2") {
        expect(&programs, ToOutside, &Packet::udp(&own, &behind, (4501, 61000), b"ike"), GuardPassIpsec);
        // Also after source NAT, and what the gateway itself says.
        expect(&programs, ToOutside, &Packet::tcp(&own, &behind), GuardDropClearText);
        expect(&programs, ToOutside, &Packet::udp(&own, &behind, (500, 500), b"ike"), GuardPassIpsec);
        expect(&programs, ToOutside, &Packet::udp(&own, &behind, (4500, 61000), b"ike"), GuardPassIpsec);
        expect(&programs, ToOutside, &Packet::udp(&own, &behind, (61000, 500), b"no"), GuardDropClearText);
        expect(
            &programs,
            ToOutside,
            &Packet::udp(&own, &behind, (500, 500), b"").fragment(false, 9),
            GuardDropClearText,
        );
    }
    for (inside, elsewhere) in
        both("10.1.0.2", "198.51.100.9").into_iter().chain(both("10.1.0.2", "10.3.0.2"))
    {
        expect(&programs, ToOutside, &Packet::tcp(&inside, &elsewhere), GuardPass);
    }
}

#[test]
fn the_guard_lets_the_gateway_live_under_a_policy_for_everything() {
    let mut programs = gateway();
    let local = [("10.1.0.0/16", PROTECT), ("2001:db8:1::/48", PROTECT)];
    let remote =
        [("0.0.0.0/0", PROTECT), ("::/0", PROTECT), ("10.2.0.0/16", PROTECT), ("2001:db8:2::/48", DISCARD)];
    programs.steering.set_cover(&tables(&local, &remote)).unwrap();
    for (inside, elsewhere) in both("10.1.0.2", "198.51.100.9") {
        expect(&programs, ToOutside, &Packet::tcp(&inside, &elsewhere), GuardDropClearText);
        expect(&programs, ToOutside, &Packet::esp(&inside, &elsewhere, UNKNOWN), GuardPassIpsec);
    }
    for (own, elsewhere) in both("192.0.2.1", "198.51.100.9") {
        expect(&programs, ToOutside, &Packet::tcp(&own, &elsewhere), GuardPass);
        expect(&programs, ToOutside, &Packet::udp(&own, &elsewhere, (500, 500), b"ike"), GuardPassIpsec);
    }
    // The gateway's inside address is one of those the policy means.
    expect(&programs, ToOutside, &Packet::tcp("10.1.0.1", "198.51.100.9"), GuardDropClearText);
    // Named beside "everything", a network stays named.
    expect(&programs, ToOutside, &Packet::tcp("192.0.2.1", "10.2.0.2"), GuardDropClearText);
    expect(&programs, ToOutside, &Packet::tcp("2001:db8:f::1", "2001:db8:2::2"), GuardPass);
    expect(&programs, ToOutside, &Packet::tcp("2001:db8:1::2", "2001:db8:2::2"), GuardDropClearText);
}

#[test]
fn the_guard_holds_back_what_came_in_past_the_engine() {
    let programs = gateway();
    for (behind, inside) in both("10.2.0.2", "10.1.0.2") {
        for place in [ToInside, OwnToInside] {
            expect(&programs, place, &Packet::tcp(&behind, &inside), GuardDropClearText);
            for (more, offset) in [(true, 0), (true, 5), (false, 5)] {
                let fragment = Packet::tcp(&behind, &inside).fragment(more, offset);
                expect(&programs, place, &fragment, GuardDropClearText);
            }
            for tags in [&[VLAN][..], &[QINQ, VLAN]] {
                let tagged = Packet::tcp(&behind, &inside).tags(tags);
                expect(&programs, place, &tagged, GuardDropClearText);
            }
            // Without a tunnel of ours around it, it is traffic like any other; so is IKE of others.
            expect(&programs, place, &Packet::esp(&behind, &inside, KNOWN), GuardDropClearText);
            let ike = Packet::udp(&behind, &inside, (500, 500), b"ike");
            expect(&programs, place, &ike, GuardDropClearText);
        }
    }
    // Outside either cover, the kernel's; and the guard is for PROTECT.
    let elsewhere = both("198.51.100.9", "10.1.0.2").into_iter().chain(both("10.2.0.2", "198.51.100.9"));
    for (source, destination) in elsewhere.chain(both("10.3.0.2", "10.1.0.2")) {
        expect(&programs, ToInside, &Packet::tcp(&source, &destination), GuardPass);
    }
    for (own, inside) in both("192.0.2.1", "10.1.0.2").into_iter().chain(both("10.1.0.1", "10.1.0.2")) {
        expect(&programs, OwnToInside, &Packet::tcp(&own, &inside), GuardPass);
    }
    let discovery = Packet::new("2001:db8:2::2", "2001:db8:1::2", ICMPV6, [135, 0, 0, 0]);
    expect(&programs, OwnToInside, &discovery.clone().hop_limit(255), GuardPass);
    expect(&programs, ToInside, &discovery, GuardDropClearText);
    let deep = Packet::tcp("198.51.100.9", "10.1.0.2").tags(&[QINQ, VLAN, VLAN]);
    expect(&programs, ToInside, &deep, GuardDropMalformed);
}

#[test]
fn the_guard_lets_the_gateway_answer_inside_whatever_the_remote_prefixes() {
    for remote in
        [[("10.0.0.0/8", PROTECT), ("2001:db8::/32", PROTECT)], [("0.0.0.0/0", PROTECT), ("::/0", PROTECT)]]
    {
        let mut programs = gateway();
        let local = [("10.1.0.0/16", PROTECT), ("2001:db8:1::/48", PROTECT)];
        programs.steering.set_cover(&tables(&local, &remote)).unwrap();
        for (own, inside) in both("10.1.0.1", "10.1.0.2") {
            for answer in [Packet::tcp(&own, &inside), Packet::udp(&own, &inside, (500, 500), b"ike")] {
                expect(&programs, OwnToInside, &answer, GuardPass);
                // Who borrows our address and is forwarded for it is not us.
                expect(&programs, ToInside, &answer, GuardDropClearText);
            }
        }
        for (anybody, inside) in both("10.77.0.9", "10.1.0.2") {
            expect(&programs, ToInside, &Packet::tcp(&anybody, &inside), GuardDropClearText);
        }
        expect(&programs, ToInside, &Packet::tcp("10.77.0.9", "10.5.0.2"), GuardPass);
    }
}

#[test]
fn a_cover_for_everything_leaves_arp_discovery_and_ike() {
    let mut programs = gateway();
    let everything = [("0.0.0.0/0", DISCARD), ("::/0", DISCARD)];
    programs.steering.set_cover(&tables(&everything, &everything)).unwrap();
    for (elsewhere, own) in both("198.51.100.9", "192.0.2.1") {
        expect(&programs, FromOutside, &Packet::tcp(&elsewhere, &own), DropClearText);
        expect(&programs, FromOutside, &Packet::udp(&elsewhere, &own, (500, 500), b"ike"), PassIke);
        expect(&programs, FromOutside, &Packet::esp(&elsewhere, &own, KNOWN), EngineEsp);
        expect(&programs, FromInside, &Packet::tcp(&elsewhere, &elsewhere), EngineOutbound);
        expect(&programs, FromOutside, &Packet::tcp(&elsewhere, &elsewhere), EngineInboundClear);
        // The guard is for PROTECT: what the gateway itself sends, nobody forbade.
        expect(&programs, ToOutside, &Packet::tcp(&own, &elsewhere), GuardPass);
        expect(&programs, OwnToInside, &Packet::tcp(&own, &elsewhere), GuardPass);
    }
}

#[test]
fn changes_take_effect_and_only_they() {
    let mut programs = gateway();
    let esp = Packet::esp("192.0.2.2", "192.0.2.1", UNKNOWN);
    expect(&programs, FromOutside, &esp, DropUnknownSpi);
    programs.steering.add_spi(Spi(UNKNOWN)).unwrap();
    programs.steering.add_spi(Spi(UNKNOWN)).unwrap();
    expect(&programs, FromOutside, &esp, EngineEsp);
    programs.steering.remove_spi(Spi(UNKNOWN)).unwrap();
    programs.steering.remove_spi(Spi(UNKNOWN)).unwrap();
    expect(&programs, FromOutside, &esp, DropUnknownSpi);
    expect(&programs, FromOutside, &Packet::esp("192.0.2.2", "192.0.2.1", KNOWN), EngineEsp);
    programs.steering.set_spis([Spi(UNKNOWN), Spi(7)]).unwrap();
    expect(&programs, FromOutside, &esp, EngineEsp);
    expect(&programs, FromOutside, &Packet::esp("192.0.2.2", "192.0.2.1", KNOWN), DropUnknownSpi);

    let moved = Packet::esp("192.0.2.2", "192.0.2.77", 7);
    expect(&programs, FromOutside, &moved, PassOutside);
    programs.steering.set_own_addresses(&["192.0.2.77".parse().unwrap()]).unwrap();
    expect(&programs, FromOutside, &moved, EngineEsp);
    expect(&programs, FromOutside, &esp, PassOutside);

    // A wider, then a narrower cover; then none.
    let far = Packet::tcp("10.1.0.2", "10.77.0.2");
    let near = Packet::tcp("10.1.0.2", "10.2.0.2");
    expect(&programs, FromInside, &far, PassOutside);
    programs.steering.set_cover(&tables(&[("10.1.0.0/16", PROTECT)], &[("10.0.0.0/8", PROTECT)])).unwrap();
    expect(&programs, FromInside, &far, EngineOutbound);
    expect(&programs, FromInside, &near, EngineOutbound);
    programs.steering.set_cover(&tables(&[("10.1.0.0/16", PROTECT)], &[("10.2.0.0/24", PROTECT)])).unwrap();
    expect(&programs, FromInside, &far, PassOutside);
    expect(&programs, FromInside, &near, EngineOutbound);
    programs.steering.set_cover(&SteeringTables::default()).unwrap();
    expect(&programs, FromInside, &near, PassOutside);
    expect(&programs, ToOutside, &near, GuardPass);
}
