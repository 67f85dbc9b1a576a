//! Integrity alone, over bursts: what AH needs (RFC 4302). Numbers and verdicts are those of ESP: a packet is signed
//! under a [`FreshSequence`] that it uses up, and only a verified one gives an [`IcvValid`].

use std::mem;

use super::key::{self, KeyError, KeyMaterial};
use super::primitive::Mac;
use super::sequence::FreshSequence;
use super::{CHECKED, IcvValid, Suite};
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
    mac: Mac,
    icv_length: usize,
    esn: bool,
}

impl Keyed {
    fn new(suite: Suite, keys: &KeyMaterial, esn: bool) -> Result<Box<Self>, KeyError> {
        key::check(suite, keys)?;
        let mac = Mac::new(suite.authentication(), keys.authentication.expose()).expect(CHECKED);
        Ok(Box::new(Self { mac, icv_length: suite.icv_length().into(), esn }))
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
}

impl Signer {
    /// Expands the authentication key of `suite`, whose encryption is null. With `esn` the high word is covered too.
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
        let Keyed { mac, icv_length, esn } = &*self.0;
        mac.sign(burst.iter_mut().map(|packet| {
            let (ah, covered) = (mem::take(&mut packet.ah), mem::take(&mut packet.covered));
            let (payload, number) = (mem::take(&mut packet.payload), packet.sequence.get());
            assert!(*esn || number <= u32::MAX.into(), "numbers do not cycle (RFC 4302 section 3.3.2)");
            ah[4..8].copy_from_slice(&spi.0.to_be_bytes());
            ah[8..FIXED_LENGTH].copy_from_slice(&(number as u32).to_be_bytes());
            ah[FIXED_LENGTH..].fill(0);
            let at = covered.len() - ah.len();
            covered[at..].copy_from_slice(ah);
            self.0.append_high_word(payload, number);
            (&*covered, &*payload, &mut ah[FIXED_LENGTH..FIXED_LENGTH + icv_length])
        }));
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
        let messages = burst.iter_mut().map(|Verify { covered, ah, payload, sequence, verdict }| {
            let icv = self.prepare(covered, ah, payload, *sequence).unwrap_or_default();
            ((verdict, *sequence), &**covered, &**payload, icv)
        });
        self.0.mac.verify(messages, |(verdict, sequence), is_right| {
            *verdict = is_right.then_some(IcvValid { sequence });
        });
    }

    /// Completes what is covered; the ICV it must have. `None` for what no ICV can make right.
    fn prepare<'a>(
        &self,
        covered: &mut [u8],
        ah: &'a [u8],
        payload: &mut [u8],
        sequence: u64,
    ) -> Option<&'a [u8]> {
        let Keyed { icv_length, esn, .. } = &*self.0;
        let icv = FIXED_LENGTH..FIXED_LENGTH + icv_length;
        let found = ah.get(icv.clone())?;
        // What is verified is what these bytes say, not `sequence`: they must say the same.
        let is_own_number =
            ah[8..FIXED_LENGTH] == (sequence as u32).to_be_bytes() && (*esn || sequence <= u32::MAX.into());
        if !is_own_number || payload.len() < self.tail_length() {
            return None;
        }
        let at = covered.len().checked_sub(ah.len())?;
        covered[at..].copy_from_slice(ah);
        // The padding behind it is covered as it was received (RFC 4302 section 3.3.3.2.1).
        covered[at..][icv].fill(0);
        self.0.append_high_word(payload, sequence);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::key::Key;
    use crate::crypto::sequence::SequenceCounter;
    use crate::crypto::{Authentication, Encryption};

    fn keys() -> KeyMaterial {
        let key = |bytes: &[u8]| Key::new(bytes.to_vec().into_boxed_slice().into());
        KeyMaterial { encryption: key(&[]), authentication: key(&[0x5a; 32]) }
    }

    fn suite() -> Suite {
        Suite::new(Encryption::Null, Authentication::Sha256, None).unwrap()
    }

    const LAST: u64 = 7 << 32 | 41;

    /// (covered, AH, payload) of a packet under number `LAST` + 1, AH padded to 32 bytes.
    fn signed() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (mut covered, mut ah, mut payload) = (vec![0x45; 20 + 32], vec![6, 6, 0, 0], vec![9; 50 + 4]);
        ah.resize(32, 0xff);
        let sequence = SequenceCounter::starting_after(LAST).take(1, u64::MAX).unwrap().next().unwrap();
        let mut burst = [Sign { covered: &mut covered, ah: &mut ah, payload: &mut payload, sequence }];
        Signer::new(suite(), &keys(), true).unwrap().sign(Spi(0x1234), &mut burst);
        assert!(burst[0].ah.is_empty() && burst[0].covered.is_empty());
        assert_eq!(ah[..12], [6, 6, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 42]);
        assert_eq!(ah[28..], [0; 4], "padding");
        (covered, ah, payload)
    }

    fn verdict(covered: &mut [u8], ah: &[u8], payload: &mut [u8], sequence: u64) -> Option<u64> {
        let mut burst = [Verify { covered, ah, payload, sequence, verdict: None }];
        Verifier::new(suite(), &keys(), true).unwrap().verify(&mut burst);
        burst[0].verdict.take().map(|proof| proof.sequence())
    }

    #[test]
    fn what_was_signed_verifies_and_nothing_else_does() {
        let (covered, ah, payload) = signed();
        let number = LAST + 1;
        let with = |covered: &[u8], ah: &[u8], payload: &[u8], number| {
            verdict(&mut covered.to_vec(), ah, &mut payload.to_vec(), number)
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
        let (covered, ah, payload) = signed();
        for short in 0..28 {
            assert_eq!(verdict(&mut covered.clone(), &ah[..short], &mut payload.clone(), LAST + 1), None);
        }
        assert_eq!(verdict(&mut covered[..31].to_vec(), &ah, &mut payload.clone(), LAST + 1), None);
        assert_eq!(verdict(&mut covered.clone(), &ah, &mut payload[..3].to_vec(), LAST + 1), None);
        // Without ESN a number has 32 bits.
        let mut burst = [Verify {
            covered: &mut covered.clone(),
            ah: &ah,
            payload: &mut payload.clone(),
            sequence: LAST + 1,
            verdict: None,
        }];
        Verifier::new(suite(), &keys(), false).unwrap().verify(&mut burst);
        assert!(burst[0].verdict.is_none());
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let other = Suite::new(Encryption::Null, Authentication::Sha512, None).unwrap();
        let error = KeyError::Length { role: key::KeyRole::Authentication, expected: 64, found: 32 };
        assert_eq!(Signer::new(other, &keys(), false).err(), Some(error));
        assert_eq!(Verifier::new(other, &keys(), false).err(), Some(error));
    }
}
