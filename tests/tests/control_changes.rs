//! Transactions over the control socket: whole or not at all, in the right order, and no key twice.

use adit_engine::sa::publish::Reader;
use adit_engine::wire::Spi;
use adit_tests::control::{BASE, Daemon, key, tunnel};
use serde_json::{Value, json};

fn protect(name: &str, tunnel: &str, remote: &str) -> Value {
    json!({ "name": name, "action": "protect", "tunnel": tunnel, "local": ["10.1.0.0/16"], "remote": [remote] })
}

fn has_sa(daemon: &Daemon, spi: u32) -> bool {
    daemon.tables.sad.lookup(Spi(spi), &Reader::register().pin()).is_some()
}

fn config_of(tunnel: &Value, policies: &str) -> String {
    let mut text = toml::to_string(&json!({ "tunnel": [tunnel] })).unwrap();
    for name in ["encryption_key", "authentication_key", "replay_window", "replay_after_restart"] {
        text = text.replace(name, &name.replace('_', "-"));
    }
    format!("{BASE}\n{text}\n{policies}")
}

const POLICY: &str = "[[policy]]\nname = \"p\"\naction = \"protect\"\ntunnel = \"b\"\nlocal = [\"10.1.0.0/16\"]\nremote = [\"10.2.0.0/16\"]\n";

#[test]
fn an_sa_comes_and_goes_in_the_right_order() {
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
        daemon.call("SaAdd", add).expect("the keys were not burnt by what never sent");
    }
}

#[test]
fn a_counter_mode_key_never_sends_again() {
    let config = config_of(&tunnel("b", 0x1001), POLICY);
    let daemon = Daemon::start(&config);
    daemon.call("Reload", json!({})).expect("the live SA's own key is no reuse");
    let again = std::fs::read_to_string(&daemon.config).unwrap();
    assert_eq!(again, config);

    // On a second SA, in the other direction, after a deletion: refused.
    let keys = |spi: u32, outbound: &Value| {
        let mut other = tunnel("c", spi);
        other["remote"] = json!("192.0.2.3");
        other["outbound"]["encryption_key"] = outbound.clone();
        other
    };
    let parsed: Value = toml::from_str(&config).unwrap();
    let (inbound, outbound) = (
        &parsed["tunnel"][0]["inbound"]["encryption-key"],
        &parsed["tunnel"][0]["outbound"]["encryption-key"],
    );
    for used in [inbound, outbound] {
        daemon.refused("SaAdd", json!({ "tunnel": keys(0x3001, used) }), "tunnel.outbound.encryption-key");
    }
    daemon.call("SaDelete", json!({ "tunnel": "b" })).unwrap();
    for used in [inbound, outbound] {
        let message = daemon.refused(
            "SaAdd",
            json!({ "tunnel": keys(0x3001, used) }),
            "tunnel.outbound.encryption-key",
        );
        assert!(message.contains("nonces") && message.contains("adit key generate"), "{message}");
    }
    assert!(!has_sa(&daemon, 0x3001));

    // After a restart: refused, and nothing starts.
    let directory = daemon.stop();
    let error = Daemon::start_in(directory, &config).err().expect("a burnt key");
    assert!(
        error.contains("tunnel[0].outbound.encryption-key")
            || error.contains("tunnel[0].inbound.encryption-key"),
        "{error}"
    );
}

#[test]
fn a_new_salt_or_another_counter_mode_does_not_make_a_used_key_new() {
    let daemon = Daemon::start(&config_of(&tunnel("b", 0x1001), POLICY));
    let aes = key(16);
    let with = |encryption: &str, salt: &str| {
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
        json!({ "tunnel": tunnel })
    };
    daemon.call("SaAdd", with("aes-128-gcm", "a1b2c3d4")).unwrap();
    daemon.call("SaDelete", json!({ "tunnel": "c" })).unwrap();
    for used in [
        with("aes-128-gcm", "00010203"),
        with("aes-128-ccm", "a1b2c3"),
        with("aes-128-gmac", "a1b2c3d4"),
        with("aes-128-ctr", "a1b2c3d4"),
    ] {
        let message = daemon.refused("SaAdd", used, "tunnel.outbound.encryption-key");
        assert!(message.contains("nonces"), "{message}");
    }
    // In both directions at once it is one key for two SAs.
    let mut twice = with("aes-128-gcm", "00010203");
    let fresh = key(16);
    for (direction, salt) in [("inbound", "00000001"), ("outbound", "00000002")] {
        twice["tunnel"][direction]["encryption_key"] = json!(format!("{fresh}{salt}"));
    }
    daemon.refused("SaAdd", twice, "tunnel.outbound.encryption-key");
}

#[test]
fn a_cbc_key_needs_the_operators_word_after_a_restart() {
    let table = |risk: bool| {
        let mut table = json!({
            "name": "b", "local": "192.0.2.1", "remote": "192.0.2.2",
            "encryption": "aes-128-cbc", "authentication": "sha256",
            "inbound": { "spi": 0x1001, "encryption_key": format!("hex:{:032x}", 1), "authentication_key": format!("hex:{:064x}", 1) },
            "outbound": { "spi": 0x1002, "encryption_key": format!("hex:{:032x}", 2), "authentication_key": format!("hex:{:064x}", 2) },
        });
        if risk {
            table["replay_after_restart"] = json!("accept-risk");
        }
        config_of(&table, POLICY)
    };
    let daemon = Daemon::start(&table(false));
    assert_eq!(daemon.call("Status", json!({})).unwrap()["warnings"], json!([]));
    let directory = daemon.stop();
    let error = Daemon::start_in(directory.clone(), &table(false)).err().expect("used before");
    assert!(error.contains("accept-risk"), "{error}");
    let daemon = Daemon::start_in(directory, &table(true)).unwrap();
    let warnings = daemon.call("Status", json!({})).unwrap()["warnings"].to_string();
    assert!(warnings.contains("reset the SAs of the peer"), "{warnings}");
}

#[test]
fn a_reload_keeps_what_did_not_change() {
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
    assert_eq!(after[0].selectors.get().unwrap()[0].remote.first.to_string(), "10.0.0.0");

    // A changed interface needs a restart.
    std::fs::write(&daemon.config, config_of(&table, &wider).replace("\"outside\"", "\"other\"")).unwrap();
    daemon.refused("Reload", json!({}), "interface");

    // New keys under new SPIs: the old SA goes, the policy's count stays.
    let mut rekeyed = tunnel("b", 0x4001);
    rekeyed["local"] = table["local"].clone();
    std::fs::write(&daemon.config, config_of(&rekeyed, POLICY)).unwrap();
    drop((before, after, spd));
    let change = daemon.call("Reload", json!({})).unwrap();
    assert_eq!(
        (&change["kept"], &change["added"], &change["removed"], &change["wiped"]),
        (&json!(0), &json!(2), &json!(2), &json!(true))
    );
    assert!(has_sa(&daemon, 0x4001) && !has_sa(&daemon, 0x1001));
    assert_eq!(daemon.hooks.lock().unwrap().spis.iter().copied().collect::<Vec<_>>(), [0x4001]);
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
    assert!(message.contains("start over"), "{message}");
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
