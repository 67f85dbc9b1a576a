//! The command line, `adit`. Keys never appear in arguments: they come from files or standard input.

mod sa_keys;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::audit::DropRecord;
use super::check;
use super::client::{CallError, Client};
use super::config::{
    ActionName, AhPaddingName, AuthenticationName, DestinationOptionsName, DfName, DirectionName, Document,
    DummyWhenName, EcnName, EncryptionName, FragmentationName, ModeName, PolicyTable, ProtocolName, SaTable,
    Scalar, Secret, TunnelTable, WorkersName,
};
use super::events::Event;
use super::leases::{self, Leases};
use super::problem::Problems;
use super::protocol::{PolicyAdd, SaAdd, SaReplace};
use super::report::{Change, Drop, PolicyReport, SaReport, Stats, Status};
use super::{keys, render};
use sa_keys::SaKeys;

/// Opens the hooks pinned under a bpffs for an instance, or says why not.
pub type Detach = fn(&Path, &str) -> Result<(), String>;

/// What the program joins in from above this layer.
pub struct Hooks {
    /// `adit offline`: the rest of the arguments.
    pub offline: Option<fn(&[OsString]) -> ExitCode>,
    /// `adit detach`: bpffs and instance; opens the hooks that keep clear text in, and takes the host device away.
    pub detach: Option<Detach>,
}

/// Controls aditd, a userspace IPsec gateway.
#[derive(Parser)]
#[command(name = "adit", version, infer_subcommands = true, disable_help_subcommand = true)]
#[command(
    after_help = "Exit status: 0 done, 1 wrong usage, 2 refused (nothing changed), 3 aditd does not answer."
)]
struct Cli {
    /// The control socket.
    #[arg(long, global = true, env = "ADIT_SOCKET", default_value = "/run/adit/adit.sock")]
    socket: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[command(infer_subcommands = true)]
enum Command {
    /// The daemon, its interfaces, and what needs attention.
    Status,
    /// Security associations.
    #[command(subcommand)]
    Sa(SaCommand),
    /// Policies, in order.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Counters of workers and of the kernel hooks.
    Stats,
    /// Dropped packets by reason.
    Drops {
        /// Reasons that counted nothing too.
        #[arg(long)]
        all: bool,
        /// The newest records of dropped packets: which they are.
        #[arg(long, conflicts_with = "all")]
        recent: bool,
        /// Of this reason only.
        #[arg(long, requires = "recent")]
        reason: Option<String>,
    },
    /// What happens, line by line, until interrupted: SAs that should be replaced, were replaced, or have ended.
    Monitor {
        /// What is dropped too, a line a second, reason and worker.
        #[arg(long)]
        drops: bool,
    },
    /// The configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make aditd read its configuration file again, whole or not at all.
    Reload {
        /// Tunnels that have a key which nobody ever used; several with commas.
        #[arg(long, value_name = "TUNNEL", value_delimiter = ',')]
        fresh: Vec<String>,
    },
    /// Open the hooks of a stopped aditd, and take its host device away: from then on the kernel forwards in clear.
    Detach {
        /// The instance whose hooks to open.
        #[arg(long, default_value = "adit")]
        instance: String,
        /// Where they are pinned.
        #[arg(long, default_value = "/sys/fs/bpf")]
        bpffs: PathBuf,
    },
    /// Keys for tunnels.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Run captures through the engine, without a daemon and without root.
    #[command(disable_help_flag = true)]
    Offline {
        /// See `adit offline --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Completions for a shell, to standard output.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// A manual page, to standard output: adit man adit.toml | man -l -
    Man {
        /// Which page.
        #[arg(default_value = "adit", value_parser = ["adit", "aditd", "adit.toml"])]
        page: String,
    },
}

#[derive(Subcommand)]
#[command(infer_subcommands = true)]
enum SaCommand {
    /// Set up a tunnel's SAs.
    Add(Box<SaAddArguments>),
    /// Replace SAs of a tunnel by others with new keys, without a packet lost: first the inbound SA at both gateways, then
    /// the outbound one at both. The old inbound SA receives until the peer has gone over to the new one.
    Replace {
        /// The tunnel's name.
        tunnel: String,
        #[command(flatten)]
        keys: Box<SaKeys>,
        /// How long the old inbound SA stays once the peer sends with the new one; 5 seconds by default.
        #[arg(long, value_name = "SECONDS")]
        grace: Option<u64>,
    },
    /// All SAs.
    List {
        /// Of this tunnel only.
        #[arg(long)]
        tunnel: Option<String>,
    },
    /// The SAs of a tunnel, or with an SPI (0x…), with all their details.
    Show {
        /// A tunnel's name, or an SPI.
        what: String,
    },
    /// Take SAs down and wipe their keys; policies that need them then drop.
    Delete {
        /// A tunnel's name, or an SPI.
        what: String,
        /// Only this direction.
        #[arg(long, value_parser = ["in", "out"])]
        direction: Option<String>,
    },
}

#[derive(Args)]
struct SaAddArguments {
    /// TOML with one [[tunnel]] as in the configuration, and [[policy]] tables if wanted; - for standard input.
    #[arg(long, conflicts_with_all = ["name", "local", "remote"])]
    file: Option<PathBuf>,
    /// The tunnel's name.
    #[arg(long, required_unless_present = "file")]
    name: Option<String>,
    /// Our endpoint.
    #[arg(long, required_unless_present = "file")]
    local: Option<String>,
    /// The peer's endpoint.
    #[arg(long, required_unless_present = "file")]
    remote: Option<String>,
    /// esp, or ah.
    #[arg(long)]
    protocol: Option<ProtocolName>,
    /// tunnel, or transport.
    #[arg(long)]
    mode: Option<ModeName>,
    /// Padding of AH over IPv4: rfc4302 or linux.
    #[arg(long)]
    ah_padding: Option<AhPaddingName>,
    /// Destination options in transport mode: after or before.
    #[arg(long)]
    destination_options: Option<DestinationOptionsName>,
    /// ESP in UDP to this port of the peer's.
    #[arg(long)]
    udp_port: Option<u16>,
    /// Our port of that; 4500 without.
    #[arg(long)]
    local_udp_port: Option<u16>,
    /// Seconds without a packet after which a NAT is sent a keepalive; 20 without, 0 for never.
    #[arg(long)]
    nat_keepalive_seconds: Option<u32>,
    /// A profile of the configuration.
    #[arg(long)]
    profile: Option<String>,
    /// Encryption algorithm, as aes-256-gcm.
    #[arg(long)]
    encryption: Option<EncryptionName>,
    /// Authentication algorithm, as sha256; none beside one that authenticates by itself.
    #[arg(long)]
    authentication: Option<AuthenticationName>,
    /// ICV bytes.
    #[arg(long)]
    icv_length: Option<u8>,
    /// Extended sequence numbers.
    #[arg(long)]
    esn: Option<bool>,
    /// Anti-replay window in packets.
    #[arg(long)]
    replay_window: Option<u32>,
    /// Packets after which an SA should be replaced.
    #[arg(long)]
    lifetime_packets_soft: Option<u64>,
    /// Packets after which an SA stops; outbound counted by sequence numbers.
    #[arg(long)]
    lifetime_packets_hard: Option<u64>,
    /// Bytes of ESP after which an SA should be replaced.
    #[arg(long)]
    lifetime_bytes_soft: Option<u64>,
    /// Bytes of ESP after which an SA stops.
    #[arg(long)]
    lifetime_bytes_hard: Option<u64>,
    /// Age at which an SA should be replaced.
    #[arg(long)]
    lifetime_seconds_soft: Option<u64>,
    /// Age at which an SA stops.
    #[arg(long)]
    lifetime_seconds_hard: Option<u64>,
    /// Outer DSCP: copy, or 0 to 63.
    #[arg(long)]
    dscp: Option<String>,
    /// Outer ECN: copy, or clear.
    #[arg(long)]
    ecn: Option<EcnName>,
    /// Outer DF: copy, set or clear.
    #[arg(long)]
    df: Option<DfName>,
    /// What is too large is fragmented before it is sealed, or after.
    #[arg(long)]
    fragmentation: Option<FragmentationName>,
    /// Outer TTL.
    #[arg(long)]
    ttl: Option<u8>,
    /// one or shared.
    #[arg(long)]
    workers: Option<WorkersName>,
    /// Lower TCP MSS to what the tunnel carries.
    #[arg(long)]
    clamp_mss: Option<bool>,
    /// Another tunnel that this one's packets go through.
    #[arg(long, value_name = "TUNNEL")]
    through: Option<String>,
    /// Traffic-flow confidentiality: off, mtu, or a number that sizes are rounded up to a multiple of.
    #[arg(long)]
    tfc_padding: Option<String>,
    /// Dummy packets a second.
    #[arg(long)]
    dummy_rate: Option<u32>,
    /// Bytes in a dummy packet, as 512 or 64-1400.
    #[arg(long)]
    dummy_size: Option<String>,
    /// idle, or always.
    #[arg(long)]
    dummy_when: Option<DummyWhenName>,
    #[command(flatten)]
    keys: SaKeys,
}

#[derive(Subcommand)]
#[command(infer_subcommands = true)]
enum PolicyCommand {
    /// Add a policy behind the others, or at a position.
    Add(Box<PolicyAddArguments>),
    /// All policies, in order.
    List,
    /// Remove a policy.
    Delete {
        /// Its name.
        name: String,
    },
}

#[derive(Args)]
struct PolicyAddArguments {
    /// TOML with [[policy]] tables as in the configuration; - for standard input.
    #[arg(long, conflicts_with_all = ["name", "action"])]
    file: Option<PathBuf>,
    /// The policy's name.
    #[arg(long, required_unless_present = "file")]
    name: Option<String>,
    /// protect, bypass or discard.
    #[arg(long, required_unless_present = "file")]
    action: Option<ActionName>,
    /// The tunnel of a protect policy.
    #[arg(long)]
    tunnel: Option<String>,
    /// Addresses on the protected side; several with commas.
    #[arg(long, value_delimiter = ',')]
    local: Option<Vec<String>>,
    /// Addresses behind the peer.
    #[arg(long, value_delimiter = ',')]
    remote: Option<Vec<String>>,
    /// Protocol, name or number.
    #[arg(long)]
    protocol: Option<String>,
    /// Ports on the protected side, as 80 or 1000-2000.
    #[arg(long)]
    local_ports: Option<String>,
    /// Ports on the peer's side.
    #[arg(long)]
    remote_ports: Option<String>,
    /// ICMP type and code, as 8/0.
    #[arg(long)]
    icmp: Option<String>,
    /// both, in or out.
    #[arg(long)]
    direction: Option<DirectionName>,
    /// Where, from 0.
    #[arg(long)]
    position: Option<u64>,
}

#[derive(Subcommand)]
#[command(infer_subcommands = true)]
enum ConfigCommand {
    /// Check a file; nothing running is touched.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// The JSON schema of the file, for editors.
    Schema,
}

#[derive(Subcommand)]
#[command(infer_subcommands = true)]
enum KeyCommand {
    /// Make new random keys of the right lengths.
    Generate {
        /// Encryption algorithm.
        #[arg(long)]
        encryption: EncryptionName,
        /// Authentication algorithm; none beside an encryption that authenticates by itself.
        #[arg(long, default_value = "none")]
        authentication: AuthenticationName,
        /// Write the encryption key to this new file (mode 0600), and the authentication key to FILE.authentication.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Declare once, before aditd starts, that nobody ever used the keys of these tunnels: a record of their sequence
    /// numbers begins. While aditd runs: adit reload --fresh, adit sa add --fresh-keys.
    DeclareFresh {
        /// The configuration that has the tunnels.
        #[arg(long, value_name = "FILE", default_value = "/etc/adit/adit.toml")]
        config: PathBuf,
        /// Their names.
        #[arg(required_unless_present = "all", value_name = "TUNNEL")]
        tunnels: Vec<String>,
        /// All tunnels of the configuration.
        #[arg(long, conflicts_with = "tunnels")]
        all: bool,
    },
}

/// Why a command came to nothing.
enum Failure {
    Usage(String),
    Refused(Problems),
    NotRunning(String),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NotRunning(text) => Self::NotRunning(text),
            CallError::Refused(problems) => Self::Refused(problems),
        }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Refused(problems)
    }
}

/// Runs the program.
pub fn main(hooks: &Hooks) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    if let Command::Offline { arguments } = &cli.command {
        return match hooks.offline {
            Some(run) => run(arguments),
            None => fail(&cli, Failure::Usage("this adit was built without offline runs".into())),
        };
    }
    match run(&cli, hooks) {
        Ok(text) => {
            // A reader that has gone away (`| head`) has what it wanted.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(failure) => fail(&cli, failure),
    }
}

fn fail(cli: &Cli, failure: Failure) -> ExitCode {
    let (code, text, problems) = match failure {
        Failure::Usage(text) => (1, text, Vec::new()),
        Failure::Refused(problems) => (2, problems.to_string(), problems.0),
        Failure::NotRunning(text) => (3, text, Vec::new()),
    };
    let text = if cli.json {
        json!({ "error": text, "problems": problems }).to_string()
    } else {
        let error =
            if coloured(std::io::stderr().is_terminal()) { "\x1b[1;31merror\x1b[0m" } else { "error" };
        text.lines().map(|line| format!("{error}: {line}")).collect::<Vec<_>>().join("\n")
    };
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(code)
}

/// On a terminal, unless the user says no (no-color.org).
fn coloured(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn run(cli: &Cli, hooks: &Hooks) -> Result<String, Failure> {
    let nothing = json!({});
    let call = || Client::connect(&cli.socket);
    match &cli.command {
        Command::Status => {
            let status: Status = call()?.call("Status", &nothing)?;
            Ok(show(cli, &status, render::status))
        }
        Command::Stats => {
            let stats: Stats = call()?.call("Stats", &nothing)?;
            Ok(show(cli, &stats, render::stats))
        }
        Command::Drops { recent: true, reason, .. } => {
            let parameters = json!({ "reason": reason });
            let records: Vec<DropRecord> = call()?.list("DropsRecent", &parameters, "records")?;
            Ok(show(cli, &records, |records| render::drop_records(records)))
        }
        Command::Drops { all, .. } => {
            let mut drops = call()?
                .call::<std::collections::HashMap<String, Vec<Drop>>>("Drops", &json!({ "all": all }))?;
            Ok(show(cli, &drops.remove("drops").unwrap_or_default(), |drops| render::drops(drops)))
        }
        Command::Monitor { drops } => {
            call()?.follow("Monitor", &json!({ "drops": drops }), |event: Event| {
                let line = if cli.json { json!(event).to_string() } else { render::event(&event) };
                writeln!(std::io::stdout(), "{line}").is_ok()
            })?;
            Ok(String::new())
        }
        Command::Sa(SaCommand::List { tunnel }) => {
            let sas: Vec<SaReport> = call()?.list("SaList", &json!({ "tunnel": tunnel }), "sas")?;
            Ok(show(cli, &sas, |sas| render::sas(sas)))
        }
        Command::Sa(SaCommand::Show { what }) => {
            let sas: Vec<SaReport> = call()?.list("SaShow", &target(what), "sas")?;
            Ok(show(cli, &sas, |sas| render::sa_details(sas)))
        }
        Command::Sa(SaCommand::Add(arguments)) => {
            let request = arguments.request()?;
            change(cli, call()?.call("SaAdd", &request)?)
        }
        Command::Sa(SaCommand::Replace { tunnel, keys, grace }) => {
            let (inbound, outbound) = (keys.inbound()?, keys.outbound()?);
            let request = SaReplace { tunnel: tunnel.clone(), inbound, outbound, grace: *grace };
            change(cli, call()?.call("SaReplace", &request)?)
        }
        Command::Sa(SaCommand::Delete { what, direction }) => {
            let mut parameters = target(what);
            parameters["direction"] = json!(direction);
            change(cli, call()?.call("SaDelete", &parameters)?)
        }
        Command::Policy(PolicyCommand::List) => {
            let policies: Vec<PolicyReport> = call()?.list("PolicyList", &nothing, "policies")?;
            Ok(show(cli, &policies, |policies| render::policies(policies)))
        }
        Command::Policy(PolicyCommand::Add(arguments)) => {
            let request = arguments.request()?;
            change(cli, call()?.call("PolicyAdd", &request)?)
        }
        Command::Policy(PolicyCommand::Delete { name }) => {
            change(cli, call()?.call("PolicyDelete", &json!({ "name": name }))?)
        }
        Command::Reload { fresh } => change(cli, call()?.call("Reload", &json!({ "fresh_keys": fresh }))?),
        Command::Config(ConfigCommand::Check { file }) => {
            let settings = check::load_file(file, false)?;
            let counts = json!({
                "interfaces": settings.interfaces.len(),
                "tunnels": settings.tunnels.len(),
                "policies": settings.policies.len(),
                "warnings": settings.warnings,
            });
            Ok(show(cli, &counts, |_| render::checked(&settings)))
        }
        Command::Config(ConfigCommand::Schema) => Ok(format!("{:#}\n", super::config::schema())),
        Command::Detach { instance, bpffs } => detach(cli, hooks, instance, bpffs),
        Command::Key(KeyCommand::Generate { encryption, authentication, out }) => {
            generate(cli, *encryption, *authentication, out.as_deref())
        }
        Command::Key(KeyCommand::DeclareFresh { config, tunnels, all }) => {
            declare_fresh(cli, config, tunnels, *all)
        }
        Command::Completions { shell } => {
            let mut bytes = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "adit", &mut bytes);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Command::Man { page } => Ok(match page.as_str() {
            "aditd" => include_str!("../../man/aditd.8"),
            "adit.toml" => include_str!("../../man/adit.toml.5"),
            _ => include_str!("../../man/adit.1"),
        }
        .into()),
        Command::Offline { .. } => unreachable!("answered before"),
    }
}

fn show<T: Serialize>(cli: &Cli, value: &T, render: impl FnOnce(&T) -> String) -> String {
    if cli.json {
        serde_json::to_string_pretty(value).map(|text| text + "\n").unwrap_or_default()
    } else {
        render(value)
    }
}

fn change(cli: &Cli, change: Change) -> Result<String, Failure> {
    Ok(show(cli, &change, render::change))
}

/// An SPI where it looks like one, a tunnel otherwise.
fn target(what: &str) -> serde_json::Value {
    let spi = what.starts_with("0x") || what.bytes().all(|byte| byte.is_ascii_digit());
    if spi { json!({ "spi": what }) } else { json!({ "tunnel": what }) }
}

fn detach(cli: &Cli, hooks: &Hooks, instance: &str, bpffs: &Path) -> Result<String, Failure> {
    let Some(detach) = hooks.detach else {
        return Err(Failure::Usage("this adit was built without the kernel's side".into()));
    };
    if let Ok(mut client) = Client::connect(&cli.socket)
        && let Ok(status) = client.call::<Status>("Status", &json!({}))
        && status.instance == instance
    {
        return Err(Problems::one(
            "detach",
            format!("expected a stopped aditd, found process {}; stop it first", status.pid),
        )
        .into());
    }
    detach(bpffs, instance).map_err(|error| Problems::one("detach", error))?;
    Ok(show(cli, &json!({ "detached": instance }), |_| {
        format!("{instance}: hooks opened; the kernel forwards in clear\n")
    }))
}

impl SaAddArguments {
    fn request(&self) -> Result<SaAdd, Failure> {
        let Some(file) = &self.file else { return Ok(SaAdd { tunnel: self.tunnel()?, policies: None }) };
        let text = read_text(file)?;
        let document = Document::parse(&text)?;
        let mut contents = document.file()?;
        if contents.tunnel.len() != 1 {
            let found = contents.tunnel.len();
            return Err(Problems::one("tunnel", format!("expected one [[tunnel]], found {found}")).into());
        }
        let mut tunnel = contents.tunnel.remove(0);
        for (name, sa) in [("inbound", &mut tunnel.inbound), ("outbound", &mut tunnel.outbound)] {
            let Some(sa) = sa else { continue };
            if self.keys.fresh_keys {
                sa.fresh_key = Some(true);
            }
            resolve(&format!("tunnel[0].{name}.encryption-key"), &mut sa.encryption_key)?;
            resolve(&format!("tunnel[0].{name}.authentication-key"), &mut sa.authentication_key)?;
        }
        let policies = (!contents.policy.is_empty()).then_some(contents.policy);
        Ok(SaAdd { tunnel, policies })
    }

    fn tunnel(&self) -> Result<TunnelTable, Failure> {
        Ok(TunnelTable {
            name: self.name.clone().unwrap_or_default(),
            local: self.local.clone().unwrap_or_default(),
            remote: self.remote.clone().unwrap_or_default(),
            protocol: self.protocol,
            mode: self.mode,
            ah_padding: self.ah_padding,
            destination_options: self.destination_options,
            udp_port: self.udp_port,
            local_udp_port: self.local_udp_port,
            nat_keepalive_seconds: self.nat_keepalive_seconds,
            profile: self.profile.clone(),
            encryption: self.encryption,
            authentication: self.authentication,
            icv_length: self.icv_length,
            esn: self.esn,
            replay_window: self.replay_window,
            lifetime_packets_soft: self.lifetime_packets_soft,
            lifetime_packets_hard: self.lifetime_packets_hard,
            lifetime_bytes_soft: self.lifetime_bytes_soft,
            lifetime_bytes_hard: self.lifetime_bytes_hard,
            lifetime_seconds_soft: self.lifetime_seconds_soft,
            lifetime_seconds_hard: self.lifetime_seconds_hard,
            dscp: self.dscp.clone().map(Scalar),
            ecn: self.ecn,
            df: self.df,
            fragmentation: self.fragmentation,
            ttl: self.ttl,
            workers: self.workers,
            clamp_mss: self.clamp_mss,
            through: self.through.clone(),
            tfc_padding: self.tfc_padding.clone().map(Scalar),
            dummy_rate: self.dummy_rate,
            dummy_size: self.dummy_size.clone().map(Scalar),
            dummy_when: self.dummy_when,
            inbound: self.keys.inbound()?,
            outbound: self.keys.outbound()?,
        })
    }
}

impl PolicyAddArguments {
    fn request(&self) -> Result<PolicyAdd, Failure> {
        let policies = match &self.file {
            Some(file) => Document::parse(&read_text(file)?)?.file()?.policy,
            None => vec![PolicyTable {
                name: self.name.clone().unwrap_or_default(),
                action: self.action.ok_or_else(|| Failure::Usage("expected --action".into()))?,
                tunnel: self.tunnel.clone(),
                local: self.local.clone(),
                remote: self.remote.clone(),
                protocol: self.protocol.clone().map(Scalar),
                local_ports: self.local_ports.clone().map(Scalar),
                remote_ports: self.remote_ports.clone().map(Scalar),
                icmp: self.icmp.clone().map(Scalar),
                direction: self.direction,
            }],
        };
        Ok(PolicyAdd { policies, position: self.position })
    }
}

/// `file:` keys are read here, with the caller's rights, and travel as `hex:`.
fn resolve(field: &str, key: &mut Option<Secret>) -> Result<(), Problems> {
    if let Some(secret) = key
        && let Some(path) = secret.expose().strip_prefix("file:")
    {
        *secret = key_from(Path::new(path)).map_err(|error| Problems::one(field, error))?;
    }
    Ok(())
}

fn key_from(path: &Path) -> Result<Secret, String> {
    let text = keys::read_file(path)?;
    let digits = text.trim();
    let digits = digits.strip_prefix("hex:").unwrap_or(digits);
    let mut secret = Zeroizing::new(String::with_capacity(digits.len() + 4));
    secret.push_str("hex:");
    secret.push_str(digits);
    Ok(Secret::new(secret))
}

fn read_text(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text))
    };
    let text = Zeroizing::new(text);
    match read {
        Ok(_) => Ok(text),
        Err(error) => {
            Err(Problems::one(file.display().to_string(), format!("expected a readable file: {error}"))
                .into())
        }
    }
}

fn generate(
    cli: &Cli,
    encryption: EncryptionName,
    authentication: AuthenticationName,
    out: Option<&Path>,
) -> Result<String, Failure> {
    let (encryption_key, authentication_key) = check::generate(encryption, authentication)?;
    let Some(path) = out else {
        return Ok(show(
            cli,
            &json!({ "encryption_key": encryption_key, "authentication_key": authentication_key }),
            |_| {
                let line = |name: &str, key: &Option<Secret>| {
                    key.as_ref().map_or(String::new(), |key| format!("{name} = \"{}\"\n", key.expose()))
                };
                line("encryption-key", &encryption_key) + &line("authentication-key", &authentication_key)
            },
        ));
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".authentication");
    let mut written = Vec::new();
    for (path, key) in [(path.to_owned(), &encryption_key), (PathBuf::from(beside), &authentication_key)] {
        let Some(key) = key else { continue };
        keys::write_file(&path, key).map_err(|error| Problems::one(path.display().to_string(), error))?;
        written.push(path.display().to_string());
    }
    Ok(show(cli, &json!({ "files": written }), |_| written.iter().map(|path| format!("{path}\n")).collect()))
}

fn declare_fresh(cli: &Cli, config: &Path, tunnels: &[String], all: bool) -> Result<String, Failure> {
    let mut settings = check::load_file(config, false)?;
    let every = || settings.tunnels.iter().map(|tunnel| tunnel.settings.name.to_string()).collect();
    let names: Vec<String> = if all { every() } else { tunnels.to_vec() };
    let leases = Leases::open(&settings.engine.state_dir)
        .map_err(|error| Problems::one("engine.state-dir", error.to_string()))?;
    let fields = leases::declare_fresh(&leases, &mut settings.tunnels, &names)?;
    Ok(show(cli, &json!({ "fresh": fields }), |_| {
        fields.iter().map(|field| format!("{field}: declared fresh\n")).collect()
    }))
}

macro_rules! value_enum {
    ($($name:ident)*) => { $(
        impl ValueEnum for $name {
            fn value_variants<'a>() -> &'a [Self] {
                Self::ALL
            }

            fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
                Some(clap::builder::PossibleValue::new(self.name()))
            }
        }
    )* };
}

value_enum! {
    DummyWhenName EncryptionName AuthenticationName EcnName DfName FragmentationName WorkersName ActionName DirectionName
}
