//! AES in counter mode, which CTR (RFC 3686), GCM (NIST SP 800-38D) and CCM (RFC 3610) share: block n of the key stream
//! is the encryption of salt, IV and the number n, from 1 on, or from 0 for CCM.
//!
//! An AES unit is fast when it has many blocks at once, and a short packet has few: 64 bytes are a handful, where
//! a wide backend takes 64 in one go and spreads its round keys anew for every visit. So a group's packets visit
//! it once, their counter blocks side by side:
//!
//! ```text
//! |1 2 3 4 5 6|1 2 3 4 5 6|1 2 … one batch -> encrypt -> the same pieces of key stream
//!  lane 0      lane 1      lane 2
//! ```

use std::ops::Range;

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use arrayvec::ArrayVec;
use zeroize::Zeroizing;

use super::cipher::CipherLane;
use super::{AesBlock, BLOCK_LENGTH, LANES, encrypt_blocks};

/// Salt bytes of CTR at the end of the key, the "nonce" of RFC 3686 section 5.1.
const SALT_LENGTH: usize = 4;

/// AES in counter mode under one key and salt (RFC 3686).
pub struct Ctr<C> {
    cipher: C,
    salt: Zeroizing<[u8; SALT_LENGTH]>,
}

impl<C: BlockCipherEncrypt<BlockSize = U16>> Ctr<C> {
    /// Encrypts every text in place, or decrypts it, which is the same.
    ///
    /// # Panics
    /// When an IV is not eight bytes.
    pub(super) fn apply(&self, lanes: &mut [CipherLane<'_>]) {
        for lanes in lanes.chunks_mut(LANES) {
            let mut jobs = ArrayVec::<Job, LANES>::new();
            for (lane, CipherLane { iv, text }) in lanes.iter().enumerate() {
                let job = Job::new(lane, [&*self.salt, iv], text.len().div_ceil(BLOCK_LENGTH));
                jobs.push(job.expect("an IV of eight bytes, and a text that is no longer than a packet"));
            }
            self.cipher.encrypt_with_backend(SideBySide { jobs: &jobs, lanes: Texts { lanes } });
        }
    }
}

impl<C: KeyInit> Ctr<C> {
    /// Expands `key`, its salt at the end; `None` when it has another length.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        let (key, salt) = key.split_last_chunk::<SALT_LENGTH>()?;
        Some(Self { cipher: C::new_from_slice(key).ok()?, salt: Zeroizing::new(*salt) })
    }
}

struct Texts<'l, 't> {
    lanes: &'l mut [CipherLane<'t>],
}

impl Lanes for Texts<'_, '_> {
    #[inline(always)]
    fn take(&mut self, job: &Job, piece: &Range<u32>, stream: &[AesBlock]) {
        xor(&mut self.lanes[job.lane].text[piece.start as usize * BLOCK_LENGTH..], stream);
    }
}

/// The counter blocks of one lane.
pub(super) struct Job {
    /// Its place among the lanes.
    pub(super) lane: usize,
    /// The first of them.
    first: [u8; BLOCK_LENGTH],
    /// The number at its end, which counts.
    number: u32,
    /// How many there are.
    pub(super) blocks: u32,
}

impl Job {
    /// `None` when salt and IV are not 4 and 8 bytes (RFC 3686 section 4, RFC 4106 section 4), or the counter has
    /// not that many blocks.
    pub(super) fn new(lane: usize, [salt, iv]: [&[u8]; 2], blocks: usize) -> Option<Self> {
        let (salt, iv): (&[u8; 4], &[u8; 8]) = (salt.try_into().ok()?, iv.try_into().ok()?);
        let mut first = [0; BLOCK_LENGTH];
        first[..4].copy_from_slice(salt);
        first[4..12].copy_from_slice(iv);
        first[15] = 1;
        Self::from_block(lane, first, blocks)
    }

    /// From this block on.
    pub(super) fn from_block(lane: usize, first: [u8; BLOCK_LENGTH], blocks: usize) -> Option<Self> {
        let number = u32::from_be_bytes([first[12], first[13], first[14], first[15]]);
        Some(Self { lane, first, number, blocks: u32::try_from(blocks).ok()? })
    }

    #[inline(always)]
    pub(super) fn counter_block(&self, number: u32) -> AesBlock {
        let mut block = self.first;
        block[12..].copy_from_slice(&(self.number + number).to_be_bytes());
        block.into()
    }
}

/// Blocks encrypted at a time: as many as the widest backend takes at once.
const BATCH: usize = 64;

/// Runs through all jobs in one visit to the cipher's backend, and hands every lane its key stream.
pub(super) struct SideBySide<'j, L> {
    pub(super) jobs: &'j [Job],
    pub(super) lanes: L,
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
pub(super) trait Lanes {
    /// The next piece of a job's stream, in order.
    fn take(&mut self, job: &Job, piece: &Range<u32>, stream: &[AesBlock]);
}

/// As [`xor`] for a stream whose first block is the mask of a tag: gives that out, if the piece begins with it, and
/// XORs the rest onto the part of `text` it is for.
#[inline(always)]
pub(super) fn apply<'s>(piece: &Range<u32>, stream: &'s [AesBlock], text: &mut [u8]) -> Option<&'s AesBlock> {
    let (mask, stream, at) = match piece.start {
        0 => (stream.first(), &stream[1..], 0),
        number => (None, stream, (number as usize - 1) * BLOCK_LENGTH),
    };
    xor(&mut text[at..], stream);
    mask
}

/// XORs key stream onto `text`, as far as it goes.
#[inline(always)]
pub(super) fn xor(text: &mut [u8], stream: &[AesBlock]) {
    text.iter_mut().zip(Array::slice_as_flattened(stream)).for_each(|(byte, key)| *byte ^= key);
}
