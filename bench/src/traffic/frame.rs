//! Test frames: UDP over IPv4 or IPv6 that carries a flow and a sequence number.

use std::net::IpAddr;

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERNET: usize = 14;
const UDP: usize = 8;
const MAGIC: u32 = 0xad17_f10e;
/// Magic, flow, sequence number.
const TAG: usize = 16;
const PORT: u16 = 9;
/// Source ports from here on, by flow.
const FIRST_SOURCE_PORT: u16 = 10_000;
const SOURCE_PORTS: u32 = 50_000;

/// What all frames of a run have in common.
#[derive(Clone, Debug)]
pub struct Template {
    header: Vec<u8>,
    tag_at: usize,
    /// One's complement sum of everything the UDP checksum covers but ports and tag.
    sum: u32,
}

/// Why a template cannot be made.
#[derive(Debug, PartialEq, Eq)]
pub struct BadTemplate(pub String);

/// The flow and sequence number of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// Flow.
    pub flow: u32,
    /// Sequence number, from 0.
    pub sequence: u64,
}

/// What is wrong with a received frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Not UDP of the generator.
    Foreign,
    /// A length field disagrees with the frame.
    Length,
    /// A checksum is wrong.
    Checksum,
}

fn sum_words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u32::from(low))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over a pseudo-header (RFC 768, RFC 8200 section 8.1) for a UDP datagram of `length` bytes.
fn pseudo_header(addresses: &[u8], length: usize) -> u32 {
    sum_words(addresses) + 17 + length as u32
}

impl Template {
    /// For frames of `size` bytes without FCS. Their payload after the tag is zeros.
    ///
    /// # Errors
    /// Addresses of different families, or a size that does not hold the headers or exceeds 1,792.
    pub fn new(
        source_mac: Mac,
        destination_mac: Mac,
        source: IpAddr,
        destination: IpAddr,
        size: usize,
    ) -> Result<Self, BadTemplate> {
        let mut header = [&destination_mac[..], &source_mac[..]].concat();
        let ip = match (source, destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => 20,
            (IpAddr::V6(_), IpAddr::V6(_)) => 40,
            _ => return Err(BadTemplate("source and destination are of different families".into())),
        };
        let least = ETHERNET + ip + UDP + TAG;
        if size < least || size > 1792 {
            return Err(BadTemplate(format!("size {size}: between {least} and 1792")));
        }
        let udp_length = size - ETHERNET - ip;
        let sum = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.extend([0x08, 0x00, 0x45, 0]);
                header.extend(((size - ETHERNET) as u16).to_be_bytes());
                header.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let checksum = !fold(sum_words(&header[ETHERNET..]));
                header[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
                pseudo_header(&header[ETHERNET + 12..], udp_length)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                header.extend((udp_length as u16).to_be_bytes());
                header.extend([17, 64]);
                header.extend(source.octets());
                header.extend(destination.octets());
                pseudo_header(&header[ETHERNET + 8..], udp_length)
            }
            _ => unreachable!("refused above"),
        };
        header.extend(0u16.to_be_bytes());
        header.extend(PORT.to_be_bytes());
        header.extend((udp_length as u16).to_be_bytes());
        header.extend(0u16.to_be_bytes());
        let tag_at = header.len();
        header.extend(MAGIC.to_be_bytes());
        let sum = sum + sum_words(&header[tag_at - UDP..]);
        header.resize(tag_at + TAG, 0);
        Ok(Self { header, tag_at, sum })
    }

    /// Writes every header anew: a frame that was sent before may hold the kernel's edits.
    #[inline]
    pub fn write(&self, frame: &mut [u8], tag: Tag) {
        let end = self.tag_at + TAG;
        frame[..end].copy_from_slice(&self.header);
        frame[self.tag_at + 4..self.tag_at + 8].copy_from_slice(&tag.flow.to_be_bytes());
        frame[self.tag_at + 8..end].copy_from_slice(&tag.sequence.to_be_bytes());
        let udp = self.tag_at - UDP;
        let port = FIRST_SOURCE_PORT + (tag.flow % SOURCE_PORTS) as u16;
        frame[udp..udp + 2].copy_from_slice(&port.to_be_bytes());
        let sum = self.sum + u32::from(port) + sum_words(&frame[self.tag_at + 4..end]);
        let checksum = match !fold(sum) {
            0 => 0xffff,
            checksum => checksum,
        };
        frame[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Checks a received frame and reads its tag.
///
/// # Errors
/// [`Fault`].
pub fn decode(frame: &[u8]) -> Result<Tag, Fault> {
    let be16 = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if frame.len() < ETHERNET + 20 + UDP + TAG {
        return Err(Fault::Foreign);
    }
    let (addresses, udp) = match be16(12) {
        0x0800 if frame[14] == 0x45 && frame[23] == 17 => {
            if fold(sum_words(&frame[14..34])) != 0xffff {
                return Err(Fault::Checksum);
            }
            (&frame[26..34], 34..14 + usize::from(be16(16)))
        }
        0x86dd if frame[20] == 17 && frame.len() >= 54 + UDP + TAG => {
            (&frame[22..54], 54..54 + usize::from(be16(18)))
        }
        _ => return Err(Fault::Foreign),
    };
    // Short frames are padded to the Ethernet minimum.
    let datagram = frame.get(udp.clone()).ok_or(Fault::Length)?;
    if datagram.len() < UDP + TAG || usize::from(be16(udp.start + 4)) != datagram.len() {
        return Err(Fault::Length);
    }
    let field = |at: usize| u32::from_be_bytes(datagram[at..at + 4].try_into().expect("four bytes"));
    if field(UDP) != MAGIC {
        return Err(Fault::Foreign);
    }
    if fold(pseudo_header(addresses, datagram.len()) + sum_words(datagram)) != 0xffff {
        return Err(Fault::Checksum);
    }
    let sequence = u64::from(field(UDP + 8)) << 32 | u64::from(field(UDP + 12));
    Ok(Tag { flow: field(UDP + 4), sequence })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(v6: bool, size: usize) -> Result<Template, BadTemplate> {
        let (source, destination) =
            if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "192.0.2.2") };
        let parse = |address: &str| address.parse().expect("an address");
        Template::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], parse(source), parse(destination), size)
    }

    #[test]
    fn what_is_written_is_read_again_and_any_changed_bit_is_noticed() {
        for (v6, size) in [(false, 58), (false, 64), (false, 1400), (true, 78), (true, 1499)] {
            let mut frame = vec![0; size];
            let tag = Tag { flow: 70_000, sequence: 0x1_2345_6789 };
            template(v6, size).expect("it fits").write(&mut frame, tag);
            assert_eq!(decode(&frame), Ok(tag), "{size}");
            // From the addresses on everything is under a checksum, and in IPv4 the whole header is.
            for at in if v6 { 22..size } else { 14..size } {
                let mut changed = frame.clone();
                changed[at] ^= 0x10;
                assert!(decode(&changed).is_err(), "byte {at} of {size}");
            }
            let mut padded = frame.clone();
            padded.resize(size + 7, 0);
            assert_eq!(decode(&padded), Ok(tag));
            for length in 0..size {
                assert!(decode(&frame[..length]).is_err());
            }
        }
    }

    #[test]
    fn sizes_that_hold_no_tag_are_refused() {
        assert!(
            template(false, 57).is_err() && template(true, 77).is_err() && template(false, 1793).is_err()
        );
    }
}
