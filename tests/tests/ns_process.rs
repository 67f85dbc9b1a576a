//! The daemon's process among others: what it logs and to whom, its end, and what it does without random bytes.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use adit_tests::gateway::{Gateway, Setup};
use adit_tests::process::{Running, eventually, program, without_random_bytes};
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

/// An IV, or the hash that keeps chains short, is random or is not used.
#[test]
fn without_random_bytes_nothing_starts() {
    let topology = Topology::new(1);
    let gateway = ended(&topology, &Setup::new("aes-128-cbc", "sha256"));
    let mut command = daemon(&topology);
    without_random_bytes(&mut command, topology.directory());
    let mut blind = Running::start(command.stderr(Stdio::piped()));
    let status = blind.wait_for_end(Duration::from_secs(20));
    let mut said = String::new();
    blind.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!status.success() && said.contains("random bytes"), "{status}: {said}");
    assert!(!gateway.attempt(&["status"]).status.success());
}
