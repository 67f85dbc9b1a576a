//! ICMP errors from outside about what we sealed (RFC 4301 sections 6.1 and 8.2). Nobody proved them, so they are
//! believed as far as they quote what only the way of the packet can have seen, and only lead to smaller packets.

use super::icmp::Budget;
use super::{DropReason, Frames, Pass, Received};
use crate::policy::path::{self, Trouble};
use crate::policy::{Spd, Tunnel};
use crate::sa::OutboundSa;
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::ip::{Fragment, IpPacket, Upper};
use crate::wire::quote::{self, ErrorKind, Quote};
use crate::wire::{Spi, protocol, udp};

/// What to make of ICMP errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpRules {
    /// Packet too big, from outside.
    pub accept_too_big: bool,
    /// Destination unreachable, likewise.
    pub accept_unreachable: bool,
    /// Time exceeded.
    pub accept_time_exceeded: bool,
    /// Parameter problem.
    pub accept_parameter_problem: bool,
    /// Whoever sends from inside what no policy lets out is told "administratively prohibited".
    pub tell_discarded: bool,
    /// A smaller path MTU than this is not believed, bytes.
    pub path_mtu_floor_v4: u32,
    /// The same over IPv6.
    pub path_mtu_floor_v6: u32,
    /// How long a path MTU holds after it was told, milliseconds.
    pub path_mtu_ageing: u64,
}

impl IcmpRules {
    fn accepts(&self, kind: ErrorKind) -> bool {
        match kind {
            ErrorKind::PacketTooBig { .. } => self.accept_too_big,
            ErrorKind::Unreachable => self.accept_unreachable,
            ErrorKind::TimeExceeded => self.accept_time_exceeded,
            ErrorKind::ParameterProblem => self.accept_parameter_problem,
        }
    }
}

impl Default for IcmpRules {
    fn default() -> Self {
        Self {
            accept_too_big: true,
            accept_unreachable: true,
            accept_time_exceeded: true,
            accept_parameter_problem: true,
            tell_discarded: false,
            path_mtu_floor_v4: 576,
            path_mtu_floor_v6: 1280,
            path_mtu_ageing: 600_000,
        }
    }
}

/// Tunnels that are searched one by one, at once and per second: for a peer behind a NAT, which may be anywhere.
const SEARCHES: u64 = 16;
pub(super) const SEARCH_BUDGET: Budget = Budget::new(SEARCHES, SEARCHES);

/// Among how many numbers before the last one a quoted one must be.
const RECENT: u64 = 1 << 16;

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// An ICMP error to one of our addresses, from outside: it ends here, one way or the other.
    #[cold]
    pub(super) fn error_from_outside(&mut self, received: &Received<'_>, packet: &IpPacket) -> DropReason {
        let Some((kind, quote)) = quote::read(&received.frame[HEADER_LENGTH..], packet) else {
            return DropReason::IcmpForged;
        };
        if !self.icmp.accepts(kind) {
            return DropReason::IcmpRefused;
        }
        match self.tunnel_that_sent(&quote) {
            Some(tunnel) => self.heed(tunnel, kind, &quote),
            None => DropReason::IcmpForged,
        }
    }

    /// An ICMP error to one of our addresses that came out of `outer`: of a router behind its peer, about what went into
    /// it, if it quotes a tunnel that goes through it. `None` where it does not, and is like any other packet.
    #[cold]
    pub(super) fn error_from_inside(
        &mut self,
        outer: &str,
        bytes: &[u8],
        packet: &IpPacket,
    ) -> Option<DropReason> {
        let (kind, quote) = quote::read(bytes, packet)?;
        let tunnel = self.tunnel_that_sent(&quote)?;
        tunnel.through.as_ref().filter(|through| &*through.name == outer)?;
        Some(if self.icmp.accepts(kind) { self.heed(tunnel, kind, &quote) } else { DropReason::IcmpRefused })
    }

    /// What an error says of the path of `tunnel`, which sent what it quotes.
    fn heed(&self, tunnel: &Tunnel, kind: ErrorKind, quote: &Quote<'_>) -> DropReason {
        let rules = self.icmp;
        let trouble = match kind {
            ErrorKind::PacketTooBig { mtu } => {
                let v6 = quote.flow.source.is_ipv6();
                let floor = if v6 { rules.path_mtu_floor_v6 } else { rules.path_mtu_floor_v4 };
                let mtu = match mtu {
                    // RFC 1191 section 5: the router is older than that. Whoever may tell any MTU may tell this one.
                    0 if !v6 => path::plateau_below(quote.length).max(floor),
                    mtu => mtu,
                };
                if mtu < floor {
                    return DropReason::IcmpRefused;
                }
                // RFC 8201 section 4: an error never makes the path's MTU larger; time does.
                let known = tunnel.path.mtu(self.now, rules.path_mtu_ageing);
                if known.is_none_or(|known| mtu <= known) {
                    tunnel.path.learn(mtu, self.now);
                }
                return DropReason::IcmpNoted;
            }
            ErrorKind::Unreachable => Trouble::Unreachable,
            ErrorKind::TimeExceeded => Trouble::TimeExceeded,
            ErrorKind::ParameterProblem => Trouble::ParameterProblem,
        };
        tunnel.path.note(trouble, self.now);
        DropReason::IcmpNoted
    }

    /// The tunnel whose outbound SA sent the quoted packet, not long ago.
    fn tunnel_that_sent(&mut self, quote: &Quote<'_>) -> Option<&'g Tunnel> {
        let said = Said::read(quote, self.spd)?;
        let (spd, guard) = (self.spd, self.guard);
        let sent = |tunnel: &&Tunnel| tunnel.outbound.load(guard).is_some_and(|sa| said.is_of(sa, quote));
        let mut there = spd.tunnels_to(quote.flow.destination).map(|tunnel| &**tunnel);
        if let Some(tunnel) = there.find(sent) {
            return Some(tunnel);
        }
        if said.ports.is_none() || !self.own.searches.spend(self.now) {
            return None;
        }
        spd.tunnels().iter().map(|tunnel| &**tunnel).find(sent)
    }
}

/// What a quote says of ESP or AH.
struct Said {
    spi: Spi,
    /// Where the quote reaches that far.
    sequence_low: Option<u32>,
    /// ESP in UDP: ours and the peer's.
    ports: Option<(u16, u16)>,
}

impl Said {
    /// `None` where it says nothing: no ESP or AH, or too little of it.
    fn read(quote: &Quote<'_>, spd: &Spd) -> Option<Self> {
        if quote.fragment == Fragment::Later {
            return None;
        }
        let (at, ports) = match (quote.flow.protocol, quote.flow.upper) {
            (protocol::ESP, _) => (0, None),
            // RFC 4302 section 2: next header, length and reserved come first.
            (protocol::AH, _) => (4, None),
            (protocol::UDP, Upper::Ports { source, destination }) if spd.is_nat_port(source) => {
                (udp::HEADER_LENGTH, Some((source, destination)))
            }
            _ => return None,
        };
        let word = |at: usize| Some(u32::from_be_bytes(*quote.payload.get(at..)?.first_chunk()?));
        Some(Self { spi: Spi(word(at)?), sequence_low: word(at + 4), ports })
    }

    /// Whether `sa` sent it.
    fn is_of(&self, sa: &OutboundSa, quote: &Quote<'_>) -> bool {
        let outer = sa.outer_now();
        let protocol = if outer.udp_ports.is_some() { protocol::UDP } else { outer.protocol };
        self.spi == sa.spec.sa.spi
            && (quote.flow.source, quote.flow.destination) == (outer.source, outer.destination)
            && (quote.flow.protocol, self.ports) == (protocol, outer.udp_ports)
            && self.sequence_low.is_none_or(|low| sent_lately(sa.last_sequence(), low))
    }
}

/// Whether the number with these low 32 bits is one of the last [`RECENT`] up to `last`.
fn sent_lately(last: u64, low: u32) -> bool {
    let ago = u64::from((last as u32).wrapping_sub(low));
    ago < RECENT && ago < last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lately_is_the_last_65536_numbers() {
        assert!(!sent_lately(0, 0), "nothing was sent");
        assert!(sent_lately(1, 1) && !sent_lately(1, 0) && !sent_lately(1, 2));
        assert!(sent_lately(70_000, 70_000) && sent_lately(70_000, 4_465) && !sent_lately(70_000, 4_464));
        // With 64-bit numbers the low half begins anew.
        let last = 0x1_0000_0003;
        assert!(sent_lately(last, 3) && sent_lately(last, u32::MAX) && sent_lately(last, 0));
        assert!(!sent_lately(last, 4) && sent_lately(last, 0xffff_0004) && !sent_lately(last, 0xffff_0003));
        assert!(!sent_lately(3, u32::MAX), "it was never sent");
    }
}
