//! What a lease file consists of: a header, and for each key three places that are written in turn.
//!
//! A place is one block, so that a torn write never touches another one, and carries a MAC under the host's
//! secret over its own position, so that nothing of another host, another key or another place passes for it.
//! Beside it, in a second file, a witness says which generation of each key was written last: a place that is
//! damaged, or a file that was put back, falls behind it.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::{Fingerprint, Purpose};
use crate::sa::selector::Direction;

/// Bytes of a place, and of the header.
pub(super) const BLOCK: usize = 4096;
/// Places of a key.
pub(super) const PLACES: usize = 3;
/// Bytes of a witness.
pub(super) const WITNESS: usize = 512;

const TAG: usize = 32;
const HEADER_MAGIC: &[u8; 8] = b"adit-lh1";
const SLOT_MAGIC: &[u8; 8] = b"adit-ls1";
const WITNESS_MAGIC: &[u8; 8] = b"adit-lw1";

/// What one place holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) id: Fingerprint,
    pub(super) purpose: Purpose,
    /// Grows with every write of this key.
    pub(super) generation: u64,
    pub(super) ceiling: u64,
}

/// What stands somewhere on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found<T> {
    /// Zeros: never written.
    Empty,
    /// Neither: torn, damaged, or of another host.
    Damaged,
    Valid(T),
}

/// Where a place begins in the file.
pub(super) fn offset(index: usize, place: usize) -> u64 {
    (BLOCK * (1 + index * PLACES + place)) as u64
}

/// How many keys a file of `length` bytes has room for.
pub(super) fn count(length: usize) -> usize {
    (length / BLOCK).saturating_sub(1) / PLACES
}

fn tag(secret: &[u8; 32], position: u64, body: &[u8]) -> [u8; TAG] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(b"adit lease 1");
    mac.update(&position.to_be_bytes());
    mac.update(body);
    mac.finalize().into_bytes().into()
}

/// Fields behind one another, zeros, and the tag at the end of the block.
fn seal(secret: &[u8; 32], position: u64, size: usize, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    fields.iter().for_each(|field| bytes.extend_from_slice(field));
    bytes.resize(size - TAG, 0);
    let tag = tag(secret, position, &bytes);
    bytes.extend_from_slice(&tag);
    bytes
}

/// The body of a block whose tag is right.
fn open<'b>(secret: &[u8; 32], position: u64, magic: &[u8; 8], bytes: &'b [u8]) -> Found<&'b [u8]> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Found::Empty;
    }
    // Nothing secret is compared: who can write here has the secret beside it.
    match bytes.split_last_chunk::<TAG>() {
        Some((body, found)) if *found == tag(secret, position, body) && body.starts_with(magic) => {
            Found::Valid(&body[magic.len()..])
        }
        _ => Found::Damaged,
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

impl Slot {
    pub(super) fn write(&self, secret: &[u8; 32], index: usize, place: usize) -> Vec<u8> {
        let fields: [&[u8]; 6] = [
            SLOT_MAGIC,
            &self.id,
            &[u8::from(self.purpose.direction == Direction::Outbound), 0, 0, 0, 0, 0, 0, 0],
            &self.purpose.algorithm,
            &self.generation.to_be_bytes(),
            &self.ceiling.to_be_bytes(),
        ];
        seal(secret, offset(index, place), BLOCK, &fields)
    }

    pub(super) fn read(secret: &[u8; 32], index: usize, place: usize, bytes: &[u8]) -> Found<Self> {
        match open(secret, offset(index, place), SLOT_MAGIC, bytes) {
            Found::Empty => Found::Empty,
            Found::Damaged => Found::Damaged,
            Found::Valid(body) => Found::Valid(Self {
                id: body[..16].try_into().expect("sixteen bytes"),
                purpose: Purpose {
                    direction: if body[16] == 1 { Direction::Outbound } else { Direction::Inbound },
                    algorithm: body[24..32].try_into().expect("eight bytes"),
                },
                generation: number(&body[32..40]),
                ceiling: number(&body[40..48]),
            }),
        }
    }
}

/// The last generation of a key whose write was complete.
pub(super) fn write_witness(secret: &[u8; 32], index: usize, id: &Fingerprint, generation: u64) -> Vec<u8> {
    // Counted from the end, so that no position is one of a place.
    let position = u64::MAX - index as u64;
    seal(secret, position, WITNESS, &[WITNESS_MAGIC, id, &generation.to_be_bytes()])
}

/// Of this key; that of another key is damage.
pub(super) fn read_witness(secret: &[u8; 32], index: usize, id: &Fingerprint, bytes: &[u8]) -> Found<u64> {
    match open(secret, u64::MAX - index as u64, WITNESS_MAGIC, bytes) {
        Found::Valid(body) if body[..16] == *id => Found::Valid(number(&body[16..24])),
        Found::Empty => Found::Empty,
        _ => Found::Damaged,
    }
}

/// What makes a file this one and no copy of it: its inode with its birth, and the machine. Not one of a snapshot
/// of the whole disk: nothing on a disk can tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    pub(super) inode: u64,
    pub(super) born: (i64, u32),
    pub(super) machine: [u8; 16],
}

impl Identity {
    pub(super) fn write(&self, secret: &[u8; 32]) -> Vec<u8> {
        let (seconds, nanoseconds) = self.born;
        let fields: [&[u8]; 5] = [
            HEADER_MAGIC,
            &self.inode.to_be_bytes(),
            &seconds.to_be_bytes(),
            &nanoseconds.to_be_bytes(),
            &self.machine,
        ];
        seal(secret, 0, BLOCK, &fields)
    }

    /// Whether a header is there, and this one.
    pub(super) fn check(&self, secret: &[u8; 32], header: &[u8]) -> Result<(), &'static str> {
        let own = self.write(secret);
        if header == own.as_slice() {
            return Ok(());
        }
        match open(secret, 0, HEADER_MAGIC, header) {
            Found::Valid(body) if body[20..36] != self.machine => {
                Err("the file was made on another machine, which may have gone on with these keys")
            }
            Found::Valid(_) => {
                Err("the file is a copy: it was put back, and what was sent since is not in it")
            }
            _ => Err("the file is damaged, or of another host"),
        }
    }
}

/// Names an algorithm in eight bytes.
pub(super) fn algorithm(name: &str) -> [u8; 8] {
    Sha256::digest(name)[..8].try_into().expect("eight bytes")
}
