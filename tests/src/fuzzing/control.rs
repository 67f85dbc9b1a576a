//! The operator's side: messages of the control socket, and the configuration file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use adit_engine::control::check;
use adit_engine::control::leases::{Leases, declare_fresh};
use adit_engine::control::protocol::{self, Asked, Cursor, ErrorReply, MESSAGE_LIMIT, PIECE, Peer, Request};
use adit_engine::control::report::DatapathReport;
use adit_engine::control::settings::Settings;
use adit_engine::control::{Control, Datapath, Problems};
use adit_engine::crypto::key::fingerprint;
use adit_engine::pipeline::{IcmpRules, Tables, reassembly};
use adit_engine::policy::cover::Cover;
use adit_engine::sa::publish;
use adit_engine::wire::Spi;
use serde_json::Value;

/// What the messages meet: a tunnel, a policy, room for more.
pub const CONFIGURATION: &str = r#"
[engine]
allow-legacy = true
[[interface]]
name = "inside"
side = "protected"
[[interface]]
name = "outside"
side = "unprotected"
[profile.strong]
encryption = "aes-128-gcm"
[profile.cbc]
encryption = "aes-128-cbc"
authentication = "sha256"
[[tunnel]]
name = "first"
local = "192.0.2.1"
remote = "192.0.2.2"
profile = "cbc"
[tunnel.inbound]
spi = 0x1001
encryption-key = "hex:000102030405060708090a0b0c0d0e0f"
authentication-key = "hex:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
[tunnel.outbound]
spi = 0x1002
encryption-key = "hex:100102030405060708090a0b0c0d0e0f"
authentication-key = "hex:200102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
[[policy]]
name = "sites"
action = "protect"
tunnel = "first"
local = ["10.1.0.0/16"]
remote = ["10.2.0.0/16"]
"#;

/// What the kernel's hooks would hold; one call of them may fail.
#[derive(Default)]
struct Hooks {
    spis: BTreeSet<Spi>,
    covers: (Cover, Cover),
    /// Calls until one fails; 0 for never.
    fails_in: u8,
    failed: bool,
}

struct Remembering(Arc<Mutex<Hooks>>);

impl Remembering {
    fn call(&self, change: impl FnOnce(&mut Hooks)) -> Result<(), String> {
        let mut hooks = self.0.lock().unwrap();
        if hooks.fails_in > 0 {
            hooks.fails_in -= 1;
            if hooks.fails_in == 0 {
                hooks.failed = true;
                return Err("no room in the map".into());
            }
        }
        change(&mut hooks);
        Ok(())
    }
}

impl Datapath for Remembering {
    fn set_covers(&self, steering: &Cover, guard: &Cover) -> Result<(), String> {
        self.call(|hooks| hooks.covers = (steering.clone(), guard.clone()))
    }

    fn add_spi(&self, spi: Spi) -> Result<(), String> {
        self.call(|hooks| hooks.spis.extend([spi]))
    }

    fn tell_of_drops(&self, _: bool) -> Result<(), String> {
        Ok(())
    }

    fn remove_spi(&self, spi: Spi) -> Result<(), String> {
        self.call(|hooks| hooks.spis.retain(|known| *known != spi))
    }

    fn policies_changed(&self) {}

    fn report(&self) -> DatapathReport {
        DatapathReport::default()
    }
}

/// Everything a change could have changed.
#[derive(PartialEq, Debug)]
struct State {
    generation: u64,
    names: Vec<String>,
    sas: usize,
    spis: BTreeSet<Spi>,
    covers: (Cover, Cover),
}

/// A daemon without sockets, its tables, and the directory of its leases.
struct Daemon {
    control: Control,
    tables: Arc<Tables>,
    hooks: Arc<Mutex<Hooks>>,
    leases: Arc<Leases>,
    directory: PathBuf,
}

impl Daemon {
    /// Over new tables, which are made for a million SAs.
    fn new() -> Self {
        let tables = Tables::new(reassembly::Limits::OFF, IcmpRules::default());
        Self::start(Arc::new(tables))
    }

    /// Over tables without SAs, with [`CONFIGURATION`] and leases of its keys only: a key that was declared fresh is
    /// refused when it is declared again, and the same input should always end the same way.
    fn start(tables: Arc<Tables>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("adit-fuzz-{}-{number}", std::process::id()));
        let mut settings = check::load(CONFIGURATION, false).expect("right as it is written");
        let leases = Leases::open(&directory).expect("a directory of our own");
        declare_fresh(&leases, &mut settings.tunnels, &["first".into()]).expect("a key that nobody used");
        let (engine, interfaces) = (settings.engine.clone(), settings.interfaces.clone());
        let hooks = Arc::new(Mutex::new(Hooks::default()));
        let datapath = Box::new(Remembering(Arc::clone(&hooks)));
        let leases = Arc::new(leases);
        let control =
            Control::new(Arc::clone(&tables), datapath, Arc::clone(&leases), engine, interfaces, None);
        control.apply(settings).expect("nothing stands against it");
        Self { control, tables, hooks, leases, directory }
    }

    /// Keys that nobody used are fresh, so that a configuration gets as far as it can.
    fn declare(&self, settings: &mut Settings) {
        for tunnel in &mut settings.tunnels {
            let suite = tunnel.settings.suite;
            for sa in tunnel.inbound.iter_mut().chain(&mut tunnel.outbound) {
                let id = fingerprint(self.leases.host_secret(), suite, &sa.keys);
                sa.fresh = self.leases.known(&id).is_none();
            }
        }
    }

    fn restart(&mut self) {
        for sa in self.control.live().tunnels.iter().filter_map(|tunnel| tunnel.inbound.as_ref()) {
            self.tables.sad.remove(sa.sa.spec.sa.spi);
        }
        *self = Self::start(Arc::clone(&self.tables));
    }

    fn state(&self) -> State {
        let live = self.control.live();
        let tunnels = live.tunnels.iter().map(|tunnel| {
            let inbound = tunnel.inbound.as_ref().map(|sa| sa.sa.spec.sa.spi);
            let outbound = tunnel.outbound.as_ref().map(|sa| sa.sa.spec.sa.spi);
            format!("{} {inbound:?} {outbound:?}", tunnel.settings.name)
        });
        let policies = live.policies.iter().map(|policy| policy.settings.name.to_string());
        let hooks = self.hooks.lock().unwrap();
        State {
            generation: live.generation,
            names: tunnels.chain(policies).collect(),
            sas: self.tables.sad.len(),
            spis: hooks.spis.clone(),
            covers: hooks.covers.clone(),
        }
    }

    /// What must hold after every change: all SAs are in the table, and all their SPIs get in.
    fn is_whole(&self) {
        let live = self.control.live();
        let inbound = live.tunnels.iter().filter_map(|tunnel| tunnel.inbound.as_ref());
        let spis: BTreeSet<_> = inbound.map(|sa| sa.sa.spec.sa.spi).collect();
        assert_eq!(spis.len(), self.tables.sad.len());
        let hooks = self.hooks.lock().unwrap();
        // Taking away may fail: then more is steered than needed, never less.
        assert!(spis.is_subset(&hooks.spis));
        assert!(hooks.failed || (spis == hooks.spis && live.covers == hooks.covers));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

thread_local! {
    static DAEMON: RefCell<Option<Daemon>> = const { RefCell::new(None) };
}

/// Input: a byte that says what the rest is (0, 1: messages of a client that may change or only read; 2, 3: a
/// configuration of the daemon, or offline; above, which call of the kernel's hooks fails), then NUL-terminated
/// messages or TOML.
pub fn control(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    DAEMON.with_borrow_mut(|daemon| {
        let daemon = daemon.get_or_insert_with(Daemon::new);
        let mut hooks = daemon.hooks.lock().unwrap();
        (hooks.fails_in, hooks.failed) = (kind >> 2, false);
        drop(hooks);
        match kind & 3 {
            0 => messages(daemon, rest, true),
            1 => messages(daemon, rest, false),
            2 => configuration(daemon, rest, false),
            _ => configuration(daemon, rest, true),
        }
    });
    publish::reclaim();
}

fn messages(daemon: &mut Daemon, bytes: &[u8], changes: bool) {
    let peer = Peer { uid: if changes { 0 } else { 1000 }, pid: 1, reads: true, changes };
    let before = daemon.state();
    for message in bytes.split(|byte| *byte == 0).take(16) {
        if message.len() > MESSAGE_LIMIT {
            return;
        }
        answer(daemon, message, peer);
        let nobody = Peer { uid: 1001, pid: 1, reads: false, changes: false };
        if let Ok(Asked { request: Ok(_), .. }) = protocol::read(message, nobody) {
            panic!("answered to nobody");
        }
    }
    // A cover that could not shrink is a difference too.
    if daemon.state() != before {
        daemon.restart();
    }
}

fn answer(daemon: &Daemon, message: &[u8], peer: Peer) {
    let asked = match protocol::read(message, peer) {
        Ok(asked) => asked,
        Err(reply) => return refused(&reply, message),
    };
    match asked.request {
        Ok(Request::Read(read)) => {
            is_reply(&read.answer(&daemon.control));
        }
        Ok(Request::List(list)) if asked.more => {
            let mut cursor = Cursor::new(list);
            loop {
                match cursor.piece(&daemon.control, PIECE) {
                    Ok((piece, last)) => {
                        is_reply(&piece);
                        if last {
                            break;
                        }
                    }
                    Err(reply) => break refused(&reply, message),
                }
            }
        }
        Ok(Request::List(list)) => match Cursor::new(list).whole(&daemon.control) {
            Ok(whole) => drop(is_reply(&whole)),
            Err(reply) => refused(&reply, message),
        },
        // Nothing happens here by itself.
        Ok(Request::Monitor { .. }) => {}
        Ok(Request::Change(change)) => {
            assert!(peer.changes, "a change by one who may only read");
            let before = daemon.state();
            match change.perform(&daemon.control) {
                Ok(change) => {
                    daemon.is_whole();
                    let generation = daemon.state().generation;
                    assert!(generation > before.generation && change.generation == generation);
                    is_reply(&protocol::reply(&change));
                }
                Err(problems) => {
                    assert_eq!(daemon.state(), before, "refused, and yet changed");
                    names_fields(&problems, usize::MAX);
                    refused(&problems.into(), message);
                }
            }
        }
        Err(reply) => refused(&reply, message),
    }
}

/// One NUL, at the end, behind one JSON object.
fn is_reply(bytes: &[u8]) -> Value {
    let (nul, json) = bytes.split_last().expect("a message");
    assert!(*nul == 0 && !json.contains(&0));
    let value: Value = serde_json::from_slice(json).expect("JSON");
    assert!(value.is_object());
    value
}

/// An error names itself and its field, and no key.
fn refused(reply: &ErrorReply, message: &[u8]) {
    let bytes = reply.message();
    let value = is_reply(&bytes);
    let name = value["error"].as_str().expect("a name");
    assert!(name.starts_with("io.adit.Engine.") || name.starts_with("org.varlink.service."));
    if name == "io.adit.Engine.Refused" {
        let problems = value["parameters"]["problems"].as_array().expect("problems");
        assert!(!problems.is_empty());
        for problem in problems {
            assert!(problem["field"].as_str().is_some_and(|field| !field.is_empty()), "{problem}");
            assert!(problem["message"].as_str().is_some_and(|message| !message.is_empty()), "{problem}");
        }
    }
    let Ok(text) = std::str::from_utf8(message) else { return };
    let Ok(call) = serde_json::from_slice::<Value>(message) else { return };
    let mut keys = Vec::new();
    secrets(&call, &mut keys);
    let shown = String::from_utf8(bytes).expect("JSON is UTF-8");
    assert!(no_secret_shown(text, &keys, &shown), "a key is shown: {shown}");
}

/// What stands where a key should.
fn secrets(value: &Value, keys: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, inner) in object {
                match inner {
                    Value::String(key) if name.ends_with("_key") => keys.push(key.clone()),
                    _ => secrets(inner, keys),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| secrets(item, keys)),
        _ => {}
    }
}

/// A key's digits may be shown only if they stand somewhere else in the input too, where they are no secret.
fn no_secret_shown(text: &str, keys: &[String], shown: &str) -> bool {
    let runs = keys.iter().flat_map(|key| key.split(|c: char| !c.is_ascii_hexdigit()));
    let mut secrets = runs.filter(|digits| digits.len() >= 8 && text.matches(digits).count() == 1);
    secrets.all(|digits| !shown.contains(digits))
}

fn names_fields(problems: &Problems, lines: usize) {
    assert!(!problems.0.is_empty(), "refused for no reason");
    for problem in &problems.0 {
        assert!(!problem.field.is_empty() && !problem.message.is_empty(), "{problem:?}");
        assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem:?}");
    }
}

fn configuration(daemon: &mut Daemon, bytes: &[u8], offline: bool) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // The file's author is trusted to name files, and devices are files: not here.
    if text.split("file:").skip(1).any(|path| !path.starts_with("/nonexistent/")) {
        return;
    }
    match check::load(text, offline) {
        Ok(mut settings) => {
            let before = daemon.state();
            daemon.declare(&mut settings);
            match daemon.control.apply(settings) {
                Ok(change) => {
                    daemon.is_whole();
                    assert_eq!(change.generation, daemon.state().generation);
                    daemon.restart();
                }
                Err(problems) => {
                    assert_eq!(daemon.state(), before, "refused, and yet changed");
                    names_fields(&problems, usize::MAX);
                }
            }
        }
        Err(problems) => {
            names_fields(&problems, text.matches('\n').count() + 1);
            let keys: Vec<_> =
                text.split('"').filter(|part| part.starts_with("hex:")).map(str::to_owned).collect();
            let after_key = |key: &String| text.contains(&format!("-key = \"{key}\""));
            let keys: Vec<_> = keys.into_iter().filter(after_key).collect();
            assert!(no_secret_shown(text, &keys, &problems.to_string()), "a key is shown: {problems}");
        }
    }
}
