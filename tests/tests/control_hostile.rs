//! Clients of the worst kind harm nobody else: while each of them is at it, a good client is answered.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::time::{Duration, Instant};

use adit_tests::control::{BASE, Client, Daemon};
use serde_json::json;

/// A call on a new connection is answered within a second.
fn answers(daemon: &Daemon) {
    let start = Instant::now();
    daemon.call("Status", json!({})).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "a good client waited {:?}", start.elapsed());
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn malformed_messages_end_their_own_connection_only() {
    let daemon = Daemon::start(BASE);
    let objects =
        format!("{{\"method\":\"io.adit.Engine.SaAdd\",\"parameters\":{}", "{\"tunnel\":".repeat(5_000));
    let messages: &[&[u8]] = &[
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\"x\"",
        b"{}",
        b"\xff\xfe\xfd",
        b"{\"method\":7}",
        b"{\"method\":\"\xc3\x28\"}",
        b"{\"method\":\"a.b\",\"method\":\"a.c\"}",
        b"{\"method\":\"a.b\"} {}",
        b"{\"method\":\"a.b\",\"other\":1}",
        b"{\"method\":\"a.b\",\"more\":\"yes\"}",
        objects.as_bytes(),
    ];
    for message in messages {
        let mut client = daemon.connect();
        let mut bytes = message.to_vec();
        bytes.push(0);
        client.send(&bytes).unwrap();
        let reply = client.receive().expect("a reason");
        assert_eq!(
            reply["error"],
            "io.adit.Engine.BadMessage",
            "{:?}: {reply}",
            String::from_utf8_lossy(&message[..message.len().min(60)])
        );
        assert!(client.receive().is_none(), "closed");
        answers(&daemon);
    }
}

#[test]
fn what_is_a_call_but_wrong_leaves_the_connection_open() {
    let daemon = Daemon::start(BASE);
    let mut client = daemon.connect();
    let long = "x".repeat(60_000);
    for (method, parameters, error) in [
        ("io.adit.Engine.Nothing", json!({}), "org.varlink.service.MethodNotFound"),
        ("nothing", json!({}), "org.varlink.service.MethodNotFound"),
        ("com.example.Other.Thing", json!({}), "org.varlink.service.InterfaceNotFound"),
        ("io.adit.Engine.Status", json!({ "x": 1 }), "io.adit.Engine.Refused"),
        ("io.adit.Engine.Status", json!([1]), "io.adit.Engine.Refused"),
        ("io.adit.Engine.PolicyDelete", json!({ "name": long }), "io.adit.Engine.Refused"),
        ("io.adit.Engine.Drops", json!({ "all": 1e300 }), "io.adit.Engine.Refused"),
    ] {
        let call = json!({ "method": method, "parameters": parameters });
        client.send(format!("{call}\0").as_bytes()).unwrap();
        let reply = client.receive().unwrap();
        assert_eq!(reply["error"], error, "{method}: {reply}");
        assert!(reply.to_string().len() < 2_000, "a long value does not come back");
    }
    // Nesting is bounded before it costs stack, wherever it is.
    for parameters in [
        format!("{}{}", "[".repeat(30_000), "]".repeat(30_000)),
        format!("{}1{}", "{\"tunnel\":".repeat(5_000), "}".repeat(5_000)),
        format!("{{\"tunnel\":{{\"inbound\":{}{}}}}}", "[".repeat(30_000), "]".repeat(30_000)),
    ] {
        client
            .send(format!("{{\"method\":\"io.adit.Engine.SaAdd\",\"parameters\":{parameters}}}\0").as_bytes())
            .unwrap();
        let reply = client.receive().unwrap();
        assert_eq!(reply["error"], "io.adit.Engine.Refused", "{reply}");
    }
    // Several messages at once, one of them split.
    client.send(b"{\"method\":\"io.adit.Engine.Status\"}\0{\"method\":\"io.adit.Engine.Stats\"}\0{\"method\":\"io.adit.").unwrap();
    assert!(client.receive().unwrap()["parameters"]["version"].is_string());
    assert!(client.receive().unwrap()["parameters"]["workers"].is_array());
    client.send(b"Engine.Drops\"}\0").unwrap();
    assert!(client.receive().unwrap()["parameters"]["drops"].is_array());
    // No answer wanted.
    client.send(b"{\"method\":\"io.adit.Engine.Status\",\"oneway\":true}\0{\"method\":\"io.adit.Engine.Drops\"}\0").unwrap();
    assert!(client.receive().unwrap()["parameters"]["drops"].is_array());
}

#[test]
fn an_oversized_message_is_cut_off_and_costs_no_memory() {
    let daemon = Daemon::start(BASE);
    answers(&daemon);
    let before = resident_kib();
    for _ in 0..50 {
        let mut client = daemon.connect();
        let mut message = b"{\"method\":\"".to_vec();
        message.resize(1 << 20, b'a');
        // The server answers and closes long before it has all of it.
        let _ = client.send(&message);
        let reply = client.receive();
        assert!(reply.is_none_or(|reply| reply["error"] == "io.adit.Engine.BadMessage"));
        answers(&daemon);
    }
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more after 50 MiB of messages");
}

#[test]
fn an_unfinished_or_slow_message_is_cut_off_in_time() {
    let daemon = Daemon::start(BASE);
    let mut silent = daemon.connect();
    silent.send(b"{\"method\":").unwrap();
    let mut slow = daemon.connect();
    let start = Instant::now();
    let writer = std::thread::spawn(move || {
        for byte in b"{\"method\":\"io.adit.Engine.Status\"}" {
            if slow.send(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let reply = slow.receive();
        (reply, start.elapsed())
    });
    while start.elapsed() < Duration::from_secs(4) {
        answers(&daemon);
        std::thread::sleep(Duration::from_millis(200));
    }
    let reply = silent.receive().expect("a reason");
    assert_eq!(reply["error"], "io.adit.Engine.BadMessage");
    assert!((4..8).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(silent.receive().is_none());
    let (reply, elapsed) = writer.join().unwrap();
    assert!(reply.is_none_or(|reply| reply["error"] == "io.adit.Engine.BadMessage"));
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
    answers(&daemon);
}

#[test]
fn a_hundred_idle_connections_make_room() {
    let daemon = Daemon::start(BASE);
    let before = resident_kib();
    let mut idle: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = daemon.connect();
            client.call("Status", json!({})).unwrap();
            client
        })
        .collect();
    answers(&daemon);
    assert!(resident_kib().saturating_sub(before) < 8 * 1024);
    // The oldest had to leave, the newest stays.
    assert!(idle[0].receive().is_none());
    assert!(idle[99].call("Status", json!({})).is_ok());
}

/// They connect, say nothing, and never close their end.
#[test]
fn ten_thousand_silent_clients_make_room() {
    const CLIENTS: usize = 10_000;
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).unwrap();
    let daemon = Daemon::start(BASE);
    let mut working = daemon.connect();
    working.call("Status", json!({})).unwrap();
    let mut silent = Vec::with_capacity(CLIENTS);
    while silent.len() < CLIENTS {
        silent.push(UnixStream::connect(&daemon.socket).expect("a descriptor"));
        if silent.len() % 250 == 0 {
            let start = Instant::now();
            working.call("Status", json!({})).expect("who works stays");
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
    }
    answers(&daemon);
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "the oldest had to leave");
}

#[test]
fn those_who_monitor_make_room_like_the_idle() {
    let daemon = Daemon::start(BASE);
    let before = resident_kib();
    let mut listening: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = daemon.connect();
            client.send(b"{\"method\":\"io.adit.Engine.Monitor\",\"more\":true}\0").unwrap();
            let first = client.receive().expect("the beginning");
            assert_eq!(
                (&first["parameters"]["event"], &first["continues"]),
                (&json!("listening"), &json!(true))
            );
            client
        })
        .collect();
    answers(&daemon);
    assert!(resident_kib().saturating_sub(before) < 8 * 1024);
    assert!(listening[0].receive().is_none());
    // Who says something has heard enough.
    listening[99].send(b"{\"method\":\"io.adit.Engine.Status\"}\0").unwrap();
    assert!(listening[99].receive().is_none());
    // Without "more" there is no stream to wait for.
    assert_eq!(daemon.call("Monitor", json!({})).unwrap(), json!({ "event": "listening" }));
}

#[test]
fn a_client_that_does_not_read_is_left_alone() {
    let daemon = Daemon::start(BASE);
    let policy = |i: u32| json!({ "name": format!("policy-{i}"), "action": "bypass", "remote": [format!("10.0.{}.{}", i / 256, i % 256)] });
    for start in (0..1500).step_by(300) {
        let policies: Vec<_> = (start..start + 300).map(policy).collect();
        daemon.call("PolicyAdd", json!({ "policies": policies })).unwrap();
    }
    let before = resident_kib();
    let mut deaf: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    for client in &mut deaf {
        for _ in 0..100 {
            client.send(b"{\"method\":\"io.adit.Engine.PolicyList\",\"more\":true}\0").unwrap();
        }
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(7) {
        answers(&daemon);
        std::thread::sleep(Duration::from_millis(100));
    }
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB for ten clients that do not read");
    for client in &mut deaf {
        // What was on its way is there, the rest was given up.
        let mut bytes = Vec::new();
        let _ = client.reader.read_to_end(&mut bytes);
        let asked_for = 100 * 1500 * 100;
        assert!(bytes.len() < asked_for / 4, "{} bytes", bytes.len());
    }
    answers(&daemon);
}

/// What the child below does under another uid. Without the variable it is no test.
#[test]
fn child_of_another_uid() {
    let Some(socket) = std::env::var_os("ADIT_TEST_SOCKET") else { return };
    let mut client = Client::connect(socket.as_ref());
    let allowed = std::env::var("ADIT_TEST_READS").is_ok();
    for (method, change) in [("Status", false), ("SaList", false), ("Reload", true), ("PolicyDelete", true)] {
        let parameters = if method == "PolicyDelete" { json!({ "name": "p" }) } else { json!({}) };
        let result = client.call(method, parameters);
        if change || !allowed {
            let (name, parameters) = result.expect_err(method);
            assert_eq!(name, "io.adit.Engine.PermissionDenied", "{method}");
            assert_eq!(parameters["uid"], json!(65534));
        } else {
            result.expect(method);
        }
    }
}

#[test]
fn another_uid_is_refused_for_each_request() {
    if !rustix::process::geteuid().is_root() {
        // Only root can become somebody else.
        return;
    }
    for group in [None, Some("nogroup")] {
        judged(group);
    }
}

fn judged(group: Option<&str>) {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = Daemon::start(&match group {
        Some(group) => format!("{BASE}\n[engine]\nsocket-group = \"{group}\""),
        None => BASE.to_owned(),
    });
    if group.is_none() {
        // The doors are opened on purpose: who connects is judged all the same.
        for path in [daemon.socket.parent().unwrap(), daemon.socket.as_path()] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
    }
    // The test's own program, where anybody may run it.
    let program = daemon.config.with_file_name("child");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let status = std::process::Command::new(&program)
        .args(["--exact", "child_of_another_uid", "--quiet"])
        .env("ADIT_TEST_SOCKET", &daemon.socket)
        .envs(group.map(|group| ("ADIT_TEST_READS", group)))
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .status()
        .unwrap();
    assert!(status.success(), "see the child's output");
    answers(&daemon);
}

#[test]
fn the_socket_is_private_and_a_stale_one_is_taken_over() {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = Daemon::start(BASE);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&daemon.socket), mode(daemon.socket.parent().unwrap())), (0o600, 0o700));
    let socket = daemon.socket.clone();
    let directory = daemon.stop();
    assert!(!socket.exists(), "a clean end leaves nothing");
    // What a killed daemon leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let daemon = Daemon::start_in(directory.clone(), BASE).unwrap();
    answers(&daemon);
    // A second daemon: the state directory is taken.
    let error = Daemon::start_in(directory, BASE).err().expect("locked");
    assert!(error.contains("another aditd"), "{error}");
    answers(&daemon);
}
