//! The inbound SAD: lock-free for readers, O(1) changes, flat to a million SAs.
//!
//! A hash table with chains: a fixed array of bucket heads and, per SA, a node that never changes but in its
//! `next`. Readers follow pointers under a [`Guard`]; writers take turns. No table is ever copied or rehashed:
//! 2^20 heads are 8 MiB of address space, of which only the pages in use exist, and a million SAs still have
//! chains of one on average.
//!
//! # Deleting an SA and its keys
//!
//! [`Sad::remove`] returns the SA that workers may still be using. After
//! [`publish::synchronize`](super::publish::synchronize) said true, no worker holds it and the table has given up
//! its count, so dropping what `remove` returned drops the SA, which wipes its keys.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::InboundSa;
use super::publish::{Guard, Published};
use crate::wire::Spi;

const BUCKET_BITS: u32 = 20;

/// A table from SPI to `T`; what [`Sad`] is for inbound SAs.
pub struct SpiTable<T: Send + Sync + 'static> {
    heads: Box<[Published<Node<T>>]>,
    hash: SpiHash,
    length: AtomicUsize,
    writer: Mutex<()>,
}

struct Node<T: Send + Sync + 'static> {
    spi: Spi,
    value: Arc<T>,
    next: Published<Node<T>>,
}

/// Two rounds of multiplication, the first by a random number: keyed, so that nobody can choose SPIs that share
/// a bucket; two, because one alone maps consecutive SPIs onto a few buckets for an unlucky multiplier.
struct SpiHash {
    key: u64,
    shift: u32,
}

impl SpiHash {
    fn random(bucket_bits: u32) -> Self {
        // The standard library's hasher is keyed by the system's entropy; so is its hash of nothing.
        Self { key: RandomState::new().hash_one(()), shift: u64::BITS - bucket_bits }
    }

    fn bucket(&self, spi: Spi) -> usize {
        let hash = (u64::from(spi.0) ^ (self.key >> 32)).wrapping_mul(self.key | 1);
        // 2^64 divided by the golden ratio (Knuth, TAOCP 6.4).
        let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> self.shift) as usize
    }
}

/// An SA with this SPI exists already.
#[derive(Debug, PartialEq, Eq)]
pub struct SpiInUse;

impl<T: Send + Sync + 'static> SpiTable<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self::with_bucket_bits(BUCKET_BITS)
    }

    fn with_bucket_bits(bucket_bits: u32) -> Self {
        Self {
            heads: Published::empty_slice(1 << bucket_bits),
            hash: SpiHash::random(bucket_bits),
            length: AtomicUsize::new(0),
            writer: Mutex::new(()),
        }
    }

    /// The value of `spi`. One pass along a chain that is short whatever the number of entries.
    pub fn lookup<'g>(&'g self, spi: Spi, guard: &'g Guard<'_>) -> Option<&'g T> {
        let mut link = self.head(spi);
        while let Some(node) = link.load(guard) {
            if node.spi == spi {
                return Some(&node.value);
            }
            link = &node.next;
        }
        None
    }

    /// Adds `value` under `spi`.
    ///
    /// # Errors
    /// [`SpiInUse`]; nothing changes.
    pub fn insert(&self, spi: Spi, value: Arc<T>) -> Result<(), SpiInUse> {
        let _writing = self.write();
        let mut last = None;
        let mut node = self.head(spi).get();
        while let Some(current) = node {
            if current.spi == spi {
                return Err(SpiInUse);
            }
            node = current.next.get();
            last = Some(current);
        }
        // At the end of the chain, where nothing is replaced and so nothing has to be retired.
        let link = last.as_ref().map_or(self.head(spi), |last| &last.next);
        link.replace(Some(Arc::new(Node { spi, value, next: Published::new(None) })));
        self.length.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the value of `spi` out. A reader on its node goes on along the chain from there.
    pub fn remove(&self, spi: Spi) -> Option<Arc<T>> {
        let _writing = self.write();
        let mut before: Option<Arc<Node<T>>> = None;
        let mut node = self.head(spi).get();
        while let Some(current) = node {
            if current.spi == spi {
                let link = before.as_ref().map_or(self.head(spi), |before| &before.next);
                link.replace(current.next.get());
                self.length.fetch_sub(1, Ordering::Relaxed);
                return Some(Arc::clone(&current.value));
            }
            node = current.next.get();
            before = Some(current);
        }
        None
    }

    /// All values, in no order; writers wait meanwhile.
    pub fn list(&self) -> Vec<Arc<T>> {
        let _writing = self.write();
        let mut all = Vec::with_capacity(self.len());
        for head in &self.heads {
            let mut node = head.get();
            while let Some(current) = node {
                all.push(Arc::clone(&current.value));
                node = current.next.get();
            }
        }
        all
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn head(&self, spi: Spi) -> &Published<Node<T>> {
        &self.heads[self.hash.bucket(spi)]
    }

    fn write(&self) -> MutexGuard<'_, ()> {
        // It guards no value of its own, and no writer can leave a chain half changed.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + Sync + 'static> Default for SpiTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The table of inbound SAs. Readers never lock or count; writers are serialised inside.
#[derive(Default)]
pub struct Sad {
    table: SpiTable<InboundSa>,
}

impl Sad {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The SA of `spi`.
    pub fn lookup<'g>(&'g self, spi: Spi, guard: &'g Guard<'_>) -> Option<&'g InboundSa> {
        self.table.lookup(spi, guard)
    }

    /// Adds an SA.
    ///
    /// # Errors
    /// [`SpiInUse`]; nothing changes.
    pub fn insert(&self, sa: Arc<InboundSa>) -> Result<(), SpiInUse> {
        self.table.insert(sa.spec.sa.spi, sa)
    }

    /// Takes an SA out; workers may hold it until `publish::synchronize`.
    pub fn remove(&self, spi: Spi) -> Option<Arc<InboundSa>> {
        self.table.remove(spi)
    }

    /// All SAs, for listings.
    pub fn list(&self) -> Vec<Arc<InboundSa>> {
        self.table.list()
    }

    /// How many SAs there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

#[cfg(test)]
#[path = "sad_tests.rs"]
mod tests;
