//! The window against the published traces, against a plain set, and under threads.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU32;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn vectors(file: &str) -> Value {
    let path = format!("{}/../tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
        .unwrap()
}

fn indexed_count(file: &str) -> usize {
    let index = vectors("INDEX.json");
    let entry = index.as_array().unwrap().iter().find(|entry| entry["file"] == file).unwrap();
    entry["count"].as_u64().unwrap() as usize
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

impl ReplayWindow {
    fn commit_number(&self, sequence: u64) -> Result<(), Refused> {
        self.commit(Authenticated { sequence })
    }
}

fn check_and_commit(window: &ReplayWindow, sequence_low: u32) -> Result<(), Refused> {
    window.commit_number(window.check(sequence_low)?.sequence())
}

#[test]
fn follows_the_published_traces() {
    let file = "replay_traces.json";
    let traces = vectors(file);
    let mut ran = 0;
    for trace in traces["traces"].as_array().unwrap() {
        let window = ReplayWindow::new(number(&trace["window"]) as u32, false, 0);
        for (index, step) in trace["steps"].as_array().unwrap().iter().enumerate() {
            let expected = match step[2].as_str().unwrap() {
                "advance" | "fill" => Ok(()),
                "dup" => Err(Refused::Duplicate),
                "old" => Err(Refused::TooOld),
                "zero" => Err(Refused::Impossible),
                reason => panic!("unknown reason {reason}"),
            };
            assert_eq!(number(&step[1]) == 1, expected.is_ok());
            let found = check_and_commit(&window, u32::try_from(number(&step[0])).unwrap());
            assert_eq!(found, expected, "{} step {index}: {step}", trace["name"]);
        }
        ran += 1;
    }
    assert_eq!(ran, indexed_count(file));
}

#[test]
fn infers_the_high_word_as_the_published_table() {
    let file = "esn_inference.json";
    let table = vectors(file);
    let mut ran = 0;
    for row in table["rows"].as_array().unwrap() {
        let [size, high, low, sequence_low] = [0, 1, 2, 3].map(|column| number(&row[column]) as u32);
        let expected = row[4].as_u64().map(|high| u32::try_from(high).unwrap());
        let edge = u64::from(high) << 32 | u64::from(low);
        assert_eq!(infer_high(size, edge, sequence_low), expected, "{row}");
        ran += 1;
    }
    assert_eq!(ran, indexed_count(file));
}

/// RFC 4303 section 3.4.3 said plainly: all numbers received, and how far back to look.
struct Model {
    size: u64,
    edge: u64,
    /// At or below this everything counts as received.
    start: u64,
    received: BTreeSet<u64>,
}

impl Model {
    fn new(size: u32, start: u64) -> Self {
        Self { size: size.into(), edge: start, start, received: BTreeSet::new() }
    }

    fn look(&self, sequence: u64) -> Result<(), Refused> {
        match sequence {
            0 => Err(Refused::Impossible),
            // In 128 bits, as the RFC writes it: "T-W+1" has no room to wrap.
            _ if u128::from(sequence) + u128::from(self.size) <= u128::from(self.edge) => {
                Err(Refused::TooOld)
            }
            _ if sequence <= self.start || self.received.contains(&sequence) => Err(Refused::Duplicate),
            _ => Ok(()),
        }
    }

    fn commit(&mut self, sequence: u64) -> Result<(), Refused> {
        self.look(sequence)?;
        self.received.insert(sequence);
        self.edge = self.edge.max(sequence);
        Ok(())
    }
}

/// The next number, relative to the edge.
#[derive(Clone, Debug)]
enum Step {
    Forward(u64),
    Back(u64),
    /// To a block boundary of the window's far end, a little beside it.
    WindowEnd(i64),
    /// A copy of an earlier one.
    Again(prop::sample::Index),
    /// An earlier one that was checked then, and is committed only now.
    Late(prop::sample::Index),
}

fn step(jump: std::ops::Range<u64>) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u64..4).prop_map(Step::Forward),
        2 => (0_u64..200).prop_map(Step::Forward),
        1 => (0_u64..200_000).prop_map(Step::Forward),
        1 => jump.prop_map(Step::Forward),
        4 => (0_u64..150).prop_map(Step::Back),
        1 => (0_u64..70_000).prop_map(Step::Back),
        3 => (-34_i64..=34).prop_map(Step::WindowEnd),
        2 => any::<prop::sample::Index>().prop_map(Step::Again),
        2 => any::<prop::sample::Index>().prop_map(Step::Late),
    ]
}

fn size() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => prop::sample::select(vec![32, 33, 40, 63, 64, 65, 96, 97, 100, 1024, 65535, 65536]),
        2 => 32_u32..300,
        1 => 32_u32..=65536,
    ]
}

/// Runs `steps` from `start` and compares every answer. `wire` sends each number through `check` as well, as
/// a packet would, and so needs jumps that a packet can make.
fn compare(size: u32, esn: bool, start: u64, steps: &[Step], wire: bool) -> Result<(), TestCaseError> {
    let limit = if esn { u64::MAX } else { u64::from(u32::MAX) };
    let window = ReplayWindow::new(size, esn, start);
    let mut model = Model::new(size, start);
    let mut history = vec![start];
    for step in steps {
        let edge = model.edge;
        let mut late = false;
        let sequence = match step {
            Step::Forward(by) => edge.saturating_add(*by).min(limit),
            Step::Back(by) => edge.saturating_sub(*by),
            Step::WindowEnd(by) => edge.saturating_sub(size.into()).saturating_add_signed(*by).min(limit),
            Step::Again(which) => *which.get(&history),
            Step::Late(which) => {
                late = true;
                *which.get(&history)
            }
        };
        history.push(sequence);
        if wire && !late {
            let found = window.check(sequence as u32);
            let inferred = found.as_ref().map(Candidate::sequence);
            if esn && edge.saturating_sub(sequence) >= size.into() {
                // Below the window, the low word means the next subspace (appendix A2.2): a number that the
                // packet's ICV does not bear out, or none at all.
                prop_assert_ne!(inferred, Ok(sequence));
            } else {
                prop_assert_eq!(found.map(|it| it.sequence()), model.look(sequence).map(|()| sequence));
            }
            prop_assert_eq!(window.right_edge(), edge);
        }
        prop_assert_eq!(
            window.commit_number(sequence),
            model.commit(sequence),
            "{} at edge {}",
            sequence,
            edge
        );
        prop_assert_eq!(window.right_edge(), model.edge);
    }
    Ok(())
}

fn steps(jump: std::ops::Range<u64>) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(jump), 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn equals_a_set_without_esn(
        size in size(),
        start in prop_oneof![Just(0), 0_u64..100_000, (1_u64 << 32) - 200_000..1 << 32],
        steps in steps(0..1 << 32),
    ) {
        compare(size, false, start, &steps, true)?;
    }

    #[test]
    fn equals_a_set_with_esn(
        size in size(),
        start in prop_oneof![
            Just(0),
            0_u64..100_000,
            (1_u64 << 32) - 70_000..(1 << 32) + 70_000,
            (7_u64 << 32) - 300..(7 << 32) + 300,
            (1_u64 << ERA_SHIFT) - 300..(1 << ERA_SHIFT) + 300,
            u64::MAX - 200_000..=u64::MAX,
        ],
        steps in steps(0..(1 << 32) - 65536),
    ) {
        compare(size, true, start, &steps, true)?;
    }

    /// Commit by itself is exact for any jump, however many eras it skips.
    #[test]
    fn equals_a_set_over_all_64_bits(size in size(), start in any::<u64>(), steps in steps(0..1 << 60)) {
        compare(size, true, start, &steps, false)?;
    }
}

proptest! {
    /// A group is its numbers one after the other: in order, with copies, across blocks, at any place of the edge.
    #[test]
    fn a_group_equals_its_numbers_one_by_one(
        size in size(),
        start in prop_oneof![0_u64..100, 0_u64..100_000, (1_u64 << ERA_SHIFT) - 300..1 << ERA_SHIFT],
        groups in prop::collection::vec(prop::collection::vec((-90_i64..90, 1_u64..40), 1..8), 1..30),
    ) {
        let window = ReplayWindow::new(size, true, start);
        let mut model = Model::new(size, start);
        for group in groups {
            let edge = model.edge;
            let runs = group.into_iter().map(|(by, length)| (edge.saturating_add_signed(by), length));
            let numbers: Vec<_> = runs
                .flat_map(|(first, length)| first..first + length)
                .map(|sequence| Authenticated { sequence })
                .collect();
            let mut found = vec![Ok(()); numbers.len()];
            window.commit_group(&numbers, |place, reason| found[place] = Err(reason));
            let expected: Vec<_> = numbers.iter().map(|number| model.commit(number.sequence)).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(window.right_edge(), model.edge);
        }
    }
}

#[test]
fn both_edges_are_exact_for_every_small_size() {
    for size in (32..=200).chain([1024, 65535, 65536]) {
        let edge = 200_000;
        let window = ReplayWindow::new(size, false, 0);
        window.commit_number(edge).unwrap();
        let bottom = edge - u64::from(size) + 1;
        assert_eq!(window.commit_number(bottom - 1), Err(Refused::TooOld), "{size}");
        assert_eq!(window.commit_number(bottom), Ok(()), "{size}");
        assert_eq!(window.commit_number(bottom), Err(Refused::Duplicate), "{size}");
        assert_eq!(window.commit_number(edge), Err(Refused::Duplicate), "{size}");
        for sequence in bottom + 1..edge {
            assert_eq!(window.commit_number(sequence), Ok(()), "{size}: {sequence}");
        }
        for sequence in bottom..=edge {
            assert_eq!(window.commit_number(sequence), Err(Refused::Duplicate), "{size}: {sequence}");
        }
    }
}

#[test]
fn two_copies_in_one_burst_both_pass_check_and_one_commits() {
    let window = ReplayWindow::new(64, false, 0);
    let copies = [window.check(5).unwrap(), window.check(5).unwrap()];
    assert_eq!(copies.map(|copy| window.commit_number(copy.sequence())), [Ok(()), Err(Refused::Duplicate)]);
}

#[test]
fn check_changes_nothing() {
    let window = ReplayWindow::new(64, false, 0);
    for sequence in [1, 2, u32::MAX, 2, 1] {
        assert!(window.check(sequence).is_ok());
    }
    assert_eq!(window.right_edge(), 0);
}

#[test]
fn a_window_that_moved_between_check_and_commit_refuses() {
    let window = ReplayWindow::new(64, false, 0);
    let early = window.check(1).unwrap();
    window.commit_number(65).unwrap();
    assert_eq!(window.commit_number(early.sequence()), Err(Refused::TooOld));
}

#[test]
fn the_last_number_without_esn_is_usable_once() {
    let window = ReplayWindow::new(64, false, 0);
    assert_eq!(check_and_commit(&window, u32::MAX - 1), Ok(()));
    assert_eq!(check_and_commit(&window, u32::MAX), Ok(()));
    assert_eq!(check_and_commit(&window, u32::MAX), Err(Refused::Duplicate));
    assert_eq!(check_and_commit(&window, 0), Err(Refused::Impossible));
    assert_eq!(check_and_commit(&window, 1), Err(Refused::TooOld));
    assert_eq!(window.right_edge(), u64::from(u32::MAX));
}

#[test]
fn esn_crosses_into_the_next_subspace_and_back() {
    let window = ReplayWindow::new(64, true, (1 << 32) - 2);
    assert_eq!(window.check(0).unwrap().sequence(), 1 << 32);
    assert_eq!(check_and_commit(&window, 0), Ok(()));
    // From beyond the boundary, the last of the old subspace is still in the window.
    assert_eq!(window.check(u32::MAX).unwrap().sequence(), (1 << 32) - 1);
    assert_eq!(check_and_commit(&window, u32::MAX), Ok(()));
    assert_eq!(check_and_commit(&window, u32::MAX), Err(Refused::Duplicate));
    assert_eq!(check_and_commit(&window, 0), Err(Refused::Duplicate));
}

/// RFC 4303 appendix A2.2: a low word stands for the 2^32 numbers that begin at the window's lower edge. So 2^32 - W - 1
/// packets in a row may be lost, and after one more the packet is taken for an old one, which its ICV does not bear out.
#[test]
fn a_gap_of_nearly_a_subspace_is_bridged() {
    for size in [32, 64, 1024, 65536] {
        for edge in [size, size + 1, 100_000, (1 << 32) - 1, 1 << 32, (1 << 32) + 5, (9 << 32) + 77] {
            let window = ReplayWindow::new(size as u32, true, edge);
            let lost = (1 << 32) - size - 1;
            let next = edge + lost + 1;
            assert_eq!(window.check(next as u32).map(|it| it.sequence()), Ok(next), "{size} {edge}");
            let beyond = window.check((next + 1) as u32).map(|it| it.sequence());
            assert_ne!(beyond, Ok(next + 1), "{size} {edge}");
            assert_eq!(check_and_commit(&window, next as u32), Ok(()));
            assert_eq!(window.right_edge(), next);
        }
    }
}

#[test]
fn numbers_outside_the_esn_space_are_impossible() {
    // Before the first packet, the upper end would be subspace -1.
    let window = ReplayWindow::new(64, true, 0);
    assert_eq!(window.check(u32::MAX).unwrap_err(), Refused::Impossible);
    assert_eq!(window.check(0).unwrap_err(), Refused::Impossible);
    // At the very end, a low word below the window would be subspace 2^32.
    let window = ReplayWindow::new(64, true, u64::MAX - 1);
    assert_eq!(window.check(5).unwrap_err(), Refused::Impossible);
    assert_eq!(check_and_commit(&window, u32::MAX), Ok(()));
    assert_eq!(window.right_edge(), u64::MAX);
}

#[test]
fn what_is_at_or_below_the_start_counts_as_received() {
    for last in [1, 31, 32, 33, 1000, (1 << 32) + 17] {
        let window = ReplayWindow::new(64, true, last);
        for sequence in last.saturating_sub(63).max(1)..=last {
            assert_eq!(window.commit_number(sequence), Err(Refused::Duplicate), "{sequence} from {last}");
        }
        assert_eq!(window.commit_number(last + 1), Ok(()));
    }
}

#[test]
fn off_accepts_everything_and_keeps_the_edge() {
    let window = ReplayWindow::new(0, false, 0);
    for sequence in [5, 5, 0, 3, 1_000_000, 1] {
        assert_eq!(check_and_commit(&window, sequence), Ok(()));
    }
    assert_eq!(window.right_edge(), 1_000_000);
    assert_eq!((window.size(), window.slot_bytes()), (0, 0));
}

/// Jumps that leave one slot alone until its 32-bit block number would look like the future.
#[test]
fn a_slot_left_alone_for_2_to_the_31_blocks_is_not_taken_for_a_later_one() {
    let window = ReplayWindow::new(64, true, 0);
    assert_eq!(window.slots.len(), 4);
    let mut edge = 0;
    // All in slot 0, its neighbours never touched since the start: 2^31 blocks are 2^36 numbers.
    while edge < (1 << 36) + (1 << 35) {
        edge += (1 << 32) - (1 << 10);
        assert_eq!(check_and_commit(&window, edge as u32), Ok(()));
        assert_eq!(window.right_edge(), edge);
    }
    for block in 1..4 {
        let sequence = edge + block * u64::from(BLOCK);
        assert_eq!(check_and_commit(&window, sequence as u32), Ok(()), "slot {block}");
    }
}

#[test]
fn memory_is_as_documented() {
    for (size, bytes) in [(32, 2 * 8), (64, 4 * 8), (1024, 512), (65536, 32 * 1024)] {
        assert_eq!(ReplayWindow::new(size, false, 0).slot_bytes(), bytes, "{size}");
    }
}

/// Two threads offer every number; the window is wide enough that none is too old.
#[test]
fn threads_accept_every_number_exactly_once() {
    const NUMBERS: u32 = 60_000;
    let window = ReplayWindow::new(65536, false, 0);
    let accepted: Vec<AtomicU32> = (0..=NUMBERS).map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        for stride in [1, 7, 11] {
            let (window, accepted) = (&window, &accepted);
            scope.spawn(move || {
                // Each in its own order, all within one block most of the time.
                for index in 0..NUMBERS {
                    let group = index / 32 * 32;
                    let sequence = (group + (index * stride) % 32).min(NUMBERS - 1) + 1;
                    if check_and_commit(window, sequence).is_ok() {
                        accepted[sequence as usize].fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    for (sequence, count) in accepted.iter().enumerate().skip(1) {
        assert_eq!(count.load(Ordering::Relaxed), 1, "{sequence}");
    }
}

/// A small window, so that numbers fall out of it and slots change hands while others look: never twice.
#[test]
fn threads_never_accept_a_number_twice_while_slots_change_hands() {
    const NUMBERS: u32 = 200_000;
    for size in [32, 33, 40, 96] {
        let window = ReplayWindow::new(size, false, 0);
        let accepted: Vec<AtomicU32> = (0..NUMBERS + 200).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for seed in 1..=3_u64 {
                let (window, accepted) = (&window, &accepted);
                scope.spawn(move || {
                    let mut random = seed;
                    for _ in 0..NUMBERS {
                        // xorshift64: any order will do.
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let edge = window.right_edge() as u32;
                        let sequence = (edge + 40).saturating_sub((random % 160) as u32).max(1);
                        if sequence < NUMBERS && check_and_commit(window, sequence).is_ok() {
                            accepted[sequence as usize].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let most = accepted.iter().map(|count| count.load(Ordering::Relaxed)).max();
        assert_eq!(most, Some(1), "window {size}");
    }
}
