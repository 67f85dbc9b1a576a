//! The primitives under [`Sealer`](super::Sealer) and [`Opener`](super::Opener): CBC, HMAC and AEADs over
//! bare bytes, with keys expanded once.
//!
//! Public for one reason: published vectors test the code that packets run through, not a copy of it.
//! Nothing here knows of sequence numbers, so nothing outside `crypto` may use it (a test says so): a nonce
//! given by hand is a nonce given twice.

use aes::cipher::array::{Array, ArraySize};
use aes::cipher::typenum::Unsigned;
use aes::cipher::{
    BlockCipherDecrypt, BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockModeDecrypt,
    BlockSizeUser, InOutBuf, InnerIvInit,
};
use aes::{Aes128Dec, Aes128Enc, Aes192Dec, Aes192Enc, Aes256Dec, Aes256Enc};
use ccm::Ccm;
use ccm::aead::{AeadInOut, Nonce, Tag};
use ccm::consts::{U8, U11, U12, U16};
use des::{Des, TdesEde3};
use hmac::{Hmac, KeyInit};
use md5::Md5;
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;

use super::gcm::Gcm;
use super::{Authentication, Encryption};

/// Packets encrypted side by side. CBC is serial within a packet: one chain leaves an AES unit idle most of
/// the time, sixteen independent ones fill it (measured at 1408 bytes: 173 instead of 910 ns a packet).
pub const LANES: usize = 16;

/// One text for [`CbcEncryptor::encrypt`], encrypted in place.
pub struct CbcLane<'a> {
    /// One block.
    pub iv: &'a [u8],
    /// Whole blocks.
    pub text: &'a mut [u8],
}

/// A cipher keyed for encryption in CBC mode, or none.
#[allow(clippy::large_enum_variant, reason = "boxed as a whole by its owner")]
pub enum CbcEncryptor {
    /// Texts stay as they are (RFC 2410).
    Null,
    /// RFC 2405.
    Des(Des),
    /// RFC 2451.
    TripleDes(TdesEde3),
    /// RFC 3602.
    Aes128(Aes128Enc),
    /// RFC 3602.
    Aes192(Aes192Enc),
    /// RFC 3602.
    Aes256(Aes256Enc),
}

impl CbcEncryptor {
    /// Expands `key`; `None` for an AEAD or a key of another length. Weakness is not looked at.
    pub fn new(encryption: Encryption, key: &[u8]) -> Option<Self> {
        Some(match encryption {
            Encryption::Null if key.is_empty() => Self::Null,
            Encryption::Des => Self::Des(KeyInit::new_from_slice(key).ok()?),
            Encryption::TripleDes => Self::TripleDes(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes128Cbc => Self::Aes128(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes192Cbc => Self::Aes192(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes256Cbc => Self::Aes256(KeyInit::new_from_slice(key).ok()?),
            _ => return None,
        })
    }

    /// Encrypts every lane, up to [`LANES`] side by side.
    ///
    /// # Panics
    /// When an IV is not one block, or a text not whole blocks.
    pub fn encrypt(&self, lanes: &mut [CbcLane<'_>]) {
        match self {
            Self::Null => {}
            Self::Des(cipher) => cbc_encrypt(cipher, lanes),
            Self::TripleDes(cipher) => cbc_encrypt(cipher, lanes),
            Self::Aes128(cipher) => cbc_encrypt(cipher, lanes),
            Self::Aes192(cipher) => cbc_encrypt(cipher, lanes),
            Self::Aes256(cipher) => cbc_encrypt(cipher, lanes),
        }
    }
}

fn cbc_encrypt<C: BlockCipherEncrypt>(cipher: &C, lanes: &mut [CbcLane<'_>]) {
    for lanes in lanes.chunks_mut(LANES) {
        cipher.encrypt_with_backend(Interleave::<C::BlockSize> {
            lanes,
            block_length: std::marker::PhantomData,
        });
    }
}

/// Runs up to [`LANES`] CBC chains in step, in one visit to the cipher's backend.
struct Interleave<'l, 't, B> {
    lanes: &'l mut [CbcLane<'t>],
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

#[inline(always)]
pub(super) fn encrypt_blocks<C: BlockCipherEncBackend>(backend: &C, blocks: &mut [Array<u8, C::BlockSize>]) {
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

/// A cipher keyed for decryption in CBC mode, or none.
#[allow(clippy::large_enum_variant, reason = "boxed as a whole by its owner")]
pub enum CbcDecryptor {
    /// Texts are copied (RFC 2410).
    Null,
    /// RFC 2405.
    Des(Des),
    /// RFC 2451.
    TripleDes(TdesEde3),
    /// RFC 3602.
    Aes128(Aes128Dec),
    /// RFC 3602.
    Aes192(Aes192Dec),
    /// RFC 3602.
    Aes256(Aes256Dec),
}

impl CbcDecryptor {
    /// Expands `key`; `None` for an AEAD or a key of another length. Weakness is not looked at.
    pub fn new(encryption: Encryption, key: &[u8]) -> Option<Self> {
        Some(match encryption {
            Encryption::Null if key.is_empty() => Self::Null,
            Encryption::Des => Self::Des(KeyInit::new_from_slice(key).ok()?),
            Encryption::TripleDes => Self::TripleDes(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes128Cbc => Self::Aes128(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes192Cbc => Self::Aes192(KeyInit::new_from_slice(key).ok()?),
            Encryption::Aes256Cbc => Self::Aes256(KeyInit::new_from_slice(key).ok()?),
            _ => return None,
        })
    }

    /// Decrypts every text: IV, ciphertext, and where the plaintext goes, which is as long.
    ///
    /// # Panics
    /// When an IV is not one block, a text not whole blocks, or not as long as its plaintext.
    pub fn decrypt<'t>(&self, texts: impl Iterator<Item = (&'t [u8], &'t [u8], &'t mut [u8])>) {
        match self {
            Self::Null => texts.for_each(|(_, ciphertext, plaintext)| plaintext.copy_from_slice(ciphertext)),
            Self::Des(cipher) => cbc_decrypt(cipher, texts),
            Self::TripleDes(cipher) => cbc_decrypt(cipher, texts),
            Self::Aes128(cipher) => cbc_decrypt(cipher, texts),
            Self::Aes192(cipher) => cbc_decrypt(cipher, texts),
            Self::Aes256(cipher) => cbc_decrypt(cipher, texts),
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

/// HMAC (RFC 2104), its inner and outer states precomputed.
#[allow(clippy::large_enum_variant, reason = "boxed as a whole by its owner")]
pub enum Mac {
    /// RFC 2403.
    Md5(Hmac<Md5>),
    /// RFC 2404.
    Sha1(Hmac<Sha1>),
    /// RFC 4868.
    Sha256(Hmac<Sha256>),
    /// RFC 4868.
    Sha384(Hmac<Sha384>),
    /// RFC 4868.
    Sha512(Hmac<Sha512>),
}

impl Mac {
    /// Keys it; any length does here. `None` for [`Authentication::None`].
    pub fn new(authentication: Authentication, key: &[u8]) -> Option<Self> {
        Some(match authentication {
            Authentication::None => return None,
            Authentication::Md5 => Self::Md5(KeyInit::new_from_slice(key).ok()?),
            Authentication::Sha1 => Self::Sha1(KeyInit::new_from_slice(key).ok()?),
            Authentication::Sha256 => Self::Sha256(KeyInit::new_from_slice(key).ok()?),
            Authentication::Sha384 => Self::Sha384(KeyInit::new_from_slice(key).ok()?),
            Authentication::Sha512 => Self::Sha512(KeyInit::new_from_slice(key).ok()?),
        })
    }

    /// Signs every message, given in two parts: the tag's first bytes go to the third slice.
    ///
    /// # Panics
    /// When that slice is longer than a tag.
    pub fn sign<'m, Tail: AsRef<[u8]>>(
        &self,
        messages: impl Iterator<Item = (&'m [u8], Tail, &'m mut [u8])>,
    ) {
        match self {
            Self::Md5(keyed) => sign(keyed, messages),
            Self::Sha1(keyed) => sign(keyed, messages),
            Self::Sha256(keyed) => sign(keyed, messages),
            Self::Sha384(keyed) => sign(keyed, messages),
            Self::Sha512(keyed) => sign(keyed, messages),
        }
    }

    /// Hands `verdict` to each message's owner: true when the tag's first bytes are `icv`, which is
    /// neither empty nor longer than a tag. Compares in constant time.
    pub fn verify<'m, Owner, Tail: AsRef<[u8]>>(
        &self,
        messages: impl Iterator<Item = (Owner, &'m [u8], Tail, &'m [u8])>,
        verdict: impl FnMut(Owner, bool),
    ) {
        match self {
            Self::Md5(keyed) => verify(keyed, messages, verdict),
            Self::Sha1(keyed) => verify(keyed, messages, verdict),
            Self::Sha256(keyed) => verify(keyed, messages, verdict),
            Self::Sha384(keyed) => verify(keyed, messages, verdict),
            Self::Sha512(keyed) => verify(keyed, messages, verdict),
        }
    }
}

#[inline(always)]
fn tag<M: hmac::Mac + Clone>(keyed: &M, message: &[u8], tail: &[u8]) -> Array<u8, M::OutputSize> {
    // A copy of the keyed states: the key itself is hashed once per SA, not once per packet.
    let mut mac = keyed.clone();
    mac.update(message);
    mac.update(tail);
    mac.finalize().into_bytes()
}

fn sign<'m, M: hmac::Mac + Clone, Tail: AsRef<[u8]>>(
    keyed: &M,
    messages: impl Iterator<Item = (&'m [u8], Tail, &'m mut [u8])>,
) {
    for (message, tail, icv) in messages {
        let tag = tag(keyed, message, tail.as_ref());
        icv.copy_from_slice(&tag[..icv.len()]);
    }
}

fn verify<'m, M: hmac::Mac + Clone, Owner, Tail: AsRef<[u8]>>(
    keyed: &M,
    messages: impl Iterator<Item = (Owner, &'m [u8], Tail, &'m [u8])>,
    mut verdict: impl FnMut(Owner, bool),
) {
    for (owner, message, tail, icv) in messages {
        let tag = tag(keyed, message, tail.as_ref());
        let is_right = !icv.is_empty() && tag.get(..icv.len()).is_some_and(|tag| bool::from(tag.ct_eq(icv)));
        verdict(owner, is_right);
    }
}

// RFC 4309 section 4: three bytes of salt, eight of IV.
type Ccm11<C, IcvLength> = Ccm<C, IcvLength, U11>;

/// Packets of one visit to an AEAD.
pub const AEAD_LANES: usize = 64;

/// One text for [`Aead::seal_lanes`], encrypted in place.
pub struct AeadSeal<'a, A> {
    /// Salt and IV.
    pub nonce: [&'a [u8]; 2],
    /// What is authenticated only.
    pub aad: A,
    /// What is encrypted.
    pub text: &'a mut [u8],
    /// Where the tag goes.
    pub icv: &'a mut [u8],
}

/// One text for [`Aead::open_lanes`].
pub struct AeadOpen<'a, A> {
    /// Salt and IV.
    pub nonce: [&'a [u8]; 2],
    /// What is authenticated only.
    pub aad: A,
    /// What was encrypted.
    pub ciphertext: &'a [u8],
    /// The tag.
    pub icv: &'a [u8],
    /// As long as the ciphertext; all zeros when the tag is wrong.
    pub plaintext: &'a mut [u8],
    /// Set by [`Aead::open_lanes`]: whether the tag is right.
    pub is_right: bool,
}

/// GCM or CCM under one key, for one ICV length (8, 12 or 16 bytes).
#[allow(clippy::large_enum_variant, reason = "boxed as a whole by its owner")]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Aead {
    Aes128Gcm(Gcm<Aes128Enc>),
    Aes192Gcm(Gcm<Aes192Enc>),
    Aes256Gcm(Gcm<Aes256Enc>),
    Aes128Ccm8(Ccm11<Aes128Enc, U8>),
    Aes128Ccm12(Ccm11<Aes128Enc, U12>),
    Aes128Ccm16(Ccm11<Aes128Enc, U16>),
}

impl Aead {
    /// Expands `key`, without its salt; `None` for another algorithm, key length or ICV length.
    pub fn new(encryption: Encryption, icv_length: u8, key: &[u8]) -> Option<Self> {
        use Encryption::{Aes128Ccm, Aes128Gcm, Aes192Gcm, Aes256Gcm};
        Some(match (encryption, icv_length) {
            (Aes128Gcm, 8 | 12 | 16) => Self::Aes128Gcm(Gcm::new(key, icv_length.into())?),
            (Aes192Gcm, 8 | 12 | 16) => Self::Aes192Gcm(Gcm::new(key, icv_length.into())?),
            (Aes256Gcm, 8 | 12 | 16) => Self::Aes256Gcm(Gcm::new(key, icv_length.into())?),
            (Aes128Ccm, 8) => Self::Aes128Ccm8(KeyInit::new_from_slice(key).ok()?),
            (Aes128Ccm, 12) => Self::Aes128Ccm12(KeyInit::new_from_slice(key).ok()?),
            (Aes128Ccm, 16) => Self::Aes128Ccm16(KeyInit::new_from_slice(key).ok()?),
            _ => return None,
        })
    }

    /// Encrypts every text and writes its ICV. False when a length is not the algorithm's; that lane is then in
    /// the clear still.
    #[must_use]
    pub fn seal_lanes<A: AsRef<[u8]>>(&self, lanes: &mut [AeadSeal<'_, A>]) -> bool {
        match self {
            Self::Aes128Gcm(gcm) => gcm.seal(lanes),
            Self::Aes192Gcm(gcm) => gcm.seal(lanes),
            Self::Aes256Gcm(gcm) => gcm.seal(lanes),
            Self::Aes128Ccm8(ccm) => seal_one_by_one(ccm, lanes),
            Self::Aes128Ccm12(ccm) => seal_one_by_one(ccm, lanes),
            Self::Aes128Ccm16(ccm) => seal_one_by_one(ccm, lanes),
        }
    }

    /// Verifies every text and decrypts those that are right; a length that is not the algorithm's is wrong.
    pub fn open_lanes<A: AsRef<[u8]>>(&self, lanes: &mut [AeadOpen<'_, A>]) {
        match self {
            Self::Aes128Gcm(gcm) => gcm.open(lanes),
            Self::Aes192Gcm(gcm) => gcm.open(lanes),
            Self::Aes256Gcm(gcm) => gcm.open(lanes),
            Self::Aes128Ccm8(ccm) => open_one_by_one(ccm, lanes),
            Self::Aes128Ccm12(ccm) => open_one_by_one(ccm, lanes),
            Self::Aes128Ccm16(ccm) => open_one_by_one(ccm, lanes),
        }
    }

    /// [`Aead::seal_lanes`] of one text.
    #[must_use]
    pub fn seal(&self, nonce: [&[u8]; 2], aad: &[u8], text: &mut [u8], icv: &mut [u8]) -> bool {
        self.seal_lanes(&mut [AeadSeal { nonce, aad, text, icv }])
    }

    /// [`Aead::open_lanes`] of one text.
    #[must_use]
    pub fn open(
        &self,
        nonce: [&[u8]; 2],
        aad: &[u8],
        ciphertext: &[u8],
        icv: &[u8],
        plaintext: &mut [u8],
    ) -> bool {
        let mut lane = [AeadOpen { nonce, aad, ciphertext, icv, plaintext, is_right: false }];
        self.open_lanes(&mut lane);
        lane[0].is_right
    }
}

fn seal_one_by_one<A: AeadInOut, Aad: AsRef<[u8]>>(aead: &A, lanes: &mut [AeadSeal<'_, Aad>]) -> bool {
    let mut all = true;
    for AeadSeal { nonce, aad, text, icv } in lanes {
        all &= aead_seal(aead, *nonce, aad.as_ref(), text, icv);
    }
    all
}

fn open_one_by_one<A: AeadInOut, Aad: AsRef<[u8]>>(aead: &A, lanes: &mut [AeadOpen<'_, Aad>]) {
    for AeadOpen { nonce, aad, ciphertext, icv, plaintext, is_right } in lanes {
        *is_right = aead_open(aead, *nonce, aad.as_ref(), ciphertext, icv, plaintext);
    }
}

/// Encrypts `text` in place and writes the ICV; the nonce comes as salt and IV. False, and `text` in the
/// clear, when a length is not the algorithm's.
#[must_use]
pub fn aead_seal<A: AeadInOut>(
    aead: &A,
    nonce: [&[u8]; 2],
    aad: &[u8],
    text: &mut [u8],
    icv: &mut [u8],
) -> bool {
    let Some(nonce) = join::<A>(nonce) else { return false };
    let Ok(icv) = <&mut Tag<A>>::try_from(icv) else { return false };
    match aead.encrypt_inout_detached(&nonce, aad, text.into()) {
        Ok(tag) => {
            *icv = tag;
            true
        }
        Err(_) => false,
    }
}

/// Verifies and decrypts into `plaintext`, which is as long as `ciphertext`; the nonce comes as salt and IV.
/// False when the ICV is wrong (compared in constant time) or a length is not the algorithm's: `plaintext`
/// is then all zeros, whatever the algorithm had written there or not.
#[must_use]
pub fn aead_open<A: AeadInOut>(
    aead: &A,
    nonce: [&[u8]; 2],
    aad: &[u8],
    ciphertext: &[u8],
    icv: &[u8],
    plaintext: &mut [u8],
) -> bool {
    let is_right = join::<A>(nonce).is_some_and(|nonce| {
        let Ok(icv) = <&Tag<A>>::try_from(icv) else { return false };
        let Ok(text) = InOutBuf::new(ciphertext, &mut *plaintext) else { return false };
        aead.decrypt_inout_detached(&nonce, aad, text, icv).is_ok()
    });
    if !is_right {
        plaintext.fill(0);
    }
    is_right
}

#[inline(always)]
fn join<A: AeadInOut>([salt, iv]: [&[u8]; 2]) -> Option<Nonce<A>> {
    let mut nonce = Nonce::<A>::default();
    if nonce.len() != salt.len() + iv.len() {
        return None;
    }
    nonce[..salt.len()].copy_from_slice(salt);
    nonce[salt.len()..].copy_from_slice(iv);
    Some(nonce)
}
