//! `adit offline`: captures in, captures and a report out.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use comfy_table::Table;
use serde::Serialize;
use serde_json::{Value, json};

use super::captures::{self, Captured, Writer};
use super::{Engine, network};
use crate::control::audit::{self, DropRecord};
use crate::control::check;
use crate::control::config::ActionName;
use crate::control::settings::{Settings, outermost_first, selectors_of};
use crate::crypto::IvSource;
use crate::pipeline::{BURST, DropReason, Received, Tables};
use crate::policy::{Action, Policy, Spd, Tunnel};
use crate::route::{PortId, Vlan};
use crate::sa::inbound::SaCounters;
use crate::sa::publish::Published;
use crate::sa::{InboundSa, OutboundSa};
use crate::wire::vlan::Tags;

/// Runs captures through the engine, without a daemon, sockets or root.
///
/// Tunnels, keys and policies come from the configuration, where SAs may say `last-sequence` here. Interfaces,
/// routes and neighbours, which the daemon reads from the kernel, come from --network or are made up: what the
/// policies cover is behind the first protected interface, everything else behind the first unprotected one.
///
/// A key that seals offline must not be in use elsewhere: the same numbers would be used twice.
#[derive(Parser)]
#[command(name = "adit offline")]
struct Arguments {
    /// The configuration file.
    #[arg(long)]
    config: PathBuf,
    /// Frames that arrive at an interface: a capture in pcap or pcapng; may be given again.
    #[arg(long = "in", value_name = "INTERFACE=FILE", required = true, value_parser = input)]
    inputs: Vec<(String, PathBuf)>,
    /// Directory for what leaves: INTERFACE.pcap for each.
    #[arg(long)]
    out: PathBuf,
    /// TOML with [[port]] (name, mac, mtu, addresses), [[route]] (to, port, via), [[neighbour]] (port, address, mac).
    #[arg(long)]
    network: Option<PathBuf>,
    /// Decides every CBC IV: equal seeds give equal captures.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tell every packet that is dropped, by its number in its capture, and why; packets go one by one.
    #[arg(long, conflicts_with = "burst")]
    explain: bool,
    /// Packets in a burst, 1 to 64.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=BURST as i64))]
    burst: u16,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
}

fn input(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((interface, file)) if !interface.is_empty() && !file.is_empty() => {
            Ok((interface.to_owned(), file.into()))
        }
        _ => Err("expected INTERFACE=FILE".into()),
    }
}

fn parse(arguments: &[OsString]) -> Result<Arguments, clap::Error> {
    let name = OsString::from("adit offline");
    Arguments::try_parse_from(std::iter::once(&name).chain(arguments))
}

/// The program: `arguments` are those behind `offline`.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let arguments = match parse(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match execute(&arguments) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("adit offline: {error}");
            ExitCode::from(2)
        }
    }
}

/// As [`main`]; the report instead of printing it.
///
/// # Errors
/// What [`main`] would print to standard error.
pub fn run(arguments: &[OsString]) -> Result<String, String> {
    execute(&parse(arguments).map_err(|error| error.to_string())?)
}

/// A packet on its way in.
struct Arrival {
    port: PortId,
    /// Which of the captures, and the packet's number there, as Wireshark counts.
    capture: usize,
    number: usize,
    captured: Captured,
}

/// Packets that were dropped: mostly the one that is named, and at that one what had waited for others.
#[derive(Serialize)]
struct Explained {
    capture: String,
    number: usize,
    #[serde(flatten)]
    record: DropRecord,
}

fn execute(arguments: &Arguments) -> Result<String, String> {
    let settings = check::load_file(&arguments.config, true).map_err(|problems| problems.to_string())?;
    let file = match &arguments.network {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            network::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => network::NetworkFile::default(),
    };
    let (tables, tunnels) = tables(&settings, &file)?;
    let mut engine = Engine::new(Arc::new(tables), 0, IvSource::from_seed(seed(arguments.seed)));

    let mut arrivals = arrivals(arguments, &settings)?;
    std::fs::create_dir_all(&arguments.out)
        .map_err(|error| format!("{}: {error}", arguments.out.display()))?;
    let mut writers = Vec::new();
    for interface in &settings.interfaces {
        let path = arguments.out.join(format!("{}.pcap", interface.name));
        writers.push(if interface.vlan.is_none() { Some(Writer::create(&path)?) } else { None });
    }
    let mut sent = vec![0; writers.len()];

    let began = arrivals.first().map_or(Duration::ZERO, |first| first.captured.time);
    let mut handed_over = 0;
    let mut explained = Vec::new();
    let burst_length = if arguments.explain { 1 } else { usize::from(arguments.burst) };
    for chunk in arrivals.chunks_mut(burst_length) {
        let time = chunk.last().map_or(began, |last| last.captured.time);
        let mut burst: Vec<_> = chunk
            .iter_mut()
            .map(|arrival| Received { port: arrival.port, frame: &mut arrival.captured.frame })
            .collect();
        engine.process(time.saturating_sub(began).as_millis() as u64, &mut burst);
        let mut written = Ok(());
        engine.transmit(|output| {
            if let Some(neighbour) = output.unresolved {
                output.frame[..6].copy_from_slice(&network::made_up_neighbour(neighbour).0);
            }
            let frame = &output.frame[..output.length];
            sent[usize::from(output.port.0)] += 1;
            let (wire, frame) = match settings.interfaces[usize::from(output.port.0)].vlan {
                None => (output.port, Cow::Borrowed(frame)),
                // On the wire of its interface.
                Some(Vlan { parent, tags }) => (parent, Cow::Owned(tagged(frame, tags))),
            };
            if written.is_ok()
                && let Some(writer) = &mut writers[usize::from(wire.0)]
            {
                written = writer.write(time, &frame);
            }
        });
        written?;
        handed_over += engine.take_handed_over().count();
        if arguments.explain {
            explain(&mut engine, arguments, &settings, chunk, &mut explained);
        }
    }
    debug_assert_eq!(handed_over, 0, "there is one worker");
    // The captures are over: no fragment waits any longer.
    engine.expire(u64::MAX);
    if arguments.explain {
        let last = arrivals.len().saturating_sub(1);
        explain(&mut engine, arguments, &settings, &arrivals[last..], &mut explained);
    }
    for writer in writers.into_iter().flatten() {
        writer.finish()?;
    }
    let mut report = report(&engine, &settings, &tunnels, &arrivals, &sent);
    if arguments.explain {
        report["explained"] = json!(explained);
    }
    Ok(if arguments.json { format!("{report:#}\n") } else { text(&report, &settings, &explained) })
}

/// What was dropped while the packets of `burst` were under way.
fn explain(
    engine: &mut Engine,
    arguments: &Arguments,
    settings: &Settings,
    burst: &[Arrival],
    explained: &mut Vec<Explained>,
) {
    engine.tell_drops(0);
    let Some(last) = burst.last() else { return };
    let interface =
        |port: PortId| settings.interfaces.get(usize::from(port.0)).map(|interface| interface.name.clone());
    for record in std::iter::from_fn(|| engine.tables.audit.take()) {
        explained.push(Explained {
            capture: arguments.inputs[last.capture].1.display().to_string(),
            number: last.number,
            record: DropRecord::of(&record, audit::utc(last.captured.time), interface),
        });
    }
}

fn tagged(frame: &[u8], tags: Tags) -> Vec<u8> {
    let mut tagged = vec![0; tags.length()];
    tagged.extend_from_slice(frame);
    tags.write(&mut tagged);
    tagged
}

fn seed(number: u64) -> [u8; 32] {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    seed
}

/// Every frame of every capture, by time; of equal times, in the order of the arguments.
fn arrivals(arguments: &Arguments, settings: &Settings) -> Result<Vec<Arrival>, String> {
    let mut arrivals = Vec::new();
    for (capture, (interface, path)) in arguments.inputs.iter().enumerate() {
        let index = settings
            .interfaces
            .iter()
            .position(|known| known.name == *interface)
            .ok_or_else(|| format!("--in {interface}: expected an interface of the configuration"))?;
        let captured = captures::read(path)?;
        let port = PortId(index as u16);
        let numbered = (1..).zip(captured);
        arrivals.extend(numbered.map(|(number, captured)| Arrival { port, capture, number, captured }));
    }
    arrivals.sort_by_key(|arrival| arrival.captured.time);
    Ok(arrivals)
}

/// The tables a daemon would have built from the same configuration.
fn tables(settings: &Settings, file: &network::NetworkFile) -> Result<(Tables, Vec<Arc<Tunnel>>), String> {
    let tables = Tables::new(settings.engine.reassembly, settings.engine.icmp);
    let sad = &tables.sad;
    let mut tunnels: Vec<Arc<Tunnel>> = Vec::new();
    let names: Vec<_> = settings
        .tunnels
        .iter()
        .map(|request| &request.settings)
        .map(|wanted| (&*wanted.name, wanted.through.as_deref()))
        .collect();
    for request in outermost_first(&names).into_iter().map(|place| &settings.tunnels[place]) {
        let wanted = &request.settings;
        let selectors = |inbound| selectors_of(&wanted.name, &settings.policies, inbound);
        let refused = |field: &str, error| format!("{field}: {error:?}");
        if let Some(sa) = &request.inbound {
            let spec = wanted.inbound_spec(sa.spi, selectors(true), sa.last_sequence);
            let inbound = InboundSa::new(spec, &sa.keys).map_err(|error| refused(&sa.field, error))?;
            sad.insert(Arc::new(inbound)).map_err(|_| format!("{}: SPI {} is in use", sa.field, sa.spi))?;
        }
        let outbound = match &request.outbound {
            Some(sa) => {
                let spec = wanted.outbound_spec(sa.spi, selectors(false), sa.last_sequence);
                let outbound = OutboundSa::new(spec, &sa.keys).map_err(|error| refused(&sa.field, error))?;
                Some(Arc::new(outbound))
            }
            None => None,
        };
        tunnels.push(Arc::new(Tunnel {
            name: wanted.name.clone(),
            local: wanted.local,
            remote: wanted.remote,
            mode: wanted.mode,
            udp: wanted.udp,
            clamp_mss: wanted.clamp_mss,
            tfc: wanted.tfc.runtime(),
            through: tunnels.iter().find(|tunnel| Some(&tunnel.name) == wanted.through.as_ref()).cloned(),
            fragmentation: wanted.fragmentation,
            path: Arc::default(),
            outbound: Published::new(outbound),
        }));
    }
    let tunnel = |name: &Option<Arc<str>>| {
        tunnels.iter().find(|tunnel| Some(&tunnel.name) == name.as_ref()).map(Arc::clone)
    };
    let mut policies = Vec::new();
    for policy in &settings.policies {
        let action = match policy.action {
            ActionName::Protect => Action::Protect(
                tunnel(&policy.tunnel).ok_or_else(|| format!("{}: no such tunnel", policy.field))?,
            ),
            ActionName::Bypass => Action::Bypass,
            ActionName::Discard => Action::Discard,
        };
        policies.push(Arc::new(Policy {
            name: policy.name.clone(),
            outbound: policy.outbound,
            inbound: policy.inbound,
            selectors: policy.selectors.clone(),
            action,
            packets: AtomicU64::new(0),
        }));
    }
    let spd = Spd::new(policies, settings.engine.fallback, 1);
    let network = network::build(file, settings, &spd)?;
    tables.spd.replace(Some(Arc::new(spd)));
    tables.network.replace(Some(Arc::new(network)));
    Ok((tables, tunnels))
}

fn report(
    engine: &Engine,
    settings: &Settings,
    tunnels: &[Arc<Tunnel>],
    arrivals: &[Arrival],
    sent: &[u64],
) -> Value {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = engine.counters();
    let drops: serde_json::Map<_, _> = DropReason::ALL
        .iter()
        .map(|reason| (reason.name().to_owned(), load(&counters.dropped[*reason as usize])))
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name, json!(count)))
        .collect();
    let dropped: u64 = counters.dropped.iter().map(load).sum();
    let interfaces: Vec<_> = settings
        .interfaces
        .iter()
        .enumerate()
        .map(|(index, interface)| {
            let received = arrivals.iter().filter(|arrival| usize::from(arrival.port.0) == index).count();
            json!({ "name": interface.name, "received": received, "transmitted": sent[index] })
        })
        .collect();
    let sa = |direction: &str, tunnel: &str, spi: String, last: u64, counters: &SaCounters| {
        json!({
            "tunnel": tunnel,
            "direction": direction,
            "spi": spi,
            "last_sequence": last,
            "packets": load(&counters.packets),
            "bytes": load(&counters.bytes),
            "replayed": load(&counters.replayed),
            "icv_failed": load(&counters.icv_failed),
            "refused": load(&counters.refused),
        })
    };
    let mut sas = Vec::new();
    for inbound in engine.tables.sad.list() {
        let spec = &inbound.spec.sa;
        let edge = inbound.replay.right_edge();
        sas.push(sa("inbound", &spec.tunnel, spec.spi.to_string(), edge, &inbound.counters));
    }
    for outbound in tunnels.iter().filter_map(|tunnel| tunnel.outbound.get()) {
        let spec = &outbound.spec.sa;
        let last = outbound.last_sequence();
        sas.push(sa("outbound", &spec.tunnel, spec.spi.to_string(), last, &outbound.counters));
    }
    json!({
        "received": load(&counters.received),
        "originated": load(&counters.originated),
        "transmitted": load(&counters.transmitted),
        "absorbed": load(&counters.absorbed),
        "dropped": dropped,
        "sealed": load(&counters.sealed),
        "opened": load(&counters.opened),
        "bypassed": load(&counters.bypassed),
        "ecn_suspect": load(&counters.ecn_suspect),
        "drops": drops,
        "interfaces": interfaces,
        "sas": sas,
        "warnings": settings.warnings,
    })
}

impl Explained {
    fn row(&self) -> Vec<String> {
        let Self { capture, number, record } = self;
        let own = [capture.clone(), number.to_string(), record.reason.clone(), record.packets.to_string()];
        own.into_iter().chain(record.columns()).collect()
    }
}

fn text(report: &Value, settings: &Settings, explained: &[Explained]) -> String {
    let mut text: String = settings.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    let table = |columns: &[&str], rows: &mut dyn Iterator<Item = Vec<String>>| {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header(columns);
        for row in rows {
            table.add_row(row);
        }
        table.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>()
    };
    let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let rows = |list: &Value, columns: &[&str]| -> Vec<Vec<String>> {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().map(|row| columns.iter().map(|column| cell(&row[*column])).collect()).collect()
    };
    let totals =
        ["received", "originated", "transmitted", "absorbed", "dropped", "sealed", "opened", "bypassed"]
            .as_slice();
    text += &table(totals, &mut std::iter::once(totals.iter().map(|name| cell(&report[*name])).collect()));
    text.push('\n');
    let columns = ["name", "received", "transmitted"];
    text += &table(&columns, &mut rows(&report["interfaces"], &columns).into_iter());
    text.push('\n');
    let columns = [
        "tunnel",
        "direction",
        "spi",
        "last_sequence",
        "packets",
        "bytes",
        "replayed",
        "icv_failed",
        "refused",
    ];
    text += &table(&columns, &mut rows(&report["sas"], &columns).into_iter());
    let dropped = DropReason::ALL.iter().filter(|reason| !report["drops"][reason.name()].is_null());
    let mut dropped = dropped
        .map(|reason| {
            vec![reason.name().into(), cell(&report["drops"][reason.name()]), reason.explain().into()]
        })
        .peekable();
    if dropped.peek().is_some() {
        text.push('\n');
        text += &table(&["reason", "packets", "meaning"], &mut dropped);
    }
    let mut explained = explained.iter().map(Explained::row).peekable();
    if explained.peek().is_some() {
        text.push('\n');
        let columns = [
            "capture",
            "number",
            "reason",
            "packets",
            "dir",
            "tunnel",
            "spi",
            "sequence",
            "packet",
            "inside it",
        ];
        text += &table(&columns, &mut explained);
    }
    text
}
