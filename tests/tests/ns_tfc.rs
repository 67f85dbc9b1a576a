//! Traffic-flow confidentiality between two real gateways (the topology is drawn in `scripts/topology`): on the wire all
//! packets look alike, tshark opens every one of them, and dummies are counted by who sends and by who drops them.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use adit_tests::gateway::{Gateway, SPI_AB, SPI_BA, Setup};
use adit_tests::process::{Running, eventually};
use adit_tests::topology::Topology;
use adit_tests::tshark;
use adit_tests::wire::{Kind, Listener};

const NO_NEXT_HEADER: u8 = 59;

#[test]
fn all_packets_look_alike_and_dummies_are_counted_at_both_ends() {
    let topology = Topology::new(1);
    let mut setup = Setup::new("aes-256-cbc", "sha256");
    let wire = Listener::start(&topology, "left");
    let (a, b) = Gateway::pair(&topology, &setup);
    // Both are there before either sends by itself; and in the end none does, so that the books can be closed. The SAs
    // stay what they are.
    let mut reload = |tunnel: &str| {
        setup.tunnel = tunnel.into();
        for (gateway, name) in [(&a, "ga"), (&b, "gb")] {
            gateway.configure(&setup.configuration(&topology, name));
            assert_eq!(gateway.json(&["reload"])["kept"], 2);
        }
    };
    reload("tfc-padding = \"mtu\"\ndummy-rate = 100\ndummy-when = \"always\"\n");
    for target in ["10.2.0.2", "2001:db8:2::2"] {
        for size in [0, 100, 1_300] {
            topology.inside("ha", &format!("ping -c 3 -i 0.1 -W 2 -s {size} {target}"));
        }
    }
    let server = Running::start(topology.command("hb", "iperf3").arg("-s").stdout(Stdio::null()));
    for reverse in ["", "-R"] {
        eventually("TCP", Duration::from_secs(30), || {
            topology.attempt("ha", &format!("iperf3 -c 10.2.0.2 -n 300K {reverse}")).status.success()
        });
    }
    drop(server);
    reload("tfc-padding = \"mtu\"");
    let both = [a.assert_conservation(), b.assert_conservation()];
    let lost = topology.loss_everywhere() + a.lost_at_sockets() + b.lost_at_sockets();
    let heard = wire.stop();
    heard.assert_no_clear_text(|_, _| false);
    heard.assert_sequence_numbers_unique();
    let sealed = heard.frames.iter().filter(|(kind, _)| *kind != Kind::Link);
    let lengths: BTreeSet<_> = sealed.map(|(_, frame)| frame.len()).collect();
    assert_eq!(lengths.len(), 1, "all of one length: {lengths:?}");

    let sas = [SPI_AB, SPI_BA].into_iter().zip(&setup.keys);
    let sas: Vec<_> = sas.map(|(spi, (encryption, auth))| (spi, &**encryption, &**auth)).collect();
    let opened = tshark::open(&heard.capture, &sas);
    assert!(opened.iter().all(|packet| packet.icvs == [true]), "tshark finds every ICV right");
    for ([here, there], (gateway, spi)) in [(both, (&b, SPI_AB)), ([both[1], both[0]], (&a, SPI_BA))] {
        let of = |is_meant: fn(u8) -> bool| {
            let sent = opened.iter().filter(|packet| packet.spis == [spi]);
            sent.filter(|packet| is_meant(packet.next_headers[0])).count() as u64
        };
        let dummies = of(|next_header| next_header == NO_NEXT_HEADER);
        let real = of(|next_header| matches!(next_header, 4 | 41));
        assert!(dummies > 20 && real > 20, "{dummies} {real}");
        // Only frames that a queue of the kernel's lost, on a machine too busy to serve it, are excused.
        if lost == 0 {
            assert_eq!((here.originated, here.sealed), (dummies, dummies + real));
            assert_eq!((gateway.dropped("dummy"), there.dropped, there.opened), (dummies, dummies, real));
        }
    }
}
