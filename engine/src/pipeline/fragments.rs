//! Fragments of what is for us to decrypt, from outside or out of an SA: they wait, among those of all workers, and the
//! datagram goes on from where its last one came in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize;

use super::audit::{Evidence, Scene};
use super::reassembly::{Arrival, Limits, Lost, Reassembler};
use super::scratch::Tally;
use super::{DropReason, Frames, Pass, Pipeline, Tables};
use crate::route::PortId;
use crate::sa::publish::Guard;
use crate::wire::ip::IpPacket;

/// The fragments that wait. One for all workers, because those of one datagram need not come to the same: the ports of
/// ESP in UDP, by which a device may choose the queue, are only in the first. Nothing but fragments comes near its lock.
pub struct Reassembly {
    waiting: Mutex<Reassembler>,
    held: AtomicU64,
    is_on: bool,
}

impl Reassembly {
    /// Empty.
    pub fn new(limits: Limits) -> Self {
        let is_on = limits.memory > 0;
        Self { waiting: Mutex::new(Reassembler::new(limits)), held: AtomicU64::new(0), is_on }
    }

    /// Fragments that wait: received, and not yet anything else.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Reassembler> {
        // Nothing in it panics.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, waiting: &Reassembler) {
        self.held.store(waiting.held() as u64, Ordering::Relaxed);
    }
}

/// A datagram that became whole in this burst: a frame, as if it had been received by `port`, or had come out of a
/// tunnel.
pub(super) struct Completed {
    pub(super) port: PortId,
    pub(super) outer: Option<Arc<str>>,
    pub(super) frame: Vec<u8>,
}

/// Buffers of completed datagrams that wait for the next one.
const SPARES: usize = 64;

impl<F: Frames> Pass<'_, '_, F> {
    /// A fragment of ESP or AH for us, or of UDP that may have ESP in it: it waits for the others, or was the last.
    #[cold]
    pub(super) fn reassemble(
        &mut self,
        arrival: Arrival,
        frame: &[u8],
        packet: &IpPacket,
    ) -> Result<(), DropReason> {
        if !self.reassembly.is_on {
            return Err(DropReason::EspFragment);
        }
        let mut out = self.own.spare_datagrams.pop().unwrap_or_default();
        let mut waiting = self.reassembly.lock();
        let scene = self.scene();
        let (tally, audit) = (&mut *self.tally, &mut self.own.audit);
        let this = Evidence::framed(arrival.port, frame).into_gateway();
        let mut lost = |Lost { reason, fragments, other }: Lost<'_>| {
            tally.drop_all(reason, fragments);
            audit.keep(reason, &other.map_or(this, |other| Evidence::remains(&other)), &scene);
        };
        let outer = arrival.outer.clone();
        let whole = waiting.take(self.now, arrival, frame, packet, &mut out, &mut lost);
        self.reassembly.note(&waiting);
        drop(waiting);
        match whole {
            Some(whole) => {
                // One of them stands for the datagram.
                self.tally.absorbed += whole.fragments as u64 - 1;
                self.own.completed.push(Completed { port: whole.port, outer, frame: out });
            }
            None => self.own.spare_datagrams.push(out),
        }
        Ok(())
    }
}

impl Pipeline {
    /// Gives up fragments whose time is over by `now` milliseconds; nobody else does while none comes in.
    pub fn expire(&mut self, tables: &Tables, guard: &Guard<'_>, now: u64) {
        if tables.reassembly.held() == 0 {
            return;
        }
        let mut tally = Tally::default();
        let mut waiting = tables.reassembly.lock();
        let scene = Scene::of(tables, guard, now);
        waiting.expire(now, &mut |Lost { reason, fragments, other }| {
            tally.drop_all(reason, fragments);
            if let (Some(scene), Some(other)) = (&scene, other) {
                self.own.audit.keep(reason, &Evidence::remains(&other), scene);
            }
        });
        tables.reassembly.note(&waiting);
        drop(waiting);
        tally.write_down(&self.own.counters);
    }

    /// Puts the buffers of completed datagrams back.
    pub(super) fn recycle(&mut self, mut completed: Vec<Completed>) {
        for Completed { mut frame, .. } in completed.drain(..) {
            frame.zeroize();
            if self.own.spare_datagrams.len() < SPARES {
                self.own.spare_datagrams.push(frame);
            }
        }
        // Unless there are more already.
        if self.own.completed.is_empty() {
            self.own.completed = completed;
        }
    }
}
