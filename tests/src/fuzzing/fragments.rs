//! Reassembly, and the packets that ICMP errors quote.

use std::sync::Arc;

use adit_engine::pipeline::reassembly::{Arrival, Limits, Lost, Reassembler};
use adit_engine::route::PortId;
use adit_engine::wire::checksum::Sum;
use adit_engine::wire::ip::{self, Fragment};
use adit_engine::wire::quote;

use super::{Input, residue};
use crate::packet::{fix_ipv4, frame};

/// Most fragments of one input.
const FRAGMENTS: usize = 512;

/// Input: limits, then fragments and other packets until it ends.
pub fn fragments(input: &[u8]) {
    let mut input = Input(input);
    let choice = input.byte();
    let limits = Limits {
        memory: [3_000, 20_000, 1 << 20, 1 << 22][usize::from(choice & 3)],
        per_source: [1, 2, 8, 64][usize::from(choice >> 2 & 3)],
        fragments: [2, 3, 16, 128][usize::from(choice >> 4 & 3)],
        timeout: [1, 100, 5_000, 60_000][usize::from(choice >> 6)],
    };
    let mut bench = Bench { reassembler: Reassembler::new(limits), limits, now: 0, taken: 0, ended: 0 };
    for _ in 0..FRAGMENTS {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0 => {
                bench.now += u64::from(input.word());
                bench.expire(bench.now);
            }
            1 => {
                let length = usize::from(input.word() & 0x0fff);
                bench.take(0, &frame(input.take(length)), |_| ());
            }
            2 => {
                let length = usize::from(input.word() & 0x0fff);
                let (v6, kind, code) = (input.byte() & 1 != 0, input.byte(), input.byte());
                quoted(v6, kind, code, input.take(length));
            }
            kind => made(&mut bench, &mut input, kind & 1 != 0),
        }
    }
    bench.expire(u64::MAX);
    assert_eq!((bench.reassembler.held(), bench.reassembler.memory()), (0, 0));
}

struct Bench {
    reassembler: Reassembler,
    limits: Limits,
    now: u64,
    taken: usize,
    /// Lost, or part of a whole datagram.
    ended: usize,
}

impl Bench {
    /// `way`: out of which tunnel it comes, 0 for none.
    fn take(&mut self, way: u8, frame: &[u8], judge: impl Fn(&[u8])) {
        let Ok(packet) = ip::parse(&frame[14..]) else { return };
        self.taken += 1;
        let (mut out, mut lost) = (vec![0xee; 5], 0);
        let mut count = |gone: Lost<'_>| lost += gone.fragments;
        let outer = (way != 0).then(|| Arc::from(format!("outer {way}")));
        let arrival = Arrival { port: PortId(1), outer };
        let whole = self.reassembler.take(self.now, arrival, frame, &packet, &mut out, &mut count);
        self.ended += lost + whole.map_or(0, |whole| whole.fragments);
        self.balance();
        if let Some(whole) = whole {
            assert!((1..=self.limits.fragments).contains(&whole.fragments));
            let packet = ip::parse(&out[14..]).expect("a whole packet, its checksum right");
            assert_eq!((packet.fragment, packet.total_length as usize), (Fragment::Whole, out.len() - 14));
            judge(&out);
        }
    }

    fn expire(&mut self, now: u64) {
        let mut lost = 0;
        self.reassembler.expire(now, &mut |gone: Lost<'_>| lost += gone.fragments);
        self.ended += lost;
        self.balance();
    }

    fn balance(&self) {
        assert_eq!(self.taken, self.ended + self.reassembler.held(), "each fragment ends once");
        assert!(self.reassembler.memory() <= self.limits.memory);
    }
}

/// What the datagram that comes by `way` has at `at`, in its first or its second edition.
fn byte(way: u8, identification: u8, at: usize, edition: bool) -> u8 {
    let edition = if edition { 0x80 } else { 0 };
    (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ identification ^ way << 5 ^ edition
}

/// A fragment whose bytes show where they belong.
fn made(bench: &mut Bench, input: &mut Input<'_>, v6: bool) {
    let [flags, source, identification] = [input.byte(), input.byte() & 3, input.byte() & 3];
    let offset = input.word() & 0x1fff;
    let length = usize::from(input.word() & 0x07ff);
    let length = if flags & 2 != 0 { length } else { length & !7 };
    let (more, edition, way) = (flags & 1 != 0, flags & 4 != 0, flags >> 6);
    let at = usize::from(offset) * 8;
    let payload: Vec<u8> = (at..at + length).map(|at| byte(way, identification, at, edition)).collect();
    let mut packet = vec![];
    if v6 {
        packet.extend([0x60, flags & 0x30, 0, 0]);
        packet.extend(((8 + length) as u16).to_be_bytes());
        packet.extend([44, 64]);
        packet.extend([&[0x20; 15][..], &[source], &[0x21; 16], &[50, 0]].concat());
        packet.extend((offset << 3 | u16::from(more)).to_be_bytes());
        packet.extend([0, 0, 0, identification]);
    } else {
        packet.extend([0x45, flags >> 4 & 3]);
        packet.extend(((20 + length) as u16).to_be_bytes());
        packet.extend([0, identification]);
        packet.extend((offset | u16::from(more) << 13).to_be_bytes());
        packet.extend([64, 50, 0, 0, 10, 0, 0, source, 192, 0, 2, 1]);
        fix_ipv4(&mut packet);
    }
    packet.extend(payload);
    bench.take(way, &frame(&packet), |whole| {
        let payload = &whole[14 + if v6 { 40 } else { 20 }..];
        let is_right = |(at, &found): (usize, &u8)| {
            [false, true].iter().any(|&edition| found == byte(way, identification, at, edition))
        };
        assert!(payload.iter().enumerate().all(is_right), "a byte that belongs elsewhere");
    });
}

/// An error with a right checksum around any bytes.
fn quoted(v6: bool, kind: u8, code: u8, quote: &[u8]) {
    let mut message = [&[kind, code, 0, 0, 0, 0, 5, 0x78][..], quote].concat();
    let length = message.len();
    let mut packet = if v6 {
        let addresses = [&[0x20; 16][..], &[0x21; 16]].concat();
        let sum = Sum::default().pseudo_header(&addresses, length as u32, 58).bytes(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let [l0, l1] = (length as u16).to_be_bytes();
        [&[0x60, 0, 0, 0, l0, l1, 58, 64][..], &addresses].concat()
    } else {
        let sum = Sum::default().bytes(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(residue(&message), 0);
        let [l0, l1] = ((20 + length) as u16).to_be_bytes();
        let mut header = vec![0x45, 0, l0, l1, 0, 0, 0, 0, 64, 1, 0, 0, 203, 0, 113, 1, 192, 0, 2, 1];
        fix_ipv4(&mut header);
        header
    };
    packet.extend(&message);
    let parsed = ip::parse(&packet).expect("a packet");
    let Some((_, found)) = quote::read(&packet, &parsed) else { return };
    assert!(quote::is_error(&parsed));
    assert!(quote.ends_with(found.payload), "from inside the quote, to its end");
    let source = match found.flow.source {
        std::net::IpAddr::V4(address) => quote[12..16] == address.octets(),
        std::net::IpAddr::V6(address) => quote[8..24] == address.octets(),
    };
    assert!(source && found.flow.source.is_ipv6() == v6);
}
