//! An AH sender and receiver of its own, for a peer that holds the key and obeys nobody: RFC 4302 with
//! HMAC-SHA-256-128 (RFC 4868), behind IP headers without options. None of the engine's code.

use std::net::IpAddr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::packet;

/// Bytes of the ICV.
const ICV_LENGTH: usize = 16;

/// One SA, either direction.
pub struct AhPeer {
    /// Authentication key.
    pub key: Vec<u8>,
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
        let length = 12 + ICV_LENGTH + self.padding;
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
        let icv = self.icv(&packet, sequence);
        packet[at + 12..at + 12 + ICV_LENGTH].copy_from_slice(&icv);
        packet
    }

    /// The number and what is behind AH, next header first, if the ICV is right.
    pub fn verify(&self, high_word: u32, packet: &[u8]) -> Option<(u64, u8, Vec<u8>)> {
        let at = header_length(packet);
        let ah = packet.get(at..)?;
        let length = 12 + ICV_LENGTH + self.padding;
        if ah.len() < length || usize::from(ah[1]) != length / 4 - 2 || ah[4..8] != self.spi.to_be_bytes() {
            return None;
        }
        let sequence =
            u64::from(high_word) << 32 | u64::from(u32::from_be_bytes(ah[8..12].try_into().unwrap()));
        let is_right = self.icv(packet, sequence) == ah[12..12 + ICV_LENGTH];
        is_right.then(|| (sequence, ah[0], ah[length..].to_vec()))
    }

    fn icv(&self, packet: &[u8], sequence: u64) -> [u8; ICV_LENGTH] {
        let at = header_length(packet);
        let mut covered = packet.to_vec();
        let mutable: &[usize] = if packet[0] >> 4 == 4 { &[1, 6, 7, 8, 10, 11] } else { &[1, 2, 3, 7] };
        mutable.iter().for_each(|at| covered[*at] = 0);
        if packet[0] >> 4 == 6 {
            covered[0] = 0x60;
        }
        covered[at + 12..at + 12 + ICV_LENGTH].fill(0);
        if self.esn {
            covered.extend(((sequence >> 32) as u32).to_be_bytes());
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(&covered);
        mac.finalize().into_bytes()[..ICV_LENGTH].try_into().unwrap()
    }
}

fn header_length(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}
