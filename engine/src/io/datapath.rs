//! Starts and stops the workers, and rebuilds the sockets of an interface that went away, without touching the
//! others.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::hand_over::{Command, Mailbox, Retired};
use super::host::HostQueue;
use super::process::Process;
use super::queues::queue_counts;
use super::socket::{OpenError, Receiver, SocketCounters, SocketOptions, open};
use super::transmit::Transmitter;
use super::watchdog;
use super::worker::{Shared, Vitals, Worker};
use crate::pipeline::{DropReason, WorkerCounters};
use crate::route::PortId;
use crate::wire::ethernet::MacAddress;
use crate::wire::vlan::Tags;

/// Where sockets are made known to the steering program: an XSKMAP for each port.
pub trait SocketRegistry: Send + Sync {
    /// Frames of `queue` may go to `socket` from now on.
    ///
    /// # Errors
    /// The map refused it.
    fn insert_socket(&self, port: PortId, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// The socket of `queue` is about to close. (The kernel also takes a closed socket out by itself.)
    ///
    /// # Errors
    /// The map refused it, for example because it went away with its interface.
    fn remove_socket(&self, port: PortId, queue: u32) -> io::Result<()>;
}

/// Who asks the kernel for neighbours. Called by workers: it must not block.
pub trait NeighbourRequests: Send + Sync {
    /// A packet waits for `neighbour`'s link-layer address.
    fn resolve(&self, port: PortId, neighbour: IpAddr);

    /// Frames were sent to this neighbour within the last second: the kernel, which does not see them, is to
    /// keep the entry fresh.
    fn in_use(&self, port: PortId, neighbour: MacAddress);
}

/// A port and its interface.
#[derive(Clone, Debug)]
pub struct PortInterface {
    /// Number.
    pub port: PortId,
    /// Interface name.
    pub interface: String,
}

/// A port that is a VLAN of another port's interface: it has no sockets of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VlanPort {
    /// Number.
    pub port: PortId,
    /// The interface's own port.
    pub parent: PortId,
    /// What its frames carry there.
    pub tags: Tags,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// All steered interfaces, each port once.
    pub ports: Vec<PortInterface>,
    /// Their VLANs that are ports too.
    pub vlans: Vec<VlanPort>,
    /// One worker for each of these CPUs, pinned to it; fewer when an interface has fewer queues.
    pub cores: Vec<usize>,
    /// What all sockets have in common.
    pub sockets: SocketOptions,
}

/// Why a datapath, or one port of it, did not start.
#[derive(Debug)]
pub enum StartError {
    /// No CPU was named.
    NoCores,
    /// No interface was named.
    NoPorts,
    /// The port is not one of the configuration.
    UnknownPort(PortId),
    /// The queues of an interface could not be learned: it does not exist, for example.
    Queues {
        /// Interface.
        interface: String,
        /// Why.
        cause: io::Error,
    },
    /// A queue could not be bound. All of them must be: frames of the others would pass the engine by.
    Open(OpenError),
    /// The steering program's map refused a socket.
    Register {
        /// Interface.
        interface: String,
        /// Queue.
        queue: u32,
        /// Why.
        cause: io::Error,
    },
    /// No thread, or no eventfd.
    Thread(io::Error),
    /// A worker did not close a port's sockets in time.
    Stuck {
        /// Interface.
        interface: String,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCores => write!(f, "no CPU for a worker"),
            Self::NoPorts => write!(f, "no interface to steer"),
            Self::UnknownPort(port) => write!(f, "port {} is not configured", port.0),
            Self::Queues { interface, cause } => write!(f, "queues of {interface}: {cause}"),
            Self::Open(error) => error.fmt(f),
            Self::Register { interface, queue, cause } => {
                write!(f, "socket of {interface} queue {queue} into the steering program's map: {cause}")
            }
            Self::Thread(cause) => write!(f, "worker thread: {cause}"),
            Self::Stuck { interface } => {
                write!(f, "a worker did not close its sockets on {interface} in time")
            }
        }
    }
}

impl Error for StartError {}

/// What happened to an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// It is up and running.
    Up,
    /// It is down, or has no carrier. What is in flight would go out stale when it comes back: it is dropped.
    Down,
    /// It was deleted.
    Gone,
    /// It exists again, as another device.
    Appeared {
        /// The new kernel index.
        ifindex: u32,
    },
}

struct OpenSocket {
    queue: u32,
    worker: u32,
    counters: Arc<SocketCounters>,
}

struct PortState {
    interface: PortInterface,
    sockets: Vec<OpenSocket>,
}

/// Running workers and their sockets.
pub struct Datapath {
    shared: Arc<Shared>,
    vitals: Vec<Arc<Vitals>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held while a port's sockets are opened or closed, which takes seconds when the kernel is slow to let go.
    link_event: Mutex<()>,
    /// Held to read or to swap lists of sockets, and never across anything that waits: control reads it too.
    ports: Mutex<Vec<PortState>>,
    sockets: SocketOptions,
    registry: Arc<dyn SocketRegistry>,
}

impl Datapath {
    /// Binds a socket to every queue, registers them, and starts the workers. `process` makes a worker's
    /// [`Process`] on the worker's own thread, from its number and counters.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start<P: Process>(
        config: &DatapathConfig,
        process: impl Fn(u32, Arc<WorkerCounters>) -> P + Send + Sync + 'static,
        registry: Arc<dyn SocketRegistry>,
        neighbours: Arc<dyn NeighbourRequests>,
    ) -> Result<Self, StartError> {
        if config.ports.is_empty() {
            return Err(StartError::NoPorts);
        }
        let mut workers = config.cores.len();
        for port in &config.ports {
            let queues = queues_of(&port.interface)? as usize;
            if queues < workers {
                tracing::info!(interface = port.interface, queues, "fewer queues than CPUs: fewer workers");
                workers = queues;
            }
        }
        if workers == 0 {
            return Err(StartError::NoCores);
        }
        let mailboxes: Result<Box<[Mailbox]>, _> = (0..workers).map(|_| Mailbox::new()).collect();
        let shared = Arc::new(Shared {
            mailboxes: mailboxes.map_err(StartError::Thread)?,
            neighbours,
            vlans: config.vlans.clone().into_boxed_slice(),
            stop: AtomicBool::new(false),
            quiet: AtomicU32::new(0),
        });
        let vitals: Vec<_> = (0..workers).map(|_| Arc::new(Vitals::new(Arc::default()))).collect();
        let states =
            config.ports.iter().map(|port| PortState { interface: port.clone(), sockets: Vec::new() });
        let datapath = Self {
            shared,
            vitals,
            threads: Mutex::new(Vec::new()),
            link_event: Mutex::new(()),
            ports: Mutex::new(states.collect()),
            sockets: config.sockets,
            registry,
        };
        // The sockets wait in the workers' letter boxes: nothing runs before every one of them is bound.
        for port in &config.ports {
            datapath.open_port(port)?;
        }
        let process = Arc::new(process);
        for (number, &core) in config.cores.iter().take(workers).enumerate() {
            datapath.spawn(number as u32, core, process.clone())?;
        }
        let watchdog = watchdog::watch(datapath.shared.clone(), datapath.vitals.clone());
        let watchdog = watchdog.map_err(StartError::Thread)?;
        lock(&datapath.threads).push(watchdog);
        Ok(datapath)
    }

    fn spawn<P: Process>(
        &self,
        number: u32,
        core: usize,
        process: Arc<impl Fn(u32, Arc<WorkerCounters>) -> P + Send + Sync + 'static>,
    ) -> Result<(), StartError> {
        let (shared, vitals) = (self.shared.clone(), self.vitals[number as usize].clone());
        let thread = std::thread::Builder::new().name(format!("adit-w{number}")).spawn(move || {
            if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
                tracing::warn!(worker = number, core, "the worker could not be pinned to its CPU");
            }
            let process = process(number, vitals.counters.clone());
            Worker::new(number, shared, vitals, process).run();
        });
        lock(&self.threads).push(thread.map_err(StartError::Thread)?);
        Ok(())
    }

    /// Opens a socket for every queue and hands them to the workers: queue q to worker q modulo their number.
    /// The first of a worker's sockets also transmits.
    fn open_port(&self, PortInterface { port, interface }: &PortInterface) -> Result<(), StartError> {
        let queues = queues_of(interface)?;
        let workers = self.vitals.len() as u32;
        if queues < workers {
            tracing::warn!(interface, queues, workers, "some workers cannot transmit there");
        }
        let mut halves: Vec<(Vec<Receiver>, Option<Transmitter>)> = Vec::new();
        halves.resize_with(workers as usize, || (Vec::new(), None));
        let mut sockets = Vec::new();
        for queue in 0..queues {
            let (receiver, transmitter) =
                open(*port, interface, queue, queue < workers, &self.sockets).map_err(StartError::Open)?;
            let worker = queue % workers;
            sockets.push(OpenSocket { queue, worker, counters: receiver.counters.clone() });
            let (receivers, transmitters) = &mut halves[worker as usize];
            receivers.push(receiver);
            if transmitter.is_some() {
                *transmitters = transmitter;
            }
        }
        for receiver in halves.iter().flat_map(|(receivers, _)| receivers) {
            self.registry.insert_socket(*port, receiver.queue, receiver.as_fd()).map_err(|cause| {
                StartError::Register { interface: interface.clone(), queue: receiver.queue, cause }
            })?;
        }
        self.swap_sockets(*port, sockets);
        for (mailbox, (receivers, transmitter)) in self.shared.mailboxes.iter().zip(halves) {
            mailbox.command(Command::Open(*port, receivers, transmitter.map(Box::new)));
        }
        Ok(())
    }

    /// Replaces the list of a port's sockets; returns the one it had.
    fn swap_sockets(&self, port: PortId, sockets: Vec<OpenSocket>) -> Vec<OpenSocket> {
        let mut ports = lock(&self.ports);
        let state = ports.iter_mut().find(|state| state.interface.port == port);
        state.map_or_else(Vec::new, |state| std::mem::replace(&mut state.sockets, sockets))
    }

    fn close_port(&self, PortInterface { port, interface }: &PortInterface) -> Result<(), StartError> {
        for socket in self.swap_sockets(*port, Vec::new()) {
            if let Err(error) = self.registry.remove_socket(*port, socket.queue) {
                tracing::debug!(interface, queue = socket.queue, %error, "socket not removed");
            }
        }
        let (done, closed) = mpsc::channel();
        for mailbox in &self.shared.mailboxes {
            mailbox.command(Command::Close(*port, done.clone()));
        }
        drop(done);
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match closed.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(socket) => drop::<Retired>(socket),
                // Every worker has given up all it had.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(StartError::Stuck { interface: interface.clone() });
                }
            }
        }
    }

    /// Tells the datapath what happened to an interface. Its sockets are closed, or opened and registered; other
    /// ports are not disturbed, and [`Datapath::report`] does not wait for it. Blocks for some milliseconds, or for
    /// seconds while another event is under way: not for a worker's thread. Call it in the network namespace of the
    /// interfaces.
    ///
    /// # Errors
    /// The port stays closed; the same event may be tried again.
    pub fn link_event(&self, port: PortId, event: LinkEvent) -> Result<(), StartError> {
        let _one_at_a_time = lock(&self.link_event);
        let (interface, is_open) = {
            let ports = lock(&self.ports);
            let state = ports.iter().find(|state| state.interface.port == port);
            let PortState { interface, sockets } = state.ok_or(StartError::UnknownPort(port))?;
            let closed = |socket: &OpenSocket| socket.counters.closed.load(Ordering::Relaxed);
            (interface.clone(), !sockets.is_empty() && !sockets.iter().any(closed))
        };
        tracing::info!(interface = interface.interface, ?event, "link");
        match event {
            LinkEvent::Up if is_open => Ok(()),
            LinkEvent::Up | LinkEvent::Appeared { .. } => {
                self.close_port(&interface)?;
                self.open_port(&interface)
            }
            LinkEvent::Down | LinkEvent::Gone => self.close_port(&interface),
        }
    }

    /// Gives each worker its queue of the host device, instead of the one before.
    pub fn open_host(&self, queues: impl IntoIterator<Item = HostQueue>) {
        for (mailbox, queue) in self.shared.mailboxes.iter().zip(queues) {
            mailbox.command(Command::OpenHost(Box::new(queue)));
        }
    }

    /// How many workers run.
    pub fn workers(&self) -> usize {
        self.vitals.len()
    }

    /// Each worker's counters.
    pub fn counters(&self) -> Vec<Arc<WorkerCounters>> {
        self.vitals.iter().map(|vitals| vitals.counters.clone()).collect()
    }

    /// Everything countable, now. Counters of running workers are read one after the other: only at rest do they
    /// add up exactly.
    pub fn report(&self) -> Report {
        let handed_over = self.shared.mailboxes.iter().map(|mailbox| mailbox.waiting() as u64).sum();
        let workers = self.vitals.iter().map(|vitals| WorkerReport::read(vitals)).collect();
        let ports = lock(&self.ports);
        let sockets = ports
            .iter()
            .flat_map(|state| state.sockets.iter().map(|socket| SocketReport::read(state, socket)));
        Report { workers, handed_over, sockets: sockets.collect() }
    }

    /// Stops: nothing more is received, what is under way gets half a second to leave, sockets close. The
    /// steering programs are not touched: they drop what they would have sent here. Stopping twice is no more
    /// than a second report.
    pub fn stop(&self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.mailboxes.iter().for_each(Mailbox::ring);
        for thread in lock(&self.threads).drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
        self.report()
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn queues_of(interface: &str) -> Result<u32, StartError> {
    let counts = queue_counts(interface)
        .map_err(|cause| StartError::Queues { interface: interface.to_owned(), cause })?;
    Ok(counts.bindable())
}

/// One worker in a [`Report`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerReport {
    /// As in [`WorkerCounters`].
    pub received: u64,
    /// As in [`WorkerCounters`].
    pub originated: u64,
    /// As in [`WorkerCounters`].
    pub transmitted: u64,
    /// As in [`WorkerCounters`].
    pub delivered: u64,
    /// As in [`WorkerCounters`].
    pub absorbed: u64,
    /// As in [`WorkerCounters`].
    pub dropped: [u64; DropReason::COUNT],
    /// Frames in flight or waiting for a neighbour, counted one by one and not computed.
    pub held: u64,
    /// Bursts with at least one frame.
    pub bursts: u64,
    /// Times it slept.
    pub sleeps: u64,
}

impl WorkerReport {
    fn read(vitals: &Vitals) -> Self {
        let counters = &vitals.counters;
        Self {
            received: counters.received.load(Ordering::Relaxed),
            originated: counters.originated.load(Ordering::Relaxed),
            transmitted: counters.transmitted.load(Ordering::Relaxed),
            delivered: counters.delivered.load(Ordering::Relaxed),
            absorbed: counters.absorbed.load(Ordering::Relaxed),
            dropped: std::array::from_fn(|i| counters.dropped[i].load(Ordering::Relaxed)),
            held: vitals.held.load(Ordering::Relaxed),
            bursts: vitals.bursts.load(Ordering::Relaxed),
            sleeps: vitals.sleeps.load(Ordering::Relaxed),
        }
    }
}

/// One socket in a [`Report`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SocketReport {
    /// Port.
    pub port: PortId,
    /// Interface name.
    pub interface: String,
    /// Queue.
    pub queue: u32,
    /// Its worker.
    pub worker: u32,
    /// Zero-copy, or copy.
    pub zero_copy: bool,
    /// The worker closed it and waits for news of the interface.
    pub closed: bool,
    /// Wake-ups of the kernel.
    pub wakeups: u64,
    /// Wake-ups that left frames behind.
    pub wakeups_incomplete: u64,
    /// Frames refused by the device.
    pub refused: u64,
    /// Wake-ups that found the link down.
    pub link_errors: u64,
    /// The kernel's statistics, named by [`super::socket::XDP_STATISTICS`].
    pub xdp: [u64; super::socket::XDP_STATISTICS.len()],
}

impl SocketReport {
    fn read(state: &PortState, socket: &OpenSocket) -> Self {
        let counters = &socket.counters;
        Self {
            port: state.interface.port,
            interface: state.interface.interface.clone(),
            queue: socket.queue,
            worker: socket.worker,
            zero_copy: counters.zero_copy.load(Ordering::Relaxed),
            closed: counters.closed.load(Ordering::Relaxed),
            wakeups: counters.wakeups.load(Ordering::Relaxed),
            wakeups_incomplete: counters.wakeups_incomplete.load(Ordering::Relaxed),
            refused: counters.refused.load(Ordering::Relaxed),
            link_errors: counters.link_errors.load(Ordering::Relaxed),
            xdp: std::array::from_fn(|i| counters.xdp[i].load(Ordering::Relaxed)),
        }
    }
}

/// What the datapath counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// By worker number.
    pub workers: Vec<WorkerReport>,
    /// Packets on their way from one worker to another.
    pub handed_over: u64,
    /// All open sockets.
    pub sockets: Vec<SocketReport>,
}

impl Report {
    fn sum(&self, of: impl Fn(&WorkerReport) -> u64) -> u64 {
        self.workers.iter().map(of).sum()
    }

    /// Frames taken from receive rings.
    pub fn received(&self) -> u64 {
        self.sum(|worker| worker.received)
    }

    /// Frames completed by the kernel.
    pub fn transmitted(&self) -> u64 {
        self.sum(|worker| worker.transmitted)
    }

    /// Drops for one reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.sum(|worker| worker.dropped[reason as usize])
    }

    /// received + originated - transmitted - delivered - absorbed - dropped: what must still be somewhere.
    pub fn in_flight(&self) -> i64 {
        let gone = |worker: &WorkerReport| {
            worker.transmitted + worker.delivered + worker.absorbed + worker.dropped.iter().sum::<u64>()
        };
        self.sum(|worker| worker.received + worker.originated) as i64 - self.sum(gone) as i64
    }

    /// Frames that are somewhere, counted one by one. At rest it equals [`Report::in_flight`].
    pub fn held(&self) -> u64 {
        self.handed_over + self.sum(|worker| worker.held)
    }
}
