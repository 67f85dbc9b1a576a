//! Records of dropped packets, from a worker to whoever asks: `adit drops --recent`, `adit monitor --drops`, and the switch
//! in the configuration.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use adit_engine::crypto::IvSource;
use adit_engine::io::worker::monotonic_ms;
use adit_engine::offline::Engine;
use adit_engine::route::{NetworkBuilder, Port, PortId, Side};
use adit_engine::wire::ethernet::MacAddress;
use adit_tests::control::{BASE, Daemon};
use adit_tests::memory::{INSIDE, OUTSIDE, Options, Peer, Site, address};
use adit_tests::packet::{frame, ip, udp};
use adit_tests::process::program;
use serde_json::{Value, json};

/// A control server, and a worker over the same tables.
struct Rig {
    daemon: Daemon,
    engine: Engine,
}

impl Rig {
    fn start(config: &str) -> Self {
        let daemon = Daemon::start(config);
        let mut builder = NetworkBuilder::new();
        for (name, side) in [("inside", Side::Protected), ("outside", Side::Unprotected)] {
            builder.port(Port {
                ifindex: 1,
                mac: MacAddress([2; 6]),
                mtu: 1500,
                up: true,
                ..Port::absent(name.into(), side)
            });
        }
        builder.local(Site::B.endpoint(false));
        daemon.tables.network.replace(Some(builder.build(1).into()));
        // B's end of the tunnel, with the keys of `Options::new`.
        let key: String = Options::new().keys.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let tunnel = json!({
            "name": "site", "local": "198.51.100.9", "remote": "192.0.2.1", "encryption": "aes-128-gcm", "esn": false,
            "inbound": { "spi": "0x00abcdef", "encryption_key": format!("hex:{key}"), "fresh_key": true },
        });
        let policy = json!({
            "name": "p", "action": "protect", "tunnel": "site", "local": ["10.2.0.0/16"], "remote": ["10.1.0.0/16"],
        });
        daemon.call("SaAdd", json!({ "tunnel": tunnel, "policies": [policy] })).unwrap();
        let engine = Engine::new(daemon.tables.clone(), 0, IvSource::from_seed([7; 32]));
        Self { daemon, engine }
    }

    /// Drops these, a second passing behind them.
    fn drop(&mut self, port: PortId, packets: &[Vec<u8>]) {
        let frames = packets.iter().map(|packet| (port, frame(packet))).collect();
        assert_eq!(self.engine.run(monotonic_ms(), frames), []);
        self.engine.tell_drops(monotonic_ms());
    }

    fn adit(&self, arguments: &[&str]) -> Output {
        adit(&self.daemon).args(arguments).output().unwrap()
    }

    fn recent(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.adit(&[&["drops", "--recent", "--json"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn adit(daemon: &Daemon) -> Command {
    let mut command = Command::new(program("adit"));
    command.arg("--socket").arg(&daemon.socket);
    command
}

/// Sealed for B by somebody with another SPI.
fn unknown() -> Vec<u8> {
    let mut peer = Peer::of(Site::B, &Options::new());
    peer.spi.0 = 0x0bad_cafe;
    peer.seal(77, 4, &[])
}

fn stranger() -> Vec<u8> {
    let stranger = udp(address("10.3.0.2"), Site::B.host(false), 10);
    Peer::of(Site::B, &Options::new()).seal(5, 4, &stranger)
}

/// As date(1) has it now.
fn date() -> String {
    let date = Command::new("date").args(["-u", "+%FT%T.%3NZ"]).output().unwrap();
    String::from_utf8(date.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_newest_records_are_shown() {
    let mut rig = Rig::start(BASE);
    assert_eq!(rig.recent(&[]), Vec::<Value>::new());
    let before = date();
    rig.drop(OUTSIDE, &[unknown(), unknown(), stranger()]);
    rig.drop(INSIDE, &[udp(Site::B.host(false), address("10.9.0.1"), 10)]);
    let after = date();
    let mut records = rig.recent(&[]);
    for record in &mut records {
        let time = record["time"].take();
        let time = time.as_str().unwrap();
        // A millisecond is not always over when it is.
        assert!(*time >= before[..before.len() - 3] && *time <= *after, "{before} {time} {after}");
    }
    records.sort_by_key(|record| record["reason"].to_string());
    let outer = json!({ "source": "192.0.2.1", "destination": "198.51.100.9", "protocol": "esp" });
    let ports = |source: &str, destination: &str| {
        json!({
            "source": source, "destination": destination, "protocol": "udp",
            "source_port": 4660, "destination_port": 53,
        })
    };
    assert_eq!(
        records,
        [
            json!({
                "time": null, "worker": 0, "reason": "no_state", "packets": 2, "interface": "outside", "direction": "in",
                "spi": "0x0badcafe", "sequence": 77, "packet": outer,
            }),
            json!({
                "time": null, "worker": 0, "reason": "policy_discard", "packets": 1, "interface": "inside",
                "direction": "out", "packet": ports("10.2.0.3", "10.9.0.1"),
            }),
            json!({
                "time": null, "worker": 0, "reason": "selector_mismatch", "packets": 1, "interface": "outside",
                "direction": "in", "tunnel": "site", "spi": "0x00abcdef", "sequence": 5, "packet": outer,
                "inner": ports("10.3.0.2", "10.2.0.3"), "selectors": ["10.2.0.0/16 - 10.1.0.0/16"],
            }),
        ]
    );
    // As the interface describes them.
    let described = |name: &str, object: &Value| {
        let types = adit_engine::control::protocol::DESCRIPTION;
        let fields = types.split_once(&format!("type {name} (\n")).unwrap().1.split_once("\n)").unwrap().0;
        for field in object.as_object().unwrap().keys() {
            assert!(
                fields.lines().any(|line| line.trim().starts_with(&format!("{field}: "))),
                "{name}.{field}"
            );
        }
    };
    for record in &records {
        described("DropRecord", record);
        ["packet", "inner"]
            .iter()
            .filter_map(|name| record.get(name))
            .for_each(|it| described("PacketHeader", it));
    }
    let one = rig.recent(&["--reason", "selector_mismatch"]);
    assert_eq!((one.len(), &one[0]["spi"]), (1, &json!("0x00abcdef")));
    let table = String::from_utf8(rig.adit(&["drops", "--recent"]).stdout).unwrap();
    let row = table.lines().find(|line| line.contains("no_state")).unwrap();
    let cells: Vec<_> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(
        cells[1..],
        ["2", "no_state", "outside", "in", "-", "0x0badcafe", "77", "192.0.2.1 > 198.51.100.9 esp", "-"]
    );
}

#[test]
fn what_is_asked_wrongly_is_said() {
    let rig = Rig::start(BASE);
    let refused = rig.adit(&["drops", "--recent", "--reason", "bad_luck"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("reason: expected a reason of adit drops --all, found \"bad_luck\""), "{said}");
    for usage in [&["drops", "--recent", "--all"] as &[_], &["drops", "--reason", "no_state"]] {
        assert_eq!(rig.adit(usage).status.code(), Some(1), "{usage:?}");
    }
    let none = String::from_utf8(rig.adit(&["drops", "--recent"]).stdout).unwrap();
    assert!(none.starts_with("no records: "), "{none}");
}

#[test]
fn records_are_as_described_and_come_in_pieces() {
    let mut rig = Rig::start(BASE);
    for _ in 0..300 {
        rig.drop(OUTSIDE, &[unknown()]);
        rig.daemon.control.collect_drops();
    }
    let records = rig.recent(&[]);
    assert_eq!(records.len(), adit_engine::control::audit::RECENT);
    assert!(records.is_sorted_by_key(|record| record["time"].to_string()));
    // Fewer bytes than a message may have, or more, but never an answer that is too long.
    match rig.daemon.call("DropsRecent", json!({})) {
        Ok(whole) => assert_eq!(whole["records"].as_array().unwrap().len(), records.len()),
        Err((error, _)) => assert_eq!(error, "org.varlink.service.ExpectedMore"),
    }
}

#[test]
fn who_wants_to_hear_of_drops_does() {
    let mut rig = Rig::start(BASE);
    let listen = |arguments: &[&str]| {
        let mut command = adit(&rig.daemon);
        let mut child = command.arg("monitor").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("listening"));
        (child, lines)
    };
    let (mut text, mut lines) = listen(&["--drops"]);
    let (mut json, mut objects) = listen(&["--drops", "--json"]);
    let (mut other, mut nothing) = listen(&[]);
    rig.drop(OUTSIDE, &[stranger()]);
    let line = lines.next().unwrap().unwrap();
    let (head, rest) = line.split_once(" at ").unwrap();
    assert_eq!(head, "dropped 1 selector_mismatch");
    assert_eq!(
        rest.split_once(' ').unwrap().1,
        "outside in site 0x00abcdef 5 192.0.2.1 > 198.51.100.9 esp inside it 10.3.0.2:4660 > 10.2.0.3:53 udp"
    );
    let object: Value = serde_json::from_str(&objects.next().unwrap().unwrap()).unwrap();
    assert_eq!(
        (&object["event"], &object["dropped"]["reason"]),
        (&json!("dropped"), &json!("selector_mismatch"))
    );
    // Whoever did not ask hears of something else first.
    let again = json!({ "tunnel": "site", "inbound": { "spi": "0x2001", "encryption_key": adit_tests::control::key(20), "fresh_key": true } });
    rig.daemon.call("SaReplace", again).unwrap();
    assert_eq!(nothing.next().unwrap().unwrap(), "sa_replaced site in 0x00002001");
    for child in [&mut text, &mut json, &mut other] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// RFC 4303 section 4: "MUST allow a system administrator to enable or disable auditing".
#[test]
fn a_reload_switches_it() {
    let configured = |audit: &str| format!("[engine]\naudit = \"{audit}\"\n{BASE}");
    let mut rig = Rig::start(&configured("off"));
    rig.engine.tell_drops(monotonic_ms());
    rig.drop(INSIDE, &[udp(Site::B.host(false), address("10.9.0.1"), 10)]);
    assert_eq!(rig.recent(&[]), Vec::<Value>::new());
    let reload = |rig: &mut Rig, audit: &str| {
        std::fs::write(&rig.daemon.config, configured(audit)).unwrap();
        rig.daemon.call("Reload", json!({})).unwrap();
        // Workers look once a second.
        rig.engine.tell_drops(monotonic_ms());
    };
    for (audit, packets) in [("recent", 1), ("off", 1), ("log", 2), ("off", 2)] {
        reload(&mut rig, audit);
        rig.drop(INSIDE, &[ip(Site::B.host(false), address("10.9.0.1"), 200, &[0; 20])]);
        let told: u64 = rig.recent(&[]).iter().map(|record| record["packets"].as_u64().unwrap()).sum();
        assert_eq!(told, packets, "{audit}");
    }
    // What cannot be is named, and changes nothing.
    std::fs::write(&rig.daemon.config, configured("loud")).unwrap();
    let said = rig.daemon.refused("Reload", json!({}), "engine.audit");
    assert!(said.contains("expected one of") && said.contains("recent"), "{said}");
    assert_eq!(rig.recent(&[]).len(), 2);
}
