//! The transmit half of a socket: frames out, completions back.
//!
//! Nine tenths of a gateway's cost over copy-mode AF_XDP is the kernel's transmit path, so wake-ups are few and
//! full: one per burst, repeated only while it makes progress, and never without reaping completions (spinning
//! on EAGAIN without reaping hangs for good).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xsk_rs::socket::TxQueue;
use xsk_rs::umem::CompQueue;
use xsk_rs::umem::frame::FrameDesc;

use super::socket::SocketCounters;
use super::umem::{FRAME_CAPACITY, TxFrame, TxPool};
use crate::pipeline::BURST;
use crate::route::PortId;

/// Wake-ups in one flush; what is left waits for the next turn of the loop, so that one slow egress does not
/// stop the others.
const WAKEUPS_PER_FLUSH: u32 = 4;

/// A device that refuses this many frames in a row is taken for dead, not for busy, and tried less often.
const REFUSALS_BEFORE_BACK_OFF: u32 = 32;

/// Longest pause between wake-ups of a link that refuses, milliseconds.
const BACK_OFF_MS: u64 = 64;

/// What became of packets since the last look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Completions {
    /// Completed by the kernel.
    pub transmitted: u64,
    /// Completed, but the device had refused them.
    pub refused: u64,
}

/// The interface is gone: its frames will never come back, and the socket is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gone;

/// The transmit half of a socket.
pub struct Transmitter {
    /// Its port.
    pub port: PortId,
    counters: Arc<SocketCounters>,
    tx: TxQueue,
    completion: CompQueue,
    pool: TxPool,
    staged: Vec<FrameDesc>,
    completed: Box<[FrameDesc; BURST]>,
    completions: Completions,
    /// Frames are on the ring that the kernel has not looked at.
    unsent: bool,
    /// Frames refused whose completion has not been seen yet.
    refused: u64,
    refusals_in_a_row: u32,
    retry_at_ms: u64,
    pause_ms: u64,
}

impl Transmitter {
    pub(super) fn new(
        port: PortId,
        tx: TxQueue,
        completion: CompQueue,
        pool: TxPool,
        counters: Arc<SocketCounters>,
    ) -> Self {
        Self {
            port,
            counters,
            tx,
            completion,
            pool,
            staged: Vec::with_capacity(BURST * 2),
            completed: Box::new([FrameDesc::default(); BURST]),
            completions: Completions::default(),
            unsent: false,
            refused: 0,
            refusals_in_a_row: 0,
            retry_at_ms: 0,
            pause_ms: 0,
        }
    }

    /// The socket.
    pub fn fd(&self) -> RawFd {
        self.tx.fd().as_raw_fd()
    }

    /// True for frames this transmitter gave out.
    #[inline]
    pub fn owns(&self, frame: &TxFrame) -> bool {
        frame.pool() == self.pool.id()
    }

    /// A free frame of at least `length` bytes, or the longest there is; completions are reaped when none is left.
    #[inline]
    pub fn take(&mut self, length: usize) -> Option<TxFrame> {
        if length > FRAME_CAPACITY {
            return self.take_large(length);
        }
        self.pool.take().or_else(|| {
            self.reap();
            self.pool.take()
        })
    }

    #[cold]
    fn take_large(&mut self, length: usize) -> Option<TxFrame> {
        self.pool.take_large(length).or_else(|| {
            self.reap();
            self.pool.take_large(length)
        })
    }

    /// Takes an unused frame back.
    ///
    /// # Panics
    /// When it is not one of [`Transmitter::owns`].
    pub fn give_back(&mut self, frame: TxFrame) {
        self.pool.give_back(frame);
    }

    /// Stages the first `length` bytes for the next [`Transmitter::flush`].
    ///
    /// # Panics
    /// When the frame is not one of [`Transmitter::owns`], or was taken for less than `length`.
    #[inline]
    pub fn submit(&mut self, frame: TxFrame, length: usize) {
        self.pool.submit(frame, length, &mut self.staged);
    }

    /// Packets submitted and not completed.
    pub fn in_flight(&self) -> u32 {
        self.pool.in_flight()
    }

    /// True while the transmit ring holds frames the kernel has not looked at: poll(2) must not be used on this
    /// socket then, since it would transmit and keep the errors for itself.
    pub fn unsent(&self) -> bool {
        self.unsent || !self.staged.is_empty()
    }

    /// Puts staged frames on the ring, wakes the kernel, reaps.
    ///
    /// # Errors
    /// [`Gone`].
    #[inline]
    pub fn flush(&mut self, now_ms: u64) -> Result<(), Gone> {
        if !self.staged.is_empty() {
            // SAFETY: the pool made these descriptors of its UMEM and holds them in flight until completion.
            let count = unsafe { self.tx.produce(&self.staged) };
            assert_eq!(count, self.staged.len(), "the transmit ring has room for every frame twice");
            self.staged.clear();
            self.unsent = true;
        }
        let mut result = Ok(());
        if self.unsent && now_ms >= self.retry_at_ms {
            result = self.wake(now_ms);
        }
        if self.pool.in_flight() > 0 {
            self.reap();
        }
        result
    }

    fn wake(&mut self, now_ms: u64) -> Result<(), Gone> {
        if !self.tx.needs_wakeup() {
            self.unsent = false;
            return Ok(());
        }
        for _ in 0..WAKEUPS_PER_FLUSH {
            self.counters.wakeups.fetch_add(1, Ordering::Relaxed);
            // SAFETY: no buffer is passed: the call makes the kernel look at the transmit ring.
            let result = unsafe {
                libc::sendto(self.fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
            };
            if result >= 0 {
                self.unsent = false;
                self.refusals_in_a_row = 0;
                self.pause_ms = 0;
                return Ok(());
            }
            match io::Error::last_os_error().raw_os_error() {
                // The budget of one call is spent, or the device's queue is full.
                Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => {
                    self.count(|counters| &counters.wakeups_incomplete);
                    self.refusals_in_a_row = 0;
                    self.reap();
                }
                // Copy mode: one frame was refused by the device (a veth whose peer is down, or whose ring is
                // full), and is completed all the same. The ones behind it were not looked at.
                Some(libc::EBUSY) => {
                    if !self.counters.zero_copy.load(Ordering::Relaxed) {
                        self.refused += 1;
                        self.count(|counters| &counters.refused);
                    }
                    self.refusals_in_a_row += 1;
                    if self.refusals_in_a_row >= REFUSALS_BEFORE_BACK_OFF {
                        self.back_off(now_ms);
                        return Ok(());
                    }
                }
                Some(libc::ENXIO | libc::ENODEV | libc::EBADF) => {
                    self.count(|counters| &counters.link_errors);
                    return Err(Gone);
                }
                // Down: the frames stay on the ring until the port is closed or comes back.
                _ => {
                    self.count(|counters| &counters.link_errors);
                    self.back_off(now_ms);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Hot retries on a dead link cost 200,000 system calls a second.
    fn back_off(&mut self, now_ms: u64) {
        self.pause_ms = (self.pause_ms * 2).clamp(1, BACK_OFF_MS);
        self.retry_at_ms = now_ms + self.pause_ms;
    }

    fn count(&self, which: impl Fn(&SocketCounters) -> &AtomicU64) {
        which(&self.counters).fetch_add(1, Ordering::Relaxed);
    }

    /// Takes completed frames back.
    #[inline]
    pub fn reap(&mut self) {
        loop {
            // SAFETY: every descriptor that comes back was given by this transmitter; the ledger checks it.
            let count = unsafe { self.completion.consume(&mut *self.completed) };
            let mut packets = 0;
            for descriptor in &self.completed[..count] {
                packets += u64::from(self.pool.complete(descriptor));
            }
            let refused = self.refused.min(packets);
            self.refused -= refused;
            self.completions.refused += refused;
            self.completions.transmitted += packets - refused;
            if count < self.completed.len() {
                return;
            }
        }
    }

    /// What [`Transmitter::reap`] found since the last call.
    #[inline]
    pub fn take_completions(&mut self) -> Completions {
        std::mem::take(&mut self.completions)
    }
}
