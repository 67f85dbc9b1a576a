//! The steps that every packet takes around its cryptography.

use std::hint::black_box;

use adit_engine::transform::ecn::Ecn;
use adit_engine::transform::esp::{self, Layout};
use adit_engine::transform::fragment::{fragment_ipv4, write_fragment};
use adit_engine::transform::mss;
use adit_engine::transform::tunnel::{DontFragment, Dscp, OuterHeader, TrafficClass};
use adit_engine::wire::header::{Ipv4Header, Ipv6Header};
use adit_engine::wire::icmp::{self, IcmpError};
use adit_engine::wire::{checksum, esp as esp_header, ethernet, ip, protocol};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// An IPv4 packet of 1400 bytes around these first bytes of its next layer.
fn ipv4(protocol: u8, start: &[u8]) -> Vec<u8> {
    let header = Ipv4Header {
        traffic_class: 0,
        total_length: 1400,
        identification: 1,
        dont_fragment: false,
        ttl: 64,
        protocol,
        source: [10, 1, 0, 2].into(),
        destination: [10, 2, 0, 9].into(),
    };
    let mut packet = [&header.to_bytes()[..], start].concat();
    packet.resize(1400, 0x5a);
    packet
}

/// The same for IPv6.
fn ipv6(next_header: u8, start: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        traffic_class: 0,
        payload_length: 1360,
        next_header,
        hop_limit: 64,
        source: [0x2001, 0xdb8, 1, 0, 0, 0, 0, 2].into(),
        destination: [0x2001, 0xdb8, 2, 0, 0, 0, 0, 9].into(),
    };
    let mut packet = [&header.to_bytes()[..], start].concat();
    packet.resize(1400, 0x5a);
    packet
}

/// A TCP header with an MSS option and these flags.
fn tcp(flags: u8) -> [u8; 24] {
    let mut header = [0; 24];
    header[..4].copy_from_slice(&[0x13, 0x88, 0x14, 0x51]);
    header[12] = 6 << 4;
    header[13] = flags;
    header[20..].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    header
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let v4 = ipv4(protocol::TCP, &tcp(0x10));
    let v6 = ipv6(protocol::TCP, &tcp(0x10));
    // Destination options in front of TCP.
    let chain = ipv6(protocol::DESTINATION_OPTIONS, &[&[6, 0, 1, 4, 0, 0, 0, 0], &tcp(0x10)[..]].concat());
    for (name, packet) in [("ipv4", &v4), ("ipv6", &v6), ("ipv6 options", &chain)] {
        group.bench_function(name, |b| b.iter(|| ip::parse(black_box(packet))));
    }
    let frame = [&[2; 12][..], &[8, 0], &v4].concat();
    group.bench_function("ethernet + ipv4", |b| {
        b.iter(|| {
            let frame = black_box(&frame[..]);
            (ethernet::parse(frame), ip::parse(&frame[ethernet::HEADER_LENGTH..]))
        });
    });
    group.bench_function("esp", |b| b.iter(|| esp_header::parse(black_box(&frame[..8]))));
    let parsed = ip::parse(&v4).unwrap();
    group.bench_function("partial checksum", |b| {
        b.iter(|| ip::has_partial_checksum(black_box(&v4), black_box(&parsed)));
    });
    group.finish();
}

fn sums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    let bytes = vec![0x5a; 1400];
    for length in [20, 64, 1400] {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(length.to_string(), |b| {
            b.iter(|| checksum::internet(black_box(&bytes[..length])))
        });
    }
    group.finish();
    let mut packet = ipv4(protocol::UDP, &[]);
    c.bench_function("set traffic class", |b| {
        let mut class = 0u8;
        b.iter(|| {
            class = class.wrapping_add(1);
            ip::set_traffic_class(black_box(&mut packet), ip::IpVersion::V4, class);
        });
    });
}

fn tunnel(c: &mut Criterion) {
    let mut group = c.benchmark_group("outer header");
    let packet = ipv4(protocol::TCP, &tcp(0x10));
    let inner = ip::parse(&packet).unwrap();
    let layout = Layout { iv_length: 8, alignment: 4, icv_length: 16 };
    let mut out = [0; 40];
    for (name, source, destination) in
        [("ipv4", "192.0.2.1", "198.51.100.9"), ("ipv6", "2001:db8::1", "2001:db8::9")]
    {
        let header = OuterHeader {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: protocol::ESP,
            udp_ports: None,
            ttl: 64,
            traffic_class: TrafficClass::new(Dscp::Copy, Ecn::Copy),
            dont_fragment: DontFragment::Copy,
        };
        group.bench_function(name, |b| {
            b.iter(|| {
                let esp_length = black_box(&layout).esp_length(black_box(1400));
                header.write(black_box(&mut out), black_box(&inner), esp_length, 7);
            });
        });
    }
    group.finish();
}

fn trailer(c: &mut Criterion) {
    let mut group = c.benchmark_group("trailer");
    for pad in [2u8, 14, 255] {
        let plaintext = [&[0x5a; 1000][..], &(1..=pad).collect::<Vec<_>>(), &[pad, 4]].concat();
        group.bench_function(pad.to_string(), |b| b.iter(|| esp::trailer(black_box(&plaintext))));
    }
    group.finish();
}

fn clamp(c: &mut Criterion) {
    let mut group = c.benchmark_group("mss");
    for (name, flags) in [("not a syn", 0x10), ("syn", 0x02)] {
        let mut packet = ipv4(protocol::TCP, &tcp(flags));
        let parsed = ip::parse(&packet).unwrap();
        let mut mtu = 1440;
        // Lower every time, so that each SYN is changed; down at the bottom it starts over.
        group.bench_function(name, |b| {
            b.iter(|| {
                mtu = if mtu < 100 { 1440 } else { mtu - 1 };
                mss::clamp(black_box(&mut packet), black_box(&parsed), mtu)
            });
        });
    }
    group.finish();
}

fn rare(c: &mut Criterion) {
    let packet = ipv4(protocol::UDP, &[0x13, 0x88, 0x14, 0x51]);
    let parsed = ip::parse(&packet).unwrap();
    let mut out = [0; 2048];
    c.bench_function("fragment 1400 to 1000", |b| {
        b.iter(|| {
            fragment_ipv4(black_box(&packet), &parsed, 1000)
                .unwrap()
                .filter_map(|piece| write_fragment(&mut out, &packet, &piece))
                .sum::<usize>()
        });
    });
    let gateway = "10.1.0.1".parse().unwrap();
    c.bench_function("icmp too big", |b| {
        b.iter(|| {
            icmp::write_error(&mut out, IcmpError::PacketTooBig { mtu: 1000 }, black_box(&packet), gateway)
        });
    });
}

criterion_group!(benches, parse, sums, tunnel, trailer, clamp, rare);
criterion_main!(benches);
