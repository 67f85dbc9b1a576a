//! The configuration file, as it is written: TOML with kebab-case keys, nothing unknown accepted.
//!
//! The same tables travel over the control socket with `_` for `-` (varlink names have no dashes), so a
//! tunnel or a policy has one shape. What the values mean is decided in [`super::check`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue, ValueDeserializer};
use zeroize::Zeroizing;

use super::problem::{Problem, Problems};

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

macro_rules! names {
    ($(#[$meta:meta])* $name:ident { $($variant:ident $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
        #[allow(missing_docs)]
        pub enum $name { $(#[serde(rename = $text)] $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// As users write it.
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|known| known.name() == text).ok_or_else(|| {
                    format!("expected one of {}", [$($text,)*].join(", "))
                })
            }
        }
    };
}

names! {
    /// Encryption algorithms.
    EncryptionName {
        Null "null", Des "des", TripleDes "3des", Aes128Cbc "aes-128-cbc", Aes192Cbc "aes-192-cbc",
        Aes256Cbc "aes-256-cbc", Aes128Ctr "aes-128-ctr", Aes192Ctr "aes-192-ctr", Aes256Ctr "aes-256-ctr",
        Aes128Ccm "aes-128-ccm", Aes192Ccm "aes-192-ccm", Aes256Ccm "aes-256-ccm", Aes128Gcm "aes-128-gcm",
        Aes192Gcm "aes-192-gcm", Aes256Gcm "aes-256-gcm", ChaCha20Poly1305 "chacha20-poly1305",
        Aes128Gmac "aes-128-gmac", Aes192Gmac "aes-192-gmac", Aes256Gmac "aes-256-gmac",
    }
}
names! {
    /// Authentication algorithms.
    AuthenticationName {
        None "none", Md5 "md5", Sha1 "sha1", Sha256 "sha256", Sha384 "sha384", Sha512 "sha512",
        AesXcbc "aes-xcbc", AesCmac "aes-cmac",
    }
}
names! {
    /// What happens to packets that no policy means.
    FallbackName { Kernel "kernel", Discard "discard", }
}
names! {
    /// How the steering program attaches.
    XdpMode { Auto "auto", Native "native", Skb "skb", }
}
names! {
    /// Inside or outside (RFC 4301 section 3.1).
    SideName { Protected "protected", Unprotected "unprotected", }
}
names! {
    /// What a tunnel's SAs protect with.
    ProtocolName { Esp "esp", Ah "ah", }
}
names! {
    /// What they protect (RFC 4301 section 3.3).
    ModeName { Tunnel "tunnel", Transport "transport", }
}
names! {
    /// How AH is padded over IPv4.
    AhPaddingName { Rfc4302 "rfc4302", Linux "linux", }
}
names! {
    /// Where destination options go in transport mode.
    DestinationOptionsName { After "after", Before "before", }
}
names! {
    /// The outer ECN field (RFC 6040 section 4.1).
    EcnName { Copy "copy", Clear "clear", }
}
names! {
    /// The outer DF bit (RFC 4301 section 8.1).
    DfName { Copy "copy", Set "set", Clear "clear", }
}
names! {
    /// A kind of ICMP error.
    IcmpErrorName {
        PacketTooBig "packet-too-big", Unreachable "unreachable", TimeExceeded "time-exceeded",
        ParameterProblem "parameter-problem",
    }
}
names! {
    /// What becomes of records of dropped packets.
    AuditName { Off "off", Recent "recent", Log "log", }
}
names! {
    /// When what is too large is fragmented.
    FragmentationName { Before "before", After "after", }
}
names! {
    /// Who numbers and transmits an outbound SA's packets.
    WorkersName { One "one", Shared "shared", }
}
names! {
    /// When dummy packets are sent.
    DummyWhenName { Idle "idle", Always "always", }
}
names! {
    /// What a policy does.
    ActionName { Protect "protect", Bypass "bypass", Discard "discard", }
}
names! {
    /// Which way a policy looks.
    DirectionName { Both "both", In "in", Out "out", }
}

/// A value that may be written as a number or as text: `4097`, `"0x1001"`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or text")
            }
            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
        }
        deserializer.deserialize_any(NumberOrText)
    }
}

impl JsonSchema for Scalar {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"] })
    }
}

/// Where a key is, or the key itself: wiped on drop, never shown.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes text over.
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Secret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key as \"hex:…\" or \"file:/path\"")
            }
            fn visit_str<E>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret(Zeroizing::new(text.to_owned())))
            }
            fn visit_string<E>(self, text: String) -> Result<Secret, E> {
                Ok(Secret(Zeroizing::new(text)))
            }
        }
        deserializer.deserialize_string(Text)
    }
}

/// For the client's side of the socket only: this is how a key reaches the daemon.
impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Key".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(hex:([0-9a-fA-F]{2})+|file:/.+)$" })
    }
}

/// The JSON schema of the file, with the keys as the file has them.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(File).to_value();
    rename_properties(&mut schema);
    schema
}

fn rename_properties(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(object) => {
            for (key, inner) in object.iter_mut() {
                match (key.as_str(), inner) {
                    ("properties", Value::Object(properties)) => {
                        *properties = std::mem::take(properties)
                            .into_iter()
                            .map(|(name, v)| (kebab(&name), v))
                            .collect();
                        properties.values_mut().for_each(rename_properties);
                    }
                    ("required", Value::Array(names)) => {
                        for name in names {
                            if let Value::String(text) = name {
                                *text = kebab(text);
                            }
                        }
                    }
                    (_, inner) => rename_properties(inner),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(rename_properties),
        _ => {}
    }
}

fn kebab(name: &str) -> String {
    name.replace('_', "-")
}

/// A parsed file that still knows the line of each field.
pub struct Document<'i> {
    text: &'i str,
    root: DeTable<'i>,
}

impl<'i> Document<'i> {
    /// Reads TOML.
    ///
    /// # Errors
    /// Every syntax error with its line.
    pub fn parse(text: &'i str) -> Result<Self, Problems> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Self { text, root: root.into_inner() });
        }
        let problem = |error: toml::de::Error| Problem {
            field: "(file)".into(),
            line: error.span().map(|span| line_of(text, span.start)),
            message: format!("expected TOML: {}", error.message()),
        };
        Err(Problems(errors.into_iter().map(problem).collect()))
    }

    /// The file's tables. Each table is read by itself, so that one mistake does not hide the next table's.
    ///
    /// # Errors
    /// At most one problem for each table, with path and line.
    pub fn file(&self) -> Result<File, Problems> {
        let mut file = File::default();
        let mut problems = Problems::default();
        for (key, value) in &self.root {
            let key: &str = key.get_ref();
            match key {
                "engine" => assign(&mut file.engine, self.one(key.into(), value, &mut problems)),
                "interface" => file.interface = self.many(key, value, &mut problems),
                "tunnel" => file.tunnel = self.many(key, value, &mut problems),
                "policy" => file.policy = self.many(key, value, &mut problems),
                "profile" => match value.get_ref() {
                    DeValue::Table(profiles) => {
                        for (name, profile) in profiles {
                            let name: &str = name.get_ref();
                            if let Some(profile) = self.one(format!("profile.{name}"), profile, &mut problems) {
                                file.profile.insert(name.to_owned(), profile);
                            }
                        }
                    }
                    other => problems.push(key, expected("tables as [profile.NAME]", other)),
                },
                _ => problems.push(
                    key,
                    "expected engine, interface, profile, tunnel or policy, found an unknown table; remove it",
                ),
            }
        }
        self.locate(&mut problems);
        problems.or(file)
    }

    fn many<T: DeserializeOwned>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'i>>,
        problems: &mut Problems,
    ) -> Vec<T> {
        match value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| self.one(format!("{key}[{index}]"), item, problems))
                .collect(),
            other => {
                problems.push(key, expected(&format!("tables as [[{key}]]"), other));
                Vec::new()
            }
        }
    }

    fn one<T: DeserializeOwned>(
        &self,
        path: String,
        value: &Spanned<DeValue<'i>>,
        problems: &mut Problems,
    ) -> Option<T> {
        if !value.get_ref().is_table() {
            problems.push(path, expected("a table", value.get_ref()));
            return None;
        }
        let before = problems.0.len();
        let value = snake(value, &path, problems);
        if problems.0.len() > before {
            return None;
        }
        match serde_path_to_error::deserialize(ValueDeserializer::from(value)) {
            Ok(table) => Some(table),
            Err(error) => {
                let field = join(&path, &kebab(&error.path().to_string()));
                let line = error.inner().span().map(|span| line_of(self.text, span.start));
                let message = dashed(error.inner().message());
                problems.0.push(Problem { field: with_missing(field, &message), line, message });
                None
            }
        }
    }

    /// Fills in the lines of problems that only know their field: the field's own, else its nearest table's.
    pub fn locate(&self, problems: &mut Problems) {
        for problem in problems.0.iter_mut().filter(|problem| problem.line.is_none()) {
            problem.line = self.line(&problem.field);
        }
    }

    fn line(&self, field: &str) -> Option<usize> {
        let mut parts = field.split(['.', '[']).map(|part| part.trim_end_matches(']'));
        let first = parts.next()?;
        let (key, mut value) = self.root.iter().find(|(key, _)| key.get_ref().as_ref() == first)?;
        let mut start = key.span().start;
        for part in parts {
            match value.get_ref() {
                DeValue::Table(table) => {
                    let Some((key, inner)) = table.iter().find(|(key, _)| key.get_ref().as_ref() == part)
                    else {
                        break;
                    };
                    (start, value) = (key.span().start, inner);
                }
                DeValue::Array(items) => {
                    let Some(inner) = part.parse().ok().and_then(|index: usize| items.get(index)) else {
                        break;
                    };
                    (start, value) = (inner.span().start, inner);
                }
                _ => break,
            }
        }
        Some(line_of(self.text, start))
    }
}

fn assign<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

/// The same value with `_` for `-` in its keys, which is how the tables above spell them.
fn snake<'i>(value: &Spanned<DeValue<'i>>, path: &str, problems: &mut Problems) -> Spanned<DeValue<'i>> {
    let inner = match value.get_ref() {
        DeValue::Table(table) => {
            let mut renamed = DeTable::new();
            for (key, inner) in table {
                let name: &str = key.get_ref();
                let path = join(path, name);
                if name.contains('_') {
                    problems.push(
                        &path,
                        format!("found an unknown field; expected `{}`, with dashes", kebab(name)),
                    );
                }
                let key = Spanned::new(key.span(), DeString::Owned(name.replace('-', "_")));
                renamed.insert(key, snake(inner, &path, problems));
            }
            DeValue::Table(renamed)
        }
        DeValue::Array(items) => {
            let mut renamed = DeArray::new();
            for (index, item) in items.iter().enumerate() {
                renamed.push(snake(item, &format!("{path}[{index}]"), problems));
            }
            DeValue::Array(renamed)
        }
        other => other.clone(),
    };
    Spanned::new(value.span(), inner)
}

/// `table` and `field` as one path; a path of "." is the table itself.
pub(super) fn join(table: &str, field: &str) -> String {
    match (table, field) {
        (table, "." | "") => table.to_owned(),
        ("", field) => field.to_owned(),
        (table, field) => format!("{table}.{field}"),
    }
}

/// Serde reports a missing field at its table: name the field.
pub(super) fn with_missing(table: String, message: &str) -> String {
    match message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        Some(field) => join(&table, field),
        None => table,
    }
}

fn expected(what: &str, found: &DeValue<'_>) -> String {
    format!("expected {what}, found {}", found.type_str())
}

/// Serde names fields in backticks, and in the tables' own spelling: show them as the file has them.
fn dashed(message: &str) -> String {
    let parts = message.split('`').enumerate();
    parts.map(|(i, part)| if i % 2 == 1 { format!("`{}`", kebab(part)) } else { part.to_owned() }).collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}
