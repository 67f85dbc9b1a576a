//! Rules of RFC 4301 and RFC 4303 that no other scenario is about.

use std::collections::HashSet;
use std::sync::Arc;

use adit_engine::crypto::{Authentication, Encryption};
use adit_engine::offline::HeapFrames;
use adit_engine::pipeline::{DropReason, Tables};
use adit_engine::policy::spd::Fallback;
use adit_engine::policy::{Action, Spd};
use adit_engine::route::{Port, Side};
use adit_engine::sa::selector::{Selector, Selectors};
use adit_engine::transform::tunnel::DontFragment;
use adit_engine::wire::Spi;
use adit_tests::memory::{
    Gateway, INSIDE, OUTSIDE, Options, Peer, SPI_TO_A, SPI_TO_B, Site, networks, policy, suite,
};
use adit_tests::packet::{fix_ipv4, frame, ip, one_hop_on, udp, udp_ports};

const IPV4: u8 = 4;
const ESP: u8 = 50;
const AH: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;

fn gateway() -> Gateway {
    Gateway::new(Site::B, &Options::new())
}

fn peer() -> Peer {
    Peer::of(Site::B, &Options::new())
}

fn inner(length: usize) -> Vec<u8> {
    udp(Site::A.host(false), Site::B.host(false), length)
}

/// RFC 4303 section 2.1: zero is for local use and never on the wire, 1 to 255 are reserved.
#[test]
fn spi_zero_is_nobodys() {
    for spi in 0..256 {
        let mut peer = peer();
        peer.spi = Spi(spi);
        gateway().assert_drops(OUTSIDE, &peer.seal(1, IPV4, &inner(40)), DropReason::NoState);
    }
}

/// A flow is what it is by where it comes from: whoever is outside may send what looks like one from inside, in the
/// same burst, before it and behind it, and the other way round.
#[test]
fn a_flow_from_the_other_side_is_another() {
    let ours = udp(Site::A.host(false), Site::B.host(false), 40);
    let theirs = udp(Site::B.host(false), Site::A.host(false), 40);
    let mut a = Gateway::new(Site::A, &Options::new());
    for _ in 0..3 {
        let (inside, outside) = ((INSIDE, frame(&ours)), (OUTSIDE, frame(&ours)));
        let burst = [&inside, &outside, &inside, &inside, &outside, &outside, &inside].map(Clone::clone);
        let sent = a.run_frames(burst.to_vec());
        assert!(sent.len() == 4 && sent.iter().all(|(port, _)| *port == OUTSIDE));
        // From A's own hosts to A's network: no policy means it; from outside, one does, and wants it protected.
        let (inside, outside) = ((INSIDE, frame(&theirs)), (OUTSIDE, frame(&theirs)));
        let burst = [&outside, &inside, &outside, &inside].map(Clone::clone);
        assert_eq!(a.run_frames(burst.to_vec()), []);
    }
    a.assert_balanced(0);
    let mut drops = a.drops();
    drops.sort_by_key(|(reason, _)| *reason as usize);
    let mut expected = vec![(DropReason::ClearText, 6), (DropReason::PolicyDiscard, 15)];
    expected.sort_by_key(|(reason, _)| *reason as usize);
    assert_eq!(drops, expected);
}

fn only_esp(site: Site) -> Vec<Selector> {
    networks(site).into_iter().map(|selector| Selector { protocol: Some(ESP), ..selector }).collect()
}

/// What a worker remembers of a flow is good for as long as it would be told the same: other policies, another picture
/// of the network and other selectors are heeded from the next burst on.
#[test]
fn what_is_known_of_a_flow_ends_with_what_it_was_told() {
    // Known after two packets, remembered from burst to burst.
    let pair = || {
        let (mut a, mut b) = Gateway::pair(&Options::new());
        let mut sealed = || -> Vec<_> {
            let sent = a.run(INSIDE, &vec![inner(40); 4]);
            sent.into_iter().map(|(port, packet)| (port == OUTSIDE).then_some(packet).unwrap()).collect()
        };
        let (first, second) = (sealed(), sealed());
        assert_eq!(b.run(OUTSIDE, &first).len(), 4);
        (a, b, second)
    };
    let forbidden = |gateway: &Gateway| {
        // In the place of the policy that protected them is one that protects something else.
        let tunnel = Action::Protect(Arc::clone(&gateway.tunnel));
        let other = policy("other", only_esp(gateway.site), tunnel);
        let never = policy("never", networks(gateway.site), Action::Discard);
        let spd = Spd::new(vec![other, never], Fallback::Kernel, 2);
        gateway.engine.tables.spd.replace(Some(Arc::new(spd)));
    };
    let change_inside = |gateway: &Gateway, change: fn(&mut Port)| {
        gateway.change_network(|ports| change(&mut ports[usize::from(INSIDE.0)]));
    };
    let narrowed = |gateway: &Gateway| {
        let other = Selectors::new(only_esp(gateway.site));
        gateway.inbound_sa().selectors.replace(Some(Arc::new(other)));
    };

    let (mut a, mut b, waiting) = pair();
    forbidden(&a);
    forbidden(&b);
    assert_eq!(
        (a.run(INSIDE, &vec![inner(40); 4]), a.drops()),
        (vec![], vec![(DropReason::PolicyDiscard, 4)])
    );
    assert_eq!((b.run(OUTSIDE, &waiting), b.drops()), (vec![], vec![(DropReason::PolicyMismatch, 4)]));

    let (mut a, mut b, waiting) = pair();
    change_inside(&a, |port| port.side = Side::Unprotected);
    change_inside(&b, |port| port.up = false);
    // From outside, no policy means what comes from A's own hosts.
    assert_eq!(
        (a.run(INSIDE, &vec![inner(40); 4]), a.drops()),
        (vec![], vec![(DropReason::PolicyDiscard, 4)])
    );
    assert_eq!((b.run(OUTSIDE, &waiting), b.drops()), (vec![], vec![(DropReason::LinkDown, 4)]));

    let (_, mut b, waiting) = pair();
    narrowed(&b);
    assert_eq!((b.run(OUTSIDE, &waiting), b.drops()), (vec![], vec![(DropReason::SelectorMismatch, 4)]));
}

/// RFC 4301 section 5.2 step 2: only what is addressed to us is ours to open, whoever's keys it is under.
#[test]
fn ipsec_for_others_is_traffic_like_any_other() {
    // From A's host to B's, under the key and the SPI of the gateways' own SA.
    let mut hosts = peer();
    (hosts.source, hosts.destination) = (Site::A.host(false), Site::B.host(false));
    let theirs = hosts.seal(1, IPV4, &inner(40));
    let mut b = gateway();
    b.assert_drops(OUTSIDE, &theirs, DropReason::ClearText);
    assert_eq!(b.inbound_sa().replay.right_edge(), 0, "not even looked at");

    // Let by in clear, it passes as it is.
    let esp = |selector| Selector { protocol: Some(ESP), ..selector };
    let clear = |site| {
        let selectors = networks(site).into_iter().map(esp).collect();
        let policies = vec![policy("their own", selectors, Action::Bypass)];
        Gateway::new(site, &Options { policies, ..Options::new() })
    };
    assert_eq!(clear(Site::B).run(OUTSIDE, std::slice::from_ref(&theirs)), [(INSIDE, one_hop_on(&theirs))]);

    // In a tunnel, it is what is inside.
    let (mut a, mut b) = Gateway::pair(&Options::new());
    let sealed: Vec<_> =
        a.run(INSIDE, std::slice::from_ref(&theirs)).into_iter().map(|(_, packet)| packet).collect();
    assert_eq!(sealed.len(), 1);
    assert_eq!(b.run(OUTSIDE, &sealed), [(INSIDE, one_hop_on(&one_hop_on(&theirs)))]);
}

/// RFC 4301 section 5.2 step 3b.
#[test]
fn no_sa_comes_of_a_packet() {
    let mut b = gateway();
    let (inbound, outbound) = (b.inbound_sa(), b.tunnel.outbound.get().unwrap());
    let (source, destination) = (Site::A.endpoint(false), Site::B.endpoint(false));
    let mut packets = vec![peer().seal(1, IPV4, &inner(40)), inner(40)];
    for spi in [0u32, 1, 256, SPI_TO_B.0 + 1, SPI_TO_A.0, u32::MAX] {
        let words = [spi.to_be_bytes(), 1u32.to_be_bytes()].concat();
        packets.push(ip(source, destination, ESP, &[&words[..], &[7; 64]].concat()));
        packets.push(ip(source, destination, AH, &[&[4, 4, 0, 0][..], &words, &[7; 64]].concat()));
    }
    for port in [500, 4500] {
        packets.push(udp_ports(source, destination, port, port, 200));
    }
    // Wanted, with nothing to send it by.
    b.run(OUTSIDE, &packets);
    b.run(INSIDE, &[udp(Site::B.host(false), Site::A.host(false), 9)]);
    let sas = b.engine.tables.sad.list();
    assert!(sas.len() == 1 && Arc::ptr_eq(&sas[0], &inbound));
    assert!(Arc::ptr_eq(&b.tunnel.outbound.get().unwrap(), &outbound));
    b.tunnel.outbound.replace(None);
    b.assert_drops(INSIDE, &udp(Site::B.host(false), Site::A.host(false), 9), DropReason::NoOutboundSa);
    assert!(b.tunnel.outbound.get().is_none());
}

/// RFC 6864 section 4.3: a source that may be fragmented does not repeat a value within the datagrams' lifetime; here
/// not within all the values there are.
#[test]
fn identifications_repeat_after_2_to_the_16_packets() {
    let options = Options { dont_fragment: DontFragment::Clear, ..Options::new() };
    let mut a = Gateway::new(Site::A, &options);
    let burst = vec![inner(0); 64];
    let mut seen = HashSet::new();
    for _ in 0..(1 << 16) / 64 {
        for (_, packet) in a.run(INSIDE, &burst) {
            assert!(seen.insert([packet[4], packet[5]]));
        }
    }
    assert_eq!(seen.len(), 1 << 16);
    assert!(!seen.insert({
        let (_, packet) = a.run(INSIDE, &burst[..1]).remove(0);
        [packet[4], packet[5]]
    }));
}

/// RFC 6864 section 4.3 asks it of all that goes between two addresses under one protocol: an SA's successor, whose numbers
/// begin at 1, and another tunnel go on.
#[test]
fn identifications_are_those_of_the_addresses_and_not_of_the_sa() {
    let options = Options { dont_fragment: DontFragment::Clear, ..Options::new() };
    let tables = Arc::new(Tables::new(options.reassembly, options.icmp));
    let other = Options { spi: Some(Spi(0x2000)), name: "other", ..options.clone() };
    let mut seen = HashSet::new();
    for options in [&options, &other, &options] {
        // Each with SAs of its own, from the first number on.
        let mut a = Gateway::over(Arc::clone(&tables), Site::A, options);
        for (_, packet) in a.run(INSIDE, &vec![inner(0); 100]) {
            assert_eq!(packet[6..8], [0, 0], "DF is clear");
            assert!(seen.insert([packet[4], packet[5]]));
        }
    }
    assert_eq!(seen.len(), 300);
}

/// RFC 4303 section 2.6: discarded "without prejudice", which its number is not.
#[test]
fn a_dummy_takes_its_number() {
    let (mut b, mut peer) = (gateway(), peer());
    let dummies: Vec<_> = (1..=1000).map(|number| peer.seal(number, NO_NEXT_HEADER, &[0x5a; 60])).collect();
    assert_eq!(b.run(OUTSIDE, &dummies), []);
    assert_eq!(b.drops(), [(DropReason::Dummy, 1000)]);
    assert_eq!(b.inbound_sa().replay.right_edge(), 1000);
    b.assert_drops(OUTSIDE, &peer.seal(1000, IPV4, &inner(40)), DropReason::ReplayDuplicate);
    assert_eq!(b.run(OUTSIDE, &[peer.seal(1001, IPV4, &inner(40))]).len(), 1);
}

/// RFC 4303 section 3.4.3 checks numbers right behind the SA's lookup. What is opened is opened into a frame: where there
/// is none, whatever drops for another reason cannot have come as far as the cryptography.
#[test]
fn replayed_and_unknown_packets_cost_no_cryptography() {
    let (mut b, mut peer) = (gateway(), peer());
    let latest = peer.seal(5000, IPV4, &inner(40));
    assert_eq!(b.run(OUTSIDE, std::slice::from_ref(&latest)).len(), 1);
    b.engine.frames = HeapFrames::new(0);
    b.assert_drops(OUTSIDE, &peer.seal(5001, IPV4, &inner(40)), DropReason::NoFrame);
    b.assert_drops(OUTSIDE, &latest, DropReason::ReplayDuplicate);
    b.assert_drops(OUTSIDE, &peer.seal(1, IPV4, &inner(40)), DropReason::ReplayOld);
    let mut zero = peer.seal(1, IPV4, &inner(40));
    zero[24..28].fill(0);
    b.assert_drops(OUTSIDE, &zero, DropReason::ReplayImpossible);
    let mut short = peer.seal(5002, IPV4, &inner(40))[..40].to_vec();
    short[2..4].copy_from_slice(&40u16.to_be_bytes());
    fix_ipv4(&mut short);
    b.assert_drops(OUTSIDE, &short, DropReason::EspTooShort);
    peer.spi = Spi(SPI_TO_B.0 + 1);
    b.assert_drops(OUTSIDE, &peer.seal(1, IPV4, &inner(40)), DropReason::NoState);
}

/// What we send comes back, from us or from the peer: no SA of ours opens it.
#[test]
fn an_outbound_spi_opens_nothing() {
    let mut b = gateway();
    let mut peer = peer();
    peer.spi = SPI_TO_A;
    b.assert_drops(OUTSIDE, &peer.seal(1, IPV4, &inner(40)), DropReason::NoState);
    let (_, mut reflected) = b.run(INSIDE, &[udp(Site::B.host(false), Site::A.host(false), 40)]).remove(0);
    let (source, destination) = (reflected[12..16].to_vec(), reflected[16..20].to_vec());
    reflected[12..16].copy_from_slice(&destination);
    reflected[16..20].copy_from_slice(&source);
    fix_ipv4(&mut reflected);
    b.assert_drops(OUTSIDE, &reflected, DropReason::NoState);
}

/// RFC 4868 section 2.3 has 128 bits; Linux before 2.6.33 sent 96.
#[test]
fn a_shorter_icv_than_agreed_is_none() {
    for (encryption, reason) in
        [(Encryption::Null, DropReason::IcvFailed), (Encryption::Aes128Cbc, DropReason::EspTooShort)]
    {
        let options = Options::with_suite(suite(encryption, Authentication::Sha256));
        let mut short = Peer::of(Site::B, &options).seal(1, IPV4, &inner(40));
        short.truncate(short.len() - 4);
        let length = (short.len() as u16).to_be_bytes();
        short[2..4].copy_from_slice(&length);
        fix_ipv4(&mut short);
        Gateway::new(Site::B, &options).assert_drops(OUTSIDE, &short, reason);
    }
}
