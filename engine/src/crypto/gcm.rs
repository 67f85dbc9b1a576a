//! AES-GCM (NIST SP 800-38D) over bursts, with the `aes` and `polyval` crates.
//!
//! An AES unit is fast when it has many blocks at once, and a short packet has few: 64 bytes are a handful, where
//! a wide backend takes 64 in one go and spreads its round keys anew for every visit. So a group's packets visit
//! it once, their counter blocks side by side:
//!
//! ```text
//! |mask 1 2 3 4 5|mask 1 2 3 4 5|mask 1 2 … one batch -> encrypt -> the same pieces of key stream
//!  lane 0         lane 1         lane 2
//! ```
//!
//! The first block of each lane (J0) encrypts its tag. On the way in it comes before the lane's key stream, so a
//! lane is verified by the time the rest arrives, and only what is authentic is decrypted.
//!
//! GHASH is POLYVAL on reversed bytes (RFC 8452 appendix A):
//!
//! ```text
//! GHASH(H, X1, …) = ByteReverse(POLYVAL(mulX_GHASH(ByteReverse(H)), ByteReverse(X1), …))
//! ```
//!
//! The `ghash` crate does just that, but byte by byte and block by block, which takes longer than the multiplication.

use std::ops::Range;

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use arrayvec::ArrayVec;
use polyval::Polyval;
use polyval::hazmat::FieldElement;
use polyval::universal_hash::UniversalHash;
use polyval::universal_hash::common::ParBlocksSizeUser;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::primitive::{AEAD_LANES, AeadOpen, AeadSeal, encrypt_blocks};

type AesBlock = Array<u8, U16>;

const BLOCK_LENGTH: usize = 16;

/// GCM under one key, for one ICV length.
pub struct Gcm<C> {
    cipher: C,
    /// Keyed, nothing hashed yet.
    hash: Polyval,
    icv_length: usize,
}

impl<C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + KeyInit> Gcm<C> {
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

    /// As [`Aead::seal_lanes`](super::primitive::Aead::seal_lanes).
    pub(super) fn seal<A: AsRef<[u8]>>(&self, lanes: &mut [AeadSeal<'_, A>]) -> bool {
        let mut all = true;
        for lanes in lanes.chunks_mut(AEAD_LANES) {
            let mut jobs = ArrayVec::<Job, AEAD_LANES>::new();
            for (lane, AeadSeal { nonce, text, icv, .. }) in lanes.iter().enumerate() {
                jobs.extend(Job::new(lane, *nonce, text.len()).filter(|_| icv.len() == self.icv_length));
            }
            all &= jobs.len() == lanes.len();
            self.cipher
                .encrypt_with_backend(SideBySide { jobs: &jobs, lanes: Sealing { lanes, hash: &self.hash } });
        }
        all
    }

    /// As [`Aead::open_lanes`](super::primitive::Aead::open_lanes).
    pub(super) fn open<A: AsRef<[u8]>>(&self, lanes: &mut [AeadOpen<'_, A>]) {
        for lanes in lanes.chunks_mut(AEAD_LANES) {
            let mut jobs = ArrayVec::<Job, AEAD_LANES>::new();
            for (lane, AeadOpen { nonce, ciphertext, plaintext, icv, is_right, .. }) in
                lanes.iter_mut().enumerate()
            {
                *is_right = false;
                let fits = icv.len() == self.icv_length && plaintext.len() == ciphertext.len();
                jobs.extend(Job::new(lane, *nonce, ciphertext.len()).filter(|_| fits));
            }
            let opening = Opening { lanes: &mut *lanes, hash: &self.hash };
            self.cipher.encrypt_with_backend(SideBySide { jobs: &jobs, lanes: opening });
            for lane in lanes.iter_mut().filter(|lane| !lane.is_right) {
                lane.plaintext.fill(0);
            }
        }
    }
}

/// The counter blocks of one lane.
struct Job {
    lane: usize,
    /// J0: nonce and counter 1.
    first: [u8; BLOCK_LENGTH],
    /// One for the mask and one for every block of text, begun ones too.
    blocks: u32,
}

impl Job {
    /// `None` when salt and IV are not 4 and 8 bytes (RFC 4106 section 4), or the text is more than the counter has
    /// blocks for (section 5.2.1.1).
    fn new(lane: usize, [salt, iv]: [&[u8]; 2], text_length: usize) -> Option<Self> {
        let blocks = u32::try_from(text_length.div_ceil(BLOCK_LENGTH)).ok()?.checked_add(2)? - 1;
        let (salt, iv): (&[u8; 4], &[u8; 8]) = (salt.try_into().ok()?, iv.try_into().ok()?);
        let mut first = [0; BLOCK_LENGTH];
        first[..4].copy_from_slice(salt);
        first[4..12].copy_from_slice(iv);
        Some(Self { lane, first, blocks })
    }

    #[inline(always)]
    fn counter_block(&self, number: u32) -> AesBlock {
        let mut block = self.first;
        block[12..].copy_from_slice(&(number + 1).to_be_bytes());
        block.into()
    }
}

/// Blocks encrypted at a time: as many as the widest backend takes at once.
const BATCH: usize = 64;

/// Runs through all jobs in one visit to the cipher's backend, and hands every lane its key stream.
struct SideBySide<'j, L> {
    jobs: &'j [Job],
    lanes: L,
}

impl<L> BlockSizeUser for SideBySide<'_, L> {
    type BlockSize = U16;
}

impl<L: Lanes> BlockCipherEncClosure for SideBySide<'_, L> {
    #[inline(always)]
    fn call<C: BlockCipherEncBackend<BlockSize = U16>>(mut self, backend: &C) {
        let width = C::ParBlocksSize::USIZE;
        // Whole visits of the backend's width.
        let room = if width < BATCH { BATCH - BATCH % width } else { BATCH };
        let mut blocks = [AesBlock::default(); BATCH];
        let mut pieces = ArrayVec::<(&Job, Range<u32>), BATCH>::new();
        let mut jobs = self.jobs.iter().map(|job| (job, 0..job.blocks)).peekable();
        loop {
            let mut filled = 0;
            while let Some((job, rest)) = jobs.peek_mut() {
                let count = (rest.end - rest.start).min((room - filled) as u32);
                let piece = rest.start..rest.start + count;
                for (block, number) in blocks[filled..].iter_mut().zip(piece.clone()) {
                    *block = job.counter_block(number);
                }
                filled += count as usize;
                rest.start = piece.end;
                let is_done = rest.start == rest.end;
                if !piece.is_empty() {
                    pieces.push((*job, piece));
                }
                if !is_done {
                    break;
                }
                jobs.next();
            }
            if filled == 0 {
                return;
            }
            // A full width costs about as much as a quarter of it one by one: better some blocks for nothing.
            let beyond = filled % width;
            let worth = if 4 * beyond > width { (filled - beyond + width).min(BATCH) } else { filled };
            encrypt_blocks(backend, &mut blocks[..worth]);
            let mut stream = &blocks[..];
            for (job, piece) in pieces.drain(..) {
                let (own, rest) = stream.split_at(piece.len());
                self.lanes.take(job, &piece, own);
                stream = rest;
            }
        }
    }
}

/// What becomes of the key stream. Inlined to the last, for there the compiler may use what the backend needs.
trait Lanes {
    /// The next piece of a job's stream, in order.
    fn take(&mut self, job: &Job, piece: &Range<u32>, stream: &[AesBlock]);
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
            // Behind a shorter ICV our own bytes. One word: bytes would be compared by a call each.
            let mut claimed = tag;
            claimed[..lane.icv.len()].copy_from_slice(lane.icv);
            lane.is_right = u128::from_ne_bytes(claimed).ct_eq(&u128::from_ne_bytes(tag)).into();
            if lane.is_right {
                lane.plaintext.copy_from_slice(lane.ciphertext);
            }
        }
        if lane.is_right {
            apply(piece, stream, lane.plaintext);
        }
    }
}

/// XORs a piece of key stream onto the part of `text` it is for; gives out the mask, if the piece begins with it.
#[inline(always)]
fn apply<'s>(piece: &Range<u32>, stream: &'s [AesBlock], text: &mut [u8]) -> Option<&'s AesBlock> {
    let (mask, stream, at) = match piece.start {
        0 => (stream.first(), &stream[1..], 0),
        number => (None, stream, (number as usize - 1) * BLOCK_LENGTH),
    };
    let stream = Array::slice_as_flattened(stream);
    text[at..].iter_mut().zip(stream).for_each(|(byte, key)| *byte ^= key);
    mask
}

/// Blocks reversed before they are hashed: a multiple of what the hash takes at once.
const REVERSED: usize = 32;

/// GHASH over what is authenticated, not masked yet (section 7.1 steps 4 and 5): both texts, each padded with
/// zeros to whole blocks, and their lengths in bits.
#[inline(always)]
fn ghash(keyed: &Polyval, aad: &[u8], ciphertext: &[u8]) -> [u8; BLOCK_LENGTH] {
    let mut hash = keyed.clone();
    let mut blocks = [AesBlock::default(); REVERSED];
    // Zeros in front of a polynomial change nothing: with them, no block is hashed by itself.
    let count = aad.len().div_ceil(BLOCK_LENGTH) + ciphertext.len().div_ceil(BLOCK_LENGTH) + 1;
    let width = <Polyval as ParBlocksSizeUser>::ParBlocksSize::USIZE;
    let mut filled = count.next_multiple_of(width) - count;
    for text in [aad, ciphertext] {
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
    let bits = |text: &[u8]| 8 * text.len() as u128;
    // Reversed already: the length of the AAD is the first half.
    blocks[filled] = (bits(ciphertext) | bits(aad) << 64).to_le_bytes().into();
    hash.update(&blocks[..=filled]);
    reversed(&hash.finalize().into())
}

#[inline(always)]
fn reversed(block: &[u8; BLOCK_LENGTH]) -> [u8; BLOCK_LENGTH] {
    u128::from_be_bytes(*block).to_le_bytes()
}
