//! The real `adit` against a real server: what it prints, where it exits, and that keys stay out of sight.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use adit_tests::control::{BASE, Daemon, Directory, key};
use adit_tests::process::program;
use serde_json::Value;

fn adit(daemon: &Daemon, arguments: &[&str]) -> Output {
    Command::new(program("adit")).arg("--socket").arg(&daemon.socket).args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(code(output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn exit_codes_tell_what_happened() {
    let daemon = Daemon::start(BASE);
    assert_eq!(code(&adit(&daemon, &["status"])), 0);
    assert_eq!(code(&adit(&daemon, &["--help"])), 0);
    for usage in [&["unheard-of"] as &[_], &["sa", "add"], &["key", "generate", "--encryption", "rot13"]] {
        assert_eq!(code(&adit(&daemon, usage)), 1, "{usage:?}");
    }
    let refused = adit(&daemon, &["policy", "delete", "nobody"]);
    assert_eq!(code(&refused), 2);
    assert!(text(&refused.stderr).contains("name: ") && refused.stdout.is_empty());
    assert_eq!(code(&adit(&daemon, &["--json", "sa", "show", "nobody"])), 2);
    let socket = daemon.socket.clone();
    daemon.stop();
    let gone = Command::new(program("adit")).arg("--socket").arg(socket).arg("status").output().unwrap();
    assert_eq!(code(&gone), 3);
    assert!(text(&gone.stderr).contains("start aditd"), "the next step");
}

#[test]
fn sas_and_policies_come_from_arguments_files_and_standard_input() {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = Daemon::start(BASE);
    let directory = Directory::new();
    let file = |name: &str| directory.path().join(name);
    let keys = [key(36), key(36)];
    for (name, key) in ["in", "out"].iter().zip(&keys) {
        std::fs::write(file(name), key).unwrap();
        std::fs::set_permissions(file(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let (inbound, outbound) = (file("in"), file("out"));
    let arguments = [
        "sa",
        "add",
        "--name",
        "b",
        "--local",
        "192.0.2.1",
        "--remote",
        "192.0.2.2",
        "--profile",
        "strong",
        "--inbound-spi",
        "0x1001",
        "--inbound-key-file",
        inbound.to_str().unwrap(),
        "--outbound-spi",
        "0x1002",
        "--outbound-key-file",
        outbound.to_str().unwrap(),
    ];
    let refused = adit(&daemon, &arguments);
    assert_eq!(code(&refused), 2, "others can read the key");
    assert!(text(&refused.stderr).contains("chmod 600"));
    for name in ["in", "out"] {
        std::fs::set_permissions(file(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let added = json(&adit(&daemon, &[&arguments[..], &["--json"]].concat()));
    assert_eq!(added["added"], 2);
    let policy = [
        "policy",
        "add",
        "--name",
        "p",
        "--action",
        "protect",
        "--tunnel",
        "b",
        "--local",
        "10.1.0.0/16",
        "--remote",
        "10.2.0.0/16",
    ];
    assert_eq!(code(&adit(&daemon, &policy)), 0);

    let mut child = Command::new(program("adit"))
        .arg("--socket")
        .arg(&daemon.socket)
        .args(["sa", "add", "--file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let toml = format!(
        "[[tunnel]]\nname = \"c\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.3\"\nprofile = \"strong\"\n\
         [tunnel.outbound]\nspi = 0x2002\nencryption-key = \"{}\"\n\
         [[policy]]\nname = \"q\"\naction = \"protect\"\ntunnel = \"c\"\nlocal = [\"10.1.0.0/16\"]\nremote = [\"10.3.0.0/16\"]\n",
        key(36)
    );
    child.stdin.take().unwrap().write_all(toml.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));

    let list = adit(&daemon, &["sa", "list"]);
    let table = text(&list.stdout);
    assert_eq!(table.lines().count(), 4, "a header and three SAs, one a line:\n{table}");
    let everything: String = [
        &["sa", "list"] as &[_],
        &["sa", "show", "b"],
        &["sa", "show", "0x1002", "--json"],
        &["status", "--json"],
        &["policy", "list"],
    ]
    .iter()
    .map(|arguments| text(&adit(&daemon, arguments).stdout))
    .collect();
    assert!(everything.contains("10.1.0.0/16 - 10.2.0.0/16"));
    assert!(keys.iter().all(|key| !everything.contains(&key[4..20])), "no listing shows a key");
    assert!(!everything.contains('\u{1b}'), "no colours into a pipe");
    let deleted = json(&adit(&daemon, &["sa", "del", "0x1002", "--json"]));
    assert_eq!((&deleted["removed"], &deleted["wiped"]), (&1.into(), &true.into()));
}

#[test]
fn keys_are_generated_for_their_algorithm() {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = Daemon::start(BASE);
    for (encryption, authentication, bytes) in [
        ("aes-256-gcm", "none", (36, 0)),
        ("aes-128-ccm", "none", (19, 0)),
        ("aes-256-ctr", "aes-cmac", (36, 16)),
        ("null", "aes-xcbc", (0, 16)),
        ("chacha20-poly1305", "none", (36, 0)),
        ("aes-192-gmac", "none", (28, 0)),
        ("aes-256-cbc", "sha512", (32, 64)),
        ("3des", "sha1", (24, 20)),
        ("null", "sha256", (0, 32)),
    ] {
        let arguments =
            ["--json", "key", "generate", "--encryption", encryption, "--authentication", authentication];
        let (first, second) = (json(&adit(&daemon, &arguments)), json(&adit(&daemon, &arguments)));
        let length = |name: &str| first[name].as_str().map_or(0, |key| (key.len() - "hex:".len()) / 2);
        assert_eq!((length("encryption_key"), length("authentication_key")), bytes, "{encryption}");
        assert_ne!(first, second);
    }
    for alone in ["aes-128-cbc", "aes-128-ctr"] {
        assert_eq!(
            code(&adit(&daemon, &["key", "generate", "--encryption", alone])),
            2,
            "a cipher alone is none"
        );
    }
    let directory = Directory::new();
    let path = directory.path().join("key");
    let out = ["key", "generate", "--encryption", "aes-128-gcm", "--out", path.to_str().unwrap()];
    assert_eq!(code(&adit(&daemon, &out)), 0);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let written = std::fs::read(&path).unwrap();
    assert_eq!(code(&adit(&daemon, &out)), 2, "a key is never overwritten");
    assert_eq!(std::fs::read(&path).unwrap(), written);
}

#[test]
fn what_needs_no_daemon() {
    let daemon = Daemon::start(BASE);
    let directory = Directory::new();
    let path = directory.path().join("adit.toml");
    std::fs::write(&path, BASE).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(code(&adit(&daemon, &["config", "check", path])), 0);
    std::fs::write(path, format!("{BASE}\n[engine]\nxdp-mode = \"fast\"\n")).unwrap();
    let refused = adit(&daemon, &["config", "check", path]);
    assert_eq!(code(&refused), 2);
    let line = text(&refused.stderr);
    assert!(line.contains("engine.xdp-mode (line 12)"), "{line}");
    let schema = json(&adit(&daemon, &["config", "schema"]));
    assert!(schema["properties"]["tunnel"].is_object());
    for arguments in [&["completions", "bash"] as &[_], &["man"]] {
        assert!(adit(&daemon, arguments).stdout.len() > 1000, "{arguments:?}");
    }
}
