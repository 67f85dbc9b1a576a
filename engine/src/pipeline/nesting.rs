//! SAs in SAs (RFC 4301 section 4.3): what one tunnel has sealed goes through another before it leaves, and what one SA
//! has opened may be for another, where the tunnels say so (`through`), and nowhere else.
//!
//! Layer by layer, a burst at a time: no layer calls the next. There are at most [`MOST_NESTED`] of them, and none
//! twice: a tunnel is made of those that exist already, so they cannot go round in a circle.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::audit::Evidence;
use super::fragments::Completed;
use super::inbound::Inbound;
use super::outbound::Group;
use super::reassembly::Arrival;
use super::scratch::Egress;
use super::{BURST, DropReason, Frames, Pass, Received};
use crate::policy::Tunnel;
use crate::policy::spd::MOST_NESTED;
use crate::route::PortId;
use crate::sa::OutboundSa;
use crate::sa::spec::Workers;
use crate::transform::tunnel::OuterHeader;
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::ip::{self, Fragment, IpPacket};
use crate::wire::protocol;
use crate::wire::reader::Reader;

/// A packet between two layers, in a transmit frame.
pub(super) struct Nested<F> {
    pub(super) port: PortId,
    pub(super) frame: F,
    /// Of the IP packet behind the Ethernet header's room.
    pub(super) length: usize,
}

/// Where a tunnel's own packets go, and how large they may be to leave in one piece.
pub(super) struct WayOut<'g> {
    pub(super) egress: Egress<'g>,
    pub(super) mtu: u32,
}

/// Tunnels that carry one another, with their SAs.
type Layers<'g> = ArrayVec<(&'g Tunnel, &'g OutboundSa), MOST_NESTED>;

/// The place of a tunnel that no other goes through any more.
const NO_OUTER: usize = usize::MAX;

/// Whether a packet is what an SA makes.
pub(super) fn is_sealed(packet: &IpPacket) -> bool {
    matches!(packet.flow.protocol, protocol::ESP | protocol::AH)
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// The way of the packets that `outer`, `tunnel`'s own header, is in front of.
    pub(super) fn way_out(
        &mut self,
        tunnel: &'g Tunnel,
        outer: &OuterHeader,
    ) -> Result<WayOut<'g>, DropReason> {
        let way = match &tunnel.through {
            None => {
                let egress = self.outer_egress(outer)?;
                WayOut { mtu: egress.port.mtu, egress }
            }
            Some(through) => self.way_through(through)?,
        };
        Ok(WayOut { mtu: self.path_mtu(tunnel, way.mtu), ..way })
    }

    /// The same through all the tunnels from `tunnel` on.
    #[cold]
    fn way_through(&mut self, tunnel: &'g Tunnel) -> Result<WayOut<'g>, DropReason> {
        let layers = self.layers(tunnel)?;
        let (_, outermost) = layers.last().ok_or(DropReason::NoOutboundSa)?;
        let egress = self.outer_egress(&outermost.outer_now())?;
        // The path of each layer begins where the next one's peer opens it: any of them may be the narrowest.
        let inside =
            |mtu: u32, &(tunnel, sa): &(&Tunnel, &OutboundSa)| sa.inside_mtu(self.path_mtu(tunnel, mtu));
        let mtu = layers.iter().rev().fold(egress.port.mtu, inside);
        Ok(WayOut { egress, mtu })
    }

    /// `tunnel` and those that it goes through, the innermost first, each with its SA.
    fn layers(&self, tunnel: &'g Tunnel) -> Result<Layers<'g>, DropReason> {
        let mut layers = ArrayVec::new();
        for tunnel in tunnel.layers() {
            let sa = tunnel.outbound.load(self.guard).ok_or(DropReason::NoOutboundSa)?;
            if sa.lifetime.is_over() {
                return Err(DropReason::HardLifetime);
            }
            layers.try_push((tunnel, sa)).map_err(|_| DropReason::Nesting)?;
        }
        Ok(layers)
    }

    /// The worker that numbers and transmits for `tunnel`, whose SA is `sa`. All layers are one worker's: the outermost
    /// SA that has one decides.
    pub(super) fn owner_of(&self, tunnel: &'g Tunnel, sa: &'g OutboundSa) -> u32 {
        let own = self.own.worker;
        if tunnel.through.is_none() {
            return sa.owner(own);
        }
        let layers = tunnel.layers().filter_map(|tunnel| tunnel.outbound.load(self.guard));
        layers.filter(|sa| sa.spec.workers == Workers::One).last().map_or(own, |sa| sa.owner(own))
    }

    /// The owner of `tunnel`'s SAs cannot transmit any more where they leave: `other` can.
    pub(super) fn pass_on(&self, tunnel: &'g Tunnel, other: u32) {
        for sa in tunnel.layers().filter_map(|tunnel| tunnel.outbound.load(self.guard)) {
            sa.pass_on(self.own.worker, other);
        }
    }

    /// Sends what waits between layers through `tunnel`, and on through those that it goes through.
    #[cold]
    pub(super) fn seal_onwards(&mut self, tunnel: &'g Tunnel) {
        for tunnel in tunnel.layers() {
            let mut made = std::mem::take(&mut self.results.made);
            for layer in made.chunks_mut(BURST) {
                if let Err(reason) = self.seal_layer(tunnel, layer) {
                    for Nested { frame, length, .. } in layer {
                        self.drop(reason, &Evidence::between(frame, *length).into_tunnel(&tunnel.name));
                    }
                }
            }
            for Nested { port, mut frame, length } in made.drain(..) {
                // AH is in clear: it does not lie about in free frames.
                frame[HEADER_LENGTH..HEADER_LENGTH + length].fill(0);
                self.frames.give_back(port, frame);
            }
            if self.results.made.is_empty() {
                self.results.made = made;
            }
        }
    }

    fn seal_layer(&mut self, tunnel: &'g Tunnel, layer: &mut [Nested<F::Frame>]) -> Result<(), DropReason> {
        let sa = tunnel.outbound.load(self.guard).ok_or(DropReason::NoOutboundSa)?;
        if sa.lifetime.is_over() {
            return Err(DropReason::HardLifetime);
        }
        let outer = sa.outer_now();
        let WayOut { egress, mtu } = self.way_out(tunnel, &outer)?;
        let shared = Group::new(tunnel, sa, outer, egress, mtu);
        let mut packets = ArrayVec::<IpPacket, BURST>::new();
        let mut burst = ArrayVec::<Received<'_>, BURST>::new();
        for Nested { frame, length, .. } in layer {
            let frame = &mut frame[..HEADER_LENGTH + *length];
            match ip::parse(&frame[HEADER_LENGTH..]) {
                Ok(packet) => {
                    packets.push(packet);
                    burst.push(Received { port: PortId::OWN, frame });
                }
                // Larger than IP can say.
                Err(_) => {
                    self.drop(DropReason::TooBig, &Evidence::between(frame, *length).outbound(&sa.spec.sa));
                }
            }
        }
        self.seal_all(&mut burst, &packets, &shared, 0..packets.len());
        Ok(())
    }

    /// Opens what came out of an SA and is for another, layer by layer.
    #[cold]
    pub(super) fn open_onwards(&mut self, reader: &mut Reader) {
        // The first layer is what was received.
        for depth in 2.. {
            let mut opened = std::mem::take(&mut self.results.opened);
            if opened.is_empty() {
                self.results.opened = opened;
                return;
            }
            for layer in opened.chunks_mut(BURST) {
                match depth <= MOST_NESTED {
                    true => self.open_layer(layer, reader),
                    false => {
                        for (Nested { frame, length, .. }, _) in layer {
                            self.drop(DropReason::Nesting, &Evidence::between(frame, *length).into_gateway());
                        }
                    }
                }
            }
            for (Nested { port, frame, length }, _) in opened.drain(..) {
                self.give_back_wiped(port, frame, HEADER_LENGTH + length);
            }
        }
    }

    /// The same of datagrams whose fragments came out of SAs: none of them was opened yet.
    pub(super) fn open_completed(mut self, completed: &mut [Completed], reader: &mut Reader) {
        let spd = self.spd;
        let place = |name: &Arc<str>| spd.place_of_outer(name).unwrap_or(NO_OUTER);
        let layer = completed.iter_mut().filter_map(|Completed { outer, frame, .. }| {
            let outer = place(outer.as_ref()?);
            Some((&mut frame[..], outer))
        });
        self.open_frames(layer, reader);
        self.open_onwards(reader);
        self.write_down_policy();
    }

    fn open_layer(&mut self, layer: &mut [(Nested<F::Frame>, usize)], reader: &mut Reader) {
        self.open_frames(
            layer
                .iter_mut()
                .map(|(Nested { frame, length, .. }, outer)| (&mut frame[..HEADER_LENGTH + *length], *outer)),
            reader,
        );
    }

    /// Up to a burst of packets, and the places of the tunnels that they came out of.
    fn open_frames<'b>(&mut self, layer: impl Iterator<Item = (&'b mut [u8], usize)>, reader: &mut Reader) {
        let mut burst = ArrayVec::<Received<'_>, BURST>::new();
        let mut inbound = Inbound::new();
        for (frame, outer) in layer {
            let index = burst.len();
            let sorted = ip::parse(&frame[HEADER_LENGTH..])
                .map_err(|_| DropReason::InnerMalformed)
                .and_then(|packet| self.sort_nested(index, frame, &packet, outer, &mut inbound));
            if let Err(reason) = sorted {
                self.drop(reason, &Evidence::made(&frame[HEADER_LENGTH..]).into_gateway());
            }
            burst.push(Received { port: PortId::OWN, frame });
        }
        for (sa, group) in inbound.iter() {
            self.open_group(&burst, sa, group, reader);
        }
    }

    /// A packet that came out of the tunnel that `outer` stands for, for an SA whose tunnel goes through that one.
    fn sort_nested(
        &mut self,
        index: usize,
        frame: &[u8],
        packet: &IpPacket,
        outer: usize,
        inbound: &mut Inbound<'g>,
    ) -> Result<(), DropReason> {
        // RFC 4303 and RFC 4302 section 3.4.1: put together first, of what came out of that tunnel only.
        if packet.fragment != Fragment::Whole {
            let outer = self.spd.outer_name(outer).cloned();
            return self.reassemble(Arrival { port: PortId::OWN, outer }, frame, packet);
        }
        let sa = self.sa_of(frame, packet)?;
        let wanted = self.spd.outer_of(&sa.spec.sa.tunnel).map(|tunnel| &tunnel.name);
        if wanted.is_none() || wanted != self.spd.outer_name(outer) {
            return Err(DropReason::Nesting);
        }
        self.sort_sealed(index, frame, packet, inbound)
    }
}
