//! Whether what came out of an SA may go on, and where: its selectors, the policy, the route. The tables are asked
//! once for a flow; the answer is remembered from packet to packet of a group, and from burst to burst while they
//! stay what they are.

use super::scratch::{Egress, Few, Link, Route};
use super::{DropReason, Frames, Pass};
use crate::policy::{Action, FlowKey, Spd, Tunnel};
use crate::route::{Network, PortId, Side};
use crate::sa::InboundSa;
use crate::sa::publish::Guard;
use crate::sa::selector::{Direction, Selectors};
use crate::wire::ip::IpPacket;

/// A flow that selectors and policy let out of an SA, and where it goes.
pub(super) struct Admitted<'g> {
    /// The policy that wants it protected, by its place.
    policy: usize,
    /// The tunnel it names.
    pub(super) tunnel: &'g Tunnel,
    pub(super) way: Way<'g>,
}

/// Where an admitted packet goes: never to an unprotected interface.
pub(super) enum Way<'g> {
    /// To the gateway's own stack.
    Host,
    /// By a protected port.
    Out(Egress<'g>),
}

/// An [`Admitted`] by a port to a neighbour that is known, without what may be gone by the next burst.
#[derive(Clone, Copy, Default)]
pub(super) struct Admission {
    policy: u32,
    port: PortId,
    link: [u8; 12],
}

/// What an answer depends on: the generations of policies, routes and selectors.
type Stamps = [u64; 3];

/// What the packets of a group are admitted by.
pub(super) struct Admittance<'g> {
    selectors: Option<&'g Selectors>,
    stamps: Stamps,
    known: Few<Admitted<'g>>,
}

impl<'g> Admittance<'g> {
    pub(super) fn new(sa: &'g InboundSa, spd: &Spd, network: &Network, guard: &'g Guard<'g>) -> Self {
        let selectors = sa.selectors.load(guard);
        let version = selectors.map_or(0, |selectors| selectors.version);
        Self { selectors, stamps: [spd.generation, network.generation, version], known: Few::default() }
    }
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// Whether a packet out of `sa` is what the SA was agreed for, and what the policy wants from its tunnel; and its
    /// way on.
    #[inline]
    pub(super) fn admit<'a>(
        &mut self,
        sa: &InboundSa,
        packet: &IpPacket,
        admittance: &'a mut Admittance<'g>,
    ) -> Result<&'a Admitted<'g>, DropReason> {
        let key = FlowKey::new(Direction::Inbound, &packet.flow, packet.fragment);
        let Admittance { selectors, stamps, known } = admittance;
        let admitted = known.get_or_try(key, || match self.recall(&key, stamps) {
            Some(admitted) => Ok(admitted),
            None => self.ask(sa, packet, key, *selectors, stamps),
        })?;
        self.count_policy(admitted.policy);
        Ok(admitted)
    }

    /// What an earlier burst was told.
    #[inline(never)]
    fn recall(&self, key: &FlowKey, stamps: &Stamps) -> Option<Admitted<'g>> {
        let &Admission { policy, port, link } = self.own.admissions.get(key, stamps)?;
        let Action::Protect(tunnel) = &self.spd.policies.get(policy as usize)?.action else { return None };
        let link = Link { addresses: link, unresolved: None };
        let egress = Egress { id: port, port: self.network.ports.get(usize::from(port.0))?, link };
        Some(Admitted { policy: policy as usize, tunnel, way: Way::Out(egress) })
    }

    #[inline(never)]
    fn ask(
        &mut self,
        sa: &InboundSa,
        packet: &IpPacket,
        key: FlowKey,
        selectors: Option<&Selectors>,
        stamps: &Stamps,
    ) -> Result<Admitted<'g>, DropReason> {
        let (flow, fragment) = (&packet.flow, packet.fragment);
        if self.is_our_source(flow.source) {
            return Err(DropReason::InnerSource);
        }
        let mut selectors = selectors.into_iter().flat_map(|selectors| &*selectors.list);
        if !selectors.any(|selector| selector.matches(Direction::Inbound, flow, fragment)) {
            return Err(DropReason::SelectorMismatch);
        }
        let policy = self.spd.classify(Direction::Inbound, flow, fragment);
        let policy = policy.and_then(|index| Some((index, &self.spd.policies.get(index)?.action)));
        let Some((policy, Action::Protect(tunnel))) = policy else { return Err(DropReason::PolicyMismatch) };
        if tunnel.name != sa.spec.sa.tunnel {
            return Err(DropReason::PolicyMismatch);
        }
        let egress = match self.route(flow.destination) {
            Route::Local if self.frames.host().is_some() => {
                return Ok(Admitted { policy, tunnel, way: Way::Host });
            }
            Route::Local => return Err(DropReason::NoHostPath),
            Route::Port(egress) if egress.port.side == Side::Protected => egress,
            Route::Port(_) | Route::OtherInterface => return Err(DropReason::NoProtectedRoute),
            Route::Unreachable => return Err(DropReason::NoRoute),
        };
        if !egress.port.up {
            return Err(DropReason::LinkDown);
        }
        if egress.link.unresolved.is_none() {
            let admission = Admission { policy: policy as u32, port: egress.id, link: egress.link.addresses };
            self.own.admissions.put(key, *stamps, admission);
        }
        Ok(Admitted { policy, tunnel, way: Way::Out(egress) })
    }
}
