//! What a worker does with a burst.

use std::net::IpAddr;
use std::sync::Arc;

use crate::pipeline::{DropReason, Frames, Pipeline, Received, Results, Tables};
use crate::route::PortId;
use crate::sa::publish::Reader;
use crate::wire::ethernet::MacAddress;

/// A burst in, outputs out; [`Online`] is the one that matters. Another one makes the same worker something to
/// compare with, or to test the rings by.
pub trait Process {
    /// As [`Pipeline::process`].
    fn process<F: Frames>(
        &mut self,
        now: u64,
        burst: &mut [Received<'_>],
        frames: &mut F,
        results: &mut Results<F::Frame>,
    );

    /// About once a second, whether anything comes in or not. What it sends is in `results`, as after a burst.
    fn housekeeping<F: Frames>(&mut self, _now: u64, _frames: &mut F, _results: &mut Results<F::Frame>) {}

    /// What the gateway sends of its own accord, whenever the time that this returns (milliseconds, as `now`) has come.
    fn send_unasked<F: Frames>(
        &mut self,
        _now: u64,
        _frames: &mut F,
        _results: &mut Results<F::Frame>,
    ) -> u64 {
        u64::MAX
    }

    /// A frame that was to leave by `port` is dropped, and counted already: for whoever is asked which they were.
    fn dropped(&mut self, _now: u64, _reason: DropReason, _port: PortId, _frame: &[u8]) {}

    /// Grows whenever a neighbour may have become known.
    fn network_generation(&mut self) -> u64;

    /// The link-layer address of a neighbour, once it is known.
    fn neighbour(&mut self, port: PortId, address: IpAddr) -> Option<MacAddress>;
}

/// The pipeline on the live tables: pins them once per burst.
pub struct Online {
    pipeline: Pipeline,
    tables: Arc<Tables>,
    reader: Reader,
}

impl Online {
    /// Takes a reader's seat; call it on the worker's own thread.
    pub fn new(pipeline: Pipeline, tables: Arc<Tables>) -> Self {
        Self { pipeline, tables, reader: Reader::register() }
    }
}

impl Process for Online {
    #[inline]
    fn process<F: Frames>(
        &mut self,
        now: u64,
        burst: &mut [Received<'_>],
        frames: &mut F,
        results: &mut Results<F::Frame>,
    ) {
        let guard = self.reader.pin();
        self.pipeline.process(&self.tables, &guard, now, burst, frames, results);
    }

    fn housekeeping<F: Frames>(&mut self, now: u64, frames: &mut F, results: &mut Results<F::Frame>) {
        let guard = self.reader.pin();
        self.pipeline.expire(&self.tables, &guard, now);
        self.pipeline.tell_drops(&self.tables, now);
        self.pipeline.send_keepalives(&self.tables, &guard, now, frames, results);
    }

    fn send_unasked<F: Frames>(&mut self, now: u64, frames: &mut F, results: &mut Results<F::Frame>) -> u64 {
        let guard = self.reader.pin();
        self.pipeline.send_dummies(&self.tables, &guard, now, frames, results)
    }

    fn dropped(&mut self, now: u64, reason: DropReason, port: PortId, frame: &[u8]) {
        let guard = self.reader.pin();
        self.pipeline.look_at_dropped(&self.tables, &guard, now, reason, port, frame);
    }

    #[inline]
    fn network_generation(&mut self) -> u64 {
        let guard = self.reader.pin();
        self.tables.network.load(&guard).map_or(0, |network| network.generation)
    }

    fn neighbour(&mut self, port: PortId, address: IpAddr) -> Option<MacAddress> {
        let guard = self.reader.pin();
        self.tables.network.load(&guard)?.neighbour(port, address)
    }
}
