//! The worker and its sockets on real interfaces: veth pairs in a namespace, a program that redirects everything,
//! and a MAC rewrite in place of the pipeline. Every test asserts the conservation law and compares it with what
//! raw sockets at the far ends saw.

mod jumbo;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adit_bench::redirect::{AttachMode, Redirect, Take};
use adit_bench::traffic::frame::Template;
use adit_bench::traffic::generate;
use adit_engine::io::datapath::{PortInterface, Report};
use adit_engine::io::socket::{self, SocketOptions};
use adit_engine::io::{
    Datapath, DatapathConfig, LinkEvent, NeighbourRequests, Process, SocketRegistry, StartError,
};
use adit_engine::pipeline::{DropReason, Frames, Output, Received, Results, WorkerCounters};
use adit_engine::route::PortId;
use adit_engine::wire::ethernet::MacAddress;
use adit_tests::netns::{Namespace, Tap, root, wait_for};

const A: PortId = PortId(0);
const B: PortId = PortId(1);
const C: PortId = PortId(2);
const QUIET: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(10);
const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// Bytes of a test frame after the Ethernet header: what to do with it, and its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Wish {
    /// Send it out of the next port, by whoever received it.
    Forward,
    /// Worker 1 is to send it.
    HandOver,
    /// Its neighbour is not known yet.
    Ask,
    /// The worker is to sleep for good.
    Sleep,
    /// The worker is to turn in a circle.
    Spin,
}

/// Where a frame says what is to be done with it, and which one it is: behind a UDP header.
const WISH: usize = 42;
const NUMBER: std::ops::Range<usize> = 43..47;

/// Every frame is a UDP packet of another flow, so that the kernel, which sends by the hash of the flow, uses all queues.
fn frame(wish: Wish, number: u32, length: usize) -> Vec<u8> {
    let mut frame = vec![0xa5; length.max(60)];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let length = frame.len() as u16 - 14;
    frame[14..34].fill(0);
    (frame[14], frame[22], frame[23]) = (0x45, 64, 17);
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[34..36].copy_from_slice(&(number as u16).to_be_bytes());
    frame[36..38].copy_from_slice(&[0, 53]);
    frame[38..40].copy_from_slice(&(length - 20).to_be_bytes());
    frame[WISH] = wish as u8;
    frame[NUMBER].copy_from_slice(&number.to_be_bytes());
    frame
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[NUMBER].try_into().expect("four bytes"))
}

/// In at A: out of B; in at B: out of A; in at C: out of C.
struct Rewrite {
    worker: u32,
    counters: Arc<WorkerCounters>,
    neighbours: Arc<Neighbours>,
}

#[derive(Default)]
struct Neighbours {
    known: AtomicBool,
    generation: AtomicU64,
    asked: AtomicU64,
    in_use: Mutex<HashMap<PortId, MacAddress>>,
}

impl NeighbourRequests for Neighbours {
    fn resolve(&self, _: PortId, _: IpAddr) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }
    fn in_use(&self, port: PortId, neighbour: MacAddress) {
        self.in_use.lock().unwrap().insert(port, neighbour);
    }
}

impl Process for Rewrite {
    fn process<F: Frames>(
        &mut self,
        _now: u64,
        burst: &mut [Received<'_>],
        frames: &mut F,
        results: &mut Results<F::Frame>,
    ) {
        for (i, received) in burst.iter_mut().enumerate() {
            let wish = received.frame[WISH];
            if wish == Wish::Sleep as u8 {
                loop {
                    std::thread::park();
                }
            }
            if wish == Wish::Spin as u8 {
                loop {
                    std::hint::spin_loop();
                }
            }
            if wish == Wish::HandOver as u8 && self.worker != 1 {
                results.hand_over.push((i, 1));
                continue;
            }
            let port = [B, A, C][usize::from(received.port.0)];
            if let Some(other) = frames.instead(port) {
                // Its SA is passed on: the other must not hand it back.
                received.frame[WISH] = Wish::Forward as u8;
                results.hand_over.push((i, other));
                continue;
            }
            let length = received.frame.len();
            let Some(mut frame) = frames.take(port, length) else {
                self.counters.dropped[DropReason::NoFrame as usize].fetch_add(1, Ordering::Relaxed);
                continue;
            };
            frame[..length].copy_from_slice(received.frame);
            frame[..6].copy_from_slice(&NEXT_HOP);
            let unresolved = (wish == Wish::Ask as u8).then_some(Ipv4Addr::new(192, 0, 2, 1).into());
            if unresolved.is_some() {
                frame[..6].fill(0);
            }
            results.outputs.push(Output { port, frame, length, unresolved });
        }
    }

    fn network_generation(&mut self) -> u64 {
        self.neighbours.generation.load(Ordering::Acquire)
    }

    fn neighbour(&mut self, _: PortId, _: IpAddr) -> Option<MacAddress> {
        self.neighbours.known.load(Ordering::Acquire).then_some(MacAddress(NEXT_HOP))
    }
}

/// The steering program's part: one map for each port.
#[derive(Default)]
struct Registry(Mutex<HashMap<PortId, Redirect>>);

impl Registry {
    fn attach(&self, port: PortId, interface: &str, mode: AttachMode) {
        let program = Redirect::attach(interface, mode, Take::Everything).expect("attach");
        self.0.lock().unwrap().insert(port, program);
    }
}

impl SocketRegistry for Registry {
    fn insert_socket(&self, port: PortId, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.0.lock().unwrap()[&port].insert(queue, socket.as_raw_fd())
    }
    fn remove_socket(&self, port: PortId, queue: u32) -> io::Result<()> {
        self.0.lock().unwrap()[&port].remove(queue)
    }
}

/// Interfaces a0-a1, b0-b1, c0-c1; adit has the ones, taps the zeros.
struct Bench {
    datapath: Datapath,
    registry: Arc<Registry>,
    neighbours: Arc<Neighbours>,
    a: Tap,
    b: Tap,
    c: Tap,
    namespace: Namespace,
}

fn config(ports: &[(PortId, &str)], workers: usize) -> DatapathConfig {
    DatapathConfig {
        ports: ports.iter().map(|&(port, name)| PortInterface { port, interface: name.into() }).collect(),
        vlans: Vec::new(),
        // All on one CPU: the tests are about order and ownership, not speed.
        cores: vec![0; workers],
        sockets: SocketOptions::default(),
    }
}

fn start(
    config: &DatapathConfig,
    registry: &Arc<Registry>,
    neighbours: &Arc<Neighbours>,
) -> Result<Datapath, StartError> {
    let shared = neighbours.clone();
    let process = move |worker, counters| Rewrite { worker, counters, neighbours: shared.clone() };
    Datapath::start(config, process, registry.clone(), neighbours.clone())
}

impl Bench {
    fn new(queues: u32, mode: AttachMode) -> Self {
        let namespace = Namespace::new();
        let (registry, neighbours) = (Arc::new(Registry::default()), Arc::new(Neighbours::default()));
        for (port, name) in [(A, "a"), (B, "b"), (C, "c")] {
            namespace.veth(&format!("{name}0"), &format!("{name}1"), queues);
            namespace.enter(|| registry.attach(port, &format!("{name}1"), mode));
        }
        let config = config(&[(A, "a1"), (B, "b1"), (C, "c1")], queues as usize);
        let (datapath, a, b, c) = namespace.enter(|| {
            let tap = |name| Tap::open(name).expect("tap");
            (start(&config, &registry, &neighbours).expect("start"), tap("a0"), tap("b0"), tap("c0"))
        });
        Self { datapath, registry, neighbours, a, b, c, namespace }
    }

    fn link(&self, port: PortId, event: LinkEvent) {
        self.namespace.enter(|| self.datapath.link_event(port, event)).expect("link event");
    }

    /// Waits until nothing is in flight and `received` frames were received.
    fn at_rest(&self, received: u64) -> Report {
        wait_for("rest", LIMIT, || {
            let report = self.datapath.report();
            report.received() >= received && report.in_flight() == 0 && report.held() == 0
        });
        let report = self.datapath.report();
        assert_eq!((report.received(), report.in_flight(), report.held()), (received, 0, 0));
        report
    }
}

/// Sends numbered frames, in portions the worker's rings can hold.
fn send(tap: &Tap, wish: Wish, numbers: std::ops::Range<u32>) {
    for number in numbers {
        tap.send(&frame(wish, number, 60 + number as usize % 1400)).expect("send");
        if number % 200 == 199 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The numbers of the frames that arrived, each checked to be what was sent but for its destination address.
fn arrived(tap: &Tap, wish: Wish) -> Vec<u32> {
    let frames = tap.drain(QUIET).expect("receive");
    for got in &frames {
        let mut sent = frame(wish, number(got), 60 + number(got) as usize % 1400);
        sent[..6].copy_from_slice(&NEXT_HOP);
        assert!(*got == sent, "frame {} arrived changed", number(got));
    }
    frames.iter().map(|frame| number(frame)).collect()
}

fn forwards(mode: AttachMode) {
    let bench = Bench::new(1, mode);
    send(&bench.a, Wish::Forward, 0..5_000);
    send(&bench.b, Wish::Forward, 0..3_000);
    let report = bench.at_rest(8_000);
    assert_eq!(arrived(&bench.b, Wish::Forward), (0..5_000).collect::<Vec<_>>());
    assert_eq!(arrived(&bench.a, Wish::Forward), (0..3_000).collect::<Vec<_>>());
    assert_eq!(report.transmitted(), 8_000);
    wait_for("next hops are reported", LIMIT, || {
        let in_use = bench.neighbours.in_use.lock().unwrap();
        [A, B].iter().all(|port| in_use.get(port) == Some(&MacAddress(NEXT_HOP)))
    });
    let report = bench.datapath.stop();
    assert_eq!(
        (report.received(), report.transmitted(), report.in_flight(), report.held()),
        (8_000, 8_000, 0, 0)
    );
}

#[test]
fn frames_cross_in_order_and_unchanged() {
    if root() {
        forwards(AttachMode::Native);
    }
}

#[test]
fn frames_cross_in_skb_mode_too() {
    if root() {
        forwards(AttachMode::Skb);
    }
}

#[test]
fn packets_of_another_workers_sa_are_handed_over_and_their_frames_come_home() {
    if !root() {
        return;
    }
    let bench = Bench::new(2, AttachMode::Native);
    assert_eq!(bench.datapath.workers(), 2);
    // More than the receive half: each frame must have come home and been filled again.
    send(&bench.a, Wish::HandOver, 0..10_000);
    let report = bench.at_rest(10_000);
    let mut numbers = arrived(&bench.b, Wish::HandOver);
    numbers.sort_unstable();
    let full = report.dropped(DropReason::HandOverFull);
    assert_eq!(numbers.len() as u64 + full, 10_000);
    assert_eq!(report.transmitted(), numbers.len() as u64);
    assert_eq!(report.workers[0].transmitted, 0, "worker 0 hands everything over");
    assert!(report.workers[0].received > 0, "no frame reached worker 0: the test shows nothing");
    let stopped = bench.datapath.stop();
    assert_eq!((stopped.in_flight(), stopped.held()), (0, 0));
}

#[test]
fn under_overload_every_frame_is_accounted_for() {
    if !root() {
        return;
    }
    let bench = Bench::new(1, AttachMode::Native);
    let address = |last| Ipv4Addr::new(192, 0, 2, last).into();
    // Byte 14 is the first of the IP header: no wish, so it is forwarded.
    let plan = generate::Plan {
        interface: "a0".into(),
        queues: 1,
        template: Template::new([2; 6], [4; 6], address(1), address(2), 60).expect("it fits"),
        size: 60,
        flows: 1,
        rate: 0,
        count: 0,
        time: Duration::from_secs(1),
    };
    // As fast as it goes: the rings run full and empty again, and frames return while they are filled.
    let sent = bench.namespace.enter(|| generate::generate(&plan).expect("generate"));
    wait_for("rest", LIMIT, || {
        let before = bench.datapath.report();
        std::thread::sleep(Duration::from_millis(50));
        let after = bench.datapath.report();
        after.received() == before.received() && after.in_flight() == 0 && after.held() == 0
    });
    let report = bench.datapath.stop();
    let arrived = bench.b.drain(QUIET).expect("receive").len() as u64;
    assert!(
        report.received() > 10_000 && report.received() <= sent.frames,
        "{} of {sent:?}",
        report.received()
    );
    let dropped = report.dropped(DropReason::NoFrame) + report.dropped(DropReason::TransmitFailed);
    assert_eq!(report.transmitted() + dropped, report.received());
    assert!(arrived <= report.transmitted());
    // What the rings did not take is the kernel's to count, and it did.
    let kernel: u64 = report.sockets.iter().map(|socket| socket.xdp[0] + socket.xdp[3]).sum();
    let missed = sent.frames - report.received();
    assert!(kernel <= missed, "the kernel counted {kernel} drops of {missed}");
}

#[test]
fn reports_do_not_wait_for_links() {
    if !root() {
        return;
    }
    let bench = Bench::new(1, AttachMode::Native);
    let sockets_of_a = || bench.datapath.report().sockets.iter().filter(|socket| socket.port == A).count();
    assert_eq!(sockets_of_a(), 1);
    // Closing waits in the registry, as it waits for the kernel, until this is let go.
    let held = bench.registry.0.lock().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| bench.link(A, LinkEvent::Down));
        let (reported, reports) = std::sync::mpsc::channel();
        scope.spawn(move || {
            while sockets_of_a() > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            reported.send(()).unwrap();
        });
        let result = reports.recv_timeout(LIMIT);
        drop(held);
        result.expect("a report while a link event is under way");
    });
    bench.link(A, LinkEvent::Up);
    assert_eq!(bench.datapath.report().sockets.len(), 3);
    send(&bench.a, Wish::Forward, 0..100);
    bench.at_rest(100);
}

#[test]
fn a_port_that_goes_down_comes_back_and_disturbs_no_other() {
    if !root() {
        return;
    }
    let bench = Bench::new(1, AttachMode::Native);
    send(&bench.c, Wish::Forward, 0..100);
    bench.at_rest(100);
    bench.namespace.ip("link set a1 down");
    bench.link(A, LinkEvent::Down);
    send(&bench.c, Wish::Forward, 100..200);
    bench.at_rest(200);
    bench.namespace.ip("link set a1 up");
    bench.link(A, LinkEvent::Up);
    bench.link(A, LinkEvent::Up);
    send(&bench.a, Wish::Forward, 0..100);
    send(&bench.b, Wish::Forward, 0..100);
    let report = bench.at_rest(400);
    assert_eq!(report.transmitted(), 400);
    assert_eq!(arrived(&bench.c, Wish::Forward).len(), 200);
    assert_eq!(arrived(&bench.b, Wish::Forward).len(), 100);
}

#[test]
fn a_link_that_flaps_a_hundred_times_loses_no_frame_of_another() {
    if !root() {
        return;
    }
    let bench = Bench::new(1, AttachMode::Native);
    for round in 0..100 {
        bench.namespace.ip("link set a1 down");
        bench.link(A, LinkEvent::Down);
        send(&bench.c, Wish::Forward, 2 * round..2 * round + 1);
        bench.namespace.ip("link set a1 up");
        bench.link(A, LinkEvent::Up);
        send(&bench.a, Wish::Forward, round..round + 1);
        send(&bench.c, Wish::Forward, 2 * round + 1..2 * round + 2);
        bench.at_rest(3 * u64::from(round + 1));
    }
    let report = bench.datapath.stop();
    assert_eq!((report.transmitted(), report.in_flight(), report.held()), (300, 0, 0));
    assert_eq!(arrived(&bench.c, Wish::Forward), (0..200).collect::<Vec<_>>());
    assert_eq!(arrived(&bench.b, Wish::Forward), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_deleted_interface_is_rebuilt_when_it_exists_again() {
    if !root() {
        return;
    }
    let bench = Bench::new(1, AttachMode::Native);
    send(&bench.a, Wish::Forward, 0..100);
    bench.at_rest(100);
    bench.namespace.ip("link del a1");
    // The worker notices by itself, before anybody tells it, and goes on with the others.
    wait_for("the worker closes the sockets", LIMIT, || {
        bench.datapath.report().sockets.iter().any(|socket| socket.port == A && socket.closed)
    });
    send(&bench.c, Wish::Forward, 0..100);
    bench.at_rest(200);
    bench.link(A, LinkEvent::Gone);
    let error =
        bench.namespace.enter(|| bench.datapath.link_event(A, LinkEvent::Up)).expect_err("it is gone");
    assert!(matches!(error, StartError::Queues { .. }), "{error}");

    bench.namespace.veth("a0", "a1", 1);
    bench.namespace.enter(|| bench.registry.attach(A, "a1", AttachMode::Native));
    bench.link(A, LinkEvent::Appeared { ifindex: 99 });
    let a = bench.namespace.enter(|| Tap::open("a0")).expect("tap");
    send(&a, Wish::Forward, 100..200);
    send(&bench.b, Wish::Forward, 0..100);
    let report = bench.at_rest(400);
    assert_eq!(report.transmitted(), 400);
    assert_eq!(arrived(&a, Wish::Forward).len(), 100);
    assert_eq!(arrived(&bench.b, Wish::Forward).len(), 200);
    assert_eq!(arrived(&bench.c, Wish::Forward).len(), 100);
}

#[test]
fn frames_that_the_far_end_refuses_are_dropped_and_counted() {
    if !root() {
        return;
    }
    let bench = Bench::new(1, AttachMode::Native);
    bench.namespace.ip("link set b0 down");
    send(&bench.a, Wish::Forward, 0..100);
    let report = bench.at_rest(100);
    assert_eq!((report.transmitted(), report.dropped(DropReason::TransmitFailed)), (0, 100));
    let refused: u64 = report.sockets.iter().map(|socket| socket.refused).sum();
    assert_eq!(refused, 100);
}

#[test]
fn frames_in_flight_on_a_dead_link_are_dropped_when_it_closes() {
    if !root() {
        return;
    }
    let bench = Bench::new(1, AttachMode::Native);
    bench.namespace.ip("link set b1 down");
    send(&bench.a, Wish::Forward, 0..100);
    wait_for("frames are stuck", LIMIT, || bench.datapath.report().held() == 100);
    assert_eq!(bench.datapath.report().in_flight(), 100);
    bench.link(B, LinkEvent::Down);
    let report = bench.at_rest(100);
    assert_eq!(report.dropped(DropReason::LinkDown), 100);
    bench.namespace.ip("link set b1 up");
    bench.link(B, LinkEvent::Up);
    assert!(arrived(&bench.b, Wish::Forward).is_empty(), "stale frames left after the link came back");
}

#[test]
fn frames_wait_for_their_neighbour_and_time_out() {
    if !root() {
        return;
    }
    let bench = Bench::new(1, AttachMode::Native);
    send(&bench.a, Wish::Ask, 0..10);
    wait_for("frames wait", LIMIT, || bench.datapath.report().held() == 10);
    assert_eq!(bench.neighbours.asked.load(Ordering::Relaxed), 1, "one neighbour, one question");
    bench.neighbours.known.store(true, Ordering::Release);
    bench.neighbours.generation.fetch_add(1, Ordering::Release);
    bench.at_rest(10);
    assert_eq!(arrived(&bench.b, Wish::Ask), (0..10).collect::<Vec<_>>());

    bench.neighbours.known.store(false, Ordering::Release);
    send(&bench.a, Wish::Ask, 10..110);
    let report = bench.at_rest(110);
    assert_eq!(report.dropped(DropReason::NoNeighbour), 100);
    assert!(arrived(&bench.b, Wish::Ask).is_empty());
}

#[test]
fn a_port_that_returns_with_fewer_queues_is_served_by_the_workers_that_have_one() {
    if !root() {
        return;
    }
    let bench = Bench::new(2, AttachMode::Native);
    bench.namespace.ip("link del b1");
    bench.link(B, LinkEvent::Gone);
    bench.namespace.veth("b0", "b1", 1);
    bench.namespace.enter(|| bench.registry.attach(B, "b1", AttachMode::Native));
    bench.link(B, LinkEvent::Appeared { ifindex: 99 });
    let b = bench.namespace.enter(|| Tap::open("b0")).expect("tap");
    // Worker 0 hands them to worker 1, which cannot transmit there any more and hands them back.
    send(&bench.a, Wish::HandOver, 0..1_000);
    let report = bench.at_rest(1_000);
    assert_eq!(report.dropped(DropReason::NoFrame), 0);
    let mut numbers = arrived(&b, Wish::Forward);
    numbers.sort_unstable();
    assert_eq!(numbers.len() as u64 + report.dropped(DropReason::HandOverFull), 1_000);
    assert!(numbers.len() > 500, "{}", numbers.len());
    assert_eq!(report.workers[0].transmitted, numbers.len() as u64);
    // With a queue for it again, worker 1 sends for itself.
    bench.namespace.ip("link del b1");
    bench.link(B, LinkEvent::Gone);
    bench.namespace.veth("b0", "b1", 2);
    bench.namespace.enter(|| bench.registry.attach(B, "b1", AttachMode::Native));
    bench.link(B, LinkEvent::Appeared { ifindex: 100 });
    let b = bench.namespace.enter(|| Tap::open("b0")).expect("tap");
    send(&bench.a, Wish::HandOver, 0..100);
    let report = bench.at_rest(1_100);
    assert_eq!(report.workers[1].transmitted, 100);
    assert_eq!(arrived(&b, Wish::HandOver).len(), 100);
}

#[test]
fn a_queue_that_is_still_held_is_tried_again_and_then_refused() {
    if !root() {
        return;
    }
    let namespace = Namespace::new();
    let (registry, neighbours) = (Arc::new(Registry::default()), Arc::new(Neighbours::default()));
    namespace.veth("a0", "a1", 1);
    namespace.enter(|| {
        registry.attach(A, "a1", AttachMode::Native);
        let mut config = config(&[(A, "a1")], 1);
        // Stopped and started at once.
        for _ in 0..3 {
            start(&config, &registry, &neighbours).expect("start").stop();
        }
        let held = socket::open(A, "a1", 0, true, &config.sockets).expect("open");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(150));
                drop(held);
            });
            start(&config, &registry, &neighbours).expect("start, once the queue is free").stop();
        });
        let _held = socket::open(A, "a1", 0, true, &config.sockets).expect("open");
        config.sockets.busy_retry = Duration::from_millis(50);
        let error = start(&config, &registry, &neighbours).err().expect("the queue is held");
        let StartError::Open(error) = error else { panic!("{error}") };
        assert_eq!(
            (error.interface.as_str(), error.queue, error.cause.raw_os_error()),
            ("a1", 0, Some(libc::EBUSY))
        );
    });
}

#[test]
fn every_queue_is_bound_and_an_interface_that_is_missing_refuses_the_start() {
    if !root() {
        return;
    }
    let namespace = Namespace::new();
    let (registry, neighbours) = (Arc::new(Registry::default()), Arc::new(Neighbours::default()));
    namespace.veth("a0", "a1", 4);
    namespace.veth("b0", "b1", 2);
    namespace.enter(|| {
        registry.attach(A, "a1", AttachMode::Native);
        registry.attach(B, "b1", AttachMode::Native);
        let datapath = start(&config(&[(A, "a1"), (B, "b1")], 3), &registry, &neighbours).expect("start");
        assert_eq!(datapath.workers(), 2, "as many as the interface with the fewest queues has");
        let sockets: Vec<_> = datapath.report().sockets.iter().map(|s| (s.port, s.queue, s.worker)).collect();
        assert_eq!(sockets, [(A, 0, 0), (A, 1, 1), (A, 2, 0), (A, 3, 1), (B, 0, 0), (B, 1, 1)]);
        drop(datapath);
        let error = start(&config(&[(A, "a1"), (C, "nix0")], 1), &registry, &neighbours).err();
        assert!(matches!(error, Some(StartError::Queues { interface, .. }) if interface == "nix0"));
    });
}

/// How a worker of the test's own child is to hang.
const HANG: &str = "ADIT_TEST_HANG";

#[test]
fn a_worker_that_is_silent_for_a_second_ends_the_process() {
    if !root() {
        return;
    }
    if let Some(hang) = std::env::var_os(HANG) {
        let bench = Bench::new(1, AttachMode::Native);
        println!("{}", bench.namespace.name());
        let wish = if hang == "spin" { Wish::Spin } else { Wish::Sleep };
        bench.a.send(&frame(wish, 0, 60)).expect("send");
        std::thread::sleep(LIMIT);
        return;
    }
    ["sleep", "spin"].into_iter().for_each(ends_the_process);
}

fn ends_the_process(hang: &str) {
    let test = "a_worker_that_is_silent_for_a_second_ends_the_process";
    let start = Instant::now();
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(HANG, hang)
        .output()
        .expect("run");
    let printed = String::from_utf8_lossy(&output.stdout);
    for name in printed.lines().filter(|line| line.starts_with("adit-")) {
        Command::new("ip").args(["netns", "del", name]).status().expect("ip");
    }
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{printed}");
    assert!(start.elapsed() < LIMIT, "the process ended by itself");
}
