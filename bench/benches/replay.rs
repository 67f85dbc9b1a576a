//! Check and commit of the anti-replay window, and taking sequence numbers: ns per packet on one core.

use std::hint::black_box;

use adit_engine::crypto::sequence::SequenceCounter;
use adit_engine::sa::replay::ReplayWindow;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BURST: u64 = 64;

/// `check` as every packet meets it; what commits is a verified packet, so commit is measured with the crypto.
fn check(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay_check");
    group.throughput(Throughput::Elements(BURST));
    for (name, size, esn) in
        [("window_64", 64, false), ("window_1024_esn", 1024, true), ("window_65536_esn", 65536, true)]
    {
        let window = ReplayWindow::new(size, esn, 1 << 20);
        group.bench_function(name, |bencher| {
            let mut first = 1_u32 << 20;
            bencher.iter(|| {
                for sequence in first + 1..=first + BURST as u32 {
                    let _ = black_box(window.check(black_box(sequence)));
                }
                first = (first + BURST as u32) % (1 << 30);
            });
        });
    }
    group.finish();
}

fn take(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sequence_take");
    group.throughput(Throughput::Elements(BURST));
    let counter = SequenceCounter::starting_after(0);
    group.bench_function("burst_of_64", |bencher| {
        bencher.iter(|| {
            for number in counter.take(BURST, u64::MAX).into_iter().flatten() {
                black_box(number.get());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, check, take);
criterion_main!(benches);
