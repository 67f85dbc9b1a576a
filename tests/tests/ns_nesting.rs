//! Tunnels through tunnels between two real gateways (the topology is drawn in `scripts/topology`), and to a third behind
//! the second: on the wire only the outermost layer is seen, foreign readers open all of them, and each layer counts what
//! it carries.

use std::process::Stdio;
use std::time::Duration;

use adit_tests::gateway::{Gateway, SPI_AB, SPI_BA, Setup, Totals};
use adit_tests::netns::Namespace;
use adit_tests::packet::unframe;
use adit_tests::process::{Running, eventually};
use adit_tests::topology::Topology;
use adit_tests::wire::{Heard, Kind, Listener};
use adit_tests::{openssl, scapy, tshark};
use serde_json::Value;

/// The outer tunnel's SPIs from A and from B.
const OUTER: [u32; 2] = [0xad17_0ab8, 0xad17_0ba8];

/// Echoes that are too large.
const ECHOES: u64 = 5;

/// What the outer tunnel is, but for its SAs.
struct Outer {
    settings: &'static str,
    ends: [&'static str; 2],
    /// Hex keys of each direction: encryption, if it encrypts, and authentication.
    keys: [[String; 2]; 2],
}

fn key(byte: u8, length: usize) -> String {
    (0..length as u8).map(|index| format!("{:02x}", byte ^ index.wrapping_mul(37))).collect()
}

impl Outer {
    fn table(&self, name: &str) -> String {
        let a = name == "ga";
        let [local, remote] = if a { self.ends } else { [self.ends[1], self.ends[0]] };
        let sa = |place: usize| {
            let [encryption, authentication] = &self.keys[place];
            let encryption = match &**encryption {
                "" => String::new(),
                hex => format!("encryption-key = \"hex:{hex}\"\n"),
            };
            format!("spi = {}\n{encryption}authentication-key = \"hex:{authentication}\"\n", OUTER[place])
        };
        format!(
            "[[tunnel]]\nname = \"outer\"\nlocal = \"{local}\"\nremote = \"{remote}\"\nesn = false\n{}\n\
             [tunnel.inbound]\n{}[tunnel.outbound]\n{}",
            self.settings,
            sa(usize::from(a)),
            sa(usize::from(!a))
        )
    }
}

/// Real programs through both layers, and what is too large and may be fragmented. Returns what was on the wire, and how
/// many packets each gateway had from its host.
fn everything_passes(
    topology: &Topology,
    setup: &mut Setup,
    outer: &Outer,
    inside_mtu: u32,
) -> (Heard, [u64; 2]) {
    setup.tunnel = "through = \"outer\"\nfragmentation = \"after\"\n".into();
    let wire = Listener::start(topology, "left");
    let [a, b] = ["ga", "gb"].map(|name| {
        setup.more = outer.table(name);
        Gateway::start_with(topology, name, &setup.configuration(topology, name))
    });
    for target in ["10.2.0.2", "2001:db8:2::2"] {
        topology.inside("ha", &format!("ping -c 3 -i 0.1 -W 2 {target}"));
    }
    let server = Running::start(topology.command("hb", "iperf3").arg("-s").stdout(Stdio::null()));
    for reverse in ["", "-R"] {
        eventually("TCP", Duration::from_secs(30), || {
            topology.attempt("ha", &format!("iperf3 -c 10.2.0.2 -n 100K {reverse}")).status.success()
        });
    }
    drop(server);
    // Exactly what fits both passes whole, one byte more is told.
    for (target, headers) in [("10.2.0.2", 28), ("2001:db8:2::2", 48)] {
        let ping = |size| topology.attempt("ha", &format!("ping -c 1 -W 2 -M do -s {size} {target}"));
        let refused = ping(inside_mtu - headers + 1);
        let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
        assert!(said.contains(&format!("mtu = {inside_mtu}")) || said.contains(&format!("mtu={inside_mtu}")));
        assert!(ping(inside_mtu - headers).status.success());
    }
    topology.inside("ha", "ip route flush cache");
    topology.inside("ha", &format!("ping -c {ECHOES} -i 0.05 -W 2 -M dont -s 1472 10.2.0.2"));

    let [at_a, at_b] = [a.assert_conservation(), b.assert_conservation()];
    let lost = topology.loss_everywhere() + a.lost_at_sockets() + b.lost_at_sockets();
    let heard = wire.stop();
    heard.assert_no_clear_text(|_, _| false);
    heard.assert_sequence_numbers_unique();
    assert_eq!([SPI_AB, SPI_BA].map(|spi| heard.esp(spi)), [0; 2], "the inner layer is not seen");
    let [from_a, from_b] = OUTER.map(|spi| heard.esp(spi));
    // What the inner layer fragments after sealing are packets of the outer one; transport mode takes whole ones only, and
    // fragments what it makes of them.
    let fragments = if outer.settings.contains("transport") { 0 } else { ECHOES };
    let inner = [from_a - fragments, from_b - fragments];
    assert_eq!(a.dropped("too_big"), 2);
    // Only frames that a queue of the kernel's lost, on a machine too busy to serve it, are excused.
    if lost == 0 {
        assert_eq!([at_a.sealed, at_b.sealed], [from_a + inner[0], from_b + inner[1]]);
        let expected = |originated, absorbed, opened, dropped| (originated, absorbed, opened, dropped);
        let found = |totals: Totals| (totals.originated, totals.absorbed, totals.opened, totals.dropped);
        assert_eq!(found(at_a), expected(ECHOES + 2, ECHOES, at_b.sealed, 2), "{}", a.explain());
        assert_eq!(found(at_b), expected(ECHOES, ECHOES, at_a.sealed, 0), "{}", b.explain());
    }
    (heard, inner)
}

/// ESP in ESP of the other family: tshark opens both layers of every packet.
#[test]
fn a_tunnel_in_a_tunnel() {
    let topology = Topology::new(1);
    let mut setup = Setup::new("aes-128-cbc", "sha256");
    let outer = Outer {
        settings: "encryption = \"aes-256-cbc\"\nauthentication = \"sha256\"",
        ends: ["2001:db8:f::1", "2001:db8:f::2"],
        keys: [[key(0x51, 32), key(0x52, 32)], [key(0x53, 32), key(0x54, 32)]],
    };
    // 1500: 40 outer IP, 8 ESP, 16 IV, 16 ICV leave 1420, 88 blocks, less the trailer 1406; then 20, 8, 16, 16 leave 1346,
    // 84 blocks, less the trailer.
    let (heard, inner) = everything_passes(&topology, &mut setup, &outer, 1_342);
    let [out, back] = &outer.keys;
    let [[inner_out, inner_out_auth], [inner_back, inner_back_auth]] =
        setup.keys.each_ref().map(|(encryption, auth)| [encryption, auth]);
    let sas = [
        (OUTER[0], &*out[0], &*out[1]),
        (OUTER[1], &*back[0], &*back[1]),
        (SPI_AB, &**inner_out, &**inner_out_auth),
        (SPI_BA, &**inner_back, &**inner_back_auth),
    ];
    let opened = tshark::open(&heard.capture, &sas);
    assert_eq!(opened.len() as u64, heard.esp(OUTER[0]) + heard.esp(OUTER[1]));
    assert!(opened.iter().flat_map(|packet| &packet.icvs).all(|is_right| *is_right));
    for (spis, count) in [[OUTER[0], SPI_AB], [OUTER[1], SPI_BA]].into_iter().zip(inner) {
        let through_both = opened.iter().filter(|packet| packet.spis == spis);
        assert_eq!(through_both.count() as u64, count, "tshark puts the fragments together too");
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// AH over ESP between the same two endpoints: OpenSSL finds every AH right, and every ESP behind it.
#[test]
fn ah_over_esp() {
    let topology = Topology::new(1);
    let mut setup = Setup::new("aes-128-gcm", "none");
    let outer = Outer {
        settings: "protocol = \"ah\"\nmode = \"transport\"\nauthentication = \"sha256\"",
        ends: ["192.0.2.1", "192.0.2.2"],
        keys: [[String::new(), key(0x61, 32)], [String::new(), key(0x62, 32)]],
    };
    // 1500: 20 IP, 28 AH, 8 ESP, 8 IV, 16 ICV leave 1420, less the trailer.
    let (heard, inner) = everything_passes(&topology, &mut setup, &outer, 1_418);
    let packets = heard.frames.iter().filter(|(kind, _)| *kind != Kind::Link);
    let packets = packets.map(|(_, frame)| unframe(frame).to_vec());
    // More fragments, or an offset.
    let is_fragment = |packet: &Vec<u8>| packet[6] & 0x3f != 0 || packet[7] != 0;
    let (fragments, mut whole): (Vec<_>, Vec<_>) = packets.partition(is_fragment);
    assert_eq!(fragments.len() as u64, 4 * ECHOES);
    whole.extend(scapy::whole(&fragments));
    for (place, source) in [[192, 0, 2, 1], [192, 0, 2, 2]].into_iter().enumerate() {
        let ah: Vec<_> =
            whole.iter().filter(|packet| packet[12..16] == source).map(|packet| &packet[..]).collect();
        let esp = openssl::check_ah(&bytes(&outer.keys[place][1]), &ah);
        assert!(esp.len() as u64 == inner[place] && esp.iter().all(|ah| ah.next_header == 50));
        let esp: Vec<_> = esp.iter().map(|ah| &ah.payload[..]).collect();
        let opened = openssl::open(&bytes(&setup.keys[place].0), &esp);
        assert!(opened.iter().all(|opened| matches!(opened.next_header, 4 | 41)));
    }
}

/// A gateway's configuration but for its tunnels and policies.
fn engine(topology: &Topology, name: &str, core: u32, protected: &str, unprotected: &str) -> String {
    let directory = topology.directory().display();
    format!(
        "[engine]\ninstance = \"{}\"\nsocket = \"{directory}/{name}.sock\"\n\
         state-dir = \"{directory}/{name}-state\"\nbpffs = \"{directory}/bpf\"\ncores = [{core}]\n\
         [[interface]]\nname = \"{protected}\"\nside = \"protected\"\n\
         [[interface]]\nname = \"{unprotected}\"\nside = \"unprotected\"\n",
        topology.namespace(name)
    )
}

/// A tunnel of AES-128-GCM: its ends, the SPIs in and out, which name the keys, and more lines.
fn tunnel(name: &str, [local, remote]: [&str; 2], [back, out]: [u8; 2], more: &str) -> String {
    let sa = |number: u8| format!("spi = 0xad17{number:04x}\nencryption-key = \"hex:{}\"\n", key(number, 20));
    format!(
        "[[tunnel]]\nname = \"{name}\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n\
         encryption = \"aes-128-gcm\"\n{more}\n[tunnel.inbound]\n{}[tunnel.outbound]\n{}",
        sa(back),
        sa(out)
    )
}

fn policy(tunnel: &str, local: &str, remote: &str) -> String {
    format!(
        "[[policy]]\nname = \"{tunnel}\"\naction = \"protect\"\ntunnel = \"{tunnel}\"\nlocal = [\"{local}\"]\n\
         remote = [\"{remote}\"]\n"
    )
}

/// A tunnel to gateway C behind gateway B goes through the one to gateway B, whose link to C is narrow:
///
/// ```text
///  ha ------- ga ========== far ========== gc -------- hc
///  10.1.0.2   |             1300             | 10.3.0.1  10.3.0.2
///             ==== near ==== gb ------------ hb
///     192.0.2.1     192.0.2.2   10.2.0.1       10.2.0.2
/// ```
///
/// B tells A so through `near`, about what A sends through `far`, and A tells its host.
#[test]
fn the_path_behind_the_outer_tunnel_is_told_through_it() {
    let topology = Topology::new(1);
    let hc = Namespace::new();
    hc.ip(&format!("link add eth0 type veth peer name in1 netns {}", topology.namespace("hb")));
    for line in ["address add 10.3.0.2/24 dev eth0", "link set eth0 up", "route add default via 10.3.0.1"] {
        hc.ip(line);
    }
    hc.run("ethtool", &["-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "gro", "off"]);
    for line in [
        "ethtool -K in1 tx off tso off gso off gro off",
        "ip address add 10.3.0.1/24 dev in1",
        "ip link set dev in1 up",
        "ip link set dev eth0 mtu 1300",
    ] {
        topology.inside("hb", line);
    }
    topology.inside("gb", "ip link set dev in0 mtu 1300");

    let (a, b, c) = ("192.0.2.1", "192.0.2.2", "10.2.0.2");
    let after = "fragmentation = \"after\"";
    let at_a = [
        engine(&topology, "ga", 0, "in0", "out0"),
        tunnel("near", [a, b], [2, 1], ""),
        tunnel("far", [a, c], [4, 3], &format!("through = \"near\"\n{after}")),
        policy("far", "10.1.0.0/24", "10.3.0.0/24"),
    ];
    let at_b = [
        engine(&topology, "gb", 1, "in0", "out0"),
        tunnel("near", [b, a], [1, 2], ""),
        policy("near", "10.2.0.0/24", "192.0.2.1"),
    ];
    let at_c = [
        engine(&topology, "gc", 0, "in1", "eth0"),
        tunnel("far", [c, a], [3, 4], after),
        policy("far", "10.3.0.0/24", "10.1.0.0/24"),
    ];
    let wire = Listener::start(&topology, "left");
    let mut a = Gateway::new(&topology, "ga", "ga", &at_a.concat());
    let mut b = Gateway::new(&topology, "gb", "gb", &at_b.concat());
    let mut c = Gateway::new(&topology, "hb", "gc", &at_c.concat());
    [&mut a, &mut b, &mut c].into_iter().for_each(Gateway::restart);
    let path_mtu = |tunnel: &str| {
        let shown = a.json(&["sa", "show", tunnel]);
        let outbound = shown.as_array().unwrap().iter().find(|sa| sa["direction"] == "out");
        outbound.unwrap_or_else(|| panic!("no outbound SA in {shown}"))["path_mtu"].clone()
    };
    let ping = |more: &str| topology.attempt("ha", &format!("ping -c 1 -W 2 {more} 10.3.0.2"));
    assert!(ping("").status.success(), "{}\n{}\n{}", a.explain(), b.explain(), c.explain());

    // 1446 through `near`; 20, 8, 8 and 16 of `far` leave 1394, whose trailer ends at a multiple of 4.
    assert!(!ping("-M do -s 1362").status.success(), "1390 bytes, and gateway B refuses what they become");
    assert_eq!((path_mtu("far"), path_mtu("near")), (1_300.into(), Value::Null));
    let refused = ping("-M do -s 1362");
    let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(said.contains("mtu = 1246") || said.contains("mtu=1246"), "{said}");
    assert!(ping("-M do -s 1218").status.success());
    // What may be fragmented is sealed whole, and fragmented for that path: B passes the fragments on to C.
    topology.inside("ha", "ip route flush cache");
    assert!(ping("-M dont -s 1400").status.success(), "{}\n{}", b.explain(), c.explain());

    let [at_a, at_b, at_c] = [&a, &b, &c].map(Gateway::assert_conservation);
    // Three echoes there and back, one of them in two fragments each way; one more that was refused, and the error about it.
    assert_eq!([at_a.sealed, at_b.opened, at_c.opened], [4 + 5, 4, 3], "{}", a.explain());
    assert_eq!([at_c.sealed, at_b.sealed, at_a.opened], [3, 4 + 1, 4 + 3], "{}", c.explain());
    assert_eq!([at_a, at_c].map(|totals| totals.absorbed), [1, 1]);
    assert_eq!((a.dropped("icmp_noted"), a.dropped("too_big"), at_a.dropped), (1, 1, 2), "{}", a.explain());
    assert_eq!((b.dropped("too_big"), at_b.dropped, at_c.dropped), (1, 1, 0), "{}", b.explain());
    wire.stop().assert_no_clear_text(|_, _| false);
}
