//! scapy as a maker of packets, where the engine's own code must not be.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex};

use serde_json::{Value, json};

/// What scapy makes of whole IP packets for links of `mtu` bytes: the fragments of each, in order.
pub fn fragments(packets: &[Vec<u8>], mtu: usize) -> Vec<Vec<Vec<u8>>> {
    ask(packets
        .iter()
        .map(|packet| json!({ "do": "fragments", "packet": hex(packet), "mtu": mtu }))
        .collect())
}

/// ICMP errors of `router`'s, to the source of each packet: "too-big" (with `mtu`), "unreachable", "time-exceeded" or
/// "parameter-problem". They quote up to `quoted` bytes behind the IP header, as far as RFC 1812 and RFC 4443 allow.
pub fn errors(packets: &[Vec<u8>], router: &str, kind: &str, mtu: u32, quoted: usize) -> Vec<Vec<u8>> {
    let request = |packet: &Vec<u8>| {
        let quoted = quoted.min(9_000);
        json!({ "do": "error", "packet": hex(packet), "from": router, "kind": kind, "mtu": mtu, "quoted": quoted })
    };
    ask(packets.iter().map(request).collect()).concat()
}

/// Whole packets of what came in fragments or whole; in order of their numbers in ESP or AH, wherever those are.
pub fn whole(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let packets: Vec<_> = packets.iter().map(|packet| hex(packet)).collect();
    let mut whole = ask(vec![json!({ "do": "whole", "packets": packets })]).concat();
    let number = |packet: &Vec<u8>| {
        let v6 = packet[0] >> 4 == 6;
        let (header, protocol) = if v6 { (40, packet[6]) } else { (20, packet[9]) };
        let at = header
            + match protocol {
                17 => 12,
                51 => 8,
                _ => 4,
            };
        packet[at..at + 4].to_vec()
    };
    whole.sort_by_key(number);
    whole
}

fn hex(packet: &[u8]) -> String {
    packet.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A running scapy: it takes a second to start.
struct Scapy {
    /// It ends with its input, when this process does.
    _process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

static SCAPY: LazyLock<Mutex<Scapy>> = LazyLock::new(|| {
    let python = std::env::var("ADIT_SCAPY_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/scapy_packets.py");
    let mut process = Command::new(python)
        .args(["-B", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python with scapy (scripts/test installs it)");
    let requests = process.stdin.take().expect("piped");
    let answers = BufReader::new(process.stdout.take().expect("piped"));
    Mutex::new(Scapy { _process: process, requests, answers })
});

/// The packets that scapy makes for each request.
fn ask(requests: Vec<Value>) -> Vec<Vec<Vec<u8>>> {
    let mut scapy = SCAPY.lock().expect("no test failed while it asked");
    let bytes = |hex: &Value| -> Vec<u8> {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        hex.as_str().unwrap().as_bytes().chunks(2).map(byte).collect()
    };
    let answer = |request: &Value| {
        let mut line = String::new();
        writeln!(scapy.requests, "{request}").expect("scapy gave up");
        scapy.answers.read_line(&mut line).expect("scapy gave up");
        let packets: Value = serde_json::from_str(&line).expect("scapy gave up");
        packets.as_array().unwrap().iter().map(bytes).collect()
    };
    requests.iter().map(answer).collect()
}
