//! Transactions: from the tables that are to the tables that shall be, whole or not at all.
//!
//! A change is prepared completely first: checked, keys expanded, policies compiled. Then, in this order:
//!
//! 1. new inbound SAs enter the SAD, then their SPIs the steering map (never the other way round);
//! 2. the covers grow to old and new together;
//! 3. the new keys are recorded as used: from here on they may send;
//! 4. one pointer switches policies, tunnels and outbound SAs;
//! 5. the covers shrink, old SPIs leave the steering map, then their SAs the SAD;
//! 6. workers pass a quiescent state, and the old keys are wiped.
//!
//! Up to 3 every step can fail and is taken back. The switch cannot fail. What follows it only takes away, and
//! a failure there leaves more steered into the engine than needed, never less.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use super::check::{self, Outline, SaOutline};
use super::config::{ActionName, PolicyTable, ProfileTable, TunnelTable};
use super::keyring::{Fingerprint, Keyring, Kind};
use super::keys;
use super::problem::Problems;
use super::report::{Change, DatapathReport, load};
use super::settings::{
    Engine, Interface, PolicySettings, SaRequest, Settings, TunnelRequest, TunnelSettings, selectors_of,
};
use crate::pipeline::Tables;
use crate::policy::cover::Cover;
use crate::policy::spd::Fallback;
use crate::policy::{Action, Policy, Spd, Tunnel};
use crate::sa::publish::{self, Published};
use crate::sa::{InboundSa, OutboundSa};
use crate::wire::Spi;

/// How long a removal waits for the workers to let go of a key.
const GRACE: Duration = Duration::from_secs(1);

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

    /// Counters and states, from atomics: never waits for a worker.
    fn report(&self) -> DatapathReport;
}

/// An SA in use.
pub struct LiveSa<T> {
    /// What workers read.
    pub sa: Arc<T>,
    /// Names its key.
    pub fingerprint: Fingerprint,
    /// Its key was used before this process: sequence numbers start over, so the peer must start over too.
    pub peer_must_reset: bool,
}

impl<T> Clone for LiveSa<T> {
    fn clone(&self) -> Self {
        Self { sa: self.sa.clone(), fingerprint: self.fingerprint, peer_must_reset: self.peer_must_reset }
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
    cover: Option<(Cover, Cover)>,
}

/// What shall be.
struct Desired {
    tunnels: Vec<DesiredTunnel>,
    policies: Vec<PolicySettings>,
    fallback: Fallback,
    allow_legacy: bool,
    clamp_mss: bool,
    profiles: BTreeMap<String, ProfileTable>,
    warnings: Vec<String>,
}

/// A tunnel that stays, wholly or in one direction, or one to set up.
enum DesiredTunnel {
    Stays { name: Arc<str>, inbound: bool, outbound: bool },
    Asked(TunnelRequest),
}

/// Everything that control changes and shows.
pub struct Control {
    tables: Arc<Tables>,
    datapath: Box<dyn Datapath>,
    /// Fixed while the daemon runs.
    pub engine: Engine,
    interfaces: Vec<Interface>,
    config: Option<PathBuf>,
    started: Instant,
    /// Held for the whole of a change: changes come one after another.
    change: Mutex<Keyring>,
    /// Held for the switch only: reports never wait for a change.
    live: RwLock<Live>,
}

impl Control {
    /// Over empty tables. `config` is what a reload reads.
    pub fn new(
        tables: Arc<Tables>,
        datapath: Box<dyn Datapath>,
        keyring: Keyring,
        engine: Engine,
        interfaces: Vec<Interface>,
        config: Option<PathBuf>,
    ) -> Self {
        let live = Live { clamp_mss: engine.clamp_mss, allow_legacy: engine.allow_legacy, ..Live::default() };
        Self {
            tables,
            datapath,
            engine,
            interfaces,
            config,
            started: Instant::now(),
            change: Mutex::new(keyring),
            live: RwLock::new(live),
        }
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
        let keyring = self.lock();
        problems.or(())?;
        let desired = Desired {
            tunnels: settings.tunnels.into_iter().map(DesiredTunnel::Asked).collect(),
            policies: settings.policies,
            fallback: settings.engine.fallback,
            allow_legacy: settings.engine.allow_legacy,
            clamp_mss: settings.engine.clamp_mss,
            profiles: settings.profiles,
            warnings: settings.warnings,
        };
        self.transact(keyring, desired)
    }

    /// Reads the configuration file again.
    ///
    /// # Errors
    /// As [`Control::apply`].
    pub fn reload(&self) -> Result<Change, Problems> {
        let Some(path) = &self.config else {
            return Err(Problems::one("reload", "expected a configuration file, but this aditd was started without"));
        };
        self.apply(check::load_file(path, false)?)
    }

    /// Sets up a tunnel's SAs, and policies behind the existing ones. Of a tunnel that exists, a direction
    /// without an SA is filled.
    ///
    /// # Errors
    /// All problems; nothing changed.
    pub fn add_tunnel(&self, table: &TunnelTable, policies: &[PolicyTable]) -> Result<Change, Problems> {
        let keyring = self.lock();
        let mut problems = Problems::default();
        let mut desired = self.unchanged();
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
        let added: Vec<_> =
            added.filter_map(|(i, table)| check::policy(table, format!("policies[{i}]"), &mut problems)).collect();
        if let Some(request) = &request {
            self.vacant(request, &mut problems);
        }
        problems.or(())?;
        desired.policies.extend(added);
        desired.warnings.extend(warnings.iter().cloned());
        if let Some(request) = request {
            desired.tunnels.push(DesiredTunnel::Asked(request));
        }
        self.transact(keyring, desired).map(|change| Change { warnings, ..change })
    }

    /// Takes the SAs down that `means` picks; their tunnels stay while policies name them, and drop.
    ///
    /// # Errors
    /// Nothing is picked; nothing changed.
    pub fn delete_sas(&self, field: &str, means: impl Fn(&TunnelSettings, Spi, bool) -> bool) -> Result<Change, Problems> {
        let keyring = self.lock();
        let mut desired = self.unchanged();
        let mut found = false;
        {
            let live = self.live();
            desired.tunnels.retain_mut(|tunnel| {
                let DesiredTunnel::Stays { name, inbound, outbound } = tunnel else { return true };
                let Some(tunnel) = live.tunnels.iter().find(|tunnel| tunnel.settings.name == *name) else { return true };
                if tunnel.inbound.as_ref().is_some_and(|sa| means(&tunnel.settings, sa.sa.spec.sa.spi, true)) {
                    (*inbound, found) = (false, true);
                }
                if tunnel.outbound.as_ref().is_some_and(|sa| means(&tunnel.settings, sa.sa.spec.sa.spi, false)) {
                    (*outbound, found) = (false, true);
                }
                let named = live.policies.iter().any(|policy| policy.settings.tunnel.as_ref() == Some(name));
                *inbound || *outbound || named
            });
        }
        if !found {
            return Err(Problems::one(field, "expected an SA that exists, found none; adit sa list shows them"));
        }
        self.transact(keyring, desired)
    }

    /// Inserts policies at `position`, or behind the others.
    ///
    /// # Errors
    /// All problems; nothing changed.
    pub fn add_policies(&self, tables: &[PolicyTable], position: Option<u64>) -> Result<Change, Problems> {
        let keyring = self.lock();
        let mut problems = Problems::default();
        let mut desired = self.unchanged();
        let count = desired.policies.len();
        let position = position.map_or(count, |position| usize::try_from(position).unwrap_or(usize::MAX));
        if position > count {
            problems.push("position", format!("expected 0 to {count}, found {position}"));
        }
        if tables.is_empty() {
            problems.push("policies", "expected at least one policy, found none");
        }
        let tables = tables.iter().enumerate();
        let added: Vec<_> =
            tables.filter_map(|(i, table)| check::policy(table, format!("policies[{i}]"), &mut problems)).collect();
        problems.or(())?;
        desired.policies.splice(position..position, added);
        self.transact(keyring, desired)
    }

    /// Removes the policy of that name.
    ///
    /// # Errors
    /// There is none; nothing changed.
    pub fn delete_policy(&self, name: &str) -> Result<Change, Problems> {
        let keyring = self.lock();
        let mut desired = self.unchanged();
        let before = desired.policies.len();
        desired.policies.retain(|policy| &*policy.name != name);
        if desired.policies.len() == before {
            let found = super::value::found(name);
            return Err(Problems::one("name", format!("expected a policy that exists, found {found}; adit policy list shows them")));
        }
        self.transact(keyring, desired)
    }

    fn lock(&self) -> MutexGuard<'_, Keyring> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a running daemon cannot change.
    fn fixed(&self, settings: &Settings, problems: &mut Problems) {
        let (old, new) = (&self.engine, &settings.engine);
        let mut same = |field: &str, same: bool| {
            if !same {
                problems.push(field, "expected what aditd was started with, found a change; restart aditd to apply it");
            }
        };
        same("engine.instance", old.instance == new.instance);
        same("engine.cores", old.cores == new.cores);
        same("engine.bpffs", old.bpffs == new.bpffs);
        same("engine.state-dir", old.state_dir == new.state_dir);
        same("engine.socket", old.socket == new.socket);
        same("engine.socket-group", old.socket_group == new.socket_group);
        same("engine.xdp-mode", old.xdp_mode == new.xdp_mode);
        same("interface", self.interfaces == settings.interfaces);
    }

    fn unchanged(&self) -> Desired {
        let live = self.live();
        let stays = |tunnel: &LiveTunnel| DesiredTunnel::Stays {
            name: tunnel.settings.name.clone(),
            inbound: tunnel.inbound.is_some(),
            outbound: tunnel.outbound.is_some(),
        };
        Desired {
            tunnels: live.tunnels.iter().map(stays).collect(),
            policies: live.policies.iter().map(|policy| policy.settings.clone()).collect(),
            fallback: live.fallback,
            allow_legacy: live.allow_legacy,
            clamp_mss: live.clamp_mss,
            profiles: live.profiles.clone(),
            warnings: live.warnings.clone(),
        }
    }

    /// A request for a tunnel that exists may only fill what is empty.
    fn vacant(&self, request: &TunnelRequest, problems: &mut Problems) {
        let live = self.live();
        let Some(tunnel) = live.tunnels.iter().find(|tunnel| tunnel.settings.name == request.settings.name) else {
            return;
        };
        if tunnel.settings != request.settings {
            problems.push("tunnel.name", "expected the settings that this tunnel has, or another name; adit sa delete the tunnel first to change it");
        }
        for (direction, taken) in [
            ("inbound", tunnel.inbound.is_some() && request.inbound.is_some()),
            ("outbound", tunnel.outbound.is_some() && request.outbound.is_some()),
        ] {
            if taken {
                problems.push(format!("tunnel.{direction}"), "expected a direction without an SA; adit sa delete it first");
            }
        }
    }

    fn transact(&self, mut keyring: MutexGuard<'_, Keyring>, desired: Desired) -> Result<Change, Problems> {
        let prepared = {
            let live = self.live();
            Prepared::new(&live, &keyring, desired)?
        };
        self.install(&prepared, &mut keyring)?;
        Ok(self.switch(prepared))
    }

    /// Steps 1 to 3; taken back when one fails.
    fn install(&self, prepared: &Prepared, keyring: &mut Keyring) -> Result<(), Problems> {
        let mut inserted = Vec::new();
        let mut steered = Vec::new();
        let result = (|| {
            for (field, sa) in &prepared.new_inbound {
                let spi = sa.spec.sa.spi;
                let in_use = |_| Problems::one(format!("{field}.spi"), format!("expected a free SPI, found {spi} in use; choose another"));
                self.tables.sad.insert(sa.clone()).map_err(in_use)?;
                inserted.push(spi);
                self.datapath.add_spi(spi).map_err(|error| Problems::one(format!("{field}.spi"), error))?;
                steered.push(spi);
            }
            let (steering, guard) = &prepared.cover_during;
            self.datapath.set_covers(steering, guard).map_err(|error| Problems::one("policy", error))?;
            keyring.record(&prepared.new_keys).map_err(|error| Problems::one("engine.state-dir", error.to_string()))
        })();
        if result.is_err() {
            if let Some((steering, guard)) = &self.live().cover {
                warn_of(self.datapath.set_covers(steering, guard));
            }
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
        let Prepared { live: new, spd, removed_inbound, selectors, cover_during, mut change, .. } = prepared;
        for (sa, selectors) in selectors {
            sa.selectors.replace(Some(selectors));
        }
        self.tables.spd.replace(Some(spd));
        let covers = new.cover.clone();
        let old = std::mem::replace(&mut *self.live.write().unwrap_or_else(PoisonError::into_inner), new);
        if let Some((steering, guard)) = &covers
            && covers.as_ref() != Some(&cover_during)
        {
            warn_of(self.datapath.set_covers(steering, guard));
        }
        for spi in removed_inbound {
            warn_of(self.datapath.remove_spi(spi));
            self.tables.sad.remove(spi);
        }
        let kept: Vec<_> = self.live().tunnels.iter().flat_map(LiveTunnel::weak).collect();
        let gone: Vec<_> = old.tunnels.iter().flat_map(LiveTunnel::weak).filter(|sa| !kept.iter().any(|kept| kept.same(sa))).collect();
        change.removed = gone.len() as u64;
        drop(old);
        // Also the old policies hold tunnels, and tunnels hold outbound SAs.
        change.wiped = publish::synchronize(GRACE) && gone.iter().all(WeakSa::is_gone);
        change
    }
}

/// Says what could not be taken away; more is steered into the engine than needed, and dropped there.
fn warn_of(result: Result<(), String>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the kernel hooks kept an entry that is not needed any more");
    }
}

enum WeakSa {
    Inbound(Weak<InboundSa>),
    Outbound(Weak<OutboundSa>),
}

impl WeakSa {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inbound(a), Self::Inbound(b)) => a.ptr_eq(b),
            (Self::Outbound(a), Self::Outbound(b)) => a.ptr_eq(b),
            _ => false,
        }
    }

    fn is_gone(&self) -> bool {
        match self {
            Self::Inbound(sa) => sa.strong_count() == 0,
            Self::Outbound(sa) => sa.strong_count() == 0,
        }
    }
}

impl LiveTunnel {
    fn weak(&self) -> impl Iterator<Item = WeakSa> + use<> {
        let inbound = self.inbound.as_ref().map(|sa| WeakSa::Inbound(Arc::downgrade(&sa.sa)));
        let outbound = self.outbound.as_ref().map(|sa| WeakSa::Outbound(Arc::downgrade(&sa.sa)));
        inbound.into_iter().chain(outbound)
    }
}

/// A change, complete in memory; nothing of it is in use yet.
struct Prepared {
    live: Live,
    spd: Arc<Spd>,
    new_inbound: Vec<(String, Arc<InboundSa>)>,
    new_keys: Vec<(Fingerprint, Kind)>,
    removed_inbound: Vec<Spi>,
    selectors: Vec<(Arc<InboundSa>, Arc<Vec<crate::sa::selector::Selector>>)>,
    cover_during: (Cover, Cover),
    change: Change,
}

impl Prepared {
    fn new(old: &Live, keyring: &Keyring, desired: Desired) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let outlines: Vec<_> = desired.tunnels.iter().map(|tunnel| outline(tunnel, old, keyring)).collect();
        let (tunnels, outlines) = merge(desired.tunnels, outlines);
        check::consistent(&outlines, &desired.policies, &mut problems);
        let mut builder = Builder { old, keyring, policies: &desired.policies, problems, ..Builder::of(old, keyring, &desired.policies) };
        let tunnels: Vec<_> =
            tunnels.into_iter().zip(outlines).filter_map(|(tunnel, outline)| builder.tunnel(tunnel, &outline)).collect();
        let Builder { problems, new_inbound, new_keys, selectors, kept, added, .. } = builder;
        problems.or(())?;
        let policies = policies(desired.policies, &tunnels, old);
        let generation = old.generation + 1;
        let compiled = |policies: Vec<Arc<Policy>>, fallback| Spd::new(policies, fallback, generation);
        let new: Vec<_> = policies.iter().map(|policy| policy.policy.clone()).collect();
        let both = new.iter().cloned().chain(old.policies.iter().map(|policy| policy.policy.clone())).collect();
        let strictest = if old.fallback == Fallback::Discard { Fallback::Discard } else { desired.fallback };
        let both = compiled(both, strictest);
        let spd = compiled(new, desired.fallback);
        let live_spis: Vec<_> =
            tunnels.iter().filter_map(|tunnel| tunnel.inbound.as_ref().map(|sa| Arc::as_ptr(&sa.sa))).collect();
        let removed_inbound = old
            .tunnels
            .iter()
            .filter_map(|tunnel| tunnel.inbound.as_ref())
            .filter(|sa| !live_spis.contains(&Arc::as_ptr(&sa.sa)))
            .map(|sa| sa.sa.spec.sa.spi)
            .collect();
        Ok(Self {
            cover_during: (Cover::of(&both), Cover::of_protect(&both)),
            live: Live {
                generation,
                tunnels,
                policies,
                fallback: desired.fallback,
                allow_legacy: desired.allow_legacy,
                clamp_mss: desired.clamp_mss,
                profiles: desired.profiles,
                cover: Some((Cover::of(&spd), Cover::of_protect(&spd))),
                warnings: desired.warnings.clone(),
            },
            spd: Arc::new(spd),
            new_inbound,
            new_keys,
            removed_inbound,
            selectors,
            change: Change { generation, added, removed: 0, kept, wiped: false, warnings: desired.warnings },
        })
    }
}
