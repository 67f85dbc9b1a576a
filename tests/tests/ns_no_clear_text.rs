//! Nothing in clear on the wire, whatever happens to the gateway: killed, restarted, reloaded, its links lost.
//! The topology is drawn in `scripts/topology`; both gateways have a default route that points outside, so a
//! kernel left to itself would forward everything in clear (the negative control shows it).

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use adit_tests::gateway::{Gateway, SPI_AB, Setup};
use adit_tests::process::{eventually, repository, run};
use adit_tests::topology::Topology;
use adit_tests::traffic::{Sink, Source};
use adit_tests::wire::{Kind, Listener};
use rustix::process::Signal;

/// A counter-mode key: its numbers go on after a restart.
fn restartable() -> Setup {
    Setup::new("aes-128-gcm", "none")
}

/// Traffic in both directions for as long as it lives, and what the hosts received of it.
struct Traffic {
    sources: [Source; 2],
    sinks: [Sink; 2],
}

impl Traffic {
    fn start(topology: &Topology) -> Self {
        let sinks = [Sink::start(topology, "ha", 7000), Sink::start(topology, "hb", 7000)];
        let sources = [
            Source::start(topology, "hb", "10.1.0.2:7000", 200, 2000, u64::MAX),
            Source::start(topology, "ha", "10.2.0.2:7000", 200, 2000, u64::MAX),
        ];
        Self { sources, sinks }
    }

    /// Waits until both hosts receive (again).
    fn flows(&self) {
        let before = [self.sinks[0].received(), self.sinks[1].received()];
        eventually("traffic flows both ways", Duration::from_secs(10), || {
            (0..2).all(|n| self.sinks[n].received() > before[n] + 100)
        });
    }

    /// Lets it run into whatever is broken for a while.
    fn beats_on(&self) {
        std::thread::sleep(Duration::from_millis(700));
    }

    fn stop(self) {
        for source in self.sources {
            assert!(source.stop() > 0);
        }
        for sink in self.sinks {
            assert_eq!(sink.duplicated(), 0);
        }
    }
}

/// `end` ends A's daemon.
fn ends_closed(end: impl FnOnce(&mut Gateway)) {
    let topology = Topology::new(1);
    let (mut a, b) = Gateway::pair(&topology, &restartable());
    let listener = Listener::start(&topology, "left");
    let traffic = Traffic::start(&topology);
    traffic.flows();
    end(&mut a);
    traffic.beats_on();
    assert!(
        !topology.attempt("ha", "ping -c 1 -W 1 10.2.0.2").status.success(),
        "nothing passes without the engine"
    );
    // Packets of the gateway itself, and to the gateway itself: the hooks know the difference.
    assert!(!topology.attempt("ga", "ping -c 1 -W 1 10.2.0.2").status.success());
    topology.inside("ha", "ping -c 1 -W 1 10.1.0.1");
    a.restart();
    // The peer has seen these numbers: it must be reset, as status says.
    traffic.flows();
    traffic.stop();
    listener.stop().assert_no_clear_text(|_, _| false);
    a.assert_conservation();
    b.assert_conservation();
}

#[test]
fn killed_under_traffic() {
    ends_closed(|a| assert!(!a.end(Signal::KILL).success()));
}

#[test]
fn terminated_and_restarted_under_traffic() {
    ends_closed(|a| assert!(a.end(Signal::TERM).success()));
}

/// A worker comes to a `None` that was to be there.
#[test]
fn a_worker_that_panics_under_traffic() {
    // It is set down there by its registers.
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    ends_closed(|a| {
        let panicked = Instant::now();
        let script = repository().join("tests/peers/panic_in.py");
        run(Command::new("python3").arg(script).args([&a.daemon().0.id().to_string(), "adit-w0"]));
        eventually("aditd has ended", Duration::from_secs(5), || a.has_ended());
        assert!(panicked.elapsed() < Duration::from_secs(2), "{:?}", panicked.elapsed());
        let status = a.daemon().wait_for_end(Duration::ZERO);
        assert_eq!(status.signal(), Some(libc::SIGABRT));
        assert!(a.log().contains("thread 'adit-w0'") && a.log().contains("panicked"), "{}", a.log());
    });
}

/// `ADIT_RELOADS` times, or a hundred.
#[test]
fn reloaded_under_traffic() {
    let reloads =
        std::env::var("ADIT_RELOADS").map_or(100, |text| text.parse().expect("ADIT_RELOADS is a number"));
    let topology = Topology::new(1);
    let setup = restartable();
    let (a, b) = Gateway::pair(&topology, &setup);
    let listener = Listener::start(&topology, "left");
    let traffic = Traffic::start(&topology);
    traffic.flows();
    let before = (a.totals(), b.totals());
    for n in 0..reloads {
        let n = n % 256;
        let mut changed = setup.clone();
        changed.more = format!(
            "[[policy]]\nname = \"extra{n}\"\naction = \"discard\"\nlocal = [\"10.1.0.0/24\"]\nremote = [\"198.51.100.{n}/32\"]\n"
        );
        a.configure(&changed.configuration(&topology, "ga"));
        a.adit(&["reload"]);
        std::thread::sleep(Duration::from_millis(10));
    }
    // A broken file changes nothing, and says what is wrong with it.
    a.configure(&setup.configuration(&topology, "ga").replace("aes-128-gcm", "aes-129-gcm"));
    let refused = a.attempt(&["reload"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("encryption"), "{refused:?}");
    traffic.flows();
    traffic.stop();
    let after = (a.assert_conservation(), b.assert_conservation());
    assert_eq!(after.0.dropped, before.0.dropped, "no packet is lost by a reload: {}", a.adit(&["drops"]));
    assert_eq!(after.1.dropped, before.1.dropped, "no packet is lost by a reload: {}", b.adit(&["drops"]));
    let heard = listener.stop();
    heard.assert_no_clear_text(|_, _| false);
    heard.assert_sequence_numbers_unique();
}

/// The route to the inside network vanishes with its link, and what remains is the default route to the outside.
#[test]
fn inside_link_down() {
    let topology = Topology::new(1);
    let (a, b) = Gateway::pair(&topology, &restartable());
    let listener = Listener::start(&topology, "right");
    let traffic = Traffic::start(&topology);
    traffic.flows();
    topology.inside("gb", "ip link set dev in0 down");
    traffic.beats_on();
    topology.inside("gb", "ip link set dev in0 up");
    topology.inside("gb", "ip -6 address replace 2001:db8:2::1/64 dev in0 nodad");
    traffic.flows();
    traffic.stop();
    listener.stop().assert_no_clear_text(|_, _| false);
    a.assert_conservation();
    b.assert_conservation();
    assert!(b.dropped("no_protected_route") + b.dropped("link_down") > 0, "{}", b.adit(&["drops"]));
}

#[test]
fn inside_interface_deleted_and_recreated() {
    let topology = Topology::new(1);
    let (a, b) = Gateway::pair(&topology, &restartable());
    let listener = Listener::start(&topology, "right");
    let traffic = Traffic::start(&topology);
    traffic.flows();
    topology.inside("gb", "ip link delete dev in0");
    traffic.beats_on();
    for line in [
        format!("ip link add name in0 type veth peer name eth0 netns {}", topology.namespace("hb")),
        "ethtool -K in0 tx off tso off gso off gro off".into(),
        "ip link set dev in0 up".into(),
        "ip address add 10.2.0.1/24 dev in0".into(),
    ] {
        topology.inside("gb", &line);
    }
    for line in [
        "ethtool -K eth0 tx off tso off gso off gro off",
        "ip link set dev eth0 up",
        "ip address add 10.2.0.2/24 dev eth0",
        "ip route add default via 10.2.0.1",
    ] {
        topology.inside("hb", line);
    }
    traffic.flows();
    traffic.stop();
    listener.stop().assert_no_clear_text(|_, _| false);
    a.assert_conservation();
    b.assert_conservation();
}

/// A new interface outside of A, where there is none.
fn make_outside(topology: &Topology) {
    topology.inside(
        "ga",
        &format!("ip link add name out0 type veth peer name left netns {}", topology.namespace("wire")),
    );
    for line in [
        "ethtool -K left tx off tso off gso off gro off",
        "ip link set dev left master br",
        "ip link set dev left up",
    ] {
        topology.inside("wire", line);
    }
    for line in [
        "ethtool -K out0 tx off tso off gso off gro off",
        "ip link set dev out0 up",
        "ip address add 192.0.2.1/24 dev out0",
        "ip route add default via 192.0.2.2",
    ] {
        topology.inside("ga", line);
    }
}

#[test]
fn outside_interface_deleted_and_recreated() {
    let topology = Topology::new(1);
    let (a, b) = Gateway::pair(&topology, &restartable());
    let listener = Listener::start(&topology, "right");
    let traffic = Traffic::start(&topology);
    traffic.flows();
    topology.inside("ga", "ip link delete dev out0");
    traffic.beats_on();
    make_outside(&topology);
    traffic.flows();
    traffic.stop();
    listener.stop().assert_no_clear_text(|_, _| false);
    a.assert_conservation();
    b.assert_conservation();
}

/// B's hooks are open: its kernel forwards to A's inside host in clear.
fn only_a_is_closed(topology: &Topology) -> (Gateway<'_>, Gateway<'_>) {
    let (a, mut b) = Gateway::pair(topology, &restartable());
    b.end(Signal::TERM);
    b.detach();
    (a, b)
}

/// Clear text from behind B to A's inside host, for as long as it lives.
struct Inward {
    sinks: [Sink; 2],
    _sources: [Source; 2],
}

impl Inward {
    fn start(topology: &Topology) -> Self {
        Self {
            sinks: [Sink::start(topology, "ha", 7000), Sink::start(topology, "ha", 7001)],
            _sources: [
                Source::start(topology, "hb", "10.1.0.2:7000", 200, 500, u64::MAX),
                Source::start(topology, "hb", "[2001:db8:1::2]:7001", 200, 500, u64::MAX),
            ],
        }
    }

    /// Nothing arrives, while the gateway itself still speaks with the inside.
    fn is_held(&self, topology: &Topology) {
        std::thread::sleep(Duration::from_millis(700));
        topology.inside("ga", "ping -c 1 -W 2 10.1.0.2");
        topology.inside("ga", "ping -c 1 -W 2 2001:db8:1::2");
        topology.inside("ha", "ping -c 1 -W 2 10.1.0.1");
        for sink in &self.sinks {
            assert_eq!(sink.received(), 0, "clear text reached an inside host");
        }
    }

    /// That it did not was the gateway's doing.
    fn arrives(&self) {
        eventually("the kernel forwards it", Duration::from_secs(10), || {
            self.sinks.iter().all(|sink| sink.received() > 50)
        });
    }
}

/// The engine is dead, and outside there is a new interface that nobody put a program on.
#[test]
fn inward_by_an_outside_interface_without_its_program() {
    let topology = Topology::new(1);
    let (mut a, _b) = only_a_is_closed(&topology);
    a.end(Signal::KILL);
    topology.inside("ga", "ip link delete dev out0");
    make_outside(&topology);
    topology.inside("ga", "ip -6 address add 2001:db8:f::1/64 dev out0 nodad");
    topology.inside("ga", "ping -c 1 -W 2 192.0.2.2");
    topology.inside("ga", "ping -c 1 -W 2 2001:db8:f::2");
    let inward = Inward::start(&topology);
    inward.is_held(&topology);
    a.detach();
    inward.arrives();
}

/// Everything runs, and there is a second way to the outside that the configuration does not name.
#[test]
fn inward_by_an_interface_that_is_not_steered() {
    let topology = Topology::new(1);
    let (mut a, _b) = only_a_is_closed(&topology);
    let gb = topology.namespace("gb");
    for (name, line) in [
        ("ga", format!("ip link add name side0 type veth peer name side0 netns {gb}").as_str()),
        ("ga", "ip link set dev side0 up"),
        ("gb", "ip link set dev side0 up"),
        ("ga", "ip address add 203.0.113.1/30 dev side0"),
        ("gb", "ip address add 203.0.113.2/30 dev side0"),
        ("ga", "ip -6 address add 2001:db8:5::1/64 dev side0 nodad"),
        ("gb", "ip -6 address add 2001:db8:5::2/64 dev side0 nodad"),
        ("gb", "ip route add 10.1.0.0/24 via 203.0.113.1"),
        ("gb", "ip -6 route add 2001:db8:1::/64 via 2001:db8:5::1"),
    ] {
        topology.inside(name, line);
    }
    let inward = Inward::start(&topology);
    inward.is_held(&topology);
    let stats = a.json(&["stats"]);
    let counters = stats["steering"].as_array().unwrap();
    let dropped = counters.iter().find(|counter| counter["name"] == "guard_drop_clear_text").unwrap();
    assert!(dropped["value"].as_u64().unwrap() > 100, "{stats}");
    a.end(Signal::KILL);
    inward.is_held(&topology);
    a.detach();
    inward.arrives();
}

/// What the gateway itself sends to a protected prefix takes the kernel's default route outside: the guard on
/// the egress hook holds it.
#[test]
fn traffic_of_the_gateway_itself() {
    let topology = Topology::new(1);
    let (_a, _b) = Gateway::pair(&topology, &restartable());
    let listener = Listener::start(&topology, "left");
    for target in ["10.2.0.2", "-I 10.1.0.1 10.2.0.2", "2001:db8:2::2", "-I 2001:db8:1::1 2001:db8:2::2"] {
        assert!(
            !topology.attempt("ga", &format!("ping -c 2 -i 0.2 -W 1 {target}")).status.success(),
            "{target}"
        );
    }
    // The peer's own address is not under a policy: IKE and the operator's ssh must pass.
    topology.inside("ga", "ping -c 1 -W 2 192.0.2.2");
    let heard = listener.stop();
    let outer: [std::net::IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
    let between_gateways = |kind: &Kind, _: &[u8]| matches!(kind, Kind::Clear { source: Some(s), destination: Some(d), protocol: 1 } if outer.contains(s) && outer.contains(d));
    heard.assert_no_clear_text(between_gateways);
    assert_eq!(heard.leaks(|_, _| false).count(), 2, "one ping to the peer and its answer");
}

/// A BYPASS policy is forwarded in clear by the engine, and nothing else is.
#[test]
fn bypass_passes_and_only_that() {
    let topology = Topology::new(1);
    let mut setup = restartable();
    setup.policies_first = |local, remote| {
        format!(
            "[[policy]]\nname = \"open\"\naction = \"bypass\"\nlocal = [\"{local}\"]\nremote = [\"{remote}\"]\nprotocol = \"udp\"\nremote-ports = \"7100\"\n\
             [[policy]]\nname = \"shut\"\naction = \"discard\"\nlocal = [\"{local}\"]\nremote = [\"{remote}\"]\nprotocol = \"udp\"\nremote-ports = \"7200\"\n"
        )
    };
    let (a, b) = Gateway::pair(&topology, &setup);
    // B's own policies see these flows from the other side: there, 7100 is the local port.
    let mirrored = setup.configuration(&topology, "gb").replace("remote-ports = \"7", "local-ports = \"7");
    b.configure(&mirrored);
    b.adit(&["reload"]);
    let listener = Listener::start(&topology, "left");
    let (open, shut, protected) = (
        Sink::start(&topology, "hb", 7100),
        Sink::start(&topology, "hb", 7200),
        Sink::start(&topology, "hb", 7000),
    );
    for port in [7100, 7200, 7000] {
        assert_eq!(Source::start(&topology, "ha", &format!("10.2.0.2:{port}"), 100, 1000, 200).finish(), 200);
    }
    eventually("all arrive", Duration::from_secs(5), || {
        open.received() == 200 && protected.received() == 200
    });
    assert_eq!(shut.received(), 0);
    assert_eq!(a.dropped("policy_discard"), 200);
    let heard = listener.stop();
    heard.assert_no_clear_text(|_, frame| frame.get(36..38) == Some(&7100u16.to_be_bytes()));
    assert_eq!(heard.leaks(|_, _| false).count(), 200, "the listed BYPASS, all of it");
    assert_eq!(heard.esp(SPI_AB), 200);
    a.assert_conservation();
    b.assert_conservation();
}

/// The sniffer can fail: after `adit detach`, and only then, the kernel forwards in clear and it is noticed.
#[test]
fn negative_control() {
    let topology = Topology::new(1);
    let (mut a, mut b) = Gateway::pair(&topology, &restartable());
    a.end(Signal::TERM);
    b.end(Signal::TERM);
    let listener = Listener::start(&topology, "left");
    assert!(!topology.attempt("ha", "ping -c 1 -W 1 10.2.0.2").status.success());
    for gateway in [&a, &b] {
        gateway.detach();
    }
    topology.inside("ha", "ping -c 3 -i 0.2 -W 2 10.2.0.2");
    let heard = listener.stop();
    assert_eq!(heard.leaks(|_, _| false).count(), 6, "three echoes and three answers in clear");
    assert!(
        std::panic::catch_unwind(|| heard.assert_no_clear_text(|_, _| false)).is_err(),
        "the judge must say no"
    );
}
