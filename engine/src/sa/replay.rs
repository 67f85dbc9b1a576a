//! The anti-replay window (RFC 4303 section 3.4.3, RFC 6479's blocks) and ESN inference (appendix A2.2).
//!
//! `check` is pure and gives a [`Candidate`]; only a verified ICV turns it into an [`Authenticated`] number,
//! and only that can be committed. Commit looks again: two copies in one burst both pass `check`.
//!
//! # How it works without a lock
//!
//! Numbers fall into blocks of 32. A block has one slot, `block % slots`, shared with every `slots`-th block.
//! A slot is one atomic word: the number of the block that owns it (its low 32 bits) and one bit for each
//! of that block's numbers. So one compare-and-swap tests and sets a bit *and* hands the slot over to a later
//! block, and there is nothing to clear when the window moves:
//!
//! - the slot holds an earlier block: ours replaces it, with our bit alone;
//! - it holds our block: our bit is tested and set;
//! - it holds a later block: our number has left the window.
//!
//! A slot's block only grows and a block's bits only fill up, so no number is accepted twice, whatever the
//! right edge says. The edge (the highest number committed) decides what is *too old*. It is a separate
//! atomic, raised after the swap and before `commit` returns: it never claims a number that is not marked yet.
//!
//! With at least ceil((W + 31) / 32) slots, the next block of a slot begins W numbers or more after the last
//! number of the previous one. So a slot never has to give up a number that is still inside the window.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::crypto::IcvValid;

/// Numbers per block: the bits of half a word.
const BLOCK: u32 = 32;

/// Block numbers are compared as a signed 32-bit difference, so a slot must not fall 2^31 blocks behind. Whoever
/// carries the edge over a multiple of 2^34 numbers (2^29 blocks) moves every slot up first.
const ERA_SHIFT: u32 = 34;

/// Why a number is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Already received.
    Duplicate,
    /// Left of the window.
    TooOld,
    /// Zero in the first subspace, or an inferred number outside 1..=2^64-1: never sent by a correct peer.
    Impossible,
}

/// A number that was not refused yet; its packet's ICV is not verified yet.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    sequence: u64,
}

impl Candidate {
    /// The full number, high word inferred.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// With the proof of the ICV; `None` if the proof is of another number.
    pub fn authenticate(self, proof: IcvValid) -> Option<Authenticated> {
        (proof.sequence() == self.sequence).then_some(Authenticated { sequence: self.sequence })
    }
}

/// A number whose packet carried a right ICV. It carries all 64 bits: commit never infers them again, because
/// the edge may have moved on since `check`.
///
/// ```compile_fail,E0451
/// let forged = adit_engine::sa::replay::Authenticated { sequence: 7 };
/// ```
/// A number that was only checked cannot be committed:
/// ```compile_fail,E0308
/// # use adit_engine::sa::replay::ReplayWindow;
/// let window = ReplayWindow::new(64, false, 0);
/// window.commit(window.check(1).unwrap());
/// ```
#[derive(Debug)]
pub struct Authenticated {
    sequence: u64,
}

/// Which numbers of a block a commit marked, and which it found marked. (The rest had left the window.)
#[derive(Default)]
struct Marked {
    fresh: u32,
    duplicate: u32,
}

/// The window of one inbound SA: lock-free, shared by any number of workers.
pub struct ReplayWindow {
    size: u32,
    esn: bool,
    /// The highest number committed ("T" in RFC 4303 appendix A).
    edge: AtomicU64,
    /// A power of two of them, so that the slot of a block follows from its low bits.
    slots: Box<[AtomicU64]>,
}

/// The block that `sequence` belongs to: 59 bits, of which a slot keeps the low 32.
fn block_of(sequence: u64) -> u64 {
    sequence / u64::from(BLOCK)
}

fn bit_of(sequence: u64) -> u32 {
    1 << (sequence % u64::from(BLOCK))
}

fn pack(block: u64, bits: u32) -> u64 {
    block << 32 | u64::from(bits)
}

/// The signed distance from the slot's block to `block`: positive if the slot is behind.
fn ahead_of(block: u64, slot: u64) -> i32 {
    (block as u32).wrapping_sub((slot >> 32) as u32) as i32
}

impl ReplayWindow {
    /// A window of `size` numbers (32..=65536, or 0 = off), right edge at `last`. Every number at or below
    /// `last` counts as received: what is not known to be new is not accepted.
    pub fn new(size: u32, esn: bool, last: u64) -> Self {
        let count = match size {
            0 => 0,
            _ => u64::from(size + BLOCK - 1).div_ceil(u64::from(BLOCK)).next_power_of_two(),
        };
        let edge_block = block_of(last);
        let slots = (0..count)
            .map(|index| {
                // The latest block of this slot at or before the edge's (it may be "negative" near zero,
                // which is right: earlier than every block there is).
                let behind = edge_block.wrapping_sub(index) % count;
                let bits = if behind == 0 { bit_of(last) | (bit_of(last) - 1) } else { u32::MAX };
                AtomicU64::new(pack(edge_block.wrapping_sub(behind), bits))
            })
            .collect();
        Self { size, esn, edge: AtomicU64::new(last), slots }
    }

    /// Looks a wire number up without changing anything; infers the high word with ESN.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(&self, sequence_low: u32) -> Result<Candidate, Refused> {
        let edge = self.edge.load(Ordering::Acquire);
        let sequence = if self.esn {
            let high = infer_high(self.size, edge, sequence_low).ok_or(Refused::Impossible)?;
            u64::from(high) << 32 | u64::from(sequence_low)
        } else {
            u64::from(sequence_low)
        };
        if self.size != 0 {
            // RFC 4303 section 3.3.3: the first packet sent on an SA carries 1.
            if sequence == 0 {
                return Err(Refused::Impossible);
            }
            // The window is edge-W+1..=edge.
            if edge.saturating_sub(sequence) >= u64::from(self.size) {
                return Err(Refused::TooOld);
            }
            // The edge may move between the two loads. Any answer is right then, for commit looks again.
            let (block, bit) = (block_of(sequence), bit_of(sequence));
            match fresh_in(self.slot(block).load(Ordering::Acquire), block, bit) {
                Some(0) => return Err(Refused::Duplicate),
                Some(_) => {}
                None => return Err(Refused::TooOld),
            }
        }
        Ok(Candidate { sequence })
    }

    /// Marks the number received; exactly one commit of a number succeeds, whoever calls it. With the window
    /// off every commit succeeds and only the edge moves.
    ///
    /// # Errors
    /// [`Refused`] when another copy came first or the window moved past it.
    pub fn commit(&self, number: Authenticated) -> Result<(), Refused> {
        let mut outcome = Ok(());
        self.commit_group(&[number], |_, reason| outcome = Err(reason));
        outcome
    }

    /// Commits numbers in their order and tells `refused` of the places of those that [`ReplayWindow::commit`] would
    /// refuse. Neighbours in one block, as a burst has them that came in order, share one swap and one move of the edge.
    pub fn commit_group(&self, numbers: &[Authenticated], mut refused: impl FnMut(usize, Refused)) {
        let mut place = 0;
        for run in numbers.chunk_by(|one, next| block_of(one.sequence) == block_of(next.sequence)) {
            let block = block_of(run[0].sequence);
            let wanted = run.iter().fold(0, |bits, number| bits | bit_of(number.sequence));
            let Marked { mut fresh, mut duplicate } = self.mark(block, wanted);
            let all_are_new = fresh == wanted && wanted.count_ones() as usize == run.len();
            if !all_are_new && self.size != 0 {
                for (place, &Authenticated { sequence }) in (place..).zip(run) {
                    let bit = bit_of(sequence);
                    match () {
                        () if fresh & bit != 0 => {
                            // A second copy in this run is one.
                            (fresh, duplicate) = (fresh & !bit, duplicate | bit);
                        }
                        () if duplicate & bit != 0 => refused(place, Refused::Duplicate),
                        () if sequence == 0 => refused(place, Refused::Impossible),
                        () => refused(place, Refused::TooOld),
                    }
                }
            }
            place += run.len();
        }
    }

    /// Marks those numbers of `block` in `wanted` that are new, and moves the edge up to the last of them.
    fn mark(&self, block: u64, wanted: u32) -> Marked {
        if self.size == 0 {
            self.raise_edge(block, wanted, 0);
            return Marked::default();
        }
        let slot = self.slot(block);
        let mut seen = slot.load(Ordering::Acquire);
        loop {
            // The edge is looked at in every round: it may have moved since `check`, and since a lost swap.
            let edge = self.edge.load(Ordering::Acquire);
            let inside = wanted & self.inside(block, edge);
            if inside == 0 {
                return Marked::default();
            }
            if (block * u64::from(BLOCK)) >> ERA_SHIFT > edge >> ERA_SHIFT {
                self.move_up(block, edge);
                seen = slot.load(Ordering::Acquire);
            }
            // A later block's commit raises the edge beyond us as soon as it returns: too old.
            let Some(fresh) = fresh_in(seen, block, inside) else { return Marked::default() };
            let duplicate = inside & !fresh;
            if fresh == 0 {
                return Marked { fresh, duplicate };
            }
            // Of an earlier block nothing stays.
            let kept = if ahead_of(block, seen) == 0 { seen as u32 } else { 0 };
            let ours = pack(block, kept | fresh);
            match slot.compare_exchange_weak(seen, ours, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.raise_edge(block, fresh, edge);
                    return Marked { fresh, duplicate };
                }
                Err(current) => seen = current,
            }
        }
    }

    /// After the swap: an edge at T promises that T is marked. Before `commit` returns: what starts after this commit
    /// sees at least this edge. Release publishes the mark to whoever acquires the edge. `edge` is what it was at
    /// least.
    fn raise_edge(&self, block: u64, bits: u32, edge: u64) {
        let last = block * u64::from(BLOCK) + u64::from(bits.ilog2());
        if last > edge {
            self.edge.fetch_max(last, Ordering::AcqRel);
        }
    }

    /// Before the edge enters a new era in `block`: gives every slot that the numbers of `block` push out of the
    /// window a block just outside of it, so that no slot is ever more than an era and a jump behind. `edge` is the
    /// edge before; all slots are within 2^31 blocks of it.
    fn move_up(&self, block: u64, edge: u64) {
        let count = self.slots.len() as u64;
        let edge_block = block_of(edge);
        for (index, slot) in (0..).zip(&self.slots) {
            // The latest block of this slot that lies `count` blocks or more before ours: out of the window.
            let floor = block - count - (block.wrapping_sub(index) % count);
            let mut seen = slot.load(Ordering::Acquire);
            // The slot's full block number: its low half, read as a distance from the edge. (Signed: a slot
            // never used may hold a block before zero. Blocks have 59 bits.)
            while (edge_block as i64) - i64::from(ahead_of(edge_block, seen)) < floor as i64 {
                match slot.compare_exchange_weak(
                    seen,
                    pack(floor, u32::MAX),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                ) {
                    Ok(_) => break,
                    Err(current) => seen = current,
                }
            }
        }
    }

    fn slot(&self, block: u64) -> &AtomicU64 {
        &self.slots[block as usize & (self.slots.len() - 1)]
    }

    /// Which numbers of `block` are not left of the window edge-W+1..=edge; 0 is none (RFC 4303 section 3.3.3).
    fn inside(&self, block: u64, edge: u64) -> u32 {
        let first = block * u64::from(BLOCK);
        let left = edge.saturating_sub(u64::from(self.size) - 1).max(1);
        match left.saturating_sub(first) {
            outside @ 0..32 => u32::MAX << outside,
            _ => 0,
        }
    }

    /// The highest number committed.
    pub fn right_edge(&self) -> u64 {
        self.edge.load(Ordering::Acquire)
    }

    /// Window size in numbers, 0 when off.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Bytes of the window beside the SA itself.
    pub fn slot_bytes(&self) -> usize {
        size_of_val(&*self.slots)
    }
}

/// What `bits` of `block` are new to `slot`; `None` when a later block has it.
fn fresh_in(slot: u64, block: u64, bits: u32) -> Option<u32> {
    match ahead_of(block, slot) {
        1.. => Some(bits),
        0 => Some(bits & !(slot as u32)),
        _ => None,
    }
}

/// RFC 4303 appendix A2.2: the high word of `sequence_low` for right edge `edge` and window `size`.
/// `None` when it would lie below 0 or above 2^32-1.
pub fn infer_high(size: u32, edge: u64, sequence_low: u32) -> Option<u32> {
    let (edge_high, edge_low) = ((edge >> 32) as u32, edge as u32);
    let span = size.saturating_sub(1);
    let bottom = edge_low.wrapping_sub(span);
    if edge_low >= span {
        // Case A: the window lies within one subspace. Below it means the next one.
        if sequence_low >= bottom { Some(edge_high) } else { edge_high.checked_add(1) }
    } else {
        // Case B: the window begins in the subspace before. In its left part means that one.
        if sequence_low >= bottom { edge_high.checked_sub(1) } else { Some(edge_high) }
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
