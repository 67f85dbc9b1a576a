//! What one worker remembers of the policy's answers.
//!
//! An entry names a policy, never an SA: the policy's tunnel names its current SA, so rekeying leaves caches
//! alone. It names no next hop either: routes and neighbours change far more often than policies, and would
//! empty the cache each time. So the generation of the SPD is all that an entry must agree with.

use crate::sa::selector::Direction;
use crate::wire::ip::{Flow, Fragment, Upper};

use super::{Spd, address_bits};

/// What the answer depends on, packed to compare in five words. The last word's low bit is always set, so the
/// zeroes of an empty entry are nobody's key.
type Key = [u64; 5];

/// One line of the processor's cache.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Entry {
    key: Key,
    generation: u64,
    policy: Option<u32>,
}

impl Entry {
    /// Whole words without a branch between them: the derived comparison is a call of `memcmp`.
    #[inline(always)]
    fn answers(&self, key: &Key, generation: u64) -> bool {
        let differences = self.key.iter().zip(key).fold(0, |all, (own, asked)| all | (own ^ asked));
        differences | (self.generation ^ generation) == 0
    }
}

/// A two-way cache of fixed size; nothing is allocated after [`FlowCache::new`].
///
/// Hostile senders may evict entries, since any cache can be filled, but cannot choose flows that meet in one
/// set: the hash is keyed with a seed they do not know. An entry answers only for a key that is equal in full.
pub struct FlowCache {
    sets: Box<[[Entry; 2]]>,
    seed: [u64; 2],
}

impl FlowCache {
    /// A cache for about `flows` flows (rounded up to a power of two, at least 2; 64 bytes each). `seed` comes
    /// from the system's random source.
    pub fn new(flows: usize, seed: [u64; 2]) -> Self {
        let sets = (flows / 2).next_power_of_two();
        Self { sets: vec![[Entry::default(); 2]; sets].into_boxed_slice(), seed }
    }

    /// As [`Spd::classify`].
    pub fn classify(
        &mut self,
        spd: &Spd,
        direction: Direction,
        flow: &Flow,
        fragment: Fragment,
    ) -> Option<usize> {
        let key = key(direction, flow, fragment);
        let index = self.hash(&key) as usize & (self.sets.len() - 1);
        let set = &mut self.sets[index];
        for entry in set.iter() {
            if entry.answers(&key, spd.generation) {
                return entry.policy.map(|policy| policy as usize);
            }
        }
        let policy = spd.classify(direction, flow, fragment);
        // First in, first out; a stale answer for the same key just ages away.
        set[1] = set[0];
        set[0] = Entry { key, generation: spd.generation, policy: policy.map(|policy| policy as u32) };
        policy
    }

    /// Folded multiplications, each word mixed with secret state.
    fn hash(&self, key: &Key) -> u64 {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        let [first, second] = self.seed;
        let addresses =
            fold(key[0] ^ first, key[1] ^ second) ^ fold(key[2] ^ second, key[3] ^ first).rotate_left(23);
        fold(addresses ^ key[4], first | 1)
    }
}

fn key(direction: Direction, flow: &Flow, fragment: Fragment) -> Key {
    let (source, destination) = (address_bits(flow.source), address_bits(flow.destination));
    let (class, first, second) = match flow.upper {
        Upper::Opaque => (0, 0, 0),
        Upper::Ports { source, destination } => (1, source, destination),
        Upper::Icmp { kind, code } => (2, u16::from(kind), u16::from(code)),
    };
    let flags = 1
        | u64::from(direction == Direction::Inbound) << 1
        | u64::from(flow.source.is_ipv6()) << 2
        // Whole and first fragments mean the same to a selector.
        | u64::from(fragment == Fragment::Later) << 3
        | class << 4;
    let rest = u64::from(first) << 48 | u64::from(second) << 32 | u64::from(flow.protocol) << 8 | flags;
    [source as u64, (source >> 64) as u64, destination as u64, (destination >> 64) as u64, rest]
}
