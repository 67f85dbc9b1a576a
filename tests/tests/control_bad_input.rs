//! Every parameter of every method, as the interface's own description lists them, wrong in turn: the error
//! names the field and nothing changes. A parameter without a case fails the test. The description is read by
//! another implementation of varlink, and the answers are held against it too.

use adit_tests::control::{BASE, Daemon, key, tunnel};
use serde_json::{Map, Value, json};
use zlink::idl::{CustomType, Interface, Type};

const DESCRIPTION: &str = adit_engine::control::protocol::DESCRIPTION;

fn interface() -> Interface<'static> {
    Interface::try_from(DESCRIPTION).expect("another implementation reads the description")
}

/// Parameters with every field in them, and right (but for keys used twice and SAs that are not there).
fn good(method: &str) -> Value {
    let full = json!({
        "name": "t", "local": "192.0.2.1", "remote": "192.0.2.2", "profile": "strong",
        "encryption": "aes-128-cbc", "authentication": "sha256", "icv_length": 16, "esn": true, "replay_window": 64,
        "dscp": "copy", "ecn": "clear", "df": "set", "ttl": 64, "workers": "shared", "clamp_mss": false,
        "through": "b", "tfc_padding": "mtu", "dummy_rate": 10, "dummy_size": "64-100", "dummy_when": "idle",
        "lifetime_packets_soft": 900, "lifetime_packets_hard": 1000,
        "lifetime_bytes_soft": 9000, "lifetime_bytes_hard": 10000, "lifetime_seconds_soft": 90, "lifetime_seconds_hard": 100,
        "inbound": { "spi": "0x7001", "encryption_key": key(16), "authentication_key": key(32), "fresh_key": true },
        "outbound": { "spi": "0x7002", "encryption_key": key(16), "authentication_key": key(32), "fresh_key": true },
    });
    let policy = |name: &str| {
        json!({
            "name": name, "action": "protect", "tunnel": "t", "local": ["10.1.0.0/16"], "remote": ["10.2.0.0/16"],
            "protocol": "tcp", "local_ports": "80", "remote_ports": "1000-2000", "direction": "both",
        })
    };
    match method {
        "Status" | "Stats" | "PolicyList" => json!({}),
        "Monitor" => json!({ "drops": true }),
        "DropsRecent" => json!({ "reason": "no_state" }),
        "Reload" => json!({ "fresh_keys": [] }),
        "Drops" => json!({ "all": true }),
        "SaList" => json!({ "tunnel": "b" }),
        "SaShow" => json!({ "tunnel": "b", "spi": "0x1001" }),
        "SaAdd" => json!({ "tunnel": full, "policies": [policy("p1")] }),
        "SaReplace" => {
            let mut other = tunnel("b", 0x6001);
            json!({ "tunnel": "b", "inbound": other["inbound"].take(), "outbound": other["outbound"].take(), "grace": 1 })
        }
        "SaDelete" => json!({ "tunnel": "b", "spi": "0x1001", "direction": "in" }),
        "PolicyAdd" => {
            let mut policy = policy("p2");
            policy["tunnel"] = json!("b");
            json!({ "policies": [policy], "position": 0 })
        }
        "PolicyDelete" => json!({ "name": "web" }),
        _ => panic!("{method} has no case: add parameters for it"),
    }
}

/// Values of the right type that are wrong all the same.
fn wrong(path: &str) -> Vec<Value> {
    let keys = || {
        vec![
            json!(""),
            json!("hex:"),
            json!("hex:0"),
            json!("hex:zz"),
            json!("hex:00"),
            json!("file:/etc/passwd"),
        ]
    };
    let leaf = path.rsplit('.').next().unwrap();
    match (leaf, path) {
        ("reason", _) => vec![json!(""), json!("NO_STATE"), json!("bad luck")],
        ("all" | "drops" | "esn" | "clamp_mss" | "fresh_key" | "inbound" | "outbound" | "policies", _) => {
            vec![]
        }
        ("tunnel", "SaAdd.tunnel") => vec![],
        ("tunnel", _) => vec![json!(""), json!("nobody")],
        ("spi", _) => {
            vec![json!(""), json!("0"), json!("255"), json!("0x100000000"), json!("spi"), json!(-1)]
        }
        ("direction", _) => vec![json!("up"), json!("")],
        ("name", "PolicyDelete.name") => vec![json!(""), json!("nobody")],
        ("name", _) => vec![json!(""), json!("a b"), json!("x".repeat(65))],
        ("local" | "remote", path) if path.contains("policies") => {
            vec![json!([]), json!(["10.0.0.1/8"]), json!([1])]
        }
        ("local" | "remote", _) => vec![json!(""), json!("::"), json!("10.0.0.0/8")],
        ("profile", _) => vec![json!(""), json!("weak")],
        ("encryption", _) => vec![json!("AES"), json!("des")],
        ("authentication", _) => vec![json!("sha2"), json!("none")],
        ("icv_length", _) => vec![json!(15), json!(-1), json!(256)],
        ("replay_window", _) => vec![json!(0), json!(31), json!(65537), json!(-1)],
        (lifetime, _) if lifetime.starts_with("lifetime_") => {
            let mut wrong = vec![json!(0), json!(-1), json!(u64::MAX)];
            wrong.extend(lifetime.ends_with("_soft").then(|| json!(10_001)));
            wrong
        }
        ("dscp", _) => vec![json!("64"), json!("all")],
        ("ecn" | "df", _) => vec![json!("keep")],
        ("ttl", _) => vec![json!(0), json!(256)],
        ("mode", _) => vec![json!("host"), json!("")],
        // By the one or the other: not these words, or not beside ESP in a tunnel.
        ("ah_padding", _) => vec![json!("align4"), json!("linux")],
        ("destination_options", _) => vec![json!("outside"), json!("before")],
        ("udp_port" | "local_udp_port", _) => vec![json!(0), json!(65536), json!(-1)],
        ("nat_keepalive_seconds", _) => vec![json!(-1), json!("often")],
        ("through", _) => vec![json!(""), json!("nobody"), json!("t")],
        ("tfc_padding", _) => vec![json!("on"), json!("1"), json!(65536)],
        ("dummy_rate", _) => vec![json!(0), json!(10_001), json!(-1)],
        ("dummy_size", _) => vec![json!(0), json!("2-1"), json!("65536"), json!("any")],
        ("dummy_when", _) => vec![json!("never")],
        ("fragmentation", _) => vec![json!("later"), json!("")],
        ("workers", _) => vec![json!("two")],
        ("encryption_key" | "authentication_key", _) => keys(),
        ("last_sequence", _) => vec![json!("7")],
        ("action", _) => vec![json!("allow")],
        ("protocol", _) => vec![json!("TCP"), json!("256")],
        ("local_ports" | "remote_ports", _) => vec![json!("2-1"), json!("65536")],
        ("icmp", _) => vec![json!("8/0"), json!("256")],
        ("fresh_keys", _) => vec![json!(["nobody"]), json!(["t", "nobody"]), json!([7])],
        ("grace", _) => vec![json!(-1), json!(86_401)],
        ("position", _) => vec![json!(-1), json!(1.5), json!(99)],
        _ => panic!("{path} has no case: add wrong values for it"),
    }
}

struct Field {
    /// As in `SaAdd.tunnel.inbound.spi`.
    path: String,
    /// As in `/tunnel/inbound/spi`.
    pointer: String,
    /// As problems call it, `tunnel.inbound.spi`.
    name: String,
    other_type: Value,
}

fn custom<'a>(interface: &'a Interface<'static>, name: &str) -> &'a CustomType<'static> {
    interface.custom_types().find(|custom| custom.name() == name).unwrap_or_else(|| panic!("type {name}"))
}

fn fields_of(interface: &Interface<'static>, at: &Field, kind: &Type<'_>, found: &mut Vec<Field>) {
    match kind {
        Type::Optional(inner) => fields_of(interface, at, inner.inner(), found),
        Type::Array(inner) => {
            let (pointer, name) = (format!("{}/0", at.pointer), format!("{}[0]", at.name));
            let element = Field { path: at.path.clone(), pointer, name, other_type: Value::Null };
            fields_of(interface, &element, inner.inner(), found);
        }
        Type::Custom(name) => {
            let CustomType::Object(object) = custom(interface, name) else { panic!("{name} is no object") };
            for field in object.fields() {
                let field_at = Field {
                    path: format!("{}.{}", at.path, field.name()),
                    pointer: format!("{}/{}", at.pointer, field.name()),
                    name: format!("{}.{}", at.name, field.name()),
                    other_type: other_type(field.ty()),
                };
                fields_of(interface, &field_at, field.ty(), found);
                found.push(field_at);
            }
        }
        _ => {}
    }
}

fn other_type(kind: &Type<'_>) -> Value {
    match kind {
        Type::Optional(inner) => other_type(inner.inner()),
        Type::Bool => json!("yes"),
        _ => json!(true),
    }
}

fn parameters() -> Vec<(String, Vec<Field>)> {
    let interface = interface();
    let methods = interface.methods().map(|method| {
        let mut found = Vec::new();
        for input in method.inputs() {
            let at = Field {
                path: format!("{}.{}", method.name(), input.name()),
                pointer: format!("/{}", input.name()),
                name: input.name().to_string(),
                other_type: other_type(input.ty()),
            };
            fields_of(&interface, &at, input.ty(), &mut found);
            found.push(at);
        }
        (method.name().to_string(), found)
    });
    methods.collect()
}

fn set(value: &mut Value, pointer: &str, new: Value) {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"))[field] = new;
}

#[test]
fn every_parameter_wrong_in_turn_is_named() {
    let daemon = Daemon::start(BASE);
    let bypass = json!({ "name": "web", "action": "bypass", "remote": ["198.51.100.0/24"] });
    daemon.call("SaAdd", json!({ "tunnel": tunnel("b", 0x1001), "policies": [bypass] })).unwrap();
    let generation = || daemon.call("Status", json!({})).unwrap()["generation"].clone();
    let before = generation();
    let (mut cases, mut fields) = (0, 0);
    let mut client = daemon.connect();
    for (method, inputs) in parameters() {
        for field in &inputs {
            fields += 1;
            let mut values = wrong(&field.path);
            values.push(field.other_type.clone());
            if field.path.ends_with("spi") {
                // A number is as good as text there.
                values.push(json!(1.5));
            }
            for value in values {
                let mut parameters = good(&method);
                set(&mut parameters, &field.pointer, value.clone());
                let (error, details) =
                    client.call(&method, parameters).expect_err(&format!("{} = {value}", field.path));
                assert_eq!(error, "io.adit.Engine.Refused", "{} = {value}: {details}", field.path);
                let problems = details["problems"].as_array().unwrap();
                let named = problems.iter().any(|problem| {
                    let name = problem["field"].as_str().unwrap().replace('-', "_");
                    name == field.name
                        || name.starts_with(&format!("{}[", field.name))
                        || related(&field.path) == Some(&name)
                });
                assert!(
                    named,
                    "{} = {value}: expected a problem with {}, found {details}",
                    field.path, field.name
                );
                assert!(
                    !details.to_string().contains("/etc/passwd") && !details.to_string().contains("root:"),
                    "{details}"
                );
                cases += 1;
            }
            // And a sibling that nobody knows.
            let mut parameters = good(&method);
            let (parent, _) = field.pointer.rsplit_once('/').unwrap();
            set(&mut parameters, &format!("{parent}/unheard_of"), json!(1));
            let (_, details) = client.call(&method, parameters).expect_err("an unknown field");
            let name = details["problems"][0]["field"].as_str().unwrap();
            assert!(name.ends_with("unheard_of"), "{name}: {details}");
        }
    }
    assert!(fields > 45 && cases > 150, "{fields} fields, {cases} cases");
    assert_eq!(generation(), before, "nothing changed");
}

/// Where a value is right by itself, and wrong beside another field.
fn related(path: &str) -> Option<&'static str> {
    match path {
        // No SA of that tunnel, or no tunnel with that SPI: the first of the two is named.
        "SaShow.spi" | "SaDelete.spi" => Some("tunnel"),
        "SaAdd.tunnel.local" => Some("tunnel.remote"),
        // The policy names the tunnel by the name that is wrong.
        _ => None,
    }
}

fn check_type(interface: &Interface<'static>, kind: &Type<'_>, value: &Value, path: &str) {
    match kind {
        Type::Optional(_) if value.is_null() => {}
        Type::Optional(inner) => check_type(interface, inner.inner(), value, path),
        Type::Array(inner) => {
            let items = value.as_array().unwrap_or_else(|| panic!("{path}: {value} is no array"));
            items.iter().for_each(|item| check_type(interface, inner.inner(), item, path));
        }
        Type::Bool => assert!(value.is_boolean(), "{path}: {value}"),
        Type::Int => assert!(value.is_i64() || value.is_u64(), "{path}: {value}"),
        Type::String => assert!(value.is_string(), "{path}: {value}"),
        Type::Custom(name) => {
            let CustomType::Object(object) = custom(interface, name) else { panic!("{name} is no object") };
            let fields: Vec<_> =
                object.fields().map(|field| (field.name().to_string(), field.ty().clone())).collect();
            check_object(interface, &fields, value, path);
        }
        other => panic!("{path}: {other:?} is not used here"),
    }
}

fn check_object(interface: &Interface<'static>, fields: &[(String, Type<'_>)], value: &Value, path: &str) {
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    for (name, kind) in fields {
        let value = object.get(name).unwrap_or(&Value::Null);
        check_type(interface, kind, value, &format!("{path}.{name}"));
    }
    for name in object.keys() {
        assert!(fields.iter().any(|(known, _)| known == name), "{path}.{name} is not in the description");
    }
}

#[test]
fn every_answer_is_as_described() {
    let daemon = Daemon::start(BASE);
    let web = json!({ "name": "web", "action": "protect", "tunnel": "b", "remote": ["10.2.0.0/16"], "local": ["10.1.0.0/16"] });
    daemon.call("SaAdd", json!({ "tunnel": tunnel("b", 0x1001), "policies": [web] })).unwrap();
    let interface = interface();
    // Deletions last.
    let order = [
        "Status",
        "Stats",
        "Drops",
        "DropsRecent",
        "SaList",
        "SaShow",
        "PolicyList",
        "Monitor",
        "SaAdd",
        "PolicyAdd",
        "SaReplace",
        "SaDelete",
        "PolicyDelete",
        "Reload",
    ];
    let described: Vec<_> = interface.methods().map(|method| method.name().to_string()).collect();
    assert!(
        described.iter().all(|name| order.contains(&name.as_str())) && described.len() == order.len(),
        "{described:?}"
    );
    for name in order {
        let method = interface.methods().find(|method| method.name() == name).unwrap();
        let answer = daemon.call(name, good(name)).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let outputs: Vec<_> =
            method.outputs().map(|output| (output.name().to_string(), output.ty().clone())).collect();
        check_object(&interface, &outputs, &answer, name);
    }
}

#[test]
fn another_varlink_client_is_served() {
    use zlink::varlink_service::Proxy as _;
    let daemon = Daemon::start(BASE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = zlink::tokio::unix::connect(&daemon.socket).await.unwrap();
        let information = connection.get_info().await.unwrap().unwrap();
        assert_eq!(information.product, "aditd");
        let name = "io.adit.Engine".try_into().unwrap();
        let description = connection.get_interface_description(name).await.unwrap().unwrap();
        let parsed = description.parse().unwrap();
        assert_eq!(parsed.methods().count(), interface().methods().count());
    });
}
