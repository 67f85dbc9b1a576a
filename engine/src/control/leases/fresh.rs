//! The first use of a key, declared once.

use super::{Fingerprint, Grant, LeaseError, Leases, Purpose};
use crate::control::problem::Problems;
use crate::control::settings::TunnelRequest;
use crate::crypto::key::fingerprint;
use crate::sa::selector::Direction;

/// Marks the keys of tunnels called `names` as fresh, as far as nothing is recorded of them.
///
/// # Errors
/// A name that no tunnel has, or a tunnel all of whose keys have a record: to declare those a second time would
/// say that what is recorded never happened.
pub(in crate::control) fn mark_fresh(
    leases: &Leases,
    tunnels: &mut [TunnelRequest],
    names: &[String],
) -> Result<(), Problems> {
    let mut problems = Problems::default();
    for (index, name) in names.iter().enumerate() {
        let field = format!("fresh_keys[{index}]");
        let Some(tunnel) = tunnels.iter_mut().find(|tunnel| &*tunnel.settings.name == name) else {
            problems.push(field, format!("expected a tunnel of the configuration, found {name:?}"));
            continue;
        };
        let suite = tunnel.settings.suite;
        let mut marked = false;
        for sa in tunnel.inbound.iter_mut().chain(&mut tunnel.outbound) {
            sa.fresh = leases.known(&fingerprint(leases.host_secret(), suite, &sa.keys)).is_none();
            marked |= sa.fresh;
        }
        if !marked {
            problems.push(
                field,
                format!("expected a tunnel with a key that was never used, found records of all keys of {name:?}: they go on above what is recorded, without a declaration"),
            );
        }
    }
    problems.or(())
}

/// Records the marked keys as never used. Returns the tables of their SAs.
///
/// # Errors
/// Nothing is recorded.
pub fn declare_fresh(
    leases: &Leases,
    tunnels: &mut [TunnelRequest],
    names: &[String],
) -> Result<Vec<String>, Problems> {
    mark_fresh(leases, tunnels, names)?;
    let mut grants: Vec<Grant> = Vec::new();
    let mut fields = Vec::new();
    for tunnel in tunnels {
        let suite = tunnel.settings.suite;
        let directions =
            [(Direction::Inbound, &mut tunnel.inbound), (Direction::Outbound, &mut tunnel.outbound)];
        for (direction, sa) in directions {
            let Some(sa) = sa.as_mut().filter(|sa| sa.fresh) else { continue };
            // Said and done: to say it again would be refused.
            sa.fresh = false;
            let id: Fingerprint = fingerprint(leases.host_secret(), suite, &sa.keys);
            grants.push(Grant { id, purpose: Purpose::new(direction, suite), lease: None, limit: 0 });
            fields.push(sa.field.clone());
        }
    }
    leases
        .grant(&grants)
        .map_err(|error: LeaseError| Problems::one("engine.state-dir", error.to_string()))?;
    Ok(fields)
}
