//! Sequence numbers, replay and the life of an SA, through the whole pipeline.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::IvSource;
use adit_engine::offline::Engine;
use adit_engine::pipeline::{DropReason, Frames, Pipeline, Received, Results};
use adit_engine::route::PortId;
use adit_engine::sa::publish::Reader;
use adit_engine::sa::spec::Workers;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, SPI_TO_B, Site};
use adit_tests::packet::{frame, one_hop_on, udp, unframe};

fn inner(length: usize) -> Vec<u8> {
    udp(Site::A.host(false), Site::B.host(false), length)
}

#[test]
fn duplicates_in_one_burst_are_accepted_once() {
    let options = Options::new();
    let (mut b, mut peer) = (Gateway::new(Site::B, &options), Peer::of(Site::B, &options));
    let copies = vec![peer.seal(7, 4, &inner(50)); 64];
    assert_eq!(b.run(OUTSIDE, &copies).len(), 1);
    assert_eq!(b.drops(), [(DropReason::ReplayDuplicate, 63)]);
    assert_eq!(b.inbound_sa().counters.replayed.load(Relaxed), 63);
}

#[test]
fn forged_numbers_never_move_the_window() {
    let options = Options::new();
    let (mut b, mut peer) = (Gateway::new(Site::B, &options), Peer::of(Site::B, &options));
    let good: Vec<_> = (1..=32).map(|number| peer.seal(number, 4, &inner(50))).collect();
    let forged = |packet: &[u8], number: u32| {
        let mut packet = packet.to_vec();
        packet[24..28].copy_from_slice(&number.to_be_bytes());
        packet
    };
    // Forged and genuine in turn, in one burst.
    let mut burst = Vec::new();
    for (index, packet) in good.iter().enumerate() {
        burst.push(forged(packet, u32::MAX - index as u32));
        burst.push(packet.clone());
    }
    assert_eq!(b.run(OUTSIDE, &burst).len(), 32);
    assert_eq!(b.drops(), [(DropReason::IcvFailed, 32)]);
    let sa = b.inbound_sa();
    assert_eq!(sa.replay.right_edge(), 32);
    assert_eq!(sa.counters.icv_failed.load(Relaxed), 32);
}

#[test]
fn numbers_live_across_two_to_the_32_with_esn() {
    let last = u64::from(u32::MAX) - 10;
    let options = Options { esn: true, last_sequence: last, ..Options::new() };
    let (mut a, mut b) = Gateway::pair(&options);
    let packets: Vec<_> = (0..40).map(inner).collect();
    let mut sealed: Vec<_> = a.run(INSIDE, &packets).into_iter().map(|(_, packet)| packet).collect();
    let wire = |packet: &[u8]| u32::from_be_bytes(packet[24..28].try_into().unwrap());
    assert_eq!(wire(&sealed[0]), u32::MAX - 9);
    assert_eq!(wire(&sealed[39]), 29, "the low word wraps");
    // Out of order around the crossing.
    sealed.reverse();
    let opened = b.run(OUTSIDE, &sealed);
    assert_eq!(opened.len(), 40, "{:?}", b.drops());
    assert_eq!(b.inbound_sa().replay.right_edge(), last + 40);
    assert_eq!(b.run(OUTSIDE, &sealed), []);
    assert_eq!(b.drops(), [(DropReason::ReplayDuplicate, 40)]);
}

#[test]
fn the_last_numbers_go_to_the_first_packets_and_none_twice() {
    let options = Options { last_sequence: u64::from(u32::MAX) - 3, ..Options::new() };
    let (mut a, mut b) = Gateway::pair(&options);
    let packets: Vec<_> = (0..10).map(inner).collect();
    let sealed: Vec<_> = a.run(INSIDE, &packets).into_iter().map(|(_, packet)| packet).collect();
    assert_eq!(sealed.len(), 3);
    assert_eq!(a.drops(), [(DropReason::SequenceExhausted, 7)]);
    let opened = b.run(OUTSIDE, &sealed);
    let expected: Vec<_> =
        packets[..3].iter().map(|packet| (INSIDE, one_hop_on(&one_hop_on(packet)))).collect();
    assert_eq!(opened, expected);
}

#[test]
fn a_deleted_sa_is_gone_and_its_successor_carries_on() {
    let options = Options::new();
    let (mut a, mut b) = Gateway::pair(&options);
    let sealed: Vec<_> = (0..3).map(|_| a.run(INSIDE, &[inner(9)]).remove(0).1).collect();
    assert_eq!(b.run(OUTSIDE, &sealed[..1]).len(), 1);
    b.engine.tables.sad.remove(SPI_TO_B).expect("it was there");
    b.assert_drops(OUTSIDE, &sealed[1], DropReason::NoState);
    b.engine.tables.sad.insert(Arc::new(options.inbound(Site::B))).unwrap();
    assert_eq!(b.run(OUTSIDE, &sealed[2..]).len(), 1);

    a.tunnel.outbound.replace(None);
    a.assert_drops(INSIDE, &inner(9), DropReason::NoOutboundSa);
    a.tunnel.outbound.replace(Some(Arc::new(options.outbound(Site::A))));
    assert_eq!(a.run(INSIDE, &[inner(9)]).len(), 1);
}

#[test]
fn two_sas_in_one_burst_keep_their_order_each() {
    let options = Options::new();
    let other = Options { spi: Some(adit_engine::wire::Spi(0x2000)), ..options.clone() };
    let mut b = Gateway::new(Site::B, &options);
    b.engine.tables.sad.insert(Arc::new(other.inbound(Site::B))).unwrap();
    let (mut one, mut two) = (Peer::of(Site::B, &options), Peer::of(Site::B, &other));
    let mut burst = Vec::new();
    for number in 1..=20 {
        burst.push(one.seal(number, 4, &inner(number as usize)));
        burst.push(two.seal(number, 4, &inner(100 + number as usize)));
    }
    let lengths: Vec<_> = b.run(OUTSIDE, &burst).iter().map(|(_, packet)| packet.len() - 28).collect();
    let of = |range: std::ops::RangeInclusive<usize>| -> Vec<_> {
        lengths.iter().copied().filter(|length| range.contains(length)).collect()
    };
    assert_eq!(lengths.len(), 40);
    assert_eq!(of(1..=20), (1..=20).collect::<Vec<_>>());
    assert_eq!(of(101..=120), (101..=120).collect::<Vec<_>>());
}

/// Runs one burst on `engine`; what went out, and what was handed to whom.
fn burst(engine: &mut Engine, frames: &mut [Vec<u8>]) -> (Vec<Vec<u8>>, Vec<(usize, u32)>) {
    let mut burst: Vec<_> = frames.iter_mut().map(|frame| Received { port: INSIDE, frame }).collect();
    let mut sent = Vec::new();
    engine.process(0, &mut burst);
    engine.transmit(|output| sent.push(unframe(&output.frame[..output.length]).to_vec()));
    (sent, engine.take_handed_over().collect())
}

#[test]
fn one_worker_numbers_an_sa_and_the_others_hand_over_untouched() {
    let mut a = Gateway::new(Site::A, &Options::new());
    let mut second = Engine::new(Arc::clone(&a.engine.tables), 1, IvSource::from_seed([1; 32]));
    let packets: Vec<_> = (0..4).map(|length| frame(&inner(length))).collect();

    let (sent, handed) = burst(&mut a.engine, &mut packets.clone()[..1]);
    assert_eq!((sent.len(), handed.len()), (1, 0));
    let mut rest = packets[1..].to_vec();
    let (sent, handed) = burst(&mut second, &mut rest);
    assert_eq!(sent, Vec::<Vec<u8>>::new());
    assert_eq!(handed, [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(rest, packets[1..], "not touched");
    let (sent, handed) = burst(&mut a.engine, &mut rest);
    assert_eq!((sent.len(), handed.len()), (3, 0));
    assert_eq!(a.tunnel.outbound.get().unwrap().last_sequence(), 4);
}

/// Frames of a worker that has no queue left on any port; worker 0 has.
struct NoQueue;

impl Frames for NoQueue {
    type Frame = Box<[u8]>;

    fn take(&mut self, _: PortId, _: usize) -> Option<Box<[u8]>> {
        None
    }
    fn give_back(&mut self, _: PortId, _: Box<[u8]>) {
        unreachable!("none was taken")
    }
    fn instead(&self, _: PortId) -> Option<u32> {
        Some(0)
    }
}

#[test]
fn a_worker_that_cannot_transmit_passes_its_sa_on() {
    for workers in [Workers::One, Workers::Shared] {
        let options = Options { workers, ..Options::new() };
        let (mut a, mut b) = Gateway::pair(&options);
        let mut second = Engine::new(Arc::clone(&a.engine.tables), 1, IvSource::from_seed([1; 32]));
        let (mut sealed, _) = burst(&mut second, &mut [frame(&inner(1)), frame(&inner(2))]);
        assert_eq!(sealed.len(), 2, "worker 1 has the SA");

        // Its port came back with fewer queues.
        let mut pipeline = Pipeline::new(1, Arc::default(), IvSource::from_seed([2; 32]));
        let mut reader = Reader::register();
        let mut results = Results::new();
        let mut packets = [frame(&inner(3)), frame(&inner(4))];
        let before = packets.clone();
        let mut received: Vec<_> = packets.iter_mut().map(|frame| Received { port: INSIDE, frame }).collect();
        let tables = Arc::clone(&a.engine.tables);
        pipeline.process(&tables, &reader.pin(), 0, &mut received, &mut NoQueue, &mut results);
        assert_eq!((&results.hand_over[..], results.outputs.len()), (&[(0, 0), (1, 0)][..], 0));
        assert_eq!(packets, before, "not touched");

        let (sent, handed) = burst(&mut a.engine, &mut packets);
        assert_eq!((sent.len(), handed.len()), (2, 0), "worker 0 has it now");
        sealed.extend(sent);
        if workers == Workers::One {
            let (sent, handed) = burst(&mut second, &mut [frame(&inner(5))]);
            assert_eq!((sent.len(), &handed[..]), (0, &[(0, 0)][..]));
        }
        assert_eq!(a.tunnel.outbound.get().unwrap().last_sequence(), 4);
        assert_eq!(b.run(OUTSIDE, &sealed).len(), 4, "no number twice: {:?}", b.drops());
    }
}

#[test]
fn a_shared_sa_is_numbered_by_every_worker_without_repeating() {
    let options = Options { workers: Workers::Shared, ..Options::new() };
    let (mut a, mut b) = Gateway::pair(&options);
    let mut second = Engine::new(Arc::clone(&a.engine.tables), 1, IvSource::from_seed([1; 32]));
    let mut sealed = Vec::new();
    for _ in 0..5 {
        for engine in [&mut a.engine, &mut second] {
            let (sent, handed) = burst(engine, &mut [frame(&inner(1)), frame(&inner(2))]);
            assert_eq!(handed, []);
            sealed.extend(sent);
        }
    }
    assert_eq!(b.run(OUTSIDE, &sealed).len(), 20, "{:?}", b.drops());
}
