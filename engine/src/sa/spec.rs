//! A validated request for an SA: what control gives and tables keep. Keys are handed over beside it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use super::lifetime::Limits;
use super::selector::{AddressRange, PortRange, Selector, UpperSelector};
use crate::crypto::Suite;
use crate::transform::ecn::Ecn;
use crate::transform::transport::DestinationOptions;
use crate::transform::tunnel::{DontFragment, Dscp};
use crate::transform::{Layout, ah, esp};
use crate::wire::ip::IpVersion;
use crate::wire::{Spi, protocol};

/// Who may number and transmit an outbound SA's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Workers {
    /// One worker (the first to use it); others hand it their frames. Keeps the order for small peer windows.
    #[default]
    One,
    /// Every worker; for peers known to have large windows.
    Shared,
}

/// What an SA protects with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// Encapsulating Security Payload (RFC 4303).
    #[default]
    Esp,
    /// Authentication Header (RFC 4302), and how it is padded.
    Ah(ah::Padding),
}

impl Protocol {
    /// Its number in an IP header.
    #[inline]
    pub fn number(self) -> u8 {
        match self {
            Self::Esp => protocol::ESP,
            Self::Ah(_) => protocol::AH,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Esp => "esp",
            Self::Ah(_) => "ah",
        }
    }
}

/// What an SA protects (RFC 4301 section 3.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Whole packets, in packets of the endpoints'.
    #[default]
    Tunnel,
    /// The payload of packets between the endpoints themselves.
    Transport(DestinationOptions),
}

impl Mode {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Transport(_) => "transport",
        }
    }
}

/// The ports of ESP in UDP (RFC 3948).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpPorts {
    local: NonZeroU16,
    remote: NonZeroU16,
}

impl UdpPorts {
    /// Ours and the peer's; there is no port 0.
    pub fn new(local: u16, remote: u16) -> Option<Self> {
        Some(Self { local: NonZeroU16::new(local)?, remote: NonZeroU16::new(remote)? })
    }

    /// Ours, mostly 4500.
    #[inline]
    pub fn local(self) -> u16 {
        self.local.get()
    }

    /// The peer's, to begin with.
    pub fn remote(self) -> u16 {
        self.remote.get()
    }
}

/// What both directions share.
#[derive(Clone, Debug)]
pub struct SaSpec {
    /// The tunnel this SA belongs to: ties it to its policies.
    pub tunnel: std::sync::Arc<str>,
    /// SPI, 256 or above (RFC 4303 section 2.1 reserves 1..=255).
    pub spi: Spi,
    /// ESP or AH.
    pub protocol: Protocol,
    /// Tunnel or transport.
    pub mode: Mode,
    /// Where ESP is in UDP.
    pub udp: Option<UdpPorts>,
    /// Algorithms; for AH such that do not encrypt.
    pub suite: Suite,
    /// Our endpoint.
    pub local: IpAddr,
    /// The peer's endpoint, same version.
    pub remote: IpAddr,
    /// Extended (64-bit) sequence numbers.
    pub esn: bool,
    /// What may travel in it: local and remote as this gateway sees them. Never empty.
    pub selectors: Vec<Selector>,
    /// How much it may carry.
    pub limits: Limits,
}

/// An inbound SA.
#[derive(Clone, Debug)]
pub struct InboundSpec {
    /// Common part.
    pub sa: SaSpec,
    /// Anti-replay window: 32..=65536, or 0 = off (only when written out; refused with ESN).
    pub replay_window: u32,
    /// Highest sequence number that counts as received (by an earlier life of the key, or as an offline run wants):
    /// 0 for a new key. What is at or below it is refused.
    pub last_sequence: u64,
}

/// An outbound SA.
#[derive(Clone, Debug)]
pub struct OutboundSpec {
    /// Common part.
    pub sa: SaSpec,
    /// Who numbers and transmits.
    pub workers: Workers,
    /// Outer TTL.
    pub ttl: u8,
    /// Outer DSCP.
    pub dscp: Dscp,
    /// Outer ECN.
    pub ecn: Ecn,
    /// Outer DF.
    pub dont_fragment: DontFragment,
    /// In UDP: how long nothing may be sent before a keepalive is (RFC 3948 section 4), in seconds; 0 for never.
    pub keepalive_seconds: u32,
    /// Last sequence number that an earlier life of the key may have used, or as an offline run wants: 0 for a new
    /// key.
    pub last_sequence: u64,
}

/// Smallest and largest anti-replay window, in numbers.
pub const REPLAY_WINDOW: std::ops::RangeInclusive<u32> = 32..=65536;

/// Which field of a request is wrong, and what it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpecError {
    /// The field, as the request names it.
    pub field: &'static str,
    /// What was expected there, and what was found.
    pub expected: String,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}", self.field, self.expected)
    }
}

impl std::error::Error for SpecError {}

/// An error about `field` unless `holds`.
fn expect(holds: bool, field: &'static str, expected: impl FnOnce() -> String) -> Result<(), SpecError> {
    if holds { Ok(()) } else { Err(SpecError { field, expected: expected() }) }
}

impl SaSpec {
    /// The highest sequence number an SA may ever use: it never cycles (RFC 4303 section 3.3.3).
    pub fn sequence_limit(&self) -> u64 {
        Self::last_number(self.esn)
    }

    /// The same for any SA with or without extended sequence numbers.
    pub fn last_number(esn: bool) -> u64 {
        if esn { u64::MAX } else { u64::from(u32::MAX) }
    }

    /// Lengths of its packets.
    pub fn layout(&self) -> Layout {
        let version = if self.local.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        match self.protocol {
            Protocol::Esp => Layout::Esp(esp::Layout::new(&self.suite)),
            Protocol::Ah(padding) => {
                Layout::Ah(ah::Layout::new(self.suite.ah_field_length(), version, padding))
            }
        }
    }

    /// Checks what both directions share.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn validate(&self) -> Result<(), SpecError> {
        expect(!self.tunnel.is_empty(), "tunnel", || "a name".into())?;
        // RFC 4303 section 2.1: 0 is never sent, 1 to 255 are reserved.
        expect(self.spi.0 >= 256, "spi", || format!("256 or above, not {}", self.spi.0))?;
        validate_endpoint("local", self.local)?;
        validate_endpoint("remote", self.remote)?;
        expect(self.local.is_ipv4() == self.remote.is_ipv4(), "remote", || {
            format!("an address of the version of local ({}), not {}", self.local, self.remote)
        })?;
        expect(self.local != self.remote, "remote", || {
            format!("another address than local ({})", self.local)
        })?;
        let encryption = self.suite.encryption();
        expect(self.protocol == Protocol::Esp || !encryption.encrypts(), "encryption", || {
            format!("null or GMAC beside AH, which does not encrypt, not {encryption}")
        })?;
        let carries_udp = self.udp.is_none() || self.protocol == Protocol::Esp;
        expect(carries_udp, "udp_port", || "none beside AH".into())?;
        expect(!self.selectors.is_empty(), "selectors", || "at least one".into())?;
        if let Mode::Transport(_) = self.mode {
            for Selector { local, remote, .. } in &self.selectors {
                let within = *local == AddressRange::single(self.local)
                    && *remote == AddressRange::single(self.remote);
                expect(within, "selectors", || {
                    format!(
                        "{} and {}, the endpoints themselves, in transport mode, not {local} and {remote}",
                        self.local, self.remote
                    )
                })?;
            }
        }
        self.selectors.iter().try_for_each(Selector::validate)
    }
}

/// Tunnel endpoints are unicast: RFC 4301 section 4.1's multicast SAs are another kind, which adit does not have.
fn validate_endpoint(field: &'static str, address: IpAddr) -> Result<(), SpecError> {
    let unicast =
        !address.is_multicast() && !address.is_unspecified() && address != IpAddr::V4(Ipv4Addr::BROADCAST);
    expect(unicast, field, || format!("a unicast address, not {address}"))
}

impl InboundSpec {
    /// Checks the request.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.sa.validate()?;
        let window = self.replay_window;
        expect(window == 0 || REPLAY_WINDOW.contains(&window), "replay_window", || {
            format!(
                "{} to {} numbers, or 0 for none, not {window}",
                REPLAY_WINDOW.start(),
                REPLAY_WINDOW.end()
            )
        })?;
        // RFC 4303 section 3.3.3: the high word is inferred from the window, so ESN needs one.
        expect(window != 0 || !self.sa.esn, "replay_window", || {
            "32 or more, not 0: extended sequence numbers need a window".into()
        })?;
        let limit = self.sa.sequence_limit();
        expect(self.last_sequence <= limit, "last_sequence", || {
            format!("at most {limit}, not {}", self.last_sequence)
        })
    }
}

impl OutboundSpec {
    /// Checks the request.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.sa.validate()?;
        expect(self.ttl != 0, "ttl", || "1 to 255, not 0".into())?;
        if let Dscp::Fixed(value) = self.dscp {
            expect(value < 64, "dscp", || format!("0 to 63, not {value}"))?;
        }
        let limit = self.sa.sequence_limit();
        expect(self.last_sequence < limit, "last_sequence", || {
            format!("below {limit}, so that a number is left, not {}", self.last_sequence)
        })
    }
}

impl Selector {
    /// Checks that a packet can match: ranges in order, one version, a protocol that has what `upper` asks for.
    ///
    /// # Errors
    /// The first wrong field.
    pub fn validate(&self) -> Result<(), SpecError> {
        let range = |field, range: &AddressRange| {
            expect(range.is_valid(), field, || {
                format!(
                    "addresses of one version, the lower one first, not {} to {}",
                    range.first, range.last
                )
            })
        };
        range("selectors.local", &self.local)?;
        range("selectors.remote", &self.remote)?;
        let v4 = self.local.first.is_ipv4();
        expect(v4 == self.remote.first.is_ipv4(), "selectors.remote", || {
            format!("addresses of the version of {}, not {}", self.local, self.remote)
        })?;
        match self.upper {
            UpperSelector::Any => Ok(()),
            UpperSelector::Ports { local, remote } => {
                let with_ports = [protocol::TCP, protocol::UDP, protocol::SCTP];
                expect(
                    self.protocol.is_some_and(|it| with_ports.contains(&it)),
                    "selectors.protocol",
                    || "tcp (6), udp (17) or sctp (132) beside ports".into(),
                )?;
                let ports = |field, range: PortRange| {
                    expect(range.first <= range.last, field, || format!("the lower port first, not {range}"))
                };
                ports("selectors.local_port", local)?;
                ports("selectors.remote_port", remote)
            }
            UpperSelector::Icmp { kinds, codes } => {
                let icmp = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
                expect(self.protocol == Some(icmp), "selectors.protocol", || {
                    format!("{icmp} beside ICMP types for {}", self.local)
                })?;
                expect(kinds.0 <= kinds.1, "selectors.icmp_type", || "the lower type first".into())?;
                expect(codes.0 <= codes.1, "selectors.icmp_code", || "the lower code first".into())
            }
        }
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
