//! Puts a [`Network`] together: for tests, offline runs and the mirror alike.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::table::LocalKind;
use super::{Neighbours, Network, Port, PortId, Routes};
use crate::wire::ethernet::MacAddress;

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RouteTarget {
    /// The destination itself is on the link of this port.
    OnLink(PortId),
    /// A gateway on the link of this port; an IPv6 gateway may carry IPv4 routes (RFC 5549).
    Gateway(PortId, IpAddr),
    /// Out of an interface that adit does not steer.
    OtherInterface,
    /// Blackhole, prohibit or unreachable.
    Unreachable,
}

/// Collects routes. Of several to one prefix the lowest metric wins; of equals, the first.
#[derive(Default)]
pub struct RoutesBuilder {
    local: HashMap<(IpAddr, u8), LocalKind>,
    main: HashMap<(IpAddr, u8), (u32, RouteTarget)>,
}

impl RoutesBuilder {
    /// The gateway's own address, or a prefix that it answers for.
    pub fn local(&mut self, network: IpAddr, length: u8) {
        self.local.insert(normal(network, length), LocalKind::Own);
    }

    /// A broadcast or multicast prefix of the local table.
    pub fn not_forwarded(&mut self, network: IpAddr, length: u8) {
        self.local.entry(normal(network, length)).or_insert(LocalKind::NotForwarded);
    }

    /// A route of the main table.
    pub fn route(&mut self, network: IpAddr, length: u8, metric: u32, target: RouteTarget) {
        let entry = self.main.entry(normal(network, length)).or_insert((metric, target));
        if metric < entry.0 {
            *entry = (metric, target);
        }
    }

    /// Compiles what was collected.
    pub fn build(self) -> Routes {
        let main = self.main.into_iter().map(|(prefix, (_, target))| (prefix, target));
        Routes::compile(self.local.into_iter(), main)
    }
}

/// Host bits cleared, length at most the address's width.
fn normal(network: IpAddr, length: u8) -> (IpAddr, u8) {
    match network {
        IpAddr::V4(address) => {
            let length = length.min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            (Ipv4Addr::from_bits(address.to_bits() & mask).into(), length)
        }
        IpAddr::V6(address) => {
            let length = length.min(128);
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            (Ipv6Addr::from_bits(address.to_bits() & mask).into(), length)
        }
    }
}

/// Builds a whole picture without a kernel.
#[derive(Default)]
pub struct NetworkBuilder {
    ports: Vec<Port>,
    routes: RoutesBuilder,
    neighbours: HashMap<(PortId, IpAddr), MacAddress>,
}

impl NetworkBuilder {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a port; its addresses become local.
    ///
    /// # Panics
    /// With the 65,536th port: the last number is the gateway itself.
    pub fn port(&mut self, port: Port) -> PortId {
        let id = PortId(u16::try_from(self.ports.len()).unwrap_or(u16::MAX));
        assert!(id < PortId::OWN, "at most 65,533 ports");
        for &address in &port.addresses {
            self.local(address);
        }
        self.ports.push(port);
        id
    }

    /// Adds an address of the gateway that is on no port (a loopback, an interface that is not steered).
    pub fn local(&mut self, address: IpAddr) -> &mut Self {
        self.routes.local(address, if address.is_ipv4() { 32 } else { 128 });
        self
    }

    /// Adds a route to `network`/`length`.
    pub fn route(&mut self, network: IpAddr, length: u8, metric: u32, target: RouteTarget) -> &mut Self {
        self.routes.route(network, length, metric, target);
        self
    }

    /// Adds a neighbour that answers.
    pub fn neighbour(&mut self, port: PortId, address: IpAddr, mac: MacAddress) -> &mut Self {
        self.neighbours.insert((port, address), mac);
        self
    }

    /// The picture.
    pub fn build(self, generation: u64) -> Network {
        let neighbours = self.neighbours.into_iter().collect::<Neighbours>();
        Network::new(self.ports, Arc::new(self.routes.build()), Arc::new(neighbours), generation)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NextHop, Side};
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_small_network() {
        let mut builder = NetworkBuilder::new();
        let inside = builder.port(Port {
            addresses: vec![ip("192.168.1.1"), ip("fe80::1")],
            ..Port::absent("inside".into(), Side::Protected)
        });
        let outside = builder.port(Port::absent("outside".into(), Side::Unprotected));
        builder.local(ip("127.0.0.1"));
        builder.route(ip("192.168.1.77"), 24, 0, RouteTarget::OnLink(inside));
        builder.route(ip("0.0.0.0"), 0, 200, RouteTarget::OtherInterface);
        builder.route(ip("0.0.0.0"), 0, 100, RouteTarget::Gateway(outside, ip("fe80::99")));
        builder.route(ip("10.9.0.0"), 16, 0, RouteTarget::Unreachable);
        builder.route(ip("10.8.0.0"), 16, 0, RouteTarget::OtherInterface);
        builder.route(ip("::"), 0, 0, RouteTarget::OnLink(outside));
        let mac = MacAddress([2, 0, 0, 0, 0, 7]);
        builder.neighbour(outside, ip("fe80::99"), mac);
        let network = builder.build(7);

        let gateway = NextHop::Port { port: outside, neighbour: ip("fe80::99") };
        for (destination, expected) in [
            ("192.168.1.1", NextHop::Local),
            ("127.0.0.1", NextHop::Local),
            ("192.168.1.2", NextHop::Port { port: inside, neighbour: ip("192.168.1.2") }),
            ("8.8.8.8", gateway),
            ("10.9.1.1", NextHop::Unreachable),
            ("10.8.1.1", NextHop::OtherInterface),
            ("224.0.0.5", NextHop::Unreachable),
            ("255.255.255.255", NextHop::Unreachable),
            ("2001:db8::1", NextHop::Port { port: outside, neighbour: ip("2001:db8::1") }),
            ("fe80::1", NextHop::Local),
            ("fe80::2", NextHop::Unreachable),
            ("ff02::1", NextHop::Unreachable),
        ] {
            assert_eq!(network.next_hop(ip(destination)), expected, "{destination}");
        }
        assert!(network.is_local(ip("192.168.1.1")) && !network.is_local(ip("192.168.1.2")));
        assert_eq!(network.neighbour(outside, ip("fe80::99")), Some(mac));
        assert_eq!(network.neighbour(inside, ip("fe80::99")), None);
        assert_eq!((network.generation, network.ports.len()), (7, 2));
    }

    #[test]
    fn nothing_leads_nowhere() {
        let network = NetworkBuilder::new().build(0);
        assert_eq!(network.next_hop(ip("192.0.2.1")), NextHop::Unreachable);
        assert_eq!(network.next_hop(ip("2001:db8::1")), NextHop::Unreachable);
        assert!(!network.is_local(ip("192.0.2.1")));
    }
}
