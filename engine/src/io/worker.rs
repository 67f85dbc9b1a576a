//! The loop: bursts from the rings through the pipeline to the rings.
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::datapath::{NeighbourRequests, VlanPort};
use super::egress::{Egress, add, drop_frames};
use super::hand_over::{Command, DEPTH, HOPS, HandedOver, Lent, Mailbox, Retired};
use super::host::HostFrame;
use super::process::Process;
use super::socket::Receiver;
use super::umem::TxFrame;
use super::waiting::{Fate, Waiting};
use crate::pipeline::{BURST, Completed, DropReason, Frames, Output, Received, Results, WorkerCounters};
use crate::route::PortId;

/// Turns without work before the worker sleeps in poll(2). Sleeping and waking costs more than a burst.
const SPINS: u32 = 200;

/// Longest sleep: the heartbeat must not stop, and statistics stay fresh.
const SLEEP_MS: i32 = 500;

/// Longest sleep while frames are out that nothing will announce: completions, neighbours, lent frames.
const SLEEP_WITH_FRAMES_OUT_MS: i32 = 64;

/// How long a stopping worker waits for completions and for lent frames.
const FAREWELL_MS: u64 = 500;

/// Turns with work between two looks at the host device, each a system call. (A turn without work always looks.)
const HOST_EVERY: u64 = 8;

/// Between two rounds of statistics and next hops.
const HOUSEKEEPING_MS: u64 = 1_000;

/// What the workers of a datapath share.
pub struct Shared {
    /// A letter box for each worker.
    pub mailboxes: Box<[Mailbox]>,
    /// Who asks the kernel for neighbours.
    pub neighbours: Arc<dyn NeighbourRequests>,
    /// Ports that are VLANs of others' interfaces.
    pub vlans: Box<[VlanPort]>,
    /// Set once, to stop all workers.
    pub stop: AtomicBool,
    /// Workers that take nothing from the rings any more, and so hand nothing over.
    pub quiet: AtomicU32,
}

/// What anyone may read of a worker.
pub struct Vitals {
    /// Counters, shared with the pipeline.
    pub counters: Arc<WorkerCounters>,
    /// Counts turns of the loop.
    pub heartbeat: AtomicU64,
    /// Transmit frames in flight or waiting for a neighbour, at the end of the last turn.
    pub held: AtomicU64,
    /// Set while the loop runs.
    pub alive: AtomicBool,
    /// The loop's thread, as the kernel numbers it.
    pub thread: AtomicI32,
    /// Bursts that carried at least one frame.
    pub bursts: AtomicU64,
    /// Times the worker slept.
    pub sleeps: AtomicU64,
}

impl Vitals {
    /// All zero.
    pub fn new(counters: Arc<WorkerCounters>) -> Self {
        Self {
            counters,
            heartbeat: AtomicU64::new(0),
            held: AtomicU64::new(0),
            alive: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            bursts: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
        }
    }
}

/// Milliseconds of CLOCK_MONOTONIC: the `now` of every packet.
pub fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

/// One worker: sockets, pipeline, and what waits between them.
pub struct Worker<P> {
    number: u32,
    shared: Arc<Shared>,
    vitals: Arc<Vitals>,
    counters: Arc<WorkerCounters>,
    process: P,
    receivers: Vec<Receiver>,
    /// Receivers of closed ports whose frames other workers still read, and who waits for that.
    closing: Vec<(Receiver, Option<Sender<Retired>>)>,
    egress: Egress,
    waiting: Waiting<TxFrame>,
    results: Results<TxFrame>,
    handed: Vec<HandedOver>,
    gone: Vec<PortId>,
    /// Packets of the gateway itself, as long as it takes to process them.
    host_burst: Vec<HostFrame>,
    /// Frames of the host path, and datagrams that were put together, that other workers have.
    others_lent: usize,
    generation: u64,
    housekeeping_at: u64,
    /// When something is to be sent that nothing calls for.
    unasked_at: u64,
    poll: Vec<libc::pollfd>,
}

impl<P: Process> Worker<P> {
    /// Worker `number`, without sockets: they come as commands.
    pub fn new(number: u32, shared: Arc<Shared>, vitals: Arc<Vitals>, process: P) -> Self {
        let counters = vitals.counters.clone();
        Self {
            number,
            egress: Egress::new(counters.clone(), &shared.vlans),
            shared,
            counters,
            vitals,
            process,
            receivers: Vec::new(),
            closing: Vec::new(),
            waiting: Waiting::default(),
            results: Results::new(),
            handed: Vec::with_capacity(BURST),
            gone: Vec::new(),
            host_burst: Vec::with_capacity(BURST),
            others_lent: 0,
            generation: 0,
            housekeeping_at: 0,
            unasked_at: 0,
            poll: Vec::new(),
        }
    }

    /// Runs until the datapath stops.
    pub fn run(mut self) {
        self.vitals.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        self.vitals.alive.store(true, Ordering::Relaxed);
        let mut idle_turns = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let worked = self.turn(true);
            idle_turns = if worked { 0 } else { idle_turns + 1 };
            if idle_turns > SPINS {
                self.sleep(idle_turns - SPINS);
            } else if !worked {
                std::hint::spin_loop();
            }
        }
        self.farewell();
        self.vitals.alive.store(false, Ordering::Relaxed);
    }

    fn mailbox(&self) -> &Mailbox {
        &self.shared.mailboxes[self.number as usize]
    }

    /// One turn: everything that is there, once. True when there was something.
    fn turn(&mut self, receive: bool) -> bool {
        add(&self.vitals.heartbeat, 1);
        for command in self.mailbox().commands() {
            self.obey(command);
        }
        let now = monotonic_ms();
        let mut worked = self.frames_came_home();
        if !self.waiting.is_empty() {
            self.retry_waiting(now);
        }
        if receive {
            for i in 0..self.receivers.len() {
                worked |= self.receive(i, now);
            }
            if !worked || self.vitals.heartbeat.load(Ordering::Relaxed).is_multiple_of(HOST_EVERY) {
                worked |= self.receive_from_host(now);
            }
        }
        worked |= self.take_handed_over(now);
        let is_time = now >= self.housekeeping_at;
        if is_time {
            self.process.housekeeping(now, &mut self.egress, &mut self.results);
            worked |= !self.results.outputs.is_empty();
            self.send_outputs(now);
        }
        if receive && now >= self.unasked_at {
            self.unasked_at = self.process.send_unasked(now, &mut self.egress, &mut self.results);
            self.send_outputs(now);
        }
        let gone = &mut self.gone;
        self.egress.flush(now, |port| gone.push(port));
        if is_time {
            self.housekeeping_at = now + HOUSEKEEPING_MS;
            self.receivers.iter().for_each(Receiver::refresh_statistics);
            let lost = self.receivers.iter().filter(|receiver| receiver.lost_interface());
            self.gone.extend(lost.map(|receiver| receiver.port));
            self.egress.report_next_hops(&*self.shared.neighbours);
        }
        while let Some(port) = self.gone.pop() {
            tracing::warn!(worker = self.number, port = port.0, "interface is gone: its sockets are closed");
            self.close(port, DropReason::LinkDown, None);
        }
        self.vitals.held.store(self.egress.in_flight() + self.waiting.len() as u64, Ordering::Relaxed);
        worked
    }

    fn receive(&mut self, i: usize, now: u64) -> bool {
        let receiver = &mut self.receivers[i];
        let arrivals = receiver.receive();
        let count = arrivals.packets;
        let lost = arrivals.too_big + arrivals.no_large_frame;
        if lost > 0 {
            add(&self.counters.received, lost);
            drop_frames(&self.counters, DropReason::TooBig, arrivals.too_big);
            drop_frames(&self.counters, DropReason::NoLargeFrame, arrivals.no_large_frame);
        }
        if count == 0 {
            return lost > 0;
        }
        add(&self.counters.received, count as u64);
        add(&self.vitals.bursts, 1);
        {
            let receiver = &mut self.receivers[i];
            let port = receiver.port;
            let mut burst: [_; BURST] = std::array::from_fn(|_| Received { port, frame: &mut [] });
            receiver.show(&mut burst[..count]);
            self.process.process(now, &mut burst[..count], &mut self.egress, &mut self.results);
        }
        self.hand_over_from(i);
        self.receivers[i].release();
        self.send_outputs(now);
        true
    }

    /// Lends the packets of receiver `i` that are another worker's.
    fn hand_over_from(&mut self, i: usize) {
        if self.results.hand_over.is_empty() {
            return;
        }
        let mut lent = self.lent();
        let mut hand_over = std::mem::take(&mut self.results.hand_over);
        for (index, target) in hand_over.drain(..) {
            if !self.may_hand_over(target, lent) {
                continue;
            }
            lent += 1;
            let mut port = self.receivers[i].port;
            let mut frame = self.receivers[i].lend(index);
            if let Some(untagged) = self.results.untagged.iter().find(|untagged| untagged.index == index) {
                port = untagged.port;
                frame.skip(untagged.length);
            }
            let frame = Lent::Ring(frame);
            self.hand_over(target, HandedOver { port, origin: self.number, hops: 1, frame });
        }
        self.results.hand_over = hand_over;
    }

    /// Frames of this worker that others have.
    fn lent(&self) -> usize {
        let closing = self.closing.iter().map(|(receiver, _)| receiver);
        let rings = self.receivers.iter().chain(closing).map(|receiver| receiver.lent() as usize);
        rings.sum::<usize>() + self.others_lent
    }

    /// Whether one more frame may be lent to `target`; counts the drop when not.
    fn may_hand_over(&self, target: u32, lent: usize) -> bool {
        let known = target != self.number && (target as usize) < self.shared.mailboxes.len();
        if !known || lent >= DEPTH {
            drop_frames(&self.counters, DropReason::HandOverFull, 1);
        }
        known && lent < DEPTH
    }

    /// What the gateway itself sends into the host path.
    fn receive_from_host(&mut self, now: u64) -> bool {
        let Some(host) = &mut self.egress.host else { return false };
        let mut frames = std::mem::take(&mut self.host_burst);
        if let Err(error) = host.read(&mut frames) {
            tracing::warn!(worker = self.number, %error, "the host device is gone");
            if let Some(host) = self.egress.host.take() {
                retire(Retired::Host(host), None);
            }
        }
        let count = frames.len();
        if count > 0 {
            add(&self.counters.received, count as u64);
            add(&self.vitals.bursts, 1);
            let mut burst: [_; BURST] =
                std::array::from_fn(|_| Received { port: PortId::HOST, frame: &mut [] });
            for (received, frame) in burst.iter_mut().zip(&mut frames) {
                received.frame = frame;
            }
            self.process.process(now, &mut burst[..count], &mut self.egress, &mut self.results);
            let mut targets = [None; BURST];
            for (index, target) in self.results.hand_over.drain(..) {
                targets[index] = Some(target);
            }
            for (frame, target) in frames.drain(..).zip(targets) {
                match target {
                    Some(target) if self.may_hand_over(target, self.lent()) => {
                        self.others_lent += 1;
                        let (port, origin, frame) = (PortId::HOST, self.number, Lent::Host(frame));
                        self.hand_over(target, HandedOver { port, origin, hops: 1, frame });
                    }
                    _ => self.free_host_frame(frame),
                }
            }
            self.send_outputs(now);
        }
        self.host_burst = frames;
        count > 0
    }

    /// Lends the datagrams that were put together here and are another worker's.
    #[cold]
    fn hand_over_completed(&mut self) {
        let mut completed = std::mem::take(&mut self.results.hand_over_completed);
        for (Completed { port, frame, .. }, target) in completed.drain(..) {
            if self.may_hand_over(target, self.lent()) {
                self.others_lent += 1;
                let (origin, frame) = (self.number, Lent::Datagram(frame));
                self.hand_over(target, HandedOver { port, origin, hops: 1, frame });
            }
        }
        self.results.hand_over_completed = completed;
    }

    fn free_host_frame(&mut self, frame: HostFrame) {
        if let Some(host) = &mut self.egress.host {
            host.give_back(frame);
        }
    }

    fn hand_over(&mut self, target: u32, packet: HandedOver) {
        if let Err(packet) = self.shared.mailboxes[target as usize].hand_over(packet) {
            drop_frames(&self.counters, DropReason::HandOverFull, 1);
            self.send_home(packet);
        }
    }

    fn send_home(&mut self, packet: HandedOver) {
        self.shared.mailboxes[packet.origin as usize].send_home(packet.frame);
    }

    /// Processes what other workers handed over.
    fn take_handed_over(&mut self, now: u64) -> bool {
        let mut handed = std::mem::take(&mut self.handed);
        while handed.len() < BURST {
            let Some(packet) = self.mailbox().next() else { break };
            handed.push(packet);
        }
        let worked = !handed.is_empty();
        if worked {
            let count = handed.len();
            let mut burst: [_; BURST] = std::array::from_fn(|_| Received { port: PortId(0), frame: &mut [] });
            for (received, packet) in burst.iter_mut().zip(&mut handed) {
                *received = Received { port: packet.port, frame: &mut packet.frame };
            }
            self.process.process(now, &mut burst[..count], &mut self.egress, &mut self.results);
            self.send_outputs(now);
        }
        // Its SA changed hands meanwhile: on to the next worker, or home.
        let mut moved = [None; BURST];
        for (index, target) in self.results.hand_over.drain(..) {
            moved[index] = Some(target);
        }
        for (mut packet, target) in handed.drain(..).zip(moved) {
            match target {
                None => self.send_home(packet),
                Some(target)
                    if packet.hops < HOPS
                        && target != self.number
                        && (target as usize) < self.shared.mailboxes.len() =>
                {
                    packet.hops += 1;
                    self.hand_over(target, packet);
                }
                Some(_) => {
                    drop_frames(&self.counters, DropReason::HandOverFull, 1);
                    self.send_home(packet);
                }
            }
        }
        self.handed = handed;
        worked
    }

    #[inline]
    fn send_outputs(&mut self, now: u64) {
        if !self.results.hand_over_completed.is_empty() {
            self.hand_over_completed();
        }
        let Self { results, egress, waiting, counters, shared, process, .. } = self;
        for delivery in results.deliveries.drain(..) {
            egress.deliver(delivery);
        }
        for output in results.outputs.drain(..) {
            match output.unresolved {
                None => egress.submit(output.port, output.frame, output.length),
                Some(neighbour) => {
                    let Output { port, .. } = output;
                    if let Err(frame) = waiting.push(output, neighbour, now, &*shared.neighbours) {
                        drop_frames(counters, DropReason::NoNeighbour, 1);
                        process.dropped(now, DropReason::NoNeighbour, port, &frame);
                        egress.give_back(port, frame);
                    }
                }
            }
        }
    }

    /// Looks whether neighbours answered. Frames time out even when the kernel's tables do not change.
    fn retry_waiting(&mut self, now: u64) {
        let generation = self.process.network_generation();
        let changed = std::mem::replace(&mut self.generation, generation) != generation;
        let Self { process, egress, waiting, counters, .. } = self;
        if !changed && !waiting.overdue(now) {
            return;
        }
        let mut first = None;
        waiting.retry(
            now,
            |port, neighbour| process.neighbour(port, neighbour),
            |fate| match fate {
                Fate::Send { port, frame, length } => egress.submit(port, frame, length),
                Fate::Expired { port, frame } => {
                    drop_frames(counters, DropReason::NoNeighbour, 1);
                    match first {
                        None => first = Some((port, frame)),
                        Some(_) => egress.give_back(port, frame),
                    }
                }
            },
        );
        if let Some((port, frame)) = first {
            process.dropped(now, DropReason::NoNeighbour, port, &frame);
            egress.give_back(port, frame);
        }
    }

    /// Puts frames that other workers sent home onto their fill rings.
    fn frames_came_home(&mut self) -> bool {
        let mut came = false;
        while let Some(frame) = self.mailbox().came_home() {
            came = true;
            let mut frame = match frame {
                Lent::Ring(frame) => frame,
                Lent::Host(frame) => {
                    self.others_lent -= 1;
                    self.free_host_frame(frame);
                    continue;
                }
                Lent::Datagram(_) => {
                    self.others_lent -= 1;
                    continue;
                }
            };
            for receiver in
                self.receivers.iter_mut().chain(self.closing.iter_mut().map(|(receiver, _)| receiver))
            {
                match receiver.take_home(frame) {
                    Ok(()) => break,
                    Err(other) => frame = other,
                }
            }
        }
        if came {
            for (receiver, closer) in self.closing.extract_if(.., |(receiver, _)| receiver.lent() == 0) {
                retire(Retired::Receiver(Box::new(receiver)), closer.as_ref());
            }
        }
        came
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Open(port, receivers, transmitter) => {
                self.receivers.extend(receivers);
                match transmitter {
                    Some(transmitter) => self.egress.open(*transmitter),
                    None => self.egress.open_elsewhere(port),
                }
            }
            Command::Close(port, done) => self.close(port, DropReason::LinkDown, Some(done)),
            Command::OpenHost(host) => {
                if let Some(before) = self.egress.host.replace(host) {
                    retire(Retired::Host(before), None);
                }
            }
        }
    }

    /// Gives up a port's sockets, those with lent frames when these have come home.
    fn close(&mut self, port: PortId, reason: DropReason, closer: Option<Sender<Retired>>) {
        let Self { waiting, egress, counters, shared, .. } = self;
        let vlans = shared.vlans.iter().filter(|vlan| vlan.parent == port).map(|vlan| vlan.port);
        for port in vlans.chain([port]) {
            waiting.take_port(port, |frame| {
                drop_frames(counters, reason, 1);
                egress.give_back(port, frame);
            });
        }
        if let Some(transmitter) = egress.close(port, reason) {
            retire(Retired::Transmitter(Box::new(transmitter)), closer.as_ref());
        }
        for receiver in self.receivers.extract_if(.., |receiver| receiver.port == port) {
            receiver.refresh_statistics();
            if receiver.lent() > 0 {
                self.closing.push((receiver, closer.clone()));
            } else {
                retire(Retired::Receiver(Box::new(receiver)), closer.as_ref());
            }
        }
    }

    /// Sleeps until a frame, a packet of another worker, a command, or a time.
    fn sleep(&mut self, idle_turns: u32) {
        if !self.mailbox().fall_asleep() {
            return;
        }
        let until_unasked = self.unasked_at.saturating_sub(monotonic_ms());
        let mut timeout_ms = until_unasked.clamp(1, SLEEP_MS as u64) as i32;
        let lent = self.lent() > 0 || !self.closing.is_empty();
        if lent || !self.waiting.is_empty() || self.egress.in_flight() > 0 {
            timeout_ms = timeout_ms.min(SLEEP_WITH_FRAMES_OUT_MS).min(1 << idle_turns.min(6));
        }
        if !self.waiting.is_empty() {
            timeout_ms = 1;
        }
        self.poll.clear();
        self.poll.push(wanted(self.mailbox().bell()));
        if let Some(host) = &self.egress.host {
            self.poll.push(wanted(host.fd()));
        }
        for receiver in &self.receivers {
            // poll(2) on such a socket would transmit, and swallow what went wrong.
            let skip = self.egress.unsent(receiver.port);
            self.poll.push(wanted(if skip { -1 } else { receiver.fd() }));
            if skip {
                timeout_ms = 1;
            }
        }
        add(&self.vitals.sleeps, 1);
        // SAFETY: the array is as long as said.
        unsafe { libc::poll(self.poll.as_mut_ptr(), self.poll.len() as libc::nfds_t, timeout_ms) };
        self.mailbox().awake();
    }

    /// Nothing is received any more; what is under way ends before the sockets close.
    fn farewell(&mut self) {
        let workers = self.shared.mailboxes.len() as u32;
        let until = monotonic_ms() + FAREWELL_MS;
        // Every other worker's last burst may have handed something over.
        self.shared.quiet.fetch_add(1, Ordering::SeqCst);
        loop {
            let everybody_is_quiet = self.shared.quiet.load(Ordering::SeqCst) == workers;
            let worked = self.turn(false);
            let lent = self.lent() > 0 || !self.closing.is_empty();
            let settled = everybody_is_quiet && !worked && !lent && self.egress.in_flight() == 0;
            if settled || monotonic_ms() >= until {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let mut ports: Vec<PortId> = self.receivers.iter().map(|receiver| receiver.port).collect();
        ports.dedup();
        for port in ports {
            self.close(port, DropReason::TransmitFailed, None);
        }
        self.vitals.held.store(self.egress.in_flight() + self.waiting.len() as u64, Ordering::Relaxed);
    }
}

/// Leaves the closing of a socket to whoever asked for it, or else to a thread of its own.
fn retire(socket: Retired, closer: Option<&Sender<Retired>>) {
    match closer {
        // Nobody waits any more: it is closed here, late.
        Some(closer) => drop(closer.send(socket)),
        None => drop(std::thread::Builder::new().name("adit-close".into()).spawn(move || drop(socket))),
    }
}

fn wanted(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}
