//! The anti-replay window with two workers on one SA.

use adit_loom::crypto::IcvValid;
use adit_loom::replay::{Refused, ReplayWindow};
use loom::sync::Arc;
use loom::thread;

/// A packet with this number, from check to commit. Its ICV holds if the high word was inferred right; for a
/// number that has left the window it is not.
fn receive(window: &ReplayWindow, sequence: u64) -> Result<(), Refused> {
    let candidate = window.check(sequence as u32)?;
    let number = candidate.authenticate(IcvValid(sequence)).ok_or(Refused::TooOld)?;
    window.commit(number)
}

/// As [`receive`], for a group that is committed at once.
fn receive_group<const N: usize>(window: &ReplayWindow, sequences: [u64; N]) -> [Result<(), Refused>; N] {
    let mut numbers = Vec::new();
    let mut outcomes = sequences.map(|sequence| {
        let candidate = window.check(sequence as u32)?;
        numbers.push(candidate.authenticate(IcvValid(sequence)).ok_or(Refused::TooOld)?);
        Ok(())
    });
    let mut checked: Vec<_> = outcomes.iter_mut().filter(|outcome| outcome.is_ok()).collect();
    window.commit_group(&numbers, |place, reason| *checked[place] = Err(reason));
    outcomes
}

/// Runs two workers, each receiving its numbers in order, on a window of 32 (two slots) whose edge is `edge`,
/// and hands what each got, and the window, to `judge`.
fn model<const A: usize, const B: usize>(
    edge: u64,
    first: [u64; A],
    second: [u64; B],
    judge: impl Fn(&ReplayWindow, [Result<(), Refused>; A], [Result<(), Refused>; B]) + Sync + Send + 'static,
) {
    loom::model(move || {
        let window = Arc::new(ReplayWindow::new(32, true, edge));
        let worker = thread::spawn({
            let window = Arc::clone(&window);
            move || first.map(|sequence| receive(&window, sequence))
        });
        let got_second = second.map(|sequence| receive(&window, sequence));
        let got_first = worker.join().unwrap();
        judge(&window, got_first, got_second);
    });
}

#[test]
fn one_of_two_copies_is_accepted() {
    model(10, [11], [11], |window, [first], [second]| {
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        assert_eq!(first.and(second), Err(Refused::Duplicate));
        assert_eq!(window.right_edge(), 11);
    });
}

#[test]
fn one_of_two_copies_that_take_a_slot_over_is_accepted() {
    // 64 takes slot 0 over from block 0.
    model(63, [64], [64], |_, [first], [second]| {
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    });
}

#[test]
fn neighbours_in_one_block_are_both_accepted() {
    model(63, [65], [64], |window, [first], [second]| {
        assert_eq!((first, second), (Ok(()), Ok(())));
        assert_eq!(window.right_edge(), 65);
        assert_eq!(receive(window, 64), Err(Refused::Duplicate));
        assert_eq!(receive(window, 65), Err(Refused::Duplicate));
    });
}

#[test]
fn neighbours_at_a_block_boundary_are_both_accepted() {
    model(62, [64, 63], [63, 64], |window, first, second| {
        for (first, second) in [(first[0], second[1]), (first[1], second[0])] {
            assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        }
        assert_eq!(window.right_edge(), 64);
    });
}

/// 40 is in the window until 72 arrives. Whatever the order: never twice, and never an error without a cause.
#[test]
fn a_jump_of_the_edge_races_with_a_late_number() {
    model(41, [72], [42, 40], |window, [jump], [late, too_late]| {
        assert_eq!(jump, Ok(()));
        // 42 stays inside (72 - 32 + 1 = 41).
        assert_eq!(late, Ok(()));
        // 40 was received before the start, or has left the window.
        assert!(matches!(too_late, Err(Refused::Duplicate | Refused::TooOld)), "{too_late:?}");
        assert_eq!(window.right_edge(), 72);
        assert_eq!(receive(window, 42), Err(Refused::Duplicate));
    });
}

/// Blocks 1 and 3 share a slot: 96 takes it from under 33, which is in the window when it is checked.
#[test]
fn a_slot_changes_hands_under_a_late_commit() {
    loom::model(|| {
        let window = Arc::new(ReplayWindow::new(32, true, 31));
        receive(&window, 40).unwrap();
        let worker = thread::spawn({
            let window = Arc::clone(&window);
            move || receive(&window, 33)
        });
        assert_eq!(receive(&window, 96), Ok(()));
        let late = worker.join().unwrap();
        // Before the jump it is accepted, after it refused; in no case accepted again.
        assert!(matches!(late, Ok(()) | Err(Refused::TooOld)), "{late:?}");
        assert!(receive(&window, 33).is_err());
        assert_eq!(receive(&window, 96), Err(Refused::Duplicate));
        // The new owner of the slot has lost nothing of its block to the old one.
        assert_eq!(receive(&window, 97), Ok(()));
    });
}

/// A worker that sees another's commit as done sees its edge: what that pushed out is refused from then on.
#[test]
fn a_commit_that_returned_is_seen() {
    use loom::sync::atomic::{AtomicBool, Ordering};
    loom::model(|| {
        let window = Arc::new(ReplayWindow::new(32, true, 41));
        let done = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let (window, done) = (Arc::clone(&window), Arc::clone(&done));
            move || {
                receive(&window, 100).unwrap();
                done.store(true, Ordering::Release);
            }
        });
        if done.load(Ordering::Acquire) {
            assert_eq!(window.right_edge(), 100);
            assert_eq!(receive(&window, 100), Err(Refused::Duplicate));
            assert_eq!(window.check(101).unwrap().sequence(), 101);
        }
        worker.join().unwrap();
    });
}

/// Both carry the edge over an era's boundary at once, each moving every slot up first.
#[test]
fn two_workers_enter_a_new_era_together() {
    const ERA: u64 = 1 << 34;
    model(ERA - 3, [ERA, ERA - 2], [ERA + 40, ERA], |window, first, second| {
        let [era, _] = first;
        let [jump, copy] = second;
        assert_eq!(jump, Ok(()));
        // Whichever came first; after the jump it may be too old for both.
        assert!(!(era.is_ok() && copy.is_ok()));
        assert_eq!(window.right_edge(), ERA + 40);
        assert!(receive(window, ERA).is_err());
        assert_eq!(receive(window, ERA + 41), Ok(()));
    });
}

/// Two groups that share numbers of one block, and take its slot over from another.
#[test]
fn groups_with_common_numbers_accept_each_once() {
    loom::model(|| {
        let window = Arc::new(ReplayWindow::new(32, true, 63));
        let worker = thread::spawn({
            let window = Arc::clone(&window);
            move || receive_group(&window, [64, 65, 66])
        });
        let second = receive_group(&window, [65, 66, 67]);
        let first = worker.join().unwrap();
        assert_eq!((first[0], second[2]), (Ok(()), Ok(())));
        for (one, other) in [(first[1], second[0]), (first[2], second[1])] {
            assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
            assert_eq!(one.and(other), Err(Refused::Duplicate));
        }
        assert_eq!(window.right_edge(), 67);
    });
}

/// A group across a block boundary against a single number of its second block.
#[test]
fn a_group_over_two_blocks_races_with_a_copy() {
    loom::model(|| {
        let window = Arc::new(ReplayWindow::new(32, true, 62));
        let worker = thread::spawn({
            let window = Arc::clone(&window);
            move || receive_group(&window, [63, 64])
        });
        let copy = receive(&window, 64);
        let group = worker.join().unwrap();
        assert_eq!(group[0], Ok(()));
        assert!(group[1].is_ok() != copy.is_ok(), "{group:?} {copy:?}");
        assert_eq!(window.right_edge(), 64);
    });
}
