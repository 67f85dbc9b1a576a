//! Longest-prefix match over flat arrays.
//!
//! Prefixes nest or are disjoint, so a table is a line cut into intervals, each with one answer: the prefix with
//! the highest start and greatest length that holds it. A lookup is one binary search for the interval, without
//! pointers to follow; 10,000 prefixes are at most 20,001 intervals. In a long table an index over the highest 16
//! bits of the address says where to search, which spares most of the steps, and the cache misses with them.
//!
//! The tables change as a whole. The kernel's own order of lookups is kept: the local table first, then main.

use std::net::IpAddr;

use super::NextHop;
use super::builder::RouteTarget;

/// Tables longer than this get an index; shorter ones are faster without.
const INDEX_FROM: usize = 64;
const INDEX_BITS: u32 = 16;

/// An address as a number.
pub(super) trait Bits: Copy + Ord {
    const ZERO: Self;
    /// The highest [`INDEX_BITS`] bits.
    fn top(self) -> usize;
    /// Whether it is the first address with these highest bits.
    fn is_first_of(self, top: usize) -> bool;
    /// The last address of the prefix of `length` bits that begins at `self`; `None` for `after` past the end.
    fn last(self, length: u8) -> Self;
    fn after(self) -> Option<Self>;
}

impl Bits for u32 {
    const ZERO: Self = 0;
    fn top(self) -> usize {
        (self >> (Self::BITS - INDEX_BITS)) as usize
    }
    fn is_first_of(self, top: usize) -> bool {
        self == (top as Self) << (Self::BITS - INDEX_BITS)
    }
    fn last(self, length: u8) -> Self {
        self | Self::MAX.checked_shr(length.into()).unwrap_or(0)
    }
    fn after(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Bits for u128 {
    const ZERO: Self = 0;
    fn top(self) -> usize {
        (self >> (Self::BITS - INDEX_BITS)) as usize
    }
    fn is_first_of(self, top: usize) -> bool {
        self == (top as Self) << (Self::BITS - INDEX_BITS)
    }
    fn last(self, length: u8) -> Self {
        self | Self::MAX.checked_shr(length.into()).unwrap_or(0)
    }
    fn after(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// Answers of one table for one IP version.
struct Intervals<B, A> {
    /// First address of each interval; the first is zero.
    starts: Vec<B>,
    answers: Vec<Option<A>>,
    /// How many intervals start at or below the first address with these highest bits, for each value of them
    /// and one beyond; empty for a short table.
    index: Vec<u32>,
}

impl<B: Bits, A: Copy + PartialEq> Intervals<B, A> {
    /// `prefixes` are (network, length, answer), host bits zero, no two alike.
    fn compile(mut prefixes: Vec<(B, u8, A)>) -> Self {
        prefixes.sort_unstable_by_key(|&(network, length, _)| (network, length));
        let mut intervals = Self { starts: vec![B::ZERO], answers: vec![None], index: Vec::new() };
        // The prefixes that hold the current position, longest last.
        let mut open: Vec<(B, A)> = Vec::new();
        for (network, length, answer) in prefixes {
            intervals.close(&mut open, Some(network));
            open.push((network.last(length), answer));
            intervals.begin(network, Some(answer));
        }
        intervals.close(&mut open, None);
        if intervals.starts.len() > INDEX_FROM {
            intervals.index = index(&intervals.starts);
        }
        intervals
    }

    /// Ends what ends before `position` (or at all).
    fn close(&mut self, open: &mut Vec<(B, A)>, position: Option<B>) {
        while let Some((last, _)) = open.pop_if(|(last, _)| position.is_none_or(|position| *last < position))
        {
            if let Some(next) = last.after() {
                self.begin(next, open.last().map(|&(_, answer)| answer));
            }
        }
    }

    fn begin(&mut self, start: B, answer: Option<A>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.answers.pop();
        }
        if self.answers.last() != Some(&answer) {
            self.starts.push(start);
            self.answers.push(answer);
        }
    }

    fn lookup(&self, address: B) -> Option<A> {
        // The first interval starts at zero, so some interval starts at or below every address.
        let interval = match self.index.get(address.top()..address.top() + 2) {
            Some(&[begin, end]) => {
                let (begin, end) = (begin as usize, end as usize);
                begin + self.starts[begin..end].partition_point(|start| *start <= address) - 1
            }
            _ => self.starts.partition_point(|start| *start <= address) - 1,
        };
        self.answers[interval]
    }
}

/// For each value of the highest bits, how many starts have lower or, at their first address, equal ones.
fn index<B: Bits>(starts: &[B]) -> Vec<u32> {
    let mut index = Vec::with_capacity((1 << INDEX_BITS) + 1);
    let mut count = 0;
    for top in 0..1usize << INDEX_BITS {
        // Starts with lower bits belong below; a start at the very first address with these bits too.
        while starts.get(count).is_some_and(|start| start.top() < top || start.is_first_of(top)) {
            count += 1;
        }
        index.push(count as u32);
    }
    index.push(starts.len() as u32);
    index
}

/// Both IP versions of one table.
struct Table<A> {
    v4: Intervals<u32, A>,
    v6: Intervals<u128, A>,
}

impl<A: Copy + PartialEq> Table<A> {
    fn compile(prefixes: impl Iterator<Item = ((IpAddr, u8), A)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for ((network, length), answer) in prefixes {
            match network {
                IpAddr::V4(network) => v4.push((network.to_bits(), length, answer)),
                IpAddr::V6(network) => v6.push((network.to_bits(), length, answer)),
            }
        }
        Self { v4: Intervals::compile(v4), v6: Intervals::compile(v6) }
    }

    fn lookup(&self, address: IpAddr) -> Option<A> {
        match address {
            IpAddr::V4(address) => self.v4.lookup(address.to_bits()),
            IpAddr::V6(address) => self.v6.lookup(address.to_bits()),
        }
    }
}

/// A prefix of the local table is an address of the gateway, or one that is never forwarded to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LocalKind {
    Own,
    /// Broadcast, multicast, or withheld on purpose.
    NotForwarded,
}

/// Longest-prefix routes: the gateway's own addresses, and the main table.
pub struct Routes {
    local: Table<LocalKind>,
    own: Vec<IpAddr>,
    /// Indexes into `targets`: few next hops, many prefixes.
    main: Table<u32>,
    targets: Vec<RouteTarget>,
}

impl Routes {
    /// `local` and `main` hold each prefix once, host bits zero.
    pub(super) fn compile(
        local: impl Iterator<Item = ((IpAddr, u8), LocalKind)>,
        main: impl Iterator<Item = ((IpAddr, u8), RouteTarget)>,
    ) -> Self {
        let mut numbers = std::collections::HashMap::new();
        let mut targets = Vec::new();
        let main = main.map(|(prefix, target)| {
            let number = *numbers.entry(target).or_insert_with(|| {
                targets.push(target);
                targets.len() as u32 - 1
            });
            (prefix, number)
        });
        let main = Table::compile(main);
        let local: Vec<_> = local.collect();
        let is_address = |address: &IpAddr, length: u8| length == if address.is_ipv4() { 32 } else { 128 };
        let mut own: Vec<_> = local
            .iter()
            .filter(|((address, length), kind)| *kind == LocalKind::Own && is_address(address, *length))
            .map(|((address, _), _)| *address)
            .collect();
        own.sort_unstable();
        Self { local: Table::compile(local.into_iter()), own, main, targets }
    }

    pub(super) fn next_hop(&self, destination: IpAddr) -> NextHop {
        match self.local.lookup(destination) {
            Some(LocalKind::Own) => return NextHop::Local,
            Some(LocalKind::NotForwarded) => return NextHop::Unreachable,
            None => {}
        }
        if !is_forwardable(destination) {
            return NextHop::Unreachable;
        }
        match self.main.lookup(destination).map(|number| self.targets[number as usize]) {
            Some(RouteTarget::OnLink(port)) => NextHop::Port { port, neighbour: destination },
            Some(RouteTarget::Gateway(port, neighbour)) => NextHop::Port { port, neighbour },
            Some(RouteTarget::OtherInterface) => NextHop::OtherInterface,
            Some(RouteTarget::Unreachable) | None => NextHop::Unreachable,
        }
    }

    pub(super) fn own_addresses(&self) -> &[IpAddr] {
        &self.own
    }

    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        self.local.lookup(address) == Some(LocalKind::Own)
    }

    /// How many intervals the main tables have, for reports.
    pub fn intervals(&self) -> usize {
        self.main.v4.starts.len() + self.main.v6.starts.len()
    }
}

impl Default for Routes {
    fn default() -> Self {
        Self::compile(std::iter::empty(), std::iter::empty())
    }
}

/// Multicast, the limited broadcast and the unspecified address are never forwarded to, nor are IPv6 link-local
/// addresses (RFC 4291 section 2.5.6), which mean something else on every link. IPv4 link-local addresses are
/// left to the routes: clouds use them inside tunnels.
fn is_forwardable(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(address) => {
            !(address.is_multicast() || address.is_broadcast() || address.is_unspecified())
        }
        IpAddr::V6(address) => {
            !(address.is_multicast() || address.is_unspecified() || address.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::super::builder::RoutesBuilder;
    use super::super::{NextHop, PortId};
    use super::*;

    /// Networks from a handful, so that they nest, touch and reach both ends of the line, or from anywhere.
    fn prefix() -> impl Strategy<Value = (IpAddr, u8)> {
        let near = select(vec![0u32, 0x0a00_0000, 0x0a00_0080, 0x0aff_0001, 0x0b00_0000, 0xdfff_ffff]);
        let v4 = (prop_oneof![near, any::<u32>()], 0u8..=32)
            .prop_map(|(b, length)| (IpAddr::V4(b.into()), length));
        let near =
            select(vec![0u128, 0x2001_0db8 << 96, (0x2001_0db8 << 96) | 1, 0x2002 << 112, 0xff00 << 112]);
        let v6 = (prop_oneof![near, any::<u128>()], 0u8..=128)
            .prop_map(|(b, length)| (IpAddr::V6(b.into()), length));
        prop_oneof![v4, v6]
    }

    fn holds((network, length): (IpAddr, u8), address: IpAddr) -> bool {
        match (network, address) {
            (IpAddr::V4(n), IpAddr::V4(a)) => {
                length == 0 || (n.to_bits() ^ a.to_bits()) >> (32 - u32::from(length)) == 0
            }
            (IpAddr::V6(n), IpAddr::V6(a)) => {
                length == 0 || (n.to_bits() ^ a.to_bits()) >> (128 - u32::from(length)) == 0
            }
            _ => false,
        }
    }

    /// First and last address of a prefix, and one beyond on each side.
    fn edges((network, length): (IpAddr, u8)) -> Vec<IpAddr> {
        match network {
            IpAddr::V4(network) => {
                let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
                let (first, last) = (network.to_bits() & !host, network.to_bits() | host);
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                    .map(|b| IpAddr::V4(b.into()))
                    .to_vec()
            }
            IpAddr::V6(network) => {
                let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
                let (first, last) = (network.to_bits() & !host, network.to_bits() | host);
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                    .map(|b| IpAddr::V6(b.into()))
                    .to_vec()
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// The longest prefix wins, then the lowest metric, then the first; by search over all routes.
        #[test]
        fn lookups_equal_a_search(routes in vec((prefix(), 0u32..3), 0..240)) {
            let mut builder = RoutesBuilder::default();
            for (port, &((network, length), metric)) in (0..).zip(&routes) {
                builder.route(network, length, metric, RouteTarget::OnLink(PortId(port)));
            }
            let table = builder.build();
            for address in routes.iter().flat_map(|&(prefix, _)| edges(prefix)) {
                let best = (0..)
                    .zip(&routes)
                    .filter(|(_, (prefix, _))| holds(*prefix, address))
                    .min_by_key(|(port, ((_, length), metric))| (u8::MAX - length, *metric, *port));
                let expected = match best {
                    Some((port, _)) if is_forwardable(address) => {
                        NextHop::Port { port: PortId(port), neighbour: address }
                    }
                    _ => NextHop::Unreachable,
                };
                prop_assert_eq!(table.next_hop(address), expected, "{}", address);
            }
        }
    }

    #[test]
    fn equal_neighbours_in_line_are_one_interval() {
        let mut builder = RoutesBuilder::default();
        for third in 0..=255u8 {
            builder.route([10, 0, third, 0].into(), 24, 0, RouteTarget::OtherInterface);
        }
        // 0.0.0.0, 10.0.0.0, 10.1.0.0; and one for IPv6.
        assert_eq!(builder.build().intervals(), 4);
    }
}
