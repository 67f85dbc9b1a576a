//! The pipeline without sockets: one worker, frames on the heap, time as an argument. Captures, tests and
//! benchmarks run the engine through this; it needs no root and gives the same answer every time.
//!
//! [`Engine`] is one worker in memory; [`main`] is `adit offline`, which feeds it [`captures`] through a
//! [`network`] that a file describes instead of the kernel.

pub mod captures;
mod command;
pub mod network;

pub use command::{main, run};

use std::sync::Arc;
use std::sync::atomic::Ordering;

use zeroize::Zeroize;

use crate::crypto::IvSource;
use crate::pipeline::{
    BURST, Completed, Delivery, Frames, HostEnd, LONGEST_FRAME, Output, Pipeline, Received, Results, Tables,
    WorkerCounters,
};
use crate::route::PortId;
use crate::sa::publish::Reader;
use crate::wire::ethernet::{self, HEADER_LENGTH};

/// Bytes of a heap frame: those of a transmit frame.
pub const FRAME_LENGTH: usize = 2048;

/// Transmit frames on the heap, used again and again; how many may be out at once is bounded.
pub struct HeapFrames {
    free: Vec<Box<[u8]>>,
    free_large: Vec<Box<[u8]>>,
    out: usize,
    limit: usize,
    /// The way to the gateway's own stack; none at first.
    pub host: Option<HostEnd>,
}

impl HeapFrames {
    /// At most `limit` frames out at once.
    pub fn new(limit: usize) -> Self {
        let free = Vec::with_capacity(limit.min(1024));
        Self { free, free_large: Vec::new(), out: 0, limit, host: None }
    }

    /// Frames that were taken and not given back.
    pub fn out(&self) -> usize {
        self.out
    }

    /// The free frames, for tests that look for plaintext left in them.
    pub fn free(&self) -> &[Box<[u8]>] {
        &self.free
    }
}

impl Frames for HeapFrames {
    type Frame = Box<[u8]>;

    fn take(&mut self, _port: PortId, length: usize) -> Option<Box<[u8]>> {
        if self.out == self.limit {
            return None;
        }
        self.out += 1;
        let (free, size) = if length > FRAME_LENGTH {
            (&mut self.free_large, LONGEST_FRAME)
        } else {
            (&mut self.free, FRAME_LENGTH)
        };
        Some(free.pop().unwrap_or_else(|| vec![0; size].into_boxed_slice()))
    }

    fn give_back(&mut self, _port: PortId, frame: Box<[u8]>) {
        self.out -= 1;
        let free = if frame.len() > FRAME_LENGTH { &mut self.free_large } else { &mut self.free };
        free.push(frame);
    }

    fn host(&self) -> Option<HostEnd> {
        self.host
    }
}

/// One worker and its tables.
pub struct Engine {
    /// What it reads.
    pub tables: Arc<Tables>,
    /// Where its transmit frames come from.
    pub frames: HeapFrames,
    pipeline: Pipeline,
    reader: Reader,
    counters: Arc<WorkerCounters>,
    results: Results<Box<[u8]>>,
}

impl Engine {
    /// Worker number `worker` over `tables`; `ivs` decides every CBC IV.
    pub fn new(tables: Arc<Tables>, worker: u32, ivs: IvSource) -> Self {
        let counters = Arc::new(WorkerCounters::default());
        let pipeline = Pipeline::new(worker, Arc::clone(&counters), ivs);
        let frames = HeapFrames::new(usize::MAX);
        Self { tables, frames, pipeline, reader: Reader::register(), counters, results: Results::new() }
    }

    /// The worker's counters.
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// Processes a burst of up to [`BURST`] frames at `now` milliseconds. What comes of it waits for
    /// [`Engine::transmit`] and [`Engine::take_handed_over`].
    pub fn process(&mut self, now: u64, burst: &mut [Received<'_>]) {
        let guard = self.reader.pin();
        self.pipeline.process(&self.tables, &guard, now, burst, &mut self.frames, &mut self.results);
        drop(guard);
        self.counters.received.fetch_add(burst.len() as u64, Ordering::Relaxed);
    }

    /// Drops fragments whose time is over by `now`.
    pub fn expire(&mut self, now: u64) {
        let guard = self.reader.pin();
        self.pipeline.expire(&self.tables, &guard, now);
    }

    /// Leaves records of what was dropped since the last time in the tables.
    pub fn tell_drops(&mut self, now: u64) {
        self.pipeline.tell_drops(&self.tables, now);
    }

    /// Lets the second pass in which keepalives are sent; what comes of it waits for [`Engine::transmit`].
    pub fn send_keepalives(&mut self, now: u64) {
        let guard = self.reader.pin();
        self.pipeline.send_keepalives(&self.tables, &guard, now, &mut self.frames, &mut self.results);
    }

    /// Makes the dummy packets that are due at `now`; returns when to ask again.
    pub fn send_dummies(&mut self, now: u64) -> u64 {
        let guard = self.reader.pin();
        self.pipeline.send_dummies(&self.tables, &guard, now, &mut self.frames, &mut self.results)
    }

    /// Shows every output to `sink` and counts it as transmitted; its frame is free again afterwards.
    pub fn transmit(&mut self, mut sink: impl FnMut(&mut Output<Box<[u8]>>)) {
        self.counters.transmitted.fetch_add(self.results.outputs.len() as u64, Ordering::Relaxed);
        for mut output in self.results.outputs.drain(..) {
            sink(&mut output);
            self.frames.give_back(output.port, output.frame);
        }
    }

    /// Shows every packet for the gateway itself to `sink` and counts it as delivered; its frame is wiped and free
    /// again afterwards.
    pub fn deliver(&mut self, mut sink: impl FnMut(&[u8])) {
        self.counters.delivered.fetch_add(self.results.deliveries.len() as u64, Ordering::Relaxed);
        for Delivery { port, mut frame, length } in self.results.deliveries.drain(..) {
            let packet = &mut frame[HEADER_LENGTH..HEADER_LENGTH + length];
            sink(packet);
            packet.zeroize();
            self.frames.give_back(port, frame);
        }
    }

    /// Which packets of the last burst belong to which other worker.
    pub fn take_handed_over(&mut self) -> impl Iterator<Item = (usize, u32)> {
        self.results.hand_over.drain(..)
    }

    /// The same for the datagrams that it made whole.
    pub fn take_handed_over_completed(&mut self) -> impl Iterator<Item = (Completed, u32)> {
        self.results.hand_over_completed.drain(..)
    }

    /// All of it for any number of frames; what comes out, as (port, frame), a packet for the gateway itself as
    /// [`PortId::HOST`] and a frame without addresses. There is nobody to hand over to.
    pub fn run(&mut self, now: u64, mut packets: Vec<(PortId, Vec<u8>)>) -> Vec<(PortId, Vec<u8>)> {
        let mut sent = Vec::new();
        for chunk in packets.chunks_mut(BURST) {
            let mut burst: Vec<_> =
                chunk.iter_mut().map(|(port, frame)| Received { port: *port, frame }).collect();
            self.process(now, &mut burst);
            self.transmit(|output| sent.push((output.port, output.frame[..output.length].to_vec())));
            self.deliver(|packet| {
                let mut frame = [&[0; HEADER_LENGTH], packet].concat();
                ethernet::write_without_addresses(&mut frame);
                sent.push((PortId::HOST, frame));
            });
        }
        sent
    }
}
