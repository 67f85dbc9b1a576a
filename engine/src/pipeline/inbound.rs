//! Inbound ESP and AH (RFC 4303 and RFC 4302 section 3.4, RFC 4301 section 5.2), by groups of one SA: verification and
//! decryption, replay commit, and what becomes of each packet.

use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use zeroize::Zeroize;

use super::admission::{Admitted, Way};
use super::decapsulate::Sent;
use super::nesting::Nested;
use super::scratch::Groups;
use super::sealed::{Sealed, is_plain, replay_reason};
use super::{BURST, COVERED_HEADERS, DropReason, Frames, Pass, Received};
use crate::crypto::{IcvValid, Open, Opener, Verifier, Verify};
use crate::policy::Tunnel;
use crate::route::{PortId, Side};
use crate::sa::InboundSa;
use crate::sa::inbound::InboundKeys;
use crate::sa::lifetime::Allowance;
use crate::sa::replay::{Authenticated, Candidate};
use crate::transform::ah::{self, Role};
use crate::transform::natt;
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::ip::IpVersion;
use crate::wire::reader::Reader;

/// ESP and AH packets of a burst by SA.
pub(super) type Inbound<'g> = Groups<'g, InboundSa, Sealed>;

/// A packet with the transmit frame its plaintext goes into.
struct Taken<'p, F> {
    sealed: &'p Sealed,
    port: PortId,
    frame: F,
}

/// What becomes of the packets of a group, in its order.
type Outcomes = ArrayVec<Result<(), DropReason>, BURST>;

/// Whether packets of an SA are authentic, and whether those that are, are new.
struct Judgement<'s> {
    sa: &'s InboundSa,
    /// No number above it is accepted now.
    ceiling: u64,
    outcomes: Outcomes,
    /// The numbers of what is authentic, and their places in the group.
    authentic: ArrayVec<Authenticated, BURST>,
    places: ArrayVec<u8, BURST>,
}

impl<'s> Judgement<'s> {
    fn of(sa: &'s InboundSa) -> Self {
        let ceiling = sa.lease.as_ref().map_or(u64::MAX, |lease| lease.ceiling());
        let (outcomes, authentic, places) = (ArrayVec::new(), ArrayVec::new(), ArrayVec::new());
        Self { sa, ceiling, outcomes, authentic, places }
    }

    /// What the ICV of the next packet says.
    #[inline(always)]
    fn hear(&mut self, candidate: Candidate, verdict: Option<IcvValid>) {
        let sequence = candidate.sequence();
        let outcome = match verdict.and_then(|proof| candidate.authenticate(proof)) {
            None => Err(DropReason::IcvFailed),
            // What is not recorded as received yet is not received: a crash now would forget it. Only an
            // authentic number calls for a higher record, so nobody else can spend the numbers of an SA.
            Some(_) if sequence > self.ceiling => {
                self.sa.lease.iter().for_each(|lease| lease.reach(sequence));
                Err(DropReason::ReplayFloor)
            }
            Some(number) => {
                // A group is a burst at most.
                self.places.push(self.outcomes.len() as u8);
                self.authentic.push(number);
                Ok(())
            }
        };
        self.outcomes.push(outcome);
    }

    /// Marks the numbers of what is authentic as received. Looks again: copies in one burst, or at two workers, all
    /// passed the check.
    fn commit(mut self) -> Outcomes {
        self.sa.replay.commit_group(&self.authentic, |number, refused| {
            self.outcomes[usize::from(self.places[number])] = Err(replay_reason(refused));
        });
        self.outcomes
    }
}

/// What a group adds to its SA's counters.
#[derive(Default)]
struct GroupCount {
    /// With a right ICV and a new number.
    verified: u64,
    verified_bytes: u64,
    packets: u64,
    bytes: u64,
    replayed: u64,
    icv_failed: u64,
    refused: u64,
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    /// Verifies and decrypts a group of one SA at once, then lets each packet prove itself.
    pub(super) fn open_group<'p>(
        &mut self,
        burst: &[Received<'_>],
        sa: &'g InboundSa,
        group: impl Iterator<Item = &'p Sealed>,
        reader: &mut Reader,
    ) {
        if sa.lifetime.is_over() {
            return self.refuse_group(DropReason::HardLifetime, burst, sa, group);
        }
        let mut count = GroupCount::default();
        // Filled and drained in place: these arrays are kilobytes, too much to move about.
        let mut taken = ArrayVec::<Taken<'_, F::Frame>, BURST>::new();
        let mut judgement = Judgement::of(sa);
        let tail = tail_length(sa);
        for sealed in group {
            match self.take_inside(sealed.opened().end + tail) {
                Ok((port, frame)) => taken.push(Taken { sealed, port, frame }),
                Err(reason) => {
                    count.refused += 1;
                    self.drop(reason, &sealed.evidence(burst, sa));
                }
            }
        }
        match &sa.keys {
            InboundKeys::Esp(opener) => open(burst, opener, &mut taken, &mut judgement),
            InboundKeys::Ah(verifier) => {
                self.verify(burst, sa, verifier, &mut taken, &mut judgement, &mut count);
            }
        }
        let outcomes = judgement.commit();
        // What most SAs are is decided here, not for every packet.
        match is_plain(sa) {
            true => self.send_group::<true>(burst, sa, &mut taken, &outcomes, &mut count, reader),
            false => self.send_group::<false>(burst, sa, &mut taken, &outcomes, &mut count, reader),
        }
        if let Some(lease) = &sa.lease {
            lease.reach(sa.replay.right_edge());
        }
        self.tally.opened += count.packets;
        count.write_down(sa);
    }

    /// Refuses all of a group.
    #[cold]
    pub(super) fn refuse_group<'p>(
        &mut self,
        reason: DropReason,
        burst: &[Received<'_>],
        sa: &InboundSa,
        group: impl Iterator<Item = &'p Sealed>,
    ) {
        for sealed in group {
            sa.counters.refused.fetch_add(1, Ordering::Relaxed);
            self.drop(reason, &sealed.evidence(burst, sa));
        }
    }

    /// Sends on what is authentic and new, once each packet has proven the rest. `PLAIN`: ESP in tunnel mode, not in UDP.
    #[inline(always)]
    fn send_group<const PLAIN: bool>(
        &mut self,
        burst: &[Received<'_>],
        sa: &'g InboundSa,
        taken: &mut ArrayVec<Taken<'_, F::Frame>, BURST>,
        outcomes: &[Result<(), DropReason>],
        count: &mut GroupCount,
        reader: &mut Reader,
    ) {
        let tail = tail_length(sa);
        let mut allowance = sa.allowance();
        let selectors = sa.selectors.load(self.guard);
        self.begin_to_admit(selectors, reader.round());
        for (Taken { sealed, port, mut frame }, outcome) in taken.drain(..).zip(outcomes) {
            if !PLAIN && let Some(joint) = &sealed.joint {
                let headers = &sealed.headers(burst)[..usize::from(joint.at)];
                frame[HEADER_LENGTH..][..headers.len()].copy_from_slice(headers);
            }
            // Last of what is proven of the packet itself, so that a forged or repeated one takes nothing from it.
            let allowed = outcome.and_then(|()| count.spend(&mut allowance, sa, sealed.length));
            let sent = allowed
                .and_then(|()| self.decapsulate::<PLAIN>(sa, sealed, port, &mut frame, selectors, reader));
            let written = || sealed.opened().end + tail;
            let (place, sent) = match sent {
                Ok(sent) => sent,
                Err(reason) => {
                    count.refuse(reason);
                    let inner = &frame[HEADER_LENGTH..sealed.opened().end];
                    self.drop(reason, &sealed.evidence(burst, sa).opened(inner));
                    self.give_back_wiped(port, frame, written());
                    continue;
                }
            };
            count.packets += 1;
            count.bytes += u64::from(sealed.length);
            if !PLAIN
                && sa.spec.sa.udp.is_some()
                && let Some(tunnel) = self.tunnel_of(place)
            {
                self.follow(sa, sealed.candidate.sequence(), sealed.headers(burst), tunnel);
            }
            match sent {
                Sent::InPlace { version, length } => match self.own.admitted.at(place) {
                    Some(Admitted { way: Way::Out { port, link }, .. }) => {
                        self.results.emit(*port, link, version, frame, length as usize);
                    }
                    _ => unreachable!("`decapsulate` saw that it goes out"),
                },
                Sent::Delivered { length } => {
                    let length = length as usize;
                    // Whoever delivers wipes the packet, and does not know of the padding behind it.
                    frame[(HEADER_LENGTH + length).min(written())..written()].zeroize();
                    self.deliver(port, frame, length);
                }
                Sent::Again { length, outer } => {
                    let length = length as usize;
                    frame[(HEADER_LENGTH + length).min(written())..written()].zeroize();
                    self.results.opened.push((Nested { port, frame, length }, outer));
                }
                Sent::Copied => self.give_back_wiped(port, frame, written()),
            }
        }
    }

    /// ESP in UDP: the peer is where its latest packet came from, which a replayed one never is, where there is a
    /// window. `headers`: those of a packet that was authenticated, UDP at their end.
    fn follow(&self, sa: &InboundSa, sequence: u64, headers: &[u8], tunnel: &Tunnel) {
        if sa.spec.replay_window != 0
            && sa.replay.right_edge() == sequence
            && let Some(outbound) = tunnel.outbound.load(self.guard)
            && let Some(in_udp) = &outbound.in_udp
            && let Some((address, port)) = natt::origin(headers)
        {
            in_udp.peer.follow(address, port);
        }
    }

    /// Verifies a group under AH. What its ICVs cover of the headers is put together beside the frames, and what they
    /// cover of the payload is the copy that goes on. What cannot be covered is dropped here and leaves the group.
    fn verify(
        &mut self,
        burst: &[Received<'_>],
        sa: &InboundSa,
        verifier: &Verifier,
        taken: &mut ArrayVec<Taken<'_, F::Frame>, BURST>,
        judgement: &mut Judgement<'_>,
        count: &mut GroupCount,
    ) {
        let mut room = &mut self.own.covered[..];
        let mut verifies = ArrayVec::<Verify<'_>, BURST>::new();
        let mut uncovered = ArrayVec::<usize, BURST>::new();
        for (position, Taken { sealed, frame, .. }) in taken.iter_mut().enumerate() {
            let (headers, carried) = (sealed.headers(burst), sealed.bytes(burst));
            let (ah, payload) = carried.split_at(carried.len() - usize::from(sealed.opened_length));
            // The packet was parsed: its version is right.
            let version = if headers[0] >> 4 == 4 { IpVersion::V4 } else { IpVersion::V6 };
            if headers.len() > COVERED_HEADERS
                || !ah::cover(&mut room[..headers.len()], headers, version, Role::Receiver)
            {
                uncovered.push(position);
                continue;
            }
            let (covered, rest) = std::mem::take(&mut room).split_at_mut(headers.len() + ah.len());
            room = rest;
            let opened = sealed.opened();
            let copy = &mut frame[opened.start..opened.end + verifier.tail_length()];
            copy[..payload.len()].copy_from_slice(payload);
            let sequence = sealed.candidate.sequence();
            verifies.push(Verify { covered, ah, payload: copy, sequence, verdict: None });
        }
        verifier.verify(&mut verifies);
        let verdicts: ArrayVec<_, BURST> = verifies.drain(..).map(|verify| verify.verdict).collect();
        drop(verifies);
        // From the back, so that the places in front of it stay.
        for position in uncovered.into_iter().rev() {
            let Taken { sealed, port, frame } = taken.remove(position);
            self.frames.give_back(port, frame);
            count.refuse(DropReason::AhHeaders);
            self.drop(DropReason::AhHeaders, &sealed.evidence(burst, sa));
        }
        for (Taken { sealed, .. }, verdict) in taken.iter().zip(verdicts) {
            judgement.hear(sealed.candidate, verdict);
        }
    }

    /// A transmit frame of at least `length` bytes for plaintext whose egress is not known yet: of the port that
    /// the last one left by, if that has one.
    #[inline]
    fn take_inside(&mut self, length: usize) -> Result<(PortId, F::Frame), DropReason> {
        if let Some(id) = self.own.inside
            && let Some(port) = self.network.ports.get(usize::from(id.0))
            && port.side == Side::Protected
            && let Ok(frame) = self.take_frame(id, length)
        {
            return Ok((id, frame));
        }
        self.take_anywhere_inside(length)
    }

    /// Or of any protected port that has one. While none is up, the plaintext can only be for the gateway itself, and
    /// any frame will do.
    #[cold]
    fn take_anywhere_inside(&mut self, length: usize) -> Result<(PortId, F::Frame), DropReason> {
        let mut reason = DropReason::NoProtectedRoute;
        let ports = (0..self.network.ports.len()).map(|index| PortId(index as u16));
        for id in ports.clone() {
            if self.network.ports[usize::from(id.0)].side == Side::Protected {
                match self.take_frame(id, length) {
                    Ok(frame) => return Ok((id, frame)),
                    Err(refused) => reason = refused,
                }
            }
        }
        let mut inside = self.network.ports.iter().filter(|port| port.side == Side::Protected);
        if self.frames.host().is_some() && !inside.any(|port| port.up) {
            for id in ports {
                if let Ok(frame) = self.take_frame(id, length) {
                    return Ok((id, frame));
                }
            }
        }
        Err(reason)
    }

    /// Decrypted bytes do not lie about in free frames.
    pub(super) fn give_back_wiped(&mut self, port: PortId, mut frame: F::Frame, written: usize) {
        frame[HEADER_LENGTH..written].zeroize();
        self.frames.give_back(port, frame);
    }
}

impl GroupCount {
    /// Takes a packet's part of what is left of its SA's life, which ends where it does not fit.
    fn spend(&mut self, allowance: &mut Allowance, sa: &InboundSa, length: u16) -> Result<(), DropReason> {
        if !allowance.take(length.into()) {
            sa.lifetime.end();
            return Err(DropReason::HardLifetime);
        }
        self.verified += 1;
        self.verified_bytes += u64::from(length);
        Ok(())
    }

    fn refuse(&mut self, reason: DropReason) {
        match reason {
            DropReason::ReplayDuplicate | DropReason::ReplayOld | DropReason::ReplayImpossible => {
                self.replayed += 1;
            }
            DropReason::IcvFailed => self.icv_failed += 1,
            _ => self.refused += 1,
        }
    }

    fn write_down(&self, sa: &InboundSa) {
        if self.verified > 0 {
            sa.verified(self.verified, self.verified_bytes);
        }
        for (counter, count) in [
            (&sa.counters.packets, self.packets),
            (&sa.counters.bytes, self.bytes),
            (&sa.counters.replayed, self.replayed),
            (&sa.counters.icv_failed, self.icv_failed),
            (&sa.counters.refused, self.refused),
        ] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

/// Verifies and decrypts a group under ESP.
fn open<F: std::ops::DerefMut<Target = [u8]>>(
    burst: &[Received<'_>],
    opener: &Opener,
    taken: &mut ArrayVec<Taken<'_, F>, BURST>,
    judgement: &mut Judgement<'_>,
) {
    let mut opens = ArrayVec::<Open<'_>, BURST>::new();
    let mut candidates = ArrayVec::<Candidate, BURST>::new();
    for Taken { sealed, frame, .. } in taken.iter_mut() {
        candidates.push(sealed.candidate);
        opens.push(Open {
            esp: sealed.bytes(burst),
            plaintext: &mut frame[sealed.opened()],
            sequence: sealed.candidate.sequence(),
            verdict: None,
        });
    }
    opener.open(&mut opens);
    for (open, candidate) in opens.drain(..).zip(candidates) {
        judgement.hear(candidate, open.verdict);
    }
}

/// Bytes of a frame that are written behind what a packet is opened into.
fn tail_length(sa: &InboundSa) -> usize {
    match &sa.keys {
        InboundKeys::Esp(_) => 0,
        InboundKeys::Ah(verifier) => verifier.tail_length(),
    }
}
