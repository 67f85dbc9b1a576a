//! Whose is it? Reads frames, and puts each packet where it belongs.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::inbound::Inbound;
use super::outbound::Outbound;
use super::reassembly::Arrival;
use super::sealed;
use super::{DropReason, Frames, Pass, Received, Untagged};
use crate::policy::Action;
use crate::route::{Network, PortId, Side};
use crate::sa::selector::Direction;
use crate::transform::natt::{self, Datagram};
use crate::wire::ethernet::{self, ether_type};
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{Fragment, Hidden, IpPacket, IpVersion, Upper};
use crate::wire::reader::{FlowNumber, Reader, Seen};
use crate::wire::vlan::{self, Tags};
use crate::wire::{protocol, quote};

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// Takes the tags out of a frame, which is one of its VLAN's port then.
    #[cold]
    pub(super) fn untag(
        &mut self,
        index: usize,
        received: &mut Received<'_>,
    ) -> Result<IpVersion, DropReason> {
        let (tags, length) = Tags::read(received.frame).ok_or(DropReason::Vlan)?;
        let port = self.network.port_of_tags(received.port, tags).ok_or(DropReason::Vlan)?;
        received.port = port;
        received.frame = vlan::strip(std::mem::take(&mut received.frame), length);
        self.results.untagged.push(Untagged { index, port, length });
        ip_version(received.frame)
    }

    /// Puts one packet where it belongs: into a group, or forward in clear, or away.
    pub(super) fn sort(
        &mut self,
        index: usize,
        received: &mut Received<'_>,
        packet: &IpPacket,
        flow: Option<FlowNumber>,
        inbound: &mut Inbound<'g>,
        outbound: &mut Outbound<'g>,
    ) -> Result<(), DropReason> {
        if received.port > PortId::OWN {
            return self.sort_host(index, received, packet, flow, outbound);
        }
        // A port that is gone from the picture has no side: fail closed.
        let port = self.network.ports.get(usize::from(received.port.0)).ok_or(DropReason::PolicyDiscard)?;
        let to_us = self.is_our_destination(packet.flow.destination);
        // RFC 4301 section 5.2 step 2: only what is addressed to us is for us to decrypt.
        if to_us && packet.fragment != Fragment::Whole && Self::may_be_sealed(packet) {
            let arrival = Arrival { port: received.port, outer: None };
            return self.reassemble(arrival, received.frame, packet);
        }
        if to_us && matches!(packet.flow.protocol, protocol::ESP | protocol::AH) {
            self.sort_sealed(index, received.frame, packet, inbound)?;
            if let (Some(flow), Some((_, sa))) = (flow, self.memo.sa)
                && sealed::is_plain(sa)
            {
                self.memo.alike = Some((flow, received.port, sa));
            }
            return Ok(());
        }
        if to_us && self.is_nat_traversal(packet) {
            match natt::read(datagram(received.frame, packet)).map_err(|_| DropReason::Malformed)? {
                Datagram::Esp(..) => return self.sort_sealed(index, received.frame, packet, inbound),
                Datagram::Keepalive => return Err(DropReason::NatKeepalive),
                // The daemon's, as any other packet for the gateway itself.
                Datagram::Ike => {}
            }
        }
        if to_us && port.side == Side::Unprotected && quote::is_error(packet) {
            let reason = self.error_from_outside(received, packet);
            // Not about what we sealed: it may be about what goes in clear.
            if reason != DropReason::IcmpForged
                || !matches!(self.policy(Direction::Inbound, packet, flow), Some(Action::Bypass))
            {
                return Err(reason);
            }
            return self.deliver_clear_text(received, packet);
        }
        match port.side {
            Side::Protected if to_us => Err(DropReason::NoHostPath),
            Side::Protected => match self.policy(Direction::Outbound, packet, flow) {
                Some(Action::Protect(tunnel)) => {
                    if let Some((policy, _)) = self.memo.policy {
                        self.own.protected.put(flow, (received.port, policy));
                    }
                    outbound.push(tunnel, index);
                    Ok(())
                }
                Some(Action::Bypass) => self.forward(received, packet),
                decided => self.discard(index, received, packet, decided.is_some(), outbound),
            },
            Side::Unprotected => match self.policy(Direction::Inbound, packet, flow) {
                // RFC 4301 section 5.2 step 3b: what should have come protected.
                Some(Action::Protect(_)) => Err(DropReason::ClearText),
                Some(Action::Bypass) if to_us => self.deliver_clear_text(received, packet),
                Some(Action::Bypass) => self.forward(received, packet),
                Some(Action::Discard) => Err(DropReason::PolicyDiscard),
                None if to_us => Err(DropReason::NoHostPath),
                None => Err(DropReason::PolicyDiscard),
            },
        }
    }

    /// As [`Pass::sort`], for a flow that came in by the same port before and was to be protected. `None`, and nothing
    /// done, for anything else.
    #[inline(always)]
    pub(super) fn sort_protected(
        &mut self,
        index: usize,
        received: &Received<'_>,
        flow: Option<FlowNumber>,
        outbound: &mut Outbound<'g>,
    ) -> Option<()> {
        let protected = &self.own.protected;
        let &(port, policy) = protected.at(protected.find(flow)?)?;
        let action = &self.spd.policies.get(policy).filter(|_| received.port == port)?.action;
        outbound.push(action.tunnel()?, index);
        self.count_policy(policy);
        Some(())
    }

    /// From a protected port, and no policy lets it out: unless it is an ICMP error about what came in, which goes back
    /// the same way. By configuration the sender is told (RFC 4301 section 5.1.1).
    #[cold]
    fn discard(
        &mut self,
        index: usize,
        received: &Received<'_>,
        packet: &IpPacket,
        is_decided: bool,
        outbound: &mut Outbound<'g>,
    ) -> Result<(), DropReason> {
        let bytes = &received.frame[ethernet::HEADER_LENGTH..];
        if !is_decided
            && quote::is_error(packet)
            && let Some(tunnel) = self.tunnel_by_quote(bytes, packet)
        {
            outbound.push(tunnel, index);
            return Ok(());
        }
        if self.icmp.tell_discarded {
            self.originate_error(received, IcmpError::Prohibited);
        }
        Err(DropReason::PolicyDiscard)
    }

    /// What the policy says of a packet; counts it for the policy that decides.
    pub(super) fn policy(
        &mut self,
        direction: Direction,
        packet: &IpPacket,
        flow: Option<FlowNumber>,
    ) -> Option<&'g Action> {
        // Whoever is outside may send what looks like a flow from inside.
        let decisions = &mut self.own.decisions[direction as usize];
        let index = match decisions.find(flow).and_then(|place| decisions.at(place)) {
            Some(&index) => index,
            None => {
                let policies = &mut self.own.policies;
                let index = policies.classify(self.spd, direction, &packet.flow, packet.fragment)?;
                decisions.put(flow, index);
                index
            }
        };
        self.count_policy(index);
        self.spd.policies.get(index).map(|policy| &policy.action)
    }

    pub(super) fn count_policy(&mut self, index: usize) {
        match &mut self.memo.policy {
            Some((last, count)) if *last == index => *count += 1,
            _ => {
                self.write_down_policy();
                self.memo.policy = Some((index, 1));
            }
        }
    }

    pub(super) fn write_down_policy(&mut self) {
        if let Some((index, count)) = self.memo.policy.take()
            && let Some(policy) = self.spd.policies.get(index)
        {
            policy.packets.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Whether a fragment may be one of ESP or AH. A later one of UDP does not show its ports, so the first waits for it
    /// whatever its ports are; one of IPv6 not what stands behind the first header of the datagram.
    pub(super) fn may_be_sealed(packet: &IpPacket) -> bool {
        match packet.flow.protocol {
            protocol::ESP | protocol::AH | protocol::UDP => true,
            _ => packet.flow.hides(packet.fragment) == Hidden::Protocol,
        }
    }

    /// Whether a packet is for a port of RFC 3948.
    fn is_nat_traversal(&self, packet: &IpPacket) -> bool {
        packet.flow.protocol == protocol::UDP
            && matches!(packet.flow.upper, Upper::Ports { destination, .. } if self.spd.is_nat_port(destination))
    }

    pub(super) fn is_our_destination(&mut self, address: IpAddr) -> bool {
        is_local(self.network, &mut self.own.recent.destination, address)
    }

    pub(super) fn is_our_source(&mut self, address: IpAddr) -> bool {
        is_local(self.network, &mut self.own.recent.source, address)
    }
}

fn is_local(network: &Network, last: &mut Option<(IpAddr, bool)>, address: IpAddr) -> bool {
    match *last {
        Some((known, answer)) if known == address => answer,
        _ => {
            let answer = network.is_local(address);
            *last = Some((address, answer));
            answer
        }
    }
}

/// What follows the IP headers of a packet, to its end.
pub(super) fn datagram<'f>(frame: &'f [u8], packet: &IpPacket) -> &'f [u8] {
    let start = ethernet::HEADER_LENGTH + usize::from(packet.payload_offset);
    &frame[start..ethernet::HEADER_LENGTH + packet.total_length as usize]
}

/// The IP version that the Ethernet header says.
#[inline(always)]
pub(super) fn ip_version(frame: &[u8]) -> Result<IpVersion, DropReason> {
    match ethernet::parse(frame).map_err(|_| DropReason::Malformed)?.ether_type {
        ether_type::IPV4 => Ok(IpVersion::V4),
        ether_type::IPV6 => Ok(IpVersion::V6),
        ether_type::VLAN | ether_type::QINQ => Err(DropReason::Vlan),
        _ => Err(DropReason::NotIp),
    }
}

/// The packet behind the Ethernet header, which must be of that version.
#[inline(always)]
pub(super) fn read_ip<'r>(
    reader: &'r mut Reader,
    frame: &[u8],
    version: IpVersion,
) -> Result<Seen<'r>, DropReason> {
    match reader.read(&frame[ethernet::HEADER_LENGTH..]) {
        Ok(seen) if seen.like.version == version => Ok(seen),
        _ => Err(DropReason::Malformed),
    }
}
