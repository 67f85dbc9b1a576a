//! Key bytes: zeroised on drop, without Debug, Clone or Display.

use zeroize::Zeroizing;

use super::Suite;

/// Secret bytes. They leave this type only into an expanded key of this module's own making.
pub struct Key(Zeroizing<Box<[u8]>>);

impl Key {
    /// Takes the bytes over; the caller wipes its own copy (or hands over its only one).
    pub fn new(bytes: Zeroizing<Box<[u8]>>) -> Self {
        Self(bytes)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True for the key of an algorithm that has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// The keys of one SA.
pub struct KeyMaterial {
    /// Encryption key, AEAD salt at its end; empty for null.
    pub encryption: Key,
    /// Authentication key; empty for AEADs.
    pub authentication: Key,
}

/// Which of the two keys an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyRole {
    /// The encryption key.
    Encryption,
    /// The authentication key.
    Authentication,
}

/// Why a key is refused. Never holds key bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyError {
    /// Wrong length, in bytes.
    Length {
        /// Which key.
        role: KeyRole,
        /// What the algorithm wants.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A weak or semi-weak DES key, or 3DES with K1 = K2 or K2 = K3 (RFC 2405, 2451).
    Weak,
}

/// A keyed fingerprint that names a key without telling it: HMAC-SHA256 under a host's own secret over
/// algorithm, key and salt, cut to 16 bytes.
pub fn fingerprint(host_secret: &[u8; 32], suite: Suite, keys: &KeyMaterial) -> [u8; 16] {
    let _ = (host_secret, suite, keys);
    todo!()
}
