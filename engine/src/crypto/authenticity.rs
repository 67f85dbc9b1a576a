//! Integrity alone, over bursts: what AH needs (RFC 4302). Numbers and verdicts are those of ESP: a packet is signed
//! under a [`FreshSequence`] that it uses up, and only a verified one gives an [`IcvValid`].
//!
//! What AH calls its ICV field is a MAC, or, of GMAC, an IV and a tag (RFC 4543 section 4):
//!
//! ```text
//! | 12 bytes | ICV       | padding |        | 12 bytes | IV: 8 | tag: 16 | padding |
//!             covered as zeros                           covered as zeros
//! ```
//!
//! RFC 4302 section 3.3.3 has the field "set to zero for this computation"; that is taken of both parts here. The IV is
//! covered all the same, by being the nonce.

use std::mem;
use std::ops::Range;

use super::key::{self, KeyError, KeyMaterial};
use super::primitive::{Gmac, GmacMessage, Mac};
use super::sequence::FreshSequence;
use super::{CHECKED, Combined, IcvValid, Salt, Suite};
use crate::wire::Spi;
use crate::wire::ah::FIXED_LENGTH;

/// One packet to sign.
pub struct Sign<'a> {
    /// What the ICV covers in front of the payload: IP headers as `transform::ah::cover` has them, and behind them as
    /// many bytes as `ah` has, whatever is in them.
    pub covered: &'a mut [u8],
    /// AH, in the packet that is sent; its first four bytes are there, the others are filled in. What lies behind the
    /// ICV is padding.
    pub ah: &'a mut [u8],
    /// The payload, and [`Signer::tail_length`] bytes behind it to work in.
    pub payload: &'a mut [u8],
    /// The packet's own sequence number; consumed.
    pub sequence: FreshSequence,
}

/// One packet to verify.
pub struct Verify<'a> {
    /// As [`Sign::covered`].
    pub covered: &'a mut [u8],
    /// AH as it was received.
    pub ah: &'a [u8],
    /// The payload, and [`Verifier::tail_length`] bytes behind it to work in.
    pub payload: &'a mut [u8],
    /// The full sequence number, high word inferred.
    pub sequence: u64,
    /// Set by [`Verifier::verify`] when, and only when, the ICV is right.
    pub verdict: Option<IcvValid>,
}

/// Bytes of the high word of an extended sequence number.
const HIGH_WORD_LENGTH: usize = 4;

/// The key of an outbound AH SA, expanded; zeroised on drop.
pub struct Signer(Box<Keyed>);

/// The key of an inbound AH SA, expanded; zeroised on drop.
pub struct Verifier(Box<Keyed>);

struct Keyed {
    algorithm: Algorithm,
    iv_length: usize,
    field_length: usize,
    esn: bool,
}

#[allow(clippy::large_enum_variant, reason = "boxed by its owner")]
enum Algorithm {
    Mac(Mac),
    Gmac { gmac: Gmac, salt: Salt },
}

impl Keyed {
    fn new(suite: Suite, keys: &KeyMaterial, esn: bool) -> Result<Box<Self>, KeyError> {
        key::check(suite, keys)?;
        let algorithm = match Combined::new(suite, keys) {
            Some((Combined::Gmac(gmac), salt)) => Algorithm::Gmac { gmac, salt },
            _ => {
                Algorithm::Mac(Mac::new(suite.authentication(), keys.authentication.expose()).expect(CHECKED))
            }
        };
        let (iv_length, field_length) = (suite.iv_length().into(), suite.ah_field_length().into());
        Ok(Box::new(Self { algorithm, iv_length, field_length, esn }))
    }

    /// Where IV and ICV are in AH.
    fn field(&self) -> Range<usize> {
        FIXED_LENGTH..FIXED_LENGTH + self.field_length
    }

    fn tail_length(&self) -> usize {
        if self.esn { HIGH_WORD_LENGTH } else { 0 }
    }

    /// RFC 4302 section 3.3.3.2.2: behind the payload, and not sent.
    fn append_high_word(&self, payload: &mut [u8], sequence: u64) {
        if self.esn
            && let Some(tail) = payload.last_chunk_mut::<HIGH_WORD_LENGTH>()
        {
            *tail = ((sequence >> 32) as u32).to_be_bytes();
        }
    }

    /// Fills in AH and completes what is covered: that, the payload, AH's field for IV and ICV, and the number.
    fn lay_out<'a>(&self, spi: Spi, packet: &mut Sign<'a>) -> (&'a [u8], &'a [u8], &'a mut [u8], u64) {
        let (ah, covered) = (mem::take(&mut packet.ah), mem::take(&mut packet.covered));
        let (payload, number) = (mem::take(&mut packet.payload), packet.sequence.get());
        assert!(self.esn || number <= u32::MAX.into(), "numbers do not cycle (RFC 4302 section 3.3.2)");
        ah[4..8].copy_from_slice(&spi.0.to_be_bytes());
        ah[8..FIXED_LENGTH].copy_from_slice(&(number as u32).to_be_bytes());
        ah[FIXED_LENGTH..].fill(0);
        let at = covered.len() - ah.len();
        covered[at..].copy_from_slice(ah);
        self.append_high_word(payload, number);
        (covered, payload, &mut ah[self.field()], number)
    }

    /// Completes what is covered; the IV and ICV that were received. `None` for what no ICV can make right.
    fn restore<'a>(
        &self,
        covered: &mut [u8],
        ah: &'a [u8],
        payload: &mut [u8],
        sequence: u64,
    ) -> Option<&'a [u8]> {
        let found = ah.get(self.field())?;
        // What is verified is what these bytes say, not `sequence`: they must say the same.
        let is_own_number = ah[8..FIXED_LENGTH] == (sequence as u32).to_be_bytes()
            && (self.esn || sequence <= u32::MAX.into());
        if !is_own_number || payload.len() < self.tail_length() {
            return None;
        }
        let at = covered.len().checked_sub(ah.len())?;
        covered[at..].copy_from_slice(ah);
        // The padding behind it is covered as it was received (RFC 4302 section 3.3.3.2.1).
        covered[at..][self.field()].fill(0);
        self.append_high_word(payload, sequence);
        Some(found)
    }
}

impl Signer {
    /// Expands the key of `suite`, which does not encrypt. With `esn` the high word is covered too.
    ///
    /// # Errors
    /// [`KeyError`] names the key and the length it must have.
    pub fn new(suite: Suite, keys: &KeyMaterial, esn: bool) -> Result<Self, KeyError> {
        Keyed::new(suite, keys, esn).map(Self)
    }

    /// Bytes that [`Sign::payload`] has behind the payload.
    pub fn tail_length(&self) -> usize {
        self.0.tail_length()
    }

    /// Fills in SPI, sequence number and ICV of every packet. Drains the burst, so that a sequence number is used
    /// once: every slice is left empty, and an empty `ah` is refused as below.
    ///
    /// # Panics
    /// When slices are too short for what they must hold, or when a number needs ESN and the SA has none: faults of
    /// the caller.
    pub fn sign(&self, spi: Spi, burst: &mut [Sign<'_>]) {
        let packets = burst.iter_mut().map(|packet| self.0.lay_out(spi, packet));
        match &self.0.algorithm {
            Algorithm::Mac(mac) => {
                mac.sign(packets.map(|(covered, payload, field, _)| (covered, payload, field)))
            }
            Algorithm::Gmac { gmac, salt } => gmac.sign(packets.map(|(front, back, field, number)| {
                let (iv, icv) = field.split_at_mut(self.0.iv_length);
                // Unique as long as the number is (RFC 4543 section 3.1).
                iv.copy_from_slice(&number.to_be_bytes());
                (GmacMessage { nonce: [salt, iv], front, back }, icv)
            })),
        }
    }
}

impl Verifier {
    /// As [`Signer::new`].
    ///
    /// # Errors
    /// As [`Signer::new`].
    pub fn new(suite: Suite, keys: &KeyMaterial, esn: bool) -> Result<Self, KeyError> {
        Keyed::new(suite, keys, esn).map(Self)
    }

    /// Bytes that [`Verify::payload`] has behind the payload.
    pub fn tail_length(&self) -> usize {
        self.0.tail_length()
    }

    /// Verifies every packet of `burst`, setting its verdict. ICVs are compared in constant time.
    ///
    /// Never panics: a packet whose lengths do not fit, whose low word is not that of its `sequence`, or whose
    /// `sequence` has a high word without ESN is treated like one with a wrong ICV.
    pub fn verify(&self, burst: &mut [Verify<'_>]) {
        let packets = burst.iter_mut().map(|Verify { covered, ah, payload, sequence, verdict }| {
            let field = self.0.restore(covered, ah, payload, *sequence).unwrap_or_default();
            ((verdict, *sequence), &**covered, &**payload, field)
        });
        let conclude = |(verdict, sequence): (&mut Option<IcvValid>, u64), is_right: bool| {
            *verdict = is_right.then_some(IcvValid { sequence });
        };
        match &self.0.algorithm {
            Algorithm::Mac(mac) => mac.verify(packets, conclude),
            Algorithm::Gmac { gmac, salt } => {
                let messages = packets.map(|(owner, front, back, field)| {
                    let (iv, icv) = field.split_at_checked(self.0.iv_length).unwrap_or_default();
                    (owner, GmacMessage { nonce: [salt, iv], front, back }, icv)
                });
                gmac.verify(messages, conclude);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::key::Key;
    use crate::crypto::sequence::SequenceCounter;
    use crate::crypto::{Authentication, Encryption};

    fn hash() -> Suite {
        Suite::new(Encryption::Null, Authentication::Sha256, None).unwrap()
    }

    fn gmac() -> Suite {
        Suite::new(Encryption::Aes128Gmac, Authentication::None, None).unwrap()
    }

    fn keys(suite: Suite) -> KeyMaterial {
        let key = |length| Key::new(vec![0x5a; length].into_boxed_slice().into());
        KeyMaterial {
            encryption: key(suite.encryption_key_length()),
            authentication: key(suite.authentication_key_length()),
        }
    }

    const LAST: u64 = 7 << 32 | 41;

    /// (covered, AH, payload) of a packet under number `LAST` + 1, AH with four bytes of padding.
    fn signed(suite: Suite) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let length = FIXED_LENGTH + usize::from(suite.ah_field_length()) + 4;
        let (mut covered, mut ah) = (vec![0x45; 20 + length], vec![6, (length / 4 - 2) as u8, 0, 0]);
        let mut payload = vec![9; 50 + 4];
        ah.resize(length, 0xff);
        let sequence = SequenceCounter::starting_after(LAST).take(1, u64::MAX).unwrap().next().unwrap();
        let mut burst = [Sign { covered: &mut covered, ah: &mut ah, payload: &mut payload, sequence }];
        Signer::new(suite, &keys(suite), true).unwrap().sign(Spi(0x1234), &mut burst);
        assert!(burst[0].ah.is_empty() && burst[0].covered.is_empty());
        assert_eq!(ah[..12], [6, (length / 4 - 2) as u8, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 42]);
        assert_eq!(ah[length - 4..], [0; 4], "padding");
        (covered, ah, payload)
    }

    fn verdict(suite: Suite, esn: bool, [covered, ah, payload]: [&[u8]; 3], sequence: u64) -> Option<u64> {
        let (covered, payload) = (&mut covered.to_vec(), &mut payload.to_vec());
        let mut burst = [Verify { covered, ah, payload, sequence, verdict: None }];
        Verifier::new(suite, &keys(suite), esn).unwrap().verify(&mut burst);
        burst[0].verdict.take().map(|proof| proof.sequence())
    }

    #[test]
    fn what_was_signed_verifies_and_nothing_else_does() {
        [hash(), gmac()].into_iter().for_each(only_what_was_signed_verifies_under);
    }

    fn only_what_was_signed_verifies_under(suite: Suite) {
        let (covered, ah, payload) = signed(suite);
        let number = LAST + 1;
        let with = |covered: &[u8], ah: &[u8], payload: &[u8], number| {
            verdict(suite, true, [covered, ah, payload], number)
        };
        assert_eq!(with(&covered, &ah, &payload, number), Some(number));
        let flipped = |bytes: &[u8], at: usize| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 1;
            bytes
        };
        for at in 0..20 {
            assert_eq!(with(&flipped(&covered, at), &ah, &payload, number), None, "header {at}");
        }
        for at in 0..ah.len() {
            assert_eq!(with(&covered, &flipped(&ah, at), &payload, number), None, "AH {at}");
        }
        for at in 0..50 {
            assert_eq!(with(&covered, &ah, &flipped(&payload, at), number), None, "payload {at}");
        }
        assert_eq!(with(&covered, &ah, &payload, number + (1 << 32)), None, "the high word is covered");
        assert_eq!(with(&covered, &ah, &payload, number + 1), None, "not its number");
    }

    #[test]
    fn lengths_that_do_not_fit_are_a_wrong_icv() {
        for suite in [hash(), gmac()] {
            let (covered, ah, payload) = signed(suite);
            for short in 0..ah.len() - 4 {
                assert_eq!(verdict(suite, true, [&covered, &ah[..short], &payload], LAST + 1), None);
            }
            assert_eq!(verdict(suite, true, [&covered[..ah.len() - 1], &ah, &payload], LAST + 1), None);
            assert_eq!(verdict(suite, true, [&covered, &ah, &payload[..3]], LAST + 1), None);
            assert_eq!(verdict(suite, false, [&covered, &ah, &payload], LAST + 1), None, "32 bits");
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let other = Suite::new(Encryption::Null, Authentication::Sha512, None).unwrap();
        let error = KeyError::Length { role: key::KeyRole::Authentication, expected: 64, found: 32 };
        assert_eq!(Signer::new(other, &keys(hash()), false).err(), Some(error));
        assert_eq!(Verifier::new(other, &keys(hash()), false).err(), Some(error));
    }
}
