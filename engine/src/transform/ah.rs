//! AH (RFC 4302): how long its header is, and what of the IP headers in front of it the ICV covers.
//!
//! ```text
//! | IP header, options or extension headers | AH: 12, ICV, padding | payload … | (high word of ESN) |
//! |<------------------------------- covered by the ICV -------------------------------------------->|
//!   mutable fields as zeros, or as they arrive  the ICV as zeros                not sent
//! ```

use crate::wire::ah::{AhHeader, FIXED_LENGTH};
use crate::wire::header::{IPV4_LENGTH, IPV6_LENGTH};
use crate::wire::ip::IpVersion;
use crate::wire::options::{Extensions, Ipv4Options, Ipv6Options};
use crate::wire::protocol;

/// What the header's length is a multiple of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Padding {
    /// 4 bytes over IPv4, 8 over IPv6 (RFC 4302 section 2.6).
    #[default]
    Rfc4302,
    /// 8 bytes over both: Linux, unless its state has the flag `align4`.
    Linux,
}

/// The length of AH under one SA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    header_length: u8,
}

impl Layout {
    /// For an ICV field of `field_length` bytes, [`crate::crypto::Suite::ah_field_length`].
    pub fn new(field_length: u8, version: IpVersion, padding: Padding) -> Self {
        let alignment = match (version, padding) {
            (IpVersion::V4, Padding::Rfc4302) => 4,
            (IpVersion::V6, _) | (_, Padding::Linux) => 8,
        };
        Self { header_length: (FIXED_LENGTH as u8 + field_length).next_multiple_of(alignment) }
    }

    /// Bytes of the whole header, ICV and padding included.
    #[inline]
    pub fn header_length(&self) -> usize {
        usize::from(self.header_length)
    }

    /// Bytes behind AH in `length` bytes that begin with `header`; `None` when it is not as long as the SA's ICV
    /// makes it: more padding than needed is prohibited (RFC 4302 section 3.3.3.2.1).
    #[inline]
    pub fn payload_length(&self, header: &AhHeader, length: usize) -> Option<usize> {
        let own = usize::from(header.length) == self.header_length();
        length.checked_sub(self.header_length()).filter(|_| own)
    }
}

/// Who asks for the covered bytes: what changes on the way in a predictable way is taken as it arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// In front of the way.
    Sender,
    /// Behind it.
    Receiver,
}

/// Copies `headers` (IP header, options, extension headers, up to AH) to `out` as the ICV covers them: RFC 4302
/// section 3.3.3.1 and appendix A. False, with `out` in any state, when they cannot be covered: an option or extension
/// header that overruns, a Fragment header, a route that is not at its end for the receiver or makes no sense.
///
/// # Panics
/// When `out` is not as long as `headers`, or `headers` is shorter than the version's header.
#[inline]
#[must_use]
pub fn cover(out: &mut [u8], headers: &[u8], version: IpVersion, role: Role) -> bool {
    out.copy_from_slice(headers);
    match version {
        IpVersion::V4 => cover_v4(out, headers, role),
        IpVersion::V6 => cover_v6(out, headers, role),
    }
}

/// Section 3.3.3.1.1.2 and appendix A1: options that no router changes. Of two of them, security options that are
/// long out of use, and router alert, that is all.
const IMMUTABLE_OPTIONS: [u8; 7] = [0, 1, 130, 133, 134, 148, 149];
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

fn cover_v4(out: &mut [u8], headers: &[u8], role: Role) -> bool {
    let (fixed, out) = out.split_at_mut(IPV4_LENGTH);
    // Section 3.3.3.1.1.1: DSCP and ECN, flags and offset, TTL, checksum.
    fixed[1] = 0;
    fixed[6..9].fill(0);
    fixed[10..12].fill(0);
    let mut at = 0;
    for option in Ipv4Options(&headers[IPV4_LENGTH..]) {
        let Some(option) = option else { return false };
        if let &[LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, _, ref route @ ..] = option {
            // Section 3.3.3.1.1.1: the destination is the last one. RFC 791: a pointer from 4 on, then addresses;
            // one behind the end says that the route is done.
            let Some((&pointer, addresses)) = route.split_first() else { return false };
            let Some(&last) = addresses.last_chunk::<4>() else { return false };
            if role == Role::Sender && usize::from(pointer) <= option.len() {
                fixed[16..20].copy_from_slice(&last);
            }
        }
        // "The entire option is treated as mutable": type and length with it.
        if !IMMUTABLE_OPTIONS.contains(&option[0]) {
            out[at..at + option.len()].fill(0);
        }
        at += option.len();
    }
    true
}

/// RFC 8200 section 4.2: the option's data may change on the way.
const MAY_CHANGE: u8 = 0x20;

fn cover_v6(out: &mut [u8], headers: &[u8], role: Role) -> bool {
    // Section 3.3.3.1.2.1: DSCP, ECN and flow label; hop limit.
    out[0] &= 0xf0;
    out[1..4].fill(0);
    out[7] = 0;
    let mut end = IPV6_LENGTH;
    for extension in Extensions::new(headers) {
        end = extension.end;
        let header = &headers[extension.start..end];
        let covered = match extension.kind {
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS => {
                cover_options(&mut out[extension.start + 2..end], &header[2..])
            }
            protocol::ROUTING => arrive(out, extension.start, header, role),
            // IPsec comes before fragmentation and after reassembly.
            _ => false,
        };
        if !covered {
            return false;
        }
    }
    end == headers.len()
}

/// Section 3.3.3.1.2.2: type and length are always covered, data that may change as zeros.
fn cover_options(out: &mut [u8], options: &[u8]) -> bool {
    let mut at = 0;
    for option in Ipv6Options(options) {
        let Some(option) = option else { return false };
        if option[0] & MAY_CHANGE != 0 {
            out[at + 2..at + option.len()].fill(0);
        }
        at += option.len();
    }
    true
}

/// Where a Routing header has the number of addresses still to be visited (RFC 8200 section 4.4).
pub(super) const SEGMENTS_LEFT: usize = 3;
/// Source Route (RFC 8200's predecessor, forbidden to receivers since RFC 5095), and Mobile IPv6 (RFC 6275 section 6.4).
const ADDRESS_LISTS: [u8; 2] = [0, 2];

/// Section 3.3.3.1.2.3 and appendix A2: a Routing header and the destination "as they appear at the final destination".
/// Of the addresses still to be visited the last is the destination then; each of the others, and today's destination,
/// has moved on by one.
fn arrive(out: &mut [u8], start: usize, header: &[u8], role: Role) -> bool {
    const ADDRESS: usize = 16;
    let left = usize::from(header[SEGMENTS_LEFT]);
    if left == 0 {
        return true;
    }
    let addresses = (header.len() - 8) / ADDRESS;
    if role == Role::Receiver || !ADDRESS_LISTS.contains(&header[2]) || left > addresses {
        return false;
    }
    let (fixed, extensions) = out.split_at_mut(IPV6_LENGTH);
    let out = &mut extensions[start - IPV6_LENGTH..][..header.len()];
    out[SEGMENTS_LEFT] = 0;
    let visited = &mut out[8 + (addresses - left) * ADDRESS..8 + addresses * ADDRESS];
    visited.rotate_right(ADDRESS);
    // Now the last is in front, where the destination belongs.
    visited[..ADDRESS].swap_with_slice(&mut fixed[24..]);
    true
}

#[cfg(test)]
#[path = "ah_tests.rs"]
mod tests;
