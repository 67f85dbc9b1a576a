//! The engine as a whole, and the interfaces it steers.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::super::config::{
    AuditName, EngineTable, FallbackName, IcmpErrorName, IcmpTable, InterfaceTable, ReassemblyTable,
    SideName, VlanTable, XdpMode,
};
use super::super::problem::Problems;
use super::super::settings::{Engine, Interface};
use super::super::{group, value};
use super::plain_name;
use crate::pipeline::IcmpRules;
use crate::pipeline::reassembly::Limits;
use crate::policy::spd::Fallback;
use crate::route::{PortId, Side, Vlan};
use crate::wire::vlan::Tags;

/// The host device is the instance and a digit; an interface's name has at most 15 characters (IFNAMSIZ).
const HOST_INSTANCE_LENGTH_MAX: usize = 14;

/// `[engine]`.
pub(super) fn engine(table: &EngineTable, problems: &mut Problems) -> Engine {
    let path = |field: &str, value: &Option<String>, default: &str, problems: &mut Problems| {
        let path = PathBuf::from(value.as_deref().unwrap_or(default));
        if !path.is_absolute() {
            let found = value::found(&path.to_string_lossy());
            problems.push(format!("engine.{field}"), format!("expected an absolute path, found {found}"));
        }
        path
    };
    let instance = table.instance.clone().unwrap_or_else(|| "adit".into());
    plain_name("engine.instance", &instance, problems);
    let host_path = table.host_path.unwrap_or(false);
    if host_path && instance.len() > HOST_INSTANCE_LENGTH_MAX {
        problems.push(
            "engine.instance",
            format!(
                "expected at most {HOST_INSTANCE_LENGTH_MAX} characters beside host-path = true, because its device is named after the instance, found {}",
                value::found(&instance)
            ),
        );
    }
    if let Some(cores) = &table.cores {
        let mut sorted = cores.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if cores.is_empty() || sorted.len() < cores.len() {
            problems.push("engine.cores", format!("expected at least one core, each once, found {cores:?}"));
        }
        if let Some(core) = cores.iter().find(|core| **core > 4095) {
            problems.push("engine.cores", format!("expected core numbers up to 4095, found {core}"));
        }
    }
    if let Some(name) = &table.socket_group
        && group::id(name).is_none()
    {
        let found = value::found(name);
        problems.push(
            "engine.socket-group",
            format!("expected a group of this system, found {found}; groupadd it first"),
        );
    }
    Engine {
        cores: table.cores.clone(),
        bpffs: path("bpffs", &table.bpffs, "/sys/fs/bpf", problems),
        state_dir: path("state-dir", &table.state_dir, "/var/lib/adit", problems),
        socket: path("socket", &table.socket, "/run/adit/adit.sock", problems),
        socket_group: table.socket_group.clone(),
        fallback: match table.default {
            Some(FallbackName::Discard) => Fallback::Discard,
            _ => Fallback::Kernel,
        },
        allow_legacy: table.allow_legacy.unwrap_or(false),
        xdp_mode: table.xdp_mode.unwrap_or(XdpMode::Auto),
        clamp_mss: table.clamp_mss.unwrap_or(true),
        host_path,
        reassembly: reassembly(table.reassembly.as_ref(), problems),
        icmp: icmp(table.icmp.as_ref(), problems),
        audit: table.audit.unwrap_or(AuditName::Recent),
        instance,
    }
}

/// `[engine.reassembly]`.
fn reassembly(table: Option<&ReassemblyTable>, problems: &mut Problems) -> Limits {
    let default = Limits::default();
    let Some(table) = table else { return default };
    let mut bounded = |field: &str, value, default, range| {
        bounded(&format!("engine.reassembly.{field}"), value, default, range, problems)
    };
    if table.memory_bytes == Some(0) {
        return Limits::OFF;
    }
    Limits {
        memory: bounded("memory-bytes", table.memory_bytes, default.memory as u64, 1 << 16..=1 << 30)
            as usize,
        per_source: bounded(
            "datagrams-per-source",
            table.datagrams_per_source,
            default.per_source as u64,
            1..=1 << 16,
        ) as usize,
        fragments: bounded(
            "fragments-per-datagram",
            table.fragments_per_datagram,
            default.fragments as u64,
            2..=128,
        ) as usize,
        timeout: bounded("timeout-seconds", table.timeout_seconds, default.timeout / 1_000, 1..=60) * 1_000,
    }
}

/// `[engine.icmp]`.
fn icmp(table: Option<&IcmpTable>, problems: &mut Problems) -> IcmpRules {
    let default = IcmpRules::default();
    let Some(table) = table else { return default };
    let mut bounded = |field: &str, value, default, range| {
        bounded(&format!("engine.icmp.{field}"), value, default, range, problems)
    };
    let (v4, v6) = (default.path_mtu_floor_v4, default.path_mtu_floor_v6);
    let accepts = |kind| table.accept.as_ref().is_none_or(|list| list.contains(&kind));
    IcmpRules {
        accept_too_big: accepts(IcmpErrorName::PacketTooBig),
        accept_unreachable: accepts(IcmpErrorName::Unreachable),
        accept_time_exceeded: accepts(IcmpErrorName::TimeExceeded),
        accept_parameter_problem: accepts(IcmpErrorName::ParameterProblem),
        tell_discarded: table.tell_discarded.unwrap_or(default.tell_discarded),
        path_mtu_floor_v4: bounded("path-mtu-floor-ipv4", table.path_mtu_floor_ipv4, v4.into(), 68..=65_535)
            as u32,
        path_mtu_floor_v6: bounded("path-mtu-floor-ipv6", table.path_mtu_floor_ipv6, v6.into(), 1280..=65_535)
            as u32,
        path_mtu_ageing: bounded(
            "path-mtu-seconds",
            table.path_mtu_seconds,
            default.path_mtu_ageing / 1_000,
            1..=86_400,
        ) * 1_000,
    }
}

/// A figure within its bounds, or the default where none is written.
fn bounded(
    field: &str,
    value: Option<u64>,
    default: u64,
    range: RangeInclusive<u64>,
    problems: &mut Problems,
) -> u64 {
    match value {
        None => default,
        Some(value) if range.contains(&value) => value,
        Some(found) => {
            problems.push(field, format!("expected {} to {}, found {found}", range.start(), range.end()));
            default
        }
    }
}

/// `[[interface]]`.
pub(super) fn interfaces(
    tables: &[InterfaceTable],
    engine: &Engine,
    offline: bool,
    problems: &mut Problems,
) -> Vec<Interface> {
    for (index, table) in tables.iter().enumerate() {
        let name = &table.name;
        // IFNAMSIZ is 16 with the terminating zero.
        let plain =
            !name.is_empty() && name.len() < 16 && !name.contains(|c: char| c == '/' || c.is_whitespace());
        if !plain {
            let found = value::found(name);
            problems.push(
                format!("interface[{index}].name"),
                format!("expected an interface name, found {found}"),
            );
        }
        if tables[..index].iter().any(|other| other.name == *name) {
            problems.push(
                format!("interface[{index}].name"),
                format!("expected each interface once, found {name:?} again"),
            );
        }
    }
    (0..tables.len()).for_each(|index| vlan(index, tables, problems));
    let host_device = format!("{}0", engine.instance);
    if let Some(index) = tables.iter().position(|table| engine.host_path && table.name == host_device) {
        problems.push(
            format!("interface[{index}].name"),
            format!(
                "expected an interface that exists for itself, found {host_device:?}, the host path's device"
            ),
        );
    }
    for side in [SideName::Protected, SideName::Unprotected] {
        if !offline && !tables.iter().any(|table| table.side == side) {
            let side = side.name();
            problems.push(
                "interface",
                format!("expected at least one interface with side = {side:?}, found none"),
            );
        }
    }
    tables
        .iter()
        .map(|table| Interface {
            name: table.name.clone(),
            side: match table.side {
                SideName::Protected => Side::Protected,
                SideName::Unprotected => Side::Unprotected,
            },
            mode: table.mode.unwrap_or(engine.xdp_mode),
            vlan: table.vlan.and_then(|vlan| {
                let parent = tables.iter().position(|other| Some(&other.name) == table.parent.as_ref())?;
                Some(Vlan { parent: PortId(parent as u16), tags: tags(vlan)? })
            }),
        })
        .collect()
}

/// `vlan = 100` or `vlan = [100, 20]`, if these are identifiers (IEEE 802.1Q: 0 is for priority tags, 4095 for nobody).
fn tags(vlan: VlanTable) -> Option<Tags> {
    let identifier = |vlan: u32| u16::try_from(vlan).ok().filter(|vlan| (1..=4094).contains(vlan));
    Some(match vlan {
        VlanTable::One(inner) => Tags { outer: 0, inner: identifier(inner)? },
        VlanTable::Two([outer, inner]) => Tags { outer: identifier(outer)?, inner: identifier(inner)? },
    })
}

/// `parent` and `vlan` of an interface.
fn vlan(index: usize, tables: &[InterfaceTable], problems: &mut Problems) {
    let InterfaceTable { name, mode, parent, vlan, .. } = &tables[index];
    let field = |key: &str| format!("interface[{index}].{key}");
    let Some(vlan) = vlan else {
        if parent.is_some() {
            problems.push(field("vlan"), "expected the VLAN on its parent, as 100 or [100, 20], found none");
        }
        return;
    };
    if tags(*vlan).is_none() {
        let found = match vlan {
            VlanTable::One(vlan) => vlan.to_string(),
            VlanTable::Two(vlans) => format!("{vlans:?}"),
        };
        problems.push(field("vlan"), format!("expected VLANs from 1 to 4094, found {found}"));
    }
    if mode.is_some() {
        let why = "expected none beside vlan: frames come by the parent, found one; write it there";
        problems.push(field("mode"), why);
    }
    match parent {
        None => problems.push(field("parent"), "expected the interface that the VLAN is on, found none"),
        Some(parent) => match tables.iter().find(|other| other.name == *parent) {
            Some(found) if found.vlan.is_none() && parent != name => {}
            Some(_) => problems.push(
                field("parent"),
                format!("expected an interface that is no VLAN itself, found {parent:?}; for QinQ write vlan = [outer, inner]"),
            ),
            None => problems.push(
                field("parent"),
                format!("expected the name of an [[interface]], found {}", value::found(parent)),
            ),
        },
    }
    if tables[..index].iter().any(|other| other.parent == *parent && other.vlan == Some(*vlan)) {
        problems.push(field("vlan"), "expected each VLAN of an interface once, found it again");
    }
}
