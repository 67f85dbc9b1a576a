//! What one burst is kept in while it is worked on: groups of packets that share an SA or a tunnel, the
//! last answers of the tables, and the counts. All of it lives on the stack or is reused; nothing allocates.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;

use super::{BURST, DropReason, WorkerCounters};
use crate::route::{Port, PortId};
use crate::sa::InboundSa;
use crate::wire::Spi;
use crate::wire::ethernet::MacAddress;
use crate::wire::reader::FlowNumber;

/// The packets of a burst by what they share (an SA, a tunnel), each group in order of arrival: a linked list
/// per group through one array.
pub(super) struct Groups<'g, K, T> {
    groups: ArrayVec<Group<'g, K>, BURST>,
    items: ArrayVec<Item<T>, BURST>,
}

struct Group<'g, K> {
    key: &'g K,
    first: u8,
    last: u8,
}

struct Item<T> {
    value: T,
    next: Option<u8>,
}

impl<'g, K, T> Groups<'g, K, T> {
    pub(super) fn new() -> Self {
        Self { groups: ArrayVec::new(), items: ArrayVec::new() }
    }

    /// Appends `value` to the group of `key`; the same reference means the same group.
    #[inline(always)]
    pub(super) fn push(&mut self, key: &'g K, value: T) {
        // At most BURST items, so an index fits.
        let index = self.items.len() as u8;
        self.items.push(Item { value, next: None });
        // The latest group first: a burst is mostly one flow.
        match self.groups.iter_mut().rev().find(|group| std::ptr::eq(group.key, key)) {
            Some(group) => {
                self.items[usize::from(group.last)].next = Some(index);
                group.last = index;
            }
            None => self.groups.push(Group { key, first: index, last: index }),
        }
    }

    /// The groups, latest first: the key and the packets of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'g K, Members<'_, T>)> {
        let members = |first| Members { items: &self.items, next: Some(first) };
        self.groups.iter().rev().map(move |group| (group.key, members(group.first)))
    }
}

/// The packets of one group, in order of arrival.
pub(super) struct Members<'i, T> {
    items: &'i [Item<T>],
    next: Option<u8>,
}

impl<'i, T> Iterator for Members<'i, T> {
    type Item = &'i T;

    #[inline]
    fn next(&mut self) -> Option<&'i T> {
        let item = self.items.get(usize::from(self.next?))?;
        self.next = item.next;
        Some(&item.value)
    }
}

/// Where a packet leaves.
#[derive(Clone, Copy)]
pub(super) struct Egress<'g> {
    pub(super) id: PortId,
    pub(super) port: &'g Port,
    pub(super) link: Link,
}

/// How a neighbour is reached.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// Destination and source of the Ethernet header, as on the wire; no destination while it is unresolved.
    pub(super) addresses: [u8; 12],
    /// Whom to ask for on that link.
    pub(super) unresolved: Option<IpAddr>,
}

impl Link {
    /// By `port`, to `neighbour` with its address if that is known.
    pub(super) fn new(port: &Port, neighbour: IpAddr, mac: Option<MacAddress>) -> Self {
        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&mac.unwrap_or(MacAddress([0; 6])).0);
        addresses[6..].copy_from_slice(&port.mac.0);
        Self { addresses, unresolved: mac.is_none().then_some(neighbour) }
    }
}

/// The answer of the route table, with the port looked up.
#[derive(Clone, Copy)]
pub(super) enum Route<'g> {
    Local,
    Port(Egress<'g>),
    OtherInterface,
    Unreachable,
}

/// Flows whose answers are at hand.
const PLACES: usize = 8;

/// Answers about a few flows, as long as what they were taken from stays what it is: `STAMPS` generations. Bursts are
/// mostly of those flows. A flow has one place, where the latest that asked stays.
pub(super) struct Few<A, const STAMPS: usize> {
    stamps: [u64; STAMPS],
    /// The last is for the answers that are good for one packet only.
    places: [Option<(Option<FlowNumber>, A)>; PLACES + 1],
}

/// Where an answer is until the next one comes.
#[derive(Clone, Copy)]
pub(super) struct Place(u8);

impl<A, const STAMPS: usize> Default for Few<A, STAMPS> {
    fn default() -> Self {
        Self { stamps: [0; STAMPS], places: [const { None }; PLACES + 1] }
    }
}

impl<A, const STAMPS: usize> Few<A, STAMPS> {
    /// Forgets what was taken from something else. One of the stamps is that of the numbers, [`Reader::round`].
    ///
    /// [`Reader::round`]: crate::wire::reader::Reader::round
    pub(super) fn look_at(&mut self, stamps: [u64; STAMPS]) {
        if self.stamps != stamps {
            *self = Self { stamps, ..Self::default() };
        }
    }

    /// Where the answer about a flow is, if it is known.
    #[inline(always)]
    pub(super) fn find(&self, flow: Option<FlowNumber>) -> Option<Place> {
        let place = flow?.place(PLACES);
        match &self.places[place] {
            Some((known, _)) if *known == flow => Some(Place(place as u8)),
            _ => None,
        }
    }

    /// Keeps an answer; without a flow until the next one without.
    pub(super) fn put(&mut self, flow: Option<FlowNumber>, answer: A) -> Place {
        let place = flow.map_or(PLACES, |flow| flow.place(PLACES));
        self.places[place] = Some((flow, answer));
        Place(place as u8)
    }

    /// The answer that was put there.
    #[inline(always)]
    pub(super) fn at(&self, Place(place): Place) -> Option<&A> {
        self.places[usize::from(place) % (PLACES + 1)].as_ref().map(|(_, answer)| answer)
    }
}

/// The last answers of the tables in this burst: consecutive packets mostly ask the same.
#[derive(Default)]
pub(super) struct Memo<'g> {
    /// A packet of this flow, received by this port, was ESP of this SA: in tunnel mode, not in UDP.
    pub(super) alike: Option<(FlowNumber, PortId, &'g InboundSa)>,
    pub(super) sa: Option<(Spi, &'g InboundSa)>,
    /// A policy and how many packets it decided since it was last written down.
    pub(super) policy: Option<(usize, u64)>,
}

/// The last answers of one picture of the network; so do consecutive bursts.
#[derive(Default)]
pub(super) struct Recent {
    generation: u64,
    pub(super) destination: Option<(IpAddr, bool)>,
    pub(super) source: Option<(IpAddr, bool)>,
    /// The last port that something was routed to.
    pub(super) way: Option<(IpAddr, PortId, Link)>,
}

impl Recent {
    /// Forgets what another picture said.
    pub(super) fn look_at(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
        }
    }
}

/// What is written down on the way of one burst. It stays where it is: it is too much to move about.
#[derive(Default)]
pub(super) struct Notes<'g> {
    pub(super) tally: Tally,
    pub(super) memo: Memo<'g>,
}

/// What a burst adds to the worker's counters.
pub(super) struct Tally {
    /// More than packets: each fragment of one may be dropped by itself.
    dropped: [u32; DropReason::COUNT],
    any_dropped: bool,
    pub(super) originated: u64,
    pub(super) absorbed: u64,
    pub(super) sealed: u64,
    pub(super) opened: u64,
    pub(super) bypassed: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            dropped: [0; DropReason::COUNT],
            any_dropped: false,
            originated: 0,
            absorbed: 0,
            sealed: 0,
            opened: 0,
            bypassed: 0,
        }
    }
}

impl Tally {
    pub(super) fn drop(&mut self, reason: DropReason) {
        self.dropped[reason as usize] += 1;
        self.any_dropped = true;
    }

    pub(super) fn drop_all(&mut self, reason: DropReason, count: usize) {
        for _ in 0..count {
            self.drop(reason);
        }
    }

    pub(super) fn write_down(&self, counters: &WorkerCounters) {
        add(&counters.originated, self.originated);
        add(&counters.absorbed, self.absorbed);
        add(&counters.sealed, self.sealed);
        add(&counters.opened, self.opened);
        add(&counters.bypassed, self.bypassed);
        if self.any_dropped {
            for (counter, &count) in counters.dropped.iter().zip(&self.dropped) {
                add(counter, u64::from(count));
            }
        }
    }
}

/// These counters have one writer, so a load and a store do (no locked instruction).
fn add(counter: &AtomicU64, count: u64) {
    if count > 0 {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_the_longest_packets_in_the_smallest_fragments_is_counted() {
        let counters = WorkerCounters::default();
        let mut tally = Tally::default();
        let fragments = BURST * (65_535 - 20) / 8;
        tally.drop_all(DropReason::SequenceExhausted, fragments);
        tally.write_down(&counters);
        let counted = counters.dropped[DropReason::SequenceExhausted as usize].load(Ordering::Relaxed);
        assert_eq!(counted, fragments as u64);
    }
}
