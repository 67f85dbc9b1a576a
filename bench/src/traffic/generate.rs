//! The generator.
#![allow(unsafe_code)]

use std::error::Error;
use std::time::{Duration, Instant};

use serde::Serialize;
use xsk_rs::umem::Umem;
use xsk_rs::umem::frame::FrameDesc;

use super::frame::{Tag, Template};
use super::rings::{self, RING, Rings};
use super::{cpu_time, interrupted};

/// Frames of one system call. More leaves gaps of 25 ms and costs a quarter of the rate on veth.
const PORTION: usize = 32;

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Interface.
    pub interface: String,
    /// Queues 0 to this, exclusively; a flow stays on its queue.
    pub queues: u32,
    /// What the frames look like.
    pub template: Template,
    /// Bytes of a frame.
    pub size: usize,
    /// Flows, sent in turn.
    pub flows: u32,
    /// Frames a second; 0: as many as go.
    pub rate: u64,
    /// Frames in all; 0: until the time is over.
    pub count: u64,
    /// For how long at most.
    pub time: Duration,
}

/// What was sent.
#[derive(Clone, Debug, Serialize)]
pub struct Sent {
    /// Frames the kernel completed.
    pub frames: u64,
    /// Completed, but refused by the device (a veth whose other end is down or full).
    pub refused: u64,
    /// First to last.
    pub seconds: f64,
    /// Frames a second.
    pub rate: f64,
    /// CPU time per frame, nanoseconds.
    pub cpu_ns_per_frame: f64,
}

struct Queue {
    rings: Rings,
    memory: Umem,
    free: Vec<FrameDesc>,
    ready: Vec<FrameDesc>,
    flows: Vec<Tag>,
    next_flow: usize,
    unsent: bool,
}

/// Runs a plan.
///
/// # Errors
/// The sockets could not be opened.
pub fn generate(plan: &Plan) -> Result<Sent, Box<dyn Error>> {
    let mut queues = Vec::new();
    for queue in 0..plan.queues.max(1) {
        let (memory, mut free) = rings::memory(RING)?;
        let rings = rings::open(&memory, &plan.interface, queue, PORTION as u32)?;
        for descriptor in &mut free {
            // SAFETY: nobody else has the frame yet.
            let mut bytes = unsafe { memory.data_mut(descriptor) };
            bytes.cursor().set_pos(plan.size);
            bytes.contents_mut().fill(0);
        }
        let flows = (0..plan.flows.max(1)).filter(|flow| flow % plan.queues.max(1) == queue);
        let flows: Vec<_> = flows.map(|flow| Tag { flow, sequence: 0 }).collect();
        if !flows.is_empty() {
            let ready = Vec::with_capacity(PORTION);
            queues.push(Queue { rings, memory, free, ready, flows, next_flow: 0, unsent: false });
        }
    }
    let limit = if plan.count == 0 { u64::MAX } else { plan.count };
    let cpu_before = cpu_time();
    let start = Instant::now();
    let (mut submitted, mut refused) = (0u64, 0);
    while submitted < limit && start.elapsed() < plan.time && !interrupted() {
        for queue in &mut queues {
            let due = match plan.rate {
                0 => PORTION as u64,
                rate => ((start.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000) as u64)
                    .saturating_sub(submitted),
            };
            let portion = due.min(limit - submitted).min(PORTION as u64) as usize;
            submitted += queue.submit(portion, plan);
            refused += queue.kick();
            queue.reap(plan.size);
        }
        if plan.rate != 0 && plan.rate < 200_000 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    let elapsed = start.elapsed();
    let cpu = cpu_time() - cpu_before;
    let grace = Instant::now();
    while queues.iter().any(|queue| queue.free.len() < RING as usize) && grace.elapsed().as_millis() < 500 {
        for queue in &mut queues {
            refused += queue.kick();
            queue.reap(plan.size);
        }
    }
    let lost: u64 = queues.iter().map(|queue| u64::from(RING) - queue.free.len() as u64).sum();
    let frames = submitted - lost;
    let seconds = elapsed.as_secs_f64();
    Ok(Sent {
        frames,
        refused,
        seconds,
        rate: frames as f64 / seconds,
        cpu_ns_per_frame: cpu.as_nanos() as f64 / frames.max(1) as f64,
    })
}

impl Queue {
    fn submit(&mut self, portion: usize, plan: &Plan) -> u64 {
        let portion = portion.min(self.free.len());
        for mut descriptor in self.free.drain(self.free.len() - portion..) {
            let tag = &mut self.flows[self.next_flow];
            // SAFETY: the descriptor is free: the kernel completed the frame, or never had it.
            plan.template.write(&mut unsafe { self.memory.data_mut(&mut descriptor) }, *tag);
            tag.sequence += 1;
            self.next_flow = (self.next_flow + 1) % self.flows.len();
            self.ready.push(descriptor);
        }
        if self.ready.is_empty() {
            return 0;
        }
        // SAFETY: as above; the frames are not touched again before their completion.
        let count = unsafe { self.rings.tx.produce(&self.ready) };
        assert_eq!(count, self.ready.len(), "there are no more frames than ring entries");
        self.ready.clear();
        self.unsent = true;
        count as u64
    }

    /// Wakes the kernel. How many frames the device refused (0 or 1).
    fn kick(&mut self) -> u64 {
        if !self.unsent {
            return 0;
        }
        // SAFETY: no buffer is passed.
        let result = unsafe {
            let socket = std::os::fd::AsRawFd::as_raw_fd(self.rings.tx.fd());
            libc::sendto(socket, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
        };
        self.unsent = result < 0;
        u64::from(result < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EBUSY))
    }

    fn reap(&mut self, size: usize) {
        let mut completed = [FrameDesc::default(); 64];
        // SAFETY: only frames of this UMEM were submitted.
        let count = unsafe { self.rings.completion.consume(&mut completed) };
        for mut descriptor in completed.into_iter().take(count) {
            // SAFETY: completed: the kernel is done with it.
            unsafe { self.memory.data_mut(&mut descriptor) }.cursor().set_pos(size);
            self.free.push(descriptor);
        }
    }
}
