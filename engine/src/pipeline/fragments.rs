//! Fragments of what is for us to decrypt, from outside or out of an SA, and of what the gateway itself sends in transport
//! mode: they wait, among those of all workers, and the datagram goes on from where its last one came in.

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
/// ESP in UDP, by which a device may choose the queue, are only in the first. Nothing but fragments comes near its locks.
/// Nobody outside can push out what the gateway itself sends.
pub struct Reassembly {
    received: Waiting,
    own: Waiting,
}

/// For what the gateway itself sends: sixteen datagrams at least, as long as they get, in fragments of the smallest MTU
/// of an IPv4 route in Linux (552). They come right behind each other.
const OWN_LIMITS: Limits = Limits { memory: 2 << 20, per_source: 64, fragments: 128, timeout: 2_000 };

/// Fragments from one side.
struct Waiting {
    reassembler: Mutex<Reassembler>,
    held: AtomicU64,
    is_on: bool,
}

impl Reassembly {
    /// Empty; `limits` are for what is received.
    pub fn new(limits: Limits) -> Self {
        Self { received: Waiting::new(limits), own: Waiting::new(OWN_LIMITS) }
    }

    /// Fragments that wait: received, and not yet anything else.
    pub fn held(&self) -> u64 {
        self.received.held() + self.own.held()
    }
}

impl Waiting {
    fn new(limits: Limits) -> Self {
        let is_on = limits.memory > 0;
        Self { reassembler: Mutex::new(Reassembler::new(limits)), held: AtomicU64::new(0), is_on }
    }

    fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Reassembler> {
        // Nothing in it panics.
        self.reassembler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, reassembler: &Reassembler) {
        self.held.store(reassembler.held() as u64, Ordering::Relaxed);
    }
}

/// A datagram that became whole in this burst: a frame, as if it had been received by `port`, or had come out of a
/// tunnel.
pub struct Completed {
    /// Where it came in.
    pub port: PortId,
    pub(super) outer: Option<Arc<str>>,
    /// The frame, Ethernet header first.
    pub frame: Vec<u8>,
}

/// Buffers of completed datagrams that wait for the next one, and how large they may be.
const SPARES: usize = 64;
const SPARE_LENGTH: usize = 16 * 1024;

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// A fragment of ESP or AH for us, or of UDP that may have ESP in it: it waits for the others, or was the last.
    #[cold]
    pub(super) fn reassemble(
        &mut self,
        arrival: Arrival,
        frame: &[u8],
        packet: &IpPacket,
    ) -> Result<(), DropReason> {
        let waiting = &self.reassembly.received;
        if !waiting.is_on {
            return Err(DropReason::EspFragment);
        }
        self.take_fragment(waiting, arrival, frame, packet);
        Ok(())
    }

    /// A fragment that the gateway itself sent to a peer in transport mode: whoever protects the packets of its own
    /// host has whole ones (RFC 4303 section 3.3.4), and policies see their ports.
    #[cold]
    pub(super) fn reassemble_own(&mut self, frame: &[u8], packet: &IpPacket) {
        let arrival = Arrival { port: PortId::HOST_IN_FRAGMENTS, outer: None };
        self.take_fragment(&self.reassembly.own, arrival, frame, packet);
    }

    fn take_fragment(&mut self, waiting: &'g Waiting, arrival: Arrival, frame: &[u8], packet: &IpPacket) {
        let mut out = self.own.spare_datagrams.pop().unwrap_or_default();
        let mut reassembler = waiting.lock();
        let outer = arrival.outer.clone();
        let scene = self.scene();
        let (tally, audit) = (&mut *self.tally, &mut self.own.audit);
        let this = Evidence::framed(arrival.port, frame).in_pieces();
        let mut lost = |Lost { reason, fragments, other }: Lost<'_>| {
            tally.drop_all(reason, fragments);
            audit.keep(reason, &other.map_or(this, |other| Evidence::remains(&other)), &scene);
        };
        let whole = reassembler.take(self.now, arrival, frame, packet, &mut out, &mut lost);
        waiting.note(&reassembler);
        drop(reassembler);
        match whole {
            Some(whole) => {
                // One of them stands for the datagram.
                self.tally.absorbed += whole.fragments as u64 - 1;
                self.own.completed.push(Completed { port: whole.port, outer, frame: out });
            }
            None => self.own.spare_datagrams.push(out),
        }
    }
}

impl Pipeline {
    /// Gives up fragments whose time is over by `now` milliseconds; nobody else does while none comes in.
    pub fn expire(&mut self, tables: &Tables, guard: &Guard<'_>, now: u64) {
        let Reassembly { received, own } = &tables.reassembly;
        for waiting in [received, own].into_iter().filter(|waiting| waiting.held() > 0) {
            let mut tally = Tally::default();
            let mut reassembler = waiting.lock();
            let scene = Scene::of(tables, guard, now);
            reassembler.expire(now, &mut |Lost { reason, fragments, other }| {
                tally.drop_all(reason, fragments);
                if let (Some(scene), Some(other)) = (&scene, other) {
                    self.own.audit.keep(reason, &Evidence::remains(&other), scene);
                }
            });
            waiting.note(&reassembler);
            drop(reassembler);
            tally.write_down(&self.own.counters);
        }
    }

    /// Puts the buffers of completed datagrams back.
    pub(super) fn recycle(&mut self, mut completed: Vec<Completed>) {
        for Completed { mut frame, .. } in completed.drain(..) {
            frame.zeroize();
            if self.own.spare_datagrams.len() < SPARES && frame.capacity() <= SPARE_LENGTH {
                self.own.spare_datagrams.push(frame);
            }
        }
        // Unless there are more already.
        if self.own.completed.is_empty() {
            self.own.completed = completed;
        }
    }
}
