//! Values live as long as a reader may hold them, and no longer.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc;

use super::super::quiescence::Domain;
use super::*;

/// Long enough for the pins of tests running beside this one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts drops.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn load_gives_the_current_value() {
    let published = Published::new(Some(Arc::new(1)));
    let mut reader = Reader::register();
    assert_eq!(published.load(&reader.pin()), Some(&1));
    published.replace(Some(Arc::new(2)));
    assert_eq!(published.load(&reader.pin()), Some(&2));
    assert_eq!(published.get().as_deref(), Some(&2));
    published.replace(None);
    assert_eq!(published.load(&reader.pin()), None);
    assert_eq!(published.get(), None);
}

#[test]
fn a_replaced_value_lives_until_its_reader_unpins() {
    let drops = Arc::new(AtomicUsize::new(0));
    let published = Arc::new(Published::new(Some(Arc::new(Counted(Arc::clone(&drops))))));
    let (pinned, wait_pinned) = mpsc::channel();
    let (release, wait_release) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let published = &published;
        scope.spawn(move || {
            let mut reader = Reader::register();
            let guard = reader.pin();
            let held = published.load(&guard).unwrap();
            pinned.send(()).unwrap();
            wait_release.recv().unwrap();
            // Still whole, though replaced and waited for.
            assert_eq!(held.0.load(Ordering::SeqCst), 0);
        });
        wait_pinned.recv().unwrap();
        published.replace(None);
        assert!(!synchronize(Duration::from_millis(20)), "a reader is pinned");
        reclaim();
        assert_eq!(drops.load(Ordering::SeqCst), 0);
        release.send(()).unwrap();
        assert!(synchronize(PATIENCE));
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_sleeping_reader_holds_nobody_up() {
    let drops = Arc::new(AtomicUsize::new(0));
    let published = Published::new(Some(Arc::new(Counted(Arc::clone(&drops)))));
    let mut reader = Reader::register();
    drop(reader.pin());
    published.replace(None);
    assert!(synchronize(PATIENCE));
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    drop(reader);
}

#[test]
fn housekeeping_frees_without_waiting() {
    let drops = Arc::new(AtomicUsize::new(0));
    let published = Published::new(Some(Arc::new(Counted(Arc::clone(&drops)))));
    published.replace(None);
    // Tests running beside this one pin, briefly.
    let start = Instant::now();
    while drops.load(Ordering::SeqCst) == 0 && start.elapsed() < PATIENCE {
        reclaim();
        std::thread::yield_now();
    }
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

#[test]
fn drop_frees_the_value_and_leaves_other_counts_alone() {
    let drops = Arc::new(AtomicUsize::new(0));
    let value = Arc::new(Counted(Arc::clone(&drops)));
    let published = Published::new(Some(Arc::clone(&value)));
    let kept = published.get();
    assert_eq!(Arc::strong_count(&value), 3);
    drop(published);
    assert_eq!(Arc::strong_count(&value), 2);
    drop((kept, value));
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

#[test]
fn a_leaked_guard_does_not_outlive_its_reader() {
    let drops = Arc::new(AtomicUsize::new(0));
    let published = Published::new(Some(Arc::new(Counted(Arc::clone(&drops)))));
    let mut reader = Reader::register();
    std::mem::forget(reader.pin());
    published.replace(None);
    assert!(!synchronize(Duration::from_millis(5)));
    drop(reader);
    assert!(synchronize(PATIENCE));
    assert_eq!(drops.load(Ordering::SeqCst), 1);
}

#[test]
fn an_empty_slice_holds_nothing_and_can_be_filled() {
    let slots = Published::<u64>::empty_slice(1000);
    let mut reader = Reader::register();
    let guard = reader.pin();
    assert!(slots.iter().all(|slot| slot.load(&guard).is_none()));
    slots[999].replace(Some(Arc::new(7)));
    assert_eq!(slots[999].load(&guard), Some(&7));
    assert_eq!(Published::<u64>::empty_slice(0).len(), 0);
}

#[test]
fn seats_are_given_once_and_again_when_left() {
    let domain = Domain::new(2);
    let first = domain.sit().unwrap();
    let second = domain.sit().unwrap();
    assert!(domain.sit().is_none());
    domain.stand(&first);
    assert!(domain.sit().is_some());
    assert!(domain.sit().is_none());
    domain.pin(&second);
    let tag = domain.retire_tag();
    assert!(!domain.all_beyond(tag));
    assert!(domain.quiet_tag() < tag);
    // A pin after the retirement cannot hold what was retired.
    domain.unpin(&second);
    domain.pin(&second);
    assert!(domain.all_beyond(tag));
    assert_eq!(domain.quiet_tag(), tag);
}

/// Ends the readers of a test also when it fails.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Readers check a value that its destructor spoils; a use after free or a torn value would show.
#[test]
fn readers_never_see_a_dropped_value() {
    struct Whole {
        number: u64,
        twin: u64,
        dropped: AtomicBool,
    }
    impl Drop for Whole {
        fn drop(&mut self) {
            self.dropped.store(true, Ordering::SeqCst);
            self.twin = !self.twin;
        }
    }
    let whole = |number| Some(Arc::new(Whole { number, twin: number, dropped: AtomicBool::new(false) }));
    let rounds = if cfg!(miri) { 50 } else { 30_000 };
    let published = Published::new(whole(0));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reader = Reader::register();
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let guard = reader.pin();
                    let value = published.load(&guard).unwrap();
                    for _ in 0..20 {
                        assert_eq!(value.number, value.twin);
                        assert!(!value.dropped.load(Ordering::Relaxed));
                    }
                    assert!(value.number >= last, "time runs backwards");
                    last = value.number;
                }
            });
        }
        let _stop = SetOnDrop(&stop);
        for number in 1..=rounds {
            published.replace(whole(number));
            if number % 16 == 0 {
                reclaim();
            }
            if number % 64 == 0 {
                assert_eq!(published.get().unwrap().number, number);
            }
        }
    });
}
