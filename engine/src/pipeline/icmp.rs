//! ICMP errors of the gateway's own, back the way the offending packet came: out of its port, into its tunnel, or to
//! the gateway's own stack.
//! Bounded per second.

use std::net::IpAddr;

use super::scratch::Egress;
use super::{Frames, Output, Pass, Received};
use crate::policy::Action;
use crate::route::{PortId, Side};
use crate::sa::selector::Direction;
use crate::wire::ethernet::{self, Ethernet, HEADER_LENGTH};
use crate::wire::icmp::{self, IcmpError};
use crate::wire::ip;

/// Errors a worker may send at once, and per second (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f).
const BURST_ERRORS: u64 = 64;
const ERRORS_PER_SECOND: u64 = 1000;

/// A token bucket, in thousandths.
pub(super) struct Budget {
    most: u64,
    per_second: u64,
    thousandths: u64,
    refilled_at: u64,
}

impl Budget {
    /// For so many at once, and so many per second.
    pub(super) const fn new(most: u64, per_second: u64) -> Self {
        Self { most, per_second, thousandths: most * 1000, refilled_at: 0 }
    }

    /// For ICMP errors.
    pub(super) const fn errors() -> Self {
        Self::new(BURST_ERRORS, ERRORS_PER_SECOND)
    }

    /// Takes one, if it is there. `now` in milliseconds.
    pub(super) fn spend(&mut self, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.refilled_at);
        self.refilled_at = now.max(self.refilled_at);
        let earned = elapsed.saturating_mul(self.per_second);
        self.thousandths = self.thousandths.saturating_add(earned).min(self.most * 1000);
        let rich = self.thousandths >= 1000;
        if rich {
            self.thousandths -= 1000;
        }
        rich
    }
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// Tells the sender of a packet that is about to be dropped why; silently not, where none may be sent, none
    /// can be (no address, no frame) or too many were.
    pub(super) fn originate_error(&mut self, received: &Received<'_>, error: IcmpError) {
        let offending = &received.frame[HEADER_LENGTH..];
        if received.port > PortId::OWN {
            return self.originate_error_to_host(offending, error);
        }
        let (Ok(packet), Ok(link)) = (ip::parse(offending), ethernet::parse(received.frame)) else { return };
        let Some(port) = self.network.ports.get(usize::from(received.port.0)) else { return };
        let same_version = |address: &&IpAddr| address.is_ipv6() == packet.flow.source.is_ipv6();
        let Some(&source) = port.addresses.iter().find(same_version) else { return };
        if !self.own.errors.spend(self.now) {
            return;
        }
        let room = HEADER_LENGTH + icmp::LONGEST_ERROR;
        let Some(mut frame) = self.frames.take(received.port, room) else { return };
        let Some(length) = icmp::write_error(&mut frame[HEADER_LENGTH..], error, offending, source) else {
            return self.frames.give_back(received.port, frame);
        };
        // Back to the station that sent it here: the route to the sender may lead elsewhere, even outside.
        let header = Ethernet { destination: link.source, source: port.mac, ether_type: link.ether_type };
        ethernet::write(&mut frame, &header);
        if port.side == Side::Unprotected && self.must_not_leave_in_clear(&frame[HEADER_LENGTH..]) {
            // Like everything else that was not let out, what it quotes does not lie about in free frames.
            frame[..HEADER_LENGTH + length].fill(0);
            return self.frames.give_back(received.port, frame);
        }
        self.tally.originated += 1;
        self.results.outputs.push(Output {
            port: received.port,
            frame,
            length: HEADER_LENGTH + length,
            unresolved: None,
        });
    }

    /// As [`Pass::originate_error`], for a decrypted packet (`offending` begins at its IP header) that was on its way
    /// to `egress`: the error returns through the tunnel that the policy has for it, or not at all.
    pub(super) fn originate_error_through_tunnel(
        &mut self,
        egress: &Egress<'g>,
        offending: &[u8],
        error: IcmpError,
    ) {
        let Ok(packet) = ip::parse(offending) else { return };
        let same_version = |address: &&IpAddr| address.is_ipv6() == packet.flow.source.is_ipv6();
        let Some(&source) = egress.port.addresses.iter().find(same_version) else { return };
        if !self.own.errors.spend(self.now) {
            return;
        }
        // What lies behind the packet is padding.
        let offending = &offending[..packet.total_length as usize];
        let Some(length) = icmp::write_error(&mut self.own.fragments, error, offending, source) else {
            return;
        };
        let Ok(packet) = ip::parse(&self.own.fragments[..length]) else { return };
        let tunnel = match self.policy(Direction::Outbound, &packet, None) {
            Some(action) => action.tunnel().map(|tunnel| &**tunnel),
            // The port's address need not be one that the tunnel is for: what it quotes is.
            None => self.tunnel_by_quote(&self.own.fragments[..length], &packet),
        };
        if let Some(tunnel) = tunnel {
            self.seal_originated(tunnel, &packet);
        }
    }

    /// Our own packets too are subject to the policy (RFC 4301 section 5.1).
    fn must_not_leave_in_clear(&mut self, bytes: &[u8]) -> bool {
        match ip::parse(bytes) {
            Ok(packet) => matches!(
                self.policy(Direction::Outbound, &packet, None),
                Some(Action::Protect(_) | Action::Discard)
            ),
            Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_bounded_at_once_and_per_second() {
        let mut budget = Budget::errors();
        assert_eq!((0..1000).filter(|_| budget.spend(5)).count() as u64, BURST_ERRORS);
        let in_one_second = (0..10_000_u64).filter(|step| budget.spend(5 + step / 10)).count() as u64;
        assert!(in_one_second.abs_diff(ERRORS_PER_SECOND) <= 1, "{in_one_second}");
    }

    #[test]
    fn budget_survives_a_clock_that_stands_or_steps_back() {
        let mut budget = Budget::errors();
        while budget.spend(1000) {}
        assert!(!budget.spend(0));
        assert!(!budget.spend(1000));
        assert!(budget.spend(u64::MAX));
    }
}
