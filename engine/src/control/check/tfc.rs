//! Traffic-flow confidentiality of a tunnel.

use crate::control::config::{DummyWhenName, ModeName, ProtocolName, Scalar, TunnelTable};
use crate::control::problem::Problems;
use crate::control::settings::TfcSettings;
use crate::control::value;
use crate::policy::tfc::{Dummies, Padding, When};

/// Padding and dummy packets; both are ESP's, in a tunnel (RFC 4303 sections 2.6 and 2.7).
pub(super) fn tfc(table: &TunnelTable, path: &str, problems: &mut Problems) -> TfcSettings {
    let elsewhere = match (table.protocol, table.mode) {
        (Some(ProtocolName::Ah), _) => Some("protocol = \"ah\", which hides nothing"),
        (_, Some(ModeName::Transport)) => {
            Some("mode = \"transport\", where no inner packet says how long it is")
        }
        _ => None,
    };
    let text = |scalar: &Option<Scalar>| scalar.as_ref().map(|scalar| value::found(&scalar.0));
    let written = [
        ("tfc-padding", text(&table.tfc_padding)),
        ("dummy-rate", table.dummy_rate.map(|rate| rate.to_string())),
        ("dummy-size", text(&table.dummy_size)),
        ("dummy-when", table.dummy_when.map(|when| when.name().into())),
    ];
    for (field, found) in written {
        let Some(found) = found else { continue };
        let reason = elsewhere.map(|elsewhere| format!("with {elsewhere}"));
        let alone = field.starts_with("dummy-") && table.dummy_rate.is_none();
        let reason = reason.or_else(|| alone.then(|| "without dummy-rate".into()));
        if let Some(reason) = reason {
            problems
                .push(format!("{path}.{field}"), format!("expected nothing here {reason}, found {found}"));
        }
    }
    TfcSettings { padding: padding(table, path, problems), dummies: dummies(table, path, problems) }
}

fn padding(table: &TunnelTable, path: &str, problems: &mut Problems) -> Padding {
    let Some(Scalar(text)) = &table.tfc_padding else { return Padding::Off };
    match (text.as_str(), text.parse()) {
        ("off", _) => Padding::Off,
        ("mtu", _) => Padding::Mtu,
        (_, Ok(unit @ 2..)) => Padding::Multiple(unit),
        _ => {
            problems.push(
                format!("{path}.tfc-padding"),
                format!("expected \"off\", \"mtu\" or 2 to 65535 bytes, found {}", value::found(text)),
            );
            Padding::Off
        }
    }
}

fn dummies(table: &TunnelTable, path: &str, problems: &mut Problems) -> Option<Dummies> {
    let sizes = match &table.dummy_size {
        None => Some(1..=u16::MAX),
        Some(Scalar(text)) => problems.take(format!("{path}.dummy-size"), value::sizes(text)),
    };
    let per_second = table.dummy_rate?;
    if !(1..=Dummies::MOST_PER_SECOND).contains(&per_second) {
        problems.push(
            format!("{path}.dummy-rate"),
            format!("expected 1 to {} packets a second, found {per_second}", Dummies::MOST_PER_SECOND),
        );
    }
    let when = match table.dummy_when {
        Some(DummyWhenName::Always) => When::Always,
        Some(DummyWhenName::Idle) | None => When::Idle,
    };
    Some(Dummies { per_second, sizes: sizes?, when })
}
