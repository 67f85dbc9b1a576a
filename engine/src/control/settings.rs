//! What a configuration means once it has been checked: typed, complete, with every default filled in.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::config::{ActionName, AuditName, ProfileTable, XdpMode};
use super::lifetimes;
use crate::crypto::Suite;
use crate::crypto::key::KeyMaterial;
use crate::pipeline::{IcmpRules, reassembly};
use crate::policy::Fragmentation;
use crate::policy::spd::{Fallback, MOST_NESTED};
use crate::policy::tfc::{Dummies, DummyStream, Padding, Tfc};
use crate::route::{Side, Vlan};
use crate::sa::lifetime::{Limit, Limits};
use crate::sa::selector::Selector;
use crate::sa::spec::{InboundSpec, Mode, OutboundSpec, Protocol, SaSpec, UdpPorts, Workers};
use crate::transform::ecn::Ecn;
use crate::transform::tunnel::{DontFragment, Dscp};
use crate::wire::{Spi, protocol};

/// A checked configuration.
pub struct Settings {
    /// The engine as a whole.
    pub engine: Engine,
    /// Interfaces to steer.
    pub interfaces: Vec<Interface>,
    /// Profiles by name.
    pub profiles: BTreeMap<String, ProfileTable>,
    /// Tunnels with their keys.
    pub tunnels: Vec<TunnelRequest>,
    /// Policies in order.
    pub policies: Vec<PolicySettings>,
    /// What works but should not be.
    pub warnings: Vec<String>,
}

/// The engine as a whole.
#[derive(Clone, PartialEq, Debug)]
pub struct Engine {
    /// Names the pinned hooks.
    pub instance: String,
    /// Cores for workers; `None` for all that the process may use.
    pub cores: Option<Vec<u32>>,
    /// Where hooks are pinned.
    pub bpffs: PathBuf,
    /// Where sequence leases are recorded.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Group whose members may read over the socket.
    pub socket_group: Option<String>,
    /// For packets that no policy means.
    pub fallback: Fallback,
    /// DES, 3DES, MD5, SHA-1 and old groups are allowed.
    pub allow_legacy: bool,
    /// How the steering program attaches.
    pub xdp_mode: XdpMode,
    /// The default of `Tunnel::clamp_mss`.
    pub clamp_mss: bool,
    /// The gateway itself speaks through its tunnels.
    pub host_path: bool,
    /// Fragments of ESP and AH.
    pub reassembly: reassembly::Limits,
    /// What to make of ICMP errors.
    pub icmp: IcmpRules,
    /// What becomes of records of dropped packets, at first.
    pub audit: AuditName,
}

/// An interface to steer.
#[derive(Clone, PartialEq, Debug)]
pub struct Interface {
    /// Name in the kernel.
    pub name: String,
    /// Inside or outside.
    pub side: Side,
    /// How the steering program attaches here.
    pub mode: XdpMode,
    /// A VLAN: the place of its interface among them, and its tags there.
    pub vlan: Option<Vlan>,
}

/// A tunnel without its keys: equal settings and equal keys mean an unchanged SA.
#[derive(Clone, PartialEq, Debug)]
pub struct TunnelSettings {
    /// Unique name.
    pub name: Arc<str>,
    /// Our endpoint.
    pub local: IpAddr,
    /// The peer's endpoint.
    pub remote: IpAddr,
    /// ESP or AH.
    pub protocol: Protocol,
    /// Tunnel or transport.
    pub mode: Mode,
    /// Where ESP is in UDP.
    pub udp: Option<UdpPorts>,
    /// Seconds without a packet after which a keepalive is sent, if ESP is in UDP; 0 for never.
    pub nat_keepalive_seconds: u32,
    /// Algorithms.
    pub suite: Suite,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Anti-replay window in packets, 0 = off.
    pub replay_window: u32,
    /// How much its SAs may carry; each has its soft limits a little earlier.
    pub limits: Limits,
    /// How many seconds they live, likewise.
    pub seconds: Limit,
    /// Outer TTL.
    pub ttl: u8,
    /// Outer DSCP.
    pub dscp: Dscp,
    /// Outer ECN.
    pub ecn: Ecn,
    /// Outer DF.
    pub dont_fragment: DontFragment,
    /// Who numbers and transmits.
    pub workers: Workers,
    /// Lower TCP MSS.
    pub clamp_mss: bool,
    /// When what is too large is fragmented.
    pub fragmentation: Fragmentation,
    /// Traffic-flow confidentiality.
    pub tfc: TfcSettings,
    /// The tunnel that its packets go through.
    pub through: Option<Arc<str>>,
}

/// What a tunnel does against who watches sizes and times.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TfcSettings {
    /// Padding of every packet.
    pub padding: Padding,
    /// Packets that mean nothing.
    pub dummies: Option<Dummies>,
}

impl TfcSettings {
    /// As workers use it, from the beginning.
    pub fn runtime(&self) -> Tfc {
        Tfc { padding: self.padding, dummies: self.dummies.clone().map(DummyStream::new) }
    }
}

/// A tunnel to set up.
pub struct TunnelRequest {
    /// Path of its table, for messages.
    pub field: String,
    /// All but keys.
    pub settings: TunnelSettings,
    /// The SA that the peer sends with.
    pub inbound: Option<SaRequest>,
    /// The SA that we send with.
    pub outbound: Option<SaRequest>,
}

/// One direction of a tunnel to set up.
pub struct SaRequest {
    /// Path of its table, for messages.
    pub field: String,
    /// SPI.
    pub spi: Spi,
    /// Keys, of the right length and not weak.
    pub keys: KeyMaterial,
    /// The operator says that nobody ever used the key.
    pub fresh: bool,
    /// Where an offline run starts; 0 otherwise.
    pub last_sequence: u64,
}

/// A policy.
#[derive(Clone, Debug)]
pub struct PolicySettings {
    /// Path of its table, for messages.
    pub field: String,
    /// Unique name.
    pub name: Arc<str>,
    /// What to do.
    pub action: ActionName,
    /// The tunnel of a PROTECT policy.
    pub tunnel: Option<Arc<str>>,
    /// Speaks for inbound packets.
    pub inbound: bool,
    /// Speaks for outbound packets.
    pub outbound: bool,
    /// Which packets.
    pub selectors: Vec<Selector>,
}

impl PolicySettings {
    /// The same policy, wherever it was written.
    pub fn same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.action == other.action
            && self.tunnel == other.tunnel
            && (self.inbound, self.outbound) == (other.inbound, other.outbound)
            && self.selectors == other.selectors
    }
}

impl TunnelSettings {
    /// The field of the key that an SA is known by: its cipher's, or its hash's where nothing is encrypted.
    pub(super) fn key_field(&self) -> &'static str {
        if self.suite.encryption_key_length() == 0 { "authentication-key" } else { "encryption-key" }
    }

    /// What its own packets are to a router: ESP, AH or UDP.
    pub(super) fn carrier(&self) -> u8 {
        if self.udp.is_some() { protocol::UDP } else { self.protocol.number() }
    }

    /// What both SAs depend on.
    fn wire_part(&self) -> impl PartialEq + use<> {
        (self.local, self.remote, self.protocol, self.mode, self.udp, self.suite, self.esn)
    }

    /// What an inbound SA depends on.
    pub(super) fn inbound_part(&self) -> impl PartialEq + use<> {
        (self.wire_part(), self.replay_window, self.limits, self.seconds)
    }

    /// What an outbound SA depends on.
    pub(super) fn outbound_part(&self) -> impl PartialEq + use<> {
        let header = (self.ttl, self.dscp, self.ecn, self.dont_fragment, self.nat_keepalive_seconds);
        (self.wire_part(), self.workers, header, self.limits, self.seconds)
    }

    /// The highest sequence number of its SAs.
    pub(super) fn sequence_limit(&self) -> u64 {
        if self.esn { u64::MAX } else { u64::from(u32::MAX) }
    }

    fn sa(&self, spi: Spi, selectors: Vec<Selector>) -> SaSpec {
        SaSpec {
            tunnel: self.name.clone(),
            spi,
            protocol: self.protocol,
            mode: self.mode,
            udp: self.udp,
            suite: self.suite,
            local: self.local,
            remote: self.remote,
            esn: self.esn,
            selectors,
            limits: Limits {
                packets: lifetimes::jittered(self.limits.packets),
                bytes: lifetimes::jittered(self.limits.bytes),
            },
        }
    }

    /// The request for the inbound SA.
    pub fn inbound_spec(&self, spi: Spi, selectors: Vec<Selector>, last_sequence: u64) -> InboundSpec {
        InboundSpec { sa: self.sa(spi, selectors), replay_window: self.replay_window, last_sequence }
    }

    /// The request for the outbound SA.
    pub fn outbound_spec(&self, spi: Spi, selectors: Vec<Selector>, last_sequence: u64) -> OutboundSpec {
        OutboundSpec {
            sa: self.sa(spi, selectors),
            workers: self.workers,
            ttl: self.ttl,
            dscp: self.dscp,
            ecn: self.ecn,
            dont_fragment: self.dont_fragment,
            keepalive_seconds: self.nat_keepalive_seconds,
            last_sequence,
        }
    }
}

/// The places of tunnels, each with the name of the one that it goes through, so that this one comes first; otherwise
/// in their own order. What goes round in a circle is [`super::consistent`]'s to refuse.
pub fn outermost_first(tunnels: &[(&str, Option<&str>)]) -> Vec<usize> {
    let mut order: Vec<_> = (0..tunnels.len()).collect();
    if tunnels.iter().any(|(_, through)| through.is_some()) {
        let through: HashMap<&str, &str> =
            tunnels.iter().filter_map(|&(name, through)| Some((name, through?))).collect();
        let layers = |name| std::iter::successors(Some(name), |name| through.get(name).copied());
        order.sort_by_key(|&place| layers(tunnels[place].0).take(MOST_NESTED + 1).count());
    }
    order
}

/// What inner packets a tunnel's SAs may carry: what its PROTECT policies for that direction mean.
pub fn selectors_of(tunnel: &str, policies: &[PolicySettings], inbound: bool) -> Vec<Selector> {
    policies
        .iter()
        .filter(|policy| policy.tunnel.as_deref() == Some(tunnel))
        .filter(|policy| if inbound { policy.inbound } else { policy.outbound })
        .flat_map(|policy| policy.selectors.iter().copied())
        .collect()
}
