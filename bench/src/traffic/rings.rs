//! The least one needs of an AF_XDP socket: its rings and its memory.
#![allow(unsafe_code)]

use std::error::Error;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};

use xsk_rs::config::{
    BindFlags, FrameSize, LibxdpFlags, QueueSize, SocketConfig, UmemConfig, UmemConfigBuilder,
};
use xsk_rs::socket::{RxQueue, Socket, TxQueue};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::umem::{CompQueue, FillQueue, Umem};

/// Frames of a socket, and entries of the rings it consumes. The rings it produces on are twice as long: the
/// kernel hands frames back a moment before it frees their entries there.
pub const RING: u32 = 2048;

/// One socket's rings.
pub struct Rings {
    /// Transmit.
    pub tx: TxQueue,
    /// Receive.
    pub rx: RxQueue,
    /// To receive into.
    pub fill: FillQueue,
    /// Transmitted.
    pub completion: CompQueue,
}

fn umem_config() -> Result<UmemConfig, Box<dyn Error>> {
    Ok(UmemConfigBuilder::new()
        .frame_size(FrameSize::new(2048)?)
        .fill_queue_size(QueueSize::new(2 * RING)?)
        .comp_queue_size(QueueSize::new(RING)?)
        .build()?)
}

/// Memory for `frames` frames.
///
/// # Errors
/// What the kernel says.
pub fn memory(frames: u32) -> Result<(Umem, Vec<FrameDesc>), Box<dyn Error>> {
    Ok(Umem::new(umem_config()?, NonZeroU32::new(frames).ok_or("no frames")?, false)?)
}

/// Opens a socket on `memory`; `wakeup_budget` is the most packets one wake-up transmits.
///
/// # Errors
/// What the kernel says.
pub fn open(memory: &Umem, interface: &str, queue: u32, wakeup_budget: u32) -> Result<Rings, Box<dyn Error>> {
    const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
    let config = SocketConfig::builder()
        .rx_queue_size(QueueSize::new(RING)?)
        .tx_queue_size(QueueSize::new(2 * RING)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    // SAFETY: INHIBIT_PROG_LOAD is set, and no (interface, queue) is opened twice on one UMEM.
    let (tx, rx, rings) = unsafe { Socket::new(config, memory, &interface.parse()?, queue) }
        .map_err(|error| format!("{interface} queue {queue}: {error}: {:?}", error.source()))?;
    let (fill, completion) = rings.ok_or("no rings of its own")?;
    for (level, option, value) in [
        (libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, wakeup_budget),
        (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, RING * 4096),
    ] {
        // SAFETY: reads one u32. Refused by older kernels, which is only slower.
        unsafe { libc::setsockopt(tx.fd().as_raw_fd(), level, option, (&raw const value).cast(), 4) };
    }
    Ok(Rings { tx, rx, fill, completion })
}

/// Waits for a frame on one of `sockets`, at most `timeout_ms`.
pub fn wait(sockets: &[RawFd], timeout_ms: i32) {
    let mut polled: Vec<_> =
        sockets.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array is as long as said.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout_ms) };
}
