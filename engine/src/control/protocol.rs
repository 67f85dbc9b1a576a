//! What the control socket understands: varlink calls of `io.adit.Engine`, told from bytes to bytes. No
//! sockets here; [`super::server`] has those.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::apply::{Control, LiveSa, LiveTunnel};
use super::audit::DropRecord;
use super::config::{PolicyTable, SaTable, Scalar, TunnelTable, join, with_missing};
use super::lifetimes;
use super::prepare::selector_text;
use super::problem::{Problem, Problems};
use super::report::{self, Change, PolicyReport, SaReport, Stats, Status, load};
use super::settings::PolicySettings;
use super::value;
use crate::pipeline::{DropReason, IcmpRules};
use crate::policy::spd::Fallback;
use crate::sa::selector::Selector;
use crate::sa::spec::{SaSpec, UdpPorts};
use crate::wire::Spi;

/// The interface's name.
pub const INTERFACE: &str = "io.adit.Engine";
/// The interface as varlink describes it; tests hold the code against it.
pub const DESCRIPTION: &str = include_str!("io.adit.Engine.varlink");
/// Longest message in bytes, and longest answer to a call without `more`.
pub const MESSAGE_LIMIT: usize = 64 * 1024;
/// About how many bytes one streamed piece of a list has.
pub const PIECE: usize = 16 * 1024;

const SERVICE_DESCRIPTION: &str = "\
interface org.varlink.service
method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)
error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
";

/// A call as it travels.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(default)]
    oneway: bool,
    #[serde(default)]
    more: bool,
    #[serde(default)]
    upgrade: bool,
}

/// Who asks, as the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Process, 0 when unknown.
    pub pid: i32,
    /// May read.
    pub reads: bool,
    /// May change.
    pub changes: bool,
}

/// An error reply.
#[derive(Debug, Serialize)]
pub struct ErrorReply {
    error: String,
    parameters: serde_json::Value,
}

impl ErrorReply {
    fn service(name: &str, parameters: serde_json::Value) -> Self {
        Self { error: format!("org.varlink.service.{name}"), parameters }
    }

    fn own(name: &str, parameters: serde_json::Value) -> Self {
        Self { error: format!("{INTERFACE}.{name}"), parameters }
    }

    /// The message cannot be read, and nothing behind it either.
    pub fn bad_message(reason: &str) -> Self {
        Self::own("BadMessage", json!({ "reason": reason }))
    }

    /// No connection is free.
    pub fn busy(limit: usize) -> Self {
        Self::own("Busy", json!({ "limit": limit }))
    }

    /// The caller may not do this.
    pub fn denied(uid: u32, needs: &str) -> Self {
        Self::own("PermissionDenied", json!({ "uid": uid, "needs": needs }))
    }

    /// As it travels, with its NUL.
    pub fn message(&self) -> Vec<u8> {
        message(self)
    }
}

impl From<Problems> for ErrorReply {
    fn from(problems: Problems) -> Self {
        // A reply has the same limit as a request; the first problems are the ones to mend first.
        let mut shown = problems.0;
        shown.truncate(100);
        Self::own("Refused", json!({ "problems": shown }))
    }
}

/// A request, understood.
pub enum Request {
    /// One answer, at once.
    Read(Read),
    /// A list, in pieces.
    List(List),
    /// A change, which may take a while (storage, workers).
    Change(ChangeRequest),
    /// What happens from now on, until the client leaves.
    Monitor {
        /// What is dropped, too.
        drops: bool,
    },
}

/// What is answered at once.
pub enum Read {
    /// `GetInfo`
    Info,
    /// `GetInterfaceDescription`
    Description(&'static str),
    /// `Status`
    Status,
    /// `Stats`
    Stats,
    /// `Drops`
    Drops(bool),
}

/// What is answered in pieces.
pub enum List {
    /// `SaList` and `SaShow`
    Sas(SaFilter),
    /// `PolicyList`
    Policies,
    /// `DropsRecent`, of one reason or of all
    Drops(Option<DropReason>),
}

/// Which SAs.
#[derive(Default)]
pub struct SaFilter {
    tunnel: Option<String>,
    spi: Option<Spi>,
    selectors: bool,
}

/// What changes something.
pub enum ChangeRequest {
    /// `SaAdd`
    SaAdd(Box<SaAdd>),
    /// `SaReplace`
    SaReplace(Box<SaReplace>),
    /// `SaDelete`
    SaDelete(Option<String>, Option<Spi>, Option<bool>),
    /// `PolicyAdd`
    PolicyAdd(PolicyAdd),
    /// `PolicyDelete`
    PolicyDelete(String),
    /// `Reload`, and the tunnels whose keys are fresh.
    Reload(Vec<String>),
}

/// Parameters of `SaAdd`.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SaAdd {
    /// The tunnel.
    pub tunnel: TunnelTable,
    /// Policies to put behind the others.
    #[serde(default)]
    pub policies: Option<Vec<PolicyTable>>,
}

/// Parameters of `SaReplace`.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SaReplace {
    /// The tunnel's name.
    pub tunnel: String,
    /// What the peer shall send with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<SaTable>,
    /// What we send with from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<SaTable>,
    /// Seconds that the old inbound SA stays once the peer sends with the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<u64>,
}

/// Parameters of `PolicyAdd`.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyAdd {
    /// Policies, in order.
    pub policies: Vec<PolicyTable>,
    /// Where, from 0; behind the others by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DropsParameters {
    #[serde(default)]
    all: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DropsRecentParameters {
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MonitorParameters {
    #[serde(default)]
    drops: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InterfaceParameters {
    interface: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TunnelParameters {
    #[serde(default)]
    tunnel: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SaParameters {
    #[serde(default)]
    tunnel: Option<String>,
    #[serde(default)]
    spi: Option<Scalar>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SaDeleteParameters {
    #[serde(default)]
    tunnel: Option<String>,
    #[serde(default)]
    spi: Option<Scalar>,
    #[serde(default)]
    direction: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReloadParameters {
    #[serde(default)]
    fresh_keys: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NameParameters {
    name: String,
}

/// What a message asks for, and how it wants the answer.
pub struct Asked {
    /// The request, or what is wrong with it.
    pub request: Result<Request, ErrorReply>,
    /// The method, for the log.
    pub method: String,
    /// Pieces are welcome.
    pub more: bool,
    /// No answer, please.
    pub oneway: bool,
}

/// Reads one message, without its NUL.
///
/// # Errors
/// The bytes are no call: the connection cannot go on.
pub fn read(bytes: &[u8], peer: Peer) -> Result<Asked, ErrorReply> {
    // serde_json stops at 128 levels of nesting, also in what it skips.
    let call: Call<'_> = serde_json::from_slice(bytes).map_err(|error| {
        ErrorReply::bad_message(&format!("expected a varlink call in JSON: {}", quiet(&error)))
    })?;
    let request = if call.upgrade {
        Err(ErrorReply::service("InvalidParameter", json!({ "parameter": "upgrade" })))
    } else {
        request(&call.method, call.parameters.map_or("{}", RawValue::get))
            .and_then(|request| permitted(request, peer))
    };
    Ok(Asked {
        request,
        method: call.method.chars().take(80).collect(),
        more: call.more,
        oneway: call.oneway,
    })
}

fn permitted(request: Request, peer: Peer) -> Result<Request, ErrorReply> {
    match request {
        Request::Change(_) if !peer.changes => Err(ErrorReply::denied(peer.uid, "root, or the uid of aditd")),
        _ if !peer.reads => Err(ErrorReply::denied(peer.uid, "the group of the control socket")),
        _ => Ok(request),
    }
}

fn request(method: &str, parameters: &str) -> Result<Request, ErrorReply> {
    // Serde would read a structure from an array as well.
    if !parameters.starts_with('{') {
        return Err(refused("parameters", "expected an object"));
    }
    let Some((interface, name)) = method.rsplit_once('.') else {
        return Err(ErrorReply::service("MethodNotFound", json!({ "method": method })));
    };
    let spi = |spi: Option<Scalar>| match spi {
        None => Ok(None),
        Some(Scalar(text)) => value::spi(&text).map(Some).map_err(|message| refused("spi", &message)),
    };
    let nothing = |request| parse::<Nothing>(parameters).map(|Nothing {}| request);
    match (interface, name) {
        ("org.varlink.service", "GetInfo") => nothing(Request::Read(Read::Info)),
        ("org.varlink.service", "GetInterfaceDescription") => {
            let InterfaceParameters { interface } = parse(parameters)?;
            match interface.as_str() {
                INTERFACE => Ok(Request::Read(Read::Description(DESCRIPTION))),
                "org.varlink.service" => Ok(Request::Read(Read::Description(SERVICE_DESCRIPTION))),
                _ => Err(ErrorReply::service("InterfaceNotFound", json!({ "interface": interface }))),
            }
        }
        (INTERFACE, "Status") => nothing(Request::Read(Read::Status)),
        (INTERFACE, "Stats") => nothing(Request::Read(Read::Stats)),
        (INTERFACE, "Drops") => {
            let DropsParameters { all } = parse(parameters)?;
            Ok(Request::Read(Read::Drops(all.unwrap_or(false))))
        }
        (INTERFACE, "DropsRecent") => {
            let DropsRecentParameters { reason } = parse(parameters)?;
            let known = |name: String| {
                DropReason::named(&name).ok_or_else(|| {
                    let found = value::found(&name);
                    refused("reason", &format!("expected a reason of adit drops --all, found {found}"))
                })
            };
            Ok(Request::List(List::Drops(reason.map(known).transpose()?)))
        }
        (INTERFACE, "Monitor") => {
            let MonitorParameters { drops } = parse(parameters)?;
            Ok(Request::Monitor { drops: drops.unwrap_or(false) })
        }
        (INTERFACE, "SaList") => {
            let TunnelParameters { tunnel } = parse(parameters)?;
            Ok(Request::List(List::Sas(SaFilter { tunnel, ..SaFilter::default() })))
        }
        (INTERFACE, "SaShow") => {
            let parameters: SaParameters = parse(parameters)?;
            if parameters.tunnel.is_none() && parameters.spi.is_none() {
                return Err(refused("tunnel", "expected a tunnel, an SPI or both, found neither"));
            }
            let (tunnel, spi) = (parameters.tunnel, spi(parameters.spi)?);
            Ok(Request::List(List::Sas(SaFilter { tunnel, spi, selectors: true })))
        }
        (INTERFACE, "SaAdd") => Ok(Request::Change(ChangeRequest::SaAdd(Box::new(parse(parameters)?)))),
        (INTERFACE, "SaReplace") => {
            Ok(Request::Change(ChangeRequest::SaReplace(Box::new(parse(parameters)?))))
        }
        (INTERFACE, "SaDelete") => {
            let parameters: SaDeleteParameters = parse(parameters)?;
            if parameters.tunnel.is_none() && parameters.spi.is_none() {
                return Err(refused("tunnel", "expected a tunnel, an SPI or both, found neither"));
            }
            let inbound = match parameters.direction.as_deref() {
                None => None,
                Some("in") => Some(true),
                Some("out") => Some(false),
                Some(other) => {
                    let found = value::found(other);
                    return Err(refused("direction", &format!("expected \"in\" or \"out\", found {found}")));
                }
            };
            Ok(Request::Change(ChangeRequest::SaDelete(parameters.tunnel, spi(parameters.spi)?, inbound)))
        }
        (INTERFACE, "PolicyAdd") => Ok(Request::Change(ChangeRequest::PolicyAdd(parse(parameters)?))),
        (INTERFACE, "PolicyList") => nothing(Request::List(List::Policies)),
        (INTERFACE, "PolicyDelete") => {
            let NameParameters { name } = parse(parameters)?;
            Ok(Request::Change(ChangeRequest::PolicyDelete(name)))
        }
        (INTERFACE, "Reload") => {
            let ReloadParameters { fresh_keys } = parse(parameters)?;
            Ok(Request::Change(ChangeRequest::Reload(fresh_keys.unwrap_or_default())))
        }
        (INTERFACE | "org.varlink.service", _) => {
            Err(ErrorReply::service("MethodNotFound", json!({ "method": method })))
        }
        _ => Err(ErrorReply::service("InterfaceNotFound", json!({ "interface": interface }))),
    }
}

fn refused(field: &str, message: &str) -> ErrorReply {
    Problems::one(field, message).into()
}

/// Parameters, or the path of the field that is wrong.
fn parse<T: DeserializeOwned>(parameters: &str) -> Result<T, ErrorReply> {
    let mut deserializer = serde_json::Deserializer::from_str(parameters);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let message = quiet(error.inner());
        let field = match with_missing(join("", &path), &message) {
            field if field.is_empty() => "parameters".into(),
            field => field,
        };
        Problems(vec![Problem { field, line: None, message }]).into()
    })
}

/// The message without the position, which means nothing to whoever typed a command.
fn quiet(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(message, _)| message.to_owned())
}

#[derive(Serialize)]
struct Reply<'a, T> {
    parameters: &'a T,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    continues: bool,
}

fn message(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("replies are plain structures");
    bytes.push(0);
    bytes
}

/// A reply as it travels, with its NUL.
pub fn reply(parameters: &impl Serialize) -> Vec<u8> {
    message(&Reply { parameters, continues: false })
}

/// The same, with more to come.
pub fn piece_of(parameters: &impl Serialize) -> Vec<u8> {
    message(&Reply { parameters, continues: true })
}

impl Read {
    /// The reply.
    pub fn answer(&self, control: &Control) -> Vec<u8> {
        match self {
            Self::Info => reply(&json!({
                "vendor": "adit",
                "product": "aditd",
                "version": env!("CARGO_PKG_VERSION"),
                "url": "",
                "interfaces": ["org.varlink.service", INTERFACE],
            })),
            Self::Description(text) => reply(&json!({ "description": text })),
            Self::Status => reply(&status(control)),
            Self::Stats => {
                let datapath = control.datapath_report();
                let total = report::total(&datapath.workers);
                reply(&Stats { workers: datapath.workers, total, steering: datapath.steering })
            }
            Self::Drops(all) => {
                reply(&json!({ "drops": report::drops(&control.datapath_report().workers, *all) }))
            }
        }
    }
}

impl ChangeRequest {
    /// Does it. May wait for storage and for workers.
    ///
    /// # Errors
    /// All problems; nothing changed.
    pub fn perform(self, control: &Control) -> Result<Change, Problems> {
        match self {
            Self::SaAdd(add) => control.add_tunnel(&add.tunnel, add.policies.as_deref().unwrap_or_default()),
            Self::SaReplace(replace) => control.replace_sas(&replace),
            Self::SaDelete(tunnel, spi, inbound) => {
                let field = if tunnel.is_some() { "tunnel" } else { "spi" };
                control.delete_sas(field, |settings, own, is_inbound| {
                    tunnel.as_deref().is_none_or(|tunnel| tunnel == &*settings.name)
                        && spi.is_none_or(|spi| spi == own)
                        && inbound.is_none_or(|inbound| inbound == is_inbound)
                })
            }
            Self::PolicyAdd(add) => control.add_policies(&add.policies, add.position),
            Self::PolicyDelete(name) => control.delete_policy(&name),
            Self::Reload(fresh) => control.reload(&fresh),
        }
    }
}

fn status(control: &Control) -> Status {
    let datapath = control.datapath_report();
    let live = control.live();
    let mut warnings = live.warnings.clone();
    warnings.extend(report::alarms(&datapath.workers));
    warnings.extend(datapath.warnings);
    warnings.extend(control.lease_trouble());
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        instance: control.engine.instance.clone(),
        pid: std::process::id(),
        uptime_seconds: control.uptime().as_secs(),
        generation: live.generation,
        default: match live.fallback {
            Fallback::Kernel => "kernel".into(),
            Fallback::Discard => "discard".into(),
        },
        tunnels: live.tunnels.len() as u64,
        inbound_sas: live.tunnels.iter().flat_map(LiveTunnel::all_inbound).count() as u64,
        outbound_sas: live.tunnels.iter().filter(|tunnel| tunnel.outbound.is_some()).count() as u64,
        policies: live.policies.len() as u64,
        interfaces: datapath.interfaces,
        host: datapath.host,
        warnings,
    }
}

impl LiveTunnel {
    fn reports(&self, filter: &SaFilter, rules: &IcmpRules) -> Vec<SaReport> {
        if filter.tunnel.as_deref().is_some_and(|name| name != &*self.settings.name) {
            return Vec::new();
        }
        let mut reports = Vec::new();
        for (position, live) in self.all_inbound().enumerate() {
            let sa = &live.sa;
            let mut report = report(live, &sa.spec.sa, "in");
            report.retiring = position >= usize::from(self.inbound.is_some());
            if sa.spec.replay_window == 0 {
                report.warnings.push("no replay protection".into());
            }
            report.count(&sa.counters);
            report.authentic(sa.has_authenticated());
            report.live(&sa.lifetime, &sa.spec.sa.limits, live.seconds);
            report.sequence = sa.replay.right_edge();
            report.lease(sa.lease.as_deref(), sa.lease.as_ref().map_or(0, |lease| lease.reached()));
            report.replay_window = Some(sa.replay.size());
            let selectors = sa.selectors.get();
            report.selectors =
                texts(filter, selectors.as_deref().map_or(&[][..], |selectors| &selectors.list));
            reports.push(report);
        }
        if let Some(live) = &self.outbound {
            let sa = &live.sa;
            let mut report = report(live, &sa.spec.sa, "out");
            report.count(&sa.counters);
            report.live(&sa.lifetime, &sa.spec.sa.limits, live.seconds);
            report.sequence = sa.last_sequence();
            report.lease(sa.lease.as_deref(), sa.last_sequence());
            if let Some((address, port)) = sa.in_udp.as_ref().and_then(|in_udp| in_udp.peer.get()) {
                (report.remote, report.udp_port) = (address.to_string(), Some(port));
            }
            report.path(&self.tunnel.path, rules, lifetimes::worker_clock());
            report.selectors = texts(filter, &sa.spec.sa.selectors);
            reports.push(report);
        }
        let wanted = filter.spi.map(|spi| spi.to_string());
        reports.retain(|report| wanted.as_ref().is_none_or(|wanted| *wanted == report.spi));
        reports
    }
}

fn texts(filter: &SaFilter, selectors: &[Selector]) -> Vec<String> {
    if filter.selectors { selectors.iter().map(selector_text).collect() } else { Vec::new() }
}

/// What both directions tell. Settings may have changed since an SA that is retiring was set up.
fn report<T>(live: &LiveSa<T>, spec: &SaSpec, direction: &str) -> SaReport {
    SaReport {
        tunnel: spec.tunnel.to_string(),
        direction: direction.into(),
        spi: spec.spi.to_string(),
        protocol: spec.protocol.name().into(),
        mode: spec.mode.name().into(),
        udp_port: spec.udp.map(UdpPorts::remote),
        local_udp_port: spec.udp.map(UdpPorts::local),
        local: spec.local.to_string(),
        remote: spec.remote.to_string(),
        encryption: spec.suite.encryption().name().into(),
        authentication: spec.suite.authentication().name().into(),
        icv_length: spec.suite.icv_length().into(),
        esn: spec.esn,
        replay_window: None,
        sequence: 0,
        ceiling: None,
        path_mtu: None,
        packets: 0,
        bytes: 0,
        replayed: 0,
        icv_failed: 0,
        refused: 0,
        retiring: false,
        lifetime: String::new(),
        age_seconds: live.age(lifetimes::now()).as_secs(),
        lifetime_packets_soft: None,
        lifetime_packets_hard: None,
        lifetime_bytes_soft: None,
        lifetime_bytes_hard: None,
        lifetime_seconds_soft: None,
        lifetime_seconds_hard: None,
        key: hex::encode(&live.fingerprint[..4]),
        warnings: if spec.suite.is_legacy() { vec!["weak algorithms".into()] } else { Vec::new() },
        selectors: Vec::new(),
    }
}

impl PolicySettings {
    fn report(&self, position: usize, packets: u64) -> PolicyReport {
        PolicyReport {
            position: position as u64,
            name: self.name.to_string(),
            action: self.action.name().into(),
            tunnel: self.tunnel.as_deref().map(Into::into),
            direction: match (self.inbound, self.outbound) {
                (true, true) => "both",
                (true, false) => "in",
                _ => "out",
            }
            .into(),
            selectors: self.selectors.iter().map(selector_text).collect(),
            packets,
        }
    }
}

/// A list on its way: where it stands, and of which generation it is.
pub struct Cursor {
    list: List,
    next: usize,
    generation: Option<u64>,
    found: bool,
    /// Of [`List::Drops`]: as they were at first.
    drops: Option<Vec<DropRecord>>,
}

impl Cursor {
    /// At the list's beginning.
    pub fn new(list: List) -> Self {
        Self { list, next: 0, generation: None, found: false, drops: None }
    }

    /// The next piece of about `size` bytes, and whether it is the last one. Holds the tables for as long as
    /// that piece takes, whatever the list's length.
    ///
    /// # Errors
    /// The list changed since the last piece, or a filter found nothing.
    pub fn piece(&mut self, control: &Control, size: usize) -> Result<(Vec<u8>, bool), ErrorReply> {
        let drops = match self.list {
            List::Drops(reason) => &**self.drops.get_or_insert_with(|| control.recent_drops(reason)),
            List::Sas(_) | List::Policies => &[],
        };
        let live = control.live();
        let is_of_generation = !matches!(self.list, List::Drops(_));
        if is_of_generation && *self.generation.get_or_insert(live.generation) != live.generation {
            return Err(ErrorReply::own("Changed", json!({})));
        }
        let (name, count) = match &self.list {
            List::Sas(_) => ("sas", live.tunnels.len()),
            List::Policies => ("policies", live.policies.len()),
            List::Drops(_) => ("records", drops.len()),
        };
        let mut items = Vec::new();
        while self.next < count && items.len() < size {
            let index = self.next;
            self.next += 1;
            match &self.list {
                List::Sas(filter) => live.tunnels[index]
                    .reports(filter, &control.engine.icmp)
                    .iter()
                    .for_each(|sa| push(&mut items, sa)),
                List::Policies => {
                    let policy = &live.policies[index];
                    push(&mut items, &policy.settings.report(index, load(&policy.policy.packets)));
                }
                List::Drops(_) => push(&mut items, &drops[index]),
            }
        }
        self.found |= !items.is_empty();
        let last = self.next == count;
        if let List::Sas(filter) = &self.list
            && last
            && !self.found
            && (filter.tunnel.is_some() || filter.spi.is_some())
        {
            let field = if filter.tunnel.is_some() { "tunnel" } else { "spi" };
            return Err(refused(field, "expected an SA that exists, found none; adit sa list shows them"));
        }
        let mut bytes = format!("{{\"parameters\":{{\"{name}\":[").into_bytes();
        bytes.extend_from_slice(&items);
        bytes.extend_from_slice(if last { b"]}}\0" } else { b"]},\"continues\":true}\0" });
        Ok((bytes, last))
    }

    /// The whole list in one answer, for a call without `more`.
    ///
    /// # Errors
    /// As [`Cursor::piece`], or it is longer than a message may be.
    pub fn whole(mut self, control: &Control) -> Result<Vec<u8>, ErrorReply> {
        match self.piece(control, MESSAGE_LIMIT)? {
            (bytes, true) if bytes.len() <= MESSAGE_LIMIT => Ok(bytes),
            _ => Err(ErrorReply::service("ExpectedMore", json!({}))),
        }
    }
}

fn push(items: &mut Vec<u8>, item: &impl Serialize) {
    if !items.is_empty() {
        items.push(b',');
    }
    serde_json::to_writer(items, item).expect("reports are plain structures");
}
