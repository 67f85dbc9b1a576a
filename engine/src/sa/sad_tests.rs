//! The table against a plain map, its chains under readers, and what deletion promises.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use proptest::prelude::*;

use super::super::publish::tests::SetOnDrop;
use super::super::publish::{Reader, reclaim, synchronize};
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn finds_what_was_inserted_and_nothing_else() {
    let table = SpiTable::new();
    let mut reader = Reader::register();
    table.insert(Spi(256), Arc::new("one")).unwrap();
    assert_eq!(table.insert(Spi(256), Arc::new("two")), Err(SpiInUse));
    {
        let guard = reader.pin();
        assert_eq!(table.lookup(Spi(256), &guard), Some(&"one"));
        assert_eq!(table.lookup(Spi(257), &guard), None);
    }
    assert_eq!(table.remove(Spi(257)), None);
    assert_eq!(table.remove(Spi(256)).as_deref(), Some(&"one"));
    assert_eq!(table.lookup(Spi(256), &reader.pin()), None);
    assert!(table.is_empty());
    table.insert(Spi(256), Arc::new("three")).unwrap();
    assert_eq!(table.lookup(Spi(256), &reader.pin()), Some(&"three"));
}

/// Sets a flag when dropped, as an SA wipes its keys.
struct Secret(Arc<AtomicBool>);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn after_remove_and_synchronize_the_returned_count_is_the_last_one() {
    // One bucket pair, so that the removed node has neighbours that refer to it.
    let table = SpiTable::with_bucket_bits(1);
    let flags: Vec<_> = (0..6).map(|_| Arc::new(AtomicBool::new(false))).collect();
    for (spi, flag) in (256..).zip(&flags) {
        table.insert(Spi(spi), Arc::new(Secret(Arc::clone(flag)))).unwrap();
    }
    let mut reader = Reader::register();
    for (spi, flag) in (256..).zip(&flags) {
        let removed = {
            let guard = reader.pin();
            let held = table.lookup(Spi(spi), &guard).unwrap();
            let removed = table.remove(Spi(spi)).unwrap();
            assert!(!synchronize(Duration::from_millis(2)), "this thread is pinned");
            assert!(!held.0.load(Ordering::SeqCst));
            removed
        };
        assert!(synchronize(PATIENCE));
        assert_eq!(Arc::strong_count(&removed), 1);
        assert!(!flag.load(Ordering::SeqCst));
        drop(removed);
        assert!(flag.load(Ordering::SeqCst), "wiped");
    }
}

#[test]
fn dropping_the_table_drops_everything() {
    let flags: Vec<_> = (0..50).map(|_| Arc::new(AtomicBool::new(false))).collect();
    let table = SpiTable::with_bucket_bits(2);
    for (spi, flag) in (256..).zip(&flags) {
        table.insert(Spi(spi), Arc::new(Secret(Arc::clone(flag)))).unwrap();
    }
    drop(table);
    assert!(flags.iter().all(|flag| flag.load(Ordering::SeqCst)));
}

#[derive(Clone, Debug)]
enum Change {
    Insert(u32),
    Remove(u32),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn equals_a_map(
        bucket_bits in 1_u32..6,
        changes in prop::collection::vec(
            prop_oneof![(256_u32..300).prop_map(Change::Insert), (256_u32..300).prop_map(Change::Remove)],
            1..200,
        ),
    ) {
        let table = SpiTable::with_bucket_bits(bucket_bits);
        let mut map = HashMap::new();
        let mut reader = Reader::register();
        for (version, change) in changes.into_iter().enumerate() {
            match change {
                Change::Insert(spi) => {
                    let expected = if map.contains_key(&spi) { Err(SpiInUse) } else { Ok(()) };
                    prop_assert_eq!(table.insert(Spi(spi), Arc::new(version)), expected);
                    map.entry(spi).or_insert(version);
                }
                Change::Remove(spi) => {
                    prop_assert_eq!(table.remove(Spi(spi)).as_deref().copied(), map.remove(&spi));
                }
            }
            prop_assert_eq!(table.len(), map.len());
            let guard = reader.pin();
            for spi in 256..300 {
                prop_assert_eq!(table.lookup(Spi(spi), &guard), map.get(&spi));
            }
        }
        let mut listed: Vec<_> = table.list().iter().map(|value| **value).collect();
        let mut expected: Vec<_> = map.into_values().collect();
        listed.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(listed, expected);
        reclaim();
    }
}

/// Entries that stay are found at every moment, while their neighbours in the same chains come and go.
#[test]
fn readers_find_every_entry_that_stays_while_its_chain_changes() {
    let table = SpiTable::with_bucket_bits(2);
    let spi_of = |value: u32| Spi(256 + value);
    for value in (0..64).step_by(2) {
        table.insert(spi_of(value), Arc::new(value)).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reader = Reader::register();
                while !stop.load(Ordering::Relaxed) {
                    let guard = reader.pin();
                    for value in 0..64 {
                        let found = table.lookup(spi_of(value), &guard);
                        assert!(found == Some(&value) || (found.is_none() && value % 2 == 1), "{value}");
                    }
                }
            });
        }
        let _stop = SetOnDrop(&stop);
        for round in 0..300_u32 {
            for value in (1..64).step_by(2) {
                table.insert(spi_of(value), Arc::new(value)).unwrap();
            }
            for value in (0..32).map(|index| (index * 7 + round) % 32 * 2 + 1) {
                assert_eq!(table.remove(spi_of(value)).as_deref(), Some(&value));
            }
            reclaim();
        }
    });
    assert_eq!(table.len(), 32);
}

#[test]
fn chains_stay_short_for_the_spis_that_are_in_use() {
    // Consecutive, strided and bit-reversed SPIs; a random multiplier each time.
    for spi_of in
        [|index| 256 + index, |index| 0x1000 * (index + 1), |index: u32| index.reverse_bits() | 0x100]
    {
        let mean_cost = |hash: SpiHash| {
            let mut load = vec![0_u64; 1 << 12];
            (0..1_u32 << 12).for_each(|index| load[hash.bucket(Spi(spi_of(index)))] += 1);
            load.iter().map(|&count| count * count).sum::<u64>() as f64 / f64::from(1 << 12)
        };
        // As many entries as buckets: for a random function the sum of squares is 2 per entry.
        let worst = (0..200).map(|_| mean_cost(SpiHash::random(12))).fold(0.0, f64::max);
        assert!(worst < 3.0, "{worst}");
    }
}
