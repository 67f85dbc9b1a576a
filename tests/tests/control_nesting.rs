//! Tunnels in tunnels, as they are asked for: what cannot be is refused by name, and what can is what workers get.

use std::sync::Arc;

use adit_engine::policy::{Action, Tunnel};
use adit_tests::control::{BASE, Daemon, key, tunnel};
use serde_json::{Value, json};

/// A tunnel of its own peer's, through another one.
fn through(name: &str, number: u32, outer: Option<&str>) -> Value {
    let mut table = tunnel(name, 0x1000 * number);
    table["remote"] = json!(format!("192.0.2.{}", number + 1));
    if let Some(outer) = outer {
        table["through"] = json!(outer);
    }
    table
}

fn policy(tunnel: &str) -> Value {
    json!({
        "name": "p", "action": "protect", "tunnel": tunnel, "local": ["10.1.0.0/16"], "remote": ["10.2.0.0/16"]
    })
}

/// The tunnel of the one policy.
fn innermost(daemon: &Daemon) -> Arc<Tunnel> {
    let spd = daemon.tables.spd.get().unwrap();
    let Action::Protect(tunnel) = &spd.policies[0].action else { panic!("a PROTECT policy") };
    tunnel.clone()
}

fn names(daemon: &Daemon) -> Vec<String> {
    innermost(daemon).layers().map(|tunnel| tunnel.name.to_string()).collect()
}

#[test]
fn a_chain_is_built_from_the_outside_and_changes_with_its_links() {
    let daemon = Daemon::start(BASE);
    for (name, number, outer) in [("c", 3, None), ("b", 2, Some("c"))] {
        daemon.call("SaAdd", json!({ "tunnel": through(name, number, outer) })).unwrap();
    }
    daemon.call("SaAdd", json!({ "tunnel": through("a", 1, Some("b")), "policies": [policy("a")] })).unwrap();
    assert_eq!(names(&daemon), ["a", "b", "c"]);
    let spd = daemon.tables.spd.get().unwrap();
    assert_eq!(spd.outer_of("b").map(|tunnel| &*tunnel.name), Some("c"));
    assert_eq!(spd.outer_of("c").map(|tunnel| &*tunnel.name), None);

    // Another SA in the middle: the same tunnels, and the policies do not notice.
    let fresh = json!({ "spi": "0x7777", "encryption_key": key(36), "fresh_key": true });
    daemon.call("SaReplace", json!({ "tunnel": "b", "outbound": fresh })).unwrap();
    assert!(Arc::ptr_eq(&spd, &daemon.tables.spd.get().unwrap()));
    let spis: Vec<_> =
        innermost(&daemon).layers().map(|tunnel| tunnel.outbound.get().unwrap().spec.sa.spi.0).collect();
    assert_eq!(spis, [0x1001, 0x7777, 0x3001]);
    drop(spd);

    // A link without SAs stays as long as another tunnel names it, and can be filled again.
    daemon.call("SaDelete", json!({ "tunnel": "c" })).unwrap();
    assert_eq!(names(&daemon), ["a", "b", "c"]);
    assert!(innermost(&daemon).layers().last().unwrap().outbound.get().is_none());
    daemon.call("SaAdd", json!({ "tunnel": through("c", 3, None) })).unwrap();
    assert!(innermost(&daemon).layers().last().unwrap().outbound.get().is_some());
}

#[test]
fn a_file_may_name_them_in_any_order() {
    let file = |outermost: &str| {
        let keys = |spi: u32| format!("spi = {spi}\nencryption-key = \"hex:{spi:064x}00000000\"");
        let table = |name: &str, number: u32, more: &str| {
            format!(
                "[[tunnel]]\nname = \"{name}\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.{}\"\nprofile = \"strong\"\n\
                 {more}\n[tunnel.inbound]\n{}\n[tunnel.outbound]\n{}\n",
                number + 1,
                keys(0x1000 * number),
                keys(0x1000 * number + 1)
            )
        };
        let policy = "[[policy]]\nname = \"p\"\naction = \"protect\"\ntunnel = \"a\"\nlocal = [\"10.1.0.0/16\"]\n\
                      remote = [\"10.2.0.0/16\"]\n";
        [
            BASE,
            &table("a", 1, "through = \"b\""),
            &table("b", 2, "through = \"c\""),
            &table("c", 3, outermost),
            policy,
        ]
        .concat()
    };
    let daemon = Daemon::start(&file(""));
    assert_eq!(names(&daemon), ["a", "b", "c"]);
    let list = daemon.call("SaList", json!({})).unwrap();
    assert_eq!(list["sas"][0]["tunnel"], "a", "in the file's order");
    // The outermost one becomes another tunnel, and so do those that go through it: their SAs stay what they are.
    let before = innermost(&daemon);
    std::fs::write(&daemon.config, file("clamp-mss = false")).unwrap();
    let change = daemon.call("Reload", json!({})).unwrap();
    assert_eq!((&change["kept"], &change["added"]), (&json!(6), &json!(0)));
    let after = innermost(&daemon);
    assert!(!after.layers().last().unwrap().clamp_mss);
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(Arc::ptr_eq(&before.outbound.get().unwrap(), &after.outbound.get().unwrap()));

    // What was told of their paths holds on, as long as they are the same paths.
    let told = |tunnel: &Tunnel| tunnel.layers().map(|tunnel| tunnel.path.mtu(0, 1)).collect::<Vec<_>>();
    for (tunnel, mtu) in after.layers().zip([1_301, 1_302, 1_303]) {
        tunnel.path.learn(mtu, 0);
    }
    let reload = |text: &str| {
        std::fs::write(&daemon.config, text).unwrap();
        daemon.call("Reload", json!({})).unwrap();
        innermost(&daemon)
    };
    let third = reload(&file(""));
    assert!(!Arc::ptr_eq(&third, &after));
    assert_eq!(told(&third), [Some(1_301), Some(1_302), Some(1_303)]);
    daemon.call("SaDelete", json!({ "tunnel": "c" })).unwrap();
    let elsewhere = file("").replace("remote = \"192.0.2.4\"", "remote = \"192.0.2.44\"");
    assert_eq!(told(&reload(&elsewhere)), [None; 3], "and what goes through it goes another way");
}

#[test]
fn what_cannot_be_nested_is_refused() {
    let daemon = Daemon::start(BASE);
    let refused = |table: Value, field: &str| daemon.refused("SaAdd", json!({ "tunnel": table }), field);
    let message = refused(through("a", 1, Some("b")), "tunnel.through");
    assert!(message.contains("expected a tunnel (a)"), "{message}");
    let message = refused(through("a", 1, Some("a")), "tunnel.through");
    assert!(message.contains("a through a, a loop"), "{message}");
    let mut in_udp = through("a", 1, Some("a"));
    in_udp["udp_port"] = json!(4500);
    assert!(refused(in_udp, "tunnel.udp-port").contains("outermost"));

    // Four in a row, and not a fifth.
    for (name, number, outer) in
        [("d", 4, None), ("c", 3, Some("d")), ("b", 2, Some("c")), ("a", 1, Some("b"))]
    {
        daemon.call("SaAdd", json!({ "tunnel": through(name, number, outer) })).unwrap();
    }
    let message = refused(through("e", 5, Some("a")), "tunnel.through");
    assert!(message.contains("at most 4") && message.contains("e through a through b"), "{message}");

    // In transport mode it carries nothing but what is between its own endpoints.
    let mut transport = through("t", 6, None);
    transport["mode"] = json!("transport");
    daemon.call("SaAdd", json!({ "tunnel": transport })).unwrap();
    let message = refused(through("f", 7, Some("t")), "tunnel.through");
    assert!(message.contains("192.0.2.8") && message.contains("192.0.2.7"), "{message}");
    let mut same = through("f", 7, Some("t"));
    same["remote"] = json!("192.0.2.7");
    daemon.call("SaAdd", json!({ "tunnel": same })).unwrap();

    // A loop that a file makes.
    let table = |name: &str, through: &str, remote: u32| {
        format!(
            "[[tunnel]]\nname = \"{name}\"\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.{remote}\"\nprofile = \"strong\"\n\
             through = \"{through}\"\n"
        )
    };
    let circle = [BASE, &table("a", "b", 2), &table("b", "c", 3), &table("c", "a", 4)].concat();
    std::fs::write(&daemon.config, circle).unwrap();
    let (_, error) = daemon.call("Reload", json!({})).unwrap_err();
    let problems = error["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 3, "{error}");
    for problem in problems {
        assert!(problem["message"].as_str().unwrap().contains("a loop"), "{error}");
    }
}
