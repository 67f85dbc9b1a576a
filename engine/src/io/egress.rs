//! A worker's way out: one transmitter for each port, the next hops it used lately, and the gateway itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroize;

use super::datapath::{NeighbourRequests, VlanPort};
use super::host::HostQueue;
use super::transmit::{Gone, Transmitter};
use super::umem::TxFrame;
use crate::pipeline::{Delivery, DropReason, Frames, HostEnd, WorkerCounters};
use crate::route::PortId;
use crate::wire::ethernet::{HEADER_LENGTH, MacAddress};

/// Next hops remembered per port; one is enough for most, and one forgotten is remembered with its next frame.
const NEXT_HOPS: usize = 64;

/// Adds to a counter that only this thread writes: no locked instruction.
#[inline]
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

/// Counts `n` drops.
#[inline]
pub(super) fn drop_frames(counters: &WorkerCounters, reason: DropReason, n: u64) {
    add(&counters.dropped[reason as usize], n);
}

struct Way {
    transmitter: Transmitter,
    /// Destinations of frames since the last report, in slots by their low bits.
    next_hops: [Option<MacAddress>; NEXT_HOPS],
}

/// The way of a port that is a VLAN: its parent's, with tags.
struct VlanWay {
    vlan: VlanPort,
    next_hops: [Option<MacAddress>; NEXT_HOPS],
}

/// Remembers a frame's destination.
#[inline]
fn remember(next_hops: &mut [Option<MacAddress>; NEXT_HOPS], frame: &[u8]) {
    if let [a, b, c, d, e, f, ..] = frame[..] {
        let slot = usize::from(f ^ e) % NEXT_HOPS;
        next_hops[slot] = Some(MacAddress([a, b, c, d, e, f]));
    }
}

/// One transmitter for each port that is up.
pub struct Egress {
    ways: Vec<Option<Box<Way>>>,
    vlans: Box<[VlanWay]>,
    /// Ports that are up and have no queue left for this worker.
    elsewhere: Vec<PortId>,
    /// The gateway's own stack; packets come from there too.
    pub(super) host: Option<Box<HostQueue>>,
    counters: Arc<WorkerCounters>,
}

impl Egress {
    /// No port yet; `vlans` are those that will share the way of another.
    pub fn new(counters: Arc<WorkerCounters>, vlans: &[VlanPort]) -> Self {
        let vlans = vlans.iter().map(|&vlan| VlanWay { vlan, next_hops: [None; NEXT_HOPS] }).collect();
        Self { ways: Vec::new(), vlans, elsewhere: Vec::new(), host: None, counters }
    }

    /// Adds the transmitter of a port that has none.
    ///
    /// # Panics
    /// When it has one.
    pub fn open(&mut self, transmitter: Transmitter) {
        let index = usize::from(transmitter.port.0);
        if self.ways.len() <= index {
            self.ways.resize_with(index + 1, || None);
        }
        assert!(self.ways[index].is_none(), "port {index} has a transmitter");
        self.ways[index] = Some(Box::new(Way { transmitter, next_hops: [None; NEXT_HOPS] }));
    }

    /// A port came up on which worker 0 transmits and this one does not.
    pub fn open_elsewhere(&mut self, port: PortId) {
        self.elsewhere.push(port);
    }

    /// Gives up a port. Frames the kernel did not complete are dropped for `reason`: it will not bring them back.
    pub fn close(&mut self, port: PortId, reason: DropReason) -> Option<Transmitter> {
        self.elsewhere.retain(|other| *other != port);
        let mut way = self.ways.get_mut(usize::from(port.0)).and_then(Option::take)?;
        way.transmitter.reap();
        settle(&mut way.transmitter, &self.counters);
        drop_frames(&self.counters, reason, u64::from(way.transmitter.in_flight()));
        Some(way.transmitter)
    }

    fn way(&mut self, port: PortId) -> Option<&mut Way> {
        self.ways.get_mut(usize::from(port.0))?.as_deref_mut()
    }

    /// Stages a finished frame. It is dropped when its port closed or is not the one it was taken for.
    #[inline]
    pub fn submit(&mut self, port: PortId, frame: TxFrame, length: usize) {
        match self.way(port) {
            Some(way) if way.transmitter.owns(&frame) => {
                remember(&mut way.next_hops, &frame);
                way.transmitter.submit(frame, length);
            }
            _ => self.submit_tagged(port, frame, length),
        }
    }

    /// The same for a port that is a VLAN, or is gone.
    #[cold]
    fn submit_tagged(&mut self, port: PortId, mut frame: TxFrame, length: usize) {
        let Self { ways, vlans, .. } = self;
        if let Some(VlanWay { vlan, next_hops }) = vlans.iter_mut().find(|way| way.vlan.port == port)
            && let Some(Some(way)) = ways.get_mut(usize::from(vlan.parent.0))
            && way.transmitter.owns(&frame)
        {
            remember(next_hops, &frame);
            frame.tag(vlan.tags);
            return way.transmitter.submit(frame, length + vlan.tags.length());
        }
        drop_frames(&self.counters, DropReason::LinkDown, 1);
        self.give_home(frame);
    }

    /// A frame of a port that is a VLAN.
    #[cold]
    fn take_tagged(&mut self, port: PortId, length: usize) -> Option<TxFrame> {
        let VlanPort { parent, tags, .. } = self.vlans.iter().find(|way| way.vlan.port == port)?.vlan;
        let frame = self.way(parent)?.transmitter.take(length + tags.length())?;
        Some(frame.leave_room(tags))
    }

    /// Gives a packet to the gateway's own stack, and the frame it lies in, wiped, to its transmitter.
    pub fn deliver(&mut self, delivery: Delivery<TxFrame>) {
        let Delivery { mut frame, length, .. } = delivery;
        let packet = &mut frame[HEADER_LENGTH..HEADER_LENGTH + length];
        match &self.host {
            Some(host) if host.write(packet) => add(&self.counters.delivered, 1),
            _ => drop_frames(&self.counters, DropReason::HostRefused, 1),
        }
        packet.zeroize();
        self.give_home(frame);
    }

    /// Gives a frame to the transmitter that owns it, if it still exists.
    fn give_home(&mut self, frame: TxFrame) {
        let owner = self.ways.iter_mut().flatten().find(|way| way.transmitter.owns(&frame));
        if let Some(way) = owner {
            way.transmitter.give_back(frame);
        }
    }

    /// Puts everything staged on the rings, wakes the kernel, reaps. `gone` is told of interfaces that vanished.
    #[inline]
    pub fn flush(&mut self, now: u64, mut gone: impl FnMut(PortId)) {
        for way in self.ways.iter_mut().flatten() {
            if let Err(Gone) = way.transmitter.flush(now) {
                gone(way.transmitter.port);
            }
            settle(&mut way.transmitter, &self.counters);
        }
    }

    /// Frames with the kernel.
    pub fn in_flight(&self) -> u64 {
        self.ways.iter().flatten().map(|way| u64::from(way.transmitter.in_flight())).sum()
    }

    /// True when `port` has frames on its ring that the kernel has not looked at.
    pub fn unsent(&self, port: PortId) -> bool {
        self.ways
            .get(usize::from(port.0))
            .and_then(Option::as_ref)
            .is_some_and(|way| way.transmitter.unsent())
    }

    /// Tells who was sent to since the last call.
    pub fn report_next_hops(&mut self, neighbours: &dyn NeighbourRequests) {
        let ways = self.ways.iter_mut().flatten();
        let ways = ways.map(|way| (way.transmitter.port, &mut way.next_hops));
        let vlans = self.vlans.iter_mut().map(|way| (way.vlan.port, &mut way.next_hops));
        for (port, next_hops) in ways.chain(vlans) {
            for next_hop in next_hops.iter_mut().filter_map(Option::take) {
                neighbours.in_use(port, next_hop);
            }
        }
    }
}

fn settle(transmitter: &mut Transmitter, counters: &WorkerCounters) {
    let completions = transmitter.take_completions();
    if completions.transmitted > 0 {
        add(&counters.transmitted, completions.transmitted);
    }
    if completions.refused > 0 {
        drop_frames(counters, DropReason::TransmitFailed, completions.refused);
    }
}

impl Frames for Egress {
    type Frame = TxFrame;

    #[inline]
    fn take(&mut self, port: PortId, length: usize) -> Option<TxFrame> {
        match self.way(port) {
            Some(way) => way.transmitter.take(length),
            None => self.take_tagged(port, length),
        }
    }

    #[inline]
    fn give_back(&mut self, _port: PortId, frame: TxFrame) {
        self.give_home(frame);
    }

    #[inline]
    fn instead(&self, port: PortId) -> Option<u32> {
        if self.elsewhere.is_empty() {
            return None;
        }
        let vlan = self.vlans.iter().find(|way| way.vlan.port == port);
        self.elsewhere.contains(&vlan.map_or(port, |way| way.vlan.parent)).then_some(0)
    }

    #[inline]
    fn host(&self) -> Option<HostEnd> {
        self.host.as_ref().map(|host| host.end)
    }
}
