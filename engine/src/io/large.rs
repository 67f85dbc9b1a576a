//! Packets longer than one frame (XDP multi-buffer): jumbo frames, in several descriptors on the rings.
//!
//! The pipeline works on packets in one piece. What arrives in several frames is gathered into a [`LargeFrame`], and
//! its frames go straight back to the fill ring; what leaves in several lies in a slot of a [`Slab`] until it is
//! scattered. Either way is one copy, and nothing that a packet of one frame pays for.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

use super::umem::FRAME_CAPACITY;
use crate::pipeline::{BURST, DropReason, LONGEST_FRAME};
use crate::route::LARGEST_MTU;
use crate::wire::ethernet::HEADER_LENGTH;

/// Bytes of the longest packet, its Ethernet header included: the largest MTU, and what transport mode adds to a
/// packet of that size before it is fragmented.
pub const LARGE_CAPACITY: usize = 9 << 10;

/// Frames that the longest packet takes.
pub const PIECES: usize = LARGE_CAPACITY.div_ceil(FRAME_CAPACITY);

/// Large packets of one socket that may be in work at once, in either direction. Memory nobody touches until they come.
pub const LARGE_FRAMES: usize = 2 * BURST;

/// Those among them, to transmit, that may be longer than any MTU: a datagram is sealed, or opened, whole, and leaves in
/// fragments, or for the gateway's own stack.
pub const LONGEST_FRAMES: usize = 8;

const _: () = assert!(HEADER_LENGTH + LARGEST_MTU as usize + 128 <= LARGE_CAPACITY);

/// A received packet in one piece.
pub struct LargeFrame {
    bytes: Box<[u8]>,
    /// Where it begins; behind tags that were taken out.
    start: usize,
    length: usize,
}

impl LargeFrame {
    /// Without its first `length` bytes.
    pub(super) fn skip(&mut self, length: usize) {
        self.start += length;
    }
}

impl Deref for LargeFrame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.length]
    }
}

impl DerefMut for LargeFrame {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.length]
    }
}

/// The packet that is being gathered.
enum Partial {
    None,
    Growing(LargeFrame),
    /// The rest of it is for nobody.
    Refused(DropReason),
}

/// Puts the pieces of a socket's packets together. A packet may begin in one burst and end in a later one.
pub(super) struct Gathering {
    free: Vec<LargeFrame>,
    partial: Partial,
}

impl Gathering {
    pub(super) fn new() -> Self {
        let frame = || LargeFrame { bytes: vec![0; LARGE_CAPACITY].into_boxed_slice(), start: 0, length: 0 };
        Self { free: (0..LARGE_FRAMES).map(|_| frame()).collect(), partial: Partial::None }
    }

    /// True between the first piece of a packet and its last.
    #[inline]
    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self.partial, Partial::None)
    }

    /// The next piece.
    pub(super) fn add(&mut self, piece: &[u8]) {
        if let Partial::None = self.partial {
            self.partial = match self.free.pop() {
                Some(frame) => Partial::Growing(LargeFrame { start: 0, length: 0, ..frame }),
                None => Partial::Refused(DropReason::NoLargeFrame),
            };
        }
        if let Partial::Growing(frame) = &mut self.partial {
            let end = frame.length + piece.len();
            match frame.bytes.get_mut(frame.length..end) {
                Some(room) => {
                    room.copy_from_slice(piece);
                    frame.length = end;
                }
                None => {
                    let full = std::mem::replace(&mut self.partial, Partial::Refused(DropReason::TooBig));
                    if let Partial::Growing(frame) = full {
                        self.free.push(frame);
                    }
                }
            }
        }
    }

    /// The packet whose last piece was added.
    pub(super) fn finish(&mut self) -> Result<LargeFrame, DropReason> {
        match std::mem::replace(&mut self.partial, Partial::None) {
            Partial::Growing(frame) => Ok(frame),
            Partial::Refused(reason) => Err(reason),
            Partial::None => unreachable!("a packet ends with a piece"),
        }
    }

    /// Takes back what [`Gathering::finish`] gave.
    pub(super) fn give_back(&mut self, frame: LargeFrame) {
        self.free.push(frame);
    }
}

/// Slots side by side: [`LONGEST_FRAMES`] of [`LONGEST_FRAME`] bytes, then others of [`LARGE_CAPACITY`].
pub(super) struct Slab {
    start: NonNull<[u8]>,
}

// SAFETY: plain memory, owned.
unsafe impl Send for Slab {}

impl Slab {
    pub(super) fn new(slots: usize) -> Self {
        let bytes = vec![0; Self::range(slots - 1).end].into_boxed_slice();
        Self { start: NonNull::from(Box::leak(bytes)) }
    }

    fn range(index: usize) -> Range<usize> {
        let longest = index.min(LONGEST_FRAMES);
        let start = longest * LONGEST_FRAME + (index - longest) * LARGE_CAPACITY;
        start..start + if index < LONGEST_FRAMES { LONGEST_FRAME } else { LARGE_CAPACITY }
    }

    /// Where slot `index` begins, and its length. It lives as long as the slab.
    ///
    /// # Panics
    /// When there is no such slot.
    pub(super) fn slot(&self, index: usize) -> (NonNull<u8>, usize) {
        let range = Self::range(index);
        assert!(range.end <= self.start.len(), "no slot {index}");
        // SAFETY: within the allocation, as just asserted.
        (unsafe { self.start.cast::<u8>().add(range.start) }, range.len())
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: it came from a box; whoever has slots out forgets the slab instead (see `TxPool::drop`).
        drop(unsafe { Box::from_raw(self.start.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(gathering: &mut Gathering, pieces: &[&[u8]]) -> Result<LargeFrame, DropReason> {
        for piece in pieces {
            gathering.add(piece);
            assert!(gathering.is_under_way());
        }
        let outcome = gathering.finish();
        assert!(!gathering.is_under_way());
        outcome
    }

    #[test]
    fn pieces_of_any_length_become_the_packet() {
        let mut gathering = Gathering::new();
        for length in [1, 2, 1791, 1792, 1793, 3584, 8900, LARGE_CAPACITY] {
            let packet: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
            for piece in [1, 13, 1792, length] {
                let pieces: Vec<&[u8]> = packet.chunks(piece).collect();
                let frame = gather(&mut gathering, &pieces).unwrap();
                assert!(frame[..] == packet[..], "{length} bytes in pieces of {piece}");
                gathering.give_back(frame);
            }
        }
        assert_eq!(gathering.free.len(), LARGE_FRAMES);
    }

    #[test]
    fn slots_lie_side_by_side() {
        let slab = Slab::new(LONGEST_FRAMES + 3);
        let mut end = slab.slot(0).0;
        for index in 0..LONGEST_FRAMES + 3 {
            let (start, length) = slab.slot(index);
            assert_eq!(start, end);
            assert_eq!(length, if index < LONGEST_FRAMES { LONGEST_FRAME } else { LARGE_CAPACITY });
            // SAFETY: to its end, or one past the last.
            end = unsafe { start.add(length) };
        }
        assert_eq!(end.as_ptr() as usize - slab.slot(0).0.as_ptr() as usize, slab.start.len());
    }

    #[test]
    fn what_is_too_long_or_has_no_room_is_refused_alone() {
        let mut gathering = Gathering::new();
        let long = [7; LARGE_CAPACITY];
        for _ in 0..2 * LARGE_FRAMES {
            assert_eq!(gather(&mut gathering, &[&long, &[7], &[7]]).err(), Some(DropReason::TooBig));
        }
        let held: Vec<_> =
            (0..LARGE_FRAMES).map(|_| gather(&mut gathering, &[&[1], &[2]]).unwrap()).collect();
        assert_eq!(gather(&mut gathering, &[&[1], &[2]]).err(), Some(DropReason::NoLargeFrame));
        held.into_iter().for_each(|frame| gathering.give_back(frame));
        assert_eq!(gather(&mut gathering, &[&[1], &[2]]).unwrap()[..], [1, 2]);
    }
}
