//! What the kernel's netlink messages mean to the mirror (rtnetlink(7)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteType,
    RouteVia,
};

use super::PortId;
use super::builder::{RouteTarget, RoutesBuilder};
use crate::wire::ethernet::MacAddress;

/// rtnetlink(7): RT_TABLE_MAIN, RT_TABLE_LOCAL. Other tables (VRFs, policy routing) are not mirrored.
const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;

/// An interface.
#[derive(Debug)]
pub(super) struct Link {
    pub ifindex: u32,
    pub name: String,
    pub mac: MacAddress,
    pub mtu: u32,
    pub up: bool,
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: MacAddress::default(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address) => {
                link.mac = address.as_slice().try_into().map(MacAddress).unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

/// The interface and the gateway's own address on it.
pub(super) fn address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the peer; IFA_LOCAL is ours.
            AddressAttribute::Local(local) => return Some((message.header.index, *local)),
            AddressAttribute::Address(address) => own = Some(*address),
            _ => {}
        }
    }
    own.map(|address| (message.header.index, address))
}

/// A neighbour that answers, or that the operator wrote down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) mac: MacAddress,
    /// The operator's own entry: never to be verified.
    pub(super) permanent: bool,
}

/// Interface, address, and where frames for it go; `None` when it does not answer.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Option<Answer>)> {
    // AF_BRIDGE messages of the same type are forwarding entries of bridges.
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(MacAddress);
            }
            _ => {}
        }
    }
    // A stale address is usable (RFC 4861 section 7.3.3); using it makes the kernel verify it.
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let permanent = message.header.state == NeighbourState::Permanent;
    let answer = mac.filter(|_| usable).map(|mac| Answer { mac, permanent });
    Some(((message.header.ifindex, address?), answer))
}

/// Whether a route is in a table that is mirrored.
pub(super) fn is_mirrored(message: &RouteMessage) -> bool {
    matches!(table(message), TABLE_MAIN | TABLE_LOCAL)
}

fn table(message: &RouteMessage) -> u32 {
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(message.header.table.into())
}

/// Adds a dumped route to `routes`.
pub(super) fn add_route(
    routes: &mut RoutesBuilder,
    message: &RouteMessage,
    port_of: impl Fn(u32) -> Option<PortId>,
) {
    let header = &message.header;
    // Cached exceptions are not routes; routes for one TOS or one source are not for every packet.
    if header.flags.contains(RouteFlags::Cloned) || header.tos != 0 || header.source_prefix_length != 0 {
        return;
    }
    let mut network: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return,
    };
    let mut metric = 0;
    let mut hop = Hop::default();
    let mut hops: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => match ip(address) {
                Some(address) => network = address,
                None => return,
            },
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(next_hops) => hops = next_hops,
            attribute => hop.read(attribute),
        }
    }
    let length = header.destination_prefix_length;
    match (table(message), header.kind) {
        (TABLE_LOCAL, RouteType::Local | RouteType::Anycast) => routes.local(network, length),
        (TABLE_LOCAL, RouteType::Broadcast | RouteType::Multicast) => routes.not_forwarded(network, length),
        (TABLE_MAIN, RouteType::Unicast) => {
            // Deterministic, so that packets of a flow keep their order: the first hop that is alive.
            let alive = |hop: &&RouteNextHop| {
                !hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown)
            };
            if let Some(chosen) = hops.iter().find(alive).or(hops.first()) {
                hop.interface = Some(chosen.interface_index);
                chosen.attributes.iter().for_each(|attribute| hop.read(attribute));
            }
            routes.route(network, length, metric, hop.target(port_of));
        }
        (
            TABLE_MAIN,
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw,
        ) => {
            routes.route(network, length, metric, RouteTarget::Unreachable);
        }
        _ => {}
    }
}

#[derive(Default)]
struct Hop {
    interface: Option<u32>,
    gateway: Option<IpAddr>,
    /// MPLS, SRv6 and the like, which adit does not write.
    encapsulated: bool,
}

impl Hop {
    fn read(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(interface) => self.interface = Some(*interface),
            RouteAttribute::Gateway(address) => self.gateway = ip(address),
            // A gateway of the other IP version.
            RouteAttribute::Via(RouteVia::Inet(address)) => self.gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => self.gateway = Some((*address).into()),
            RouteAttribute::EncapType(_) => self.encapsulated = true,
            _ => {}
        }
    }

    fn target(&self, port_of: impl Fn(u32) -> Option<PortId>) -> RouteTarget {
        match (self.interface.and_then(port_of), self.gateway) {
            _ if self.encapsulated => RouteTarget::OtherInterface,
            (None, _) => RouteTarget::OtherInterface,
            (Some(port), None) => RouteTarget::OnLink(port),
            (Some(port), Some(gateway)) => RouteTarget::Gateway(port, gateway),
        }
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
