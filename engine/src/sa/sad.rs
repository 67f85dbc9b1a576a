//! The inbound SAD: lock-free for readers, O(1) changes, flat to a million SAs.

use std::sync::Arc;

use super::InboundSa;
use super::publish::Guard;
use crate::wire::Spi;

/// The table. Readers never lock or count; writers are serialised inside.
pub struct Sad {
    _todo: (),
}

/// An SA with this SPI exists already.
#[derive(Debug, PartialEq, Eq)]
pub struct SpiInUse;

impl Sad {
    /// An empty table.
    pub fn new() -> Self {
        todo!()
    }

    /// The SA of `spi`.
    pub fn lookup<'g>(&self, spi: Spi, guard: &'g Guard<'_>) -> Option<&'g InboundSa> {
        let _ = (spi, guard);
        todo!()
    }

    /// Adds an SA.
    ///
    /// # Errors
    /// [`SpiInUse`]; nothing changes.
    pub fn insert(&self, sa: Arc<InboundSa>) -> Result<(), SpiInUse> {
        let _ = sa;
        todo!()
    }

    /// Takes an SA out; workers may hold it until `publish::synchronize`.
    pub fn remove(&self, spi: Spi) -> Option<Arc<InboundSa>> {
        let _ = spi;
        todo!()
    }

    /// All SAs, for listings.
    pub fn list(&self) -> Vec<Arc<InboundSa>> {
        todo!()
    }
}

impl Default for Sad {
    fn default() -> Self {
        Self::new()
    }
}
