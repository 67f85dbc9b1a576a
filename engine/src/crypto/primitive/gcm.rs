//! AES-GCM (NIST SP 800-38D) over bursts, with the `aes` and `polyval` crates.
//!
//! The first block of each lane's key stream (J0) encrypts its tag:
//!
//! ```text
//! |mask 1 2 3 4 5|mask 1 2 3 4 5|mask 1 2 …
//!  lane 0         lane 1         lane 2
//! ```
//!
//! On the way in it comes before the rest, so a lane is verified by the time that arrives, and only what is
//! authentic is decrypted.
//!
//! GHASH is POLYVAL on reversed bytes (RFC 8452 appendix A):
//!
//! ```text
//! GHASH(H, X1, …) = ByteReverse(POLYVAL(mulX_GHASH(ByteReverse(H)), ByteReverse(X1), …))
//! ```
//!
//! The `ghash` crate does just that, but byte by byte and block by block, which takes longer than the multiplication.

use std::ops::Range;

use aes::cipher::consts::U16;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use arrayvec::ArrayVec;
use polyval::Polyval;
use polyval::hazmat::FieldElement;
use polyval::universal_hash::UniversalHash;
use polyval::universal_hash::common::ParBlocksSizeUser;
use zeroize::{Zeroize, Zeroizing};

use super::aead::{AEAD_LANES, AeadOpen, AeadSeal};
use super::counter::{Job, Lanes, SideBySide, apply};
use super::{AesBlock, BLOCK_LENGTH, LANES, is_tag};

/// GCM under one key, for one ICV length.
pub struct Gcm<C> {
    cipher: C,
    /// Keyed, nothing hashed yet.
    hash: Polyval,
    icv_length: usize,
}

impl<C: BlockCipherEncrypt<BlockSize = U16> + KeyInit> Gcm<C> {
    /// Expands `key`; `None` when it has another length.
    pub(super) fn new(key: &[u8], icv_length: usize) -> Option<Self> {
        let cipher = C::new_from_slice(key).ok()?;
        // Section 7.1 step 1: the hash key is the encryption of zero.
        let mut hash_key = Zeroizing::new([0; BLOCK_LENGTH]);
        cipher.encrypt_block((&mut *hash_key).into());
        let mut hash_key = FieldElement::from(reversed(&hash_key)).mulx();
        let hash = Polyval::new(&hash_key.into());
        hash_key.zeroize();
        Some(Self { cipher, hash, icv_length })
    }

    /// The tags of up to [`LANES`] messages beside nothing, each with its nonce and in two parts; none for a nonce of
    /// other lengths than 4 and 8 bytes.
    pub(super) fn tags<'m>(
        &self,
        messages: impl Iterator<Item = ([&'m [u8]; 2], [&'m [u8]; 2])>,
    ) -> ArrayVec<Option<AesBlock>, LANES> {
        let mut masks = ArrayVec::<_, LANES>::new();
        let mut tags: ArrayVec<_, LANES> = messages
            .map(|(nonce, message)| {
                let job = job(0, nonce, 0)?;
                masks.push(job.counter_block(0));
                Some(AesBlock::from(ghash_aad(&self.hash, message)))
            })
            .collect();
        self.cipher.encrypt_blocks(&mut masks);
        for (tag, mask) in tags.iter_mut().flatten().zip(&masks) {
            tag.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        }
        tags
    }

    /// As [`Aead::seal_lanes`](super::Aead::seal_lanes).
    pub(super) fn seal<A: AsRef<[u8]>>(&self, lanes: &mut [AeadSeal<'_, A>]) -> bool {
        let mut all = true;
        for lanes in lanes.chunks_mut(AEAD_LANES) {
            let mut jobs = ArrayVec::<Job, AEAD_LANES>::new();
            for (lane, AeadSeal { nonce, text, icv, .. }) in lanes.iter().enumerate() {
                jobs.extend(job(lane, *nonce, text.len()).filter(|_| icv.len() == self.icv_length));
            }
            all &= jobs.len() == lanes.len();
            self.cipher
                .encrypt_with_backend(SideBySide { jobs: &jobs, lanes: Sealing { lanes, hash: &self.hash } });
        }
        all
    }

    /// As [`Aead::open_lanes`](super::Aead::open_lanes).
    pub(super) fn open<A: AsRef<[u8]>>(&self, lanes: &mut [AeadOpen<'_, A>]) {
        for lanes in lanes.chunks_mut(AEAD_LANES) {
            let mut jobs = ArrayVec::<Job, AEAD_LANES>::new();
            for (lane, AeadOpen { nonce, ciphertext, plaintext, icv, is_right, .. }) in
                lanes.iter_mut().enumerate()
            {
                *is_right = false;
                let fits = icv.len() == self.icv_length && plaintext.len() == ciphertext.len();
                jobs.extend(job(lane, *nonce, ciphertext.len()).filter(|_| fits));
            }
            let opening = Opening { lanes: &mut *lanes, hash: &self.hash };
            self.cipher.encrypt_with_backend(SideBySide { jobs: &jobs, lanes: opening });
            for lane in lanes.iter_mut().filter(|lane| !lane.is_right) {
                lane.plaintext.fill(0);
            }
        }
    }
}

/// The counter blocks of one lane: one for the mask and one for every block of text, begun ones too (section 7.1
/// step 3).
fn job(lane: usize, nonce: [&[u8]; 2], text_length: usize) -> Option<Job> {
    Job::new(lane, nonce, text_length.div_ceil(BLOCK_LENGTH) + 1)
}

struct Sealing<'l, 't, A> {
    lanes: &'l mut [AeadSeal<'t, A>],
    hash: &'l Polyval,
}

impl<A: AsRef<[u8]>> Lanes for Sealing<'_, '_, A> {
    #[inline(always)]
    fn take(&mut self, job: &Job, piece: &Range<u32>, stream: &[AesBlock]) {
        let lane = &mut self.lanes[job.lane];
        if let Some(mask) = apply(piece, stream, lane.text) {
            lane.icv.iter_mut().zip(mask).for_each(|(byte, mask)| *byte = *mask);
        }
        if piece.end == job.blocks {
            let tag = ghash(self.hash, lane.aad.as_ref(), lane.text);
            lane.icv.iter_mut().zip(tag).for_each(|(masked, byte)| *masked ^= byte);
        }
    }
}

struct Opening<'l, 't, A> {
    lanes: &'l mut [AeadOpen<'t, A>],
    hash: &'l Polyval,
}

impl<A: AsRef<[u8]>> Lanes for Opening<'_, '_, A> {
    #[inline(always)]
    fn take(&mut self, job: &Job, piece: &Range<u32>, stream: &[AesBlock]) {
        let lane = &mut self.lanes[job.lane];
        if piece.start == 0 {
            let mut tag = ghash(self.hash, lane.aad.as_ref(), lane.ciphertext);
            tag.iter_mut().zip(&stream[0]).for_each(|(byte, mask)| *byte ^= mask);
            lane.is_right = is_tag(&tag, lane.icv);
            if lane.is_right {
                lane.plaintext.copy_from_slice(lane.ciphertext);
            }
        }
        if lane.is_right {
            apply(piece, stream, lane.plaintext);
        }
    }
}

/// Blocks reversed before they are hashed: a multiple of what the hash takes at once.
const REVERSED: usize = 32;

/// GHASH over AAD and ciphertext, not masked yet (section 7.1 steps 4 and 5).
#[inline(always)]
fn ghash(keyed: &Polyval, aad: &[u8], ciphertext: &[u8]) -> [u8; BLOCK_LENGTH] {
    ghash_of(keyed, [aad, ciphertext], aad.len(), ciphertext.len())
}

/// GHASH over an AAD in two parts, one behind the other, and no ciphertext.
fn ghash_aad(keyed: &Polyval, [front, back]: [&[u8]; 2]) -> [u8; BLOCK_LENGTH] {
    // Three texts: between the parts is the block that begins in the one and ends in the other.
    let (whole, begun) = front.split_at(front.len() - front.len() % BLOCK_LENGTH);
    let (end, rest) = back.split_at(back.len().min((BLOCK_LENGTH - begun.len()) % BLOCK_LENGTH));
    let mut between = [0; BLOCK_LENGTH];
    between[..begun.len()].copy_from_slice(begun);
    between[begun.len()..][..end.len()].copy_from_slice(end);
    let between = &between[..begun.len() + end.len()];
    ghash_of(keyed, [whole, between, rest], front.len() + back.len(), 0)
}

/// GHASH over texts, each padded with zeros to whole blocks, and the two lengths in bits.
#[inline(always)]
fn ghash_of<const N: usize>(
    keyed: &Polyval,
    texts: [&[u8]; N],
    aad_length: usize,
    ciphertext_length: usize,
) -> [u8; BLOCK_LENGTH] {
    let mut hash = keyed.clone();
    let mut blocks = [AesBlock::default(); REVERSED];
    // Zeros in front of a polynomial change nothing: with them, no block is hashed by itself.
    let count = texts.iter().map(|text| text.len().div_ceil(BLOCK_LENGTH)).sum::<usize>() + 1;
    let width = <Polyval as ParBlocksSizeUser>::ParBlocksSize::USIZE;
    let mut filled = count.next_multiple_of(width) - count;
    for text in texts {
        let (mut whole, rest) = text.as_chunks::<BLOCK_LENGTH>();
        while let Some((now, later)) = whole.split_at_checked((REVERSED - filled).min(whole.len()))
            && !now.is_empty()
        {
            for (block, bytes) in blocks[filled..].iter_mut().zip(now) {
                *block = reversed(bytes).into();
            }
            filled += now.len();
            whole = later;
            if filled == REVERSED {
                hash.update(&blocks);
                filled = 0;
            }
        }
        if !rest.is_empty() {
            let mut padded = [0; BLOCK_LENGTH];
            padded[..rest.len()].copy_from_slice(rest);
            blocks[filled] = reversed(&padded).into();
            filled += 1;
            if filled == REVERSED {
                hash.update(&blocks);
                filled = 0;
            }
        }
    }
    let bits = |length: usize| 8 * length as u128;
    // Reversed already: the length of the AAD is the first half.
    blocks[filled] = (bits(ciphertext_length) | bits(aad_length) << 64).to_le_bytes().into();
    hash.update(&blocks[..=filled]);
    reversed(&hash.finalize().into())
}

#[inline(always)]
fn reversed(block: &[u8; BLOCK_LENGTH]) -> [u8; BLOCK_LENGTH] {
    u128::from_be_bytes(*block).to_le_bytes()
}
