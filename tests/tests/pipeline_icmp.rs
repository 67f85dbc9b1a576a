//! ICMP errors of others inside tunnels (RFC 4301 section 6.2), and what a sender is told of a policy. The errors are
//! scapy's.

use std::sync::atomic::Ordering::Relaxed;

use adit_engine::pipeline::{DropReason, IcmpRules};
use adit_engine::policy::Action;
use adit_engine::sa::selector::{AddressRange, PortRange, Selector, UpperSelector};
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, address, networks, policy};
use adit_tests::packet::{DONT_FRAGMENT, one_hop_on, udp, udp_ports, with_fragment_field};
use adit_tests::scapy;

/// A router behind A that no selector knows.
fn router(v6: bool) -> &'static str {
    if v6 { "2001:db8:99::9" } else { "10.99.0.9" }
}

/// From B's host to A's, as a router behind A has it.
fn sent(v6: bool) -> Vec<u8> {
    udp(Site::B.host(v6), Site::A.host(v6), 400)
}

fn error(about: &[u8], v6: bool, kind: &str) -> Vec<u8> {
    scapy::errors(&[about.to_vec()], router(v6), kind, 1_300, 64).remove(0)
}

#[test]
fn a_routers_error_goes_by_what_it_quotes() {
    for v6 in [false, true] {
        for kind in ["too-big", "unreachable", "time-exceeded", "parameter-problem"] {
            let (mut a, mut b) = Gateway::pair(&Options::new());
            let error = error(&sent(v6), v6, kind);
            let sealed = a.run(INSIDE, std::slice::from_ref(&error));
            assert_eq!((sealed.len(), a.drops()), (1, vec![]));
            let out = b.run(OUTSIDE, &[sealed[0].1.clone()]);
            assert_eq!(out, [(INSIDE, one_hop_on(&one_hop_on(&error)))]);
        }
    }
}

#[test]
fn an_error_that_quotes_nothing_of_the_tunnels_goes_nowhere() {
    let (site_a, site_b) = (Site::A.host(false), Site::B.host(false));
    let stranger = address("10.77.0.7");
    for (about, why) in [
        // It is about a packet of somebody else's, or to somebody else.
        (udp(site_b, stranger, 400), "not to A"),
        (udp(site_a, site_b, 400), "not from B"),
    ] {
        let mut error = error(&about, false, "unreachable");
        // To B's host, whoever sent what it quotes.
        error[16..20].copy_from_slice(&[10, 2, 0, 3]);
        adit_tests::packet::fix_ipv4(&mut error);
        let mut a = Gateway::new(Site::A, &Options::new());
        println!("{why}");
        a.assert_drops(INSIDE, &error, DropReason::PolicyDiscard);
        let sealed = Peer::of(Site::B, &Options::new()).seal(1, 4, &error);
        Gateway::new(Site::B, &Options::new()).assert_drops(OUTSIDE, &sealed, DropReason::IcmpQuote);
    }
    // To another of B's hosts than the one that sent it.
    let mut elsewhere = error(&sent(false), false, "unreachable");
    elsewhere[19] = 77;
    adit_tests::packet::fix_ipv4(&mut elsewhere);
    let sealed = Peer::of(Site::B, &Options::new()).seal(1, 4, &elsewhere);
    Gateway::new(Site::B, &Options::new()).assert_drops(OUTSIDE, &sealed, DropReason::IcmpQuote);
    Gateway::new(Site::A, &Options::new()).assert_drops(INSIDE, &elsewhere, DropReason::PolicyDiscard);
    // What is no error has no quote.
    let mut echo = error(&sent(false), false, "unreachable");
    (echo[20], echo[21]) = (8, 0);
    let sealed = Peer::of(Site::B, &Options::new()).seal(1, 4, &echo);
    Gateway::new(Site::B, &Options::new()).assert_drops(OUTSIDE, &sealed, DropReason::SelectorMismatch);
}

/// The quoted ports are held to the SA as well, and one error that is right says nothing of the next.
#[test]
fn each_error_is_judged_by_its_own_quote() {
    let port = PortRange { first: 53, last: 53 };
    let any = PortRange { first: 0, last: u16::MAX };
    let selectors = vec![Selector {
        local: Site::B.network(false),
        remote: Site::A.network(false),
        protocol: Some(17),
        upper: UpperSelector::Ports { local: any, remote: port },
    }];
    let options = Options { selectors: Some(selectors), ..Options::new() };
    let (mut b, mut peer) = (Gateway::new(Site::B, &options), Peer::of(Site::B, &options));
    let about = |port| udp_ports(Site::B.host(false), Site::A.host(false), 4_660, port, 400);
    let right = error(&about(53), false, "unreachable");
    let wrong = error(&about(54), false, "unreachable");
    let burst = [peer.seal(1, 4, &right), peer.seal(2, 4, &wrong), peer.seal(3, 4, &right)];
    assert_eq!(b.run(OUTSIDE, &burst).len(), 2);
    assert_eq!(b.drops(), [(DropReason::IcmpQuote, 1)]);
    // And in the next burst.
    b.assert_drops(OUTSIDE, &peer.seal(4, 4, &wrong), DropReason::IcmpQuote);
}

/// A policy that discards such errors has the say; what it quotes only speaks where no policy does.
#[test]
fn a_policy_for_the_error_itself_decides() {
    let anyone = AddressRange { first: address("0.0.0.0"), last: address("255.255.255.255") };
    let selector = Selector { local: anyone, remote: anyone, protocol: Some(1), upper: UpperSelector::Any };
    let options =
        Options { policies: vec![policy("no-icmp", vec![selector], Action::Discard)], ..Options::new() };
    let error = error(&sent(false), false, "unreachable");
    Gateway::new(Site::A, &options).assert_drops(INSIDE, &error, DropReason::PolicyDiscard);
}

/// The gateway's own errors as well: its address inside need not be one that the tunnel is for.
#[test]
fn our_own_errors_return_by_what_they_quote() {
    let only_host = |site: Site| {
        let [mut v4, v6] = networks(site).try_into().unwrap();
        (v4.local, v4.remote) = match site {
            Site::A => (AddressRange::single(Site::A.host(false)), v4.remote),
            Site::B => (v4.local, AddressRange::single(Site::A.host(false))),
        };
        vec![v4, v6]
    };
    let mut a = Gateway::new(Site::A, &Options { inside_mtu: 1_200, ..Options::new() });
    let tunnel = Action::Protect(a.tunnel.clone());
    let spd = adit_engine::policy::Spd::new(
        vec![policy("host", only_host(Site::A), tunnel)],
        adit_engine::policy::Fallback::Kernel,
        2,
    );
    a.engine.tables.spd.replace(Some(std::sync::Arc::new(spd)));
    let large = with_fragment_field(udp(Site::B.host(false), Site::A.host(false), 1_300), DONT_FRAGMENT);
    let mut peer = Peer::of(Site::A, &Options::new());
    let sent = a.run(OUTSIDE, &[peer.seal(1, 4, &large)]);
    assert_eq!((sent.len(), a.drops()), (1, vec![(DropReason::TooBig, 1)]));
    assert_eq!((sent[0].0, a.engine.counters().originated.load(Relaxed)), (OUTSIDE, 1));
    // B takes it for the same reason.
    let mut b = Gateway::new(Site::B, &Options { selectors: Some(only_host(Site::B)), ..Options::new() });
    let out = b.run(OUTSIDE, &[sent[0].1.clone()]);
    assert_eq!((out.len(), out[0].1[20], out[0].1[21]), (1, 3, 4), "{:?}", b.drops());
}

/// Line 55: off, until it is wanted.
#[test]
fn a_sender_inside_may_be_told_that_it_is_prohibited() {
    for v6 in [false, true] {
        let nowhere = address(if v6 { "2001:db8:77::7" } else { "10.77.0.7" });
        let packet = udp(Site::A.host(v6), nowhere, 100);
        Gateway::new(Site::A, &Options::new()).assert_drops(INSIDE, &packet, DropReason::PolicyDiscard);

        let icmp = IcmpRules { tell_discarded: true, ..IcmpRules::default() };
        let options = Options { icmp, ..Options::new() };
        let mut a = Gateway::new(Site::A, &options);
        let told = a.run(INSIDE, std::slice::from_ref(&packet));
        assert_eq!((told.len(), a.drops()), (1, vec![(DropReason::PolicyDiscard, 1)]));
        let (header, expected) = if v6 { (40, [1, 1]) } else { (20, [3, 13]) };
        assert_eq!(told[0].1[header..header + 2], expected);
        assert_eq!(told[0].1[header + 8..][..packet.len()], packet);
        // From outside, anyone may pretend to be anyone.
        let elsewhere = address(if v6 { "2001:db8:66::6" } else { "10.66.0.6" });
        a.assert_drops(OUTSIDE, &udp(nowhere, elsewhere, 100), DropReason::PolicyDiscard);
        // Some at a time.
        let flood: Vec<_> = (0..500).map(|_| packet.clone()).collect();
        assert_eq!(a.run(INSIDE, &flood).len(), 63);
    }
}
