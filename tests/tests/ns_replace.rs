//! Both gateways replace all their SAs every second while UDP and TCP flow both ways: nothing is lost, nothing is
//! dropped, and no SA sends after another one took over from it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use adit_tests::gateway::{Gateway, SPI_AB, SPI_BA, Setup};
use adit_tests::process::{Running, eventually, settles};
use adit_tests::topology::Topology;
use adit_tests::traffic::{Sink, Source};
use adit_tests::wire::{Kind, Listener};

const ROUNDS: u32 = 20;
const PER_SECOND: u64 = 1500;

/// A new key of aes-128-gcm in a file that only root reads.
fn key_file(topology: &Topology, gateway: &Gateway<'_>, name: &str) -> String {
    let path = topology.directory().join(name);
    let path = path.to_str().expect("a path of ours").to_owned();
    gateway.adit(&["key", "generate", "--encryption", "aes-128-gcm", "--out", &path]);
    path
}

/// One way from `sender` to `receiver`: the receiver is ready first, then the sender goes over.
struct Way<'t> {
    sender: &'t Gateway<'t>,
    receiver: &'t Gateway<'t>,
    spi: String,
    key: String,
}

impl Way<'_> {
    fn expect(&self) {
        let keys =
            ["--inbound-spi", &self.spi, "--inbound-key-file", &self.key, "--fresh-keys", "--grace", "1"];
        self.receiver.adit(&[&["sa", "replace", "sites"][..], &keys].concat());
    }

    fn switch(&self) {
        let keys = ["--outbound-spi", &self.spi, "--outbound-key-file", &self.key, "--fresh-keys"];
        let said = self.sender.adit(&[&["sa", "replace", "sites"][..], &keys].concat());
        assert!(said.contains("the removed keys are wiped"), "{said}");
    }
}

#[test]
fn nothing_is_lost_when_both_gateways_replace_their_sas_every_second() {
    let topology = Topology::new(1);
    let left = Listener::start(&topology, "left");
    let (a, b) = Gateway::pair(&topology, &Setup::new("aes-128-gcm", "none"));
    topology.inside("ha", "ping -c 2 -i 0.2 -W 2 10.2.0.2");
    let monitored = topology.directory().join("events");
    let monitor = Running::start(
        topology
            .command("ga", adit_tests::process::program("adit"))
            .arg("--socket")
            .arg(topology.directory().join("ga.sock"))
            .arg("monitor")
            .stdout(std::fs::File::create(&monitored).unwrap()),
    );
    let told = |event: &str| {
        let text = std::fs::read_to_string(&monitored).unwrap();
        text.lines().filter(|line| line.starts_with(event)).count()
    };
    eventually("the monitor listens", Duration::from_secs(5), || told("listening") == 1);

    let server =
        Running::start(topology.command("hb", "iperf3").arg("-s").stdout(std::process::Stdio::null()));
    let before = (a.assert_conservation(), b.assert_conservation());
    let lost_ever = || topology.loss_everywhere() + a.lost_at_sockets() + b.lost_at_sockets();
    let lost_before = lost_ever();
    let (at_a, at_b) = (Sink::start(&topology, "ha", 7000), Sink::start(&topology, "hb", 7000));
    let limit = PER_SECOND * u64::from(ROUNDS + 1);
    let sources = [
        Source::start(&topology, "ha", "10.2.0.2:7000", 200, PER_SECOND, limit),
        Source::start(&topology, "hb", "10.1.0.2:7000", 900, PER_SECOND, limit),
        Source::start(&topology, "ha", "[2001:db8:2::2]:7000", 64, PER_SECOND, limit),
    ];
    let tcp = Running::start(
        topology
            .command("ha", "iperf3")
            .args(["-c", "10.2.0.2", "-b", "4M", "-t", "18"])
            .stdout(std::process::Stdio::null()),
    );
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let spi = |first: u32| format!("{:#x}", first + 1 + round);
        let ways = [("ab", &a, &b, SPI_AB), ("ba", &b, &a, SPI_BA)].map(|(name, sender, receiver, first)| {
            let key = key_file(&topology, sender, &format!("{name}{round}"));
            Way { sender, receiver, spi: spi(first), key }
        });
        ways.iter().for_each(Way::expect);
        ways.iter().for_each(Way::switch);
        // At least: rounds that made up for a late one would leave more SAs behind than may wait for their grace.
        std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
    }
    let sent = sources.map(Source::finish);
    let mut tcp = tcp;
    assert!(tcp.wait_for_end(Duration::from_secs(30)).success(), "TCP lives through all of them");

    // Every datagram arrived, but for what the kernel's own queues had no room for, which it counts.
    let lost = || lost_ever() - lost_before;
    let arrived = || at_a.received() + at_b.received();
    let accounted = || arrived() + lost() == sent.iter().sum::<u64>();
    let accounted = settles(Duration::from_secs(10), accounted);
    let figures = format!("sent {sent:?}, arrived {}, lost in queues {}", arrived(), lost());
    assert!(accounted, "{figures}\n{}\n{}", a.explain(), b.explain());
    for gateway in [&a, &b] {
        assert_eq!(gateway.totals().dropped, 0, "{figures}\n{}", gateway.explain());
    }
    assert_eq!(at_a.duplicated() + at_b.duplicated(), 0);
    drop(server);

    // The old ones go by themselves.
    eventually("one SA each way is left", Duration::from_secs(10), || {
        [&a, &b].iter().all(|gateway| gateway.json(&["sa", "list"]).as_array().unwrap().len() == 2)
    });
    let after = (a.assert_conservation(), b.assert_conservation());
    assert_eq!((told("sa_replaced sites in"), told("sa_replaced sites out")), (20, 20));
    eventually("all are retired", Duration::from_secs(5), || told("sa_retired sites in") == 20);
    drop(monitor);

    // Each SA of A sent, in a row: none after the next one began, none with a number twice.
    let heard = left.stop();
    heard.assert_no_clear_text(|_, _| false);
    heard.assert_sequence_numbers_unique();
    let mut packets: BTreeMap<u32, u64> = BTreeMap::new();
    let mut latest = SPI_AB;
    for (kind, _) in &heard.frames {
        if let Kind::Esp { spi, .. } = *kind
            && (SPI_AB..=SPI_AB + ROUNDS).contains(&spi)
        {
            assert!(spi >= latest, "{spi:#x} after {latest:#x}");
            latest = spi;
            *packets.entry(spi).or_default() += 1;
        }
    }
    assert_eq!(packets.len(), ROUNDS as usize + 1);
    let overflow = topology.loss("ga", "out0").transmit;
    assert_eq!(packets.values().sum::<u64>() + overflow, after.0.sealed);
    assert!(after.0.sealed > before.0.sealed + 2 * limit && after.1.opened > before.1.opened);
}
