//! Selectors (RFC 4301 section 4.4.1.1): which packets a policy or an SA means.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::ip::{Flow, Fragment, Hidden, Upper};

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
    /// Ports of TCP, UDP, SCTP: local and remote as this gateway sees them. The whole range of ports means
    /// ANY, as in IKE (RFC 7296 section 3.13.1), and so does not need the packet to show one.
    Ports {
        /// Port on the protected side.
        local: PortRange,
        /// Port on the peer's side.
        remote: PortRange,
    },
    /// ICMP types and codes, the same in both directions. The whole range of either means ANY.
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

/// What may travel in an SA.
#[derive(Debug)]
pub struct Selectors {
    /// Alternatives.
    pub list: Box<[Selector]>,
    /// Unique in this process; what is remembered of an SA's selectors goes by it.
    pub version: u64,
}

impl Selectors {
    /// These, as a new version.
    pub fn new(list: Vec<Selector>) -> Self {
        static LATEST: AtomicU64 = AtomicU64::new(0);
        Self { list: list.into_boxed_slice(), version: LATEST.fetch_add(1, Ordering::Relaxed) + 1 }
    }
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
    /// types (RFC 4301 section 7.3); it matches where those are ANY (section 7.1).
    pub fn matches(&self, direction: Direction, flow: &Flow, fragment: Fragment) -> bool {
        let (local, remote) = match direction {
            Direction::Outbound => (flow.source, flow.destination),
            Direction::Inbound => (flow.destination, flow.source),
        };
        self.local.contains(local)
            && self.remote.contains(remote)
            && self.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && self.upper.matches(direction, flow.upper, fragment)
    }

    /// Whether it means more than addresses, so that a packet may hide that it is meant ([`Flow::hides`]).
    pub fn asks_of_next_layer(&self) -> bool {
        self.protocol.is_some()
    }

    /// Whether a packet that hides its ports, or its protocol, might be one that this selector means.
    pub fn may_match(&self, direction: Direction, flow: &Flow, fragment: Fragment) -> bool {
        let (local, remote) = match direction {
            Direction::Outbound => (flow.source, flow.destination),
            Direction::Inbound => (flow.destination, flow.source),
        };
        let hidden = flow.hides(fragment);
        self.local.contains(local)
            && self.remote.contains(remote)
            && (hidden == Hidden::Protocol || self.protocol.is_none_or(|protocol| protocol == flow.protocol))
            && (hidden != Hidden::Nothing || self.upper.matches(direction, flow.upper, fragment))
    }
}

impl UpperSelector {
    /// Whether every packet of the protocol matches, also one that does not show what is asked here (OPAQUE).
    pub fn is_any(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Ports { local, remote } => *local == PortRange::ANY && *remote == PortRange::ANY,
            Self::Icmp { kinds, codes } => *kinds == (0, u8::MAX) && *codes == (0, u8::MAX),
        }
    }

    fn matches(&self, direction: Direction, upper: Upper, fragment: Fragment) -> bool {
        if self.is_any() {
            return true;
        }
        if fragment == Fragment::Later {
            return false;
        }
        match (*self, upper) {
            (Self::Ports { local, remote }, Upper::Ports { source, destination }) => match direction {
                Direction::Outbound => local.contains(source) && remote.contains(destination),
                Direction::Inbound => local.contains(destination) && remote.contains(source),
            },
            (Self::Icmp { kinds, codes }, Upper::Icmp { kind, code }) => {
                (kinds.0..=kinds.1).contains(&kind) && (codes.0..=codes.1).contains(&code)
            }
            _ => false,
        }
    }
}

/// Why text is not a range; says what would be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeError {
    /// What was given.
    pub found: String,
    /// What was expected, with an example where one can be made.
    pub expected: String,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: expected {}", self.found, self.expected)
    }
}

impl std::error::Error for RangeError {}

/// The bits of an address, left-aligned in 128 so that both versions share the prefix arithmetic.
fn bits_of(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn like(address: IpAddr, bits: u128) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::from_bits((bits >> 96) as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

impl AddressRange {
    /// One address.
    pub fn single(address: IpAddr) -> Self {
        Self { first: address, last: address }
    }

    /// A prefix of `length` bits.
    ///
    /// # Errors
    /// A length beyond the address's, or an address with bits set behind the prefix.
    pub fn from_prefix(address: IpAddr, length: u8) -> Result<Self, RangeError> {
        let found = || format!("{address}/{length}");
        let (bits, width) = bits_of(address);
        let length = u32::from(length);
        if length > width {
            return Err(RangeError { found: found(), expected: format!("a prefix length of 0 to {width}") });
        }
        let host = u128::MAX.checked_shr(length).unwrap_or(0);
        if bits & host & (u128::MAX << (128 - width)) != 0 {
            let network = like(address, bits & !host);
            return Err(RangeError {
                found: found(),
                expected: format!("no address bits behind the prefix, as in {network}/{length}"),
            });
        }
        Ok(Self { first: address, last: like(address, bits | host) })
    }

    /// The length of the prefix that this range is, if it is one.
    pub fn prefix_length(&self) -> Option<u8> {
        let ((first, width), (last, _)) = (bits_of(self.first), bits_of(self.last));
        let length = (first ^ last).leading_zeros().min(width);
        let range = Self::from_prefix(self.first, length as u8).ok()?;
        (range == *self).then_some(length as u8)
    }

    /// Whether `address` lies in it; never for the other version.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, self.last, address) {
            (IpAddr::V4(first), IpAddr::V4(last), IpAddr::V4(address)) => first <= address && address <= last,
            (IpAddr::V6(first), IpAddr::V6(last), IpAddr::V6(address)) => first <= address && address <= last,
            _ => false,
        }
    }

    /// Whether both ends are of one version and in order.
    pub fn is_valid(&self) -> bool {
        self.first.is_ipv4() == self.last.is_ipv4() && self.first <= self.last
    }
}

/// A prefix (`10.0.0.0/8`), a range (`10.0.0.1-10.0.0.9`) or one address, either version.
impl FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let wrong = |expected: &str| RangeError { found: text.into(), expected: expected.into() };
        let address = |part: &str| {
            part.parse::<IpAddr>()
                .map_err(|_| wrong("an address, a prefix (10.0.0.0/8) or a range (10.0.0.1-10.0.0.9)"))
        };
        if let Some((network, length)) = text.split_once('/') {
            // Only digits: the standard parser would also take "+8".
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            let length = length.parse().ok().filter(|_| digits);
            let length = length.ok_or_else(|| wrong("a prefix length behind the slash, as in 10.0.0.0/8"))?;
            return Self::from_prefix(address(network)?, length);
        }
        if let Some((first, last)) = text.split_once('-') {
            let range = Self { first: address(first)?, last: address(last)? };
            return match range {
                _ if range.first.is_ipv4() != range.last.is_ipv4() => {
                    Err(wrong("two addresses of one version"))
                }
                _ if range.first > range.last => Err(wrong("the lower address first")),
                _ => Ok(range),
            };
        }
        Ok(Self::single(address(text)?))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix_length() {
            _ if self.first == self.last => write!(f, "{}", self.first),
            Some(length) => write!(f, "{}/{length}", self.first),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl PortRange {
    /// All ports: RFC 4301's ANY.
    pub const ANY: Self = Self { first: 0, last: u16::MAX };

    /// Whether `port` lies in it.
    pub fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// A port (`443`), a range (`1024-65535`) or `any`.
impl FromStr for PortRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        if text == "any" {
            return Ok(Self::ANY);
        }
        let wrong = |expected: &str| RangeError { found: text.into(), expected: expected.into() };
        let port = |part: &str| {
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            let port = part.parse::<u16>().ok().filter(|_| digits);
            port.ok_or_else(|| wrong("a port (443), a range (1024-65535) or any; ports are 0 to 65535"))
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self { first: port(first)?, last: port(last)? };
        if range.first > range.last { Err(wrong("the lower port first")) } else { Ok(range) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.write_str("any"),
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

#[cfg(test)]
#[path = "selector_tests.rs"]
mod tests;
