//! Traffic-flow confidentiality (RFC 4303 sections 2.6 and 2.7): what it looks like on the wire, judged by OpenSSL, and
//! what the peer makes of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use adit_engine::control::settings::TfcSettings;
use adit_engine::crypto::IvSource;
use adit_engine::offline::Engine;
use adit_engine::pipeline::DropReason;
use adit_engine::policy::tfc::{Dummies, Padding, When};
use adit_engine::sa::lifetime::{Limit, Limits};
use adit_engine::sa::spec::Workers;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Site};
use adit_tests::openssl;
use adit_tests::packet::{ip, one_hop_on, udp, unframe};

/// What a tunnel of AES-128-GCM carries over IPv4 at MTU 1500: 20 outer IP, 8 ESP, 8 IV, 16 ICV, 2 trailer.
const LARGEST: usize = 1446;
const NO_NEXT_HEADER: u8 = 59;

fn padded(padding: Padding) -> Options {
    Options { tfc: TfcSettings { padding, dummies: None }, ..Options::new() }
}

fn with_dummies(per_second: u32, sizes: std::ops::RangeInclusive<u16>, when: When) -> Options {
    let dummies = Some(Dummies { per_second, sizes, when });
    Options { tfc: TfcSettings { padding: Padding::Off, dummies }, ..Options::new() }
}

/// What `gateway` sends of its own accord at `now`, from the outer IP header on.
fn dummies(gateway: &mut Gateway, now: u64) -> Vec<Vec<u8>> {
    gateway.engine.send_dummies(now);
    let mut sent = Vec::new();
    gateway.engine.transmit(|output| {
        assert_eq!(output.port, OUTSIDE);
        sent.push(unframe(&output.frame[..output.length]).to_vec());
    });
    gateway.assert_balanced(0);
    sent
}

#[test]
fn padded_packets_are_of_few_sizes_and_come_out_as_they_went_in() {
    for (padding, unit) in [(Padding::Mtu, LARGEST), (Padding::Multiple(256), 256), (Padding::Multiple(7), 7)]
    {
        let options = padded(padding);
        let (mut a, mut b) = Gateway::pair(&options);
        let lengths = (0..200).map(|n| n * 7).chain([LARGEST - 28, LARGEST - 48]);
        let packets: Vec<_> = lengths
            .flat_map(|length| [false, true].map(|v6| (v6, length)))
            .filter(|(v6, length)| length + if *v6 { 48 } else { 28 } <= LARGEST)
            .map(|(v6, length)| udp(Site::A.host(v6), Site::B.host(v6), length))
            .collect();
        let sent = a.run(INSIDE, &packets);
        assert_eq!(sent.len(), packets.len());
        let esp: Vec<&[u8]> = sent.iter().map(|(_, packet)| &packet[20..]).collect();
        for ((opened, packet), (_, whole)) in
            openssl::open(&options.keys.0, &esp).iter().zip(&packets).zip(&sent)
        {
            let expected = packet.len().next_multiple_of(unit).min(LARGEST);
            assert_eq!(opened.payload.len(), expected, "{padding:?} of {}", packet.len());
            assert_eq!(opened.payload[..packet.len()], one_hop_on(packet));
            assert!(opened.payload[packet.len()..].iter().all(|&byte| byte == 0), "nobody else's bytes");
            assert!(whole.len() <= 1500);
        }
        let bytes: u64 = esp.iter().map(|esp| esp.len() as u64).sum();
        assert_eq!(
            a.tunnel.outbound.get().unwrap().counters.bytes.load(Relaxed),
            bytes,
            "lifetimes count it all"
        );
        let sent: Vec<_> = sent.into_iter().map(|(_, packet)| packet).collect();
        let opened: Vec<_> = b.run(OUTSIDE, &sent).into_iter().map(|(_, packet)| packet).collect();
        let expected: Vec<_> = packets.iter().map(|packet| one_hop_on(&one_hop_on(packet))).collect();
        assert_eq!(opened, expected);
        assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
    }
}

#[test]
fn fragments_before_encryption_are_padded_too() {
    let options = padded(Padding::Mtu);
    let (mut a, mut b) = Gateway::pair(&options);
    // A small one on either side of it, which shares its room.
    let sized = |length| udp(Site::A.host(false), Site::B.host(false), length);
    let sent = a.run(INSIDE, &[sized(10), sized(3000), sized(20)]);
    let sizes: BTreeSet<_> = sent.iter().map(|(_, packet)| packet.len()).collect();
    assert_eq!((sent.len(), sizes.len()), (5, 1), "{sizes:?}");
    let sent: Vec<_> = sent.into_iter().map(|(_, packet)| packet).collect();
    let opened = b.run(OUTSIDE, &sent);
    let total: usize = opened.iter().map(|(_, packet)| packet.len() - 20).sum();
    assert_eq!(total, 18 + 3008 + 28, "every byte, and no padding");
    assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
}

#[test]
fn dummies_are_numbered_random_and_dropped_without_prejudice() {
    let options = with_dummies(500, 1..=1000, When::Always);
    let (mut a, mut b) = Gateway::pair(&options);
    let sent: Vec<_> = (1000..3000).flat_map(|now| dummies(&mut a, now)).collect();
    assert!((999..=1001).contains(&sent.len()), "{}", sent.len());
    let esp: Vec<&[u8]> = sent.iter().map(|packet| &packet[20..]).collect();
    let opened = openssl::open(&options.keys.0, &esp);
    assert!(opened.iter().all(|dummy| dummy.next_header == NO_NEXT_HEADER));
    let sizes: BTreeSet<_> = opened.iter().map(|dummy| dummy.payload.len()).collect();
    assert!(*sizes.first().unwrap() >= 1 && *sizes.last().unwrap() <= 1000 && sizes.len() > 400, "{sizes:?}");
    let (ones, all) = opened
        .iter()
        .flat_map(|dummy| &dummy.payload)
        .fold((0, 0), |(ones, all), byte| (ones + u64::from(byte.count_ones()), all + 8));
    assert!((ones as f64 / all as f64 - 0.5).abs() < 0.01, "{ones} ones of {all} bits");
    let numbers: Vec<_> = esp.iter().map(|esp| u32::from_be_bytes(esp[4..8].try_into().unwrap())).collect();
    assert!(numbers.iter().copied().eq(1..=sent.len() as u32));
    let counters = a.engine.counters();
    assert_eq!(
        (counters.originated.load(Relaxed), counters.sealed.load(Relaxed)),
        (sent.len() as u64, sent.len() as u64)
    );

    assert_eq!(b.run(OUTSIDE, &sent), []);
    assert_eq!(b.drops(), [(DropReason::Dummy, sent.len() as u64)]);
    assert_eq!(b.inbound_sa().replay.right_edge(), sent.len() as u64);
    b.run(OUTSIDE, &sent[..1]);
    assert!(
        b.drops()
            .iter()
            .any(|(reason, _)| *reason == DropReason::ReplayDuplicate || *reason == DropReason::ReplayOld)
    );
}

#[test]
fn dummies_look_like_padded_packets_and_give_way_when_idle() {
    let mut options = with_dummies(100, 1..=u16::MAX, When::Idle);
    options.tfc.padding = Padding::Mtu;
    let mut a = Gateway::new(Site::A, &options);
    assert_eq!(dummies(&mut a, 1000).len(), 1);
    let own = a.run(INSIDE, &vec![udp(Site::A.host(false), Site::B.host(false), 64); 8]);
    let sent = dummies(&mut a, 1100);
    assert_eq!(sent.len(), 2, "ten are due, eight were real");
    assert!(
        sent.iter().chain(own.iter().map(|(_, packet)| packet)).all(|packet| packet.len() == sent[0].len())
    );
    assert_eq!(dummies(&mut a, 1200).len(), 10);
    assert_eq!(a.engine.send_dummies(1205), 1210, "when the next one is due");
    // Nobody asked for any here.
    let mut quiet = Gateway::new(Site::A, &Options::new());
    assert_eq!((dummies(&mut quiet, 5000), quiet.engine.send_dummies(5000)), (vec![], 6000));
}

#[test]
fn dummies_end_with_their_sa_and_are_its_owners() {
    let mut options = with_dummies(1000, 10..=10, When::Always);
    options.limits = Limits { packets: Limit { soft: 10, hard: 15 }, ..Limits::default() };
    let mut a = Gateway::new(Site::A, &options);
    let sent: usize = (1000..1100).map(|now| dummies(&mut a, now).len()).sum();
    assert_eq!(sent, 15);
    let own = udp(Site::A.host(false), Site::B.host(false), 64);
    a.assert_drops(INSIDE, &own, DropReason::HardLifetime);

    // A lease that is used up: dropped by name, each counted as originated.
    let mut options = with_dummies(1000, 10..=10, When::Always);
    options.leased = Some(Arc::default());
    let mut a = Gateway::new(Site::A, &options);
    a.tunnel.outbound.get().unwrap().lease.as_ref().unwrap().raise(4, 0);
    let sent: usize = (1000..1010).map(|now| dummies(&mut a, now).len()).sum();
    assert_eq!((sent, a.drops()), (4, vec![(DropReason::LeaseExhausted, 6)]));

    // The other worker numbers this SA.
    let options = Options { workers: Workers::One, ..with_dummies(1000, 10..=10, When::Always) };
    let mut a = Gateway::new(Site::A, &options);
    assert_eq!(dummies(&mut a, 1000).len(), 1);
    let mut other = Engine::new(a.engine.tables.clone(), 1, IvSource::from_seed([8; 32]));
    other.send_dummies(2000);
    other.transmit(|_| panic!("not its SA"));
    assert_eq!(dummies(&mut a, 2000).len(), 32, "what a pass makes up for");
}

/// Made by OpenSSL: padding of any content behind the packet inside, and dummies of any size.
#[test]
fn a_foreign_peers_padding_is_cut_off_and_its_dummies_are_dropped() {
    let options = Options::new();
    let mut b = Gateway::new(Site::B, &options);
    let spi = b.inbound_sa().spec.sa.spi.0;
    let mut to_seal: Vec<openssl::ToSeal> = Vec::new();
    let mut expected = Vec::new();
    for (number, padding) in (1..).zip([0, 1, 2, 3, 255, 256, 700, 1000]) {
        let v6 = number % 2 == 0;
        let inner = udp(Site::A.host(v6), Site::B.host(v6), 100);
        expected.push(one_hop_on(&inner));
        let payload = [inner, (0..padding).map(|byte| byte as u8 ^ 0xa5).collect()].concat();
        to_seal.push((spi, number, if v6 { 41 } else { 4 }, payload));
    }
    let first_dummy = to_seal.len() as u32 + 1;
    let sizes = [0, 1, 2, 3, 20, 40, 1000, 1400];
    for (number, size) in (first_dummy..).zip(sizes) {
        to_seal.push((spi, number, NO_NEXT_HEADER, vec![0x45; size]));
    }
    let (from, to) = (options.endpoint(Site::A), options.endpoint(Site::B));
    let packets: Vec<_> =
        openssl::seal(&options.keys.0, &to_seal).iter().map(|esp| ip(from, to, 50, esp)).collect();
    let opened: Vec<_> = b.run(OUTSIDE, &packets).into_iter().map(|(_, packet)| packet).collect();
    assert_eq!(opened, expected);
    assert_eq!(b.drops(), [(DropReason::Dummy, sizes.len() as u64)]);
    assert_eq!(b.inbound_sa().replay.right_edge(), to_seal.len() as u64);
}
