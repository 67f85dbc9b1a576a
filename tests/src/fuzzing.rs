//! The bodies of the fuzz targets: any bytes in, nothing but oracles out. An oracle that fails panics.
//!
//! [`wire()`] holds the parsers and transforms against what the RFCs say of their results, [`inbound()`] the whole
//! pipeline against conservation, secrecy and an ESP receiver written a second time, [`control()`] the operator's
//! side against "all or nothing, and say which field".
//!
//! They are plain functions: stable Rust replays the corpus (`tests/tests/fuzz_corpus.rs`), and only looking for new
//! inputs needs libFuzzer (`tests/fuzz`, `scripts/fuzz`).

mod control;
mod inbound;
mod join;
pub mod peer;
pub mod seeds;
mod wire;

pub use control::control;
pub use inbound::inbound;
pub use wire::wire;

/// What takes any bytes, and panics when an oracle fails.
pub type Target = fn(&[u8]);

/// All of them by name.
pub const TARGETS: [(&str, Target); 3] = [("wire", wire), ("inbound", inbound), ("control", control)];

/// Bytes that are taken from the front; where they end, zeros follow.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// At most `length` bytes.
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        front
    }
}

/// The one's complement sum of RFC 1071 as a number modulo 2^16 - 1, in which 0 and 0xffff are one: what no edit
/// that mends a checksum may change, and what is 0 for a right one. Word by word, unlike the engine's.
fn residue(bytes: &[u8]) -> u64 {
    let words =
        bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)));
    words.sum::<u64>() % 0xffff
}
