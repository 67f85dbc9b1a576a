//! Selectors (RFC 4301 section 4.4.1.1): which packets a policy or an SA means.

use std::net::IpAddr;

use crate::wire::ip::{Flow, Fragment};

/// An inclusive range of addresses of one version. A prefix is a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressRange {
    /// First address.
    pub first: IpAddr,
    /// Last address, same version, not below the first.
    pub last: IpAddr,
}

/// An inclusive range of ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, not below the first.
    pub last: u16,
}

/// What a selector asks of the next layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpperSelector {
    /// Anything, fragments included.
    Any,
    /// Ports of TCP, UDP, SCTP: local and remote as this gateway sees them.
    Ports {
        /// Port on the protected side.
        local: PortRange,
        /// Port on the peer's side.
        remote: PortRange,
    },
    /// ICMP types and codes, the same in both directions.
    Icmp {
        /// First and last type.
        kinds: (u8, u8),
        /// First and last code.
        codes: (u8, u8),
    },
}

/// One selector. `local` is the protected side: the source of outbound packets, the destination of inbound ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Selector {
    /// Addresses on the protected side.
    pub local: AddressRange,
    /// Addresses behind the peer, same version.
    pub remote: AddressRange,
    /// Next-layer protocol; `None` for any.
    pub protocol: Option<u8>,
    /// Ports or ICMP; anything but `Any` needs a protocol that has it.
    pub upper: UpperSelector,
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From the protected side: source is local.
    Outbound,
    /// From the peer: destination is local.
    Inbound,
}

impl Selector {
    /// Whether this selector means `flow`. A later fragment never matches a selector with ports or ICMP
    /// types (RFC 4301 section 7.3).
    pub fn matches(&self, direction: Direction, flow: &Flow, fragment: Fragment) -> bool {
        let _ = (direction, flow, fragment);
        todo!()
    }
}
