//! kill -9 under traffic with manual AES-GCM keys, again and again: no number is used twice, and the peer receives
//! again. Then the state directory's own accidents: full, damaged, taken.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use adit_tests::gateway::{Gateway, SPI_AB, SPI_BA, Setup};
use adit_tests::numbers::Numbers;
use adit_tests::preload;
use adit_tests::process::{eventually, run};
use adit_tests::topology::Topology;
use adit_tests::traffic::Source;
use rustix::process::Signal;

fn gcm() -> Setup {
    let mut setup = Setup::new("aes-128-gcm", "none");
    setup.esn = true;
    setup
}

/// How often the gateway is killed: `ADIT_KILLS`, or twenty times. scripts/soak-leases asks for a thousand.
fn kills() -> u32 {
    std::env::var("ADIT_KILLS").map_or(20, |text| text.parse().expect("ADIT_KILLS is a number"))
}

/// Streams of datagrams for nobody, as fast as they can be made.
fn flood(topology: &Topology, from: &str, to: &str, streams: u32) -> Vec<Source> {
    let to = format!("{to}:9");
    (0..streams).map(|_| Source::start(topology, from, &to, 64, 1_000_000, u64::MAX)).collect()
}

/// A is killed under full load; B lives all along, and sends to A.
#[test]
fn no_number_is_used_twice_over_many_kills() {
    let topology = Topology::new(1);
    let (mut a, mut b) = Gateway::pair(&topology, &gcm());
    let _from_a = flood(&topology, "ha", "10.2.0.2", 2);
    let _from_b = flood(&topology, "hb", "10.1.0.2", 1);
    let (of_a, of_b) =
        (Numbers::watch(&topology, "left", SPI_AB), Numbers::watch(&topology, "right", SPI_BA));
    let (kills, mut before) = (kills(), 0);
    let (mut launched, mut silent, mut slowest) = (None, Vec::new(), Duration::ZERO);
    for kill in 0..kills {
        let started = Instant::now();
        let mut opened_before = (a.opened(), b.opened());
        eventually("both directions flow", Duration::from_secs(60), || {
            // A daemon that had no core for a second ends by itself; that is a crash like any other.
            for (gateway, numbers, opened) in
                [(&mut a, &of_a, &mut opened_before.0), (&mut b, &of_b, &mut opened_before.1)]
            {
                if gateway.has_ended() {
                    numbers.next_life();
                    gateway.restart();
                    *opened = Some(0);
                    launched = None;
                }
            }
            let flows =
                |gateway: &Gateway, before: Option<u64>| gateway.opened() > before.map(|before| before + 100);
            flows(&a, opened_before.0) && flows(&b, opened_before.1)
        });
        slowest = slowest.max(started.elapsed());
        std::thread::sleep(Duration::from_millis(u64::from(kill * 37 % 400)));
        a.kill();
        let seen = of_a.next_life();
        assert!(seen.packets > before, "A sent in every life");
        before = seen.packets;
        silent.extend(launched.and_then(|launched| Some(seen.began?.duration_since(launched))));
        launched = Some(Instant::now());
        a.restart();
    }
    let (of_a, of_b) = (of_a.stop(), of_b.stop());
    silent.sort();
    let silent = |at: usize| silent.get(at).or(silent.last()).copied().unwrap_or_default();
    println!(
        "{} packets of A in {} lives, {} of B; A's first packet came {:?} after its start (median), at most {:?}; both \
         directions flowed {slowest:?} after it answered, at most",
        of_a.packets,
        of_a.lives,
        of_b.packets,
        silent(kills as usize / 2),
        silent(usize::MAX)
    );
    assert!(of_a.lives >= kills && of_a.packets > 1000 && of_b.packets > 1000, "{of_a:?} {of_b:?}");
    // Generous, for a machine that does other things too.
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
}

/// An orderly end burns nothing, and is refused nothing.
#[test]
fn an_orderly_restart_loses_no_number() {
    let topology = Topology::new(1);
    let (mut a, b) = Gateway::pair(&topology, &gcm());
    let sequences = |gateway: &Gateway| -> HashMap<String, u64> {
        let list = gateway.json(&["sa", "list"]);
        let sas = list.as_array().unwrap().iter();
        sas.map(|sa| (sa["direction"].as_str().unwrap().into(), sa["sequence"].as_u64().unwrap())).collect()
    };
    topology.inside("ha", "ping -c 5 -i 0.1 -W 2 10.2.0.2");
    let before = sequences(&a);
    assert!(before.values().all(|number| *number == 5), "{before:?}");
    a.end(Signal::TERM);
    a.restart();
    assert_eq!(sequences(&a), before);
    topology.inside("ha", "ping -c 5 -i 0.1 -W 2 10.2.0.2");
    assert_eq!(sequences(&b)["in"], 10);
    assert_eq!(a.dropped("replay_floor") + b.dropped("replay_floor"), 0);
}

/// A second daemon in the same state directory, a damaged file, an old one that was put back: nothing starts.
#[test]
fn what_is_taken_damaged_or_old_does_not_start() {
    let topology = Topology::new(1);
    let setup = gcm();
    let (mut a, mut b) = Gateway::pair(&topology, &setup);
    topology.inside("ha", "ping -c 1 -W 2 10.2.0.2");

    // B with A's state directory, while A lives.
    b.end(Signal::TERM);
    let directory = topology.directory().display().to_string();
    let own = setup.configuration(&topology, "gb");
    b.configure(&own.replace("gb-state", "ga-state"));
    assert!(b.refuses_to_start().contains("another aditd uses this state directory"));
    b.configure(&own);

    a.end(Signal::KILL);
    let path = format!("{directory}/ga-state/leases");
    let new = std::fs::read(&path).unwrap();
    let write = |bytes: &[u8]| {
        use std::os::unix::fs::FileExt;
        std::fs::File::options().write(true).open(&path).unwrap().write_all_at(bytes, 0).unwrap();
    };
    let mut damaged = new.clone();
    damaged[4096..].iter_mut().for_each(|byte| *byte ^= 1);
    write(&damaged);
    assert!(a.refuses_to_start().contains("encryption-key"));
    write(&new);
    a.restart();
    a.end(Signal::KILL);
    write(&new);
    let said = a.refuses_to_start();
    assert!(said.contains("damaged or was put back"), "{said}");
    std::fs::remove_dir_all(format!("{directory}/ga-state")).unwrap();
    let said = a.refuses_to_start();
    assert!(said.contains("adit key declare-fresh"), "{said}");
}

/// The state directory on a file system of its own, which is filled up.
#[test]
fn a_full_state_directory_stops_new_keys_and_nothing_else() {
    let topology = Topology::new(1);
    let setup = gcm();
    let state = topology.directory().join("ga-state");
    std::fs::create_dir_all(&state).unwrap();
    let _mount = Mount::new(&state, "size=128k,mode=0700");
    let (a, _b) = Gateway::pair(&topology, &setup);
    topology.inside("ha", "ping -c 2 -i 0.2 -W 2 10.2.0.2");
    let filler = state.join("filler");
    let full = std::fs::write(&filler, vec![1; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    // A new key has no place for its record: refused, and nothing changed.
    let file = topology.directory().join("second.toml");
    let key = "0102030405060708090a0b0c0d0e0f1011121314";
    let tunnel = format!(
        "[[tunnel]]\nname = \"second\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\nencryption = \"aes-128-gcm\"\n\
         [tunnel.outbound]\nspi = 0x7001\nencryption-key = \"hex:{key}\"\n"
    );
    std::fs::write(&file, tunnel).unwrap();
    let add = ["sa", "add", "--fresh-keys", "--file", file.to_str().unwrap()];
    let refused = a.attempt(&add);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("engine.state-dir"), "{said}");
    assert!(said.contains("No space left"), "{said}");
    let warnings = a.json(&["status"])["warnings"].to_string();
    // The keys that have records go on, over more numbers than a lease has: their places are there already.
    let flood = flood(&topology, "ha", "10.2.0.2", 4);
    eventually("more than a lease", Duration::from_secs(60), || a.totals().sealed > (1 << 16) + 1000);
    drop(flood.into_iter().map(Source::stop).collect::<Vec<_>>());
    assert_eq!(a.dropped("lease_exhausted"), 0, "{}", a.explain());
    assert!(warnings.contains("cannot be written") || warnings == "[]", "{warnings}");
    std::fs::remove_file(&filler).unwrap();
    a.adit(&add);
    assert_eq!(a.json(&["status"])["warnings"], serde_json::json!([]));
    a.assert_conservation();
}

/// A disk that refuses to write: SAs use what they have, then stop; and go on when it works again.
#[test]
fn a_disk_that_fails_stops_sas_at_their_ceilings() {
    let topology = Topology::new(1);
    let setup = gcm();
    let state = topology.directory().join("ga-state");
    std::fs::create_dir_all(&state).unwrap();
    let _mount = Mount::new(&state, "size=1m,mode=0700");
    let (a, _b) = Gateway::pair(&topology, &setup);
    topology.inside("ha", "ping -c 2 -i 0.2 -W 2 10.2.0.2");
    // Shorter files than the daemon wrote, and no room: the writes of the next lease fail.
    for name in ["leases", "leases.witness"] {
        std::fs::File::options().write(true).open(state.join(name)).unwrap().set_len(0).unwrap();
    }
    let filler = state.join("filler");
    std::fs::write(&filler, vec![1; 2 << 20]).unwrap_err();
    let _flood = flood(&topology, "ha", "10.2.0.2", 4);
    eventually("the lease is used up", Duration::from_secs(60), || a.dropped("lease_exhausted") > 0);
    let warnings = a.json(&["status"])["warnings"].to_string();
    assert!(warnings.contains("sequence leases") && warnings.contains("No space left"), "{warnings}");
    let sas = a.json(&["sa", "list"]);
    let out = sas.as_array().unwrap().iter().find(|sa| sa["direction"] == "out").unwrap();
    assert_eq!(out["sequence"], out["ceiling"], "not one number above what is recorded");
    assert!(out["warnings"].to_string().contains("lease exhausted"), "{out}");
    std::fs::remove_file(&filler).unwrap();
    let stopped = out["sequence"].as_u64().unwrap();
    eventually("it goes on when the disk works", Duration::from_secs(20), || {
        let sas = a.json(&["sa", "list"]);
        let out = sas.as_array().unwrap().iter().find(|sa| sa["direction"] == "out").unwrap().clone();
        out["sequence"].as_u64().unwrap() > stopped
    });
}

/// A disk that takes a write and does not answer: as one that fails, and nobody waits with the keeper.
#[test]
fn a_disk_that_stalls_stops_sas_at_their_ceilings() {
    let topology = Topology::new(1);
    let (mut a, _b) = Gateway::pair(&topology, &gcm());
    let stalled = topology.directory().join("stalled");
    a.preload = Some(preload::stalling(topology.directory(), &stalled));
    a.end(Signal::TERM);
    a.restart();
    topology.inside("ha", "ping -c 2 -i 0.2 -W 2 10.2.0.2");
    std::fs::write(&stalled, "").unwrap();
    let outbound = || {
        let asked = Instant::now();
        let sas = a.json(&["sa", "list"]);
        assert!(asked.elapsed() < Duration::from_secs(2), "who asks does not wait for the disk");
        sas.as_array().unwrap().iter().find(|sa| sa["direction"] == "out").unwrap().clone()
    };
    let ceiling = outbound()["ceiling"].as_u64().unwrap();
    let _flood = flood(&topology, "ha", "10.2.0.2", 4);
    eventually("the lease is used up", Duration::from_secs(60), || a.dropped("lease_exhausted") > 0);
    let out = outbound();
    assert_eq!((&out["sequence"], &out["ceiling"]), (&ceiling.into(), &ceiling.into()), "{out}");
    eventually("status says so", Duration::from_secs(10), || {
        a.json(&["status"])["warnings"].to_string().contains("has not answered for")
    });
    std::fs::remove_file(&stalled).unwrap();
    eventually("it goes on when the disk answers", Duration::from_secs(20), || {
        outbound()["sequence"].as_u64().unwrap() > ceiling
    });
    assert_eq!(a.json(&["status"])["warnings"], serde_json::json!([]));
}

/// A tmpfs of its own, gone with this.
struct Mount(std::path::PathBuf);

impl Mount {
    fn new(at: &std::path::Path, options: &str) -> Self {
        let mut mount = std::process::Command::new("mount");
        run(mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
