//! An outbound SA at run time.

use std::sync::atomic::AtomicU32;

use super::inbound::SaCounters;
use super::spec::OutboundSpec;
use crate::crypto::Sealer;
use crate::crypto::sequence::{FreshRange, SequenceCounter};
use crate::transform::esp::Layout;
use crate::transform::tunnel::OuterHeader;

/// What a worker needs to seal a packet.
pub struct OutboundSa {
    /// The request it was made from.
    pub spec: OutboundSpec,
    /// Lengths.
    pub layout: Layout,
    /// Keys.
    pub sealer: Sealer,
    /// Outer header template.
    pub outer: OuterHeader,
    /// Counters.
    pub counters: SaCounters,
    sequence: SequenceCounter,
    owner: AtomicU32,
}

impl OutboundSa {
    /// Compiles a validated request and its keys.
    ///
    /// # Errors
    /// A key error names the key.
    pub fn new(
        spec: OutboundSpec,
        keys: &crate::crypto::key::KeyMaterial,
    ) -> Result<Self, crate::crypto::key::KeyError> {
        let _ = (spec, keys);
        todo!()
    }

    /// Numbers for up to `count` packets: all of them, or as many as the limit (2^32-1 without ESN,
    /// 2^64-1 with) leaves; `None` when none is left.
    pub fn take_numbers(&self, count: u64) -> Option<FreshRange> {
        let _ = (count, &self.sequence);
        todo!()
    }

    /// The last number given out.
    pub fn last_sequence(&self) -> u64 {
        todo!()
    }

    /// The worker that numbers and transmits this SA: claimed by `worker` if nobody has it yet;
    /// always `worker` for a shared SA.
    pub fn owner(&self, worker: u32) -> u32 {
        let _ = (worker, &self.owner);
        todo!()
    }
}
