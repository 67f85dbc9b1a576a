//! How long an SA lives (RFC 4301 section 4.4.2.1): in packets, bytes and seconds; at the soft limit somebody should
//! replace it, at the hard limit it stops.
//!
//! Nothing is asked per packet. A worker looks at the figures once for its group and stops within it; several
//! workers that have groups of one SA in hand at the same moment may together pass a limit in bytes by what they
//! hold. Numbers are the exception: an outbound SA's hard limit in packets is one on its sequence numbers, which
//! count all that was ever sent under its key, and is exact. Seconds are told by control, which has a clock.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::crypto::{Authentication, Encryption, Suite};

/// No limit.
pub const NONE: u64 = u64::MAX;

/// A soft and a hard limit of one kind; [`NONE`] for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// From here on the SA should be replaced.
    pub soft: u64,
    /// Nothing beyond.
    pub hard: u64,
}

impl Limit {
    /// None at all.
    pub const NONE: Self = Self { soft: NONE, hard: NONE };

    /// The soft limit at most three quarters of `end`, which stops the SA.
    pub fn completed(self, end: u64) -> Self {
        match end {
            NONE => self,
            end => Self { soft: self.soft.min((end / 4 * 3).max(1)), ..self },
        }
    }

    /// The soft limit earlier by up to a tenth, so that the SAs of many tunnels are not replaced all at once; `random`
    /// is any number.
    pub fn jittered(self, random: u64) -> Self {
        match self.soft {
            NONE => self,
            soft => Self { soft: (soft - random % (soft / 10 + 1)).max(1), ..self },
        }
    }
}

/// The limits that workers keep. Seconds are control's, which has a clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Outbound: sequence numbers, the burnt ones too. Inbound: packets with a right ICV and a new number.
    pub packets: Limit,
    /// Bytes of ESP.
    pub bytes: Limit,
}

impl Default for Limits {
    fn default() -> Self {
        Self { packets: Limit::NONE, bytes: Limit::NONE }
    }
}

/// Most bytes under one key of a 64-bit block cipher, whatever is written: 2^32 blocks, where two are alike more
/// likely than not (SWEET32).
pub const MOST_BYTES_OF_A_64_BIT_CIPHER: u64 = 8 << 32;

impl Limits {
    /// What is safe under one key, where nothing else is said.
    ///
    /// - 64-bit blocks: hard at 2^28, 2 GiB;
    /// - AES-CBC: hard at 2^48 blocks; a CBC-MAC of AES: at 2^48 messages (SP 800-38B appendix B);
    /// - what counts nonces (SP 800-38D section 8.3 and below): soft at 2^36 packets and 2^40 blocks; its hard limit is
    ///   that of the numbers.
    pub fn of(suite: &Suite) -> Self {
        use Encryption::{Aes128Cbc, Aes192Cbc, Aes256Cbc, Des, TripleDes};
        let mut limits = Self::default();
        match suite.encryption() {
            Des | TripleDes => limits.bytes.hard = 8 << 28,
            Aes128Cbc | Aes192Cbc | Aes256Cbc => limits.bytes.hard = 16 << 48,
            counter if counter.is_counter_mode() => {
                limits.packets.soft = 1 << 36;
                limits.bytes.soft = 16 << 40;
            }
            _ => {}
        }
        if matches!(suite.authentication(), Authentication::AesXcbc | Authentication::AesCmac) {
            limits.packets.hard = 1 << 48;
        }
        limits
    }

    /// With every soft limit at most three quarters of what stops the SA, which is `last_number` at the latest.
    pub fn completed(self, last_number: u64) -> Self {
        let Self { packets, bytes } = self;
        Self { packets: packets.completed(packets.hard.min(last_number)), bytes: bytes.completed(bytes.hard) }
    }

    /// What is left when so much was used.
    pub fn allowance(&self, packets: u64, bytes: u64) -> Allowance {
        let packets = self.packets.hard.saturating_sub(packets);
        let bytes = self.bytes.hard.saturating_sub(bytes);
        Allowance { packets, bytes, is_ample: packets >= AMPLE_PACKETS && bytes >= AMPLE_BYTES }
    }
}

/// What happens to an SA once in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expiry {
    /// It should be replaced.
    Soft,
    /// It carries nothing any more.
    Hard,
}

const SOFT: u8 = 1;
const HARD: u8 = 2;
/// How far the bits of what was told are from those of what happened.
const TOLD: u8 = 2;

/// How far the life of one SA has come.
#[derive(Default)]
pub struct Lifetime {
    state: AtomicU8,
}

/// What a group may still use of an SA's lifetime.
pub struct Allowance {
    packets: u64,
    bytes: u64,
    /// See [`Allowance::is_ample`].
    is_ample: bool,
}

/// More packets than a group has, and more bytes than they can be.
const AMPLE_PACKETS: u64 = 1 << 10;
const AMPLE_BYTES: u64 = AMPLE_PACKETS << 16;

impl Allowance {
    /// Whether it is more than any group can use, so that taking need not be asked for.
    pub fn is_ample(&self) -> bool {
        self.is_ample
    }

    /// Takes a packet of so many bytes; false when it does not fit any more, and then none does.
    #[inline]
    pub fn take(&mut self, bytes: u64) -> bool {
        if self.is_ample {
            return true;
        }
        let fits = self.packets > 0 && bytes <= self.bytes;
        (self.packets, self.bytes) = if fits { (self.packets - 1, self.bytes - bytes) } else { (0, 0) };
        fits
    }
}

impl Lifetime {
    /// So many packets and bytes were used in all.
    pub fn used(&self, limits: &Limits, packets: u64, bytes: u64) {
        self.reached([(limits.packets, packets), (limits.bytes, bytes)]);
    }

    /// So many seconds have passed.
    pub fn aged(&self, limit: Limit, seconds: u64) {
        self.reached([(limit, seconds)]);
    }

    /// The hard limit is reached: a packet did not fit.
    pub fn end(&self) {
        self.mark(SOFT | HARD);
    }

    /// True once nothing may pass any more.
    pub fn is_over(&self) -> bool {
        self.state.load(Ordering::Relaxed) & HARD != 0
    }

    /// True once the SA should be replaced.
    pub fn is_ending(&self) -> bool {
        self.state.load(Ordering::Relaxed) & SOFT != 0
    }

    /// What happened since this was last asked: each expiry once, however many ask. Who passed the hard limit passed
    /// the soft one too.
    pub fn news(&self) -> impl Iterator<Item = Expiry> + use<> {
        let happened = self.state.load(Ordering::Relaxed) & (SOFT | HARD);
        let told = match happened {
            0 => 0,
            _ => self.state.fetch_or(happened << TOLD, Ordering::Relaxed) >> TOLD,
        };
        let new = happened & !told;
        [(SOFT, Expiry::Soft), (HARD, Expiry::Hard)]
            .into_iter()
            .filter(move |(bit, _)| new & bit != 0)
            .map(|(_, expiry)| expiry)
    }

    fn reached<const N: usize>(&self, figures: [(Limit, u64); N]) {
        if figures.iter().any(|(limit, figure)| *figure >= limit.hard) {
            self.mark(SOFT | HARD);
        } else if figures.iter().any(|(limit, figure)| *figure >= limit.soft) {
            self.mark(SOFT);
        }
    }

    fn mark(&self, bits: u8) {
        // Looked at first: it changes twice in an SA's life and would otherwise be a locked operation per group.
        // Relaxed: the bits guard no other memory.
        if self.state.load(Ordering::Relaxed) & bits != bits {
            self.state.fetch_or(bits, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(packets: (u64, u64), bytes: (u64, u64)) -> Limits {
        let limit = |(soft, hard)| Limit { soft, hard };
        Limits { packets: limit(packets), bytes: limit(bytes) }
    }

    #[test]
    fn each_expiry_is_told_once() {
        let limits = limits((5, 9), (NONE, NONE));
        let lifetime = Lifetime::default();
        let news = || lifetime.news().collect::<Vec<_>>();
        lifetime.used(&limits, 4, 4000);
        assert_eq!((news(), lifetime.is_ending()), (vec![], false));
        lifetime.used(&limits, 5, 5000);
        assert!(lifetime.is_ending() && !lifetime.is_over());
        assert_eq!((news(), news()), (vec![Expiry::Soft], vec![]));
        lifetime.used(&limits, 8, 8000);
        assert_eq!(news(), []);
        lifetime.used(&limits, 9, 9000);
        assert!(lifetime.is_over());
        assert_eq!((news(), news()), (vec![Expiry::Hard], vec![]));
        // All at once: two pieces of news, in order.
        let lifetime = Lifetime::default();
        lifetime.end();
        assert_eq!(lifetime.news().collect::<Vec<_>>(), [Expiry::Soft, Expiry::Hard]);
        let ageless = Lifetime::default();
        ageless.used(&Limits::default(), u64::MAX - 1, u64::MAX - 1);
        ageless.aged(Limit::NONE, u64::MAX - 1);
        assert_eq!(ageless.news().count(), 0);
    }

    #[test]
    fn many_that_pass_a_limit_at_once_make_one_piece_of_news() {
        for _ in 0..200 {
            let (limits, lifetime) = (limits((1, 2), (NONE, NONE)), Lifetime::default());
            let told: usize = std::thread::scope(|scope| {
                let ask = || {
                    lifetime.used(&limits, 2, 0);
                    lifetime.news().count()
                };
                [scope.spawn(ask), scope.spawn(ask)].map(|asked| asked.join().unwrap()).iter().sum()
            });
            assert_eq!(told, 2, "soft and hard");
        }
    }

    #[test]
    fn what_does_not_fit_ends_the_group() {
        let limits = limits((NONE, 10), (NONE, 1000));
        let mut allowance = limits.allowance(7, 100);
        assert!(allowance.take(300) && allowance.take(600));
        assert!(!allowance.take(1), "bytes");
        let mut allowance = limits.allowance(7, 100);
        assert!(
            allowance.take(800) && !allowance.take(101) && !allowance.take(1),
            "none after one that did not"
        );
        let mut allowance = limits.allowance(7, 0);
        assert!((0..3).all(|_| allowance.take(1)) && !allowance.take(1), "packets");
        assert!(!limits.allowance(11, 0).take(0));
        // A burst is 64 packets, and each at most what an IP packet is.
        let near = super::Limits { packets: Limit { soft: 1, hard: AMPLE_PACKETS }, ..Limits::default() };
        assert!(near.allowance(0, 0).is_ample && !near.allowance(1, 0).is_ample);
        const { assert!(AMPLE_PACKETS > 64 && AMPLE_BYTES > 64 * 65_535) };
    }

    /// requirements of SWEET32, SP 800-38B and SP 800-38D, as the documentation of [`Limits::of`] says.
    #[test]
    fn every_cipher_has_its_safe_limits() {
        let of = |encryption: &str, authentication: &str, last_number| {
            let suite =
                Suite::new(encryption.parse().unwrap(), authentication.parse().unwrap(), None).unwrap();
            let Limits { packets, bytes } = Limits::of(&suite).completed(last_number);
            ((packets.soft, packets.hard), (bytes.soft, bytes.hard))
        };
        let (short, long) = (u64::from(u32::MAX), u64::MAX);
        let quarter = 3 * (short / 4);
        assert_eq!(of("3des", "sha256", long), ((NONE, NONE), (3 << 29, 1 << 31)));
        assert_eq!(of("aes-128-cbc", "sha256", short), ((quarter, NONE), (3 << 50, 1 << 52)));
        assert_eq!(of("aes-256-gcm", "none", long), ((1 << 36, NONE), (1 << 44, NONE)));
        assert_eq!(of("aes-256-gcm", "none", short), ((quarter, NONE), (1 << 44, NONE)));
        assert_eq!(of("aes-128-ctr", "aes-cmac", long), ((1 << 36, 1 << 48), (1 << 44, NONE)));
        assert_eq!(of("null", "aes-xcbc", long), ((3 << 46, 1 << 48), (NONE, NONE)));
        assert_eq!(of("null", "sha256", long), ((NONE, NONE), (NONE, NONE)));
    }

    #[test]
    fn jitter_makes_soft_limits_earlier_by_a_tenth_at_most() {
        for random in [0, 1, 99, 100, 12345, u64::MAX] {
            let Limit { soft, hard } = Limit { soft: 1000, hard: 2000 }.jittered(random);
            assert!((900..=1000).contains(&soft) && hard == 2000);
            assert_eq!(Limit::NONE.jittered(random), Limit::NONE);
        }
        let lone = Limit { soft: 1, hard: 2 };
        assert_eq!(lone.jittered(u64::MAX), lone);
    }
}
