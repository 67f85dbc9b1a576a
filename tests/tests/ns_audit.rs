//! Records of what a real daemon drops (the topology is drawn in `scripts/topology`): an attacker on the wire is told of, in
//! listings and in the log, a few lines for as many packets as it likes.

use std::time::{Duration, Instant};

use adit_tests::gateway::{Gateway, SPI_BA, Setup};
use adit_tests::process::{eventually, run};
use adit_tests::topology::Topology;
use serde_json::Value;

/// Forged ESP for A's inbound SA, as fast as it goes for three seconds, and clear text that the policy protects; by the
/// kernel's raw sockets.
const ATTACK: &str = "
import socket, struct, sys, time
esp = socket.socket(socket.AF_INET, socket.SOCK_RAW, 50)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
clear = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 48, 0, 0, 64, 253, 0,
    socket.inet_aton('10.2.0.99'), socket.inet_aton('10.1.0.2')) + b'in clear for all to see.....'
until, number = time.monotonic() + 3, 0
while time.monotonic() < until:
    for _ in range(100):
        number += 1
        esp.sendto(struct.pack('!LL', int(sys.argv[1]) if number % 4 else 0xbad0001, number) + b'forged, and not for the log ' * 4, ('192.0.2.1', 0))
    raw.sendto(clear, ('192.0.2.1', 0))
print(number)
";

/// Clear text to the gateway's own address inside, which the policy protects, for two seconds.
const INTRUSION: &str = "
import socket, struct, time
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
clear = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 48, 0, 0, 64, 253, 0,
    socket.inet_aton('10.2.0.98'), socket.inet_aton('10.1.0.1')) + b'in clear for all to see.....'
until, number = time.monotonic() + 2, 0
while time.monotonic() < until:
    for _ in range(100):
        number += 1
        raw.sendto(clear, ('192.0.2.1', 0))
    time.sleep(0.001)
print(number)
";

/// What the records of `reason` stand for, once they have caught up with its counter.
fn told(gateway: &Gateway, reason: &str) -> (u64, Vec<Value>) {
    let records = || -> Vec<Value> {
        let records = gateway.json(&["drops", "--recent", "--reason", reason]);
        records.as_array().unwrap().clone()
    };
    let sum =
        |records: &[Value]| records.iter().map(|record| record["packets"].as_u64().unwrap()).sum::<u64>();
    eventually("records catch up with the counter", Duration::from_secs(5), || {
        sum(&records()) == gateway.dropped(reason)
    });
    let records = records();
    (sum(&records), records)
}

/// What is decrypted for a host that is not there.
#[test]
fn who_did_not_answer_is_told() {
    let topology = Topology::new(1);
    let (gateway, _peer) = Gateway::pair(&topology, &Setup::new("aes-128-gcm", "none"));
    topology.attempt("hb", "ping -c 3 -i 0.2 -W 1 10.1.0.77");
    eventually("the first gave up waiting", Duration::from_secs(10), || gateway.dropped("no_neighbour") == 3);
    let (packets, records) = told(&gateway, "no_neighbour");
    assert_eq!(packets, 3);
    let header = serde_json::json!({ "source": "10.2.0.2", "destination": "10.1.0.77", "protocol": "icmp", "icmp": "8/0" });
    assert_eq!(
        (&records[0]["interface"], &records[0]["direction"], &records[0]["packet"]),
        (&"in0".into(), &"in".into(), &header)
    );
    gateway.assert_conservation();
}

/// RFC 4301 section 5.2: a packet that should have come protected. The hook drops most of them by itself.
#[test]
fn clear_text_to_the_gateway_itself_is_told() {
    let topology = Topology::new(1);
    let gateway = Gateway::start(&topology, "ga", &Setup::new("aes-128-gcm", "none"));
    topology.inside("gb", "ping -c 1 -W 2 192.0.2.1");
    let intrusion = run(topology.command("gb", "python3").args(["-c", INTRUSION]));
    let sent: u64 = String::from_utf8(intrusion.stdout).unwrap().trim().parse().unwrap();

    let (packets, records) = told(&gateway, "clear_text");
    assert!((1..=sent / 10).contains(&packets), "{packets} of {sent}");
    let header = serde_json::json!({ "source": "10.2.0.98", "destination": "10.1.0.1", "protocol": "253" });
    assert_eq!((&records[0]["interface"], &records[0]["packet"]), (&"out0".into(), &header));
    gateway.assert_conservation();
}

#[test]
fn an_attacker_is_told_of_in_a_few_lines() {
    let topology = Topology::new(1);
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.engine = "audit = \"log\"".into();
    let gateway = Gateway::start(&topology, "ga", &setup);
    // Whom to send to is known: the first of them is not lost on the way.
    topology.inside("gb", "ping -c 1 -W 2 192.0.2.1");
    let began = Instant::now();
    let attack = run(topology.command("gb", "python3").args(["-c", ATTACK, &SPI_BA.to_string()]));
    let sent: u64 = String::from_utf8(attack.stdout).unwrap().trim().parse().unwrap();

    let (forged, records) = told(&gateway, "icv_failed");
    assert!(forged > 1_000 && forged <= sent, "{forged} of {sent}");
    let first = &records[0];
    let spi = format!("{SPI_BA:#010x}");
    assert_eq!(
        (&first["interface"], &first["direction"], &first["tunnel"], &first["spi"], &first["sequence"]),
        (&"out0".into(), &"in".into(), &"sites".into(), &spi.as_str().into(), &1.into())
    );
    let header = serde_json::json!({ "source": "192.0.2.2", "destination": "192.0.2.1", "protocol": "esp" });
    assert_eq!((&first["packet"], &first["inner"]), (&header, &Value::Null));
    // Most of what no SA is for ends in the hook; some reaches the engine to be told of.
    let (unknown, records) = told(&gateway, "no_state");
    assert!(unknown > 0 && unknown < forged / 10, "{unknown}");
    assert_eq!((&records[0]["spi"], &records[0]["packet"]), (&"0x0bad0001".into(), &header));
    let (_, clear) = told(&gateway, "clear_text");
    assert_eq!(
        (&clear[0]["packet"]["source"], &clear[0]["packet"]["protocol"]),
        (&"10.2.0.99".into(), &"253".into())
    );

    let log = gateway.log();
    let seconds = began.elapsed().as_secs() + 2;
    for reason in ["icv_failed", "clear_text"] {
        let lines =
            log.lines().filter(|line| line.contains("audit: dropped") && line.contains(reason)).count();
        assert!(lines > 0 && lines as u64 <= seconds, "{reason}: {lines} lines in {seconds} seconds");
    }
    assert!(log.contains("packet=\"192.0.2.2 > 192.0.2.1 esp\"") && log.contains(&spi), "{log}");
    assert!(!log.contains("forged, and not") && !log.contains("for all to see"));
    gateway.assert_conservation();
}
