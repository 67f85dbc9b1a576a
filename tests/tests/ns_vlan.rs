//! VLANs end to end: hosts on VLAN 100, gateways that meet in a QinQ VLAN. The kernel here has no VLAN devices, so TAP
//! devices stand for them (`tests/peers/vlan_device.py`): they have the addresses, routes and neighbours, and what the
//! engine takes and sends goes by the interfaces themselves.

use std::process::Stdio;
use std::time::Duration;

use adit_engine::offline::captures;
use adit_engine::wire::ethernet;
use adit_engine::wire::vlan::{Tags, strip};
use adit_tests::gateway::{Gateway, Setup};
use adit_tests::process::{Running, eventually, repository};
use adit_tests::topology::Topology;
use rustix::process::Signal;

const OUTSIDE: Tags = Tags { outer: 100, inner: 20 };

/// A device that stands for a VLAN device, with the addresses and the default routes of its interface.
fn vlan_device(topology: &Topology, name: &str, parent: &str, vlans: &[u16]) -> Running {
    let dotted: Vec<_> = vlans.iter().map(u16::to_string).collect();
    let device = format!("{parent}.{}", dotted.join("."));
    let show = |line: &str| {
        let said = topology.inside(name, &format!("ip -j {line} show dev {parent}"));
        serde_json::from_slice::<serde_json::Value>(&said.stdout).expect("ip speaks JSON")
    };
    let addresses = show("address")[0]["addr_info"].clone();
    let routes = [("-4", show("-4 route")), ("-6", show("-6 route"))];
    let mut command = topology.command(name, "python3");
    command.arg(repository().join("tests/peers/vlan_device.py")).arg(parent).arg(&device).args(dotted);
    let running = Running::start(command.stdout(Stdio::null()));
    eventually("the device is there", Duration::from_secs(10), || {
        topology.attempt(name, &format!("ip link show dev {device} up")).stdout.len() > 10
    });
    for address in addresses.as_array().expect("addresses") {
        if address["scope"] == "global" {
            let prefix = format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]);
            topology.inside(name, &format!("ip address del {prefix} dev {parent}"));
            topology.inside(name, &format!("ip address add {prefix} dev {device} nodad"));
        }
    }
    for (family, routes) in routes {
        for route in routes.as_array().expect("routes") {
            if let Some(gateway) = route["gateway"].as_str() {
                topology.inside(name, &format!("ip {family} route replace default via {gateway}"));
            }
        }
    }
    running
}

fn configuration(setup: &Setup, topology: &Topology, name: &str) -> String {
    let vlan = |parent: &str, name: &str, vlan: &str, side: &str| {
        format!(
            "[[interface]]\nname = \"{name}\"\nparent = \"{parent}\"\nvlan = {vlan}\nside = \"{side}\"\n\n[[tunnel]]"
        )
    };
    let text = setup.configuration(topology, name);
    let text = text.replacen("[[tunnel]]", &vlan("in0", "in0.100", "100", "protected"), 1);
    text.replacen("[[tunnel]]", &vlan("out0", "out0.100.20", "[100, 20]", "unprotected"), 1)
}

fn through_vlans(setup: &Setup, queues: u32, mtu: u32) {
    let topology = Topology::new(queues);
    // The tags come on top of what the VLAN's packets may be.
    topology.set_mtu(mtu + 8);
    // A wire carries tags in frames; a veth's kernel side leaves them beside, for a peer that XDP is not on.
    for end in ["left", "right"] {
        topology.inside("wire", &format!("ethtool -K {end} txvlan off tx-vlan-stag-hw-insert off"));
    }
    let hosts = ["ha", "hb"].map(|name| vlan_device(&topology, name, "eth0", &[100]));
    let inside = ["ga", "gb"].map(|name| vlan_device(&topology, name, "in0", &[100]));
    let outside = ["ga", "gb"].map(|name| vlan_device(&topology, name, "out0", &[100, 20]));
    for (name, device) in [
        ("ha", "eth0.100"),
        ("hb", "eth0.100"),
        ("ga", "in0.100"),
        ("gb", "in0.100"),
        ("ga", "out0.100.20"),
        ("gb", "out0.100.20"),
    ] {
        topology.inside(name, &format!("ip link set dev {device} mtu {mtu}"));
    }
    let pcap = topology.directory().join("wire.pcap");
    let mut tcpdump = topology.command("wire", "tcpdump");
    tcpdump.args(["--immediate-mode", "-B", "65536", "-U", "-n", "-i", "left", "-w"]).arg(&pcap);
    let mut tcpdump = Running::start(tcpdump.stdout(Stdio::null()).stderr(Stdio::null()));
    eventually("tcpdump listens", Duration::from_secs(10), || {
        std::fs::metadata(&pcap).is_ok_and(|file| file.len() > 0)
    });

    let a = Gateway::start_with(&topology, "ga", &configuration(setup, &topology, "ga"));
    let b = Gateway::start_with(&topology, "gb", &configuration(setup, &topology, "gb"));
    let ping = |target: &str, more: &str| {
        let said = topology.attempt("ha", &format!("ping -c 3 -i 0.1 -W 3 {more} {target}"));
        assert!(said.status.success(), "{said:?}\n{}\n{}", a.explain(), b.explain());
    };
    for target in ["10.2.0.2", "2001:db8:2::2"] {
        ping(target, "");
    }
    // The gateway itself, by the kernel's own devices.
    ping("10.1.0.1", "");
    topology.inside("ga", "ping -c 2 -W 2 192.0.2.2");
    // The MTU is that of the VLAN; its tags do not count.
    let inside_mtu = (mtu - 52) / 4 * 4 - 2;
    ping("10.2.0.2", &format!("-M do -s {}", inside_mtu - 28));
    let refused = topology.attempt("ha", &format!("ping -c 1 -W 2 -M do -s {} 10.2.0.2", inside_mtu - 27));
    let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(
        said.contains(&format!("mtu = {inside_mtu}")) || said.contains(&format!("mtu={inside_mtu}")),
        "{said}"
    );

    let server = Running::start(topology.command("hb", "iperf3").arg("-s").stdout(Stdio::null()));
    for reverse in ["", "-R"] {
        eventually("TCP", Duration::from_secs(60), || {
            topology.attempt("ha", &format!("iperf3 -c 10.2.0.2 -n 1M {reverse}")).status.success()
        });
    }
    drop(server);

    let status = a.json(&["status"]);
    let modes: Vec<_> = status["interfaces"].as_array().unwrap().iter().map(|port| &port["mode"]).collect();
    assert_eq!(modes[2..], ["vlan", "vlan"]);
    for gateway in [&a, &b] {
        let totals = gateway.assert_conservation();
        assert!(totals.sealed > 50 && totals.opened > 50, "{totals:?}");
        let overflows: u64 =
            ["hand_over_full", "no_frame", "too_big"].iter().map(|reason| gateway.dropped(reason)).sum();
        assert_eq!(totals.dropped, overflows, "{}", gateway.explain());
    }

    tcpdump.signal(Signal::INT);
    tcpdump.wait_for_end(Duration::from_secs(10));
    let (mut sealed, mut others) = (0, 0);
    for captured in captures::read(&pcap).unwrap() {
        let mut frame = captured.frame;
        let Some((tags, length)) = Tags::read(&frame) else { panic!("odd tags: {frame:02x?}") };
        let frame = strip(&mut frame, length);
        let header = ethernet::parse(frame).unwrap();
        if header.ether_type != ethernet::ether_type::IPV4 || frame[26..28] != [192, 0] {
            others += 1;
            continue;
        }
        assert_eq!(tags, OUTSIDE, "{frame:02x?}");
        // ESP, or the gateways' own ping.
        assert!([50, 1].contains(&frame[23]), "{frame:02x?}");
        sealed += u64::from(frame[23] == 50);
    }
    assert!(sealed > 100, "{sealed} sealed packets and {others} others");
    drop((hosts, inside, outside));
}

#[test]
fn a_vlan_inside_and_a_qinq_vlan_outside() {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.mode = "native";
    through_vlans(&setup, 1, 1500);
}

#[test]
fn on_skb_xdp() {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.mode = "skb";
    through_vlans(&setup, 1, 1500);
}

/// Two workers: tagged frames are handed over to the one that numbers, also those of several frames.
#[test]
fn on_two_queues_with_jumbo_packets() {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.engine = "cores = [0, 1]".into();
    through_vlans(&setup, 2, 8000);
}
