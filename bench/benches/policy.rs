//! What a decision costs: a policy for each remote site, flows to random sites.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use adit_engine::policy::{Action, Fallback, Policy, PolicyCache, Spd};
use adit_engine::sa::selector::{AddressRange, Direction, Selector, UpperSelector};
use adit_engine::wire::ip::{Flow, Fragment, Upper};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Flows of one round: more than fit the first-level cache with their answers.
const FLOWS: u32 = 4096;

fn v4(bits: u32) -> IpAddr {
    Ipv4Addr::from_bits(bits).into()
}

/// Site n is the n-th /24 of 10.0.0.0/8 and what follows.
fn site(n: u32) -> u32 {
    0x0a00_0000 + n * 256
}

fn policies(count: u32) -> Vec<Arc<Policy>> {
    let office = AddressRange { first: v4(0xc0a8_0000), last: v4(0xc0a8_ffff) };
    (0..count)
        .map(|n| {
            let remote = AddressRange { first: v4(site(n)), last: v4(site(n) + 255) };
            let selector = Selector { local: office, remote, protocol: None, upper: UpperSelector::Any };
            Arc::new(Policy {
                name: format!("site-{n}").into(),
                outbound: true,
                inbound: true,
                selectors: vec![selector],
                action: Action::Bypass,
                packets: AtomicU64::new(0),
            })
        })
        .collect()
}

fn flows(sites: u32) -> Vec<Flow> {
    (0..FLOWS)
        .map(|n| {
            let random = n.wrapping_mul(2_654_435_761);
            Flow {
                source: v4(0xc0a8_0000 + (random & 0xffff)),
                destination: v4(site((random >> 8) % sites) + (random & 0xff)),
                protocol: 17,
                upper: Upper::Ports { source: n as u16, destination: 443 },
            }
        })
        .collect()
}

fn classify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    group.throughput(Throughput::Elements(FLOWS.into()));
    for count in [1, 10, 1000, 10_000] {
        let spd = Spd::new(policies(count), Fallback::Kernel, 1);
        let flows = flows(count);
        let round = |classify: &mut dyn FnMut(&Flow) -> Option<usize>| {
            for flow in &flows {
                assert!(black_box(classify(flow)).is_some());
            }
        };
        group.bench_function(BenchmarkId::new("compiled", count), |bencher| {
            bencher.iter(|| round(&mut |flow| spd.classify(Direction::Outbound, flow, Fragment::Whole)));
        });
        group.bench_function(BenchmarkId::new("cached", count), |bencher| {
            let mut cache =
                PolicyCache::new(4 * FLOWS as usize, [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03]);
            bencher
                .iter(|| round(&mut |flow| cache.classify(&spd, Direction::Outbound, flow, Fragment::Whole)));
        });
        if count <= 1000 {
            group.bench_function(BenchmarkId::new("linear", count), |bencher| {
                bencher.iter(|| {
                    round(&mut |flow| spd.classify_linear(Direction::Outbound, flow, Fragment::Whole))
                });
            });
        }
    }
    group.finish();
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy-compile");
    group.sample_size(10);
    for count in [1000, 10_000] {
        let policies = policies(count);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| Spd::new(black_box(policies.clone()), Fallback::Kernel, 1));
        });
    }
    group.finish();
}

criterion_group!(benches, classify, compile);
criterion_main!(benches);
