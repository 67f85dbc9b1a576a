//! The maps that both hooks look into: covers, own addresses, SPIs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use adit_xdp_prog::TOLD_KINDS;
use adit_xdp_prog::cover::{BYPASS, DISCARD, DISCARD_EVERYWHERE, PROTECT, PROTECT_EVERYWHERE};
use adit_xdp_prog::maps as names;
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;

use super::SteeringError;
use crate::policy::cover::Prefix;
use crate::wire::Spi;

/// A prefix of a cover, with the actions of the selectors it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoverPrefix {
    /// The addresses. Bits behind the length are ignored.
    pub prefix: Prefix,
    /// A PROTECT selector has it.
    pub protect: bool,
    /// A DISCARD selector has it.
    pub discard: bool,
    /// A BYPASS selector has it, which makes it no cover.
    pub bypass: bool,
}

/// Covers as the hooks take them. Prefixes may repeat and contain each other; their actions add up. A prefix of
/// length zero must stay beside the ones it contains: the hooks treat what a selector names more strictly than
/// what it only means by meaning everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SteeringTables {
    /// Addresses on the protected side.
    pub local: Vec<CoverPrefix>,
    /// Addresses behind peers.
    pub remote: Vec<CoverPrefix>,
    /// Ports of ours besides 4500 that IKE and ESP in UDP come to.
    pub nat_ports: Vec<u16>,
}

/// Network bits from the top, then the length: in this order a prefix stands before all that it contains.
type Bits = (u128, u8);

/// What a trie holds: each prefix with the union of the flags of all that contain it, itself included, because
/// a lookup sees the longest match only.
fn flatten(prefixes: &[CoverPrefix], v4: bool) -> BTreeMap<Bits, u32> {
    let mut own: BTreeMap<Bits, u32> = BTreeMap::new();
    for CoverPrefix { prefix: Prefix { network, length }, protect, discard, bypass } in prefixes {
        let (bits, width) = match network {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        if network.is_ipv4() != v4 {
            continue;
        }
        let length = (*length).min(width);
        let [protect_flag, discard_flag] =
            if length == 0 { [PROTECT_EVERYWHERE, DISCARD_EVERYWHERE] } else { [PROTECT, DISCARD] };
        *own.entry((bits & mask(length), length)).or_default() |= (u32::from(*protect) * protect_flag)
            | (u32::from(*discard) * discard_flag)
            | (u32::from(*bypass) * BYPASS);
    }
    let mut containing: Vec<(Bits, u32)> = Vec::new();
    let mut flat = BTreeMap::new();
    for (prefix, flags) in own {
        while containing.last().is_some_and(|((network, length), _)| prefix.0 & mask(*length) != *network) {
            containing.pop();
        }
        let flags = flags | containing.last().map_or(0, |(_, flags)| *flags);
        containing.push((prefix, flags));
        flat.insert(prefix, flags);
    }
    // A selector that is neither would be a cover without meaning; the hooks take 0 for "not covered".
    flat.retain(|_, flags| *flags != 0);
    flat
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

/// An address family: how many bytes of the top bits are the key.
trait Family: aya::Pod {
    fn key(bits: u128) -> Self;
}

impl Family for [u8; 4] {
    fn key(bits: u128) -> Self {
        ((bits >> 96) as u32).to_be_bytes()
    }
}

impl Family for [u8; 16] {
    fn key(bits: u128) -> Self {
        bits.to_be_bytes()
    }
}

/// A prefix map in the kernel, and what we have put into it.
struct Trie<Address: Family> {
    name: &'static str,
    map: LpmTrie<MapData, Address, u32>,
    present: BTreeMap<Bits, u32>,
}

impl<Address: Family> Trie<Address> {
    fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, SteeringError> {
        Ok(Self { name, map: take_map(ebpf, name)?, present: BTreeMap::new() })
    }

    fn insert(&mut self, wanted: &BTreeMap<Bits, u32>) -> Result<(), SteeringError> {
        for (&(bits, length), &flags) in wanted {
            if self.present.get(&(bits, length)) != Some(&flags) {
                let key = Key::new(length.into(), Address::key(bits));
                self.map.insert(&key, flags, 0).map_err(|error| SteeringError::Map(self.name, error))?;
                self.present.insert((bits, length), flags);
            }
        }
        Ok(())
    }

    fn remove_all_but(&mut self, wanted: &BTreeMap<Bits, u32>) -> Result<(), SteeringError> {
        let stale: Vec<Bits> =
            self.present.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for (bits, length) in stale {
            let key = Key::new(length.into(), Address::key(bits));
            self.map.remove(&key).map_err(|error| SteeringError::Map(self.name, error))?;
            self.present.remove(&(bits, length));
        }
        Ok(())
    }
}

/// All shared maps of an instance.
pub(super) struct Tables {
    local4: Trie<[u8; 4]>,
    local6: Trie<[u8; 16]>,
    remote4: Trie<[u8; 4]>,
    remote6: Trie<[u8; 16]>,
    own4: HashMap<MapData, [u8; 4], u8>,
    own6: HashMap<MapData, [u8; 16], u8>,
    spis: HashMap<MapData, u32, u8>,
    nat_ports: HashMap<MapData, u16, u8>,
    told: PerCpuArray<MapData, u64>,
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, SteeringError> {
        Ok(Self {
            local4: Trie::take(ebpf, names::COVER_LOCAL4)?,
            local6: Trie::take(ebpf, names::COVER_LOCAL6)?,
            remote4: Trie::take(ebpf, names::COVER_REMOTE4)?,
            remote6: Trie::take(ebpf, names::COVER_REMOTE6)?,
            own4: take_map(ebpf, names::OWN_ADDRESSES4)?,
            own6: take_map(ebpf, names::OWN_ADDRESSES6)?,
            spis: take_map(ebpf, names::SPIS)?,
            nat_ports: take_map(ebpf, names::NAT_PORTS)?,
            told: take_map(ebpf, names::TOLD)?,
        })
    }

    /// Inserts everything new on both sides before it removes anything old: a packet that both covers hold is
    /// held at every moment, also by the pair of lookups for inbound packets. An error leaves too much covered,
    /// never too little.
    pub(super) fn set_cover(&mut self, tables: &SteeringTables) -> Result<(), SteeringError> {
        let ports = tables.nat_ports.iter().map(|port| port.to_be()).collect();
        set_keys(&mut self.nat_ports, ports, names::NAT_PORTS)?;
        let (local4, local6) = (flatten(&tables.local, true), flatten(&tables.local, false));
        let (remote4, remote6) = (flatten(&tables.remote, true), flatten(&tables.remote, false));
        self.local4.insert(&local4)?;
        self.local6.insert(&local6)?;
        self.remote4.insert(&remote4)?;
        self.remote6.insert(&remote6)?;
        self.local4.remove_all_but(&local4)?;
        self.local6.remove_all_but(&local6)?;
        self.remote4.remove_all_but(&remote4)?;
        self.remote6.remove_all_but(&remote6)
    }

    pub(super) fn set_own_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), SteeringError> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(address.octets()),
                IpAddr::V6(address) => v6.push(address.octets()),
            }
        }
        set_keys(&mut self.own4, v4, names::OWN_ADDRESSES4)?;
        set_keys(&mut self.own6, v6, names::OWN_ADDRESSES6)
    }

    pub(super) fn set_spis(&mut self, spis: impl IntoIterator<Item = Spi>) -> Result<(), SteeringError> {
        set_keys(&mut self.spis, spis.into_iter().map(|spi| spi.0.to_be()).collect(), names::SPIS)
    }

    pub(super) fn add_spi(&mut self, spi: Spi) -> Result<(), SteeringError> {
        self.spis.insert(spi.0.to_be(), 1, 0).map_err(|error| SteeringError::Map(names::SPIS, error))
    }

    pub(super) fn tell_of_drops(&mut self, on: bool) -> Result<(), SteeringError> {
        let set = |kind| {
            let cpus = nr_cpus().map_err(|(_, error)| error)?;
            // As the hook reads it: from the beginning of time, or never.
            self.told.set(kind, PerCpuValues::try_from(vec![u64::from(on); cpus])?, 0)
        };
        (0..TOLD_KINDS).try_for_each(set).map_err(|error: MapError| SteeringError::Map(names::TOLD, error))
    }

    pub(super) fn remove_spi(&mut self, spi: Spi) -> Result<(), SteeringError> {
        remove_key(&mut self.spis, &spi.0.to_be(), names::SPIS)
    }
}

/// Makes `wanted` the keys of a map that is used as a set; additions come first.
fn set_keys<K: aya::Pod + Ord>(
    map: &mut HashMap<MapData, K, u8>,
    mut wanted: Vec<K>,
    name: &'static str,
) -> Result<(), SteeringError> {
    wanted.sort_unstable();
    let present: Result<Vec<K>, MapError> = map.keys().collect();
    let mut present = present.map_err(|error| SteeringError::Map(name, error))?;
    present.sort_unstable();
    for key in wanted.iter().filter(|key| present.binary_search(key).is_err()) {
        map.insert(key, 1, 0).map_err(|error| SteeringError::Map(name, error))?;
    }
    for key in present.iter().filter(|key| wanted.binary_search(key).is_err()) {
        remove_key(map, key, name)?;
    }
    Ok(())
}

/// Removing what is not there is done already.
fn remove_key<K: aya::Pod>(
    map: &mut HashMap<MapData, K, u8>,
    key: &K,
    name: &'static str,
) -> Result<(), SteeringError> {
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(SteeringError::Map(name, error)),
    }
}

/// Takes a map out of a loaded object, as its type.
pub(super) fn take_map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, SteeringError>
where
    M: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(SteeringError::NoSuchMap(name))?;
    M::try_from(map).map_err(|error| SteeringError::Map(name, error))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn prefix(network: IpAddr, length: u8, [protect, discard, bypass]: [bool; 3]) -> CoverPrefix {
        CoverPrefix { prefix: Prefix { network, length }, protect, discard, bypass }
    }

    fn contains(outer: &Prefix, address: Ipv4Addr) -> bool {
        let IpAddr::V4(network) = outer.network else { return false };
        (0..u32::from(outer.length))
            .all(|bit| (network.to_bits() >> (31 - bit)) & 1 == (address.to_bits() >> (31 - bit)) & 1)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// The longest match in the flat table says what a linear walk over all prefixes says.
        #[test]
        fn longest_match_is_the_union(
            prefixes in prop::collection::vec((0u32..64, 0u8..=8, any::<[bool; 3]>()), 0..20),
            address in 0u32..64,
        ) {
            // Six bits of variety under 10.0.0.0/2, so that prefixes nest and repeat.
            let place = |bits: u32| Ipv4Addr::from_bits(bits << 26);
            let prefixes: Vec<_> = prefixes
                .into_iter()
                .map(|(bits, length, actions)| prefix(place(bits).into(), length, actions))
                .collect();
            let address = place(address);
            let mut expected = 0;
            for CoverPrefix { prefix, protect, discard, bypass } in &prefixes {
                if contains(prefix, address) {
                    let everywhere = prefix.length == 0;
                    expected |= match (protect, everywhere) { (true, false) => 1, (true, true) => 4, _ => 0 };
                    expected |= match (discard, everywhere) { (true, false) => 2, (true, true) => 8, _ => 0 };
                    expected |= if *bypass { 16 } else { 0 };
                }
            }
            let found = flatten(&prefixes, true)
                .into_iter()
                .filter(|((network, length), _)| (u128::from(address.to_bits()) << 96) & mask(*length) == *network)
                .max_by_key(|((_, length), _)| *length)
                .map_or(0, |(_, flags)| flags);
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn families_do_not_mix() {
        let prefixes = [
            prefix(Ipv4Addr::new(10, 1, 2, 3).into(), 8, [true, false, false]),
            prefix(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 32, [false, true, false]),
        ];
        assert_eq!(flatten(&prefixes, true), BTreeMap::from([((10 << 120, 8), PROTECT)]));
        assert_eq!(flatten(&prefixes, false), BTreeMap::from([((0x2001_0db8 << 96, 32), DISCARD)]));
    }
}
