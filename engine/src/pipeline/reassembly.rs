//! Fragments of ESP and AH until their datagram is whole (RFC 791 section 3.2, RFC 8200 section 4.5), bounded in memory,
//! per source, in fragments and in time. A limit that is reached costs the oldest: whoever sends now, and sends all of it,
//! is served.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use zeroize::Zeroize;

use super::DropReason;
use crate::route::PortId;
use crate::wire::checksum;
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::fragment::{self, Place};
use crate::wire::header::{DONT_FRAGMENT, IPV6_LENGTH};
use crate::wire::ip::{self, IpPacket, IpVersion};
use crate::wire::protocol;

/// What reassembly may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes for all datagrams together, bookkeeping included; 0: nothing is reassembled.
    pub memory: usize,
    /// Datagrams of one source.
    pub per_source: usize,
    /// Fragments of one datagram.
    pub fragments: usize,
    /// From a datagram's first fragment to its last, milliseconds.
    pub timeout: u64,
}

impl Limits {
    /// No fragment is kept.
    pub const OFF: Self = Self { memory: 0, per_source: 0, fragments: 0, timeout: 0 };
}

impl Default for Limits {
    fn default() -> Self {
        // The longest datagram over the smallest MTU of IPv6 comes in 54.
        Self { memory: 4 << 20, per_source: 64, fragments: 64, timeout: 5_000 }
    }
}

/// What a datagram costs besides its bytes and pieces.
const DATAGRAM_COST: usize = size_of::<Datagram>() + size_of::<Birth>();
/// Bytes are made room for in these steps.
const STEP: usize = 2048;
/// Buffers that wait for the next datagram, and how large they may be.
const SPARES: usize = 16;
const SPARE_LENGTH: usize = 16 * 1024;
/// Births of datagrams that are gone already, before they are looked through.
const STALE_BIRTHS: usize = 1024;

/// A piece of a datagram: where it belongs, and where its bytes lie.
#[derive(Clone, Copy)]
struct Piece {
    offset: u32,
    length: u32,
    start: u32,
    more: bool,
}

impl Piece {
    fn end(&self) -> u32 {
        self.offset + self.length
    }
}

/// Where a fragment comes from. Those of one datagram all come from outside, or all out of one tunnel: what an SA has
/// proven is not put together with what nobody proved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Where it came in.
    pub port: PortId,
    /// The tunnel that it came out of, by its name, if any.
    pub outer: Option<Arc<str>>,
}

/// Who sends fragments: an address, outside or inside a tunnel.
type Source = (IpAddr, Option<Arc<str>>);

/// Which datagram of a source.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    destination: IpAddr,
    identification: u32,
    /// IPv4 has an identification per protocol; in IPv6 the first fragment names it.
    protocol: u8,
}

/// A datagram on its way to be whole.
struct Datagram {
    key: Key,
    /// Where the first of its fragments to arrive came in.
    port: PortId,
    birth: u64,
    deadline: u64,
    /// Why whatever still comes of it is dropped.
    refused: Option<DropReason>,
    /// In order of their offsets, none over another.
    pieces: Vec<Piece>,
    /// The front of the first fragment's frame, up to its fragmentable part, and the pieces, as they came.
    bytes: Vec<u8>,
    /// Of the first fragment, when it is there.
    head: Option<Head>,
    /// Which ECN codepoints its fragments carry, a bit for each.
    ecn: u8,
}

struct Head {
    port: PortId,
    start: usize,
    length: usize,
    version: IpVersion,
    traffic_class: u8,
    named_at: u16,
    next_header: u8,
}

/// When a datagram of a source came into being, in order.
struct Birth {
    number: u64,
    source: Source,
}

/// Fragments that come to nothing.
pub struct Lost<'d> {
    /// Why.
    pub reason: DropReason,
    /// How many.
    pub fragments: usize,
    /// What they were of, where that is not what the one at hand is of.
    pub other: Option<Remains<'d>>,
}

/// What was there of a datagram that is given up.
#[derive(Clone, Copy)]
pub struct Remains<'d> {
    /// Where its first fragment to arrive came in.
    pub port: PortId,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// What it carries, as far as its fragments said so.
    pub protocol: u8,
    /// How that begins, if its first fragment is there.
    pub payload: &'d [u8],
}

impl Lost<'_> {
    fn with_this(reason: DropReason, fragments: usize) -> Self {
        Self { reason, fragments, other: None }
    }
}

/// A datagram that is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whole {
    /// Where its first fragment came in.
    pub port: PortId,
    /// How many fragments it came in.
    pub fragments: usize,
}

/// The fragments that wait for the others.
pub struct Reassembler {
    limits: Limits,
    /// Of each source, the oldest first; none is empty.
    sources: HashMap<Source, VecDeque<Datagram>>,
    /// Of all datagrams, the oldest first, and of some that are gone.
    births: VecDeque<Birth>,
    datagrams: usize,
    memory: usize,
    held: usize,
    born: u64,
    spares: Vec<(Vec<Piece>, Vec<u8>)>,
}

impl Reassembler {
    /// Empty.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sources: HashMap::new(),
            births: VecDeque::new(),
            datagrams: 0,
            memory: 0,
            held: 0,
            born: 0,
            spares: Vec::new(),
        }
    }

    /// Fragments that wait.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Bytes that they take.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Takes a fragment: the IP packet `packet` in `frame`. When it was the last one missing, the whole datagram is
    /// written into `out` as a frame. Every fragment taken is held, or part of a [`Whole`], or told to `lost`: this one,
    /// or others that had to go for it. `now`: milliseconds.
    pub fn take(
        &mut self,
        now: u64,
        arrival: Arrival,
        frame: &[u8],
        packet: &IpPacket,
        out: &mut Vec<u8>,
        lost: &mut impl FnMut(Lost<'_>),
    ) -> Option<Whole> {
        self.expire(now, lost);
        let bytes = frame.get(HEADER_LENGTH..).unwrap_or_default();
        let place = fragment::place(bytes, packet).filter(is_possible);
        let Some(place) = place else {
            lost(Lost::with_this(DropReason::ReassemblyInvalid, 1));
            return None;
        };
        let Arrival { port, outer } = arrival;
        let source = (packet.flow.source, outer);
        let key = Key {
            destination: packet.flow.destination,
            identification: place.identification,
            protocol: if packet.version == IpVersion::V4 { place.next_header } else { 0 },
        };
        let known =
            self.sources.get(&source).and_then(|queue| queue.iter().position(|known| known.key == key));
        let index = known.unwrap_or_else(|| self.begin(now, port, &source, key, lost));
        let datagram = &mut self.sources.get_mut(&source)?[index];
        if let Some(reason) = datagram.refused {
            lost(Lost::with_this(reason, 1));
            return None;
        }
        let cost = datagram.cost();
        let added = datagram.add(port, frame, packet, &place, self.limits.fragments);
        self.memory += datagram.cost() - cost;
        match added {
            Ok(()) => self.held += 1,
            Err(DropReason::ReassemblyDuplicate) => {
                lost(Lost::with_this(DropReason::ReassemblyDuplicate, 1));
            }
            // RFC 5722 section 4: the datagram and all of it that is still to come "MUST be silently discarded".
            Err(reason) => {
                let pieces = datagram.pieces.len();
                datagram.refused = Some(reason);
                let spare = (std::mem::take(&mut datagram.pieces), std::mem::take(&mut datagram.bytes));
                self.memory -= cost_of(&spare);
                self.held -= pieces;
                self.keep_spare(spare);
                lost(Lost::with_this(reason, pieces + 1));
            }
        }
        let datagram = &self.sources.get(&source)?[index];
        if datagram.is_whole() {
            let written = datagram.write(out);
            let fragments = self.remove(&source, index);
            return match written {
                Ok(port) => Some(Whole { port, fragments }),
                Err(reason) => {
                    lost(Lost::with_this(reason, fragments));
                    None
                }
            };
        }
        while self.memory > self.limits.memory && self.remove_oldest(DropReason::ReassemblyMemory, lost) {}
        None
    }

    /// Gives up what has waited for too long.
    pub fn expire(&mut self, now: u64, lost: &mut impl FnMut(Lost<'_>)) {
        while self.oldest().is_some_and(|oldest| oldest.deadline <= now) {
            self.remove_oldest(DropReason::ReassemblyTimeout, lost);
        }
        if self.births.len() > 2 * self.datagrams + STALE_BIRTHS {
            let sources = &self.sources;
            self.births.retain(|birth| {
                let queue = sources.get(&birth.source);
                queue.is_some_and(|queue| queue.iter().any(|datagram| datagram.birth == birth.number))
            });
        }
    }

    /// A new datagram of `source`, at the end of its queue; its place there.
    fn begin(
        &mut self,
        now: u64,
        port: PortId,
        source: &Source,
        key: Key,
        lost: &mut impl FnMut(Lost<'_>),
    ) -> usize {
        if self.sources.get(source).is_some_and(|queue| queue.len() >= self.limits.per_source) {
            self.lose(DropReason::ReassemblySource, source, 0, lost);
        }
        let (pieces, bytes) = self.spares.pop().unwrap_or_default();
        self.born += 1;
        let datagram = Datagram {
            key,
            port,
            birth: self.born,
            deadline: now.saturating_add(self.limits.timeout),
            refused: None,
            pieces,
            bytes,
            head: None,
            ecn: 0,
        };
        self.births.push_back(Birth { number: self.born, source: source.clone() });
        self.datagrams += 1;
        self.memory += datagram.cost();
        let queue = self.sources.entry(source.clone()).or_default();
        queue.push_back(datagram);
        queue.len() - 1
    }

    /// The oldest datagram.
    fn oldest(&mut self) -> Option<&Datagram> {
        loop {
            let birth = self.births.front()?;
            let oldest = self.sources.get(&birth.source).and_then(VecDeque::front);
            if oldest.is_some_and(|oldest| oldest.birth == birth.number) {
                break;
            }
            // It is gone, or was removed from among younger ones.
            self.births.pop_front();
        }
        self.sources.get(&self.births.front()?.source)?.front()
    }

    /// Removes the oldest datagram; false when there is none.
    fn remove_oldest(&mut self, reason: DropReason, lost: &mut impl FnMut(Lost<'_>)) -> bool {
        if self.oldest().is_none() {
            return false;
        }
        let Some(Birth { source, .. }) = self.births.pop_front() else { return false };
        self.lose(reason, &source, 0, lost);
        true
    }

    /// Removes a datagram that somebody else had to go for; what was left of it is told.
    fn lose(&mut self, reason: DropReason, source: &Source, index: usize, lost: &mut impl FnMut(Lost<'_>)) {
        let datagram = self.sources.get(source).and_then(|queue| queue.get(index));
        if let Some(datagram) = datagram.filter(|datagram| !datagram.pieces.is_empty()) {
            let other = Some(datagram.remains(source.0));
            lost(Lost { reason, fragments: datagram.pieces.len(), other });
        }
        self.remove(source, index);
    }

    /// Removes a datagram; how many fragments of it were held.
    fn remove(&mut self, source: &Source, index: usize) -> usize {
        let Some(queue) = self.sources.get_mut(source) else { return 0 };
        let Some(datagram) = queue.remove(index) else { return 0 };
        if queue.is_empty() {
            self.sources.remove(source);
        }
        let fragments = datagram.pieces.len();
        self.memory -= datagram.cost();
        self.held -= fragments;
        self.datagrams -= 1;
        self.keep_spare((datagram.pieces, datagram.bytes));
        fragments
    }

    fn keep_spare(&mut self, (mut pieces, mut bytes): (Vec<Piece>, Vec<u8>)) {
        // AH that came out of ESP: what was encrypted does not lie about.
        bytes.zeroize();
        if self.spares.len() < SPARES && bytes.capacity() <= SPARE_LENGTH {
            pieces.clear();
            self.spares.push((pieces, bytes));
        }
    }
}

/// What the two buffers of a datagram cost.
fn cost_of((pieces, bytes): &(Vec<Piece>, Vec<u8>)) -> usize {
    bytes.capacity() + pieces.capacity() * size_of::<Piece>()
}

/// Makes room for `capacity` bytes, and leaves no copy behind.
fn grow(bytes: &mut Vec<u8>, capacity: usize) {
    let mut larger = Vec::with_capacity(capacity);
    larger.extend_from_slice(bytes);
    bytes.zeroize();
    *bytes = larger;
}

/// Whether a fragment can be part of a datagram at all: it carries something, all but the last in eights (RFC 791
/// section 3.2, RFC 8200 section 4.5), nothing beyond 65,535 bytes.
fn is_possible(place: &Place) -> bool {
    let length = place.payload.len();
    let fits = place.offset + length <= usize::from(u16::MAX);
    length > 0 && fits && (!place.more || length.is_multiple_of(8))
}

impl Datagram {
    fn cost(&self) -> usize {
        let Self { pieces, bytes, .. } = self;
        DATAGRAM_COST + bytes.capacity() + pieces.capacity() * size_of::<Piece>()
    }

    /// Adds a fragment, or says why the whole datagram goes; a copy of one that is there is no more than a duplicate.
    fn add(
        &mut self,
        port: PortId,
        frame: &[u8],
        packet: &IpPacket,
        place: &Place,
        most: usize,
    ) -> Result<(), DropReason> {
        let payload = &frame[HEADER_LENGTH..][place.payload.clone()];
        let piece = Piece {
            offset: place.offset as u32,
            length: payload.len() as u32,
            start: self.bytes.len() as u32,
            more: place.more,
        };
        let at = self.pieces.partition_point(|known| known.offset < piece.offset);
        if let Some(known) = self.pieces.get(at)
            && (known.offset, known.length, known.more) == (piece.offset, piece.length, piece.more)
            && self.bytes[known.start as usize..][..payload.len()] == *payload
        {
            return Err(DropReason::ReassemblyDuplicate);
        }
        let (before, behind) = self.pieces.split_at(at);
        let overlaps = before.last().is_some_and(|known| known.end() > piece.offset)
            || behind.first().is_some_and(|known| known.offset < piece.end());
        // Behind the last one, or a last one in front of others: there are two ends.
        let two_ends = before.last().is_some_and(|known| !known.more) || (!piece.more && !behind.is_empty());
        if overlaps || two_ends {
            return Err(DropReason::ReassemblyOverlap);
        }
        if self.pieces.len() >= most {
            return Err(DropReason::ReassemblyFragments);
        }
        let front = if piece.offset == 0 { HEADER_LENGTH + place.headers } else { 0 };
        let wanted = self.bytes.len() + payload.len() + front;
        if wanted > self.bytes.capacity() {
            grow(&mut self.bytes, wanted.next_multiple_of(STEP));
        }
        self.bytes.extend_from_slice(payload);
        self.pieces.insert(at, piece);
        self.ecn |= 1 << (packet.traffic_class & 3);
        if piece.offset == 0 {
            self.head = Some(Head {
                port,
                start: self.bytes.len(),
                length: front,
                version: packet.version,
                traffic_class: packet.traffic_class,
                named_at: place.named_at,
                next_header: place.next_header,
            });
            self.bytes.extend_from_slice(&frame[..front]);
        }
        Ok(())
    }

    fn remains(&self, source: IpAddr) -> Remains<'_> {
        let first = self.pieces.first().filter(|piece| piece.offset == 0);
        let payload =
            first.and_then(|piece| self.bytes.get(piece.start as usize..)?.get(..piece.length as usize));
        Remains {
            port: self.port,
            source,
            destination: self.key.destination,
            protocol: match (&self.head, source) {
                (Some(head), _) => head.next_header,
                (None, IpAddr::V4(_)) => self.key.protocol,
                (None, IpAddr::V6(_)) => protocol::FRAGMENT,
            },
            payload: payload.unwrap_or_default(),
        }
    }

    /// From the first byte to the last.
    fn is_whole(&self) -> bool {
        let mut end = 0;
        let closed = self.pieces.iter().all(|piece| std::mem::replace(&mut end, piece.end()) == piece.offset);
        closed && self.pieces.last().is_some_and(|last| !last.more)
    }

    /// Writes the frame of a whole datagram; where it came in.
    fn write(&self, out: &mut Vec<u8>) -> Result<PortId, DropReason> {
        let head = self.head.as_ref().ok_or(DropReason::ReassemblyInvalid)?;
        out.clear();
        out.reserve(self.bytes.len());
        out.extend_from_slice(&self.bytes[head.start..head.start + head.length]);
        for piece in &self.pieces {
            out.extend_from_slice(&self.bytes[piece.start as usize..][..piece.length as usize]);
        }
        let packet = &mut out[HEADER_LENGTH..];
        let length = packet.len();
        match head.version {
            IpVersion::V4 => {
                let length = u16::try_from(length).map_err(|_| DropReason::ReassemblyInvalid)?;
                packet[2..4].copy_from_slice(&length.to_be_bytes());
                let flags = u16::from_be_bytes([packet[6], packet[7]]) & DONT_FRAGMENT;
                packet[6..8].copy_from_slice(&flags.to_be_bytes());
                packet[10..12].fill(0);
                let sum = checksum::internet(&packet[..head.length - HEADER_LENGTH]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            IpVersion::V6 => {
                let length =
                    u16::try_from(length - IPV6_LENGTH).map_err(|_| DropReason::ReassemblyInvalid)?;
                packet[4..6].copy_from_slice(&length.to_be_bytes());
                packet[usize::from(head.named_at)] = head.next_header;
            }
        }
        // RFC 3168 section 5.3: congestion that one fragment met is the datagram's, unless another was Not-ECT.
        const CE: u8 = 3;
        if self.ecn & 1 << CE != 0 {
            if self.ecn & 1 != 0 {
                return Err(DropReason::EcnForbidden);
            }
            ip::set_traffic_class(packet, head.version, head.traffic_class | CE);
        }
        Ok(head.port)
    }
}

#[cfg(test)]
#[path = "reassembly_tests.rs"]
mod tests;
