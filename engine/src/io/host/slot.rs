//! An instance's place among those of its network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::AddressAttribute;
use rustix::fs::FlockOperation;

use super::device;

/// 169.254.173.0/24: addresses of the devices, 128 networks of two.
const NETWORK: [u8; 3] = [169, 254, 173];

/// How long one instance waits for others to choose.
const PATIENCE: Duration = Duration::from_secs(2);

/// A number from 0 to 127. The addresses of an instance's device, its tables and the priorities of its rules follow
/// from it, and whose device has the address has the number: it outlives the process as the device does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot(u8);

impl Slot {
    /// How many there are.
    const COUNT: u8 = 128;

    /// The kernel's end of the device, in a network of two (RFC 3021) with the engine's.
    pub fn address(self) -> Ipv4Addr {
        let [a, b, c] = NETWORK;
        Ipv4Addr::new(a, b, c, self.0 << 1)
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0.into()
    }

    fn of(address: Ipv4Addr) -> Option<Self> {
        let [network @ .., last] = address.octets();
        (network == NETWORK).then_some(Self(last >> 1))
    }

    /// The one that the instance has, unless somebody else has it too; or else the first that is free, from one that its
    /// name says, so that it is mostly the same again.
    fn choose(instance: &str, own: Option<Self>, others: &[Self]) -> Option<Self> {
        let first = number(instance) as u8 % Self::COUNT;
        let from_first = (0..Self::COUNT).map(|step| Self((first + step) % Self::COUNT));
        own.into_iter().chain(from_first).find(|slot| !others.contains(slot))
    }

    /// What the instance has, or is to have, by the addresses that the kernel knows. Hold the [`Turn`] until the device
    /// has its address.
    pub(super) async fn find(handle: &Handle, instance: &str) -> io::Result<Self> {
        let device = device::find(handle, &device::name(instance)).await.map_err(io::Error::other)?;
        let (mut own, mut others) = (None, Vec::new());
        let mut addresses = std::pin::pin!(handle.address().get().execute());
        while let Some(message) = addresses.try_next().await.map_err(io::Error::other)? {
            let slot = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Self::of(*address),
                _ => None,
            });
            if device.is_some_and(|device| device.ifindex == message.header.index) {
                own = slot.or(own);
            } else {
                others.extend(slot);
            }
        }
        Self::choose(instance, own, &others).ok_or_else(|| {
            io::Error::other("expected a network of two that is free in 169.254.173.0/24, found all in use")
        })
    }
}

/// FNV-1a.
fn number(instance: &str) -> u32 {
    instance.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// One instance at a time of a network namespace looks what is free and takes it.
pub(super) struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits for it; not for ever, since anybody may lock what it is.
    pub(super) async fn take() -> io::Result<Self> {
        let lock = File::open("/proc/thread-self/ns/net")?;
        let waited = async {
            while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waited).await.is_err() {
            tracing::warn!("somebody holds a lock on the network namespace: not waiting any longer");
        }
        Ok(Self { _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_keeps_its_number_and_takes_nobody_elses() {
        let first = Slot::choose("adit", None, &[]).unwrap();
        assert_eq!(Slot::choose("adit", None, &[]), Some(first));
        let next = Slot::choose("adit", None, &[first]).unwrap();
        assert_ne!(next, first);
        assert_eq!(Slot::choose("adit", Some(next), &[first]), Some(next), "it stays where it is");
        assert_eq!(Slot::choose("adit", Some(next), &[]), Some(next), "also when the first is free again");
        assert_eq!(Slot::choose("adit", Some(next), &[next]), Some(first), "unless it is another's too");

        let mut taken = Vec::new();
        while let Some(slot) = Slot::choose("adit", None, &taken) {
            taken.push(slot);
        }
        assert_eq!(taken.len(), usize::from(Slot::COUNT));
    }

    #[test]
    fn an_address_is_a_number() {
        for number in 0..Slot::COUNT {
            let address = Slot(number).address();
            assert_eq!(Slot::of(address), Some(Slot(number)));
            let engine = Ipv4Addr::from_bits(address.to_bits() | 1);
            assert_eq!(Slot::of(engine), Some(Slot(number)));
        }
        assert_eq!(Slot::of(Ipv4Addr::new(169, 254, 172, 0)), None);
    }
}
