//! Lifetimes as they are written, as SAs have them, and the passing of time.

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::apply::{Control, LiveSa};
use super::config::{ProfileTable, TunnelTable};
use super::events::Event;
use super::leases::Fingerprint;
use super::problem::Problems;
use crate::crypto::{Encryption, Suite};
use crate::sa::OutboundSa;
use crate::sa::lifetime::{Expiry, Lifetime, Limit, Limits, MOST_BYTES_OF_A_64_BIT_CIPHER, NONE};
use crate::sa::spec::SaSpec;
use crate::wire::Spi;

/// Soft and hard, in packets, bytes and seconds.
pub(super) type Written = [[Option<u64>; 2]; 3];

const KINDS: [&str; 3] = ["packets", "bytes", "seconds"];

macro_rules! lifetimes {
    ($($table:ty),*) => {
        $(impl $table {
            /// What the table says of lifetimes.
            pub(super) fn lifetimes(&self) -> Written {
                [
                    [self.lifetime_packets_soft, self.lifetime_packets_hard],
                    [self.lifetime_bytes_soft, self.lifetime_bytes_hard],
                    [self.lifetime_seconds_soft, self.lifetime_seconds_hard],
                ]
            }
        })*
    };
}

lifetimes!(ProfileTable, TunnelTable);

/// What is written in the tunnel, and where nothing is, in its profile.
pub(super) fn or(tunnel: Written, profile: Written) -> Written {
    std::array::from_fn(|kind| std::array::from_fn(|end| tunnel[kind][end].or(profile[kind][end])))
}

/// The limits of an SA, and those in seconds: what is written, else what is safe.
pub(super) fn limits(
    path: &str,
    written: Written,
    suite: &Suite,
    esn: bool,
    problems: &mut Problems,
) -> (Limits, Limit) {
    let mut limits = Limits::of(suite);
    let mut seconds = Limit::NONE;
    let kinds = [&mut limits.packets, &mut limits.bytes, &mut seconds];
    for ((name, [soft, hard]), limit) in KINDS.iter().zip(written).zip(kinds) {
        for (end, figure) in [("soft", soft), ("hard", hard)] {
            // The largest number means none.
            if let Some(found @ (0 | NONE)) = figure {
                problems.push(
                    format!("{path}.lifetime-{name}-{end}"),
                    format!("expected 1 to {}, found {found}; without the line there is no limit but the safe one of the algorithm", NONE - 1),
                );
            }
        }
        let Limit { hard: safe, .. } = *limit;
        limit.hard = hard.unwrap_or(safe);
        if let Some(soft) = soft.filter(|&soft| soft > limit.hard) {
            problems.push(
                format!("{path}.lifetime-{name}-soft"),
                format!("expected at most lifetime-{name}-hard ({}), found {soft}", limit.hard),
            );
        }
    }
    if matches!(suite.encryption(), Encryption::Des | Encryption::TripleDes)
        && limits.bytes.hard > MOST_BYTES_OF_A_64_BIT_CIPHER
    {
        problems.push(
            format!("{path}.lifetime-bytes-hard"),
            format!(
                "expected at most {MOST_BYTES_OF_A_64_BIT_CIPHER} (2^32 blocks), because blocks of 64 bits soon repeat, found {}",
                limits.bytes.hard
            ),
        );
    }
    limits = limits.completed(SaSpec::last_number(esn));
    seconds = seconds.completed(seconds.hard);
    let kinds = [&mut limits.packets, &mut limits.bytes, &mut seconds];
    for (limit, [soft, _]) in kinds.into_iter().zip(written) {
        limit.soft = soft.unwrap_or(limit.soft);
    }
    (limits, seconds)
}

/// The soft limit a little earlier, by chance.
pub(super) fn jittered(limit: Limit) -> Limit {
    let mut random = [0; 8];
    // The kernel has no entropy only before it has any; without, the limit is as it was written.
    let _ = getrandom::fill(&mut random);
    limit.jittered(u64::from_ne_bytes(random))
}

/// Since the machine started, its sleep included; nobody sets this clock.
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// The clock of the workers, milliseconds: what a packet leaves behind was there at that time.
pub(super) fn worker_clock() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000 + time.tv_nsec as u64 / 1_000_000
}

impl Control {
    /// Lets time pass for every SA, and tells of those that should be replaced or have ended, once of each, and of peers
    /// that moved. Called every second or so. True when there is something to [`Control::retire`].
    pub fn pass_time(&self, now: Duration) -> bool {
        let mut any_due = false;
        for tunnel in &self.live().tunnels {
            for live in tunnel.all_inbound() {
                self.tell(live, &live.sa.lifetime, now, &tunnel.settings.name, live.sa.spec.sa.spi, "in");
            }
            if let Some(live) = &tunnel.outbound {
                self.tell(live, &live.sa.lifetime, now, &tunnel.settings.name, live.sa.spec.sa.spi, "out");
                self.tell_where(&live.sa, &tunnel.settings.name);
            }
            any_due |= tunnel.watch_retiring(now);
        }
        any_due
    }

    /// Tells where the peer of ESP in UDP is, if it is not where it was a second ago: whatever it does in between, that
    /// is one event.
    fn tell_where(&self, sa: &OutboundSa, tunnel: &str) {
        if let Some((from, to)) = sa.in_udp.as_ref().and_then(|in_udp| in_udp.peer.news()) {
            let spi = sa.spec.sa.spi;
            tracing::info!(tunnel, %spi, %from, %to, "the peer moved");
            let (from, to) = (Some(from.to_string()), Some(to.to_string()));
            self.events.tell(Event { from, to, ..Event::of_sa("peer_moved", tunnel, "out", spi) });
        }
    }

    fn tell<T>(
        &self,
        live: &LiveSa<T>,
        lifetime: &Lifetime,
        now: Duration,
        tunnel: &str,
        spi: Spi,
        direction: &str,
    ) {
        lifetime.aged(live.seconds, live.age(now).as_secs());
        for expiry in lifetime.news() {
            let event = match expiry {
                Expiry::Soft => {
                    tracing::info!(tunnel, %spi, direction, "soft lifetime: the SA should be replaced");
                    "soft_lifetime"
                }
                Expiry::Hard => {
                    tracing::warn!(tunnel, %spi, direction, "hard lifetime: the SA carries nothing any more");
                    "hard_lifetime"
                }
            };
            self.events.tell(Event::of_sa(event, tunnel, direction, spi));
        }
    }
}

impl<T> LiveSa<T> {
    /// It is set up now.
    pub(super) fn new(sa: Arc<T>, fingerprint: Fingerprint, seconds: Limit) -> Self {
        Self { sa, fingerprint, since: now(), seconds: jittered(seconds) }
    }

    /// How long it has been there.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }
}
