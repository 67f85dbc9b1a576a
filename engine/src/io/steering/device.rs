//! What the kernel says over netlink of an interface and the XDP program on it.

use std::io;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage, LinkXdp, XdpAttached};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::XdpMode;
use crate::io::queues::{flags, set_flags};

/// An interface as attaching sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Device {
    /// Whether its frames begin with an Ethernet header.
    pub(super) is_ethernet: bool,
    /// The XDP program on it.
    pub(super) program_id: Option<u32>,
    /// How that is attached, when it is one of the two ways adit uses.
    pub(super) mode: Option<XdpMode>,
}

/// Asks for an interface. `ENODEV` when there is none.
pub(super) fn query(ifindex: u32) -> io::Result<Device> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let link = request(RouteNetlinkMessage::GetLink(message), 0)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel did not answer with a link"))?;
    let is_ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    let mut device = Device { is_ethernet, program_id: None, mode: None };
    for attribute in &link.attributes {
        let LinkAttribute::Xdp(xdp) = attribute else { continue };
        for attribute in xdp {
            match attribute {
                LinkXdp::ProgId(id) => device.program_id = Some(*id),
                LinkXdp::Attached(XdpAttached::Driver) => device.mode = Some(XdpMode::Native),
                LinkXdp::Attached(XdpAttached::SocketBuffer) => device.mode = Some(XdpMode::Skb),
                _ => {}
            }
        }
    }
    Ok(device)
}

/// Switches off what hides VLAN tags from XDP programs: the driver takes them out of received frames and says so beside
/// them, where only the kernel looks.
pub(super) fn keep_tags(interface: &str) -> io::Result<()> {
    /// ETH_FLAG_RXVLAN of linux/ethtool.h.
    const RECEIVE_VLAN_OFFLOAD: u32 = 1 << 8;
    let before = flags(interface)?;
    if before & RECEIVE_VLAN_OFFLOAD != 0 {
        tracing::info!(
            interface,
            "receive VLAN offload is switched off (ethtool -K rxvlan off): XDP has to see tags"
        );
        set_flags(interface, before & !RECEIVE_VLAN_OFFLOAD)?;
        if flags(interface)? & RECEIVE_VLAN_OFFLOAD != 0 {
            return Err(io::Error::other("the driver does not do it"));
        }
    }
    Ok(())
}

/// Removes an XDP program that was attached by netlink, without a link, from the mode it is in.
pub(super) fn remove_xdp(ifindex: u32, mode: Option<XdpMode>) -> io::Result<()> {
    // <linux/if_link.h>; without a flag the kernel looks for it in the driver only, if that has XDP.
    const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    let flags = match mode {
        Some(XdpMode::Native) => XDP_FLAGS_DRV_MODE,
        Some(XdpMode::Skb) => XDP_FLAGS_SKB_MODE,
        None => 0,
    };
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes.push(LinkAttribute::Xdp(vec![LinkXdp::Fd(-1), LinkXdp::Flags(flags)]));
    request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
}

/// One question, one answer: a link, or nothing for an acknowledgement.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<LinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = NLM_F_REQUEST | flags;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(None),
            Some(_) => Err(error.to_io()),
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel answered something else")),
    }
}
