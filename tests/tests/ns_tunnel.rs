//! Real programs through an ESP tunnel: ping, TCP and UDP between two hosts behind two gateways
//! (the topology is drawn in `scripts/topology`), every frame on the wire judged, every packet accounted for.

use std::time::Duration;

use adit_tests::gateway::{Gateway, SPI_AB, SPI_BA, Setup, Totals};
use adit_tests::packet::unframe;
use adit_tests::process::{Running, eventually, settles};
use adit_tests::topology::Topology;
use adit_tests::traffic::{Sink, Source};
use adit_tests::wire::{Kind, Listener};
use adit_tests::{openssl, scapy};

/// Ping, TCP both ways, counted UDP both ways; then nothing may be unaccounted for.
fn everything_passes(setup: &Setup, queues: u32) {
    let topology = Topology::new(queues);
    let left = Listener::start(&topology, "left");
    let right = Listener::start(&topology, "right");
    let (a, b) = Gateway::pair(&topology, setup);

    for target in ["10.2.0.2", "2001:db8:2::2"] {
        topology.inside("ha", &format!("ping -c 3 -i 0.2 -W 2 {target}"));
        topology.inside("ha", &format!("ping -c 2 -i 0.2 -W 2 -s 1300 {target}"));
    }

    let server =
        Running::start(topology.command("hb", "iperf3").arg("-s").stdout(std::process::Stdio::null()));
    for (family, target) in [("-4", "10.2.0.2"), ("-6", "2001:db8:2::2")] {
        for reverse in ["", "-R"] {
            eventually("TCP", Duration::from_secs(30), || {
                topology
                    .attempt("ha", &format!("iperf3 {family} -c {target} -n 3M {reverse}"))
                    .status
                    .success()
            });
        }
    }
    drop(server);

    // UDP in numbers. The sinks count what hosts received; the gateways must agree with them.
    let before = (a.assert_conservation(), b.assert_conservation());
    let lost_ever = || topology.loss_everywhere() + a.lost_at_sockets() + b.lost_at_sockets();
    let lost_before = lost_ever();
    let (at_a, at_b) = (Sink::start(&topology, "ha", 7000), Sink::start(&topology, "hb", 7000));
    let sources = [
        Source::start(&topology, "ha", "10.2.0.2:7000", 200, 4000, 4000),
        Source::start(&topology, "hb", "10.1.0.2:7000", 1200, 4000, 4000),
        Source::start(&topology, "ha", "[2001:db8:2::2]:7000", 64, 4000, 4000),
    ];
    let sent = sources.map(Source::finish);
    // Every datagram arrived, or was dropped by the engine for a reason, or was lost in a queue of the kernel's that
    // counts it: a machine too busy to serve them overflows queues, and only that is excused.
    let dropped = || (a.totals().dropped - before.0.dropped) + (b.totals().dropped - before.1.dropped);
    let lost = || lost_ever() - lost_before;
    let arrived = || at_a.received() + at_b.received();
    let accounted = || arrived() + dropped() + lost() == sent.iter().sum::<u64>();
    if !settles(Duration::from_secs(10), accounted) {
        let (arrived, dropped, lost) = (arrived(), dropped(), lost());
        panic!(
            "sent {sent:?}, arrived {arrived}, dropped {dropped}, lost {lost}\n{}\n{}",
            a.explain(),
            b.explain()
        );
    }
    for gateway in [&a, &b] {
        let overflows = gateway.dropped("hand_over_full") + gateway.dropped("no_frame");
        assert_eq!(gateway.totals().dropped, overflows, "{}", gateway.explain());
    }
    assert_eq!(at_a.duplicated() + at_b.duplicated(), 0);
    let (after_a, after_b) = (a.assert_conservation(), b.assert_conservation());
    let (left, right) = (left.stop(), right.stop());
    for heard in [&left, &right] {
        heard.assert_no_clear_text(|_, _| false);
        heard.assert_sequence_numbers_unique();
    }
    let wire = [("ga", "out0"), ("gb", "out0"), ("wire", "left"), ("wire", "right")];
    let [out_a, out_b, at_left, at_right] = wire.map(|(name, device)| topology.loss(name, device));
    assert_eq!(left.esp(SPI_AB) + out_a.transmit, after_a.sealed, "ESP on the wire against what A sealed");
    assert_eq!(right.esp(SPI_BA) + out_b.transmit, after_b.sealed, "ESP on the wire against what B sealed");
    let into_a = left.esp(SPI_BA) - at_left.transmit - out_a.receive;
    let into_b = right.esp(SPI_AB) - at_right.transmit - out_b.receive;
    let at_sockets = a.lost_at_sockets() + b.lost_at_sockets();
    // An overflow may have come before or behind the decryption.
    let opened = |gateway: Totals| gateway.opened..=gateway.opened + gateway.dropped + at_sockets;
    assert!(opened(after_a).contains(&into_a), "ESP on the wire {into_a} against what A opened: {after_a:?}");
    assert!(opened(after_b).contains(&into_b), "ESP on the wire {into_b} against what B opened: {after_b:?}");
}

#[test]
fn gcm_on_native_xdp() {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.mode = "native";
    everything_passes(&setup, 1);
}

#[test]
fn cbc_with_esn_on_skb_xdp_in_ipv6() {
    let mut setup = Setup::new("aes-256-cbc", "sha512");
    setup.mode = "skb";
    setup.outer_v6 = true;
    setup.esn = true;
    everything_passes(&setup, 1);
}

/// Two queues, two workers, one SA each way: frames are handed over to the worker that numbers.
#[test]
fn ccm_on_two_queues() {
    let mut setup = Setup::new("aes-128-ccm", "none");
    setup.engine = "cores = [0, 1]".into();
    everything_passes(&setup, 2);
}

/// Both workers number packets of the one SA; the windows are large enough for what that reorders.
#[test]
fn a_shared_sa_on_two_queues() {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.engine = "cores = [0, 1]".into();
    setup.tunnel = "workers = \"shared\"\nreplay-window = 4096".into();
    everything_passes(&setup, 2);
}

/// Hosts with MTU 1500 learn the tunnel's MTU: exactly the largest packet passes, and the next one is answered.
#[test]
fn path_mtu_is_told_exactly() {
    let topology = Topology::new(1);
    let (a, _b) = Gateway::pair(&topology, &Setup::new("aes-128-gcm", "none"));
    // Outside 1500: 20 outer IP, 8 ESP, 8 IV, 16 ICV leave 1448; less pad length and next header, multiple of 4.
    let inside = 1446;
    let largest4 = inside - 28;
    topology.inside("ha", &format!("ping -c 1 -W 2 -M do -s {largest4} 10.2.0.2"));
    let refused = topology.attempt("ha", &format!("ping -c 1 -W 2 -M do -s {} 10.2.0.2", largest4 + 1));
    let said =
        String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains(&format!("mtu = {inside}")) || said.contains(&format!("mtu={inside}")), "{said}");
    let largest6 = inside - 48;
    topology.inside("ha", &format!("ping -c 1 -W 2 -M do -s {largest6} 2001:db8:2::2"));
    let refused = topology.attempt("ha", &format!("ping -c 1 -W 2 -M do -s {} 2001:db8:2::2", largest6 + 1));
    let said =
        String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains(&format!("mtu = {inside}")) || said.contains(&format!("mtu={inside}")), "{said}");
    assert_eq!(a.dropped("too_big"), 2);
    assert_eq!(a.assert_conservation().originated, 2);
}

/// `fragmentation = "after"`, both ways: what is too large is sealed whole, leaves in two fragments, and the peer puts it
/// together, as scapy does, which hands OpenSSL whole packets with the hosts' own inside.
#[test]
fn what_is_sealed_whole_leaves_in_fragments() {
    for outer_v6 in [false, true] {
        let topology = Topology::new(1);
        let mut setup = Setup::new("aes-128-gcm", "none");
        setup.outer_v6 = outer_v6;
        setup.tunnel = "fragmentation = \"after\"".into();
        let wire = Listener::start(&topology, "left");
        let (a, b) = Gateway::pair(&topology, &setup);
        const ECHOES: u64 = 20;
        topology.inside("ha", &format!("ping -c {ECHOES} -i 0.02 -W 2 -M dont -s 1472 10.2.0.2"));
        for gateway in [&a, &b] {
            let Totals { received, originated, transmitted, absorbed, sealed, opened, dropped, .. } =
                gateway.assert_conservation();
            // Each way: a packet from the host and two fragments from the peer; two fragments and a packet out.
            assert_eq!([received, transmitted, originated, absorbed], [3, 3, 1, 1].map(|each| each * ECHOES));
            assert_eq!([sealed, opened, dropped], [ECHOES, ECHOES, 0]);
        }
        let heard = wire.stop();
        let is_fragment = |frame: &[u8]| frame.get(20) == Some(&44) && frame[12..14] == [0x86, 0xdd];
        heard.assert_no_clear_text(|_, frame| is_fragment(frame));
        let packets = heard.frames.iter().filter(|(kind, _)| *kind != Kind::Link);
        let packets: Vec<_> = packets.map(|(_, frame)| unframe(frame).to_vec()).collect();
        assert_eq!(packets.len() as u64, 4 * ECHOES);
        assert!(packets.iter().all(|packet| packet.len() <= 1_500));
        let (whole, header) = (scapy::whole(&packets), if outer_v6 { 40 } else { 20 });
        assert_eq!(whole.len() as u64, 2 * ECHOES);
        for (spi, (key, _)) in [SPI_AB, SPI_BA].into_iter().zip(&setup.keys) {
            let esp: Vec<_> = whole
                .iter()
                .map(|packet| &packet[header..])
                .filter(|esp| esp[..4] == spi.to_be_bytes())
                .collect();
            let byte = |at: usize| u8::from_str_radix(&key[at..at + 2], 16).expect("hex");
            let key: Vec<_> = (0..key.len()).step_by(2).map(byte).collect();
            let opened = openssl::open(&key, &esp);
            assert_eq!(opened.len() as u64, ECHOES);
            assert!(opened.iter().all(|opened| opened.next_header == 4 && opened.payload.len() == 1_500));
        }
    }
}
