//! Make before break: an SA is replaced while packets flow, and none is lost (RFC 7296 section 2.8).
//!
//! Each gateway sets its new inbound SA up first, while the old one still receives; then each goes over to its new
//! outbound SA, in one step; the old inbound SA goes when the peer has gone over too:
//!
//! ```text
//! adit sa replace branch --inbound-…    here, then there     both inbound SAs of each receive
//! adit sa replace branch --outbound-…   here, then there     each sends with the new one
//!                                                            the peer's first packet with the new one, and a grace:
//!                                                            the old inbound SA is retired, its keys wiped
//! ```
//!
//! A peer that does not go over finds the old SA until its lifetime ends, or until somebody deletes it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::apply::{Control, LiveSa, LiveTunnel};
use super::check;
use super::events::Event;
use super::prepare::DesiredSa;
use super::problem::Problems;
use super::protocol::SaReplace;
use super::report::Change;
use super::settings::TunnelSettings;
use super::value;
use crate::sa::{InboundSa, publish};

/// How long an old inbound SA receives beside the new one, once the peer sends with that: what was under way with the
/// old one has arrived, or never will.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// The longest grace that may be asked for.
const LONGEST_GRACE_SECONDS: u64 = 24 * 60 * 60;

/// Old inbound SAs that a tunnel may have beside its own: keys are not to pile up behind a peer that never goes over.
pub(super) const MOST_RETIRING: usize = 8;

/// An inbound SA that another one took over from. It receives, and nothing else.
#[derive(Clone)]
pub struct RetiringSa {
    /// The SA.
    pub live: LiveSa<InboundSa>,
    /// Of its tunnel when it was set up.
    pub(super) settings: TunnelSettings,
    /// How long it stays once the peer sends with a newer one.
    pub(super) grace: Duration,
    /// Since when the peer does.
    pub(super) overtaken: OnceLock<Duration>,
}

impl RetiringSa {
    fn is_due(&self, now: Duration) -> bool {
        self.live.sa.lifetime.is_over()
            || self.overtaken.get().is_some_and(|&since| now.saturating_sub(since) >= self.grace)
    }
}

impl LiveTunnel {
    /// All SAs that the peer may send with, the newest first.
    pub fn all_inbound(&self) -> impl Iterator<Item = &LiveSa<InboundSa>> {
        self.inbound.iter().chain(self.retiring.iter().rev().map(|retiring| &retiring.live))
    }

    /// Looks whether the peer has gone over to a newer SA; true when one has nothing to wait for any more.
    pub(super) fn watch_retiring(&self, now: Duration) -> bool {
        let mut newer_received = self.inbound.as_ref().is_some_and(|live| live.sa.has_received());
        let mut any_due = false;
        for retiring in self.retiring.iter().rev() {
            if newer_received {
                retiring.overtaken.get_or_init(|| now);
            }
            any_due |= retiring.is_due(now);
            newer_received |= retiring.live.sa.has_received();
        }
        any_due
    }
}

impl Control {
    /// Replaces SAs of a tunnel by others with new keys and the same settings. The old outbound SA goes at once, the
    /// old inbound one when the peer has gone over to the new.
    ///
    /// # Errors
    /// All problems; nothing changed.
    pub fn replace_sas(&self, request: &SaReplace) -> Result<Change, Problems> {
        let turn = self.lock();
        let mut problems = Problems::default();
        let mut desired = self.live().unchanged();
        if request.inbound.is_none() && request.outbound.is_none() {
            problems
                .push("inbound", "expected a new SPI and keys for inbound, outbound or both, found neither");
        }
        let grace = request.grace.unwrap_or(GRACE.as_secs());
        if grace > LONGEST_GRACE_SECONDS {
            problems.push("grace", format!("expected 0 to {LONGEST_GRACE_SECONDS} seconds, found {grace}"));
        }
        let rules = check::Rules {
            profiles: &desired.profiles,
            allow_legacy: desired.allow_legacy,
            clamp_mss: desired.clamp_mss,
            key_files: false,
            offline: false,
        };
        let named = |name: &str| name == request.tunnel;
        match desired.tunnels.iter_mut().find(|tunnel| named(&tunnel.settings.name)) {
            None => {
                let found = value::found(&request.tunnel);
                problems.push(
                    "tunnel",
                    format!("expected a tunnel that exists, found {found}; adit sa list shows them"),
                );
            }
            Some(tunnel) => {
                tunnel.grace = Duration::from_secs(grace);
                let suite = Some((tunnel.settings.suite, tunnel.settings.esn));
                for (field, table, slot) in [
                    ("inbound", &request.inbound, &mut tunnel.inbound),
                    ("outbound", &request.outbound, &mut tunnel.outbound),
                ] {
                    let Some(table) = table else { continue };
                    if slot.is_none() {
                        let message =
                            "expected an SA to replace, found none; adit sa add fills an empty direction";
                        problems.push(field, message);
                    }
                    let sa = check::sa(table, field.into(), suite, &rules, &mut problems);
                    *slot = sa.map(DesiredSa::Asked);
                }
            }
        }
        problems.or(())?;
        self.transact(turn, desired)
    }

    /// Takes down the old inbound SAs that have nothing to wait for, and wipes their keys.
    pub fn retire(&self, now: Duration) {
        let _turn = self.lock();
        let mut retired = Vec::new();
        {
            let mut live = self.live_mut();
            for tunnel in live.tunnels.iter_mut().filter(|tunnel| !tunnel.retiring.is_empty()) {
                let name = tunnel.settings.name.clone();
                let due = tunnel.retiring.extract_if(.., |retiring| retiring.is_due(now));
                retired.extend(due.map(|retiring| (name.clone(), retiring.live.sa)));
            }
            if retired.is_empty() {
                return;
            }
            live.generation += 1;
        }
        let keys: Vec<_> = retired.iter().map(|(_, sa)| Arc::downgrade(sa)).collect();
        let mut events = Vec::new();
        for (tunnel, sa) in retired {
            let spi = sa.spec.sa.spi;
            self.take_down(spi);
            events.push((tunnel, spi));
        }
        let wiped = publish::synchronize(super::apply::GRACE) && keys.iter().all(|sa| sa.strong_count() == 0);
        for (tunnel, spi) in events {
            tracing::info!(%tunnel, %spi, wiped, "the SA was replaced and is retired");
            self.events.tell(Event::of_sa("sa_retired", &tunnel, "in", spi));
        }
    }
}
