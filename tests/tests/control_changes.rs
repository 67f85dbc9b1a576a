//! Transactions over the control socket: whole or not at all, in the right order, and no key twice.

use std::sync::{Arc, RwLock};

use adit_engine::sa::publish::Reader;
use adit_engine::wire::Spi;
use adit_tests::control::{BASE, Daemon, Directory, declare, key, tunnel};
use serde_json::{Value, json};

/// Readers are the process's: while one test is pinned, no other can be told that what it deleted is wiped.
static PINNED: RwLock<()> = RwLock::new(());

fn protect(name: &str, tunnel: &str, remote: &str) -> Value {
    json!({ "name": name, "action": "protect", "tunnel": tunnel, "local": ["10.1.0.0/16"], "remote": [remote] })
}

fn has_sa(daemon: &Daemon, spi: u32) -> bool {
    daemon.tables.sad.lookup(Spi(spi), &Reader::register().pin()).is_some()
}

fn config_of(tunnel: &Value, policies: &str) -> String {
    // A file declares no key fresh: that is done once, beside it.
    let mut tunnel = tunnel.clone();
    for direction in ["inbound", "outbound"] {
        tunnel[direction].as_object_mut().unwrap().remove("fresh_key");
    }
    let mut text = toml::to_string(&json!({ "tunnel": [tunnel] })).unwrap();
    for name in ["encryption_key", "authentication_key", "replay_window"] {
        text = text.replace(name, &name.replace('_', "-"));
    }
    format!("{BASE}\n{text}\n{policies}")
}

const POLICY: &str = "[[policy]]\nname = \"p\"\naction = \"protect\"\ntunnel = \"b\"\nlocal = [\"10.1.0.0/16\"]\nremote = [\"10.2.0.0/16\"]\n";

#[test]
fn an_sa_comes_and_goes_in_the_right_order() {
    let _nobody_is_pinned = PINNED.read();
    let daemon = Daemon::start(BASE);
    daemon.hooks.lock().unwrap().calls.clear();
    let change = daemon
        .call(
            "SaAdd",
            json!({ "tunnel": tunnel("b", 0x1001), "policies": [protect("p", "b", "10.2.0.0/16")] }),
        )
        .unwrap();
    assert_eq!((&change["added"], &change["kept"]), (&json!(2), &json!(0)));
    assert!(has_sa(&daemon, 0x1001));
    {
        let hooks = daemon.hooks.lock().unwrap();
        assert_eq!(
            hooks.calls,
            ["add_spi 0x00001001", "set_covers 1"],
            "the SPI before the cover; nothing to shrink"
        );
        assert_eq!(hooks.steering.remote[0].to_string(), "10.2.0.0/16");
        assert_eq!(hooks.guard, hooks.steering);
    }
    let spd = daemon.tables.spd.get().unwrap();
    assert_eq!(spd.policies.len(), 1);
    let list = daemon.call("SaList", json!({})).unwrap();
    assert_eq!(list["sas"].as_array().unwrap().len(), 2);
    let shown = daemon.call("SaShow", json!({ "spi": "0x1001" })).unwrap();
    assert_eq!(shown["sas"][0]["selectors"], json!(["10.1.0.0/16 - 10.2.0.0/16"]));
    assert_eq!(shown["sas"][0]["replay_window"], json!(1024));

    daemon.hooks.lock().unwrap().calls.clear();
    drop(spd);
    let change = daemon.call("SaDelete", json!({ "tunnel": "b" })).unwrap();
    assert_eq!((&change["removed"], &change["wiped"]), (&json!(2), &json!(true)));
    assert!(!has_sa(&daemon, 0x1001));
    let hooks = daemon.hooks.lock().unwrap();
    assert_eq!(hooks.calls.last().unwrap(), "remove_spi 0x00001001");
    assert_eq!(hooks.steering.remote.len(), 1, "the policy stays, and drops: nothing leaves in clear");
}

#[test]
fn a_worker_that_holds_an_sa_is_told_of() {
    let _alone = PINNED.write();
    let daemon = Daemon::start(BASE);
    daemon.call("SaAdd", json!({ "tunnel": tunnel("b", 0x1001) })).unwrap();
    let mut reader = Reader::register();
    let guard = reader.pin();
    assert!(daemon.tables.sad.lookup(Spi(0x1001), &guard).is_some());
    let change = daemon.call("SaDelete", json!({ "spi": "0x1001", "direction": "in" })).unwrap();
    assert_eq!(
        (&change["removed"], &change["wiped"]),
        (&json!(1), &json!(false)),
        "one worker still may look at it"
    );
    drop(guard);
}

#[test]
fn a_step_that_fails_is_taken_back() {
    for step in ["add_spi", "set_covers"] {
        let daemon = Daemon::start(BASE);
        daemon
            .call(
                "SaAdd",
                json!({ "tunnel": tunnel("a", 0x2001), "policies": [protect("a", "a", "10.9.0.0/16")] }),
            )
            .unwrap();
        let before = daemon.call("Status", json!({})).unwrap()["generation"].clone();
        daemon.hooks.lock().unwrap().fails = Some(step);
        let add = json!({ "tunnel": tunnel("b", 0x1001), "policies": [protect("p", "b", "10.2.0.0/16")] });
        let field = if step == "add_spi" { "tunnel.inbound.spi" } else { "policy" };
        daemon.refused("SaAdd", add.clone(), field);
        assert!(!has_sa(&daemon, 0x1001) && has_sa(&daemon, 0x2001));
        {
            let mut hooks = daemon.hooks.lock().unwrap();
            assert_eq!(hooks.spis.iter().copied().collect::<Vec<_>>(), [0x2001]);
            assert_eq!(hooks.steering.remote.len(), 1);
            hooks.fails = None;
        }
        assert_eq!(daemon.call("Status", json!({})).unwrap()["generation"], before);
        assert_eq!(daemon.tables.spd.get().unwrap().policies.len(), 1);
        daemon.call("SaAdd", add).expect("nothing was recorded of keys that never sent");
    }
}

/// Last number and ceiling of the outbound SA with this SPI.
fn numbers(daemon: &Daemon, spi: &str) -> (u64, u64) {
    let shown = daemon.call("SaShow", json!({ "spi": spi })).unwrap();
    let number = |name: &str| shown["sas"][0][name].as_u64().unwrap_or_else(|| panic!("{name} in {shown}"));
    (number("sequence"), number("ceiling"))
}

/// The same keys under other SPIs, as a request without a declaration.
fn again(tunnel: &Value, name: &str, spi: u32) -> Value {
    let mut tunnel = tunnel.clone();
    tunnel["name"] = json!(name);
    for (direction, spi) in [("inbound", spi), ("outbound", spi + 1)] {
        let sa = tunnel[direction].as_object_mut().unwrap();
        sa.remove("fresh_key");
        sa.insert("spi".into(), json!(format!("{spi:#x}")));
    }
    json!({ "tunnel": tunnel })
}

#[test]
fn a_key_begins_once_and_then_goes_on() {
    let table = tunnel("b", 0x1001);
    let config = config_of(&table, POLICY);
    let directory = Arc::new(Directory::new());
    let error = Daemon::start_in(directory.clone(), &config).err().expect("nobody declared it");
    for field in ["tunnel[0].inbound.encryption-key", "tunnel[0].outbound.encryption-key"] {
        assert!(error.contains(field) && error.contains("adit key declare-fresh b"), "{error}");
    }
    declare(&directory, &config);
    let daemon = Daemon::start_in(directory, &config).unwrap();
    daemon.call("Reload", json!({})).expect("the live SA's own key is no reuse");
    let (sequence, ceiling) = numbers(&daemon, "0x1002");
    assert!(sequence == 0 && ceiling >= 1 << 16, "{sequence} {ceiling}");
    assert_eq!(daemon.call("Status", json!({})).unwrap()["warnings"], json!([]));

    // For two live SAs, in whatever direction: refused.
    for (direction, key) in [("outbound", "outbound"), ("outbound", "inbound")] {
        let mut other = tunnel("c", 0x3001);
        other["remote"] = json!("192.0.2.3");
        other[direction]["encryption_key"] = table[key]["encryption_key"].clone();
        daemon.refused("SaAdd", json!({ "tunnel": other }), "tunnel.outbound.encryption-key");
    }

    // After a deletion it goes on above what it had, in its own direction, and is not declared again.
    daemon.call("SaDelete", json!({ "tunnel": "b" })).unwrap();
    let mut declared = again(&table, "c", 0x3001);
    declared["tunnel"]["outbound"]["fresh_key"] = json!(true);
    let message = daemon.refused("SaAdd", declared, "tunnel.outbound.fresh-key");
    assert!(message.contains(&ceiling.to_string()), "{message}");
    let mut swapped = again(&table, "c", 0x3001);
    let (inbound, outbound) =
        (table["inbound"]["encryption_key"].clone(), table["outbound"]["encryption_key"].clone());
    (swapped["tunnel"]["inbound"]["encryption_key"], swapped["tunnel"]["outbound"]["encryption_key"]) =
        (outbound, inbound);
    let message = daemon.refused("SaAdd", swapped, "tunnel.inbound.encryption-key");
    assert!(message.contains("direction"), "{message}");
    daemon.call("SaAdd", again(&table, "c", 0x3001)).unwrap();
    let (sequence, second) = numbers(&daemon, "0x3002");
    assert!(sequence == ceiling && second > ceiling, "{sequence} {second}");
    daemon.call("SaDelete", json!({ "tunnel": "c" })).unwrap();

    // After a restart that nobody prepared, too; and what was received up to the ceiling is not received again.
    let daemon = Daemon::start_in(daemon.stop(), &config.replace("name = \"p\"", "name = \"q\"")).unwrap();
    assert_eq!(numbers(&daemon, "0x1002").0, second);
    let inbound = daemon.tables.sad.list()[0].clone();
    let edge = inbound.replay.right_edge();
    assert!(edge >= 128, "{edge}");
    for received in [edge, edge - 100] {
        assert!(inbound.replay.check(received as u32).is_err(), "{received} of {edge}");
    }
    assert!(inbound.lease.as_ref().unwrap().ceiling() > edge);
}

#[test]
fn a_lost_record_refuses_its_key() {
    let config = config_of(&tunnel("b", 0x1001), POLICY);
    let daemon = Daemon::start(&config);
    let directory = daemon.stop();
    let state = directory.path().join("state");
    // Not the header, and not the first key's places: the second's.
    let mut leases = std::fs::read(state.join("leases")).unwrap();
    leases[4 * 4096..].fill(7);
    let file = std::fs::File::options().write(true).open(state.join("leases")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &leases, 0).unwrap();
    let error = Daemon::start_in(directory.clone(), &config).err().expect("damaged");
    assert!(error.contains("encryption-key") && !error.contains("inbound"), "{error}");
    std::fs::remove_dir_all(&state).unwrap();
    let error = Daemon::start_in(directory, &config).err().expect("lost, and the configuration is as it was");
    assert!(error.contains("expected a record of this key's numbers"), "{error}");
}

#[test]
fn a_reload_may_bring_fresh_keys_if_it_says_so() {
    let daemon = Daemon::start(&config_of(&tunnel("b", 0x1001), POLICY));
    std::fs::write(&daemon.config, config_of(&tunnel("b", 0x2001), POLICY)).unwrap();
    daemon.refused("Reload", json!({}), "tunnel[0].inbound.encryption-key");
    daemon.refused("Reload", json!({ "fresh_keys": ["c"] }), "fresh_keys[0]");
    daemon.call("Reload", json!({ "fresh_keys": ["b"] })).unwrap();
    let message = daemon.refused("Reload", json!({ "fresh_keys": ["b"] }), "fresh_keys[0]");
    assert!(message.contains("go on above"), "{message}");
    daemon.call("Reload", json!({})).unwrap();
}

#[test]
fn an_sa_without_replay_protection_needs_no_floor() {
    let mut table = tunnel("b", 0x1001);
    table["replay_window"] = json!(0);
    table["esn"] = json!(false);
    let daemon = Daemon::start(&config_of(&table, POLICY));
    let shown = daemon.call("SaShow", json!({ "spi": "0x1001" })).unwrap();
    assert_eq!(shown["sas"][0].get("ceiling"), None, "{shown}");
    assert!(daemon.tables.sad.list()[0].lease.is_none());
    Daemon::start_in(daemon.stop(), &config_of(&table, POLICY)).unwrap();
}

#[test]
fn an_sa_that_never_opened_a_packet_says_so() {
    use std::sync::atomic::Ordering::Relaxed;
    let daemon = Daemon::start(&config_of(&tunnel("b", 0x1001), POLICY));
    let warnings = || {
        let shown = daemon.call("SaShow", json!({ "spi": "0x1001" })).unwrap();
        (shown["sas"][0]["replay_window"].clone(), shown["sas"][0]["warnings"].clone())
    };
    assert_eq!(warnings(), (json!(1024), json!([])), "protected from replay, as nothing else was said");
    let sa = daemon.tables.sad.list().remove(0);
    let hints =
        || warnings().1.as_array().unwrap().iter().filter(|it| it.to_string().contains("ICV")).count();
    // What it comes to differs: without a block cipher the ICV is wrong, with one the length is.
    for counter in [&sa.counters.icv_failed, &sa.counters.refused] {
        counter.store(7, Relaxed);
        assert_eq!(hints(), 1, "{:?}", warnings());
        counter.store(0, Relaxed);
        assert_eq!(hints(), 0);
    }
    // A forgery among good packets is nobody's mistake.
    sa.counters.icv_failed.store(7, Relaxed);
    sa.verified(1, 100);
    assert_eq!(warnings().1, json!([]));
}

#[test]
fn a_new_salt_goes_on_and_another_counter_mode_is_refused() {
    let daemon = Daemon::start(&config_of(&tunnel("b", 0x1001), POLICY));
    let aes = key(16);
    let with = |encryption: &str, salt: &str, fresh: bool| {
        let mut tunnel = tunnel("c", 0x3001);
        tunnel["remote"] = json!("192.0.2.3");
        tunnel.as_object_mut().unwrap().remove("profile");
        tunnel["encryption"] = json!(encryption);
        let length = if encryption == "aes-128-ccm" { 19 } else { 20 };
        if encryption == "aes-128-ctr" {
            tunnel["authentication"] = json!("aes-cmac");
            for direction in ["inbound", "outbound"] {
                tunnel[direction]["authentication_key"] = json!(key(16));
            }
        }
        tunnel["inbound"]["encryption_key"] = json!(key(length));
        tunnel["outbound"]["encryption_key"] = json!(format!("{aes}{salt}"));
        tunnel["outbound"]["fresh_key"] = json!(fresh);
        json!({ "tunnel": tunnel })
    };
    daemon.call("SaAdd", with("aes-128-gcm", "a1b2c3d4", true)).unwrap();
    let (_, ceiling) = numbers(&daemon, "0x3002");
    daemon.call("SaDelete", json!({ "tunnel": "c" })).unwrap();
    for (encryption, salt) in
        [("aes-128-ccm", "a1b2c3"), ("aes-128-gmac", "a1b2c3d4"), ("aes-128-ctr", "a1b2c3d4")]
    {
        let other = with(encryption, salt, false);
        let message = daemon.refused("SaAdd", other, "tunnel.outbound.encryption-key");
        assert!(message.contains("algorithm"), "{message}");
    }
    let mut ah = with("aes-128-gmac", "a1b2c3d4", false);
    ah["tunnel"]["protocol"] = json!("ah");
    daemon.refused("SaAdd", ah, "tunnel.outbound.encryption-key");
    daemon.refused("SaAdd", with("aes-128-gcm", "00010203", true), "tunnel.outbound.fresh-key");
    daemon.call("SaAdd", with("aes-128-gcm", "00010203", false)).unwrap();
    assert_eq!(numbers(&daemon, "0x3002").0, ceiling, "an old key with a new salt");
    daemon.call("SaDelete", json!({ "tunnel": "c" })).unwrap();
    // In both directions at once it is one key for two SAs.
    let mut twice = with("aes-128-gcm", "00010203", true);
    let fresh = key(16);
    for (direction, salt) in [("inbound", "00000001"), ("outbound", "00000002")] {
        twice["tunnel"][direction]["encryption_key"] = json!(format!("{fresh}{salt}"));
    }
    daemon.refused("SaAdd", twice, "tunnel.outbound.encryption-key");
}

#[test]
fn lifetimes_come_from_tunnel_profile_or_algorithm_and_end_by_the_clock() {
    let table = |name: &str, spi: u32, remote: &str| {
        let mut table = tunnel(name, spi);
        table["remote"] = json!(remote);
        table
    };
    let daemon = Daemon::start(BASE);
    let shown = |name: &str| {
        let sas = daemon.call("SaShow", json!({ "tunnel": name })).unwrap()["sas"].clone();
        serde_json::from_value::<Vec<Value>>(sas).unwrap()
    };
    daemon.call("SaAdd", json!({ "tunnel": table("safe", 0x1001, "192.0.2.2") })).unwrap();
    for sa in shown("safe") {
        assert_eq!(sa["lifetime"], "good");
        assert_eq!(sa.get("lifetime_seconds_hard"), None, "no limit is not shown");
    }
    let mut monitor = daemon.connect();
    monitor.send(b"{\"method\":\"io.adit.Engine.Monitor\",\"more\":true}\0").unwrap();
    let first = monitor.receive().unwrap();
    assert_eq!((&first["parameters"], &first["continues"]), (&json!({ "event": "listening" }), &json!(true)));
    let mut short = table("short", 0x2001, "192.0.2.3");
    short["lifetime_packets_hard"] = json!(1000);
    short["lifetime_bytes_soft"] = json!(5000);
    short["lifetime_seconds_hard"] = json!(2);
    daemon.call("SaAdd", json!({ "tunnel": short })).unwrap();
    let sas = shown("short");
    assert_eq!(sas.len(), 2);
    for sa in &sas {
        assert_eq!((&sa["lifetime_packets_hard"], &sa["lifetime_seconds_hard"]), (&json!(1000), &json!(2)));
        // Three quarters of the hard limit, or what was written, and up to a tenth less.
        assert!((675..=750).contains(&sa["lifetime_packets_soft"].as_u64().unwrap()), "{sa}");
        assert!((4500..=5000).contains(&sa["lifetime_bytes_soft"].as_u64().unwrap()), "{sa}");
        assert_eq!(sa["lifetime_seconds_soft"], 1);
    }
    let begun = std::time::Instant::now();
    while shown("short").iter().any(|sa| sa["lifetime"] != "over") {
        assert!(begun.elapsed().as_secs() < 10, "{:?}", shown("short"));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    for sa in shown("short") {
        assert!(sa["age_seconds"].as_u64().unwrap() >= 2, "not early: {sa}");
    }
    assert!(shown("safe").iter().all(|sa| sa["lifetime"] == "good"));
    // Two ticks more: what was told is not told again.
    std::thread::sleep(std::time::Duration::from_millis(2200));
    drop(daemon);
    let mut events: Vec<_> = std::iter::from_fn(|| monitor.receive())
        .map(|piece| {
            let text = |name: &str| piece["parameters"][name].as_str().unwrap().to_owned();
            [text("tunnel"), text("spi"), text("direction"), text("event")].join(" ")
        })
        .collect();
    events.sort();
    let expected = ["in hard", "in soft", "out hard", "out soft"].map(|event| {
        let (direction, end) = event.split_once(' ').unwrap();
        let spi = if direction == "in" { "0x00002001" } else { "0x00002002" };
        format!("short {spi} {direction} {end}_lifetime")
    });
    assert_eq!(events, expected);
}

#[test]
fn limits_that_a_64_bit_cipher_cannot_keep_are_refused() {
    let mut table = tunnel("b", 0x1001);
    table.as_object_mut().unwrap().remove("profile");
    (table["encryption"], table["authentication"]) = (json!("3des"), json!("sha256"));
    for direction in ["inbound", "outbound"] {
        table[direction]["encryption_key"] = json!(key(24));
        table[direction]["authentication_key"] = json!(key(32));
    }
    let daemon = Daemon::start(&format!("[engine]\nallow-legacy = true\n{BASE}"));
    table["lifetime_bytes_hard"] = json!((8u64 << 32) + 1);
    let message = daemon.refused("SaAdd", json!({ "tunnel": table }), "tunnel.lifetime-bytes-hard");
    assert!(message.contains("34359738368"), "{message}");
    table["lifetime_bytes_hard"] = json!(8u64 << 32);
    daemon.call("SaAdd", json!({ "tunnel": table })).unwrap();
}

#[test]
fn a_reload_keeps_what_did_not_change() {
    let _nobody_is_pinned = PINNED.read();
    let table = tunnel("b", 0x1001);
    let daemon = Daemon::start(&config_of(&table, POLICY));
    let before = daemon.tables.sad.list();
    let spd = daemon.tables.spd.get().unwrap();
    spd.policies[0].packets.store(7, std::sync::atomic::Ordering::Relaxed);

    // A broken file: the old state stays.
    std::fs::write(&daemon.config, "[engine]\ndefault = 1\n").unwrap();
    let (_, error) = daemon.call("Reload", json!({})).unwrap_err();
    assert_eq!(error["problems"][0]["line"], json!(2));
    assert_eq!(daemon.tables.spd.get().unwrap().generation, spd.generation);

    // Wider policies: the same SA, its window and its counters, with the selectors of now.
    let wider = POLICY.replace("10.2.0.0/16", "10.0.0.0/8");
    std::fs::write(&daemon.config, config_of(&table, &wider)).unwrap();
    let change = daemon.call("Reload", json!({})).unwrap();
    assert_eq!((&change["kept"], &change["added"], &change["removed"]), (&json!(2), &json!(0), &json!(0)));
    let after = daemon.tables.sad.list();
    assert!(std::sync::Arc::ptr_eq(&before[0], &after[0]));
    assert_eq!(after[0].selectors.get().unwrap().list[0].remote.first.to_string(), "10.0.0.0");

    // A changed interface needs a restart.
    std::fs::write(&daemon.config, config_of(&table, &wider).replace("\"outside\"", "\"other\"")).unwrap();
    daemon.refused("Reload", json!({}), "interface");

    // New keys under new SPIs: the old inbound SA receives until the peer has gone over, the policy stays.
    let mut rekeyed = tunnel("b", 0x4001);
    rekeyed["local"] = table["local"].clone();
    std::fs::write(&daemon.config, config_of(&rekeyed, &wider)).unwrap();
    let policy = daemon.tables.spd.get().unwrap().policies[0].clone();
    drop((before, after, spd));
    let change = daemon.call("Reload", json!({ "fresh_keys": ["b"] })).unwrap();
    assert_eq!(
        (&change["kept"], &change["added"], &change["removed"], &change["retiring"], &change["wiped"]),
        (&json!(0), &json!(2), &json!(1), &json!(1), &json!(true))
    );
    assert!(has_sa(&daemon, 0x4001) && has_sa(&daemon, 0x1001));
    assert!(Arc::ptr_eq(&policy, &daemon.tables.spd.get().unwrap().policies[0]), "and so its count");
    drop(policy);

    // Back again: the old inbound SA is still there, and the outbound key goes on above its record.
    std::fs::write(&daemon.config, config_of(&table, POLICY)).unwrap();
    let change = daemon.call("Reload", json!({})).unwrap();
    assert_eq!((&change["kept"], &change["added"], &change["retiring"]), (&json!(1), &json!(1), &json!(1)));
    assert!(numbers(&daemon, "0x1002").0 >= 1 << 16);
    assert_eq!(daemon.hooks.lock().unwrap().spis.iter().copied().collect::<Vec<_>>(), [0x1001, 0x4001]);

    // To another peer: nothing of this one's receives any more.
    let mut moved = tunnel("b", 0x5001);
    moved["remote"] = json!("192.0.2.9");
    std::fs::write(&daemon.config, config_of(&moved, POLICY)).unwrap();
    let change = daemon.call("Reload", json!({ "fresh_keys": ["b"] })).unwrap();
    assert_eq!(
        (&change["removed"], &change["retiring"], &change["wiped"]),
        (&json!(3), &json!(0), &json!(true))
    );
    assert_eq!(daemon.hooks.lock().unwrap().spis.iter().copied().collect::<Vec<_>>(), [0x5001]);
}

#[test]
fn a_new_key_under_a_live_spi_is_refused() {
    let table = tunnel("b", 0x1001);
    let daemon = Daemon::start(&config_of(&table, POLICY));
    std::fs::write(&daemon.config, config_of(&tunnel("b", 0x1001), POLICY)).unwrap();
    daemon.refused("Reload", json!({}), "tunnel[0].inbound.spi");
    // The same key with another header: its numbers would start over.
    let config = config_of(&table, POLICY).replace("name = \"b\"", "name = \"b\"\nttl = 9");
    std::fs::write(&daemon.config, config).unwrap();
    let message = daemon.refused("Reload", json!({}), "tunnel[0].outbound.encryption-key");
    assert!(message.contains("its numbers go on"), "{message}");
    assert!(has_sa(&daemon, 0x1001));
}

#[test]
fn policies_come_in_order_and_leave() {
    let daemon = Daemon::start(BASE);
    let bypass = |name: &str| json!({ "name": name, "action": "bypass", "remote": ["198.51.100.0/24"] });
    daemon.call("PolicyAdd", json!({ "policies": [bypass("a"), bypass("c")] })).unwrap();
    daemon.call("PolicyAdd", json!({ "policies": [bypass("b")], "position": 1 })).unwrap();
    let names = || {
        let list = daemon.call("PolicyList", json!({})).unwrap();
        let names: Vec<_> =
            list["policies"].as_array().unwrap().iter().map(|policy| policy["name"].clone()).collect();
        json!(names)
    };
    assert_eq!(names(), json!(["a", "b", "c"]));
    daemon.refused("PolicyAdd", json!({ "policies": [bypass("a")] }), "policies[0].name");
    daemon.refused("PolicyAdd", json!({ "policies": [bypass("d")], "position": 9 }), "position");
    daemon.refused(
        "PolicyAdd",
        json!({ "policies": [protect("d", "none", "10.0.0.0/8")] }),
        "policies[0].tunnel",
    );
    daemon.call("PolicyDelete", json!({ "name": "b" })).unwrap();
    daemon.refused("PolicyDelete", json!({ "name": "b" }), "name");
    assert_eq!(names(), json!(["a", "c"]));
}

#[test]
fn a_tunnel_inside_itself_is_refused_and_bypass_mends_it() {
    let daemon = Daemon::start(BASE);
    let everything = json!({ "name": "all", "action": "protect", "tunnel": "b" });
    let mut table = tunnel("b", 0x1001);
    let message =
        daemon.refused("SaAdd", json!({ "tunnel": table, "policies": [everything] }), "policies[0].remote");
    assert!(message.contains("bypass") && message.contains("192.0.2.2"), "{message}");
    table["inbound"]["encryption_key"] = json!(key(36));
    let bypass =
        json!({ "name": "outer", "action": "bypass", "local": ["192.0.2.1"], "remote": ["192.0.2.2"] });
    daemon.call("SaAdd", json!({ "tunnel": table, "policies": [bypass, everything] })).unwrap();
}

#[test]
fn a_long_list_is_streamed() {
    let daemon = Daemon::start(BASE);
    let policy = |i: u32| json!({ "name": format!("policy-with-a-long-name-{i}"), "action": "bypass", "remote": [format!("10.{}.{}.0/24", i / 256, i % 256)] });
    for start in (0..1000).step_by(100) {
        let policies: Vec<_> = (start..start + 100).map(policy).collect();
        daemon.call("PolicyAdd", json!({ "policies": policies })).unwrap();
    }
    let (name, _) = daemon.call("PolicyList", json!({})).unwrap_err();
    assert_eq!(name, "org.varlink.service.ExpectedMore");
    let mut client = daemon.connect();
    client.send(b"{\"method\":\"io.adit.Engine.PolicyList\",\"more\":true}\0").unwrap();
    let (mut pieces, mut names) = (0, Vec::new());
    loop {
        let reply = client.receive().unwrap();
        pieces += 1;
        assert!(reply.to_string().len() < 20 * 1024);
        names.extend(
            reply["parameters"]["policies"]
                .as_array()
                .unwrap()
                .iter()
                .map(|policy| policy["position"].as_u64().unwrap()),
        );
        if reply["continues"] != json!(true) {
            break;
        }
    }
    assert!(pieces > 5, "{pieces}");
    assert_eq!(names, (0..1000).collect::<Vec<_>>());
}
