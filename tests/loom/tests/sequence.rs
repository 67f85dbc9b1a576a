//! Two workers number packets of one SA.

use adit_loom::sequence::{FreshRange, SequenceCounter};
use loom::sync::Arc;
use loom::thread;

fn numbers(range: Option<FreshRange>) -> Vec<u64> {
    range.into_iter().flatten().map(|number| number.get()).collect()
}

/// Each asks for its counts in turn; what both got, sorted, and the counter's end.
fn model(
    last: u64,
    limit: u64,
    counts: [&'static [u64]; 2],
    judge: impl Fn(Vec<u64>, u64) + Sync + Send + 'static,
) {
    loom::model(move || {
        let counter = Arc::new(SequenceCounter::starting_after(last));
        let take = move |counter: &SequenceCounter, counts: &[u64]| {
            counts.iter().flat_map(|&count| numbers(counter.take(count, limit))).collect::<Vec<_>>()
        };
        let worker = thread::spawn({
            let counter = Arc::clone(&counter);
            move || take(&counter, counts[0])
        });
        let mut all = take(&counter, counts[1]);
        all.extend(worker.join().unwrap());
        all.sort_unstable();
        judge(all, counter.last());
    });
}

#[test]
fn no_number_is_given_out_twice() {
    model(0, 100, [&[2, 1], &[1, 3]], |all, last| {
        assert_eq!(all, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(last, 7);
    });
}

#[test]
fn at_the_limit_one_worker_gets_all_it_asked_for_and_the_other_nothing() {
    model(7, 10, [&[2], &[2]], |all, last| {
        assert_eq!(all, [8, 9]);
        assert_eq!(last, 9);
    });
}

#[test]
fn nothing_cycles_at_the_end_of_64_bits() {
    model(u64::MAX - 1, u64::MAX, [&[1, 1], &[1, 2]], |all, last| {
        assert_eq!(all, [u64::MAX]);
        assert_eq!(last, u64::MAX);
    });
}
