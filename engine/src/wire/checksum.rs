//! The Internet checksum: RFC 1071 in full, RFC 1624 by difference.

/// A one's complement sum in progress. It is kept in the byte order of memory: RFC 1071 section 2 (B) shows
/// that swapping every word only swaps the result, so one swap at the end serves all of them.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`; an odd last byte counts as if a zero followed it, so only the last piece may be odd.
    #[inline(always)]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // 32-bit halves into a 64-bit accumulator (RFC 1071 section 2 (C)): carries have 2^31 additions of room.
        let (words, rest) = bytes.as_chunks::<8>();
        let mut sum = self.0;
        for word in words {
            let word = u64::from_ne_bytes(*word);
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let (words, rest) = rest.as_chunks::<2>();
        for word in words {
            sum += u64::from(u16::from_ne_bytes(*word));
        }
        for byte in rest {
            sum += u64::from(u16::from_ne_bytes([*byte, 0]));
        }
        Self(sum)
    }

    /// Adds eight bytes, given as the number that they are on the wire.
    #[inline(always)]
    #[must_use]
    pub fn word(self, word: u64) -> Self {
        let word = word.to_be();
        Self(self.0 + (word & 0xffff_ffff) + (word >> 32))
    }

    /// Adds a 32-bit number, as a pseudo-header has it.
    #[inline]
    #[must_use]
    pub fn number(self, number: u32) -> Self {
        Self(self.0 + u64::from(number.to_be()))
    }

    /// Adds what TCP, UDP and ICMPv6 cover besides their own bytes (RFC 9293 section 3.1, RFC 8200 section
    /// 8.1): addresses, length and protocol. IPv4 and IPv6 differ in the widths of the last two only, which
    /// the sum does not see.
    #[inline]
    #[must_use]
    pub fn pseudo_header(self, addresses: &[u8], length: u32, protocol: u8) -> Self {
        self.bytes(addresses).number(length).number(u32::from(protocol))
    }

    /// The 16-bit sum, not complemented.
    #[inline(always)]
    pub fn fold(self) -> u16 {
        let sum = self.0;
        // Four words side by side give at most 0x3fffc, then 0x10001, then a word.
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32 & 0xffff) + (sum >> 48);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum: complement of the folded sum. Over bytes that hold a right checksum it is 0.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// One's complement sum of `bytes`, folded, complemented: the value for a header whose checksum field is 0.
#[inline(always)]
pub fn internet(bytes: &[u8]) -> u16 {
    Sum::default().bytes(bytes).checksum()
}

/// RFC 1624 equation 3: the checksum after a 16-bit field changed from `old` to `new`.
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    // HC' = ~(~HC + ~m + m'). Equation 4 of the older RFC 1141 gives 0xffff where this gives 0.
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 1, word by word.
    fn by_words(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for word in bytes.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc1071_section_3_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&bytes).fold(), 0xddf2);
        assert_eq!(internet(&bytes), !0xddf2);
    }

    #[test]
    fn rfc1624_section_4_example() {
        // The case that RFC 1141 gets wrong: HC 0xdd2f, m 0x5555, m' 0x3285 gives 0x0000.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn empty_and_all_ones() {
        assert_eq!(internet(&[]), 0xffff);
        assert_eq!(internet(&[0; 20]), 0xffff);
        assert_eq!(internet(&[0xff; 20]), 0);
    }

    #[test]
    fn a_64_kib_packet_of_ones_does_not_overflow() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(internet(&bytes), by_words(&bytes));
    }

    fn edge() -> impl Strategy<Value = u16> {
        prop_oneof![Just(0u16), Just(0xffff), Just(1), Just(0xfffe), Just(0x8000), any::<u16>()]
    }

    proptest! {
        #[test]
        fn equals_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200) {
            prop_assert_eq!(internet(&bytes), by_words(&bytes));
            // In two pieces, the first of even length.
            let at = (at & !1).min(bytes.len() & !1);
            let (a, b) = bytes.split_at(at);
            prop_assert_eq!(Sum::default().bytes(a).bytes(b).checksum(), by_words(&bytes));
        }

        /// The updated checksum is the recomputed one, bit for bit, edges included.
        #[test]
        fn update_equals_recomputation(words in proptest::collection::vec(edge(), 1..12), at in 0usize..12, new in edge()) {
            // A version nibble keeps the header from being all zero, as every IP header does.
            let mut header = vec![0x45u8, 0];
            header.extend(words.iter().flat_map(|w| w.to_be_bytes()));
            let before = internet(&header);
            let at = 2 + 2 * (at % words.len());
            let old = u16::from_be_bytes([header[at], header[at + 1]]);
            header[at..at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), internet(&header));
        }
    }
}
