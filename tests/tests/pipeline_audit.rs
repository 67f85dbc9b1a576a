//! Records of dropped packets: every event that RFC 4303 section 4 and RFC 4301 section 5.2 want told, with what they
//! want told of it; and of a flood no more than of a few.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use adit_engine::crypto::{Authentication, Encryption, IvSource};
use adit_engine::pipeline::audit::{Header, Record};
use adit_engine::pipeline::reassembly::Limits;
use adit_engine::pipeline::{DropReason, Pipeline, Received, WorkerCounters};
use adit_engine::policy::Action;
use adit_engine::route::PortId;
use adit_engine::sa::publish::Reader;
use adit_engine::sa::selector::Direction;
use adit_engine::sa::spec::Protocol;
use adit_engine::transform::ah::Padding;
use adit_engine::wire::ip::Upper;
use adit_tests::ah_peer::AhPeer;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, address, networks, policy, suite};
use adit_tests::packet::{MORE_FRAGMENTS, frame, in_udp, ip, udp, with_fragment_field};
use adit_tests::scapy;
use proptest::prelude::*;

const IPV4: u8 = 4;
const IPV6: u8 = 41;
const UDP: u8 = 17;

/// Everything told so far.
fn records(gateway: &mut Gateway, now: u64) -> Vec<Record> {
    gateway.engine.tell_drops(now);
    std::iter::from_fn(|| gateway.engine.tables.audit.take()).collect()
}

fn header(header: &Header) -> String {
    let flow = &header.flow;
    let upper = match flow.upper {
        Upper::Ports { source, destination } => format!(" {source}-{destination}"),
        Upper::Icmp { kind, code } => format!(" {kind}/{code}"),
        Upper::Opaque => String::new(),
    };
    let label = header.flow_label.map_or(String::new(), |label| format!(" flow {label:05x}"));
    format!("{} > {} {}{upper}{label}", flow.source, flow.destination, flow.protocol)
}

/// A record as a line: reason, direction, tunnel, SPI, number, packet, and what is inside it.
fn line(record: &Record) -> String {
    assert_eq!((record.worker, record.drops), (0, 1), "{record:?}");
    let Some(seen) = &record.seen else { return format!("{} unseen", record.reason.name()) };
    let direction = match seen.direction {
        Direction::Inbound => "in",
        Direction::Outbound => "out",
    };
    let or = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    format!(
        "{} {direction} {} {} {} | {} | {}",
        record.reason.name(),
        seen.tunnel.as_deref().unwrap_or("-"),
        or(seen.spi.map(|spi| spi.to_string())),
        or(seen.sequence.map(|number| number.to_string())),
        or(seen.packet.as_ref().map(header)),
        or(seen.inner.as_ref().map(header)),
    )
}

/// Writes a flow label into an IPv6 header (RFC 8200 section 3).
fn labelled(mut packet: Vec<u8>, label: u32) -> Vec<u8> {
    let first = 6 << 28 | label;
    packet[..4].copy_from_slice(&first.to_be_bytes());
    packet
}

fn inner() -> Vec<u8> {
    udp(Site::A.host(false), Site::B.host(false), 100)
}

fn outbound() -> Vec<u8> {
    udp(Site::B.host(false), Site::A.host(false), 100)
}

/// The lines of what happened to `packets` at B.
fn told(options: &Options, port: PortId, packets: &[Vec<u8>]) -> Vec<String> {
    let mut gateway = Gateway::new(Site::B, options);
    gateway.run(port, packets);
    records(&mut gateway, 0).iter().map(line).collect()
}

fn ipv6_options() -> Options {
    Options { outer_ipv6: true, ..Options::new() }
}

/// From A to B, sealed under the keys of `options`.
fn sealed(options: &Options, sequence: u64, next_header: u8, inner: &[u8]) -> Vec<u8> {
    Peer::of(Site::B, options).seal(sequence, next_header, inner)
}

fn forged(mut packet: Vec<u8>) -> Vec<u8> {
    *packet.last_mut().unwrap() ^= 1;
    packet
}

/// RFC 4303 section 3.4.2: "the audit log entry for this event SHOULD include the SPI value, date/time received, Source
/// Address, Destination Address, Sequence Number, and (in IPv6) the cleartext Flow ID."
#[test]
fn no_sa_is_told_with_spi_addresses_number_and_flow_label() {
    let options = Options::new();
    let mut peer = Peer::of(Site::B, &options);
    peer.spi.0 = 0x0bad_cafe;
    assert_eq!(
        told(&options, OUTSIDE, &[peer.seal(77, IPV4, &inner())]),
        ["no_state in - 0x0badcafe 77 | 192.0.2.1 > 198.51.100.9 50 | -"]
    );
    let options = ipv6_options();
    let mut peer = Peer::of(Site::B, &options);
    peer.spi.0 = 0x0bad_cafe;
    assert_eq!(
        told(&options, OUTSIDE, &[labelled(peer.seal(78, IPV4, &inner()), 0xa_bcde)]),
        ["no_state in - 0x0badcafe 78 | 2001:db8:f::1 > 2001:db8:e::9 50 flow abcde | -"]
    );
    // An SA of another endpoint is not the packet's: none is named.
    let mut stranger = Peer::of(Site::B, &Options::new());
    stranger.source = address("203.0.113.5");
    assert_eq!(
        told(&Options::new(), OUTSIDE, &[stranger.seal(1, IPV4, &inner())]),
        ["no_state in - 0x00abcdef 1 | 203.0.113.5 > 198.51.100.9 50 | -"]
    );
    // In UDP, and AH.
    let options = Options { udp_port: Some(62_001), ..Options::new() };
    let mut peer = Peer::of(Site::B, &Options::new());
    peer.spi.0 = 0x0bad_cafe;
    assert_eq!(
        told(&options, OUTSIDE, &[in_udp(&peer.seal(5, IPV4, &inner()), 62_001)]),
        ["no_state in - 0x0badcafe 5 | 192.0.2.1 > 198.51.100.9 17 62001-4500 | -"]
    );
    let ah = AhPeer { spi: 0x0bad_cafe, ..AhPeer::of(Site::B, &ah_options()) };
    assert_eq!(
        told(&ah_options(), OUTSIDE, &[ah.sign(6, IPV4, &inner())]),
        ["no_state in - 0x0badcafe 6 | 192.0.2.1 > 198.51.100.9 51 | -"]
    );
}

/// RFC 4303 section 3.4.1: "the audit log entry for this event SHOULD include the SPI value, date/time, Source Address,
/// Destination Address, Sequence Number, and (in IPv6) the Flow ID." A later fragment has neither SPI nor number.
#[test]
fn a_fragment_is_told() {
    let whole = sealed(&Options::new(), 9, IPV4, &inner());
    assert_eq!(
        told(&Options::new(), OUTSIDE, &[with_fragment_field(whole.clone(), MORE_FRAGMENTS)]),
        ["esp_fragment in - 0x00abcdef 9 | 192.0.2.1 > 198.51.100.9 50 | -"]
    );
    assert_eq!(
        told(&Options::new(), OUTSIDE, &[with_fragment_field(whole.clone(), 185)]),
        ["esp_fragment in - - - | 192.0.2.1 > 198.51.100.9 50 | -"]
    );
    // Where they are put together: the one that contradicted the others.
    let options = Options { reassembly: Limits::default(), ..Options::new() };
    let mut gateway = Gateway::new(Site::B, &options);
    let last = |length: usize| {
        let (source, destination) = (Site::A.endpoint(false), Site::B.endpoint(false));
        with_fragment_field(ip(source, destination, 50, &vec![0; length]), 4)
    };
    gateway.run(OUTSIDE, &[last(30), last(40)]);
    let told = records(&mut gateway, 0);
    assert_eq!((told.len(), told[0].reason, told[0].drops), (1, DropReason::ReassemblyOverlap, 2));
    let seen = told[0].seen.as_ref().unwrap();
    assert_eq!(header(seen.packet.as_ref().unwrap()), "192.0.2.1 > 198.51.100.9 50");
}

/// What had to go for want of time or room is told, not what it went for.
#[test]
fn what_is_given_up_is_told_with_what_was_there_of_it() {
    let options = Options { reassembly: Limits { per_source: 1, ..Limits::default() }, ..Options::new() };
    let fragment = |identification: u16, field: u16, payload: &[u8]| {
        let mut packet = ip(Site::A.endpoint(false), Site::B.endpoint(false), payload[0], &payload[1..]);
        packet[4..6].copy_from_slice(&identification.to_be_bytes());
        with_fragment_field(packet, field)
    };
    let esp = [&[50][..], &[0, 0xab, 0xcd, 0xef, 0, 0, 0, 99], &[7; 56]].concat();
    let in_udp =
        [&[UDP][..], &[0x11, 0x94, 0x11, 0x94, 2, 0, 0, 0], &[0, 0xab, 0xcd, 0xef, 0, 0, 0, 98]].concat();
    let later = [&[50][..], &[9; 64]].concat();
    let mut gateway = Gateway::new(Site::B, &options);
    gateway.run(OUTSIDE, &[fragment(1, MORE_FRAGMENTS, &esp), fragment(2, 8, &later)]);
    let lines = |gateway: &mut Gateway| -> Vec<String> { records(gateway, 0).iter().map(line).collect() };
    assert_eq!(
        lines(&mut gateway),
        ["reassembly_source in - 0x00abcdef 99 | 192.0.2.1 > 198.51.100.9 50 | -"]
    );
    gateway.engine.expire(Limits::default().timeout);
    assert_eq!(lines(&mut gateway), ["reassembly_timeout in - - - | 192.0.2.1 > 198.51.100.9 50 | -"]);
    gateway.run(OUTSIDE, &[fragment(3, MORE_FRAGMENTS, &in_udp)]);
    gateway.engine.expire(Limits::default().timeout);
    assert_eq!(
        lines(&mut gateway),
        ["reassembly_timeout in - 0x00abcdef 98 | 192.0.2.1 > 198.51.100.9 17 4500-4500 | -"]
    );
    gateway.assert_balanced(0);
}

/// RFC 4303 section 3.3.3: "the audit log entry for this event SHOULD include the SPI value, current date/time, Source
/// Address, Destination Address, and (in IPv6) the cleartext Flow ID."
#[test]
fn an_overflow_is_told() {
    let options = Options { last_sequence: u64::from(u32::MAX), ..Options::new() };
    assert_eq!(
        told(&options, INSIDE, &[outbound()]),
        ["sequence_exhausted out site 0x00fedcba - | 10.2.0.3 > 10.1.0.2 17 4660-53 | -"]
    );
    let v6 = labelled(udp(Site::B.host(true), Site::A.host(true), 10), 0x1_2345);
    assert_eq!(
        told(&options, INSIDE, std::slice::from_ref(&v6)),
        [
            "sequence_exhausted out site 0x00fedcba - | 2001:db8:2::3 > 2001:db8:1::2 17 4660-53 flow 12345 | -"
        ]
    );
    // The same from the room where packets are padded.
    let mut padded = options;
    padded.tfc.padding = adit_engine::policy::tfc::Padding::Mtu;
    assert_eq!(
        told(&padded, INSIDE, &[v6]),
        [
            "sequence_exhausted out site 0x00fedcba - | 2001:db8:2::3 > 2001:db8:1::2 17 4660-53 flow 12345 | -"
        ]
    );
}

/// RFC 4303 section 3.4.3: "the SPI value, date/time received, Source Address, Destination Address, the Sequence Number,
/// and (in IPv6) the cleartext Flow ID", of a replay and of a wrong ICV.
#[test]
fn replays_and_wrong_icvs_are_told() {
    let options = Options::new();
    let (one, far) = (sealed(&options, 1, IPV4, &inner()), sealed(&options, 2_000, IPV4, &inner()));
    assert_eq!(
        told(&options, OUTSIDE, &[one.clone(), one.clone()]),
        ["replay_duplicate in site 0x00abcdef 1 | 192.0.2.1 > 198.51.100.9 50 | -"],
        "copies in one burst"
    );
    let mut gateway = Gateway::new(Site::B, &options);
    gateway.run(OUTSIDE, std::slice::from_ref(&far));
    gateway.run(OUTSIDE, &[one, far]);
    let lines: Vec<_> = records(&mut gateway, 0).iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "replay_duplicate in site 0x00abcdef 2000 | 192.0.2.1 > 198.51.100.9 50 | -",
            "replay_old in site 0x00abcdef 1 | 192.0.2.1 > 198.51.100.9 50 | -",
        ]
    );
    assert_eq!(
        told(&options, OUTSIDE, &[forged(sealed(&options, 3, IPV4, &inner()))]),
        ["icv_failed in site 0x00abcdef 3 | 192.0.2.1 > 198.51.100.9 50 | -"]
    );
    let v6 = ipv6_options();
    assert_eq!(
        told(&v6, OUTSIDE, &[labelled(forged(sealed(&v6, 4, IPV4, &inner())), 0xf_ffff)]),
        ["icv_failed in site 0x00abcdef 4 | 2001:db8:f::1 > 2001:db8:e::9 50 flow fffff | -"]
    );
    // Extended numbers: all of it, as the window infers it.
    let esn = Options { esn: true, last_sequence: (7 << 32) + 100, ..Options::new() };
    assert_eq!(
        told(&esn, OUTSIDE, &[forged(sealed(&esn, (7 << 32) + 101, IPV4, &inner()))]),
        ["icv_failed in site 0x00abcdef 30064771173 | 192.0.2.1 > 198.51.100.9 50 | -"]
    );
    let ah = ah_options();
    assert_eq!(
        told(&ah, OUTSIDE, &[forged(AhPeer::of(Site::B, &ah).sign(8, IPV4, &inner()))]),
        ["icv_failed in site 0x00abcdef 8 | 192.0.2.1 > 198.51.100.9 51 | -"]
    );
    let natt = Options { udp_port: Some(4500), ..Options::new() };
    assert_eq!(
        told(&natt, OUTSIDE, &[in_udp(&forged(sealed(&options, 8, IPV4, &inner())), 4500)]),
        ["icv_failed in site 0x00abcdef 8 | 192.0.2.1 > 198.51.100.9 17 4500-4500 | -"]
    );
}

fn ah_options() -> Options {
    let suite = suite(Encryption::Null, Authentication::Sha256);
    Options { protocol: Protocol::Ah(Padding::Rfc4302), ..Options::with_suite(suite) }
}

/// RFC 4301 section 5.2 step 4: "the current date/time, SPI, IPsec protocol(s), source and destination of the packet, any
/// other selector values of the packet that are available".
#[test]
fn what_an_sa_was_not_agreed_for_is_told_with_both_headers() {
    let options = Options::new();
    let stranger = udp(address("10.3.0.2"), Site::B.host(false), 10);
    assert_eq!(
        told(&options, OUTSIDE, &[sealed(&options, 1, IPV4, &stranger)]),
        [
            "selector_mismatch in site 0x00abcdef 1 | 192.0.2.1 > 198.51.100.9 50 | 10.3.0.2 > 10.2.0.3 17 4660-53"
        ]
    );
    let v6 = labelled(udp(address("2001:db8:9::1"), Site::B.host(true), 10), 0x0_0777);
    assert_eq!(
        told(&options, OUTSIDE, &[sealed(&options, 2, IPV6, &v6)]),
        [
            "selector_mismatch in site 0x00abcdef 2 | 192.0.2.1 > 198.51.100.9 50 | 2001:db8:9::1 > 2001:db8:2::3 17 4660-53 flow 00777"
        ]
    );
    let echo = ip(address("10.3.0.2"), Site::B.host(false), 1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    assert_eq!(
        told(&options, OUTSIDE, &[sealed(&options, 3, IPV4, &echo)]),
        ["selector_mismatch in site 0x00abcdef 3 | 192.0.2.1 > 198.51.100.9 50 | 10.3.0.2 > 10.2.0.3 1 8/0"]
    );
    let own = udp(Site::B.endpoint(false), Site::B.host(false), 10);
    assert_eq!(
        told(&options, OUTSIDE, &[sealed(&options, 4, IPV4, &own)]),
        [
            "inner_source in site 0x00abcdef 4 | 192.0.2.1 > 198.51.100.9 50 | 198.51.100.9 > 10.2.0.3 17 4660-53"
        ]
    );
    let discard = policy("first", networks(Site::B), Action::Discard);
    let discard = Options { policies: vec![discard], ..Options::new() };
    assert_eq!(
        told(&discard, OUTSIDE, &[sealed(&options, 5, IPV4, &inner())]),
        [
            "policy_mismatch in site 0x00abcdef 5 | 192.0.2.1 > 198.51.100.9 50 | 10.1.0.2 > 10.2.0.3 17 4660-53"
        ]
    );
}

/// RFC 4301 section 5.2 step 3b and section 5.1: what no policy lets through, either way.
#[test]
fn what_the_policy_drops_is_told() {
    let options = Options::new();
    assert_eq!(
        told(&options, OUTSIDE, &[inner()]),
        ["clear_text in - - - | 10.1.0.2 > 10.2.0.3 17 4660-53 | -"]
    );
    let discard = policy("first", networks(Site::B), Action::Discard);
    let discard = Options { policies: vec![discard], ..Options::new() };
    assert_eq!(
        told(&discard, INSIDE, &[outbound()]),
        ["policy_discard out - - - | 10.2.0.3 > 10.1.0.2 17 4660-53 | -"]
    );
    assert_eq!(
        told(&discard, OUTSIDE, &[inner()]),
        ["policy_discard in - - - | 10.1.0.2 > 10.2.0.3 17 4660-53 | -"]
    );
    assert_eq!(
        told(&options, PortId::HOST, &[udp(Site::B.inside(false), address("203.0.113.5"), 10)]),
        ["host_unprotected out - - - | 10.2.0.1 > 203.0.113.5 17 4660-53 | -"]
    );
    // What goes through the gateway sealed by others is not the gateway's: it names no SA.
    let others = sealed(&options, 1, IPV4, &inner());
    let others = ip(Site::B.host(false), address("203.0.113.5"), 50, &others[20..]);
    assert_eq!(
        told(&options, INSIDE, &[others]),
        ["policy_discard out - - - | 10.2.0.3 > 203.0.113.5 50 | -"]
    );
    let mut gateway = Gateway::new(Site::B, &options);
    gateway.tunnel.outbound.replace(None);
    gateway.run(INSIDE, &[outbound()]);
    assert_eq!(
        records(&mut gateway, 0).iter().map(line).collect::<Vec<_>>(),
        ["no_outbound_sa out site - - | 10.2.0.3 > 10.1.0.2 17 4660-53 | -"]
    );
}

/// RFC 4303 section 2.4 and the trailer: authentic, and nothing of what is inside is told, because nothing says that it is
/// a packet.
#[test]
fn what_was_not_read_inside_is_not_told() {
    let options = Options::new();
    for (reason, next_header, payload) in [
        ("dummy", 59, inner()),
        ("next_header", UDP, inner()),
        ("inner_malformed", IPV4, vec![0x45; 40]),
        ("inner_malformed", IPV6, inner()),
    ] {
        assert_eq!(
            told(&options, OUTSIDE, &[sealed(&options, 6, next_header, &payload)]),
            [format!("{reason} in site 0x00abcdef 6 | 192.0.2.1 > 198.51.100.9 50 | -")]
        );
    }
}

#[test]
fn of_what_is_no_packet_as_much_is_told_as_is_there() {
    let mut wrong_checksum = outbound();
    wrong_checksum[10] ^= 1;
    assert_eq!(
        told(&Options::new(), INSIDE, &[wrong_checksum]),
        ["malformed out - - - | 10.2.0.3 > 10.1.0.2 17 | -"]
    );
    let mut gateway = Gateway::new(Site::B, &Options::new());
    // Priority 2: behind an Ethernet header this would look like IPv4.
    let tagged = [&[2; 12][..], &[0x81, 0, 0x45, 5, 8, 0], &outbound()].concat();
    let arp = [&[0xff; 12][..], &[8, 6], &[0x45; 28]].concat();
    gateway.run_frames(vec![(INSIDE, tagged), (OUTSIDE, arp), (OUTSIDE, vec![])]);
    assert_eq!(
        records(&mut gateway, 0).iter().map(line).collect::<Vec<_>>(),
        ["malformed in - - - | - | -", "not_ip in - - - | - | -", "vlan out - - - | - | -"]
    );
}

/// RFC 4303 section 4: an administrator can enable and disable auditing; what was dropped meanwhile is counted only.
#[test]
fn it_can_be_switched_off_and_on() {
    let options = Options::new();
    let mut gateway = Gateway::new(Site::B, &options);
    let forged = forged(sealed(&options, 1, IPV4, &inner()));
    let drop = |gateway: &mut Gateway, count: usize| gateway.run(OUTSIDE, &vec![forged.clone(); count]);
    gateway.engine.tables.audit.switch(false);
    drop(&mut gateway, 3);
    assert_eq!(records(&mut gateway, 0), []);
    drop(&mut gateway, 4);
    assert_eq!(records(&mut gateway, 1000), []);
    gateway.engine.tables.audit.switch(true);
    // Within a second.
    assert_eq!(records(&mut gateway, 2000), []);
    drop(&mut gateway, 5);
    let told = records(&mut gateway, 3000);
    assert_eq!((told.len(), told[0].drops, told[0].seen.is_some()), (1, 5, true));
    assert_eq!(gateway.drops(), [(DropReason::IcvFailed, 12)]);
}

/// What an attacker may send: forged, replayed, unknown, in clear, malformed.
fn junk(options: &Options) -> Vec<(PortId, Vec<u8>)> {
    let mut unknown = Peer::of(Site::B, options);
    unknown.spi.0 += 1;
    let mut impossible = sealed(options, 1, IPV4, &inner());
    impossible[24..28].fill(0);
    let broken = [&[0x45; 12][..], &[0; 8]].concat();
    [
        (OUTSIDE, forged(sealed(options, 1, IPV4, &[0x45; 4]))),
        (OUTSIDE, unknown.seal(1, IPV4, &[])),
        (OUTSIDE, impossible),
        (OUTSIDE, inner()),
        (OUTSIDE, broken),
        (INSIDE, udp(Site::B.host(false), address("10.9.0.1"), 10)),
        (OUTSIDE, ip(Site::A.endpoint(false), Site::B.endpoint(false), 50, &[0; 5])),
        (OUTSIDE, with_fragment_field(sealed(options, 1, IPV4, &inner()), MORE_FRAGMENTS)),
    ]
    .map(|(port, packet)| (port, frame(&packet)))
    .to_vec()
}

/// Sends `count` packets of junk, a second passing every `tick` bursts; everything told, collected while `listens`.
fn flood(gateway: &mut Gateway, bursts: usize, tick: usize, listens: impl Fn(usize) -> bool) -> Vec<Record> {
    let junk = junk(&Options::new());
    let mut told = Vec::new();
    for burst in 0..bursts {
        let mut packets: Vec<_> = (0..64).map(|at| junk[(at * 7 + burst) % junk.len()].clone()).collect();
        let mut received: Vec<_> =
            packets.iter_mut().map(|(port, frame)| Received { port: *port, frame }).collect();
        gateway.engine.process(burst as u64, &mut received);
        gateway.engine.transmit(|_| ());
        if burst % tick == 0 {
            gateway.engine.tell_drops(burst as u64);
            if listens(burst) {
                told.extend(std::iter::from_fn(|| gateway.engine.tables.audit.take()));
            }
        }
    }
    // Whoever comes back finds what waited, and next what could not.
    for _ in 0..2 {
        told.extend(std::iter::from_fn(|| gateway.engine.tables.audit.take()));
        gateway.engine.tell_drops(bursts as u64);
    }
    told.extend(std::iter::from_fn(|| gateway.engine.tables.audit.take()));
    told
}

/// The sum of what records stand for is what the counters say, exactly, reason by reason.
fn assert_adds_up(gateway: &Gateway, told: &[Record]) {
    let mut sums = BTreeMap::<u8, u64>::new();
    told.iter().for_each(|record| *sums.entry(record.reason as u8).or_default() += record.drops);
    let counted: BTreeMap<_, _> =
        gateway.drops().into_iter().map(|(reason, count)| (reason as u8, count)).collect();
    assert_eq!(sums, counted);
}

#[test]
fn a_million_forged_packets_make_a_few_records_that_add_up() {
    let mut gateway = Gateway::new(Site::B, &Options::new());
    let (bursts, tick) = (1_000_000 / 64, 500);
    let told = flood(&mut gateway, bursts, tick, |_| true);
    assert_adds_up(&gateway, &told);
    let dropped: u64 = gateway.engine.counters().dropped.iter().map(|count| count.load(Relaxed)).sum();
    let ticks = bursts / tick + 3;
    let reasons = gateway.drops().len();
    assert_eq!((dropped, reasons), (bursts as u64 * 64, 8));
    assert!(told.len() <= ticks * reasons, "{} records of {ticks} ticks", told.len());
    assert!(told.iter().all(|record| record.seen.is_some()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// However seldom somebody listens: what finds no room is told later, and nothing twice.
    #[test]
    fn nothing_is_told_twice_or_forgotten(
        tick in 1usize..6, from in 0usize..300, length in 0usize..300, bursts in 1usize..400,
    ) {
        let mut gateway = Gateway::new(Site::B, &Options::new());
        let told = flood(&mut gateway, bursts, tick, |burst| !(from..from + length).contains(&burst));
        assert_adds_up(&gateway, &told);
    }
}

/// What is dropped where no header is at hand (by rings and queues, in the counters of the same worker) is told too.
#[test]
fn what_nobody_looked_at_is_told_as_such() {
    let mut gateway = Gateway::new(Site::B, &Options::new());
    gateway.engine.counters().dropped[DropReason::NoNeighbour as usize].fetch_add(3, Relaxed);
    let told = records(&mut gateway, 4321);
    let (worker, reason, drops, at, seen) = (0, DropReason::NoNeighbour, 3, 4321, None);
    assert_eq!(told, [Record { worker, reason, drops, at, seen }]);
    assert_eq!(records(&mut gateway, 5000), []);
}

/// RFC 4301 section 6: whom an ICMP error is from, and which packet it says it is about. The errors are scapy's.
#[test]
fn icmp_errors_are_told_with_what_they_quote() {
    for (udp_port, protocol) in [(None, "50"), (Some(62_001), "17 4500-62001")] {
        let options = Options { udp_port, ..Options::new() };
        let mut a = Gateway::new(Site::A, &options);
        let sealed = a.run(INSIDE, &[inner()]).remove(0).1;
        let mut strange = sealed.clone();
        let spi = if udp_port.is_some() { 28 } else { 20 };
        strange[spi..spi + 4].copy_from_slice(&[0x0b, 0xad, 0xca, 0xfe]);
        let errors =
            |packet: &[u8], mtu| scapy::errors(&[packet.to_vec()], "203.0.113.1", "too-big", mtu, 64);
        let told = [(&strange, 1_400), (&sealed, 1_400), (&sealed, 68)].map(|(packet, mtu)| {
            a.run(OUTSIDE, &errors(packet, mtu));
            records(&mut a, 0).iter().map(line).collect::<Vec<_>>().join("\n")
        });
        let line = |reason: &str, spi: &str| {
            format!(
                "{reason} in - {spi} 1 | 203.0.113.1 > 192.0.2.1 1 3/4 | 192.0.2.1 > 198.51.100.9 {protocol}"
            )
        };
        assert_eq!(
            told,
            [
                line("icmp_forged", "0x0badcafe"),
                line("icmp_noted", "0x00abcdef"),
                line("icmp_refused", "0x00abcdef"),
            ]
        );
    }
}

/// A finished frame that a worker could not send: by what it is, whoever made it.
#[test]
fn what_could_not_be_sent_is_told() {
    let options = Options::new();
    let (mut a, mut b) = Gateway::pair(&options);
    let mut reader = Reader::register();
    let mut look = |gateway: &Gateway, port: PortId, packet: &[u8]| {
        let (tables, counters) = (gateway.engine.tables.clone(), Arc::new(WorkerCounters::default()));
        let mut pipeline = Pipeline::new(0, Arc::clone(&counters), IvSource::from_seed([1; 32]));
        let (reason, frame) = (DropReason::NoNeighbour, frame(packet));
        pipeline.look_at_dropped(&tables, &reader.pin(), 7, reason, port, &frame);
        counters.dropped[reason as usize].fetch_add(1, Relaxed);
        pipeline.tell_drops(&tables, 1_000);
        let record = tables.audit.take().unwrap();
        assert_eq!((record.at, record.reason), (7, reason));
        line(&record)
    };
    let sealed = a.run(INSIDE, &[inner()]).remove(0).1;
    assert_eq!(
        look(&a, OUTSIDE, &sealed),
        "no_neighbour out - 0x00abcdef 1 | 192.0.2.1 > 198.51.100.9 50 | -"
    );
    let opened = b.run(OUTSIDE, &[sealed]).remove(0).1;
    assert_eq!(look(&b, INSIDE, &opened), "no_neighbour in - - - | 10.1.0.2 > 10.2.0.3 17 4660-53 | -");
    // Others' ESP inside ours.
    let others = ip(Site::A.host(false), Site::B.host(false), 50, &[7; 40]);
    assert_eq!(look(&b, INSIDE, &others), "no_neighbour in - - - | 10.1.0.2 > 10.2.0.3 50 | -");
}

/// No byte behind the ports gets into a record, whatever is dropped.
#[test]
fn no_payload_is_told() {
    let options = Options::new();
    let secret = [0x5e, 0xc3, 0xe7, 0x99];
    let secrets = secret.repeat(30);
    let stranger = ip(address("10.3.0.2"), Site::B.host(false), 200, &secrets);
    let mut gateway = Gateway::new(Site::B, &options);
    gateway.run(
        OUTSIDE,
        &[
            sealed(&options, 1, IPV4, &stranger),
            sealed(&options, 2, IPV4, &secrets),
            sealed(&options, 3, 59, &secrets),
            ip(Site::A.host(false), Site::B.host(false), 200, &secrets),
        ],
    );
    let told = records(&mut gateway, 0);
    assert_eq!(told.len(), 4);
    let number = |bytes: [u8; 4]| [u32::from_be_bytes(bytes).to_string(), IpAddr::from(bytes).to_string()];
    for rotation in 0..4 {
        let mut bytes = secret;
        bytes.rotate_left(rotation);
        for text in number(bytes) {
            assert!(!format!("{told:?}").contains(&text), "{told:?}");
        }
    }
}
