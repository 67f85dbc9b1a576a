//! Whole AH packets that others made (tests/vectors/oracle_ah_packets.json): plain, with IPv4 options of every kind,
//! with every IPv6 extension header; all five hashes, with and without extended sequence numbers.

use adit_engine::crypto::primitive::Mac;
use adit_engine::crypto::{Authentication, Encryption};
use adit_engine::pipeline::DropReason;
use adit_engine::route::PortId;
use adit_engine::sa::spec::{Mode, Protocol};
use adit_engine::transform::ah::{Padding, Role, cover};
use adit_engine::transform::transport::{self, DestinationOptions};
use adit_engine::transform::tunnel::DontFragment;
use adit_engine::wire::ip::{self, IpPacket};
use adit_engine::wire::{Spi, ah};
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Site, suite};
use adit_tests::packet::{one_hop_on, with_ttl};
use adit_tests::vectors::Vectors;
use serde_json::Value;

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn authentication(packet: &Value) -> Authentication {
    match packet["auth"].as_str().unwrap() {
        "hmac-md5-96" => Authentication::Md5,
        "hmac-sha1-96" => Authentication::Sha1,
        "hmac-sha256-128" => Authentication::Sha256,
        "hmac-sha384-192" => Authentication::Sha384,
        "hmac-sha512-256" => Authentication::Sha512,
        other => panic!("authentication {other}"),
    }
}

/// The SA of an oracle packet, its next number the packet's.
fn options(packet: &Value) -> Options {
    let sequence = packet["seq_hi"].as_u64().unwrap_or(0) << 32 | packet["seq_lo"].as_u64().unwrap();
    Options {
        protocol: Protocol::Ah(Padding::Rfc4302),
        // The oracle put destination options in front.
        mode: match packet["mode"].as_str().unwrap() {
            "tunnel" => Mode::Tunnel,
            _ => Mode::Transport(DestinationOptions::Before),
        },
        keys: (Vec::new(), bytes(&packet["auth_key"])),
        esn: packet["esn"].as_bool().unwrap(),
        outer_ipv6: packet["ip"] == 6,
        last_sequence: sequence - 1,
        spi: Some(Spi(packet["spi"].as_u64().unwrap() as u32)),
        dont_fragment: DontFragment::Clear,
        ..Options::with_suite(suite(Encryption::Null, authentication(packet)))
    }
}

/// A Routing header with an address left: the packet as its sender sends it, which is not for us to open.
fn is_on_its_way(packet: &Value) -> bool {
    packet["label"] == "rh0-segleft1(as sent)"
}

#[test]
fn oracle_packets_are_what_they_say() {
    let mut vectors = Vectors::load("oracle_ah_packets.json");
    for packet in vectors.take_list("packets") {
        let what = format!("packet {} ({})", packet["id"], packet["label"]);
        let mut b = Gateway::new(Site::B, &options(&packet));
        let signed = bytes(&packet["packet"]);
        if is_on_its_way(&packet) {
            b.assert_drops(OUTSIDE, &signed, DropReason::Malformed);
        } else if packet["mode"] == "tunnel" {
            let inner = one_hop_on(&bytes(&packet["inner_packet"]));
            // The oracle marked some outer headers as ECN does for congestion, or not: RFC 6040 decides.
            let opened = b.run(OUTSIDE, std::slice::from_ref(&signed));
            assert_eq!(opened, [(INSIDE, inner)], "{what} {:?}", b.drops());
        } else {
            let delivered = without_ah(&signed, &ip::parse(&signed).unwrap()).0;
            let opened = b.with_host().run(OUTSIDE, std::slice::from_ref(&signed));
            assert_eq!(opened, [(PortId::HOST, delivered)], "{what}");
        }
        // Everything the ICV covers is covered: a bit anywhere in AH or behind, and in the addresses.
        let at = usize::from(ip::parse(&signed).unwrap().payload_offset);
        for flipped in [at + 3, at + 12, signed.len() - 1] {
            let mut forged = signed.clone();
            forged[flipped] ^= 1;
            let mut b = Gateway::new(Site::B, &options(&packet));
            let reason = if is_on_its_way(&packet) { DropReason::Malformed } else { DropReason::IcvFailed };
            b.assert_drops(OUTSIDE, &forged, reason);
        }
        vectors.ran();
    }
    vectors.finish();
}

/// The packet before AH was put into it, and where it was.
fn without_ah(signed: &[u8], parsed: &IpPacket) -> (Vec<u8>, usize) {
    let at = usize::from(parsed.payload_offset);
    let header = ah::parse(&signed[at..]).unwrap();
    let payload = &signed[at + usize::from(header.length)..];
    let mut headers = signed[..at].to_vec();
    let named_at = match headers[0] >> 4 {
        4 => 9,
        // The last header in front of AH names it by its first byte.
        _ if at == 40 => 6,
        _ => named_at(signed, at),
    };
    transport::rewrite(&mut headers, parsed.version, named_at as u16, header.next_header, payload.len());
    ([&headers[..], payload].concat(), at)
}

/// Walked by hand: RFC 8200 section 4.
fn named_at(packet: &[u8], end: usize) -> usize {
    let mut at = 40;
    loop {
        let next = at + (usize::from(packet[at + 1]) + 1) * 8;
        if next == end {
            return at;
        }
        at = next;
    }
}

#[test]
fn oracle_packets_are_signed_as_the_oracle_did() {
    let mut vectors = Vectors::load("oracle_ah_packets.json");
    let mut byte_identical = 0;
    for packet in vectors.take_list("packets") {
        let what = format!("packet {} ({})", packet["id"], packet["label"]);
        let options = options(&packet);
        let expected = bytes(&packet["packet"]);
        let parsed = ip::parse(&expected).unwrap();
        let (original, at) = match options.mode {
            Mode::Tunnel => (bytes(&packet["inner_packet"]), usize::from(parsed.payload_offset)),
            Mode::Transport(_) => without_ah(&expected, &parsed),
        };
        let mut a = Gateway::new(Site::A, &options);
        // The gateway is a hop itself; what the oracle signed has passed it already.
        let sent = hop_earlier(original);
        let signed = a.run(INSIDE, &[sent]);
        assert_eq!(signed.len(), 1, "{what} {:?}", a.drops());
        let signed = &signed[0].1;
        if let Mode::Transport(_) = options.mode {
            assert_eq!(signed, &expected, "{what}");
            byte_identical += 1;
        } else if options.outer_ipv6 {
            // The oracle chose DSCP, ECN and flow label of some outer headers; the ICV does not cover those.
            let covered = |packet: &[u8]| covered_headers(packet, at);
            assert_eq!(covered(signed), covered(&expected), "{what}");
            assert_eq!(signed[at..], expected[at..], "{what}");
            byte_identical += 1;
        } else {
            // Our identification is another, so the ICV is: all else is the same, and the ICV is its HMAC.
            assert_eq!(signed.len(), expected.len(), "{what}");
            assert_eq!(signed[at..at + 12], expected[at..at + 12], "{what}");
            let icv_length = usize::from(options.suite.icv_length());
            assert_eq!(signed[at + 12 + icv_length..], expected[at + 12 + icv_length..], "{what}");
            for one in [signed, &expected] {
                assert_eq!(one[at + 12..at + 12 + icv_length], icv(one, at, &options), "{what}");
            }
        }
        vectors.ran();
    }
    vectors.finish();
    assert_eq!(byte_identical, 86, "all but IPv4 tunnels");
}

fn hop_earlier(packet: Vec<u8>) -> Vec<u8> {
    let header = usize::from(packet[0] & 15) * 4;
    if packet[0] >> 4 == 6 {
        let ttl = packet[7];
        return with_ttl(packet, ttl + 1);
    }
    let mut packet = packet;
    packet[8] += 1;
    packet[10..12].fill(0);
    let sum = adit_engine::wire::checksum::internet(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn covered_headers(packet: &[u8], at: usize) -> Vec<u8> {
    let mut out = vec![0; at];
    assert!(cover(&mut out, &packet[..at], ip::parse(packet).unwrap().version, Role::Sender));
    out
}

/// RFC 4302 section 3.3.3, by the primitive that its own vectors prove.
fn icv(packet: &[u8], at: usize, options: &Options) -> Vec<u8> {
    let icv_length = usize::from(options.suite.icv_length());
    let mut message = covered_headers(packet, at);
    message.extend(&packet[at..]);
    message[at + 12..at + 12 + icv_length].fill(0);
    let high_word = (((options.last_sequence + 1) >> 32) as u32).to_be_bytes();
    let tail: &[u8] = if options.esn { &high_word } else { &[] };
    let mut out = vec![0; icv_length];
    let mac = Mac::new(options.suite.authentication(), &options.keys.1).unwrap();
    mac.sign(std::iter::once((&message[..], tail, &mut out[..])));
    out
}
