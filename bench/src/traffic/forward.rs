//! A forwarder that has nothing to do with adit: one UMEM shared by two sockets, frames passed from one ring to the
//! other with new Ethernet addresses. It sets the mark for what AF_XDP can do here.
#![allow(unsafe_code)]

use std::error::Error;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use serde::Serialize;
use xsk_rs::umem::Umem;
use xsk_rs::umem::frame::FrameDesc;

use super::frame::Mac;
use super::rings::{self, RING, Rings};
use super::{cpu_time, interrupted};
use crate::redirect::{AttachMode, Redirect, Take};

/// One end.
#[derive(Clone, Debug)]
pub struct End {
    /// Interface; its queue 0 is used.
    pub interface: String,
    /// Where frames go that leave here.
    pub next_hop: Mac,
}

/// What was forwarded.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Forwarded {
    /// Frames.
    pub frames: u64,
    /// CPU time per frame, nanoseconds.
    pub cpu_ns_per_frame: f64,
}

struct Side {
    rings: Rings,
    next_hop: Mac,
    unsent: bool,
}

impl Side {
    fn socket(&self) -> RawFd {
        self.rings.rx.fd().as_raw_fd()
    }
}

/// Forwards UDP between two interfaces, both ways, for `time`; `ready` is called when it does.
///
/// # Errors
/// The sockets could not be opened, or the programs not attached.
pub fn forward(
    ends: [&End; 2],
    mode: AttachMode,
    time: Duration,
    ready: impl FnOnce(),
) -> Result<Forwarded, Box<dyn Error>> {
    let (memory, frames) = rings::memory(2 * RING)?;
    let mut programs = Vec::new();
    let mut sides = Vec::new();
    for (end, frames) in ends.into_iter().zip(frames.chunks(RING as usize)) {
        let mut rings = rings::open(&memory, &end.interface, 0, 128)?;
        // SAFETY: each half of a fresh UMEM goes to one fill ring.
        unsafe { rings.fill.produce(frames) };
        let program = Redirect::attach(&end.interface, mode, Take::Traffic)?;
        program.insert(0, rings.rx.fd().as_raw_fd())?;
        programs.push(program);
        sides.push(Side { rings, next_hop: end.next_hop, unsent: false });
    }
    let [a, b] = &mut sides[..] else { unreachable!("two ends make two sides") };
    ready();
    let mut forwarded = Forwarded::default();
    let (start, cpu_before) = (Instant::now(), cpu_time());
    let mut idle = 0;
    while start.elapsed() < time && !interrupted() {
        let moved = pass(&memory, a, b) + pass(&memory, b, a);
        forwarded.frames += moved;
        idle = if moved == 0 { idle + 1 } else { 0 };
        if idle > 200 && !a.unsent && !b.unsent {
            rings::wait(&[a.socket(), b.socket()], 10);
        }
    }
    forwarded.cpu_ns_per_frame = (cpu_time() - cpu_before).as_nanos() as f64 / forwarded.frames.max(1) as f64;
    Ok(forwarded)
}

/// Frames that arrived at `from` go out of `to`; those that left return to `from`'s fill ring.
fn pass(memory: &Umem, from: &mut Side, to: &mut Side) -> u64 {
    let mut burst = [FrameDesc::default(); 64];
    // SAFETY: both sockets are on this UMEM. A frame is on one ring at a time: received, sent, completed, filled.
    let received = unsafe { from.rings.rx.consume(&mut burst) };
    for descriptor in &mut burst[..received] {
        // SAFETY: received and not yet sent.
        let mut bytes = unsafe { memory.data_mut(descriptor) };
        bytes[..6].copy_from_slice(&to.next_hop);
    }
    if received > 0 {
        // SAFETY: as above.
        let sent = unsafe { to.rings.tx.produce(&burst[..received]) };
        assert_eq!(sent, received, "a transmit ring has room for every frame twice");
        to.unsent = true;
    }
    if to.unsent {
        // SAFETY: no buffer is passed.
        let result = unsafe {
            libc::sendto(to.socket(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
        };
        to.unsent = result < 0;
    }
    // SAFETY: as above.
    let completed = unsafe { to.rings.completion.consume(&mut burst) };
    // SAFETY: as above.
    let filled = unsafe { from.rings.fill.produce(&burst[..completed]) };
    assert_eq!(filled, completed, "a fill ring has room for every frame twice");
    received as u64
}
