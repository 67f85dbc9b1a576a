//! The daemon's process among others: what it logs and to whom, its end, and what it does without random bytes.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use adit_tests::gateway::{Gateway, Setup};
use adit_tests::preload;
use adit_tests::process::{Running, eventually, program};
use adit_tests::topology::Topology;
use rustix::process::Signal;

/// A gateway that has run once, so that its state directory is there, and has ended as it should.
fn ended<'t>(topology: &'t Topology, setup: &Setup) -> Gateway<'t> {
    let mut gateway = Gateway::start(topology, "ga", setup);
    assert_eq!(gateway.end(Signal::TERM).code(), Some(0));
    gateway
}

/// The daemon of [`ended`] again, by hand.
fn daemon(topology: &Topology) -> Command {
    let mut command = topology.command("ga", program("aditd"));
    command.arg("--config").arg(topology.directory().join("ga.toml"));
    command
}

#[test]
fn changes_are_logged_with_who_asked_and_without_keys() {
    let topology = Topology::new(1);
    let setup = Setup::new("aes-128-cbc", "sha256");
    let mut a = Gateway::start(&topology, "ga", &setup);
    a.adit(&["policy", "delete", "sites6"]);
    let refused = a.attempt(&["policy", "delete", "sites6"]);
    assert_eq!(refused.status.code(), Some(2));
    a.adit(&["sa", "delete", "sites"]);
    let log = a.log();
    for said in ["changed uid=0 pid=", "refused, nothing changed uid=0 pid=", "PolicyDelete", "SaDelete"] {
        assert!(log.contains(said), "{said}: {log}");
    }
    assert_eq!(a.end(Signal::TERM).code(), Some(0), "a clean end");
    assert!(!topology.directory().join("ga.sock").exists());
    let log = a.log().to_lowercase();
    for key in setup.keys.iter().flat_map(|(encryption, authentication)| [encryption, authentication]) {
        assert!(!log.contains(&key[..16]), "a key in the log");
    }
}

/// A pipe that is full from the beginning, then read, while the gateway works all along.
#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    let topology = Topology::new(1);
    let gateway = ended(&topology, &Setup::new("aes-128-gcm", "none"));
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    let (mut reader, mut filler) = (std::fs::File::from(reader), std::fs::File::from(writer));
    while filler.write(&[b'.'; 4096]).is_ok() {}
    // The daemon has the blocking kind, as from a service manager.
    let blocking = std::fs::File::options()
        .write(true)
        .open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&filler)))
        .unwrap();
    let mut running = Running::start(daemon(&topology).stderr(blocking));
    eventually("aditd answers", Duration::from_secs(20), || gateway.attempt(&["status"]).status.success());
    // Each of them is a line.
    for _ in 0..50 {
        assert_eq!(gateway.attempt(&["policy", "delete", "nobody"]).status.code(), Some(2));
    }
    let mut said = vec![0; 1 << 20];
    let length = reader.read(&mut said).unwrap();
    assert!(said[..length].iter().all(|byte| *byte == b'.'), "there was no room for a line");
    gateway.adit(&["policy", "delete", "sites6"]);
    running.signal(Signal::TERM);
    assert_eq!(running.wait_for_end(Duration::from_secs(10)).code(), Some(0));
    let length = reader.read(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said[..length]);
    assert!(said.contains("the log was not read: ") && said.contains("changed"), "{said}");
}

/// The wall clock is stepped by a year forward, then by two back: lifetimes count what has passed (CLOCK_BOOTTIME), and
/// only the log's dates are others.
#[test]
fn a_wall_clock_that_is_stepped_ends_no_sa_early_or_late() {
    const YEAR: i64 = 365 * 86_400;
    let topology = Topology::new(1);
    let mut setup = Setup::new("aes-128-cbc", "sha256");
    setup.tunnel = "lifetime-seconds-soft = 2\nlifetime-seconds-hard = 4\n".into();
    let mut gateway = ended(&topology, &setup);
    let step = topology.directory().join("step");
    let stepped = |seconds: i64| std::fs::write(&step, seconds.to_string()).unwrap();
    stepped(0);
    gateway.preload = Some(preload::stepped(topology.directory(), &step));
    let started = Instant::now();
    gateway.restart();
    let lifetime = |gateway: &Gateway| {
        let sas = gateway.json(&["sa", "list"]);
        sas[0]["lifetime"].as_str().unwrap_or_else(|| panic!("no SA in {sas}")).to_owned()
    };
    stepped(YEAR);
    let dated = gateway.log();
    gateway.attempt(&["policy", "delete", "nobody"]);
    std::thread::sleep(Duration::from_millis(1000));
    let age = started.elapsed();
    assert!(age > Duration::from_millis(1700) || lifetime(&gateway) == "good", "{age:?}");
    let year = |line: &str| line[..4].parse::<i64>().unwrap_or_else(|_| panic!("no date: {line}"));
    let (now, then) = (gateway.log()[dated.len()..].to_owned(), dated);
    assert_eq!(year(&now), year(&then) + 1, "the log tells the wall clock's time");
    stepped(-YEAR);
    let mut ended = Duration::ZERO;
    eventually("the SA has ended", Duration::from_secs(20), || {
        ended = started.elapsed();
        lifetime(&gateway) == "over"
    });
    // The hard limit is exact, but for who looks once a second.
    assert!((4.0..8.0).contains(&ended.as_secs_f64()), "{ended:?}");
}

/// An IV, or the hash that keeps chains short, is random or is not used.
#[test]
fn without_random_bytes_nothing_starts() {
    let topology = Topology::new(1);
    let gateway = ended(&topology, &Setup::new("aes-128-cbc", "sha256"));
    let mut command = daemon(&topology);
    command.env("LD_PRELOAD", preload::without_random_bytes(topology.directory()));
    let mut blind = Running::start(command.stderr(Stdio::piped()));
    let status = blind.wait_for_end(Duration::from_secs(20));
    let mut said = String::new();
    blind.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!status.success() && said.contains("random bytes"), "{status}: {said}");
    assert!(!gateway.attempt(&["status"]).status.success());
}
