//! Checks on the wire, while it happens, that an SA never uses a number twice: neither the sequence number of RFC 4303
//! nor the nonce, which is the explicit IV of RFC 4106 section 3.1 (the salt stays the same with its key).

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::netns::Tap;
use crate::topology::Topology;
use crate::traffic::inside;

/// What was seen of one SA, over all lives of its key.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    /// Packets.
    pub packets: u64,
    /// The highest number.
    pub highest: u64,
    /// Lives that began above everything before.
    pub lives: u32,
    /// When the first packet of the current life came.
    pub began: Option<Instant>,
}

/// Watches one SA.
pub struct Numbers {
    lives: Sender<Sender<Seen>>,
    thread: JoinHandle<Seen>,
}

/// How far packets may overtake each other; what is further behind counts as used.
const REORDERED: u64 = 1 << 16;

/// The judge of one SA with AES-GCM and 64-bit numbers.
#[derive(Default)]
struct Judge {
    seen: Seen,
    /// Everything up to here was used by earlier lives.
    floor: u64,
    recent: BTreeSet<u64>,
}

impl Judge {
    fn packet(&mut self, sequence_low: u32, iv: u64) {
        // One counter for both, so one proof.
        assert_eq!(iv as u32, sequence_low, "IV and sequence number are one counter");
        assert!(iv > self.floor, "number {iv} again: an earlier life was at {}", self.floor);
        assert!(iv + REORDERED > self.seen.highest, "number {iv} far behind {}", self.seen.highest);
        assert!(self.recent.insert(iv), "number {iv} twice");
        self.seen.highest = self.seen.highest.max(iv);
        self.seen.packets += 1;
        self.seen.began.get_or_insert_with(Instant::now);
        while self.recent.first().is_some_and(|first| first + 2 * REORDERED < self.seen.highest) {
            self.recent.pop_first();
        }
    }
}

impl Numbers {
    /// Watches the packets with `spi` that come onto the wire at `port`: `left` from gateway A, `right` from B.
    pub fn watch(topology: &Topology, port: &'static str, spi: u32) -> Self {
        let (lives, next) = channel();
        let (ready, is_ready) = channel();
        let thread = inside(topology, "wire", move || {
            let tap = Tap::open(port).expect("the wire is there");
            ready.send(()).expect("the test waits");
            watch(&tap, spi, &next)
        });
        is_ready.recv().expect("the tap is open");
        Self { lives, thread }
    }

    /// The sender is dead: its next life must begin above everything seen so far. Waits until nothing of it comes;
    /// what was seen, with the beginning of the life that ended.
    ///
    /// # Panics
    /// When a number was used twice.
    pub fn next_life(&self) -> Seen {
        let (answer, answered) = channel();
        self.lives.send(answer).expect("no number was used twice");
        answered.recv().expect("no number was used twice")
    }

    /// What was seen in the end.
    ///
    /// # Panics
    /// When a number was used twice.
    pub fn stop(self) -> Seen {
        drop(self.lives);
        self.thread.join().expect("no number was used twice")
    }
}

fn watch(tap: &Tap, spi: u32, lives: &Receiver<Sender<Seen>>) -> Seen {
    let mut judge = Judge::default();
    loop {
        // Everything that has come is judged before anybody is answered.
        let mut unanswered = 0;
        while let Some(frame) = tap.receive(Duration::from_millis(20)).expect("the wire stays") {
            // Outer IPv4 without options: Ethernet 14, IP 20, then SPI, sequence number, IV.
            let esp = frame.len() >= 50 && frame[12..15] == [8, 0, 0x45] && frame[23] == 50;
            if esp && frame[34..38] == spi.to_be_bytes() {
                let sequence = u32::from_be_bytes(frame[38..42].try_into().expect("four bytes"));
                let iv = u64::from_be_bytes(frame[42..50].try_into().expect("eight bytes"));
                judge.packet(sequence, iv);
            }
            // Only a sender that lives goes on without a pause.
            unanswered += 1;
            if unanswered == 10_000 {
                break;
            }
        }
        match lives.try_recv() {
            Ok(answer) => {
                judge.floor = judge.seen.highest;
                judge.seen.lives += 1;
                let _ = answer.send(judge.seen);
                judge.seen.began = None;
            }
            Err(TryRecvError::Disconnected) => return judge.seen,
            Err(TryRecvError::Empty) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_overtake_and_never_repeat() {
        let mut judge = Judge::default();
        for iv in [1, 3, 2, 4] {
            judge.packet(iv as u32, iv);
        }
        assert_eq!((judge.seen.packets, judge.seen.highest), (4, 4));
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn a_number_twice_is_seen() {
        let mut judge = Judge::default();
        for iv in [1, 2, 1] {
            judge.packet(iv as u32, iv);
        }
    }

    #[test]
    #[should_panic(expected = "an earlier life")]
    fn a_number_of_an_earlier_life_is_seen() {
        let mut judge = Judge { floor: 9, ..Judge::default() };
        judge.packet(9, 9);
    }
}
