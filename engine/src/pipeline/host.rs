//! The host path: what the gateway itself sends into its tunnels, and what comes out of them for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::outbound::Outbound;
use super::{DropReason, Frames, Pass, Received};
use crate::policy::Action;
use crate::route::PortId;
use crate::sa::selector::Direction;
use crate::sa::spec::Mode;
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::icmp::{self, IcmpError};
use crate::wire::ip::{self, Fragment, IpPacket};
use crate::wire::reader::FlowNumber;

/// The engine's end of the host path: errors about the gateway's own packets come from these addresses, which must
/// not be the gateway's own (its stack would not believe them).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostEnd {
    /// For errors about IPv4 packets.
    pub v4: Ipv4Addr,
    /// For errors about IPv6 packets.
    pub v6: Ipv6Addr,
}

/// A packet for the gateway's own stack.
pub struct Delivery<F> {
    /// Whose transmit frame it lies in.
    pub port: PortId,
    /// The packet, [`HEADER_LENGTH`] bytes from the start. Decrypted: to be wiped before the frame is free again.
    pub frame: F,
    /// Length of the IP packet.
    pub length: usize,
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// A packet that the gateway's own stack sent into the host path: through a tunnel, or in clear where a policy says so,
    /// or away.
    pub(super) fn sort_host(
        &mut self,
        index: usize,
        received: &mut Received<'_>,
        packet: &IpPacket,
        flow: Option<FlowNumber>,
        outbound: &mut Outbound<'g>,
    ) -> Result<(), DropReason> {
        if packet.fragment != Fragment::Whole && self.is_to_peer(packet) {
            self.reassemble_own(received.frame, packet);
            return Ok(());
        }
        let action = match self.policy(Direction::Outbound, packet, flow) {
            None => return Err(DropReason::HostUnprotected),
            Some(Action::Discard) => return Err(DropReason::PolicyDiscard),
            Some(action) => action,
        };
        // Whoever gets the kernel to forward something into the device must not get it any further.
        if !self.is_our_source(packet.flow.source) {
            return Err(DropReason::HostSource);
        }
        match action {
            Action::Protect(tunnel) => outbound.push(tunnel, index),
            // The routes into the device know addresses only, so the kernel cannot send it by itself.
            _ => self.forward(received, packet)?,
        }
        Ok(())
    }

    /// Whether a packet of the gateway's own is to a peer that it has SAs in transport mode with.
    #[cold]
    fn is_to_peer(&self, packet: &IpPacket) -> bool {
        let mut there = self.spd.tunnels_to(packet.flow.destination);
        there.any(|tunnel| matches!(tunnel.mode, Mode::Transport(_)) && tunnel.local == packet.flow.source)
    }

    /// Clear text from outside for the gateway itself, where a policy says so. The peer sent it as ours goes out: the
    /// kernel's way in knows no more of policies than its way out.
    #[cold]
    pub(super) fn deliver_clear_text(
        &mut self,
        received: &Received<'_>,
        packet: &IpPacket,
    ) -> Result<(), DropReason> {
        if self.frames.host().is_none() {
            return Err(DropReason::NoHostPath);
        }
        if self.is_our_source(packet.flow.source) {
            return Err(DropReason::InnerSource);
        }
        let length = packet.total_length as usize;
        let (port, mut frame) = self.take_any_frame(HEADER_LENGTH + length).ok_or(DropReason::NoFrame)?;
        let end = HEADER_LENGTH + length;
        frame[HEADER_LENGTH..end].copy_from_slice(&received.frame[HEADER_LENGTH..end]);
        self.deliver(port, frame, length);
        self.tally.bypassed += 1;
        Ok(())
    }

    /// A frame for the gateway's own stack, of whichever port has one.
    fn take_any_frame(&mut self, length: usize) -> Option<(PortId, F::Frame)> {
        let mut ports = (0..self.network.ports.len()).map(|index| PortId(index as u16));
        ports.find_map(|port| Some((port, self.take_frame(port, length).ok()?)))
    }

    /// Hands a finished packet to the gateway's own stack, from where it lies behind the Ethernet header's room.
    pub(super) fn deliver(&mut self, port: PortId, frame: F::Frame, length: usize) {
        self.results.deliveries.push(Delivery { port, frame, length });
    }

    /// As [`Pass::originate_error`], when the sender is the gateway's own stack.
    pub(super) fn originate_error_to_host(&mut self, offending: &[u8], error: IcmpError) {
        let (Ok(packet), Some(end)) = (ip::parse(offending), self.frames.host()) else { return };
        let source: IpAddr = if packet.flow.source.is_ipv4() { end.v4.into() } else { end.v6.into() };
        if !self.own.errors.spend(self.now) {
            return;
        }
        let room = HEADER_LENGTH + icmp::LONGEST_ERROR;
        let Some((port, mut frame)) = self.take_any_frame(room) else { return };
        let offending = &offending[..packet.total_length as usize];
        match icmp::write_error(&mut frame[HEADER_LENGTH..], error, offending, source) {
            Some(length) => {
                self.tally.originated += 1;
                self.deliver(port, frame, length);
            }
            None => self.frames.give_back(port, frame),
        }
    }
}
