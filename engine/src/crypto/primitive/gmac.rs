//! AES-GMAC: GCM of nothing, beside a message that is authenticated only (NIST SP 800-38D section 3). Unlike the
//! other MACs it takes a nonce, which must never come twice.

use aes::{Aes128Enc, Aes192Enc, Aes256Enc};
use arrayvec::ArrayVec;
use subtle::ConstantTimeEq;

use super::gcm::Gcm;
use super::{AesBlock, LANES, in_groups};
use crate::crypto::Encryption;

/// GMAC under one key; its ICV is 16 bytes (RFC 4543 section 3.4: never truncated).
#[allow(missing_docs, reason = "the names say it all")]
pub enum Gmac {
    Aes128(Gcm<Aes128Enc>),
    Aes192(Gcm<Aes192Enc>),
    Aes256(Gcm<Aes256Enc>),
}

/// What one ICV is about: the parts, one behind the other.
pub struct GmacMessage<'m, Front, Back> {
    /// Salt and IV: 4 and 8 bytes (RFC 4543 section 3.2).
    pub nonce: [&'m [u8]; 2],
    /// The first part.
    pub front: Front,
    /// The rest.
    pub back: Back,
}

const ICV_LENGTH: usize = 16;

impl Gmac {
    /// Expands `key`, without its salt; `None` for another algorithm or key length.
    pub fn new(encryption: Encryption, key: &[u8]) -> Option<Self> {
        Some(match encryption {
            Encryption::Aes128Gmac => Self::Aes128(Gcm::new(key, ICV_LENGTH)?),
            Encryption::Aes192Gmac => Self::Aes192(Gcm::new(key, ICV_LENGTH)?),
            Encryption::Aes256Gmac => Self::Aes256(Gcm::new(key, ICV_LENGTH)?),
            _ => return None,
        })
    }

    /// Signs every message: the ICV goes to the slice beside it.
    ///
    /// # Panics
    /// When salt, IV or ICV is not as long as the algorithm has it.
    pub fn sign<'m, Front: AsRef<[u8]>, Back: AsRef<[u8]>>(
        &self,
        messages: impl Iterator<Item = (GmacMessage<'m, Front, Back>, &'m mut [u8])>,
    ) {
        in_groups(messages, |group| {
            let tags = self.tags(group.iter().map(|(message, _)| message));
            for ((_, icv), tag) in group.into_iter().zip(tags) {
                icv.copy_from_slice(&tag.expect("salt and IV are as long as the algorithm has them"));
            }
        });
    }

    /// Hands `verdict` to each message's owner: whether the ICV beside it is right. Compares in constant time; a
    /// length that is not the algorithm's is wrong.
    pub fn verify<'m, Owner, Front: AsRef<[u8]>, Back: AsRef<[u8]>>(
        &self,
        messages: impl Iterator<Item = (Owner, GmacMessage<'m, Front, Back>, &'m [u8])>,
        mut verdict: impl FnMut(Owner, bool),
    ) {
        in_groups(messages, |group| {
            let tags = self.tags(group.iter().map(|(_, message, _)| message));
            for ((owner, _, icv), tag) in group.into_iter().zip(tags) {
                verdict(owner, tag.is_some_and(|tag| tag.as_slice().ct_eq(icv).into()));
            }
        });
    }

    fn tags<'g, 'm: 'g, Front: AsRef<[u8]> + 'g, Back: AsRef<[u8]> + 'g>(
        &self,
        messages: impl Iterator<Item = &'g GmacMessage<'m, Front, Back>>,
    ) -> ArrayVec<Option<AesBlock>, LANES> {
        let messages =
            messages.map(|message| (message.nonce, [message.front.as_ref(), message.back.as_ref()]));
        match self {
            Self::Aes128(gcm) => gcm.tags(messages),
            Self::Aes192(gcm) => gcm.tags(messages),
            Self::Aes256(gcm) => gcm.tags(messages),
        }
    }
}
