//! What one worker remembers of the tables' answers about flows.
//!
//! The policy's answer names a policy, never an SA: the policy's tunnel names its current SA, so rekeying leaves
//! caches alone. It names no next hop either: routes and neighbours change far more often than policies, and would
//! empty the cache each time. What else is remembered of a flow lives in a cache of its own, with the generations
//! that it depends on.

use std::net::{IpAddr, Ipv6Addr};

use crate::sa::selector::Direction;
use crate::wire::ip::{Flow, Fragment, Upper};

use super::Spd;

/// All that a selector sees of a packet, packed to compare in five words. The last word's low bit is always set, so
/// the zeroes of an empty entry are nobody's key.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FlowKey([u64; 5]);

/// Whole lines of the processor's cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Entry<A, const STAMPS: usize> {
    key: FlowKey,
    stamps: [u64; STAMPS],
    answer: A,
}

impl<A, const STAMPS: usize> Entry<A, STAMPS> {
    #[inline(always)]
    fn answers(&self, key: &FlowKey, stamps: &[u64; STAMPS]) -> bool {
        self.key.differences(key)
            | self.stamps.iter().zip(stamps).fold(0, |all, (own, asked)| all | (own ^ asked))
            == 0
    }
}

/// A two-way cache of fixed size; nothing is allocated after [`FlowCache::new`]. `STAMPS` are the generations of the
/// tables that an answer was taken from: it holds as long as all of them do.
///
/// Hostile senders may evict entries, since any cache can be filled, but cannot choose flows that meet in one
/// set: the hash is keyed with a seed they do not know. An entry answers only for a key that is equal in full.
pub struct FlowCache<A, const STAMPS: usize> {
    sets: Box<[[Entry<A, STAMPS>; 2]]>,
    seed: [u64; 2],
}

/// The policy's answers: its place, or none.
pub type PolicyCache = FlowCache<Option<u32>, 1>;

impl<A: Copy + Default, const STAMPS: usize> FlowCache<A, STAMPS> {
    /// A cache for about `flows` flows (rounded up to a power of two, at least 2). `seed` comes from the system's
    /// random source.
    pub fn new(flows: usize, seed: [u64; 2]) -> Self {
        let sets = (flows / 2).next_power_of_two();
        let empty = Entry { key: FlowKey::default(), stamps: [0; STAMPS], answer: A::default() };
        Self { sets: vec![[empty; 2]; sets].into_boxed_slice(), seed }
    }

    /// What was remembered of `key` under the same stamps.
    #[inline]
    pub fn get(&self, key: &FlowKey, stamps: &[u64; STAMPS]) -> Option<&A> {
        let [first, second] = &self.sets[self.index(key)];
        if first.answers(key, stamps) {
            Some(&first.answer)
        } else if second.answers(key, stamps) {
            Some(&second.answer)
        } else {
            None
        }
    }

    /// Remembers `answer`, in place of an older one: first in, first out. A stale answer for the same key just ages
    /// away.
    pub fn put(&mut self, key: FlowKey, stamps: [u64; STAMPS], answer: A) {
        let index = self.index(&key);
        let set = &mut self.sets[index];
        set[1] = set[0];
        set[0] = Entry { key, stamps, answer };
    }

    #[inline]
    fn index(&self, key: &FlowKey) -> usize {
        self.hash(key) as usize & (self.sets.len() - 1)
    }

    /// Folded multiplications, each word mixed with secret state.
    #[inline]
    fn hash(&self, FlowKey(key): &FlowKey) -> u64 {
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

impl PolicyCache {
    /// As [`Spd::classify`].
    pub fn classify(
        &mut self,
        spd: &Spd,
        direction: Direction,
        flow: &Flow,
        fragment: Fragment,
    ) -> Option<usize> {
        let (key, stamps) = (FlowKey::new(direction, flow, fragment), [spd.generation]);
        if let Some(answer) = self.get(&key, &stamps) {
            return answer.map(|policy| policy as usize);
        }
        let policy = spd.classify(direction, flow, fragment);
        self.put(key, stamps, policy.map(|policy| policy as u32));
        policy
    }
}

impl FlowKey {
    /// That of a packet which goes that way.
    #[inline]
    pub fn new(direction: Direction, flow: &Flow, fragment: Fragment) -> Self {
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
        let words = |address: Ipv6Addr| {
            let bits = address.to_bits();
            (bits as u64, (bits >> 64) as u64)
        };
        let ((s0, s1), (d0, d1)) = match (flow.source, flow.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ((source.to_bits().into(), 0), (destination.to_bits().into(), 0))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => (words(source), words(destination)),
            _ => unreachable!("a packet's addresses have one version"),
        };
        Self([s0, s1, d0, d1, rest])
    }

    /// Not 0 where they differ. Whole words without a branch between them: the derived comparison is a call of
    /// `memcmp`.
    #[inline(always)]
    fn differences(&self, Self(other): &Self) -> u64 {
        self.0.iter().zip(other).fold(0, |all, (own, asked)| all | (own ^ asked))
    }
}
