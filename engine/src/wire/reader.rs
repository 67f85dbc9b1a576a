//! Reads packet after packet. Those of a burst are of a few flows, and their headers differ in little: what has been
//! read before is not taken apart again.

use std::num::NonZeroU64;

use super::header::{IPV4_LENGTH, IPV6_LENGTH};
use super::ip::{self, Flow, Fragment, Hidden, IpPacket, Upper};
use super::{Malformed, protocol};

/// Headers that a reader remembers, of each version. A header has one place, where the latest that was read stays.
const PLACES: usize = 8;

/// Far fewer than there are numbers: a round ends between bursts.
const HEADERS_IN_A_ROUND: u32 = 1 << 31;

/// Reads packets, and knows the headers of those it read lately.
pub struct Reader {
    v4: [Known<HeaderV4>; PLACES],
    v6: [Known<HeaderV6>; PLACES],
    /// The latest packet of an unusual kind.
    unusual: IpPacket,
    /// Counts the headers that were put into a place. Its low half numbers them, its high half counts the rounds.
    headers: u64,
}

/// Packets of one [`Reader`] with the same number are of one flow and have the same IP header, but for length, IPv4's
/// identification and checksum, and IPv6's flow label. It has no options or extension headers, and none of them is a
/// fragment. Good for a [`Reader::round`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowNumber(NonZeroU64);

impl FlowNumber {
    /// Of the header with that number, not 0, in front of what shows that.
    #[inline(always)]
    fn new(header: u32, shown: u32) -> Option<Self> {
        NonZeroU64::new(u64::from(header) << 32 | u64::from(shown)).map(Self)
    }

    /// Its ports, or type and code, as `protocol` has them.
    #[inline(always)]
    fn write_upper(self, protocol: u8, upper: &mut Upper) {
        let shown = self.0.get() as u32;
        match protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                *upper = Upper::Ports { source: (shown >> 16) as u16, destination: shown as u16 };
            }
            protocol::ICMP | protocol::ICMPV6 => {
                *upper = Upper::Icmp { kind: (shown >> 24) as u8, code: (shown >> 16) as u8 };
            }
            _ => {}
        }
    }

    /// One of `places`, a power of two: a few flows at a time mostly have different ones.
    #[inline(always)]
    pub fn place(self, places: usize) -> usize {
        let number = self.0.get();
        // The header, and the ports behind it.
        (number >> 32 ^ number >> 16 ^ number) as usize & (places - 1)
    }
}

/// A packet that was read. Most of what it says was there already; only who asks for all of it has it put together.
pub struct Seen<'r> {
    /// A packet with the same header, but for its length and what is behind it.
    pub like: &'r IpPacket,
    /// Bytes of the whole packet as the IP header says.
    pub total_length: u32,
    /// Its flow, if it is of the usual kind.
    pub flow: Option<FlowNumber>,
}

impl Seen<'_> {
    /// All that it says.
    pub fn packet(&self) -> IpPacket {
        let mut packet = IpPacket::EMPTY;
        self.write(&mut packet);
        packet
    }

    /// The same, into the place where the packet stays: moving what was just written waits for the stores.
    #[inline(always)]
    pub fn write(&self, packet: &mut IpPacket) {
        *packet = *self.like;
        packet.total_length = self.total_length;
        if let Some(flow) = self.flow {
            flow.write_upper(self.like.flow.protocol, &mut packet.flow.upper);
        }
    }
}

/// A header that was read, and what it says.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Known<H> {
    header: H,
    number: u32,
    /// The bits of the four bytes behind it that are ports, or type and code.
    shown: u32,
    /// Nothing of what is behind it.
    packet: IpPacket,
}

/// The fixed header of an IP version as it lies there, without options or extension headers.
trait Header: Copy {
    /// That of a packet, if there are so many bytes of that version.
    fn of(bytes: &[u8]) -> Option<&Self>;
    /// One of [`PLACES`].
    fn place(&self) -> usize;
    /// Bytes of the header.
    const LENGTH: usize;
    /// Bytes of the whole packet.
    fn total_length(&self) -> usize;
    /// Not 0 where they differ in more than packets of one flow do.
    fn differences(&self, other: &Self) -> u64;
    /// Whether its checksum is right, if that of `other`, from which it does not differ, is.
    fn adds_up_to(&self, other: &Self) -> bool;
}

/// IPv4 (RFC 791 section 3.1).
type HeaderV4 = [u8; IPV4_LENGTH];

/// IPv6 (RFC 8200 section 3).
type HeaderV6 = [u8; IPV6_LENGTH];

impl Header for HeaderV4 {
    const LENGTH: usize = IPV4_LENGTH;

    #[inline(always)]
    fn of(bytes: &[u8]) -> Option<&Self> {
        const VERSION_AND_LENGTH: u8 = 0x45;
        bytes.first_chunk().filter(|header| header[0] == VERSION_AND_LENGTH)
    }

    /// By TOS and the ends of the addresses.
    #[inline(always)]
    fn place(&self) -> usize {
        usize::from(self[1] ^ self[15] ^ self[19]) % PLACES
    }

    #[inline(always)]
    fn total_length(&self) -> usize {
        u16::from_be_bytes([self[2], self[3]]).into()
    }

    #[inline(always)]
    fn differences(&self, other: &Self) -> u64 {
        // All but total length, identification and checksum.
        const FIRST: u64 = u64::from_ne_bytes([0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]);
        const MIDDLE: u64 = u64::from_ne_bytes([0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        let words = |header: &Self| {
            let (words, last) = header.as_chunks::<8>();
            let last = last.first_chunk().map_or(0, |last| u32::from_ne_bytes(*last));
            (u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1]), last)
        };
        let (own, others) = (words(self), words(other));
        (own.0 ^ others.0) & FIRST | (own.1 ^ others.1) & MIDDLE | u64::from(own.2 ^ others.2)
    }

    /// RFC 1071: all else adds up to the same, so these three words have to. In one's complement, in any byte order: a
    /// sum may come in several forms, 65,535 apart. It is never 0, since the length is not.
    #[inline(always)]
    fn adds_up_to(&self, other: &Self) -> bool {
        const ONES: u32 = 0xffff;
        let varying = |header: &Self| {
            let word = |at: usize| u32::from(u16::from_ne_bytes([header[at], header[at + 1]]));
            word(2) + word(4) + word(10)
        };
        (varying(self) + 3 * ONES - varying(other)).is_multiple_of(ONES)
    }
}

impl Header for HeaderV6 {
    const LENGTH: usize = IPV6_LENGTH;

    #[inline(always)]
    fn of(bytes: &[u8]) -> Option<&Self> {
        bytes.first_chunk().filter(|header| header[0] >> 4 == 6)
    }

    /// By traffic class and the ends of the addresses.
    #[inline(always)]
    fn place(&self) -> usize {
        usize::from(self[1] >> 4 ^ self[23] ^ self[39]) % PLACES
    }

    #[inline(always)]
    fn total_length(&self) -> usize {
        IPV6_LENGTH + usize::from(u16::from_be_bytes([self[4], self[5]]))
    }

    #[inline(always)]
    fn differences(&self, other: &Self) -> u64 {
        // All but flow label and payload length.
        const FIRST: u64 = u64::from_ne_bytes([0xff, 0xf0, 0, 0, 0, 0, 0xff, 0xff]);
        let words = |header: &Self| {
            let (words, _) = header.as_chunks::<8>();
            std::array::from_fn::<u64, 5, _>(|at| u64::from_ne_bytes(words[at]))
        };
        let (own, others) = (words(self), words(other));
        (1..5).fold((own[0] ^ others[0]) & FIRST, |all, at| all | (own[at] ^ others[at]))
    }

    #[inline(always)]
    fn adds_up_to(&self, _: &Self) -> bool {
        true
    }
}

impl<H: Header> Known<H> {
    /// Length and flow of a packet with that header, `None` where it has to be taken apart.
    #[inline(always)]
    fn see(&self, header: &H, bytes: &[u8]) -> Option<Result<(u32, FlowNumber), Malformed>> {
        if self.header.differences(header) != 0 {
            return None;
        }
        let total_length = header.total_length();
        let Some(payload) = bytes.get(H::LENGTH..total_length) else {
            return Some(Err(Malformed::TotalLength));
        };
        if !header.adds_up_to(&self.header) {
            return Some(Err(Malformed::Checksum));
        }
        let shown = match self.shown {
            0 => 0,
            bits => u32::from_be_bytes(*payload.first_chunk()?) & bits,
        };
        Some(Ok((total_length as u32, FlowNumber::new(self.number, shown)?)))
    }
}

impl<H: Header> Known<H> {
    /// `packet` is what was read of `header`.
    fn new(header: &H, number: u32, packet: &IpPacket) -> Self {
        let flow = Flow { upper: Upper::Opaque, ..packet.flow };
        let shown = match (flow.hides(Fragment::Whole), flow.protocol) {
            (Hidden::Nothing, _) => 0,
            (_, protocol::ICMP | protocol::ICMPV6) => 0xffff_0000,
            _ => u32::MAX,
        };
        Self { header: *header, number, shown, packet: IpPacket { flow, ..*packet } }
    }
}

impl Default for Reader {
    fn default() -> Self {
        // No packet has version 0.
        let none = (0, &IpPacket::EMPTY);
        Self {
            v4: [Known::new(&[0; IPV4_LENGTH], none.0, none.1); PLACES],
            v6: [Known::new(&[0; IPV6_LENGTH], none.0, none.1); PLACES],
            unusual: IpPacket::EMPTY,
            headers: 0,
        }
    }
}

impl Reader {
    /// To be called before a burst. The answer is another one where numbers may come again that were given before:
    /// whoever keeps them forgets them then.
    #[inline]
    pub fn round(&mut self) -> u64 {
        if self.headers as u32 >= HEADERS_IN_A_ROUND {
            *self = Self { headers: ((self.headers >> 32) + 1) << 32, ..Self::default() };
        }
        self.headers >> 32
    }

    /// As [`ip::parse`].
    ///
    /// # Errors
    /// As [`ip::parse`].
    #[inline(always)]
    pub fn read(&mut self, bytes: &[u8]) -> Result<Seen<'_>, Malformed> {
        if let Some(header) = HeaderV4::of(bytes)
            && let Some(seen) = self.v4[header.place()].see(header, bytes)
        {
            let (total_length, flow) = seen?;
            return Ok(Seen { like: &self.v4[header.place()].packet, total_length, flow: Some(flow) });
        }
        if let Some(header) = HeaderV6::of(bytes)
            && let Some(seen) = self.v6[header.place()].see(header, bytes)
        {
            let (total_length, flow) = seen?;
            return Ok(Seen { like: &self.v6[header.place()].packet, total_length, flow: Some(flow) });
        }
        // Nothing that was seen comes back from there: on the way through memory all of it would wait for that.
        self.read_anew(bytes)?;
        let packet = &self.unusual;
        Ok(Seen { like: packet, total_length: packet.total_length, flow: None })
    }

    #[inline(never)]
    fn read_anew(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        ip::read(bytes, &mut self.unusual)?;
        let packet = &self.unusual;
        if packet.payload_offset == packet.header_length && packet.fragment == Fragment::Whole {
            self.headers += 1;
            let number = self.headers as u32;
            if let Some(header) = HeaderV4::of(bytes) {
                self.v4[header.place()] = Known::new(header, number, packet);
            } else if let Some(header) = HeaderV6::of(bytes) {
                self.v6[header.place()] = Known::new(header, number, packet);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
