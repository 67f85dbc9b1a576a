//! Every way that fragments can come, against a reassembler that keeps all of them and looks again each time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::wire::ip;

const PORT: PortId = PortId(3);
const LIMITS: Limits = Limits { memory: 1 << 20, per_source: 8, fragments: 16, timeout: 100 };

/// A fragment, byte by byte as RFC 791 and RFC 8200 have it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sent {
    v6: bool,
    source: u8,
    identification: u16,
    offset: usize,
    more: bool,
    payload: Vec<u8>,
    ecn: u8,
}

impl Sent {
    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2; 12];
        let field = (self.offset / 8) as u16;
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60, self.ecn << 4, 0, 0]);
            frame.extend(((16 + self.payload.len()) as u16).to_be_bytes());
            // Destination options in front of the Fragment header.
            frame.extend([60, 64]);
            frame.extend([&[0x20; 15][..], &[self.source], &[0x21; 16]].concat());
            frame.extend([44, 0, 1, 4, 0, 0, 0, 0]);
            frame.extend([50, 0]);
            frame.extend((field << 3 | u16::from(self.more)).to_be_bytes());
            frame.extend(u32::from(self.identification).to_be_bytes());
        } else {
            frame.extend([8, 0, 0x45, self.ecn]);
            frame.extend(((20 + self.payload.len()) as u16).to_be_bytes());
            frame.extend(self.identification.to_be_bytes());
            frame.extend((field | u16::from(self.more) << 13).to_be_bytes());
            frame.extend([64, 50, 0, 0, 10, 0, 0, self.source, 192, 0, 2, 1]);
            let sum = checksum::internet(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame.extend(&self.payload);
        frame
    }

    /// What the whole datagram must look like.
    fn whole(&self, payload: &[u8], ecn: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60, ecn << 4, 0, 0]);
            frame.extend(((8 + payload.len()) as u16).to_be_bytes());
            frame.extend([60, 64]);
            frame.extend([&[0x20; 15][..], &[self.source], &[0x21; 16]].concat());
            frame.extend([50, 0, 1, 4, 0, 0, 0, 0]);
        } else {
            frame.extend([8, 0, 0x45, ecn]);
            frame.extend(((20 + payload.len()) as u16).to_be_bytes());
            frame.extend(self.identification.to_be_bytes());
            frame.extend([0, 0, 64, 50, 0, 0, 10, 0, 0, self.source, 192, 0, 2, 1]);
            let sum = checksum::internet(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame.extend(payload);
        frame
    }
}

/// A reassembler with its books.
struct Bench {
    reassembler: Reassembler,
    /// The tunnel that fragments come out of from now on.
    outer: Option<Arc<str>>,
    taken: usize,
    merged: usize,
    lost: BTreeMap<&'static str, usize>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let reassembler = Reassembler::new(limits);
        Self { reassembler, outer: None, taken: 0, merged: 0, lost: BTreeMap::new() }
    }

    fn take(&mut self, now: u64, frame: &[u8]) -> Option<Vec<u8>> {
        let packet = ip::parse(&frame[HEADER_LENGTH..]).expect("a packet");
        let (mut out, books) = (vec![0xee; 3], &mut self.lost);
        let mut lost = |lost: Lost<'_>| *books.entry(lost.reason.name()).or_default() += lost.fragments;
        self.taken += 1;
        let arrival = Arrival { port: PORT, outer: self.outer.clone() };
        let whole = self.reassembler.take(now, arrival, frame, &packet, &mut out, &mut lost);
        self.merged += whole.map_or(0, |whole| whole.fragments);
        self.balance();
        whole.map(|whole| {
            assert_eq!(whole.port, PORT);
            out
        })
    }

    fn expire(&mut self, now: u64) {
        let books = &mut self.lost;
        let mut lost = |lost: Lost<'_>| *books.entry(lost.reason.name()).or_default() += lost.fragments;
        self.reassembler.expire(now, &mut lost);
        self.balance();
    }

    /// Nothing is lost without a reason, and the memory is what the datagrams have.
    fn balance(&self) {
        let lost: usize = self.lost.values().sum();
        let Reassembler { held, memory, datagrams, sources, limits, .. } = &self.reassembler;
        assert_eq!(self.taken, self.merged + lost + held, "{:?}", self.lost);
        let all = || sources.values().flatten();
        assert_eq!(*memory, all().map(Datagram::cost).sum::<usize>());
        assert_eq!(*datagrams, all().count());
        assert_eq!(*held, all().map(|datagram| datagram.pieces.len()).sum::<usize>());
        assert!(*memory <= limits.memory, "{memory}");
        assert!(sources.values().all(|queue| !queue.is_empty() && queue.len() <= limits.per_source));
    }
}

fn sent(offset: usize, more: bool, payload: &[u8]) -> Sent {
    Sent { v6: false, source: 1, identification: 7, offset, more, payload: payload.into(), ecn: 0 }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 / 4) as u8).collect()
}

/// `payload` cut at `cuts` (in eights).
fn cut(template: &Sent, payload: &[u8], cuts: &[usize]) -> Vec<Sent> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut * 8).filter(|cut| *cut < payload.len()).collect();
    at.extend([0, payload.len()]);
    at.sort_unstable();
    at.dedup();
    at.windows(2)
        .map(|pair| Sent {
            offset: pair[0],
            more: pair[1] < payload.len(),
            payload: payload[pair[0]..pair[1]].into(),
            ..template.clone()
        })
        .collect()
}

/// The definition: all fragments of a datagram so far, in the order they came; what the next one leads to.
#[derive(Default)]
struct Naive {
    fragments: Vec<Sent>,
    refused: Option<&'static str>,
}

enum Next {
    Held,
    Lost(&'static str, usize),
    Whole(Vec<u8>),
}

impl Naive {
    fn take(&mut self, next: &Sent) -> Next {
        if next.payload.is_empty() || next.more && !next.payload.len().is_multiple_of(8) {
            return Next::Lost("reassembly_invalid", 1);
        }
        if let Some(refused) = self.refused {
            return Next::Lost(refused, 1);
        }
        let range = |sent: &Sent| sent.offset..sent.offset + sent.payload.len();
        if self.fragments.iter().any(|known| {
            (range(known), known.more, &known.payload) == (range(next), next.more, &next.payload)
        }) {
            return Next::Lost("reassembly_duplicate", 1);
        }
        let mut seen = BTreeMap::new();
        let mut contradiction = false;
        let all = || self.fragments.iter().chain([next]);
        for sent in all() {
            for (at, byte) in range(sent).zip(&sent.payload) {
                contradiction |= seen.insert(at, *byte).is_some();
            }
        }
        let end = all().filter(|sent| !sent.more).map(|sent| range(sent).end).max();
        contradiction |= all().filter(|sent| !sent.more).count() > 1;
        contradiction |= end.is_some_and(|end| seen.keys().last() >= Some(&end));
        if contradiction {
            self.refused = Some("reassembly_overlap");
            return Next::Lost("reassembly_overlap", self.fragments.drain(..).count() + 1);
        }
        if self.fragments.len() == LIMITS.fragments {
            self.refused = Some("reassembly_fragments");
            return Next::Lost("reassembly_fragments", self.fragments.drain(..).count() + 1);
        }
        self.fragments.push(next.clone());
        if end != Some(seen.len()) {
            return Next::Held;
        }
        let ecns: Vec<u8> = self.fragments.iter().map(|sent| sent.ecn).collect();
        let first = self.fragments.iter().find(|sent| sent.offset == 0).expect("byte 0 was seen").clone();
        let count = self.fragments.drain(..).count();
        if ecns.contains(&3) && ecns.contains(&0) {
            return Next::Lost("ecn_forbidden", count);
        }
        let ecn = if ecns.contains(&3) { 3 } else { first.ecn };
        Next::Whole(first.whole(&seen.into_values().collect::<Vec<_>>(), ecn))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whole_however_it_was_cut_and_in_whatever_order(
        v6: bool,
        length in 1_usize..4_000,
        cuts in prop::collection::vec(1_usize..500, 0..12),
        order in any::<prop::sample::Index>(),
        seed: u64,
    ) {
        let payload = bytes(length);
        let template = Sent { v6, ..sent(0, false, &[]) };
        let mut fragments = cut(&template, &payload, &cuts);
        prop_assume!(fragments.len() > 1);
        let mut state = seed | 1;
        for index in (1..fragments.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            fragments.swap(index, (state >> 33) as usize % (index + 1));
        }
        let mut bench = Bench::new(LIMITS);
        // A copy of one in the middle of it all.
        let twice = order.index(fragments.len() - 1);
        let last = fragments.len() - 1;
        for (index, fragment) in fragments.iter().enumerate() {
            let whole = bench.take(0, &fragment.frame());
            prop_assert_eq!(whole.is_some(), index == last);
            if index == twice {
                prop_assert_eq!(bench.take(0, &fragment.frame()), None);
            }
            if let Some(whole) = whole {
                prop_assert_eq!(whole, template.whole(&payload, 0));
            }
        }
        prop_assert_eq!(bench.merged, fragments.len());
        prop_assert_eq!(&bench.lost, &BTreeMap::from([("reassembly_duplicate", 1)]));
        prop_assert_eq!(bench.reassembler.memory(), 0);
    }

    /// Offsets and lengths that overlap, contradict, leave holes, end twice; several datagrams; all congestion marks.
    #[test]
    fn as_the_naive_one_does(
        fragments in prop::collection::vec(
            (any::<bool>(), 0_u8..2, 0_u16..2, 0_usize..6, any::<bool>(), 0_usize..4, any::<bool>(), 0_u8..2, 0_usize..8),
            1..60,
        ),
        mark in 0_u8..4,
    ) {
        let mut bench = Bench::new(LIMITS);
        let mut naive: BTreeMap<(bool, u8, u16), Naive> = BTreeMap::new();
        for (v6, source, identification, offset, more, eights, same, marked, odd) in fragments {
            let length = eights * 8 + if more && odd < 7 { 0 } else { odd };
            let payload: Vec<u8> =
                (0..length).map(|index| (offset * 8 + index) as u8 ^ if same { 0 } else { 0x80 }).collect();
            // A piece at offset 0 without more is no fragment.
            let more = more || offset == 0;
            let ecn = if marked == 1 { mark } else { 2 };
            let next = Sent { v6, source, identification, offset: offset * 8, more, payload, ecn };
            let expected = naive.entry((v6, source, identification)).or_default().take(&next);
            let before = bench.lost.clone();
            let whole = bench.take(0, &next.frame());
            let mut after = before;
            match expected {
                Next::Held => prop_assert_eq!(whole, None),
                Next::Whole(frame) => prop_assert_eq!(whole, Some(frame)),
                Next::Lost(reason, count) => {
                    *after.entry(reason).or_default() += count;
                    prop_assert_eq!(whole, None);
                }
            }
            prop_assert_eq!(&bench.lost, &after);
        }
    }

    /// Any flood at all stays within the limits and in the books.
    #[test]
    fn a_flood_is_bounded(
        flood in prop::collection::vec((0_u8..20, 0_u16..40, 0_usize..8_000, 0_usize..180, 0_u64..30), 1..200),
    ) {
        let limits = Limits { memory: 40_000, per_source: 3, fragments: 4, timeout: 100 };
        let mut bench = Bench::new(limits);
        let mut now = 0;
        for (source, identification, offset, eights, pause) in flood {
            now += pause;
            let payload = vec![1; eights * 8];
            bench.take(now, &Sent { source, identification, ..sent(offset * 8, true, &payload) }.frame());
        }
        bench.expire(now + 100);
        prop_assert_eq!(bench.reassembler.held(), 0);
        prop_assert_eq!(bench.reassembler.memory(), 0);
    }
}

#[test]
fn each_limit_costs_the_oldest_and_has_its_name() {
    let piece = |source, identification| Sent { source, identification, ..sent(0, true, &[1; 800]) }.frame();
    let end = |source, identification| Sent { source, identification, ..sent(800, false, &[1; 8]) }.frame();

    // Per source: the ninth costs the first; another source is none the worse.
    let mut bench = Bench::new(LIMITS);
    bench.take(0, &piece(2, 0));
    (0..9).for_each(|identification| assert!(bench.take(0, &piece(1, identification)).is_none()));
    assert_eq!(bench.lost, BTreeMap::from([("reassembly_source", 1)]));
    assert!(bench.take(0, &end(1, 1)).is_some());
    assert!(bench.take(0, &end(2, 0)).is_some());
    assert!(bench.take(0, &end(1, 0)).is_none(), "its first fragment is gone");

    // In memory: the oldest of all.
    let mut bench = Bench::new(Limits { memory: 12_000, ..LIMITS });
    (0..20).for_each(|source| assert!(bench.take(0, &piece(source, 0)).is_none()));
    assert_eq!(bench.lost.keys().collect::<Vec<_>>(), [&"reassembly_memory"]);
    assert!(bench.take(0, &end(19, 0)).is_some());
    assert!(bench.take(0, &end(0, 0)).is_none());

    // In time: from the first fragment on, not from the last.
    let mut bench = Bench::new(LIMITS);
    bench.take(0, &piece(1, 0));
    bench.take(50, &Sent { source: 1, identification: 0, ..sent(1600, true, &[1; 8]) }.frame());
    bench.take(60, &piece(1, 1));
    bench.expire(99);
    assert_eq!(bench.lost, BTreeMap::new());
    bench.expire(100);
    assert_eq!(bench.lost, BTreeMap::from([("reassembly_timeout", 2)]));
    assert!(bench.take(159, &end(1, 1)).is_some());

    // In pieces.
    let mut bench = Bench::new(LIMITS);
    (0..17).for_each(|index| assert!(bench.take(0, &sent(index * 8, true, &[1; 8]).frame()).is_none()));
    assert_eq!(bench.lost, BTreeMap::from([("reassembly_fragments", 17)]));
    bench.take(0, &sent(800, false, &[1; 8]).frame());
    assert_eq!(bench.lost, BTreeMap::from([("reassembly_fragments", 18)]));

    // Beyond what a datagram can hold: 65,535 with its header, or with what is in front of it.
    let mut bench = Bench::new(LIMITS);
    assert!(bench.take(0, &sent(65_528, false, &[1; 8]).frame()).is_none());
    assert_eq!(bench.lost, BTreeMap::from([("reassembly_invalid", 1)]));
    let mut bench = Bench::new(Limits { fragments: 64, ..LIMITS });
    let all =
        cut(&sent(0, false, &[]), &bytes(65_520), &(1..50).map(|index| index * 180).collect::<Vec<_>>());
    assert!(all.iter().all(|fragment| bench.take(0, &fragment.frame()).is_none()));
    assert_eq!(bench.lost, BTreeMap::from([("reassembly_invalid", all.len())]));
}

#[test]
fn births_of_what_is_gone_do_not_pile_up() {
    let mut bench = Bench::new(LIMITS);
    bench.take(0, &Sent { source: 9, ..sent(0, true, &[1; 8]) }.frame());
    for identification in 0..5_000 {
        bench.take(0, &Sent { identification, ..sent(0, true, &[1; 8]) }.frame());
        assert!(bench.take(0, &Sent { identification, ..sent(8, false, &[1; 8]) }.frame()).is_some());
        assert!(bench.reassembler.births.len() < 2 * STALE_BIRTHS);
    }
    assert_eq!(bench.reassembler.held(), 1);
}

/// What came out of a tunnel waits by itself: nobody outside, nor in another tunnel, has a part in it, or can push it out.
#[test]
fn fragments_of_one_datagram_come_the_same_way() {
    let mut bench = Bench::new(LIMITS);
    let (first, last) = (sent(0, true, &[1; 8]).frame(), sent(8, false, &[2; 8]).frame());
    let ways = [None, Some("a".into()), Some("b".into())];
    for way in &ways {
        bench.outer.clone_from(way);
        assert!(bench.take(0, &first).is_none());
    }
    bench.outer = None;
    for identification in 100..100 + 2 * LIMITS.per_source as u16 {
        bench.take(0, &Sent { identification, ..sent(0, true, &[3; 8]) }.frame());
    }
    assert!(bench.take(0, &last).is_none(), "pushed out, by others of the same source outside");
    for way in &ways[1..] {
        bench.outer.clone_from(way);
        let whole = bench.take(0, &last).unwrap();
        assert_eq!(whole[HEADER_LENGTH + 20..], [[1; 8], [2; 8]].concat());
    }
}
