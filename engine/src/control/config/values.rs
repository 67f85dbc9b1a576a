//! What stands in the tables' fields: names of which there are so many, numbers that may be text, and keys.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

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

    pub(in crate::control) fn expose(&self) -> &str {
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
