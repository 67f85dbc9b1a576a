//! Transactions: from the tables that are to the tables that shall be, whole or not at all.
//!
//! A change is prepared completely first: checked, keys expanded, policies compiled. Then, in this order:
//!
//! 1. new inbound SAs enter the SAD, then their SPIs the steering map (never the other way round);
//! 2. the covers grow to old and new together;
//! 3. the first lease of each new SA is put on stable storage: from here on it may send and receive;
//! 4. one pointer switches a tunnel's outbound SA, or all policies with their tunnels;
//! 5. the covers shrink, old SPIs leave the steering map, then their SAs the SAD;
//! 6. workers pass a quiescent state, and the old keys are wiped.
//!
//! Up to 3 every step can fail and is taken back. The switch cannot fail. What follows it only takes away, and
//! a failure there leaves more steered into the engine than needed, never less.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use super::audit::Auditor;
use super::check;
use super::config::{PolicyTable, ProfileTable, TunnelTable};
use super::events::Events;
use super::leases::{self, Fingerprint, Leases};
use super::prepare::{Desired, DesiredSa, Prepared, WeakSa};
use super::problem::Problems;
use super::replace::RetiringSa;
use super::report::{Change, DatapathReport};
use super::settings::{Engine, Interface, PolicySettings, Settings, TunnelRequest, TunnelSettings};
use crate::pipeline::Tables;
use crate::policy::cover::Cover;
use crate::policy::spd::Fallback;
use crate::policy::{Policy, Tunnel};
use crate::sa::lifetime::Limit;
use crate::sa::{InboundSa, OutboundSa, publish};
use crate::wire::Spi;

/// How long a removal waits for the workers to let go of a key.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// The kernel's hooks and the workers, as far as control needs them. Made by the daemon: control and io never
/// see each other.
pub trait Datapath: Send + Sync {
    /// Replaces what the hooks compare with: `steering` on arrival, `guard` on egress.
    ///
    /// # Errors
    /// A sentence; the hooks then hold the old covers, or at least everything that was in both.
    fn set_covers(&self, steering: &Cover, guard: &Cover) -> Result<(), String>;

    /// Lets ESP with this SPI in.
    ///
    /// # Errors
    /// A sentence; nothing changed.
    fn add_spi(&self, spi: Spi) -> Result<(), String>;

    /// Keeps ESP with this SPI out.
    ///
    /// # Errors
    /// A sentence; such packets then reach the engine and are dropped there.
    fn remove_spi(&self, spi: Spi) -> Result<(), String>;

    /// Whether some of the packets that the hooks drop come to the engine, to be told of.
    ///
    /// # Errors
    /// A sentence; it stays as it was.
    fn tell_of_drops(&self, on: bool) -> Result<(), String>;

    /// Other policies are in use now, or other SAs of their tunnels: for whoever follows them by itself.
    fn policies_changed(&self);

    /// Counters and states, from atomics: never waits for a worker.
    fn report(&self) -> DatapathReport;
}

/// An SA in use.
pub struct LiveSa<T> {
    /// What workers read.
    pub sa: Arc<T>,
    /// Names its key.
    pub fingerprint: Fingerprint,
    /// When it was set up, by [`super::lifetimes::now`].
    pub since: Duration,
    /// How long it lives.
    pub seconds: Limit,
}

impl<T> Clone for LiveSa<T> {
    fn clone(&self) -> Self {
        let Self { ref sa, fingerprint, since, seconds } = *self;
        Self { sa: sa.clone(), fingerprint, since, seconds }
    }
}

/// A tunnel in use.
pub struct LiveTunnel {
    /// All but keys.
    pub settings: TunnelSettings,
    /// What policies point to.
    pub tunnel: Arc<Tunnel>,
    /// The SA that the peer sends with.
    pub inbound: Option<LiveSa<InboundSa>>,
    /// Those that it took over from, the oldest first, as long as the peer may still send with them.
    pub retiring: Vec<RetiringSa>,
    /// The SA that we send with.
    pub outbound: Option<LiveSa<OutboundSa>>,
}

/// A policy in use.
pub struct LivePolicy {
    /// As it was asked for.
    pub settings: PolicySettings,
    /// As workers read it.
    pub policy: Arc<Policy>,
}

/// One generation of everything that can change at run time.
#[derive(Default)]
pub struct Live {
    /// Grows with every change.
    pub generation: u64,
    /// Tunnels, in the order in which they came.
    pub tunnels: Vec<LiveTunnel>,
    /// Policies, in order.
    pub policies: Vec<LivePolicy>,
    /// For packets that no policy means.
    pub fallback: Fallback,
    /// Weak algorithms are allowed.
    pub allow_legacy: bool,
    /// The default of a tunnel's own.
    pub clamp_mss: bool,
    /// Profiles that requests may name.
    pub profiles: BTreeMap<String, ProfileTable>,
    /// Of the configuration.
    pub warnings: Vec<String>,
    /// What the hooks compare with: steering and guard.
    pub covers: (Cover, Cover),
}

/// Everything that control changes and shows.
pub struct Control {
    pub(super) tables: Arc<Tables>,
    pub(super) datapath: Box<dyn Datapath>,
    /// Fixed while the daemon runs.
    pub engine: Engine,
    pub(super) interfaces: Vec<Interface>,
    config: Option<PathBuf>,
    started: Instant,
    /// What happens.
    pub events: Events,
    pub(super) auditor: Auditor,
    leases: Arc<Leases>,
    /// Held for the whole of a change: changes come one after another.
    change: Mutex<()>,
    /// Held for the switch only: reports never wait for a change.
    live: RwLock<Live>,
}

impl Control {
    /// Over empty tables. `config` is what a reload reads.
    pub fn new(
        tables: Arc<Tables>,
        datapath: Box<dyn Datapath>,
        leases: Arc<Leases>,
        engine: Engine,
        interfaces: Vec<Interface>,
        config: Option<PathBuf>,
    ) -> Self {
        let audit = engine.audit;
        let live = Live { clamp_mss: engine.clamp_mss, allow_legacy: engine.allow_legacy, ..Live::default() };
        let control = Self {
            tables,
            datapath,
            auditor: Auditor::new(engine.audit),
            engine,
            interfaces,
            config,
            started: Instant::now(),
            events: Events::default(),
            leases,
            change: Mutex::default(),
            live: RwLock::new(live),
        };
        control.switch_audit(audit);
        control
    }

    /// What is in use now.
    pub fn live(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the datapath tells of itself.
    pub fn datapath_report(&self) -> DatapathReport {
        self.datapath.report()
    }

    /// Since this was made.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Makes the tables what `settings` say: at the start and on reload. Unchanged SAs keep their counters and
    /// windows; what was added over the socket goes.
    ///
    /// # Errors
    /// All problems; nothing changed.
    pub fn apply(&self, settings: Settings) -> Result<Change, Problems> {
        let mut problems = Problems::default();
        self.fixed(&settings, &mut problems);
        let turn = self.lock();
        problems.or(())?;
        let audit = settings.engine.audit;
        let desired = Desired {
            tunnels: settings.tunnels.into_iter().map(Into::into).collect(),
            policies: settings.policies,
            fallback: settings.engine.fallback,
            allow_legacy: settings.engine.allow_legacy,
            clamp_mss: settings.engine.clamp_mss,
            profiles: settings.profiles,
            warnings: settings.warnings,
        };
        let change = self.transact(turn, desired)?;
        self.switch_audit(audit);
        Ok(change)
    }

    /// What storage says, if it is nothing good.
    pub fn lease_trouble(&self) -> Option<String> {
        self.leases.trouble()
    }

    /// Reads the configuration file again. Keys of the tunnels called `fresh` that nothing is recorded of were never
    /// used, says the operator.
    ///
    /// # Errors
    /// As [`Control::apply`].
    pub fn reload(&self, fresh: &[String]) -> Result<Change, Problems> {
        let Some(path) = &self.config else {
            return Err(Problems::one(
                "reload",
                "expected a configuration file, but this aditd was started without",
            ));
        };
        let mut settings = check::load_file(path, false)?;
        leases::mark_fresh(&self.leases, &mut settings.tunnels, fresh)?;
        self.apply(settings)
    }

    /// Sets up a tunnel's SAs, and policies behind the existing ones. Of a tunnel that exists, a direction
    /// without an SA is filled.
    ///
    /// # Errors
    /// All problems; nothing changed.
    pub fn add_tunnel(&self, table: &TunnelTable, policies: &[PolicyTable]) -> Result<Change, Problems> {
        let turn = self.lock();
        let mut problems = Problems::default();
        let mut desired = self.live().unchanged();
        let mut warnings = Vec::new();
        let rules = check::Rules {
            profiles: &desired.profiles,
            allow_legacy: desired.allow_legacy,
            clamp_mss: desired.clamp_mss,
            key_files: false,
            offline: false,
        };
        let request = check::tunnel(table, "tunnel".into(), &rules, &mut warnings, &mut problems);
        let added = policies.iter().enumerate();
        let added: Vec<_> = added
            .filter_map(|(i, table)| check::policy(table, format!("policies[{i}]"), &mut problems))
            .collect();
        if let Some(request) = request {
            fill(&mut desired, request, &mut problems);
        }
        problems.or(())?;
        desired.policies.extend(added);
        desired.warnings.extend(warnings.iter().cloned());
        self.transact(turn, desired).map(|change| Change { warnings, ..change })
    }

    /// Takes the SAs down that `means` picks; their tunnels stay while policies name them, and drop.
    ///
    /// # Errors
    /// Nothing is picked; nothing changed.
    pub fn delete_sas(
        &self,
        field: &str,
        means: impl Fn(&TunnelSettings, Spi, bool) -> bool,
    ) -> Result<Change, Problems> {
        let turn = self.lock();
        let mut desired = self.live().unchanged();
        let mut found = false;
        {
            let live = self.live();
            for tunnel in &mut desired.tunnels {
                let Some(live) = live.tunnel(&tunnel.settings.name) else { continue };
                let (inbound, outbound) = (live.inbound.as_ref(), live.outbound.as_ref());
                for retiring in &live.retiring {
                    let spi = retiring.live.sa.spec.sa.spi;
                    if means(&live.settings, spi, true) {
                        tunnel.dropped.push(spi);
                        found = true;
                    }
                }
                if inbound.is_some_and(|sa| means(&live.settings, sa.sa.spec.sa.spi, true)) {
                    (tunnel.inbound, found) = (None, true);
                }
                if outbound.is_some_and(|sa| means(&live.settings, sa.sa.spec.sa.spi, false)) {
                    (tunnel.outbound, found) = (None, true);
                }
            }
        }
        let policies = &desired.policies;
        let named = |name: &str| policies.iter().any(|policy| policy.tunnel.as_deref() == Some(name));
        let others: HashSet<_> =
            desired.tunnels.iter().filter_map(|tunnel| tunnel.settings.through.clone()).collect();
        desired.tunnels.retain(|tunnel| {
            let name = &tunnel.settings.name;
            tunnel.inbound.is_some() || tunnel.outbound.is_some() || named(name) || others.contains(name)
        });
        if !found {
            return Err(Problems::one(
                field,
                "expected an SA that exists, found none; adit sa list shows them",
            ));
        }
        self.transact(turn, desired)
    }

    /// Inserts policies at `position`, or behind the others.
    ///
    /// # Errors
    /// All problems; nothing changed.
    pub fn add_policies(&self, tables: &[PolicyTable], position: Option<u64>) -> Result<Change, Problems> {
        let turn = self.lock();
        let mut problems = Problems::default();
        let mut desired = self.live().unchanged();
        let count = desired.policies.len();
        let position = position.map_or(count, |position| usize::try_from(position).unwrap_or(usize::MAX));
        if position > count {
            problems.push("position", format!("expected 0 to {count}, found {position}"));
        }
        if tables.is_empty() {
            problems.push("policies", "expected at least one policy, found none");
        }
        let tables = tables.iter().enumerate();
        let added: Vec<_> = tables
            .filter_map(|(i, table)| check::policy(table, format!("policies[{i}]"), &mut problems))
            .collect();
        problems.or(())?;
        desired.policies.splice(position..position, added);
        self.transact(turn, desired)
    }

    /// Removes the policy of that name.
    ///
    /// # Errors
    /// There is none; nothing changed.
    pub fn delete_policy(&self, name: &str) -> Result<Change, Problems> {
        let turn = self.lock();
        let mut desired = self.live().unchanged();
        let before = desired.policies.len();
        desired.policies.retain(|policy| &*policy.name != name);
        if desired.policies.len() == before {
            let found = super::value::found(name);
            return Err(Problems::one(
                "name",
                format!("expected a policy that exists, found {found}; adit policy list shows them"),
            ));
        }
        self.transact(turn, desired)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a running daemon cannot change.
    fn fixed(&self, settings: &Settings, problems: &mut Problems) {
        let (old, new) = (&self.engine, &settings.engine);
        let mut same = |field: &str, same: bool| {
            if !same {
                problems.push(
                    field,
                    "expected what aditd was started with, found a change; restart aditd to apply it",
                );
            }
        };
        same("engine.instance", old.instance == new.instance);
        same("engine.cores", old.cores == new.cores);
        same("engine.bpffs", old.bpffs == new.bpffs);
        same("engine.state-dir", old.state_dir == new.state_dir);
        same("engine.socket", old.socket == new.socket);
        same("engine.socket-group", old.socket_group == new.socket_group);
        same("engine.xdp-mode", old.xdp_mode == new.xdp_mode);
        same("engine.host-path", old.host_path == new.host_path);
        same("engine.reassembly", old.reassembly == new.reassembly);
        same("engine.icmp", old.icmp == new.icmp);
        same("interface", self.interfaces == settings.interfaces);
    }

    pub(super) fn live_mut(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn transact(&self, _turn: MutexGuard<'_, ()>, desired: Desired) -> Result<Change, Problems> {
        let prepared = {
            let live = self.live();
            Prepared::new(&live, &self.leases, desired)?
        };
        self.install(&prepared)?;
        Ok(self.switch(prepared))
    }

    /// Steps 1 to 3; taken back when one fails.
    fn install(&self, prepared: &Prepared) -> Result<(), Problems> {
        let mut inserted = Vec::new();
        let mut steered = Vec::new();
        let result = (|| {
            for (field, sa) in &prepared.new_inbound {
                let spi = sa.spec.sa.spi;
                let in_use = |_| {
                    Problems::one(
                        format!("{field}.spi"),
                        format!("expected a free SPI, found {spi} in use; choose another"),
                    )
                };
                self.tables.sad.insert(sa.clone()).map_err(in_use)?;
                inserted.push(spi);
                self.datapath.add_spi(spi).map_err(|error| Problems::one(format!("{field}.spi"), error))?;
                steered.push(spi);
            }
            let (steering, guard) = &prepared.covers_during;
            self.datapath.set_covers(steering, guard).map_err(|error| Problems::one("policy", error))?;
            self.leases
                .grant(&prepared.grants)
                .map_err(|error| Problems::one("engine.state-dir", error.to_string()))
        })();
        if result.is_err() {
            let (steering, guard) = self.live().covers.clone();
            warn_of(self.datapath.set_covers(&steering, &guard));
            for spi in steered {
                warn_of(self.datapath.remove_spi(spi));
            }
            for spi in inserted {
                self.tables.sad.remove(spi);
            }
            publish::reclaim();
        }
        result
    }

    /// Steps 4 to 6.
    fn switch(&self, prepared: Prepared) -> Change {
        let Prepared { live: new, spd, removed_inbound, selectors, covers_during, outbound, events, .. } =
            prepared;
        let mut change = prepared.change;
        for (sa, selectors) in selectors {
            sa.selectors.replace(Some(selectors));
        }
        let is_other = spd.is_some() || !outbound.is_empty();
        for (tunnel, sa) in outbound {
            tunnel.outbound.replace(sa);
        }
        if let Some(spd) = spd {
            self.tables.spd.replace(Some(spd));
        }
        if is_other {
            self.datapath.policies_changed();
        }
        let covers = new.covers.clone();
        let old = std::mem::replace(&mut *self.live_mut(), new);
        if covers != covers_during {
            warn_of(self.datapath.set_covers(&covers.0, &covers.1));
        }
        for spi in removed_inbound {
            self.take_down(spi);
        }
        let kept: Vec<_> = self.live().tunnels.iter().flat_map(LiveTunnel::weak).collect();
        let gone: Vec<_> = old
            .tunnels
            .iter()
            .flat_map(LiveTunnel::weak)
            .filter(|sa| !kept.iter().any(|kept| kept.same(sa)))
            .collect();
        change.removed = gone.len() as u64;
        drop(old);
        // Also the old policies hold tunnels, and tunnels hold outbound SAs.
        change.wiped = publish::synchronize(GRACE) && gone.iter().all(WeakSa::is_gone);
        events.into_iter().for_each(|event| self.events.tell(event));
        change
    }

    /// Takes an inbound SA away from the hooks, then from the workers.
    pub(super) fn take_down(&self, spi: Spi) {
        warn_of(self.datapath.remove_spi(spi));
        self.tables.sad.remove(spi);
    }
}

/// Says what could not be taken away; more is steered into the engine than needed, and dropped there.
fn warn_of(result: Result<(), String>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the kernel hooks kept an entry that is not needed any more");
    }
}

/// Puts a request beside the tunnels that are. Of one that exists it may only fill what is empty.
fn fill(desired: &mut Desired, request: TunnelRequest, problems: &mut Problems) {
    let name = request.settings.name.clone();
    let Some(tunnel) = desired.tunnels.iter_mut().find(|tunnel| tunnel.settings.name == name) else {
        desired.tunnels.push(request.into());
        return;
    };
    if tunnel.settings != request.settings {
        problems.push(
            "tunnel.name",
            format!("expected the settings that tunnel {name:?} has, or another name; adit sa delete {name} to change them"),
        );
    }
    for (direction, slot, sa) in [
        ("inbound", &mut tunnel.inbound, request.inbound),
        ("outbound", &mut tunnel.outbound, request.outbound),
    ] {
        match sa {
            Some(_) if slot.is_some() => problems.push(
                format!("tunnel.{direction}"),
                format!("expected a direction without an SA, found one; adit sa replace {name} puts another in its place"),
            ),
            Some(sa) => *slot = Some(DesiredSa::Asked(sa)),
            None => {}
        }
    }
}
