//! One AF_XDP socket with a UMEM of its own: opened and bound here, then split into a [`Receiver`] and a
//! [`Transmitter`], which share nothing but the kernel's socket.
#![allow(unsafe_code)]

use std::error::Error;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig, UmemConfigBuilder,
};
use xsk_rs::socket::{RxQueue, Socket};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::umem::{FillQueue, Umem};

use super::large::{Gathering, LargeFrame};
use super::transmit::Transmitter;
use super::umem::{FRAME_CAPACITY, FRAME_SIZE, HEADROOM, Ledger, Place, TxPool, frame_number};
use crate::pipeline::{BURST, DropReason, Received};
use crate::route::PortId;

/// Whether the driver writes into the frames itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BindMode {
    /// Zero-copy where the driver can, else copy; [`SocketCounters::zero_copy`] says which it became.
    #[default]
    Auto,
    /// Copy only.
    Copy,
    /// Zero-copy or an error.
    ZeroCopy,
}

/// Busy polling (`SO_PREFER_BUSY_POLL`): the worker's own system calls drive the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusyPoll {
    /// `SO_BUSY_POLL`, microseconds.
    pub time_us: u32,
    /// `SO_BUSY_POLL_BUDGET`, packets.
    pub budget: u32,
}

/// What every socket of a datapath has in common.
#[derive(Clone, Copy, Debug)]
pub struct SocketOptions {
    /// Frames to receive into, a power of two; the receive ring is as long.
    pub receive_frames: u32,
    /// Frames to transmit, a power of two; the completion ring is as long, so what is in flight never overruns
    /// it.
    pub transmit_frames: u32,
    /// Zero-copy or copy.
    pub bind: BindMode,
    /// Most packets one wake-up transmits (`XDP_MAX_TX_SKB_BUDGET`): fewer system calls, but also the bound on
    /// the time a stalled egress can take from the worker.
    pub wakeup_budget: u32,
    /// Busy polling, if wanted.
    pub busy_poll: Option<BusyPoll>,
    /// How long a queue that somebody else still holds (EBUSY) is tried again.
    pub busy_retry: Duration,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            receive_frames: 2048,
            transmit_frames: 2048,
            bind: BindMode::Auto,
            wakeup_budget: 128,
            busy_poll: None,
            busy_retry: Duration::from_secs(1),
        }
    }
}

/// Why a socket could not be opened.
#[derive(Debug)]
pub struct OpenError {
    /// Interface.
    pub interface: String,
    /// Queue.
    pub queue: u32,
    /// What the kernel said.
    pub cause: io::Error,
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AF_XDP socket on {} queue {}: {}", self.interface, self.queue, self.cause)
    }
}

impl Error for OpenError {}

/// A socket's own counters: written by its worker, read by anyone.
#[derive(Default)]
pub struct SocketCounters {
    /// The socket was bound in zero-copy mode.
    pub zero_copy: AtomicBool,
    /// The worker closed it: the interface went down or away.
    pub closed: AtomicBool,
    /// Wake-ups (sendto).
    pub wakeups: AtomicU64,
    /// Wake-ups that left frames on the transmit ring (EAGAIN).
    pub wakeups_incomplete: AtomicU64,
    /// Frames the device refused but completed (EBUSY: the peer of a veth is down).
    pub refused: AtomicU64,
    /// Wake-ups that found the interface down (ENETDOWN) or gone (ENXIO).
    pub link_errors: AtomicU64,
    /// The kernel's XDP_STATISTICS, in the order of [`XDP_STATISTICS`]; refreshed once a second.
    pub xdp: [AtomicU64; XDP_STATISTICS.len()],
}

/// Names of [`SocketCounters::xdp`].
pub const XDP_STATISTICS: [&str; 6] = [
    "rx_dropped",
    "rx_invalid_descs",
    "tx_invalid_descs",
    "rx_ring_full",
    "rx_fill_ring_empty_descs",
    "tx_ring_empty_descs",
];

/// Opens and binds a socket for `queue` of `interface`; `transmits` false: a receive half only.
///
/// # Errors
/// What the kernel said, after EBUSY was retried for [`SocketOptions::busy_retry`].
pub fn open(
    port: PortId,
    interface: &str,
    queue: u32,
    transmits: bool,
    options: &SocketOptions,
) -> Result<(Receiver, Option<Transmitter>), OpenError> {
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_millis(5);
    loop {
        match open_once(port, interface, queue, transmits, options) {
            // The kernel releases a queue some 20 ms after its last owner closed it.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && waited < options.busy_retry => {
                std::thread::sleep(pause);
                waited += pause;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            Err(cause) => return Err(OpenError { interface: interface.to_owned(), queue, cause }),
            Ok(halves) => return Ok(halves),
        }
    }
}

fn open_once(
    port: PortId,
    interface: &str,
    queue: u32,
    transmits: bool,
    options: &SocketOptions,
) -> io::Result<(Receiver, Option<Transmitter>)> {
    let transmit_frames = if transmits { options.transmit_frames } else { 0 };
    let frames = NonZeroU32::new(options.receive_frames + transmit_frames)
        .filter(|_| options.receive_frames >= BURST as u32)
        .ok_or_else(|| io::Error::other("too few receive frames"))?;
    let (umem, mut descriptors) =
        Umem::new(umem_config(options)?, frames, false).map_err(|error| os_error(&error))?;
    let transmit_descriptors = descriptors.split_off(options.receive_frames as usize);

    let name: Interface =
        interface.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "interface name"))?;
    // SAFETY: the UMEM is shared with no other socket, and INHIBIT_PROG_LOAD is always set.
    let (tx, rx, rings) = unsafe { Socket::new(socket_config(options)?, &umem, &name, queue) }
        .map_err(|error| os_error(&error))?;
    let (fill, completion) = rings.ok_or_else(|| io::Error::other("a fresh UMEM came without its rings"))?;

    let fd = rx.fd().as_raw_fd();
    let counters = Arc::new(SocketCounters::default());
    counters.zero_copy.store(bound_zero_copy(fd)?, Ordering::Relaxed);
    tune(fd, options);

    let transmitter = transmits.then(|| {
        let pool = TxPool::new(umem.clone(), transmit_descriptors.into_boxed_slice());
        Transmitter::new(port, tx, completion, pool, counters.clone())
    });
    Ok((Receiver::new(port, queue, umem, rx, fill, descriptors, counters), transmitter))
}

/// The rings we produce on are twice as long as there are frames. The kernel hands frames back (on the receive
/// and completion rings) a moment before it moves its consumer pointer past them, or many moments when every one
/// of a run of frames was refused; until then their old entries still count. There are never more of those than
/// frames.
fn produced(frames: u32) -> io::Result<QueueSize> {
    QueueSize::new(frames.saturating_mul(2)).map_err(io::Error::other)
}

fn umem_config(options: &SocketOptions) -> io::Result<UmemConfig> {
    UmemConfigBuilder::new()
        .frame_size(FrameSize::new(FRAME_SIZE as u32).map_err(io::Error::other)?)
        .fill_queue_size(produced(options.receive_frames)?)
        .comp_queue_size(QueueSize::new(options.transmit_frames).map_err(io::Error::other)?)
        .build()
        .map_err(io::Error::other)
}

fn socket_config(options: &SocketOptions) -> io::Result<SocketConfig> {
    let mode = match options.bind {
        BindMode::Auto => BindFlags::empty(),
        BindMode::Copy => BindFlags::XDP_COPY,
        BindMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
    };
    Ok(SocketConfig::builder()
        .rx_queue_size(QueueSize::new(options.receive_frames).map_err(io::Error::other)?)
        .tx_queue_size(produced(options.transmit_frames)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        // Multi-buffer: a packet longer than one frame comes and goes in several.
        .bind_flags(mode | BindFlags::XDP_USE_NEED_WAKEUP | BindFlags::XDP_USE_SG)
        .build())
}

/// The errno inside an xsk-rs error, which shows only where it happened.
fn os_error(error: &dyn Error) -> io::Error {
    match error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
    {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    }
}

fn bound_zero_copy(fd: RawFd) -> io::Result<bool> {
    let mut flags: u32 = 0;
    let mut length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: writes one u32, struct xdp_options, into `flags`.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_XDP, libc::XDP_OPTIONS, (&raw mut flags).cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(flags & libc::XDP_OPTIONS_ZEROCOPY != 0) }
}

/// Options that make it faster and that older kernels or drivers may refuse.
fn tune(fd: RawFd, options: &SocketOptions) {
    const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
    const SO_PREFER_BUSY_POLL: i32 = 69;
    const SO_BUSY_POLL_BUDGET: i32 = 70;
    let set = |level, option, value: u32| {
        // SAFETY: reads one u32.
        let result = unsafe {
            libc::setsockopt(
                fd,
                level,
                option,
                (&raw const value).cast(),
                size_of::<u32>() as libc::socklen_t,
            )
        };
        if result < 0 {
            tracing::debug!(level, option, error = %io::Error::last_os_error(), "socket option refused");
        }
    };
    set(libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, options.wakeup_budget);
    // Copy mode charges each frame in flight with its skb; the pool bounds them already.
    set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, options.transmit_frames.saturating_mul(4096));
    if let Some(busy) = options.busy_poll {
        set(libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1);
        set(libc::SOL_SOCKET, libc::SO_BUSY_POLL, busy.time_us);
        set(libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, busy.budget);
    }
}

/// What one [`Receiver::receive`] took from the ring, in packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Arrivals {
    /// In the burst, read by [`Receiver::show`].
    pub packets: usize,
    /// Longer than a [`LargeFrame`]: dropped.
    pub too_big: u64,
    /// Of several frames, and no [`LargeFrame`] was free: dropped.
    pub no_large_frame: u64,
}

/// The receive half of a socket. One burst at a time is with the worker.
pub struct Receiver {
    /// Its port.
    pub port: PortId,
    /// Its queue.
    pub queue: u32,
    /// Its counters.
    pub counters: Arc<SocketCounters>,
    id: u32,
    umem: Umem,
    rx: RxQueue,
    fill: FillQueue,
    ledger: Ledger,
    burst: Box<[FrameDesc; BURST]>,
    burst_length: usize,
    /// Bit i: frame i of the burst was lent to another worker.
    lent_from_burst: u64,
    lent: u32,
    /// Packets of several frames.
    gathering: Gathering,
    /// Those of the burst: each in the place of its last piece.
    large: Vec<(usize, LargeFrame)>,
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `rx` owns the socket and keeps it open for as long as it is borrowed here.
        unsafe { BorrowedFd::borrow_raw(self.fd()) }
    }
}

impl Receiver {
    fn new(
        port: PortId,
        queue: u32,
        umem: Umem,
        rx: RxQueue,
        fill: FillQueue,
        descriptors: Vec<FrameDesc>,
        counters: Arc<SocketCounters>,
    ) -> Self {
        static NEXT_ID: AtomicU32 = AtomicU32::new(0);
        let mut receiver = Self {
            port,
            queue,
            counters,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            umem,
            rx,
            fill,
            ledger: Ledger::new(descriptors.len() as u32),
            burst: Box::new([FrameDesc::default(); BURST]),
            burst_length: 0,
            lent_from_burst: 0,
            lent: 0,
            gathering: Gathering::new(),
            large: Vec::with_capacity(BURST),
        };
        for descriptor in &descriptors {
            receiver.ledger.shift(frame_number(descriptor), Place::Free, Place::Filled);
        }
        give_to_kernel(&mut receiver.fill, receiver.rx.fd().as_raw_fd(), &descriptors);
        receiver
    }

    /// The socket, to poll it.
    pub fn fd(&self) -> RawFd {
        self.rx.fd().as_raw_fd()
    }

    /// Takes the next burst off the ring. The one before must have been released.
    #[inline]
    pub fn receive(&mut self) -> Arrivals {
        assert_eq!(self.burst_length, 0, "the burst before was not released");
        // SAFETY: all frames of this UMEM's receive half went to this socket's fill ring.
        let count = unsafe { self.rx.consume(&mut *self.burst) };
        let mut multi_buffer = self.gathering.is_under_way();
        for descriptor in &self.burst[..count] {
            self.ledger.shift(frame_number(descriptor), Place::Filled, Place::Held);
            let within_frame = descriptor.addr() % FRAME_SIZE + descriptor.lengths().data();
            assert!(within_frame <= FRAME_SIZE, "the kernel reports a packet beyond its frame");
            multi_buffer |= descriptor.has_more_frames();
        }
        self.burst_length = count;
        if multi_buffer { self.gather() } else { Arrivals { packets: count, ..Arrivals::default() } }
    }

    /// Puts packets of several frames together. The last frame of each stays in the burst, as its place; the others go
    /// back at once.
    #[cold]
    fn gather(&mut self) -> Arrivals {
        let mut arrivals = Arrivals::default();
        let mut copied = ArrayVec::<FrameDesc, BURST>::new();
        for i in 0..self.burst_length {
            let mut descriptor = self.burst[i];
            let more = descriptor.has_more_frames();
            if more || self.gathering.is_under_way() {
                let (start, length) = bytes_of(&self.umem, &mut descriptor);
                // SAFETY: as in `show`, and nobody else has this frame now.
                self.gathering.add(unsafe { std::slice::from_raw_parts(start.as_ptr(), length) });
                let outcome = (!more).then(|| self.gathering.finish());
                if let Some(Ok(large)) = outcome {
                    self.large.push((arrivals.packets, large));
                } else {
                    match outcome {
                        Some(Err(DropReason::NoLargeFrame)) => arrivals.no_large_frame += 1,
                        Some(_) => arrivals.too_big += 1,
                        None => {}
                    }
                    self.ledger.shift(frame_number(&descriptor), Place::Held, Place::Filled);
                    copied.push(descriptor);
                    continue;
                }
            }
            self.burst[arrivals.packets] = descriptor;
            arrivals.packets += 1;
        }
        give_to_kernel(&mut self.fill, self.rx.fd().as_raw_fd(), &copied);
        self.burst_length = arrivals.packets;
        arrivals
    }

    /// Shows the packets of the burst, Ethernet header first: the caller's alone until [`Receiver::release`].
    #[inline]
    pub fn show<'a>(&'a mut self, burst: &mut [Received<'a>]) {
        assert_eq!(self.lent_from_burst, 0, "lent frames belong to somebody else");
        for (received, descriptor) in burst.iter_mut().zip(&mut self.burst[..self.burst_length]) {
            let (mut start, length) = bytes_of(&self.umem, descriptor);
            // SAFETY: the descriptors of a burst name different frames, so the slices do not overlap; they live as
            // long as the borrow of `self`, and `release` and `lend` need that back.
            received.frame = unsafe { std::slice::from_raw_parts_mut(start.as_mut(), length) };
        }
        for (place, large) in &mut self.large {
            burst[*place].frame = large;
        }
    }

    /// Lends packet `i` of the burst to another worker. It must come back by [`Receiver::take_home`].
    ///
    /// # Panics
    /// When the burst is shorter, or the frame was lent.
    pub fn lend(&mut self, i: usize) -> RxFrame {
        assert!(i < self.burst_length && self.lent_from_burst & (1 << i) == 0);
        let (start, length) = bytes_of(&self.umem, &mut self.burst[i]);
        self.lent_from_burst |= 1 << i;
        self.lent += 1;
        let large = self.large.iter().position(|(place, _)| *place == i);
        let large = large.map(|position| self.large.swap_remove(position).1);
        RxFrame { start, length, large, descriptor: self.burst[i], receiver: self.id }
    }

    /// Takes a lent frame back. Gives it back as an error when it is another receiver's.
    ///
    /// # Errors
    /// The frame.
    pub fn take_home(&mut self, frame: RxFrame) -> Result<(), RxFrame> {
        if frame.receiver != self.id {
            return Err(frame);
        }
        self.lent -= 1;
        if let Some(large) = frame.large {
            self.gathering.give_back(large);
        }
        self.ledger.shift(frame_number(&frame.descriptor), Place::Held, Place::Filled);
        give_to_kernel(&mut self.fill, self.rx.fd().as_raw_fd(), &[frame.descriptor]);
        Ok(())
    }

    /// Frames that other workers have.
    pub fn lent(&self) -> u32 {
        self.lent
    }

    /// Gives the burst back to the fill ring, without what was lent.
    #[inline]
    pub fn release(&mut self) {
        let mut length = std::mem::take(&mut self.burst_length);
        let lent = std::mem::take(&mut self.lent_from_burst);
        if lent != 0 {
            let mut kept = 0;
            for i in (0..length).filter(|i| lent & (1 << i) == 0) {
                self.burst[kept] = self.burst[i];
                kept += 1;
            }
            length = kept;
        }
        for descriptor in &self.burst[..length] {
            self.ledger.shift(frame_number(descriptor), Place::Held, Place::Filled);
        }
        give_to_kernel(&mut self.fill, self.rx.fd().as_raw_fd(), &self.burst[..length]);
        for (_, large) in self.large.drain(..) {
            self.gathering.give_back(large);
        }
    }

    /// True, once, when the interface was deleted: the kernel leaves an error on the socket. (poll(2) says
    /// nothing of it.)
    pub fn lost_interface(&self) -> bool {
        let mut error: i32 = 0;
        let mut length = size_of::<i32>() as libc::socklen_t;
        // SAFETY: writes one i32.
        let result = unsafe {
            let value = (&raw mut error).cast();
            libc::getsockopt(self.fd(), libc::SOL_SOCKET, libc::SO_ERROR, value, &raw mut length)
        };
        result == 0 && error != 0
    }

    /// Publishes the kernel's statistics of this socket.
    pub fn refresh_statistics(&self) {
        if let Ok(kernel) = self.rx.fd().xdp_statistics() {
            let values = [
                kernel.rx_dropped(),
                kernel.rx_invalid_descs(),
                kernel.tx_invalid_descs(),
                kernel.rx_ring_full(),
                kernel.rx_fill_ring_empty_descs(),
                kernel.tx_ring_empty_descs(),
            ];
            for (counter, value) in self.counters.xdp.iter().zip(values) {
                counter.store(value, Ordering::Relaxed);
            }
        }
    }
}

/// Fills the ring with frames that the ledger just moved to Filled.
fn give_to_kernel(fill: &mut FillQueue, socket: RawFd, descriptors: &[FrameDesc]) {
    // SAFETY: the frames are of this ring's UMEM, and Filled: nothing else refers to them.
    let count = unsafe { fill.produce(descriptors) };
    assert_eq!(count, descriptors.len(), "the fill ring has room for every frame twice");
    if fill.needs_wakeup() {
        // SAFETY: no buffer is passed; in zero-copy mode the call makes the driver look at the ring.
        unsafe { libc::recv(socket, std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.counters.closed.store(true, Ordering::Relaxed);
        if self.lent > 0 {
            // Another worker still reads from the mapping: better to lose the memory than to free it there.
            std::mem::forget(self.umem.clone());
        }
    }
}

/// A received frame lent to another worker, which processes it and sends it home. Cannot be copied.
#[must_use = "a lent frame that is dropped never returns to its fill ring"]
pub struct RxFrame {
    start: NonNull<u8>,
    length: usize,
    /// The whole packet, when the frame holds only the last piece of it.
    large: Option<LargeFrame>,
    descriptor: FrameDesc,
    receiver: u32,
}

impl RxFrame {
    /// Without its first `length` bytes: tags that were taken out.
    ///
    /// # Panics
    /// When it is shorter.
    pub fn skip(&mut self, length: usize) {
        if let Some(large) = &mut self.large {
            return large.skip(length);
        }
        assert!(length <= self.length);
        // SAFETY: within the frame.
        self.start = unsafe { self.start.add(length) };
        self.length -= length;
    }
}

// SAFETY: the frame has one owner at a time; its ledger entry stays Held until it is home, and the mapping outlives
// it (see `Receiver::drop`).
unsafe impl Send for RxFrame {}

impl std::ops::Deref for RxFrame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.large {
            Some(large) => large,
            // SAFETY: as above; `length` was checked in `Receiver::receive`.
            None => unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) },
        }
    }
}

impl std::ops::DerefMut for RxFrame {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.large {
            Some(large) => large,
            // SAFETY: as above, and this is the one owner.
            None => unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) },
        }
    }
}

/// Where the bytes of a received frame are. The descriptor came from the receive ring, and its frame is Held.
#[inline]
fn bytes_of(umem: &Umem, descriptor: &mut FrameDesc) -> (NonNull<u8>, usize) {
    // SAFETY: the ledger says Held since `receive`, which also checked the length: the kernel does not touch the
    // frame, and whoever holds the descriptor is the only one here to do so.
    let mut bytes = unsafe { umem.data_mut(descriptor) };
    let bytes = bytes.contents_mut();
    (NonNull::from(&mut *bytes).cast(), bytes.len())
}

const _: () = assert!(HEADROOM + FRAME_CAPACITY == FRAME_SIZE && BURST <= 64);
