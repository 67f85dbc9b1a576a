//! Encryption and integrity in one: GCM, CCM, ChaCha20-Poly1305.

use aes::cipher::InOutBuf;
use aes::{Aes128Enc, Aes192Enc, Aes256Enc};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, Nonce, Tag};
use hmac::KeyInit;

use super::ccm::Ccm;
use super::gcm::Gcm;
use crate::crypto::Encryption;

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

/// An AEAD under one key, for one ICV length (8, 12 or 16 bytes; ChaCha20-Poly1305 has 16 only).
#[allow(clippy::large_enum_variant, reason = "boxed as a whole by its owner")]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Aead {
    Aes128Gcm(Gcm<Aes128Enc>),
    Aes192Gcm(Gcm<Aes192Enc>),
    Aes256Gcm(Gcm<Aes256Enc>),
    Aes128Ccm(Ccm<Aes128Enc>),
    Aes192Ccm(Ccm<Aes192Enc>),
    Aes256Ccm(Ccm<Aes256Enc>),
    ChaCha20Poly1305(ChaCha20Poly1305),
}

impl Aead {
    /// Expands `key`, without its salt; `None` for another algorithm, key length or ICV length.
    pub fn new(encryption: Encryption, icv_length: u8, key: &[u8]) -> Option<Self> {
        Some(match (encryption, icv_length) {
            (Encryption::Aes128Gcm, 8 | 12 | 16) => Self::Aes128Gcm(Gcm::new(key, icv_length.into())?),
            (Encryption::Aes192Gcm, 8 | 12 | 16) => Self::Aes192Gcm(Gcm::new(key, icv_length.into())?),
            (Encryption::Aes256Gcm, 8 | 12 | 16) => Self::Aes256Gcm(Gcm::new(key, icv_length.into())?),
            (Encryption::Aes128Ccm, 8 | 12 | 16) => Self::Aes128Ccm(Ccm::new(key, icv_length.into())?),
            (Encryption::Aes192Ccm, 8 | 12 | 16) => Self::Aes192Ccm(Ccm::new(key, icv_length.into())?),
            (Encryption::Aes256Ccm, 8 | 12 | 16) => Self::Aes256Ccm(Ccm::new(key, icv_length.into())?),
            (Encryption::ChaCha20Poly1305, 16) => Self::ChaCha20Poly1305(KeyInit::new_from_slice(key).ok()?),
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
            Self::Aes128Ccm(ccm) => ccm.seal(lanes),
            Self::Aes192Ccm(ccm) => ccm.seal(lanes),
            Self::Aes256Ccm(ccm) => ccm.seal(lanes),
            Self::ChaCha20Poly1305(chacha) => seal_one_by_one(chacha, lanes),
        }
    }

    /// Verifies every text and decrypts those that are right; a length that is not the algorithm's is wrong.
    pub fn open_lanes<A: AsRef<[u8]>>(&self, lanes: &mut [AeadOpen<'_, A>]) {
        match self {
            Self::Aes128Gcm(gcm) => gcm.open(lanes),
            Self::Aes192Gcm(gcm) => gcm.open(lanes),
            Self::Aes256Gcm(gcm) => gcm.open(lanes),
            Self::Aes128Ccm(ccm) => ccm.open(lanes),
            Self::Aes192Ccm(ccm) => ccm.open(lanes),
            Self::Aes256Ccm(ccm) => ccm.open(lanes),
            Self::ChaCha20Poly1305(chacha) => open_one_by_one(chacha, lanes),
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
fn aead_seal<A: AeadInOut>(aead: &A, nonce: [&[u8]; 2], aad: &[u8], text: &mut [u8], icv: &mut [u8]) -> bool {
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
fn aead_open<A: AeadInOut>(
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
