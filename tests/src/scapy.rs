//! scapy as a maker of packets, where the engine's own code must not be.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// What scapy makes of whole IP packets for links of `mtu` bytes: the fragments of each, in order.
pub fn fragments(packets: &[Vec<u8>], mtu: usize) -> Vec<Vec<Vec<u8>>> {
    let python = std::env::var("ADIT_SCAPY_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/scapy_fragments.py");
    let mut child = Command::new(python)
        .args(["-B", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python with scapy (scripts/test installs it)");
    let hex = |packet: &[u8]| packet.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let requests: String =
        packets.iter().map(|packet| format!("{}\n", json!({"packet": hex(packet), "mtu": mtu}))).collect();
    child.stdin.take().unwrap().write_all(requests.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let bytes = |hex: &Value| -> Vec<u8> {
        let digits = hex.as_str().unwrap().as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    };
    let pieces = |line: &str| -> Vec<Vec<u8>> {
        serde_json::from_str::<Value>(line).unwrap().as_array().unwrap().iter().map(bytes).collect()
    };
    let all: Vec<_> = lines.lines().map(pieces).collect();
    assert_eq!(all.len(), packets.len(), "scapy gave up");
    all
}
