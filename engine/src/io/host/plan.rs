//! Which of the gateway's own packets are to go into its tunnels, as rules and routes of the kernel's.
//!
//! ```text
//! rules, for what the gateway itself sends (iif lo):
//!   n      IKE                    -> rule n + 2
//!   n + 1  the rest               -> table PEERS       peers that policies mean themselves, in transport mode
//!   n + 2  all of it              -> table NAMED       remote prefixes that policies name
//!   n + 3  from an inside address -> table main, but not by its default route
//!   n + 4  from an inside address -> table EVERYTHING  if a policy's remote is everything
//! ```
//!
//! Rules that look at locally generated packets only, because a route of the main table would also take what the
//! gateway forwards: anybody outside could then have it carry packets of his own making into a tunnel. And so that
//! the mirror of the main table keeps seeing the real routes, by which ESP itself leaves.
//!
//! A policy counts when the gateway has an address among its local ones, which then is the source of what has none
//! yet. A peer's own address is left out of every prefix (`throw`: as if there were no route): IKE and the operator's
//! ssh go there. So are a selector's local addresses that lie within its remote ones: neighbours inside.
//!
//! In transport mode a policy means the peer itself, and all that the gateway sends there goes into the device, but
//! for IKE of its own daemon, which the guard lets out in clear too (RFC 4301 section 5.2: IKE needs a BYPASS). ESP and
//! AH need no exception: the engine sends them past the kernel's rules. So does what a BYPASS policy means. These routes
//! have the MTU of the tunnel, so that connections have the right MSS and datagrams that are to be fragmented are from the
//! first one on; the engine puts them together and seals them whole.
//!
//! Everything (0.0.0.0/0, ::/0) as a remote prefix cannot take all that the gateway sends, or it would lose the
//! outside; only what is sent from an address of the policy's local ones, and has no better route than the default.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::policy::{Action, Prefix, Spd, Tunnel};
use crate::route::{LARGEST_MTU, Network, NextHop, Side};
use crate::sa::selector::Selector;
use crate::sa::spec::Mode;
use crate::wire::udp::NAT_TRAVERSAL_PORT;

/// A table of the kernel's that is this instance's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Table {
    /// Peers, in transport mode.
    Peers,
    /// Prefixes that selectors name.
    Named,
    /// Everything.
    Everything,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Peers, Self::Named, Self::Everything];
}

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Into the host device.
    Device {
        /// One of the gateway's own addresses, which packets without a source get.
        source: IpAddr,
        /// The largest packet, where it is not the device's.
        mtu: Option<u32>,
    },
    /// Nowhere here: the next rule decides.
    Throw,
}

/// A rule for what the gateway itself sends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// IKE from this port of UDP, on to [`Rule::Named`].
    Ike {
        /// IP version.
        ipv6: bool,
        /// One of [`IKE_PORTS`], or another one that ESP in UDP uses.
        port: u16,
    },
    /// The rest, to [`Table::Peers`].
    Peers {
        /// IP version.
        ipv6: bool,
    },
    /// All of it, to [`Table::Named`].
    Named {
        /// IP version.
        ipv6: bool,
    },
    /// What is sent from this address, to the main table without its default route.
    MainFrom(IpAddr),
    /// What is sent from this address, to [`Table::Everything`].
    EverythingFrom(IpAddr),
}

/// The smallest MTU of a link that IPv6 works on (RFC 8200 section 5).
const IPV6_MINIMUM_MTU: u32 = 1280;
/// Ethernet's, while there is no link outside.
const USUAL_MTU: u32 = 1500;

/// What an IKE daemon sends from (RFC 7296 section 2).
pub const IKE_PORTS: [u16; 2] = [500, NAT_TRAVERSAL_PORT];

/// A route: its table, network and prefix length.
pub type RouteKey = (Table, IpAddr, u8);

/// What the kernel shall have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Routes.
    pub routes: BTreeMap<RouteKey, Target>,
    /// Rules that lead to them.
    pub rules: BTreeSet<Rule>,
}

impl Plan {
    /// For these policies, on a gateway with these addresses. `own_end`, the device's, is no address to send from.
    pub fn new(spd: &Spd, network: &Network, own_end: IpAddr) -> Self {
        let sources = sources(network, own_end);
        let mut plan = Self::default();
        let mut endpoints = BTreeSet::new();
        let mut nested = Vec::new();
        for policy in spd.policies.iter().filter(|policy| policy.outbound) {
            let Action::Protect(tunnel) = &policy.action else { continue };
            endpoints.insert(tunnel.remote);
            for Selector { local, remote, .. } in &policy.selectors {
                let mut from = sources.iter().copied().filter(|&source| local.contains(source));
                let Some(source) = from.next() else { continue };
                for prefix in Prefix::of_range(*remote) {
                    if let Mode::Transport(_) = tunnel.mode {
                        plan.route_to_peer(prefix, source, inside_mtu(tunnel, network));
                    } else if prefix.length == 0 {
                        plan.everything(prefix, std::iter::once(source).chain(from.by_ref()));
                    } else {
                        plan.route(Table::Named, prefix, Target::Device { source, mtu: None });
                        let inside = Prefix::of_range(*local).into_iter();
                        nested.extend(inside.filter(|inside| {
                            prefix.contains(inside.network) && inside.length > prefix.length
                        }));
                    }
                }
            }
        }
        // What a policy names itself comes before what another leaves out.
        for prefix in nested {
            plan.route(Table::Named, prefix, Target::Throw);
        }
        for endpoint in endpoints {
            plan.leave_out(endpoint);
        }
        for ipv6 in [false, true] {
            let leads = |wanted| {
                plan.routes.keys().any(|(table, network, _)| *table == wanted && network.is_ipv6() == ipv6)
            };
            let (peers, named) = (leads(Table::Peers), leads(Table::Named));
            if peers {
                let ports = IKE_PORTS.iter().chain(spd.nat_ports());
                plan.rules.extend(ports.map(|&port| Rule::Ike { ipv6, port }));
                plan.rules.insert(Rule::Peers { ipv6 });
            }
            if peers || named {
                plan.rules.insert(Rule::Named { ipv6 });
            }
        }
        plan
    }

    /// Whether peers are routed into the device over IPv4.
    pub fn has_peers_v4(&self) -> bool {
        self.rules.contains(&Rule::Peers { ipv6: false })
    }

    /// The prefixes that lead into the device.
    pub fn device_prefixes(&self) -> impl Iterator<Item = Prefix> {
        let leads = self.routes.iter().filter(|(_, target)| **target != Target::Throw);
        leads.map(|(&(_, network, length), _)| Prefix { network, length })
    }

    /// The first policy that names a prefix chooses the source.
    fn route(&mut self, table: Table, Prefix { network, length }: Prefix, target: Target) {
        self.routes.entry((table, network, length)).or_insert(target);
    }

    /// Of all tunnels to a peer, the one that carries least decides: the route does not know which a packet will take.
    fn route_to_peer(&mut self, Prefix { network, length }: Prefix, source: IpAddr, mtu: Option<u32>) {
        let known = self.routes.entry((Table::Peers, network, length));
        let target = known.or_insert(Target::Device { source, mtu });
        if let Target::Device { mtu: known, .. } = target {
            *known = [*known, mtu].into_iter().flatten().min();
        }
    }

    fn everything(&mut self, prefix: Prefix, sources: impl Iterator<Item = IpAddr>) {
        for source in sources {
            self.route(Table::Everything, prefix, Target::Device { source, mtu: None });
            self.rules.extend([Rule::MainFrom(source), Rule::EverythingFrom(source)]);
        }
    }

    /// Keeps a peer's address out of the device, whatever names it.
    fn leave_out(&mut self, endpoint: IpAddr) {
        let own_length = if endpoint.is_ipv4() { 32 } else { 128 };
        for table in [Table::Named, Table::Everything] {
            let is_in =
                |length| self.routes.contains_key(&(table, Prefix::around(endpoint, length).network, length));
            if (0..=own_length).any(is_in) {
                self.routes.insert((table, endpoint, own_length), Target::Throw);
            }
        }
    }
}

/// What `tunnel` carries by the MTU of its link, as far as a route may say so; a path that carries less is told of when
/// something is too large for it. `None` while the tunnel carries nothing.
fn inside_mtu(tunnel: &Tunnel, network: &Network) -> Option<u32> {
    let sa = tunnel.outbound.get()?;
    let outside = match &tunnel.through {
        Some(outer) => inside_mtu(outer, network)?,
        None => match network.next_hop(sa.outer_now().destination) {
            NextHop::Port { port, .. } => network.ports.get(usize::from(port.0))?.mtu,
            NextHop::Local | NextHop::OtherInterface | NextHop::Unreachable => return None,
        },
    };
    let mtu = sa.inside_mtu(outside);
    Some(if tunnel.remote.is_ipv6() { mtu.max(IPV6_MINIMUM_MTU) } else { mtu }).filter(|mtu| *mtu > 0)
}

/// The MTU of the device: that of the largest link outside. Tunnels carry less, and say so (ICMP).
pub fn device_mtu(network: &Network) -> u32 {
    let outside = network.ports.iter().filter(|port| port.side == Side::Unprotected && port.mtu > 0);
    let largest = outside.map(|port| port.mtu).max().unwrap_or(USUAL_MTU);
    largest.clamp(IPV6_MINIMUM_MTU, LARGEST_MTU)
}

/// The gateway's addresses that its packets may come from, those on inside interfaces first.
fn sources(network: &Network, own_end: IpAddr) -> Vec<IpAddr> {
    let is_on = |address: &IpAddr, side| {
        network.ports.iter().any(|port| port.side == side && port.addresses.contains(address))
    };
    let is_on_link_only = |address: &IpAddr| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let mut sources: Vec<_> = network.own_addresses().to_vec();
    sources.retain(|address| !address.is_loopback() && !is_on_link_only(address) && *address != own_end);
    sources.sort_by_key(|address| match address {
        address if is_on(address, Side::Protected) => 0,
        address if is_on(address, Side::Unprotected) => 2,
        _ => 1,
    });
    sources
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::policy::spd::Fallback;
    use crate::policy::{Fragmentation, Policy, Tunnel};
    use crate::route::{NetworkBuilder, Port};
    use crate::sa::publish::Published;
    use crate::sa::selector::UpperSelector;
    use crate::transform::transport::DestinationOptions;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn protect(peer: &str, local: &str, remote: &str) -> Arc<Policy> {
        policy(Mode::Tunnel, peer, local, remote)
    }

    fn policy(mode: Mode, peer: &str, local: &str, remote: &str) -> Arc<Policy> {
        let tunnel = Tunnel {
            name: "t".into(),
            local: ip("192.0.2.1"),
            remote: ip(peer),
            mode,
            udp: None,
            clamp_mss: true,
            tfc: Default::default(),
            through: None,
            fragmentation: Fragmentation::Before,
            path: Arc::default(),
            outbound: Published::new(None),
        };
        let selector = Selector {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            protocol: None,
            upper: UpperSelector::Any,
        };
        Arc::new(Policy {
            name: "p".into(),
            outbound: true,
            inbound: true,
            selectors: vec![selector],
            action: Action::Protect(Arc::new(tunnel)),
            packets: AtomicU64::new(0),
        })
    }

    /// Inside 10.1.0.1 and 2001:db8:1::1, outside 192.0.2.1, 10.0.0.1 on a loopback, and what must never be a source.
    fn plan(policies: Vec<Arc<Policy>>) -> Plan {
        let mut network = NetworkBuilder::new();
        network.port(Port {
            addresses: vec![ip("192.0.2.1")],
            ..Port::absent("wan0".into(), Side::Unprotected)
        });
        network.port(Port {
            addresses: vec![ip("10.1.0.1"), ip("2001:db8:1::1"), ip("fe80::1")],
            ..Port::absent("lan0".into(), Side::Protected)
        });
        for address in ["127.0.0.1", "10.0.0.1", "169.254.173.8", "::1"] {
            network.local(ip(address));
        }
        Plan::new(&Spd::new(policies, Fallback::Kernel, 1), &network.build(1), ip("169.254.173.8"))
    }

    fn shown(plan: &Plan) -> Vec<String> {
        let routes = plan.routes.iter().map(|((table, network, length), target)| {
            let target = match target {
                Target::Device { source, mtu: None } => format!("src {source}"),
                Target::Device { source, mtu: Some(mtu) } => format!("src {source} mtu {mtu}"),
                Target::Throw => "throw".into(),
            };
            format!("{table:?} {network}/{length} {target}")
        });
        routes.chain(plan.rules.iter().map(|rule| format!("{rule:?}"))).collect()
    }

    #[test]
    fn a_named_prefix_is_routed_from_an_address_of_the_policys_own() {
        let policies = vec![
            protect("192.0.2.2", "10.1.0.0/24", "10.2.0.0/16"),
            protect("192.0.2.2", "2001:db8:1::/64", "2001:db8:2::/64"),
            // The gateway has no address there.
            protect("192.0.2.2", "10.7.0.0/16", "10.8.0.0/16"),
            // Not the first to name it.
            protect("192.0.2.2", "10.0.0.0/24", "10.2.0.0/16"),
        ];
        let expected = [
            "Named 10.2.0.0/16 src 10.1.0.1",
            "Named 2001:db8:2::/64 src 2001:db8:1::1",
            "Named { ipv6: false }",
            "Named { ipv6: true }",
        ];
        assert_eq!(shown(&plan(policies)), expected);
    }

    #[test]
    fn peers_and_neighbours_inside_are_left_out() {
        let policies = vec![
            protect("10.9.0.9", "10.1.0.0/24", "10.0.0.0/8"),
            // A hub: what lies behind one spoke is local to the other, and the gateway's own packets go there too.
            protect("192.0.2.2", "10.1.0.0/24", "172.16.0.0/16"),
            protect("192.0.2.3", "172.16.0.0/16", "172.17.0.0/16"),
            // Nothing but the peer itself.
            protect("192.0.2.4", "192.0.2.1", "192.0.2.4"),
        ];
        let expected = [
            "Named 10.0.0.0/8 src 10.1.0.1",
            "Named 10.1.0.0/24 throw",
            "Named 10.9.0.9/32 throw",
            "Named 172.16.0.0/16 src 10.1.0.1",
            "Named 192.0.2.4/32 throw",
            "Named { ipv6: false }",
        ];
        assert_eq!(shown(&plan(policies)), expected);
    }

    /// The peer is what the policy means, but for IKE; a tunnel that ends there, and names more, keeps leaving it out.
    #[test]
    fn in_transport_mode_the_peer_itself_is_routed() {
        let transport = Mode::Transport(DestinationOptions::After);
        let policies = vec![
            policy(transport, "192.0.2.2", "192.0.2.1", "192.0.2.2"),
            protect("192.0.2.2", "10.1.0.0/24", "192.0.0.0/16"),
            // The gateway has no such address.
            policy(transport, "192.0.2.3", "192.0.2.7", "192.0.2.3"),
        ];
        let expected = [
            "Peers 192.0.2.2/32 src 192.0.2.1",
            "Named 192.0.0.0/16 src 10.1.0.1",
            "Named 192.0.2.2/32 throw",
            "Named 192.0.2.3/32 throw",
            "Ike { ipv6: false, port: 500 }",
            "Ike { ipv6: false, port: 4500 }",
            "Peers { ipv6: false }",
            "Named { ipv6: false }",
        ];
        assert_eq!(shown(&plan(policies)), expected);
    }

    #[test]
    fn everything_takes_only_what_is_sent_from_inside() {
        let expected = [
            "Everything 0.0.0.0/0 src 10.1.0.1",
            "Everything 192.0.2.2/32 throw",
            "MainFrom(10.1.0.1)",
            "EverythingFrom(10.1.0.1)",
        ];
        assert_eq!(shown(&plan(vec![protect("192.0.2.2", "10.1.0.0/24", "0.0.0.0/0")])), expected);
        // Any source: the device's own end, loopback and link-local addresses are none.
        let rules = plan(vec![protect("192.0.2.2", "0.0.0.0/0", "0.0.0.0/0")]).rules;
        let from = |rule: &Rule| match rule {
            Rule::EverythingFrom(address) => Some(*address),
            _ => None,
        };
        let sources: Vec<_> = rules.iter().filter_map(from).collect();
        assert_eq!(sources, [ip("10.0.0.1"), ip("10.1.0.1"), ip("192.0.2.1")]);
    }

    #[test]
    fn without_policies_there_is_nothing() {
        assert_eq!(plan(Vec::new()), Plan::default());
    }
}
