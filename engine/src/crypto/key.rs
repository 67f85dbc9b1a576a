//! Key bytes: zeroised on drop, without Debug, Clone or Display.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Authentication, Encryption, Suite};

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
    /// Encryption key, the salt of a counter mode at its end; empty for null.
    pub encryption: Key,
    /// Authentication key; empty beside what authenticates by itself.
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
    /// A weak or semi-weak DES key, also as a part of a 3DES key, or 3DES with K1 = K2 or K2 = K3
    /// (RFC 2405 section 3, RFC 2451 section 2.3).
    Weak,
}

impl fmt::Display for KeyRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encryption => "encryption",
            Self::Authentication => "authentication",
        })
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { role, expected, found } => {
                write!(f, "the {role} key must be {expected} bytes long, not {found}")
            }
            Self::Weak => {
                f.write_str("the encryption key is a weak DES key, or a 3DES key that is no better than DES")
            }
        }
    }
}

impl std::error::Error for KeyError {}

/// Refuses keys of any other length than the suite's (never hashed, padded or cut) and weak DES keys.
pub(super) fn check(suite: Suite, keys: &KeyMaterial) -> Result<(), KeyError> {
    let lengths = [
        (KeyRole::Encryption, suite.encryption_key_length(), keys.encryption.len()),
        (KeyRole::Authentication, suite.authentication_key_length(), keys.authentication.len()),
    ];
    for (role, expected, found) in lengths {
        if found != expected {
            return Err(KeyError::Length { role, expected, found });
        }
    }
    let is_weak = match suite.encryption() {
        Encryption::Des | Encryption::TripleDes => is_weak_des(keys.encryption.expose()),
        _ => false,
    };
    if is_weak { Err(KeyError::Weak) } else { Ok(()) }
}

/// Every eighth bit of a DES key is parity and takes no part in the cipher (RFC 2405 section 3): keys that
/// differ only there are the same key.
const WITHOUT_PARITY: u64 = 0xfefe_fefe_fefe_fefe;

/// The four weak and twelve semi-weak keys that RFC 2405 section 4 says to refuse, as FIPS 74 lists them.
/// Each undoes what itself, or its neighbour, encrypts.
#[rustfmt::skip]
const WEAK_DES_KEYS: [u64; 16] = [
    0x0101_0101_0101_0101, 0xfefe_fefe_fefe_fefe,
    0x1f1f_1f1f_0e0e_0e0e, 0xe0e0_e0e0_f1f1_f1f1,
    0x01fe_01fe_01fe_01fe, 0xfe01_fe01_fe01_fe01,
    0x1fe0_1fe0_0ef1_0ef1, 0xe01f_e01f_f10e_f10e,
    0x01e0_01e0_01f1_01f1, 0xe001_e001_f101_f101,
    0x1ffe_1ffe_0efe_0efe, 0xfe1f_fe1f_fe0e_fe0e,
    0x011f_011f_010e_010e, 0x1f01_1f01_0e01_0e01,
    0xe0fe_e0fe_f1fe_f1fe, 0xfee0_fee0_fef1_fef1,
];

fn is_weak_des(key: &[u8]) -> bool {
    let (parts, _) = key.as_chunks::<8>();
    let same = |a: u64, b: u64| (a ^ b) & WITHOUT_PARITY == 0;
    let mut before = None;
    for part in parts {
        let part = u64::from_be_bytes(*part);
        // K1 = K2 or K2 = K3 makes 3DES plain DES (RFC 2451 section 2.3, a MUST); K1 = K3 is two-key 3DES.
        if before.is_some_and(|before| same(before, part)) {
            return true;
        }
        // RFC 2451 does not ask for this of a part of a 3DES key; no random key is ever lost by it.
        if WEAK_DES_KEYS.iter().any(|&weak| same(weak, part)) {
            return true;
        }
        before = Some(part);
    }
    false
}

/// A keyed fingerprint that names a key without telling it: HMAC-SHA256 under a host's own secret over
/// algorithm and key, cut to 16 bytes. What a cipher makes no difference of has one name:
///
/// - CTR, GCM, GMAC and CCM are one counter mode over one block cipher, and an AES key serves one of them, once. So
///   neither which of them, nor the salt, nor the ICV length takes part, nor a separate authentication key: a new one
///   of these does not make an old key new. The same holds for a key of ChaCha20-Poly1305.
/// - The parity bits of DES and 3DES keys take no part.
pub fn fingerprint(host_secret: &[u8; 32], suite: Suite, keys: &KeyMaterial) -> [u8; 16] {
    let mut mac = Hmac::<Sha256>::new_from_slice(host_secret).expect("HMAC takes keys of any length");
    let encryption = suite.encryption();
    let mut cipher_key = Zeroizing::new(keys.encryption.expose().to_vec());
    let mut name = encryption.name();
    let mut authentication = (suite.authentication(), keys.authentication.expose());
    if suite.is_counter_mode() {
        if encryption != Encryption::ChaCha20Poly1305 {
            name = "aes counter mode";
        }
        let length = cipher_key.len().saturating_sub(encryption.salt_length());
        cipher_key.truncate(length);
        authentication = (Authentication::None, &[]);
    }
    if matches!(encryption, Encryption::Des | Encryption::TripleDes) {
        cipher_key.iter_mut().for_each(|byte| *byte &= WITHOUT_PARITY as u8);
    }
    let fields = [
        b"adit key fingerprint 2".as_slice(),
        name.as_bytes(),
        &cipher_key,
        authentication.0.name().as_bytes(),
        authentication.1,
    ];
    for field in fields {
        // Its length in front of each field: no two lists of fields are the same bytes.
        mac.update(&(field.len() as u64).to_be_bytes());
        mac.update(field);
    }
    let mut name = [0; 16];
    name.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    name
}

#[cfg(test)]
mod tests {
    use des::Des;
    use des::cipher::{Array, BlockCipherEncrypt};

    use super::*;

    fn material(encryption: &[u8], authentication: &[u8]) -> KeyMaterial {
        let key = |bytes: &[u8]| Key::new(Zeroizing::new(bytes.into()));
        KeyMaterial { encryption: key(encryption), authentication: key(authentication) }
    }

    fn suite(encryption: Encryption, authentication: Authentication) -> Suite {
        Suite::new(encryption, authentication, None).unwrap()
    }

    #[test]
    fn only_the_exact_length_is_taken() {
        for suite in Suite::all() {
            let (encryption, authentication) =
                (suite.encryption_key_length(), suite.authentication_key_length());
            for found in 0..80 {
                // Bytes that make no weak DES key.
                let key: Vec<u8> = (1..=found as u8).map(|n| n.wrapping_mul(37)).collect();
                let right = |length| (1..=length as u8).map(|n| n.wrapping_mul(37)).collect::<Vec<u8>>();
                let expected = |role, expected| {
                    if found == expected { Ok(()) } else { Err(KeyError::Length { role, expected, found }) }
                };
                assert_eq!(
                    check(suite, &material(&key, &right(authentication))),
                    expected(KeyRole::Encryption, encryption)
                );
                assert_eq!(
                    check(suite, &material(&right(encryption), &key)),
                    expected(KeyRole::Authentication, authentication)
                );
            }
        }
    }

    /// The list is right because each pair does what makes it weak, and because there are sixteen.
    #[test]
    fn weak_keys_undo_themselves_or_their_neighbour() {
        let under = |key: u64, mut block| {
            Des::new(&Array(key.to_be_bytes())).encrypt_block(&mut block);
            block
        };
        let block = Array(*b"any text");
        let (weak, semi_weak) = WEAK_DES_KEYS.split_at(4);
        for &key in weak {
            assert_eq!(under(key, under(key, block)), block);
        }
        for pair in semi_weak.chunks(2) {
            assert_eq!(under(pair[0], under(pair[1], block)), block);
            assert_ne!(under(pair[0], under(pair[0], block)), block);
        }
        let mut keys = WEAK_DES_KEYS.to_vec();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 16);
    }

    #[test]
    fn weak_keys_are_refused_whatever_their_parity() {
        let des = suite(Encryption::Des, Authentication::Sha1);
        let triple = suite(Encryption::TripleDes, Authentication::Sha1);
        let good: [u64; 3] = [0x0123_4567_89ab_cdef, 0x1122_3344_5566_7788, 0xfedc_ba98_7654_3210];
        let keys = |parts: &[u64]| {
            material(&parts.iter().flat_map(|part| part.to_be_bytes()).collect::<Vec<u8>>(), &[5; 20])
        };
        for weak in WEAK_DES_KEYS {
            for parity in [0, 0x0101_0101_0101_0101, 0x0001_0000_0100_0001] {
                let weak = weak ^ parity;
                assert_eq!(check(des, &keys(&[weak])), Err(KeyError::Weak));
                for at in 0..3 {
                    let mut parts = good;
                    parts[at] = weak;
                    assert_eq!(check(triple, &keys(&parts)), Err(KeyError::Weak));
                }
            }
        }
        let [a, b, c] = good;
        assert_eq!(check(des, &keys(&[a])), Ok(()));
        assert_eq!(check(triple, &keys(&[a, b, c])), Ok(()));
        assert_eq!(check(triple, &keys(&[a, b, a])), Ok(()), "two-key 3DES (RFC 2451 section 2.3)");
        assert_eq!(check(triple, &keys(&[a, a, c])), Err(KeyError::Weak));
        assert_eq!(check(triple, &keys(&[a, b, b])), Err(KeyError::Weak));
        assert_eq!(check(triple, &keys(&[a, a ^ 0x0100_0000_0000_0001, c])), Err(KeyError::Weak));
    }

    #[test]
    fn a_fingerprint_names_algorithm_and_key_and_nothing_else() {
        let secret = [3; 32];
        let gcm = suite(Encryption::Aes128Gcm, Authentication::None);
        let name = fingerprint(&secret, gcm, &material(&[1; 20], &[]));
        // From OpenSSL 3.0: `openssl dgst -sha256 -mac HMAC` over the five fields, each behind its 64-bit length.
        assert_eq!(hex::encode(name), "798c9c89a485de0cc58e1cbf0af11f3f");

        let short = Suite::new(Encryption::Aes128Gcm, Authentication::None, Some(8)).unwrap();
        assert_eq!(fingerprint(&secret, short, &material(&[1; 20], &[])), name);

        let mut salted = [1; 20];
        salted[16..].copy_from_slice(&[2, 3, 4, 5]);
        assert_eq!(fingerprint(&secret, gcm, &material(&salted, &[])), name, "an old key with a new salt");
        let ccm = suite(Encryption::Aes128Ccm, Authentication::None);
        assert_eq!(fingerprint(&secret, ccm, &material(&salted[..19], &[])), name, "the same key under CCM");
        let gmac = suite(Encryption::Aes128Gmac, Authentication::None);
        assert_eq!(fingerprint(&secret, gmac, &material(&salted, &[])), name, "the same key under GMAC");
        for authentication in [Authentication::Sha256, Authentication::AesCmac] {
            let ctr = suite(Encryption::Aes128Ctr, authentication);
            let beside = vec![7; ctr.authentication_key_length()];
            assert_eq!(
                fingerprint(&secret, ctr, &material(&salted, &beside)),
                name,
                "the same key under CTR"
            );
        }
        let chacha = suite(Encryption::ChaCha20Poly1305, Authentication::None);
        let long = suite(Encryption::Aes256Gcm, Authentication::None);
        let other = fingerprint(&secret, chacha, &material(&[1; 36], &[]));
        assert_ne!(other, fingerprint(&secret, long, &material(&[1; 36], &[])), "another cipher");
        let mut salted_anew = [1; 36];
        salted_anew[35] = 2;
        assert_eq!(fingerprint(&secret, chacha, &material(&salted_anew, &[])), other);
        salted[15] = 2;
        assert_ne!(fingerprint(&secret, gcm, &material(&salted, &[])), name);
        let longer = suite(Encryption::Aes192Gcm, Authentication::None);
        assert_ne!(fingerprint(&secret, longer, &material(&[1; 28], &[])), name);
        assert_ne!(fingerprint(&[4; 32], gcm, &material(&[1; 20], &[])), name);
        // The same bytes cut elsewhere, or under another name.
        let cbc = suite(Encryption::Aes128Cbc, Authentication::Sha256);
        let names = [
            fingerprint(&secret, cbc, &material(&[1; 16], &[1; 32])),
            fingerprint(&secret, cbc, &material(&[1; 32], &[1; 16])),
            fingerprint(&secret, cbc, &material(&[1; 48], &[])),
            fingerprint(
                &secret,
                suite(Encryption::Aes256Cbc, Authentication::Sha256),
                &material(&[1; 16], &[1; 32]),
            ),
        ];
        for (at, name) in names.iter().enumerate() {
            assert!(!names[at + 1..].contains(name));
        }
    }

    #[test]
    fn des_keys_that_differ_in_parity_have_one_fingerprint() {
        for (encryption, length) in [(Encryption::Des, 8), (Encryption::TripleDes, 24)] {
            let suite = suite(encryption, Authentication::Sha1);
            let key: Vec<u8> = (1..=length).map(|n: u8| n.wrapping_mul(37)).collect();
            let name = |key: &[u8]| fingerprint(&[3; 32], suite, &material(key, &[5; 20]));
            for at in 0..key.len() {
                for bit in 0..8 {
                    let mut other = key.clone();
                    other[at] ^= 1 << bit;
                    assert_eq!(name(&other) == name(&key), bit == 0, "bit {bit} of byte {at}");
                }
            }
        }
    }
}
