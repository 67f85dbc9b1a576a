//! A router on the way whose next link is narrower than what the gateways know: a real one, the kernel's, that tells so.
//!
//! ```text
//!  ha ------- ga ------------- router ------------- gb ------- hb
//!     1500        192.0.2.1   (the wire)  1400          1500
//!             2001:db8:f::1               198.51.100.2
//!                                        2001:db8:e::2
//! ```
//!
//! Gateway A learns the path's MTU from the router's ICMP errors and tells its host; forged errors beside them do nothing.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use adit_tests::gateway::{Gateway, SPI_AB, Setup};
use adit_tests::netns::Tap;
use adit_tests::packet::ip;
use adit_tests::process::{Running, eventually};
use adit_tests::scapy;
use adit_tests::topology::Topology;
use adit_tests::traffic::inside;
use adit_tests::wire::{Kind, Listener};
use serde_json::Value;

const NARROW: u32 = 1_400;

/// Who forges errors, and how many of each kind.
const FORGER: [&str; 2] = ["203.0.113.66", "2001:db8:bad::1"];
const FORGED: usize = 100;

/// The configuration of a gateway at its address beyond the router.
fn configuration(topology: &Topology, name: &str, setup: &Setup) -> String {
    let text = setup.configuration(topology, name);
    text.replace("192.0.2.2", "198.51.100.2").replace("2001:db8:f::2", "2001:db8:e::2")
}

fn endpoints(v6: bool) -> [IpAddr; 2] {
    let [a, b] = if v6 { ["2001:db8:f::1", "2001:db8:e::2"] } else { ["192.0.2.1", "198.51.100.2"] };
    [a, b].map(|address| address.parse().unwrap())
}

/// Has host A forget what it was told of paths.
fn forget(topology: &Topology) {
    topology.inside("ha", "ip route flush cache");
    topology.inside("ha", "ip -6 route flush cache");
}

/// What `adit sa show` says that the path's MTU is.
fn path_mtu(gateway: &Gateway) -> Value {
    let shown = gateway.json(&["sa", "show", "sites"]);
    let outbound = shown.as_array().unwrap().iter().find(|sa| sa["direction"] == "out");
    outbound.unwrap_or_else(|| panic!("no outbound SA in {shown}"))["path_mtu"].clone()
}

/// Whether a frame is an ICMP error "too big" of `from`'s.
fn is_told_by(frame: &[u8], from: &str) -> bool {
    let (source, kind) = match frame[12..14] {
        [0x08, 0x00] if frame[23] == 1 => (IpAddr::from(<[u8; 4]>::try_from(&frame[26..30]).unwrap()), 34),
        [0x86, 0xdd] if frame[20] == 58 => (IpAddr::from(<[u8; 16]>::try_from(&frame[22..38]).unwrap()), 54),
        _ => return false,
    };
    source == from.parse::<IpAddr>().unwrap() && matches!(frame[kind..kind + 2], [3, 4] | [2, 0])
}

/// Errors to gateway A, as whole frames: about an SPI of nobody's, about a number that was never sent, and about what was
/// sent, with an MTU that no path has.
fn forgeries(topology: &Topology, v6: bool) -> Vec<Vec<u8>> {
    let [a, b] = endpoints(v6);
    let about = |spi: u32, number: u32| {
        ip(a, b, 50, &[&spi.to_be_bytes()[..], &number.to_be_bytes(), &[0x5a; 64]].concat())
    };
    let error =
        |about: Vec<u8>, mtu| scapy::errors(&[about], FORGER[usize::from(v6)], "too-big", mtu, 64).remove(0);
    let kinds = [
        error(about(0xbad_5b1, 1), 1_300),
        error(about(SPI_AB, 0x7000_0000), 1_300),
        error(about(SPI_AB, 1), 68),
    ];
    let mac = |name: &str, device: &str| -> Vec<u8> {
        let text = topology.inside(name, &format!("cat /sys/class/net/{device}/address")).stdout;
        let text = String::from_utf8(text).unwrap();
        text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    };
    let ether_type: [u8; 2] = if v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    let ethernet = [mac("ga", "out0"), mac("wire", "left"), ether_type.to_vec()].concat();
    let frames = kinds.map(|error| [&ethernet[..], &error].concat());
    (0..FORGED).flat_map(|_| frames.clone()).collect()
}

/// A packet of `inside` bytes passes, and the gateway tells that to who sends one byte more.
fn assert_carries(topology: &Topology, target: &str, inside: u32, headers: u32) {
    // The host has heard it by now.
    forget(topology);
    let ping = |size| topology.attempt("ha", &format!("ping -c 1 -W 2 -M do -s {size} {target}"));
    let refused = ping(inside - headers + 1);
    let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(said.contains(&format!("mtu = {inside}")) || said.contains(&format!("mtu={inside}")), "{said}");
    assert!(ping(inside - headers).status.success());
}

fn a_narrow_path_is_found(v6: bool, inside_mtu: u32) {
    let topology = Topology::new(1);
    topology.put_a_router(NARROW);
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.outer_v6 = v6;
    // Gateway B, whose link it is, would tell TCP from the beginning.
    setup.tunnel = "clamp-mss = false".into();
    let (left, right) = (Listener::start(&topology, "left"), Listener::start(&topology, "right"));
    let [a, b] = ["ga", "gb"]
        .map(|name| Gateway::start_with(&topology, name, &configuration(&topology, name, &setup)));
    topology.inside("ha", "ping -c 1 -W 2 10.2.0.2");
    assert_eq!(path_mtu(&a), Value::Null);

    // TCP finds it out by what is lost: offered what the first link carries, told less while it sends.
    let frames = forgeries(&topology, v6);
    let forger = inside(&topology, "wire", move || {
        let tap = Tap::open("left").unwrap();
        for frame in frames {
            tap.send(&frame).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let server = Running::start(topology.command("hb", "iperf3").arg("-s").stdout(Stdio::null()));
    for (family, target) in [("-4", "10.2.0.2"), ("-6", "2001:db8:2::2")] {
        for reverse in ["", "-R"] {
            eventually("TCP", Duration::from_secs(30), || {
                topology
                    .attempt("ha", &format!("iperf3 {family} -c {target} -n 1M {reverse}"))
                    .status
                    .success()
            });
        }
    }
    drop(server);
    forger.join().unwrap();
    assert_eq!(path_mtu(&a), NARROW);

    // Exactly what fits passes, one byte more is told; what may be fragmented passes whatever its size.
    assert_carries(&topology, "10.2.0.2", inside_mtu, 28);
    assert_carries(&topology, "2001:db8:2::2", inside_mtu, 48);
    forget(&topology);
    topology.inside("ha", "ping -c 2 -i 0.2 -W 2 -M dont -s 1472 10.2.0.2");
    // A reload that remakes the tunnel does not make it forget.
    setup.tunnel.clear();
    a.configure(&configuration(&topology, "ga", &setup));
    a.adit(&["reload"]);
    assert_eq!(path_mtu(&a), NARROW);
    assert!(a.adit(&["sa", "show", "sites"]).contains("path MTU 1400"));

    // Everything is accounted for: each error of the router's was about one packet, and each was heeded.
    let (at_a, _) = (a.assert_conservation(), b.assert_conservation());
    let lost = topology.loss_everywhere() + a.lost_at_sockets() + b.lost_at_sockets();
    let (left, right) = (left.stop(), right.stop());
    let router = if v6 { "2001:db8:f::fe" } else { "192.0.2.254" };
    let count = |from: &str| left.frames.iter().filter(|(_, frame)| is_told_by(frame, from)).count() as u64;
    let (told, forged) = (count(router), count(FORGER[usize::from(v6)]));
    let is_error =
        |_: &Kind, frame: &[u8]| is_told_by(frame, router) || is_told_by(frame, FORGER[usize::from(v6)]);
    left.assert_no_clear_text(is_error);
    right.assert_no_clear_text(|_, _| false);
    assert!(right.frames.iter().all(|(_, frame)| frame.len() <= 14 + NARROW as usize));
    assert_eq!(forged, 3 * FORGED as u64);
    assert!(told > 0, "the router refused something");
    // Only frames that a queue of the kernel's lost, on a machine too busy to serve it, are excused.
    if lost == 0 {
        let sent = left.esp(SPI_AB);
        assert_eq!(sent, at_a.sealed);
        assert_eq!(sent - right.esp(SPI_AB), told, "what did not pass was told of, packet by packet");
        let heard = ["icmp_noted", "icmp_forged", "icmp_refused"].map(|reason| a.dropped(reason));
        let forged = FORGED as u64;
        assert_eq!(heard, [told, 2 * forged, forged], "{}", a.explain());
        let too_big = a.dropped("too_big");
        assert_eq!(at_a.dropped, heard.iter().sum::<u64>() + too_big, "{}", a.explain());
        assert_eq!(at_a.originated, too_big + 2, "what was too big was told so; and two second fragments");
        assert_eq!(b.totals().dropped, 0, "{}", b.explain());
    }
}

#[test]
fn a_narrow_path_is_found_over_ipv4() {
    // Outside 1400: 20 outer IP, 8 ESP, 8 IV, 16 ICV leave 1348; less pad length and next header, a multiple of 4.
    a_narrow_path_is_found(false, 1_346);
}

#[test]
fn a_narrow_path_is_found_over_ipv6() {
    a_narrow_path_is_found(true, 1_326);
}
