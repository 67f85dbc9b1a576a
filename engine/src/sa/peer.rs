//! Where the peer of ESP in UDP is, behind a NAT that may move it, and when the NAT has to be reminded of us (RFC 3948).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, PoisonError};

/// An address and a port, written rarely and read by every burst: a sequence lock whose readers never wait.
pub struct PeerEndpoint {
    /// Odd while somebody writes.
    version: AtomicU32,
    high: AtomicU64,
    low: AtomicU64,
    port: AtomicU16,
    is_ipv6: bool,
    /// Where it was when somebody was told last.
    told: Mutex<SocketAddr>,
}

/// How often a reader looks again when it meets a writer, who needs a few nanoseconds unless he is put to sleep.
const TRIES: usize = 64;

impl PeerEndpoint {
    /// There, to begin with; always of this IP version.
    pub fn new(address: IpAddr, port: u16) -> Self {
        let (high, low) = words(address);
        Self {
            version: AtomicU32::new(0),
            high: AtomicU64::new(high),
            low: AtomicU64::new(low),
            port: AtomicU16::new(port),
            is_ipv6: address.is_ipv6(),
            told: Mutex::new((address, port).into()),
        }
    }

    /// Where it was when this was asked last, and where it is now, if that is elsewhere. Not for workers.
    pub fn news(&self) -> Option<(SocketAddr, SocketAddr)> {
        let now = SocketAddr::from(self.get()?);
        let before = std::mem::replace(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner), now);
        (before != now).then_some((before, now))
    }

    /// Where it is now; `None` while it is being moved.
    pub fn get(&self) -> Option<(IpAddr, u16)> {
        for _ in 0..TRIES {
            // Acquire: what is read below was written before this version was.
            let before = self.version.load(Ordering::Acquire);
            let (high, low) = (self.high.load(Ordering::Relaxed), self.low.load(Ordering::Relaxed));
            let port = self.port.load(Ordering::Relaxed);
            // The loads above come before this one, which sees a writer whose words they saw.
            fence(Ordering::Acquire);
            if !is_odd(before) && self.version.load(Ordering::Relaxed) == before {
                let bits = u128::from(high) << 64 | u128::from(low);
                let address = match self.is_ipv6 {
                    true => Ipv6Addr::from_bits(bits).into(),
                    false => Ipv4Addr::from_bits(bits as u32).into(),
                };
                return Some((address, port));
            }
            std::hint::spin_loop();
        }
        None
    }

    /// It was authenticated there. An address of the other version is nobody's; when somebody else moves it at the
    /// same time, he wins, and the next packet decides.
    pub fn follow(&self, address: IpAddr, port: u16) {
        if address.is_ipv6() != self.is_ipv6 || self.get() == Some((address, port)) {
            return;
        }
        let version = self.version.load(Ordering::Relaxed);
        let take = |odd| self.version.compare_exchange(version, odd, Ordering::Acquire, Ordering::Relaxed);
        if is_odd(version) || take(version.wrapping_add(1)).is_err() {
            return;
        }
        // A reader who sees one of the words below sees the odd version, too.
        fence(Ordering::Release);
        let (high, low) = words(address);
        self.high.store(high, Ordering::Relaxed);
        self.low.store(low, Ordering::Relaxed);
        self.port.store(port, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }
}

/// Whether nothing was sent for so long that a NAT may forget us (RFC 3948 section 4). Looked at now and then by every
/// worker, and written by none per packet: what was sent is seen by the SA's own count.
pub struct Keepalive {
    /// Milliseconds; 0 for never.
    after: u64,
    /// Packets that the SA had sent when it was looked at last.
    sent: AtomicU64,
    /// When that count was new, or a keepalive was sent.
    since: AtomicU64,
}

/// A silence, by its beginning.
pub struct Silence(u64);

/// Nobody looked yet.
const NEVER: u64 = u64::MAX;

impl Keepalive {
    /// After so many seconds without a packet; never for 0.
    pub fn new(seconds: u32) -> Self {
        Self { after: u64::from(seconds) * 1000, sent: AtomicU64::new(0), since: AtomicU64::new(NEVER) }
    }

    /// The silence that calls for one, if there is one; `sent` packets have been sent at all, and `now` is milliseconds
    /// of a monotonic clock.
    pub fn silence(&self, sent: u64, now: u64) -> Option<Silence> {
        if self.after == 0 {
            return None;
        }
        // Relaxed: each word says everything. Workers that look at once agree, or the count is new for both.
        let since = self.since.load(Ordering::Relaxed);
        if since == NEVER || self.sent.load(Ordering::Relaxed) != sent {
            self.sent.store(sent, Ordering::Relaxed);
            self.since.store(now, Ordering::Relaxed);
            return None;
        }
        (now.saturating_sub(since) >= self.after).then_some(Silence(since))
    }

    /// Whether it is the caller who breaks the silence: one does, however many saw it.
    pub fn claim(&self, Silence(since): Silence, now: u64) -> bool {
        self.since.compare_exchange(since, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

fn is_odd(version: u32) -> bool {
    version & 1 != 0
}

fn words(address: IpAddr) -> (u64, u64) {
    match address {
        IpAddr::V4(address) => (0, address.to_bits().into()),
        IpAddr::V6(address) => ((address.to_bits() >> 64) as u64, address.to_bits() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_where_it_was_seen_last() {
        for [first, second, other] in
            [["192.0.2.1", "198.51.100.7", "2001:db8::1"], ["2001:db8:1::1", "2001:db8:2::ffff", "192.0.2.1"]]
        {
            let [first, second, other] = [first, second, other].map(|text| text.parse::<IpAddr>().unwrap());
            let peer = PeerEndpoint::new(first, 4500);
            assert_eq!(peer.get(), Some((first, 4500)));
            peer.follow(second, 1024);
            assert_eq!(peer.get(), Some((second, 1024)));
            assert_eq!(peer.news(), Some(((first, 4500).into(), (second, 1024).into())));
            assert_eq!(peer.news(), None);
            peer.follow(other, 1025);
            assert_eq!(peer.get(), Some((second, 1024)), "another version");
        }
    }

    #[test]
    fn a_keepalive_is_due_once_in_each_silence() {
        let keepalive = Keepalive::new(20);
        let due = |sent, seconds: u64| match keepalive.silence(sent, seconds * 1000) {
            Some(silence) => {
                let seen_twice = Silence(silence.0);
                assert!(
                    keepalive.claim(silence, seconds * 1000) && !keepalive.claim(seen_twice, seconds * 1000)
                );
                true
            }
            None => false,
        };
        let expected = [
            // The first look only begins to count, as every packet does.
            (0, 100, false),
            (0, 119, false),
            (0, 120, true),
            (0, 121, false),
            (3, 139, false),
            (3, 140, false),
            (3, 159, true),
            (3, 160, false),
            (3, 179, true),
        ];
        for (sent, seconds, is_due) in expected {
            assert_eq!(due(sent, seconds), is_due, "{seconds}");
        }
        let off = Keepalive::new(0);
        assert!((0..10).all(|hours| off.silence(0, hours * 3_600_000).is_none()));
    }

    /// Address and port always belong together, whoever writes and reads at the same time.
    #[test]
    fn never_half_of_one_and_half_of_another() {
        let at = |number: u16| {
            let word = u128::from(number);
            (IpAddr::V6(Ipv6Addr::from_bits(word << 112 | word)), number)
        };
        let (address, port) = at(1);
        let peer = PeerEndpoint::new(address, port);
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let peer = &peer;
                scope.spawn(move || {
                    for number in 1..20_000 {
                        let (address, port) = at(number * 2 + writer);
                        peer.follow(address, port);
                    }
                });
            }
            for _ in 0..20_000 {
                if let Some((address, port)) = peer.get() {
                    assert_eq!((address, port), at(port));
                }
            }
        });
    }
}
