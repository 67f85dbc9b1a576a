//! The gateway itself through its tunnels (the topology is drawn in `scripts/topology`): its own pings and connections,
//! what becomes of them when it is killed, and that nobody else gets in that way.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use adit_tests::gateway::{Gateway, SPI_AB, SPI_BA, Setup};
use adit_tests::process::{Running, eventually};
use adit_tests::topology::Topology;
use adit_tests::wire::{Kind, Listener};
use rustix::process::Signal;

const ROUTED: [&str; 2] = ["10.2.0.0/24", "2001:db8:2::/64"];

fn setup() -> Setup {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.engine = "host-path = true".into();
    setup
}

fn device(topology: &Topology, name: &str) -> String {
    format!("{}0", topology.namespace(name))
}

fn routes(gateway: &Gateway<'_>) -> Vec<String> {
    let status = gateway.json(&["status"]);
    let routes = status["host"]["routes"].as_array().cloned().unwrap_or_default();
    routes.iter().map(|route| route.as_str().expect("text").to_owned()).collect()
}

/// Both gateways, with their routes.
fn pair<'t>(topology: &'t Topology, setup: &Setup) -> (Gateway<'t>, Gateway<'t>) {
    let (a, b) = Gateway::pair(topology, setup);
    for gateway in [&a, &b] {
        eventually("routes", Duration::from_secs(5), || routes(gateway).len() == 2);
    }
    (a, b)
}

fn ping(topology: &Topology, from: &str, what: &str) {
    topology.inside(from, &format!("ping -c 3 -i 0.2 -W 2 {what}"));
}

/// An ICMP packet between the outer addresses: what the operator's ssh and IKE stand for here.
fn between_peers(kind: &Kind, _: &[u8]) -> bool {
    let outer: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
    matches!(kind, Kind::Clear { source: Some(source), destination: Some(destination), protocol: 1 }
        if outer.contains(source) && outer.contains(destination))
}

fn connects(topology: &Topology, server: &str, client: &str, targets: [&str; 2]) {
    let serving = Running::start(topology.command(server, "iperf3").arg("-s").stdout(Stdio::null()));
    for (family, target) in ["-4", "-6"].into_iter().zip(targets) {
        for reverse in ["", "-R"] {
            let line = format!("iperf3 {family} -c {target} -n 1M {reverse}");
            eventually("TCP", Duration::from_secs(30), || topology.attempt(client, &line).status.success());
        }
    }
    drop(serving);
}

fn everything_passes(setup: &Setup, queues: u32) {
    let topology = Topology::new(queues);
    let (left, right) = (Listener::start(&topology, "left"), Listener::start(&topology, "right"));
    // As strict as many distributions have it: each source must be where its route leads.
    for name in ["ga", "gb"] {
        topology.inside(name, "sysctl -qw net.ipv4.conf.all.rp_filter=1");
    }
    let (a, b) = pair(&topology, setup);
    assert_eq!(routes(&a), ROUTED);
    for (from, what) in [
        ("ga", "10.2.0.1"),
        ("ga", "2001:db8:2::1"),
        ("ga", "-I 10.1.0.1 10.2.0.2"),
        ("ga", "2001:db8:2::2"),
        ("gb", "10.1.0.1"),
        ("gb", "2001:db8:1::2"),
        ("ha", "10.2.0.1"),
        ("hb", "2001:db8:1::1"),
        // Not through the tunnel: a neighbour inside, and the peer.
        ("ga", "10.1.0.2"),
        ("ha", "2001:db8:1::1"),
        ("ga", "192.0.2.2"),
    ] {
        ping(&topology, from, what);
    }
    connects(&topology, "hb", "ga", ["10.2.0.2", "2001:db8:2::2"]);
    connects(&topology, "ga", "hb", ["10.1.0.1", "2001:db8:1::1"]);
    connects(&topology, "gb", "ga", ["10.2.0.1", "2001:db8:2::1"]);
    for gateway in [&a, &b] {
        let totals = gateway.assert_conservation();
        assert!(totals.delivered > 12, "{totals:?}");
        let overflows = gateway.dropped("hand_over_full") + gateway.dropped("no_frame");
        // Multicast reports (MLD): the kernel joins its groups on the device.
        let reports = gateway.dropped("host_unprotected");
        assert!(reports <= 4, "{}", gateway.explain());
        assert_eq!(totals.dropped, overflows + reports, "{}", gateway.explain());
        assert!(gateway.adit(&["status"]).contains("host path "), "{}", gateway.adit(&["status"]));
    }
    let (left, right) = (left.stop(), right.stop());
    for heard in [&left, &right] {
        heard.assert_no_clear_text(between_peers);
        heard.assert_sequence_numbers_unique();
    }
    assert!(left.esp(SPI_AB) > 100 && right.esp(SPI_BA) > 100);
}

#[test]
fn the_gateway_itself() {
    everything_passes(&setup(), 1);
}

/// Two workers: a packet of the gateway's own may be read by the one that does not number its SA.
#[test]
fn the_gateway_itself_on_two_queues() {
    let mut setup = setup();
    setup.engine = "host-path = true\ncores = [0, 1]".into();
    setup.outer_v6 = true;
    everything_passes(&setup, 2);
}

/// The gateway's own stack learns the tunnel's MTU: exactly the largest packet passes, and the next one is answered.
#[test]
fn path_mtu_is_told_to_the_gateways_own_stack() {
    let topology = Topology::new(1);
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.engine = "host-path = true".into();
    let (a, _b) = pair(&topology, &setup);
    // Outside 1500: 20 outer IP, 8 ESP, 8 IV, 16 ICV leave 1448; less pad length and next header, multiple of 4.
    let inside = 1446;
    for (target, header) in [("10.2.0.1", 28), ("2001:db8:2::1", 48)] {
        let largest = inside - header;
        topology.inside("ga", &format!("ping -c 1 -W 2 -M do -s {largest} {target}"));
        let refused = topology.attempt("ga", &format!("ping -c 1 -W 2 -M do -s {} {target}", largest + 1));
        let said =
            String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
        assert!(
            said.contains(&format!("mtu = {inside}")) || said.contains(&format!("mtu={inside}")),
            "{said}"
        );
        let learned = topology.inside("ga", &format!("ip route get {target}"));
        let learned = String::from_utf8_lossy(&learned.stdout).into_owned();
        assert!(learned.contains(&format!("mtu {inside}")), "{learned}");
    }
    assert_eq!(a.dropped("too_big"), 2);
    let totals = a.assert_conservation();
    // Two echoes answered, two errors.
    assert_eq!((totals.originated, totals.delivered), (2, 4));
}

/// The device has the MTU of the link outside, also of one that changes: packets of the gateway's own are as large as those
/// of its hosts.
#[test]
fn the_device_follows_the_mtu_outside() {
    let topology = Topology::new(1);
    topology.set_mtu(9000);
    let (a, b) = pair(&topology, &setup());
    let has = |mtu: u32| {
        let line = format!("ip link show dev {}", device(&topology, "ga"));
        let said = topology.inside("ga", &line).stdout;
        String::from_utf8_lossy(&said).contains(&format!(" mtu {mtu} "))
    };
    for outside in [9000, 1400] {
        topology.set_mtu(outside);
        eventually("the device's MTU", Duration::from_secs(5), || has(outside));
        for (name, gateway) in [("ga", &a), ("gb", &b)] {
            for line in ["ip route flush cache", "ip -6 route flush cache"] {
                topology.inside(name, line);
            }
            eventually("the port's MTU", Duration::from_secs(5), || {
                gateway.json(&["status"])["interfaces"][1]["mtu"] == outside
            });
        }
        // Outside less 20 outer IP, 8 ESP, 8 IV, 16 ICV; a multiple of 4, less pad length and next header.
        let inside = (outside - 52) / 4 * 4 - 2;
        for (target, header) in [("10.2.0.1", 28), ("2001:db8:2::1", 48)] {
            topology.inside("ga", &format!("ping -c 1 -W 2 -M do -s {} {target}", inside - header));
        }
    }
    for gateway in [&a, &b] {
        let totals = gateway.assert_conservation();
        assert_eq!(totals.dropped, gateway.dropped("host_unprotected"), "{}", gateway.explain());
    }
}

/// What leads into the host path, in both families.
fn traces(topology: &Topology, name: &str) -> Vec<String> {
    let mut traces = Vec::new();
    for line in
        ["ip -o link", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"]
    {
        let output = String::from_utf8(topology.inside(name, line).stdout).expect("ip speaks UTF-8");
        let device = device(topology, name);
        let is_trace =
            |line: &&str| line.contains("iif lo") || line.contains(&device) || line.contains("throw");
        traces.extend(output.lines().filter(is_trace).map(str::to_owned));
    }
    traces
}

#[test]
fn killed_restarted_detached() {
    let topology = Topology::new(1);
    let (mut a, mut b) = pair(&topology, &setup());
    let listener = Listener::start(&topology, "left");
    ping(&topology, "ga", "10.2.0.1");
    a.end(Signal::KILL);
    for target in ["10.2.0.1", "-I 10.1.0.1 10.2.0.2", "2001:db8:2::1"] {
        let line = format!("ping -c 3 -i 0.2 -W 1 {target}");
        assert!(!topology.attempt("ga", &line).status.success(), "{target}");
    }
    let dead = String::from_utf8(topology.inside("ga", "ip route get 10.2.0.1").stdout).unwrap();
    assert!(dead.contains(&device(&topology, "ga")), "what is routed into the device is lost there: {dead}");
    a.restart();
    // What the recorded ceiling of a new SA covers counts as received: up to 4096 of the peer's packets.
    for target in ["10.2.0.1", "2001:db8:2::1"] {
        let line = format!("ping -f -c 4500 -W 1 {target}");
        eventually("it goes on", Duration::from_secs(10), || topology.attempt("ga", &line).status.success());
    }
    a.assert_conservation();
    b.assert_conservation();
    listener.stop().assert_no_clear_text(|_, _| false);

    a.end(Signal::TERM);
    assert!(!traces(&topology, "ga").is_empty());
    // An earlier build had other numbers.
    let device = device(&topology, "ga");
    for line in [
        format!("ip route add 10.2.0.0/24 dev {device} table 0xad123450"),
        "ip route add throw 10.1.0.0/24 table 0xad123450".into(),
        "ip rule add iif lo ipproto udp sport 500 priority 23000 goto 23001".into(),
        "ip rule add iif lo priority 23001 table 0xad123450".into(),
        "ip rule add iif lo from 10.1.0.1 priority 23002 table main suppress_prefixlength 0".into(),
        "ip rule add iif lo from 10.1.0.1 priority 23003 table 0xad123450".into(),
    ] {
        topology.inside("ga", &line);
    }
    a.detach();
    assert_eq!(traces(&topology, "ga"), Vec::<String>::new());
    // Switched off, the next start takes away what is left.
    b.end(Signal::KILL);
    assert!(!traces(&topology, "gb").is_empty());
    b.configure(&setup().configuration(&topology, "gb").replace("host-path = true", "host-path = false"));
    b.restart();
    assert_eq!(traces(&topology, "gb"), Vec::<String>::new());
    assert_eq!(b.json(&["status"])["host"], serde_json::Value::Null);
}

#[test]
fn the_device_is_kept_up() {
    let topology = Topology::new(1);
    let (a, _b) = pair(&topology, &setup());
    let listener = Listener::start(&topology, "left");
    let device = device(&topology, "ga");
    let comes_back = || {
        for target in ["10.2.0.1", "2001:db8:2::1"] {
            let line = format!("ping -c 1 -W 1 {target}");
            eventually("it comes back", Duration::from_secs(10), || {
                topology.attempt("ga", &line).status.success()
            });
        }
    };
    topology.inside("ga", &format!("ip link set dev {device} down"));
    comes_back();
    topology.inside("ga", &format!("ip link delete dev {device}"));
    comes_back();
    // The source goes, and with it the kernel takes the routes away.
    topology.inside("ga", "ip address delete 10.1.0.1/24 dev in0");
    eventually("no route without an address", Duration::from_secs(5), || routes(&a) == ROUTED[1..]);
    topology.inside("ga", "ip address add 10.1.0.1/24 dev in0");
    eventually("the route is back", Duration::from_secs(5), || routes(&a) == ROUTED);
    comes_back();
    listener.stop().assert_no_clear_text(|_, _| false);
    a.assert_conservation();
}

/// The gateway can be reached while its inside link is down, when there is nobody else to speak to.
#[test]
fn inside_link_down() {
    let topology = Topology::new(1);
    let (a, b) = pair(&topology, &setup());
    topology.inside("gb", "ip link set dev in0 down");
    eventually("the port is closed", Duration::from_secs(5), || {
        b.json(&["status"])["interfaces"][0]["queues"] == 0
    });
    ping(&topology, "ga", "10.2.0.1");
    assert!(!topology.attempt("ga", "ping -c 1 -W 1 10.2.0.2").status.success());
    assert_eq!(b.dropped("no_frame"), 0);
    assert_eq!(b.dropped("link_down") + b.dropped("no_protected_route"), 1, "{}", b.explain());
    a.assert_conservation();
    b.assert_conservation();
}

#[test]
fn routes_follow_policies() {
    let topology = Topology::new(1);
    let (a, _b) = pair(&topology, &setup());
    a.adit(&["policy", "delete", "sites4"]);
    eventually("it is gone", Duration::from_secs(5), || routes(&a) == ROUTED[1..]);
    let output = topology.inside("ga", "ip rule");
    let rules = String::from_utf8_lossy(&output.stdout);
    assert!(!rules.contains("iif lo"), "{rules}");
    ping(&topology, "ga", "2001:db8:2::1");
    a.adit(&["reload"]);
    eventually("it is back", Duration::from_secs(5), || routes(&a) == ROUTED);
    ping(&topology, "ga", "10.2.0.1");
    a.assert_conservation();
}

/// Somebody else's interface is left alone, and named.
#[test]
fn a_name_that_is_taken() {
    let topology = Topology::new(1);
    let device = device(&topology, "ga");
    topology.inside("ga", &format!("ip link add name {device} type bridge"));
    let configuration = setup().configuration(&topology, "ga").replace("host-path = true", "");
    let mut a = Gateway::start_with(&topology, "ga", &configuration);
    assert!(topology.attempt("ga", &format!("ip link show dev {device}")).status.success());
    a.end(Signal::TERM);
    a.configure(&setup().configuration(&topology, "ga"));
    a.launch();
    let ended = a.daemon().wait_for_end(Duration::from_secs(10));
    assert_eq!(ended.code(), Some(1));
    let said = format!("expected no interface {device:?}");
    assert!(a.log().contains("engine.host-path: ") && a.log().contains(&said), "{}", a.log());
    a.detach();
    assert!(topology.attempt("ga", &format!("ip link show dev {device}")).status.success());
}

/// A policy for everything takes what is sent from inside, and leaves the gateway its outside.
#[test]
fn everything_as_the_remote_prefix() {
    let topology = Topology::new(1);
    let setup = setup();
    let (a, b) = pair(&topology, &setup);
    let everything = setup
        .configuration(&topology, "ga")
        .replace("remote = [\"10.2.0.0/24\"]", "remote = [\"0.0.0.0/0\"]");
    a.configure(&everything);
    a.adit(&["reload"]);
    eventually("routes", Duration::from_secs(5), || routes(&a) == [ROUTED[1], "0.0.0.0/0"]);
    let listener = Listener::start(&topology, "left");
    for (from, what) in [
        ("ga", "-I 10.1.0.1 10.2.0.1"),
        ("gb", "10.1.0.1"),
        ("hb", "10.1.0.1"),
        ("ga", "-I 10.1.0.1 10.1.0.2"),
        ("ga", "10.1.0.2"),
        ("ha", "10.1.0.1"),
        ("ga", "192.0.2.2"),
        ("gb", "192.0.2.1"),
    ] {
        ping(&topology, from, what);
    }
    let heard = listener.stop();
    heard.assert_no_clear_text(between_peers);
    assert_eq!(heard.leaks(|_, _| false).count(), 12, "two pings between the peers and their answers");
    a.assert_conservation();
    b.assert_conservation();
}

/// Somebody outside gives the gateway packets to forward that look like its own: its kernel must not carry them into
/// the tunnel. (For IPv4 it sees through them by itself.)
#[test]
fn nobody_elses_packets_go_in() {
    let topology = Topology::new(1);
    let a = Gateway::start(&topology, "ga", &setup());
    eventually("routes", Duration::from_secs(5), || routes(&a) == ROUTED);
    for line in [
        "ip -6 address add 2001:db8:1::1/128 dev lo nodad",
        "ip -6 address add 2001:db8:1::77/128 dev lo nodad",
        "ip -6 address delete 2001:db8:2::1/64 dev in0",
        "ip -6 route replace 2001:db8:2::/64 via 2001:db8:f::1",
    ] {
        topology.inside("gb", line);
    }
    let listener = Listener::start(&topology, "left");
    for source in ["2001:db8:1::1", "2001:db8:1::77"] {
        let line = format!("ping -c 3 -i 0.2 -W 1 -I {source} 2001:db8:2::2");
        assert!(!topology.attempt("gb", &line).status.success());
    }
    let heard = listener.stop();
    let came = |kind: &Kind| matches!(kind, Kind::Clear { protocol: 58, .. });
    assert!(heard.frames.iter().filter(|(kind, _)| came(kind)).count() >= 6, "they were sent");
    assert_eq!(heard.esp(SPI_AB), 0);
    let totals = a.assert_conservation();
    assert_eq!((totals.sealed, totals.delivered), (0, 0));
}
