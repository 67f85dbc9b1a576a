//! Whether what came out of an SA may go on, and where: its selectors, the policy, the route. The tables are asked
//! once for a flow; the answer is remembered from packet to packet of a group, and from burst to burst while they
//! stay what they are.

use super::nesting::is_sealed;
use super::scratch::{Answer, Egress, Few, Link, Route};
use super::{DropReason, Frames, Pass};
use crate::policy::{Action, FlowKey, Spd, Tunnel};
use crate::route::{Network, PortId, Side};
use crate::sa::InboundSa;
use crate::sa::publish::Guard;
use crate::sa::selector::{Direction, Selectors};
use crate::wire::ip::{Flow, Fragment, IpPacket};
use crate::wire::quote;
use crate::wire::reader::Seen;

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
    /// To an SA inside this one, whose tunnel this is by its place among the outer ones.
    Again { outer: usize },
}

/// The place of the policy where none was asked.
const NO_POLICY: usize = usize::MAX;

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
    /// way on. `bytes` begin at its IP header.
    #[inline]
    pub(super) fn admit<'a>(
        &mut self,
        sa: &InboundSa,
        seen: &Seen<'_>,
        bytes: &[u8],
        admittance: &'a mut Admittance<'g>,
    ) -> Result<&'a Admitted<'g>, DropReason> {
        let Admittance { selectors, stamps, known } = admittance;
        let admitted = known.get_or_ask(seen.flow, || self.ask(sa, seen, bytes, *selectors, stamps))?;
        self.count_policy(admitted.policy);
        Ok(admitted)
    }

    /// What an earlier burst was told.
    #[inline]
    fn recall(&self, key: &FlowKey, stamps: &Stamps) -> Option<Admitted<'g>> {
        let &Admission { policy, port, link } = self.own.admissions.get(key, stamps)?;
        let Action::Protect(tunnel) = &self.spd.policies.get(policy as usize)?.action else { return None };
        let link = Link { addresses: link, unresolved: None };
        let egress = Egress { id: port, port: self.network.ports.get(usize::from(port.0))?, link };
        Some(Admitted { policy: policy as usize, tunnel, way: Way::Out(egress) })
    }

    /// What an earlier burst was told, or what the tables say now.
    #[inline(never)]
    fn ask(
        &mut self,
        sa: &InboundSa,
        seen: &Seen<'_>,
        bytes: &[u8],
        selectors: Option<&Selectors>,
        stamps: &Stamps,
    ) -> Result<Answer<Admitted<'g>>, DropReason> {
        let packet = &seen.packet();
        let (flow, fragment) = (&packet.flow, packet.fragment);
        let key = FlowKey::new(Direction::Inbound, flow, fragment);
        if let Some(answer) = self.recall(&key, stamps) {
            return Ok(Answer { answer, is_for_all: true });
        }
        if is_sealed(packet) && self.is_our_destination(flow.destination) {
            // Not by policies: a tunnel says that it goes through this one, and the SA inside is to be its own.
            if let Some((outer, tunnel)) = self.spd.place_of_outer(&sa.spec.sa.tunnel) {
                let answer = Admitted { policy: NO_POLICY, tunnel, way: Way::Again { outer } };
                return Ok(Answer { answer, is_for_all: true });
            }
        }
        if self.is_our_source(flow.source) {
            return Err(DropReason::InnerSource);
        }
        let agreed = self.agreed(sa, selectors, Direction::Inbound, flow, fragment);
        let is_by_quote = agreed.is_err() && quote::is_error(packet);
        let (policy, tunnel) =
            if is_by_quote { self.agreed_by_quote(sa, selectors, bytes, packet)? } else { agreed? };
        // What one error quotes is no answer to the next one.
        let is_for_all = !is_by_quote;
        let egress = match self.route(flow.destination) {
            Route::Local if is_sealed(packet) => return Err(DropReason::Nesting),
            Route::Local if self.frames.host().is_some() => {
                return Ok(Answer { answer: Admitted { policy, tunnel, way: Way::Host }, is_for_all });
            }
            Route::Local => return Err(DropReason::NoHostPath),
            Route::Port(egress) if egress.port.side == Side::Protected => egress,
            Route::Port(_) | Route::OtherInterface => return Err(DropReason::NoProtectedRoute),
            Route::Unreachable => return Err(DropReason::NoRoute),
        };
        if !egress.port.up {
            return Err(DropReason::LinkDown);
        }
        if egress.link.unresolved.is_none() && is_for_all {
            let admission = Admission { policy: policy as u32, port: egress.id, link: egress.link.addresses };
            self.own.admissions.put(key, *stamps, admission);
        }
        Ok(Answer { answer: Admitted { policy, tunnel, way: Way::Out(egress) }, is_for_all })
    }

    /// The policy and the tunnel of a flow that `sa` is for.
    fn agreed(
        &self,
        sa: &InboundSa,
        selectors: Option<&Selectors>,
        direction: Direction,
        flow: &Flow,
        fragment: Fragment,
    ) -> Result<(usize, &'g Tunnel), DropReason> {
        let mut selectors = selectors.into_iter().flat_map(|selectors| &*selectors.list);
        if !selectors.any(|selector| selector.matches(direction, flow, fragment)) {
            return Err(DropReason::SelectorMismatch);
        }
        let policy = self.spd.classify(direction, flow, fragment);
        let policy = policy.and_then(|index| Some((index, &self.spd.policies.get(index)?.action)));
        let Some((policy, Action::Protect(tunnel))) = policy else { return Err(DropReason::PolicyMismatch) };
        if tunnel.name != sa.spec.sa.tunnel {
            return Err(DropReason::PolicyMismatch);
        }
        Ok((policy, tunnel))
    }

    /// RFC 4301 section 6.2: an ICMP error of a router behind the peer comes by the SA of the packets it is about, which
    /// were sent the other way; so what it quotes is held to the SA, and it goes to whom that came from.
    #[cold]
    fn agreed_by_quote(
        &self,
        sa: &InboundSa,
        selectors: Option<&Selectors>,
        bytes: &[u8],
        packet: &IpPacket,
    ) -> Result<(usize, &'g Tunnel), DropReason> {
        let (_, quote) = quote::read(bytes, packet).ok_or(DropReason::IcmpQuote)?;
        if quote.flow.source != packet.flow.destination {
            return Err(DropReason::IcmpQuote);
        }
        self.agreed(sa, selectors, Direction::Outbound, &quote.flow, quote.fragment)
            .map_err(|_| DropReason::IcmpQuote)
    }

    /// The same the other way (RFC 4301 section 6.2): the tunnel for an ICMP error that no policy means, by the packet
    /// it is about, which came out of there.
    #[cold]
    pub(super) fn tunnel_by_quote(&self, bytes: &[u8], packet: &IpPacket) -> Option<&'g Tunnel> {
        let (_, quote) = quote::read(bytes, packet)?;
        if quote.flow.source != packet.flow.destination {
            return None;
        }
        let index = self.spd.classify(Direction::Inbound, &quote.flow, quote.fragment)?;
        self.spd.policies.get(index)?.action.tunnel().map(|tunnel| &**tunnel)
    }
}
