//! Transforms over bursts: `seal` and `open` take a group of packets of one SA, because CBC, CCM's MAC and
//! the hashes are serial within a packet and parallel across packets. This is the portable path
//! (RustCrypto) and the reference that every faster kernel must equal on every vector.
//!
//! Two steps cannot be skipped, because they do not compile: a nonce is made only from a
//! [`sequence::FreshSequence`], which only a [`sequence::SequenceCounter`] gives out, once; and an
//! [`IcvValid`] comes only from a verified packet.

pub mod iv;
pub mod key;
pub mod sequence;
pub mod suite;

pub use iv::IvSource;
pub use key::Key;
pub use suite::{Authentication, Encryption, Suite};

use crate::wire::Spi;
use sequence::FreshSequence;

/// One packet to seal. `payload` lies in the received frame, `esp` in a transmit frame: they never overlap.
pub struct Seal<'a> {
    /// Where the whole ESP packet goes, SPI to ICV; its length decides the padding
    /// (`transform::esp::Layout::esp_length`, or longer by a multiple of the alignment).
    pub esp: &'a mut [u8],
    /// The payload to protect.
    pub payload: &'a [u8],
    /// The next header field: 4 or 41 in tunnel mode.
    pub next_header: u8,
    /// The packet's own sequence number; consumed, so that no nonce is made twice.
    pub sequence: FreshSequence,
}

/// One packet to verify and decrypt.
pub struct Open<'a> {
    /// The ESP packet, SPI to ICV; its length was checked by `Layout::ciphertext_length`.
    pub esp: &'a [u8],
    /// Where payload, padding, pad length and next header go: exactly the ciphertext's length.
    /// Zeroed when the ICV is wrong.
    pub plaintext: &'a mut [u8],
    /// The full sequence number, high word inferred (RFC 4303 appendix A).
    pub sequence: u64,
    /// Set by [`Opener::open`] when, and only when, the ICV is right.
    pub verdict: Option<IcvValid>,
}

/// Proof that the packet with this 64-bit sequence number carried a right ICV. Made only by [`Opener::open`].
#[derive(Debug, PartialEq, Eq)]
pub struct IcvValid {
    sequence: u64,
}

impl IcvValid {
    /// The number that was authenticated.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// Keys of an outbound SA, expanded; zeroised on drop.
pub struct Sealer {
    _todo: (),
}

/// Keys of an inbound SA, expanded; zeroised on drop.
pub struct Opener {
    _todo: (),
}

impl Sealer {
    /// Expands `keys` for `suite`. With `esn` the high word is authenticated too.
    ///
    /// # Errors
    /// [`key::KeyError`] names the key and the length it must have, or its weakness.
    pub fn new(suite: Suite, keys: &key::KeyMaterial, esn: bool) -> Result<Self, key::KeyError> {
        let _ = (suite, keys, esn);
        todo!()
    }

    /// Writes every packet of `burst` whole: header, IV, ciphertext, ICV. Counter-mode IVs are the sequence
    /// number; CBC IVs come from `ivs`. Drains the burst, so that a sequence number is used once.
    pub fn seal(&self, spi: Spi, burst: &mut [Seal<'_>], ivs: &mut IvSource) {
        let _ = (spi, burst, ivs);
        todo!()
    }
}

impl Opener {
    /// Expands `keys` for `suite`. With `esn` the high word is authenticated too.
    ///
    /// # Errors
    /// As [`Sealer::new`].
    pub fn new(suite: Suite, keys: &key::KeyMaterial, esn: bool) -> Result<Self, key::KeyError> {
        let _ = (suite, keys, esn);
        todo!()
    }

    /// Verifies and decrypts every packet of `burst`, setting its verdict. Tags are compared in constant time.
    pub fn open(&self, burst: &mut [Open<'_>]) {
        let _ = burst;
        todo!()
    }
}

/// Runs a known answer of every algorithm in both directions and a corrupted one.
///
/// # Errors
/// The name of the first algorithm that answers wrong; the daemon then refuses to start.
pub fn self_test() -> Result<(), &'static str> {
    todo!()
}
