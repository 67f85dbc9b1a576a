//! Fragmentation: in IPv4 (RFC 791 section 3.2) of any packet that may be, in IPv6 (RFC 8200 section 4.5) of our own.
//! Arithmetic, and a function that writes for each.

use std::ops::Range;

use crate::wire::checksum;
use crate::wire::fragment::FRAGMENT_HEADER_LENGTH;
use crate::wire::header::{FRAGMENT_OFFSET, IPV4_LENGTH, IPV6_LENGTH, MORE_FRAGMENTS};
use crate::wire::ip::{Fragment, IpPacket, IpVersion};
use crate::wire::options::{END_OF_OPTIONS, Ipv4Options};
use crate::wire::protocol;

/// The bit of an option's type that has it copied into every fragment (RFC 791 section 3.1).
const COPIED: u8 = 0x80;

/// Where an IPv6 header names what follows it.
const IPV6_NEXT_HEADER_AT: usize = 6;

/// One fragment to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Offset in the original datagram, units of 8 bytes.
    pub offset: u16,
    /// MF.
    pub more: bool,
    /// Bytes of its headers. IPv4: the whole one in the first piece, only with copied options in the rest. IPv6: with the
    /// Fragment header.
    pub header_length: usize,
    /// Which bytes of the packet it carries, counted from the IP header.
    pub payload: Range<usize>,
}

impl Piece {
    /// Bytes of the fragment.
    #[inline]
    pub fn total_length(&self) -> usize {
        self.header_length + self.payload.len()
    }
}

/// The pieces of one packet, in order.
#[derive(Clone, Debug)]
pub struct Fragments {
    /// What is left to carry.
    rest: Range<usize>,
    mtu: usize,
    offset: u16,
    /// Of the next piece.
    header_length: usize,
    /// Of the pieces behind the first.
    later_header_length: usize,
    /// MF of the packet itself: what its last piece says.
    more: bool,
}

/// Splits an IPv4 packet with DF clear into fragments of at most `inside_mtu` bytes; a fragment is split further
/// like any other packet. `packet` is what `parsed` was read from. `None` if it cannot be: IPv6, DF set, no room for
/// 8 bytes of payload (RFC 791 section 3.2), options that overrun, or data beyond the 65,535 bytes of a datagram.
pub fn fragment_ipv4(packet: &[u8], parsed: &IpPacket, inside_mtu: u32) -> Option<Fragments> {
    if parsed.version != IpVersion::V4 || parsed.dont_fragment {
        return None;
    }
    let header_length = usize::from(parsed.header_length);
    let options = packet.get(IPV4_LENGTH..header_length)?;
    let mut copied = 0;
    for option in Ipv4Options(options) {
        copied += if option?[0] & COPIED != 0 { option?.len() } else { 0 };
    }
    let mtu = inside_mtu as usize;
    let rest = header_length..parsed.total_length as usize;
    let flags = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?);
    let offset = flags & FRAGMENT_OFFSET;
    let fits = mtu >= header_length + 8 || mtu >= rest.end;
    // Otherwise the offsets of the last pieces would not fit 13 bits: the "ping of death".
    let in_bounds = IPV4_LENGTH + usize::from(offset) * 8 + rest.len() <= usize::from(u16::MAX);
    (fits && in_bounds && packet.len() >= rest.end).then_some(Fragments {
        rest,
        mtu,
        offset,
        header_length,
        later_header_length: IPV4_LENGTH + copied.next_multiple_of(4),
        more: flags & MORE_FRAGMENTS != 0,
    })
}

/// As [`fragment_ipv4`], for an IPv6 packet of our own, or of the gateway's: all headers in front of the next layer go into
/// every fragment (RFC 8200 section 4.5, where only the Routing and Hop-by-Hop headers must). Only the sender of
/// an IPv6 packet fragments it. `None` if it cannot be: a fragment already, or no room for 8 bytes of payload.
pub fn fragment_ipv6(packet: &[u8], parsed: &IpPacket, mtu: u32) -> Option<Fragments> {
    if parsed.version != IpVersion::V6 || usize::from(parsed.payload_offset) > packet.len() {
        return None;
    }
    let header_length = usize::from(parsed.payload_offset) + FRAGMENT_HEADER_LENGTH;
    let rest = usize::from(parsed.payload_offset)..parsed.total_length as usize;
    let (mtu, whole) = (mtu as usize, parsed.fragment == Fragment::Whole);
    (whole && mtu >= header_length + 8 && packet.len() >= rest.end).then_some(Fragments {
        rest,
        mtu,
        offset: 0,
        header_length,
        later_header_length: header_length,
        more: false,
    })
}

/// Writes the fragment `piece` of `packet` ([`fragment_ipv6`]) into the first bytes of `out` and returns its length.
/// `None`, with `out` in any state, if `out` is too short or `piece` is not of this packet.
pub fn write_fragment_ipv6(
    out: &mut [u8],
    packet: &[u8],
    piece: &Piece,
    identification: u32,
) -> Option<usize> {
    let length = piece.total_length();
    let payload = packet.get(piece.payload.clone())?;
    let (header, out_payload) = out.get_mut(..length)?.split_at_mut_checked(piece.header_length)?;
    out_payload.copy_from_slice(payload);
    let (front, fragment_header) = header.split_last_chunk_mut::<FRAGMENT_HEADER_LENGTH>()?;
    front.copy_from_slice(packet.get(..front.len())?);
    let mut named_at = IPV6_NEXT_HEADER_AT;
    let mut at = IPV6_LENGTH;
    while at < front.len() {
        named_at = at;
        at += (usize::from(*front.get(at + 1)?) + 1) * 8;
    }
    let next_header = std::mem::replace(front.get_mut(named_at)?, protocol::FRAGMENT);
    let payload_length = u16::try_from(length - IPV6_LENGTH).ok()?;
    front.get_mut(4..6)?.copy_from_slice(&payload_length.to_be_bytes());
    let [f0, f1] = (piece.offset << 3 | u16::from(piece.more)).to_be_bytes();
    let [i0, i1, i2, i3] = identification.to_be_bytes();
    *fragment_header = [next_header, 0, f0, f1, i0, i1, i2, i3];
    Some(length)
}

impl Iterator for Fragments {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        // A packet without payload is one piece; a zero header length marks the end.
        if self.header_length == 0 {
            return None;
        }
        let room = self.mtu.saturating_sub(self.header_length);
        let last = self.rest.len() <= room;
        let length = if last { self.rest.len() } else { room & !7 };
        let payload = self.rest.start..self.rest.start + length;
        let piece = Piece {
            offset: self.offset,
            more: self.more || !last,
            header_length: self.header_length,
            payload: payload.clone(),
        };
        self.rest.start = payload.end;
        self.offset += (length / 8) as u16;
        self.header_length = if last { 0 } else { self.later_header_length };
        Some(piece)
    }
}

/// Writes the fragment `piece` of `packet`, checksum included, into the first bytes of `out` and returns its
/// length. `None`, with `out` in any state, if `out` is too short or `piece` is not of this packet.
pub fn write_fragment(out: &mut [u8], packet: &[u8], piece: &Piece) -> Option<usize> {
    let length = piece.total_length();
    let payload = packet.get(piece.payload.clone())?;
    let (header, out_payload) = out.get_mut(..length)?.split_at_mut_checked(piece.header_length)?;
    out_payload.copy_from_slice(payload);

    let (fixed, options) = header.split_first_chunk_mut::<IPV4_LENGTH>()?;
    let original = packet.first_chunk::<IPV4_LENGTH>()?;
    let original_options = packet.get(IPV4_LENGTH..usize::from(original[0] & 0x0f) * 4)?;
    *fixed = *original;
    if piece.payload.start == IPV4_LENGTH + original_options.len() {
        options.copy_from_slice(original_options.get(..options.len())?);
    } else {
        options.fill(END_OF_OPTIONS);
        let mut at = 0;
        for option in Ipv4Options(original_options) {
            let option = option?;
            if option[0] & COPIED != 0 {
                options.get_mut(at..at + option.len())?.copy_from_slice(option);
                at += option.len();
            }
        }
    }
    let flags = u16::from_be_bytes([original[6], original[7]]) & !(MORE_FRAGMENTS | FRAGMENT_OFFSET)
        | if piece.more { MORE_FRAGMENTS } else { 0 }
        | piece.offset;
    fixed[0] = 0x40 | (piece.header_length / 4) as u8;
    [fixed[2], fixed[3]] = u16::try_from(length).ok()?.to_be_bytes();
    [fixed[6], fixed[7]] = flags.to_be_bytes();
    [fixed[10], fixed[11]] = [0, 0];
    let checksum = checksum::internet(header);
    header.get_mut(10..12)?.copy_from_slice(&checksum.to_be_bytes());
    Some(length)
}

#[cfg(test)]
#[path = "fragment_tests.rs"]
mod tests;
