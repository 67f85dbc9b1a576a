//! Transforms over bursts: `seal` and `open` take a group of packets of one SA, because CBC, CCM's MAC and
//! the hashes are serial within a packet and parallel across packets. This is the portable path
//! (RustCrypto) and the reference that every faster kernel must equal on every vector.
//!
//! Two steps cannot be skipped, because they do not compile: a nonce is made only from a
//! [`sequence::FreshSequence`], which only a [`sequence::SequenceCounter`] gives out, once; and an
//! [`IcvValid`] comes only from a verified packet.
//!
//! ```
//! use adit_engine::crypto::sequence::{FreshSequence, SequenceCounter};
//!
//! let fresh: FreshSequence = SequenceCounter::starting_after(6).take(1, 100).unwrap().next().unwrap();
//! assert_eq!(fresh.get(), 7);
//! ```
//!
//! A number cannot be made up, nor copied, and neither can a verdict:
//!
//! ```compile_fail,E0423
//! use adit_engine::crypto::sequence::FreshSequence;
//!
//! let fresh = FreshSequence(7);
//! ```
//!
//! ```compile_fail,E0277
//! use adit_engine::crypto::sequence::FreshSequence;
//!
//! fn is_clone<T: Clone>() {}
//! is_clone::<FreshSequence>();
//! ```
//!
//! ```compile_fail,E0451
//! use adit_engine::crypto::IcvValid;
//!
//! let verdict = IcvValid { sequence: 7 };
//! ```

mod authenticity;
pub mod iv;
pub mod key;
pub mod primitive;
mod self_test;
pub mod sequence;
pub mod suite;
#[cfg(test)]
mod tests;

pub use authenticity::{Sign, Signer, Verifier, Verify};
pub use iv::IvSource;
pub use key::Key;
pub use self_test::self_test;
pub use suite::{Authentication, Encryption, Suite};

use std::array;
use std::mem;

use arrayvec::ArrayVec;
use zeroize::Zeroizing;

use crate::wire::Spi;
use crate::wire::esp::HEADER_LENGTH;
use key::{KeyError, KeyMaterial};
use primitive::{
    AEAD_LANES, Aead, AeadOpen, AeadSeal, CipherLane, Decryptor, Encryptor, Gmac, GmacMessage, LANES, Mac,
};
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

/// Proof that the packet with this 64-bit sequence number carried a right ICV. Made only by [`Opener::open`]
/// and [`Verifier::verify`].
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

impl Open<'_> {
    fn conclude(&mut self, is_right: bool) {
        self.verdict = is_right.then_some(IcvValid { sequence: self.sequence });
        if !is_right {
            self.plaintext.fill(0);
        }
    }
}

/// Keys of an outbound SA, expanded; zeroised on drop.
pub struct Sealer {
    format: Format,
    // Boxed, so that moving an SA about leaves no copies of its keys behind.
    keys: Box<SealKeys>,
}

#[allow(clippy::large_enum_variant, reason = "boxed by its owner")]
enum SealKeys {
    Aead { aead: Aead, salt: Salt },
    Gmac { gmac: Gmac, salt: Salt },
    Separate { cipher: Encryptor, mac: Mac },
}

/// Keys of an inbound SA, expanded; zeroised on drop.
pub struct Opener {
    format: Format,
    keys: Box<OpenKeys>,
}

#[allow(clippy::large_enum_variant, reason = "boxed by its owner")]
enum OpenKeys {
    Aead { aead: Aead, salt: Salt },
    Gmac { gmac: Gmac, salt: Salt },
    Separate { cipher: Decryptor, mac: Mac },
}

impl Sealer {
    /// Expands `keys` for `suite`. With `esn` the high word is authenticated too.
    ///
    /// # Errors
    /// [`key::KeyError`] names the key and the length it must have, or its weakness.
    pub fn new(suite: Suite, keys: &KeyMaterial, esn: bool) -> Result<Self, KeyError> {
        key::check(suite, keys)?;
        let keys = match Combined::new(suite, keys) {
            Some((Combined::Aead(aead), salt)) => SealKeys::Aead { aead, salt },
            Some((Combined::Gmac(gmac), salt)) => SealKeys::Gmac { gmac, salt },
            None => SealKeys::Separate {
                cipher: Encryptor::new(suite.encryption(), keys.encryption.expose()).expect(CHECKED),
                mac: Mac::new(suite.authentication(), keys.authentication.expose()).expect(CHECKED),
            },
        };
        Ok(Self { format: Format::new(suite, esn), keys: Box::new(keys) })
    }

    /// Writes every packet of `burst` whole: header, IV, ciphertext, ICV. Counter-mode IVs are the sequence
    /// number; CBC IVs come from `ivs`. Drains the burst, so that a sequence number is used once: every
    /// `esp` is left empty, and an empty one is refused as below.
    ///
    /// # Panics
    /// When an `esp` has a length that its payload cannot have, or when a number needs ESN and the SA has
    /// none: both are faults of the caller, and a packet sent in spite of them would be worse.
    pub fn seal(&self, spi: Spi, burst: &mut [Seal<'_>], ivs: &mut IvSource) {
        let format = &self.format;
        match &*self.keys {
            SealKeys::Aead { aead, salt } => {
                for group in burst.chunks_mut(AEAD_LANES) {
                    let mut lanes = ArrayVec::<_, AEAD_LANES>::new();
                    for Seal { esp, payload, next_header, sequence } in group {
                        let number = sequence.get();
                        let Clear { header, iv, text, icv } =
                            format.lay_out(spi, mem::take(esp), payload, *next_header, number);
                        iv.copy_from_slice(&number.to_be_bytes());
                        let aad = format.aad(header, number);
                        lanes.push(AeadSeal { nonce: [salt, iv], aad, text, icv });
                    }
                    let sealed = aead.seal_lanes(&mut lanes);
                    assert!(sealed, "a frame is shorter than any limit of an AEAD");
                }
            }
            SealKeys::Gmac { gmac, salt } => gmac.sign(burst.iter_mut().map(|packet| {
                let esp = mem::take(&mut packet.esp);
                let number = packet.sequence.get();
                let clear = format.lay_out(spi, &mut *esp, packet.payload, packet.next_header, number);
                clear.iv.copy_from_slice(&number.to_be_bytes());
                let (message, icv) = esp.split_at_mut(esp.len() - format.icv_length);
                (format.gmac_message(salt, message, number), icv)
            })),
            SealKeys::Separate { cipher, mac } => {
                // A group at a time through both passes, while it is in the first-level cache.
                for group in burst.chunks_mut(LANES) {
                    let mut lanes: [CipherLane<'_>; LANES] =
                        array::from_fn(|_| CipherLane { iv: &[], text: &mut [] });
                    let lanes = &mut lanes[..group.len()];
                    for (lane, packet) in lanes.iter_mut().zip(group.iter_mut()) {
                        let Seal { esp, payload, next_header, sequence } = packet;
                        let clear = format.lay_out(spi, esp, payload, *next_header, sequence.get());
                        if format.is_counter_mode {
                            clear.iv.copy_from_slice(&sequence.get().to_be_bytes());
                        } else {
                            ivs.fill(clear.iv);
                        }
                        *lane = CipherLane { iv: clear.iv, text: clear.text };
                    }
                    cipher.encrypt(lanes);
                    // Encrypt, then MAC (RFC 4303 section 3.3.2).
                    mac.sign(group.iter_mut().map(|packet| {
                        let esp = mem::take(&mut packet.esp);
                        let (message, icv) = esp.split_at_mut(esp.len() - format.icv_length);
                        (&*message, format.high_word(packet.sequence.get()), icv)
                    }));
                }
            }
        }
    }
}

impl Opener {
    /// Expands `keys` for `suite`. With `esn` the high word is authenticated too.
    ///
    /// # Errors
    /// As [`Sealer::new`].
    pub fn new(suite: Suite, keys: &KeyMaterial, esn: bool) -> Result<Self, KeyError> {
        key::check(suite, keys)?;
        let keys = match Combined::new(suite, keys) {
            Some((Combined::Aead(aead), salt)) => OpenKeys::Aead { aead, salt },
            Some((Combined::Gmac(gmac), salt)) => OpenKeys::Gmac { gmac, salt },
            None => OpenKeys::Separate {
                cipher: Decryptor::new(suite.encryption(), keys.encryption.expose()).expect(CHECKED),
                mac: Mac::new(suite.authentication(), keys.authentication.expose()).expect(CHECKED),
            },
        };
        Ok(Self { format: Format::new(suite, esn), keys: Box::new(keys) })
    }

    /// Verifies and decrypts every packet of `burst`, setting its verdict. Tags are compared in constant time.
    ///
    /// Never panics: a packet whose lengths do not fit, whose low word is not that of its `sequence`, or
    /// whose `sequence` has a high word without ESN is treated like one with a wrong ICV.
    pub fn open(&self, burst: &mut [Open<'_>]) {
        let format = &self.format;
        match &*self.keys {
            OpenKeys::Aead { aead, salt } => {
                for group in burst.chunks_mut(AEAD_LANES) {
                    let mut lanes = ArrayVec::<_, AEAD_LANES>::new();
                    for packet in group.iter_mut() {
                        let Sealed { header, iv, text: ciphertext, icv, .. } = format.split(packet);
                        let aad = format.aad(header, packet.sequence);
                        let plaintext = &mut *packet.plaintext;
                        let nonce = [&**salt, iv];
                        lanes.push(AeadOpen { nonce, aad, ciphertext, icv, plaintext, is_right: false });
                    }
                    aead.open_lanes(&mut lanes);
                    let mut verdicts = ArrayVec::<bool, AEAD_LANES>::new();
                    verdicts.extend(lanes.iter().map(|lane| lane.is_right));
                    drop(lanes);
                    for (packet, is_right) in group.iter_mut().zip(verdicts) {
                        packet.conclude(is_right);
                    }
                }
            }
            OpenKeys::Gmac { gmac, salt } => {
                let messages = burst.iter_mut().map(|packet| {
                    let Sealed { message, icv, .. } = format.split(packet);
                    let message = format.gmac_message(salt, message, packet.sequence);
                    (packet, message, icv)
                });
                gmac.verify(messages, Open::conclude);
                for packet in burst.iter_mut().filter(|packet| packet.verdict.is_some()) {
                    packet.plaintext.copy_from_slice(format.split(packet).text);
                }
            }
            OpenKeys::Separate { cipher, mac } => {
                let messages = burst.iter_mut().map(|packet| {
                    let Sealed { message, icv, .. } = format.split(packet);
                    let high_word = format.high_word(packet.sequence);
                    (packet, message, high_word, icv)
                });
                mac.verify(messages, Open::conclude);
                // Only what is authentic is decrypted (RFC 4303 section 3.4.4.1).
                cipher.decrypt(burst.iter_mut().filter(|packet| packet.verdict.is_some()).map(|packet| {
                    let Sealed { iv, text, .. } = format.split(packet);
                    (iv, text, &mut *packet.plaintext)
                }));
            }
        }
    }
}

const CHECKED: &str = "suite and key lengths were checked";

/// Three bytes for CCM, four for the others that authenticate by themselves.
struct Salt {
    bytes: Zeroizing<[u8; 4]>,
    length: usize,
}

impl std::ops::Deref for Salt {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What authenticates by itself.
#[allow(clippy::large_enum_variant, reason = "on its way into a box")]
enum Combined {
    Aead(Aead),
    Gmac(Gmac),
}

impl Combined {
    /// Keyed, with the salt that is the end of the key; `None` when the suite has a separate authentication algorithm.
    fn new(suite: Suite, keys: &KeyMaterial) -> Option<(Self, Salt)> {
        let encryption = suite.encryption();
        if !encryption.is_aead() {
            return None;
        }
        let length = encryption.salt_length();
        let (key, tail) = keys.encryption.expose().split_at(keys.encryption.len() - length);
        let mut salt = Salt { bytes: Zeroizing::new([0; 4]), length };
        salt.bytes[..length].copy_from_slice(tail);
        let gmac = Gmac::new(encryption, key).map(Self::Gmac);
        let keyed = gmac.or_else(|| Aead::new(encryption, suite.icv_length(), key).map(Self::Aead));
        Some((keyed.expect(CHECKED), salt))
    }
}

/// Where the fields of an ESP packet are, and what is authenticated beside them.
struct Format {
    esn: bool,
    /// The IV is the sequence number, and unique as long as that is (RFC 3686 section 3.1, RFC 4106 section 3.1).
    is_counter_mode: bool,
    iv_length: usize,
    icv_length: usize,
    alignment: usize,
}

/// The fields of an ESP packet that is being written; `text` is still in the clear.
struct Clear<'e> {
    header: &'e [u8],
    iv: &'e mut [u8],
    text: &'e mut [u8],
    icv: &'e mut [u8],
}

/// The fields of a received ESP packet; all empty when it cannot be one, and no empty ICV is ever right.
#[derive(Default)]
struct Sealed<'e> {
    header: &'e [u8],
    iv: &'e [u8],
    text: &'e [u8],
    icv: &'e [u8],
    /// Everything in front of the ICV.
    message: &'e [u8],
}

/// Up to twelve bytes: SPI, high word with ESN, low word; or the high word alone.
struct Associated {
    bytes: [u8; 12],
    length: usize,
}

impl AsRef<[u8]> for Associated {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// 1, 2, 3, … (RFC 4303 section 2.4).
const PADDING: [u8; 255] = {
    let mut padding = [0; 255];
    let mut at = 0;
    while at < padding.len() {
        padding[at] = at as u8 + 1;
        at += 1;
    }
    padding
};

impl Format {
    fn new(suite: Suite, esn: bool) -> Self {
        Self {
            esn,
            is_counter_mode: suite.is_counter_mode(),
            iv_length: suite.iv_length().into(),
            icv_length: suite.icv_length().into(),
            alignment: suite.alignment().into(),
        }
    }

    /// Ciphertext bytes of a packet this long.
    fn text_length(&self, esp_length: usize) -> Option<usize> {
        let length = esp_length.checked_sub(HEADER_LENGTH + self.iv_length + self.icv_length)?;
        length.is_multiple_of(self.alignment).then_some(length)
    }

    /// Writes header and plaintext: payload, padding, pad length, next header (RFC 4303 section 2).
    fn lay_out<'e>(
        &self,
        spi: Spi,
        esp: &'e mut [u8],
        payload: &[u8],
        next_header: u8,
        sequence: u64,
    ) -> Clear<'e> {
        let text_length = self.text_length(esp.len()).unwrap_or(0);
        let padding = text_length
            .checked_sub(payload.len() + 2)
            .and_then(|length| PADDING.get(..length))
            .expect("an ESP packet is as long as its payload makes it");
        assert!(self.esn || sequence <= u32::MAX.into(), "numbers do not cycle (RFC 4303 section 3.3.3)");

        let (header, rest) = esp.split_at_mut(HEADER_LENGTH);
        let (iv, rest) = rest.split_at_mut(self.iv_length);
        let (text, icv) = rest.split_at_mut(text_length);
        header[..4].copy_from_slice(&spi.0.to_be_bytes());
        header[4..].copy_from_slice(&(sequence as u32).to_be_bytes());
        let (clear, trailer) = text.split_at_mut(payload.len());
        clear.copy_from_slice(payload);
        let (pad, last) = trailer.split_at_mut(padding.len());
        pad.copy_from_slice(padding);
        last.copy_from_slice(&[padding.len() as u8, next_header]);
        Clear { header, iv, text, icv }
    }

    fn split<'e>(&self, packet: &Open<'e>) -> Sealed<'e> {
        let Open { esp, plaintext, sequence, .. } = packet;
        let Some(text_length) = self.text_length(esp.len()) else { return Sealed::default() };
        let (header, rest) = esp.split_at(HEADER_LENGTH);
        // What is verified below is what these bytes say, not `sequence`: they must say the same, or the
        // verdict would vouch for a number that nobody authenticated.
        let is_own_number =
            header[4..] == (*sequence as u32).to_be_bytes() && (self.esn || *sequence <= u32::MAX.into());
        if !is_own_number || plaintext.len() != text_length {
            return Sealed::default();
        }
        let (iv, rest) = rest.split_at(self.iv_length);
        let (text, icv) = rest.split_at(text_length);
        Sealed { header, iv, text, icv, message: &esp[..esp.len() - self.icv_length] }
    }

    /// SPI and sequence number, 32 or 64 bits of it, in order (RFC 4106 section 5, RFC 4309 section 5, RFC 7634
    /// section 2.1).
    fn aad(&self, header: &[u8], sequence: u64) -> Associated {
        let mut aad = Associated { bytes: [0; 12], length: HEADER_LENGTH };
        if header.len() == HEADER_LENGTH {
            aad.bytes[..HEADER_LENGTH].copy_from_slice(header);
        }
        if self.esn {
            aad.bytes[4..].copy_from_slice(&sequence.to_be_bytes());
            aad.length = 12;
        }
        aad
    }

    /// What GMAC authenticates of `message`, all that is in front of the ICV: SPI and sequence number as above, then
    /// IV and payload (RFC 4543 section 3.3). A message too short for that has no IV, and no ICV of it is right.
    fn gmac_message<'m>(
        &self,
        salt: &'m Salt,
        message: &'m [u8],
        sequence: u64,
    ) -> GmacMessage<'m, Associated, &'m [u8]> {
        let (header, back) = message.split_at_checked(HEADER_LENGTH).unwrap_or_default();
        let iv = back.get(..self.iv_length).unwrap_or_default();
        GmacMessage { nonce: [salt, iv], front: self.aad(header, sequence), back }
    }

    /// What the MAC takes in behind the ciphertext: the high word with ESN, which is not sent (RFC 4303
    /// section 2.2.1), else nothing.
    fn high_word(&self, sequence: u64) -> Associated {
        let mut word = Associated { bytes: [0; 12], length: 0 };
        if self.esn {
            word.bytes[..4].copy_from_slice(&((sequence >> 32) as u32).to_be_bytes());
            word.length = 4;
        }
        word
    }
}
