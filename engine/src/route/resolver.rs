//! Asking the kernel for neighbours, and keeping those in use fresh.
//!
//! The kernel never sees the packets adit sends, so it neither resolves their next hops nor notices that they
//! are in use. Workers say so here; the mirror's thread tells the kernel (NTF_USE).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::PortId;

/// Requests waiting for the mirror's thread.
const QUEUE: usize = 1024;
/// Next hops remembered at once: a scan of a large link must not fill memory.
const REMEMBERED: usize = 4096;
/// Asked again no sooner than this.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A next hop in use that does not answer is asked for as often as this.
const ASK_AGAIN_IN_USE: Duration = Duration::from_secs(1);
/// Half of the time for which the kernel holds a neighbour reachable (base_reachable_time, 30 s).
const REFRESH: Duration = Duration::from_secs(15);
/// How long after the last [`Resolver::in_use`] a next hop is kept fresh.
const IN_USE: Duration = Duration::from_secs(60);

/// A next hop: a port and an address on its link.
pub(super) type Key = (PortId, IpAddr);

/// The workers' side. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Resolver {
    requests: mpsc::Sender<Request>,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    Resolve(Key),
    InUse(Key),
}

impl Resolver {
    pub(super) fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        (Self { requests }, receiver)
    }

    /// Asks the kernel for the neighbour `address` on `port`; the answer comes as a new picture of the network.
    /// Repeated requests within 100 ms are one. False when too many requests wait.
    pub fn resolve(&self, port: PortId, address: IpAddr) -> bool {
        self.requests.try_send(Request::Resolve((port, address))).is_ok()
    }

    /// Says that frames go to `address` on `port`: for a minute the kernel is made to verify it as if it had sent
    /// them. Meant to be called every few seconds for a next hop, not for every packet. False when too many
    /// requests wait.
    pub fn in_use(&self, port: PortId, address: IpAddr) -> bool {
        self.requests.try_send(Request::InUse((port, address))).is_ok()
    }
}

/// The mirror's side: decides which requests the kernel hears, and when.
#[derive(Default)]
pub(super) struct Schedule {
    entries: HashMap<Key, Entry>,
}

struct Entry {
    /// When the kernel was last asked.
    asked: Option<Instant>,
    /// When the next hop was last said to be in use.
    used: Option<Instant>,
}

impl Schedule {
    /// Takes a request in; true when the kernel is to be asked now.
    pub fn request(&mut self, request: Request, now: Instant) -> bool {
        let (Request::Resolve(key) | Request::InUse(key)) = request;
        if self.entries.len() >= REMEMBERED && !self.entries.contains_key(&key) {
            return false;
        }
        let entry = self.entries.entry(key).or_insert(Entry { asked: None, used: None });
        match request {
            Request::Resolve(_) => entry.ask(now, ASK_AGAIN),
            Request::InUse(_) => {
                entry.used = Some(now);
                entry.ask(now, REFRESH)
            }
        }
    }

    /// Once a second: what is in use and due, and forgets what is not in use.
    pub fn due(&mut self, now: Instant, answers: impl Fn(&Key) -> bool) -> Vec<Key> {
        self.entries.retain(|_, entry| {
            let within =
                |time: Option<Instant>, span| time.is_some_and(|time| now.duration_since(time) < span);
            within(entry.used, IN_USE) || within(entry.asked, ASK_AGAIN)
        });
        let in_use = self.entries.iter_mut().filter(|(_, entry)| entry.used.is_some());
        in_use
            .filter_map(|(key, entry)| {
                let pause = if answers(key) { REFRESH } else { ASK_AGAIN_IN_USE };
                entry.ask(now, pause).then_some(*key)
            })
            .collect()
    }
}

impl Entry {
    fn ask(&mut self, now: Instant, pause: Duration) -> bool {
        let ask = self.asked.is_none_or(|asked| now.duration_since(asked) >= pause);
        if ask {
            self.asked = Some(now);
        }
        ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: Key = (PortId(1), IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

    #[test]
    fn repeated_requests_are_one() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        assert!(schedule.request(Request::Resolve(HOP), start));
        assert!(!schedule.request(Request::Resolve(HOP), start + Duration::from_millis(99)));
        assert!(schedule.request(Request::Resolve(HOP), start + Duration::from_millis(100)));
    }

    #[test]
    fn what_is_in_use_is_kept_fresh_and_then_forgotten() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(schedule.request(Request::InUse(HOP), start));
        let asked: Vec<u64> = (1..=120).filter(|&s| !schedule.due(at(s), |_| true).is_empty()).collect();
        assert_eq!(asked, [15, 30, 45]);
        assert!(schedule.entries.is_empty());
    }

    #[test]
    fn what_is_in_use_and_silent_is_asked_for_every_second() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.request(Request::InUse(HOP), start);
        for second in 1..=10 {
            assert_eq!(schedule.due(start + Duration::from_secs(second), |_| false), [HOP]);
        }
    }

    #[test]
    fn a_scan_is_forgotten_and_bounded() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let host = |n: u32| (PortId(0), IpAddr::V4(std::net::Ipv4Addr::from_bits(n)));
        let asked = (0..100_000).filter(|&n| schedule.request(Request::Resolve(host(n)), start)).count();
        assert_eq!((asked, schedule.entries.len()), (REMEMBERED, REMEMBERED));
        assert!(schedule.due(start + Duration::from_secs(1), |_| false).is_empty());
        assert!(schedule.request(Request::Resolve(host(99_999)), start + Duration::from_secs(1)));
    }

    #[test]
    fn a_full_queue_refuses() {
        let (resolver, _receiver) = Resolver::channel();
        assert!((0..QUEUE).all(|_| resolver.resolve(HOP.0, HOP.1)));
        assert!(!resolver.resolve(HOP.0, HOP.1));
        assert!(!resolver.in_use(HOP.0, HOP.1));
    }
}
