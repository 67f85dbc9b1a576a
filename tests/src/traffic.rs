//! Counted UDP between hosts in namespaces: what was sent, what arrived, in which order.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::topology::Topology;

/// Runs `work` on a thread of its own inside a namespace.
pub fn inside<T: Send + 'static>(
    topology: &Topology,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let path = format!("/run/netns/{}", topology.namespace(name));
    std::thread::spawn(move || {
        let namespace = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        rustix::thread::move_into_link_name_space(
            namespace.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .expect("setns");
        work()
    })
}

/// Datagrams a source sends without a pause.
const MOST_AT_ONCE: u64 = 16;

/// A stream of numbered datagrams until stopped.
pub struct Source {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Sends `bytes`-long datagrams from a namespace to `to` (`address:port`), `per_second` of them, at most `limit`.
    pub fn start(
        topology: &Topology,
        from: &str,
        to: &str,
        bytes: usize,
        per_second: u64,
        limit: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let to: std::net::SocketAddr = to.parse().expect("address:port");
        let thread = {
            let (stop, sent) = (stop.clone(), sent.clone());
            inside(topology, from, move || {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).expect("bind");
                let begin = Instant::now();
                let mut datagram = vec![0u8; bytes.max(8)];
                let mut number = 0u64;
                while !stop.load(Ordering::Relaxed) && number < limit {
                    // A busy machine makes gaps; filling them at once would overflow the kernel's own queues
                    // (256 frames on a veth), which is not what a test is about.
                    let due = per_second * begin.elapsed().as_millis() as u64 / 1000;
                    let due = due.min(number + MOST_AT_ONCE);
                    while number < due.min(limit) {
                        number += 1;
                        datagram[..8].copy_from_slice(&number.to_be_bytes());
                        // A gateway that is down may make the kernel answer with errors; the number is spent.
                        if socket.send_to(&datagram, to).is_ok() {
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        };
        Self { stop, sent, thread: Some(thread) }
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until the limit is reached; returns how many were sent.
    pub fn finish(mut self) -> u64 {
        self.thread.take().expect("runs").join().expect("the source did not panic");
        self.sent()
    }

    /// Stops; returns how many were sent.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }
}

/// Counts datagrams that arrive at a port.
pub struct Sink {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    duplicated: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Listens in a namespace on `port`, both families.
    pub fn start(topology: &Topology, name: &str, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let duplicated = Arc::new(AtomicU64::new(0));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = {
            let (stop, received, duplicated) = (stop.clone(), received.clone(), duplicated.clone());
            inside(topology, name, move || {
                let socket = UdpSocket::bind(("::", port)).expect("bind");
                socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
                rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).expect("root");
                ready.send(()).expect("the test waits");
                let mut seen = std::collections::HashSet::new();
                let mut datagram = [0u8; 65536];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
                    let number =
                        datagram[..length].first_chunk().map_or(0, |number| u64::from_be_bytes(*number));
                    received.fetch_add(1, Ordering::Relaxed);
                    if !seen.insert((from, number)) {
                        duplicated.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        };
        is_ready.recv().expect("the sink is bound");
        Self { stop, received, duplicated, thread: Some(thread) }
    }

    /// Datagrams that arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Of those, datagrams that arrived before.
    pub fn duplicated(&self) -> u64 {
        self.duplicated.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
