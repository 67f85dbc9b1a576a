//! A gateway: the real `aditd` in a namespace, its configuration, and the real `adit` to ask it.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use crate::process::{Running, eventually, program, run};
use crate::topology::Topology;

/// What the configurations of a pair of gateways have in common.
#[derive(Clone)]
pub struct Setup {
    /// Encryption algorithm.
    pub cipher: &'static str,
    /// Authentication algorithm.
    pub auth: &'static str,
    /// Hex keys for A to B and B to A: encryption, authentication.
    pub keys: [(String, String); 2],
    /// Whether the outer header is IPv6.
    pub outer_v6: bool,
    /// XDP mode: `auto`, `native` or `skb`.
    pub mode: &'static str,
    /// More lines for `[engine]`.
    pub engine: String,
    /// More lines for the tunnel.
    pub tunnel: String,
    /// Policies in front of the tunnel's, for these inside and remote networks.
    pub policies_first: fn(&str, &str) -> String,
    /// More tables at the end.
    pub more: String,
    /// Extended sequence numbers.
    pub esn: bool,
}

/// SPI of packets from A to B.
pub const SPI_AB: u32 = 0xad17_0ab0;
/// SPI of packets from B to A.
pub const SPI_BA: u32 = 0xad17_0ba0;

impl Setup {
    /// A suite with the given algorithm names and fixed test keys of the right lengths.
    pub fn new(cipher: &'static str, auth: &'static str) -> Self {
        let encryption_bytes = match cipher {
            "null" => 0,
            "des" => 8,
            "3des" => 24,
            "aes-128-cbc" => 16,
            "aes-192-cbc" => 24,
            "aes-256-cbc" => 32,
            "aes-128-ccm" => 19,
            "aes-192-ccm" => 27,
            "aes-256-ccm" => 35,
            "aes-128-ctr" | "aes-128-gcm" | "aes-128-gmac" => 20,
            "aes-192-ctr" | "aes-192-gcm" | "aes-192-gmac" => 28,
            "aes-256-ctr" | "aes-256-gcm" | "aes-256-gmac" | "chacha20-poly1305" => 36,
            other => panic!("no such cipher: {other}"),
        };
        let auth_bytes = match auth {
            "none" => 0,
            "md5" | "aes-cmac" | "aes-xcbc" => 16,
            "sha1" => 20,
            "sha256" => 32,
            "sha384" => 48,
            "sha512" => 64,
            other => panic!("no such authentication: {other}"),
        };
        // Fixed, odd-looking bytes; every key differs from every other.
        let key = |length: usize, salt: u32| {
            (0..length as u32)
                .map(|i| {
                    format!("{:02x}", (i.wrapping_mul(151).wrapping_add(salt * 67 + 29) ^ (i << 3)) as u8)
                })
                .collect::<String>()
        };
        Self {
            cipher,
            auth,
            keys: [
                (key(encryption_bytes, 1), key(auth_bytes, 2)),
                (key(encryption_bytes, 3), key(auth_bytes, 4)),
            ],
            outer_v6: false,
            mode: "auto",
            engine: String::new(),
            tunnel: String::new(),
            policies_first: |_, _| String::new(),
            more: String::new(),
            esn: false,
        }
    }

    /// The configuration of gateway `ga` or `gb`.
    pub fn configuration(&self, topology: &Topology, name: &str) -> String {
        let a = name == "ga";
        let directory = topology.directory().display();
        let (mut local, mut remote) =
            if self.outer_v6 { ("2001:db8:f::1", "2001:db8:f::2") } else { ("192.0.2.1", "192.0.2.2") };
        let (mut inside, mut behind) = ("\"10.1.0.0/24\"", "\"10.2.0.0/24\"");
        let (mut inside6, mut behind6) = ("\"2001:db8:1::/64\"", "\"2001:db8:2::/64\"");
        let (mut spi_out, mut spi_in) = (SPI_AB, SPI_BA);
        let [mut out, mut back] = [&self.keys[0], &self.keys[1]];
        if !a {
            std::mem::swap(&mut local, &mut remote);
            std::mem::swap(&mut inside, &mut behind);
            std::mem::swap(&mut inside6, &mut behind6);
            std::mem::swap(&mut spi_out, &mut spi_in);
            std::mem::swap(&mut out, &mut back);
        }
        let keys = |(encryption, auth): &(String, String)| {
            let line = |name: &str, hex: &str| match hex {
                "" => String::new(),
                hex => format!("{name} = \"hex:{hex}\"\n"),
            };
            line("encryption-key", encryption) + &line("authentication-key", auth)
        };
        let Self { cipher, auth, mode, engine, tunnel, policies_first, more, esn, .. } = self;
        format!(
            r#"
[engine]
instance = "{instance}"
socket = "{directory}/{name}.sock"
state-dir = "{directory}/{name}-state"
bpffs = "{directory}/bpf"
xdp-mode = "{mode}"
allow-legacy = true
{cores}
{engine}

[[interface]]
name = "in0"
side = "protected"

[[interface]]
name = "out0"
side = "unprotected"

[[tunnel]]
name = "sites"
local = "{local}"
remote = "{remote}"
encryption = "{cipher}"
authentication = "{auth}"
esn = {esn}
{tunnel}
[tunnel.inbound]
spi = {spi_in}
{keys_in}
[tunnel.outbound]
spi = {spi_out}
{keys_out}

{first}
[[policy]]
name = "sites4"
action = "protect"
tunnel = "sites"
local = [{inside}]
remote = [{behind}]

[[policy]]
name = "sites6"
action = "protect"
tunnel = "sites"
local = [{inside6}]
remote = [{behind6}]

{more}
"#,
            first = policies_first(inside.trim_matches('"'), behind.trim_matches('"')),
            instance = topology.namespace(name),
            // Two workers on one CPU would take turns.
            cores =
                if engine.contains("cores") { "" } else { ["cores = [1]", "cores = [0]"][usize::from(a)] },
            keys_in = keys(back),
            keys_out = keys(out),
        )
    }
}

/// A running gateway.
pub struct Gateway<'t> {
    topology: &'t Topology,
    /// Where it runs.
    namespace: &'static str,
    /// Of its files, and the last part of its instance's.
    name: &'static str,
    daemon: Option<Running>,
    /// A library that the daemon is started with, from the next time on: see [`crate::preload`].
    pub preload: Option<PathBuf>,
}

impl<'t> Gateway<'t> {
    /// Writes the configuration of `ga` or `gb` and starts its daemon.
    pub fn start(topology: &'t Topology, name: &'static str, setup: &Setup) -> Self {
        Self::start_with(topology, name, &setup.configuration(topology, name))
    }

    /// The same with a configuration of the test's own. Its keys are declared fresh.
    pub fn start_with(topology: &'t Topology, name: &'static str, configuration: &str) -> Self {
        let mut this = Self::new(topology, name, name, configuration);
        this.restart();
        this
    }

    /// A gateway of another name in one's namespace, not started yet. Its keys are declared fresh.
    pub fn new(
        topology: &'t Topology,
        namespace: &'static str,
        name: &'static str,
        configuration: &str,
    ) -> Self {
        let this = Self { topology, namespace, name, daemon: None, preload: None };
        this.configure(configuration);
        if configuration.contains("[[tunnel]]") {
            let config = this.file(".toml");
            this.adit(&[
                "key",
                "declare-fresh",
                "--all",
                "--config",
                config.to_str().expect("a path of ours"),
            ]);
        }
        this
    }

    /// Both gateways.
    pub fn pair(topology: &'t Topology, setup: &Setup) -> (Self, Self) {
        (Self::start(topology, "ga", setup), Self::start(topology, "gb", setup))
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.topology.directory().join(format!("{}{suffix}", self.name))
    }

    /// Replaces the configuration file; the daemon does not look until told.
    pub fn configure(&self, text: &str) {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(self.file(".toml")).unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    }

    /// Starts the daemon (again) and waits until it answers.
    pub fn restart(&mut self) {
        self.daemon = None;
        self.launch();
        eventually("aditd answers", Duration::from_secs(20), || {
            if let Some(status) = self.daemon.as_mut().and_then(|daemon| daemon.0.try_wait().unwrap()) {
                panic!("aditd of {} ended: {status}\n{}", self.name, self.log());
            }
            self.attempt(&["status"]).status.success()
        });
    }

    /// Starts the daemon, which must end by itself; what it says.
    pub fn refuses_to_start(&mut self) -> String {
        let before = self.log().len();
        self.launch();
        let status = self.daemon().wait_for_end(Duration::from_secs(20));
        self.daemon = None;
        assert!(!status.success(), "aditd of {} ended as if all were well", self.name);
        self.log()[before..].to_owned()
    }

    /// Starts the daemon without waiting for anything.
    pub fn launch(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.file(".log")).unwrap();
        let mut command = self.topology.command(self.namespace, program("aditd"));
        command.arg("--config").arg(self.file(".toml")).stdout(log.try_clone().unwrap()).stderr(log);
        if let Some(library) = &self.preload {
            command.env("LD_PRELOAD", library);
        }
        self.daemon = Some(Running::start(&mut command));
    }

    /// The daemon's process.
    pub fn daemon(&mut self) -> &mut Running {
        self.daemon.as_mut().expect("the daemon was started")
    }

    /// Ends the daemon with `signal` and waits for its end.
    pub fn end(&mut self, signal: rustix::process::Signal) -> std::process::ExitStatus {
        let mut daemon = self.daemon.take().expect("the daemon was started");
        daemon.signal(signal);
        daemon.wait_for_end(Duration::from_secs(10))
    }

    /// The daemon has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.daemon().0.try_wait().expect("waitpid works").is_some()
    }

    /// kill -9, also of a daemon that has just ended by itself.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// ESP packets opened in this life, if the daemon answers.
    pub fn opened(&self) -> Option<u64> {
        let output = self.attempt(&["stats", "--json"]);
        let stats: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        stats["total"].as_array()?.iter().find(|counter| counter["name"] == "opened")?["value"].as_u64()
    }

    /// What the daemon logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file(".log")).unwrap_or_default()
    }

    /// Opens the hooks, as an operator would who wants the kernel to forward in clear. The daemon has ended.
    pub fn detach(&self) {
        let instance = self.topology.namespace(self.name);
        let bpffs = self.topology.directory().join("bpf");
        self.adit(&["detach", "--instance", &instance, "--bpffs", bpffs.to_str().expect("a path of ours")]);
    }

    fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = self.topology.command(self.namespace, program("adit"));
        command.arg("--socket").arg(self.file(".sock")).args(arguments);
        command
    }

    /// Runs `adit` with these arguments, whatever it comes to.
    pub fn attempt(&self, arguments: &[&str]) -> Output {
        self.cli(arguments).output().expect("adit runs")
    }

    /// Runs `adit`; it must succeed.
    pub fn adit(&self, arguments: &[&str]) -> String {
        String::from_utf8(run(&mut self.cli(arguments)).stdout).expect("adit speaks UTF-8")
    }

    /// Runs `adit ARGUMENTS --json` and reads the answer.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.adit(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The engine's totals over all workers, as `adit stats` tells them.
    pub fn totals(&self) -> Totals {
        let stats = self.json(&["stats"]);
        let total = stats["total"].as_array().unwrap_or_else(|| panic!("no total in {stats}"));
        let count = |name: &str| {
            let counter = total.iter().find(|counter| counter["name"] == name);
            counter
                .and_then(|counter| counter["value"].as_u64())
                .unwrap_or_else(|| panic!("no {name} in {stats}"))
        };
        Totals {
            received: count("received"),
            originated: count("originated"),
            transmitted: count("transmitted"),
            delivered: count("delivered"),
            absorbed: count("absorbed"),
            dropped: count("dropped"),
            in_flight: count("in_flight"),
            sealed: count("sealed"),
            opened: count("opened"),
        }
    }

    /// Everything that may tell where packets went, for the message of a test that failed.
    pub fn explain(&self) -> String {
        let links = self.topology.inside(self.namespace, "ip -s -s link");
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        let (status, stats) = (self.json(&["status"]), self.json(&["stats"]));
        format!("{}: {}\n{status:#}\n{stats}\n{links}", self.name, self.adit(&["drops"]))
    }

    /// Frames in SKB mode that an AF_XDP socket had no room for: only the socket counts them. (In native mode the
    /// interface counts them too, see [`Topology::loss`].)
    pub fn lost_at_sockets(&self) -> u64 {
        let status = self.json(&["status"]);
        let interfaces =
            status["interfaces"].as_array().unwrap_or_else(|| panic!("no interfaces in {status}"));
        let skb = interfaces.iter().filter(|interface| interface["mode"] == "skb");
        let counters = skb.flat_map(|interface| interface["counters"].as_array().expect("counters"));
        let full =
            counters.filter(|counter| counter["name"] == "rx_dropped" || counter["name"] == "rx_ring_full");
        full.map(|counter| counter["value"].as_u64().expect("a count")).sum()
    }

    /// Packets dropped for `reason` so far.
    pub fn dropped(&self, reason: &str) -> u64 {
        let drops = self.json(&["drops"]);
        let list = drops.as_array().unwrap_or_else(|| panic!("no drops in {drops}"));
        list.iter()
            .filter(|drop| drop["reason"] == reason)
            .map(|drop| drop["packets"].as_u64().unwrap())
            .sum()
    }

    /// Waits until nothing is in flight, then asserts the conservation law.
    pub fn assert_conservation(&self) -> Totals {
        eventually("nothing is in flight", Duration::from_secs(5), || self.totals().in_flight == 0);
        let t = self.totals();
        assert_eq!(
            t.received + t.originated,
            t.transmitted + t.delivered + t.absorbed + t.dropped,
            "conservation: {t:?}"
        );
        t
    }
}

/// What `adit stats` counts, over all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Totals {
    pub received: u64,
    pub originated: u64,
    pub transmitted: u64,
    pub delivered: u64,
    pub absorbed: u64,
    pub dropped: u64,
    pub in_flight: u64,
    pub sealed: u64,
    pub opened: u64,
}
