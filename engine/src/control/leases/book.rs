//! The book of leases: which ceilings are on stable storage, and which of them must rise.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

use zeroize::Zeroizing;

use super::pace::{Pace, Terms};
use super::slot::{self, BLOCK, Found, PLACES, Slot, WITNESS};
use super::{Fingerprint, Purpose};
use crate::sa::Lease;
use crate::sa::selector::Direction;

/// Which of the two files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Area {
    Leases,
    Witness,
}

/// Storage as the book sees it. What was written is stable only once a later `sync` of its file succeeded.
pub(super) trait Storage {
    fn read(&mut self, area: Area) -> io::Result<Vec<u8>>;
    fn write(&mut self, area: Area, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self, area: Area) -> io::Result<()>;
}

/// One key's record. It is never removed: who deletes an SA and sets it up again goes on above it.
struct Record {
    id: Fingerprint,
    purpose: Purpose,
    /// At or below what a new start would find, whatever became of writes that failed.
    ceiling: u64,
    /// Where the last complete write went, and its generation; 0 before the first.
    place: usize,
    generation: u64,
    /// Where the last attempt went, and its generation.
    tried: usize,
    attempt: u64,
    /// What it says can not be trusted: nothing is sent with this key any more.
    lost: bool,
}

impl Record {
    fn new(id: Fingerprint, purpose: Purpose) -> Self {
        let (place, tried) = (PLACES, PLACES - 1);
        Self { id, purpose, ceiling: 0, place, generation: 0, tried, attempt: 0, lost: false }
    }

    /// Never where the last complete write is, and not where an attempt has just failed: what the kernel keeps of
    /// a page whose write failed is not known.
    fn next_place(&self) -> usize {
        (1..=PLACES)
            .map(|step| (self.tried + step) % PLACES)
            .find(|place| *place != self.place)
            .expect("there are three places")
    }
}

/// A lease that is being used.
struct Tended {
    lease: Weak<Lease>,
    terms: Terms,
    pace: Pace,
}

/// What the book knows of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// Used numbers are at or below `ceiling`.
    Record {
        /// What the key was used for.
        purpose: Purpose,
        /// Begin above it.
        ceiling: u64,
    },
    /// The record fell behind its witness, or cannot be read.
    Lost,
}

/// A lease to be granted before its SA is used.
#[derive(Clone)]
pub struct Grant {
    /// Names the key.
    pub id: Fingerprint,
    /// What it is used for.
    pub purpose: Purpose,
    /// To be raised; none where only the record is needed (an SA without replay protection).
    pub lease: Option<Arc<Lease>>,
    /// The highest number of the SA.
    pub limit: u64,
}

pub(super) struct Book<S> {
    storage: S,
    secret: Zeroizing<[u8; 32]>,
    records: Vec<Record>,
    tended: BTreeMap<usize, Tended>,
}

impl<S: Storage> Book<S> {
    /// Reads what is there. The header is not the book's business.
    pub(super) fn open(mut storage: S, secret: Zeroizing<[u8; 32]>) -> io::Result<Self> {
        let (leases, witnesses) = (storage.read(Area::Leases)?, storage.read(Area::Witness)?);
        let block = |index, place| {
            let start = slot::offset(index, place) as usize;
            &leases[start..start + BLOCK]
        };
        let (mut records, mut behind) = (Vec::new(), Vec::new());
        for index in 0..slot::count(leases.len()) {
            let slots: [_; PLACES] =
                std::array::from_fn(|place| Slot::read(&secret, index, place, block(index, place)));
            let witness = |id: &Fingerprint| {
                let start = index * WITNESS;
                let bytes = witnesses.get(start..start + WITNESS).unwrap_or_default();
                slot::read_witness(&secret, index, id, bytes)
            };
            let record = judge(slots, witness);
            if !record.lost && witness(&record.id) != Found::Valid(record.generation) {
                behind.push((index, record.ceiling));
            }
            records.push(record);
        }
        let mut book = Self { storage, secret, records, tended: BTreeMap::new() };
        if !behind.is_empty() {
            book.bear_witness(&behind)?;
        }
        Ok(book)
    }

    fn position(&self, id: &Fingerprint) -> Option<usize> {
        // A record that was begun and whose key never sent may be there twice; the higher one counts.
        let own = self.records.iter().enumerate().filter(|(_, record)| record.id == *id);
        own.max_by_key(|(_, record)| (record.lost, record.ceiling)).map(|(index, _)| index)
    }

    /// What is recorded of a key.
    pub(super) fn known(&self, id: &Fingerprint) -> Option<Known> {
        let record = &self.records[self.position(id)?];
        Some(match record.lost {
            true => Known::Lost,
            false => Known::Record { purpose: record.purpose, ceiling: record.ceiling },
        })
    }

    /// What a new SA begins above. An SA that had the key before, if a worker still holds it, is not extended any
    /// more from here on.
    pub(super) fn begin(&mut self, id: &Fingerprint) -> u64 {
        let Some(index) = self.position(id) else { return 0 };
        self.tended.remove(&index);
        self.records[index].ceiling
    }

    /// Puts the first lease of each SA on stable storage, with a record where there is none, and raises it. All of
    /// them, or nothing is raised.
    pub(super) fn grant(&mut self, grants: &[Grant], now: Instant) -> io::Result<()> {
        let before = self.records.len();
        let mut changes = Vec::new();
        let mut tended = Vec::new();
        for grant in grants {
            let known = self.position(&grant.id);
            let index = known.unwrap_or(self.records.len());
            if known.is_none() {
                self.records.push(Record::new(grant.id, grant.purpose));
            }
            let Some(lease) = &grant.lease else {
                // A record that is there needs no other.
                changes.extend(known.is_none().then_some((index, 0)));
                continue;
            };
            let terms = Terms::new(grant.purpose.direction, grant.limit);
            let length = terms.length(Pace::BURST, lease.reached());
            let ceiling = terms.ceiling(lease.reached(), length);
            changes.push((index, ceiling));
            let pace = Pace::new(lease.reached(), now);
            tended.push((
                index,
                ceiling,
                length,
                lease,
                Tended { lease: Arc::downgrade(lease), terms, pace },
            ));
        }
        if let Err(error) = self.write(&changes) {
            self.records.truncate(before);
            return Err(error);
        }
        for (index, ceiling, length, lease, entry) in tended {
            lease.raise(ceiling, entry.terms.ring_above(ceiling, length));
            self.tended.insert(index, entry);
        }
        self.bear_witness(&changes)
    }

    /// Extends every lease of which half is used, in one write. An error leaves ceilings as they are.
    pub(super) fn extend(&mut self, now: Instant) -> io::Result<()> {
        self.tended.retain(|_, tended| tended.lease.strong_count() > 0);
        let mut changes = Vec::new();
        let mut raised = Vec::new();
        for (&index, tended) in &mut self.tended {
            let Some(lease) = tended.lease.upgrade() else { continue };
            let (reached, ceiling) = (lease.reached(), lease.ceiling());
            // A peer that jumps (it was restarted itself) has not used what it left out.
            let jump = reached.saturating_sub(ceiling);
            let length = tended.terms.length(tended.pace.rate(reached - jump, now), reached);
            let remaining = ceiling.saturating_sub(reached);
            let used_up = remaining < length.div_ceil(2) && ceiling < tended.terms.limit();
            let wanted = if used_up { tended.terms.ceiling(reached, length) } else { ceiling };
            let ring_above = tended.terms.ring_above(wanted, length);
            if wanted > self.records[index].ceiling {
                changes.push((index, wanted));
                raised.push((index, lease, wanted, ring_above, jump));
            } else {
                lease.raise(wanted, ring_above);
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.write(&changes)?;
        for (index, lease, ceiling, ring_above, jump) in raised {
            lease.raise(ceiling, ring_above);
            if let Some(tended) = self.tended.get_mut(&index) {
                tended.pace.skip(jump);
            }
        }
        self.bear_witness(&changes)
    }

    /// Takes back what a peer that became slow does not need any more: after a crash it would be refused for that
    /// long. `quiescent`: every worker has finished what it began before; false if one did not in time.
    pub(super) fn lower(&mut self, now: Instant, quiescent: impl FnOnce() -> bool) -> io::Result<()> {
        let mut lowered = Vec::new();
        for (&index, tended) in &mut self.tended {
            let Some(lease) = tended.lease.upgrade() else { continue };
            let reached = lease.reached();
            let length = tended.terms.length(tended.pace.rate(reached, now), reached);
            let spare = self.records[index].ceiling.saturating_sub(reached);
            if self.records[index].purpose.direction == Direction::Inbound && spare / 2 > length {
                lease.lower(tended.terms.ceiling(reached, length));
                lowered.push((index, lease));
            }
        }
        if lowered.is_empty() || !quiescent() {
            return Ok(());
        }
        self.retreat(lowered)
    }

    /// Gives back everything that was not used. No worker runs any more.
    pub(super) fn release(&mut self) -> io::Result<()> {
        let tended = std::mem::take(&mut self.tended);
        let leases = tended.into_iter().filter_map(|(index, tended)| Some((index, tended.lease.upgrade()?)));
        let leases: Vec<_> = leases.collect();
        leases.iter().for_each(|(_, lease)| lease.lower(lease.reached()));
        self.retreat(leases)
    }

    fn retreat(&mut self, leases: Vec<(usize, Arc<Lease>)>) -> io::Result<()> {
        let end = |lease: &Lease| lease.ceiling().max(lease.reached());
        let mut changes: Vec<_> = leases.iter().map(|(index, lease)| (*index, end(lease))).collect();
        changes.retain(|(index, ceiling)| *ceiling != self.records[*index].ceiling);
        if changes.is_empty() {
            return Ok(());
        }
        self.write(&changes)?;
        self.bear_witness(&changes)
    }

    /// Puts ceilings on stable storage, all in one sync. On an error none counts, and none is written at that place
    /// again before another one was tried.
    fn write(&mut self, changes: &[(usize, u64)]) -> io::Result<()> {
        for &(index, ceiling) in changes {
            let record = &mut self.records[index];
            // A write that fails may be found all the same: until it succeeds, only the lower one is sure.
            record.ceiling = if record.generation == 0 { 0 } else { record.ceiling.min(ceiling) };
            (record.tried, record.attempt) = (record.next_place(), record.attempt + 1);
            let slot = Slot { id: record.id, purpose: record.purpose, generation: record.attempt, ceiling };
            let bytes = slot.write(&self.secret, index, record.tried);
            if record.generation == 0 {
                // All places at once: later writes need no room that may be gone by then.
                let zeros = vec![0; PLACES * BLOCK];
                self.storage.write(Area::Leases, slot::offset(index, 0), &zeros)?;
            }
            self.storage.write(Area::Leases, slot::offset(index, record.tried), &bytes)?;
        }
        self.storage.sync(Area::Leases)?;
        for &(index, ceiling) in changes {
            let record = &mut self.records[index];
            record.ceiling = ceiling;
            (record.place, record.generation) = (record.tried, record.attempt);
        }
        Ok(())
    }

    /// Writes down that these generations are complete. Behind the sync of what it vouches for, never before.
    fn bear_witness(&mut self, changes: &[(usize, u64)]) -> io::Result<()> {
        for (index, _) in changes {
            let record = &self.records[*index];
            let bytes = slot::write_witness(&self.secret, *index, &record.id, record.generation);
            self.storage.write(Area::Witness, (index * WITNESS) as u64, &bytes)?;
        }
        self.storage.sync(Area::Witness)
    }
}

/// What the places of a key and its witness say together: the highest generation counts, if it is no older than
/// the last one that was complete. A torn write leaves the place of the generation before it; a torn witness
/// leaves the places, which then must all be whole.
fn judge(slots: [Found<Slot>; PLACES], witness: impl FnOnce(&Fingerprint) -> Found<u64>) -> Record {
    let valid = slots.iter().enumerate().filter_map(|(place, found)| match found {
        Found::Valid(slot) => Some((place, slot)),
        _ => None,
    });
    let Some((place, slot)) = valid.max_by_key(|(_, slot)| slot.generation) else {
        // Whose it was is not known: that key has no record, and is refused for that.
        let nobody = Purpose { direction: Direction::Inbound, algorithm: [0; 8] };
        return Record { lost: true, ..Record::new(Fingerprint::default(), nobody) };
    };
    let whole = !slots.contains(&Found::Damaged);
    let lost = match witness(&slot.id) {
        Found::Valid(complete) => slot.generation < complete,
        Found::Empty | Found::Damaged => !whole,
    };
    // A torn place is the next one to be written: while it lasts, a torn witness would cost the key.
    let torn = slots.iter().position(|found| *found == Found::Damaged);
    Record {
        id: slot.id,
        purpose: slot.purpose,
        ceiling: slot.ceiling,
        place,
        generation: slot.generation,
        tried: torn.map_or(place, |torn| (torn + PLACES - 1) % PLACES),
        attempt: slot.generation,
        lost,
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
