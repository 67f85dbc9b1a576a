//! Every reason to drop that the pipeline has: one packet that is dropped for exactly that reason and no other,
//! the books balanced, nothing sent.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use adit_engine::offline::HeapFrames;
use adit_engine::pipeline::DropReason;
use adit_engine::policy::Action;
use adit_engine::route::{PortId, Side};
use adit_engine::sa::selector::{AddressRange, PortRange, Selector, UpperSelector};
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, address, networks, policy};
use adit_tests::packet::{
    DONT_FRAGMENT, MORE_FRAGMENTS, fix_ipv4, frame, ip, partial_checksum, tcp_syn, udp, with_fragment_field,
    with_traffic_class, with_ttl,
};

const IPV4: u8 = 4;
const UDP: u8 = 17;
const NO_NEXT_HEADER: u8 = 59;

fn gateway() -> Gateway {
    Gateway::new(Site::B, &Options::new())
}

/// The ICMP errors about decrypted packets return through the tunnel (see pipeline_tunnel): here they cannot.
fn gateway_without_outbound_sa(options: &Options) -> Gateway {
    let gateway = Gateway::new(Site::B, options);
    gateway.tunnel.outbound.replace(None);
    gateway
}

fn peer() -> Peer {
    Peer::of(Site::B, &Options::new())
}

/// From A's host to B's host, as it arrives inside ESP.
fn inner() -> Vec<u8> {
    udp(Site::A.host(false), Site::B.host(false), 100)
}

/// From B's host to A's host, as it arrives from inside.
fn outbound() -> Vec<u8> {
    udp(Site::B.host(false), Site::A.host(false), 100)
}

fn everything() -> Selector {
    let anyone = AddressRange { first: address("0.0.0.0"), last: address("255.255.255.255") };
    Selector { local: anyone, remote: anyone, protocol: None, upper: UpperSelector::Any }
}

fn with_policy(action: Action) -> Gateway {
    let mut options = Options::new();
    options.policies = vec![policy("first", vec![everything()], action)];
    Gateway::new(Site::B, &options)
}

const CASES: &[(DropReason, fn())] = &[
    (DropReason::Malformed, || {
        gateway().assert_drops_frame(INSIDE, vec![2; 13], DropReason::Malformed);
        gateway().assert_drops_frame(INSIDE, vec![], DropReason::Malformed);
        let mut wrong_version = frame(&outbound());
        wrong_version[12..14].copy_from_slice(&[0x86, 0xdd]);
        gateway().assert_drops_frame(INSIDE, wrong_version, DropReason::Malformed);
        let mut wrong_checksum = outbound();
        wrong_checksum[10] ^= 1;
        gateway().assert_drops(INSIDE, &wrong_checksum, DropReason::Malformed);
    }),
    (DropReason::NotIp, || {
        let arp = [&[0xff; 12][..], &[8, 6], &[0; 28]].concat();
        gateway().assert_drops_frame(INSIDE, arp, DropReason::NotIp);
    }),
    (DropReason::Vlan, || {
        for ether_type in [[0x81, 0], [0x88, 0xa8]] {
            let tagged = [&[2; 12][..], &ether_type, &[0, 5, 8, 0], &outbound()].concat();
            gateway().assert_drops_frame(INSIDE, tagged, DropReason::Vlan);
        }
    }),
    (DropReason::NoState, || {
        let mut unknown_spi = peer();
        unknown_spi.spi.0 += 1;
        gateway().assert_drops(OUTSIDE, &unknown_spi.seal(1, IPV4, &inner()), DropReason::NoState);
        let mut other_source = peer();
        other_source.source = address("192.0.2.2");
        gateway().assert_drops(OUTSIDE, &other_source.seal(1, IPV4, &inner()), DropReason::NoState);
        let mut other_endpoint = peer();
        other_endpoint.destination = Site::B.inside(false);
        gateway().assert_drops(OUTSIDE, &other_endpoint.seal(1, IPV4, &inner()), DropReason::NoState);
    }),
    (DropReason::EspFragment, || {
        for field in [MORE_FRAGMENTS, 1, MORE_FRAGMENTS | 185] {
            let sealed = with_fragment_field(peer().seal(1, IPV4, &inner()), field);
            gateway().assert_drops(OUTSIDE, &sealed, DropReason::EspFragment);
        }
    }),
    (DropReason::EspTooShort, || {
        let (source, destination) = (Site::A.endpoint(false), Site::B.endpoint(false));
        for length in 0..8 {
            let cut = ip(source, destination, 50, &vec![0; length]);
            gateway().assert_drops(OUTSIDE, &cut, DropReason::EspTooShort);
        }
        let sealed = peer().seal(1, IPV4, &inner());
        for length in 8..sealed.len() - 20 {
            let cut = ip(source, destination, 50, &sealed[20..20 + length]);
            let (header, iv, icv) = (8, 8, 16);
            let fits = length >= header + iv + icv + 4 && (length - header - iv - icv) % 4 == 0;
            let reason = if fits { DropReason::IcvFailed } else { DropReason::EspTooShort };
            gateway().assert_drops(OUTSIDE, &cut, reason);
        }
    }),
    (DropReason::ReplayDuplicate, || {
        let (mut gateway, mut peer) = (gateway(), peer());
        let sealed = peer.seal(5, IPV4, &inner());
        assert_eq!(gateway.run(OUTSIDE, std::slice::from_ref(&sealed)).len(), 1);
        gateway.assert_drops(OUTSIDE, &sealed, DropReason::ReplayDuplicate);
    }),
    (DropReason::ReplayOld, || {
        let (mut gateway, mut peer) = (gateway(), peer());
        assert_eq!(gateway.run(OUTSIDE, &[peer.seal(1025, IPV4, &inner())]).len(), 1);
        // The window of 1024 numbers is 2..=1025.
        gateway.assert_drops(OUTSIDE, &peer.seal(1, IPV4, &inner()), DropReason::ReplayOld);
        assert_eq!(gateway.run(OUTSIDE, &[peer.seal(2, IPV4, &inner())]).len(), 1);
    }),
    (DropReason::ReplayImpossible, || {
        let mut sealed = peer().seal(1, IPV4, &inner());
        sealed[24..28].fill(0);
        gateway().assert_drops(OUTSIDE, &sealed, DropReason::ReplayImpossible);
    }),
    (DropReason::IcvFailed, || {
        let sealed = peer().seal(1, IPV4, &inner());
        let mut gateway = gateway();
        for position in 24..sealed.len() {
            let mut forged = sealed.clone();
            forged[position] ^= 0x10;
            gateway.assert_drops(OUTSIDE, &forged, DropReason::IcvFailed);
        }
        assert_eq!(gateway.run(OUTSIDE, &[sealed]).len(), 1, "forgeries must not move the window");
    }),
    (DropReason::Dummy, || {
        gateway().assert_drops(OUTSIDE, &peer().seal(1, NO_NEXT_HEADER, &[0x5a; 61]), DropReason::Dummy);
    }),
    (DropReason::NextHeader, || {
        for next_header in [0, 6, UDP, 50, 51, 60, 144, 255] {
            let sealed = peer().seal(1, next_header, &inner());
            gateway().assert_drops(OUTSIDE, &sealed, DropReason::NextHeader);
        }
    }),
    (DropReason::InnerMalformed, || {
        let sealed = peer().seal(1, IPV4, &udp(Site::A.host(true), Site::B.host(true), 8));
        gateway().assert_drops(OUTSIDE, &sealed, DropReason::InnerMalformed);
        let mut too_long = inner();
        too_long[3] += 1;
        fix_ipv4(&mut too_long);
        gateway().assert_drops(OUTSIDE, &peer().seal(1, IPV4, &too_long), DropReason::InnerMalformed);
    }),
    (DropReason::EcnForbidden, || {
        let congested = with_traffic_class(peer().seal(1, IPV4, &inner()), 3);
        gateway().assert_drops(OUTSIDE, &congested, DropReason::EcnForbidden);
    }),
    (DropReason::InnerSource, || {
        for own in [Site::B.endpoint(false), Site::B.inside(false)] {
            let sealed = peer().seal(1, IPV4, &udp(own, Site::B.host(false), 10));
            gateway().assert_drops(OUTSIDE, &sealed, DropReason::InnerSource);
        }
    }),
    (DropReason::SelectorMismatch, || {
        let stranger = udp(address("10.3.0.2"), Site::B.host(false), 10);
        gateway().assert_drops(OUTSIDE, &peer().seal(1, IPV4, &stranger), DropReason::SelectorMismatch);
        let elsewhere = udp(Site::A.host(false), address("10.3.0.2"), 10);
        gateway().assert_drops(OUTSIDE, &peer().seal(1, IPV4, &elsewhere), DropReason::SelectorMismatch);
        let reversed = udp(Site::B.host(false), Site::A.host(false), 10);
        gateway().assert_drops(OUTSIDE, &peer().seal(1, IPV4, &reversed), DropReason::SelectorMismatch);
        // A later fragment carries no ports, so it is not what an SA for ports was agreed for.
        let mut options = Options::new();
        let port = |first, last| PortRange { first, last };
        let upper = UpperSelector::Ports { local: port(53, 53), remote: port(0, 65535) };
        let narrow = |selector| Selector { protocol: Some(UDP), upper, ..selector };
        options.selectors = Some(networks(Site::B).into_iter().map(narrow).collect());
        let mut gateway = Gateway::new(Site::B, &options);
        let later = with_fragment_field(inner(), 8);
        gateway.assert_drops(OUTSIDE, &peer().seal(1, IPV4, &later), DropReason::SelectorMismatch);
        assert_eq!(gateway.run(OUTSIDE, &[peer().seal(2, IPV4, &inner())]).len(), 1);
    }),
    (DropReason::PolicyMismatch, || {
        for action in [Action::Bypass, Action::Discard] {
            let sealed = peer().seal(1, IPV4, &inner());
            with_policy(action).assert_drops(OUTSIDE, &sealed, DropReason::PolicyMismatch);
        }
        let mut options = Options::new();
        options.selectors = Some(vec![everything()]);
        let mut gateway = Gateway::new(Site::B, &options);
        let unasked = udp(address("10.9.0.1"), Site::B.host(false), 10);
        gateway.assert_drops(OUTSIDE, &peer().seal(1, IPV4, &unasked), DropReason::PolicyMismatch);
    }),
    (DropReason::ClearText, || {
        gateway().assert_drops(OUTSIDE, &inner(), DropReason::ClearText);
        let v6 = udp(Site::A.host(true), Site::B.host(true), 10);
        gateway().assert_drops(OUTSIDE, &v6, DropReason::ClearText);
    }),
    (DropReason::PolicyDiscard, || {
        with_policy(Action::Discard).assert_drops(INSIDE, &outbound(), DropReason::PolicyDiscard);
        with_policy(Action::Discard).assert_drops(OUTSIDE, &inner(), DropReason::PolicyDiscard);
        let unmeant = udp(Site::B.host(false), address("10.9.0.1"), 10);
        gateway().assert_drops(INSIDE, &unmeant, DropReason::PolicyDiscard);
        // A later fragment shows no ports: it may be the rest of what the first policy does not let through, and
        // goes by no BYPASS behind it, either way.
        let port = |first, last| PortRange { first, last };
        for (local, remote) in [(port(0, 65535), port(1, 32768)), (port(1, 32768), port(0, 65535))] {
            let narrow = Selector {
                protocol: Some(UDP),
                upper: UpperSelector::Ports { local, remote },
                ..everything()
            };
            let mut options = Options::new();
            options.policies = vec![
                policy("narrow", vec![narrow], Action::Discard),
                policy("wide", vec![everything()], Action::Bypass),
            ];
            let mut gateway = Gateway::new(Site::B, &options);
            let later = |packet| with_fragment_field(packet, 8);
            gateway.assert_drops(INSIDE, &later(outbound()), DropReason::PolicyDiscard);
            gateway.assert_drops(OUTSIDE, &later(inner()), DropReason::PolicyDiscard);
            let other_protocol = later(ip(Site::B.host(false), Site::A.host(false), 47, &[0; 100]));
            assert_eq!(gateway.run(INSIDE, &[other_protocol]).len(), 1, "not a piece of any UDP datagram");
        }
        // Tables that are not there yet let nothing by.
        let mut empty = gateway();
        empty.engine.tables.spd.replace(None);
        empty.assert_drops(INSIDE, &outbound(), DropReason::PolicyDiscard);
    }),
    (DropReason::NoOutboundSa, || {
        let mut gateway = gateway();
        gateway.tunnel.outbound.replace(None);
        gateway.assert_drops(INSIDE, &outbound(), DropReason::NoOutboundSa);
    }),
    (DropReason::SequenceExhausted, || {
        let mut options = Options::new();
        options.last_sequence = u64::from(u32::MAX) - 1;
        let mut gateway = Gateway::new(Site::B, &options);
        assert_eq!(gateway.run(INSIDE, &[outbound()]).len(), 1, "2^32-1 is a number like any other");
        gateway.assert_drops(INSIDE, &outbound(), DropReason::SequenceExhausted);
        gateway.assert_drops(INSIDE, &outbound(), DropReason::SequenceExhausted);
    }),
    (DropReason::LeaseExhausted, || {
        let mut options = Options::new();
        let rung = Arc::<AtomicU32>::default();
        options.leased = Some(rung.clone());
        let mut gateway = Gateway::new(Site::B, &options);
        gateway.assert_drops(INSIDE, &outbound(), DropReason::LeaseExhausted);
        assert_eq!(rung.load(Relaxed), 1, "the keeper is called for");
        let lease = gateway.tunnel.outbound.get().unwrap().lease.clone().unwrap();
        lease.raise(2, u64::MAX);
        assert_eq!(gateway.run(INSIDE, &[outbound(), outbound(), outbound()]).len(), 2);
        assert_eq!(gateway.drops(), [(DropReason::LeaseExhausted, 2)], "both times the reason is the lease");
    }),
    (DropReason::ReplayFloor, || {
        let mut options = Options::new();
        let rung = Arc::<AtomicU32>::default();
        options.leased = Some(rung.clone());
        let mut gateway = Gateway::new(Site::B, &options);
        let inner = inner();
        // A forged number calls for nothing.
        let mut forged = peer().seal(1 << 20, IPV4, &inner);
        *forged.last_mut().unwrap() ^= 1;
        gateway.run(OUTSIDE, &[forged]);
        assert_eq!(rung.load(Relaxed), 0);
        gateway.assert_drops(OUTSIDE, &peer().seal(7, IPV4, &inner), DropReason::ReplayFloor);
        let lease = gateway.inbound_sa().lease.clone().unwrap();
        assert_eq!((rung.load(Relaxed), lease.reached()), (1, 7));
        lease.raise(7, u64::MAX);
        assert_eq!(gateway.run(OUTSIDE, &[peer().seal(7, IPV4, &inner)]).len(), 1, "it was not received");
    }),
    (DropReason::HardLifetime, || {
        let mut options = Options::new();
        options.limits.packets.hard = 1;
        let mut gateway = Gateway::new(Site::B, &options);
        assert_eq!(gateway.run(INSIDE, &[outbound()]).len(), 1);
        gateway.assert_drops(INSIDE, &outbound(), DropReason::HardLifetime);
        assert_eq!(gateway.run(OUTSIDE, &[peer().seal(1, IPV4, &inner())]).len(), 1);
        gateway.assert_drops(OUTSIDE, &peer().seal(2, IPV4, &inner()), DropReason::HardLifetime);
    }),
    (DropReason::TtlExceeded, || {
        for ttl in [0, 1] {
            let dying = with_ttl(inner(), ttl);
            gateway_without_outbound_sa(&Options::new()).assert_drops(
                OUTSIDE,
                &peer().seal(1, IPV4, &dying),
                DropReason::TtlExceeded,
            );
        }
    }),
    (DropReason::TooBig, || {
        let mut options = Options::new();
        options.inside_mtu = 600;
        let mut gateway = gateway_without_outbound_sa(&options);
        let large = with_fragment_field(udp(Site::A.host(false), Site::B.host(false), 573), DONT_FRAGMENT);
        assert_eq!(large.len(), 601);
        gateway.assert_drops(OUTSIDE, &peer().seal(1, IPV4, &large), DropReason::TooBig);
    }),
    (DropReason::NoRoute, || {
        let mut gateway = gateway();
        gateway.change_network(|ports| ports[1].side = Side::Protected);
        gateway.assert_drops(INSIDE, &outbound(), DropReason::NoRoute);
    }),
    (DropReason::NoProtectedRoute, || {
        let mut gateway = gateway();
        gateway.change_network(|ports| ports[0].side = Side::Unprotected);
        gateway.assert_drops(OUTSIDE, &peer().seal(1, IPV4, &inner()), DropReason::NoProtectedRoute);
    }),
    (DropReason::NoHostPath, || {
        let to_gateway = udp(Site::A.host(false), Site::B.inside(false), 10);
        gateway().assert_drops(OUTSIDE, &peer().seal(1, IPV4, &to_gateway), DropReason::NoHostPath);
        let from_inside = udp(Site::B.host(false), Site::B.inside(false), 10);
        gateway().assert_drops(INSIDE, &from_inside, DropReason::NoHostPath);
        let from_outside = udp(address("203.0.113.5"), Site::B.endpoint(false), 10);
        gateway().assert_drops(OUTSIDE, &from_outside, DropReason::NoHostPath);
    }),
    (DropReason::HostSource, || {
        // Forwarded by the kernel into the device: whatever the policy says of it.
        let forwarded = udp(Site::B.host(false), Site::A.host(false), 10);
        gateway().assert_drops(PortId::HOST, &forwarded, DropReason::HostSource);
        let v6 = udp(Site::B.host(true), Site::A.host(true), 10);
        gateway().assert_drops(PortId::HOST, &v6, DropReason::HostSource);
    }),
    (DropReason::HostUnprotected, || {
        let unmeant = udp(Site::B.inside(false), address("203.0.113.5"), 10);
        gateway().assert_drops(PortId::HOST, &unmeant, DropReason::HostUnprotected);
        let strange = udp(address("203.0.113.5"), Site::A.host(false), 10);
        gateway().assert_drops(PortId::HOST, &strange, DropReason::HostUnprotected);
        let from_outside_address = udp(Site::B.endpoint(false), Site::A.host(false), 10);
        gateway().assert_drops(PortId::HOST, &from_outside_address, DropReason::HostUnprotected);
        let meant = udp(Site::B.inside(false), Site::A.host(false), 10);
        with_policy(Action::Discard).assert_drops(PortId::HOST, &meant, DropReason::PolicyDiscard);
    }),
    (DropReason::PartialChecksum, || {
        let (source, destination) = (Site::B.host(false), Site::A.host(false));
        let mut packet = outbound();
        let sum = partial_checksum(source, destination, UDP, packet.len() - 20);
        packet[26..28].copy_from_slice(&sum.to_be_bytes());
        gateway().assert_drops(INSIDE, &packet, DropReason::PartialChecksum);
        let mut syn = tcp_syn(Site::B.host(true), Site::A.host(true), 1440);
        let sum = partial_checksum(Site::B.host(true), Site::A.host(true), 6, syn.len() - 40);
        syn[56..58].copy_from_slice(&sum.to_be_bytes());
        gateway().assert_drops(INSIDE, &syn, DropReason::PartialChecksum);
    }),
    (DropReason::NoFrame, || {
        let mut gateway = gateway();
        gateway.engine.frames = HeapFrames::new(0);
        gateway.assert_drops(INSIDE, &outbound(), DropReason::NoFrame);
        let sa = gateway.tunnel.outbound.get().unwrap();
        assert_eq!(sa.last_sequence(), 0, "a packet without a frame takes no number");
        let sealed = peer().seal(1, IPV4, &inner());
        gateway.assert_drops(OUTSIDE, &sealed, DropReason::NoFrame);
        gateway.engine.frames = HeapFrames::new(1);
        assert_eq!(gateway.run(OUTSIDE, &[sealed]).len(), 1, "its number was not marked as received");
    }),
    (DropReason::LinkDown, || {
        let mut gateway = gateway();
        gateway.change_network(|ports| ports.iter_mut().for_each(|port| port.up = false));
        gateway.assert_drops(INSIDE, &outbound(), DropReason::LinkDown);
        gateway.assert_drops(OUTSIDE, &peer().seal(1, IPV4, &inner()), DropReason::LinkDown);
    }),
];

/// What drops elsewhere, and where that is tested.
const ELSEWHERE: &[(DropReason, &str)] = &[
    (DropReason::NatKeepalive, "vectors_packets"),
    (DropReason::AhLength, "pipeline_ah"),
    (DropReason::AhHeaders, "pipeline_ah"),
    (DropReason::TransportFragment, "pipeline_transport"),
    (DropReason::Nesting, "pipeline_nesting"),
    (DropReason::IcmpNoted, "pipeline_path_mtu"),
    (DropReason::IcmpQuote, "pipeline_icmp"),
    (DropReason::IcmpForged, "pipeline_path_mtu"),
    (DropReason::IcmpRefused, "pipeline_path_mtu"),
    (DropReason::ReassemblyTimeout, "pipeline_reassembly"),
    (DropReason::ReassemblyMemory, "pipeline_reassembly"),
    (DropReason::ReassemblySource, "pipeline_reassembly"),
    (DropReason::ReassemblyFragments, "pipeline_reassembly"),
    (DropReason::ReassemblyOverlap, "pipeline_reassembly"),
    (DropReason::ReassemblyDuplicate, "pipeline_reassembly"),
    (DropReason::ReassemblyInvalid, "pipeline_reassembly"),
    (DropReason::BadPadLength, "vectors_packets: no honest sealer makes it"),
    (DropReason::BadPadding, "vectors_packets: no honest sealer makes it"),
    (DropReason::NoNeighbour, "io: the pipeline hands such a frame out as unresolved"),
    (DropReason::NoLargeFrame, "io: how many packets of several frames are gathered at once"),
    (DropReason::HandOverFull, "io: the queue between workers"),
    (DropReason::TransmitFailed, "io: the kernel's answer"),
    (DropReason::HostRefused, "io: the kernel's answer"),
];

#[test]
fn every_reason_drops_exactly_what_it_names() {
    for (reason, case) in CASES {
        println!("{}", reason.name());
        case();
    }
}

#[test]
fn no_reason_is_forgotten() {
    let tested = CASES.iter().map(|(reason, _)| *reason).chain(ELSEWHERE.iter().map(|(reason, _)| *reason));
    let mut tested: Vec<_> = tested.map(|reason| reason as u8).collect();
    tested.sort_unstable();
    let all: Vec<_> = DropReason::ALL.iter().map(|reason| *reason as u8).collect();
    assert_eq!(tested, all);
}
