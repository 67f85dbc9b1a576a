//! Transport mode between the gateways themselves (the topology is drawn in `scripts/topology`): their own pings,
//! connections and datagrams, IKE past all of it, and what becomes of them when one is killed. A tunnel between the same
//! two endpoints carries what their hosts say, beside it.

use std::process::Stdio;
use std::time::Duration;

use adit_tests::gateway::{Gateway, SPI_AB, Setup};
use adit_tests::process::{Running, eventually, run};
use adit_tests::topology::Topology;
use adit_tests::wire::{Heard, Kind, Listener};
use rustix::process::Signal;

/// What each gateway sends to the other one's outer address goes there, under this SPI from A, and the next one from B.
const SPIS: [u32; 2] = [0xad17_0a40, 0xad17_0a60];
const PEERS: [[&str; 2]; 2] = [["192.0.2.1", "192.0.2.2"], ["2001:db8:f::1", "2001:db8:f::2"]];

/// A gateway with the tunnel for its hosts, and with transport mode to its peer's addresses.
fn configuration(topology: &Topology, name: &str, protocol: &str) -> String {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.engine = "host-path = true".into();
    let mut text = setup.configuration(topology, name);
    let a = name == "ga";
    for ((family, spi), [mut local, mut remote]) in [4, 6].into_iter().zip(SPIS).zip(PEERS) {
        let (mut out, mut back) = (spi, spi + 1);
        if !a {
            std::mem::swap(&mut local, &mut remote);
            std::mem::swap(&mut out, &mut back);
        }
        let (algorithms, kind, repeated) = match protocol {
            "ah" => ("authentication = \"sha256\"", "authentication", 8),
            _ => ("encryption = \"aes-128-gcm\"", "encryption", 5),
        };
        let key = |spi: u32| format!("{kind}-key = \"hex:{}\"", format!("{spi:08x}").repeat(repeated));
        text += &format!(
            r#"
[[tunnel]]
name = "peer{family}"
mode = "transport"
protocol = "{protocol}"
local = "{local}"
remote = "{remote}"
{algorithms}
[tunnel.inbound]
spi = {back}
{}
[tunnel.outbound]
spi = {out}
{}
# What the tunnel for the hosts sends is protected already.
[[policy]]
name = "sealed{family}"
action = "bypass"
protocol = 50
local = ["{local}"]
remote = ["{remote}"]

[[policy]]
name = "peer{family}"
action = "protect"
tunnel = "peer{family}"
local = ["{local}"]
remote = ["{remote}"]
"#,
            key(back),
            key(out)
        );
    }
    text
}

fn routes(gateway: &Gateway<'_>) -> Vec<String> {
    let status = gateway.json(&["status"]);
    let routes = status["host"]["routes"].as_array().cloned().unwrap_or_default();
    routes.iter().map(|route| route.as_str().expect("text").to_owned()).collect()
}

/// Both gateways, with their routes.
fn pair<'t>(topology: &'t Topology, protocol: &str) -> (Gateway<'t>, Gateway<'t>) {
    let [a, b] = ["ga", "gb"]
        .map(|name| Gateway::start_with(topology, name, &configuration(topology, name, protocol)));
    eventually("routes", Duration::from_secs(5), || {
        routes(&a) == ["192.0.2.2/32", "2001:db8:f::2/128", "10.2.0.0/24", "2001:db8:2::/64"]
    });
    eventually("routes", Duration::from_secs(5), || routes(&b).len() == 4);
    (a, b)
}

fn ping(topology: &Topology, from: &str, what: &str) {
    topology.inside(from, &format!("ping -c 3 -i 0.2 -W 2 {what}"));
}

/// Python that sends `text` from a UDP port to the same one of the peer, which answers with it.
fn echoes(topology: &Topology, [client, server]: [(&str, &str); 2], port: u16, text: &str) {
    let program = |address: &str, then: &str| {
        let family = if address.contains(':') { "AF_INET6" } else { "AF_INET" };
        format!(
            "import socket, sys; s = socket.socket(socket.{family}, socket.SOCK_DGRAM); s.settimeout(5); \
             s.bind(('{address}', {port})); {then}"
        )
    };
    let serve =
        program(server.1, "print('bound', flush=True); data, peer = s.recvfrom(2000); s.sendto(data, peer)");
    let mut command = topology.command(server.0, "python3");
    let mut serving = Running::start(command.args(["-c", &serve]).stdout(Stdio::piped()));
    let mut said = [0; 5];
    std::io::Read::read_exact(serving.0.stdout.as_mut().expect("piped"), &mut said).expect("it binds");
    let ask = format!("s.sendto({text}, ('{}', {port})); sys.exit(s.recvfrom(2000)[0] != {text})", server.1);
    run(topology.command(client.0, "python3").args(["-c", &program(client.1, &ask)]));
}

/// IKE, as a listener on the wire knows it: UDP from and to its ports.
fn is_ike(kind: &Kind, frame: &[u8]) -> bool {
    let at = if frame[12..14] == [0x08, 0x00] { 34 } else { 54 };
    let ports = [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
    matches!(kind, Kind::Clear { protocol: 17, .. })
        && [[1, 244, 1, 244], [0x11, 0x94, 0x11, 0x94]].contains(&ports)
}

/// IKE in both families by both ports, with the Non-ESP Marker on the second (RFC 3948 section 2.2).
fn ike_passes(topology: &Topology) {
    for [a, b] in PEERS {
        echoes(topology, [("ga", a), ("gb", b)], 500, "b'initiator'");
        echoes(topology, [("gb", b), ("ga", a)], 4500, "bytes(4) + b'initiator'");
    }
}

fn assert_only_ike_in_clear(heard: &Heard, exchanges: usize) {
    heard.assert_no_clear_text(is_ike);
    assert_eq!(heard.leaks(|_, _| false).count(), exchanges * 2 * PEERS.len());
    heard.assert_sequence_numbers_unique();
}

fn everything_passes(protocol: &str) {
    let topology = Topology::new(1);
    let listener = Listener::start(&topology, "left");
    // As strict as many distributions have it: each source must be where its route leads. Then a peer on the link
    // would get no answer to ARP, and that is said.
    for name in ["ga", "gb"] {
        topology.inside(name, "sysctl -qw net.ipv4.conf.all.rp_filter=1");
    }
    let (a, b) = pair(&topology, protocol);
    for (name, gateway) in [("ga", &a), ("gb", &b)] {
        let warnings = || gateway.json(&["status"])["warnings"].to_string();
        let is_said = || warnings().contains("expected sysctl net.ipv4.conf.out0.rp_filter = 2");
        assert!(is_said(), "{}", warnings());
        topology.inside(name, "sysctl -qw net.ipv4.conf.out0.rp_filter=2");
        eventually("mended", Duration::from_secs(5), || !is_said());
    }
    for (from, to) in [("ga", 1), ("gb", 0)] {
        for ends in PEERS {
            ping(&topology, from, ends[to]);
            ping(&topology, from, &format!("-s 1390 {}", ends[to]));
        }
    }
    for (family, [_, peer]) in ["-4", "-6"].into_iter().zip(PEERS) {
        let serving = Running::start(topology.command("gb", "iperf3").arg("-s").stdout(Stdio::null()));
        for way in ["-n 1M", "-n 1M -R", "-u -b 4M -l 1000 -t 1", "-u -b 4M -l 1000 -t 1 -R"] {
            let line = format!("iperf3 {family} -c {peer} {way}");
            eventually("iperf3", Duration::from_secs(30), || topology.attempt("ga", &line).status.success());
        }
        drop(serving);
    }
    ike_passes(&topology);
    // The tunnel between the same endpoints, beside it: hosts, and a gateway to the other's inside.
    for (from, what) in [("ha", "10.2.0.2"), ("hb", "2001:db8:1::2"), ("ga", "10.2.0.1")] {
        ping(&topology, from, what);
    }
    for gateway in [&a, &b] {
        let totals = gateway.assert_conservation();
        assert!(totals.delivered > 1000, "{}", gateway.explain());
        // What the kernel says of its own accord on the device (MLD), and what was too large for a path it did not know.
        let expected = gateway.dropped("host_unprotected") + gateway.dropped("too_big");
        assert_eq!(totals.dropped, expected, "{}", gateway.explain());
    }
    let heard = listener.stop();
    assert_only_ike_in_clear(&heard, 2);
    let number = if protocol == "ah" { 51 } else { 50 };
    for (spi, at) in SPIS.into_iter().zip([23, 20]) {
        for spi in [spi, spi + 1] {
            assert!(heard.esp(spi) > 500, "{spi:#x}: {}", heard.esp(spi));
        }
        let ours = |(kind, _): &&(Kind, Vec<u8>)| matches!(kind, Kind::Esp { spi: s, .. } if s & !1 == spi);
        assert!(heard.frames.iter().filter(ours).all(|(_, frame)| frame[at] == number));
    }
    assert!(heard.esp(SPI_AB) >= 9);
}

#[test]
fn esp_between_gateways() {
    everything_passes("esp");
}

#[test]
fn ah_between_gateways() {
    everything_passes("ah");
}

/// Whatever else the gateway sends to its peer is held back: another address of its own, which no policy means, and
/// everything while no engine runs. IKE has its way all along.
#[test]
fn nothing_in_clear_but_ike() {
    let topology = Topology::new(1);
    let (mut a, b) = pair(&topology, "esp");
    let listener = Listener::start(&topology, "left");
    assert!(!topology.attempt("ga", "ping -c 2 -i 0.2 -W 1 -I 10.1.0.1 192.0.2.2").status.success());
    assert!(a.dropped("host_unprotected") >= 2, "{}", a.explain());
    ping(&topology, "ga", "192.0.2.2");
    a.end(Signal::KILL);
    for ends in PEERS {
        let line = format!("ping -c 3 -i 0.2 -W 1 {}", ends[1]);
        assert!(!topology.attempt("ga", &line).status.success());
        let line = format!("timeout 2 nc -z -w 1 {} 22", ends[1]);
        assert!(!topology.attempt("ga", &line).status.success());
    }
    ike_passes(&topology);
    a.restart();
    for ends in PEERS {
        // What the recorded ceiling of a new SA covers counts as received: up to 4096 of the peer's packets.
        let send = format!(
            "for i in range(5000): s.sendto(bytes(8), ('{}', 9)); i % 50 or time.sleep(0.002)",
            ends[0]
        );
        let family = if ends[0].contains(':') { "AF_INET6" } else { "AF_INET" };
        let socket =
            format!("import socket, time\ns = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n{send}");
        run(topology.command("gb", "python3").args(["-c", &socket]));
        ping(&topology, "ga", ends[1]);
    }
    a.assert_conservation();
    b.assert_conservation();
    assert_only_ike_in_clear(&listener.stop(), 2);

    a.end(Signal::TERM);
    a.detach();
    for line in ["ip rule", "ip -6 rule"] {
        let rules = String::from_utf8(topology.inside("ga", line).stdout).expect("ip speaks UTF-8");
        assert!(!rules.contains("iif lo"), "{rules}");
    }
}

/// Rules and routes come and go with the policy, and somebody without inside interfaces that are up is reached.
#[test]
fn routes_follow_policies() {
    let topology = Topology::new(1);
    let (a, b) = pair(&topology, "esp");
    topology.inside("gb", "ip link set dev in0 down");
    ping(&topology, "ga", "192.0.2.2");
    a.adit(&["policy", "delete", "peer4"]);
    eventually("it is gone", Duration::from_secs(5), || !routes(&a).contains(&"192.0.2.2/32".into()));
    let rules = String::from_utf8(topology.inside("ga", "ip rule").stdout).expect("ip speaks UTF-8");
    assert_eq!(rules.matches("iif lo").count(), 1, "{rules}");
    ping(&topology, "ga", "2001:db8:f::2");
    a.adit(&["reload"]);
    eventually("it is back", Duration::from_secs(5), || routes(&a).contains(&"192.0.2.2/32".into()));
    ping(&topology, "ga", "192.0.2.2");
    a.assert_conservation();
    b.assert_conservation();
}
