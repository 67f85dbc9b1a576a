//! An AH sender and receiver of its own, for a peer that holds the key and obeys nobody: RFC 4302 with
//! HMAC-SHA-256-128 (RFC 4868) or AES-128-GMAC (RFC 4543 section 4), behind IP headers without options. The engine's
//! code neither makes nor reads a packet here.

use std::net::IpAddr;

use adit_engine::crypto::Encryption;
use adit_engine::sa::spec::Protocol;
use adit_engine::transform::ah::Padding;
use aes_gcm::Aes128Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::memory::{Options, Site};
use crate::packet;

/// Bytes of the IV of GMAC.
const IV_LENGTH: usize = 8;
/// Bytes of the ICV of either algorithm.
const ICV_LENGTH: usize = 16;

/// One SA, either direction.
pub struct AhPeer {
    /// Authentication key; of GMAC, its salt at the end.
    pub key: Vec<u8>,
    /// GMAC, not HMAC.
    pub gmac: bool,
    /// Security Parameters Index.
    pub spi: u32,
    /// Whether the high word is covered.
    pub esn: bool,
    /// Sender's and receiver's address.
    pub addresses: (IpAddr, IpAddr),
    /// Bytes between the ICV and the payload: 0, or 4 where the header's length is a multiple of 8.
    pub padding: usize,
}

impl AhPeer {
    /// The peer of `site`.
    pub fn of(site: Site, options: &Options) -> Self {
        let gmac = options.suite.encryption() != Encryption::Null;
        Self {
            key: if gmac { options.keys.0.clone() } else { options.keys.1.clone() },
            gmac,
            spi: options.spi.unwrap_or(site.spi_inbound()).0,
            esn: options.esn,
            addresses: (options.endpoint(site.peer()), options.endpoint(site)),
            padding: if options.outer_ipv6 || options.protocol == Protocol::Ah(Padding::Linux) {
                4
            } else {
                0
            },
        }
    }

    /// A packet with `payload` in AH.
    pub fn sign(&self, sequence: u64, next_header: u8, payload: &[u8]) -> Vec<u8> {
        self.sign_headers(
            &packet::ip(self.addresses.0, self.addresses.1, 51, &[]),
            sequence,
            next_header,
            payload,
        )
    }

    /// As [`AhPeer::sign`], behind this IP header; its length field (and checksum) are filled in.
    pub fn sign_headers(&self, header: &[u8], sequence: u64, next_header: u8, payload: &[u8]) -> Vec<u8> {
        let length = self.header_length();
        let mut packet = header.to_vec();
        let at = packet.len();
        packet.extend([next_header, (length / 4 - 2) as u8, 0, 0]);
        packet.extend(self.spi.to_be_bytes());
        packet.extend((sequence as u32).to_be_bytes());
        packet.resize(at + length, 0);
        packet.extend(payload);
        if packet[0] >> 4 == 4 {
            let total = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&total);
            packet::fix_ipv4(&mut packet);
        } else {
            let behind = ((packet.len() - 40) as u16).to_be_bytes();
            packet[4..6].copy_from_slice(&behind);
        }
        // The IV is the sender's affair, as long as it is another one each time; the engine's is the number itself.
        let iv = (!sequence).to_be_bytes();
        let icv = self.icv(&packet, sequence, &iv);
        let field = if self.gmac { [&iv[..], &icv].concat() } else { icv };
        packet[at + 12..at + 12 + field.len()].copy_from_slice(&field);
        packet
    }

    /// The number and what is behind AH, next header first, if the ICV is right.
    pub fn verify(&self, high_word: u32, packet: &[u8]) -> Option<(u64, u8, Vec<u8>)> {
        let at = ip_header_length(packet);
        let ah = packet.get(at..)?;
        let length = self.header_length();
        if ah.len() < length || usize::from(ah[1]) != length / 4 - 2 || ah[4..8] != self.spi.to_be_bytes() {
            return None;
        }
        let sequence =
            u64::from(high_word) << 32 | u64::from(u32::from_be_bytes(ah[8..12].try_into().unwrap()));
        let (iv, icv) = ah[12..length - self.padding].split_at(self.iv_length());
        let is_right = self.icv(packet, sequence, iv) == icv;
        is_right.then(|| (sequence, ah[0], ah[length..].to_vec()))
    }

    fn iv_length(&self) -> usize {
        if self.gmac { IV_LENGTH } else { 0 }
    }

    fn header_length(&self) -> usize {
        12 + self.iv_length() + ICV_LENGTH + self.padding
    }

    fn icv(&self, packet: &[u8], sequence: u64, iv: &[u8]) -> Vec<u8> {
        let at = ip_header_length(packet);
        let mut covered = packet.to_vec();
        let mutable: &[usize] = if packet[0] >> 4 == 4 { &[1, 6, 7, 8, 10, 11] } else { &[1, 2, 3, 7] };
        mutable.iter().for_each(|at| covered[*at] = 0);
        if packet[0] >> 4 == 6 {
            covered[0] = 0x60;
        }
        covered[at + 12..at + self.header_length() - self.padding].fill(0);
        if self.esn {
            covered.extend(((sequence >> 32) as u32).to_be_bytes());
        }
        if self.gmac {
            let (key, salt) = self.key.split_at(16);
            let nonce: [u8; 12] = [salt, iv].concat().try_into().expect("4 bytes of salt, 8 of IV");
            let gcm = Aes128Gcm::new_from_slice(key).expect("16 bytes");
            return gcm.encrypt(&nonce.into(), Payload { msg: &[], aad: &covered }).expect("a short packet");
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(&covered);
        mac.finalize().into_bytes()[..ICV_LENGTH].to_vec()
    }
}

fn ip_header_length(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}
