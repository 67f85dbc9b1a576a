//! Selectors as RFC 4301 says them.

use proptest::prelude::*;

use super::*;
use crate::wire::protocol;

fn range(text: &str) -> AddressRange {
    text.parse().unwrap()
}

fn flow(source: &str, destination: &str, protocol: u8, upper: Upper) -> Flow {
    Flow { source: source.parse().unwrap(), destination: destination.parse().unwrap(), protocol, upper }
}

const WEB: Upper = Upper::Ports { source: 40_000, destination: 443 };
const ANY: PortRange = PortRange::ANY;

fn selector(protocol: Option<u8>, upper: UpperSelector) -> Selector {
    Selector { local: range("10.1.0.0/16"), remote: range("10.2.0.0/16"), protocol, upper }
}

fn tcp_to(remote: &str) -> Selector {
    selector(Some(protocol::TCP), UpperSelector::Ports { local: ANY, remote: remote.parse().unwrap() })
}

#[test]
fn inbound_swaps_local_and_remote() {
    let selector = tcp_to("443");
    let out = flow("10.1.2.3", "10.2.3.4", protocol::TCP, WEB);
    let back = flow("10.2.3.4", "10.1.2.3", protocol::TCP, Upper::Ports { source: 443, destination: 40_000 });
    for (direction, flow, expected) in [
        (Direction::Outbound, out, true),
        (Direction::Inbound, back, true),
        (Direction::Inbound, out, false),
        (Direction::Outbound, back, false),
    ] {
        assert_eq!(selector.matches(direction, &flow, Fragment::Whole), expected, "{direction:?} {flow:?}");
    }
}

#[test]
fn every_part_must_match() {
    let selector = tcp_to("443");
    let matches = |flow: Flow| selector.matches(Direction::Outbound, &flow, Fragment::Whole);
    assert!(matches(flow("10.1.2.3", "10.2.3.4", protocol::TCP, WEB)));
    assert!(!matches(flow("10.3.2.3", "10.2.3.4", protocol::TCP, WEB)));
    assert!(!matches(flow("10.1.2.3", "10.1.3.4", protocol::TCP, WEB)));
    assert!(!matches(flow("10.1.2.3", "10.2.3.4", protocol::UDP, WEB)));
    let ssh = Upper::Ports { source: 40_000, destination: 22 };
    assert!(!matches(flow("10.1.2.3", "10.2.3.4", protocol::TCP, ssh)));
}

#[test]
fn a_specific_value_needs_the_packet_to_show_it() {
    let opaque = flow("10.1.2.3", "10.2.3.4", protocol::TCP, Upper::Opaque);
    let any = UpperSelector::Ports { local: ANY, remote: ANY };
    for (selector, expected) in [
        (tcp_to("443"), false),
        (tcp_to("1-65535"), false),
        (selector(Some(protocol::TCP), any), true),
        (selector(Some(protocol::TCP), UpperSelector::Any), true),
        (selector(None, UpperSelector::Any), true),
    ] {
        for fragment in [Fragment::Whole, Fragment::First, Fragment::Later] {
            let found = selector.matches(Direction::Outbound, &opaque, fragment);
            assert_eq!(found, expected, "{selector:?} {fragment:?}");
        }
    }
}

#[test]
fn a_later_fragment_never_matches_ports_or_icmp_types() {
    let icmp = UpperSelector::Icmp { kinds: (8, 8), codes: (0, 0) };
    let echo = Upper::Icmp { kind: 8, code: 0 };
    for (selector, protocol, upper) in
        [(tcp_to("443"), protocol::TCP, WEB), (selector(Some(protocol::ICMP), icmp), protocol::ICMP, echo)]
    {
        // Even if a parser had read something that looks like ports out of its middle.
        let flow = flow("10.1.2.3", "10.2.3.4", protocol, upper);
        assert!(selector.matches(Direction::Outbound, &flow, Fragment::Whole));
        assert!(selector.matches(Direction::Outbound, &flow, Fragment::First));
        assert!(!selector.matches(Direction::Outbound, &flow, Fragment::Later));
    }
}

#[test]
fn icmp_types_and_codes_are_the_same_in_both_directions() {
    let selector = selector(Some(protocol::ICMP), UpperSelector::Icmp { kinds: (3, 3), codes: (0, u8::MAX) });
    for (kind, code, expected) in [(3, 0, true), (3, 4, true), (8, 0, false)] {
        let upper = Upper::Icmp { kind, code };
        let out = flow("10.1.2.3", "10.2.3.4", protocol::ICMP, upper);
        let back = flow("10.2.3.4", "10.1.2.3", protocol::ICMP, upper);
        assert_eq!(selector.matches(Direction::Outbound, &out, Fragment::Whole), expected);
        assert_eq!(selector.matches(Direction::Inbound, &back, Fragment::Whole), expected);
    }
}

#[test]
fn ranges_hold_both_ends_and_one_version() {
    let v4 = range("10.0.0.1-10.0.0.9");
    for (address, expected) in [
        ("10.0.0.0", false),
        ("10.0.0.1", true),
        ("10.0.0.9", true),
        ("10.0.0.10", false),
        ("::ffff:10.0.0.5", false),
        ("::a00:5", false),
    ] {
        assert_eq!(v4.contains(address.parse().unwrap()), expected, "{address}");
    }
    assert!(range("2001:db8::/32").contains("2001:db8:ffff::1".parse().unwrap()));
    assert!(!range("2001:db8::/32").contains("2001:db9::".parse().unwrap()));
    assert!(!range("::/0").contains("10.0.0.1".parse().unwrap()));
}

#[test]
fn prefixes_are_ranges() {
    for (text, first, last) in [
        ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
        ("10.0.0.0/8", "10.0.0.0", "10.255.255.255"),
        ("10.0.0.4/30", "10.0.0.4", "10.0.0.7"),
        ("10.0.0.1/32", "10.0.0.1", "10.0.0.1"),
        ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2001:db8::/127", "2001:db8::", "2001:db8::1"),
        ("2001:db8::1/128", "2001:db8::1", "2001:db8::1"),
    ] {
        let expected = AddressRange { first: first.parse().unwrap(), last: last.parse().unwrap() };
        assert_eq!(range(text), expected, "{text}");
    }
}

#[test]
fn ranges_are_written_as_they_are_read() {
    for text in [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.1",
        "10.0.0.1-10.0.0.9",
        "::/0",
        "2001:db8::/32",
        "fe80::1-fe80::9",
    ] {
        assert_eq!(range(text).to_string(), text);
    }
    // What is a prefix is written as one.
    assert_eq!(range("10.0.0.0-10.0.0.255").to_string(), "10.0.0.0/24");
    assert_eq!(range("10.0.0.1/32").to_string(), "10.0.0.1");
    for (text, written) in [("443", "443"), ("1024-65535", "1024-65535"), ("any", "any"), ("0-65535", "any")]
    {
        assert_eq!(text.parse::<PortRange>().unwrap().to_string(), written);
    }
}

#[test]
fn errors_say_what_was_expected() {
    let expected = |text: &str| text.parse::<AddressRange>().unwrap_err().to_string();
    for (text, hint) in [
        ("", "an address, a prefix (10.0.0.0/8) or a range"),
        ("example.org", "an address, a prefix"),
        ("10.0.0.1/8", "as in 10.0.0.0/8"),
        ("2001:db8::1/32", "as in 2001:db8::/32"),
        ("10.0.0.0/33", "a prefix length of 0 to 32"),
        ("::/129", "a prefix length of 0 to 128"),
        ("10.0.0.0/", "a prefix length behind the slash"),
        ("10.0.0.0/+8", "a prefix length behind the slash"),
        ("10.0.0.0/256", "a prefix length behind the slash"),
        ("10.0.0.9-10.0.0.1", "the lower address first"),
        ("10.0.0.1-::1", "two addresses of one version"),
        ("10.0.0.1-", "an address, a prefix"),
    ] {
        let message = expected(text);
        assert!(message.contains(hint), "{text}: {message}");
    }
    for text in ["", "http", "65536", "+1", "-", "1-", "9-1", "1-2-3"] {
        let message = text.parse::<PortRange>().unwrap_err().to_string();
        assert!(message.contains("port"), "{text}: {message}");
    }
}

proptest! {
    #[test]
    fn any_range_reads_back(first in any::<IpAddr>(), last in any::<IpAddr>()) {
        let range = AddressRange { first: first.min(last), last: first.max(last) };
        prop_assume!(range.is_valid());
        prop_assert_eq!(range.to_string().parse(), Ok(range));
    }

    #[test]
    fn any_prefix_reads_back(bits in any::<u128>(), length in 0_u8..=128) {
        let bits = bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        let prefix = AddressRange::from_prefix(Ipv6Addr::from_bits(bits).into(), length).unwrap();
        prop_assert_eq!(prefix.prefix_length(), Some(length));
        prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }

    #[test]
    fn any_text_is_refused_or_read_without_panic(text in "[0-9a-f:./-]{0,24}") {
        if let Ok(range) = text.parse::<AddressRange>() {
            prop_assert!(range.is_valid());
        }
        let _ = text.parse::<PortRange>();
    }
}
