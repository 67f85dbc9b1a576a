//! ESP and AH made and read by OpenSSL, where the engine's own code must not be.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// What ESP says of itself once it is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The payload, traffic-flow confidentiality padding included, ESP's own padding not.
    pub payload: Vec<u8>,
    /// Next header.
    pub next_header: u8,
}

/// ESP to be made: SPI, sequence number, next header, payload.
pub type ToSeal = (u32, u32, u8, Vec<u8>);

/// Opens packets of AES-GCM ESP, each from its ESP header on, under `key` with its salt.
///
/// # Panics
/// When OpenSSL does not find the ICV right, or the padding is not RFC 4303's.
pub fn open(key: &[u8], packets: &[&[u8]]) -> Vec<Opened> {
    let key = hex(key);
    let requests = packets.iter().map(|esp| json!({ "open": hex(esp), "key": key }));
    ask(requests).iter().map(opened).collect()
}

/// Takes AH (HMAC-SHA-256-128) off whole IP packets without options or extension headers.
///
/// # Panics
/// When OpenSSL does not find the ICV right.
pub fn check_ah(key: &[u8], packets: &[&[u8]]) -> Vec<Opened> {
    let key = hex(key);
    let requests = packets.iter().map(|packet| json!({ "check": hex(packet), "key": key }));
    ask(requests).iter().map(opened).collect()
}

/// Puts AH between an IP header and what follows it.
pub fn sign_ah(key: &[u8], header: &[u8], packets: &[ToSeal]) -> Vec<Vec<u8>> {
    let (key, header) = (hex(key), hex(header));
    let requests = packets.iter().map(|(spi, sequence, next_header, payload)| {
        json!({
            "sign": hex(payload), "spi": spi, "sequence": sequence, "next_header": next_header, "key": key,
            "header": header
        })
    });
    ask(requests).iter().map(|answer| bytes(answer.as_str().unwrap())).collect()
}

fn opened(answer: &Value) -> Opened {
    Opened {
        payload: bytes(answer["payload"].as_str().unwrap()),
        next_header: answer["next_header"].as_u64().unwrap() as u8,
    }
}

/// Makes AES-GCM ESP under `key` with its salt.
pub fn seal(key: &[u8], packets: &[ToSeal]) -> Vec<Vec<u8>> {
    let key = hex(key);
    let requests = packets.iter().map(|(spi, sequence, next_header, payload)| {
        json!({
            "seal": hex(payload), "spi": spi, "sequence": sequence, "next_header": next_header, "key": key
        })
    });
    ask(requests).iter().map(|answer| bytes(answer.as_str().unwrap())).collect()
}

fn ask(requests: impl Iterator<Item = Value>) -> Vec<Value> {
    let python = std::env::var("ADIT_SCAPY_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/openssl_ipsec.py");
    let mut child = Command::new(python)
        .args(["-B", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python with cryptography (scripts/test installs it)");
    let requests: Vec<String> = requests.map(|request| format!("{request}\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let text = requests.concat();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), requests.len(), "OpenSSL gave up");
    answers
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    hex.as_bytes().chunks(2).map(byte).collect()
}
