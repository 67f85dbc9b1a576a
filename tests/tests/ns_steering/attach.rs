//! Real traffic through a forwarding kernel while steering comes, dies, returns and goes.
//!
//! ```text
//! h (10.1.0.2) -- h0 | in0 (10.1.0.1) g out0 (192.0.2.1) | o0 -- o (192.0.2.2, 10.2.0.9, 198.51.100.9)
//! ```
//!
//! Without an engine, so what is covered must go nowhere, and the rest must not notice.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use adit_engine::io::steering::{
    self, AttachMode, AttachedPort, CoverPrefix, Outcome, PortSpec, Steering, SteeringConfig, SteeringError,
    SteeringTables, XdpMode,
};
use adit_engine::policy::cover::Prefix;
use adit_engine::route::Side;
use adit_tests::process::{Running, eventually, run};
use rustix::process::Signal;

use super::sandbox::{Sandbox, xdp_socket};

const COVERED: &str = "10.2.0.9:7000";
const CLEAR: &str = "198.51.100.9:7000";

fn site() -> Sandbox {
    let sandbox = Sandbox::new(&["h", "g", "o"]);
    link_inside(&sandbox, "");
    sandbox.ip("g", "link add out0 type veth peer name o0 netns %o");
    sandbox.ip("g", "addr add 192.0.2.1/24 dev out0");
    sandbox.ip("g", "link set out0 up");
    sandbox.ip("o", "addr add 192.0.2.2/24 dev o0");
    for address in ["10.2.0.9/32", "198.51.100.9/32"] {
        sandbox.ip("o", &format!("addr add {address} dev lo"));
    }
    sandbox.ip("o", "link set o0 up");
    sandbox.ip("o", "route add 10.1.0.0/16 via 192.0.2.1");
    sandbox.ip("g", "route add default via 192.0.2.2");
    sandbox.inside("g", || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    sandbox
}

/// The link between host and gateway; `more` may ask for an index.
fn link_inside(sandbox: &Sandbox, more: &str) {
    sandbox.ip("g", &format!("link add in0 {more} type veth peer name h0 netns %h"));
    sandbox.ip("g", "addr add 10.1.0.1/24 dev in0");
    sandbox.ip("g", "link set in0 up");
    sandbox.ip("h", "addr add 10.1.0.2/24 dev h0");
    sandbox.ip("h", "link set h0 up");
    sandbox.ip("h", "route add default via 10.1.0.1");
}

/// Datagrams under the cover and outside it, side by side, from the host or from the gateway itself.
struct Traffic {
    sent: Arc<AtomicU64>,
    covered: Arc<AtomicU64>,
    clear: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Traffic {
    fn start(sandbox: &Sandbox, from: &str) -> Self {
        let mut this = Self {
            sent: Arc::default(),
            covered: Arc::default(),
            clear: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let receive = |to: &str, counter: &Arc<AtomicU64>| {
            let socket = sandbox.inside("o", || UdpSocket::bind(to).unwrap());
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let (counter, stop) = (counter.clone(), this.stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if socket.recv(&mut [0; 16]).is_ok() {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        };
        let receivers = [receive(COVERED, &this.covered), receive(CLEAR, &this.clear)];
        let socket = sandbox.inside(from, || UdpSocket::bind("0.0.0.0:0").unwrap());
        let (sent, stop) = (this.sent.clone(), this.stop.clone());
        let sender = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // A route or link that is missing for a moment is part of these tests.
                let _ = socket.send_to(b"secret", COVERED);
                if socket.send_to(b"weather", CLEAR).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        this.threads = receivers.into_iter().chain([sender]).collect();
        this
    }

    fn count(&self) -> (u64, u64) {
        (self.covered.load(Ordering::Relaxed), self.clear.load(Ordering::Relaxed))
    }

    /// Waits until `more` datagrams outside the cover arrived; returns how many under it did meanwhile.
    fn covered_meanwhile(&self, more: u64) -> u64 {
        let (covered, clear) = self.count();
        eventually("uncovered traffic passes", Duration::from_secs(10), || self.count().1 >= clear + more);
        self.count().0 - covered
    }

    /// What is on its way arrives.
    fn settle(&self) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn cover(remote: &[([u8; 4], u8)]) -> SteeringTables {
    let entry = |(network, length): &([u8; 4], u8)| {
        let prefix = Prefix { network: (*network).into(), length: *length };
        CoverPrefix { prefix, protect: true, discard: false, bypass: false }
    };
    SteeringTables {
        local: vec![entry(&([10, 1, 0, 0], 16))],
        remote: remote.iter().map(entry).collect(),
        ..Default::default()
    }
}

fn port(sandbox: &Sandbox, name: &str) -> PortSpec {
    let side = if name == "in0" { Side::Protected } else { Side::Unprotected };
    PortSpec { name: name.into(), ifindex: sandbox.ifindex("g", name), side, vlans: Vec::new() }
}

/// Opens, loads and fills; attaches nothing.
fn prepare(sandbox: &Sandbox, config: &SteeringConfig, ports: &[PortSpec]) -> Steering {
    sandbox.inside("g", || {
        let mut steering = Steering::open(config).unwrap();
        for port in ports {
            steering.load(port).unwrap();
        }
        steering.set_cover(&cover(&[([10, 2, 0, 0], 16)])).unwrap();
        steering.set_own_addresses(&["10.1.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()]).unwrap();
        steering
    })
}

fn switch(
    sandbox: &Sandbox,
    steering: &mut Steering,
    port: &PortSpec,
    mode: AttachMode,
) -> Result<AttachedPort, SteeringError> {
    sandbox.inside("g", || steering.switch(port.ifindex, mode))
}

/// Mode (1 native, 2 skb) and program id that iproute2 sees on an interface.
fn seen_by_ip(sandbox: &Sandbox, interface: &str) -> Option<(u64, u64)> {
    let namespace = sandbox.namespace("g");
    let output = run(Command::new("ip").args(["-n", &namespace, "-j", "link", "show", "dev", interface]));
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let xdp = links[0].get("xdp")?;
    Some((xdp["mode"].as_u64()?, xdp["prog"]["id"].as_u64()?))
}

/// A process with everything attached, and the lines it printed.
fn loader(sandbox: &Sandbox, mode: &str) -> (Running, Vec<String>) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &sandbox.namespace("g"), env!("CARGO_BIN_EXE_steer-loader")]);
    command.arg(sandbox.bpffs()).args(["test", mode]);
    for (name, side) in [("in0", "protected"), ("out0", "unprotected")] {
        command.arg(format!("{name}:{}:{side}", sandbox.ifindex("g", name)));
    }
    command.stdout(Stdio::piped()).stdin(Stdio::null());
    let mut running = Running::start(&mut command);
    let output = BufReader::new(running.0.stdout.take().unwrap());
    let lines: Vec<String> = output.lines().map(Result::unwrap).take_while(|line| line != "ready").collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    (running, lines)
}

fn processes_come_and_go(mode: &str, seen: u64) {
    let sandbox = site();
    let traffic = Traffic::start(&sandbox, "h");
    assert!(traffic.covered_meanwhile(20) > 0, "before steering the kernel forwards everything");

    let (mut process, lines) = loader(&sandbox, mode);
    assert_eq!(lines, [format!("in0 {mode} new"), format!("out0 {mode} new")]);
    traffic.settle();
    let (covered, _) = traffic.count();
    let (sent, clear) = (traffic.sent.load(Ordering::Relaxed), traffic.count().1);
    let (first_mode, first_program) = seen_by_ip(&sandbox, "in0").unwrap();
    assert_eq!(first_mode, seen);

    let mut programs = vec![first_program];
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        process.signal(signal);
        process.wait_for_end(Duration::from_secs(5));
        traffic.covered_meanwhile(100);
        let (next, lines) = loader(&sandbox, mode);
        process = next;
        assert_eq!(lines, [format!("in0 {mode} taken-over"), format!("out0 {mode} taken-over")]);
        let (mode_now, program) = seen_by_ip(&sandbox, "in0").unwrap();
        assert_eq!(mode_now, seen);
        assert!(!programs.contains(&program), "the new process's program is in place");
        programs.push(program);
        traffic.covered_meanwhile(100);
    }
    assert_eq!(traffic.count().0, covered, "nothing under the cover passed, over three deaths and restarts");
    let sent = traffic.sent.load(Ordering::Relaxed) - sent;
    eventually("all but two at the edges arrive outside the cover", Duration::from_secs(5), || {
        traffic.count().1 - clear + 2 >= sent
    });

    // Another process with the same name is refused; so is opening under a living one.
    assert!(matches!(Steering::open(&sandbox.config()), Err(SteeringError::InUse(_))));
    assert!(matches!(steering::detach(&sandbox.bpffs(), "test"), Err(SteeringError::InUse(_))));
    process.signal(Signal::KILL);
    process.wait_for_end(Duration::from_secs(5));
    assert_eq!(traffic.covered_meanwhile(50), 0);

    assert_eq!(steering::detach(&sandbox.bpffs(), "test").unwrap(), 4, "two on XDP, two guards");
    assert!(traffic.covered_meanwhile(50) > 0, "detached is open");
    assert_eq!(seen_by_ip(&sandbox, "in0"), None);
    assert_eq!(std::fs::read_dir(sandbox.bpffs().join("adit")).unwrap().count(), 0, "no pin is left");
    assert_eq!(steering::detach(&sandbox.bpffs(), "test").unwrap(), 0);
}

#[test]
fn native_hooks_outlive_processes_and_only_detach_opens() {
    processes_come_and_go("native", 1);
}

#[test]
fn skb_hooks_outlive_processes_and_only_detach_opens() {
    processes_come_and_go("skb", 2);
}

#[test]
fn the_guard_alone_holds_back_the_kernels_own_and_forwarded_traffic() {
    let sandbox = site();
    let ports = [port(&sandbox, "out0")];
    let mut steering = prepare(&sandbox, &sandbox.config(), &ports);
    for from in ["g", "h"] {
        let traffic = Traffic::start(&sandbox, from);
        if from == "g" {
            assert!(traffic.covered_meanwhile(20) > 0);
            switch(&sandbox, &mut steering, &ports[0], AttachMode::Auto).unwrap();
            traffic.settle();
        }
        assert_eq!(traffic.covered_meanwhile(100), 0, "from {from}");
    }
    let counters = steering.counters(ports[0].ifindex).unwrap();
    let of = |outcome| counters.iter().find(|(name, _)| *name == outcome).unwrap().1;
    assert!(of(Outcome::GuardDropClearText) >= 150 && of(Outcome::GuardPass) >= 150, "{counters:?}");
}

/// The outside interface is not steered: in clear, what a peer should have sent protected comes to the kernel, which
/// forwards it.
#[test]
fn the_guard_inside_alone_holds_back_what_the_kernel_forwards_from_outside() {
    let sandbox = site();
    let inside = port(&sandbox, "in0");
    let mut steering = prepare(&sandbox, &sandbox.config(), std::slice::from_ref(&inside));
    let host = sandbox.inside("h", || UdpSocket::bind("10.1.0.2:7000").unwrap());
    host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (behind, elsewhere) =
        sandbox.inside("o", || (UdpSocket::bind(COVERED).unwrap(), UdpSocket::bind(CLEAR).unwrap()));
    // What is received between the first and the last of a round, which are outside the cover.
    let covered = || {
        elsewhere.send_to(b"first", "10.1.0.2:7000").unwrap();
        for _ in 0..20 {
            behind.send_to(b"secret", "10.1.0.2:7000").unwrap();
        }
        elsewhere.send_to(b"last", "10.1.0.2:7000").unwrap();
        let mut buffer = [0; 16];
        let mut next = || {
            let length = host.recv(&mut buffer).expect("uncovered traffic passes");
            buffer[..length].to_vec()
        };
        assert_eq!(next(), b"first");
        std::iter::from_fn(|| Some(next()).filter(|datagram| datagram != b"last")).count()
    };
    assert_eq!(covered(), 20, "before steering the kernel forwards everything");
    switch(&sandbox, &mut steering, &inside, AttachMode::Auto).unwrap();
    assert_eq!(covered(), 0);
    let dropped = |steering: &Steering| {
        steering.counters(inside.ifindex).unwrap()[Outcome::GuardDropClearText as usize].1
    };
    assert_eq!(dropped(&steering), 20);
    // The gateway itself still speaks with the host, also where a policy means everything.
    let everything = Prefix { network: [0, 0, 0, 0].into(), length: 0 };
    let mut tables = cover(&[]);
    tables.remote.push(CoverPrefix { prefix: everything, protect: true, discard: false, bypass: false });
    steering.set_cover(&tables).unwrap();
    let gateway = sandbox.inside("g", || UdpSocket::bind("10.1.0.1:0").unwrap());
    gateway.send_to(b"answer", "10.1.0.2:7000").unwrap();
    assert_eq!(host.recv(&mut [0; 16]).unwrap(), 6);
    elsewhere.send_to(b"not", "10.1.0.2:7000").unwrap();
    eventually("everything is held", Duration::from_secs(5), || dropped(&steering) == 21);
    steering.detach().unwrap();
    assert_eq!(covered(), 20);
}

#[test]
fn covers_change_under_traffic_without_a_hole() {
    let sandbox = site();
    // The guard would hide a hole in the inside hook.
    let ports = [port(&sandbox, "in0")];
    let mut steering = prepare(&sandbox, &sandbox.config(), &ports);
    switch(&sandbox, &mut steering, &ports[0], AttachMode::Auto).unwrap();
    let traffic = Traffic::start(&sandbox, "h");
    traffic.covered_meanwhile(20);
    let before = traffic.count().0;
    // Every one of them holds 10.2.0.9, and none shares a prefix with the next.
    let covers = [
        cover(&[([10, 2, 0, 0], 16)]),
        cover(&[([10, 0, 0, 0], 8)]),
        cover(&[([10, 2, 0, 9], 32), ([10, 3, 0, 0], 16)]),
    ];
    let clear = traffic.count().1;
    let mut changes = 0;
    while traffic.count().1 < clear + 500 {
        for tables in &covers {
            steering.set_cover(tables).unwrap();
            changes += 1;
        }
    }
    assert!(changes > 500, "{changes}");
    assert_eq!(traffic.count().0, before, "over {changes} changes");
    // And when none holds it any more, it passes.
    steering.set_cover(&cover(&[([10, 3, 0, 0], 16)])).unwrap();
    assert!(traffic.covered_meanwhile(20) > 0);
}

#[test]
fn an_interface_that_returns_is_closed_again() {
    let sandbox = site();
    let config = sandbox.config();
    let (inside, outside) = (port(&sandbox, "in0"), port(&sandbox, "out0"));
    let mut steering = prepare(&sandbox, &config, &[inside.clone(), outside.clone()]);
    for port in [&inside, &outside] {
        assert!(!switch(&sandbox, &mut steering, port, AttachMode::Auto).unwrap().taken_over);
    }
    let pin = |port: &PortSpec| sandbox.bpffs().join(format!("adit/test/links/{}-xdp", port.ifindex));
    let traffic = Traffic::start(&sandbox, "h");
    assert_eq!(traffic.covered_meanwhile(20), 0);

    // While the process lives. With the same index, so that the pin of the dead link is in the way.
    for more in [format!("index {}", inside.ifindex), "index 4321".to_string()] {
        let old = port(&sandbox, "in0");
        sandbox.ip("g", "link del in0");
        link_inside(&sandbox, &more);
        assert_eq!(traffic.covered_meanwhile(50), 0, "the guard holds while the inside hook is gone");
        let new = port(&sandbox, "in0");
        if new.ifindex != old.ifindex {
            steering.forget(old.ifindex).unwrap();
            assert!(!pin(&old).exists());
        }
        sandbox.inside("g", || steering.load(&new)).unwrap();
        let attached = switch(&sandbox, &mut steering, &new, AttachMode::Auto).unwrap();
        assert!(!attached.taken_over);
        assert!(pin(&new).exists() && seen_by_ip(&sandbox, "in0").is_some());
        traffic.covered_meanwhile(50);
        assert!(sandbox.bpffs().join(format!("adit/test/links/{}-guard", new.ifindex)).exists());
        let counters = steering.counters(new.ifindex).unwrap();
        assert!(counters[Outcome::DropNoSocket as usize].1 >= 40, "{counters:?}");
    }

    // While it does not.
    drop(steering);
    let old = port(&sandbox, "in0");
    sandbox.ip("g", "link del in0");
    link_inside(&sandbox, "index 5432");
    assert_eq!(traffic.covered_meanwhile(50), 0);
    let new = port(&sandbox, "in0");
    let mut steering = prepare(&sandbox, &config, &[new.clone(), outside.clone()]);
    assert!(!pin(&old).exists(), "opening removes dead pins");
    assert!(!switch(&sandbox, &mut steering, &new, AttachMode::Auto).unwrap().taken_over);
    assert!(switch(&sandbox, &mut steering, &outside, AttachMode::Auto).unwrap().taken_over);
    assert_eq!(traffic.covered_meanwhile(50), 0);
    assert_eq!(steering.detach().unwrap(), 4);
    assert!(traffic.covered_meanwhile(50) > 0);
}

#[test]
fn anothers_program_is_replaced_only_by_force() {
    let sandbox = site();
    let inside = port(&sandbox, "in0");
    let ours = sandbox.config();
    let theirs = SteeringConfig { instance: "other".into(), ..ours.clone() };
    let force = SteeringConfig { force: true, ..ours.clone() };

    // Another's link.
    let mut other = prepare(&sandbox, &theirs, std::slice::from_ref(&inside));
    switch(&sandbox, &mut other, &inside, AttachMode::Native).unwrap();
    let (_, their_program) = seen_by_ip(&sandbox, "in0").unwrap();
    let mut steering = prepare(&sandbox, &ours, std::slice::from_ref(&inside));
    for mode in [AttachMode::Auto, AttachMode::Native, AttachMode::Skb] {
        let refused = switch(&sandbox, &mut steering, &inside, mode);
        assert!(
            matches!(&refused, Err(SteeringError::ForeignProgram(name, id, Some(other))) if name == "in0" && u64::from(*id) == their_program && other == "other"),
            "{refused:?}"
        );
    }
    assert_eq!(seen_by_ip(&sandbox, "in0").unwrap().1, their_program);
    drop(steering);
    let mut steering = prepare(&sandbox, &force, std::slice::from_ref(&inside));
    let attached = switch(&sandbox, &mut steering, &inside, AttachMode::Native).unwrap();
    assert_eq!((attached.mode, attached.taken_over), (XdpMode::Native, false));
    assert_ne!(seen_by_ip(&sandbox, "in0").unwrap().1, their_program);
    steering.detach().unwrap();

    // A program attached by netlink, without a link.
    let object = sandbox.directory().join("foreign.o");
    std::fs::write(&object, adit_xdp_prog::STEER_OBJECT).unwrap();
    sandbox.ip("g", &format!("link set dev in0 xdpgeneric obj {} sec xdp.frags", object.display()));
    let (mode, their_program) = seen_by_ip(&sandbox, "in0").unwrap();
    assert_eq!(mode, 2);
    let mut steering = prepare(&sandbox, &ours, std::slice::from_ref(&inside));
    assert!(matches!(
        switch(&sandbox, &mut steering, &inside, AttachMode::Auto),
        Err(SteeringError::ForeignProgram(_, id, None)) if u64::from(id) == their_program
    ));
    drop(steering);
    let mut steering = prepare(&sandbox, &force, std::slice::from_ref(&inside));
    switch(&sandbox, &mut steering, &inside, AttachMode::Auto).unwrap();
    assert_ne!(seen_by_ip(&sandbox, "in0").unwrap().1, their_program);
}

#[test]
fn what_the_driver_cannot_do_is_done_the_generic_way_and_said() {
    let sandbox = site();
    // A bridge has no XDP of its own.
    sandbox.ip("g", "link add bridge0 type bridge");
    let device = PortSpec { name: "bridge0".into(), ..port(&sandbox, "out0") };
    let device = PortSpec { ifindex: sandbox.ifindex("g", "bridge0"), ..device };
    let mut steering = prepare(&sandbox, &sandbox.config(), std::slice::from_ref(&device));
    let native = switch(&sandbox, &mut steering, &device, AttachMode::Native);
    assert!(matches!(&native, Err(SteeringError::Attach(name, ..)) if name == "bridge0"), "{native:?}");
    let attached = switch(&sandbox, &mut steering, &device, AttachMode::Auto).unwrap();
    assert_eq!(attached.mode, XdpMode::Skb);
    assert!(attached.native_refused.is_some());
    assert_eq!(seen_by_ip(&sandbox, "bridge0").unwrap().0, 2);
    // A link keeps its mode.
    let attached = switch(&sandbox, &mut steering, &device, AttachMode::Native).unwrap();
    assert_eq!((attached.mode, attached.taken_over), (XdpMode::Skb, true));
}

#[test]
fn what_cannot_be_opened_says_why() {
    let sandbox = site();
    let config = sandbox.config();
    let not_bpffs = SteeringConfig { bpffs: sandbox.directory().into(), ..config.clone() };
    let text = Steering::open(&not_bpffs).err().expect("no bpffs").to_string();
    assert!(text.contains("mount -t bpf bpf"), "{text}");
    for instance in ["", "..", "a/b", "a.b", &"x".repeat(65)] {
        let named = SteeringConfig { instance: instance.into(), ..config.clone() };
        assert!(matches!(Steering::open(&named), Err(SteeringError::InstanceName(_))), "{instance:?}");
        assert!(matches!(steering::detach(&config.bpffs, instance), Err(SteeringError::InstanceName(_))));
    }
    let inside = port(&sandbox, "in0");
    let mut steering = prepare(&sandbox, &config, std::slice::from_ref(&inside));
    let absent = PortSpec { ifindex: 99_999, ..inside.clone() };
    assert!(matches!(sandbox.inside("g", || steering.load(&absent)), Err(SteeringError::Query(..))));
    let loopback = PortSpec { ifindex: 1, name: "lo".into(), ..inside.clone() };
    assert!(matches!(sandbox.inside("g", || steering.load(&loopback)), Err(SteeringError::NotEthernet(_))));
    assert!(matches!(steering.switch(99_999, AttachMode::Auto), Err(SteeringError::NotLoaded(99_999))));
    // Not a socket for AF_XDP, and a queue no map has room for.
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(steering.insert_socket(inside.ifindex, 0, udp.as_fd()).is_err());
    let socket = sandbox.inside("g", xdp_socket);
    assert!(steering.insert_socket(inside.ifindex, 1024, socket.as_fd()).is_err());
    steering.insert_socket(inside.ifindex, 1023, socket.as_fd()).unwrap();
}
