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
    Aes128Ctr,
    Aes192Ctr,
    Aes256Ctr,
    Aes128Ccm,
    Aes192Ccm,
    Aes256Ccm,
    Aes128Gcm,
    Aes192Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
    Aes128Gmac,
    Aes192Gmac,
    Aes256Gmac,
}

/// Integrity algorithms; `None` only beside an algorithm that authenticates by itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Authentication {
    None,
    Md5,
    Sha1,
    Sha256,
    Sha384,
    Sha512,
    AesXcbc,
    AesCmac,
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
    /// The nonce is made of the sequence number, which is then the IV.
    is_counter_mode: bool,
    /// Of an algorithm that authenticates by itself, the default last; empty for one that does not.
    icv_lengths: &'static [u8],
    is_legacy: bool,
}

const NULL: Cipher = Cipher {
    name: "null",
    rfc: "RFC 2410",
    key_length: 0,
    salt_length: 0,
    iv_length: 0,
    block_length: 1,
    is_counter_mode: false,
    icv_lengths: &[],
    is_legacy: false,
};

const fn block_cipher(name: &'static str, rfc: &'static str, key_length: u8, block_length: u8) -> Cipher {
    // CBC: the IV is one block (RFC 2451 section 2.5, RFC 3602 section 2.1).
    let is_legacy = block_length == 8;
    Cipher { name, rfc, key_length, iv_length: block_length, block_length, is_legacy, ..NULL }
}

const fn counter_mode(name: &'static str, rfc: &'static str, key_length: u8, salt_length: u8) -> Cipher {
    // No block alignment, only RFC 4303's four bytes (RFC 3686 section 3.2, RFC 4106 section 3.2, RFC 4309
    // section 3).
    Cipher { name, rfc, key_length, salt_length, iv_length: 8, is_counter_mode: true, ..NULL }
}

const fn aead(
    name: &'static str,
    rfc: &'static str,
    key_length: u8,
    salt_length: u8,
    icv_lengths: &'static [u8],
) -> Cipher {
    Cipher { icv_lengths, ..counter_mode(name, rfc, key_length, salt_length) }
}

/// RFC 4106 section 6, RFC 4309 section 3.1 item 4.
const SHORT_OR_WHOLE: &[u8] = &[8, 12, 16];
/// RFC 4543 section 3.4, RFC 7634 section 2.
const WHOLE: &[u8] = &[16];

const DES: Cipher = block_cipher("des", "RFC 2405", 8, 8);
const TRIPLE_DES: Cipher = block_cipher("3des", "RFC 2451", 24, 8);
const AES_128_CBC: Cipher = block_cipher("aes-128-cbc", "RFC 3602", 16, 16);
const AES_192_CBC: Cipher = block_cipher("aes-192-cbc", "RFC 3602", 24, 16);
const AES_256_CBC: Cipher = block_cipher("aes-256-cbc", "RFC 3602", 32, 16);
const AES_128_CTR: Cipher = counter_mode("aes-128-ctr", "RFC 3686", 16, 4);
const AES_192_CTR: Cipher = counter_mode("aes-192-ctr", "RFC 3686", 24, 4);
const AES_256_CTR: Cipher = counter_mode("aes-256-ctr", "RFC 3686", 32, 4);
const AES_128_CCM: Cipher = aead("aes-128-ccm", "RFC 4309", 16, 3, SHORT_OR_WHOLE);
const AES_192_CCM: Cipher = aead("aes-192-ccm", "RFC 4309", 24, 3, SHORT_OR_WHOLE);
const AES_256_CCM: Cipher = aead("aes-256-ccm", "RFC 4309", 32, 3, SHORT_OR_WHOLE);
const AES_128_GCM: Cipher = aead("aes-128-gcm", "RFC 4106", 16, 4, SHORT_OR_WHOLE);
const AES_192_GCM: Cipher = aead("aes-192-gcm", "RFC 4106", 24, 4, SHORT_OR_WHOLE);
const AES_256_GCM: Cipher = aead("aes-256-gcm", "RFC 4106", 32, 4, SHORT_OR_WHOLE);
const CHACHA20_POLY1305: Cipher = aead("chacha20-poly1305", "RFC 7634", 32, 4, WHOLE);
const AES_128_GMAC: Cipher = aead("aes-128-gmac", "RFC 4543", 16, 4, WHOLE);
const AES_192_GMAC: Cipher = aead("aes-192-gmac", "RFC 4543", 24, 4, WHOLE);
const AES_256_GMAC: Cipher = aead("aes-256-gmac", "RFC 4543", 32, 4, WHOLE);

impl Encryption {
    /// Every algorithm.
    pub const ALL: [Self; 19] = [
        Self::Null,
        Self::Des,
        Self::TripleDes,
        Self::Aes128Cbc,
        Self::Aes192Cbc,
        Self::Aes256Cbc,
        Self::Aes128Ctr,
        Self::Aes192Ctr,
        Self::Aes256Ctr,
        Self::Aes128Ccm,
        Self::Aes192Ccm,
        Self::Aes256Ccm,
        Self::Aes128Gcm,
        Self::Aes192Gcm,
        Self::Aes256Gcm,
        Self::ChaCha20Poly1305,
        Self::Aes128Gmac,
        Self::Aes192Gmac,
        Self::Aes256Gmac,
    ];

    const fn row(self) -> &'static Cipher {
        match self {
            Self::Null => &NULL,
            Self::Des => &DES,
            Self::TripleDes => &TRIPLE_DES,
            Self::Aes128Cbc => &AES_128_CBC,
            Self::Aes192Cbc => &AES_192_CBC,
            Self::Aes256Cbc => &AES_256_CBC,
            Self::Aes128Ctr => &AES_128_CTR,
            Self::Aes192Ctr => &AES_192_CTR,
            Self::Aes256Ctr => &AES_256_CTR,
            Self::Aes128Ccm => &AES_128_CCM,
            Self::Aes192Ccm => &AES_192_CCM,
            Self::Aes256Ccm => &AES_256_CCM,
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes192Gcm => &AES_192_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Self::Aes128Gmac => &AES_128_GMAC,
            Self::Aes192Gmac => &AES_192_GMAC,
            Self::Aes256Gmac => &AES_256_GMAC,
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

    /// True for what authenticates by itself: GCM, CCM, ChaCha20-Poly1305, and GMAC, which does nothing else.
    pub fn is_aead(self) -> bool {
        !self.row().icv_lengths.is_empty()
    }

    /// False for what leaves packets readable, as all of AH does: null, and GMAC.
    pub fn encrypts(self) -> bool {
        !matches!(self, Self::Null | Self::Aes128Gmac | Self::Aes192Gmac | Self::Aes256Gmac)
    }

    /// True for what must never see a nonce twice: CTR and all that authenticate by themselves.
    pub fn is_counter_mode(self) -> bool {
        self.row().is_counter_mode
    }

    /// Salt bytes at the end of the configured key: 3 for CCM, 4 for the other counter modes, else 0 (RFC 3686
    /// section 5.1, RFC 4106 section 8.1, RFC 4309 section 7.1, RFC 4543 section 5.4, RFC 7634 section 2).
    pub fn salt_length(self) -> usize {
        usize::from(self.row().salt_length)
    }
}

impl Authentication {
    /// Every algorithm, `None` included.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Md5,
        Self::Sha1,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::AesXcbc,
        Self::AesCmac,
    ];

    /// The name users write.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::AesXcbc => "aes-xcbc",
            Self::AesCmac => "aes-cmac",
        }
    }

    /// The RFC that defines its use in ESP; empty for none.
    pub fn rfc(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Md5 => "RFC 2403",
            Self::Sha1 => "RFC 2404",
            Self::Sha256 | Self::Sha384 | Self::Sha512 => "RFC 4868",
            Self::AesXcbc => "RFC 3566",
            Self::AesCmac => "RFC 4494",
        }
    }

    /// Key bytes, exactly: the hash's output (RFC 2403 section 2, RFC 2404 section 2, RFC 4868 section 2.1.1), or
    /// one AES-128 key (RFC 3566 section 4.1, RFC 4494).
    fn key_length(self) -> usize {
        match self {
            Self::None => 0,
            Self::Md5 | Self::AesXcbc | Self::AesCmac => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// ICV bytes, exactly: half the output for SHA-2 (RFC 4868 section 2.3), else 96 bits.
    fn icv_lengths(self) -> &'static [u8] {
        match self {
            Self::None => &[],
            Self::Md5 | Self::Sha1 | Self::AesXcbc | Self::AesCmac => &[12],
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
    /// (16 for AEADs; 16, 24, 32 for SHA-2, 12 for the other MACs).
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
            (aead, Authentication::None) if aead.is_aead() => aead.row().icv_lengths,
            // RFC 3686 section 3.3: CTR most of all.
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

    /// Bytes of the encryption key as configured, salt at its end included.
    pub fn encryption_key_length(&self) -> usize {
        let row = self.encryption.row();
        usize::from(row.key_length) + usize::from(row.salt_length)
    }

    /// Bytes of the authentication key.
    pub fn authentication_key_length(&self) -> usize {
        self.authentication.key_length()
    }

    /// Bytes of what AH calls its ICV field: the ICV, and in front of it the IV of GMAC (RFC 4543 section 4).
    pub fn ah_field_length(&self) -> u8 {
        self.iv_length() + self.icv_length()
    }

    /// A repeated number repeats a nonce.
    pub fn is_counter_mode(&self) -> bool {
        self.encryption.is_counter_mode()
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
        assert_eq!(Suite::new(E::Aes256Ctr, A::None, None), Err(SuiteError::NotAuthenticated));
        assert_eq!(Suite::new(E::Des, A::None, Some(12)), Err(SuiteError::NotAuthenticated));
        assert_eq!(Suite::new(E::Aes128Gcm, A::Sha256, None), Err(SuiteError::DoublyAuthenticated));
        assert_eq!(Suite::new(E::Aes128Ccm, A::Sha1, Some(12)), Err(SuiteError::DoublyAuthenticated));
        assert_eq!(Suite::new(E::Aes128Gmac, A::AesCmac, None), Err(SuiteError::DoublyAuthenticated));
        assert_eq!(Suite::new(E::Aes128Gcm, A::None, Some(4)), Err(SuiteError::IcvLength(&[8, 12, 16])));
        assert_eq!(Suite::new(E::Aes128Gmac, A::None, Some(12)), Err(SuiteError::IcvLength(&[16])));
        assert_eq!(Suite::new(E::ChaCha20Poly1305, A::None, Some(8)), Err(SuiteError::IcvLength(&[16])));
        // The 96-bit SHA-256 of old Linux kernels is not accepted silently (RFC 4868 section 2.3).
        assert_eq!(Suite::new(E::Null, A::Sha256, Some(12)), Err(SuiteError::IcvLength(&[16])));
    }

    /// Key (with salt), IV, alignment, ICV in bytes, from RFC 2403, 2404, 2405, 2410, 2451, 3566, 3602, 3686, 4106, 4309,
    /// 4494, 4543, 4868, 7634.
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
        assert_eq!(sizes("aes-128-ctr", "sha256"), (20, 32, 8, 4, 16));
        assert_eq!(sizes("aes-192-ctr", "aes-xcbc"), (28, 16, 8, 4, 12));
        assert_eq!(sizes("aes-256-ctr", "aes-cmac"), (36, 16, 8, 4, 12));
        assert_eq!(sizes("aes-128-ccm", "none"), (19, 0, 8, 4, 16));
        assert_eq!(sizes("aes-192-ccm", "none"), (27, 0, 8, 4, 16));
        assert_eq!(sizes("aes-256-ccm", "none"), (35, 0, 8, 4, 16));
        assert_eq!(sizes("aes-128-gcm", "none"), (20, 0, 8, 4, 16));
        assert_eq!(sizes("aes-192-gcm", "none"), (28, 0, 8, 4, 16));
        assert_eq!(sizes("aes-256-gcm", "none"), (36, 0, 8, 4, 16));
        assert_eq!(sizes("chacha20-poly1305", "none"), (36, 0, 8, 4, 16));
        assert_eq!(sizes("aes-128-gmac", "none"), (20, 0, 8, 4, 16));
        assert_eq!(sizes("aes-192-gmac", "none"), (28, 0, 8, 4, 16));
        assert_eq!(sizes("aes-256-gmac", "none"), (36, 0, 8, 4, 16));
        // Nine ciphers beside seven MACs, GCM and CCM with three ICV lengths, ChaCha20-Poly1305, GMAC.
        assert_eq!(Suite::all().count(), 9 * 7 + 6 * 3 + 1 + 3);
        // CTR is one beside every MAC.
        assert_eq!(Suite::all().filter(Suite::is_counter_mode).count(), 3 * 7 + 6 * 3 + 1 + 3);
        // DES and 3DES with anything (14), and the seven other ciphers with MD5 or SHA-1 (14).
        assert_eq!(Suite::all().filter(Suite::is_legacy).count(), 28);
    }
}
