//! An ESP sender and receiver of its own, for a peer that holds the keys and obeys nobody: RFC 4303 with AES-GCM
//! (RFC 4106) or null encryption and HMAC-SHA-256-128 (RFC 2410, RFC 4868). Unlike the engine's sealer it puts any
//! plaintext under a valid ICV: the trailer, right or wrong, is the caller's.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Nonce, Tag};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Bytes of the ICV of both.
const ICV_LENGTH: usize = 16;

/// One SA, either direction.
pub struct EspPeer {
    cipher: Cipher,
    spi: u32,
    esn: bool,
}

enum Cipher {
    Gcm { cipher: Box<Aes128Gcm>, salt: [u8; 4] },
    Null { authentication_key: Vec<u8> },
}

impl EspPeer {
    /// AES-128-GCM-16; the salt is the last four bytes of `key` (RFC 4106 section 8.1).
    ///
    /// # Panics
    /// When `key` is not 20 bytes.
    pub fn gcm(spi: u32, key: &[u8], esn: bool) -> Self {
        let (key, salt) = key.split_last_chunk::<4>().expect("a salt");
        let cipher = Box::new(Aes128Gcm::new_from_slice(key).expect("16 bytes"));
        Self { cipher: Cipher::Gcm { cipher, salt: *salt }, spi, esn }
    }

    /// Null encryption, HMAC-SHA-256-128.
    pub fn null(spi: u32, authentication_key: &[u8], esn: bool) -> Self {
        Self { cipher: Cipher::Null { authentication_key: authentication_key.to_vec() }, spi, esn }
    }

    /// ESP, from SPI to ICV, around `plaintext` (payload, padding, pad length, next header) as it is.
    pub fn seal(&self, sequence: u64, plaintext: &[u8]) -> Vec<u8> {
        let low = (sequence as u32).to_be_bytes();
        let mut esp = [self.spi.to_be_bytes(), low].concat();
        match &self.cipher {
            Cipher::Gcm { cipher, salt } => {
                let iv = sequence.to_be_bytes();
                let mut sealed = plaintext.to_vec();
                let nonce = [&salt[..], &iv].concat();
                let nonce = Nonce::try_from(&nonce[..]).expect("12 bytes");
                let tag = cipher
                    .encrypt_inout_detached(&nonce, &self.associated(sequence), sealed.as_mut_slice().into())
                    .expect("a packet");
                esp.extend(iv);
                esp.extend(sealed);
                esp.extend(&tag[..]);
            }
            Cipher::Null { authentication_key } => {
                esp.extend(plaintext);
                let icv = self.hmac(authentication_key, sequence, &esp);
                esp.extend(icv);
            }
        }
        esp
    }

    /// The plaintext with its trailer, if the ICV is good; `high` are the bits of the sequence number that ESN does
    /// not transmit.
    pub fn open(&self, high: u32, esp: &[u8]) -> Option<(u64, Vec<u8>)> {
        let sequence = u64::from(high) << 32 | u64::from(u32::from_be_bytes(*esp.get(4..)?.first_chunk()?));
        if esp.get(..4)? != self.spi.to_be_bytes() {
            return None;
        }
        let (body, icv) = esp.split_last_chunk::<ICV_LENGTH>()?;
        match &self.cipher {
            Cipher::Gcm { cipher, salt } => {
                let (iv, sealed) = body.get(8..)?.split_first_chunk::<8>()?;
                let nonce = Nonce::try_from(&[&salt[..], &iv[..]].concat()[..]).ok()?;
                let mut plaintext = sealed.to_vec();
                let tag = Tag::from(*icv);
                let associated = self.associated(sequence);
                cipher
                    .decrypt_inout_detached(&nonce, &associated, plaintext.as_mut_slice().into(), &tag)
                    .ok()?;
                Some((sequence, plaintext))
            }
            Cipher::Null { authentication_key } => (self.hmac(authentication_key, sequence, body) == *icv)
                .then(|| (sequence, body[8..].to_vec())),
        }
    }

    /// RFC 4106 section 5: SPI and sequence number, all 64 bits of it with ESN.
    fn associated(&self, sequence: u64) -> Vec<u8> {
        let mut associated = self.spi.to_be_bytes().to_vec();
        match self.esn {
            true => associated.extend(sequence.to_be_bytes()),
            false => associated.extend((sequence as u32).to_be_bytes()),
        }
        associated
    }

    /// RFC 4303 section 2.2.1: with ESN, the high half is authenticated behind the packet.
    fn hmac(&self, key: &[u8], sequence: u64, body: &[u8]) -> [u8; ICV_LENGTH] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("any length");
        mac.update(body);
        if self.esn {
            mac.update(&((sequence >> 32) as u32).to_be_bytes());
        }
        *mac.finalize().into_bytes().first_chunk().expect("32 bytes")
    }
}
