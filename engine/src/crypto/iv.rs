//! CBC initialisation vectors: fresh and unpredictable (RFC 3602 section 3), without a system call per packet.

/// One worker's source of IVs: a block cipher under a random key over a counter.
pub struct IvSource {
    _todo: (),
}

impl IvSource {
    /// Keyed from the system's entropy.
    ///
    /// # Errors
    /// When the kernel gives none; nothing is sent then.
    pub fn from_entropy() -> Result<Self, getrandom::Error> {
        todo!()
    }

    /// Deterministic, for offline runs and tests.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let _ = seed;
        todo!()
    }

    /// Fills `out` with IV bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        let _ = out;
        todo!()
    }
}
