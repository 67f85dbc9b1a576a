//! VLAN tags between the addresses and the EtherType of an Ethernet frame: an 802.1Q tag, or an 802.1ad tag and an 802.1Q
//! tag behind it (QinQ).
//!
//! ```text
//! +-------------+----------+------------------------------+----------------+-----------+---------
//! | destination |  source  | TPID 0x88a8 | PCP/DEI, VID   | 0x8100 | TCI   | EtherType | payload
//! +-------------+----------+------------------------------+----------------+-----------+---------
//! 0             6          12            14               16       18      20
//! ```

use super::ethernet::ether_type;

/// Bytes of one tag.
pub const TAG_LENGTH: usize = 4;

/// Bytes of the addresses in front of the tags.
const ADDRESSES: usize = 12;

/// The identifiers in a tag control field; the rest is priority.
const VID: u16 = 0x0fff;

/// The VLAN of a frame: the identifiers of its tags, 0 where there is none. A priority tag, with identifier 0, says
/// nothing of a VLAN (IEEE 802.1Q section 6.9).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tags {
    /// Of the 802.1ad tag.
    pub outer: u16,
    /// Of the 802.1Q tag.
    pub inner: u16,
}

impl Tags {
    /// Bytes of the tags when written.
    pub fn length(self) -> usize {
        TAG_LENGTH * (usize::from(self.outer != 0) + usize::from(self.inner != 0))
    }

    /// Reads the tags of `frame` and says how many bytes they are. `None` when it ends within them, or when they are not
    /// one of 802.1ad, one of 802.1Q, or these two in that order.
    pub fn read(frame: &[u8]) -> Option<(Self, usize)> {
        let mut tags = Self::default();
        let mut length = 0;
        let mut may_follow = [ether_type::QINQ, ether_type::VLAN].as_slice();
        loop {
            let field = |at: usize| {
                let at = ADDRESSES + length + at;
                frame.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
            };
            let kind = field(0)?;
            if !matches!(kind, ether_type::QINQ | ether_type::VLAN) {
                return Some((tags, length));
            }
            let place = may_follow.iter().position(|may| *may == kind)?;
            may_follow = &may_follow[place + 1..];
            let vlan = field(2)? & VID;
            match kind {
                ether_type::QINQ => tags.outer = vlan,
                _ => tags.inner = vlan,
            }
            length += TAG_LENGTH;
        }
    }

    /// Puts the tags into `frame`, which has [`Tags::length`] bytes of room in front of its addresses.
    ///
    /// # Panics
    /// If the frame, which is the caller's own, is shorter than that and the addresses.
    pub fn write(self, frame: &mut [u8]) {
        let length = self.length();
        frame.copy_within(length..length + ADDRESSES, 0);
        let tags = [(ether_type::QINQ, self.outer), (ether_type::VLAN, self.inner)];
        let present = tags.into_iter().filter(|(_, vlan)| *vlan != 0);
        for (room, (kind, vlan)) in frame[ADDRESSES..].chunks_exact_mut(TAG_LENGTH).zip(present) {
            let [kind, vlan] = [kind, vlan].map(u16::to_be_bytes);
            room.copy_from_slice(&[kind[0], kind[1], vlan[0], vlan[1]]);
        }
    }
}

/// `frame` without the first `length` bytes of tags.
///
/// # Panics
/// If it is shorter than addresses and tags.
pub fn strip(frame: &mut [u8], length: usize) -> &mut [u8] {
    frame.copy_within(..ADDRESSES, length);
    &mut frame[length..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `bytes(Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")/Dot1Q(vlan=100, prio=5)/…)` and its kin, of scapy
    /// 2.8.0, up to the EtherType of what is inside.
    const TAGGED: [(&str, Option<(u16, u16)>); 9] = [
        ("0200000000020200000000010800", Some((0, 0))),
        ("0200000000020200000000018100a0640800", Some((0, 100))),
        ("02000000000202000000000188a80064810000140800", Some((100, 20))),
        ("02000000000202000000000188a800640800", Some((100, 0))),
        ("0200000000020200000000018100e0000800", Some((0, 0))),
        ("02000000000202000000000188a8000081000fff86dd", Some((0, 4095))),
        ("02000000000202000000000181000064810000140800", None),
        ("0200000000020200000000018100006488a800140800", None),
        ("02000000000202000000000188a8006488a800140800", None),
    ];

    fn bytes(text: &str) -> Vec<u8> {
        hex::decode(text).unwrap()
    }

    #[test]
    fn tags_are_read_as_scapy_wrote_them() {
        for (text, expected) in TAGGED {
            let frame = bytes(text);
            let read = Tags::read(&frame);
            assert_eq!(read.map(|(tags, _)| (tags.outer, tags.inner)), expected, "{text}");
            if let Some((_, length)) = read {
                assert_eq!(length, frame.len() - 14, "{text}");
                let end = frame[frame.len() - 2..].to_vec();
                let mut frame = frame;
                let stripped = strip(&mut frame, length);
                assert_eq!(*stripped, [bytes("020000000002020000000001"), end].concat(), "{text}");
            }
        }
        let whole = bytes(TAGGED[2].0);
        for cut in 0..whole.len() {
            assert_eq!(Tags::read(&whole[..cut]), None, "{cut} bytes");
        }
    }

    #[test]
    fn tags_are_written_as_scapy_wrote_them() {
        for (text, tags) in [
            ("0200000000020200000000010800", Tags::default()),
            ("020000000002020000000001810000640800", Tags { outer: 0, inner: 100 }),
            ("02000000000202000000000188a80064810000140800", Tags { outer: 100, inner: 20 }),
        ] {
            let mut frame = [&vec![0xee; tags.length()][..], &bytes("0200000000020200000000010800")].concat();
            tags.write(&mut frame);
            assert_eq!(frame, bytes(text));
        }
    }
}
