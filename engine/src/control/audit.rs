//! What becomes of the records of dropped packets ([`crate::pipeline::audit`]): the newest are kept, whoever listens is
//! told, and lines are logged where the configuration says so. Workers bound how many there are; here nothing waits
//! for whoever reads.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::apply::Control;
use super::config::AuditName;
use super::lifetimes::worker_clock;
use super::prepare::selector_text;
use super::value;
use crate::pipeline::DropReason;
use crate::pipeline::audit::{Header, Record, Seen};
use crate::route::PortId;
use crate::sa::selector::Direction;
use crate::wire::Spi;
use crate::wire::ip::Upper;

/// Records kept.
pub const RECENT: usize = 256;
/// Lines logged at once; that is a second's.
const LINES: usize = 20;
/// Selectors of an SA that a record tells.
const SELECTORS: usize = 16;

/// Packets that were dropped for one reason within a second or so, and the first of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DropRecord {
    /// When the first was dropped: UTC, as 2026-01-31T23:59:59.999Z.
    pub time: String,
    /// The worker that dropped them.
    pub worker: u32,
    /// [`DropReason::name`].
    pub reason: String,
    /// How many there were since the record before of this worker and reason.
    pub packets: u64,
    /// Where the first came in, or was to leave when it was finished; absent where it was between two SAs, or no header was
    /// at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// "in" or "out".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// The tunnel of its SA or policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// SPI, as 0x00001001.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spi: Option<String>,
    /// Sequence number: all 64 bits where they were found out, else those on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The packet: inbound as it came, outbound as it was to be sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<PacketHeader>,
    /// What came out of its SA, if that was authentic and a packet; of an ICMP error from outside, what it quotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<PacketHeader>,
    /// What the SA may carry, where the packet inside is something else; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<String>,
}

/// Of an IP packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PacketHeader {
    /// Source address.
    pub source: String,
    /// Destination address.
    pub destination: String,
    /// Protocol, name or number.
    pub protocol: String,
    /// Source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// ICMP type and code, as 8/0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<String>,
    /// IPv6 flow label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_label: Option<u32>,
}

impl PacketHeader {
    fn of(header: &Header) -> Self {
        let flow = &header.flow;
        let (ports, icmp) = match flow.upper {
            Upper::Ports { source, destination } => (Some((source, destination)), None),
            Upper::Icmp { kind, code } => (None, Some(format!("{kind}/{code}"))),
            Upper::Opaque => (None, None),
        };
        Self {
            source: flow.source.to_string(),
            destination: flow.destination.to_string(),
            protocol: value::next_layer_text(Some(flow.protocol)),
            source_port: ports.map(|(source, _)| source),
            destination_port: ports.map(|(_, destination)| destination),
            icmp,
            flow_label: header.flow_label,
        }
    }
}

impl std::fmt::Display for PacketHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = |address: &str, port: Option<u16>| match port {
            None => address.to_owned(),
            Some(port) if address.contains(':') => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
        };
        let (source, destination) =
            (end(&self.source, self.source_port), end(&self.destination, self.destination_port));
        write!(f, "{source} > {destination} {}", self.protocol)?;
        self.icmp.iter().try_for_each(|icmp| write!(f, " {icmp}"))?;
        self.flow_label
            .iter()
            .filter(|label| **label != 0)
            .try_for_each(|label| write!(f, " flow {label:#07x}"))
    }
}

impl DropRecord {
    /// Of a record without what only a running daemon knows.
    pub fn of(record: &Record, time: String, interface: impl FnOnce(PortId) -> Option<String>) -> Self {
        let Record { worker, reason, drops, seen, .. } = record;
        let seen = seen.as_ref();
        Self {
            time,
            worker: *worker,
            reason: reason.name().into(),
            packets: *drops,
            interface: seen.and_then(|seen| interface(seen.port)),
            direction: seen.map(|seen| direction(seen.direction).into()),
            tunnel: seen.and_then(|seen| seen.tunnel.as_deref()).map(Into::into),
            spi: seen.and_then(|seen| seen.spi).map(|spi| spi.to_string()),
            sequence: seen.and_then(|seen| seen.sequence),
            packet: seen.and_then(|seen| seen.packet.as_ref()).map(PacketHeader::of),
            inner: seen.and_then(|seen| seen.inner.as_ref()).map(PacketHeader::of),
            selectors: Vec::new(),
        }
    }

    /// Direction, tunnel, SPI, number, packet and inner packet, as tables show them.
    pub fn columns(&self) -> [String; 6] {
        let text = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let header = |header: &Option<PacketHeader>| header.as_ref().map(ToString::to_string);
        [
            self.direction.clone(),
            self.tunnel.clone(),
            self.spi.clone(),
            self.sequence.map(|number| number.to_string()),
            header(&self.packet),
            header(&self.inner),
        ]
        .map(text)
    }

    fn log(&self) {
        let Self { time, worker, reason, packets, interface, direction, tunnel, spi, sequence, .. } = self;
        let text = |header: &Option<PacketHeader>| header.as_ref().map(ToString::to_string);
        tracing::info!(
            target: "audit",
            time,
            reason,
            packets,
            worker,
            interface = interface.as_deref(),
            direction = direction.as_deref(),
            tunnel = tunnel.as_deref(),
            spi = spi.as_deref(),
            sequence,
            packet = text(&self.packet),
            inner = text(&self.inner),
            "dropped"
        );
    }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "in",
        Direction::Outbound => "out",
    }
}

/// What is kept, and what is done beside that.
pub(super) struct Auditor(Mutex<Kept>);

struct Kept {
    mode: AuditName,
    /// In the order in which they came.
    recent: VecDeque<DropRecord>,
}

impl Auditor {
    pub(super) fn new(mode: AuditName) -> Self {
        Self(Mutex::new(Kept { mode, recent: VecDeque::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Whoever makes many records of one reason pushes out others of that reason, and no more.
    fn keep(&mut self, record: DropRecord) {
        if self.recent.len() == RECENT {
            let mut counts: HashMap<&str, usize> = HashMap::new();
            self.recent.iter().for_each(|record| *counts.entry(&record.reason).or_default() += 1);
            let oldest_of_most = self
                .recent
                .iter()
                .enumerate()
                .max_by_key(|(place, record)| (counts[record.reason.as_str()], std::cmp::Reverse(*place)))
                .map(|(place, _)| place);
            oldest_of_most.map(|place| self.recent.remove(place));
        }
        self.recent.push_back(record);
    }
}

impl Control {
    /// Switches auditing, from now on.
    pub(super) fn switch_audit(&self, mode: AuditName) {
        self.auditor.lock().mode = mode;
        let on = mode != AuditName::Off;
        self.tables.audit.switch(on);
        if let Err(problem) = self.datapath.tell_of_drops(on) {
            tracing::warn!("what the hooks drop is counted, but not told of: {problem}");
        }
    }

    /// Takes in what workers have left. Called every second or so, and before the newest are shown.
    pub fn collect_drops(&self) {
        let clocks = (wall_clock(), worker_clock());
        let mut records = Vec::new();
        // As many as can have waited: who goes on leaving more is not waited for.
        while records.len() < 2 * RECENT
            && let Some(record) = self.tables.audit.take()
        {
            records.push((record.reason, self.describe(&record, clocks)));
        }
        let mut kept = self.auditor.lock();
        if kept.mode == AuditName::Log {
            let mut lines = records.iter().filter(|(reason, _)| !reason.is_intended());
            lines.by_ref().take(LINES).for_each(|(_, record)| record.log());
            let rest: Vec<_> = lines.map(|(_, record)| record.packets).collect();
            if !rest.is_empty() {
                let (records, packets) = (rest.len(), rest.iter().sum::<u64>());
                tracing::info!(target: "audit", records, packets, "dropped, for more reasons than there are lines for; adit drops --recent has them");
            }
        }
        for (_, record) in records {
            self.events.tell_drop(&record);
            kept.keep(record);
        }
    }

    /// The newest records, the oldest of them first; of one reason, if there is one.
    pub fn recent_drops(&self, reason: Option<DropReason>) -> Vec<DropRecord> {
        self.collect_drops();
        let kept = self.auditor.lock();
        let wanted = |record: &&DropRecord| reason.is_none_or(|reason| reason.name() == record.reason);
        let mut records: Vec<_> = kept.recent.iter().filter(wanted).cloned().collect();
        records.sort_by(|one, other| one.time.cmp(&other.time));
        records
    }

    fn describe(&self, record: &Record, (wall, worker): (Duration, u64)) -> DropRecord {
        let ago = Duration::from_millis(worker.saturating_sub(record.at));
        let interface = |port: PortId| match port {
            PortId::HOST | PortId::HOST_IN_FRAGMENTS => Some(format!("{}0", self.engine.instance)),
            _ => self.interfaces.get(usize::from(port.0)).map(|interface| interface.name.clone()),
        };
        let mut told = DropRecord::of(record, utc(wall.saturating_sub(ago)), interface);
        if record.reason == DropReason::SelectorMismatch
            && let Some(Seen { tunnel: Some(tunnel), spi: Some(spi), direction: Direction::Inbound, .. }) =
                &record.seen
        {
            told.selectors = self.selectors_of(tunnel, *spi);
        }
        told
    }

    /// RFC 4301 section 5.2 step 4: "the selector values from the relevant SAD entry".
    fn selectors_of(&self, tunnel: &str, spi: Spi) -> Vec<String> {
        let live = self.live();
        let mut all = live.tunnel(tunnel).into_iter().flat_map(|tunnel| tunnel.all_inbound());
        let selectors = all.find(|live| live.sa.spec.sa.spi == spi).and_then(|live| live.sa.selectors.get());
        let list = selectors.iter().flat_map(|selectors| &selectors.list);
        list.take(SELECTORS).map(selector_text).collect()
    }
}

/// What the date is said to be: for people to read, and for nothing else.
fn wall_clock() -> Duration {
    let now = clock_gettime(ClockId::Realtime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// A time since 1970 as RFC 3339 writes it. Days are counted from 1 March of year 0, so that leap days come last.
pub(crate) fn utc(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    // 400 years have 146,097 days, whichever they are.
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", time.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected by date(1): `date -u -d @SECONDS +%FT%T`.
    #[test]
    fn times_are_written_as_date_writes_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (68_169_599, "1972-02-28T23:59:59"),
            (68_169_600, "1972-02-29T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_164_800, "2024-02-29T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_795_664_437, "2026-11-26T03:40:37"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (4_107_542_399, "2100-02-28T23:59:59"),
            (253_402_300_799, "9999-12-31T23:59:59"),
        ] {
            assert_eq!(utc(Duration::from_millis(seconds * 1_000 + 7)), format!("{text}.007Z"));
        }
    }

    #[test]
    fn a_flood_of_one_reason_pushes_out_none_of_another() {
        let mut kept = Kept { mode: AuditName::Recent, recent: VecDeque::new() };
        let record =
            |reason: &str, packets| DropRecord { reason: reason.into(), packets, ..Default::default() };
        for packets in 0..10 {
            kept.keep(record("rare", packets));
        }
        for packets in 0..10_000 {
            kept.keep(record("flood", packets));
        }
        assert_eq!(kept.recent.len(), RECENT);
        let of = |reason: &str| -> Vec<u64> {
            let records = kept.recent.iter().filter(|record| record.reason == reason);
            records.map(|record| record.packets).collect()
        };
        assert_eq!(of("rare"), (0..10).collect::<Vec<_>>());
        assert_eq!(of("flood"), (10_000 - (RECENT as u64 - 10)..10_000).collect::<Vec<_>>());
    }
}
