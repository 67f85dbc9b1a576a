//! What must hold between tunnels and policies, whether they are in a file, live, or asked for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::config::ActionName;
use super::leases::Fingerprint;
use super::problem::Problems;
use super::settings::{PolicySettings, SaRequest, TunnelRequest};
use super::value;
use crate::crypto::key;
use crate::sa::selector::{AddressRange, Direction};
use crate::sa::spec::{Mode, UdpPorts};
use crate::wire::Spi;
use crate::wire::ip::{Flow, Fragment, Upper};

/// One direction of a tunnel, as far as other tunnels are concerned.
pub struct SaOutline {
    /// Path of its table.
    pub field: String,
    /// SPI.
    pub spi: Spi,
    /// Names the key.
    pub fingerprint: Fingerprint,
    /// The field that has it.
    pub key_field: &'static str,
}

/// A tunnel, new or live, as far as other tunnels and policies are concerned.
pub struct Outline {
    /// Path of its table.
    pub field: String,
    /// Its name.
    pub name: Arc<str>,
    /// Our endpoint.
    pub local: IpAddr,
    /// The peer's endpoint.
    pub remote: IpAddr,
    /// What its own packets are to a router: ESP, AH or UDP.
    pub carrier: u8,
    /// Where that is UDP.
    pub udp: Option<UdpPorts>,
    /// Tunnel or transport.
    pub mode: Mode,
    /// Inbound SA.
    pub inbound: Option<SaOutline>,
    /// Outbound SA.
    pub outbound: Option<SaOutline>,
}

impl Outline {
    /// Of a tunnel to set up.
    pub fn of_request(request: &TunnelRequest, host_secret: &[u8; 32]) -> Self {
        let sa = |sa: &Option<SaRequest>| {
            sa.as_ref().map(|sa| SaOutline {
                field: sa.field.clone(),
                spi: sa.spi,
                fingerprint: key::fingerprint(host_secret, request.settings.suite, &sa.keys),
                key_field: request.settings.key_field(),
            })
        };
        Self {
            field: request.field.clone(),
            name: request.settings.name.clone(),
            local: request.settings.local,
            remote: request.settings.remote,
            carrier: request.settings.carrier(),
            udp: request.settings.udp,
            mode: request.settings.mode,
            inbound: sa(&request.inbound),
            outbound: sa(&request.outbound),
        }
    }
}

/// What must hold between tunnels and policies: nothing twice, everything named exists, no tunnel in a tunnel.
pub fn consistent(tunnels: &[Outline], policies: &[PolicySettings], problems: &mut Problems) {
    let (mut names, mut inbound_spis, mut outbound_spis) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut keys: HashMap<Fingerprint, &str> = HashMap::new();
    for tunnel in tunnels {
        if let Some(first) = names.insert(&tunnel.name, &tunnel.field) {
            problems.push(
                format!("{}.name", tunnel.field),
                format!("expected a name of its own, found {:?} of {first} again", tunnel.name),
            );
        }
        if let Some(sa) = &tunnel.inbound
            && let Some(first) = inbound_spis.insert(sa.spi, &sa.field)
        {
            problems.push(
                format!("{}.spi", sa.field),
                format!("expected an SPI of its own, found {} of {first} again; choose another", sa.spi),
            );
        }
        if let Some(sa) = &tunnel.outbound
            && let Some(first) = outbound_spis.insert((tunnel.remote, sa.spi), &sa.field)
        {
            problems.push(
                format!("{}.spi", sa.field),
                format!(
                    "expected an SPI of its own towards {}, found {} of {first} again; choose another",
                    tunnel.remote, sa.spi
                ),
            );
        }
        for sa in tunnel.inbound.iter().chain(&tunnel.outbound) {
            if let Some(first) = keys.insert(sa.fingerprint, &sa.field) {
                problems.push(
                    format!("{}.{}", sa.field, sa.key_field),
                    format!("expected a key of its own for each SA and direction, found the key of {first} again; adit key generate makes another"),
                );
            }
        }
    }
    let mut policy_names = HashMap::new();
    for policy in policies {
        if let Some(first) = policy_names.insert(&policy.name, &policy.field) {
            problems.push(
                format!("{}.name", policy.field),
                format!("expected a name of its own, found {:?} of {first} again", policy.name),
            );
        }
        if let Some(tunnel) = &policy.tunnel
            && !names.contains_key(tunnel)
        {
            let known: Vec<_> = tunnels.iter().map(|tunnel| &*tunnel.name).collect();
            let known = if known.is_empty() { "there is none".into() } else { known.join(", ") };
            problems.push(
                format!("{}.tunnel", policy.field),
                format!("expected a tunnel ({known}), found {}", value::found(tunnel)),
            );
        }
    }
    for tunnel in tunnels {
        if let Mode::Transport(_) = tunnel.mode {
            between_endpoints(tunnel, policies, problems);
        }
        loops(tunnel, policies, problems);
    }
}

/// Transport mode is for packets between the endpoints themselves (RFC 4301 section 4.1).
fn between_endpoints(tunnel: &Outline, policies: &[PolicySettings], problems: &mut Problems) {
    for policy in policies.iter().filter(|policy| policy.tunnel.as_ref() == Some(&tunnel.name)) {
        for selector in &policy.selectors {
            for (field, endpoint, found) in
                [("local", tunnel.local, &selector.local), ("remote", tunnel.remote, &selector.remote)]
            {
                if *found != AddressRange::single(endpoint) {
                    problems.push(
                        format!("{}.{field}", policy.field),
                        format!(
                            "expected [\"{endpoint}\"], the {field} endpoint of {}, which is in transport mode, found {}",
                            tunnel.name,
                            value::address_range_text(found)
                        ),
                    );
                    // One message a policy is enough.
                    return;
                }
            }
        }
    }
}

/// Refuses a tunnel whose own packets are under a PROTECT policy: they would have to go into a tunnel again. In
/// transport mode they are under that tunnel's own: what it protects and what it sends have the same addresses.
fn loops(tunnel: &Outline, policies: &[PolicySettings], problems: &mut Problems) {
    let outer = Flow {
        source: tunnel.local,
        destination: tunnel.remote,
        protocol: tunnel.carrier,
        upper: match tunnel.udp {
            Some(udp) => Upper::Ports { source: udp.local(), destination: udp.remote() },
            None => Upper::Opaque,
        },
    };
    let means = |policy: &&PolicySettings| {
        policy.outbound
            && policy
                .selectors
                .iter()
                .any(|selector| selector.matches(Direction::Outbound, &outer, Fragment::Whole))
    };
    if let Some(policy) = policies.iter().find(means)
        && policy.action == ActionName::Protect
        && (tunnel.mode == Mode::Tunnel || policy.tunnel.as_ref() != Some(&tunnel.name))
    {
        problems.push(
            format!("{}.remote", policy.field),
            format!(
                "expected selectors without the tunnel's own packets, found that {} to {} ({}) is protected by {:?}, a loop; \
                 put a policy with action = \"bypass\", local = [\"{0}\"], remote = [\"{1}\"] before it",
                tunnel.local, tunnel.remote, tunnel.name, policy.name
            ),
        );
    }
}
