//! Next hops: a mirror of the kernel's main table, neighbours and links, read as a snapshot.

pub mod mirror;

use std::net::IpAddr;
use std::sync::Arc;

use crate::wire::ethernet::MacAddress;

/// adit's own small number for an interface it steers; index into [`Network::ports`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortId(pub u16);

/// Inside or outside (RFC 4301 section 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Inside.
    Protected,
    /// Outside.
    Unprotected,
}

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
    /// MTU in bytes, as the kernel has it.
    pub mtu: u32,
    /// Administratively and physically up.
    pub up: bool,
    /// The gateway's own addresses on it.
    pub addresses: Vec<IpAddr>,
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

/// One immutable picture of the kernel's tables.
pub struct Network {
    /// Interfaces adit steers, by [`PortId`].
    pub ports: Vec<Port>,
    /// Grows with every picture; caches key on it.
    pub generation: u64,
    routes: Arc<Routes>,
    neighbours: Arc<Neighbours>,
}

/// Longest-prefix routes.
pub struct Routes {
    _todo: (),
}

/// Link-layer addresses of neighbours that answer.
pub struct Neighbours {
    _todo: (),
}

impl Network {
    /// Where `destination` goes.
    pub fn next_hop(&self, destination: IpAddr) -> NextHop {
        let _ = (destination, &self.routes);
        todo!()
    }

    /// The neighbour's link-layer address, if it is known and usable.
    pub fn neighbour(&self, port: PortId, address: IpAddr) -> Option<MacAddress> {
        let _ = (port, address, &self.neighbours);
        todo!()
    }

    /// True for the gateway's own addresses, on any interface.
    pub fn is_local(&self, address: IpAddr) -> bool {
        let _ = address;
        todo!()
    }
}
