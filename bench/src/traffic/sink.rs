//! The sink: decodes and counts what arrives.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::error::Error;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use serde::Serialize;
use xsk_rs::umem::frame::FrameDesc;

use super::frame::{Fault, Tag, decode};
use super::rings::{self, RING};
use super::{cpu_time, interrupted};
use crate::redirect::{AttachMode, Redirect, Take};

/// What to count.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Interface.
    pub interface: String,
    /// Queues 0 to this, exclusively.
    pub queues: u32,
    /// How its program is attached.
    pub mode: AttachMode,
    /// For how long at most.
    pub time: Duration,
    /// Ends after this many good frames; 0: does not.
    pub count: u64,
    /// Ends when nothing came for this long after the first frame.
    pub quiet: Duration,
}

/// One flow.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Flow {
    /// Frames.
    pub frames: u64,
    /// Highest sequence number.
    pub highest: u64,
    /// Numbers below the highest that were skipped when a higher one arrived; one that arrives late is taken off
    /// again.
    pub missing: u64,
    /// Frames that arrived after one with a higher number (a repeated one counts too).
    pub late: u64,
}

/// What arrived.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counted {
    /// Good frames of the generator.
    pub frames: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Sequence numbers that never arrived, below each flow's highest.
    pub missing: u64,
    /// Frames behind a higher number of their flow.
    pub late: u64,
    /// UDP and ESP that is not the generator's.
    pub foreign: u64,
    /// Frames with a wrong checksum or length.
    pub damaged: u64,
    /// First to last good frame.
    pub seconds: f64,
    /// Good frames a second.
    pub rate: f64,
    /// CPU time per frame, nanoseconds.
    pub cpu_ns_per_frame: f64,
    /// Longest pause between two bursts, milliseconds.
    pub longest_gap_ms: f64,
    /// Each flow.
    pub flows: HashMap<u32, Flow>,
}

impl Counted {
    fn count(&mut self, frame: &[u8]) {
        match decode(frame) {
            Ok(Tag { flow, sequence }) => {
                self.frames += 1;
                self.bytes += frame.len() as u64;
                let flow = self.flows.entry(flow).or_default();
                let expected = if flow.frames == 0 { 0 } else { flow.highest + 1 };
                flow.frames += 1;
                if sequence >= expected {
                    flow.missing += sequence - expected;
                    flow.highest = sequence;
                } else {
                    flow.missing = flow.missing.saturating_sub(1);
                    flow.late += 1;
                }
            }
            Err(Fault::Foreign) => self.foreign += 1,
            Err(Fault::Length | Fault::Checksum) => self.damaged += 1,
        }
    }
}

/// Runs a plan; `ready` is called when frames are counted from now on.
///
/// # Errors
/// The sockets could not be opened, or the program not attached.
pub fn sink(plan: &Plan, ready: impl FnOnce()) -> Result<Counted, Box<dyn Error>> {
    let program = Redirect::attach(&plan.interface, plan.mode, Take::Traffic)?;
    let mut queues = Vec::new();
    for queue in 0..plan.queues.max(1) {
        let (memory, frames) = rings::memory(RING)?;
        let mut rings = rings::open(&memory, &plan.interface, queue, 32)?;
        // SAFETY: all frames of a fresh UMEM.
        unsafe { rings.fill.produce(&frames) };
        program.insert(queue, rings.rx.fd().as_raw_fd())?;
        queues.push((memory, rings));
    }
    ready();
    let sockets: Vec<_> = queues.iter().map(|(_, rings)| rings.rx.fd().as_raw_fd()).collect();
    let mut counted = Counted::default();
    let limit = if plan.count == 0 { u64::MAX } else { plan.count };
    let start = Instant::now();
    let cpu_before = cpu_time();
    let (mut first, mut last) = (None, start);
    let mut longest_gap = Duration::ZERO;
    let mut burst = [FrameDesc::default(); 64];
    while counted.frames < limit && start.elapsed() < plan.time && !interrupted() {
        let mut arrived = 0;
        for (memory, rings) in &mut queues {
            // SAFETY: frames of this UMEM.
            let count = unsafe { rings.rx.consume(&mut burst) };
            for descriptor in &burst[..count] {
                // SAFETY: received and not yet filled again.
                counted.count(unsafe { memory.data(descriptor) }.contents());
            }
            // SAFETY: read and not looked at again.
            let filled = unsafe { rings.fill.produce(&burst[..count]) };
            assert_eq!(filled, count, "a fill ring has room for every frame twice");
            arrived += count;
        }
        let now = Instant::now();
        if arrived == 0 {
            if first.is_some() && now - last >= plan.quiet {
                break;
            }
            rings::wait(&sockets, 10);
        } else {
            if first.is_some() {
                longest_gap = longest_gap.max(now - last);
            }
            first.get_or_insert(now);
            last = now;
        }
    }
    counted.missing = counted.flows.values().map(|flow| flow.missing).sum();
    counted.late = counted.flows.values().map(|flow| flow.late).sum();
    counted.seconds = first.map_or(0.0, |first| (last - first).as_secs_f64());
    counted.rate = if counted.seconds > 0.0 { counted.frames as f64 / counted.seconds } else { 0.0 };
    counted.longest_gap_ms = longest_gap.as_secs_f64() * 1e3;
    counted.cpu_ns_per_frame = (cpu_time() - cpu_before).as_nanos() as f64 / counted.frames.max(1) as f64;
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::frame::Template;

    #[test]
    fn losses_late_frames_and_damage_are_told_apart() {
        let address = |last| std::net::Ipv4Addr::new(192, 0, 2, last).into();
        let template = Template::new([2; 6], [4; 6], address(1), address(2), 60).expect("it fits");
        let mut counted = Counted::default();
        let mut frame = [0; 60];
        for sequence in [0, 1, 4, 3, 7] {
            template.write(&mut frame, Tag { flow: 5, sequence });
            counted.count(&frame);
        }
        frame[50] ^= 1;
        counted.count(&frame);
        counted.count(&[0; 60]);
        let flow = counted.flows[&5];
        assert_eq!((flow.frames, flow.highest, flow.missing, flow.late), (5, 7, 3, 1));
        assert_eq!((counted.frames, counted.bytes, counted.damaged, counted.foreign), (5, 300, 1, 1));
    }
}
