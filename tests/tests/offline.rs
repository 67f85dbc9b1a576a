//! `adit offline`: captures through two configurations, A's output into B.

use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_engine::offline::captures::{self, Writer};
use adit_engine::offline::run;
use adit_tests::memory::{Site, address};
use adit_tests::packet::{frame, one_hop_on, tcp_syn, udp, unframe, with_fragment_field};
use adit_tests::scapy::fragments;
use serde_json::Value;

/// A directory of its own, gone afterwards.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("adit-offline-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn capture(&self, name: &str, packets: &[Vec<u8>]) -> PathBuf {
        let path = self.0.join(name);
        let mut writer = Writer::create(&path).unwrap();
        for (number, packet) in packets.iter().enumerate() {
            writer.write(Duration::from_millis(1_700_000_000_000 + number as u64), &frame(packet)).unwrap();
        }
        writer.finish().unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const KEY_TO_B: &str = "hex:000102030405060708090a0b0c0d0e0f";
const KEY_TO_A: &str = "hex:101112131415161718191a1b1c1d1e1f";
const AUTHENTICATION_TO_B: &str = "hex:202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f";
const AUTHENTICATION_TO_A: &str = "hex:404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f";

fn configuration(site: Site) -> String {
    let (local, remote) = (site.endpoint(false), site.peer().endpoint(false));
    let (inside, behind) =
        if site == Site::A { ("10.1.0.0/16", "10.2.0.0/16") } else { ("10.2.0.0/16", "10.1.0.0/16") };
    let sa = |to: Site| match to {
        Site::A => (0x1001, KEY_TO_A, AUTHENTICATION_TO_A),
        Site::B => (0x1002, KEY_TO_B, AUTHENTICATION_TO_B),
    };
    let table = |name: &str, (spi, key, authentication): (u32, &str, &str)| {
        format!(
            "[tunnel.{name}]\nspi = {spi}\nencryption-key = \"{key}\"\nauthentication-key = \"{authentication}\"\n\
             last-sequence = 4294967290\n"
        )
    };
    format!(
        "[[interface]]\nname = \"inside\"\nside = \"protected\"\n\
         [[interface]]\nname = \"outside\"\nside = \"unprotected\"\n\
         [[tunnel]]\nname = \"site\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
         encryption = \"aes-128-cbc\"\nauthentication = \"sha256\"\nesn = true\n\
         {}{}\
         [[policy]]\nname = \"site\"\naction = \"protect\"\ntunnel = \"site\"\n\
         local = [\"{inside}\"]\nremote = [\"{behind}\"]\n",
        table("inbound", sa(site)),
        table("outbound", sa(site.peer())),
    )
}

fn offline(arguments: &[&str]) -> Result<String, String> {
    run(&arguments.iter().map(Into::into).collect::<Vec<_>>())
}

fn through(site: Site, directory: &Directory, input: &str, out: &str, more: &[&str]) -> Value {
    let config = directory.write(&format!("{site:?}.toml"), &configuration(site));
    let out = directory.0.join(out);
    let arguments =
        ["--config", config.to_str().unwrap(), "--in", input, "--out", out.to_str().unwrap(), "--json"];
    let report = offline(&[&arguments[..], more].concat()).unwrap();
    serde_json::from_str(&report).unwrap()
}

fn packets(path: &Path) -> Vec<Vec<u8>> {
    captures::read(path).unwrap().iter().map(|captured| unframe(&captured.frame).to_vec()).collect()
}

fn assert_balanced(report: &Value) {
    let count = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(
        count("received") + count("originated"),
        count("transmitted") + count("absorbed") + count("dropped"),
        "{report:#}"
    );
}

#[test]
fn captures_go_through_two_gateways_and_are_the_same_every_time() {
    let directory = Directory::new("two");
    let (source, destination) = (Site::A.host(false), Site::B.host(false));
    let mut sent: Vec<_> = (0..100).map(|length| udp(source, destination, length * 10)).collect();
    let unmeant = udp(source, address("10.9.9.9"), 10);
    sent.insert(50, unmeant);
    let capture = directory.capture("in.pcap", &sent);
    let input = format!("inside={}", capture.display());

    let report = through(Site::A, &directory, &input, "a", &["--seed", "7"]);
    assert_balanced(&report);
    assert_eq!((&report["sealed"], &report["received"]), (&100.into(), &101.into()));
    assert_eq!(report["drops"], serde_json::json!({ "policy_discard": 1 }));
    let outbound = report["sas"].as_array().unwrap().iter().find(|sa| sa["direction"] == "outbound").unwrap();
    assert_eq!(outbound["last_sequence"], 4_294_967_290_u64 + 100);
    let wire = directory.0.join("a/outside.pcap");
    let sealed = packets(&wire);
    assert_eq!(sealed[0][24..28], 4_294_967_291_u32.to_be_bytes());
    assert_eq!(sealed[99][24..28], 94_u32.to_be_bytes(), "the low word has wrapped");
    assert_eq!(packets(&directory.0.join("a/inside.pcap")), Vec::<Vec<u8>>::new());

    let report = through(Site::B, &directory, &format!("outside={}", wire.display()), "b", &[]);
    assert_balanced(&report);
    assert_eq!(report["opened"], 100);
    sent.remove(50);
    let expected: Vec<_> = sent.iter().map(|packet| one_hop_on(&one_hop_on(packet))).collect();
    assert_eq!(packets(&directory.0.join("b/inside.pcap")), expected);

    through(Site::A, &directory, &input, "same", &["--seed", "7"]);
    through(Site::A, &directory, &input, "other", &["--seed", "8"]);
    let read = |out: &str| std::fs::read(directory.0.join(out).join("outside.pcap")).unwrap();
    assert_eq!(read("a"), read("same"));
    assert_ne!(read("a"), read("other"), "another seed, other IVs");
}

/// A capture of what went wrong in, the reason for each packet out.
#[test]
fn every_dropped_packet_is_explained_by_its_number() {
    let directory = Directory::new("explain");
    let sent: Vec<_> = (0..6).map(|length| udp(Site::A.host(false), Site::B.host(false), length)).collect();
    let capture = directory.capture("in.pcap", &sent);
    through(Site::A, &directory, &format!("inside={}", capture.display()), "a", &[]);
    let mut arrivals = packets(&directory.0.join("a/outside.pcap"));
    let again = arrivals[4].clone();
    *arrivals[2].last_mut().unwrap() ^= 1;
    let mut unknown = arrivals[5].clone();
    unknown[20..24].copy_from_slice(&[0, 0, 0x77, 0x77]);
    arrivals.extend([again, unknown, sent[0].clone()]);
    let capture = directory.capture("bad.pcap", &arrivals);
    let input = format!("outside={}", capture.display());

    let report = through(Site::B, &directory, &input, "explained", &["--explain"]);
    assert_balanced(&report);
    let told: Vec<_> = report["explained"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| {
            assert_eq!(
                (&record["capture"], &record["packets"]),
                (&capture.to_str().unwrap().into(), &1.into())
            );
            let text = |value: &Value| value.to_string().replace('"', "");
            let fields =
                ["number", "time", "reason", "tunnel", "spi", "sequence"].map(|name| text(&record[name]));
            format!("{} {} {}", fields.join(" "), text(&record["packet"]["source"]), text(&record["inner"]))
        })
        .collect();
    // The first of A's numbers is 4294967291; a number that is refused at once has 32 bits.
    assert_eq!(
        told,
        [
            "3 2023-11-14T22:13:20.002Z icv_failed site 0x00001002 4294967293 192.0.2.1 null",
            "7 2023-11-14T22:13:20.006Z replay_duplicate site 0x00001002 4294967295 192.0.2.1 null",
            "8 2023-11-14T22:13:20.007Z no_state null 0x00007777 0 192.0.2.1 null",
            "9 2023-11-14T22:13:20.008Z clear_text null null null 10.1.0.2 null",
        ]
    );
    let without = through(Site::B, &directory, &input, "without", &[]);
    assert!(without["explained"].is_null() && without["drops"] == report["drops"]);
    let out = |out: &str| std::fs::read(directory.0.join(out).join("inside.pcap")).unwrap();
    assert_eq!(out("without").len(), out("explained").len());
    assert_eq!(
        packets(&directory.0.join("without/inside.pcap")),
        packets(&directory.0.join("explained/inside.pcap"))
    );

    let config = directory.write("B.toml", &configuration(Site::B));
    let out = directory.0.join("text");
    let arguments =
        ["--config", config.to_str().unwrap(), "--in", &input, "--out", out.to_str().unwrap(), "--explain"];
    let text = offline(&arguments).unwrap();
    let row = text.lines().find(|line| line.contains("0x00007777")).unwrap();
    let cells: Vec<_> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(
        cells[1..],
        ["8", "no_state", "1", "in", "-", "0x00007777", "0", "192.0.2.1 > 198.51.100.9 esp", "-"]
    );
    let both = offline(&[&arguments[..], &["--burst", "8"]].concat()).unwrap_err();
    assert!(both.contains("--explain") && both.contains("--burst"), "{both}");
}

#[test]
fn a_described_network_decides_size_and_neighbours() {
    let directory = Directory::new("network");
    let network = directory.write(
        "network.toml",
        "[[port]]\nname = \"outside\"\nmtu = 1400\nmac = \"02:00:00:00:00:01\"\n\
         [[port]]\nname = \"inside\"\naddresses = [\"10.1.0.1\"]\n\
         [[route]]\nto = \"0.0.0.0/0\"\nport = \"outside\"\nvia = \"192.0.2.254\"\n\
         [[neighbour]]\nport = \"outside\"\naddress = \"192.0.2.254\"\nmac = \"02:00:5e:00:53:01\"\n",
    );
    let mut large = udp(Site::A.host(false), Site::B.host(false), 1372);
    large[6] = 0x40;
    adit_tests::packet::fix_ipv4(&mut large);
    let syn = tcp_syn(Site::A.host(false), Site::B.host(false), 1460);
    let capture = directory.capture("in.pcap", &[large, syn]);
    let network = ["--network", network.to_str().unwrap()];
    let report = through(Site::A, &directory, &format!("inside={}", capture.display()), "out", &network);
    assert_balanced(&report);
    assert_eq!(report["drops"], serde_json::json!({ "too_big": 1 }));
    assert_eq!((&report["originated"], &report["sealed"]), (&1.into(), &1.into()));
    let sealed = captures::read(&directory.0.join("out/outside.pcap")).unwrap();
    assert_eq!(sealed[0].frame[..12], [2, 0, 0x5e, 0, 0x53, 1, 2, 0, 0, 0, 0, 1]);
}

/// Linux fragments after encryption, routers whatever is too large: their captures can be read all the same.
#[test]
fn fragments_of_esp_are_put_together() {
    let directory = Directory::new("fragments");
    let network = directory.write("network.toml", "[[port]]\nname = \"outside\"\nmtu = 9000\n");
    let network = ["--network", network.to_str().unwrap()];
    let sent = [700, 1_200, 1_472].map(|length| udp(Site::A.host(false), Site::B.host(false), length));
    let capture = directory.capture("in.pcap", &sent);
    through(Site::A, &directory, &format!("inside={}", capture.display()), "a", &network);
    let whole = packets(&directory.0.join("a/outside.pcap"));

    let mut pieces: Vec<_> = fragments(&whole, 576).concat();
    let count = pieces.len() as u64;
    // One that is all alone.
    pieces.push(with_fragment_field(whole[0].clone(), 99));
    let capture = directory.capture("wire.pcap", &pieces);
    let report = through(Site::B, &directory, &format!("outside={}", capture.display()), "b", &[]);
    assert_balanced(&report);
    assert_eq!((&report["absorbed"], &report["opened"]), (&(count - 3).into(), &3.into()));
    assert_eq!(report["drops"], serde_json::json!({ "reassembly_timeout": 1 }));
    let expected: Vec<_> = sent.iter().map(|packet| one_hop_on(&one_hop_on(packet))).collect();
    assert_eq!(packets(&directory.0.join("b/inside.pcap")), expected);
}

/// The bytes of one tag, as scapy 2.8.0 writes `Dot1Q(vlan=100)` and `Dot1AD(vlan=30)/Dot1Q(vlan=20)`.
#[test]
fn tagged_captures_are_of_vlans() {
    let directory = Directory::new("vlan");
    let (single, double) = ("81000064", "88a8001e81000014");
    let tag = |frame: &[u8], tags: &str| {
        let (addresses, rest) = frame.split_at(12);
        [addresses, &hex::decode(tags).unwrap(), rest].concat()
    };
    // Inside VLAN 100 of one interface, outside a QinQ VLAN of another.
    let vlans = "[[interface]]\nname = \"lan0\"\nside = \"protected\"\n\
         [[interface]]\nname = \"wan0\"\nside = \"unprotected\"\n\
         [[interface]]\nname = \"lan0.100\"\nparent = \"lan0\"\nvlan = 100\nside = \"protected\"\n\
         [[interface]]\nname = \"wan0.30.20\"\nparent = \"wan0\"\nvlan = [30, 20]\nside = \"unprotected\"\n";
    let interfaces = "[[interface]]\nname = \"inside\"\nside = \"protected\"\n\
         [[interface]]\nname = \"outside\"\nside = \"unprotected\"\n";
    let network = directory.write(
        "network.toml",
        "[[route]]\nto = \"10.1.0.0/16\"\nport = \"lan0.100\"\n\
         [[route]]\nto = \"10.2.0.0/16\"\nport = \"lan0.100\"\n\
         [[route]]\nto = \"0.0.0.0/0\"\nport = \"wan0.30.20\"\n",
    );
    let run = |site: Site, input: &str, out: &str| -> Value {
        let config = directory.write("vlan.toml", &configuration(site).replace(interfaces, vlans));
        let out = directory.0.join(out);
        let (config, out) = (config.to_str().unwrap(), out.to_str().unwrap());
        let network = network.to_str().unwrap();
        let arguments = ["--config", config, "--in", input, "--out", out, "--network", network, "--json"];
        serde_json::from_str(&offline(&arguments).unwrap()).unwrap()
    };
    let sent: Vec<_> =
        [10, 500, 1400].iter().map(|&length| udp(Site::A.host(false), Site::B.host(false), length)).collect();
    let path = directory.0.join("in.pcap");
    let mut writer = Writer::create(&path).unwrap();
    for tags in [single, double, "8100006581000064"] {
        for packet in &sent {
            writer.write(Duration::ZERO, &tag(&frame(packet), tags)).unwrap();
        }
    }
    writer.finish().unwrap();
    let report = run(Site::A, &format!("lan0={}", path.display()), "a");
    assert_balanced(&report);
    assert_eq!((&report["sealed"], &report["drops"]), (&3.into(), &serde_json::json!({ "vlan": 6 })));
    let wire = directory.0.join("a/wan0.pcap");
    let sealed = captures::read(&wire).unwrap();
    assert_eq!(sealed.len(), 3);
    for captured in &sealed {
        assert_eq!(captured.frame[12..20], hex::decode(double).unwrap());
        assert_eq!(captured.frame[20..22], [8, 0]);
    }
    let report = run(Site::B, &format!("wan0={}", wire.display()), "b");
    assert_balanced(&report);
    let opened = captures::read(&directory.0.join("b/lan0.pcap")).unwrap();
    assert_eq!(opened.len(), 3);
    for (captured, packet) in opened.iter().zip(&sent) {
        assert_eq!(captured.frame[12..16], hex::decode(single).unwrap());
        let untagged = [&captured.frame[..12], &captured.frame[16..]].concat();
        assert_eq!(unframe(&untagged), one_hop_on(&one_hop_on(packet)));
    }
}

#[test]
fn jumbo_packets_pass_where_the_ports_carry_them() {
    let directory = Directory::new("jumbo");
    let network = |mtu: u32| {
        let port = |name: &str| format!("[[port]]\nname = \"{name}\"\nmtu = {mtu}\n");
        directory.write("network.toml", &(port("inside") + &port("outside")))
    };
    let network_9000 = network(9000);
    let arguments = ["--network", network_9000.to_str().unwrap()];
    // Outside 9000: 20 outer IP, 8 ESP, 16 IV, 16 ICV leave 8940; whole blocks of 16: 8928, less the trailer: 8926.
    let sizes = [1472, 1700, 1764, 1765, 3556, 8870, 8898];
    let (source, destination) = (Site::A.host(false), Site::B.host(false));
    let sent: Vec<_> = sizes.iter().map(|&length| udp(source, destination, length)).collect();
    assert_eq!(sent.last().unwrap().len(), 8926);
    let capture = directory.capture("in.pcap", &sent);
    let report = through(Site::A, &directory, &format!("inside={}", capture.display()), "a", &arguments);
    assert_balanced(&report);
    assert_eq!((&report["sealed"], &report["originated"]), (&sizes.len().into(), &0.into()));
    let wire = format!("outside={}", directory.0.join("a/outside.pcap").display());
    let report = through(Site::B, &directory, &wire, "b", &arguments);
    assert_balanced(&report);
    let expected: Vec<_> = sent.iter().map(|packet| one_hop_on(&one_hop_on(packet))).collect();
    assert_eq!(packets(&directory.0.join("b/inside.pcap")), expected);

    let network = network(9001);
    let config = directory.0.join("A.toml");
    let arguments = ["--config", config.to_str().unwrap(), "--in", &wire, "--out", "/nowhere"];
    let error = offline(&[&arguments[..], &["--network", network.to_str().unwrap()]].concat()).unwrap_err();
    assert!(error.contains("mtu of inside: expected at most 9000, found 9001"), "{error}");
}

#[test]
fn errors_name_what_is_wrong() {
    let directory = Directory::new("errors");
    let config = directory.write("a.toml", &configuration(Site::A));
    let config = config.to_str().unwrap();
    let out = directory.0.join("out");
    let out = out.to_str().unwrap();
    let capture = directory.capture("in.pcap", &[]);
    let capture = capture.to_str().unwrap();
    for (input, expected) in [
        ("inside=/nowhere/in.pcap".to_owned(), "/nowhere/in.pcap"),
        (format!("elsewhere={capture}"), "elsewhere"),
        (format!("inside={config}"), "a.toml"),
        ("inside".to_owned(), "INTERFACE=FILE"),
    ] {
        let error = offline(&["--config", config, "--in", &input, "--out", out]).unwrap_err();
        assert!(error.contains(expected), "{input}: {error}");
    }
    let text = offline(&["--config", config, "--in", &format!("inside={capture}"), "--out", out]).unwrap();
    assert!(text.contains("received") && text.contains("outbound"), "{text}");
}
