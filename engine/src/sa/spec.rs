//! A validated request for an SA: what control gives and tables keep. Keys are handed over beside it.

use std::net::IpAddr;

use super::selector::Selector;
use crate::crypto::Suite;
use crate::transform::tunnel::{DontFragment, Dscp};
use crate::wire::Spi;

/// Who may number and transmit an outbound SA's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Workers {
    /// One worker (the first to use it); others hand it their frames. Keeps the order for small peer windows.
    #[default]
    One,
    /// Every worker; for peers known to have large windows.
    Shared,
}

/// What both directions share.
#[derive(Clone, Debug)]
pub struct SaSpec {
    /// The tunnel this SA belongs to: ties it to its policies.
    pub tunnel: std::sync::Arc<str>,
    /// SPI, 256 or above (RFC 4303 section 2.1 reserves 1..=255).
    pub spi: Spi,
    /// Algorithms.
    pub suite: Suite,
    /// Our tunnel endpoint.
    pub local: IpAddr,
    /// The peer's tunnel endpoint, same version.
    pub remote: IpAddr,
    /// Extended (64-bit) sequence numbers.
    pub esn: bool,
    /// What may travel in it: local and remote as this gateway sees them. Never empty.
    pub selectors: Vec<Selector>,
}

/// An inbound SA.
#[derive(Clone, Debug)]
pub struct InboundSpec {
    /// Common part.
    pub sa: SaSpec,
    /// Anti-replay window: 32..=65536, or 0 = off (only when written out; refused with ESN).
    pub replay_window: u32,
    /// Highest sequence number already received (offline runs): 0 for a new SA.
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
    /// Outer DF.
    pub dont_fragment: DontFragment,
    /// Last sequence number already used (offline runs): 0 for a new SA.
    pub last_sequence: u64,
}
