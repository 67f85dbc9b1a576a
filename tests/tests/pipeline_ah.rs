//! AH through the whole pipeline, against a peer written a second time: both families, ESN, padding, and everything
//! that must be refused, each for its own reason.

use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::{Authentication, Encryption};
use adit_engine::pipeline::DropReason;
use adit_engine::sa::spec::Protocol;
use adit_engine::transform::ah::Padding;
use adit_engine::transform::tunnel::DontFragment;
use adit_tests::ah_peer::AhPeer;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, suite};
use adit_tests::packet::{
    DONT_FRAGMENT, MORE_FRAGMENTS, one_hop_on, udp, with_fragment_field, with_traffic_class, with_ttl,
};

const IPV4: u8 = 4;

const ALGORITHMS: [(Encryption, Authentication); 2] =
    [(Encryption::Null, Authentication::Sha256), (Encryption::Aes128Gmac, Authentication::None)];

fn options(padding: Padding, (encryption, authentication): (Encryption, Authentication)) -> Options {
    Options { protocol: Protocol::Ah(padding), ..Options::with_suite(suite(encryption, authentication)) }
}

fn peer(options: &Options) -> AhPeer {
    AhPeer::of(Site::B, options)
}

fn simple() -> Options {
    options(Padding::Rfc4302, ALGORITHMS[0])
}

fn inner(length: usize) -> Vec<u8> {
    udp(Site::A.host(false), Site::B.host(false), length)
}

fn gateway() -> Gateway {
    Gateway::new(Site::B, &simple())
}

/// Line 131 and the padding of Linux: every family, padding and number form, in both directions.
#[test]
fn both_ends_agree_with_a_peer_of_another_hand() {
    ALGORITHMS.into_iter().for_each(both_ends_agree_on);
}

fn both_ends_agree_on(algorithms: (Encryption, Authentication)) {
    for outer_ipv6 in [false, true] {
        for padding in [Padding::Rfc4302, Padding::Linux] {
            for (esn, last_sequence) in [(false, 0), (true, 0), (true, (3 << 32) - 5)] {
                let options = Options { outer_ipv6, esn, last_sequence, ..options(padding, algorithms) };
                let peer = peer(&options);
                let (mut a, mut b) = Gateway::pair(&options);
                for v6 in [false, true] {
                    let packets: Vec<_> = [0usize, 1, 64, 1200]
                        .map(|length| udp(Site::A.host(v6), Site::B.host(v6), length))
                        .to_vec();
                    let next_header = if v6 { 41 } else { 4 };
                    let signed = a.run(INSIDE, &packets);
                    let received: Vec<_> = packets.iter().map(|packet| one_hop_on(packet)).collect();
                    let first = if v6 { 5 } else { 1 };
                    for (index, ((_, signed), inner)) in signed.iter().zip(&received).enumerate() {
                        let number = last_sequence + first + index as u64;
                        let opened = peer.verify((number >> 32) as u32, signed);
                        assert_eq!(opened, Some((number, next_header, inner.clone())));
                    }
                    let signed: Vec<_> = signed.into_iter().map(|(_, packet)| packet).collect();
                    let forwarded: Vec<_> =
                        received.iter().map(|packet| (INSIDE, one_hop_on(packet))).collect();
                    assert_eq!(b.run(OUTSIDE, &signed), forwarded, "{:?}", b.drops());
                }
                assert_eq!(b.inbound_sa().counters.packets.load(Relaxed), 8);
                let number = last_sequence + 100;
                let ours = peer.sign(number, IPV4, &inner(30));
                assert_eq!(b.run(OUTSIDE, &[ours]), [(INSIDE, one_hop_on(&inner(30)))]);
            }
        }
    }
}

/// Lines 124 and 125: what routers change is not covered, all else is, the IV of GMAC with it.
#[test]
fn exactly_the_mutable_fields_are_not_covered() {
    ALGORITHMS.into_iter().for_each(exactly_these_are_not_covered_by);
}

fn exactly_these_are_not_covered_by(algorithms: (Encryption, Authentication)) {
    let options = options(Padding::Rfc4302, algorithms);
    let gateway = || Gateway::new(Site::B, &options);
    let signed = peer(&options).sign(9, IPV4, &inner(40));
    for changed in [with_ttl(signed.clone(), 3), with_traffic_class(signed.clone(), 0xb8)] {
        assert_eq!(gateway().run(OUTSIDE, &[changed]).len(), 1);
    }
    let flags = with_fragment_field(signed.clone(), DONT_FRAGMENT);
    assert_eq!(gateway().run(OUTSIDE, &[flags]).len(), 1);
    // Identification; then every byte of AH and of what it carries that can be read at all.
    let mut other = signed.clone();
    other[5] ^= 1;
    adit_tests::packet::fix_ipv4(&mut other);
    gateway().assert_drops(OUTSIDE, &other, DropReason::IcvFailed);
    for at in 20..signed.len() {
        // The header's own length and SPI lead elsewhere.
        if at == 21 || (24..28).contains(&at) {
            continue;
        }
        let mut forged = signed.clone();
        forged[at] ^= 0x10;
        gateway().assert_drops(OUTSIDE, &forged, DropReason::IcvFailed);
    }
}

#[test]
fn each_fault_has_its_reason() {
    let signed = peer(&simple()).sign(9, IPV4, &inner(40));
    let with = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = signed.clone();
        edit(&mut packet);
        let length = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&length);
        adit_tests::packet::fix_ipv4(&mut packet);
        packet
    };
    for (packet, reason) in [
        // Line 131: the header's length is not the SA's, either way, or beyond the packet.
        (with(&|packet| packet[21] = 4), DropReason::AhLength),
        (with(&|packet| packet[21] = 6), DropReason::AhLength),
        (with(&|packet| packet[21] = 0), DropReason::AhLength),
        (with(&|packet| packet[21] = 255), DropReason::AhLength),
        (with(&|packet| packet.truncate(20 + 27)), DropReason::AhLength),
        (with(&|packet| packet.truncate(20 + 11)), DropReason::AhLength),
        (with(&|packet| packet.truncate(20 + 28)), DropReason::IcvFailed),
        (with(&|packet| packet[27] ^= 1), DropReason::NoState),
        // A fragment, first or later.
        (with(&|packet| packet[6] = (MORE_FRAGMENTS >> 8) as u8), DropReason::EspFragment),
        (with(&|packet| packet[7] = 1), DropReason::EspFragment),
        // From or to somebody else.
        (with(&|packet| packet[15] ^= 1), DropReason::NoState),
        // ESP with the SPI of AH.
        (with(&|packet| packet[9] = 50), DropReason::NoState),
    ] {
        gateway().assert_drops(OUTSIDE, &packet, reason);
    }
    // AH with the SPI of ESP.
    let mut esp = Gateway::new(Site::B, &Options::with_suite(simple().suite));
    esp.assert_drops(OUTSIDE, &signed, DropReason::NoState);
    // Under a good ICV: not what a tunnel carries, a dummy, a version that contradicts itself, a foreign packet.
    let sign = |next_header, payload: &[u8]| peer(&simple()).sign(9, next_header, payload);
    let foreign = udp(Site::A.host(false), Site::A.host(false), 10);
    for (packet, reason) in [
        (sign(17, &inner(40)[20..]), DropReason::NextHeader),
        (sign(59, &[1, 2, 3]), DropReason::Dummy),
        (sign(41, &inner(40)), DropReason::InnerMalformed),
        (sign(4, &inner(40)[..30]), DropReason::InnerMalformed),
        (sign(4, &[]), DropReason::InnerMalformed),
        (sign(4, &foreign), DropReason::SelectorMismatch),
    ] {
        gateway().assert_drops(OUTSIDE, &packet, reason);
    }
    // RFC 4303 and RFC 4302 section 3.4.3, by one window.
    let mut b = gateway();
    assert_eq!(b.run(OUTSIDE, &[signed.clone(), signed.clone()]).len(), 1);
    assert_eq!(b.drops(), [(DropReason::ReplayDuplicate, 1)]);
    let options = Options { last_sequence: 5000, ..simple() };
    Gateway::new(Site::B, &options).assert_drops(OUTSIDE, &signed, DropReason::ReplayOld);
}

/// Line 123: the padding of Linux is another length, which an SA has by its own setting or not at all.
#[test]
fn padding_is_as_the_sa_says() {
    let linux = options(Padding::Linux, ALGORITHMS[0]);
    let padded = peer(&linux).sign(1, IPV4, &inner(9));
    gateway().assert_drops(OUTSIDE, &padded, DropReason::AhLength);
    let mut b = Gateway::new(Site::B, &linux);
    b.assert_drops(OUTSIDE, &peer(&simple()).sign(1, IPV4, &inner(9)), DropReason::AhLength);
    assert_eq!(b.run(OUTSIDE, &[padded]).len(), 1);
}

/// Options that AH cannot cover leave the group, and leave the others in it alone.
#[test]
fn malformed_options_harm_nobody_else() {
    let options = simple();
    let peer = peer(&options);
    let mut b = gateway();
    let packets: Vec<_> = (1..=9)
        .map(|number| {
            let mut packet = peer.sign(number, IPV4, &inner(40));
            if number % 3 == 0 {
                // A record route option that overruns.
                packet.splice(20..20, [7, 9, 4, 0]);
                packet[0] = 0x46;
                let length = (packet.len() as u16).to_be_bytes();
                packet[2..4].copy_from_slice(&length);
                packet[10..12].fill(0);
                let sum = adit_engine::wire::checksum::internet(&packet[..24]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            packet
        })
        .collect();
    assert_eq!(b.run(OUTSIDE, &packets).len(), 6);
    assert_eq!(b.drops(), [(DropReason::AhHeaders, 3)]);
    assert_eq!(b.inbound_sa().counters.refused.load(Relaxed), 3);
}

/// Line 48 for AH: the packet at the limit fits and one byte more is told so; fragments are signed one by one.
#[test]
fn sizes() {
    let options = Options { outside_mtu: 1400, ..simple() };
    let mut a = Gateway::new(Site::A, &options);
    // 1400 - 20 - 28.
    let dont_fragment = |length: usize| with_fragment_field(inner(length - 28), DONT_FRAGMENT);
    let signed = a.run(INSIDE, &[dont_fragment(1352)]);
    assert_eq!(signed[0].1.len(), 1400);
    let told = a.run(INSIDE, &[dont_fragment(1353)]);
    assert_eq!((told[0].0, told[0].1[20], told[0].1[21]), (INSIDE, 3, 4));
    assert_eq!(told[0].1[26..28], 1352u16.to_be_bytes());
    assert_eq!(a.drops(), [(DropReason::TooBig, 1)]);
    let options = Options { dont_fragment: DontFragment::Clear, ..options };
    let (mut a, mut b) = Gateway::pair(&options);
    let pieces: Vec<_> = a.run(INSIDE, &[inner(1450)]).into_iter().map(|(_, packet)| packet).collect();
    assert_eq!(pieces.len(), 2);
    assert!(pieces.iter().all(|piece| piece.len() <= 1400));
    assert_eq!(b.run(OUTSIDE, &pieces).len(), 2, "{:?}", b.drops());
}

/// A peer of ESP with the keys of AH is nobody.
#[test]
fn esp_is_not_ah() {
    let mut esp = Peer::of(Site::B, &Options::with_suite(simple().suite));
    gateway().assert_drops(OUTSIDE, &esp.seal(1, IPV4, &inner(30)), DropReason::NoState);
}
