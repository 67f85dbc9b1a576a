//! Answers as people read them: tables for lists, blocks for one thing.

use std::io::IsTerminal as _;

use comfy_table::presets::{NOTHING, UTF8_HORIZONTAL_ONLY};
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::audit::DropRecord;
use super::events::Event;
use super::report::{Change, Counter, Drop, PolicyReport, SaReport, Stats, Status};
use super::settings::Settings;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    if std::io::stdout().is_terminal() {
        table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        // A pipe gets one line an entry, whatever its width.
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(header);
    table
}

fn right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn finish(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn warnings(warnings: &[String]) -> String {
    warnings.iter().map(|warning| format!("warning: {warning}\n")).collect()
}

pub(super) fn status(status: &Status) -> String {
    let mut text = format!(
        "aditd {} ({}), process {}, up {} s, generation {}\n{} tunnels, {} inbound and {} outbound SAs, {} policies, otherwise {}\n",
        status.version,
        status.instance,
        status.pid,
        status.uptime_seconds,
        status.generation,
        status.tunnels,
        status.inbound_sas,
        status.outbound_sas,
        status.policies,
        status.default,
    );
    if !status.interfaces.is_empty() {
        let mut table = table(&["interface", "side", "xdp", "link", "mtu", "queues"]);
        for port in &status.interfaces {
            let link = if port.up { "up" } else { "down" };
            table.add_row([
                &port.name,
                &port.side,
                &port.mode,
                link,
                &port.mtu.to_string(),
                &port.queues.to_string(),
            ]);
        }
        right(&mut table, 4..6);
        text.push_str(&finish(&table));
    }
    if let Some(host) = &status.host {
        let link = if host.up { "up" } else { "down" };
        let routes = if host.routes.is_empty() { "nothing yet".into() } else { host.routes.join(", ") };
        text.push_str(&format!("host path {}, {link}, to {routes}\n", host.device));
    }
    text + &warnings(&status.warnings)
}

pub(super) fn stats(stats: &Stats) -> String {
    let mut workers = table(&[
        "worker",
        "core",
        "received",
        "originated",
        "transmitted",
        "delivered",
        "absorbed",
        "dropped",
        "in flight",
        "sealed",
        "opened",
        "bypassed",
    ]);
    for worker in &stats.workers {
        let figures = [
            u64::from(worker.worker),
            u64::from(worker.core),
            worker.received,
            worker.originated,
            worker.transmitted,
            worker.delivered,
            worker.absorbed,
            worker.dropped,
            worker.in_flight,
            worker.sealed,
            worker.opened,
            worker.bypassed,
        ];
        workers.add_row(figures.map(|figure| figure.to_string()));
    }
    right(&mut workers, 0..12);
    finish(&workers) + &counters("total", &stats.total) + &counters("steering", &stats.steering)
}

fn counters(title: &str, counters: &[Counter]) -> String {
    if counters.is_empty() {
        return String::new();
    }
    let mut table = table(&[title, "packets"]);
    for counter in counters {
        table.add_row([&counter.name, &counter.value.to_string()]);
    }
    right(&mut table, [1]);
    format!("\n{}", finish(&table))
}

pub(super) fn drops(drops: &[Drop]) -> String {
    if drops.is_empty() {
        return "nothing was dropped\n".into();
    }
    let mut table = table(&["reason", "packets", "xfrm_stat", "meaning"]);
    for drop in drops {
        table.add_row([
            &drop.reason,
            &drop.packets.to_string(),
            drop.xfrm_stat.as_deref().unwrap_or("-"),
            &drop.explanation,
        ]);
    }
    right(&mut table, [1]);
    finish(&table)
}

pub(super) fn drop_records(records: &[DropRecord]) -> String {
    if records.is_empty() {
        return "no records: nothing was dropped lately, or engine.audit is \"off\"\n".into();
    }
    let mut table = table(&[
        "time",
        "packets",
        "reason",
        "interface",
        "dir",
        "tunnel",
        "spi",
        "sequence",
        "first packet",
        "inside it",
    ]);
    for record in records {
        let DropRecord { time, packets, reason, interface, .. } = record;
        let interface = interface.clone().unwrap_or_else(|| "-".into());
        let own = [time.clone(), packets.to_string(), reason.clone(), interface];
        table.add_row(own.into_iter().chain(record.columns()));
    }
    right(&mut table, [1, 7]);
    finish(&table)
}

fn dropped(record: &DropRecord) -> String {
    let DropRecord { time, packets, reason, interface, direction, tunnel, spi, sequence, .. } = record;
    let mut words = vec![format!("{packets} {reason} at {time}")];
    words.extend([interface, direction, tunnel, spi].into_iter().flatten().cloned());
    words.extend(sequence.map(|number| number.to_string()));
    words.extend(record.packet.as_ref().map(|packet| packet.to_string()));
    words.extend(record.inner.as_ref().map(|inner| format!("inside it {inner}")));
    words.join(" ")
}

fn algorithms(sa: &SaReport) -> String {
    if sa.authentication == "none" {
        sa.encryption.clone()
    } else if sa.protocol == "ah" {
        sa.authentication.clone()
    } else {
        format!("{} {}", sa.encryption, sa.authentication)
    }
}

pub(super) fn sas(sas: &[SaReport]) -> String {
    if sas.is_empty() {
        return "no SAs; adit sa add sets them up\n".into();
    }
    let mut table = table(&[
        "tunnel",
        "dir",
        "spi",
        "protocol",
        "mode",
        "local",
        "remote",
        "algorithms",
        "sequence",
        "packets",
        "bytes",
        "notes",
    ]);
    for sa in sas {
        table.add_row([
            sa.tunnel.clone(),
            sa.direction.clone(),
            sa.spi.clone(),
            sa.protocol.clone(),
            sa.mode.clone(),
            sa.local.clone(),
            sa.remote.clone(),
            algorithms(sa),
            sa.sequence.to_string(),
            sa.packets.to_string(),
            sa.bytes.to_string(),
            notes(sa),
        ]);
    }
    right(&mut table, 8..11);
    finish(&table)
}

fn notes(sa: &SaReport) -> String {
    let retiring = sa.retiring.then(|| "retiring".into());
    let lifetime = (sa.lifetime != "good").then(|| format!("lifetime {}", sa.lifetime));
    retiring.iter().chain(&lifetime).chain(&sa.warnings).map(String::as_str).collect::<Vec<_>>().join("; ")
}

pub(super) fn sa_details(sas: &[SaReport]) -> String {
    let block = |sa: &SaReport| {
        let (from, to) = if sa.direction == "in" { (&sa.remote, &sa.local) } else { (&sa.local, &sa.remote) };
        let mut lines = vec![
            format!("{}: {} {} from {from} to {to}", sa.tunnel, sa.direction, sa.spi),
            format!(
                "  {} {}, {}, icv {} bytes, esn {}",
                sa.protocol,
                sa.mode,
                algorithms(sa),
                sa.icv_length,
                if sa.esn { "on" } else { "off" }
            ),
            format!("  key {}, sequence {}", sa.key, sa.sequence),
        ];
        if sa.retiring {
            lines.push("  retiring: it receives until the peer sends with the newer SA".into());
        }
        if let (Some(peers), Some(ours)) = (sa.udp_port, sa.local_udp_port) {
            lines.push(format!("  in UDP between our port {ours} and the peer's {peers}"));
        }
        if let Some(ceiling) = sa.ceiling {
            lines.push(format!("  recorded up to {ceiling}: a start after a crash begins above it"));
        }
        if let Some(mtu) = sa.path_mtu {
            lines.push(format!("  path MTU {mtu}, as an ICMP error told"));
        }
        if let Some(window) = sa.replay_window {
            lines.push(format!("  replay window {window}"));
        }
        lines.push(format!("  {} packets, {} bytes, {} s old", sa.packets, sa.bytes, sa.age_seconds));
        lines.push(format!("  lifetime {}{}", sa.lifetime, limits(sa)));
        lines.push(format!(
            "  {} replayed, {} with a wrong ICV, {} refused",
            sa.replayed, sa.icv_failed, sa.refused
        ));
        lines.extend(sa.selectors.iter().map(|selector| format!("  carries {selector}")));
        lines.extend(sa.warnings.iter().map(|warning| format!("  warning: {warning}")));
        lines.join("\n") + "\n"
    };
    sas.iter().map(block).collect::<Vec<_>>().join("\n")
}

/// ", soft at 900 packets, hard at 1000 packets and 60 seconds", as far as there are limits.
fn limits(sa: &SaReport) -> String {
    let end = |name: &str, figures: [Option<u64>; 3]| {
        let kinds = figures.iter().zip(["packets", "bytes", "seconds"]);
        let limits: Vec<_> =
            kinds.filter_map(|(figure, kind)| figure.map(|figure| format!("{figure} {kind}"))).collect();
        if limits.is_empty() { String::new() } else { format!(", {name} at {}", limits.join(" and ")) }
    };
    end("soft", [sa.lifetime_packets_soft, sa.lifetime_bytes_soft, sa.lifetime_seconds_soft])
        + &end("hard", [sa.lifetime_packets_hard, sa.lifetime_bytes_hard, sa.lifetime_seconds_hard])
}

pub(super) fn event(event: &Event) -> String {
    let mut words = vec![event.event.clone()];
    words.extend([&event.tunnel, &event.direction, &event.spi].into_iter().flatten().cloned());
    words.extend(event.from.as_ref().map(|from| format!("from {from}")));
    words.extend(event.to.as_ref().map(|to| format!("to {to}")));
    words.extend(event.dropped.as_ref().map(dropped));
    words.extend(event.missed.map(|missed| missed.to_string()));
    words.join(" ")
}

pub(super) fn policies(policies: &[PolicyReport]) -> String {
    if policies.is_empty() {
        return "no policies; adit policy add makes one\n".into();
    }
    let mut table = table(&["", "name", "action", "tunnel", "direction", "selectors", "packets"]);
    for policy in policies {
        table.add_row([
            policy.position.to_string(),
            policy.name.clone(),
            policy.action.clone(),
            policy.tunnel.clone().unwrap_or_else(|| "-".into()),
            policy.direction.clone(),
            policy.selectors.join(", "),
            policy.packets.to_string(),
        ]);
    }
    right(&mut table, [0, 6]);
    finish(&table)
}

pub(super) fn change(change: &Change) -> String {
    let mut text = format!(
        "generation {}: {} SAs added, {} removed, {} kept\n",
        change.generation, change.added, change.removed, change.kept
    );
    if change.retiring > 0 {
        text.push_str("what was replaced still receives, until the peer sends with the new SA\n");
    }
    if change.removed > 0 {
        text.push_str(if change.wiped {
            "the removed keys are wiped\n"
        } else {
            "a worker did not answer in time: the removed keys are wiped once it does\n"
        });
    }
    text + &warnings(&change.warnings)
}

pub(super) fn checked(settings: &Settings) -> String {
    format!(
        "good: {} interfaces, {} tunnels, {} policies\n{}",
        settings.interfaces.len(),
        settings.tunnels.len(),
        settings.policies.len(),
        warnings(&settings.warnings)
    )
}
