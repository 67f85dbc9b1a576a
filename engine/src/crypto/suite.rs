//! The algorithm table: names of the gateway world, RFCs, sizes, levels.

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
        let _ = (encryption, authentication, icv_length);
        todo!()
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
        todo!()
    }

    /// The ciphertext's alignment, at least 4 (RFC 4303 section 2.4).
    pub fn alignment(&self) -> u8 {
        todo!()
    }

    /// Bytes of the encryption key as configured, salt at its end included (RFC 4106 section 8.1).
    pub fn encryption_key_length(&self) -> usize {
        todo!()
    }

    /// Bytes of the authentication key.
    pub fn authentication_key_length(&self) -> usize {
        todo!()
    }

    /// GCM and CCM: a repeated number repeats a nonce.
    pub fn is_counter_mode(&self) -> bool {
        todo!()
    }

    /// DES, 3DES, MD5, SHA-1: off until `allow-legacy = true`.
    pub fn is_legacy(&self) -> bool {
        todo!()
    }
}
