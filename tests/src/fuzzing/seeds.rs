//! Where looking for inputs begins: the vectors' packets, and examples of everything a target takes.

use serde_json::{Value, json};

use super::control::CONFIGURATION;
use super::peer::EspPeer;
use crate::memory::Site;
use crate::packet::{self, DONT_FRAGMENT, MORE_FRAGMENTS};
use crate::vectors::Vectors;

/// The first inputs of a target.
///
/// # Panics
/// When there is no such target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "wire" => wire(),
        "inbound" => inbound(),
        "control" => control(),
        "fragments" => fragments(),
        _ => panic!("no target {target}"),
    }
}

fn packets(file: &'static str) -> Vec<Value> {
    Vectors::load(file).take_list("packets")
}

fn bytes(packet: &Value, field: &str) -> Option<Vec<u8>> {
    Some(hex::decode(packet[field].as_str()?).expect("hexadecimal"))
}

/// Packets of hosts, from `from` to `to`: plain, large, dying, fragments, a SYN, an echo, extension headers.
fn hosts(from: Site, to: Site) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for ipv6 in [false, true] {
        let (source, destination) = (from.host(ipv6), to.host(ipv6));
        let udp = |length| packet::udp(source, destination, length);
        packets.extend([0, 40, 300].map(udp));
        packets.push(packet::with_ttl(udp(20), 1));
        packets.push(packet::with_traffic_class(udp(20), 3));
        packets.push(packet::tcp_syn(source, destination, 1460));
        packets.push(packet::ip(source, destination, if ipv6 { 58 } else { 1 }, &[8, 0, 0, 0, 0, 1, 0, 1]));
        if ipv6 {
            let extended =
                [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[44, 0, 1, 4, 0, 0, 0, 0], &[17, 0, 0, 9, 0, 0, 0, 7]];
            packets.push(packet::ip(
                source,
                destination,
                0,
                &[&extended.concat()[..], &udp(30)[40..]].concat(),
            ));
            packets.push(packet::ip(source, destination, 51, &[17, 4, 0, 0, 0, 0, 0, 1].repeat(3)));
        } else {
            for field in [DONT_FRAGMENT, MORE_FRAGMENTS, MORE_FRAGMENTS | 5, 9] {
                packets.push(packet::with_fragment_field(udp(200), field));
            }
            let mut options = udp(64);
            options.splice(20..20, [0x94, 4, 0, 0, 1, 7, 3, 4]);
            options[0] = 0x47;
            packets.push(options);
        }
    }
    packets
}

fn wire() -> Vec<Vec<u8>> {
    let mut packets: Vec<_> = packets("oracle_esp_packets.json")
        .iter()
        .flat_map(|packet| {
            [bytes(packet, "outer_packet"), bytes(packet, "inner_packet"), bytes(packet, "esp")]
        })
        .chain(packets("negative_packets.json").iter().map(|packet| bytes(packet, "ip_packet")))
        .chain(packets("oracle_ah_packets.json").iter().map(|packet| bytes(packet, "packet")))
        .flatten()
        .collect();
    packets.extend(hosts(Site::A, Site::B));
    packets.extend(hosts(Site::A, Site::B).iter().map(|packet| packet::frame(packet)));
    // Datagrams of NAT traversal, from their UDP header on.
    let datagram =
        |packet: &Vec<u8>| packet.get(20..).filter(|_| packet.get(9) == Some(&17)).map(<[u8]>::to_vec);
    let datagrams: Vec<_> = packets.iter().filter_map(datagram).collect();
    packets.extend(datagrams);
    let mtus = [1500u16, 100, 576, 68].into_iter().cycle();
    let numbered =
        packets.iter().zip(mtus).zip((0..=u8::MAX).cycle()).map(|((packet, mtu), number)| {
            [&[3][..], &mtu.to_be_bytes(), &[number, number], packet].concat()
        });
    numbered.collect()
}

/// Datagrams in pieces: in order, backwards, one twice, overlapping, without an end; and errors about packets.
fn fragments() -> Vec<Vec<u8>> {
    let piece = |kind: u8, flags: u8, offset: u16, length: u16| {
        [&[kind, flags, 1, 2][..], &offset.to_be_bytes(), &length.to_be_bytes()].concat()
    };
    let mut seeds = Vec::new();
    for kind in [4, 5] {
        let whole = [piece(kind, 1, 0, 512), piece(kind, 1, 64, 256), piece(kind, 2, 96, 77)];
        let orders: [&[usize]; 6] =
            [&[0, 1, 2], &[2, 1, 0], &[1, 1, 0, 2], &[0, 2], &[0, 1], &[0, 1, 2, 0, 1, 2]];
        for (choice, order) in (0..=255).step_by(37).zip(orders.iter().cycle()) {
            let steps: Vec<u8> = order.iter().flat_map(|&index| whole[index].clone()).collect();
            seeds.push([&[choice][..], &steps].concat());
        }
        let overlap = [piece(kind, 5, 32, 512), whole[2].clone()].concat();
        seeds.push([&[0xff][..], &whole[0], &overlap, &[0, 0xff, 0xff]].concat());
    }
    for (number, packet) in hosts(Site::A, Site::B).iter().enumerate() {
        let (v6, kind) = (packet[0] >> 4 == 6, [1, 2, 3, 4, 11, 12][number % 6]);
        let length = (packet.len() as u16).to_be_bytes();
        seeds.push([&[0xff, 2][..], &length, &[v6.into(), kind, 4], packet].concat());
        seeds.push([&[0xff, 1][..], &length, packet].concat());
    }
    seeds
}

/// One step of [`super::inbound()`]: its kind, its bytes, and a counted packet.
fn step(kind: u8, bytes: &[u8], packet: &[u8]) -> Vec<u8> {
    [&[kind][..], bytes, &(packet.len() as u16).to_be_bytes(), packet].concat()
}

fn inbound() -> Vec<Vec<u8>> {
    /// Settings: suites, families, ESN, MTUs, selectors, scarce frames, AH, UDP, and last a host path.
    const SETTINGS: [[u8; 4]; 19] = [
        [0x10, 0, 0, 0],
        [0x11, 0, 0, 0],
        [0x36, 0x09, 0, 0],
        [0x25, 0x02, 0x24, 0],
        [0x93, 0x04, 0x05, 0],
        [0xd2, 0, 0x2d, 0],
        [0x20, 0x11, 0, 0],
        [0x30, 0x0a, 0x35, 0x81],
        [0x84, 0x01, 0x12, 0x83],
        [0x37, 0x08, 0x3f, 0],
        [0x11, 0x20, 0, 0],
        [0x37, 0x20, 0x24, 0],
        [0x93, 0x2c, 0x05, 0x83],
        [0x10, 0x40, 0, 0],
        [0x37, 0x40, 0x24, 0],
        [0x10, 0x80, 0, 0],
        [0x37, 0xa9, 0, 0],
        [0x25, 0x82, 0x24, 0],
        [0x30, 0xd1, 0x12, 0x83],
    ];
    let mut seeds = Vec::new();
    let mut seed = |index: usize, steps: Vec<u8>| {
        seeds.push([&SETTINGS[index % SETTINGS.len()][..], &steps].concat());
    };

    // What the peer of the negative vectors put under a good ICV, and the packets as they are.
    let vectors = Vectors::load("negative_packets.json");
    let key = |sa: &str, field: &str| hex::decode(vectors.json["sa"][sa][field].as_str().unwrap()).unwrap();
    let spi = vectors.json["sa"]["spi"].as_u64().unwrap() as u32;
    let gcm = EspPeer::gcm(spi, &[key("gcm", "key"), key("gcm", "salt")].concat(), false);
    let null = EspPeer::null(spi, &key("null", "auth_key"), false);
    let mut decapsulated = 0;
    for (index, vector) in packets("negative_packets.json").iter().enumerate() {
        let whole = bytes(vector, "ip_packet").unwrap();
        let esp = whole.get(20..).unwrap_or_default();
        let opened = gcm.open(0, esp).or_else(|| null.open(0, esp));
        decapsulated += usize::from(opened.is_some());
        match opened {
            Some((_, plaintext)) => seed(index, step(3, &[1, 0], &plaintext)),
            None => seed(index, step(1, &[1], &packet::frame(&whole))),
        }
    }
    assert!(decapsulated > 50, "the vectors' keys open only {decapsulated} of their packets");

    for (index, packet) in hosts(Site::A, Site::B).iter().enumerate() {
        // Sealed, and again; forged; then a second one.
        let sealed = step(4, &[1, 3], packet);
        let twice = [&sealed[..], &[6, 0, 7, 0, 0, 60, 1], &step(4, &[0x41, 0x43], packet)].concat();
        for variant in 0..3 {
            seed(index + variant, twice.clone());
        }
        // In a burst with others, after a deletion, in clear.
        seed(
            index,
            [&sealed[..], &[0, 9], &step(4, &[2, 3], packet), &[8, 1], &step(4, &[1, 3], packet)].concat(),
        );
        seed(index, step(2, &[0x83], packet));
        seed(index + 1, step(2, &[0x9f], packet));
        seed(index, step(2, &[0xbf], packet));
    }
    for (index, packet) in hosts(Site::B, Site::A).iter().enumerate() {
        for variant in 0..4 {
            let outbound = step(2, &[3], packet);
            // As it is; towards the network in clear; then without an SA; the link down.
            let more =
                [&outbound[..], &step(2, &[0x17], packet), &[6, 0, 8, 0], &outbound, &[8, 0x82], &outbound];
            seed(index + variant, more.concat());
        }
        // From the gateway's own stack, from elsewhere into it, and to it, wherever there is a way.
        for setting in SETTINGS.len() - 4..SETTINGS.len() {
            let (own, foreign) = (step(8, &[6, 0x8f], packet), step(8, &[6, 0x0f], packet));
            seed(
                setting,
                [&own[..], &own, &foreign, &step(4, &[1, 0x2f], packet), &[8, 0x82], &own].concat(),
            );
        }
    }
    seeds
}

fn control() -> Vec<Vec<u8>> {
    /// Of one who may change, of one who may not, and with the first calls of the hooks failing in turn.
    const KINDS: [u8; 7] = [0, 1, 1 << 2, 2 << 2, 3 << 2, 4 << 2, 5 << 2];
    let tunnel = json!({
        "name": "second", "local": "2001:db8::1", "remote": "2001:db8::2", "encryption": "aes-128-ccm",
        "icv_length": 8, "esn": true, "replay_window": 64, "dscp": 46, "ecn": "clear", "df": "clear", "ttl": 9,
        "workers": "shared", "clamp_mss": false,
        "inbound": { "spi": "0x2001", "encryption_key": "hex:00112233445566778899aabbccddeeff010203", "fresh_key": true },
        "outbound": { "spi": 8194, "encryption_key": "hex:10112233445566778899aabbccddeeff010203", "fresh_key": true },
    });
    let policies = json!([
        { "name": "web", "action": "protect", "tunnel": "first", "local": ["10.9.0.0/16", "10.8.0.1-10.8.0.9"],
          "remote": ["any"], "protocol": "tcp", "local_ports": "80", "remote_ports": "1024-65535",
          "direction": "out" },
        { "name": "ping", "action": "bypass", "remote": ["2001:db8:1::/48"], "protocol": "icmpv6",
          "icmp": "128-129/0" },
        { "name": "rest", "action": "discard", "protocol": 47, "direction": "both" },
    ]);
    let own = |name: &str, parameters: Value| json!({ "method": format!("io.adit.Engine.{name}"), "parameters": parameters, "more": true });
    let service = |name: &str, parameters: Value| json!({ "method": format!("org.varlink.service.{name}"), "parameters": parameters, "oneway": false });
    let calls = [
        own("Status", json!({})),
        own("Monitor", json!({})),
        own("Stats", json!({})),
        own("Drops", json!({ "all": true })),
        own("SaList", json!({ "tunnel": "first" })),
        own("SaList", json!({})),
        own("SaShow", json!({ "tunnel": "first", "spi": "0x1001" })),
        own("SaAdd", json!({ "tunnel": tunnel.clone(), "policies": policies.clone() })),
        own("SaAdd", json!({ "tunnel": tunnel })),
        own("SaDelete", json!({ "spi": "4097", "direction": "in" })),
        own("SaDelete", json!({ "tunnel": "first" })),
        own("PolicyAdd", json!({ "policies": policies, "position": 0 })),
        own("PolicyList", json!({})),
        own("PolicyDelete", json!({ "name": "sites" })),
        own("Reload", json!({})),
        service("GetInfo", json!({})),
        service("GetInterfaceDescription", json!({ "interface": "io.adit.Engine" })),
        json!({ "method": "io.adit.Engine.Status", "upgrade": true }),
    ];
    let calls: Vec<_> = calls.iter().map(|call| serde_json::to_vec(call).expect("JSON")).collect();
    let mut seeds: Vec<_> =
        calls.iter().flat_map(|call| KINDS.map(|kind| [&[kind][..], call].concat())).collect();
    seeds.push([&[0][..], &calls.join(&0)].concat());
    let everything = CONFIGURATION
        .replace("local = [\"10.1.0.0/16\"]", "local = [\"any\"]\nprotocol = \"udp\"\nlocal-ports = \"53\"")
        .replace("[engine]", "[engine]\ncores = [0, 1]\nstate-dir = \"/var/lib/adit\"\ndefault = \"discard\"")
        .replace(
            "profile = \"cbc\"",
            "profile = \"cbc\"\ndscp = \"copy\"\necn = \"copy\"\nttl = 7\nworkers = \"one\"\nesn = false",
        )
        .replace("spi = 0x1002", "spi = \"0x1002\"\nlast-sequence = 7");
    for text in [CONFIGURATION.to_owned(), everything, tables()] {
        seeds.extend([2, 3].map(|kind| [&[kind][..], text.as_bytes()].concat()));
    }
    seeds
}

/// Every algorithm, in a profile of its own.
fn tables() -> String {
    let mut text = String::from("[engine]\nallow-legacy = true\nxdp-mode = \"skb\"\nclamp-mss = false\n");
    for (number, suite) in [
        "null sha1",
        "des md5",
        "3des sha1",
        "aes-192-cbc sha384",
        "aes-256-cbc sha512",
        "aes-256-gcm none",
        "aes-192-ctr aes-xcbc",
        "null aes-cmac",
        "chacha20-poly1305 none",
        "aes-256-gmac none",
    ]
    .iter()
    .enumerate()
    {
        let (encryption, authentication) = suite.split_once(' ').expect("two names");
        text += &format!(
            "[profile.p{number}]\nencryption = \"{encryption}\"\nauthentication = \"{authentication}\"\n\
             dh-group = \"group14\"\nlifetime-packets-hard = 1000\nlifetime-bytes-soft = 5000\n\
             lifetime-seconds-hard = 3600\nreplay-window = {}\n",
            32 + number
        );
    }
    text
}
