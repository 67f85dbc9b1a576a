//! What the kernel may be asked about the daemon's process, and what the programs do without its random bytes. No
//! interfaces, no root.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use adit_tests::control::Directory;
use adit_tests::preload;
use adit_tests::process::{Running, eventually, program};
use rustix::process::Signal;

/// Key bytes stay in the process: it crashes, and leaves nothing behind.
#[test]
fn a_crash_leaves_no_core() {
    let directory = Directory::new();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (daemon, config) = (directory.path().join("aditd"), directory.path().join("config"));
    std::fs::copy(program("aditd"), &daemon).unwrap();
    // A configuration that is never finished: the daemon is past its first steps and goes no further.
    let made = Command::new("mkfifo").args(["-m", "0644"]).arg(&config).status().unwrap();
    assert!(made.success());
    // With core dumps allowed as far as this machine lets.
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -c $(ulimit -H -c); exec \"$0\" --config \"$1\""])
        .arg(&daemon)
        .arg(&config);
    command.current_dir(directory.path()).stderr(Stdio::null());
    if rustix::process::geteuid().is_root() {
        // Root's processes look alike in /proc, dumpable or not.
        command.uid(65534).gid(65534);
    }
    let mut daemon = Running::start(&mut command);
    let proc = format!("/proc/{}", daemon.0.id());
    eventually("core dumps are off", Duration::from_secs(10), || {
        let limits = std::fs::read_to_string(format!("{proc}/limits")).unwrap_or_default();
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        core.is_some_and(|line| line.split_whitespace().filter(|word| *word == "0").count() == 2)
    });
    // Not dumpable: whoever is not root may neither trace it nor read its memory (proc(5)).
    eventually("its memory is root's", Duration::from_secs(10), || {
        std::fs::metadata(format!("{proc}/mem")).unwrap().uid() == 0
    });
    daemon.signal(Signal::ABORT);
    let status = daemon.wait_for_end(Duration::from_secs(10));
    assert_eq!((status.signal(), status.core_dumped()), (Some(Signal::ABORT.as_raw()), false));
}

/// A key that is not random would look like one.
#[test]
fn without_random_bytes_there_is_no_key() {
    let directory = Directory::new();
    let generate = |command: &mut Command| {
        let arguments = ["key", "generate", "--encryption", "aes-128-cbc", "--authentication", "sha256"];
        command.args(arguments).output().unwrap()
    };
    assert!(generate(&mut Command::new(program("adit"))).status.success());
    let mut blind = Command::new(program("adit"));
    blind.env("LD_PRELOAD", preload::without_random_bytes(directory.path()));
    let refused = generate(&mut blind);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("expected entropy"), "{refused:?}");
    assert!(refused.stdout.is_empty());
}
