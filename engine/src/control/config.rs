//! The configuration file, as it is written: TOML with kebab-case keys, nothing unknown accepted.
//!
//! The same tables travel over the control socket with `_` for `-` (varlink names have no dashes), so a
//! tunnel or a policy has one shape. What the values mean is decided in [`super::check`].

mod document;
mod values;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use document::{Document, schema};
pub(super) use document::{join, with_missing};
pub use values::{
    ActionName, AhPaddingName, AuditName, AuthenticationName, DestinationOptionsName, DfName, DirectionName,
    DummyWhenName, EcnName, EncryptionName, FallbackName, FragmentationName, IcmpErrorName, ModeName,
    ProtocolName, Scalar, Secret, SideName, WorkersName, XdpMode,
};

/// The whole file.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// The engine as a whole.
    pub engine: EngineTable,
    /// Interfaces that adit steers; at least one of each side.
    pub interface: Vec<InterfaceTable>,
    /// Named cryptographic profiles.
    pub profile: BTreeMap<String, ProfileTable>,
    /// Tunnels with manual keys.
    pub tunnel: Vec<TunnelTable>,
    /// Policies, in order: the first that means a packet decides.
    pub policy: Vec<PolicyTable>,
}

/// `[engine]`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EngineTable {
    /// Names the pinned hooks of this daemon; default "adit".
    pub instance: Option<String>,
    /// Cores to run workers on; default: all that the process may use.
    pub cores: Option<Vec<u32>>,
    /// A bpffs that outlives the process; default "/sys/fs/bpf".
    pub bpffs: Option<String>,
    /// Where sequence leases of manual keys are recorded; default "/var/lib/adit".
    pub state_dir: Option<String>,
    /// The control socket; default "/run/adit/adit.sock".
    pub socket: Option<String>,
    /// Group whose members may read over the socket; default: root only.
    pub socket_group: Option<String>,
    /// What happens to packets that no policy means: "kernel" (default) or "discard".
    pub default: Option<FallbackName>,
    /// Allow DES, 3DES, MD5, SHA-1 and DH groups 1, 2, 5; default false.
    pub allow_legacy: Option<bool>,
    /// How the steering program attaches: "auto" (default), "native" or "skb".
    pub xdp_mode: Option<XdpMode>,
    /// Lower TCP MSS to what a tunnel carries; default true.
    pub clamp_mss: Option<bool>,
    /// The gateway itself speaks through its tunnels, by a device named after the instance ("adit0"); default false.
    pub host_path: Option<bool>,
    /// Records of dropped packets: "recent" (default; the newest are kept for `adit drops --recent`), "log" (they are also
    /// logged, a line a second and reason), or "off".
    pub audit: Option<AuditName>,
    /// Fragments of ESP and AH.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reassembly: Option<ReassemblyTable>,
    /// ICMP errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpTable>,
}

/// `[engine.icmp]`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IcmpTable {
    /// Which errors from outside about the gateway's own ESP and AH are believed; default: all four.
    pub accept: Option<Vec<IcmpErrorName>>,
    /// Whoever sends from inside what no policy lets out is told so, some at a time; default false.
    pub tell_discarded: Option<bool>,
    /// A smaller path MTU over IPv4 is not believed, 68 to 65535 bytes; default 576.
    pub path_mtu_floor_ipv4: Option<u64>,
    /// The same over IPv6, 1280 to 65535; default 1280.
    pub path_mtu_floor_ipv6: Option<u64>,
    /// How long a path MTU holds after it was told, 1 to 86400; default 600.
    pub path_mtu_seconds: Option<u64>,
}

/// `[engine.reassembly]`: fragments of ESP and AH to the gateway. A limit that is reached costs the oldest.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReassemblyTable {
    /// Bytes for all that wait, 65536 to 1073741824; default 4194304. 0 switches reassembly off: fragments are dropped.
    pub memory_bytes: Option<u64>,
    /// Datagrams of one source that wait, 1 to 65536; default 64.
    pub datagrams_per_source: Option<u64>,
    /// Fragments of one datagram, 2 to 128; default 32.
    pub fragments_per_datagram: Option<u64>,
    /// Seconds from a datagram's first fragment to its last, 1 to 60; default 5.
    pub timeout_seconds: Option<u64>,
}

/// `[[interface]]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InterfaceTable {
    /// Name in the kernel.
    pub name: String,
    /// Inside or outside.
    pub side: SideName,
    /// Overrides `engine.xdp-mode` here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<XdpMode>,
    /// A VLAN: the interface that its frames come and go by, tagged. The name is the kernel's VLAN device, which has its
    /// addresses, routes and neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Its identifier on `parent`, as 100 (802.1Q), or outer (802.1ad) and inner, as [100, 20].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanTable>,
}

/// `interface.vlan`
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a VLAN as 100, or outer and inner as [100, 20]")]
pub enum VlanTable {
    /// One tag.
    One(u32),
    /// Outer and inner tag.
    Two([u32; 2]),
}

/// `[profile.NAME]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileTable {
    /// Encryption algorithm.
    pub encryption: EncryptionName,
    /// Authentication algorithm; "none" (default) beside an AEAD only.
    #[serde(default)]
    pub authentication: Option<AuthenticationName>,
    /// ICV bytes; default: the algorithm's own.
    #[serde(default)]
    pub icv_length: Option<u8>,
    /// Diffie-Hellman group for IKE; manual keys do not use it.
    #[serde(default)]
    pub dh_group: Option<String>,
    /// Extended (64-bit) sequence numbers; default true.
    #[serde(default)]
    pub esn: Option<bool>,
    /// Anti-replay window in packets, 32 to 65536; default 1024. 0 switches the protection off.
    #[serde(default)]
    pub replay_window: Option<u32>,
    /// Packets after which an SA should be replaced; default: three quarters of the hard limit, or what is safe. Up to a tenth earlier, by chance.
    #[serde(default)]
    pub lifetime_packets_soft: Option<u64>,
    /// Packets after which an SA stops; outbound counted by sequence numbers; default: what is safe for the algorithm.
    #[serde(default)]
    pub lifetime_packets_hard: Option<u64>,
    /// Bytes of ESP after which an SA should be replaced; default: three quarters of the hard limit, or what is safe. Up to a tenth earlier, by chance.
    #[serde(default)]
    pub lifetime_bytes_soft: Option<u64>,
    /// Bytes of ESP after which an SA stops; default: what is safe for the algorithm.
    #[serde(default)]
    pub lifetime_bytes_hard: Option<u64>,
    /// Age at which an SA should be replaced; default: three quarters of the hard limit. Up to a tenth earlier, by chance.
    #[serde(default)]
    pub lifetime_seconds_soft: Option<u64>,
    /// Age at which an SA stops; default: none.
    #[serde(default)]
    pub lifetime_seconds_hard: Option<u64>,
}

/// `[[tunnel]]`
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TunnelTable {
    /// Unique name.
    pub name: String,
    /// Our endpoint.
    pub local: String,
    /// The peer's endpoint, of the same IP version.
    pub remote: String,
    /// "esp" (default), or "ah", which authenticates and does not encrypt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ProtocolName>,
    /// "tunnel" (default), or "transport" between the endpoints themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ModeName>,
    /// Padding of AH over IPv4: "rfc4302" (default) or "linux", whose states pad to 8 bytes without `align4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ah_padding: Option<AhPaddingName>,
    /// Transport mode over IPv6: destination options "after" ESP or AH (default) or "before" it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_options: Option<DestinationOptionsName>,
    /// ESP in UDP (RFC 3948) to this port of the peer's, mostly 4500; where a NAT gives the peer another, or another
    /// address, it is followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_port: Option<u16>,
    /// Our port of that; 4500 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_udp_port: Option<u16>,
    /// Seconds without a packet to the peer after which a NAT is sent a keepalive; 20 without, 0 for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_keepalive_seconds: Option<u32>,
    /// A profile; algorithms written here override its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionName>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<AuthenticationName>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icv_length: Option<u8>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub esn: Option<bool>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_window: Option<u32>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_packets_soft: Option<u64>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_packets_hard: Option<u64>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_bytes_soft: Option<u64>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_bytes_hard: Option<u64>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds_soft: Option<u64>,
    /// See the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds_hard: Option<u64>,
    /// Outer DSCP: "copy" (default) or 0 to 63.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<Scalar>,
    /// Outer ECN field: "copy" (default), or "clear" for a peer that does not propagate congestion marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecn: Option<EcnName>,
    /// Outer DF bit: "copy" (default), "set" or "clear".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub df: Option<DfName>,
    /// What may be fragmented and is too large is fragmented "before" it is sealed (default), each piece a packet of its
    /// own, or "after", when the peer has to put ESP together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fragmentation: Option<FragmentationName>,
    /// Outer TTL or hop limit, 1 to 255; default 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Who numbers and transmits: "one" worker (default, keeps the order) or "shared" by all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersName>,
    /// Overrides `engine.clamp-mss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamp_mss: Option<bool>,
    /// Another tunnel that this one's packets go through: AH over ESP, or a tunnel in a tunnel; at most 4 in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
    /// Traffic-flow confidentiality of an ESP tunnel: "off" (default), "mtu" (every packet as large as the tunnel
    /// carries), or a number that sizes are rounded up to a multiple of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tfc_padding: Option<Scalar>,
    /// Dummy packets a second, 1 to 10000; default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dummy_rate: Option<u32>,
    /// Bytes in a dummy packet, as "512" or "64-1400", each by chance; default: up to what the tunnel carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dummy_size: Option<Scalar>,
    /// "idle" (default): as far as real packets do not make up the rate; "always": beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dummy_when: Option<DummyWhenName>,
    /// The SA that the peer sends with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<SaTable>,
    /// The SA that we send with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<SaTable>,
}

/// `[tunnel.inbound]` and `[tunnel.outbound]`
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaTable {
    /// SPI, 0x100 or above.
    pub spi: Scalar,
    /// Encryption key, the AEAD's salt at its end: "hex:…" or "file:/path" (mode 0600).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_key: Option<Secret>,
    /// Authentication key, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication_key: Option<Secret>,
    /// This key was never used: begin a record of its numbers. In requests (`adit sa add`) only: a line that stays in
    /// the configuration would say so again when the record is lost; there, `adit key declare-fresh` says it once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh_key: Option<bool>,
    /// Last sequence number sent or received; `adit offline` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sequence: Option<Scalar>,
}

/// `[[policy]]`
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyTable {
    /// Unique name.
    pub name: String,
    /// What to do with the packet.
    pub action: ActionName,
    /// The tunnel that a "protect" policy sends through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// Addresses on the protected side: addresses, prefixes, ranges; default any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Vec<String>>,
    /// Addresses behind the peer; default any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Vec<String>>,
    /// Next-layer protocol, name or number; default "any".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Scalar>,
    /// Ports on the protected side, as "80" or "1000-2000"; needs protocol tcp, udp or sctp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_ports: Option<Scalar>,
    /// Ports on the peer's side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_ports: Option<Scalar>,
    /// ICMP type and code, as "8/0"; needs protocol icmp or icmpv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Scalar>,
    /// The direction it speaks for: "both" (default), "in" or "out".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<DirectionName>,
}
