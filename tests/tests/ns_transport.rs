//! Transport mode between the gateways themselves (the topology is drawn in `scripts/topology`): their own pings,
//! connections and datagrams, IKE past all of it, and what becomes of them when one is killed. A tunnel between the same
//! two endpoints carries what their hosts say, beside it.

use std::process::Stdio;
use std::time::Duration;

use adit_tests::gateway::{Gateway, SPI_AB, Setup};
use adit_tests::process::{Running, eventually, run};
use adit_tests::scapy;
use adit_tests::topology::Topology;
use adit_tests::wire::{Heard, Kind, Listener};
use rustix::process::Signal;

/// What each gateway sends to the other one's outer address goes there, under this SPI from A, and the next one from B.
const SPIS: [u32; 2] = [0xad17_0a40, 0xad17_0a60];
const PEERS: [[&str; 2]; 2] = [["192.0.2.1", "192.0.2.2"], ["2001:db8:f::1", "2001:db8:f::2"]];

/// A gateway with the tunnel for its hosts, and with transport mode to its peer's addresses. `first` are more policies, in
/// front of those, with LOCAL and REMOTE for the addresses and ICMP for the protocol of that family.
fn configuration(topology: &Topology, name: &str, protocol: &str, first: &str) -> String {
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
        let icmp = if family == 4 { "1" } else { "58" };
        let first = [("LOCAL", local), ("REMOTE", remote), ("ICMP", icmp), ("FAMILY", &family.to_string())]
            .iter()
            .fold(first.to_owned(), |text, (word, value)| text.replace(word, value));
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
{first}
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
    pair_with(topology, protocol, "")
}

fn pair_with<'t>(topology: &'t Topology, protocol: &str, first: &str) -> (Gateway<'t>, Gateway<'t>) {
    let [a, b] = ["ga", "gb"]
        .map(|name| Gateway::start_with(topology, name, &configuration(topology, name, protocol, first)));
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
        program(server.1, "print('bound', flush=True); data, peer = s.recvfrom(65535); s.sendto(data, peer)");
    let mut command = topology.command(server.0, "python3");
    let mut serving = Running::start(command.args(["-c", &serve]).stdout(Stdio::piped()));
    let mut said = [0; 5];
    std::io::Read::read_exact(serving.0.stdout.as_mut().expect("piped"), &mut said).expect("it binds");
    let ask = format!("s.sendto({text}, ('{}', {port})); sys.exit(s.recvfrom(65535)[0] != {text})", server.1);
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
        // What the kernel says of its own accord on the device (MLD).
        let expected = gateway.dropped("host_unprotected");
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

/// RFC 4303 section 3.3.4: "transport mode is applied only to whole IP datagrams". Whatever the kernel makes of a large one
/// on its way into the device, the wire has it whole, in fragments of ESP or AH; and the kernel knows what fits.
fn datagrams_of_any_size(protocol: &str, queues: u32, fits: [usize; 2]) {
    let topology = Topology::new(queues);
    let listener = Listener::start(&topology, "left");
    let (a, b) = pair(&topology, protocol);
    let mut large = 0;
    for ((ends, header), fits) in PEERS.into_iter().zip([28, 48]).zip(fits) {
        for (from, to) in [("ga", ends[1]), ("gb", ends[0])] {
            for size in [fits - header + 1, 3_000, 20_000] {
                let said = topology.inside(from, &format!("ping -c 3 -i 0.2 -W 2 -s {size} {to}"));
                let said = String::from_utf8_lossy(&said.stdout).into_owned();
                assert!(said.contains(" 0% packet loss"), "{size}: {said}");
                large += 6;
            }
            topology.inside(from, &format!("ping -c 1 -W 2 -M do -s {} {to}", fits - header));
            let refused = topology.attempt(from, &format!("ping -c 1 -M do -s {} {to}", fits - header + 1));
            let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
            assert!(
                said.contains(&format!("mtu={fits}")) || said.contains(&format!("mtu: {fits}")),
                "{said}"
            );
        }
        for (size, port) in [(4_000, 7_001), (60_000, 7_002)] {
            echoes(&topology, [("ga", ends[0]), ("gb", ends[1])], port, &format!("b'x' * {size}"));
            large += 2;
        }
    }
    let mut absorbed = 0;
    for gateway in [&a, &b] {
        let totals = gateway.assert_conservation();
        assert_eq!(totals.dropped, gateway.dropped("host_unprotected"), "{}", gateway.explain());
        absorbed += totals.absorbed;
    }
    assert!(absorbed > 2 * large, "{absorbed}");

    let sealed = if protocol == "ah" { 51 } else { 50 };
    let heard = listener.stop();
    let packets = heard.frames.iter().map(|(_, frame)| &frame[14..]);
    let is_sealed = |packet: &&[u8]| match packet[0] >> 4 {
        4 => packet[9] == sealed,
        _ => packet[6] == sealed || (packet[6] == 44 && packet[40] == sealed),
    };
    let of_family = |version: u8| -> Vec<_> {
        packets.clone().filter(|packet| packet[0] >> 4 == version && is_sealed(packet)).collect()
    };
    for (version, spi) in [4, 6].into_iter().zip(SPIS) {
        let wire: Vec<_> = of_family(version).into_iter().map(<[u8]>::to_vec).collect();
        assert!(wire.iter().all(|packet| packet.len() <= 1500));
        // By scapy: nothing is missing, and nothing is a piece of a datagram.
        let at = if version == 4 { 20 } else { 40 } + if protocol == "ah" { 4 } else { 0 };
        let word = |packet: &[u8], at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        let whole = scapy::whole(&wire);
        for spi in [spi, spi + 1] {
            let numbers = whole.iter().filter(|packet| word(packet, at) == spi);
            let numbers: Vec<_> = numbers.map(|packet| word(packet, at + 4)).collect();
            assert_eq!(numbers, (1..=numbers.len() as u32).collect::<Vec<_>>());
        }
        assert_eq!(whole.len() as u64, large / 2 + 4, "and two pings that fit each way, with their answers");
    }
    heard.assert_no_clear_text(|_, frame| is_sealed(&&frame[14..]));
}

#[test]
fn esp_of_datagrams_of_any_size() {
    // 1500 less IP; of that SPI, number, IV and ICV, a multiple of 4, less pad length and next header; and IP again.
    datagrams_of_any_size("esp", 1, [1466, 1466]);
}

/// Two workers, two queues of the device: the SA is one worker's, whoever puts the datagram together.
#[test]
fn ah_of_datagrams_of_any_size() {
    // 1500 less 12 bytes and the ICV; over IPv6 a multiple of 8 (RFC 4302 section 2.2).
    datagrams_of_any_size("ah", 2, [1472, 1468]);
}

/// ICMP between the peers in clear by a policy, UDP to port 9 not at all, the rest protected: as the wire has it.
#[test]
fn by_policy_in_clear() {
    let topology = Topology::new(1);
    let policies = r#"
[[policy]]
name = "icmpFAMILY"
action = "bypass"
protocol = ICMP
local = ["LOCAL"]
remote = ["REMOTE"]

[[policy]]
name = "nineFAMILY"
action = "discard"
protocol = 17
remote-ports = "9"
local = ["LOCAL"]
remote = ["REMOTE"]
"#;
    let (mut a, b) = pair_with(&topology, "esp", policies);
    let listener = Listener::start(&topology, "left");
    for (from, to) in [("ga", 1), ("gb", 0)] {
        for ends in PEERS {
            for size in [56, 1_472, 3_000] {
                let said = topology.inside(from, &format!("ping -c 3 -i 0.2 -W 2 -s {size} {}", ends[to]));
                let said = String::from_utf8_lossy(&said.stdout).into_owned();
                assert!(said.contains(" 0% packet loss"), "{size}: {said}");
            }
        }
    }
    for (family, [_, peer]) in ["-4", "-6"].into_iter().zip(PEERS) {
        let serving = Running::start(topology.command("gb", "iperf3").arg("-s").stdout(Stdio::null()));
        let line = format!("iperf3 {family} -c {peer} -n 1M");
        eventually("iperf3", Duration::from_secs(30), || topology.attempt("ga", &line).status.success());
        drop(serving);
        let family = if peer.contains(':') { "AF_INET6" } else { "AF_INET" };
        let send = format!(
            "import socket; socket.socket(socket.{family}, socket.SOCK_DGRAM).sendto(b'nine', ('{peer}', 9))"
        );
        run(topology.command("ga", "python3").args(["-c", &send]));
    }
    assert_eq!(a.dropped("policy_discard"), 2, "{}", a.explain());
    for gateway in [&a, &b] {
        let totals = gateway.assert_conservation();
        let expected = gateway.dropped("host_unprotected") + gateway.dropped("policy_discard");
        assert_eq!(totals.dropped, expected, "{}", gateway.explain());
    }
    // Nobody else gets in that way, and nothing goes out while no engine runs.
    a.end(Signal::KILL);
    for ends in PEERS {
        let line = format!("ping -c 3 -i 0.2 -W 1 {}", ends[1]);
        assert!(!topology.attempt("ga", &line).status.success());
    }
    let heard = listener.stop();
    let is_icmp = |_: &Kind, frame: &[u8]| match frame[14] >> 4 {
        4 => frame[23] == 1,
        _ => frame[20] == 58 || (frame[20] == 44 && frame[54] == 58),
    };
    heard.assert_no_clear_text(is_icmp);
    assert!(heard.leaks(|_, _| false).count() >= 2 * 2 * 2 * 3 * (1 + 1 + 3));
    assert!(SPIS.iter().all(|spi| heard.esp(*spi) > 300));
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
