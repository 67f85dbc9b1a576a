//! What the pipeline works on: frames that were received, frames to write into, and what a burst comes to.

use std::net::IpAddr;
use std::ops::DerefMut;

use super::host::{Delivery, HostEnd};
use super::nesting::Nested;
use super::{BURST, Completed};
use crate::route::PortId;

/// One received Ethernet frame. It stays where it is; it belongs to the pipeline until `process` returns, which
/// may lower its TTL and MSS before it is sealed. A frame that is handed over has not been touched, but for its VLAN tags.
pub struct Received<'a> {
    /// Where it came in.
    pub port: PortId,
    /// The frame, Ethernet header first.
    pub frame: &'a mut [u8],
}

/// Where free transmit frames come from. A frame belongs to the port it was taken for.
pub trait Frames {
    /// A free frame, whole: at least 1792 bytes (2048 without the headroom the kernel keeps).
    type Frame: DerefMut<Target = [u8]>;
    /// Takes a frame that `port` can transmit, for a packet of up to `length` bytes: as long as that, or the longest
    /// there is. What is longer than any MTU is not to be transmitted from it, but in fragments. `None` when all are in
    /// flight.
    fn take(&mut self, port: PortId, length: usize) -> Option<Self::Frame>;
    /// Gives an unused frame back.
    fn give_back(&mut self, port: PortId, frame: Self::Frame);
    /// The worker that transmits on `port` where this one cannot, busy or not; `None` where it can.
    fn instead(&self, _port: PortId) -> Option<u32> {
        None
    }
    /// The far end of the gateway's own stack; `None` while there is no way to it.
    fn host(&self) -> Option<HostEnd> {
        None
    }
}

/// A finished frame to transmit.
pub struct Output<F> {
    /// Egress.
    pub port: PortId,
    /// The bytes.
    pub frame: F,
    /// How many of them, Ethernet header included.
    pub length: usize,
    /// `Some`: the neighbour is not resolved yet; the Ethernet destination is still to be filled in (source and
    /// EtherType are there). The frame waits, bounded, while the kernel is asked.
    pub unresolved: Option<IpAddr>,
}

/// What a burst came to; appended to, so drain both before the next burst. Reused from burst to burst: nothing in
/// it is allocated per packet.
pub struct Results<F> {
    /// Frames to transmit, in order per SA and per flow; but what was put together of fragments follows the rest of its
    /// burst.
    pub outputs: Vec<Output<F>>,
    /// Packets for the gateway itself, likewise in order.
    pub deliveries: Vec<Delivery<F>>,
    /// Indexes into the burst of packets whose outbound SA another worker owns, and that worker.
    pub hand_over: Vec<(usize, u32)>,
    /// The same for datagrams that the burst made whole, which lie in no frame of it.
    pub hand_over_completed: Vec<(Completed, u32)>,
    /// Frames of the burst that were tagged, whether they are handed over or not.
    pub untagged: Vec<Untagged>,
    /// What a tunnel has sealed and another is to carry; empty between bursts.
    pub(super) made: Vec<Nested<F>>,
    /// What an SA has opened and another is to open, and the outer tunnel's place; empty between bursts.
    pub(super) opened: Vec<(Nested<F>, usize)>,
}

/// A frame whose VLAN tags were taken out: its addresses lie `length` bytes further on now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Untagged {
    /// Its place in the burst.
    pub index: usize,
    /// The port of its VLAN.
    pub port: PortId,
    /// Bytes of its tags.
    pub length: usize,
}

impl<F> Results<F> {
    /// Empty, with room for a burst and the fragments and errors it may make.
    pub fn new() -> Self {
        Self {
            outputs: Vec::with_capacity(4 * BURST),
            deliveries: Vec::with_capacity(2 * BURST),
            hand_over: Vec::with_capacity(BURST),
            hand_over_completed: Vec::new(),
            made: Vec::new(),
            opened: Vec::new(),
            untagged: Vec::with_capacity(BURST),
        }
    }
}

impl<F> Default for Results<F> {
    fn default() -> Self {
        Self::new()
    }
}
