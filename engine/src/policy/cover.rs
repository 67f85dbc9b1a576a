//! The cover: prefixes that contain every packet a PROTECT or DISCARD policy means, for the kernel hooks.
//!
//! Two hooks ask two questions, so there are two covers.
//!
//! - Steering (XDP, on arrival) uses [`Cover::of`]: what lies under it goes to the engine, and policy decides
//!   there. PROTECT and DISCARD selectors count, whichever direction they speak for; with the fallback DISCARD
//!   the cover is everything.
//! - The egress guard (tc, on departure) uses [`Cover::of_protect`]: clear text under it is dropped, on
//!   unprotected interfaces what leaves, on protected ones what came in past the engine.
//!   DISCARD does not count there, least of all as a fallback: what the guard sees and steering did not is the
//!   kernel's own traffic, IKE and SSH among it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Action, Fallback, Policy, Spd, address_bits};
use crate::sa::selector::AddressRange;

/// A prefix with what the hooks need to know of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// Network address, host bits zero.
    pub network: IpAddr,
    /// Prefix length.
    pub length: u8,
}

impl Prefix {
    /// All of IPv4, 0.0.0.0/0.
    pub const ALL_V4: Self = Self { network: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 };
    /// All of IPv6, ::/0.
    pub const ALL_V6: Self = Self { network: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 };

    /// The one of this length, at most the address's width, that `address` lies in.
    pub fn around(address: IpAddr, length: u8) -> Self {
        let network = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        };
        Self { network, length }
    }

    /// The fewest that together are exactly `range`.
    pub fn of_range(range: AddressRange) -> Vec<Self> {
        prefixes(std::iter::once(range))
    }

    /// Whether `address` lies in it; never across versions.
    pub fn contains(&self, address: IpAddr) -> bool {
        let width = if self.network.is_ipv4() { 32 } else { 128 };
        let host_bits = width - u32::from(self.length);
        self.network.is_ipv4() == address.is_ipv4()
            && (address_bits(self.network) ^ address_bits(address)).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

/// What the hooks compare addresses with: lists that are minimal, disjoint and sorted, IPv4 first. Only a selector
/// for everything does not swallow the others: the whole address space then stands beside them, before the rest of
/// its version, because the egress guard is stricter with what a selector names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cover {
    /// Protected-side addresses of the selectors.
    pub local: Vec<Prefix>,
    /// Peer-side addresses of the selectors.
    pub remote: Vec<Prefix>,
    /// Not cover: the protected-side addresses of BYPASS selectors, and the peer-side ones. What arrives in clear for the
    /// gateway itself, under the cover, and has both, may be meant: the engine asks the policy. For steering only.
    pub bypass: (Vec<Prefix>, Vec<Prefix>),
    /// Not addresses: ports of ours besides 4500 that IKE and ESP in UDP come to, whatever the cover.
    pub nat_ports: Vec<u16>,
}

impl Cover {
    /// For steering: PROTECT and DISCARD selectors of `spd`; everything when its fallback is DISCARD.
    pub fn of(spd: &Spd) -> Self {
        let is_bypass = |policy: &Policy| matches!(policy.action, Action::Bypass);
        let Self { local, remote, .. } = Self::of_policies(spd, |policy| policy.inbound && is_bypass(policy));
        let bypass = (local, remote);
        if spd.fallback == Fallback::Discard {
            let everything = vec![Prefix::ALL_V4, Prefix::ALL_V6];
            let nat_ports = spd.nat_ports().to_vec();
            return Self { local: everything.clone(), remote: everything, bypass, nat_ports };
        }
        Self { bypass, ..Self::of_policies(spd, |policy| !is_bypass(policy)) }
    }

    /// For the egress guard: the PROTECT selectors of `spd`.
    pub fn of_protect(spd: &Spd) -> Self {
        Self::of_policies(spd, |policy| matches!(policy.action, Action::Protect(_)))
    }

    fn of_policies(spd: &Spd, counts: impl Fn(&Policy) -> bool) -> Self {
        let selectors = || spd.policies.iter().filter(|policy| counts(policy)).flat_map(|p| &p.selectors);
        Self {
            local: prefixes(selectors().map(|selector| selector.local)),
            remote: prefixes(selectors().map(|selector| selector.remote)),
            bypass: Default::default(),
            nat_ports: spd.nat_ports().to_vec(),
        }
    }

    /// Steering's question: may a packet with these addresses, seen from the gateway, be meant?
    pub fn contains(&self, local: IpAddr, remote: IpAddr) -> bool {
        holds(&self.local, local) && holds(&self.remote, remote)
    }

    /// The egress guard's question outside, asked of [`Cover::of_protect`]: is clear text from `source` to `destination`
    /// to be dropped? The source does not matter: addresses behind a peer are reached through its tunnel or not
    /// at all, even by what the kernel sends from an address of its own. Only where the remote cover is the
    /// whole address space (a default route into the tunnel) the source must lie in the local cover, or the
    /// gateway could not reach its peer.
    pub fn forbids_clear_text(&self, source: IpAddr, destination: IpAddr) -> bool {
        let mut containing = self.remote.iter().filter(|prefix| prefix.contains(destination));
        containing.any(|prefix| prefix.length > 0 || holds(&self.local, source))
    }
}

fn holds(prefixes: &[Prefix], address: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(address))
}

/// The fewest prefixes that together are exactly the union of `ranges`, and the whole address space, where it is one
/// of them, beside the union of the others.
fn prefixes(ranges: impl Iterator<Item = AddressRange>) -> Vec<Prefix> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for range in ranges {
        let bits = (address_bits(range.first), address_bits(range.last));
        if range.first.is_ipv4() { v4.push(bits) } else { v6.push(bits) }
    }
    let mut prefixes = Vec::new();
    for (mut ranges, width, everything) in [(v4, 32, Prefix::ALL_V4), (v6, 128, Prefix::ALL_V6)] {
        let is_v4 = width == 32;
        let all = (0, if is_v4 { u32::MAX.into() } else { u128::MAX });
        let has_all = ranges.contains(&all);
        ranges.retain(|range| *range != all);
        let named = union(ranges);
        // Halves that make a whole mean everything like the whole itself.
        if has_all && named != [all] {
            prefixes.push(everything);
        }
        for (first, last) in named {
            split(first, last, width, |bits, length| {
                let network = if is_v4 {
                    IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
                } else {
                    IpAddr::V6(Ipv6Addr::from_bits(bits))
                };
                prefixes.push(Prefix { network, length });
            });
        }
    }
    prefixes
}

/// Sorted ranges with gaps between them: overlapping and adjacent ones become one.
fn union(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut union: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match union.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
            _ => union.push((first, last)),
        }
    }
    union
}

/// The fewest prefixes of an address of `width` bits that are exactly `first..=last`: from the left, the largest
/// that is aligned and fits.
fn split(mut first: u128, last: u128, width: u32, mut emit: impl FnMut(u128, u8)) {
    loop {
        let aligned = first.trailing_zeros().min(width);
        // Bits of the largest power of two within what is left; what is left may be 2^128 addresses.
        let fits = (last - first).checked_add(1).map_or(width, u128::ilog2);
        let host_bits = aligned.min(fits);
        emit(first, (width - host_bits) as u8);
        // The last address of this prefix.
        let end = first | 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        if end >= last {
            return;
        }
        first = end + 1;
    }
}
