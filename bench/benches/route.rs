//! What a next hop costs: longest-prefix match to random destinations.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use adit_engine::route::{NetworkBuilder, NextHop, Port, PortId, RouteTarget, Side};
use adit_engine::wire::ethernet::MacAddress;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const LOOKUPS: u32 = 4096;

fn next_hop(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    group.throughput(Throughput::Elements(LOOKUPS.into()));
    for count in [10u32, 10_000, 1_000_000] {
        let mut builder = NetworkBuilder::new();
        let port = builder.port(Port::absent("outside".into(), Side::Unprotected));
        let gateway = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(0xc000_0200 + n % 16));
        builder.route(Ipv4Addr::UNSPECIFIED.into(), 0, 0, RouteTarget::Gateway(port, gateway(0)));
        for n in 0..count {
            let network = Ipv4Addr::from_bits(0x0100_0000 + n * 512);
            builder.route(network.into(), 24, 0, RouteTarget::Gateway(port, gateway(n)));
        }
        for n in 0..16 {
            builder.neighbour(port, gateway(n), MacAddress([2, 0, 0, 0, 0, n as u8]));
        }
        let network = builder.build(1);
        let destinations: Vec<IpAddr> = (0..LOOKUPS)
            .map(|n| {
                let random = n.wrapping_mul(2_654_435_761);
                Ipv4Addr::from_bits(0x0100_0000 + random % (count * 512)).into()
            })
            .collect();
        group.bench_function(BenchmarkId::new("next-hop", count), |bencher| {
            bencher.iter(|| {
                for &destination in &destinations {
                    assert_ne!(black_box(network.next_hop(destination)), NextHop::Unreachable);
                }
            });
        });
        group.bench_function(BenchmarkId::new("next-hop-and-neighbour", count), |bencher| {
            bencher.iter(|| {
                for &destination in &destinations {
                    let NextHop::Port { port: PortId(port), neighbour } = network.next_hop(destination)
                    else {
                        panic!("every destination has a gateway");
                    };
                    assert!(black_box(network.neighbour(PortId(port), neighbour)).is_some());
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, next_hop);
criterion_main!(benches);
