//! Finished frames whose next hop has not answered yet: a bounded queue for each port, and a bounded rate of
//! questions.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::datapath::NeighbourRequests;
use crate::pipeline::Output;
use crate::route::PortId;
use crate::wire::ethernet::MacAddress;

/// Most frames waiting for one port's neighbours.
pub const WAITING_PER_PORT: usize = 64;

/// How long a frame waits: as long as the kernel asks before it gives up.
pub const WAIT_MS: u64 = 3_000;

/// One neighbour is asked for once in this time, however many frames wait for it.
const ASK_EVERY_MS: u64 = 1_000;

/// Questions remembered; more neighbours than that in a second are asked for again.
const ASKED: usize = 64;

struct Entry<F> {
    port: PortId,
    neighbour: IpAddr,
    since: u64,
    frame: F,
    length: usize,
}

/// What became of a waiting frame.
pub enum Fate<F> {
    /// The neighbour answered; its address is in the frame.
    Send {
        /// Egress.
        port: PortId,
        /// The frame.
        frame: F,
        /// How many of its bytes.
        length: usize,
    },
    /// It did not.
    Expired {
        /// Egress.
        port: PortId,
        /// The frame.
        frame: F,
    },
}

/// The frames of one worker that wait.
pub struct Waiting<F> {
    entries: VecDeque<Entry<F>>,
    asked: [Option<(PortId, IpAddr, u64)>; ASKED],
    next_question: usize,
}

impl<F> Default for Waiting<F> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), asked: [None; ASKED], next_question: 0 }
    }
}

impl<F: std::ops::DerefMut<Target = [u8]>> Waiting<F> {
    /// How many frames wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when none does.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True when the oldest frame has waited long enough.
    pub fn overdue(&self, now: u64) -> bool {
        self.entries.front().is_some_and(|entry| now.saturating_sub(entry.since) >= WAIT_MS)
    }

    /// Lets a frame wait for `neighbour`, which is asked for.
    ///
    /// # Errors
    /// The frame, when its port has too many waiting.
    pub fn push(
        &mut self,
        output: Output<F>,
        neighbour: IpAddr,
        now: u64,
        requests: &dyn NeighbourRequests,
    ) -> Result<(), F> {
        let port = output.port;
        self.ask(port, neighbour, now, requests);
        if self.entries.iter().filter(|entry| entry.port == port).count() >= WAITING_PER_PORT {
            return Err(output.frame);
        }
        self.entries.push_back(Entry {
            port,
            neighbour,
            since: now,
            frame: output.frame,
            length: output.length,
        });
        Ok(())
    }

    fn ask(&mut self, port: PortId, neighbour: IpAddr, now: u64, requests: &dyn NeighbourRequests) {
        let known = self.asked.iter_mut().flatten().find(|(p, n, _)| (*p, *n) == (port, neighbour));
        match known {
            Some((_, _, at)) if now.saturating_sub(*at) < ASK_EVERY_MS => return,
            Some((_, _, at)) => *at = now,
            None => {
                self.asked[self.next_question] = Some((port, neighbour, now));
                self.next_question = (self.next_question + 1) % ASKED;
            }
        }
        requests.resolve(port, neighbour);
    }

    /// Decides about every frame again, in the order they came.
    pub fn retry(
        &mut self,
        now: u64,
        mut resolve: impl FnMut(PortId, IpAddr) -> Option<MacAddress>,
        mut decided: impl FnMut(Fate<F>),
    ) {
        for _ in 0..self.entries.len() {
            let Some(mut entry) = self.entries.pop_front() else { return };
            if let Some(MacAddress(address)) = resolve(entry.port, entry.neighbour) {
                entry.frame[..6].copy_from_slice(&address);
                decided(Fate::Send { port: entry.port, frame: entry.frame, length: entry.length });
            } else if now.saturating_sub(entry.since) >= WAIT_MS {
                decided(Fate::Expired { port: entry.port, frame: entry.frame });
            } else {
                self.entries.push_back(entry);
            }
        }
    }

    /// Takes out the frames of a port that closes.
    pub fn take_port(&mut self, port: PortId, mut taken: impl FnMut(F)) {
        for _ in 0..self.entries.len() {
            let Some(entry) = self.entries.pop_front() else { return };
            if entry.port == port {
                taken(entry.frame);
            } else {
                self.entries.push_back(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Questions(Mutex<Vec<(PortId, IpAddr)>>);

    impl NeighbourRequests for Questions {
        fn resolve(&self, port: PortId, neighbour: IpAddr) {
            self.0.lock().unwrap().push((port, neighbour));
        }
        fn in_use(&self, _: PortId, _: MacAddress) {}
    }

    const PORT: PortId = PortId(1);

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn output(tag: u8) -> Output<Vec<u8>> {
        let mut frame = vec![0; 60];
        frame[20] = tag;
        Output { port: PORT, frame, length: 60, unresolved: None }
    }

    fn retry(waiting: &mut Waiting<Vec<u8>>, now: u64, known: Option<u8>) -> (Vec<u8>, Vec<u8>) {
        let (mut sent, mut expired) = (Vec::new(), Vec::new());
        let mac = MacAddress([2, 0, 0, 0, 0, 9]);
        waiting.retry(
            now,
            |_, neighbour| (known.map(address) == Some(neighbour)).then_some(mac),
            |fate| match fate {
                Fate::Send { frame, length, .. } => {
                    assert_eq!((&frame[..6], length), (&mac.0[..], 60));
                    sent.push(frame[20]);
                }
                Fate::Expired { frame, .. } => expired.push(frame[20]),
            },
        );
        (sent, expired)
    }

    #[test]
    fn frames_leave_in_order_once_their_neighbour_answers() {
        let (mut waiting, questions) = (Waiting::default(), Questions::default());
        for tag in 0..6 {
            waiting.push(output(tag), address(tag % 2), 0, &questions).expect("there is room");
        }
        assert_eq!(*questions.0.lock().unwrap(), [(PORT, address(0)), (PORT, address(1))]);
        assert_eq!(retry(&mut waiting, 1, Some(1)), (vec![1, 3, 5], vec![]));
        assert_eq!(retry(&mut waiting, WAIT_MS - 1, None), (vec![], vec![]));
        assert_eq!(retry(&mut waiting, WAIT_MS, None), (vec![], vec![0, 2, 4]));
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_port_holds_only_so_many_and_a_neighbour_is_asked_for_once_a_second() {
        let (mut waiting, questions) = (Waiting::default(), Questions::default());
        for _ in 0..WAITING_PER_PORT {
            waiting.push(output(0), address(7), 10, &questions).expect("there is room");
        }
        assert!(waiting.push(output(0), address(7), 10 + ASK_EVERY_MS - 1, &questions).is_err());
        assert_eq!(questions.0.lock().unwrap().len(), 1);
        assert!(waiting.push(output(0), address(7), 10 + ASK_EVERY_MS, &questions).is_err());
        assert_eq!(questions.0.lock().unwrap().len(), 2);
        let other = Output { port: PortId(0), ..output(0) };
        waiting.push(other, address(7), 10, &questions).expect("another port has its own room");
        let mut taken = 0;
        waiting.take_port(PORT, |_| taken += 1);
        assert_eq!((taken, waiting.len()), (WAITING_PER_PORT, 1));
    }
}
