//! AES-XCBC-MAC (RFC 3566) and AES-CMAC (RFC 4493): CBC-MACs whose last block is masked, by one key when it is
//! whole and by another when it was padded. They differ in where these keys come from. CCM's tag (RFC 3610) is the end
//! of such a chain too, without a mask.
//!
//! A CBC chain is serial, so the messages of a group run side by side, as in CBC encryption.

use aes::Aes128Enc;
use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use arrayvec::ArrayVec;
use zeroize::Zeroizing;

use super::{AesBlock, BLOCK_LENGTH, LANES, encrypt_blocks};

type Mask = Zeroizing<[u8; BLOCK_LENGTH]>;

/// One of the two, keyed.
pub struct CbcMac {
    cipher: Aes128Enc,
    /// For a last block that is whole.
    whole: Mask,
    /// For one that was padded.
    padded: Mask,
}

impl CbcMac {
    /// RFC 3566 section 4 step 1: three keys, the encryptions of 0x01…, 0x02… and 0x03… under the one given.
    /// `None` when that is not 16 bytes.
    pub(super) fn xcbc(key: &[u8]) -> Option<Self> {
        let given = Aes128Enc::new_from_slice(key).ok()?;
        let [first, whole, padded] = [1, 2, 3].map(|number| encrypted(&given, [number; BLOCK_LENGTH]));
        Some(Self { cipher: Aes128Enc::new((&*first).into()), whole, padded })
    }

    /// RFC 4493 section 2.3: the encryption of zero, doubled once and twice. `None` when the key is not 16 bytes.
    pub(super) fn cmac(key: &[u8]) -> Option<Self> {
        let cipher = Aes128Enc::new_from_slice(key).ok()?;
        let whole = doubled(&encrypted(&cipher, [0; BLOCK_LENGTH]));
        let padded = doubled(&whole);
        Some(Self { cipher, whole, padded })
    }

    /// The tags of up to [`LANES`] messages, in two parts each, whole: 16 bytes.
    pub(super) fn tags<'m>(&self, messages: impl Iterator<Item = [&'m [u8]; 2]>) -> [AesBlock; LANES] {
        // RFC 3566 section 4 step 4b, RFC 4493 section 2.4 step 4: a one, then zeros.
        let ending = Ending { whole: &self.whole, padded: &self.padded, padding: 0x80 };
        tags(&self.cipher, ending, messages)
    }
}

/// How a chain ends.
#[derive(Clone, Copy)]
pub(super) struct Ending<'c> {
    /// What masks a last block that is whole.
    whole: &'c [u8; BLOCK_LENGTH],
    /// What masks one that was padded.
    padded: &'c [u8; BLOCK_LENGTH],
    /// The first byte of the padding; the others are zeros.
    padding: u8,
}

impl Ending<'static> {
    /// Zeros to a whole block, and no mask (RFC 3610 section 2.2).
    pub(super) const ZEROS: Self = Self { whole: &[0; BLOCK_LENGTH], padded: &[0; BLOCK_LENGTH], padding: 0 };
}

/// The ends of the chains of up to [`LANES`] messages, in two parts each.
pub(super) fn tags<'m, C: BlockCipherEncrypt<BlockSize = U16>>(
    cipher: &C,
    ending: Ending<'_>,
    messages: impl Iterator<Item = [&'m [u8]; 2]>,
) -> [AesBlock; LANES] {
    let mut tags = [AesBlock::default(); LANES];
    let chains = messages.zip(&mut tags).map(|(parts, tag)| Chain::new(parts, tag)).collect();
    cipher.encrypt_with_backend(SideBySide { chains, ending });
    tags
}

fn encrypted(cipher: &Aes128Enc, block: [u8; BLOCK_LENGTH]) -> Mask {
    let mut block = Zeroizing::new(block);
    cipher.encrypt_block((&mut *block).into());
    block
}

/// Times x in GF(2^128) (RFC 4493 section 2.3), without a branch on what is secret.
fn doubled(mask: &Mask) -> Mask {
    let number = u128::from_be_bytes(**mask);
    let carry = 0u128.wrapping_sub(number >> 127) & 0x87;
    Zeroizing::new((number << 1 ^ carry).to_be_bytes())
}

/// A message that is being authenticated.
struct Chain<'m, 't> {
    front: &'m [u8],
    back: &'m [u8],
    /// At least one: an empty message is a padded block.
    blocks: usize,
    tag: &'t mut AesBlock,
}

impl<'m, 't> Chain<'m, 't> {
    fn new([front, back]: [&'m [u8]; 2], tag: &'t mut AesBlock) -> Self {
        Self { front, back, blocks: (front.len() + back.len()).div_ceil(BLOCK_LENGTH).max(1), tag }
    }

    /// The bytes of a block and how many there are; behind them zeros.
    #[inline(always)]
    fn block(&self, at: usize) -> ([u8; BLOCK_LENGTH], usize) {
        let start = at * BLOCK_LENGTH;
        let front = self.front.get(start..).unwrap_or_default();
        if let Some(block) = front.first_chunk() {
            return (*block, BLOCK_LENGTH);
        }
        let behind = start.checked_sub(self.front.len()).and_then(|start| self.back.get(start..));
        if let Some(block) = behind.and_then(|behind| behind.first_chunk()) {
            return (*block, BLOCK_LENGTH);
        }
        let mut block = [0; BLOCK_LENGTH];
        block[..front.len()].copy_from_slice(front);
        let back = &self.back[start + front.len() - self.front.len()..];
        let back = &back[..back.len().min(BLOCK_LENGTH - front.len())];
        block[front.len()..][..back.len()].copy_from_slice(back);
        (block, front.len() + back.len())
    }
}

/// Runs the chains in step, in one visit to the cipher's backend.
struct SideBySide<'c, 'm, 't> {
    chains: ArrayVec<Chain<'m, 't>, LANES>,
    ending: Ending<'c>,
}

impl BlockSizeUser for SideBySide<'_, '_, '_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for SideBySide<'_, '_, '_> {
    #[inline(always)]
    fn call<C: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &C) {
        let Self { mut chains, ending: Ending { whole, padded, padding } } = self;
        let mut states = [AesBlock::default(); LANES];
        let mut at = 0;
        while !chains.is_empty() {
            for (chain, state) in chains.iter().zip(&mut states) {
                let (mut block, length) = chain.block(at);
                let mut mask = &[0; BLOCK_LENGTH];
                if at + 1 == chain.blocks {
                    mask = whole;
                    if let Some(end) = block.get_mut(length) {
                        *end = padding;
                        mask = padded;
                    }
                }
                let masked = u128::from_ne_bytes(block) ^ u128::from_ne_bytes(*mask);
                *state = (u128::from_ne_bytes((*state).into()) ^ masked).to_ne_bytes().into();
            }
            encrypt_blocks(backend, &mut states[..chains.len()]);
            at += 1;
            // Chains at their end make room at the end of the arrays.
            for lane in (0..chains.len()).rev() {
                if chains[lane].blocks == at {
                    *chains[lane].tag = states[lane];
                    chains.swap_remove(lane);
                    states[lane] = states[chains.len()];
                }
            }
        }
    }
}
