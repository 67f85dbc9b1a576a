//! Policies, in order, and the tunnels they protect with.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::classifier::Classifier;
use super::path::Path;
use super::tfc::Tfc;
use crate::sa::OutboundSa;
use crate::sa::publish::Published;
use crate::sa::selector::{Direction, Selector};
use crate::sa::spec::{Mode, UdpPorts};
use crate::wire::ip::{Flow, Fragment, Hidden};
use crate::wire::udp::NAT_TRAVERSAL_PORT;

/// Where a PROTECT policy sends: a slot that names its current outbound SA, so that rekeying leaves policies
/// and flow caches alone.
pub struct Tunnel {
    /// The operator's name.
    pub name: Arc<str>,
    /// Our endpoint.
    pub local: IpAddr,
    /// The peer's endpoint.
    pub remote: IpAddr,
    /// Whether it carries packets in packets, or between the endpoints themselves.
    pub mode: Mode,
    /// Where its ESP is in UDP.
    pub udp: Option<UdpPorts>,
    /// Lower TCP MSS to what the tunnel carries.
    pub clamp_mss: bool,
    /// Traffic-flow confidentiality.
    pub tfc: Tfc,
    /// The tunnel that this one's packets go through: ESP or AH in ESP or AH.
    pub through: Option<Arc<Tunnel>>,
    /// What may be fragmented and is too large.
    pub fragmentation: Fragmentation,
    /// What the way to the peer is told to be like. Another tunnel of the same way shares it.
    pub path: Arc<Path>,
    /// The SA that outbound packets take now.
    pub outbound: Published<OutboundSa>,
}

/// Most SAs that a packet is in at once, the outermost included.
pub const MOST_NESTED: usize = 4;

impl Tunnel {
    /// This tunnel, the one that it goes through, and so on, to the outermost.
    pub fn layers(&self) -> impl Iterator<Item = &Tunnel> {
        std::iter::successors(Some(self), |tunnel| tunnel.through.as_deref())
    }
}

/// When a packet that is too large is fragmented, if it may be (RFC 4301 section 8.2.1, case 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fragmentation {
    /// Each fragment is sealed by itself: the peer need not put ESP together.
    #[default]
    Before,
    /// What was sealed is fragmented: the peer puts it together, and its hosts get what ours sent.
    After,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tunnel({} {} -> {})", self.name, self.local, self.remote)
    }
}

/// What to do with a packet.
#[derive(Clone, Debug)]
pub enum Action {
    /// Through this tunnel; inbound, only from it.
    Protect(Arc<Tunnel>),
    /// Forward in clear.
    Bypass,
    /// Drop.
    Discard,
}

impl Action {
    /// The tunnel of PROTECT.
    pub fn tunnel(&self) -> Option<&Arc<Tunnel>> {
        match self {
            Self::Protect(tunnel) => Some(tunnel),
            Self::Bypass | Self::Discard => None,
        }
    }
}

/// One policy.
#[derive(Debug)]
pub struct Policy {
    /// The operator's name, unique.
    pub name: Arc<str>,
    /// The directions it speaks for: both unless the operator says otherwise.
    pub outbound: bool,
    /// See `outbound`.
    pub inbound: bool,
    /// Which packets. Several selectors are alternatives. Never empty.
    pub selectors: Vec<Selector>,
    /// What to do.
    pub action: Action,
    /// Packets it decided.
    pub packets: AtomicU64,
}

/// What happens to a packet that no policy means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fallback {
    /// It stays with the kernel when it never reached the engine, and is dropped when it did.
    #[default]
    Kernel,
    /// RFC 4301's final DISCARD: the cover is everything.
    Discard,
}

/// The compiled, immutable policy database of one generation.
pub struct Spd {
    /// Policies in order.
    pub policies: Vec<Arc<Policy>>,
    /// For packets no policy means.
    pub fallback: Fallback,
    /// Grows with every change; flow caches key on it.
    pub generation: u64,
    pub(super) classifier: Classifier,
    /// Policies but BYPASS, by their places, that ask for more than addresses.
    asking: Vec<usize>,
    /// Tunnels whose ESP is in UDP, each once.
    in_udp: Vec<Arc<Tunnel>>,
    /// Ports of ours that they use, besides 4500.
    nat_ports: Vec<u16>,
    /// Tunnels that send dummy packets, each once.
    pub with_dummies: Vec<Arc<Tunnel>>,
    /// What tunnels that go through others go through, by their names: whose packets claim to be, each burst asks.
    through: HashMap<Arc<str>, Arc<Tunnel>>,
    /// Tunnels that others go through, by their names: their places among the tunnels.
    outer: HashMap<Arc<str>, usize>,
    /// The tunnels of its policies, each once, and their places by their peers.
    tunnels: Vec<Arc<Tunnel>>,
    by_peer: HashMap<IpAddr, Vec<usize>>,
}

impl Policy {
    /// Whether it speaks for `direction`.
    pub fn speaks_for(&self, direction: Direction) -> bool {
        match direction {
            Direction::Outbound => self.outbound,
            Direction::Inbound => self.inbound,
        }
    }

    /// Whether one of its selectors means `flow`.
    pub fn matches(&self, direction: Direction, flow: &Flow, fragment: Fragment) -> bool {
        self.speaks_for(direction) && self.selectors.iter().any(|s| s.matches(direction, flow, fragment))
    }

    /// Whether one of its selectors might mean what `flow` is a piece of.
    fn may_match(&self, direction: Direction, flow: &Flow, fragment: Fragment) -> bool {
        self.speaks_for(direction) && self.selectors.iter().any(|s| s.may_match(direction, flow, fragment))
    }
}

impl Spd {
    /// Compiles `policies`, first match wins. 10,000 policies take some tens of milliseconds.
    pub fn new(policies: Vec<Arc<Policy>>, fallback: Fallback, generation: u64) -> Self {
        let classifier = Classifier::compile(&policies);
        let asks = |policy: &Policy| {
            !matches!(policy.action, Action::Bypass)
                && policy.selectors.iter().any(Selector::asks_of_next_layer)
        };
        let asking = (0..policies.len()).filter(|&index| asks(&policies[index])).collect();
        let mut seen = HashSet::new();
        let named = policies.iter().filter_map(|policy| policy.action.tunnel());
        let tunnels: Vec<_> = named
            .flat_map(|tunnel| std::iter::successors(Some(tunnel), |tunnel| tunnel.through.as_ref()))
            .filter(|tunnel| seen.insert(Arc::as_ptr(tunnel)))
            .cloned()
            .collect();
        let mut by_peer = HashMap::<_, Vec<_>>::new();
        for (index, tunnel) in tunnels.iter().enumerate() {
            by_peer.entry(tunnel.remote).or_default().push(index);
        }
        let with_dummies = tunnels.iter().filter(|tunnel| tunnel.tfc.dummies.is_some()).cloned().collect();
        let through: HashMap<_, _> = tunnels
            .iter()
            .filter_map(|tunnel| Some((Arc::clone(&tunnel.name), Arc::clone(tunnel.through.as_ref()?))))
            .collect();
        let is_outer: HashSet<_> = through.values().map(|outer| &outer.name).collect();
        let outer = (0..tunnels.len())
            .filter(|&place| is_outer.contains(&tunnels[place].name))
            .map(|place| (Arc::clone(&tunnels[place].name), place))
            .collect();
        let in_udp: Vec<_> = tunnels.iter().filter(|tunnel| tunnel.udp.is_some()).cloned().collect();
        let mut nat_ports: Vec<_> = in_udp.iter().filter_map(|tunnel| Some(tunnel.udp?.local())).collect();
        nat_ports.retain(|&port| port != NAT_TRAVERSAL_PORT);
        nat_ports.sort_unstable();
        nat_ports.dedup();
        Self {
            policies,
            fallback,
            generation,
            classifier,
            asking,
            in_udp,
            nat_ports,
            with_dummies,
            through,
            outer,
            tunnels,
            by_peer,
        }
    }

    /// The tunnel that the one called `name` goes through.
    pub fn outer_of(&self, name: &str) -> Option<&Tunnel> {
        self.through.get(name).map(|outer| &**outer)
    }

    /// The place among [`Spd::tunnels`] of the tunnel called `name`, if others go through it.
    pub fn place_of_outer(&self, name: &str) -> Option<usize> {
        self.outer.get(name).copied()
    }

    /// The name of the tunnel at a place of [`Spd::place_of_outer`].
    pub fn outer_name(&self, place: usize) -> Option<&Arc<str>> {
        self.tunnels.get(place).map(|outer| &outer.name)
    }

    /// Whether any tunnel goes through another.
    pub fn has_nested(&self) -> bool {
        !self.through.is_empty()
    }

    /// The tunnels that its policies protect with, each once.
    pub fn tunnels(&self) -> &[Arc<Tunnel>] {
        &self.tunnels
    }

    /// Those of them whose peer is set up at `peer`.
    pub fn tunnels_to(&self, peer: IpAddr) -> impl Iterator<Item = &Arc<Tunnel>> {
        self.by_peer.get(&peer).into_iter().flatten().map(|&index| &self.tunnels[index])
    }

    /// The tunnels whose ESP is in UDP, each once.
    pub fn in_udp(&self) -> &[Arc<Tunnel>] {
        &self.in_udp
    }

    /// Ports of ours that IKE and ESP in UDP come to, besides 4500: sorted, and few.
    pub fn nat_ports(&self) -> &[u16] {
        &self.nat_ports
    }

    /// Whether IKE and ESP in UDP come to this port of ours.
    #[inline]
    pub fn is_nat_port(&self, port: u16) -> bool {
        port == NAT_TRAVERSAL_PORT || self.nat_ports.contains(&port)
    }

    /// Index of the first policy that means `flow`. `None`, and so no way through, also for a packet that a BYPASS
    /// policy means but that might be a piece of what an earlier one protects or discards.
    pub fn classify(&self, direction: Direction, flow: &Flow, fragment: Fragment) -> Option<usize> {
        let index = self.classifier.classify(direction, flow, fragment)?;
        self.unless_hidden(index, direction, flow, fragment)
    }

    /// The same by linear search: the definition that [`Spd::classify`] must equal.
    pub fn classify_linear(&self, direction: Direction, flow: &Flow, fragment: Fragment) -> Option<usize> {
        let index = self.policies.iter().position(|policy| policy.matches(direction, flow, fragment))?;
        self.unless_hidden(index, direction, flow, fragment)
    }

    /// RFC 4301 section 7.4: clear text must not undermine what is protected. A later fragment has no ports, so it
    /// passes by a policy for port 80 that means the datagram it is a piece of. Under PROTECT that costs nothing;
    /// under BYPASS the rest of the datagram would leave in clear, or come in.
    fn unless_hidden(
        &self,
        index: usize,
        direction: Direction,
        flow: &Flow,
        fragment: Fragment,
    ) -> Option<usize> {
        let hides = || {
            flow.hides(fragment) != Hidden::Nothing
                && self
                    .asking
                    .iter()
                    .take_while(|&&earlier| earlier < index)
                    .any(|&earlier| self.policies[earlier].may_match(direction, flow, fragment))
        };
        let is_bypass = matches!(self.policies[index].action, Action::Bypass);
        (!is_bypass || !hides()).then_some(index)
    }
}
