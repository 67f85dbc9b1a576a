//! Several instances in one network namespace: two pairs of gateways between the same hosts, each with links, SAs and a
//! host path of its own.
//!
//! ```text
//!  ha eth0 ── in0  ga  out0 ── wire ── out0  gb  in0 ── eth0 hb     instances ga, gb
//!     eth1 ── in1      out1 ────────── out1      in1 ── eth1        instances ga1, gb1
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use adit_tests::gateway::{Gateway, Setup};
use adit_tests::process::eventually;
use adit_tests::topology::Topology;
use rustix::process::Signal;

/// The two networks of two for host devices that nobody has: all others are taken.
const FREE: [u32; 2] = [10, 154];

fn second_links(topology: &Topology) {
    let cable = |a: (&str, &str), b: (&str, &str)| {
        topology.inside(
            a.0,
            &format!("ip link add {} type veth peer name {} netns {}", a.1, b.1, topology.namespace(b.0)),
        );
        for (name, device) in [a, b] {
            topology.inside(name, &format!("ethtool -K {device} tx off tso off gso off gro off"));
            topology.inside(name, &format!("ip link set {device} up"));
        }
    };
    cable(("ha", "eth1"), ("ga", "in1"));
    cable(("ga", "out1"), ("gb", "out1"));
    cable(("gb", "in1"), ("hb", "eth1"));
    for (name, line) in [
        ("ha", "address add 10.11.0.2/24 dev eth1"),
        ("ha", "route add 10.12.0.0/24 via 10.11.0.1"),
        ("ga", "address add 10.11.0.1/24 dev in1"),
        ("ga", "address add 198.51.100.1/24 dev out1"),
        ("ga", "route add 10.12.0.0/24 via 198.51.100.2"),
        ("gb", "address add 198.51.100.2/24 dev out1"),
        ("gb", "address add 10.12.0.1/24 dev in1"),
        ("gb", "route add 10.11.0.0/24 via 198.51.100.1"),
        ("hb", "address add 10.12.0.2/24 dev eth1"),
        ("hb", "route add 10.11.0.0/24 via 10.12.0.1"),
    ] {
        topology.inside(name, &format!("ip {line}"));
    }
}

/// The second instance of a namespace: the first's configuration, on the second links.
fn second(setup: &Setup, topology: &Topology, name: &str) -> String {
    let text = setup.configuration(topology, name);
    let text = text.replace(&format!("instance = \"{}\"", topology.namespace(name)), "instance = \"@\"");
    [
        ("@", format!("{}1", topology.namespace(name)).as_str()),
        (&format!("/{name}.sock"), &format!("/{name}1.sock")),
        (&format!("/{name}-state"), &format!("/{name}1-state")),
        ("\"in0\"", "\"in1\""),
        ("\"out0\"", "\"out1\""),
        ("192.0.2.", "198.51.100."),
        ("10.1.0.", "10.11.0."),
        ("10.2.0.", "10.12.0."),
        ("2001:db8:1::", "2001:db8:11::"),
        ("2001:db8:2::", "2001:db8:12::"),
    ]
    .into_iter()
    .fold(text, |text, (from, to)| text.replace(from, to))
}

fn ping(topology: &Topology, from: &str, to: &str) {
    topology.inside(from, &format!("ping -c 3 -i 0.1 -W 2 {to}"));
}

fn json(topology: &Topology, name: &str, line: &str) -> serde_json::Value {
    serde_json::from_slice(&topology.inside(name, line).stdout).expect("ip speaks JSON")
}

/// The address of an instance's host device, if it has one.
fn host_end(topology: &Topology, instance: &str) -> Option<String> {
    let devices = json(topology, "ga", "ip -j address");
    let name = format!("{}0", topology.namespace(instance));
    let device = devices.as_array()?.iter().find(|device| device["ifname"] == name.as_str())?.clone();
    let addresses = device["addr_info"].as_array()?.clone();
    Some(addresses.iter().find(|address| address["family"] == "inet")?["local"].as_str()?.to_owned())
}

/// Priorities of the rules that instances made.
fn priorities(topology: &Topology) -> BTreeSet<u64> {
    let rules = json(topology, "ga", "ip -j rule");
    let priorities = rules.as_array().expect("rules").iter().filter_map(|rule| rule["priority"].as_u64());
    priorities.filter(|priority| (10_000..32_000).contains(priority)).collect()
}

fn has_xdp(topology: &Topology, device: &str) -> bool {
    !json(topology, "ga", &format!("ip -j link show dev {device}"))[0]["xdp"].is_null()
}

fn pinned(topology: &Topology) -> BTreeSet<String> {
    let listing = topology.inside("ga", &format!("find {}/bpf", topology.directory().display()));
    String::from_utf8(listing.stdout).expect("names").lines().map(str::to_owned).collect()
}

#[test]
fn instances_side_by_side_do_not_touch_each_other() {
    let topology = Topology::new(1);
    second_links(&topology);
    // Others have all networks of two but those.
    for last in (0..256).step_by(2).filter(|last| !FREE.contains(last)) {
        topology.inside("ga", &format!("ip address add 169.254.173.{last}/31 dev lo"));
    }
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.engine = "host-path = true".into();
    let mut setup1 = Setup::new("aes-256-gcm", "none");
    setup1.engine = setup.engine.clone();

    let mut ga = Gateway::new(&topology, "ga", "ga", &setup.configuration(&topology, "ga"));
    let mut ga1 = Gateway::new(&topology, "ga", "ga1", &second(&setup1, &topology, "ga"));
    let _gb = Gateway::start(&topology, "gb", &setup);
    let mut gb1 = Gateway::new(&topology, "gb", "gb1", &second(&setup1, &topology, "gb"));
    // Both at once: they look for what is free at the same time.
    ga.launch();
    ga1.launch();
    gb1.restart();
    for gateway in [&ga, &ga1] {
        eventually("aditd answers", Duration::from_secs(20), || {
            gateway.attempt(&["status"]).status.success()
        });
        eventually("routes", Duration::from_secs(5), || {
            gateway.json(&["status"])["host"]["routes"].as_array().is_some_and(|routes| !routes.is_empty())
        });
    }
    let ends = || ["ga", "ga1"].map(|instance| host_end(&topology, instance));
    let at_start = ends();
    let free: BTreeSet<_> = FREE.iter().map(|last| Some(format!("169.254.173.{last}"))).collect();
    assert_eq!(BTreeSet::from(at_start.clone()), free);
    let of_both = priorities(&topology);

    // Hosts, and the gateway itself.
    let through = |second: bool| {
        for (from, to) in [("ha", ["10.2.0.2", "10.12.0.2"]), ("ga", ["10.2.0.2", "10.12.0.2"])] {
            ping(&topology, from, to[usize::from(second)]);
        }
    };
    through(false);
    through(true);
    for (gateway, interfaces) in [(&ga, ["in0", "out0"]), (&ga1, ["in1", "out1"])] {
        let status = gateway.json(&["status"]);
        let names = status["interfaces"].as_array().expect("interfaces").iter();
        assert_eq!(
            names.map(|interface| interface["name"].as_str().unwrap()).collect::<Vec<_>>(),
            interfaces
        );
        assert!(gateway.totals().sealed >= 6, "{}", gateway.explain());
    }

    // One ends and comes back: the other notices nothing, and what was the first one's stays closed.
    let (dropped, sealed) = (ga1.totals().dropped, ga1.totals().sealed);
    assert!(ga.end(Signal::TERM).success());
    assert!(!topology.attempt("ha", "ping -c 2 -i 0.2 -W 1 10.2.0.2").status.success());
    through(true);
    ga.restart();
    through(false);
    through(true);
    assert_eq!(ga1.totals().dropped, dropped, "{}", ga1.explain());
    assert!(ga1.totals().sealed >= sealed + 12);
    assert_eq!(ends(), at_start);
    assert_eq!(priorities(&topology), of_both);

    // One that wants what another has is refused, and changes nothing.
    let before = pinned(&topology);
    let claim = second(&setup1, &topology, "ga").replace("ga1", "ga2").replace("\"out1\"", "\"out0\"");
    let mut ga2 = Gateway::new(&topology, "ga", "ga2", &claim);
    let refused = ga2.refuses_to_start();
    let first = topology.namespace("ga1");
    assert!(
        refused.contains("interface in1 is steered by instance") && refused.contains(&first),
        "{refused}"
    );
    assert_eq!(pinned(&topology), before);
    // So is one under the name of another.
    ga2.configure(&claim.replace("ga2", "ga1").replace("/ga1-state", "/ga2-state").replace("in1", "lo"));
    let refused = ga2.refuses_to_start();
    assert!(refused.contains(&format!("instance {first} belongs to a running process")), "{refused}");
    assert_eq!((pinned(&topology), ends()), (before, at_start.clone()));
    through(true);

    // One leaves for good.
    assert!(ga1.end(Signal::TERM).success());
    assert!(has_xdp(&topology, "in1") && has_xdp(&topology, "out1"));
    ga1.detach();
    assert!(!has_xdp(&topology, "in1") && !has_xdp(&topology, "out1"));
    assert!(has_xdp(&topology, "in0") && has_xdp(&topology, "out0"));
    assert_eq!(ends(), [at_start[0].clone(), None]);
    let of_one = priorities(&topology);
    assert!(!of_one.is_empty() && of_one.is_subset(&of_both) && of_one != of_both, "{of_one:?} {of_both:?}");
    through(false);
    ga.assert_conservation();
}
