//! Next hops: a mirror of the kernel's main table, neighbours and links, read as a snapshot.
//!
//! [`Network`] is one immutable picture. It is put together by [`NetworkBuilder`], from what a test or an
//! offline run says, or from the kernel's tables by [`mirror`], which publishes a new picture when they change.

pub mod builder;
mod kernel;
pub mod mirror;
pub mod resolver;
pub mod table;

use std::net::IpAddr;
use std::sync::Arc;

pub use builder::{NetworkBuilder, RouteTarget};
pub use resolver::Resolver;
pub use table::Routes;

use crate::wire::ethernet::MacAddress;
use crate::wire::vlan::Tags;

/// adit's own small number for an interface it steers; index into [`Network::ports`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortId(pub u16);

impl PortId {
    /// The gateway itself: its own packets come in by this port. No interface has it.
    pub const HOST: Self = Self(u16::MAX);
    /// The same, of what it sent in fragments that were put together: so it may be fragmented again.
    pub const HOST_IN_FRAGMENTS: Self = Self(u16::MAX - 1);
    /// What the engine has just made or opened itself, and works on further.
    pub const OWN: Self = Self(u16::MAX - 2);
}

/// Inside or outside (RFC 4301 section 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Inside.
    Protected,
    /// Outside.
    Unprotected,
}

/// The most bytes of an IP packet that adit carries; where the kernel's MTU is larger, a path's MTU is this.
pub const LARGEST_MTU: u32 = 9000;

/// An interface that adit steers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Interface name.
    pub name: Arc<str>,
    /// Which side.
    pub side: Side,
    /// Kernel index; 0 while the interface does not exist.
    pub ifindex: u32,
    /// Address.
    pub mac: MacAddress,
    /// MTU in bytes, as the kernel has it, or [`LARGEST_MTU`].
    pub mtu: u32,
    /// Administratively and physically up.
    pub up: bool,
    /// The gateway's own addresses on it.
    pub addresses: Vec<IpAddr>,
    /// Where its frames come and go, if it is a VLAN of another port's interface.
    pub vlan: Option<Vlan>,
}

/// A VLAN of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vlan {
    /// The port of the interface itself.
    pub parent: PortId,
    /// What its frames carry there.
    pub tags: Tags,
}

impl Port {
    /// A port whose interface does not exist (yet).
    pub fn absent(name: Arc<str>, side: Side) -> Self {
        let (mac, addresses) = (MacAddress::default(), Vec::new());
        Self { name, side, ifindex: 0, mac, mtu: 0, up: false, addresses, vlan: None }
    }
}

/// Where a packet goes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextHop {
    /// To one of the gateway's own addresses.
    Local,
    /// Out of a port, to the neighbour with this address (the gateway of the route, or the destination).
    Port {
        /// Egress.
        port: PortId,
        /// Who to ask for on that link.
        neighbour: IpAddr,
    },
    /// Out of an interface that adit does not steer.
    OtherInterface,
    /// No route, or a blackhole, prohibit or unreachable route.
    Unreachable,
}

/// One immutable picture of the kernel's tables. Routes and neighbours are shared between pictures, so that a
/// neighbour that answers does not copy the routes.
pub struct Network {
    /// Interfaces adit steers, by [`PortId`].
    pub ports: Vec<Port>,
    /// Grows with every picture; caches key on it.
    pub generation: u64,
    routes: Arc<Routes>,
    neighbours: Arc<Neighbours>,
}

/// Link-layer addresses of neighbours that answer, by [`PortId`]. Sorted, not hashed: hosts on a link choose
/// their addresses, and must not choose how long a lookup takes.
#[derive(Default)]
pub struct Neighbours {
    ports: Vec<PortNeighbours>,
}

#[derive(Default)]
struct PortNeighbours {
    v4: Vec<(u32, MacAddress)>,
    v6: Vec<(u128, MacAddress)>,
}

impl FromIterator<((PortId, IpAddr), MacAddress)> for Neighbours {
    fn from_iter<I: IntoIterator<Item = ((PortId, IpAddr), MacAddress)>>(entries: I) -> Self {
        let mut ports: Vec<PortNeighbours> = Vec::new();
        for ((PortId(port), address), mac) in entries {
            let port = usize::from(port);
            if ports.len() <= port {
                ports.resize_with(port + 1, PortNeighbours::default);
            }
            match address {
                IpAddr::V4(address) => ports[port].v4.push((address.to_bits(), mac)),
                IpAddr::V6(address) => ports[port].v6.push((address.to_bits(), mac)),
            }
        }
        for port in &mut ports {
            port.v4.sort_unstable_by_key(|(address, _)| *address);
            port.v6.sort_unstable_by_key(|(address, _)| *address);
        }
        Self { ports }
    }
}

impl Neighbours {
    fn lookup(&self, PortId(port): PortId, address: IpAddr) -> Option<MacAddress> {
        fn search<B: Ord + Copy>(sorted: &[(B, MacAddress)], address: B) -> Option<MacAddress> {
            let index = sorted.binary_search_by_key(&address, |(address, _)| *address).ok()?;
            Some(sorted[index].1)
        }
        let port = self.ports.get(usize::from(port))?;
        match address {
            IpAddr::V4(address) => search(&port.v4, address.to_bits()),
            IpAddr::V6(address) => search(&port.v6, address.to_bits()),
        }
    }
}

impl Network {
    /// A picture made of its parts.
    pub fn new(ports: Vec<Port>, routes: Arc<Routes>, neighbours: Arc<Neighbours>, generation: u64) -> Self {
        Self { ports, generation, routes, neighbours }
    }

    /// Where `destination` goes.
    pub fn next_hop(&self, destination: IpAddr) -> NextHop {
        self.routes.next_hop(destination)
    }

    /// The port whose frames carry `tags` on the interface of `parent`; without any, that is `parent`.
    pub fn port_of_tags(&self, parent: PortId, tags: Tags) -> Option<PortId> {
        if tags == Tags::default() {
            return Some(parent);
        }
        let index = self.ports.iter().position(|port| port.vlan == Some(Vlan { parent, tags }))?;
        Some(PortId(index as u16))
    }

    /// The neighbour's link-layer address, if it is known and usable.
    pub fn neighbour(&self, port: PortId, address: IpAddr) -> Option<MacAddress> {
        self.neighbours.lookup(port, address)
    }

    /// The addresses on a port's link that answered with `mac`; a search through all neighbours, not for every packet.
    pub fn neighbours_with(&self, port: PortId, mac: MacAddress) -> impl Iterator<Item = IpAddr> {
        let port = self.neighbours.ports.get(usize::from(port.0));
        port.into_iter().flat_map(move |port| {
            let v4 = port.v4.iter().map(|&(address, is)| (IpAddr::V4(address.into()), is));
            let v6 = port.v6.iter().map(|&(address, is)| (IpAddr::V6(address.into()), is));
            v4.chain(v6).filter(move |(_, is)| *is == mac).map(|(address, _)| address)
        })
    }

    /// The gateway's own addresses, on any interface, sorted.
    pub fn own_addresses(&self) -> &[IpAddr] {
        self.routes.own_addresses()
    }

    /// True for the gateway's own addresses, on any interface.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.routes.is_local(address)
    }
}
