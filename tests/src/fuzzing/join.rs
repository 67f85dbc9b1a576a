//! Puts the engine's own fragments together, which leave one after the other: RFC 791 and RFC 8200 section 4.5 in a few
//! lines, none of the engine's.

use crate::packet::fix_ipv4;

/// The fragments of one packet so far.
#[derive(Default)]
pub struct Joiner {
    headers: Vec<u8>,
    payload: Vec<u8>,
}

impl Joiner {
    /// The whole packet, when `packet` was the last fragment of it. Without options, and no extension headers but the
    /// Fragment header.
    ///
    /// # Panics
    /// When it does not follow the one before.
    pub fn join(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let v4 = packet[0] >> 4 == 4;
        let (start, field) = if v4 { (20, 6) } else { (48, 42) };
        let field = u16::from_be_bytes([packet[field], packet[field + 1]]);
        let (offset, more) =
            if v4 { (field & 0x1fff, field & 0x2000 != 0) } else { (field >> 3, field & 1 != 0) };
        if offset == 0 {
            assert!(self.payload.is_empty(), "a packet that was never finished");
            self.headers = packet[..start].to_vec();
        }
        assert_eq!(usize::from(offset) * 8, self.payload.len(), "the next piece");
        assert!(!more || (packet.len() - start).is_multiple_of(8));
        self.payload.extend(&packet[start..]);
        if more {
            return None;
        }
        let mut whole = std::mem::take(&mut self.headers);
        if v4 {
            let length = (20 + self.payload.len()) as u16;
            whole[2..4].copy_from_slice(&length.to_be_bytes());
            whole[6..8].fill(0);
            fix_ipv4(&mut whole);
        } else {
            whole[6] = whole[40];
            whole.truncate(40);
            whole[4..6].copy_from_slice(&(self.payload.len() as u16).to_be_bytes());
        }
        whole.append(&mut self.payload);
        Some(whole)
    }

    /// Whether a packet has begun and not ended.
    pub fn is_waiting(&self) -> bool {
        !self.payload.is_empty()
    }
}
