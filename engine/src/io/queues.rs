//! What an interface's driver says (ethtool): how many queues it has, since every receive queue must be bound, or frames
//! pass the engine by; and its flags.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType, socket};

/// linux/sockios.h and linux/ethtool.h.
const SIOCETHTOOL: u32 = 0x8946;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
#[derive(Default)]
struct EthtoolChannels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// The queues of one interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueCounts {
    /// Queues that receive.
    pub receive: u32,
    /// Queues that transmit.
    pub transmit: u32,
}

impl QueueCounts {
    /// Queues a socket can be bound to: one beyond the receive queues only transmits.
    pub fn bindable(self) -> u32 {
        self.receive.max(self.transmit)
    }
}

/// The queues `interface` uses now, from its driver (ethtool's channels), or from sysfs where the driver does
/// not say.
///
/// # Errors
/// ENODEV when there is no such interface in this network namespace.
pub fn queue_counts(interface: &str) -> io::Result<QueueCounts> {
    match channels(interface) {
        Ok(channels) => Ok(QueueCounts {
            receive: (channels.combined + channels.rx).max(1),
            transmit: (channels.combined + channels.tx).max(1),
        }),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => from_sysfs(interface),
        Err(error) => Err(error),
    }
}

fn channels(interface: &str) -> io::Result<EthtoolChannels> {
    let mut channels = EthtoolChannels { command: ETHTOOL_GCHANNELS, ..Default::default() };
    ask(interface, &mut channels)?;
    Ok(channels)
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// The driver's flags (ETH_FLAG_RXVLAN and others).
///
/// # Errors
/// ENODEV when there is no such interface.
pub fn flags(interface: &str) -> io::Result<u32> {
    let mut flags = EthtoolValue { command: ETHTOOL_GFLAGS, value: 0 };
    ask(interface, &mut flags)?;
    Ok(flags.value)
}

/// Changes them.
///
/// # Errors
/// The driver refuses, or no privilege.
pub fn set_flags(interface: &str, value: u32) -> io::Result<()> {
    ask(interface, &mut EthtoolValue { command: ETHTOOL_SFLAGS, value })
}

/// What the kernel may be asked: all of it is numbers, and the first names the command, which says how long it is.
trait Question {}
impl Question for EthtoolChannels {}
impl Question for EthtoolValue {}

fn ask<Q: Question>(interface: &str, question: &mut Q) -> io::Result<()> {
    // SAFETY: an ifreq of zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(question).cast();
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: SIOCETHTOOL reads the name, and reads and writes what its command says, a `Q`, through ifru_data; both
    // live here.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn from_sysfs(interface: &str) -> io::Result<QueueCounts> {
    let count = |prefix: &str| -> io::Result<u32> {
        let mut count = 0;
        for entry in std::fs::read_dir(format!("/sys/class/net/{interface}/queues"))? {
            count += u32::from(entry?.file_name().to_string_lossy().starts_with(prefix));
        }
        Ok(count.max(1))
    };
    Ok(QueueCounts { receive: count("rx-")?, transmit: count("tx-")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_a_queue_and_nonsense_has_none() {
        assert!(queue_counts("lo").expect("every namespace has lo").bindable() >= 1);
        for name in ["no-such-if", "a-name-longer-than-any-interface-may-have", ""] {
            assert!(queue_counts(name).is_err(), "{name:?}");
        }
    }
}
