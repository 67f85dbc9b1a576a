//! Keepalives: a NAT forgets who sends nothing for long (RFC 3948 section 4).

use std::sync::atomic::Ordering;

use super::scratch::Notes;
use super::{Frames, Pass, Pipeline, Results, Tables};
use crate::policy::Tunnel;
use crate::sa::publish::Guard;
use crate::transform::natt;
use crate::wire::ethernet::HEADER_LENGTH;

impl Pipeline {
    /// Sends a keepalive to each peer of ESP in UDP that was sent nothing for as long as its SA says, counted as
    /// originated. To be called every second or so, by every worker: what is due is sent once, by one that can. `now`
    /// and what is made of it are as in [`Pipeline::process`].
    pub fn send_keepalives<F: Frames>(
        &mut self,
        tables: &Tables,
        guard: &Guard<'_>,
        now: u64,
        frames: &mut F,
        results: &mut Results<F::Frame>,
    ) {
        let mut notes = Notes::default();
        let Some(mut pass) = self.own.pass(tables, guard, now, frames, results, &mut notes) else { return };
        for tunnel in pass.spd.in_udp() {
            pass.send_keepalive(tunnel);
        }
        notes.tally.write_down(&self.own.counters);
    }
}

impl<'g, F: Frames> Pass<'_, 'g, F> {
    fn send_keepalive(&mut self, tunnel: &'g Tunnel) {
        let Some(sa) = tunnel.outbound.load(self.guard) else { return };
        let Some(keepalive) = sa.in_udp.as_ref().map(|in_udp| &in_udp.keepalive) else { return };
        let sent = sa.counters.packets.load(Ordering::Relaxed);
        let Some(silence) = keepalive.silence(sent, self.now) else { return };
        let outer = sa.outer_now();
        let Ok(egress) = self.outer_egress(&outer) else { return };
        if sa.lifetime.is_over() || self.frames.instead(egress.id).is_some() {
            return;
        }
        let Ok(mut frame) = self.take_frame(egress.id, HEADER_LENGTH + outer.length() + 1) else { return };
        if !keepalive.claim(silence, self.now) {
            return self.frames.give_back(egress.id, frame);
        }
        let length = natt::write_keepalive(&mut frame[HEADER_LENGTH..], &outer);
        self.tally.originated += 1;
        self.emit(&egress, outer.version(), frame, length);
    }
}
