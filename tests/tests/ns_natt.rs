//! ESP in UDP between two real gateways (the topology is drawn in `scripts/topology`), on a port of their own: tunnel
//! and transport mode, keepalives on the wire, and a peer that a NAT moves.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use adit_tests::gateway::{Gateway, Setup};
use adit_tests::process::{Running, eventually, run};
use adit_tests::topology::Topology;
use adit_tests::wire::{Kind, Listener};
use serde_json::Value;

fn in_udp(more: &str) -> Setup {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.tunnel = format!("udp-port = 4600\nlocal-udp-port = 4600\n{more}");
    setup
}

/// Ports and payload of UDP in a frame.
fn udp(frame: &[u8]) -> Option<([u16; 2], &[u8])> {
    let (protocol, at) = if frame[12..14] == [0x08, 0x00] { (23, 34) } else { (20, 54) };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (frame.len() > at + 8 && frame[protocol] == 17).then(|| ([port(at), port(at + 2)], &frame[at + 8..]))
}

/// ESP in UDP between the gateways' own ports, to a listener that knows 4500 only; IKE has zeros where ESP has its SPI.
fn is_sealed(_: &Kind, frame: &[u8]) -> bool {
    udp(frame)
        .is_some_and(|(ports, payload)| ports == [4600, 4600] && payload.len() > 8 && payload[..4] != [0; 4])
}

fn is_keepalive(frame: &[u8]) -> bool {
    udp(frame).is_some_and(|(ports, payload)| ports == [4600, 4600] && payload[0] == 0xff)
}

/// Both families, hosts through the tunnel; steering, guard and pipeline agree on the port, which IKE shares.
#[test]
fn a_port_of_our_own() {
    for outer_v6 in [false, true] {
        let topology = Topology::new(1);
        let mut setup = in_udp("");
        setup.outer_v6 = outer_v6;
        let listener = Listener::start(&topology, "left");
        let (a, b) = Gateway::pair(&topology, &setup);
        for (from, to) in [("ha", "10.2.0.2"), ("hb", "2001:db8:1::2")] {
            topology.inside(from, &format!("ping -c 3 -i 0.2 -W 2 {to}"));
        }
        let shown = a.json(&["sa", "show", "sites"]);
        assert_eq!((&shown[0]["udp_port"], &shown[0]["local_udp_port"]), (&4600.into(), &4600.into()));
        // IKE by that port is the kernel's, in and out.
        let (ours, peers) =
            if outer_v6 { ("2001:db8:f::1", "2001:db8:f::2") } else { ("192.0.2.1", "192.0.2.2") };
        let socket = |address: &str| {
            let family = if outer_v6 { "AF_INET6" } else { "AF_INET" };
            format!(
                "import socket; s = socket.socket(socket.{family}, socket.SOCK_DGRAM); s.settimeout(5); s.bind(('{address}', 4600))\n"
            )
        };
        let serve = socket(peers) + "print('bound', flush=True); assert s.recv(100) == bytes(8)";
        let mut serving =
            Running::start(topology.command("gb", "python3").args(["-c", &serve]).stdout(Stdio::piped()));
        BufReader::new(serving.0.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        run(topology
            .command("ga", "python3")
            .args(["-c", &format!("{}s.sendto(bytes(8), ('{peers}', 4600))", socket(ours))]));
        assert!(serving.wait_for_end(Duration::from_secs(10)).success());
        for gateway in [&a, &b] {
            let totals = gateway.assert_conservation();
            assert_eq!((totals.sealed, totals.opened, totals.dropped), (6, 6, 0), "{}", gateway.explain());
        }
        let heard = listener.stop();
        let is_ike =
            |frame: &[u8]| udp(frame).is_some_and(|(ports, payload)| ports == [4600; 2] && payload == [0; 8]);
        heard.assert_no_clear_text(|kind, frame| is_sealed(kind, frame) || is_ike(frame));
        assert_eq!(heard.frames.iter().filter(|(kind, frame)| is_sealed(kind, frame)).count(), 12);
    }
}

/// The gateways themselves, in transport mode in UDP.
#[test]
fn transport_mode() {
    let topology = Topology::new(1);
    let mut setup = in_udp("mode = \"transport\"");
    setup.engine = "host-path = true".into();
    let [a, b] = ["ga", "gb"].map(|name| {
        let (near, far) = if name == "ga" { ("192.0.2.1", "192.0.2.2") } else { ("192.0.2.2", "192.0.2.1") };
        let (inside, behind) =
            if name == "ga" { ("10.1.0.0/24", "10.2.0.0/24") } else { ("10.2.0.0/24", "10.1.0.0/24") };
        let text = setup.configuration(&topology, name);
        let text = text.replace(inside, near).replace(behind, far);
        let sites6 = text.find("[[policy]]\nname = \"sites6\"").expect("the policy");
        Gateway::start_with(&topology, name, &text[..sites6])
    });
    for gateway in [&a, &b] {
        eventually("routes", Duration::from_secs(5), || {
            gateway.json(&["status"])["host"]["routes"][0].is_string()
        });
    }
    let listener = Listener::start(&topology, "left");
    topology.inside("ga", "ping -c 3 -i 0.2 -W 2 -s 1390 192.0.2.2");
    topology.inside("gb", "ping -c 3 -i 0.2 -W 2 192.0.2.1");
    let serving = Running::start(topology.command("gb", "iperf3").arg("-s").stdout(Stdio::null()));
    for way in ["-n 300K", "-n 300K -R", "-u -b 4M -l 1000 -t 1"] {
        let line = format!("iperf3 -c 192.0.2.2 {way}");
        eventually("iperf3", Duration::from_secs(30), || topology.attempt("ga", &line).status.success());
    }
    drop(serving);
    a.assert_conservation();
    b.assert_conservation();
    let heard = listener.stop();
    heard.assert_no_clear_text(is_sealed);
    assert!(heard.frames.iter().filter(|(kind, frame)| is_sealed(kind, frame)).count() > 700);
}

/// RFC 3948 section 4: a second of silence, one octet; the other end swallows it.
#[test]
fn keepalives() {
    let topology = Topology::new(2);
    let mut setup = in_udp("nat-keepalive-seconds = 1");
    // Two workers look, and each keepalive is sent once.
    setup.engine = "cores = [0, 1]".into();
    let begun = Instant::now();
    let (a, b) = Gateway::pair(&topology, &setup);
    // Not before: until B has begun, its kernel answers A's keepalives that nobody is there.
    let listener = Listener::start(&topology, "left");
    topology.inside("ha", "ping -c 1 -W 2 10.2.0.2");
    eventually("three keepalives each", Duration::from_secs(15), || {
        [&a, &b]
            .iter()
            .all(|gateway| gateway.totals().originated >= 3 && gateway.dropped("nat_keepalive") >= 3)
    });
    let seconds = begun.elapsed().as_secs();
    for gateway in [&a, &b] {
        let totals = gateway.assert_conservation();
        assert!(totals.originated <= seconds + 2, "{totals:?} in {seconds} s");
        assert_eq!(totals.dropped, gateway.dropped("nat_keepalive"), "{}", gateway.explain());
    }
    let heard = listener.stop();
    heard.assert_no_clear_text(|kind, frame| is_sealed(kind, frame) || is_keepalive(frame));
    assert!(heard.frames.iter().filter(|(_, frame)| is_keepalive(frame)).count() >= 4);
}

/// A hop in between gives the peer another port, as a NAT does that forgot it: it is followed, and told of, once.
#[test]
fn a_peer_that_moves() {
    let topology = Topology::new(1);
    let (mut a, b) = Gateway::pair(&topology, &Setup { tunnel: "udp-port = 4500\n".into(), ..in_udp("") });
    topology.inside("ha", "ping -c 1 -W 2 10.2.0.2");
    let mut command = topology.command("gb", adit_tests::process::program("adit"));
    command.arg("--socket").arg(topology.directory().join("gb.sock")).args(["monitor", "--json"]);
    let mut monitor = Running::start(command.stdout(Stdio::piped()));
    let mut lines = BufReader::new(monitor.0.stdout.take().expect("piped")).lines();
    let mut event = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(event()["event"], "listening");
    // The same keys and numbers by another port of gateway A.
    a.end(rustix::process::Signal::TERM);
    a.configure(
        &Setup { tunnel: "udp-port = 4500\nlocal-udp-port = 4700\n".into(), ..in_udp("") }
            .configuration(&topology, "ga"),
    );
    a.restart();
    topology.inside("ha", "ping -c 3 -i 0.2 -W 2 10.2.0.2");
    let moved = event();
    assert_eq!(
        (&moved["event"], &moved["tunnel"], &moved["direction"]),
        (&"peer_moved".into(), &"sites".into(), &"out".into())
    );
    assert_eq!((&moved["from"], &moved["to"]), (&"192.0.2.1:4500".into(), &"192.0.2.1:4700".into()));
    let shown = b.json(&["sa", "show", "sites"]);
    let outbound = shown.as_array().unwrap().iter().find(|sa| sa["direction"] == "out").unwrap();
    assert_eq!(outbound["udp_port"], 4700);
    assert!(b.log().contains("the peer moved"), "{}", b.log());
    let totals = a.assert_conservation();
    assert_eq!((totals.sealed, totals.opened), (3, 3), "{}", a.explain());
}
