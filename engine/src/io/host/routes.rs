//! Makes the kernel have what a [`Plan`] says: rtnetlink, in tables and under priorities of this instance's own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::plan::{Plan, RouteKey, Rule, Table, Target};
use super::slot::Slot;

/// Routes of static configuration (RTPROT_STATIC), so that routing daemons leave them alone.
const PROTOCOL: RouteProtocol = RouteProtocol::Static;

/// What the gateway itself sends is routed as if it came in by the loopback.
const LOCALLY_GENERATED: &str = "lo";

/// Priorities of an instance.
const RULES: u32 = 5;

/// RT_TABLE_MAIN.
const MAIN: u32 = 254;

/// Tables of all instances.
const TABLES: RangeInclusive<u32> = 0xad00_0000..=0xadff_ffff;

/// Table numbers and rule priorities of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    table: u32,
    priority: u32,
}

impl Numbers {
    /// Of the instance with this number.
    pub fn of(slot: Slot) -> Self {
        // Behind the local table (0), before main (32766).
        Self { table: TABLES.start() | slot.number() << 2, priority: 10_000 + slot.number() * RULES }
    }

    fn table(self, table: Table) -> u32 {
        self.table | table as u32
    }

    fn priority(self, rule: Rule) -> u32 {
        match rule {
            Rule::Ike { .. } => self.priority,
            Rule::Peers { .. } => self.priority + 1,
            Rule::Named { .. } => self.priority + 2,
            Rule::MainFrom(_) => self.priority + 3,
            Rule::EverythingFrom(_) => self.priority + 4,
        }
    }

    fn route(self, (table, network, length): RouteKey, target: Target, device: u32) -> RouteMessage {
        let mut route = match network {
            IpAddr::V4(network) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(network, length).build()
            }
            IpAddr::V6(network) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(network, length).build()
            }
        };
        route.header.protocol = PROTOCOL;
        route.header.table = 0;
        route.attributes.push(RouteAttribute::Table(self.table(table)));
        match target {
            Target::Device { source, mtu } => {
                route.header.kind = RouteType::Unicast;
                route.header.scope = RouteScope::Link;
                route.attributes.push(RouteAttribute::Oif(device));
                let source = match source {
                    IpAddr::V4(source) => RouteAddress::Inet(source),
                    IpAddr::V6(source) => RouteAddress::Inet6(source),
                };
                route.attributes.push(RouteAttribute::PrefSource(source));
                let mtu = mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
                route.attributes.extend(mtu);
            }
            Target::Throw => {
                route.header.kind = RouteType::Throw;
                route.header.scope = RouteScope::Universe;
            }
        }
        route
    }

    fn rule(self, rule: Rule) -> RuleMessage {
        let mut message = RuleMessage::default();
        let (ipv6, from, to) = match rule {
            Rule::Ike { ipv6, .. } => (ipv6, None, RuleAttribute::Goto(self.priority(Rule::Named { ipv6 }))),
            Rule::Peers { ipv6 } => (ipv6, None, RuleAttribute::Table(self.table(Table::Peers))),
            Rule::Named { ipv6 } => (ipv6, None, RuleAttribute::Table(self.table(Table::Named))),
            Rule::MainFrom(address) => (address.is_ipv6(), Some(address), RuleAttribute::Table(MAIN)),
            Rule::EverythingFrom(address) => {
                (address.is_ipv6(), Some(address), RuleAttribute::Table(self.table(Table::Everything)))
            }
        };
        message.header.action = match to {
            RuleAttribute::Goto(_) => RuleAction::Goto,
            _ => RuleAction::ToTable,
        };
        message.header.family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.attributes = vec![
            RuleAttribute::Priority(self.priority(rule)),
            RuleAttribute::Iifname(LOCALLY_GENERATED.into()),
            to,
        ];
        if let Rule::Ike { port, .. } = rule {
            message.attributes.extend([
                RuleAttribute::IpProtocol(IpProtocol::Udp),
                RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }),
            ]);
        }
        if let Some(address) = from {
            message.header.src_len = if ipv6 { 128 } else { 32 };
            message.attributes.push(RuleAttribute::Source(address));
        }
        if let Rule::MainFrom(_) = rule {
            message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
        }
        message
    }

    fn route_of(self, message: &RouteMessage) -> Option<RouteKey> {
        let mut network: IpAddr = match message.header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => network = (*address).into(),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => network = (*address).into(),
                _ => {}
            }
        }
        let number = table_of(message);
        let table = Table::ALL.into_iter().find(|known| self.table(*known) == number)?;
        Some((table, network, message.header.destination_prefix_length))
    }

    fn rule_of(self, message: &RuleMessage) -> Option<Rule> {
        let RuleParts { priority, source, port, to } = RuleParts::of(message)?;
        let ipv6 = message.header.family == AddressFamily::Inet6;
        let leads = |table| to == To::Table(self.table(table));
        let rule = match (source, port) {
            (None, Some(port)) => Rule::Ike { ipv6, port },
            (None, None) if leads(Table::Peers) => Rule::Peers { ipv6 },
            (None, None) => Rule::Named { ipv6 },
            (Some(source), _) if leads(Table::Everything) => Rule::EverythingFrom(source),
            (Some(source), _) => Rule::MainFrom(source),
        };
        let is_so = RuleParts::of(&self.rule(rule))? == RuleParts { priority, source, port, to };
        is_so.then_some(rule)
    }
}

/// What tells rules for locally generated packets apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct RuleParts {
    priority: u32,
    source: Option<IpAddr>,
    port: Option<u16>,
    to: To,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Table(u32),
    Rule(u32),
}

impl RuleParts {
    /// `None` for rules about other packets.
    fn of(message: &RuleMessage) -> Option<Self> {
        let to = To::Table(message.header.table.into());
        let mut parts = Self { priority: 0, source: None, port: None, to };
        let mut is_local = false;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(number) => parts.priority = *number,
                RuleAttribute::Source(address) => parts.source = Some(*address),
                RuleAttribute::SourcePortRange(range) => parts.port = Some(range.start),
                RuleAttribute::Iifname(name) => is_local = name == LOCALLY_GENERATED,
                RuleAttribute::Table(table) => parts.to = To::Table(*table),
                RuleAttribute::Goto(rule) => parts.to = To::Rule(*rule),
                _ => {}
            }
        }
        is_local.then_some(parts)
    }
}

/// What an earlier build under the same name, with other numbers, has left behind: tables with routes into this device,
/// the rules that lead there, and those that lead to these rules.
#[derive(Default)]
struct Relics {
    routes: Vec<RouteMessage>,
    rules: Vec<RuleMessage>,
}

impl Relics {
    /// Among all routes and rules of a family that are not an instance's own now.
    fn find(routes: Vec<RouteMessage>, rules: Vec<RuleMessage>, device: u32) -> Self {
        let leads = |route: &RouteMessage| {
            route.attributes.contains(&RouteAttribute::Oif(device)) && TABLES.contains(&table_of(route))
        };
        let tables: BTreeSet<u32> = routes.iter().filter(|route| leads(route)).map(table_of).collect();
        let leading: Vec<_> = rules
            .iter()
            .filter_map(RuleParts::of)
            .filter(|parts| matches!(parts.to, To::Table(table) if tables.contains(&table)))
            .collect();
        let belongs = |parts: RuleParts| {
            leading.iter().any(|known| match parts.to {
                To::Rule(priority) => priority == known.priority,
                // In front of a rule for everything that is sent from there.
                To::Table(MAIN) => {
                    parts.source.is_some()
                        && (parts.source, parts.priority + 1) == (known.source, known.priority)
                }
                To::Table(_) => parts == *known,
            })
        };
        let routes = routes.into_iter().filter(|route| tables.contains(&table_of(route))).collect();
        let rules = rules.into_iter().filter(|rule| RuleParts::of(rule).is_some_and(belongs)).collect();
        Self { routes, rules }
    }
}

/// RT_TABLE_..., or the wider number.
fn table_of(message: &RouteMessage) -> u32 {
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(wide) => Some(*wide),
        _ => None,
    });
    wide.unwrap_or(message.header.table.into())
}

/// What the kernel has of ours.
pub struct Installed {
    numbers: Numbers,
    /// `None`: there, perhaps, but not to be relied on.
    routes: BTreeMap<RouteKey, Option<Target>>,
    rules: BTreeSet<Rule>,
    relics: Relics,
}

impl Installed {
    /// Reads what an earlier life left behind. `device`: the index of the instance's device; 0 where there is none.
    ///
    /// # Errors
    /// Netlink's.
    pub async fn read(handle: &Handle, slot: Slot, device: u32) -> Result<Self, rtnetlink::Error> {
        let numbers = Numbers::of(slot);
        let mut this =
            Self { numbers, routes: BTreeMap::new(), rules: BTreeSet::new(), relics: Relics::default() };
        for (family, version) in [(AddressFamily::Inet, IpVersion::V4), (AddressFamily::Inet6, IpVersion::V6)]
        {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let (mut other_routes, mut other_rules) = (Vec::new(), Vec::new());
            let mut messages = std::pin::pin!(handle.route().get(request).execute());
            while let Some(message) = messages.try_next().await? {
                match numbers.route_of(&message) {
                    Some(key) => drop(this.routes.insert(key, None)),
                    None if TABLES.contains(&table_of(&message)) => other_routes.push(message),
                    None => {}
                }
            }
            let mut messages = std::pin::pin!(handle.rule().get(version).execute());
            while let Some(message) = messages.try_next().await? {
                match numbers.rule_of(&message) {
                    Some(rule) => drop(this.rules.insert(rule)),
                    None => other_rules.push(message),
                }
            }
            let Relics { routes, rules } = Relics::find(other_routes, other_rules, device);
            this.relics.routes.extend(routes);
            this.relics.rules.extend(rules);
        }
        Ok(this)
    }

    /// The device is another one, or was down, or an address went: that takes routes away.
    pub fn distrust_routes(&mut self) {
        self.routes.values_mut().for_each(|target| *target = None);
    }

    /// Makes it what `plan` says, with the device of this index. What is new comes before what is old goes.
    ///
    /// # Errors
    /// Netlink's; the same may be tried again.
    pub async fn become_plan(
        &mut self,
        handle: &Handle,
        plan: &Plan,
        device: u32,
    ) -> Result<(), rtnetlink::Error> {
        for (&key, &target) in &plan.routes {
            let known = self.routes.get(&key);
            if known == Some(&Some(target)) {
                continue;
            }
            // One of another kind would not be replaced.
            let is_device = |target| matches!(target, Target::Device { .. });
            if known.is_some_and(|known| !(known.is_some_and(is_device) && is_device(target))) {
                self.delete_route(handle, key).await;
            }
            let route = self.numbers.route(key, target, device);
            handle.route().add(route).replace().execute().await?;
            self.routes.insert(key, Some(target));
        }
        for &rule in plan.rules.difference(&self.rules.clone()) {
            let mut request = handle.rule().add();
            *request.message_mut() = self.numbers.rule(rule);
            request.execute().await?;
            self.rules.insert(rule);
        }
        let Relics { routes, rules } = std::mem::take(&mut self.relics);
        for rule in rules {
            if let Err(error) = handle.rule().del(rule).execute().await {
                tracing::debug!(%error, "a rule of an earlier build was gone already");
            }
        }
        for route in routes {
            if let Err(error) = handle.route().del(route).execute().await {
                tracing::debug!(%error, "a route of an earlier build was gone already");
            }
        }
        for &rule in self.rules.clone().difference(&plan.rules) {
            if let Err(error) = handle.rule().del(self.numbers.rule(rule)).execute().await {
                tracing::debug!(?rule, %error, "it was gone already");
            }
            self.rules.remove(&rule);
        }
        let stale: Vec<_> =
            self.routes.keys().filter(|key| !plan.routes.contains_key(key)).copied().collect();
        for key in stale {
            self.delete_route(handle, key).await;
        }
        Ok(())
    }

    async fn delete_route(&mut self, handle: &Handle, key: RouteKey) {
        let mut route = self.numbers.route(key, Target::Throw, 0);
        // Wherever it leads.
        route.header.kind = RouteType::Unspec;
        route.header.scope = RouteScope::NoWhere;
        route.header.protocol = RouteProtocol::Unspec;
        if let Err(error) = handle.route().del(route).execute().await {
            tracing::debug!(?key, %error, "it was gone already");
        }
        self.routes.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let numbers = Numbers::of(Slot::default());
        let others = Numbers { table: numbers.table + 4, priority: numbers.priority + RULES };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for key in [
            (Table::Peers, ip("192.0.2.2"), 32),
            (Table::Named, ip("10.2.0.0"), 16),
            (Table::Everything, ip("0.0.0.0"), 0),
            (Table::Named, ip("2001:db8:2::"), 48),
            (Table::Everything, ip("::"), 0),
        ] {
            let source = if key.1.is_ipv4() { ip("10.1.0.1") } else { ip("2001:db8:1::1") };
            let device = |mtu| Target::Device { source, mtu };
            for target in [Target::Throw, device(None), device(Some(1400))] {
                assert_eq!(numbers.route_of(&numbers.route(key, target, 7)), Some(key));
                assert_eq!(others.route_of(&numbers.route(key, target, 7)), None);
            }
            let ipv6 = key.1.is_ipv6();
            let rules = [
                Rule::Ike { ipv6, port: 4500 },
                Rule::Peers { ipv6 },
                Rule::Named { ipv6 },
                Rule::MainFrom(source),
                Rule::EverythingFrom(source),
            ];
            for rule in rules {
                assert_eq!(numbers.rule_of(&numbers.rule(rule)), Some(rule));
                assert_eq!(others.rule_of(&numbers.rule(rule)), None);
            }
        }
    }

    /// By the device that its routes lead into, and nobody else's.
    #[test]
    fn what_an_earlier_build_left_behind_is_known() {
        let numbers = |table, priority| Numbers { table: TABLES.start() | table, priority };
        let (earlier, others) = (numbers(0x12_3450, 23_000), numbers(0x65_4320, 24_000));
        let source: IpAddr = "10.1.0.1".parse().unwrap();
        let (network, everything) = ("10.2.0.0".parse().unwrap(), "0.0.0.0".parse().unwrap());
        let target = Target::Device { source, mtu: None };
        let routes = |numbers: Numbers, device| {
            [
                numbers.route((Table::Named, network, 16), target, device),
                numbers.route((Table::Named, source, 32), Target::Throw, device),
                numbers.route((Table::Everything, everything, 0), target, device),
            ]
        };
        let rules = |numbers: Numbers| {
            [
                Rule::Ike { ipv6: false, port: 500 },
                Rule::Named { ipv6: false },
                Rule::MainFrom(source),
                Rule::EverythingFrom(source),
            ]
            .map(|rule| numbers.rule(rule))
        };
        let all_routes = [routes(earlier, 7), routes(others, 8)].concat();
        let all_rules = [rules(earlier), rules(others)].concat();
        let found = Relics::find(all_routes.clone(), all_rules.clone(), 7);
        assert_eq!(found.routes, routes(earlier, 7));
        assert_eq!(found.rules, rules(earlier));
        let found = Relics::find(all_routes, all_rules, 9);
        assert!(found.routes.is_empty() && found.rules.is_empty());
    }
}
