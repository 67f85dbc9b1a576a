//! Where the peer of ESP in UDP is: behind a NAT that may move it (RFC 3948).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// An address and a port, written rarely and read by every burst: a sequence lock whose readers never wait.
pub struct PeerEndpoint {
    /// Odd while somebody writes.
    version: AtomicU32,
    high: AtomicU64,
    low: AtomicU64,
    port: AtomicU16,
    is_ipv6: bool,
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
        }
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
            peer.follow(other, 1025);
            assert_eq!(peer.get(), Some((second, 1024)), "another version");
        }
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
