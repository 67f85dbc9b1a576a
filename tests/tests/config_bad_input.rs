//! Every field of the configuration, as its own schema lists them, wrong in turn: the error names the field
//! and its line. A field without a case fails the test.
// One table with every field is a long macro.
#![recursion_limit = "256"]

use std::collections::BTreeSet;

use adit_engine::control::{check, config};
use serde_json::{Value, json};

/// A file with every field in it, and right.
fn good() -> Value {
    json!({
        "engine": {
            "instance": "a", "cores": [0, 1], "bpffs": "/sys/fs/bpf", "state-dir": "/var/lib/adit",
            "socket": "/run/adit/adit.sock", "socket-group": "root", "default": "kernel", "allow-legacy": false,
            "xdp-mode": "auto", "clamp-mss": true, "host-path": true, "audit": "log",
            "reassembly": {
                "memory-bytes": 1000000, "datagrams-per-source": 10, "fragments-per-datagram": 8,
                "timeout-seconds": 3,
            },
            "icmp": {
                "accept": ["packet-too-big", "unreachable"], "path-mtu-floor-ipv4": 1200,
                "path-mtu-floor-ipv6": 1300, "path-mtu-seconds": 60,
                "tell-discarded": true,
            },
        },
        "interface": [
            { "name": "inside", "side": "protected", "mode": "skb" },
            { "name": "outside", "side": "unprotected" },
            { "name": "inside.100", "side": "protected", "parent": "inside", "vlan": 100 },
            { "name": "inside.30.20", "side": "protected", "parent": "inside", "vlan": [30, 20] },
        ],
        "profile": { "strong": {
            "encryption": "aes-256-gcm", "authentication": "none", "icv-length": 16, "dh-group": "group20",
            "esn": true, "replay-window": 1024,
            "lifetime-packets-soft": 900, "lifetime-packets-hard": 1000, "lifetime-bytes-soft": 9000,
            "lifetime-bytes-hard": 10000, "lifetime-seconds-soft": 90, "lifetime-seconds-hard": 100,
        } },
        "tunnel": [{
            "name": "b", "local": "192.0.2.1", "remote": "192.0.2.2", "profile": "strong", "protocol": "esp",
            "mode": "tunnel", "udp-port": 4500, "local-udp-port": 4501, "nat-keepalive-seconds": 30,
            "encryption": "aes-128-cbc", "authentication": "sha256", "icv-length": 16, "esn": true,
            "replay-window": 64, "dscp": 46, "ecn": "clear", "df": "copy", "fragmentation": "after", "ttl": 64, "workers": "one",
            "clamp-mss": true,
            "tfc-padding": 256, "dummy-rate": 100, "dummy-size": "64-1400", "dummy-when": "always",
            "lifetime-packets-soft": 900, "lifetime-packets-hard": 1000, "lifetime-bytes-soft": 9000,
            "lifetime-bytes-hard": 10000, "lifetime-seconds-soft": 90, "lifetime-seconds-hard": 100,
            "inbound": {
                "spi": 4097,
                "encryption-key": "hex:00112233445566778899aabbccddeeff",
                "authentication-key": "hex:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
                "fresh-key": true,
                "last-sequence": 7,
            },
            "outbound": {
                "spi": "0x1002",
                "encryption-key": "hex:ff112233445566778899aabbccddeeff",
                "authentication-key": "hex:ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
                "fresh-key": true,
                "last-sequence": 7,
            },
        }, {
            "name": "hosts", "local": "192.0.2.1", "remote": "192.0.2.7", "protocol": "ah", "mode": "transport",
            "ah-padding": "linux", "destination-options": "before", "authentication": "sha256", "through": "b",
            "inbound": {
                "spi": 4099,
                "authentication-key": "hex:77112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
            },
        }],
        "policy": [
            {
                "name": "web", "action": "protect", "tunnel": "b", "local": ["10.1.0.0/16"],
                "remote": ["10.2.0.0/16"], "protocol": "tcp", "local-ports": "1000-2000", "remote-ports": 80,
                "direction": "both",
            },
            { "name": "ping", "action": "protect", "tunnel": "b", "protocol": "icmp", "icmp": "8/0" },
            {
                "name": "host", "action": "protect", "tunnel": "hosts", "local": ["192.0.2.1"],
                "remote": ["192.0.2.7"],
            },
        ],
    })
}

/// Values that have the right type and are wrong all the same, for every field of the schema. An empty list: the
/// type is all that can be wrong.
fn wrong(path: &str) -> Option<Vec<Value>> {
    let key = vec![
        json!(""),
        json!("hex:"),
        json!("hex:0"),
        json!("hex:zz"),
        json!("hex:00"),
        json!("0x00"),
        json!("file:/nonexistent"),
    ];
    Some(match path {
        "engine.instance" => {
            vec![
                json!(""),
                json!("a/b"),
                json!("../x"),
                json!("a b"),
                json!("x".repeat(65)),
                json!("x".repeat(15)),
            ]
        }
        "engine.cores" => vec![json!([]), json!([0, 0]), json!([-1]), json!([4096]), json!([4294967296u64])],
        "engine.bpffs" | "engine.state-dir" | "engine.socket" => vec![json!(""), json!("relative")],
        "engine.socket-group" => vec![json!(""), json!("no such group")],
        "engine.reassembly.memory-bytes" => {
            vec![json!(1), json!(65_535), json!(1_073_741_825), json!(-1), json!("4M")]
        }
        "engine.reassembly.datagrams-per-source" => vec![json!(0), json!(65_537), json!(-1)],
        "engine.reassembly.fragments-per-datagram" => vec![json!(1), json!(129), json!(-1)],
        "engine.reassembly.timeout-seconds" => vec![json!(0), json!(61), json!(0.5)],
        "engine.icmp.accept" => vec![json!(["echo"]), json!("packet-too-big"), json!([3])],
        "engine.icmp.path-mtu-floor-ipv4" => vec![json!(67), json!(65_536), json!(-1)],
        "engine.icmp.path-mtu-floor-ipv6" => vec![json!(1279), json!(65_536), json!(-1)],
        "engine.icmp.path-mtu-seconds" => vec![json!(0), json!(86_401), json!("10m")],
        "engine.default" => vec![json!("allow")],
        "engine.audit" => vec![json!("on"), json!("")],
        "engine.xdp-mode" | "interface.mode" => vec![json!("fast")],
        "engine.allow-legacy"
        | "engine.clamp-mss"
        | "engine.host-path"
        | "engine.icmp.tell-discarded"
        | "tunnel.clamp-mss"
        | "profile.esn"
        | "tunnel.esn" => {
            vec![]
        }
        // Wrong in the file of a daemon, see below.
        "tunnel.inbound.fresh-key" | "tunnel.outbound.fresh-key" => vec![],
        "interface.name" => {
            vec![json!(""), json!("a name"), json!("sixteen-bytes-xx"), json!("a/b"), json!("outside")]
        }
        "interface.side" => vec![json!("inside")],
        "interface.parent" => vec![json!(""), json!("nowhere"), json!("inside.100"), json!("inside.30.20")],
        "interface.vlan" => vec![
            json!(0),
            json!(4095),
            json!(-1),
            json!("100"),
            json!(1.5),
            json!([]),
            json!([100]),
            json!([1, 2, 3]),
            json!([0, 20]),
            json!([30, 4095]),
        ],
        "profile.encryption" => vec![json!("AES"), json!("aes-128"), json!("")],
        "tunnel.encryption" => vec![json!("AES"), json!("des"), json!("3des")],
        "profile.authentication" => vec![json!("sha2"), json!("sha256")],
        "tunnel.authentication" => vec![json!("sha2"), json!("none")],
        "profile.icv-length" | "tunnel.icv-length" => {
            vec![json!(0), json!(15), json!(17), json!(256), json!(-1)]
        }
        "profile.dh-group" => {
            vec![json!("14"), json!("group3"), json!("group22"), json!("group1"), json!("group5")]
        }
        "profile.replay-window" | "tunnel.replay-window" => {
            vec![json!(0), json!(31), json!(65537), json!(-1)]
        }
        lifetime if lifetime.contains(".lifetime-") => {
            let mut wrong = vec![json!(0), json!(-1), json!(1.5), json!("an hour")];
            // Beyond the hard limit.
            wrong.extend(lifetime.ends_with("-soft").then(|| json!(10_001)));
            wrong
        }
        "tunnel.name" | "policy.name" => vec![json!(""), json!("a b"), json!("-x")],
        "tunnel.local" => {
            vec![json!(""), json!("host"), json!("192.0.2.0/24"), json!("0.0.0.0"), json!("127.0.0.1")]
        }
        "tunnel.remote" => vec![
            json!("::"),
            json!("224.0.0.1"),
            json!("255.255.255.255"),
            json!("2001:db8::1"),
            json!("192.0.2.1"),
        ],
        "tunnel.protocol" => vec![json!("gre"), json!("ESP")],
        // What AH and transport mode do not have is set here: each of those fields says so.
        "tunnel.mode" => vec![json!("host"), json!("transport")],
        "tunnel.udp-port" => vec![json!(0), json!(65536), json!(-1)],
        "tunnel.local-udp-port" => vec![json!(0), json!(500), json!(65536)],
        "tunnel.nat-keepalive-seconds" => vec![json!(-1), json!(1u64 << 32), json!("often")],
        "tunnel.ah-padding" => vec![json!("align4")],
        "tunnel.destination-options" => vec![json!("outside")],
        "tunnel.profile" => vec![json!(""), json!("weak")],
        "tunnel.dscp" => vec![json!("all"), json!(64), json!(-1), json!("")],
        "tunnel.ecn" => vec![json!("set"), json!("")],
        "tunnel.df" => vec![json!("keep"), json!("set")],
        "tunnel.fragmentation" => vec![json!("later"), json!("")],
        "tunnel.ttl" => vec![json!(0), json!(256), json!(-1)],
        "tunnel.through" => vec![json!(""), json!("nobody"), json!("hosts")],
        "tunnel.tfc-padding" => vec![json!("on"), json!(1), json!(65536), json!(-1), json!("")],
        "tunnel.dummy-rate" => vec![json!(0), json!(10_001), json!(-1), json!(0.5)],
        "tunnel.dummy-size" => vec![json!(0), json!("1400-64"), json!(65536), json!("any"), json!("")],
        "tunnel.dummy-when" => vec![json!("never")],
        "tunnel.workers" => vec![json!("two")],
        "tunnel.inbound.spi" | "tunnel.outbound.spi" => {
            vec![json!(0), json!(255), json!(4294967296u64), json!(-1), json!("0xff"), json!("")]
        }
        "tunnel.inbound.encryption-key" | "tunnel.outbound.encryption-key" => key,
        "tunnel.inbound.authentication-key" | "tunnel.outbound.authentication-key" => key,
        "tunnel.inbound.last-sequence" | "tunnel.outbound.last-sequence" => {
            vec![json!(-1), json!("x"), json!("18446744073709551616")]
        }
        "policy.action" => vec![json!("allow")],
        "policy.tunnel" => vec![json!(""), json!("c")],
        "policy.local" => {
            vec![json!([]), json!(["10.1.0.1/16"]), json!(["10.1.0.0/33"]), json!(["x"]), json!([7])]
        }
        "policy.remote" => vec![
            json!([]),
            json!(["10.9.0.9-10.9.0.1"]),
            json!(["224.0.0.0/4"]),
            json!(["ff02::/16"]),
            json!(["::/0"]),
            json!([""]),
        ],
        "policy.protocol" => vec![json!("TCP"), json!(256), json!(-1), json!("")],
        "policy.local-ports" | "policy.remote-ports" => {
            vec![json!(65536), json!("2-1"), json!("http"), json!("")]
        }
        "policy.icmp" => vec![json!("256"), json!("8/0/0"), json!("echo")],
        "policy.direction" => vec![json!("left")],
        // Tables within tables.
        "engine" | "engine.reassembly" | "engine.icmp" | "interface" | "profile" | "tunnel" | "policy"
        | "tunnel.inbound" | "tunnel.outbound" => {
            vec![]
        }
        _ => return None,
    })
}

/// Every field of the schema: its path without indexes, and its schema.
fn fields(schema: &Value, root: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    let schema = resolve(schema, root);
    if let Some(items) = schema.get("items") {
        fields(items, root, path, found);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        fields(values, root, path, found);
    }
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        found.push((path.clone(), field.clone()));
        fields(field, root, &path, found);
    }
}

fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let options = schema.get("anyOf").and_then(Value::as_array);
    if let Some(option) = options.and_then(|options| options.iter().find(|option| option["type"] != "null")) {
        return resolve(option, root);
    }
    match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => resolve(root.pointer(reference.trim_start_matches('#')).expect(reference), root),
        None => schema,
    }
}

/// A value of a type that the field does not have.
fn other_type(schema: &Value, root: &Value) -> Value {
    let schema = resolve(schema, root);
    let types = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    let has = |name: &str| {
        types.iter().any(|own| own == name) || (name == "string" && schema.get("enum").is_some())
    };
    if has("boolean") { json!("yes") } else { json!(true) }
}

/// Where the field is in [`good`]: its pointer and how messages call it.
fn place(path: &str) -> (String, String) {
    let (mut pointer, mut name) = (String::new(), String::new());
    for (depth, part) in path.split('.').enumerate() {
        pointer += &format!("/{part}");
        name += &if depth == 0 { part.to_owned() } else { format!(".{part}") };
        if depth == 0 && path.contains('.') {
            match part {
                // icmp is only right in the second policy.
                "policy" if path == "policy.icmp" => {
                    (pointer, name) = ("/policy/1".into(), "policy[1]".into())
                }
                // Only right in a VLAN.
                "interface" if ["interface.parent", "interface.vlan"].contains(&path) => {
                    (pointer, name) = ("/interface/2".into(), "interface[2]".into())
                }
                // Only right with AH, and in transport mode: in the second tunnel.
                "tunnel"
                    if ["tunnel.ah-padding", "tunnel.destination-options", "tunnel.through"]
                        .contains(&path) =>
                {
                    (pointer, name) = ("/tunnel/1".into(), "tunnel[1]".into())
                }
                "interface" | "tunnel" | "policy" => {
                    pointer += "/0";
                    name += "[0]";
                }
                "profile" => {
                    pointer += "/strong";
                    name += ".strong";
                }
                _ => {}
            }
        }
    }
    (pointer, name)
}

fn set(file: &mut Value, pointer: &str, value: Value) {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = file.pointer_mut(parent).unwrap();
    parent[field] = value;
}

fn remove(file: &mut Value, pointer: &str) {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    file.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field);
}

/// Loads it (offline, so that last-sequence may be there) and gives the problems back.
fn problems(file: &Value) -> (String, Vec<adit_engine::control::Problem>) {
    let text = toml::to_string(file).unwrap();
    let problems = check::load(&text, true).err().map(|problems| problems.0).unwrap_or_default();
    (text, problems)
}

#[test]
fn the_good_file_is_good_and_complete() {
    let (text, found) = problems(&good());
    assert!(found.is_empty(), "{found:?}\n{text}");
    let schema = config::schema();
    let mut all = Vec::new();
    fields(&schema, &schema, "", &mut all);
    assert!(all.len() >= 59, "the schema was walked: {}", all.len());
    for (path, _) in all {
        let (pointer, _) = place(&path);
        assert!(good().pointer(&pointer).is_some(), "{path} ({pointer}) is missing in the good file: add it");
    }
}

#[test]
fn every_field_wrong_in_turn_is_named() {
    let schema = config::schema();
    let mut all = Vec::new();
    fields(&schema, &schema, "", &mut all);
    let mut cases = 0;
    for (path, field) in &all {
        let mut values = wrong(path).unwrap_or_else(|| panic!("{path} has no case: add wrong values for it"));
        values.push(other_type(field, &schema));
        let (pointer, name) = place(path);
        for value in values {
            let mut file = good();
            set(&mut file, &pointer, value.clone());
            let (text, found) = problems(&file);
            let named = |problem: &&adit_engine::control::Problem| {
                problem.field == name
                    || problem.field.starts_with(&format!("{name}["))
                    || related(path).is_some_and(|other| problem.field.ends_with(other))
            };
            let Some(problem) = found.iter().find(named) else {
                panic!("{path} = {value}: expected a problem with {name}, found {found:?}");
            };
            assert!(problem.message.len() > 20, "{path} = {value}: says too little: {problem}");
            let line = problem.line.unwrap_or_else(|| panic!("{path} = {value}: no line: {problem}"));
            assert!(line <= text.lines().count(), "{path}: line {line}");
            let secret = value.as_str().is_some_and(|text| text.starts_with("hex:") && text.len() > 5);
            assert!(
                !secret || !problem.message.contains(&value.as_str().unwrap()[4..]),
                "{path}: the key is shown: {problem}"
            );
            cases += 1;
        }
    }
    assert!(cases > 150, "{cases} cases");
}

/// Where a value is right by itself, and wrong beside another field: the message may name that one.
fn related(path: &str) -> Option<&'static str> {
    match path {
        // Two interfaces of one name: the second one is named.
        "interface.name" => Some("interface[1].name"),
        // The peer's address is compared with ours.
        "tunnel.local" => Some("tunnel[0].remote"),
        // The outer header's fields are refused, one by one.
        "tunnel.mode" => Some("tunnel[0].ttl"),
        // Nothing sealed may be fragmented then.
        "tunnel.df" => Some("tunnel[0].fragmentation"),
        _ => None,
    }
}

/// A line that stays would declare a used key fresh again when its record is lost.
#[test]
fn no_file_of_a_daemon_declares_a_key_fresh() {
    let mut file = good();
    for direction in ["inbound", "outbound"] {
        remove(&mut file, &format!("/tunnel/0/{direction}/last-sequence"));
    }
    let found = check::load(&toml::to_string(&file).unwrap(), false).err().expect("refused").0;
    let fields: Vec<_> = found.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, ["tunnel[0].inbound.fresh-key", "tunnel[0].outbound.fresh-key"]);
    assert!(found[0].message.contains("adit key declare-fresh"), "{}", found[0]);
    for direction in ["inbound", "outbound"] {
        remove(&mut file, &format!("/tunnel/0/{direction}/fresh-key"));
    }
    assert!(check::load(&toml::to_string(&file).unwrap(), false).is_ok());
}

#[test]
fn a_wrong_value_is_on_its_own_line() {
    let (text, found) = {
        let mut file = good();
        set(&mut file, "/tunnel/0/outbound/spi", json!(7));
        problems(&file)
    };
    assert_eq!(found.len(), 1, "{found:?}");
    let line = text.lines().nth(found[0].line.unwrap() - 1).unwrap();
    assert_eq!(line.trim(), "spi = 7");
}

#[test]
fn an_unknown_sibling_is_named_in_every_table() {
    for (pointer, name) in [
        ("", ""),
        ("/engine", "engine."),
        ("/engine/reassembly", "engine.reassembly."),
        ("/engine/icmp", "engine.icmp."),
        ("/interface/0", "interface[0]."),
        ("/profile/strong", "profile.strong."),
        ("/tunnel/0", "tunnel[0]."),
        ("/tunnel/0/inbound", "tunnel[0].inbound."),
        ("/policy/1", "policy[1]."),
    ] {
        for field in ["unheard-of", "clamp_mss"] {
            let mut file = good();
            set(&mut file, &format!("{pointer}/{field}"), json!(1));
            let (_, found) = problems(&file);
            let wanted = format!("{name}{field}");
            assert!(found.iter().any(|problem| problem.field == wanted), "{wanted}: {found:?}");
        }
    }
}

#[test]
fn a_missing_field_is_named() {
    let schema = config::schema();
    let mut required = BTreeSet::new();
    let tables = [
        ("InterfaceTable", "interface"),
        ("ProfileTable", "profile"),
        ("TunnelTable", "tunnel"),
        ("SaTable", "tunnel.inbound"),
        ("PolicyTable", "policy"),
    ];
    for (definition, path) in tables {
        for field in
            schema["$defs"][definition]["required"].as_array().unwrap_or_else(|| panic!("{definition}"))
        {
            required.insert(format!("{path}.{}", field.as_str().unwrap()));
        }
    }
    assert!(required.len() >= 8, "{required:?}");
    for path in required {
        let (pointer, name) = place(&path);
        let mut file = good();
        remove(&mut file, &pointer);
        let (_, found) = problems(&file);
        assert!(found.iter().any(|problem| problem.field == name), "{name}: {found:?}");
    }
}

#[test]
fn mistakes_of_several_tables_are_told_together() {
    let mut file = good();
    set(&mut file, "/engine/default", json!("no"));
    set(&mut file, "/tunnel/0/ttl", json!(0.5));
    set(&mut file, "/policy/0/action", json!("no"));
    let (_, found) = problems(&file);
    assert_eq!(found.len(), 3, "{found:?}");
    let mut file = good();
    set(&mut file, "/tunnel/0/ttl", json!(0));
    set(&mut file, "/tunnel/0/dscp", json!(64));
    set(&mut file, "/tunnel/0/inbound/spi", json!(1));
    set(&mut file, "/policy/0/protocol", json!("none"));
    let (_, found) = problems(&file);
    let fields: Vec<_> = found.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, ["tunnel[0].dscp", "tunnel[0].ttl", "tunnel[0].inbound.spi", "policy[0].protocol"]);
}

#[test]
fn what_is_right_alone_and_wrong_together() {
    let refused = |change: fn(&mut Value), field: &str| {
        let mut file = good();
        change(&mut file);
        let (_, found) = problems(&file);
        assert!(found.iter().any(|problem| problem.field == field), "{field}: {found:?}");
    };
    let second = |file: &mut Value, change: fn(&mut Value)| {
        let mut tunnel = file["tunnel"][0].clone();
        tunnel["name"] = json!("c");
        tunnel["remote"] = json!("192.0.2.3");
        for (direction, spi) in [("inbound", 0x2001), ("outbound", 0x2002)] {
            tunnel[direction]["spi"] = json!(spi);
            tunnel[direction]["encryption-key"] = json!(format!("hex:{:032x}", spi));
        }
        change(&mut tunnel);
        file["tunnel"].as_array_mut().unwrap().push(tunnel);
    };
    let mut file = good();
    second(&mut file, |_| {});
    assert!(problems(&file).1.is_empty(), "the second tunnel is right: {:?}", problems(&file).1);
    for (change, field) in [
        ((|tunnel: &mut Value| tunnel["name"] = json!("b")) as fn(&mut Value), "tunnel[2].name"),
        (|tunnel| tunnel["inbound"]["spi"] = json!(4097), "tunnel[2].inbound.spi"),
        (
            |tunnel| {
                tunnel["remote"] = json!("192.0.2.2");
                tunnel["outbound"]["spi"] = json!("4098");
            },
            "tunnel[2].outbound.spi",
        ),
        (
            |tunnel| {
                tunnel["outbound"]["encryption-key"] =
                    good()["tunnel"][0]["outbound"]["encryption-key"].clone()
            },
            "tunnel[2].outbound.encryption-key",
        ),
    ] {
        let mut file = good();
        second(&mut file, change);
        if field.ends_with("encryption-key") {
            file["tunnel"][2]["outbound"]["authentication-key"] =
                file["tunnel"][0]["outbound"]["authentication-key"].clone();
        }
        let (_, found) = problems(&file);
        assert!(found.iter().any(|problem| problem.field == field), "{field}: {found:?}");
    }
    // The host path's device is not an interface to steer, and has to be named.
    refused(|file| file["interface"][1]["name"] = json!("a0"), "interface[1].name");
    refused(|file| file["engine"]["instance"] = json!("fifteen-letters"), "engine.instance");
    // VLANs.
    refused(|file| file["interface"][3]["vlan"] = json!(100), "interface[3].vlan");
    refused(|file| file["interface"][2]["mode"] = json!("skb"), "interface[2].mode");
    refused(|file| drop(file["interface"][2].as_object_mut().unwrap().remove("vlan")), "interface[2].vlan");
    refused(
        |file| drop(file["interface"][2].as_object_mut().unwrap().remove("parent")),
        "interface[2].parent",
    );
    // One key for both directions.
    refused(
        |file| {
            for key in ["encryption-key", "authentication-key"] {
                file["tunnel"][0]["outbound"][key] = file["tunnel"][0]["inbound"][key].clone();
            }
        },
        "tunnel[0].outbound.encryption-key",
    );
    // AH does not encrypt, ESP has no AH padding, a tunnel has no transport mode, and the reverse.
    refused(|file| file["tunnel"][1]["encryption"] = json!("aes-128-cbc"), "tunnel[1].encryption");
    refused(|file| file["tunnel"][1]["authentication"] = json!("none"), "tunnel[1].authentication");
    refused(|file| remove(file, "/tunnel/1/authentication"), "tunnel[1].authentication");
    // GMAC does both.
    refused(|file| file["tunnel"][1]["encryption"] = json!("aes-128-gmac"), "tunnel[1].authentication");
    refused(|file| file["tunnel"][1]["profile"] = json!("strong"), "tunnel[1].encryption");
    refused(
        |file| remove(file, "/tunnel/1/inbound/authentication-key"),
        "tunnel[1].inbound.authentication-key",
    );
    refused(
        |file| file["tunnel"][1]["inbound"]["encryption-key"] = json!("hex:00112233445566778899aabbccddeeff"),
        "tunnel[1].inbound.encryption-key",
    );
    refused(|file| file["tunnel"][1]["protocol"] = json!("esp"), "tunnel[1].ah-padding");
    refused(|file| file["tunnel"][1]["mode"] = json!("tunnel"), "tunnel[1].destination-options");
    for (field, value) in
        [("dscp", json!(0)), ("ecn", json!("copy")), ("df", json!("set")), ("ttl", json!(64))]
    {
        let mut file = good();
        file["tunnel"][1][field] = value;
        let (_, found) = problems(&file);
        let name = format!("tunnel[1].{field}");
        assert!(found.iter().any(|problem| problem.field == name), "{name}: {found:?}");
    }
    refused(|file| file["tunnel"][1]["udp-port"] = json!(4500), "tunnel[1].udp-port");
    refused(|file| file["tunnel"][1]["local-udp-port"] = json!(4500), "tunnel[1].local-udp-port");
    refused(|file| file["tunnel"][1]["nat-keepalive-seconds"] = json!(20), "tunnel[1].nat-keepalive-seconds");
    // Padding and dummy packets are ESP's, in a tunnel; and without a rate there are no dummies to speak of.
    refused(|file| file["tunnel"][0]["mode"] = json!("transport"), "tunnel[0].tfc-padding");
    refused(|file| file["tunnel"][1]["tfc-padding"] = json!("mtu"), "tunnel[1].tfc-padding");
    refused(|file| file["tunnel"][1]["dummy-rate"] = json!(1), "tunnel[1].dummy-rate");
    refused(|file| remove(file, "/tunnel/0/dummy-rate"), "tunnel[0].dummy-size");
    refused(|file| remove(file, "/tunnel/0/dummy-rate"), "tunnel[0].dummy-when");
    // Transport mode is between the endpoints, and nobody else.
    refused(|file| file["policy"][2]["local"] = json!(["192.0.2.0/24"]), "policy[2].local");
    refused(
        |file| {
            file["tunnel"][1]["local"] = json!("2001:db8::1");
            file["tunnel"][1]["remote"] = json!("fe80::7");
        },
        "tunnel[1].remote",
    );
    refused(|file| file["policy"][2]["remote"] = json!(["192.0.2.8"]), "policy[2].remote");
    refused(|file| remove(file, "/policy/2/remote"), "policy[2].remote");
    // A key for two AH SAs is named as what it is.
    refused(
        |file| {
            let mut other = file["tunnel"][1]["inbound"].clone();
            other["spi"] = json!(4100);
            file["tunnel"][1]["outbound"] = other;
        },
        "tunnel[1].outbound.authentication-key",
    );
    refused(|file| file["policy"][1]["name"] = json!("web"), "policy[1].name");
    refused(|file| remove(file, "/policy/0/tunnel"), "policy[0].tunnel");
    refused(|file| file["policy"][0]["action"] = json!("bypass"), "policy[0].tunnel");
    refused(|file| remove(file, "/policy/0/protocol"), "policy[0].local-ports");
    refused(|file| remove(file, "/policy/1/protocol"), "policy[1].icmp");
}
