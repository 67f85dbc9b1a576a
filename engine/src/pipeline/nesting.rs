//! SAs in SAs (RFC 4301 section 4.3): what one tunnel has sealed goes through another before it leaves, and what one SA
//! has opened may be for another, where the tunnels say so (`through`), and nowhere else.
//!
//! Layer by layer, a burst at a time: no layer calls the next. There are at most [`MOST_NESTED`] of them, and none
//! twice: a tunnel is made of those that exist already, so they cannot go round in a circle.

use arrayvec::ArrayVec;

use super::audit::Evidence;
use super::inbound::Inbound;
use super::outbound::Group;
use super::scratch::Egress;
use super::{BURST, DropReason, Frames, Pass, Received};
use crate::policy::Tunnel;
use crate::policy::spd::MOST_NESTED;
use crate::route::PortId;
use crate::sa::OutboundSa;
use crate::sa::spec::{Mode, Workers};
use crate::transform::transport;
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
        match &tunnel.through {
            None => {
                let egress = self.outer_egress(outer)?;
                Ok(WayOut { mtu: self.outside_mtu(tunnel, &egress), egress })
            }
            Some(through) => self.way_through(through),
        }
    }

    /// The same through all the tunnels from `tunnel` on.
    #[cold]
    fn way_through(&mut self, tunnel: &'g Tunnel) -> Result<WayOut<'g>, DropReason> {
        let layers = self.layers(tunnel)?;
        let (outermost, sa) = *layers.last().ok_or(DropReason::NoOutboundSa)?;
        let egress = self.outer_egress(&sa.outer_now())?;
        let inside = |mtu: u32, (_, sa): &(&Tunnel, &OutboundSa)| match sa.spec.sa.mode {
            Mode::Tunnel => sa.outer.inside_mtu(mtu, &sa.layout),
            Mode::Transport(_) => transport::usual_inside_mtu(mtu, &sa.layout, sa.outer.version()),
        };
        let mtu = layers.iter().rev().fold(self.outside_mtu(outermost, &egress), inside);
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

    fn open_layer(&mut self, layer: &mut [(Nested<F::Frame>, usize)], reader: &mut Reader) {
        let mut burst = ArrayVec::<Received<'_>, BURST>::new();
        let mut inbound = Inbound::new();
        for (Nested { frame, length, .. }, outer) in layer {
            let (index, frame) = (burst.len(), &mut frame[..HEADER_LENGTH + *length]);
            let sorted = ip::parse(&frame[HEADER_LENGTH..])
                .map_err(|_| DropReason::InnerMalformed)
                .and_then(|packet| self.sort_nested(index, frame, &packet, *outer, &mut inbound));
            if let Err(reason) = sorted {
                self.drop(reason, &Evidence::between(frame, *length).into_gateway());
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
        // RFC 4303 and RFC 4302 section 3.4.1; nobody puts it together here.
        if packet.fragment != Fragment::Whole {
            return Err(DropReason::EspFragment);
        }
        let sa = self.sa_of(frame, packet)?;
        if self.spd.outer_of(&sa.spec.sa.tunnel).map(|tunnel| &tunnel.name) != self.spd.outer_name(outer) {
            return Err(DropReason::Nesting);
        }
        self.sort_sealed(index, frame, packet, inbound)
    }
}
