//! Make before break: SAs of a tunnel are replaced one after another, both inbound ones live at once, the outbound one
//! switched in one step, and what was replaced is wiped when nothing can come with it any more.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use adit_engine::control::lifetimes;
use adit_engine::policy::Action;
use adit_engine::sa::publish::Reader;
use adit_engine::sa::{InboundSa, OutboundSa};
use adit_engine::wire::Spi;
use adit_tests::control::{BASE, Client, Daemon, key, tunnel};
use serde_json::{Value, json};

/// Readers are the process's: while one test is pinned, no other can be told that what it deleted is wiped.
static PINNED: RwLock<()> = RwLock::new(());

/// A daemon with tunnel "b": 0x1001 in, 0x1002 out, one policy.
fn with_tunnel() -> (Daemon, Value) {
    let table = tunnel("b", 0x1001);
    let daemon = Daemon::start(BASE);
    let policy = json!({
        "name": "p", "action": "protect", "tunnel": "b", "local": ["10.1.0.0/16"], "remote": ["10.2.0.0/16"]
    });
    daemon.call("SaAdd", json!({ "tunnel": table, "policies": [policy] })).unwrap();
    (daemon, table)
}

fn fresh(spi: u32) -> Value {
    json!({ "spi": format!("{spi:#x}"), "encryption_key": key(36), "fresh_key": true })
}

fn inbound(daemon: &Daemon, spi: u32) -> Option<Arc<InboundSa>> {
    daemon.tables.sad.list().into_iter().find(|sa| sa.spec.sa.spi == Spi(spi))
}

/// The SA that the policy sends with now.
fn outbound(daemon: &Daemon) -> Arc<OutboundSa> {
    let spd = daemon.tables.spd.get().unwrap();
    let Action::Protect(tunnel) = &spd.policies[0].action else { panic!("a PROTECT policy") };
    tunnel.outbound.get().unwrap()
}

/// SPI and whether it is retiring, of every SA in a direction.
fn shown(daemon: &Daemon, direction: &str) -> Vec<(String, bool)> {
    let sas = daemon.call("SaList", json!({})).unwrap();
    let own = sas["sas"].as_array().unwrap().iter().filter(|sa| sa["direction"] == direction);
    own.map(|sa| (sa["spi"].as_str().unwrap().to_owned(), sa["retiring"].as_bool().unwrap())).collect()
}

fn spis(daemon: &Daemon) -> Vec<u32> {
    daemon.hooks.lock().unwrap().spis.iter().copied().collect()
}

fn monitor(daemon: &Daemon) -> Client {
    let mut monitor = daemon.connect();
    monitor.send(b"{\"method\":\"io.adit.Engine.Monitor\",\"more\":true}\0").unwrap();
    assert_eq!(monitor.receive().unwrap()["parameters"]["event"], "listening");
    monitor
}

fn next(monitor: &mut Client) -> String {
    let event = monitor.receive().unwrap();
    let text = |name: &str| event["parameters"][name].as_str().unwrap().to_owned();
    [text("event"), text("tunnel"), text("direction"), text("spi")].join(" ")
}

/// What has happened within a few of the daemon's own ticks, which come every second.
fn soon(what: &str, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn each_direction_is_replaced_by_itself_and_the_old_inbound_sa_waits_for_the_peer() {
    let _alone = PINNED.write();
    let (daemon, _) = with_tunnel();
    let mut monitor = monitor(&daemon);
    let spd = daemon.tables.spd.get().unwrap();

    let request = json!({ "tunnel": "b", "inbound": fresh(0x2001), "grace": 0 });
    let change = daemon.call("SaReplace", request).unwrap();
    let figures =
        |change: &Value| ["added", "removed", "kept", "retiring"].map(|name| change[name].as_u64().unwrap());
    assert_eq!(figures(&change), [1, 0, 1, 1], "{change}");
    assert_eq!(next(&mut monitor), "sa_replaced b in 0x00002001");
    assert_eq!(spis(&daemon), [0x1001, 0x2001], "both receive");
    assert_eq!(shown(&daemon, "in"), [("0x00002001".to_owned(), false), ("0x00001001".to_owned(), true)]);
    assert_eq!(outbound(&daemon).spec.sa.spi, Spi(0x1002), "sends as before");
    let (old, new) = (inbound(&daemon, 0x1001).unwrap(), inbound(&daemon, 0x2001).unwrap());
    assert_eq!(old.selectors.get().unwrap().list, new.selectors.get().unwrap().list);

    // A worker that looks at the old SA in the middle of a burst: it is the old one to the burst's end, and then gone.
    let mut reader = Reader::register();
    let asked = std::thread::scope(|scope| {
        let guard = reader.pin();
        let Action::Protect(tunnel) = &spd.policies[0].action else { panic!("a PROTECT policy") };
        let sends = tunnel.outbound.load(&guard).unwrap();
        let replaced = scope
            .spawn(|| daemon.call("SaReplace", json!({ "tunnel": "b", "outbound": fresh(0x2002) })).unwrap());
        soon("the slot names the new SA", || outbound(&daemon).spec.sa.spi == Spi(0x2002));
        assert_eq!(sends.spec.sa.spi, Spi(0x1002));
        drop(guard);
        replaced.join().unwrap()
    });
    assert_eq!((figures(&asked), &asked["wiped"]), ([1, 1, 1, 0], &json!(true)), "{asked}");
    assert_eq!(next(&mut monitor), "sa_replaced b out 0x00002002");
    let now = daemon.tables.spd.get().unwrap();
    assert!(Arc::ptr_eq(&spd, &now), "policies and flow caches stay");

    // The peer has not come over: time alone retires nothing.
    let later = lifetimes::now() + Duration::from_secs(3600);
    assert!(!daemon.control.pass_time(later));
    old.verified(1, 100);
    assert!(!daemon.control.pass_time(later));
    let gone = Arc::downgrade(&old);
    drop(old);
    new.verified(1, 100);
    assert_eq!(next(&mut monitor), "sa_retired b in 0x00001001");
    assert!(inbound(&daemon, 0x1001).is_none() && gone.strong_count() == 0, "its keys are wiped");
    assert_eq!(spis(&daemon), [0x2001]);
    assert_eq!(shown(&daemon, "in"), [("0x00002001".to_owned(), false)]);
}

#[test]
fn the_grace_begins_with_the_peers_first_packet_under_the_new_sa() {
    let (daemon, _) = with_tunnel();
    daemon.call("SaReplace", json!({ "tunnel": "b", "inbound": fresh(0x2001), "grace": 3600 })).unwrap();
    daemon.call("SaReplace", json!({ "tunnel": "b", "inbound": fresh(0x3001), "grace": 7200 })).unwrap();
    let now = lifetimes::now();
    // The one in the middle was never used; the first is overtaken all the same, and by the last.
    inbound(&daemon, 0x3001).unwrap().verified(1, 100);
    assert!(!daemon.control.pass_time(now));
    let at = |seconds| now + Duration::from_secs(seconds);
    assert!(!daemon.control.pass_time(at(3590)));
    assert!(daemon.control.pass_time(at(3601)));
    daemon.control.retire(at(3601));
    assert_eq!(spis(&daemon), [0x2001, 0x3001]);
    daemon.control.retire(at(7100));
    assert_eq!(spis(&daemon), [0x2001, 0x3001]);
    daemon.control.retire(at(7201));
    assert_eq!(spis(&daemon), [0x3001]);
    // One that has ended has nothing to wait for.
    daemon.call("SaReplace", json!({ "tunnel": "b", "inbound": fresh(0x4001) })).unwrap();
    inbound(&daemon, 0x3001).unwrap().lifetime.end();
    soon("an SA past its hard limit goes", || spis(&daemon) == [0x4001]);
}

#[test]
fn no_key_and_no_number_comes_back() {
    let (daemon, table) = with_tunnel();
    let old = outbound(&daemon);
    assert_eq!(old.take_numbers(7).range.unwrap().count(), 7);
    drop(old);
    daemon
        .call("SaReplace", json!({ "tunnel": "b", "inbound": fresh(0x2001), "outbound": fresh(0x2002) }))
        .unwrap();
    // The retiring SA's key is in use, and so is its SPI.
    let mut again = fresh(0x3001);
    again["encryption_key"] = table["inbound"]["encryption_key"].clone();
    let request = json!({ "tunnel": "b", "inbound": again });
    daemon.refused("SaReplace", request, "inbound.encryption-key");
    daemon.refused("SaReplace", json!({ "tunnel": "b", "inbound": fresh(0x1001) }), "inbound.spi");
    // The old outbound key may come back, and goes on above everything it may have used.
    let mut back = table["outbound"].clone();
    back.as_object_mut().unwrap().remove("fresh_key");
    daemon.call("SaReplace", json!({ "tunnel": "b", "outbound": back })).unwrap();
    assert!(outbound(&daemon).last_sequence() >= 1 << 16);
}

#[test]
fn what_cannot_be_replaced_is_refused() {
    let _nobody_is_pinned = PINNED.read();
    let (daemon, _) = with_tunnel();
    daemon.refused("SaReplace", json!({ "tunnel": "b" }), "inbound");
    let message = daemon.refused("SaReplace", json!({ "tunnel": "c", "inbound": fresh(0x2001) }), "tunnel");
    assert!(message.contains("adit sa list"), "{message}");
    let request = json!({ "tunnel": "b", "inbound": fresh(0x2001), "grace": 86_401 });
    daemon.refused("SaReplace", request, "grace");
    let mut short = fresh(0x2001);
    short["encryption_key"] = json!(key(20));
    daemon.refused("SaReplace", json!({ "tunnel": "b", "inbound": short }), "inbound.encryption-key");
    let mut unknown = fresh(0x2001);
    unknown.as_object_mut().unwrap().remove("fresh_key");
    daemon.refused("SaReplace", json!({ "tunnel": "b", "outbound": unknown }), "outbound.encryption-key");
    let message = daemon.refused("SaAdd", json!({ "tunnel": tunnel("b", 0x2001) }), "tunnel.inbound");
    assert!(message.contains("adit sa replace b"), "{message}");
    daemon.call("SaDelete", json!({ "tunnel": "b", "direction": "out" })).unwrap();
    let message =
        daemon.refused("SaReplace", json!({ "tunnel": "b", "outbound": fresh(0x2002) }), "outbound");
    assert!(message.contains("adit sa add"), "{message}");
    // Keys do not pile up behind a peer that never comes over.
    for number in 2..10 {
        daemon.call("SaReplace", json!({ "tunnel": "b", "inbound": fresh(number << 12) })).unwrap();
    }
    let request = json!({ "tunnel": "b", "inbound": fresh(0xa000) });
    let message = daemon.refused("SaReplace", request.clone(), "tunnel \"b\".inbound");
    assert!(message.contains("at most 8"), "{message}");
    daemon.call("SaDelete", json!({ "spi": "0x2000" })).unwrap();
    assert_eq!(spis(&daemon)[..2], [0x1001, 0x3000]);
    daemon.call("SaReplace", request).unwrap();
    let change = daemon.call("SaDelete", json!({ "tunnel": "b" })).unwrap();
    assert_eq!((&change["removed"], &change["wiped"]), (&json!(9), &json!(true)));
    assert_eq!(spis(&daemon), [0u32; 0]);
}

#[test]
fn policies_change_under_both_inbound_sas() {
    let (daemon, _) = with_tunnel();
    daemon.call("SaReplace", json!({ "tunnel": "b", "inbound": fresh(0x2001) })).unwrap();
    let wider = json!({
        "name": "q", "action": "protect", "tunnel": "b", "local": ["10.1.0.0/16"], "remote": ["10.3.0.0/16"]
    });
    daemon.call("PolicyAdd", json!({ "policies": [wider] })).unwrap();
    for spi in [0x1001, 0x2001] {
        assert_eq!(inbound(&daemon, spi).unwrap().selectors.get().unwrap().list.len(), 2);
    }
}
