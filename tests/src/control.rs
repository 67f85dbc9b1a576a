//! A control server over a datapath that only remembers what it was told: no root, no interfaces.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adit_engine::control::apply::{Control, Datapath};
use adit_engine::control::check;
use adit_engine::control::leases::{Leases, declare_fresh};
use adit_engine::control::report::DatapathReport;
use adit_engine::control::server::Server;
use adit_engine::pipeline::{IcmpRules, Tables, reassembly};
use adit_engine::policy::cover::Cover;
use adit_engine::wire::Spi;
use serde_json::{Value, json};

/// Two interfaces, a profile, nothing else.
pub const BASE: &str = r#"
[[interface]]
name = "inside"
side = "protected"
[[interface]]
name = "outside"
side = "unprotected"
[profile.strong]
encryption = "aes-256-gcm"
"#;

/// What the kernel's hooks would hold, and every step in order.
#[derive(Default)]
pub struct Hooks {
    /// SPIs let in.
    pub spis: BTreeSet<u32>,
    /// The steering cover.
    pub steering: Cover,
    /// The egress guard's cover.
    pub guard: Cover,
    /// What was called.
    pub calls: Vec<String>,
    /// The call that fails, by its name.
    pub fails: Option<&'static str>,
}

struct Remembering(Arc<Mutex<Hooks>>);

impl Remembering {
    fn call(&self, name: &'static str, text: String, change: impl FnOnce(&mut Hooks)) -> Result<(), String> {
        let mut hooks = self.0.lock().unwrap();
        if hooks.fails == Some(name) {
            return Err(format!("{name} fails, as the test wants"));
        }
        hooks.calls.push(text);
        change(&mut hooks);
        Ok(())
    }
}

impl Datapath for Remembering {
    fn set_covers(&self, steering: &Cover, guard: &Cover) -> Result<(), String> {
        self.call("set_covers", format!("set_covers {}", steering.remote.len()), |hooks| {
            (hooks.steering, hooks.guard) = (steering.clone(), guard.clone());
        })
    }

    fn add_spi(&self, spi: Spi) -> Result<(), String> {
        self.call("add_spi", format!("add_spi {spi}"), |hooks| {
            hooks.spis.insert(spi.0);
        })
    }

    fn tell_of_drops(&self, _: bool) -> Result<(), String> {
        Ok(())
    }

    fn remove_spi(&self, spi: Spi) -> Result<(), String> {
        self.call("remove_spi", format!("remove_spi {spi}"), |hooks| {
            hooks.spis.remove(&spi.0);
        })
    }

    fn policies_changed(&self) {}

    fn report(&self) -> DatapathReport {
        DatapathReport::default()
    }
}

/// A directory that goes with the test.
pub struct Directory(PathBuf);

impl Directory {
    /// A new one.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("adit-control-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server, its tables and its hooks.
pub struct Daemon {
    server: Option<Server>,
    /// What it changes.
    pub control: Arc<Control>,
    /// What workers would read.
    pub tables: Arc<Tables>,
    /// What the kernel would hold.
    pub hooks: Arc<Mutex<Hooks>>,
    /// Where its socket is.
    pub socket: PathBuf,
    /// Its configuration, for reloads.
    pub config: PathBuf,
    directory: Arc<Directory>,
}

impl Daemon {
    /// Over `config`, in a directory of its own, with keys that were declared fresh.
    pub fn start(config: &str) -> Self {
        let directory = Arc::new(Directory::new());
        declare(&directory, config);
        Self::start_in(directory, config).unwrap()
    }

    /// Over `config`, in a directory that an earlier one has used.
    ///
    /// # Errors
    /// Why it refuses to start.
    pub fn start_in(directory: Arc<Directory>, config: &str) -> Result<Self, String> {
        let path = directory.path().join("adit.toml");
        std::fs::write(&path, config).unwrap();
        let settings = check::load(config, false).map_err(|problems| problems.to_string())?;
        let leases = Leases::open(&directory.path().join("state")).map_err(|error| error.to_string())?;
        let tables = Arc::new(Tables::new(reassembly::Limits::OFF, IcmpRules::default()));
        let hooks = Arc::new(Mutex::new(Hooks::default()));
        let datapath = Box::new(Remembering(hooks.clone()));
        let (engine, interfaces) = (settings.engine.clone(), settings.interfaces.clone());
        let control =
            Control::new(tables.clone(), datapath, Arc::new(leases), engine, interfaces, Some(path.clone()));
        let control = Arc::new(control);
        control.apply(settings).map_err(|problems| problems.to_string())?;
        let socket = directory.path().join("run").join("adit.sock");
        let server = Server::start(control.clone(), &socket, control.engine.socket_group.as_deref())
            .map_err(|error| error.to_string())?;
        Ok(Self { server: Some(server), control, tables, hooks, socket, config: path, directory })
    }

    /// Ends it and keeps its directory.
    pub fn stop(mut self) -> Arc<Directory> {
        self.server.take();
        self.directory.clone()
    }

    /// A connection.
    pub fn connect(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// One call on a connection of its own: the reply's parameters, or the problems' fields and messages.
    ///
    /// # Errors
    /// The error's name and parameters.
    pub fn call(&self, method: &str, parameters: Value) -> Result<Value, (String, Value)> {
        self.connect().call(method, parameters)
    }

    /// The call is refused, and the first problem is with `field`; its message.
    ///
    /// # Panics
    /// When it is not.
    pub fn refused(&self, method: &str, parameters: Value, field: &str) -> String {
        let (name, error) = self.call(method, parameters).expect_err(field);
        assert_eq!(name, "io.adit.Engine.Refused", "{error}");
        assert_eq!(error["problems"][0]["field"], field, "{error}");
        error["problems"][0]["message"].as_str().unwrap().to_owned()
    }
}

/// Declares the keys of all tunnels in `config` fresh, as `adit key declare-fresh --all` does.
///
/// # Panics
/// When it is refused.
pub fn declare(directory: &Directory, config: &str) {
    let mut settings = check::load(config, false).unwrap();
    let names: Vec<_> = settings.tunnels.iter().map(|tunnel| tunnel.settings.name.to_string()).collect();
    let leases = Leases::open(&directory.path().join("state")).unwrap();
    declare_fresh(&leases, &mut settings.tunnels, &names).unwrap();
}

/// A raw client.
pub struct Client {
    /// Replies.
    pub reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// The next message; `None` at the end of the stream.
    pub fn receive(&mut self) -> Option<Value> {
        let mut bytes = Vec::new();
        match self.reader.read_until(0, &mut bytes) {
            Ok(0) => None,
            Ok(_) => {
                assert_eq!(bytes.pop(), Some(0), "cut off: {}", String::from_utf8_lossy(&bytes));
                Some(serde_json::from_slice(&bytes).unwrap())
            }
            // The server closed with our bytes unread.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// One call of `io.adit.Engine`.
    ///
    /// # Errors
    /// The error's name and parameters.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value, (String, Value)> {
        let call = json!({ "method": format!("io.adit.Engine.{method}"), "parameters": parameters });
        let mut bytes = serde_json::to_vec(&call).unwrap();
        bytes.push(0);
        self.send(&bytes).unwrap();
        let mut reply = self.receive().expect("an answer");
        match reply.get("error") {
            Some(error) => Err((error.as_str().unwrap().to_owned(), reply["parameters"].take())),
            None => Ok(reply["parameters"].take()),
        }
    }
}

/// A key that nobody else has, `length` bytes.
pub fn key(length: usize) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(2_654_435_761);
    let bytes = (0..length).map(|i| number.rotate_left(i as u32 % 31).wrapping_add(i as u32 * 77) as u8);
    bytes.fold("hex:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A tunnel as the socket takes it, aes-256-gcm, with fresh keys of its own.
pub fn tunnel(name: &str, spi: u32) -> Value {
    json!({
        "name": name,
        "local": "192.0.2.1",
        "remote": "192.0.2.2",
        "profile": "strong",
        "inbound": { "spi": format!("{spi:#x}"), "encryption_key": key(36), "fresh_key": true },
        "outbound": { "spi": format!("{:#x}", spi + 1), "encryption_key": key(36), "fresh_key": true },
    })
}
