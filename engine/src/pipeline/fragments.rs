//! Fragments of what is for us to decrypt, and of what the gateway itself sends in transport mode: they wait, among those
//! of all workers, and the datagram goes on from where its last one came in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::reassembly::{Limits, Reassembler};
use super::scratch::Tally;
use super::{DropReason, Frames, Pass, Pipeline, Received, Tables};
use crate::route::PortId;
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

/// A datagram that became whole in this burst: a frame, as if it had been received by `port`.
pub struct Completed {
    /// Where it came in.
    pub port: PortId,
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
        received: &Received<'_>,
        packet: &IpPacket,
    ) -> Result<(), DropReason> {
        let waiting = &self.reassembly.received;
        if !waiting.is_on {
            return Err(DropReason::EspFragment);
        }
        self.take_fragment(waiting, received, packet, None);
        Ok(())
    }

    /// A fragment that the gateway itself sent to a peer in transport mode: whoever protects the packets of its own
    /// host has whole ones (RFC 4303 section 3.3.4), and policies see their ports.
    #[cold]
    pub(super) fn reassemble_own(&mut self, received: &Received<'_>, packet: &IpPacket) {
        self.take_fragment(&self.reassembly.own, received, packet, Some(PortId::HOST_IN_FRAGMENTS));
    }

    /// `port`: where the datagram comes in, if not where its first fragment did.
    fn take_fragment(
        &mut self,
        waiting: &'g Waiting,
        received: &Received<'_>,
        packet: &IpPacket,
        port: Option<PortId>,
    ) {
        let mut out = self.own.spare_datagrams.pop().unwrap_or_default();
        let mut reassembler = waiting.lock();
        let tally = &mut *self.tally;
        let mut lost = |reason, count| tally.drop_all(reason, count);
        let whole = reassembler.take(self.now, received.port, received.frame, packet, &mut out, &mut lost);
        waiting.note(&reassembler);
        drop(reassembler);
        match whole {
            Some(whole) => {
                // One of them stands for the datagram.
                self.tally.absorbed += whole.fragments as u64 - 1;
                self.own.completed.push(Completed { port: port.unwrap_or(whole.port), frame: out });
            }
            None => self.own.spare_datagrams.push(out),
        }
    }
}

impl Pipeline {
    /// Gives up fragments whose time is over by `now` milliseconds; nobody else does while none comes in.
    pub fn expire(&mut self, tables: &Tables, now: u64) {
        let Reassembly { received, own } = &tables.reassembly;
        for waiting in [received, own].into_iter().filter(|waiting| waiting.held() > 0) {
            let mut tally = Tally::default();
            let mut reassembler = waiting.lock();
            reassembler.expire(now, &mut |reason, count| tally.drop_all(reason, count));
            waiting.note(&reassembler);
            drop(reassembler);
            tally.write_down(&self.counters);
        }
    }

    /// Puts the buffers of completed datagrams back.
    pub(super) fn recycle(&mut self, mut completed: Vec<Completed>) {
        for Completed { frame, .. } in completed.drain(..) {
            if self.spare_datagrams.len() < SPARES && frame.capacity() <= SPARE_LENGTH {
                self.spare_datagrams.push(frame);
            }
        }
        self.completed = completed;
    }
}
