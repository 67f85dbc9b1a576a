//! The first half of a transaction: everything that can be refused, done in memory, before anything is in use.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use super::apply::{Live, LivePolicy, LiveSa, LiveTunnel};
use super::config::{ActionName, ProfileTable};
use super::consistent::{Outline, SaOutline, consistent};
use super::events::Event;
use super::leases::{Fingerprint, Grant, Known, Leases, Purpose};
use super::problem::Problems;
use super::replace::{self, RetiringSa};
use super::report::{Change, load};
use super::settings::{
    PolicySettings, SaRequest, TunnelRequest, TunnelSettings, outermost_first, selectors_of,
};
use super::{keys, value};
use crate::crypto::key::{KeyError, KeyMaterial, fingerprint};
use crate::policy::cover::Cover;
use crate::policy::spd::Fallback;
use crate::policy::{Action, Path, Policy, Spd, Tunnel};
use crate::sa::publish::Published;
use crate::sa::selector::{Direction, Selector, Selectors};
use crate::sa::{InboundSa, Lease, OutboundSa};
use crate::wire::Spi;

/// What shall be.
pub(super) struct Desired {
    pub(super) tunnels: Vec<DesiredTunnel>,
    pub(super) policies: Vec<PolicySettings>,
    pub(super) fallback: Fallback,
    pub(super) allow_legacy: bool,
    pub(super) clamp_mss: bool,
    pub(super) profiles: BTreeMap<String, ProfileTable>,
    pub(super) warnings: Vec<String>,
}

/// A tunnel that shall be.
pub(super) struct DesiredTunnel {
    pub(super) field: String,
    pub(super) settings: TunnelSettings,
    pub(super) inbound: Option<DesiredSa>,
    pub(super) outbound: Option<DesiredSa>,
    /// Old inbound SAs that shall go at once.
    pub(super) dropped: Vec<Spi>,
    /// How long an inbound SA that is replaced now stays, once the peer sends with the new one.
    pub(super) grace: Duration,
}

/// One direction of it.
pub(super) enum DesiredSa {
    /// The live SA.
    Stays,
    /// This one; if the live SA has its SPI, key and settings, it is the live SA.
    Asked(SaRequest),
}

impl From<TunnelRequest> for DesiredTunnel {
    fn from(request: TunnelRequest) -> Self {
        Self {
            field: request.field,
            settings: request.settings,
            inbound: request.inbound.map(DesiredSa::Asked),
            outbound: request.outbound.map(DesiredSa::Asked),
            dropped: Vec::new(),
            grace: replace::GRACE,
        }
    }
}

impl Live {
    /// What shall be when nothing changes.
    pub(super) fn unchanged(&self) -> Desired {
        let stays = |tunnel: &LiveTunnel| DesiredTunnel {
            field: format!("tunnel {:?}", tunnel.settings.name),
            settings: tunnel.settings.clone(),
            inbound: tunnel.inbound.as_ref().map(|_| DesiredSa::Stays),
            outbound: tunnel.outbound.as_ref().map(|_| DesiredSa::Stays),
            dropped: Vec::new(),
            grace: replace::GRACE,
        };
        Desired {
            tunnels: self.tunnels.iter().map(stays).collect(),
            policies: self.policies.iter().map(|policy| policy.settings.clone()).collect(),
            fallback: self.fallback,
            allow_legacy: self.allow_legacy,
            clamp_mss: self.clamp_mss,
            profiles: self.profiles.clone(),
            warnings: self.warnings.clone(),
        }
    }

    /// The tunnel of that name.
    pub fn tunnel(&self, name: &str) -> Option<&LiveTunnel> {
        self.tunnels.iter().find(|tunnel| &*tunnel.settings.name == name)
    }
}

/// A change, complete in memory; nothing of it is in use yet.
pub(super) struct Prepared {
    pub(super) live: Live,
    /// None while policies and their tunnels stay what they are.
    pub(super) spd: Option<Arc<Spd>>,
    pub(super) new_inbound: Vec<(String, Arc<InboundSa>)>,
    /// To be on stable storage before the switch.
    pub(super) grants: Vec<Grant>,
    pub(super) removed_inbound: Vec<Spi>,
    /// Live SAs whose policies changed.
    pub(super) selectors: Vec<(Arc<InboundSa>, Arc<Selectors>)>,
    /// Tunnels that send with another SA from now on, or with none.
    pub(super) outbound: Vec<(Arc<Tunnel>, Option<Arc<OutboundSa>>)>,
    /// To be told when it is done.
    pub(super) events: Vec<Event>,
    /// Steering and guard while both the old and the new policies may decide.
    pub(super) covers_during: (Cover, Cover),
    pub(super) change: Change,
}

impl Prepared {
    /// Checks and compiles a change.
    ///
    /// # Errors
    /// All problems.
    pub(super) fn new(old: &Live, leases: &Leases, desired: Desired) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let outlines: Vec<_> = desired.tunnels.iter().map(|tunnel| outline(tunnel, old, leases)).collect();
        consistent(&outlines, &desired.policies, &mut problems);
        let mut builder = Builder {
            old,
            leases,
            policies: &desired.policies,
            problems,
            new_inbound: Vec::new(),
            grants: Vec::new(),
            selectors: Vec::new(),
            outbound: Vec::new(),
            events: Vec::new(),
            change: Change {
                generation: old.generation + 1,
                warnings: desired.warnings.clone(),
                ..Change::default()
            },
        };
        let names: Vec<_> =
            outlines.iter().map(|outline| (&*outline.name, outline.through.as_deref())).collect();
        let mut wanted: Vec<_> = desired.tunnels.into_iter().map(Some).collect();
        let mut tunnels: Vec<Option<LiveTunnel>> = wanted.iter().map(|_| None).collect();
        for place in outermost_first(&names) {
            let outline = &outlines[place];
            let through = outline.through.as_ref().and_then(|name| {
                let mut made = tunnels.iter().flatten();
                made.find(|tunnel| tunnel.settings.name == *name).map(|tunnel| tunnel.tunnel.clone())
            });
            tunnels[place] = wanted[place].take().and_then(|tunnel| builder.tunnel(tunnel, outline, through));
        }
        let tunnels: Vec<_> = tunnels.into_iter().flatten().collect();
        let Builder { problems, new_inbound, grants, selectors, outbound, events, change, .. } = builder;
        problems.or(())?;

        let policies = live_policies(desired.policies, &tunnels, old);
        let generation = change.generation;
        let compiled = Compiled::new(old, &policies, desired.fallback, generation);
        // SPIs are unique among all that is live, old or new.
        let stays: HashSet<_> = tunnels.iter().flat_map(LiveTunnel::all_inbound).map(spi_of).collect();
        let inbound = old.tunnels.iter().flat_map(LiveTunnel::all_inbound).map(spi_of);
        Ok(Self {
            removed_inbound: inbound.filter(|spi| !stays.contains(spi)).collect(),
            covers_during: compiled.covers_during,
            live: Live {
                generation,
                fallback: desired.fallback,
                allow_legacy: desired.allow_legacy,
                clamp_mss: desired.clamp_mss,
                profiles: desired.profiles,
                warnings: desired.warnings,
                covers: compiled.covers,
                tunnels,
                policies,
            },
            spd: compiled.spd,
            new_inbound,
            grants,
            selectors,
            outbound,
            events,
            change,
        })
    }
}

fn path_of(tunnel: &Option<Arc<Tunnel>>) -> Option<&Arc<Path>> {
    tunnel.as_ref().map(|tunnel| &tunnel.path)
}

/// Whether both are the one, or neither is there.
fn same<T>(old: Option<&Arc<T>>, new: Option<&Arc<T>>) -> bool {
    old.map(Arc::as_ptr) == new.map(Arc::as_ptr)
}

fn spi_of(sa: &LiveSa<InboundSa>) -> Spi {
    sa.sa.spec.sa.spi
}

/// Policies, compiled, and what the hooks compare with during the change and after it.
struct Compiled {
    spd: Option<Arc<Spd>>,
    covers_during: (Cover, Cover),
    covers: (Cover, Cover),
}

impl Compiled {
    fn new(old: &Live, policies: &[LivePolicy], fallback: Fallback, generation: u64) -> Self {
        let same = |(new, old): (&LivePolicy, &LivePolicy)| Arc::ptr_eq(&new.policy, &old.policy);
        if old.generation > 0
            && fallback == old.fallback
            && policies.len() == old.policies.len()
            && policies.iter().zip(&old.policies).all(same)
        {
            return Self { spd: None, covers_during: old.covers.clone(), covers: old.covers.clone() };
        }
        let new: Vec<_> = policies.iter().map(|policy| policy.policy.clone()).collect();
        let both =
            new.iter().cloned().chain(old.policies.iter().map(|policy| policy.policy.clone())).collect();
        let strictest = if old.fallback == Fallback::Discard { Fallback::Discard } else { fallback };
        let both = Spd::new(both, strictest, generation);
        let spd = Spd::new(new, fallback, generation);
        Self {
            covers_during: (Cover::of(&both), Cover::of_protect(&both)),
            covers: (Cover::of(&spd), Cover::of_protect(&spd)),
            spd: Some(Arc::new(spd)),
        }
    }
}

/// What other tunnels and policies must agree with.
fn outline(tunnel: &DesiredTunnel, old: &Live, leases: &Leases) -> Outline {
    let live = old.tunnel(&tunnel.settings.name);
    let key_field = tunnel.settings.key_field();
    let sa =
        |desired: &Option<DesiredSa>, direction, live: Option<(Spi, Fingerprint)>| match desired.as_ref()? {
            DesiredSa::Stays => {
                let (spi, fingerprint) = live?;
                let field = format!("{}.{direction}", tunnel.field);
                Some(SaOutline { field, spi, fingerprint, key_field })
            }
            DesiredSa::Asked(request) => Some(SaOutline {
                field: request.field.clone(),
                spi: request.spi,
                fingerprint: fingerprint(leases.host_secret(), tunnel.settings.suite, &request.keys),
                key_field,
            }),
        };
    let live_inbound =
        live.and_then(|live| live.inbound.as_ref()).map(|sa| (sa.sa.spec.sa.spi, sa.fingerprint));
    let live_outbound =
        live.and_then(|live| live.outbound.as_ref()).map(|sa| (sa.sa.spec.sa.spi, sa.fingerprint));
    Outline {
        inbound: sa(&tunnel.inbound, "inbound", live_inbound),
        outbound: sa(&tunnel.outbound, "outbound", live_outbound),
        field: tunnel.field.clone(),
        name: tunnel.settings.name.clone(),
        local: tunnel.settings.local,
        remote: tunnel.settings.remote,
        carrier: tunnel.settings.carrier(),
        udp: tunnel.settings.udp,
        mode: tunnel.settings.mode,
        through: tunnel.settings.through.clone(),
    }
}

struct Builder<'a> {
    old: &'a Live,
    leases: &'a Leases,
    policies: &'a [PolicySettings],
    problems: Problems,
    new_inbound: Vec<(String, Arc<InboundSa>)>,
    grants: Vec<Grant>,
    selectors: Vec<(Arc<InboundSa>, Arc<Selectors>)>,
    outbound: Vec<(Arc<Tunnel>, Option<Arc<OutboundSa>>)>,
    events: Vec<Event>,
    change: Change,
}

impl Builder<'_> {
    fn tunnel(
        &mut self,
        desired: DesiredTunnel,
        outline: &Outline,
        through: Option<Arc<Tunnel>>,
    ) -> Option<LiveTunnel> {
        let DesiredTunnel { settings, inbound, outbound, dropped, grace, .. } = desired;
        let live = self.old.tunnel(&settings.name);
        let wanted = (inbound.is_some(), outbound.is_some());
        let inbound = inbound.zip(outline.inbound.as_ref());
        let inbound = inbound.and_then(|(sa, outline)| self.inbound(&settings, sa, outline, live));
        let outbound = outbound.zip(outline.outbound.as_ref());
        let outbound = outbound.and_then(|(sa, outline)| self.outbound(&settings, sa, outline, live));
        // Both directions first: all problems are told at once.
        if wanted != (inbound.is_some(), outbound.is_some()) {
            return None;
        }
        let retiring = self.retiring(&settings, inbound.as_ref(), live, &dropped, grace);
        let sa = outbound.as_ref().map(|sa| &sa.sa);
        if let (Some(old), Some(new)) = (live.and_then(|live| live.outbound.as_ref()), sa)
            && !Arc::ptr_eq(&old.sa, new)
        {
            self.events.push(Event::of_sa("sa_replaced", &settings.name, "out", new.spec.sa.spi));
        }
        let same_outer = |live: &&LiveTunnel| same(live.tunnel.through.as_ref(), through.as_ref());
        // What was told of the path holds on while its ends are the same, whatever else of the tunnel changes.
        let same_path = |live: &&LiveTunnel| {
            (live.settings.local, live.settings.remote) == (settings.local, settings.remote)
                && same(path_of(&live.tunnel.through), path_of(&through))
        };
        let path = live.filter(same_path).map(|live| live.tunnel.path.clone());
        let tunnel = match live.filter(|live| live.settings == settings).filter(same_outer) {
            // Policies and flow caches name the tunnel, and it names its SA.
            Some(LiveTunnel { tunnel, outbound: old, .. }) => {
                if old.as_ref().map(|old| Arc::as_ptr(&old.sa)) != sa.map(Arc::as_ptr) {
                    self.outbound.push((tunnel.clone(), sa.cloned()));
                }
                tunnel.clone()
            }
            None => Arc::new(Tunnel {
                name: settings.name.clone(),
                local: settings.local,
                remote: settings.remote,
                mode: settings.mode,
                udp: settings.udp,
                clamp_mss: settings.clamp_mss,
                tfc: settings.tfc.runtime(),
                through,
                fragmentation: settings.fragmentation,
                path: path.unwrap_or_default(),
                outbound: Published::new(sa.cloned()),
            }),
        };
        Some(LiveTunnel { settings, tunnel, inbound, retiring, outbound })
    }

    /// The inbound SAs that receive beside `inbound`: the one that it takes over from now, and those before it. None
    /// of another peer's.
    fn retiring(
        &mut self,
        settings: &TunnelSettings,
        inbound: Option<&LiveSa<InboundSa>>,
        live: Option<&LiveTunnel>,
        dropped: &[Spi],
        grace: Duration,
    ) -> Vec<RetiringSa> {
        let same_peer = |live: &&LiveTunnel| {
            (live.settings.local, live.settings.remote) == (settings.local, settings.remote)
        };
        let Some(live) = live.filter(same_peer) else { return Vec::new() };
        let other = |sa: &LiveSa<InboundSa>| inbound.is_none_or(|inbound| !Arc::ptr_eq(&inbound.sa, &sa.sa));
        let mut retiring = live.retiring.clone();
        retiring.retain(|old| other(&old.live) && !dropped.contains(&spi_of(&old.live)));
        if let (Some(new), Some(old)) = (inbound, live.inbound.as_ref().filter(|old| other(old))) {
            self.change.retiring += 1;
            self.events.push(Event::of_sa("sa_replaced", &settings.name, "in", spi_of(new)));
            let (old, settings) = (old.clone(), live.settings.clone());
            retiring.push(RetiringSa { live: old, settings, grace, overtaken: OnceLock::new() });
        }
        if retiring.len() > replace::MOST_RETIRING {
            self.problems.push(
                format!("tunnel {:?}.inbound", settings.name),
                format!(
                    "expected at most {} inbound SAs that the peer has not left yet, found one more; adit sa delete SPI                      removes one",
                    replace::MOST_RETIRING
                ),
            );
        }
        let selectors = selectors_of(&settings.name, self.policies, true);
        for old in &retiring {
            self.update_selectors(&old.live, &selectors);
        }
        retiring
    }

    /// Policies may have changed while the SA stays.
    fn update_selectors(&mut self, live: &LiveSa<InboundSa>, selectors: &[Selector]) {
        if live.sa.selectors.get().is_none_or(|old| *old.list != *selectors) {
            self.selectors.push((live.sa.clone(), Arc::new(Selectors::new(selectors.to_vec()))));
        }
    }

    fn inbound(
        &mut self,
        settings: &TunnelSettings,
        desired: DesiredSa,
        outline: &SaOutline,
        live: Option<&LiveTunnel>,
    ) -> Option<LiveSa<InboundSa>> {
        let selectors = selectors_of(&settings.name, self.policies, true);
        let same = |(sa, of): &(&LiveSa<InboundSa>, &TunnelSettings)| {
            sa.fingerprint == outline.fingerprint
                && spi_of(sa) == outline.spi
                && of.inbound_part() == settings.inbound_part()
        };
        // One that was replaced and is wanted again is still there.
        let current = live.and_then(|live| Some((live.inbound.as_ref()?, &live.settings)));
        let retiring = live.into_iter().flat_map(|live| &live.retiring);
        let known = current.into_iter().chain(retiring.map(|old| (&old.live, &old.settings)));
        if let Some((sa, _)) = known.into_iter().find(same) {
            self.change.kept += 1;
            self.update_selectors(sa, &selectors);
            return Some(sa.clone());
        }
        let DesiredSa::Asked(request) = desired else { return None };
        let mut in_use = self.old.tunnels.iter().flat_map(LiveTunnel::all_inbound).map(spi_of);
        if in_use.any(|spi| spi == request.spi) {
            let message =
                format!("expected a free SPI for a new SA, found {} in use; choose another", request.spi);
            self.problems.push(format!("{}.spi", outline.field), message);
        }
        let lease = self.lease(settings, outline, Direction::Inbound, request.fresh)?;
        // Everything up to the recorded ceiling counts as received.
        let spec = settings.inbound_spec(request.spi, selectors, used(&lease));
        let sa =
            self.expanded(settings, outline, &request.keys, |keys| InboundSa::under(lease, spec, keys))?;
        self.new_inbound.push((outline.field.clone(), sa.clone()));
        Some(LiveSa::new(sa, outline.fingerprint, settings.seconds))
    }

    fn outbound(
        &mut self,
        settings: &TunnelSettings,
        desired: DesiredSa,
        outline: &SaOutline,
        live: Option<&LiveTunnel>,
    ) -> Option<LiveSa<OutboundSa>> {
        let same = |sa: &&LiveSa<OutboundSa>| {
            sa.fingerprint == outline.fingerprint
                && sa.sa.spec.sa.spi == outline.spi
                && live.is_some_and(|live| live.settings.outbound_part() == settings.outbound_part())
        };
        if let Some(sa) = live.and_then(|live| live.outbound.as_ref()).filter(same) {
            self.change.kept += 1;
            return Some(sa.clone());
        }
        let DesiredSa::Asked(request) = desired else { return None };
        let lease = self.lease(settings, outline, Direction::Outbound, request.fresh)?;
        let selectors = selectors_of(&settings.name, self.policies, false);
        let spec = settings.outbound_spec(request.spi, selectors, used(&lease));
        let sa =
            self.expanded(settings, outline, &request.keys, |keys| OutboundSa::under(lease, spec, keys))?;
        // Behind a NAT the peer is where the SA before this one found it.
        if let Some(before) = live.and_then(|live| live.outbound.as_ref())
            && live.is_some_and(|live| live.settings.udp == settings.udp)
            && let (Some(before), Some(in_udp)) = (&before.sa.in_udp, &sa.in_udp)
            && let Some((address, port)) = before.peer.get()
        {
            in_udp.peer.follow(address, port);
            // Which is no news.
            let _ = in_udp.peer.news();
        }
        Some(LiveSa::new(sa, outline.fingerprint, settings.seconds))
    }

    /// The lease that an SA's numbers begin above, or none if it needs none; nothing if its key may not be used.
    fn lease(
        &mut self,
        settings: &TunnelSettings,
        outline: &SaOutline,
        direction: Direction,
        fresh: bool,
    ) -> Option<Option<Arc<Lease>>> {
        let id = outline.fingerprint;
        let purpose = Purpose::new(direction, settings.suite);
        let limit = settings.sequence_limit();
        let mut live = self.old.tunnels.iter().flat_map(LiveTunnel::fingerprints);
        let (field, message) = match self.leases.known(&id) {
            _ if live.any(|live| live == id) => (
                outline.key_field,
                "expected a key that no other SA uses, found the one of an SA that would change; adit sa delete that \
                 SA first, and its numbers go on, or give this one a new key (adit key generate)"
                    .into(),
            ),
            Some(Known::Record { purpose: known, .. }) if known != purpose => (
                outline.key_field,
                "expected a key for this direction and algorithm only, found one that this host used for another; \
                 adit key generate makes a new one"
                    .into(),
            ),
            Some(Known::Record { ceiling, .. }) if fresh => (
                "fresh-key",
                format!(
                    "expected no declaration, found that this key has a record up to number {ceiling}: it goes on \
                     above that; leave fresh-key out"
                ),
            ),
            Some(Known::Record { ceiling, .. }) if ceiling >= limit => (
                outline.key_field,
                format!(
                    "expected a key with sequence numbers left, found that all up to {limit} may have been used; give \
                     both gateways a new one (adit key generate)"
                ),
            ),
            Some(Known::Lost) => (
                outline.key_field,
                format!(
                    "expected the record of this key's numbers in {}, found one that is damaged or was put back: which \
                     were used is not known any more; give both gateways a new key (adit key generate)",
                    self.leases.directory().display()
                ),
            ),
            None if !fresh => (
                outline.key_field,
                format!(
                    "expected a record of this key's numbers in {}, found none. If nobody ever used the key, declare \
                     that once: adit key declare-fresh {tunnel} before aditd starts, adit reload --fresh {tunnel} while \
                     it runs, adit sa add --fresh-keys. If somebody did, give both gateways a new one (adit key generate)",
                    self.leases.directory().display(),
                    tunnel = settings.name
                ),
            ),
            Some(Known::Record { .. }) | None => {
                self.change.added += 1;
                // Without replay protection there is nothing to remember but that the key was used.
                let protected = direction == Direction::Outbound || settings.replay_window != 0;
                let lease = protected.then(|| self.leases.begin(&id));
                self.grants.push(Grant { id, purpose, lease: lease.clone(), limit });
                return Some(lease);
            }
        };
        self.problems.push(format!("{}.{field}", outline.field), message);
        None
    }

    fn expanded<T>(
        &mut self,
        settings: &TunnelSettings,
        outline: &SaOutline,
        material: &KeyMaterial,
        make: impl FnOnce(&KeyMaterial) -> Result<T, KeyError>,
    ) -> Option<Arc<T>> {
        match make(material) {
            Ok(sa) => Some(Arc::new(sa)),
            Err(error) => {
                let (field, message) = keys::describe(error, settings.suite);
                self.problems.push(format!("{}.{field}", outline.field), message);
                None
            }
        }
    }
}

/// What an SA under this lease begins above.
fn used(lease: &Option<Arc<Lease>>) -> u64 {
    lease.as_ref().map_or(0, |lease| lease.reached())
}

/// Policies as workers read them; an unchanged policy is the same object, a changed tunnel's keeps its count.
fn live_policies(settings: Vec<PolicySettings>, tunnels: &[LiveTunnel], old: &Live) -> Vec<LivePolicy> {
    settings
        .into_iter()
        .map(|settings| {
            let tunnel =
                tunnels.iter().find(|tunnel| Some(&tunnel.settings.name) == settings.tunnel.as_ref());
            let action = match (settings.action, tunnel) {
                (ActionName::Protect, Some(tunnel)) => Action::Protect(tunnel.tunnel.clone()),
                (ActionName::Bypass, _) => Action::Bypass,
                // `check::consistent` refused a PROTECT policy without a tunnel; were it not so, drop.
                (ActionName::Discard | ActionName::Protect, _) => Action::Discard,
            };
            let before = old.policies.iter().find(|policy| policy.settings.same(&settings));
            let same_tunnel = |policy: &&LivePolicy| match (&policy.policy.action, &action) {
                (Action::Protect(old), Action::Protect(new)) => Arc::ptr_eq(old, new),
                _ => true,
            };
            let policy = match before.filter(same_tunnel) {
                Some(before) => before.policy.clone(),
                None => Arc::new(Policy {
                    name: settings.name.clone(),
                    outbound: settings.outbound,
                    inbound: settings.inbound,
                    selectors: settings.selectors.clone(),
                    action,
                    packets: AtomicU64::new(before.map_or(0, |before| load(&before.policy.packets))),
                }),
            };
            LivePolicy { settings, policy }
        })
        .collect()
}

/// An SA that may be gone.
pub(super) enum WeakSa {
    Inbound(Weak<InboundSa>),
    Outbound(Weak<OutboundSa>),
}

impl WeakSa {
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inbound(a), Self::Inbound(b)) => a.ptr_eq(b),
            (Self::Outbound(a), Self::Outbound(b)) => a.ptr_eq(b),
            _ => false,
        }
    }

    /// Nobody holds it any more: its keys are wiped.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Inbound(sa) => sa.strong_count() == 0,
            Self::Outbound(sa) => sa.strong_count() == 0,
        }
    }
}

impl LiveTunnel {
    pub(super) fn weak(&self) -> impl Iterator<Item = WeakSa> {
        let inbound = self.all_inbound().map(|sa| WeakSa::Inbound(Arc::downgrade(&sa.sa)));
        let outbound = self.outbound.iter().map(|sa| WeakSa::Outbound(Arc::downgrade(&sa.sa)));
        inbound.chain(outbound)
    }

    fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        let inbound = self.all_inbound().map(|sa| sa.fingerprint);
        inbound.chain(self.outbound.iter().map(|sa| sa.fingerprint))
    }
}

/// A selector as the operator would read it: local, remote, protocol, ports or ICMP types.
pub(super) fn selector_text(selector: &Selector) -> String {
    use crate::sa::selector::UpperSelector;
    let span =
        |first: u16, last: u16| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let mut text = format!(
        "{} - {}",
        value::address_range_text(&selector.local),
        value::address_range_text(&selector.remote)
    );
    if selector.protocol.is_some() {
        text.push_str(&format!(" {}", value::next_layer_text(selector.protocol)));
    }
    match selector.upper {
        UpperSelector::Any => {}
        UpperSelector::Ports { local, remote } => {
            text.push_str(&format!(
                " ports {} - {}",
                span(local.first, local.last),
                span(remote.first, remote.last)
            ));
        }
        UpperSelector::Icmp { kinds, codes } => text.push_str(&format!(
            " type {} code {}",
            span(kinds.0.into(), kinds.1.into()),
            span(codes.0.into(), codes.1.into())
        )),
    }
    text
}
