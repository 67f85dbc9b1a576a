//! Whether what came out of an SA may go on, and where: its selectors, the policy, the route. The tables are asked
//! once for a flow; the answer is remembered from burst to burst while they stay what they are, that of a few flows at
//! hand, of thousands in a cache.

use super::nesting::is_sealed;
use super::scratch::{Egress, Link, Place, Route};
use super::{DropReason, Frames, Pass};
use crate::policy::{Action, FlowKey, Tunnel};
use crate::route::{PortId, Side};
use crate::sa::InboundSa;
use crate::sa::selector::{Direction, Selectors};
use crate::wire::ip::{Flow, Fragment, IpPacket};
use crate::wire::quote;
use crate::wire::reader::{FlowNumber, Seen};

/// A flow that selectors and policy let out of an SA, and where it goes.
pub(super) struct Admitted {
    /// The policy that wants it protected, by its place.
    policy: usize,
    pub(super) way: Way,
}

/// Where an admitted packet goes: never to an unprotected interface.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// To the gateway's own stack.
    Host,
    /// By a protected port.
    Out { port: PortId, link: Link },
    /// To an SA inside this one, whose tunnel this is by its place among the outer ones.
    Again { outer: usize },
}

/// The place of the policy where none was asked.
const NO_POLICY: usize = usize::MAX;

/// An [`Admitted`] by a port to a neighbour that is known.
#[derive(Clone, Copy, Default)]
pub(super) struct Admission {
    policy: u32,
    port: PortId,
    link: [u8; 12],
}

/// What an answer depends on: the generations of policies and routes, and the version of selectors, which no two SAs
/// have in common but those of one tunnel.
type Stamps = [u64; 3];

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// Before packets of an SA with those selectors are admitted: forgets what holds for others. `round`: of the reader
    /// that numbers their flows.
    pub(super) fn begin_to_admit(&mut self, selectors: Option<&Selectors>, round: u64) {
        let [policies, network, version] = self.stamps(selectors);
        self.own.admitted.look_at([policies, network, version, round]);
    }

    fn stamps(&self, selectors: Option<&Selectors>) -> Stamps {
        [self.spd.generation, self.network.generation, selectors.map_or(0, |selectors| selectors.version)]
    }

    /// Whether a packet out of `sa` is what the SA was agreed for, and what the policy wants from its tunnel; and its
    /// way on. `bytes` begin at its IP header.
    #[inline]
    pub(super) fn admit(
        &mut self,
        sa: &InboundSa,
        seen: &Seen<'_>,
        bytes: &[u8],
        selectors: Option<&Selectors>,
    ) -> Result<Place, DropReason> {
        let place = match self.own.admitted.find(seen.flow) {
            Some(place) => place,
            None => {
                let (flow, admitted) = self.ask(sa, seen, bytes, selectors)?;
                self.own.admitted.put(flow, admitted)
            }
        };
        let policy = self.own.admitted.at(place).map_or(NO_POLICY, |admitted| admitted.policy);
        self.count_policy(policy);
        Ok(place)
    }

    /// The tunnel that an admitted packet came by.
    pub(super) fn tunnel_of(&self, place: Place) -> Option<&'g Tunnel> {
        let admitted = self.own.admitted.at(place)?;
        match admitted.way {
            Way::Again { outer } => self.spd.tunnels().get(outer).map(|tunnel| &**tunnel),
            _ => self.spd.policies.get(admitted.policy)?.action.tunnel().map(|tunnel| &**tunnel),
        }
    }

    /// How an admitted packet leaves.
    pub(super) fn egress_at(&self, place: Place) -> Option<Egress<'g>> {
        match self.own.admitted.at(place)?.way {
            Way::Out { port: id, link } => {
                Some(Egress { id, port: self.network.ports.get(usize::from(id.0))?, link })
            }
            Way::Host | Way::Again { .. } => None,
        }
    }

    /// What an earlier burst was told.
    #[inline]
    fn recall(&self, key: &FlowKey, stamps: &Stamps) -> Option<Admitted> {
        let &Admission { policy, port, link } = self.own.admissions.get(key, stamps)?;
        let link = Link { addresses: link, unresolved: None };
        Some(Admitted { policy: policy as usize, way: Way::Out { port, link } })
    }

    /// What was asked earlier, or what the tables say now; and the flow that it is good for.
    #[inline(never)]
    fn ask(
        &mut self,
        sa: &InboundSa,
        seen: &Seen<'_>,
        bytes: &[u8],
        selectors: Option<&Selectors>,
    ) -> Result<(Option<FlowNumber>, Admitted), DropReason> {
        let packet = &seen.packet();
        let (flow, fragment) = (&packet.flow, packet.fragment);
        let key = FlowKey::new(Direction::Inbound, flow, fragment);
        let stamps = self.stamps(selectors);
        if let Some(admitted) = self.recall(&key, &stamps) {
            return Ok((seen.flow, admitted));
        }
        if is_sealed(packet) && self.is_our_destination(flow.destination) {
            // Not by policies: a tunnel says that it goes through this one, and the SA inside is to be its own.
            if let Some(outer) = self.spd.place_of_outer(&sa.spec.sa.tunnel) {
                // Without selectors there is no version of them that tells this SA from others.
                let flow = selectors.and(seen.flow);
                return Ok((flow, Admitted { policy: NO_POLICY, way: Way::Again { outer } }));
            }
        }
        // What one error quotes is no answer to the next one.
        let is_error = quote::is_error(packet);
        if is_error
            && self.spd.place_of_outer(&sa.spec.sa.tunnel).is_some()
            && self.is_our_destination(flow.destination)
            && let Some(reason) = self.error_from_inside(&sa.spec.sa.tunnel, bytes, packet)
        {
            return Err(reason);
        }
        if self.is_our_source(flow.source) {
            return Err(DropReason::InnerSource);
        }
        let agreed = self.agreed(sa, selectors, Direction::Inbound, flow, fragment);
        let policy = if agreed.is_err() && is_error {
            self.agreed_by_quote(sa, selectors, bytes, packet)?
        } else {
            agreed?
        };
        let (port, link) = match self.route(flow.destination) {
            Route::Local if is_sealed(packet) => return Err(DropReason::Nesting),
            Route::Local if self.frames.host().is_none() => return Err(DropReason::NoHostPath),
            Route::Local => {
                let flow = seen.flow.filter(|_| !is_error);
                return Ok((flow, Admitted { policy, way: Way::Host }));
            }
            Route::Port(Egress { id, port, link }) if port.side == Side::Protected => match port.up {
                true => (id, link),
                false => return Err(DropReason::LinkDown),
            },
            Route::Port(_) | Route::OtherInterface => return Err(DropReason::NoProtectedRoute),
            Route::Unreachable => return Err(DropReason::NoRoute),
        };
        let admitted = Admitted { policy, way: Way::Out { port, link } };
        // A neighbour may be found at any time.
        if link.unresolved.is_none() && !is_error {
            let admission = Admission { policy: policy as u32, port, link: link.addresses };
            self.own.admissions.put(key, stamps, admission);
            return Ok((seen.flow, admitted));
        }
        Ok((None, admitted))
    }

    /// The policy of a flow that `sa` is for.
    fn agreed(
        &self,
        sa: &InboundSa,
        selectors: Option<&Selectors>,
        direction: Direction,
        flow: &Flow,
        fragment: Fragment,
    ) -> Result<usize, DropReason> {
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
        Ok(policy)
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
    ) -> Result<usize, DropReason> {
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
