//! A burst in, outputs and verdicts out. No threads, sockets or clock: everything comes in as an argument.

pub mod counters;
pub mod drop_reason;

use std::net::IpAddr;
use std::ops::DerefMut;
use std::sync::Arc;

pub use counters::WorkerCounters;
pub use drop_reason::DropReason;

use crate::crypto::IvSource;
use crate::policy::Spd;
use crate::route::{Network, PortId};
use crate::sa::Sad;
use crate::sa::publish::{Guard, Published};

/// Most packets in one burst.
pub const BURST: usize = 64;

/// The shared tables that workers read.
pub struct Tables {
    /// Inbound SAs by SPI.
    pub sad: Sad,
    /// Policies and the tunnels they name.
    pub spd: Published<Spd>,
    /// Ports, routes, neighbours.
    pub network: Published<Network>,
}

/// One received Ethernet frame; it stays where it is and is only read.
#[derive(Clone, Copy)]
pub struct Received<'a> {
    /// Where it came in.
    pub port: PortId,
    /// The frame, Ethernet header first.
    pub frame: &'a [u8],
}

/// Where free transmit frames come from. A frame belongs to the port it was taken for.
pub trait Frames {
    /// A free frame, whole: at least 2048 bytes.
    type Frame: DerefMut<Target = [u8]>;
    /// Takes a frame that `port` can transmit; `None` when all are in flight.
    fn take(&mut self, port: PortId) -> Option<Self::Frame>;
    /// Gives an unused frame back.
    fn give_back(&mut self, port: PortId, frame: Self::Frame);
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

/// What a burst came to. Reused from burst to burst; nothing in it is allocated per packet.
pub struct Results<F> {
    /// Frames to transmit, in order per SA and per flow.
    pub outputs: Vec<Output<F>>,
    /// Indexes into the burst of packets whose outbound SA another worker owns, and that worker.
    pub hand_over: Vec<(usize, u32)>,
}

/// One worker's pipeline: flow cache, IV source, scratch space.
pub struct Pipeline {
    worker: u32,
    counters: Arc<WorkerCounters>,
    ivs: IvSource,
}

impl Pipeline {
    /// For worker number `worker`.
    pub fn new(worker: u32, counters: Arc<WorkerCounters>, ivs: IvSource) -> Self {
        Self { worker, counters, ivs }
    }

    /// Processes up to [`BURST`] frames. Every one of them ends as an output, a hand-over or one counted drop;
    /// errors that the gateway originates itself are counted as such. `now` is milliseconds of a monotonic clock.
    pub fn process<F: Frames>(
        &mut self,
        tables: &Tables,
        guard: &Guard<'_>,
        now: u64,
        burst: &[Received<'_>],
        frames: &mut F,
        results: &mut Results<F::Frame>,
    ) {
        let _ = (self.worker, &self.counters, &self.ivs, tables, guard, now, burst, frames, results);
        todo!()
    }
}
