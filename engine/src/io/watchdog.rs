//! A worker that stands still ends the process; the steering programs stay, and drop.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::worker::{Shared, Vitals};

/// How often the workers are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// So many looks without a turn are a second. They are counted, not timed: a process that was stopped itself does not
/// find its workers dead. An idle worker sleeps for two.
const LOOKS: u32 = 4;
/// Processor time, in ticks, within which every turn comes to its end.
const LONGEST_TURN: u64 = 10;

/// Looks after the workers until the datapath stops.
pub(super) fn watch(shared: Arc<Shared>, vitals: Vec<Arc<Vitals>>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("adit-watchdog".into()).spawn(move || {
        let mut workers: Vec<_> = vitals.iter().map(|_| Watched::default()).collect();
        // A stopping worker limits its own time.
        while !shared.stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(LOOK);
            for (number, (vitals, worker)) in vitals.iter().zip(&mut workers).enumerate() {
                if !vitals.alive.load(Ordering::Relaxed) {
                    *worker = Watched::default();
                    continue;
                }
                let heartbeat = vitals.heartbeat.load(Ordering::Relaxed);
                if worker.hangs(heartbeat, || Activity::of(vitals.thread.load(Ordering::Relaxed))) {
                    tracing::error!(worker = number, "silent for a second: the process ends, closed");
                    std::process::abort();
                }
            }
        }
    })
}

/// What was seen of a worker.
#[derive(Default)]
struct Watched {
    heartbeat: u64,
    /// Looks since it was heard.
    looks: u32,
    /// What it was doing at the first of them.
    first: Option<Activity>,
}

impl Watched {
    /// True when it was not heard for a second, although it could have been: it sleeps, or it runs and comes to no end.
    /// One that only waits for its core, on a machine that is too busy, does not hang.
    fn hangs(&mut self, heartbeat: u64, activity: impl FnOnce() -> Option<Activity>) -> bool {
        if heartbeat != self.heartbeat {
            *self = Self { heartbeat, ..Self::default() };
            return false;
        }
        self.looks += 1;
        if self.looks == 1 {
            self.first = activity();
            return false;
        }
        self.looks >= LOOKS
            && match (&self.first, activity()) {
                (Some(first), Some(now)) => !now.is_runnable || now.ticks >= first.ticks + LONGEST_TURN,
                _ => true,
            }
    }
}

/// What a thread does.
#[derive(PartialEq, Eq, Debug)]
struct Activity {
    /// It has a core, or waits for one.
    is_runnable: bool,
    /// Processor time it has had, in hundredths of a second.
    ticks: u64,
}

impl Activity {
    fn of(thread: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?)
    }

    /// Fields 3, 14 and 15 of /proc/PID/stat (proc(5)): state, time in user mode, time in kernel mode.
    fn parse(stat: &str) -> Option<Self> {
        // The second one, in brackets, is a name with anything in it.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let is_runnable = fields.next()? == "R";
        let mut times = fields.skip(10).map(str::parse::<u64>);
        let ticks = times.next()?.ok()? + times.next()?.ok()?;
        Some(Self { is_runnable, ticks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: bool = true;
    const SLEEPS: bool = false;

    /// Looks, of which each finds this heartbeat and thread, until one finds that it hangs.
    fn hangs_at(looks: &[(u64, bool, u64)]) -> Option<usize> {
        let mut worker = Watched::default();
        looks.iter().position(|&(heartbeat, is_runnable, ticks)| {
            worker.hangs(heartbeat, || Some(Activity { is_runnable, ticks }))
        })
    }

    #[test]
    fn a_second_without_a_turn_is_a_hang() {
        assert_eq!(hangs_at(&[(7, SLEEPS, 5); 9]), Some(4), "asleep for good");
        let endless: Vec<_> = (0..9).map(|look| (7, RUNS, 25 * look)).collect();
        assert_eq!(hangs_at(&endless), Some(4), "a turn without an end");
        let slowly: Vec<_> = (0..20).map(|look| (7, RUNS, look)).collect();
        assert_eq!(hangs_at(&slowly), Some(11), "the same on a busy machine");
    }

    #[test]
    fn a_worker_that_turns_or_waits_for_its_core_does_not_hang() {
        let idle: Vec<_> = (0..30).map(|look| (look / 3, SLEEPS, 5)).collect();
        assert_eq!(hangs_at(&idle), None, "asleep for two looks at a time");
        assert_eq!(hangs_at(&[(7, RUNS, 5); 100]), None, "without a core");
        let mut short = vec![(7, RUNS, 5); 50];
        short.push((8, RUNS, 500));
        assert_eq!(hangs_at(&short), None, "heard again");
    }

    #[test]
    fn one_that_nobody_can_look_at_has_no_excuse() {
        let mut worker = Watched::default();
        assert_eq!((0..9).position(|_| worker.hangs(7, || None)), Some(4));
    }

    #[test]
    fn reads_what_the_kernel_says() {
        let line = "41 (a) R 9 (b) S 1 41 41 0 -1 4194624 80 0 0 0 17 25 0 0 20 0 2 0 400 1 2";
        assert_eq!(Activity::parse(line), Some(Activity { is_runnable: false, ticks: 42 }));
        let line = line.replace(" S ", " R ");
        assert_eq!(Activity::parse(&line), Some(Activity { is_runnable: true, ticks: 42 }));
        for short in ["", "41 (a", "41 (a) R", "41 (a) R 1 2 3 4 5 6 7 8 9 10 11"] {
            assert_eq!(Activity::parse(short), None);
        }
        let own = Activity::of(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        assert!(own.is_runnable, "it reads this");
    }
}
