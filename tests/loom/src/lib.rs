//! The engine's lock-free files as they are, with loom's atomics in place of the standard library's, so that
//! `cargo test --release` in this directory runs the models in `tests/` through every interleaving, and every
//! value that the memory orderings allow a load to see.
//!
//! The trick: in this crate `std` means the crate itself, and its `sync` is loom's. The files say
//! `use std::sync::atomic::…` like any other and know nothing of loom.

extern crate self as std;

#[path = "../../../engine/src/sa/lease.rs"]
pub mod lease;
#[path = "../../../engine/src/sa/quiescence.rs"]
pub mod quiescence;
#[path = "../../../engine/src/sa/replay.rs"]
pub mod replay;
#[path = "../../../engine/src/crypto/sequence.rs"]
pub mod sequence;

/// Loom's `Arc`, atomics and so on.
pub mod sync {
    pub use loom::sync::*;
}

/// What `replay` imports from the engine.
pub mod crypto {
    /// Stands for the proof that only a verified ICV gives; the models begin behind it.
    pub struct IcvValid(pub u64);

    impl IcvValid {
        /// The number that was authenticated.
        pub fn sequence(&self) -> u64 {
            self.0
        }
    }
}
