//! Whole ESP packets that others made: sealed byte for byte as they did, opened to what they put in, and the
//! malformed ones refused for the reason they were made for.

use adit_engine::crypto::{Authentication, Encryption, Suite};
use adit_engine::pipeline::DropReason;
use adit_engine::route::PortId;
use adit_engine::sa::selector::{AddressRange, PortRange, Selector, UpperSelector};
use adit_engine::sa::spec::Mode;
use adit_engine::transform::transport::DestinationOptions;
use adit_engine::transform::tunnel::DontFragment;
use adit_engine::wire::Spi;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Site, address};
use adit_tests::packet::{frame, one_hop_on, unframe, with_ttl};
use serde_json::Value;

fn read(file: &str) -> Value {
    let path = format!("{}/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap()
}

/// How many vectors `file` holds, as the index says.
fn count_in_index(file: &str) -> usize {
    let index = read("INDEX.json");
    let entry = index.as_array().unwrap().iter().find(|entry| entry["file"] == file).unwrap();
    entry["count"].as_u64().unwrap() as usize
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap_or("");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// How many ran.
#[derive(Default)]
struct Tally {
    ran: usize,
}

impl Tally {
    fn assert_complete(&self, file: &str) {
        assert_eq!(self.ran, count_in_index(file), "{file}");
    }
}

fn suite(cipher: &str, auth: &Value, icv_length: u64) -> Suite {
    let encryption = match cipher {
        "null" => Encryption::Null,
        "des-cbc" => Encryption::Des,
        "3des-cbc" => Encryption::TripleDes,
        "aes-128-cbc" => Encryption::Aes128Cbc,
        "aes-192-cbc" => Encryption::Aes192Cbc,
        "aes-256-cbc" => Encryption::Aes256Cbc,
        "aes-128-ccm" => Encryption::Aes128Ccm,
        "aes-128-gcm" => Encryption::Aes128Gcm,
        "aes-192-gcm" => Encryption::Aes192Gcm,
        "aes-256-gcm" => Encryption::Aes256Gcm,
        other => panic!("cipher {other}"),
    };
    let authentication = match auth.as_str() {
        None => Authentication::None,
        Some("hmac-md5-96") => Authentication::Md5,
        Some("hmac-sha1-96") => Authentication::Sha1,
        Some("hmac-sha256-128") => Authentication::Sha256,
        Some("hmac-sha384-192") => Authentication::Sha384,
        Some("hmac-sha512-256") => Authentication::Sha512,
        Some(other) => panic!("authentication {other}"),
    };
    Suite::new(encryption, authentication, Some(icv_length as u8)).unwrap()
}

fn mode(packet: &Value) -> Mode {
    match packet["mode"].as_str() {
        Some("tunnel") => Mode::Tunnel,
        Some("transport") => Mode::Transport(DestinationOptions::After),
        other => panic!("mode {other:?}"),
    }
}

/// The SA of an oracle packet, its next number the packet's.
fn oracle_options(packet: &Value) -> Options {
    let suite = suite(packet["cipher"].as_str().unwrap(), &packet["auth"], number(&packet["icv_len"]));
    let sequence = number(&packet["seq_hi"]) << 32 | number(&packet["seq_lo"]);
    Options {
        keys: ([bytes(&packet["enc_key"]), bytes(&packet["salt"])].concat(), bytes(&packet["auth_key"])),
        esn: packet["esn"].as_bool().unwrap(),
        outer_ipv6: bytes(&packet["outer_packet"])[0] >> 4 == 6,
        mode: mode(packet),
        udp_port: (packet["nat_t"] == true).then_some(4500),
        last_sequence: sequence - 1,
        spi: Some(Spi(number(&packet["spi"]) as u32)),
        dont_fragment: DontFragment::Clear,
        ..Options::with_suite(suite)
    }
}

#[test]
fn oracle_packets_open_to_what_was_put_in() {
    let mut tally = Tally::default();
    for packet in read("oracle_esp_packets.json")["packets"].as_array().unwrap() {
        let options = oracle_options(packet);
        let (outer, inner) = (bytes(&packet["outer_packet"]), bytes(&packet["inner_packet"]));
        let mut b = Gateway::new(Site::B, &options);
        if let Mode::Transport(_) = options.mode {
            let delivered = b.with_host().run(OUTSIDE, &[outer]);
            assert_eq!(delivered, [(PortId::HOST, inner)], "packet {}", packet["id"]);
        } else {
            let opened = b.run(OUTSIDE, &[outer]);
            assert_eq!(opened, [(INSIDE, one_hop_on(&inner))], "packet {} {:?}", packet["id"], b.drops());
        }
        tally.ran += 1;
    }
    tally.assert_complete("oracle_esp_packets.json");
}

#[test]
fn oracle_packets_are_sealed_as_the_oracle_did() {
    let mut tally = Tally::default();
    let mut byte_identical = 0;
    for packet in read("oracle_esp_packets.json")["packets"].as_array().unwrap() {
        let options = oracle_options(packet);
        let inner = bytes(&packet["inner_packet"]);
        let expected = bytes(&packet["outer_packet"]);
        let mut a = Gateway::new(Site::A, &options);
        // The gateway is a hop itself; the oracle's inner packet has passed it already.
        let ttl = if inner[0] >> 4 == 4 { inner[8] } else { inner[7] };
        let sealed = a.run(INSIDE, &[with_ttl(inner.clone(), ttl + 1)]);
        assert_eq!(sealed.len(), 1, "packet {} {:?}", packet["id"], a.drops());
        let sealed = &sealed[0].1;
        let in_udp = if options.udp_port.is_some() { 8 } else { 0 };
        let outer_length = if options.outer_ipv6 { 40 } else { 20 } + in_udp;
        assert_eq!(sealed.len(), expected.len(), "packet {}", packet["id"]);
        let header = |packet: &[u8]| match options.mode {
            Mode::Tunnel => without_identification(packet),
            Mode::Transport(_) => packet[..outer_length].to_vec(),
        };
        assert_eq!(header(sealed), header(&expected), "packet {}", packet["id"]);
        let (esp, expected) = (&sealed[outer_length..], &expected[outer_length..]);
        assert_eq!(esp[..8], expected[..8], "packet {}: SPI and number", packet["id"]);
        if bytes(&packet["iv"]) == iv_of(esp, &options.suite) {
            byte_identical += 1;
            assert_eq!(esp, expected, "packet {}", packet["id"]);
        } else {
            // Our IV is fresh, or the sequence number; the oracle's is neither. Opening checks the rest.
            let mut b = Gateway::new(Site::B, &options).with_host();
            let expected = match options.mode {
                Mode::Tunnel => (INSIDE, one_hop_on(&inner)),
                Mode::Transport(_) => (PortId::HOST, inner),
            };
            assert_eq!(b.run(OUTSIDE, std::slice::from_ref(sealed)), [expected]);
        }
        tally.ran += 1;
    }
    tally.assert_complete("oracle_esp_packets.json");
    assert!(byte_identical >= 40, "every packet without an IV at least: {byte_identical}");
}

/// The IV lies behind the 8 bytes of the header.
fn iv_of<'a>(esp: &'a [u8], suite: &Suite) -> &'a [u8] {
    &esp[8..8 + usize::from(suite.iv_length())]
}

/// The outer header but for what differs by right: the IPv4 identification, and the checksum over it.
fn without_identification(packet: &[u8]) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        return packet[..40].to_vec();
    }
    let mut header = packet[..20].to_vec();
    header[4..6].fill(0);
    header[10..12].fill(0);
    header
}

/// What each case of negative_packets.json is dropped for here; `None` is delivered. The file's counter names are
/// proposals.
fn expected_reason(packet: &Value) -> Option<DropReason> {
    Some(match packet["counter"].as_str().unwrap() {
        "rx_ok" => return None,
        "bad_pad_len" => DropReason::BadPadLength,
        "bad_pad_bytes" => DropReason::BadPadding,
        // A pad length that swallows the payload: what is there is no padding of 1, 2, 3, …
        "bad_padding_or_empty_inner" => DropReason::BadPadding,
        "rx_dummy" => DropReason::Dummy,
        "inner_malformed" | "inner_version_mismatch" => DropReason::InnerMalformed,
        "mode_mismatch" => DropReason::NextHeader,
        "selector_mismatch" => DropReason::SelectorMismatch,
        "no_sa" => DropReason::NoState,
        "icv" => DropReason::IcvFailed,
        "replay_zero" => DropReason::ReplayImpossible,
        "outer_fragment" => DropReason::EspFragment,
        "natt_keepalive" => DropReason::NatKeepalive,
        // To the IKE daemon, which is on the host.
        "natt_ike" => DropReason::NoHostPath,
        "natt_short" => natt_short_reason(packet),
        "too_short" => DropReason::EspTooShort,
        "too_short_or_icv" => truncated_reason(packet),
        other => panic!("counter {other}"),
    })
}

/// Too short for an SPI, or a length that is not the packet's; or for a sequence number behind it. (IPv4, no options.)
fn natt_short_reason(packet: &Value) -> DropReason {
    let packet = bytes(&packet["ip_packet"]);
    let length = usize::from(u16::from_be_bytes([packet[24], packet[25]]));
    let has_spi = (12..=packet.len() - 20).contains(&length);
    if has_spi { DropReason::EspTooShort } else { DropReason::Malformed }
}

/// A truncated packet is too short, or not a multiple of the cipher's block, or fails its check: RFC 4303 section 2
/// with the lengths of each cipher's RFC.
fn truncated_reason(packet: &Value) -> DropReason {
    let (iv, block, icv) = match packet["sa"].as_str().unwrap() {
        "gcm" => (8, 4, 16),
        "cbc" => (16, 16, 16),
        "null" => (0, 4, 16),
        other => panic!("SA {other}"),
    };
    let esp = bytes(&packet["ip_packet"]).len() - 20;
    let ciphertext = esp.checked_sub(8 + iv + icv).filter(|length| *length > 0 && length % block == 0);
    if ciphertext.is_some() { DropReason::IcvFailed } else { DropReason::EspTooShort }
}

fn negative_options(file: &Value, packet: &Value) -> Options {
    let keys = &file["sa"][packet["sa"].as_str().unwrap()];
    let cipher = keys["cipher"].as_str().unwrap().replace("-gcm-16", "-gcm");
    let exactly = |value: &Value| {
        let at = address(value.as_str().unwrap());
        AddressRange { first: at, last: at }
    };
    let selectors = ["inner_selectors_v4", "inner_selectors_v6"].map(|version| Selector {
        local: exactly(&file["sa"][version][1]),
        remote: exactly(&file["sa"][version][0]),
        protocol: None,
        upper: UpperSelector::Any,
    });
    Options {
        udp_port: packet["counter"].as_str().unwrap().starts_with("natt").then_some(4500),
        keys: ([bytes(&keys["key"]), bytes(&keys["salt"])].concat(), bytes(&keys["auth_key"])),
        selectors: Some(selectors.to_vec()),
        ..Options::with_suite(suite(&cipher, &keys["auth"], 16))
    }
}

/// The record of the one packet that was dropped says what its bytes say, where RFC 791, RFC 768, RFC 4303 and RFC 4302
/// have it. (IPv4, no options.)
fn assert_recorded(gateway: &mut Gateway, packet: &[u8], reason: DropReason, what: &str) {
    gateway.engine.tell_drops(0);
    let record = gateway.engine.tables.audit.take().expect("a record");
    assert_eq!(gateway.engine.tables.audit.take(), None, "{what}");
    assert_eq!((record.reason, record.drops), (reason, 1), "{what}");
    let seen = record.seen.expect("the packet was at hand");
    let header = seen.packet.expect("it is IP");
    let octets = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap();
    assert_eq!(
        (header.flow.source, header.flow.destination),
        (octets(12).into(), octets(16).into()),
        "{what}"
    );
    assert_eq!((header.flow.protocol, header.flow_label), (packet[9], None), "{what}");
    let at = match packet[9] {
        50 => 20,
        51 => 24,
        17 => 28,
        other => panic!("{what}: protocol {other}"),
    };
    let is_later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let word = |at: usize| (at + 4 <= length && !is_later_fragment).then(|| u32::from_be_bytes(octets(at)));
    let spi = word(at).filter(|spi| packet[9] != 17 || *spi != 0);
    assert_eq!(seen.spi, spi.map(Spi), "{what}");
    assert_eq!(seen.sequence, spi.and_then(|_| word(at + 4)).map(u64::from), "{what}");
    // The SA is looked for once the header is there, in what is whole.
    let is_looked_for =
        !matches!(reason, DropReason::NoState | DropReason::Malformed | DropReason::EspFragment);
    let is_of_the_sa = spi == Some(0x00ab_cdef) && seen.sequence.is_some() && is_looked_for;
    assert_eq!(seen.tunnel.as_deref(), is_of_the_sa.then_some("site"), "{what}");
}

#[test]
fn negative_packets_are_refused_for_their_own_reason() {
    let mut tally = Tally::default();
    let file = read("negative_packets.json");
    for packet in file["packets"].as_array().unwrap() {
        let counter = packet["counter"].as_str().unwrap();
        let options = negative_options(&file, packet);
        let mut b = Gateway::new(Site::B, &options);
        let sealed = bytes(&packet["ip_packet"]);
        let what = format!("packet {} ({})", packet["id"], packet["name"]);
        println!("{what}");
        match counter {
            "replay" => {
                assert_eq!(b.run(OUTSIDE, &[sealed.clone(), sealed.clone()]).len(), 1, "{what}");
                assert_eq!(b.drops(), [(DropReason::ReplayDuplicate, 1)], "{what}");
                assert_recorded(&mut b, &sealed, DropReason::ReplayDuplicate, &what);
            }
            // Carried by an SA for any port, dropped by one for some.
            "frag_policy" => {
                assert_eq!(b.run(OUTSIDE, std::slice::from_ref(&sealed)).len(), 1, "{what}: {:?}", b.drops());
                let ports = PortRange { first: 1, last: 65535 };
                let upper = UpperSelector::Ports { local: ports, remote: ports };
                let narrow = |selector| Selector { protocol: Some(17), upper, ..selector };
                let selectors = options.selectors.clone().unwrap().into_iter().map(narrow).collect();
                let mut b = Gateway::new(Site::B, &Options { selectors: Some(selectors), ..options });
                b.assert_drops(OUTSIDE, &sealed, DropReason::SelectorMismatch);
                assert_recorded(&mut b, &sealed, DropReason::SelectorMismatch, &what);
            }
            _ => match expected_reason(packet) {
                Some(reason) => {
                    b.assert_drops(OUTSIDE, &sealed, reason);
                    assert_recorded(&mut b, &sealed, reason, &what);
                }
                None => {
                    let opened = b.run_frames(vec![(OUTSIDE, frame(&sealed))]);
                    assert_eq!(opened.len(), 1, "{what}: {:?}", b.drops());
                    let inner = unframe(&opened[0].1);
                    let length = match inner[0] >> 4 {
                        4 => usize::from(u16::from_be_bytes([inner[2], inner[3]])),
                        _ => 40 + usize::from(u16::from_be_bytes([inner[4], inner[5]])),
                    };
                    assert_eq!(inner.len(), length, "{what}: trimmed to the inner packet's own length");
                }
            },
        }
        tally.ran += 1;
    }
    tally.assert_complete("negative_packets.json");
}
