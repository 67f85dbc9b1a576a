//! The size of what leaves: a path MTU that ICMP errors tell (RFC 4301 section 8.2), whom to believe, and what becomes of
//! packets that are too large then. The errors are scapy's, and so are the whole packets of our fragments.

use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::{Authentication, Encryption};
use adit_engine::pipeline::reassembly::Limits;
use adit_engine::pipeline::{DropReason, IcmpRules};
use adit_engine::policy::Fragmentation;
use adit_engine::sa::spec::Protocol;
use adit_engine::transform::ah::Padding;
use adit_engine::transform::tunnel::DontFragment;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Site, suite};
use adit_tests::packet::{DONT_FRAGMENT, frame, one_hop_on, tcp_syn, udp, with_fragment_field};
use adit_tests::scapy;

const PEER_PORT: u16 = 62_001;

/// A router on the way.
fn router(v6: bool) -> &'static str {
    if v6 { "2001:db8:99::1" } else { "203.0.113.1" }
}

/// Sends `packets` at `now`; what left.
fn send_at(gateway: &mut Gateway, now: u64, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let frames = packets.iter().map(|packet| (INSIDE, frame(packet))).collect();
    let sent = gateway.engine.run(now, frames);
    gateway.assert_balanced(0);
    sent.into_iter().map(|(_, frame)| frame[14..].to_vec()).collect()
}

fn tell(gateway: &mut Gateway, now: u64, error: &[u8]) {
    let sent = gateway.engine.run(now, vec![(OUTSIDE, frame(error))]);
    assert_eq!(sent, [], "errors are not answered");
    gateway.assert_balanced(0);
}

fn dropped(gateway: &Gateway, reason: DropReason) -> u64 {
    gateway.engine.counters().dropped[reason as usize].load(Relaxed)
}

fn known(gateway: &Gateway, now: u64) -> Option<u32> {
    gateway.tunnel.path.mtu(now, 600_000)
}

fn outbound(length: usize) -> Vec<u8> {
    udp(Site::A.host(false), Site::B.host(false), length - 28)
}

fn too_big(length: usize) -> Vec<u8> {
    with_fragment_field(outbound(length), DONT_FRAGMENT)
}

/// The MTU that an IPv4 "fragmentation needed" tells.
fn told(packet: &[u8]) -> u16 {
    assert_eq!((packet[9], packet[20], packet[21]), (1, 3, 4));
    u16::from_be_bytes([packet[26], packet[27]])
}

fn shapes() -> Vec<Options> {
    let hash = suite(Encryption::Null, Authentication::Sha256);
    let ah = Options { protocol: Protocol::Ah(Padding::Rfc4302), ..Options::with_suite(hash) };
    let natt = Options { udp_port: Some(PEER_PORT), ..Options::new() };
    let all = [Options::new(), ah, natt];
    all.into_iter()
        .flat_map(|options| [false, true].map(|outer_ipv6| Options { outer_ipv6, ..options.clone() }))
        .collect()
}

#[test]
fn a_told_path_mtu_is_what_the_tunnel_carries_until_it_ages() {
    for options in shapes() {
        let v6 = options.outer_ipv6;
        let mut a = Gateway::new(Site::A, &options);
        let sent = send_at(&mut a, 0, &[too_big(1_400)]);
        let [error] = &scapy::errors(&sent, router(v6), "too-big", 1_400, usize::MAX)[..] else { panic!() };
        tell(&mut a, 1_000, error);
        assert_eq!(a.drops(), [(DropReason::IcmpNoted, 1)], "{:?}", options.protocol);
        assert_eq!(known(&a, 1_000), Some(1_400));

        // The largest that fits leaves in 1,400 bytes or a little less; one more is told what fits.
        let reply = send_at(&mut a, 1_000, &[too_big(1_400)]);
        let limit = usize::from(told(&reply[0]));
        let fits = send_at(&mut a, 1_000, &[too_big(limit)]);
        assert!((1_397..=1_400).contains(&fits[0].len()), "{limit} {}", fits[0].len());
        assert_eq!(usize::from(told(&send_at(&mut a, 1_000, &[too_big(limit + 1)])[0])), limit);
        // What may be fragmented is, before it is sealed.
        let pieces = send_at(&mut a, 1_000, &[outbound(1_400)]);
        assert!(pieces.len() == 2 && pieces.iter().all(|piece| piece.len() <= 1_400));
        // A SYN offers what fits: the peer's too.
        let syn = tcp_syn(Site::A.host(false), Site::B.host(false), 1_460);
        let clamped = send_at(&mut a, 1_000, &[syn]);
        assert_eq!(clamped[0].len(), sealed_length(&options, 44));

        // RFC 4301 section 8.2.2: after ten minutes it is the link's again.
        assert_eq!(send_at(&mut a, 601_000, &[too_big(1_400)]).len(), 1);
        assert_eq!(dropped(&a, DropReason::TooBig), 2);
        assert_eq!(known(&a, 601_000), None);
    }
}

/// What a packet of so many bytes is outside.
fn sealed_length(options: &Options, length: usize) -> usize {
    Gateway::new(Site::A, options).run(INSIDE, &[outbound(length)])[0].1.len()
}

/// Line 52: SPI, addresses and a number among the last 2^16 sent. Line 51: types, floors.
#[test]
fn only_who_quotes_what_was_sent_is_believed() {
    for options in shapes() {
        let v6 = options.outer_ipv6;
        let mut a = Gateway::new(Site::A, &options);
        let sent = send_at(&mut a, 0, &[too_big(1_000)]);
        // What RFC 792 promises, and what tells ESP from IKE.
        let least = match options.protocol {
            _ if options.udp_port.is_some() => 12,
            _ => 8,
        };
        let error = |about: &[u8], kind: &str, mtu: u32, quoted: usize| {
            scapy::errors(&[about.to_vec()], router(v6), kind, mtu, quoted).remove(0)
        };
        let genuine = error(&sent[0], "too-big", 1_400, least);
        let header = if v6 { 48 + 40 } else { 28 + 20 };
        let forged = |at: usize| {
            let mut about = sent[0].clone();
            about[at] ^= 1;
            error(&about, "too-big", 1_300, 24)
        };
        let own_header = header - if v6 { 48 } else { 28 };
        let esp = own_header + if options.udp_port.is_some() { 8 } else { 0 };
        let (spi, number) = match options.protocol {
            Protocol::Esp => (esp, esp + 4),
            Protocol::Ah(_) => (esp + 4, esp + 8),
        };
        let mut forgeries = vec![forged(own_header - 1), forged(spi + 3), forged(number + 1)];
        // Without the SPI.
        forgeries.push(error(&sent[0], "too-big", 1_300, if options.udp_port.is_some() { 8 } else { 0 }));
        if options.udp_port.is_some() {
            forgeries.push(forged(own_header + 3));
        }
        // Changed on its way to us.
        let mut broken = genuine.clone();
        let end = broken.len() - 1;
        broken[end] ^= 1;
        forgeries.push(broken);
        let count = forgeries.len() as u64;
        forgeries.iter().for_each(|forgery| tell(&mut a, 0, forgery));
        assert_eq!(a.drops(), [(DropReason::IcmpForged, count)], "{:?} {v6}", options.protocol);
        assert_eq!(known(&a, 0), None);

        tell(&mut a, 0, &genuine);
        assert_eq!(known(&a, 0), Some(1_400));
        // An error never makes it larger, and a smaller one is not believed below the floor.
        tell(&mut a, 0, &error(&sent[0], "too-big", 1_450, least));
        assert_eq!(known(&a, 0), Some(1_400));
        let floor = if v6 { 1_280 } else { 576 };
        tell(&mut a, 0, &error(&sent[0], "too-big", floor - 1, least));
        assert_eq!((known(&a, 0), dropped(&a, DropReason::IcmpRefused)), (Some(1_400), 1));
        tell(&mut a, 0, &error(&sent[0], "too-big", floor, least));
        assert_eq!(known(&a, 0), Some(floor));

        // The others change no size.
        for kind in ["unreachable", "time-exceeded", "parameter-problem"] {
            tell(&mut a, 9, &error(&sent[0], kind, 0, least));
            let (trouble, at) = a.tunnel.path.trouble().unwrap();
            assert_eq!((trouble.name().replace(' ', "-"), at), (kind.to_owned(), 9));
        }
        assert_eq!(dropped(&a, DropReason::IcmpNoted), 6);

        let rules = IcmpRules { accept_too_big: false, path_mtu_floor_v4: 1_200, ..IcmpRules::default() };
        let mut deaf = Gateway::new(Site::A, &Options { icmp: rules, ..options.clone() });
        let sent = send_at(&mut deaf, 0, &[too_big(1_000)]);
        tell(&mut deaf, 0, &error(&sent[0], "too-big", 1_400, least));
        assert_eq!((deaf.drops(), known(&deaf, 0)), (vec![(DropReason::IcmpRefused, 1)], None));
    }
    // A peer that moved behind its NAT is found where it is.
    let natt = Options { udp_port: Some(PEER_PORT), ..Options::new() };
    let mut a = Gateway::new(Site::A, &natt);
    let elsewhere = "198.51.100.77".parse().unwrap();
    a.tunnel.outbound.get().unwrap().in_udp.as_ref().unwrap().peer.follow(elsewhere, 1_234);
    let sent = send_at(&mut a, 0, &[too_big(1_000)]);
    tell(&mut a, 0, &scapy::errors(&sent, router(false), "too-big", 1_400, 16)[0]);
    assert_eq!(known(&a, 0), Some(1_400));
}

/// RFC 1191 section 5: a router older than that tells no MTU. The next smaller one of the table in its section 7 is
/// tried, again and again, down to the floor.
#[test]
fn a_router_that_tells_no_mtu_leaves_the_next_plateau_to_try() {
    for options in shapes() {
        let v6 = options.outer_ipv6;
        let mut a = Gateway::new(Site::A, &options);
        for expected in [1_492, 1_006, 576, 576] {
            // The largest that fits now.
            let limit = told(&send_at(&mut a, 0, &[too_big(1_500)])[0]);
            let sent = send_at(&mut a, 0, &[too_big(limit.into())]);
            tell(&mut a, 0, &scapy::errors(&sent, router(v6), "too-big", 0, 16)[0]);
            // RFC 4443 section 3.2: in IPv6 there is none that does not tell it.
            assert_eq!(known(&a, 0), (!v6).then_some(expected), "{:?}", options.protocol);
        }
        assert_eq!(dropped(&a, if v6 { DropReason::IcmpRefused } else { DropReason::IcmpNoted }), 4);
    }
}

/// What is said of an ICMP error is said of nothing else to us.
#[test]
fn other_icmp_to_us_is_as_it_was() {
    let mut a = Gateway::new(Site::A, &Options::new());
    let (router, own) = ("203.0.113.1".parse().unwrap(), Site::A.endpoint(false));
    let mut echo = vec![8, 0, 0, 0, 0, 0, 0, 0];
    let sum = adit_engine::wire::checksum::internet(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    a.assert_drops(OUTSIDE, &adit_tests::packet::ip(router, own, 1, &echo), DropReason::NoHostPath);
}

/// Line 50, the other way: sealed whole, fragmented outside. B puts it together; scapy did before (pipeline_reassembly).
#[test]
fn fragmentation_after_sealing() {
    for options in shapes() {
        let options = Options {
            fragmentation: Fragmentation::After,
            outside_mtu: 1_300,
            reassembly: Limits::default(),
            // Ours sends from 4500 to the peer's port, which is 4500 here: no NAT in between.
            udp_port: options.udp_port.map(|_| 4500),
            ..options
        };
        let (mut a, mut b) = Gateway::pair(&Options { inside_mtu: 1_500, ..options.clone() });
        let inner: Vec<_> =
            [1_300, 1_472, 100].map(|length| udp(Site::A.host(false), Site::B.host(false), length)).into();
        let sent = a.run(INSIDE, &inner);
        assert_eq!(sent.len(), 5, "two fragments of each large one");
        assert!(sent.iter().all(|(_, packet)| packet.len() <= 1_300));
        let sa = a.tunnel.outbound.get().unwrap();
        assert_eq!(sa.last_sequence(), 3, "one number for each packet");
        assert_eq!(a.engine.counters().originated.load(Relaxed), 2);
        let fragments: Vec<_> = sent.into_iter().map(|(_, packet)| packet).collect();
        // Foreign eyes: scapy puts them together, and a peer that does not reassemble takes that.
        let whole = scapy::whole(&fragments);
        assert_eq!(whole.len(), 3);
        let mut strict = Gateway::new(Site::B, &Options { reassembly: Limits::OFF, ..options.clone() });
        let expected: Vec<_> = inner.iter().map(|packet| one_hop_on(&one_hop_on(packet))).collect();
        let out: Vec<_> = strict.run(OUTSIDE, &whole).into_iter().map(|(_, packet)| packet).collect();
        assert!(out == expected);
        // What is put together follows the rest of its burst.
        let mut out: Vec<_> = b.run(OUTSIDE, &fragments).into_iter().map(|(_, packet)| packet).collect();
        out.rotate_left(1);
        assert!(out == expected);
        // DF is obeyed all the same.
        let reply = a.run(INSIDE, &[with_fragment_field(inner[1].clone(), DONT_FRAGMENT)]);
        assert!(told(&reply[0].1) < 1_300);
    }
}

/// RFC 8200 section 5, RFC 2473 section 7.1: 1,280 bytes of IPv6 pass, whatever the path; more is told 1,280.
#[test]
fn what_every_ipv6_link_carries_passes() {
    for dont_fragment in [DontFragment::Copy, DontFragment::Set] {
        for outer_ipv6 in [false, true] {
            let mtu = if outer_ipv6 { 1_280 } else { 700 };
            let options = Options {
                outer_ipv6,
                dont_fragment,
                outside_mtu: mtu,
                reassembly: Limits::default(),
                ..Options::new()
            };
            let (mut a, mut b) = Gateway::pair(&options);
            let inner = udp(Site::A.host(true), Site::B.host(true), 1_280 - 48);
            let sent: Vec<_> =
                a.run(INSIDE, std::slice::from_ref(&inner)).into_iter().map(|(_, packet)| packet).collect();
            assert!(sent.len() >= 2 && sent.iter().all(|packet| packet.len() <= mtu as usize));
            let out = b.run(OUTSIDE, &sent);
            assert_eq!(out.len(), 1);
            assert_eq!(out[0].1, one_hop_on(&one_hop_on(&inner)));
            let reply = a.run(INSIDE, &[udp(Site::A.host(true), Site::B.host(true), 1_281 - 48)]);
            assert_eq!((reply[0].1[40], reply[0].1[44..48].to_vec()), (2, 1_280_u32.to_be_bytes().to_vec()));
        }
    }
}
