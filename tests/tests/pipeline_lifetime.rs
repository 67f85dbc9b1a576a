//! Lifetimes: nothing passes beyond a hard limit, whatever group it is in; each expiry is told once; what was not
//! authenticated takes nothing from a lifetime.

use std::sync::atomic::Ordering::Relaxed;

use adit_engine::pipeline::DropReason;
use adit_engine::sa::OutboundSa;
use adit_engine::sa::lifetime::{Expiry, Limit, Limits, NONE};
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site};
use adit_tests::packet::udp;

const IPV4: u8 = 4;
const NO_NEXT_HEADER: u8 = 59;

fn limited(packets: (u64, u64), bytes: (u64, u64)) -> Options {
    let limit = |(soft, hard)| Limit { soft, hard };
    let limits = Limits { packets: limit(packets), bytes: limit(bytes) };
    Options { limits, ..Options::new() }
}

fn from_a(length: usize) -> Vec<u8> {
    udp(Site::A.host(false), Site::B.host(false), length)
}

fn outbound_sa(gateway: &Gateway) -> std::sync::Arc<OutboundSa> {
    gateway.tunnel.outbound.get().expect("an outbound SA")
}

fn drops_of(gateway: &Gateway) -> u64 {
    let drops = gateway.drops();
    assert!(drops.iter().all(|(reason, _)| *reason == DropReason::HardLifetime), "{drops:?}");
    drops.iter().map(|(_, count)| count).sum()
}

#[test]
fn packets_beyond_the_hard_limit_get_no_number() {
    for groups in [vec![64], vec![9, 1, 5], vec![10, 7], vec![1; 12], vec![6, 64, 64]] {
        let mut a = Gateway::new(Site::A, &limited((7, 10), (NONE, NONE)));
        let sa = outbound_sa(&a);
        let (mut sent, mut asked, mut news) = (0, 0, Vec::new());
        for group in &groups {
            let packets: Vec<_> = (0..*group).map(|n| from_a(n as usize)).collect();
            sent += a.run(INSIDE, &packets).len() as u64;
            asked += group;
            news.extend(sa.lifetime.news());
            assert_eq!(sa.lifetime.is_ending(), sent >= 7);
        }
        assert_eq!((sent, sa.last_sequence()), (10, 10), "{groups:?}");
        assert_eq!(sa.counters.packets.load(Relaxed), 10);
        assert_eq!(drops_of(&a), asked - 10);
        assert_eq!(news, [Expiry::Soft, Expiry::Hard], "each once");
    }
}

#[test]
fn a_packet_that_does_not_fit_into_the_bytes_ends_the_sa() {
    // 100 bytes of UDP are 128 of IP, and with header, IV, trailer and ICV 164 of ESP.
    let esp = 164;
    for (hard, fit) in [(3 * esp, 3), (3 * esp - 1, 2), (4 * esp - 1, 3), (esp - 1, 0)] {
        for groups in [vec![64], vec![1; 6], vec![2, 3]] {
            let mut a = Gateway::new(Site::A, &limited((NONE, NONE), (hard / 2, hard)));
            let mut sent = 0;
            for group in &groups {
                sent += a.run(INSIDE, &vec![from_a(100); *group]).len();
            }
            let sa = outbound_sa(&a);
            assert_eq!(sent, fit, "{hard} bytes, {groups:?}");
            assert_eq!(sa.counters.bytes.load(Relaxed), fit as u64 * esp);
            assert!(sa.lifetime.is_over());
            // A smaller one would fit: it is over all the same.
            assert_eq!(a.run(INSIDE, &[from_a(0)]).len(), 0);
            assert_eq!(drops_of(&a), groups.iter().sum::<usize>() as u64 - fit as u64 + 1);
        }
    }
}

#[test]
fn inbound_only_what_is_authentic_and_new_counts() {
    for together in [false, true] {
        let options = limited((3, 5), (NONE, NONE));
        let mut b = Gateway::new(Site::B, &options);
        let sa = b.inbound_sa();
        let mut peer = Peer::of(Site::B, &options);
        let mut packets = Vec::new();
        for number in 1..=7 {
            let good = peer.seal(number, IPV4, &from_a(100));
            let mut forged = peer.seal(number + 100, IPV4, &from_a(100));
            *forged.last_mut().unwrap() ^= 1;
            packets.extend([forged, good.clone(), good]);
        }
        // A dummy counts too (RFC 4303 section 2.6); here it is the fifth.
        packets[12..15].fill(peer.seal(5, NO_NEXT_HEADER, &[0; 64]));
        let sent = match together {
            true => b.run(OUTSIDE, &packets).len(),
            false => packets.iter().map(|packet| b.run(OUTSIDE, std::slice::from_ref(packet)).len()).sum(),
        };
        assert_eq!(sent, 4, "four and the dummy");
        assert!(sa.lifetime.is_over());
        assert_eq!(sa.lifetime.news().collect::<Vec<_>>(), [Expiry::Soft, Expiry::Hard]);
        let drops: std::collections::BTreeMap<_, _> =
            b.drops().into_iter().map(|(reason, count)| (reason.name(), count)).collect();
        assert_eq!(drops["dummy"], 1);
        assert!(drops["hard_lifetime"] >= 2, "{drops:?}");
        // Not even looked at.
        assert_eq!(b.run(OUTSIDE, &[peer.seal(50, IPV4, &from_a(100))]).len(), 0);
        assert!(sa.replay.right_edge() < 50);
    }
}

#[test]
fn inbound_bytes_are_those_of_esp() {
    let esp = 164;
    let options = limited((NONE, NONE), (2 * esp, 4 * esp + 7));
    let mut b = Gateway::new(Site::B, &options);
    let mut peer = Peer::of(Site::B, &options);
    let packets: Vec<_> = (1..=9).map(|number| peer.seal(number, IPV4, &from_a(100))).collect();
    assert_eq!(b.run(OUTSIDE, &packets[..1]).len(), 1);
    assert!(!b.inbound_sa().lifetime.is_ending());
    assert_eq!(b.run(OUTSIDE, &packets[1..]).len(), 3);
    assert_eq!(drops_of(&b), 5);
}

#[test]
fn an_sa_that_is_too_old_carries_nothing_either_way() {
    let seconds = Limit { soft: 60, hard: 80 };
    let (mut a, mut b) = Gateway::pair(&Options::new());
    let carried = |a: &mut Gateway, b: &mut Gateway| {
        let sealed: Vec<_> = a.run(INSIDE, &[from_a(100)]).into_iter().map(|(_, packet)| packet).collect();
        b.run(OUTSIDE, &sealed).len()
    };
    let (outbound, inbound) = (outbound_sa(&a), b.inbound_sa());
    for (age, passes) in [(0, true), (59, true), (60, true), (79, true), (80, false), (81, false)] {
        outbound.lifetime.aged(seconds, age);
        assert_eq!(carried(&mut a, &mut b), usize::from(passes), "{age} seconds");
        assert_eq!((outbound.lifetime.is_ending(), outbound.lifetime.is_over()), (age >= 60, age >= 80));
    }
    let mut peer = Peer::of(Site::B, &Options::new());
    inbound.lifetime.aged(seconds, 80);
    assert_eq!(b.run(OUTSIDE, &[peer.seal(9, IPV4, &from_a(1))]).len(), 0);
    assert_eq!((drops_of(&a), drops_of(&b)), (2, 1));
}
