//! adit's own worker with the pipeline replaced by a MAC rewrite: what the rings cost without the cryptography.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_engine::io::datapath::{PortInterface, Report};
use adit_engine::io::socket::SocketOptions;
use adit_engine::io::{Datapath, DatapathConfig, NeighbourRequests, Process, SocketRegistry};
use adit_engine::pipeline::{DropReason, Frames, Output, Received, Results, WorkerCounters};
use adit_engine::route::PortId;
use adit_engine::wire::ethernet::MacAddress;

use super::forward::{End, Forwarded};
use super::{cpu_time, interrupted};
use crate::redirect::{AttachMode, Redirect, Take};

/// In at one port, out of the other.
struct Rewrite {
    next_hops: [[u8; 6]; 2],
    counters: Arc<WorkerCounters>,
}

impl Process for Rewrite {
    fn process<F: Frames>(
        &mut self,
        _now: u64,
        burst: &mut [Received<'_>],
        frames: &mut F,
        results: &mut Results<F::Frame>,
    ) {
        for received in burst {
            let port = PortId(1 - received.port.0);
            let length = received.frame.len();
            let Some(mut frame) = frames.take(port, length) else {
                let counter = &self.counters.dropped[DropReason::NoFrame as usize];
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                continue;
            };
            frame[..length].copy_from_slice(received.frame);
            frame[..6].copy_from_slice(&self.next_hops[usize::from(port.0)]);
            results.outputs.push(Output { port, frame, length, unresolved: None });
        }
    }

    fn network_generation(&mut self) -> u64 {
        0
    }

    fn neighbour(&mut self, _: PortId, _: IpAddr) -> Option<MacAddress> {
        None
    }
}

struct NoNeighbours;

impl NeighbourRequests for NoNeighbours {
    fn resolve(&self, _: PortId, _: IpAddr) {}
    fn in_use(&self, _: PortId, _: MacAddress) {}
}

struct Programs([Redirect; 2]);

impl SocketRegistry for Programs {
    fn insert_socket(&self, port: PortId, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.0[usize::from(port.0)].insert(queue, socket.as_raw_fd())
    }
    fn remove_socket(&self, port: PortId, queue: u32) -> io::Result<()> {
        self.0[usize::from(port.0)].remove(queue)
    }
}

/// Forwards as [`super::forward::forward`] does, with one worker for each of `cores`.
///
/// # Errors
/// The workers could not be started, or the programs not attached.
pub fn rewrite(
    ends: [&End; 2],
    cores: Vec<usize>,
    mode: AttachMode,
    time: Duration,
    ready: impl FnOnce(),
) -> Result<(Forwarded, Report), Box<dyn Error>> {
    let attach = |end: &End| Redirect::attach(&end.interface, mode, Take::Traffic);
    let programs = Programs([attach(ends[0])?, attach(ends[1])?]);
    let config = DatapathConfig {
        ports: (0..)
            .zip(ends)
            .map(|(port, end)| PortInterface { port: PortId(port), interface: end.interface.clone() })
            .collect(),
        vlans: Vec::new(),
        cores,
        sockets: SocketOptions::default(),
    };
    let next_hops = ends.map(|end| end.next_hop);
    let process = move |_, counters| Rewrite { next_hops, counters };
    let datapath = Datapath::start(&config, process, Arc::new(programs), Arc::new(NoNeighbours))?;
    ready();
    let (start, cpu_before) = (Instant::now(), cpu_time());
    while start.elapsed() < time && !interrupted() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let cpu = cpu_time() - cpu_before;
    let report = datapath.stop();
    let frames = report.transmitted();
    Ok((Forwarded { frames, cpu_ns_per_frame: cpu.as_nanos() as f64 / frames.max(1) as f64 }, report))
}
