//! What the daemon tells of itself. Workers are never asked: every figure is read from atomics that they write.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::pipeline::{DropReason, IcmpRules, WorkerCounters};
use crate::policy::Path;
use crate::sa::Lease;
use crate::sa::inbound::SaCounters;
use crate::sa::lifetime::{self, Lifetime, Limit, Limits};

/// A named counter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counter {
    /// Name.
    pub name: String,
    /// Value.
    pub value: u64,
}

/// A drop reason that counted something, or all of them on request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drop {
    /// [`DropReason::name`].
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// The counter of /proc/net/xfrm_stat that means the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xfrm_stat: Option<String>,
    /// One sentence.
    pub explanation: String,
}

/// An interface that adit steers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InterfaceReport {
    /// Name.
    pub name: String,
    /// "protected" or "unprotected".
    pub side: String,
    /// How the steering program is attached: "native", "skb", "vlan" (to the interface it is on), or "detached" while the
    /// interface is gone.
    pub mode: String,
    /// Up, as the kernel sees it.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Receive queues bound.
    pub queues: u32,
    /// XDP statistics of its sockets and whatever else its driver says.
    pub counters: Vec<Counter>,
}

/// The gateway's own way into its tunnels.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostReport {
    /// The device.
    pub device: String,
    /// Up, as the kernel sees it.
    pub up: bool,
    /// Prefixes that the gateway itself reaches through it.
    pub routes: Vec<String>,
}

/// A worker.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Number, from 0.
    pub worker: u32,
    /// The core it runs on.
    pub core: u32,
    /// Frames taken from receive rings.
    pub received: u64,
    /// Frames the gateway wrote itself.
    pub originated: u64,
    /// Frames completed by the kernel.
    pub transmitted: u64,
    /// Packets delivered to the host.
    pub delivered: u64,
    /// Fragments put together, but one of each datagram.
    pub absorbed: u64,
    /// Dropped, all reasons.
    pub dropped: u64,
    /// Frames in rings and queues, and fragments that wait for others.
    pub in_flight: u64,
    /// Packets sealed in ESP or AH.
    pub sealed: u64,
    /// Packets out of ESP or AH, verified and delivered.
    pub opened: u64,
    /// Forwarded in clear under a BYPASS policy.
    pub bypassed: u64,
    /// Opened or dropped, with ECN fields that no tunnel makes (RFC 6040 section 4.2).
    pub ecn_suspect: u64,
    /// Drops, in the order of [`DropReason::ALL`].
    #[serde(skip)]
    pub drops: Vec<u64>,
}

impl WorkerReport {
    /// Reads a worker's counters.
    pub fn read(worker: u32, core: u32, in_flight: u64, counters: &WorkerCounters) -> Self {
        let drops: Vec<u64> = counters.dropped.iter().map(load).collect();
        Self {
            worker,
            core,
            received: load(&counters.received),
            originated: load(&counters.originated),
            transmitted: load(&counters.transmitted),
            delivered: load(&counters.delivered),
            absorbed: load(&counters.absorbed),
            dropped: drops.iter().sum(),
            in_flight,
            sealed: load(&counters.sealed),
            opened: load(&counters.opened),
            bypassed: load(&counters.bypassed),
            ecn_suspect: load(&counters.ecn_suspect),
            drops,
        }
    }
}

/// What the datapath tells of itself; made by the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DatapathReport {
    /// Interfaces, in the order of the configuration.
    pub interfaces: Vec<InterfaceReport>,
    /// The host path, if there is one.
    pub host: Option<HostReport>,
    /// Workers, by number.
    pub workers: Vec<WorkerReport>,
    /// Outcomes counted by the kernel hooks.
    pub steering: Vec<Counter>,
    /// What the operator should know (partial checksums seen, skb mode chosen …).
    pub warnings: Vec<String>,
}

/// `Status`
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its instance.
    pub instance: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Grows with every change.
    pub generation: u64,
    /// What becomes of packets that no policy means.
    pub default: String,
    /// Tunnels.
    pub tunnels: u64,
    /// Inbound SAs.
    pub inbound_sas: u64,
    /// Outbound SAs.
    pub outbound_sas: u64,
    /// Policies.
    pub policies: u64,
    /// Interfaces.
    pub interfaces: Vec<InterfaceReport>,
    /// The host path, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReport>,
    /// What works but should not be, and what the operator has to do.
    pub warnings: Vec<String>,
}

/// `Stats`
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// One a worker.
    pub workers: Vec<WorkerReport>,
    /// Sums over all workers.
    pub total: Vec<Counter>,
    /// Outcomes counted by the kernel hooks.
    pub steering: Vec<Counter>,
}

/// An SA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SaReport {
    /// Its tunnel.
    pub tunnel: String,
    /// "in" or "out".
    pub direction: String,
    /// SPI, as 0x00001001.
    pub spi: String,
    /// "esp" or "ah".
    pub protocol: String,
    /// "tunnel" or "transport".
    pub mode: String,
    /// The peer's port, where ESP is in UDP: outbound as last seen, inbound as set up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_port: Option<u16>,
    /// Our port of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_udp_port: Option<u16>,
    /// Our endpoint.
    pub local: String,
    /// The peer's endpoint; where ESP is in UDP, outbound as last seen.
    pub remote: String,
    /// Encryption algorithm.
    pub encryption: String,
    /// Authentication algorithm.
    pub authentication: String,
    /// ICV bytes.
    pub icv_length: u32,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Anti-replay window in packets; inbound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_window: Option<u32>,
    /// Highest sequence number received, or last one sent.
    pub sequence: u64,
    /// No number above it is used before stable storage says so; a start after a crash begins above it. Absent where
    /// numbers have no lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<u64>,
    /// The path's MTU outside, as an ICMP error told lately; outbound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u32>,
    /// Packets opened or sealed.
    pub packets: u64,
    /// Bytes of ESP or AH.
    pub bytes: u64,
    /// Dropped as replayed.
    pub replayed: u64,
    /// Dropped for a wrong ICV.
    pub icv_failed: u64,
    /// Dropped for another reason once the SA was found.
    pub refused: u64,
    /// Another one took over from it: it only receives, until the peer has gone over too.
    #[serde(default)]
    pub retiring: bool,
    /// "good", "ending" past a soft limit, or "over" past a hard one: then it carries nothing.
    pub lifetime: String,
    /// Seconds since it was set up.
    pub age_seconds: u64,
    /// It should be replaced from here on, in packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_packets_soft: Option<u64>,
    /// It ends here, in packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_packets_hard: Option<u64>,
    /// It should be replaced from here on, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_bytes_soft: Option<u64>,
    /// It ends here, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_bytes_hard: Option<u64>,
    /// It should be replaced from here on, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds_soft: Option<u64>,
    /// It ends here, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds_hard: Option<u64>,
    /// Names the key, not telling it: the first 8 digits of its fingerprint on this host.
    pub key: String,
    /// Weak algorithms, replay protection off, a lease at its end.
    pub warnings: Vec<String>,
    /// What it may carry, as "10.1.0.0/16 - 10.2.0.0/16 tcp"; in `SaShow` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<String>,
}

impl SaReport {
    pub(super) fn live(&mut self, lifetime: &Lifetime, limits: &Limits, seconds: Limit) {
        self.lifetime = match (lifetime.is_over(), lifetime.is_ending()) {
            (true, _) => "over",
            (false, true) => "ending",
            (false, false) => "good",
        }
        .into();
        let Limits { packets, bytes } = limits;
        let written = |limit| (limit != lifetime::NONE).then_some(limit);
        (self.lifetime_packets_soft, self.lifetime_packets_hard) =
            (written(packets.soft), written(packets.hard));
        (self.lifetime_bytes_soft, self.lifetime_bytes_hard) = (written(bytes.soft), written(bytes.hard));
        (self.lifetime_seconds_soft, self.lifetime_seconds_hard) =
            (written(seconds.soft), written(seconds.hard));
    }

    /// A peer that never gets through has something else than we do: most often the 96 bits of SHA-256 that Linux sent
    /// before 2.6.33, which with a block cipher are not even a length that a packet can have.
    pub(super) fn authentic(&mut self, was_authentic: bool) {
        if !was_authentic && self.icv_failed + self.refused > 0 {
            self.warnings.push(
                "no packet of it was ever authentic: the peer has another key, algorithm or ICV length"
                    .into(),
            );
        }
    }

    /// How far numbers may go; `wanted` is the highest one used or waited for.
    pub(super) fn lease(&mut self, lease: Option<&Lease>, wanted: u64) {
        if let Some(lease) = lease {
            let ceiling = lease.ceiling();
            self.ceiling = Some(ceiling);
            if wanted >= ceiling {
                self.warnings.push("lease exhausted: waiting for the state directory".into());
            }
        }
    }

    /// What the path is told to be like, at `now` of the workers' clock.
    pub(super) fn path(&mut self, path: &Path, rules: &IcmpRules, now: u64) {
        self.path_mtu = path.mtu(now, rules.path_mtu_ageing);
        if let Some((trouble, told)) = path.trouble() {
            let ago = now.saturating_sub(told);
            // As long as a path MTU would hold.
            if ago < rules.path_mtu_ageing {
                let seconds = ago / 1_000;
                self.warnings.push(format!("an ICMP error said {:?} {seconds} s ago", trouble.name()));
            }
        }
    }

    pub(super) fn count(&mut self, counters: &SaCounters) {
        self.packets = load(&counters.packets);
        self.bytes = load(&counters.bytes);
        self.replayed = load(&counters.replayed);
        self.icv_failed = load(&counters.icv_failed);
        self.refused = load(&counters.refused);
    }
}

/// A policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyReport {
    /// Place in the order, from 0.
    pub position: u64,
    /// Name.
    pub name: String,
    /// "protect", "bypass" or "discard".
    pub action: String,
    /// Its tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// "both", "in" or "out".
    pub direction: String,
    /// Selectors, as "10.1.0.0/16 - 10.2.0.0/16 tcp".
    pub selectors: Vec<String>,
    /// Packets it decided.
    pub packets: u64,
}

/// The answer to a change.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Change {
    /// The new generation.
    pub generation: u64,
    /// SAs set up.
    pub added: u64,
    /// SAs taken down.
    pub removed: u64,
    /// SAs left as they were.
    pub kept: u64,
    /// Of those that others took over from, the ones that still receive until the peer has gone over too.
    #[serde(default)]
    pub retiring: u64,
    /// True once no worker can hold a removed key any more; false when one did not answer in time.
    pub wiped: bool,
    /// What works but should not be.
    pub warnings: Vec<String>,
}

/// Drops by reason, summed over workers; with `all`, the ones that counted nothing too.
pub fn drops(workers: &[WorkerReport], all: bool) -> Vec<Drop> {
    DropReason::ALL
        .iter()
        .enumerate()
        .map(|(index, reason)| Drop {
            reason: reason.name().into(),
            packets: workers.iter().filter_map(|worker| worker.drops.get(index)).sum(),
            xfrm_stat: reason.xfrm_stat().map(Into::into),
            explanation: reason.explain().into(),
        })
        .filter(|drop| all || drop.packets > 0)
        .collect()
}

/// What only who has a key can send, and no right peer does: for somebody to look at.
pub fn alarms(workers: &[WorkerReport]) -> Vec<String> {
    use DropReason::{BadPadLength, BadPadding, InnerMalformed, NextHeader};
    drops(workers, false)
        .into_iter()
        .filter(|drop| {
            [BadPadLength, BadPadding, NextHeader, InnerMalformed].map(DropReason::name).contains(&&*drop.reason)
        })
        .map(|Drop { reason, packets, .. }| {
            format!("a peer sealed {packets} packets that are wrong inside ({reason}): adit drops --recent --reason {reason} tells which peer")
        })
        .collect()
}

/// Sums over workers.
pub fn total(workers: &[WorkerReport]) -> Vec<Counter> {
    type Column = (&'static str, fn(&WorkerReport) -> u64);
    let columns: [Column; 11] = [
        ("received", |worker| worker.received),
        ("originated", |worker| worker.originated),
        ("transmitted", |worker| worker.transmitted),
        ("delivered", |worker| worker.delivered),
        ("absorbed", |worker| worker.absorbed),
        ("dropped", |worker| worker.dropped),
        ("in_flight", |worker| worker.in_flight),
        ("sealed", |worker| worker.sealed),
        ("opened", |worker| worker.opened),
        ("bypassed", |worker| worker.bypassed),
        ("ecn_suspect", |worker| worker.ecn_suspect),
    ];
    columns
        .iter()
        .map(|(name, column)| Counter { name: (*name).into(), value: workers.iter().map(column).sum() })
        .collect()
}

pub(super) fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_seals_what_is_wrong_inside_is_told_of() {
        let counters = WorkerCounters::default();
        let dropped = |reason: DropReason| &counters.dropped[reason as usize];
        for anybody in
            [DropReason::IcvFailed, DropReason::ReplayDuplicate, DropReason::NoState, DropReason::Dummy]
        {
            dropped(anybody).store(1_000, Ordering::Relaxed);
        }
        let told = || alarms(&[0, 1].map(|worker| WorkerReport::read(worker, worker, 0, &counters)));
        assert_eq!(told(), Vec::<String>::new());
        dropped(DropReason::BadPadLength).store(2, Ordering::Relaxed);
        let told = told();
        assert!(told.len() == 1 && told[0].starts_with("a peer sealed 4 packets"), "{told:?}");
        assert!(told[0].contains("adit drops --recent --reason bad_pad_length"), "{told:?}");
    }
}
