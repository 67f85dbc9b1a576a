//! The gateway itself at the ends of a tunnel: its packets go in, and come out, as its own stack wrote them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::{Authentication, Encryption, IvSource};
use adit_engine::io::host::plan::{self, Plan, Table, Target};
use adit_engine::offline::Engine;
use adit_engine::pipeline::reassembly::Limits;
use adit_engine::pipeline::{DropReason, HostEnd, Received};
use adit_engine::policy::Action;
use adit_engine::route::PortId;
use adit_engine::sa::selector::{AddressRange, PortRange, Selector, UpperSelector};
use adit_engine::sa::spec::{Mode, Protocol};
use adit_engine::transform::ah::Padding;
use adit_engine::transform::transport::DestinationOptions;
use adit_engine::wire::ip;
use adit_tests::memory::{Gateway, HOST_END, INSIDE, OUTSIDE, Options, Peer, Site, address, policy, suite};
use adit_tests::packet::{
    self, DONT_FRAGMENT, frame, one_hop_on, tcp_syn, transport_checksum, udp, unframe, with_fragment_field,
    with_ttl,
};
use adit_tests::scapy;

const HOST: PortId = PortId::HOST;

fn pair(options: &Options) -> (Gateway, Gateway) {
    let (a, b) = Gateway::pair(options);
    (a.with_host(), b.with_host())
}

/// In at A by `from`, through the wire, out at B.
fn through(a: &mut Gateway, b: &mut Gateway, from: PortId, packets: &[Vec<u8>]) -> Vec<(PortId, Vec<u8>)> {
    let sealed = a.run(from, packets);
    assert!(
        sealed
            .iter()
            .all(|(port, packet)| *port == OUTSIDE && packet[if packet[0] >> 4 == 4 { 9 } else { 6 }] == 50)
    );
    let sealed: Vec<_> = sealed.into_iter().map(|(_, packet)| packet).collect();
    b.run(OUTSIDE, &sealed)
}

#[test]
fn from_gateway_to_gateway_and_to_hosts() {
    for outer_ipv6 in [false, true] {
        let (mut a, mut b) = pair(&Options { outer_ipv6, ..Options::new() });
        for ipv6 in [false, true] {
            // RFC 4301 section 5.1.2.1: who does not forward does not count the hop down, nor mind that it is the last.
            let own = [64, 1].map(|ttl| with_ttl(udp(Site::A.inside(ipv6), Site::B.inside(ipv6), 100), ttl));
            let expected = own.clone().map(|packet| (HOST, packet));
            assert_eq!(through(&mut a, &mut b, HOST, &own), expected);

            let to_host = udp(Site::A.inside(ipv6), Site::B.host(ipv6), 100);
            assert_eq!(
                through(&mut a, &mut b, HOST, std::slice::from_ref(&to_host)),
                [(INSIDE, one_hop_on(&to_host))]
            );

            let from_host = udp(Site::A.host(ipv6), Site::B.inside(ipv6), 100);
            assert_eq!(
                through(&mut a, &mut b, INSIDE, std::slice::from_ref(&from_host)),
                [(HOST, one_hop_on(&from_host))]
            );
        }
        assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
        assert_eq!(b.engine.counters().delivered.load(Relaxed), 6);
        assert_eq!(b.engine.counters().transmitted.load(Relaxed), 2);
    }
}

/// Whoever is delivered to the gateway was let in by its SA and by the policy, like everybody else.
#[test]
fn what_is_delivered_was_let_in() {
    let options = Options::new();
    let mut b = Gateway::new(Site::B, &options);
    b.engine.frames.host = Some(HOST_END);
    let mut peer = Peer::of(Site::B, &options);
    let mut sealed = |sequence, packet: &[u8]| peer.seal(sequence, 4, packet);
    let stranger = sealed(1, &udp(address("10.3.0.2"), Site::B.inside(false), 10));
    b.assert_drops(OUTSIDE, &stranger, DropReason::SelectorMismatch);
    let to_outside_address = sealed(2, &udp(Site::A.host(false), Site::B.endpoint(false), 10));
    b.assert_drops(OUTSIDE, &to_outside_address, DropReason::SelectorMismatch);
    let own_source = sealed(3, &udp(Site::B.inside(false), Site::B.inside(false), 10));
    b.assert_drops(OUTSIDE, &own_source, DropReason::InnerSource);
    // In clear, there is no way to the host by the engine.
    b.assert_drops(OUTSIDE, &udp(Site::A.host(false), Site::B.inside(false), 10), DropReason::ClearText);
    b.assert_drops(INSIDE, &udp(Site::B.host(false), Site::B.inside(false), 10), DropReason::NoHostPath);
    assert_eq!(b.engine.counters().delivered.load(Relaxed), 0);
}

#[test]
fn what_was_delivered_does_not_lie_about_in_free_frames() {
    let (mut a, mut b) = pair(&Options::new());
    let mut packet = udp(Site::A.inside(false), Site::B.inside(false), 600);
    packet[28..].fill(0xa5);
    let sum = {
        packet[26..28].fill(0);
        transport_checksum(Site::A.inside(false), Site::B.inside(false), 17, &packet[20..])
    };
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(through(&mut a, &mut b, HOST, &[packet.clone()]), [(HOST, packet)]);
    // Traffic-flow confidentiality padding behind a packet (RFC 4303 section 2.7) is plaintext too.
    let padded = [udp(Site::A.inside(false), Site::B.inside(false), 10), vec![0xa5; 64]].concat();
    let sealed = Peer::of(Site::B, &Options::new()).seal(9, 4, &padded);
    assert_eq!(b.run(OUTSIDE, &[sealed])[0].1, padded[..38]);
    assert!(b.engine.frames.free().iter().all(|frame| !frame.windows(16).any(|bytes| bytes == [0xa5; 16])));
}

/// Outside 1500: 20 outer IP, 8 ESP, 8 IV, 16 ICV leave 1448; less pad length and next header, multiple of 4.
const INSIDE_MTU: usize = 1446;

#[test]
fn the_gateways_own_stack_is_told_what_is_too_big() {
    let (mut a, mut b) = pair(&Options::new());
    for (ipv6, header) in [(false, 28), (true, 48)] {
        let own = |length: usize| {
            let packet = udp(Site::A.inside(ipv6), Site::B.inside(ipv6), length);
            if ipv6 { packet } else { with_fragment_field(packet, DONT_FRAGMENT) }
        };
        assert_eq!(through(&mut a, &mut b, HOST, &[own(INSIDE_MTU - header)]).len(), 1);
        let told = a.run(HOST, &[own(INSIDE_MTU - header + 1)]);
        let [(HOST, error)] = &told[..] else { panic!("{told:?}") };
        // RFC 1191 section 4 (3, 4, next-hop MTU at 6), RFC 4443 section 3.2 (2, 0, MTU at 4).
        let (from, to, kind, mtu) = if ipv6 {
            (&error[8..24], &error[24..40], &error[40..42], &error[46..48])
        } else {
            (&error[12..16], &error[16..20], &error[20..22], &error[26..28])
        };
        let HostEnd { v4, v6 } = HOST_END;
        let own_address = if ipv6 { own(0)[8..24].to_vec() } else { own(0)[12..16].to_vec() };
        assert_eq!(from, if ipv6 { v6.octets().to_vec() } else { v4.octets().to_vec() });
        assert_eq!(to, own_address);
        let kind_wanted = if ipv6 { [2, 0] } else { [3, 4] };
        assert_eq!((kind, mtu), (&kind_wanted[..], &(INSIDE_MTU as u16).to_be_bytes()[..]));
    }
    assert_eq!(a.drops(), [(DropReason::TooBig, 2)]);
    assert_eq!(a.engine.counters().originated.load(Relaxed), 2);
    // Without DF it is fragmented, and the first fragment's TTL is the packet's.
    let sent = through(&mut a, &mut b, HOST, &[udp(Site::A.inside(false), Site::B.inside(false), 1472)]);
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|(port, packet)| *port == HOST && packet[8] == 64));
}

#[test]
fn segments_of_the_gateways_own_connections_fit() {
    let (mut a, mut b) = pair(&Options::new());
    let syn = tcp_syn(Site::A.inside(false), Site::B.inside(false), 1460);
    let [(HOST, there)] = &through(&mut a, &mut b, HOST, &[syn])[..] else { panic!("it arrives") };
    assert_eq!(there[42..44], (INSIDE_MTU as u16 - 40).to_be_bytes());
    // A peer that does not clamp: the way in does.
    let options = Options { clamp_mss: false, ..Options::new() };
    let (mut a, _) = pair(&options);
    let syn = tcp_syn(Site::A.inside(false), Site::B.inside(false), 1460);
    let (_, mut b) = pair(&Options::new());
    let [(HOST, there)] = &through(&mut a, &mut b, HOST, &[syn])[..] else { panic!("it arrives") };
    assert_eq!(there[42..44], (INSIDE_MTU as u16 - 40).to_be_bytes());
}

/// Without a way to its own stack, the gateway's packets may still go in; errors about them have nowhere to go.
#[test]
fn nobody_there() {
    let mut a = Gateway::new(Site::A, &Options::new());
    let own = with_fragment_field(udp(Site::A.inside(false), Site::B.inside(false), 1472), DONT_FRAGMENT);
    a.assert_drops(HOST, &own, DropReason::TooBig);
    assert_eq!(a.engine.counters().originated.load(Relaxed), 0);
}

/// Transport mode between A and B themselves, every protocol and family; B puts together whatever comes.
fn transport() -> impl Iterator<Item = Options> {
    let sha256 = suite(Encryption::Null, Authentication::Sha256);
    let ah = Options { protocol: Protocol::Ah(Padding::Rfc4302), ..Options::with_suite(sha256) };
    let in_udp = Options { udp_port: Some(4500), ..Options::new() };
    let reassembly = Limits::default();
    let mode = Mode::Transport(DestinationOptions::After);
    [Options::new(), ah, in_udp]
        .into_iter()
        .flat_map(|options| [false, true].map(|ipv6| Options { outer_ipv6: ipv6, ..options.clone() }))
        .map(move |options| Options { mode, reassembly, ..options })
}

/// RFC 4303 section 3.3.4: "transport mode is applied only to whole IP datagrams". The gateway's own stack fragments what
/// is too large for the route; the peer gets it whole, in fragments of ESP or AH, and the books balance.
#[test]
fn what_the_gateways_own_stack_fragments_is_sealed_whole() {
    for options in transport() {
        let (source, destination) = (Site::A.host(options.outer_ipv6), Site::B.host(options.outer_ipv6));
        // To the longest that still is an IP packet behind the seal.
        let datagrams = [1_473, 3_008, 4_000, 20_000, 65_400].map(|length| udp(source, destination, length));
        for route in [1280, 1430, 1500] {
            let own = scapy::fragments(&datagrams, route);
            let count: usize = own.iter().map(Vec::len).sum();
            let (mut a, mut b) = pair(&options);
            let mut sent = Vec::new();
            for fragments in own {
                let mut arrivals = fragments.clone();
                if sent.is_empty() {
                    arrivals.reverse();
                }
                sent.extend(a.run(HOST, &arrivals).into_iter().map(|(port, packet)| {
                    assert!(port == OUTSIDE && packet.len() <= 1500);
                    packet
                }));
            }
            assert_eq!((a.drops(), a.engine.tables.reassembly.held()), (vec![], 0));
            let counters = a.engine.counters();
            assert_eq!(counters.sealed.load(Relaxed), datagrams.len() as u64);
            assert_eq!(counters.absorbed.load(Relaxed), (count - datagrams.len()) as u64);
            // Who is not ours puts them together too.
            let whole = scapy::whole(&sent);
            let number = if options.udp_port.is_some() { 17 } else { options.protocol.number() };
            assert_eq!(whole.len(), datagrams.len());
            assert!(whole.iter().all(|packet| ip::parse(packet).unwrap().flow.protocol == number));
            assert_eq!(b.run(OUTSIDE, &sent), datagrams.clone().map(|packet| (HOST, packet)));
        }
    }
}

/// What is too long for an IP packet once it is sealed, what is never complete, and what the kernel only forwards.
#[test]
fn fragments_that_never_become_a_packet() {
    for options in transport() {
        let (source, destination) = (Site::A.host(options.outer_ipv6), Site::B.host(options.outer_ipv6));
        let (mut a, _) = pair(&options);
        let longest = udp(source, destination, 65_500 - if options.outer_ipv6 { 20 } else { 0 });
        let own = scapy::fragments(&[longest], 1500).concat();
        assert_eq!(a.run(HOST, &own), []);
        assert_eq!(a.drops(), [(DropReason::TooBig, 1)]);
        let lost = scapy::fragments(&[udp(source, destination, 3_000)], 1500).concat();
        assert_eq!(a.run(HOST, &lost[1..]), []);
        assert_eq!(a.engine.tables.reassembly.held(), 2);
        a.engine.expire(2_000);
        assert_eq!(a.drops(), [(DropReason::ReassemblyTimeout, 2), (DropReason::TooBig, 1)]);
        let stranger = if options.outer_ipv6 { "2001:db8:77::7" } else { "203.0.113.5" };
        let forwarded = scapy::fragments(&[udp(address(stranger), destination, 3_000)], 1500).concat();
        assert_eq!(a.run(HOST, &forwarded), []);
        assert_eq!(a.drops()[0].1 + a.drops()[1].1, 3);
        assert_eq!(a.drops()[2], (DropReason::HostUnprotected, 3));
    }
}

/// The route to a peer has the largest MTU at which a packet leaves as one, so that its fragments, and the MSS of
/// connections, are right from the first packet on.
#[test]
fn the_route_to_a_peer_has_the_mtu_of_its_tunnel() {
    for outside_mtu in [1400, 1500, 9000] {
        for options in transport().map(|options| Options { outside_mtu, ..options }) {
            let (mut a, _) = pair(&options);
            let (spd, network) = (a.engine.tables.spd.get(), a.engine.tables.network.get());
            let network = network.unwrap();
            let plan = Plan::new(&spd.unwrap(), &network, HOST_END.v4.into());
            let (source, destination) = (Site::A.host(options.outer_ipv6), Site::B.host(options.outer_ipv6));
            let length = if options.outer_ipv6 { 128 } else { 32 };
            let Some(&Target::Device { source: from, mtu: Some(mtu) }) =
                plan.routes.get(&(Table::Peers, destination, length))
            else {
                panic!("{:?}", plan.routes)
            };
            assert_eq!((from, plan::device_mtu(&network)), (source, outside_mtu));
            let header = if options.outer_ipv6 { 48 } else { 28 };
            let own = |mtu: u32| {
                let packet = udp(source, destination, mtu as usize - header);
                if options.outer_ipv6 { packet } else { with_fragment_field(packet, DONT_FRAGMENT) }
            };
            let sent = a.run(HOST, &[own(mtu)]);
            assert!(sent.len() == 1 && sent[0].0 == OUTSIDE && sent[0].1.len() <= outside_mtu as usize);
            assert_eq!(a.run(HOST, &[own(mtu + 1)])[0].0, HOST, "it is told");
        }
    }
    // While a tunnel has no SA, and where nothing is known of the way.
    let (a, _) = pair(&transport().next().unwrap());
    a.tunnel.outbound.replace(None);
    let (spd, network) = (a.engine.tables.spd.get().unwrap(), a.engine.tables.network.get().unwrap());
    let plan = Plan::new(&spd, &network, HOST_END.v4.into());
    assert!(plan.routes.values().all(|target| matches!(target, Target::Device { mtu: None, .. })));
}

/// The fragments come to one worker, and the SA is another one's: it is handed the datagram.
#[test]
fn a_datagram_goes_to_the_worker_that_numbers_its_sa() {
    let options = transport().next().unwrap();
    let (mut a, mut b) = pair(&options);
    let (source, destination) = (Site::A.host(false), Site::B.host(false));
    let first = udp(source, destination, 20);
    let mut sent = a.run(HOST, std::slice::from_ref(&first));
    let mut second = Engine::new(Arc::clone(&a.engine.tables), 1, IvSource::from_seed([1; 32]));
    let datagram = udp(source, destination, 4_000);
    for packet in scapy::fragments(std::slice::from_ref(&datagram), 1500).concat() {
        second.process(0, &mut [Received { port: HOST, frame: &mut frame(&packet) }]);
        assert_eq!(second.take_handed_over().count(), 0);
    }
    let mut handed: Vec<_> = second.take_handed_over_completed().collect();
    let [(completed, 0)] = &mut handed[..] else { panic!("{} datagrams", handed.len()) };
    a.engine.process(0, &mut [Received { port: completed.port, frame: &mut completed.frame }]);
    a.engine.transmit(|output| sent.push((output.port, unframe(&output.frame[..output.length]).to_vec())));
    let sent: Vec<_> = sent.into_iter().map(|(_, packet)| packet).collect();
    assert_eq!(sent.len(), 4);
    assert_eq!(b.run(OUTSIDE, &sent), [(HOST, first), (HOST, datagram)]);
}

/// Between A and B themselves: ICMP goes in clear, UDP to port 9 nowhere, and the rest is protected.
fn mixed(ipv6: bool, site: Site) -> Options {
    let selector = |protocol, upper| Selector {
        local: AddressRange::single(site.host(ipv6)),
        remote: AddressRange::single(site.peer().host(ipv6)),
        protocol: Some(protocol),
        upper,
    };
    let port = |first, last| PortRange { first, last };
    let discard = UpperSelector::Ports { local: port(0, 65_535), remote: port(9, 9) };
    let policies = vec![
        policy("icmp", vec![selector(if ipv6 { 58 } else { 1 }, UpperSelector::Any)], Action::Bypass),
        policy("nine", vec![selector(17, discard)], Action::Discard),
    ];
    let mode = Mode::Transport(DestinationOptions::After);
    Options { mode, outer_ipv6: ipv6, policies, reassembly: Limits::default(), ..Options::new() }
}

/// The routes into the device know addresses only, so all that is between two peers comes to the engine, and what may be in
/// clear leaves by it; and arrives by it.
#[test]
fn what_may_go_in_clear_goes_in_clear() {
    for ipv6 in [false, true] {
        let (mut a, mut b) = (
            Gateway::new(Site::A, &mixed(ipv6, Site::A)).with_host(),
            Gateway::new(Site::B, &mixed(ipv6, Site::B)).with_host(),
        );
        let (source, destination) = (Site::A.host(ipv6), Site::B.host(ipv6));
        let icmp = if ipv6 { 58 } else { 1 };
        let echo = |length| packet::ip(source, destination, icmp, &vec![0xa5; length]);
        // The gateway is no router here: the hop limit stays.
        let (small, last_hop) = (echo(100), with_ttl(echo(100), 1));
        let out = a.run(HOST, &[small.clone(), last_hop.clone()]);
        assert_eq!(out, [(OUTSIDE, small.clone()), (OUTSIDE, last_hop.clone())]);
        assert_eq!(b.run(OUTSIDE, &[small.clone(), last_hop.clone()]), [(HOST, small), (HOST, last_hop)]);
        // What the stack fragments for the tunnel's MTU leaves in fragments of the link's.
        let large = echo(4_000);
        let own = scapy::fragments(std::slice::from_ref(&large), 1400).concat();
        let out: Vec<_> = a.run(HOST, &own).into_iter().map(|(_, packet)| packet).collect();
        assert!(out.len() == 3 && out.iter().all(|packet| packet.len() <= 1500));
        assert_eq!(scapy::whole(&out), [large]);
        let arrived: Vec<_> = b.run(OUTSIDE, &out);
        assert_eq!(arrived, out.into_iter().map(|packet| (HOST, packet)).collect::<Vec<_>>());
        // An error about what went in clear, not to be mistaken for one about what was sealed.
        let about = scapy::errors(&[echo(200)], &destination.to_string(), "unreachable", 0, 9_000);
        assert_eq!(a.run(OUTSIDE, &about), [(HOST, about[0].clone())]);
        let counters = [&a, &b].map(|gateway| gateway.engine.counters());
        assert_eq!(counters.map(|counters| counters.bypassed.load(Relaxed)), [4, 5]);

        assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
        let nine = packet::udp_ports(source, destination, 1000, 9, 20);
        a.assert_drops(HOST, &nine, DropReason::PolicyDiscard);
        let back = packet::udp_ports(source, destination, 9, 1000, 20);
        b.assert_drops(OUTSIDE, &back, DropReason::PolicyDiscard);
        let protected = udp(source, destination, 3_000);
        b.assert_drops(OUTSIDE, &udp(source, destination, 20), DropReason::ClearText);
        let own = scapy::fragments(std::slice::from_ref(&protected), 1400).concat();
        let sealed: Vec<_> = a.run(HOST, &own).into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(b.run(OUTSIDE, &sealed), [(HOST, protected)]);

        let stranger = packet::ip(
            address(if ipv6 { "2001:db8:77::7" } else { "203.0.113.5" }),
            destination,
            icmp,
            &[0; 8],
        );
        a.assert_drops(HOST, &stranger, DropReason::HostUnprotected);
        b.engine.frames.host = None;
        b.assert_drops(OUTSIDE, &echo(100), DropReason::NoHostPath);
    }
}

/// Whatever the policy: nobody outside has one of the gateway's own addresses.
#[test]
fn clear_text_in_the_gateways_own_name() {
    let any = AddressRange { first: address("0.0.0.0"), last: address("255.255.255.255") };
    let everything = Selector { local: any, remote: any, protocol: None, upper: UpperSelector::Any };
    let policies = vec![policy("all", vec![everything], Action::Bypass)];
    let mut b = Gateway::new(Site::B, &Options { policies, ..Options::new() }).with_host();
    let own = Site::B.inside(false);
    let honest = udp(address("203.0.113.5"), own, 10);
    assert_eq!(b.run(OUTSIDE, std::slice::from_ref(&honest)), [(HOST, honest)]);
    b.assert_drops(OUTSIDE, &udp(own, own, 10), DropReason::InnerSource);
}

/// Too large for the link and not to be fragmented: its sender is the gateway's own stack.
#[test]
fn the_gateways_own_stack_is_told_what_is_too_big_for_the_link() {
    let mut a = Gateway::new(Site::A, &mixed(false, Site::A)).with_host();
    let echo = packet::ip(Site::A.host(false), Site::B.host(false), 1, &[0; 1500]);
    let told = a.run(HOST, &[with_fragment_field(echo, DONT_FRAGMENT)]);
    assert_eq!((told[0].0, &told[0].1[20..22], &told[0].1[26..28]), (HOST, &[3, 4][..], &[5, 220][..]));
    assert_eq!(a.drops(), [(DropReason::TooBig, 1)]);
}
