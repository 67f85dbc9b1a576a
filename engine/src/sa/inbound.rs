//! An inbound SA at run time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lease::Lease;
use super::lifetime::{Allowance, Lifetime};
use super::publish::Published;
use super::replay::ReplayWindow;
use super::selector::Selectors;
use super::spec::{InboundSpec, Protocol};
use crate::crypto::key::{KeyError, KeyMaterial};
use crate::crypto::{Opener, Verifier};
use crate::transform::Layout;

/// Counters of an SA, written by workers with relaxed adds once per group.
#[derive(Default)]
pub struct SaCounters {
    /// Packets sealed or delivered.
    pub packets: AtomicU64,
    /// Bytes of ESP or AH (RFC 4301 counts what the transform saw).
    pub bytes: AtomicU64,
    /// Dropped as replayed (duplicate, old, impossible).
    pub replayed: AtomicU64,
    /// Dropped for a wrong ICV.
    pub icv_failed: AtomicU64,
    /// Dropped for any other reason after the SA was found.
    pub refused: AtomicU64,
}

/// The expanded keys of an inbound SA, by its protocol.
pub enum InboundKeys {
    /// Verify and decrypt.
    Esp(Opener),
    /// Verify.
    Ah(Verifier),
}

/// What a worker needs to open a packet. At most 1 KiB with its keys; beside it are its selectors, and the window: 8 bytes for each of
/// ceil((W + 31) / 32) blocks, rounded up to a power of two (512 bytes for 1024 numbers, 32 KiB for 65536).
pub struct InboundSa {
    /// The request it was made from, but for its selectors.
    pub spec: InboundSpec,
    /// What may travel in it now: at first what the request said. The policies of manual SAs change while the
    /// SA, its window and its counters stay.
    pub selectors: Published<Selectors>,
    /// Lengths.
    pub layout: Layout,
    /// Keys.
    pub keys: InboundKeys,
    /// Anti-replay.
    pub replay: ReplayWindow,
    /// How far numbers may be accepted: after a crash, everything at or below its ceiling counts as received.
    pub lease: Option<Arc<Lease>>,
    /// Counters.
    pub counters: SaCounters,
    /// What is left of its life.
    pub lifetime: Lifetime,
    /// Packets and bytes whose ICV was right and whose number was new, whatever became of them.
    verified: [AtomicU64; 2],
}

impl InboundSa {
    /// Compiles a request that [`InboundSpec::validate`] passed, and its keys. What it accepts is forgotten with it:
    /// the key must not outlive this SA.
    ///
    /// # Errors
    /// A key error names the key.
    pub fn new(spec: InboundSpec, keys: &KeyMaterial) -> Result<Self, KeyError> {
        Self::under(None, spec, keys)
    }

    /// The same under a lease.
    ///
    /// # Errors
    /// A key error names the key.
    pub fn under(
        lease: Option<Arc<Lease>>,
        mut spec: InboundSpec,
        keys: &KeyMaterial,
    ) -> Result<Self, KeyError> {
        let selectors = std::mem::take(&mut spec.sa.selectors);
        let (suite, esn) = (spec.sa.suite, spec.sa.esn);
        Ok(Self {
            layout: spec.sa.layout(),
            keys: match spec.sa.protocol {
                Protocol::Esp => InboundKeys::Esp(Opener::new(suite, keys, esn)?),
                Protocol::Ah(_) => InboundKeys::Ah(Verifier::new(suite, keys, esn)?),
            },
            replay: ReplayWindow::new(spec.replay_window, esn, spec.last_sequence),
            lease,
            counters: SaCounters::default(),
            lifetime: Lifetime::default(),
            verified: Default::default(),
            selectors: Published::new(Some(Arc::new(Selectors::new(selectors)))),
            spec,
        })
    }

    /// Whether the peer ever sent with it.
    pub fn has_received(&self) -> bool {
        self.verified[0].load(Ordering::Relaxed) > 0
    }

    /// Whether any packet had a right ICV, also one that had to wait for its number's record.
    pub fn has_authenticated(&self) -> bool {
        let reached = self.lease.as_ref().map_or(0, |lease| lease.reached());
        self.has_received() || reached > self.spec.last_sequence
    }

    /// What a group may use of its lifetime.
    pub fn allowance(&self) -> Allowance {
        let [packets, bytes] = &self.verified;
        self.spec.sa.limits.allowance(packets.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed))
    }

    /// A group had so many packets and bytes with a right ICV and a new number.
    pub fn verified(&self, packets: u64, bytes: u64) {
        let add = |total: &AtomicU64, count| total.fetch_add(count, Ordering::Relaxed) + count;
        let [all_packets, all_bytes] = &self.verified;
        self.lifetime.used(&self.spec.sa.limits, add(all_packets, packets), add(all_bytes, bytes));
    }
}
