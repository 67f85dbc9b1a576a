//! The algorithm table: names of the gateway world, RFCs, sizes.

use std::fmt;
use std::str::FromStr;

/// Encryption algorithms. Names as users write them: `aes-128-gcm` …
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Encryption {
    Null,
    Des,
    TripleDes,
    Aes128Cbc,
    Aes192Cbc,
    Aes256Cbc,
    Aes128Ccm,
    Aes128Gcm,
    Aes192Gcm,
    Aes256Gcm,
}

/// Integrity algorithms; `None` only beside an AEAD.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Authentication {
    None,
    Md5,
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

/// What an RFC says of one cipher; lengths in bytes.
struct Cipher {
    name: &'static str,
    rfc: &'static str,
    /// Without the salt.
    key_length: u8,
    salt_length: u8,
    iv_length: u8,
    block_length: u8,
    is_aead: bool,
    is_legacy: bool,
}

const fn block_cipher(name: &'static str, rfc: &'static str, key_length: u8, block_length: u8) -> Cipher {
    // CBC: the IV is one block (RFC 2451 section 2.5, RFC 3602 section 2.1).
    let is_legacy = block_length == 8;
    Cipher {
        name,
        rfc,
        key_length,
        salt_length: 0,
        iv_length: block_length,
        block_length,
        is_aead: false,
        is_legacy,
    }
}

const fn aead(name: &'static str, rfc: &'static str, key_length: u8, salt_length: u8) -> Cipher {
    // Counter modes need no block alignment, only RFC 4303's four bytes (RFC 4106 section 3.2, RFC 4309
    // section 3).
    Cipher {
        name,
        rfc,
        key_length,
        salt_length,
        iv_length: 8,
        block_length: 1,
        is_aead: true,
        is_legacy: false,
    }
}

const NULL: Cipher = Cipher {
    name: "null",
    rfc: "RFC 2410",
    key_length: 0,
    salt_length: 0,
    iv_length: 0,
    block_length: 1,
    is_aead: false,
    is_legacy: false,
};
const DES: Cipher = block_cipher("des", "RFC 2405", 8, 8);
const TRIPLE_DES: Cipher = block_cipher("3des", "RFC 2451", 24, 8);
const AES_128_CBC: Cipher = block_cipher("aes-128-cbc", "RFC 3602", 16, 16);
const AES_192_CBC: Cipher = block_cipher("aes-192-cbc", "RFC 3602", 24, 16);
const AES_256_CBC: Cipher = block_cipher("aes-256-cbc", "RFC 3602", 32, 16);
const AES_128_CCM: Cipher = aead("aes-128-ccm", "RFC 4309", 16, 3);
const AES_128_GCM: Cipher = aead("aes-128-gcm", "RFC 4106", 16, 4);
const AES_192_GCM: Cipher = aead("aes-192-gcm", "RFC 4106", 24, 4);
const AES_256_GCM: Cipher = aead("aes-256-gcm", "RFC 4106", 32, 4);

impl Encryption {
    /// Every algorithm.
    pub const ALL: [Self; 10] = [
        Self::Null,
        Self::Des,
        Self::TripleDes,
        Self::Aes128Cbc,
        Self::Aes192Cbc,
        Self::Aes256Cbc,
        Self::Aes128Ccm,
        Self::Aes128Gcm,
        Self::Aes192Gcm,
        Self::Aes256Gcm,
    ];

    const fn row(self) -> &'static Cipher {
        match self {
            Self::Null => &NULL,
            Self::Des => &DES,
            Self::TripleDes => &TRIPLE_DES,
            Self::Aes128Cbc => &AES_128_CBC,
            Self::Aes192Cbc => &AES_192_CBC,
            Self::Aes256Cbc => &AES_256_CBC,
            Self::Aes128Ccm => &AES_128_CCM,
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes192Gcm => &AES_192_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
        }
    }

    /// The name users write.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The RFC that defines its use in ESP.
    pub fn rfc(self) -> &'static str {
        self.row().rfc
    }

    /// True for GCM and CCM.
    pub fn is_aead(self) -> bool {
        self.row().is_aead
    }

    /// Salt bytes at the end of the configured key: 3 for CCM, 4 for GCM, else 0 (RFC 4309 section 7.1,
    /// RFC 4106 section 8.1).
    pub fn salt_length(self) -> usize {
        usize::from(self.row().salt_length)
    }
}

impl Authentication {
    /// Every algorithm, `None` included.
    pub const ALL: [Self; 6] = [Self::None, Self::Md5, Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name users write.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The RFC that defines its use in ESP; empty for none.
    pub fn rfc(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Md5 => "RFC 2403",
            Self::Sha1 => "RFC 2404",
            Self::Sha256 | Self::Sha384 | Self::Sha512 => "RFC 4868",
        }
    }

    /// Key bytes, exactly: the hash's output (RFC 2403 section 2, RFC 2404 section 2, RFC 4868 section 2.1.1).
    fn key_length(self) -> usize {
        match self {
            Self::None => 0,
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// ICV bytes, exactly: 96 bits for the old hashes, half the output for SHA-2 (RFC 4868 section 2.3).
    fn icv_lengths(self) -> &'static [u8] {
        match self {
            Self::None => &[],
            Self::Md5 | Self::Sha1 => &[12],
            Self::Sha256 => &[16],
            Self::Sha384 => &[24],
            Self::Sha512 => &[32],
        }
    }
}

/// No algorithm has this name; the error says which there are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownAlgorithm {
    /// What was written.
    pub name: String,
    /// What could have been, separated by blanks.
    pub known: String,
}

impl fmt::Display for UnknownAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown algorithm {:?}; known are: {}", self.name, self.known)
    }
}

impl std::error::Error for UnknownAlgorithm {}

macro_rules! named {
    ($algorithm:ty) => {
        impl fmt::Display for $algorithm {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $algorithm {
            type Err = UnknownAlgorithm;

            fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
                Self::ALL.into_iter().find(|algorithm| algorithm.name() == name).ok_or_else(|| {
                    UnknownAlgorithm { name: name.to_owned(), known: Self::ALL.map(Self::name).join(" ") }
                })
            }
        }
    };
}

named!(Encryption);
named!(Authentication);

/// A checked combination of algorithms and ICV length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Suite {
    encryption: Encryption,
    authentication: Authentication,
    icv_length: u8,
}

/// Why a combination is refused; says which field and what would do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SuiteError {
    /// Null encryption without authentication (RFC 4303 section 3.2).
    NothingProtected,
    /// A cipher without integrity (RFC 8221 section 4).
    NotAuthenticated,
    /// An AEAD beside a separate authentication algorithm.
    DoublyAuthenticated,
    /// This ICV length does not belong to the algorithm; the ones that do.
    IcvLength(&'static [u8]),
}

impl fmt::Display for SuiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingProtected => f.write_str("null encryption needs an authentication algorithm"),
            Self::NotAuthenticated => {
                f.write_str("this encryption algorithm needs an authentication algorithm")
            }
            Self::DoublyAuthenticated => {
                f.write_str("this encryption algorithm authenticates by itself: authentication must be none")
            }
            Self::IcvLength(lengths) => write!(f, "the ICV length in bytes must be one of {lengths:?}"),
        }
    }
}

impl std::error::Error for SuiteError {}

impl Suite {
    /// Checks and makes a suite; `icv_length` in bytes, `None` for the algorithm's default
    /// (16 for AEADs; 12, 12, 16, 24, 32 for the HMACs).
    ///
    /// # Errors
    /// [`SuiteError`].
    pub fn new(
        encryption: Encryption,
        authentication: Authentication,
        icv_length: Option<u8>,
    ) -> Result<Self, SuiteError> {
        let lengths: &'static [u8] = match (encryption, authentication) {
            (Encryption::Null, Authentication::None) => return Err(SuiteError::NothingProtected),
            // RFC 4106 section 6, RFC 4309 section 3.1 item 4.
            (aead, Authentication::None) if aead.is_aead() => &[8, 12, 16],
            (_, Authentication::None) => return Err(SuiteError::NotAuthenticated),
            (aead, _) if aead.is_aead() => return Err(SuiteError::DoublyAuthenticated),
            (_, authentication) => authentication.icv_lengths(),
        };
        // Every list ends with its default.
        let default = lengths[lengths.len() - 1];
        let icv_length = icv_length.unwrap_or(default);
        if !lengths.contains(&icv_length) {
            return Err(SuiteError::IcvLength(lengths));
        }
        Ok(Self { encryption, authentication, icv_length })
    }

    /// Encryption algorithm.
    pub fn encryption(&self) -> Encryption {
        self.encryption
    }

    /// Authentication algorithm.
    pub fn authentication(&self) -> Authentication {
        self.authentication
    }

    /// ICV bytes.
    pub fn icv_length(&self) -> u8 {
        self.icv_length
    }

    /// IV bytes in every packet: 0, 8 or 16.
    pub fn iv_length(&self) -> u8 {
        self.encryption.row().iv_length
    }

    /// The ciphertext's alignment, at least 4 (RFC 4303 section 2.4).
    pub fn alignment(&self) -> u8 {
        self.encryption.row().block_length.max(4)
    }

    /// Bytes of the encryption key as configured, salt at its end included (RFC 4106 section 8.1).
    pub fn encryption_key_length(&self) -> usize {
        let row = self.encryption.row();
        usize::from(row.key_length) + usize::from(row.salt_length)
    }

    /// Bytes of the authentication key.
    pub fn authentication_key_length(&self) -> usize {
        self.authentication.key_length()
    }

    /// GCM and CCM: a repeated number repeats a nonce.
    pub fn is_counter_mode(&self) -> bool {
        self.encryption.is_aead()
    }

    /// DES, 3DES, MD5, SHA-1: off until `allow-legacy = true`.
    pub fn is_legacy(&self) -> bool {
        self.encryption.row().is_legacy
            || matches!(self.authentication, Authentication::Md5 | Authentication::Sha1)
    }

    /// Every suite there is, once for each ICV length.
    pub fn all() -> impl Iterator<Item = Self> {
        Encryption::ALL.into_iter().flat_map(|encryption| {
            Authentication::ALL.into_iter().flat_map(move |authentication| {
                [8, 12, 16, 24, 32].into_iter().filter_map(move |icv_length| {
                    Self::new(encryption, authentication, Some(icv_length)).ok()
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for encryption in Encryption::ALL {
            assert_eq!(encryption.to_string().parse(), Ok(encryption));
        }
        for authentication in Authentication::ALL {
            assert_eq!(authentication.to_string().parse(), Ok(authentication));
        }
        let error = "AES-128-GCM".parse::<Encryption>().unwrap_err();
        assert!(error.to_string().contains("aes-128-gcm"), "{error}");
        assert!("sha-1".parse::<Authentication>().is_err());
    }

    #[test]
    fn combinations_that_protect_too_little_or_twice_are_refused() {
        use Authentication as A;
        use Encryption as E;
        assert_eq!(Suite::new(E::Null, A::None, None), Err(SuiteError::NothingProtected));
        assert_eq!(Suite::new(E::Aes128Cbc, A::None, None), Err(SuiteError::NotAuthenticated));
        assert_eq!(Suite::new(E::Des, A::None, Some(12)), Err(SuiteError::NotAuthenticated));
        assert_eq!(Suite::new(E::Aes128Gcm, A::Sha256, None), Err(SuiteError::DoublyAuthenticated));
        assert_eq!(Suite::new(E::Aes128Ccm, A::Sha1, Some(12)), Err(SuiteError::DoublyAuthenticated));
        assert_eq!(Suite::new(E::Aes128Gcm, A::None, Some(4)), Err(SuiteError::IcvLength(&[8, 12, 16])));
        // The 96-bit SHA-256 of old Linux kernels is not accepted silently (RFC 4868 section 2.3).
        assert_eq!(Suite::new(E::Null, A::Sha256, Some(12)), Err(SuiteError::IcvLength(&[16])));
    }

    /// Key (with salt), IV, alignment, ICV in bytes, from RFC 2403, 2404, 2405, 2410, 2451, 3602, 4106, 4309, 4868.
    #[test]
    fn sizes_are_those_of_the_rfcs() {
        let sizes = |encryption: &str, authentication: &str| {
            let suite =
                Suite::new(encryption.parse().unwrap(), authentication.parse().unwrap(), None).unwrap();
            (
                suite.encryption_key_length(),
                suite.authentication_key_length(),
                suite.iv_length(),
                suite.alignment(),
                suite.icv_length(),
            )
        };
        assert_eq!(sizes("null", "md5"), (0, 16, 0, 4, 12));
        assert_eq!(sizes("des", "sha1"), (8, 20, 8, 8, 12));
        assert_eq!(sizes("3des", "sha256"), (24, 32, 8, 8, 16));
        assert_eq!(sizes("aes-128-cbc", "sha384"), (16, 48, 16, 16, 24));
        assert_eq!(sizes("aes-192-cbc", "sha512"), (24, 64, 16, 16, 32));
        assert_eq!(sizes("aes-256-cbc", "sha512"), (32, 64, 16, 16, 32));
        assert_eq!(sizes("aes-128-ccm", "none"), (19, 0, 8, 4, 16));
        assert_eq!(sizes("aes-128-gcm", "none"), (20, 0, 8, 4, 16));
        assert_eq!(sizes("aes-192-gcm", "none"), (28, 0, 8, 4, 16));
        assert_eq!(sizes("aes-256-gcm", "none"), (36, 0, 8, 4, 16));
        // Six ciphers beside five hashes, four AEADs with three ICV lengths.
        assert_eq!(Suite::all().count(), 6 * 5 + 4 * 3);
        assert_eq!(Suite::all().filter(Suite::is_counter_mode).count(), 4 * 3);
        // DES and 3DES with anything (10), and the four other ciphers with MD5 or SHA-1 (8).
        assert_eq!(Suite::all().filter(Suite::is_legacy).count(), 18);
    }
}
