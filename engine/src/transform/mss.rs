//! TCP MSS clamping: a SYN that offers more than the tunnel carries is told what it carries.
//!
//! ```text
//! TCP (RFC 9293 section 3.1)
//! |          Source Port          |       Destination Port        |  0
//! |                        Sequence Number                        |  4
//! |                    Acknowledgment Number                      |  8
//! |  Data |       |C|E|U|A|P|R|S|F|            Window             | 12
//! | Offset|       |W|C|R|C|S|S|Y|I|                               |
//! |           Checksum            |         Urgent Pointer        | 16
//! |  Options: 0 = end, 1 = no-op, else kind, length, value …      | 20
//! Maximum Segment Size (section 3.2): | 2 | 4 | MSS, 2 bytes |
//! ```

use crate::wire::checksum;
use crate::wire::header::{IPV4_LENGTH, IPV6_LENGTH};
use crate::wire::ip::{Fragment, IpPacket, IpVersion};
use crate::wire::protocol;

/// Bytes of a TCP header without options.
const TCP_LENGTH: usize = 20;
const SYN: u8 = 0x02;

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Lowers the MSS option of a TCP SYN or SYN/ACK so that a segment of it fits `inside_mtu`, in place,
/// mending the TCP checksum; leaves everything else alone. `packet` begins at the IP header and is a
/// whole parsed packet or a first fragment; options that overrun are left alone. Returns true when changed.
///
/// The MSS does not count IP and TCP options (RFC 6691 section 2): it is `inside_mtu` - 40 for IPv4 and - 60
/// for IPv6. It is never raised, and a SYN without the option keeps its default (536 or 1220, RFC 9293 section 3.7.1).
#[inline]
pub fn clamp(packet: &mut [u8], parsed: &IpPacket, inside_mtu: u32) -> bool {
    if parsed.flow.protocol != protocol::TCP || parsed.fragment == Fragment::Later {
        return false;
    }
    let offset = usize::from(parsed.payload_offset);
    // SYN is in the 14th byte: nearly every packet ends here.
    if packet.get(offset + 13).is_none_or(|flags| flags & SYN == 0) {
        return false;
    }
    clamp_syn(packet, parsed, inside_mtu)
}

fn clamp_syn(packet: &mut [u8], parsed: &IpPacket, inside_mtu: u32) -> bool {
    let headers = TCP_LENGTH
        + match parsed.version {
            IpVersion::V4 => IPV4_LENGTH,
            IpVersion::V6 => IPV6_LENGTH,
        };
    let limit = inside_mtu.saturating_sub(headers as u32).min(u32::from(u16::MAX)) as u16;
    if limit == 0 {
        return false;
    }
    let Some(segment) = packet.get_mut(usize::from(parsed.payload_offset)..parsed.total_length as usize)
    else {
        return false;
    };
    let header_length = segment.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    let Some(options_length) = header_length.checked_sub(TCP_LENGTH) else { return false };
    let Some((header, rest)) = segment.split_first_chunk_mut::<TCP_LENGTH>() else { return false };
    let Some(options) = rest.get_mut(..options_length) else { return false };

    let mut checksum = u16::from_be_bytes([header[16], header[17]]);
    let mut changed = false;
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        let length = match kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => 1,
            _ => match options.get(at + 1) {
                // Below 2 it would not move on; beyond the header it is not an option.
                Some(&length) if length >= 2 && at + usize::from(length) <= options.len() => {
                    usize::from(length)
                }
                _ => break,
            },
        };
        if kind == MAXIMUM_SEGMENT_SIZE
            && let Some([_, 4, m0, m1]) = options.get_mut(at..at + length)
        {
            let old = u16::from_be_bytes([*m0, *m1]);
            if old > limit {
                [*m0, *m1] = limit.to_be_bytes();
                // Behind an odd number of no-ops the value lies across two words of the sum, its high byte
                // in a low place: the same as its bytes swapped in one word (RFC 1071 section 2 (B)).
                let place = |mss: u16| if at % 2 == 0 { mss } else { mss.swap_bytes() };
                checksum = checksum::update(checksum, place(old), place(limit));
                changed = true;
            }
        }
        at += length;
    }
    [header[16], header[17]] = checksum.to_be_bytes();
    changed
}

#[cfg(test)]
#[path = "mss_tests.rs"]
mod tests;
