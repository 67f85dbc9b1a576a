//! Packets of several frames: MTU 9000 by XDP multi-buffer, in one piece between receiving and transmitting.

use adit_engine::io::large::{LARGE_CAPACITY, LARGE_FRAMES};
use adit_engine::io::umem::FRAME_CAPACITY;

use super::*;

/// MTU of the links, above what adit carries: something must be too long.
const MTU: usize = 12_000;

impl Bench {
    fn jumbo(queues: u32, mode: AttachMode) -> Self {
        let bench = Self::new(queues, mode);
        for end in ["a0", "a1", "b0", "b1", "c0", "c1"] {
            bench.namespace.ip(&format!("link set {end} mtu {MTU}"));
        }
        bench
    }
}

/// A frame in which no two pieces are alike.
fn long_frame(wish: Wish, number: u32, length: usize) -> Vec<u8> {
    let mut frame = frame(wish, number, length);
    for (i, byte) in frame.iter_mut().enumerate().skip(NUMBER.end) {
        *byte = (i * 31 + (i >> 8) * 17 + number as usize) as u8;
    }
    frame
}

/// Lengths around every place where a packet begins another frame, the usual ones, and the longest.
fn lengths() -> Vec<usize> {
    let boundaries = (1..=LARGE_CAPACITY / FRAME_CAPACITY).flat_map(|pieces| {
        let boundary = pieces * FRAME_CAPACITY;
        boundary - 2..=boundary + 2
    });
    [60, 1514, 8_900, 9_014, LARGE_CAPACITY - 1, LARGE_CAPACITY].into_iter().chain(boundaries).collect()
}

/// Asserts that what arrived is `sent`, in order, but for the destination address.
fn assert_arrived(tap: &Tap, sent: impl IntoIterator<Item = Vec<u8>>) {
    let arrived = tap.drain(QUIET).expect("receive");
    let mut sent = sent.into_iter();
    for got in arrived {
        let mut expected = sent.next().expect("no more frames than were sent");
        expected[..6].copy_from_slice(&NEXT_HOP);
        assert!(got == expected, "frame {} of {} bytes arrived changed", number(&got), expected.len());
    }
    assert_eq!(sent.count(), 0, "frames were lost");
}

fn every_length_crosses(mode: AttachMode) {
    let bench = Bench::jumbo(1, mode);
    let mut sent = Vec::new();
    // Both ways, more often than there are frames in the transmit half.
    for round in 0..12 {
        for (i, length) in lengths().into_iter().enumerate() {
            let frame = long_frame(Wish::Forward, (round * 100 + i) as u32, length);
            bench.a.send(&frame).expect("send");
            bench.b.send(&frame).expect("send");
            sent.push(frame);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = bench.at_rest(2 * sent.len() as u64);
    assert_arrived(&bench.b, sent.iter().cloned());
    assert_arrived(&bench.a, sent.iter().cloned());
    let report_at_end = bench.datapath.stop();
    assert_eq!(report.transmitted(), 2 * sent.len() as u64);
    assert_eq!((report_at_end.in_flight(), report_at_end.held()), (0, 0));
}

#[test]
fn packets_of_every_length_cross_in_order_and_unchanged() {
    if root() {
        every_length_crosses(AttachMode::Native);
    }
}

#[test]
fn packets_of_every_length_cross_in_skb_mode_too() {
    if root() {
        every_length_crosses(AttachMode::Skb);
    }
}

#[test]
fn a_packet_that_is_too_long_is_dropped_alone() {
    if !root() {
        return;
    }
    let bench = Bench::jumbo(1, AttachMode::Native);
    let length = |n: u32| [60, 10_000, 8_000, LARGE_CAPACITY + 1, 1_500][n as usize % 5];
    for n in 0..250 {
        bench.a.send(&long_frame(Wish::Forward, n, length(n))).expect("send");
    }
    let report = bench.at_rest(250);
    assert_eq!((report.transmitted(), report.dropped(DropReason::TooBig)), (150, 100));
    let kept = (0..250).filter(|n| [0, 2, 4].contains(&(n % 5)));
    assert_arrived(&bench.b, kept.map(|n| long_frame(Wish::Forward, n, length(n))));
}

#[test]
fn an_mtu_may_change_while_packets_pass() {
    if !root() {
        return;
    }
    let bench = Bench::new(1, AttachMode::Native);
    let mut count = 0;
    for (mtu, longest) in [(1500, 1514), (9000, 9014), (1500, 1514)] {
        for end in ["a0", "a1", "b0", "b1"] {
            bench.namespace.ip(&format!("link set {end} mtu {mtu}"));
        }
        let sent: Vec<_> =
            (0..100).map(|n| long_frame(Wish::Forward, n, longest - n as usize % 50)).collect();
        sent.iter().for_each(|frame| bench.a.send(frame).expect("send"));
        count += sent.len() as u64;
        bench.at_rest(count);
        assert_arrived(&bench.b, sent);
    }
}

#[test]
fn long_packets_of_another_workers_sa_are_handed_over_and_their_frames_come_home() {
    if !root() {
        return;
    }
    let bench = Bench::jumbo(2, AttachMode::Native);
    // More than can be gathered at once: each must have come home.
    let total = 8 * LARGE_FRAMES as u32;
    for number in 0..total {
        bench.a.send(&long_frame(Wish::HandOver, number, 5_000 + number as usize % 4_000)).expect("send");
        if number % 16 == 15 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let report = bench.at_rest(total.into());
    let arrived = bench.b.drain(QUIET).expect("receive");
    for got in &arrived {
        let number = number(got);
        let mut sent = long_frame(Wish::HandOver, number, 5_000 + number as usize % 4_000);
        sent[..6].copy_from_slice(&NEXT_HOP);
        assert!(*got == sent, "frame {number} arrived changed");
    }
    let lost = [DropReason::HandOverFull, DropReason::NoLargeFrame, DropReason::NoFrame];
    let lost: u64 = lost.into_iter().map(|reason| report.dropped(reason)).sum();
    assert_eq!(arrived.len() as u64 + lost, u64::from(total));
    assert!(arrived.len() > LARGE_FRAMES, "{lost} were lost: the test shows nothing");
    assert_eq!(report.workers[0].transmitted, 0, "worker 0 hands everything over");
    let stopped = bench.datapath.stop();
    assert_eq!((stopped.in_flight(), stopped.held()), (0, 0));
}

#[test]
fn long_packets_in_flight_on_a_dead_link_are_dropped_when_it_closes() {
    if !root() {
        return;
    }
    let bench = Bench::jumbo(1, AttachMode::Native);
    bench.namespace.ip("link set b1 down");
    let send = |numbers: std::ops::Range<u32>| {
        numbers.for_each(|n| bench.a.send(&long_frame(Wish::Forward, n, 9_000)).expect("send"));
    };
    send(0..100);
    wait_for("packets are stuck", LIMIT, || bench.datapath.report().held() == 100);
    assert_eq!(bench.datapath.report().in_flight(), 100);
    bench.link(B, LinkEvent::Down);
    let report = bench.at_rest(100);
    assert_eq!(report.dropped(DropReason::LinkDown), 100);
    bench.namespace.ip("link set b1 up");
    bench.link(B, LinkEvent::Up);
    send(100..150);
    bench.at_rest(150);
    assert_arrived(&bench.b, (100..150).map(|n| long_frame(Wish::Forward, n, 9_000)));
}

#[test]
fn long_packets_that_the_far_end_refuses_are_counted_once() {
    if !root() {
        return;
    }
    let bench = Bench::jumbo(1, AttachMode::Native);
    bench.namespace.ip("link set b0 down");
    (0..100).for_each(|n| bench.a.send(&long_frame(Wish::Forward, n, 9_000)).expect("send"));
    let report = bench.at_rest(100);
    assert_eq!((report.transmitted(), report.dropped(DropReason::TransmitFailed)), (0, 100));
}

#[test]
fn an_interface_that_is_deleted_amid_long_packets_loses_no_other_ports_frames() {
    if !root() {
        return;
    }
    let bench = Bench::jumbo(1, AttachMode::Native);
    // From A to B and from B to A, while B goes.
    for n in 0..200 {
        bench.a.send(&long_frame(Wish::Forward, n, 9_000)).expect("send");
        if n == 100 {
            bench.namespace.ip("link del b1");
        }
    }
    wait_for("the worker closes the sockets", LIMIT, || {
        bench.datapath.report().sockets.iter().any(|socket| socket.port == B && socket.closed)
    });
    wait_for("rest", LIMIT, || {
        let report = bench.datapath.report();
        report.received() == 200 && report.in_flight() == 0 && report.held() == 0
    });
    // C's own still pass, both halves of A still work.
    let sent: Vec<_> = (0..300).map(|n| long_frame(Wish::Forward, n, 9_000)).collect();
    for portion in sent.chunks(50) {
        portion.iter().for_each(|frame| bench.c.send(frame).expect("send"));
        std::thread::sleep(Duration::from_millis(10));
    }
    bench.at_rest(500);
    assert_arrived(&bench.c, sent);
}
