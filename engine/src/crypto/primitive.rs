//! The primitives under [`Sealer`](super::Sealer) and [`Opener`](super::Opener): ciphers, MACs and AEADs over
//! bare bytes, with keys expanded once.
//!
//! Public for one reason: published vectors test the code that packets run through, not a copy of it.
//! Nothing here knows of sequence numbers, so nothing outside `crypto` may use it (a test says so): a nonce
//! given by hand is a nonce given twice.
//!
//! ```text
//! cipher   CBC, CTR or none: beside a MAC      counter   the key stream of CTR, GCM and CCM
//! mac      HMAC, XCBC-MAC, CMAC                cbc_mac   what the last two are, and CCM's tag
//! aead     GCM, CCM, ChaCha20-Poly1305         gcm       GHASH, and what it is used for
//! gmac     GCM's MAC alone, with an IV         ccm       both of these together
//! ```

mod aead;
mod cbc_mac;
mod ccm;
mod cipher;
mod counter;
mod gcm;
mod gmac;
mod mac;

pub use aead::{AEAD_LANES, Aead, AeadOpen, AeadSeal};
pub use cipher::{CipherLane, Decryptor, Encryptor};
pub use gmac::{Gmac, GmacMessage};
pub use mac::Mac;

use aes::cipher::BlockCipherEncBackend;
use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::typenum::Unsigned;
use arrayvec::ArrayVec;
use subtle::ConstantTimeEq;

type AesBlock = Array<u8, U16>;

/// Bytes of an AES block.
const BLOCK_LENGTH: usize = 16;

/// Packets encrypted side by side. CBC is serial within a packet: one chain leaves an AES unit idle most of
/// the time, sixteen independent ones fill it (measured at 1408 bytes: 173 instead of 910 ns a packet).
pub const LANES: usize = 16;

#[inline(always)]
fn encrypt_blocks<C: BlockCipherEncBackend>(backend: &C, blocks: &mut [Array<u8, C::BlockSize>]) {
    if C::ParBlocksSize::USIZE > 1 {
        let (chunks, tail) = Array::slice_as_chunks_mut(blocks);
        for chunk in chunks {
            backend.encrypt_par_blocks_inplace(chunk);
        }
        backend.encrypt_tail_blocks_inplace(tail);
    } else {
        for block in blocks {
            backend.encrypt_block_inplace(block);
        }
    }
}

/// Whether `icv`, which may be shorter, is the beginning of `tag`; in constant time.
#[inline(always)]
fn is_tag(tag: &[u8; BLOCK_LENGTH], icv: &[u8]) -> bool {
    // Behind a shorter one our own bytes. One word: bytes would be compared by a call each.
    let mut claimed = *tag;
    claimed[..icv.len()].copy_from_slice(icv);
    u128::from_ne_bytes(claimed).ct_eq(&u128::from_ne_bytes(*tag)).into()
}

/// Hands `messages` on, up to [`LANES`] at a time.
fn in_groups<T>(mut messages: impl Iterator<Item = T>, mut each: impl FnMut(ArrayVec<T, LANES>)) {
    loop {
        let mut group = ArrayVec::new();
        group.extend(messages.by_ref().take(LANES));
        let is_last = !group.is_full();
        if !group.is_empty() {
            each(group);
        }
        if is_last {
            return;
        }
    }
}
