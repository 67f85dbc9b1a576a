//! AES-CCM (RFC 3610, NIST SP 800-38C) over bursts, with the `aes` crate.
//!
//! The tag is the end of a CBC chain over the clear text, serial within a packet: the chains of a group run in step.
//! The key streams are those of any counter mode; the first block of each masks the tag:
//!
//! ```text
//! chain   | flags, nonce, length of the text | length of the AAD, AAD, 0 … | text, 0 … |  -> tag
//! stream  | flags, nonce, 0 | 1 | 2 | …                                                   -> tag, text
//! ```

use std::ops::Range;

use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use arrayvec::ArrayVec;

use super::aead::{AeadOpen, AeadSeal};
use super::cbc_mac::{self, Ending};
use super::counter::{Job, Lanes, SideBySide, apply};
use super::{AesBlock, BLOCK_LENGTH, LANES, is_tag};

/// CCM under one key, for one ICV length.
pub struct Ccm<C> {
    cipher: C,
    icv_length: usize,
}

impl<C: BlockCipherEncrypt<BlockSize = U16> + KeyInit> Ccm<C> {
    /// Expands `key`; `None` when it has another length.
    pub(super) fn new(key: &[u8], icv_length: usize) -> Option<Self> {
        Some(Self { cipher: C::new_from_slice(key).ok()?, icv_length })
    }

    /// As [`Aead::seal_lanes`](super::Aead::seal_lanes).
    pub(super) fn seal<A: AsRef<[u8]>>(&self, lanes: &mut [AeadSeal<'_, A>]) -> bool {
        let mut all = true;
        for lanes in lanes.chunks_mut(LANES) {
            let begins: ArrayVec<_, LANES> = lanes
                .iter()
                .map(|lane| self.begin(lane.nonce, lane.aad.as_ref(), lane.text.len(), lane.icv))
                .collect();
            let tags = self.tags(&begins, lanes.iter().map(|lane| &*lane.text));
            let jobs = jobs(&begins);
            all &= jobs.len() == lanes.len();
            self.cipher
                .encrypt_with_backend(SideBySide { jobs: &jobs, lanes: Sealing { lanes, tags: &tags } });
        }
        all
    }

    /// As [`Aead::open_lanes`](super::Aead::open_lanes). What is verified is the clear text, so it is there before its
    /// tag was found right; where that is wrong, it is wiped.
    pub(super) fn open<A: AsRef<[u8]>>(&self, lanes: &mut [AeadOpen<'_, A>]) {
        for lanes in lanes.chunks_mut(LANES) {
            let mut begins = ArrayVec::<_, LANES>::new();
            for AeadOpen { nonce, aad, ciphertext, icv, plaintext, .. } in lanes.iter_mut() {
                let begin = self.begin(*nonce, aad.as_ref(), ciphertext.len(), icv);
                let begin = begin.filter(|_| plaintext.len() == ciphertext.len());
                if begin.is_some() {
                    plaintext.copy_from_slice(ciphertext);
                }
                begins.push(begin);
            }
            let mut masks = [AesBlock::default(); LANES];
            let jobs = jobs(&begins);
            let opening = Opening { lanes: &mut *lanes, masks: &mut masks };
            self.cipher.encrypt_with_backend(SideBySide { jobs: &jobs, lanes: opening });
            let tags = self.tags(&begins, lanes.iter().map(|lane| &*lane.plaintext));
            for (((lane, begin), tag), mask) in lanes.iter_mut().zip(&begins).zip(&tags).zip(&masks) {
                lane.is_right = begin.is_some() && is_tag(&masked(tag, mask), lane.icv);
                if !lane.is_right {
                    lane.plaintext.fill(0);
                }
            }
        }
    }

    /// `None` when a length is not CCM's, or not this one's.
    fn begin(&self, nonce: [&[u8]; 2], aad: &[u8], text_length: usize, icv: &[u8]) -> Option<Begin> {
        Begin::new(nonce, aad, text_length, self.icv_length).filter(|_| icv.len() == self.icv_length)
    }

    /// The ends of the chains, not masked yet; of a lane that is none, anything.
    fn tags<'t>(
        &self,
        begins: &'t [Option<Begin>],
        texts: impl Iterator<Item = &'t [u8]>,
    ) -> [AesBlock; LANES] {
        let messages = begins.iter().zip(texts).map(|(begin, text)| match begin {
            Some(begin) => [begin.chained(), text],
            None => [&[][..]; 2],
        });
        cbc_mac::tags(&self.cipher, Ending::ZEROS, messages)
    }
}

/// Blocks in front of the text: one, and those of the AAD, of which ESP has 8 or 12 bytes (RFC 4309 section 5).
const FRONT: usize = 4;

/// How a lane begins.
struct Begin {
    /// The first blocks of the chain.
    front: [u8; FRONT * BLOCK_LENGTH],
    front_length: usize,
    /// The first block of the key stream, before it is encrypted.
    counter: [u8; BLOCK_LENGTH],
    text_length: usize,
}

impl Begin {
    /// `None` for a nonce that leaves no room for a length of 2 to 8 bytes, a text that is longer than that can say
    /// (RFC 3610 section 2.1), or an AAD that is longer than the front.
    fn new([salt, iv]: [&[u8]; 2], aad: &[u8], text_length: usize, icv_length: usize) -> Option<Self> {
        let nonce_length = salt.len() + iv.len();
        let length_length = 15usize.checked_sub(nonce_length).filter(|length| (2..=8).contains(length))?;
        let mut counter = [0; BLOCK_LENGTH];
        counter[0] = length_length as u8 - 1;
        counter[1..][..salt.len()].copy_from_slice(salt);
        counter[1 + salt.len()..][..iv.len()].copy_from_slice(iv);

        // Section 2.2: "Adata", the length of the tag, and that of the length of the text.
        let mut front = [0; FRONT * BLOCK_LENGTH];
        front[..BLOCK_LENGTH].copy_from_slice(&counter);
        front[0] |= (u8::from(!aad.is_empty()) << 6) | (((icv_length - 2) / 2) as u8) << 3;
        let length = (text_length as u64).to_be_bytes();
        let (beyond, length) = length.split_at(length.len() - length_length);
        front[1 + nonce_length..BLOCK_LENGTH].copy_from_slice(length);
        let mut front_length = BLOCK_LENGTH;
        if !aad.is_empty() {
            let room = front[BLOCK_LENGTH..].split_at_mut_checked(2 + aad.len())?.0;
            let (length, room) = room.split_at_mut(2);
            length.copy_from_slice(&(aad.len() as u16).to_be_bytes());
            room.copy_from_slice(aad);
            front_length += (2 + aad.len()).next_multiple_of(BLOCK_LENGTH);
        }
        let fits = beyond.iter().all(|byte| *byte == 0);
        fits.then_some(Self { front, front_length, counter, text_length })
    }

    fn chained(&self) -> &[u8] {
        &self.front[..self.front_length]
    }
}

/// The key streams of the lanes that are some: a block for the mask, and one for every block of text, begun ones too.
fn jobs(begins: &[Option<Begin>]) -> ArrayVec<Job, LANES> {
    let job = |(lane, begin): (usize, &Option<Begin>)| {
        let begin = begin.as_ref()?;
        Job::from_block(lane, begin.counter, begin.text_length.div_ceil(BLOCK_LENGTH) + 1)
    };
    begins.iter().enumerate().filter_map(job).collect()
}

#[inline(always)]
fn masked(tag: &AesBlock, mask: &AesBlock) -> [u8; BLOCK_LENGTH] {
    (u128::from_ne_bytes((*tag).into()) ^ u128::from_ne_bytes((*mask).into())).to_ne_bytes()
}

struct Sealing<'l, 't, A> {
    lanes: &'l mut [AeadSeal<'t, A>],
    tags: &'l [AesBlock; LANES],
}

impl<A> Lanes for Sealing<'_, '_, A> {
    #[inline(always)]
    fn take(&mut self, job: &Job, piece: &Range<u32>, stream: &[AesBlock]) {
        let lane = &mut self.lanes[job.lane];
        if let Some(mask) = apply(piece, stream, lane.text) {
            let tag = masked(&self.tags[job.lane], mask);
            lane.icv.copy_from_slice(&tag[..lane.icv.len()]);
        }
    }
}

struct Opening<'l, 't, A> {
    lanes: &'l mut [AeadOpen<'t, A>],
    masks: &'l mut [AesBlock; LANES],
}

impl<A> Lanes for Opening<'_, '_, A> {
    #[inline(always)]
    fn take(&mut self, job: &Job, piece: &Range<u32>, stream: &[AesBlock]) {
        if let Some(mask) = apply(piece, stream, self.lanes[job.lane].plaintext) {
            self.masks[job.lane] = *mask;
        }
    }
}
