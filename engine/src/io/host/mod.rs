//! The host path: a TUN device through which the gateway's own stack reaches the tunnels, and they reach it.
//!
//! ```text
//!  gateway's own sockets ──rules, routes──> TUN queue ──HostFrame──> worker ──PROTECT──> ESP
//!  gateway's own sockets <──────────────── TUN device <──write(2)── worker <──decrypted─ ESP
//! ```
//!
//! A queue of the device for each worker. [`device`] makes it, [`plan`] says which of the gateway's own packets are
//! to go into it, [`routes`] makes the kernel do so, and [`keeper`] keeps all of that up with policies and addresses.
//! Instances side by side have different devices, addresses, tables and priorities: [`slot`].
//! The device is persistent: when the process dies, what is routed into it is lost there, and not sent in clear.

pub mod device;
pub mod keeper;
pub mod plan;
pub mod routes;
pub mod slot;

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

pub use keeper::{Host, HostReport, remove};

use crate::pipeline::{BURST, HostEnd};
use crate::route::LARGEST_MTU;
use crate::wire::ethernet::{self, HEADER_LENGTH};

/// Frames of a queue, with a worker or lent to another.
const FRAMES: usize = 4 * BURST;

/// A packet of the gateway itself, behind room for an Ethernet header that says its version.
pub struct HostFrame {
    bytes: Box<[u8]>,
    length: usize,
}

/// Bytes of a frame: what the device may send, whatever its MTU is.
const CAPACITY: usize = HEADER_LENGTH + LARGEST_MTU as usize;

impl HostFrame {
    fn new() -> Self {
        Self { bytes: vec![0; CAPACITY].into_boxed_slice(), length: 0 }
    }
}

impl Deref for HostFrame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl DerefMut for HostFrame {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

/// One worker's queue of the device.
pub struct HostQueue {
    device: OwnedFd,
    /// Where errors about the gateway's own packets come from.
    pub(super) end: HostEnd,
    free: Vec<HostFrame>,
}

impl HostQueue {
    /// Around a queue of the device, nonblocking.
    pub fn new(device: OwnedFd, end: HostEnd) -> Self {
        Self { device, end, free: (0..FRAMES).map(|_| HostFrame::new()).collect() }
    }

    /// To poll it.
    pub(super) fn fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }

    /// Appends what is there to `burst`, which holds [`BURST`] at most; less when too many frames are lent.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn read(&mut self, burst: &mut Vec<HostFrame>) -> io::Result<()> {
        while burst.len() < BURST {
            let Some(mut frame) = self.free.pop() else { break };
            match rustix::io::read(&self.device, &mut frame.bytes[HEADER_LENGTH..]) {
                Ok(length) if length > 0 => {
                    frame.length = HEADER_LENGTH + length;
                    ethernet::write_without_addresses(&mut frame);
                    burst.push(frame);
                }
                outcome => {
                    self.free.push(frame);
                    return match outcome {
                        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
                        Err(error) => Err(error.into()),
                    };
                }
            }
        }
        Ok(())
    }

    /// Takes a frame back that was read here, or from the queue before this one.
    pub(super) fn give_back(&mut self, frame: HostFrame) {
        if self.free.len() < FRAMES {
            self.free.push(frame);
        }
    }

    /// Gives a packet to the gateway's own stack, which works on it at once. False when it does not take it: the
    /// device is down or gone.
    pub(super) fn write(&self, packet: &[u8]) -> bool {
        rustix::io::write(&self.device, packet) == Ok(packet.len())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    const END: HostEnd = HostEnd { v4: std::net::Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };

    /// A queue, and the kernel's side of it: datagrams, like the device's.
    fn queue() -> (HostQueue, OwnedFd) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, kernels) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
        (HostQueue::new(ours, END), kernels)
    }

    fn read(queue: &mut HostQueue) -> Vec<HostFrame> {
        let mut burst = Vec::new();
        queue.read(&mut burst).unwrap();
        burst
    }

    #[test]
    fn packets_come_as_frames_without_addresses() {
        let (mut queue, kernels) = queue();
        assert!(read(&mut queue).is_empty());
        for (packet, ether_type) in
            [(&[0x45, 1, 2][..], [8, 0]), (&[0x60; LARGEST_MTU as usize], [0x86, 0xdd]), (&[0], [0, 0])]
        {
            rustix::io::write(&kernels, packet).unwrap();
            let burst = read(&mut queue);
            assert_eq!(burst.len(), 1);
            assert_eq!(burst[0][..HEADER_LENGTH], [&[0; 12][..], &ether_type].concat());
            assert_eq!(&burst[0][HEADER_LENGTH..], packet);
            burst.into_iter().for_each(|frame| queue.give_back(frame));
        }
    }

    #[test]
    fn a_burst_is_bounded_and_so_is_what_is_lent() {
        let (mut queue, kernels) = queue();
        let mut lent = Vec::new();
        let mut sent = 0u32;
        while lent.len() < FRAMES {
            while rustix::io::write(&kernels, &sent.to_be_bytes()).is_ok() {
                sent += 1;
            }
            let burst = read(&mut queue);
            assert!((1..=BURST).contains(&burst.len()));
            lent.extend(burst);
        }
        assert_eq!(lent.len(), FRAMES);
        assert!(read(&mut queue).is_empty(), "no frame is free");
        let numbers = lent.iter().map(|frame| u32::from_be_bytes(frame[HEADER_LENGTH..].try_into().unwrap()));
        assert!(numbers.eq(0..FRAMES as u32), "in order, none lost");
        lent.into_iter().for_each(|frame| queue.give_back(frame));
        queue.give_back(HostFrame::new());
        assert_eq!(queue.free.len(), FRAMES, "a queue replaced while frames were lent does not grow");
    }

    #[test]
    fn what_the_kernel_does_not_take_is_said() {
        let (queue, kernels) = queue();
        assert!(queue.write(&[0x45; 60]));
        let mut packet = [0; 100];
        assert_eq!(rustix::io::read(&kernels, &mut packet), Ok(60));
        drop(kernels);
        assert!(!queue.write(&[0x45; 60]));
    }

    #[test]
    fn a_device_that_is_gone_is_an_error() {
        let write_only = rustix::fs::open("/dev/null", rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty());
        let mut queue = HostQueue::new(write_only.unwrap(), END);
        assert!(queue.read(&mut Vec::new()).is_err());
        assert_eq!(queue.free.len(), FRAMES);
    }
}
