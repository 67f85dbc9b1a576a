//! The properties that make the compiled forms trustworthy: each equals, or contains, the linear search.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::sa::publish::Published;
use crate::sa::selector::{AddressRange, Direction, PortRange, Selector, UpperSelector};
use crate::sa::spec::Mode;
use crate::wire::ip::{Flow, Fragment, Upper};

/// Few addresses, so that random ranges and flows meet, overlap and touch.
fn known_addresses(v4: bool) -> Vec<IpAddr> {
    if v4 {
        [
            "0.0.0.0",
            "10.0.0.0",
            "10.0.0.255",
            "10.0.1.0",
            "10.0.1.77",
            "172.16.3.4",
            "192.168.0.1",
            "255.255.255.255",
        ]
        .map(|text| IpAddr::V4(text.parse::<Ipv4Addr>().unwrap()))
        .to_vec()
    } else {
        [
            "::",
            "::1",
            "2001:db8::",
            "2001:db8::ffff",
            "2001:db8:1::",
            "2001:db8:1:2::3",
            "fd00::1",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ]
        .map(|text| IpAddr::V6(text.parse::<Ipv6Addr>().unwrap()))
        .to_vec()
    }
}

fn from_bits(v4: bool, bits: u128) -> IpAddr {
    if v4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
}

fn last_bits(v4: bool) -> u128 {
    if v4 { u32::MAX.into() } else { u128::MAX }
}

/// A known address, or a neighbour of one.
fn address(v4: bool) -> impl Strategy<Value = IpAddr> {
    (select(known_addresses(v4)), -1i8..=1).prop_map(move |(address, step)| {
        let bits = address_bits(address).saturating_add_signed(step.into()).min(last_bits(v4));
        from_bits(v4, bits)
    })
}

fn range(v4: bool) -> impl Strategy<Value = AddressRange> {
    let between =
        (address(v4), address(v4)).prop_map(|(a, b)| AddressRange { first: a.min(b), last: a.max(b) });
    let width: u32 = if v4 { 32 } else { 128 };
    let prefix = (select(known_addresses(v4)), 0..=width).prop_map(move |(address, length)| {
        let host = if length == 0 { last_bits(v4) } else { (1u128 << (width - length)) - 1 };
        let first = address_bits(address) & !host;
        AddressRange { first: from_bits(v4, first), last: from_bits(v4, first | host) }
    });
    prop_oneof![between, prefix]
}

const PORTS: [u16; 7] = [0, 1, 79, 80, 81, 443, u16::MAX];

fn upper_selector() -> impl Strategy<Value = (Option<u8>, UpperSelector)> {
    let ports =
        || (select(&PORTS), select(&PORTS)).prop_map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) });
    let bytes = || (0u8..4, 0u8..4).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let any_ports = UpperSelector::Ports { local: PortRange::ANY, remote: PortRange::ANY };
    let any_icmp = UpperSelector::Icmp { kinds: (0, u8::MAX), codes: (0, u8::MAX) };
    prop_oneof![
        select(&[None, Some(6), Some(17), Some(47)]).prop_map(|protocol| (protocol, UpperSelector::Any)),
        select(&[6, 17, 132]).prop_map(move |protocol| (Some(protocol), any_ports)),
        select(&[1, 58]).prop_map(move |protocol| (Some(protocol), any_icmp)),
        (select(&[6, 17, 132]), ports(), ports())
            .prop_map(|(protocol, local, remote)| (Some(protocol), UpperSelector::Ports { local, remote })),
        (select(&[1, 58]), bytes(), bytes())
            .prop_map(|(protocol, kinds, codes)| (Some(protocol), UpperSelector::Icmp { kinds, codes })),
    ]
}

fn selector() -> impl Strategy<Value = Selector> {
    any::<bool>().prop_flat_map(|v4| {
        (range(v4), range(v4), upper_selector()).prop_map(|(local, remote, (protocol, upper))| Selector {
            local,
            remote,
            protocol,
            upper,
        })
    })
}

fn tunnel() -> Arc<Tunnel> {
    Arc::new(Tunnel {
        name: "tunnel".into(),
        local: [192, 0, 2, 1].into(),
        remote: [192, 0, 2, 2].into(),
        mode: Mode::Tunnel,
        udp: None,
        clamp_mss: false,
        tfc: Default::default(),
        through: None,
        fragmentation: spd::Fragmentation::Before,
        path: Arc::default(),
        outbound: Published::new(None),
    })
}

fn policy(outbound: bool, inbound: bool, selectors: Vec<Selector>, action: Action) -> Arc<Policy> {
    Arc::new(Policy {
        name: "policy".into(),
        outbound,
        inbound,
        selectors,
        action,
        packets: AtomicU64::new(0),
    })
}

fn action() -> impl Strategy<Value = Action> {
    (0..3).prop_map(|kind| match kind {
        0 => Action::Protect(tunnel()),
        1 => Action::Bypass,
        _ => Action::Discard,
    })
}

fn policies(most: usize) -> impl Strategy<Value = Vec<Arc<Policy>>> {
    let one = (any::<bool>(), any::<bool>(), vec(selector(), 1..4), action())
        .prop_map(|(outbound, inbound, selectors, action)| policy(outbound, inbound, selectors, action));
    vec(one, 0..most)
}

fn flow() -> impl Strategy<Value = Flow> {
    let upper = prop_oneof![
        Just(Upper::Opaque),
        (select(&PORTS), select(&PORTS))
            .prop_map(|(source, destination)| Upper::Ports { source, destination }),
        (0u8..5, 0u8..5).prop_map(|(kind, code)| Upper::Icmp { kind, code }),
    ];
    (any::<bool>(), select(&[1u8, 6, 17, 47, 58, 132]), upper).prop_flat_map(|(v4, protocol, upper)| {
        (address(v4), address(v4)).prop_map(move |(source, destination)| Flow {
            source,
            destination,
            protocol,
            upper,
        })
    })
}

fn packet() -> impl Strategy<Value = (Direction, Flow, Fragment)> {
    let directions = select(&[Direction::Outbound, Direction::Inbound]);
    let fragments = select(&[Fragment::Whole, Fragment::First, Fragment::Later]);
    (directions, flow(), fragments)
}

/// Local and remote address of a flow as the gateway sees them.
fn sides(direction: Direction, flow: &Flow) -> (IpAddr, IpAddr) {
    match direction {
        Direction::Outbound => (flow.source, flow.destination),
        Direction::Inbound => (flow.destination, flow.source),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn compiled_equals_linear(policies in policies(90), packets in vec(packet(), 200)) {
        let spd = Spd::new(policies, Fallback::Kernel, 1);
        for (direction, flow, fragment) in packets {
            prop_assert_eq!(
                spd.classify(direction, &flow, fragment),
                spd.classify_linear(direction, &flow, fragment),
                "{:?} {:?} {:?}", direction, flow, fragment
            );
        }
    }

    /// A cache of two sets evicts all the time, one of many hardly ever; neither may ever answer for another
    /// generation or another packet.
    #[test]
    fn cached_equals_linear(
        generations in vec(policies(12), 3),
        packets in vec((0usize..3, packet()), 300),
        flows in select(&[0usize, 4, 1024]),
        seed in any::<[u64; 2]>(),
    ) {
        let spds: Vec<Spd> = (1..).zip(generations).map(|(n, p)| Spd::new(p, Fallback::Kernel, n)).collect();
        let mut cache = PolicyCache::new(flows, seed);
        for (which, (direction, flow, fragment)) in packets {
            let expected = spds[which].classify_linear(direction, &flow, fragment);
            prop_assert_eq!(cache.classify(&spds[which], direction, &flow, fragment), expected);
            prop_assert_eq!(cache.classify(&spds[which], direction, &flow, fragment), expected);
        }
    }

    #[test]
    fn what_is_protected_or_discarded_lies_under_the_cover(
        policies in policies(12),
        discard in any::<bool>(),
        packets in vec(packet(), 200),
    ) {
        let fallback = if discard { Fallback::Discard } else { Fallback::Kernel };
        let spd = Spd::new(policies, fallback, 1);
        let (cover, protect) = (Cover::of(&spd), Cover::of_protect(&spd));
        for (direction, flow, fragment) in packets {
            let (local, remote) = sides(direction, &flow);
            let action = spd.classify_linear(direction, &flow, fragment).map(|index| &spd.policies[index].action);
            if matches!(action, Some(Action::Protect(_) | Action::Discard)) || (action.is_none() && discard) {
                prop_assert!(cover.contains(local, remote));
            }
            if matches!(action, Some(Action::Protect(_))) && direction == Direction::Outbound {
                prop_assert!(protect.forbids_clear_text(local, remote));
            }
        }
    }

    /// Exactly the union of the ranges: every edge address is inside or outside as the ranges say; and the
    /// lists are sorted, disjoint, aligned, and without two siblings that one prefix could replace.
    #[test]
    fn the_cover_is_exact_and_minimal(policies in policies(8), probes in vec(address(true), 20)) {
        let spd = Spd::new(policies, Fallback::Kernel, 1);
        let cover = Cover::of(&spd);
        let selectors: Vec<Selector> = spd.policies.iter()
            .filter(|policy| !matches!(policy.action, Action::Bypass))
            .flat_map(|policy| policy.selectors.clone())
            .collect();
        let edges = selectors.iter().flat_map(|s| {
            let v4 = s.remote.first.is_ipv4();
            let first = from_bits(v4, address_bits(s.remote.first).saturating_sub(1));
            let last = from_bits(v4, address_bits(s.remote.last).saturating_add(1).min(last_bits(v4)));
            [first, s.remote.first, s.remote.last, last]
        });
        for address in edges.chain(probes) {
            let meant = selectors.iter().any(|s| {
                s.remote.first.is_ipv4() == address.is_ipv4() && s.remote.first <= address && address <= s.remote.last
            });
            // The whole address space stands beside what else contains the address.
            let holding = || cover.remote.iter().filter(|p| p.contains(address));
            prop_assert_eq!(holding().count() > 0, meant);
            prop_assert!(holding().filter(|p| p.length > 0).count() <= 1);
            prop_assert!(holding().filter(|p| p.length == 0).count() <= 1);
        }
        for list in [&cover.local, &cover.remote] {
            let list: Vec<Prefix> = list.iter().copied().filter(|prefix| prefix.length > 0).collect();
            for prefix in &list {
                prop_assert!(prefix.length == 0 || prefix.contains(prefix.network));
            }
            for pair in list.windows(2) {
                let same_version = pair[0].network.is_ipv4() == pair[1].network.is_ipv4();
                prop_assert!(pair[0].network < pair[1].network);
                prop_assert!(!pair[0].contains(pair[1].network));
                if same_version && pair[0].length == pair[1].length {
                    let parent = Prefix { network: pair[0].network, length: pair[0].length - 1 };
                    let aligned = pair[0].network == from_bits(
                        pair[0].network.is_ipv4(),
                        parent_bits(&parent),
                    );
                    prop_assert!(!(aligned && parent.contains(pair[1].network)));
                }
            }
        }
    }
}

/// The network address of `prefix` with its host bits cleared.
fn parent_bits(prefix: &Prefix) -> u128 {
    let width = if prefix.network.is_ipv4() { 32 } else { 128 };
    let host_bits = width - u32::from(prefix.length);
    address_bits(prefix.network).checked_shr(host_bits).unwrap_or(0).checked_shl(host_bits).unwrap_or(0)
}

fn v4_range(first: &str, last: &str) -> AddressRange {
    AddressRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
}

fn any_upper(local: AddressRange, remote: AddressRange) -> Selector {
    Selector { local, remote, protocol: None, upper: UpperSelector::Any }
}

fn texts(prefixes: &[Prefix]) -> Vec<String> {
    prefixes.iter().map(Prefix::to_string).collect()
}

#[test]
fn ranges_become_the_fewest_prefixes() {
    let selectors = vec![
        // Two halves and one inside them: one prefix.
        any_upper(v4_range("10.0.0.0", "10.0.0.127"), v4_range("0.0.0.0", "127.255.255.255")),
        any_upper(v4_range("10.0.0.128", "10.0.0.255"), v4_range("128.0.0.0", "255.255.255.255")),
        any_upper(v4_range("10.0.0.9", "10.0.0.9"), v4_range("10.0.0.9", "10.0.0.9")),
        // Unaligned at both ends.
        any_upper(v4_range("192.168.0.1", "192.168.0.6"), v4_range("10.0.0.9", "10.0.0.9")),
    ];
    let cover =
        Cover::of(&Spd::new(vec![policy(true, true, selectors, Action::Discard)], Fallback::Kernel, 1));
    assert_eq!(
        texts(&cover.local),
        ["10.0.0.0/24", "192.168.0.1/32", "192.168.0.2/31", "192.168.0.4/31", "192.168.0.6/32"]
    );
    assert_eq!(texts(&cover.remote), ["0.0.0.0/0"]);
}

#[test]
fn the_fallback_discard_covers_everything_but_leaves_the_guard_alone() {
    let spd = Spd::new(Vec::new(), Fallback::Discard, 1);
    assert_eq!(texts(&Cover::of(&spd).local), ["0.0.0.0/0", "::/0"]);
    assert_eq!(texts(&Cover::of(&spd).remote), ["0.0.0.0/0", "::/0"]);
    assert_eq!(Cover::of_protect(&spd), Cover::default());
}

#[test]
fn a_default_route_into_the_tunnel_leaves_the_gateway_its_peer() {
    let site = v4_range("192.168.1.0", "192.168.1.255");
    let guard = |remote| {
        let selectors = vec![any_upper(site, remote)];
        let policies = vec![policy(true, true, selectors, Action::Protect(tunnel()))];
        Cover::of_protect(&Spd::new(policies, Fallback::Kernel, 1))
    };
    let gateway: IpAddr = [203, 0, 113, 1].into();
    let host: IpAddr = [192, 168, 1, 7].into();
    let peer: IpAddr = [198, 51, 100, 1].into();
    let behind_peer: IpAddr = [10, 1, 2, 3].into();

    let everything = guard(v4_range("0.0.0.0", "255.255.255.255"));
    assert!(!everything.forbids_clear_text(gateway, peer));
    assert!(everything.forbids_clear_text(host, peer));

    let other_site = guard(v4_range("10.1.0.0", "10.1.255.255"));
    assert!(!other_site.forbids_clear_text(host, peer));
    assert!(other_site.forbids_clear_text(host, behind_peer));
    assert!(other_site.forbids_clear_text(gateway, behind_peer));

    // Beside a policy for everything, what another one names stays named.
    let selectors = ["10.1.0.0", "0.0.0.0"].into_iter().zip(["10.1.255.255", "255.255.255.255"]);
    let selectors = selectors.map(|(first, last)| any_upper(site, v4_range(first, last))).collect();
    let policies = vec![policy(true, true, selectors, Action::Protect(tunnel()))];
    let both = Cover::of_protect(&Spd::new(policies, Fallback::Kernel, 1));
    assert_eq!(texts(&both.remote), ["0.0.0.0/0", "10.1.0.0/16"]);
    assert!(both.forbids_clear_text(gateway, behind_peer), "there, whoever sends");
    assert!(!both.forbids_clear_text(gateway, peer));
}

/// Ten thousand sites, with a catch-all in front of the end: lists stay short and the tree small.
#[test]
fn many_sites_compile_to_short_lists() {
    let office = v4_range("192.168.0.0", "192.168.255.255");
    let all = v4_range("0.0.0.0", "255.255.255.255");
    let mut policies: Vec<_> = (0..10_000u32)
        .map(|site| {
            let network = 0x0a00_0000 + site * 256;
            let remote = AddressRange {
                first: Ipv4Addr::from_bits(network).into(),
                last: Ipv4Addr::from_bits(network + 255).into(),
            };
            policy(true, true, vec![any_upper(office, remote)], Action::Bypass)
        })
        .collect();
    policies.push(policy(true, false, vec![any_upper(all, all)], Action::Discard));
    let spd = Spd::new(policies, Fallback::Kernel, 1);
    for (rules, references, longest) in [spd.classifier.shape()[0], spd.classifier.shape()[2]] {
        assert!(rules >= 10_000 && references <= 2 * rules, "{references} references");
        assert!(longest <= 5, "{longest} rules in a leaf");
    }
    let flow = |destination: [u8; 4]| Flow {
        source: [192, 168, 3, 4].into(),
        destination: destination.into(),
        protocol: 17,
        upper: Upper::Opaque,
    };
    assert_eq!(spd.classify(Direction::Outbound, &flow([10, 0, 7, 9]), Fragment::Later), Some(7));
    assert_eq!(spd.classify(Direction::Outbound, &flow([10, 39, 15, 255]), Fragment::Whole), Some(9_999));
    assert_eq!(spd.classify(Direction::Outbound, &flow([10, 39, 16, 0]), Fragment::Whole), Some(10_000));
    assert_eq!(spd.classify(Direction::Inbound, &flow([10, 39, 16, 0]), Fragment::Whole), None);
}

/// Boxes that no cut separates: every policy crosses every other. The tree stays within its budget and right.
#[test]
fn hostile_overlaps_stay_within_the_budget() {
    let at = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(n));
    let policies: Vec<_> = (0..2_000u32)
        .map(|n| {
            let nested = AddressRange { first: at(n * 1000), last: at(u32::MAX - n * 1000) };
            let stripe = AddressRange { first: at(n * 977 % 65_521), last: at(n * 977 % 65_521 + 40_000) };
            let (local, remote) = if n % 2 == 0 { (nested, stripe) } else { (stripe, nested) };
            policy(true, true, vec![any_upper(local, remote)], Action::Discard)
        })
        .collect();
    let spd = Spd::new(policies, Fallback::Kernel, 1);
    let (rules, references, _) = spd.classifier.shape()[0];
    assert!(references <= 8 * rules, "{references} references for {rules}");
    for n in 0..2_000u32 {
        let flow = Flow {
            source: at(n.wrapping_mul(40_503) % 110_000),
            destination: at(n.wrapping_mul(2_654_435_761)),
            protocol: 6,
            upper: Upper::Opaque,
        };
        for direction in [Direction::Outbound, Direction::Inbound] {
            let expected = spd.classify_linear(direction, &flow, Fragment::Whole);
            assert_eq!(spd.classify(direction, &flow, Fragment::Whole), expected);
        }
    }
}

/// All ports, written out, mean a packet that shows none (RFC 4301 section 7.1), also where the tree is cut between
/// ports and ICMP types: here that shortens the list more than any cut between protocols.
#[test]
fn all_ports_written_out_mean_a_packet_that_shows_none() {
    let site = v4_range("10.0.0.0", "10.0.0.255");
    let all = UpperSelector::Ports { local: PortRange::ANY, remote: PortRange::ANY };
    let echo = UpperSelector::Icmp { kinds: (8, 8), codes: (0, 0) };
    let rules = [(6, all, 20), (1, echo, 14), (58, echo, 14)];
    let policies = rules.into_iter().flat_map(|(protocol, upper, count)| {
        let selector = Selector { protocol: Some(protocol), upper, ..any_upper(site, site) };
        (0..count).map(move |_| policy(true, true, vec![selector], Action::Protect(tunnel())))
    });
    let spd = Spd::new(policies.collect(), Fallback::Kernel, 1);
    for (upper, fragment) in [
        (Upper::Opaque, Fragment::Whole),
        (Upper::Opaque, Fragment::Later),
        (Upper::Ports { source: 1, destination: 2 }, Fragment::Whole),
    ] {
        let flow =
            Flow { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), protocol: 6, upper };
        let found = spd.classify(Direction::Outbound, &flow, fragment);
        assert_eq!(found, Some(0), "{upper:?} {fragment:?}");
    }
}

/// RFC 4301 section 7.4, with what a fragment cannot show: ports, and behind extension headers the protocol.
#[test]
fn a_piece_of_what_is_protected_is_not_bypassed() {
    let everything = |v4: bool| AddressRange { first: from_bits(v4, 0), last: from_bits(v4, last_bits(v4)) };
    let web = |v4| Selector {
        local: everything(v4),
        remote: everything(v4),
        protocol: Some(6),
        upper: UpperSelector::Ports { local: PortRange::ANY, remote: PortRange { first: 80, last: 80 } },
    };
    let any = |v4| Selector { protocol: None, upper: UpperSelector::Any, ..web(v4) };
    let both = |one: &dyn Fn(bool) -> Selector| vec![one(true), one(false)];
    let flow = |v4, protocol, upper| Flow {
        source: known_addresses(v4)[1],
        destination: known_addresses(v4)[2],
        protocol,
        upper,
    };
    let opaque = |v4, protocol| flow(v4, protocol, Upper::Opaque);
    let (to_port, later) = (|destination| Upper::Ports { source: 1, destination }, Fragment::Later);
    for first in [Action::Protect(tunnel()), Action::Discard] {
        let wide = policy(true, true, both(&any), Action::Bypass);
        let spd = Spd::new(vec![policy(true, true, both(&web), first), wide], Fallback::Kernel, 1);
        for v4 in [true, false] {
            for (expected, flow, fragment) in [
                (Some(0), flow(v4, 6, to_port(80)), Fragment::First),
                (Some(1), flow(v4, 6, to_port(81)), Fragment::First),
                (None, opaque(v4, 6), later),
                // The header is cut off: the ports are in the next fragment.
                (None, opaque(v4, 6), Fragment::First),
                (Some(1), opaque(v4, 17), later),
                (Some(1), opaque(v4, 47), Fragment::Whole),
                // Destination options: TCP may follow them in the first fragment. IPv4 has no such headers.
                (v4.then_some(1), opaque(v4, 60), later),
                (Some(1), opaque(v4, 60), Fragment::Whole),
            ] {
                let found = spd.classify(Direction::Outbound, &flow, fragment);
                assert_eq!(found, expected, "{flow:?} {fragment:?}");
            }
        }
    }
    // Behind the wide BYPASS the other policy means nothing, and a protected piece may go along.
    for (first, second) in [(Action::Bypass, Action::Discard), (Action::Discard, Action::Protect(tunnel()))] {
        let wide = |action| policy(true, true, both(&any), action);
        let narrow = |action| policy(true, true, both(&web), action);
        let policies = match first {
            Action::Bypass => vec![wide(first), narrow(second)],
            _ => vec![narrow(first), wide(second)],
        };
        let index = usize::from(matches!(policies[1].action, Action::Protect(_)));
        let spd = Spd::new(policies, Fallback::Kernel, 1);
        assert_eq!(spd.classify(Direction::Outbound, &opaque(true, 6), later), Some(index));
    }
}
