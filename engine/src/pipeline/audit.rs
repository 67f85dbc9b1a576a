//! Records of dropped packets, for whoever asks "which packets are these?" (RFC 4303 section 4, RFC 4301 section 5.2).
//!
//! A flood must not make a flood of records: of each reason a worker keeps the first packet since it last told of that
//! reason, and tells of it about once a second, together with how many more there were. So the records of a reason
//! always add up to its counter. Any other dropped packet costs one test of a bit.

mod evidence;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;

pub(super) use evidence::{Evidence, Scene};

use super::{DropReason, Frames, Own, Pass, Pipeline, Tables, WorkerCounters};
use crate::route::PortId;
use crate::sa::publish::Guard;
use crate::sa::selector::Direction;
use crate::wire::Spi;
use crate::wire::ip::Flow;

/// Records that wait to be collected. When there are as many, workers keep theirs, and tell more with it later.
const WAITING: usize = 256;

/// What there is to tell of dropped packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The worker that dropped them.
    pub worker: u32,
    /// Why.
    pub reason: DropReason,
    /// Packets that this worker dropped for it since its record before.
    pub drops: u64,
    /// When the first of them was dropped, in milliseconds of the workers' clock.
    pub at: u64,
    /// The first of them, unless no header was at hand where it was dropped (on most rings and queues).
    pub seen: Option<Seen>,
}

/// A dropped packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Where it came in, or was to leave when it was finished; [`PortId::OWN`] when it came out of an SA, or is made here.
    pub port: PortId,
    /// As RFC 4301 has it.
    pub direction: Direction,
    /// The tunnel of its SA or policy, as far as that was found.
    pub tunnel: Option<Arc<str>>,
    /// The SPI of its SA; inbound, what it names where there is no such SA.
    pub spi: Option<Spi>,
    /// Its sequence number: all of it where its SA was found and it passed the first check, else the low 32 bits.
    pub sequence: Option<u64>,
    /// The packet: inbound as it came, outbound as it was to be sealed. `None` for what is not IP.
    pub packet: Option<Header>,
    /// What came out of its SA, if that is authentic and a packet; of an ICMP error from outside, what it quotes.
    pub inner: Option<Header>,
}

/// What a record tells of an IP header, and no byte behind the ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Addresses, protocol, ports.
    pub flow: Flow,
    /// IPv6: its flow label.
    pub flow_label: Option<u32>,
}

/// Where workers leave records, and whether they are to.
pub struct Trail {
    records: ArrayQueue<Record>,
    is_on: AtomicBool,
}

impl Default for Trail {
    /// Empty, and on.
    fn default() -> Self {
        Self { records: ArrayQueue::new(WAITING), is_on: AtomicBool::new(true) }
    }
}

impl Trail {
    /// Switches it on or off (RFC 4303 section 4: "MUST allow a system administrator to enable or disable auditing").
    /// Workers follow within a second or so; what is dropped while it is off is counted, and no record tells of it.
    pub fn switch(&self, on: bool) {
        self.is_on.store(on, Ordering::Relaxed);
    }

    /// The oldest record that nobody has taken yet.
    pub fn take(&self) -> Option<Record> {
        self.records.pop()
    }
}

/// What a worker has seen of dropped packets and not told of yet.
pub(super) struct Audit {
    /// Reasons that nothing is kept of, a bit for each; none while auditing is off.
    wanted: u128,
    /// By reason: a packet, and when.
    kept: Box<[Option<(u64, Seen)>]>,
    /// By reason: the part of its counter that was told of.
    told: Box<[u64]>,
}

const _: () = assert!(DropReason::COUNT <= u128::BITS as usize);

impl Default for Audit {
    fn default() -> Self {
        let kept = vec![None; DropReason::COUNT].into_boxed_slice();
        Self { wanted: u128::MAX, kept, told: vec![0; DropReason::COUNT].into_boxed_slice() }
    }
}

impl Audit {
    fn wants(&self, reason: DropReason) -> bool {
        self.wanted & 1 << reason as u8 != 0
    }

    /// Looks at a packet that was dropped for `reason`, if nothing of that is kept yet.
    pub(super) fn keep(&mut self, reason: DropReason, evidence: &Evidence<'_>, scene: &Scene<'_>) {
        if self.wants(reason) {
            self.wanted &= !(1 << reason as u8);
            self.kept[reason as usize] = Some((scene.now(), evidence.look(reason, scene)));
        }
    }

    /// Leaves a record of every reason that counted something since the last time.
    fn tell(&mut self, worker: u32, counters: &WorkerCounters, trail: &Trail, now: u64) {
        let is_on = trail.is_on.load(Ordering::Relaxed);
        let mut wanted = 0;
        for &reason in DropReason::ALL {
            let (kept, told) = (&mut self.kept[reason as usize], &mut self.told[reason as usize]);
            let counted = counters.dropped[reason as usize].load(Ordering::Relaxed);
            let drops = counted.wrapping_sub(*told);
            let seen = kept.take();
            if is_on && drops > 0 {
                let (at, seen) = seen.map_or((now, None), |(at, seen)| (at, Some(seen)));
                if let Err(Record { at, seen, .. }) =
                    trail.records.push(Record { worker, reason, drops, at, seen })
                {
                    *kept = seen.map(|seen| (at, seen));
                    wanted |= u128::from(kept.is_none()) << reason as u8;
                    continue;
                }
            }
            *told = counted;
            wanted |= u128::from(is_on) << reason as u8;
        }
        self.wanted = wanted;
    }
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// Counts a drop, and keeps what a record is to tell of it.
    #[cold]
    #[inline(never)]
    pub(super) fn drop(&mut self, reason: DropReason, evidence: &Evidence<'_>) {
        self.tally.drop(reason);
        self.own.audit.keep(reason, evidence, &self.scene());
    }

    /// What is known now.
    pub(super) fn scene(&self) -> Scene<'g> {
        Scene::new(self.now, self.spd, self.network, self.memo.sa)
    }
}

impl Pipeline {
    /// Looks at a finished frame that was to leave by `port` and was dropped; whoever did counts it.
    #[cold]
    pub fn look_at_dropped(
        &mut self,
        tables: &Tables,
        guard: &Guard<'_>,
        now: u64,
        reason: DropReason,
        port: PortId,
        frame: &[u8],
    ) {
        let Some(scene) = Scene::of(tables, guard, now) else { return };
        self.own.audit.keep(reason, &Evidence::leaving(port, frame), &scene);
    }

    /// Leaves records of what was dropped since the last time in [`Tables::audit`]; to be called every second or so.
    /// `now` is as in [`Pipeline::process`].
    pub fn tell_drops(&mut self, tables: &Tables, now: u64) {
        let Own { worker, counters, audit, .. } = &mut self.own;
        audit.tell(*worker, counters, &tables.audit, now);
    }
}
