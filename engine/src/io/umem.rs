//! Who owns a frame.
//!
//! Every socket has a UMEM of its own with a fixed receive half and transmit half. A received frame returns
//! only to its own fill ring; a transmit frame is a move-only token, [`TxFrame`], from the moment it is taken
//! until it is transmitted or given back. [`Ledger`] follows each single frame from place to place, so a frame
//! the kernel gives back without having it, or one used twice, stops the process instead of corrupting memory.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use xsk_rs::umem::Umem;
use xsk_rs::umem::frame::FrameDesc;

use super::large::{LARGE_CAPACITY, LARGE_FRAMES, LONGEST_FRAMES, PIECES, Slab};
use crate::wire::vlan::Tags;

/// Bytes from one frame to the next. Not 4096: that spacing shares sets of the L1 cache and slows batched CBC.
pub const FRAME_SIZE: usize = 2048;

/// Bytes the kernel keeps in front of every packet for XDP programs (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: usize = 256;

/// Bytes of a frame that can carry a packet.
pub const FRAME_CAPACITY: usize = FRAME_SIZE - HEADROOM;

/// Where a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Place {
    /// With nobody: ready to be filled or taken.
    Free,
    /// Given to the kernel to receive into.
    Filled,
    /// With a worker: being read, or a [`TxFrame`].
    Held,
    /// Given to the kernel to transmit, not completed yet.
    InFlight,
    /// The same, and its packet goes on in another frame.
    InFlightPart,
}

/// The place of every frame of one half of a UMEM.
pub(super) struct Ledger {
    places: Box<[Place]>,
    counts: [u32; 5],
}

impl Ledger {
    /// All `count` frames are free.
    pub(super) fn new(count: u32) -> Self {
        let mut counts = [0; 5];
        counts[Place::Free as usize] = count;
        Self { places: vec![Place::Free; count as usize].into_boxed_slice(), counts }
    }

    /// Moves one frame.
    ///
    /// # Panics
    /// When it is not where the caller (or the kernel) says: going on would mean two owners of one frame.
    #[inline]
    pub(super) fn shift(&mut self, index: u32, from: Place, to: Place) {
        let place = &mut self.places[index as usize];
        assert!(*place == from, "frame {index} is {place:?}, not {from:?}");
        *place = to;
        self.counts[from as usize] -= 1;
        self.counts[to as usize] += 1;
    }

    /// Where a frame is.
    #[inline]
    fn place(&self, index: u32) -> Place {
        self.places[index as usize]
    }

    /// How many frames are in `place`.
    #[inline]
    pub(super) fn count(&self, place: Place) -> u32 {
        self.counts[place as usize]
    }
}

/// Room to write one packet into: a transmit frame, or a large one that is scattered over several when it is
/// transmitted. Taken once, then transmitted or given back once. It cannot be copied, so neither of the two can happen
/// twice:
///
/// ```compile_fail,E0382
/// # use adit_engine::io::transmit::Transmitter;
/// # use adit_engine::io::umem::TxFrame;
/// fn twice(transmitter: &mut Transmitter, frame: TxFrame) {
///     transmitter.submit(frame, 60);
///     transmitter.submit(frame, 60);
/// }
/// ```
///
/// Dereferences to its [`FRAME_CAPACITY`], [`LARGE_CAPACITY`] or [`LONGEST_FRAME`](crate::pipeline::LONGEST_FRAME) bytes,
/// which hold whatever was in them before.
#[must_use = "a transmit frame that is dropped is lost to its pool"]
pub struct TxFrame {
    start: NonNull<u8>,
    length: u32,
    /// Of the frame, or [`LARGE`] and that of the slot.
    index: u32,
    pool: u32,
    /// Bytes in front of `start` that are kept for VLAN tags.
    front: u32,
}

/// Set in the index of a large [`TxFrame`].
const LARGE: u32 = 1 << 31;

/// Slots for large frames: the longest come first.
const SLOTS: usize = LONGEST_FRAMES + LARGE_FRAMES;

impl TxFrame {
    /// The pool it must return to.
    pub(super) fn pool(&self) -> u32 {
        self.pool
    }

    /// Keeps room for `tags` in front of what it shows from now on.
    pub(super) fn leave_room(mut self, tags: Tags) -> Self {
        let length = tags.length() as u32;
        assert!(self.front == 0 && length < self.length);
        // SAFETY: `length` is within the frame.
        self.start = unsafe { self.start.add(length as usize) };
        self.length -= length;
        self.front = length;
        self
    }

    /// Writes `tags` into the room that was left for them. It shows all of itself again, the packet `Tags::length` longer.
    pub(super) fn tag(&mut self, tags: Tags) {
        assert_eq!(self.front as usize, tags.length(), "no room was left for these tags");
        // SAFETY: `leave_room` moved it forward by as much.
        self.start = unsafe { self.start.sub(self.front as usize) };
        self.length += std::mem::take(&mut self.front);
        tags.write(self);
    }
}

impl Deref for TxFrame {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is the beginning of `length` mapped bytes of a frame or slot whose ledger entry says
        // Held, so neither the kernel nor another token touches them; the mapping outlives every token
        // (see `TxPool::drop`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length as usize) }
    }
}

impl DerefMut for TxFrame {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length as usize) }
    }
}

/// The frames of a transmit half: each is free, held as a token, or in flight.
struct TxAccount {
    ledger: Ledger,
    /// Last in, first out: the frame used last is the one still in the cache.
    free: Vec<u32>,
}

impl TxAccount {
    fn new(count: u32) -> Self {
        Self { ledger: Ledger::new(count), free: (0..count).rev().collect() }
    }

    #[inline]
    fn take(&mut self) -> Option<u32> {
        let index = self.free.pop()?;
        self.ledger.shift(index, Place::Free, Place::Held);
        Some(index)
    }

    #[inline]
    fn give_back(&mut self, index: u32) {
        self.ledger.shift(index, Place::Held, Place::Free);
        self.free.push(index);
    }

    #[inline]
    fn submit(&mut self, index: u32) {
        self.ledger.shift(index, Place::Held, Place::InFlight);
    }

    fn submit_part(&mut self, index: u32) {
        self.ledger.shift(index, Place::Held, Place::InFlightPart);
    }

    /// True when a packet ends with this frame.
    #[inline]
    fn complete(&mut self, index: u32) -> bool {
        let is_part = self.ledger.place(index) == Place::InFlightPart;
        self.ledger.shift(index, if is_part { Place::InFlightPart } else { Place::InFlight }, Place::Free);
        self.free.push(index);
        !is_part
    }
}

/// The transmit half of a UMEM.
pub(super) struct TxPool {
    id: u32,
    umem: Umem,
    first: u32,
    descriptors: Box<[FrameDesc]>,
    account: TxAccount,
    slab: ManuallyDrop<Slab>,
    slots: TxAccount,
    /// The first slots, which are longer.
    longest: TxAccount,
    /// The frames that each slot's packet will leave in.
    reserved: Box<[ArrayVec<u32, PIECES>]>,
}

impl TxPool {
    /// Owns the frames of `descriptors`, which are consecutive in `umem` and used by nobody else.
    pub(super) fn new(umem: Umem, descriptors: Box<[FrameDesc]>) -> Self {
        static NEXT_ID: AtomicU32 = AtomicU32::new(0);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            umem,
            first: descriptors.first().map_or(0, frame_number),
            account: TxAccount::new(descriptors.len() as u32),
            descriptors,
            slab: ManuallyDrop::new(Slab::new(SLOTS)),
            slots: TxAccount::new(LARGE_FRAMES as u32),
            longest: TxAccount::new(LONGEST_FRAMES as u32),
            reserved: vec![ArrayVec::new(); SLOTS].into_boxed_slice(),
        }
    }

    /// Names this pool among all that ever were.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Packets given to the kernel and not completed.
    pub(super) fn in_flight(&self) -> u32 {
        self.account.ledger.count(Place::InFlight)
    }

    /// Frames that exist as tokens, or are reserved for one.
    pub(super) fn held(&self) -> u32 {
        self.account.ledger.count(Place::Held)
    }

    #[inline]
    pub(super) fn take(&mut self) -> Option<TxFrame> {
        let index = self.account.take()?;
        let mut descriptor = self.descriptors[index as usize];
        // SAFETY: the descriptor is of this UMEM, and the ledger says that nobody else has the frame.
        let mut bytes = unsafe { self.umem.data_mut(&mut descriptor) };
        let mut cursor = bytes.cursor();
        let capacity = cursor.buf_len();
        assert!(capacity >= FRAME_CAPACITY, "the packet area of a frame is {capacity} bytes");
        cursor.set_pos(capacity);
        let start = NonNull::from(bytes.contents_mut()).cast();
        Some(TxFrame { start, length: FRAME_CAPACITY as u32, index, pool: self.id, front: 0 })
    }

    /// A large frame for `length` bytes. As many of them as [`LARGE_CAPACITY`] may be transmitted: it has the frames that
    /// they will need.
    #[cold]
    pub(super) fn take_large(&mut self, length: usize) -> Option<TxFrame> {
        let pieces = length.min(LARGE_CAPACITY).div_ceil(FRAME_CAPACITY);
        if self.account.free.len() < pieces {
            return None;
        }
        let slot = match length <= LARGE_CAPACITY {
            true => LONGEST_FRAMES as u32 + self.slots.take()?,
            false => self.longest.take()?,
        };
        self.reserved[slot as usize].extend((0..pieces).filter_map(|_| self.account.take()));
        let (start, length) = self.slab.slot(slot as usize);
        let (length, index) = (length as u32, LARGE | slot);
        Some(TxFrame { start, length, index, pool: self.id, front: 0 })
    }

    /// # Panics
    /// When the frame is another pool's.
    pub(super) fn give_back(&mut self, frame: TxFrame) {
        assert_eq!(frame.pool, self.id, "a frame came back to a pool it was not taken from");
        if frame.index & LARGE == 0 {
            self.account.give_back(frame.index);
        } else {
            self.give_back_slot(frame.index & !LARGE);
        }
    }

    #[cold]
    fn give_back_slot(&mut self, slot: u32) {
        for index in self.reserved[slot as usize].drain(..) {
            self.account.give_back(index);
        }
        match slot.checked_sub(LONGEST_FRAMES as u32) {
            Some(slot) => self.slots.give_back(slot),
            None => self.longest.give_back(slot),
        }
    }

    /// Appends the descriptors of a token's first `length` bytes to `staged`: one, or those a large frame is scattered
    /// over. In flight from now on.
    ///
    /// # Panics
    /// When the frame is another pool's, or `length` is more than it was taken for.
    #[inline]
    pub(super) fn submit(&mut self, frame: TxFrame, length: usize, staged: &mut Vec<FrameDesc>) {
        assert_eq!(frame.pool, self.id, "a frame came back to a pool it was not taken from");
        debug_assert_eq!(frame.front, 0, "tags are still to be written");
        if frame.index & LARGE != 0 {
            return self.scatter(frame, length, staged);
        }
        assert!(length <= FRAME_CAPACITY, "{length} bytes do not fit a frame");
        self.account.submit(frame.index);
        let mut descriptor = self.descriptors[frame.index as usize];
        // SAFETY: as in `take`; the token is consumed.
        unsafe { self.umem.data_mut(&mut descriptor) }.cursor().set_pos(length);
        staged.push(descriptor);
    }

    #[cold]
    fn scatter(&mut self, frame: TxFrame, length: usize, staged: &mut Vec<FrameDesc>) {
        /// Bit of a descriptor whose packet goes on in the next one.
        const XDP_PKT_CONTD: u32 = 1;
        let slot = frame.index & !LARGE;
        let pieces = frame[..length].chunks(FRAME_CAPACITY);
        let reserved = &mut self.reserved[slot as usize];
        assert!(pieces.len() <= reserved.len(), "{length} bytes do not fit {} frames", reserved.len());
        let last = pieces.len() - 1;
        for (number, (piece, index)) in pieces.zip(reserved.drain(..=last)).enumerate() {
            let mut descriptor = self.descriptors[index as usize];
            // SAFETY: the descriptor is of this UMEM, and the ledger says that the frame is held, for this slot.
            let mut bytes = unsafe { self.umem.data_mut(&mut descriptor) };
            let mut cursor = bytes.cursor();
            cursor.set_pos(piece.len());
            bytes.contents_mut().copy_from_slice(piece);
            if number < last {
                descriptor.set_options(XDP_PKT_CONTD);
                self.account.submit_part(index);
            } else {
                self.account.submit(index);
            }
            staged.push(descriptor);
        }
        self.give_back_slot(slot);
    }

    /// Takes a frame back that the kernel completed. True when a packet ends with it.
    #[inline]
    pub(super) fn complete(&mut self, descriptor: &FrameDesc) -> bool {
        self.account.complete(frame_number(descriptor) - self.first)
    }
}

impl Drop for TxPool {
    fn drop(&mut self) {
        if self.held() > 0 {
            // A token points into the mapping: better to lose the memory than to free it under the token.
            std::mem::forget(self.umem.clone());
        } else {
            // SAFETY: once, and no token points into it.
            unsafe { ManuallyDrop::drop(&mut self.slab) };
        }
    }
}

/// The number of the frame that `descriptor` lies in.
#[inline]
pub(super) fn frame_number(descriptor: &FrameDesc) -> u32 {
    (descriptor.addr() / FRAME_SIZE) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What may happen to a frame; the index picks one of those it can happen to.
    #[derive(Clone, Debug)]
    enum Step {
        Take,
        GiveBack(prop::sample::Index),
        Submit(prop::sample::Index),
        SubmitPart(prop::sample::Index),
        Complete(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Take),
            1 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
            2 => any::<prop::sample::Index>().prop_map(Step::Submit),
            1 => any::<prop::sample::Index>().prop_map(Step::SubmitPart),
            2 => any::<prop::sample::Index>().prop_map(Step::Complete),
        ];
        prop::collection::vec(step, 0..300)
    }

    fn draw<T>(from: &mut Vec<T>, index: prop::sample::Index) -> Option<T> {
        (!from.is_empty()).then(|| from.swap_remove(index.index(from.len())))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn no_frame_is_lost_or_owned_twice(count in 1u32..40, steps in steps()) {
            let mut account = TxAccount::new(count);
            let (mut held, mut in_flight) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Take => match account.take() {
                        Some(frame) => held.push(frame),
                        None => prop_assert_eq!(held.len() + in_flight.len(), count as usize),
                    },
                    Step::GiveBack(index) => {
                        draw(&mut held, index).into_iter().for_each(|frame| account.give_back(frame));
                    }
                    Step::Submit(index) => {
                        let frame = draw(&mut held, index);
                        frame.iter().for_each(|&frame| account.submit(frame));
                        in_flight.extend(frame.map(|frame| (frame, true)));
                    }
                    Step::SubmitPart(index) => {
                        let frame = draw(&mut held, index);
                        frame.iter().for_each(|&frame| account.submit_part(frame));
                        in_flight.extend(frame.map(|frame| (frame, false)));
                    }
                    Step::Complete(index) => {
                        if let Some((frame, ends_packet)) = draw(&mut in_flight, index) {
                            prop_assert_eq!(account.complete(frame), ends_packet);
                        }
                    }
                }
                let with_kernel: Vec<_> = in_flight.iter().map(|(frame, _)| *frame).collect();
                let mut all = [&account.free[..], &held, &with_kernel].concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
                prop_assert_eq!(account.ledger.count(Place::Free) as usize, account.free.len());
                prop_assert_eq!(account.ledger.count(Place::Held) as usize, held.len());
                let packets = in_flight.iter().filter(|(_, ends_packet)| *ends_packet).count();
                prop_assert_eq!(account.ledger.count(Place::InFlight) as usize, packets);
                prop_assert_eq!(
                    account.ledger.count(Place::InFlightPart) as usize,
                    in_flight.len() - packets
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "frame 3 is Free, not InFlight")]
    fn a_frame_the_kernel_never_had_cannot_be_completed() {
        TxAccount::new(8).complete(3);
    }

    #[test]
    #[should_panic(expected = "frame 0 is InFlight, not Held")]
    fn a_frame_in_flight_cannot_be_given_back() {
        let mut account = TxAccount::new(1);
        let frame = account.take().expect("one is free");
        account.submit(frame);
        account.give_back(frame);
    }

    #[test]
    #[should_panic(expected = "frame 2 is Filled, not Held")]
    fn a_filled_frame_cannot_be_filled_again() {
        let mut ledger = Ledger::new(3);
        ledger.shift(2, Place::Free, Place::Filled);
        ledger.shift(2, Place::Held, Place::Filled);
    }
}
