//! MTU 9000 end to end: real programs through a tunnel whose packets take up to six frames of a ring (XDP
//! multi-buffer), and an MTU that changes while the gateways run.

use std::time::Duration;

use adit_tests::gateway::{Gateway, Setup};
use adit_tests::process::{Running, eventually};
use adit_tests::topology::Topology;
use adit_tests::wire::Listener;

const JUMBO: u32 = 9000;

/// Bytes of a frame of the rings that can hold a packet: where a longer one goes on in the next.
const FRAME: u32 = 1792;

/// What ping said of `count` echoes of `size` bytes, which must all return unchanged.
fn ping(topology: &Topology, target: &str, size: u32, count: u32) {
    let line = format!("ping -c {count} -i 0.05 -W 2 -M do -s {size} {target}");
    let said = topology.inside("ha", &line).stdout;
    let said = String::from_utf8_lossy(&said);
    assert!(!said.contains("wrong data byte"), "{said}");
}

/// The MTU that a packet of one byte more than `size` is answered with.
fn assert_told(topology: &Topology, target: &str, size: u32, mtu: u32) {
    let refused = topology.attempt("ha", &format!("ping -c 1 -W 2 -M do -s {} {target}", size + 1));
    let said = [refused.stdout, refused.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains(&format!("mtu = {mtu}")) || said.contains(&format!("mtu={mtu}")), "{said}");
}

fn large_packets_pass(setup: &Setup, headers: u32) {
    let topology = Topology::new(1);
    topology.set_mtu(JUMBO);
    let wire = Listener::start(&topology, "left");
    let (a, b) = Gateway::pair(&topology, setup);

    for (target, icmp) in [("10.2.0.2", 28), ("2001:db8:2::2", 48)] {
        ping(&topology, target, 8_900 - icmp, 3);
        // Around every length at which the packet inside, or the one that carries it, begins another frame.
        for boundary in (1..=4).map(|frames| frames * FRAME - 14) {
            for carried in [0, headers] {
                for size in (boundary - carried - icmp - 4..=boundary - carried - icmp + 4).step_by(2) {
                    ping(&topology, target, size, 1);
                }
            }
        }
    }
    let server =
        Running::start(topology.command("hb", "iperf3").arg("-s").stdout(std::process::Stdio::null()));
    for (family, target) in [("-4", "10.2.0.2"), ("-6", "2001:db8:2::2")] {
        for reverse in ["", "-R"] {
            eventually("TCP", Duration::from_secs(30), || {
                let line = format!("iperf3 {family} -c {target} -n 20M {reverse}");
                topology.attempt("ha", &line).status.success()
            });
        }
    }
    drop(server);

    for gateway in [&a, &b] {
        gateway.assert_conservation();
        let overflows = gateway.dropped("no_frame") + gateway.dropped("transmit_failed");
        assert_eq!(gateway.totals().dropped, overflows, "{}", gateway.explain());
    }
    let wire = wire.stop();
    wire.assert_no_clear_text(|_, _| false);
    wire.assert_sequence_numbers_unique();
}

#[test]
fn gcm_on_native_xdp() {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.mode = "native";
    large_packets_pass(&setup, 20 + 8 + 8 + 16 + 2);
}

#[test]
fn cbc_on_native_xdp() {
    let mut setup = Setup::new("aes-128-cbc", "sha256");
    setup.mode = "native";
    large_packets_pass(&setup, 20 + 8 + 16 + 16 + 2);
}

#[test]
fn gcm_on_skb_xdp() {
    let mut setup = Setup::new("aes-256-gcm", "none");
    setup.mode = "skb";
    large_packets_pass(&setup, 20 + 8 + 8 + 16 + 2);
}

#[test]
fn cbc_on_skb_xdp_in_ipv6() {
    let mut setup = Setup::new("aes-256-cbc", "sha256");
    setup.mode = "skb";
    setup.outer_v6 = true;
    large_packets_pass(&setup, 40 + 8 + 16 + 16 + 2);
}

/// What the tunnel carries follows the links' MTU, up and down, on either side, without a restart.
#[test]
fn an_mtu_that_changes_at_run_time_is_told_exactly() {
    let topology = Topology::new(1);
    let (a, b) = Gateway::pair(&topology, &Setup::new("aes-128-gcm", "none"));
    let wire = Listener::start(&topology, "left");
    for (outside, link) in
        [(1_500, 1_500), (JUMBO, JUMBO), (1_500, JUMBO), (1_280, JUMBO), (1_280, 1_500), (JUMBO, 1_500)]
    {
        topology.set_mtus(outside, link);
        // Outside: 20 outer IP, 8 ESP, 8 IV, 16 ICV; then pad length and next header, a multiple of 4.
        let carried = (outside - 52) / 4 * 4 - 2;
        // RFC 8200 section 5: 1,280 bytes of IPv6 pass whatever the path, in fragments here.
        for (target, icmp, most) in [("10.2.0.2", 28, carried), ("2001:db8:2::2", 48, carried.max(1_280))] {
            let family = if icmp == 28 { "-4" } else { "-6" };
            let largest = most.min(link);
            eventually("the gateways know the MTU", Duration::from_secs(20), || {
                // What the host was told before, also by a gateway that did not know yet, it would believe for minutes.
                topology.inside("ha", &format!("ip {family} route flush cache"));
                topology.inside("hb", &format!("ip {family} route flush cache"));
                let line = format!("ping -c 1 -W 1 -M do -s {} {target}", largest - icmp);
                topology.attempt("ha", &line).status.success()
            });
            // What the host's own link does not carry, it knows by itself.
            if largest < link {
                assert_told(&topology, target, largest - icmp, largest);
            }
        }
    }
    a.assert_conservation();
    b.assert_conservation();
    wire.stop().assert_no_clear_text(|_, _| false);
}
