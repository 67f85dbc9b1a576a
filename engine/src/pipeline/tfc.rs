//! Traffic-flow confidentiality on the way out: groups whose packets are padded (RFC 4303 section 2.7), and dummy
//! packets (section 2.6), which a worker makes between two bursts.

use arrayvec::ArrayVec;

use super::audit::Evidence;
use super::nesting::WayOut;
use super::outbound::{Group, Lengths, Payload, Ready};
use super::scratch::Notes;
use super::{BURST, Frames, Pass, Pipeline, Received, Results, Tables};
use crate::policy::Tunnel;
use crate::policy::tfc::DummyStream;
use crate::sa::publish::Guard;
use crate::wire::ethernet::HEADER_LENGTH;
use crate::wire::ip::IpPacket;
use crate::wire::protocol;

/// Between two looks whether any tunnel wants dummies by now, in milliseconds.
const LOOK_EVERY: u64 = 1000;

impl Pipeline {
    /// Sends the dummy packets that are due, counted as originated, of SAs that this worker numbers. Returns when to
    /// call again, in milliseconds of the same clock as `now`.
    pub fn send_dummies<F: Frames>(
        &mut self,
        tables: &Tables,
        guard: &Guard<'_>,
        now: u64,
        frames: &mut F,
        results: &mut Results<F::Frame>,
    ) -> u64 {
        let mut again = now + LOOK_EVERY;
        let mut notes = Notes::default();
        let Some(mut pass) = self.own.pass(tables, guard, now, frames, results, &mut notes) else {
            return again;
        };
        for tunnel in &pass.spd.with_dummies {
            if let Some(stream) = &tunnel.tfc.dummies
                && let Some(shared) = pass.own_group(tunnel)
            {
                pass.send_dummies_of(&shared, stream);
                if let Some(through) = &tunnel.through {
                    pass.seal_onwards(through);
                }
                again = again.min(stream.due_at().max(now + 1));
            }
        }
        notes.tally.write_down(&self.own.counters);
        again
    }
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    fn send_dummies_of(&mut self, shared: &Group<'g>, stream: &DummyStream) {
        let count = stream.take(self.now, shared.sa.last_sequence());
        if count == 0 {
            return;
        }
        // What an outer header copies from a packet is zero in this one.
        let nothing = IpPacket::EMPTY;
        let mut ready = ArrayVec::<_, BURST>::new();
        let most = shared.most();
        for _ in 0..count {
            let start = ready.len() * most;
            if start + most > self.own.fragments.len() {
                break;
            }
            let Ok(frame) = self.take_frame(shared.egress.id, HEADER_LENGTH) else { break };
            let length = self.size_by_chance(stream).min(shared.fitting(frame.len()));
            self.own.ivs.fill(&mut self.own.fragments[start..start + length]);
            self.tally.originated += 1;
            ready.push(Ready {
                payload: Payload::Room { start },
                packet: &nothing,
                next_header: protocol::NO_NEXT_HEADER,
                length,
                sealed: Lengths::new(shared.sa, None, length),
                split: None,
                frame,
            });
            self.pad(shared, ready.last_mut());
        }
        self.seal_ready(&[], shared, &mut ready);
        stream.sent(shared.sa.last_sequence());
    }

    /// Anything from the range with the same chance, or as good as.
    fn size_by_chance(&mut self, stream: &DummyStream) -> usize {
        let (first, last) = (*stream.dummies.sizes.start(), *stream.dummies.sizes.end());
        let mut random = [0; 4];
        self.own.ivs.fill(&mut random);
        let span = u32::from(last.saturating_sub(first)) + 1;
        usize::from(first) + (u32::from_ne_bytes(random) % span) as usize
    }

    /// Seals a group whose packets are padded, from copies: what lies behind a packet in its frame is not padding.
    #[inline(never)]
    pub(super) fn seal_padded(
        &mut self,
        burst: &mut [Received<'_>],
        packets: &[IpPacket],
        shared: &Group<'g>,
        group: impl Iterator<Item = usize>,
    ) {
        let mut ready = ArrayVec::<Ready<'_, F::Frame>, BURST>::new();
        let mut start = 0;
        for index in group {
            if ready.is_full() || start + shared.most() > self.own.fragments.len() {
                self.seal_ready(burst, shared, &mut ready);
                start = 0;
            }
            if let Err(reason) = self.prepare(burst, index, &packets[index], shared, &mut ready) {
                self.drop(reason, &Evidence::received(&burst[index]).outbound(&shared.sa.spec.sa));
            }
            // Fragments are padded where they are made, and sealed by now, with all that was ready before them.
            if ready.is_empty() {
                start = 0;
            }
            if let Some(Ready { payload, length, .. }) = ready.last_mut()
                && let Payload::Received { index } = *payload
            {
                let packet = &burst[index].frame[HEADER_LENGTH..][..*length];
                self.own.fragments[start..start + *length].copy_from_slice(packet);
                *payload = Payload::Room { start };
                start += self.pad(shared, ready.last_mut());
            }
        }
        self.seal_ready(burst, shared, &mut ready);
    }

    /// Pads what lies in the worker's room, as far as its frame can take it; its length by then.
    pub(super) fn pad(&mut self, shared: &Group<'g>, ready: Option<&mut Ready<'_, F::Frame>>) -> usize {
        let Some(Ready { payload: Payload::Room { start }, length, sealed, frame, .. }) = ready else {
            return 0;
        };
        let padded = shared.padding.padded(*length, shared.fitting(frame.len()));
        if padded > *length {
            self.own.fragments[*start + *length..*start + padded].fill(0);
            (*length, *sealed) = (padded, Lengths::new(shared.sa, None, padded));
        }
        padded
    }

    /// What the packets of `tunnel` share, if it can send now and this worker is the one to number them.
    pub(super) fn own_group(&mut self, tunnel: &'g Tunnel) -> Option<Group<'g>> {
        let sa = tunnel.outbound.load(self.guard)?;
        if sa.lifetime.is_over() || self.owner_of(tunnel, sa) != self.own.worker {
            return None;
        }
        let outer = sa.outer_now();
        let WayOut { egress, mtu } = self.way_out(tunnel, &outer).ok()?;
        if let Some(other) = self.frames.instead(egress.id) {
            self.pass_on(tunnel, other);
            return None;
        }
        Some(Group::new(tunnel, sa, outer, egress, mtu))
    }
}

impl Group<'_> {
    /// The largest packet that the tunnel carries.
    fn most(&self) -> usize {
        self.tunnel_mtu as usize
    }

    /// The same, in a frame of so many bytes.
    fn fitting(&self, frame_length: usize) -> usize {
        let room = frame_length.saturating_sub(HEADER_LENGTH);
        self.most().min(self.outer.inside_mtu(room as u32, &self.sa.layout) as usize)
    }
}
