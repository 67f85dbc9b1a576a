//! From what is written to what it means: the rules of a configuration, all problems at once.

mod engine;
mod tfc;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;

use super::config::{
    ActionName, AhPaddingName, AuthenticationName, DestinationOptionsName, DfName, DirectionName, Document,
    EcnName, EncryptionName, File, FragmentationName, ModeName, PolicyTable, ProfileTable, ProtocolName,
    SaTable, Scalar, Secret, TunnelTable, WorkersName,
};
use super::consistent::{Outline, consistent};
use super::lifetimes;
use super::problem::Problems;
use super::settings::{PolicySettings, SaRequest, Settings, TunnelRequest, TunnelSettings};
use super::{keys, value};
use crate::crypto::key::KeyMaterial;
use crate::crypto::suite::SuiteError;
use crate::crypto::{Authentication, Encryption, Opener, Suite};
use crate::policy::Fragmentation;
use crate::sa::lifetime::{Limit, Limits};
use crate::sa::selector::{PortRange, Selector, UpperSelector};
use crate::sa::spec::{Mode, Protocol, UdpPorts, Workers};
use crate::transform::ah::Padding;
use crate::transform::ecn::Ecn;
use crate::transform::transport::DestinationOptions;
use crate::transform::tunnel::{DontFragment, Dscp};
use crate::wire::protocol;
use crate::wire::udp::NAT_TRAVERSAL_PORT;

/// The anti-replay window when none is written.
pub const DEFAULT_REPLAY_WINDOW: u32 = 1024;

/// RFC 3948 section 4.
const DEFAULT_NAT_KEEPALIVE_SECONDS: u32 = 20;

/// What else decides whether a table stands.
pub struct Rules<'a> {
    /// Profiles that tunnels may name.
    pub profiles: &'a BTreeMap<String, ProfileTable>,
    /// Weak algorithms are allowed.
    pub allow_legacy: bool,
    /// The default of a tunnel's own `clamp-mss`.
    pub clamp_mss: bool,
    /// `file:` keys may be followed.
    pub key_files: bool,
    /// An offline run: no interfaces needed, sequence numbers may be given.
    pub offline: bool,
}

/// Reads and checks a configuration: everything that can be known without a running daemon.
///
/// # Errors
/// All problems, each with its field and line.
pub fn load(text: &str, offline: bool) -> Result<Settings, Problems> {
    let document = Document::parse(text)?;
    let mut problems = Problems::default();
    let mut settings = file(document.file()?, offline, &mut problems);
    if let Some(settings) = &mut settings {
        // Only equality counts here, so any secret will do; the daemon compares under its own.
        let outlines: Vec<_> =
            settings.tunnels.iter().map(|tunnel| Outline::of_request(tunnel, &[0; 32])).collect();
        consistent(&outlines, &settings.policies, &mut problems);
        for tunnel in outlines.iter().filter(|tunnel| tunnel.inbound.is_none() && tunnel.outbound.is_none()) {
            settings.warnings.push(format!("{}: a tunnel without SAs carries nothing", tunnel.field));
        }
    }
    document.locate(&mut problems);
    match settings {
        Some(settings) if problems.is_empty() => Ok(settings),
        _ => Err(problems),
    }
}

/// As [`load`], from a file.
///
/// # Errors
/// As [`load`], or that the file cannot be read.
pub fn load_file(path: &Path, offline: bool) -> Result<Settings, Problems> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Problems::one(path.display().to_string(), format!("expected a readable configuration file: {error}"))
    })?;
    load(&zeroize::Zeroizing::new(text), offline)
}

fn file(file: File, offline: bool, problems: &mut Problems) -> Option<Settings> {
    let engine = engine::engine(&file.engine, problems);
    let interfaces = engine::interfaces(&file.interface, &engine, offline, problems);
    for (name, table) in &file.profile {
        let path = format!("profile.{name}");
        plain_name(&path, name, problems);
        crypto(&path, Written::of_profile(table), engine.allow_legacy, problems);
        if let Some(group) = &table.dh_group {
            dh_group(&path, group, engine.allow_legacy, problems);
        }
    }
    let rules = Rules {
        profiles: &file.profile,
        allow_legacy: engine.allow_legacy,
        clamp_mss: engine.clamp_mss,
        key_files: true,
        offline,
    };
    let mut warnings = Vec::new();
    let tunnels: Vec<_> = file
        .tunnel
        .iter()
        .enumerate()
        .filter_map(|(index, table)| {
            tunnel(table, format!("tunnel[{index}]"), &rules, &mut warnings, problems)
        })
        .collect();
    let policies: Vec<_> = file
        .policy
        .iter()
        .enumerate()
        .filter_map(|(index, table)| policy(table, format!("policy[{index}]"), problems))
        .collect();
    if tunnels.len() < file.tunnel.len() || policies.len() < file.policy.len() {
        return None;
    }
    Some(Settings { engine, interfaces, profiles: file.profile, tunnels, policies, warnings })
}

/// Names appear in listings, logs and paths.
fn plain_name(field: &str, name: &str, problems: &mut Problems) {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || name.starts_with(['.', '-']) {
        let found = value::found(name);
        problems.push(
            field,
            format!("expected a name of up to 64 letters, digits, '.', '_' and '-', found {found}"),
        );
    }
}

/// What a profile or a tunnel says of its cryptography.
struct Written {
    encryption: Option<EncryptionName>,
    authentication: Option<AuthenticationName>,
    icv_length: Option<u8>,
    esn: Option<bool>,
    replay_window: Option<u32>,
    lifetimes: lifetimes::Written,
}

impl Written {
    fn of_profile(table: &ProfileTable) -> Self {
        Self {
            encryption: Some(table.encryption),
            authentication: table.authentication,
            icv_length: table.icv_length,
            esn: table.esn,
            replay_window: table.replay_window,
            lifetimes: table.lifetimes(),
        }
    }

    fn of_tunnel(table: &TunnelTable, profile: Option<&ProfileTable>) -> Self {
        let base = profile.map(Self::of_profile);
        let base = base.as_ref();
        // Another algorithm than the profile's does not take the profile's ICV length along.
        let own = table.encryption.is_some() || table.authentication.is_some();
        Self {
            encryption: table.encryption.or(base.and_then(|base| base.encryption)),
            authentication: table.authentication.or(base.and_then(|base| base.authentication)),
            icv_length: table.icv_length.or(base.filter(|_| !own).and_then(|base| base.icv_length)),
            esn: table.esn.or(base.and_then(|base| base.esn)),
            replay_window: table.replay_window.or(base.and_then(|base| base.replay_window)),
            lifetimes: lifetimes::or(table.lifetimes(), base.map(|base| base.lifetimes).unwrap_or_default()),
        }
    }
}

impl Written {
    /// AH has no cipher, so none is expected; its MAC is. GMAC goes by the name of an encryption, as in ESP.
    fn of_ah(self, path: &str, problems: &mut Problems) -> Option<Self> {
        let before = problems.0.len();
        let encryption = self.encryption.unwrap_or(EncryptionName::Null);
        if Encryption::from(encryption).encrypts() {
            problems.push(
                format!("{path}.encryption"),
                format!(
                    "expected nothing, or aes-128-gmac, aes-192-gmac or aes-256-gmac, with protocol = \"ah\", which \
                     does not encrypt, found {}",
                    encryption.name()
                ),
            );
        }
        let without_mac = matches!(self.authentication, None | Some(AuthenticationName::None));
        if encryption == EncryptionName::Null && without_mac {
            problems.push(
                format!("{path}.authentication"),
                "expected sha256, sha384, sha512, aes-cmac or aes-xcbc, or encryption = \"aes-128-gmac\", with \
                 protocol = \"ah\", which does nothing else, found none",
            );
        }
        (problems.0.len() == before).then_some(Self { encryption: Some(encryption), ..self })
    }
}

/// A suite, ESN, the anti-replay window and the lifetime.
fn crypto(
    path: &str,
    written: Written,
    allow_legacy: bool,
    problems: &mut Problems,
) -> Option<(Suite, bool, u32, (Limits, Limit))> {
    let before = problems.0.len();
    let Some(encryption) = written.encryption else {
        let names: Vec<_> = EncryptionName::ALL.iter().map(|name| name.name()).collect();
        problems.push(
            format!("{path}.encryption"),
            format!("expected one of {} here or by a profile, found nothing", names.join(", ")),
        );
        return None;
    };
    let authentication = written.authentication.unwrap_or(AuthenticationName::None);
    let suite = Suite::new(encryption.into(), authentication.into(), written.icv_length);
    if let Err(error) = &suite {
        let (field, message) = describe(error, encryption, authentication, written.icv_length);
        problems.push(format!("{path}.{field}"), message);
    }
    if let Ok(suite) = &suite
        && suite.is_legacy()
        && !allow_legacy
    {
        let weak = if is_legacy(encryption) { encryption.name() } else { authentication.name() };
        let field = if is_legacy(encryption) { "encryption" } else { "authentication" };
        problems.push(
            format!("{path}.{field}"),
            format!("expected an algorithm that is not weak, found {weak}; set engine.allow-legacy = true to use it all the same"),
        );
    }
    let esn = written.esn.unwrap_or(true);
    let window = written.replay_window.unwrap_or(DEFAULT_REPLAY_WINDOW);
    let field = format!("{path}.replay-window");
    if !matches!(window, 0 | 32..=65536) {
        problems
            .push(&field, format!("expected 32 to 65536 packets, or 0 for no protection, found {window}"));
    }
    if window == 0 && esn {
        problems.push(
            &field,
            "expected a window, because extended sequence numbers need one (RFC 4303 section 3.3.3), found 0; \
             set esn = false as well",
        );
    }
    let suite = suite.ok()?;
    let limits = lifetimes::limits(path, written.lifetimes, &suite, esn, problems);
    (problems.0.len() == before).then_some((suite, esn, window, limits))
}

fn is_legacy(encryption: EncryptionName) -> bool {
    matches!(encryption, EncryptionName::Des | EncryptionName::TripleDes)
}

fn describe(
    error: &SuiteError,
    encryption: EncryptionName,
    authentication: AuthenticationName,
    icv_length: Option<u8>,
) -> (&'static str, String) {
    let (encryption, authentication) = (encryption.name(), authentication.name());
    match error {
        SuiteError::NothingProtected => (
            "authentication",
            "expected sha256, sha384, sha512, aes-cmac or aes-xcbc, because null encryption without authentication \
             protects nothing (RFC 4303 section 3.2), found none"
                .into(),
        ),
        SuiteError::NotAuthenticated => (
            "authentication",
            format!("expected sha256, sha384, sha512, aes-cmac or aes-xcbc beside {encryption}: a cipher without integrity is refused (RFC 8221 section 4), found none"),
        ),
        SuiteError::DoublyAuthenticated => (
            "authentication",
            format!("expected \"none\", because {encryption} authenticates by itself, found {authentication}"),
        ),
        SuiteError::IcvLength(allowed) => {
            let found = icv_length.map_or("nothing".into(), |length| length.to_string());
            ("icv-length", format!("expected one of {allowed:?} bytes for {encryption} with {authentication}, found {found}"))
        }
    }
}

fn dh_group(path: &str, group: &str, allow_legacy: bool, problems: &mut Problems) {
    const GROUPS: &[&str] = &[
        "group1", "group2", "group5", "group14", "group15", "group16", "group17", "group18", "group19",
        "group20", "group21", "no-pfs",
    ];
    let field = format!("{path}.dh-group");
    if !GROUPS.contains(&group) {
        problems.push(field, format!("expected one of {}, found {}", GROUPS.join(", "), value::found(group)));
    } else if GROUPS[..3].contains(&group) && !allow_legacy {
        problems.push(field, format!("expected a group that is not weak, found {group}; set engine.allow-legacy = true to use it all the same"));
    }
}

/// Checks one tunnel by itself.
pub fn tunnel(
    table: &TunnelTable,
    path: String,
    rules: &Rules<'_>,
    warnings: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<TunnelRequest> {
    let before = problems.0.len();
    plain_name(&format!("{path}.name"), &table.name, problems);
    let local = problems.take(format!("{path}.local"), value::endpoint(&table.local));
    let remote = problems.take(format!("{path}.remote"), value::endpoint(&table.remote));
    if let (Some(local), Some(remote)) = (local, remote) {
        if local.is_ipv4() != remote.is_ipv4() {
            problems.push(
                format!("{path}.remote"),
                format!("expected an address of the same IP version as local ({local}), found {remote}"),
            );
        } else if local == remote {
            problems.push(
                format!("{path}.remote"),
                format!("expected the peer's address, found our own, {remote}"),
            );
        }
    }
    let profile = table.profile.as_ref().and_then(|name| {
        let known = rules.profiles.get(name);
        if known.is_none() {
            let names: Vec<_> = rules.profiles.keys().map(String::as_str).collect();
            let names = if names.is_empty() { "none is defined".into() } else { names.join(", ") };
            problems.push(
                format!("{path}.profile"),
                format!(
                    "expected a profile ({names}), found {}; define [profile.{name}]",
                    value::found(name)
                ),
            );
        }
        known
    });
    let unknown_profile = table.profile.is_some() && profile.is_none();
    let (protocol, mode) = (protocol(table, &path, problems), mode(table, &path, problems));
    let (udp, nat_keepalive_seconds) = udp(table, &path, problems);
    let tfc = tfc::tfc(table, &path, problems);
    let written = Written::of_tunnel(table, profile);
    let crypto = match protocol {
        _ if unknown_profile => None,
        Protocol::Esp => crypto(&path, written, rules.allow_legacy, problems),
        Protocol::Ah(_) => written
            .of_ah(&path, problems)
            .and_then(|written| crypto(&path, written, rules.allow_legacy, problems)),
    };
    let dscp = table
        .dscp
        .as_ref()
        .map_or(Some(Dscp::Copy), |text| problems.take(format!("{path}.dscp"), dscp(&text.0)));
    if table.ttl == Some(0) {
        problems.push(format!("{path}.ttl"), "expected 1 to 255, found 0");
    }
    let fragmentation = fragmentation(table, &path, problems);
    let suite = crypto.map(|(suite, esn, ..)| (suite, esn));
    let mut direction = |name: &str, sa: &Option<SaTable>| {
        let sa = sa.as_ref()?;
        self::sa(sa, format!("{path}.{name}"), suite, rules, problems)
    };
    let inbound = direction("inbound", &table.inbound);
    let outbound = direction("outbound", &table.outbound);
    if problems.0.len() > before {
        return None;
    }
    let (suite, esn, replay_window, (limits, seconds)) = crypto?;
    let name: Arc<str> = table.name.as_str().into();
    if suite.is_legacy() {
        let (encryption, authentication) = (suite.encryption().name(), suite.authentication().name());
        warnings.push(format!("{path}: {name}: {encryption} with {authentication} is weak and only for peers that have nothing better"));
    }
    if replay_window == 0 {
        warnings.push(format!(
            "{path}: {name}: replay-window = 0, so recorded packets can be sent again by anyone"
        ));
    }
    Some(TunnelRequest {
        settings: TunnelSettings {
            name,
            local: local?,
            remote: remote?,
            protocol,
            mode,
            udp,
            nat_keepalive_seconds,
            suite,
            esn,
            replay_window,
            limits,
            seconds,
            ttl: table.ttl.unwrap_or(64),
            dscp: dscp?,
            ecn: match table.ecn {
                Some(EcnName::Clear) => Ecn::Clear,
                Some(EcnName::Copy) | None => Ecn::Copy,
            },
            dont_fragment: match table.df {
                Some(DfName::Set) => DontFragment::Set,
                Some(DfName::Clear) => DontFragment::Clear,
                Some(DfName::Copy) | None => DontFragment::Copy,
            },
            fragmentation,
            workers: match table.workers {
                Some(WorkersName::Shared) => Workers::Shared,
                Some(WorkersName::One) | None => Workers::One,
            },
            clamp_mss: table.clamp_mss.unwrap_or(rules.clamp_mss),
            tfc,
            through: table.through.as_deref().map(Arc::from),
        },
        field: path,
        inbound,
        outbound,
    })
}

/// When what is too large is fragmented.
fn fragmentation(table: &TunnelTable, path: &str, problems: &mut Problems) -> Fragmentation {
    match (table.fragmentation, table.df) {
        (Some(FragmentationName::After), Some(DfName::Set)) => {
            problems.push(
                format!("{path}.fragmentation"),
                "expected \"before\" beside df = \"set\", under which nothing sealed may be fragmented, found \"after\"",
            );
            Fragmentation::Before
        }
        (Some(FragmentationName::After), _) => Fragmentation::After,
        (Some(FragmentationName::Before) | None, _) => Fragmentation::Before,
    }
}

/// ESP, or AH and its padding.
fn protocol(table: &TunnelTable, path: &str, problems: &mut Problems) -> Protocol {
    if table.protocol == Some(ProtocolName::Ah) {
        return Protocol::Ah(match table.ah_padding {
            Some(AhPaddingName::Linux) => Padding::Linux,
            Some(AhPaddingName::Rfc4302) | None => Padding::Rfc4302,
        });
    }
    if let Some(padding) = table.ah_padding {
        problems.push(
            format!("{path}.ah-padding"),
            format!("expected nothing here without protocol = \"ah\", found {}", padding.name()),
        );
    }
    Protocol::Esp
}

/// The ports of ESP in UDP, and after how many seconds of silence a NAT is sent a keepalive.
fn udp(table: &TunnelTable, path: &str, problems: &mut Problems) -> (Option<UdpPorts>, u32) {
    let seconds = table.nat_keepalive_seconds.unwrap_or(DEFAULT_NAT_KEEPALIVE_SECONDS);
    let mut refuse = |field: &str, expected: &str, found: u32| {
        problems.push(format!("{path}.{field}"), format!("expected {expected}, found {found}"));
    };
    let Some(remote) = table.udp_port else {
        for (field, found) in [
            ("local-udp-port", table.local_udp_port.map(u32::from)),
            ("nat-keepalive-seconds", table.nat_keepalive_seconds),
        ] {
            if let Some(found) = found {
                refuse(field, "nothing here without udp-port, the peer's", found);
            }
        }
        return (None, seconds);
    };
    let local = table.local_udp_port.unwrap_or(NAT_TRAVERSAL_PORT);
    if table.protocol == Some(ProtocolName::Ah) {
        let expected = "nothing here with protocol = \"ah\", which no NAT lets through";
        refuse("udp-port", expected, remote.into());
    } else if table.through.is_some() {
        refuse("udp-port", "nothing here with through: only the outermost tunnel meets a NAT", remote.into());
    } else if remote == 0 {
        refuse("udp-port", "a port of the peer's from 1 to 65535", 0);
    }
    // Port 500 is IKE's alone: it has no marker there that would tell it from ESP (RFC 7296 section 2.23).
    if matches!(local, 0 | 500) {
        refuse("local-udp-port", "a port of ours from 1 to 65535 but 500, which is IKE's", local.into());
    }
    (UdpPorts::new(local, remote), seconds)
}

/// Tunnel or transport mode; each refuses the fields that mean nothing in it.
fn mode(table: &TunnelTable, path: &str, problems: &mut Problems) -> Mode {
    if table.mode != Some(ModeName::Transport) {
        if let Some(rule) = table.destination_options {
            problems.push(
                format!("{path}.destination-options"),
                format!("expected nothing here without mode = \"transport\", found {}", rule.name()),
            );
        }
        return Mode::Tunnel;
    }
    // Nobody routes them, and the hooks leave what is the link's own alone.
    for (field, text) in [("local", &table.local), ("remote", &table.remote)] {
        if text.parse().is_ok_and(|address: Ipv6Addr| address.is_unicast_link_local()) {
            problems.push(
                format!("{path}.{field}"),
                format!("expected a routed address with mode = \"transport\", found the link-local {text}"),
            );
        }
    }
    let outer = [
        ("dscp", table.dscp.as_ref().map(|dscp| value::found(&dscp.0))),
        ("ecn", table.ecn.map(|ecn| ecn.name().into())),
        ("df", table.df.map(|df| df.name().into())),
        ("ttl", table.ttl.map(|ttl| ttl.to_string())),
        // It fragments what it has sealed, always (RFC 4303 section 3.3.4).
        ("fragmentation", table.fragmentation.map(|fragmentation| fragmentation.name().into())),
    ];
    for (field, found) in outer {
        if let Some(found) = found {
            problems.push(
                format!("{path}.{field}"),
                format!(
                    "expected nothing here with mode = \"transport\", where packets keep their own header, found {found}"
                ),
            );
        }
    }
    Mode::Transport(match table.destination_options {
        Some(DestinationOptionsName::Before) => DestinationOptions::Before,
        Some(DestinationOptionsName::After) | None => DestinationOptions::After,
    })
}

fn dscp(text: &str) -> Result<Dscp, String> {
    match text.parse() {
        Ok(value @ 0..=63) => Ok(Dscp::Fixed(value)),
        _ if text == "copy" => Ok(Dscp::Copy),
        _ => Err(format!("expected \"copy\" or 0 to 63, found {}", value::found(text))),
    }
}

/// Checks one direction of a tunnel by itself.
pub(super) fn sa(
    table: &SaTable,
    path: String,
    suite: Option<(Suite, bool)>,
    rules: &Rules<'_>,
    problems: &mut Problems,
) -> Option<SaRequest> {
    let before = problems.0.len();
    let spi = problems.take(format!("{path}.spi"), value::spi(&table.spi.0));
    let mut load = |field: &str, secret: &Option<Secret>| match secret {
        Some(secret) => problems.take(format!("{path}.{field}"), keys::load(secret, rules.key_files)),
        None => Some(keys::absent()),
    };
    let encryption = load("encryption-key", &table.encryption_key);
    let authentication = load("authentication-key", &table.authentication_key);
    let last_sequence = match &table.last_sequence {
        None => 0,
        Some(_) if !rules.offline => {
            problems.push(
                format!("{path}.last-sequence"),
                "expected nothing here: only adit offline starts at a given number; remove it",
            );
            0
        }
        Some(Scalar(text)) => text.parse().unwrap_or_else(|_| {
            problems.push(
                format!("{path}.last-sequence"),
                format!("expected a number below 2^64, found {}", value::found(text)),
            );
            0
        }),
    };
    if rules.key_files && !rules.offline && table.fresh_key.is_some() {
        problems.push(
            format!("{path}.fresh-key"),
            "expected nothing here: the first use of a key is declared once, by adit key declare-fresh; a line that \
             stays would declare a used key fresh again when the state directory is lost. Remove it",
        );
    }
    let keys = KeyMaterial { encryption: encryption?, authentication: authentication? };
    if let Some((suite, esn)) = suite {
        // Expanding is the one definition of which keys are right; what it expands is wiped at once.
        if let Err(error) = Opener::new(suite, &keys, esn) {
            let (field, message) = keys::describe(error, suite);
            problems.push(format!("{path}.{field}"), message);
        }
        if !esn && last_sequence > u64::from(u32::MAX) {
            problems.push(
                format!("{path}.last-sequence"),
                format!("expected a number below 2^32 without esn, found {last_sequence}"),
            );
        }
    }
    let fresh = table.fresh_key.unwrap_or(false);
    (problems.0.len() == before).then_some(SaRequest { field: path, spi: spi?, keys, fresh, last_sequence })
}

/// Checks one policy by itself.
pub fn policy(table: &PolicyTable, path: String, problems: &mut Problems) -> Option<PolicySettings> {
    let before = problems.0.len();
    plain_name(&format!("{path}.name"), &table.name, problems);
    match (table.action, &table.tunnel) {
        (ActionName::Protect, None) => {
            problems.push(
                format!("{path}.tunnel"),
                "expected the name of a tunnel for action = \"protect\", found nothing",
            );
        }
        (ActionName::Bypass | ActionName::Discard, Some(tunnel)) => {
            let (action, found) = (table.action.name(), value::found(tunnel));
            problems.push(
                format!("{path}.tunnel"),
                format!("expected no tunnel for action = {action:?}, found {found}"),
            );
        }
        _ => {}
    }
    let mut ranges = |field: &str, texts: &Option<Vec<String>>| match texts {
        None => vec![value::any_v4(), value::any_v6()],
        Some(texts) => {
            if texts.is_empty() {
                problems.push(
                    format!("{path}.{field}"),
                    "expected at least one address range, found an empty list; leave it out to mean any",
                );
            }
            let range = |(index, text): (usize, &String)| {
                problems.take(format!("{path}.{field}[{index}]"), value::unicast_addresses(text))
            };
            texts.iter().enumerate().filter_map(range).flatten().collect()
        }
    };
    let (local, remote) = (ranges("local", &table.local), ranges("remote", &table.remote));
    let upper = upper(table, &path, problems);
    let (number, upper) = upper?;
    let mut selectors = Vec::new();
    for local in &local {
        for remote in remote.iter().filter(|remote| remote.first.is_ipv4() == local.first.is_ipv4()) {
            selectors.push(Selector { local: *local, remote: *remote, protocol: number, upper });
        }
    }
    if problems.0.len() == before && selectors.is_empty() {
        problems.push(
            format!("{path}.remote"),
            "expected a range of the same IP version as one of local, found none",
        );
    }
    let direction = table.direction.unwrap_or(DirectionName::Both);
    (problems.0.len() == before).then(|| PolicySettings {
        name: table.name.as_str().into(),
        action: table.action,
        tunnel: table.tunnel.as_deref().map(Arc::from),
        inbound: direction != DirectionName::Out,
        outbound: direction != DirectionName::In,
        selectors,
        field: path,
    })
}

fn upper(table: &PolicyTable, path: &str, problems: &mut Problems) -> Option<(Option<u8>, UpperSelector)> {
    let number = match &table.protocol {
        None => None,
        Some(Scalar(text)) => problems.take(format!("{path}.protocol"), value::next_layer(text))?,
    };
    let has_ports = matches!(number, Some(protocol::TCP | protocol::UDP | protocol::SCTP));
    let has_types = matches!(number, Some(protocol::ICMP | protocol::ICMPV6));
    let protocol_text = value::next_layer_text(number);
    let mut ports = |field: &str, text: &Option<Scalar>| match text {
        None => Some(PortRange { first: 0, last: u16::MAX }),
        Some(_) if !has_ports => {
            problems.push(
                format!("{path}.{field}"),
                format!(
                    "expected protocol = \"tcp\", \"udp\" or \"sctp\" beside ports, found {protocol_text}"
                ),
            );
            None
        }
        Some(Scalar(text)) => problems.take(format!("{path}.{field}"), value::ports(text)),
    };
    let local = ports("local-ports", &table.local_ports);
    let remote = ports("remote-ports", &table.remote_ports);
    if let Some(Scalar(text)) = &table.icmp {
        if !has_types {
            problems.push(
                format!("{path}.icmp"),
                format!("expected protocol = \"icmp\" or \"icmpv6\" beside icmp, found {protocol_text}"),
            );
            return None;
        }
        let upper = problems.take(format!("{path}.icmp"), value::icmp(text))?;
        return Some((number, upper));
    }
    let (local, remote) = (local?, remote?);
    let upper = if table.local_ports.is_some() || table.remote_ports.is_some() {
        UpperSelector::Ports { local, remote }
    } else {
        UpperSelector::Any
    };
    Some((number, upper))
}

impl From<EncryptionName> for Encryption {
    fn from(name: EncryptionName) -> Self {
        name.name().parse().expect(ONE_LIST)
    }
}

impl From<AuthenticationName> for Authentication {
    fn from(name: AuthenticationName) -> Self {
        name.name().parse().expect(ONE_LIST)
    }
}

/// A test says so.
const ONE_LIST: &str = "users and suites have the same names";

/// New random keys for these algorithms.
///
/// # Errors
/// The algorithms do not go together, or the kernel has no entropy.
pub fn generate(
    encryption: EncryptionName,
    authentication: AuthenticationName,
) -> Result<(Option<Secret>, Option<Secret>), Problems> {
    let suite = Suite::new(encryption.into(), authentication.into(), None).map_err(|error| {
        let (field, message) = describe(&error, encryption, authentication, None);
        Problems::one(format!("--{field}"), message)
    })?;
    keys::generate(suite).map_err(|message| Problems::one("--encryption", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_suites_have_the_same_names() {
        let encryption: Vec<_> = EncryptionName::ALL.iter().map(|name| Encryption::from(*name)).collect();
        assert_eq!(encryption, Encryption::ALL);
        let authentication: Vec<_> =
            AuthenticationName::ALL.iter().map(|name| Authentication::from(*name)).collect();
        assert_eq!(authentication, Authentication::ALL);
    }
}
