//! An inbound SA at run time.

use std::sync::atomic::AtomicU64;

use super::replay::ReplayWindow;
use super::spec::InboundSpec;
use crate::crypto::Opener;
use crate::transform::esp::Layout;

/// Counters of an SA, written by workers with relaxed adds once per group.
#[derive(Default)]
pub struct SaCounters {
    /// Packets sealed or delivered.
    pub packets: AtomicU64,
    /// Bytes of ESP (RFC 4301 counts what the transform saw).
    pub bytes: AtomicU64,
    /// Dropped as replayed (duplicate, old, impossible).
    pub replayed: AtomicU64,
    /// Dropped for a wrong ICV.
    pub icv_failed: AtomicU64,
    /// Dropped for any other reason after the SA was found.
    pub refused: AtomicU64,
}

/// What a worker needs to open a packet.
pub struct InboundSa {
    /// The request it was made from.
    pub spec: InboundSpec,
    /// Lengths.
    pub layout: Layout,
    /// Keys.
    pub opener: Opener,
    /// Anti-replay.
    pub replay: ReplayWindow,
    /// Counters.
    pub counters: SaCounters,
}

impl InboundSa {
    /// Compiles a validated request and its keys.
    ///
    /// # Errors
    /// A key error names the key.
    pub fn new(
        spec: InboundSpec,
        keys: &crate::crypto::key::KeyMaterial,
    ) -> Result<Self, crate::crypto::key::KeyError> {
        let _ = (spec, keys);
        todo!()
    }
}
