//! Between workers: packets whose outbound SA another worker numbers, and the frames that come home after it.
//!
//! A frame is lent, never copied: the owner of the SA reads it where it was received, writes its own transmit
//! frame, and sends the received frame home to where it came from: a fill ring, or the host path.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::Sender;

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

use super::host::{HostFrame, HostQueue};
use super::socket::{Receiver, RxFrame};
use super::transmit::Transmitter;
use crate::route::PortId;

/// Most packets waiting for one worker, and most frames one worker may have lent out.
pub const DEPTH: usize = 1024;

/// How often a packet may be handed on: an SA can change hands while its packets are under way, but not for ever.
pub const HOPS: u8 = 3;

/// A packet for another worker.
pub struct HandedOver {
    /// Where it was received.
    pub port: PortId,
    /// The worker that received it.
    pub origin: u32,
    /// How often it was handed over.
    pub hops: u8,
    /// The frame.
    pub frame: Lent,
}

/// A frame that another worker may have for a while.
#[must_use = "a lent frame that is dropped never comes home"]
pub enum Lent {
    /// Of a receive ring.
    Ring(RxFrame),
    /// Of the host path.
    Host(HostFrame),
    /// Of nobody: a datagram that was put together.
    Datagram(Vec<u8>),
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Ring(frame) => frame,
            Self::Host(frame) => frame,
            Self::Datagram(frame) => frame,
        }
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Ring(frame) => frame,
            Self::Host(frame) => frame,
            Self::Datagram(frame) => frame,
        }
    }
}

/// What the datapath asks of a worker.
pub enum Command {
    /// Sockets of a port that came (back) up. Without a transmitter, when it has fewer queues than there are workers:
    /// then worker 0, which serves queue 0 of every port, transmits.
    Open(PortId, Vec<Receiver>, Option<Box<Transmitter>>),
    /// Give up all sockets of a port; whoever asked closes them, and hears by the channel's end that it has them all.
    Close(PortId, Sender<Retired>),
    /// A queue of the host device, instead of the one before.
    OpenHost(Box<HostQueue>),
}

/// A socket that its worker is done with. The kernel takes its time to close one (it waits until nobody looks at
/// it any more), and a worker has no time: others drop it.
pub enum Retired {
    /// A receive half; none of its frames is lent.
    Receiver(Box<Receiver>),
    /// A transmit half; what was in flight is accounted for.
    Transmitter(Box<Transmitter>),
    /// A queue of the host device.
    Host(Box<HostQueue>),
}

/// One worker's letter box.
pub struct Mailbox {
    inbox: ArrayQueue<HandedOver>,
    homecoming: ArrayQueue<Lent>,
    commands: Mutex<Vec<Command>>,
    commanded: AtomicBool,
    sleeping: AtomicBool,
    bell: OwnedFd,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// No eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inbox: ArrayQueue::new(DEPTH),
            homecoming: ArrayQueue::new(DEPTH),
            commands: Mutex::new(Vec::new()),
            commanded: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    /// Hands a packet over.
    ///
    /// # Errors
    /// The packet, when the box is full.
    pub fn hand_over(&self, packet: HandedOver) -> Result<(), HandedOver> {
        self.inbox.push(packet)?;
        self.wake();
        Ok(())
    }

    /// The next packet handed over.
    pub fn next(&self) -> Option<HandedOver> {
        self.inbox.pop()
    }

    /// Packets handed over and not taken yet.
    pub fn waiting(&self) -> usize {
        self.inbox.len()
    }

    /// Sends a frame home. Its worker never lends more than fit.
    ///
    /// # Panics
    /// When it did.
    pub fn send_home(&self, frame: Lent) {
        assert!(self.homecoming.push(frame).is_ok(), "more frames come home than were lent");
    }

    /// The next frame that came home.
    pub fn came_home(&self) -> Option<Lent> {
        self.homecoming.pop()
    }

    /// Leaves a command.
    pub fn command(&self, command: Command) {
        self.commands.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(command);
        self.commanded.store(true, Ordering::Release);
        self.ring();
    }

    /// The commands left; one atomic load when there are none.
    #[inline]
    pub fn commands(&self) -> Vec<Command> {
        if !self.commanded.load(Ordering::Relaxed) || !self.commanded.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.commands.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Announces sleep. False when there is something to do: whoever put it there may not have seen the sleeper.
    pub fn fall_asleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake`: either the sender sees the sleeper or the sleeper the packet.
        fence(Ordering::SeqCst);
        let idle = self.inbox.is_empty() && !self.commanded.load(Ordering::Relaxed);
        if !idle {
            self.sleeping.store(false, Ordering::Relaxed);
        }
        idle
    }

    /// After sleep: stops the bell.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
        let mut count = [0; 8];
        // Nonblocking; it fails only when the bell did not ring.
        let _ = rustix::io::read(&self.bell, &mut count);
    }

    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.ring();
        }
    }

    /// Wakes the worker, asleep or about to be.
    pub fn ring(&self) {
        // Fails only when the counter is full, which wakes just as well.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// To poll for the bell.
    pub fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}
