//! The host path: what the gateway itself sends into its tunnels, and what comes out of them for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::outbound::Outbound;
use super::{DropReason, Frames, Pass};
use crate::policy::Action;
use crate::route::PortId;
use crate::sa::selector::Direction;
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::icmp::{self, IcmpError};
use crate::wire::ip::{self, IpPacket};
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
    /// A packet that the gateway's own stack sent into the host path: through a tunnel, or away. Nothing leaves the
    /// host path in clear, whatever the policy: the kernel could have sent that itself.
    pub(super) fn sort_host(
        &mut self,
        index: usize,
        packet: &IpPacket,
        flow: Option<FlowNumber>,
        outbound: &mut Outbound<'g>,
    ) -> Result<(), DropReason> {
        match self.policy(Direction::Outbound, packet, flow) {
            // Whoever gets the kernel to forward something into the device must not get it into a tunnel.
            Some(Action::Protect(_)) if !self.is_our_source(packet.flow.source) => {
                Err(DropReason::HostSource)
            }
            Some(Action::Protect(tunnel)) => {
                outbound.push(tunnel, index);
                Ok(())
            }
            Some(Action::Discard) => Err(DropReason::PolicyDiscard),
            Some(Action::Bypass) | None => Err(DropReason::HostUnprotected),
        }
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
        let mut ports = (0..self.network.ports.len()).map(|index| PortId(index as u16));
        let room = HEADER_LENGTH + icmp::LONGEST_ERROR;
        let Some((port, mut frame)) = ports.find_map(|port| Some((port, self.frames.take(port, room)?)))
        else {
            return;
        };
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
