//! Values that are written as text: SPIs, address ranges, ports, protocols, ICMP types. Every error says what
//! was expected and what was found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::sa::selector::{AddressRange, PortRange, UpperSelector};
use crate::wire::{Spi, protocol};

/// Quotes what was found, cut short so that a hostile value does not fill the log.
pub(super) fn found(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    format!("{short:?}")
}

/// An SPI, `0x1001` or decimal; 1..=255 are reserved and 0 is never sent (RFC 4303 section 2.1).
pub(super) fn spi(text: &str) -> Result<Spi, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|digit| digit.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None => number(text, u64::from(u32::MAX)).map(|number| number as u32),
    };
    match number {
        Some(number @ 256..) => Ok(Spi(number)),
        _ => Err(format!(
            "expected an SPI from 0x100 to 0xffffffff (0 to 255 are reserved), found {}",
            found(text)
        )),
    }
}

/// As [`addresses`], but for nothing that is multicast only: the kernel has that, whatever a policy says.
pub(super) fn unicast_addresses(text: &str) -> Result<Vec<AddressRange>, String> {
    let is_multicast = |address: IpAddr| address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST);
    let ranges = addresses(text)?;
    if ranges.iter().any(|range| is_multicast(range.first) && is_multicast(range.last)) {
        return Err(format!(
            "expected unicast addresses, found {}; multicast stays with the kernel, under no policy",
            found(text)
        ));
    }
    Ok(ranges)
}

/// An address, prefix (`10.1.0.0/16`), range (`10.1.0.1-10.1.0.9`) or `any`; ranges of `any` are one a version.
pub(super) fn addresses(text: &str) -> Result<Vec<AddressRange>, String> {
    let expected = || {
        format!(
            "expected an address, a prefix as 10.1.0.0/16, a range as 10.1.0.1-10.1.0.9 or \"any\", found {}",
            found(text)
        )
    };
    if text == "any" {
        return Ok(vec![any_v4(), any_v6()]);
    }
    if let Some((network, length)) = text.split_once('/') {
        let network: IpAddr = network.parse().map_err(|_| expected())?;
        let bits = if network.is_ipv4() { 32 } else { 128 };
        let length = number(length, bits).ok_or_else(expected)? as u32;
        let range = prefix(network, length);
        if range.first != network {
            return Err(format!(
                "expected a prefix without host bits, {}/{length}, found {}",
                range.first,
                found(text)
            ));
        }
        return Ok(vec![range]);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first: IpAddr = first.trim().parse().map_err(|_| expected())?;
    let last: IpAddr = last.trim().parse().map_err(|_| expected())?;
    if first.is_ipv4() != last.is_ipv4() || first > last {
        return Err(format!("expected a range that ascends within one IP version, found {}", found(text)));
    }
    Ok(vec![AddressRange { first, last }])
}

fn prefix(network: IpAddr, length: u32) -> AddressRange {
    match network {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            let bits = u32::from(address);
            AddressRange {
                first: Ipv4Addr::from(bits & mask).into(),
                last: Ipv4Addr::from(bits | !mask).into(),
            }
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            let bits = u128::from(address);
            AddressRange {
                first: Ipv6Addr::from(bits & mask).into(),
                last: Ipv6Addr::from(bits | !mask).into(),
            }
        }
    }
}

/// Every IPv4 address.
pub(super) fn any_v4() -> AddressRange {
    prefix(Ipv4Addr::UNSPECIFIED.into(), 0)
}

/// Every IPv6 address.
pub(super) fn any_v6() -> AddressRange {
    prefix(Ipv6Addr::UNSPECIFIED.into(), 0)
}

/// A range as the operator would write it: a prefix where it is one.
pub(super) fn address_range_text(range: &AddressRange) -> String {
    let length = match (range.first, range.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (u32::from(first) ^ u32::from(last)).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (u128::from(first) ^ u128::from(last)).leading_zeros(),
        _ => 0,
    };
    if range.first == range.last {
        range.first.to_string()
    } else if prefix(range.first, length) == *range {
        format!("{}/{length}", range.first)
    } else {
        format!("{}-{}", range.first, range.last)
    }
}

/// A tunnel endpoint: one address a packet can be sent to.
pub(super) fn endpoint(text: &str) -> Result<IpAddr, String> {
    let expected = || format!("expected the address of a tunnel endpoint, found {}", found(text));
    let address: IpAddr = text.parse().map_err(|_| expected())?;
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast {
        return Err(format!(
            "expected a unicast address, found {}; multicast SAs are not supported",
            found(text)
        ));
    }
    Ok(address)
}

/// Ports: `80` or `1000-2000`; `any` for all.
pub(super) fn ports(text: &str) -> Result<PortRange, String> {
    let (first, last) = match text {
        "any" => (0, u64::from(u16::MAX)),
        _ => span(text, u64::from(u16::MAX))
            .ok_or_else(|| format!("expected a port or ports as 1000-2000, found {}", found(text)))?,
    };
    Ok(PortRange { first: first as u16, last: last as u16 })
}

/// Bytes of a packet: `512`, `64-1400`.
pub(super) fn sizes(text: &str) -> Result<RangeInclusive<u16>, String> {
    match span(text, u64::from(u16::MAX)) {
        Some((first @ 1.., last)) => Ok(first as u16..=last as u16),
        _ => Err(format!("expected 1 to 65535 bytes, as 512 or 64-1400, found {}", found(text))),
    }
}

/// ICMP type and code: `8`, `8/0`, `0-8/any`; the code is any when it is left out.
pub(super) fn icmp(text: &str) -> Result<UpperSelector, String> {
    let expected = || format!("expected an ICMP type, or type/code as 8/0, found {}", found(text));
    let range = |text: &str| match text {
        "any" => Some((0, u8::MAX)),
        _ => span(text, u64::from(u8::MAX)).map(|(first, last)| (first as u8, last as u8)),
    };
    let (kinds, codes) = text.split_once('/').unwrap_or((text, "any"));
    let (kinds, codes) = (range(kinds).ok_or_else(expected)?, range(codes).ok_or_else(expected)?);
    Ok(UpperSelector::Icmp { kinds, codes })
}

/// A next-layer protocol by name or number; `None` for `any`.
pub(super) fn next_layer(text: &str) -> Result<Option<u8>, String> {
    if text == "any" {
        return Ok(None);
    }
    if let Some((_, number)) = PROTOCOLS.iter().find(|(name, _)| *name == text) {
        return Ok(Some(*number));
    }
    number(text, 255).map(|number| Some(number as u8)).ok_or_else(|| {
        let names: Vec<_> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
        format!(
            "expected \"any\", a number from 0 to 255 or one of {}, found {}",
            names.join(", "),
            found(text)
        )
    })
}

/// The protocol as the operator would write it.
pub(super) fn next_layer_text(number: Option<u8>) -> String {
    match number {
        None => "any".into(),
        Some(number) => PROTOCOLS
            .iter()
            .find(|(_, known)| *known == number)
            .map_or_else(|| number.to_string(), |(name, _)| (*name).into()),
    }
}

const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", protocol::ICMP),
    ("tcp", protocol::TCP),
    ("udp", protocol::UDP),
    ("esp", protocol::ESP),
    ("ah", protocol::AH),
    ("icmpv6", protocol::ICMPV6),
    ("sctp", protocol::SCTP),
];

/// A plain decimal number up to `max`: no sign, no blanks.
fn number(text: &str, max: u64) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| *number <= max)
}

fn span(text: &str, max: u64) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first, max)?, number(last, max)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_spi_is_what_rfc_4303_allows() {
        assert_eq!(spi("0x1001"), Ok(Spi(0x1001)));
        assert_eq!(spi("256"), Ok(Spi(256)));
        assert_eq!(spi("4294967295"), Ok(Spi(u32::MAX)));
        for wrong in
            ["", "0", "255", "0xff", "0x", "0x+100", "+256", "-1", "4294967296", "0x100000000", "spi"]
        {
            assert!(spi(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_are_written_as_they_are_read() {
        for text in ["10.1.0.0/16", "10.1.2.3", "10.1.0.1-10.1.0.9", "2001:db8::/32", "0.0.0.0/0", "::/0"] {
            let ranges = addresses(text).unwrap();
            assert_eq!(ranges.len(), 1);
            assert_eq!(address_range_text(&ranges[0]), text);
        }
        assert_eq!(addresses("any").unwrap(), [any_v4(), any_v6()]);
        for wrong in
            ["", "10.1.0.1/16", "10.0.0.0/33", "::/129", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "10.0.0.0/+8"]
        {
            assert!(addresses(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_icmp_and_protocols() {
        assert_eq!(ports("80"), Ok(PortRange { first: 80, last: 80 }));
        assert_eq!(ports("1000-2000"), Ok(PortRange { first: 1000, last: 2000 }));
        assert!(["", "65536", "2-1", "a", "-1", "1-", " 1"].iter().all(|wrong| ports(wrong).is_err()));
        assert_eq!(icmp("8/0"), Ok(UpperSelector::Icmp { kinds: (8, 8), codes: (0, 0) }));
        assert_eq!(icmp("8"), Ok(UpperSelector::Icmp { kinds: (8, 8), codes: (0, 255) }));
        assert!(["", "256", "8/256", "8/0/0"].iter().all(|wrong| icmp(wrong).is_err()));
        assert_eq!(next_layer("tcp"), Ok(Some(6)));
        assert_eq!(next_layer("47"), Ok(Some(47)));
        assert_eq!(next_layer("any"), Ok(None));
        assert!(["", "TCP", "256", "-1"].iter().all(|wrong| next_layer(wrong).is_err()));
        assert!(
            endpoint("224.0.0.1").is_err() && endpoint("0.0.0.0").is_err() && endpoint("192.0.2.1").is_ok()
        );
    }
}
