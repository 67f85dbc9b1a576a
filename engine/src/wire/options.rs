//! What hangs on IP headers: options of IPv4 (RFC 791 section 3.1), extension headers of IPv6 (RFC 8200 section 4)
//! and the options inside those. Every walk moves on or ends.

use super::header::IPV6_LENGTH;
use super::protocol;

/// "End of Option List".
pub const END_OF_OPTIONS: u8 = 0;
/// "No Operation".
pub const NO_OPERATION: u8 = 1;

/// The options of an IPv4 header, type byte first; ends at "end of options", yields `None` for one that overruns.
pub struct Ipv4Options<'a>(pub &'a [u8]);

impl<'a> Iterator for Ipv4Options<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = match *self.0 {
            [] | [END_OF_OPTIONS, ..] => return None,
            [NO_OPERATION, ..] => 1,
            [_, length, ..] if length >= 2 => usize::from(length),
            // No length, or one that does not move on: beyond any end.
            _ => usize::MAX,
        };
        let Some((option, rest)) = self.0.split_at_checked(length) else {
            self.0 = &[];
            return Some(None);
        };
        self.0 = rest;
        Some(Some(option))
    }
}

/// The options of an IPv6 Hop-by-Hop or Destination Options header, type byte first; yields `None` for one that
/// overruns.
pub struct Ipv6Options<'a>(pub &'a [u8]);

/// RFC 8200 section 4.2: the one option without a length.
const PAD1: u8 = 0;

impl<'a> Iterator for Ipv6Options<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = match *self.0 {
            [] => return None,
            [PAD1, ..] => 1,
            [_, length, ..] => 2 + usize::from(length),
            [_] => usize::MAX,
        };
        let Some((option, rest)) = self.0.split_at_checked(length) else {
            self.0 = &[];
            return Some(None);
        };
        self.0 = rest;
        Some(Some(option))
    }
}

/// One extension header, by offsets from the IPv6 header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extension {
    /// What it is: 0, 43, 44 or 60.
    pub kind: u8,
    /// Its first byte, which names what follows it.
    pub start: usize,
    /// Behind its last byte.
    pub end: usize,
}

/// The extension headers of an IPv6 packet in front of an offset: those that `ip::parse` passed on its way to
/// [`IpPacket::payload_offset`](super::ip::IpPacket::payload_offset). Ends early where they overrun that.
pub struct Extensions<'a> {
    headers: &'a [u8],
    kind: u8,
    at: usize,
}

impl<'a> Extensions<'a> {
    /// Of `headers`, the IPv6 header and what follows it up to the offset.
    pub fn new(headers: &'a [u8]) -> Self {
        Self { headers, kind: headers.get(6).copied().unwrap_or(protocol::NO_NEXT_HEADER), at: IPV6_LENGTH }
    }
}

impl Iterator for Extensions<'_> {
    type Item = Extension;

    fn next(&mut self) -> Option<Extension> {
        let (kind, start) = (self.kind, self.at);
        let &[next, length, ..] = self.headers.get(start..)? else { return None };
        let length = match kind {
            protocol::FRAGMENT => 8,
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                (usize::from(length) + 1) * 8
            }
            _ => return None,
        };
        let end = start + length;
        (self.kind, self.at) = (next, end);
        (end <= self.headers.len()).then_some(Extension { kind, start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frames::{V6_CHAIN, bytes};
    use crate::wire::ip;
    use proptest::prelude::*;

    #[test]
    fn ipv4_options_end_at_the_end_and_at_the_first_that_overruns() {
        let read = |options: &[u8]| Ipv4Options(options).map(|it| it.map(<[u8]>::len)).collect::<Vec<_>>();
        assert_eq!(read(&[1, 1, 148, 4, 0, 0, 0, 9]), [Some(1), Some(1), Some(4)]);
        assert_eq!(read(&[148, 1]), [None], "a length that does not move on");
        assert_eq!(read(&[1, 148]), [Some(1), None]);
        assert_eq!(read(&[7, 5, 0, 0]), [None]);
    }

    #[test]
    fn ipv6_options_of_every_length() {
        let read = |options: &[u8]| Ipv6Options(options).map(|it| it.map(<[u8]>::len)).collect::<Vec<_>>();
        assert_eq!(read(&[0, 0, 1, 0, 5, 2, 0, 0]), [Some(1), Some(1), Some(2), Some(4)]);
        assert_eq!(read(&[5, 3, 0, 0]), [None]);
        assert_eq!(read(&[0, 5]), [Some(1), None]);
    }

    #[test]
    fn extensions_are_those_the_parser_passed() {
        let packet = bytes(V6_CHAIN);
        let offset = usize::from(ip::parse(&packet).unwrap().payload_offset);
        let read: Vec<_> = Extensions::new(&packet[..offset]).map(|it| (it.kind, it.start, it.end)).collect();
        assert_eq!(read, [(0, 40, 48), (60, 48, 64), (43, 64, 88)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_once_and_never_beyond(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let length = |it: Option<&[u8]>| it.map_or(0, <[u8]>::len);
            prop_assert!(Ipv4Options(&bytes).map(length).sum::<usize>() <= bytes.len());
            prop_assert!(Ipv6Options(&bytes).map(length).sum::<usize>() <= bytes.len());
            let mut last = 40;
            for extension in Extensions::new(&bytes) {
                prop_assert_eq!(extension.start, last);
                prop_assert!(extension.end >= last + 8 && extension.end <= bytes.len());
                last = extension.end;
            }
        }
    }
}
