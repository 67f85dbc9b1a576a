//! The anti-replay window (RFC 4303 section 3.4.3, RFC 6479's blocks) and ESN inference (appendix A2.2).
//!
//! `check` is pure and gives a [`Candidate`]; only a verified ICV turns it into an [`Authenticated`] number,
//! and only that can be committed. Commit looks again: two copies in one burst both pass `check`.

use crate::crypto::IcvValid;

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
#[derive(Debug)]
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

/// A number whose packet carried a right ICV.
#[derive(Debug)]
pub struct Authenticated {
    sequence: u64,
}

/// The window of one inbound SA: lock-free, shared by any number of workers.
pub struct ReplayWindow {
    _todo: (),
}

impl ReplayWindow {
    /// A window of `size` numbers (32..=65536, or 0 = off), right edge at `last`.
    pub fn new(size: u32, esn: bool, last: u64) -> Self {
        let _ = (size, esn, last);
        todo!()
    }

    /// Looks a wire number up without changing anything; infers the high word with ESN.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(&self, sequence_low: u32) -> Result<Candidate, Refused> {
        let _ = sequence_low;
        todo!()
    }

    /// Marks the number received; exactly one commit of a number succeeds, whoever calls it.
    ///
    /// # Errors
    /// [`Refused`] when another copy came first or the window moved past it.
    pub fn commit(&self, number: Authenticated) -> Result<(), Refused> {
        let _ = number.sequence;
        todo!()
    }

    /// The highest number committed.
    pub fn right_edge(&self) -> u64 {
        todo!()
    }

    /// Window size in numbers, 0 when off.
    pub fn size(&self) -> u32 {
        todo!()
    }
}

/// RFC 4303 appendix A2.2: the high word of `sequence_low` for right edge `edge` and window `size`.
/// `None` when it would lie below 0 or above 2^32-1.
pub fn infer_high(size: u32, edge: u64, sequence_low: u32) -> Option<u32> {
    let _ = (size, edge, sequence_low);
    todo!()
}
