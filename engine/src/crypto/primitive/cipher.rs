//! Ciphers that need a MAC beside them: CBC, CTR, or none.

use aes::cipher::array::{Array, ArraySize};
use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherDecrypt, BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockModeDecrypt,
    BlockSizeUser, InnerIvInit, KeyInit,
};
use aes::{Aes128Dec, Aes128Enc, Aes192Dec, Aes192Enc, Aes256Dec, Aes256Enc};
use arrayvec::ArrayVec;
use des::{Des, TdesEde3};

use super::counter::Ctr;
use super::{LANES, encrypt_blocks, in_groups};
use crate::crypto::Encryption;

/// One text for [`Encryptor::encrypt`], encrypted in place.
pub struct CipherLane<'a> {
    /// One block for CBC, eight bytes for CTR.
    pub iv: &'a [u8],
    /// Whole blocks for CBC, anything for CTR.
    pub text: &'a mut [u8],
}

/// A cipher keyed for encryption, or none.
#[allow(clippy::large_enum_variant, reason = "boxed as a whole by its owner")]
pub enum Encryptor {
    /// Texts stay as they are (RFC 2410).
    Null,
    /// RFC 2405.
    Des(Des),
    /// RFC 2451.
    TripleDes(TdesEde3),
    /// RFC 3602.
    Aes128Cbc(Aes128Enc),
    /// RFC 3602.
    Aes192Cbc(Aes192Enc),
    /// RFC 3602.
    Aes256Cbc(Aes256Enc),
    /// RFC 3686.
    Aes128Ctr(Ctr<Aes128Enc>),
    /// RFC 3686.
    Aes192Ctr(Ctr<Aes192Enc>),
    /// RFC 3686.
    Aes256Ctr(Ctr<Aes256Enc>),
}

impl Encryptor {
    /// Expands `key`, which for CTR ends with its salt; `None` for an AEAD or a key of another length. Weakness is
    /// not looked at.
    pub fn new(encryption: Encryption, key: &[u8]) -> Option<Self> {
        Some(match encryption {
            Encryption::Null if key.is_empty() => Self::Null,
            Encryption::Des => Self::Des(KeyInit::new_from_slice(key).ok()?),
            Encryption::TripleDes => Self::TripleDes(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes128Cbc => Self::Aes128Cbc(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes192Cbc => Self::Aes192Cbc(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes256Cbc => Self::Aes256Cbc(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes128Ctr => Self::Aes128Ctr(Ctr::new(key)?),
            Encryption::Aes192Ctr => Self::Aes192Ctr(Ctr::new(key)?),
            Encryption::Aes256Ctr => Self::Aes256Ctr(Ctr::new(key)?),
            _ => return None,
        })
    }

    /// Encrypts every lane, up to [`LANES`] side by side.
    ///
    /// # Panics
    /// When an IV or a text has a length that is not the cipher's.
    pub fn encrypt(&self, lanes: &mut [CipherLane<'_>]) {
        match self {
            Self::Null => {}
            Self::Des(cipher) => cbc_encrypt(cipher, lanes),
            Self::TripleDes(cipher) => cbc_encrypt(cipher, lanes),
            Self::Aes128Cbc(cipher) => cbc_encrypt(cipher, lanes),
            Self::Aes192Cbc(cipher) => cbc_encrypt(cipher, lanes),
            Self::Aes256Cbc(cipher) => cbc_encrypt(cipher, lanes),
            Self::Aes128Ctr(ctr) => ctr.apply(lanes),
            Self::Aes192Ctr(ctr) => ctr.apply(lanes),
            Self::Aes256Ctr(ctr) => ctr.apply(lanes),
        }
    }
}

fn cbc_encrypt<C: BlockCipherEncrypt>(cipher: &C, lanes: &mut [CipherLane<'_>]) {
    for lanes in lanes.chunks_mut(LANES) {
        cipher.encrypt_with_backend(Interleave::<C::BlockSize> {
            lanes,
            block_length: std::marker::PhantomData,
        });
    }
}

/// Runs up to [`LANES`] CBC chains in step, in one visit to the cipher's backend.
struct Interleave<'l, 't, B> {
    lanes: &'l mut [CipherLane<'t>],
    block_length: std::marker::PhantomData<B>,
}

impl<B: ArraySize> BlockSizeUser for Interleave<'_, '_, B> {
    type BlockSize = B;
}

impl<B: ArraySize> BlockCipherEncClosure for Interleave<'_, '_, B> {
    #[inline(always)]
    fn call<C: BlockCipherEncBackend<BlockSize = B>>(self, backend: &C) {
        let mut chains: [Array<u8, B>; LANES] = Default::default();
        let mut texts: [&mut [Array<u8, B>]; LANES] = Default::default();
        let mut running = self.lanes.len();
        for ((chain, text), lane) in chains.iter_mut().zip(&mut texts).zip(self.lanes) {
            chain.copy_from_slice(lane.iv);
            let (blocks, rest) = Array::slice_as_chunks_mut(lane.text);
            assert!(rest.is_empty(), "CBC takes whole blocks");
            *text = blocks;
        }
        let mut done = 0;
        loop {
            // Chains at their end make room at the end of the arrays.
            let mut lane = 0;
            while lane < running {
                if texts[lane].len() == done {
                    running -= 1;
                    texts.swap(lane, running);
                    chains.swap(lane, running);
                } else {
                    lane += 1;
                }
            }
            let (chains, texts) = (&mut chains[..running], &mut texts[..running]);
            let Some(end) = texts.iter().map(|text| text.len()).min() else { return };
            for at in done..end {
                for (chain, text) in chains.iter_mut().zip(texts.iter()) {
                    chain.iter_mut().zip(&text[at]).for_each(|(chain, clear)| *chain ^= clear);
                }
                encrypt_blocks(backend, chains);
                for (chain, text) in chains.iter().zip(texts.iter_mut()) {
                    text[at].copy_from_slice(chain);
                }
            }
            done = end;
        }
    }
}

/// A cipher keyed for decryption, or none.
#[allow(clippy::large_enum_variant, reason = "boxed as a whole by its owner")]
pub enum Decryptor {
    /// Texts are copied (RFC 2410).
    Null,
    /// RFC 2405.
    Des(Des),
    /// RFC 2451.
    TripleDes(TdesEde3),
    /// RFC 3602.
    Aes128Cbc(Aes128Dec),
    /// RFC 3602.
    Aes192Cbc(Aes192Dec),
    /// RFC 3602.
    Aes256Cbc(Aes256Dec),
    /// RFC 3686.
    Aes128Ctr(Ctr<Aes128Enc>),
    /// RFC 3686.
    Aes192Ctr(Ctr<Aes192Enc>),
    /// RFC 3686.
    Aes256Ctr(Ctr<Aes256Enc>),
}

impl Decryptor {
    /// Expands `key`, which for CTR ends with its salt; `None` for an AEAD or a key of another length. Weakness is
    /// not looked at.
    pub fn new(encryption: Encryption, key: &[u8]) -> Option<Self> {
        Some(match encryption {
            Encryption::Null if key.is_empty() => Self::Null,
            Encryption::Des => Self::Des(KeyInit::new_from_slice(key).ok()?),
            Encryption::TripleDes => Self::TripleDes(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes128Cbc => Self::Aes128Cbc(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes192Cbc => Self::Aes192Cbc(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes256Cbc => Self::Aes256Cbc(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes128Ctr => Self::Aes128Ctr(Ctr::new(key)?),
            Encryption::Aes192Ctr => Self::Aes192Ctr(Ctr::new(key)?),
            Encryption::Aes256Ctr => Self::Aes256Ctr(Ctr::new(key)?),
            _ => return None,
        })
    }

    /// Decrypts every text: IV, ciphertext, and where the plaintext goes, which is as long.
    ///
    /// # Panics
    /// When an IV or a text has a length that is not the cipher's, or a text is not as long as its plaintext.
    pub fn decrypt<'t>(&self, texts: impl Iterator<Item = (&'t [u8], &'t [u8], &'t mut [u8])>) {
        match self {
            Self::Null => texts.for_each(|(_, ciphertext, plaintext)| plaintext.copy_from_slice(ciphertext)),
            Self::Des(cipher) => cbc_decrypt(cipher, texts),
            Self::TripleDes(cipher) => cbc_decrypt(cipher, texts),
            Self::Aes128Cbc(cipher) => cbc_decrypt(cipher, texts),
            Self::Aes192Cbc(cipher) => cbc_decrypt(cipher, texts),
            Self::Aes256Cbc(cipher) => cbc_decrypt(cipher, texts),
            Self::Aes128Ctr(ctr) => ctr_decrypt(ctr, texts),
            Self::Aes192Ctr(ctr) => ctr_decrypt(ctr, texts),
            Self::Aes256Ctr(ctr) => ctr_decrypt(ctr, texts),
        }
    }
}

fn cbc_decrypt<'t, C: BlockCipherDecrypt>(
    cipher: &C,
    texts: impl Iterator<Item = (&'t [u8], &'t [u8], &'t mut [u8])>,
) {
    for (iv, ciphertext, plaintext) in texts {
        let iv = iv.try_into().expect("the IV is one block");
        let (ciphertext, rest) = Array::slice_as_chunks(ciphertext);
        assert!(rest.is_empty(), "CBC takes whole blocks");
        let (plaintext, _) = Array::slice_as_chunks_mut(plaintext);
        // Borrows the expanded key: nothing is expanded per packet.
        cbc::Decryptor::inner_iv_init(cipher, iv)
            .decrypt_blocks_b2b(ciphertext, plaintext)
            .expect("the plaintext is as long as the ciphertext");
    }
}

/// The key stream is the same in both directions.
fn ctr_decrypt<'t, C: BlockCipherEncrypt<BlockSize = U16>>(
    ctr: &Ctr<C>,
    texts: impl Iterator<Item = (&'t [u8], &'t [u8], &'t mut [u8])>,
) {
    in_groups(texts, |group| {
        let mut lanes = ArrayVec::<_, LANES>::new();
        for (iv, ciphertext, text) in group {
            text.copy_from_slice(ciphertext);
            lanes.push(CipherLane { iv, text });
        }
        ctr.apply(&mut lanes);
    });
}
