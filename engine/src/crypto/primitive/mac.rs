//! MACs that take nothing but a key: HMAC, XCBC-MAC, CMAC.

use aes::cipher::array::Array;
use hmac::{Hmac, KeyInit};
use md5::Md5;
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;

use super::cbc_mac::CbcMac;
use super::in_groups;
use crate::crypto::Authentication;

/// A MAC, keyed: of HMAC (RFC 2104) the inner and outer states, of the others the expanded keys.
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
    /// RFC 3566.
    AesXcbc(CbcMac),
    /// RFC 4494.
    AesCmac(CbcMac),
}

impl Mac {
    /// Keys it; any length does for HMAC, 16 bytes for the others. `None` for [`Authentication::None`] and for a key
    /// that does not do.
    pub fn new(authentication: Authentication, key: &[u8]) -> Option<Self> {
        Some(match authentication {
            Authentication::None => return None,
            Authentication::Md5 => Self::Md5(KeyInit::new_from_slice(key).ok()?),
            Authentication::Sha1 => Self::Sha1(KeyInit::new_from_slice(key).ok()?),
            Authentication::Sha256 => Self::Sha256(KeyInit::new_from_slice(key).ok()?),
            Authentication::Sha384 => Self::Sha384(KeyInit::new_from_slice(key).ok()?),
            Authentication::Sha512 => Self::Sha512(KeyInit::new_from_slice(key).ok()?),
            Authentication::AesXcbc => Self::AesXcbc(CbcMac::xcbc(key)?),
            Authentication::AesCmac => Self::AesCmac(CbcMac::cmac(key)?),
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
            Self::AesXcbc(keyed) | Self::AesCmac(keyed) => sign_side_by_side(keyed, messages),
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
            Self::AesXcbc(keyed) | Self::AesCmac(keyed) => verify_side_by_side(keyed, messages, verdict),
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
        verdict(owner, begins_with(&tag(keyed, message, tail.as_ref()), icv));
    }
}

/// True when the tag's first bytes are `icv`; compared in constant time.
#[inline(always)]
fn begins_with(tag: &[u8], icv: &[u8]) -> bool {
    !icv.is_empty() && tag.get(..icv.len()).is_some_and(|tag| bool::from(tag.ct_eq(icv)))
}

fn sign_side_by_side<'m, Tail: AsRef<[u8]>>(
    keyed: &CbcMac,
    messages: impl Iterator<Item = (&'m [u8], Tail, &'m mut [u8])>,
) {
    in_groups(messages, |group| {
        let tags = keyed.tags(group.iter().map(|(message, tail, _)| [*message, tail.as_ref()]));
        for ((_, _, icv), tag) in group.into_iter().zip(tags) {
            icv.copy_from_slice(&tag[..icv.len()]);
        }
    });
}

fn verify_side_by_side<'m, Owner, Tail: AsRef<[u8]>>(
    keyed: &CbcMac,
    messages: impl Iterator<Item = (Owner, &'m [u8], Tail, &'m [u8])>,
    mut verdict: impl FnMut(Owner, bool),
) {
    in_groups(messages, |group| {
        let tags = keyed.tags(group.iter().map(|(_, message, tail, _)| [*message, tail.as_ref()]));
        for ((owner, _, _, icv), tag) in group.into_iter().zip(tags) {
            verdict(owner, begins_with(&tag, icv));
        }
    });
}
