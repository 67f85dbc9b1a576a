//! The TUN device itself.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkMessage,
};
use rtnetlink::{Handle, LinkUnspec};
use rustix::fs::{Mode, OFlags};

use super::slot::Slot;
use crate::pipeline::HostEnd;

const CLONE_DEVICE: &CStr = c"/dev/net/tun";

/// Longest name of an interface (IFNAMSIZ, less the NUL).
pub const NAME_LENGTH_MAX: usize = libc::IFNAMSIZ - 1;

/// The name of an instance's device; no longer than [`NAME_LENGTH_MAX`] for an instance one character shorter.
pub fn name(instance: &str) -> String {
    format!("{instance}0")
}

/// Both ends of the device's own link, on which nobody else is: with an address the kernel's reverse path filter has
/// something to go by, and with a far end it has somebody to believe errors from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// The kernel's end, in a network of two (RFC 3021).
    pub own: Ipv4Addr,
    /// The engine's.
    pub engine: HostEnd,
}

impl Ends {
    /// Of the device of the instance with this number.
    pub fn of(slot: Slot) -> Self {
        let own = slot.address();
        let v4 = Ipv4Addr::from_bits(own.to_bits() | 1);
        Self { own, engine: HostEnd { v4, v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) } }
    }
}

/// Opens `queues` queues of the device, which is made if it does not exist, and stays when they are closed.
///
/// # Errors
/// No TUN in this kernel, no privilege, or an interface of that name that is something else or has an owner.
pub fn open(name: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    let explain = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => {
            io::Error::other("expected /dev/net/tun, found none: modprobe tun")
        }
        Some(libc::EINVAL) => io::Error::other(format!(
            "expected no interface {name:?}, or a TUN device with several queues, found another one; ip link delete dev {name}, or choose another engine.instance"
        )),
        Some(libc::EBUSY) => {
            io::Error::other(format!("expected {name:?} to be free, found it in use by a process"))
        }
        _ => io::Error::new(error.kind(), format!("{name}: {error}")),
    };
    (0..queues).map(|_| open_queue(name).map_err(explain)).collect()
}

fn open_queue(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let queue = rustix::fs::open(CLONE_DEVICE, flags, Mode::empty())?;
    // SAFETY: an ifreq of zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() > NAME_LENGTH_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // No offloads are asked for: what is read is whole, and its checksums are complete.
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq, TUNSETPERSIST takes a number.
    let done = unsafe {
        libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) == 0
            && libc::ioctl(queue.as_raw_fd(), libc::TUNSETPERSIST as _, 1) == 0
    };
    if done { Ok(queue) } else { Err(io::Error::last_os_error()) }
}

/// An interface, as far as the host path cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Kernel index.
    pub ifindex: u32,
    /// Administratively up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// It is a TUN or TAP device.
    pub tun: bool,
}

/// The interface of that name, if there is one; of a name that no interface can have, there is none.
pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, rtnetlink::Error> {
    if name.len() > NAME_LENGTH_MAX {
        return Ok(None);
    }
    let links = handle.link().get().match_name(name.to_owned());
    let links = links.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
    match std::pin::pin!(links.execute()).try_next().await {
        Ok(message) => Ok(message.as_ref().map(read)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(message: &LinkMessage) -> Link {
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let is_tun = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkInfo(parts) if parts.contains(&LinkInfo::Kind(InfoKind::Tun)));
    Link {
        ifindex: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: mtu.unwrap_or(0),
        tun: message.attributes.iter().any(is_tun),
    }
}

/// Gives the device an MTU.
pub(super) async fn set_mtu(handle: &Handle, ifindex: u32, mtu: u32) -> Result<(), rtnetlink::Error> {
    handle.link().set(LinkUnspec::new_with_index(ifindex).mtu(mtu).build()).execute().await
}

/// Gives the device its address, and switches it on.
pub(super) async fn configure(handle: &Handle, ifindex: u32, ends: &Ends) -> Result<(), rtnetlink::Error> {
    // Without addresses of its own making it solicits no routers: there is nobody on this link.
    let quiet = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let link = LinkUnspec::new_with_index(ifindex);
    let link = link.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![quiet]));
    handle.link().set(link.build()).execute().await?;
    handle.link().set(LinkUnspec::new_with_index(ifindex).up().build()).execute().await?;
    let addresses = handle.address().get().set_link_index_filter(ifindex).execute();
    let addresses: Vec<_> = addresses.try_collect().await?;
    for message in addresses {
        let of_another_number = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Local(address) if address.is_ipv4() && *address != IpAddr::V4(ends.own));
        if message.attributes.iter().any(of_another_number) {
            handle.address().del(message).execute().await?;
        }
    }
    handle.address().add(ifindex, IpAddr::V4(ends.own), 31).replace().execute().await
}

/// Deletes the device; somebody else's interface of that name stays.
pub(super) async fn delete(handle: &Handle, name: &str) -> Result<(), rtnetlink::Error> {
    match find(handle, name).await? {
        Some(link) if link.tun => handle.link().del(link.ifindex).execute().await,
        _ => Ok(()),
    }
}
