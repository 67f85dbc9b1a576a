//! The SAD from one entry to a million: lookups per packet, pinned per burst, and changes per second.

use std::hint::black_box;
use std::sync::Arc;

use adit_engine::sa::publish::{Published, Reader, reclaim};
use adit_engine::sa::sad::SpiTable;
use adit_engine::wire::Spi;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const BURST: usize = 64;

/// As large as an SA without its window, so that entries lie as far apart as real ones.
#[derive(Clone)]
struct Entry([u64; 128]);

/// Distinct SPIs without order (an odd multiplier permutes 32 bits).
fn spi(index: u32) -> Spi {
    Spi(index.wrapping_mul(0x9e37_79b1) | 0x100)
}

fn table(count: u32) -> SpiTable<Entry> {
    let table = SpiTable::new();
    for index in 0..count {
        // Some collide through the bit that keeps them at 256 and above.
        let _ = table.insert(spi(index), Arc::new(Entry([index.into(); 128])));
    }
    table
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sad_lookup");
    group.throughput(Throughput::Elements(BURST as u64));
    for count in [1, 10_000, 1_000_000] {
        let table = table(count);
        let mut reader = Reader::register();
        // Every packet of another SA, at random, and reading from it: what the cache cannot hold is missed.
        let mut random = 1_u32;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            spi(random % count)
        };
        group.bench_function(format!("{count}_random"), |bencher| {
            bencher.iter(|| {
                let guard = reader.pin();
                for _ in 0..BURST {
                    black_box(table.lookup(next(), &guard).map(|entry| entry.0[0]));
                }
            });
        });
        // Traffic of 32 SAs at a time, as a gateway's working set.
        group.bench_function(format!("{count}_of_32"), |bencher| {
            let mut turn = 0;
            bencher.iter(|| {
                let guard = reader.pin();
                for _ in 0..BURST {
                    turn = (turn + 1) % 32;
                    black_box(table.lookup(spi(black_box(turn % count)), &guard).map(|entry| entry.0[0]));
                }
            });
        });
    }
    group.finish();
}

fn pin(criterion: &mut Criterion) {
    let mut reader = Reader::register();
    let published = Published::new(Some(Arc::new(1_u64)));
    criterion.bench_function("pin_load_unpin", |bencher| {
        bencher.iter(|| {
            let guard = reader.pin();
            black_box(published.load(&guard).copied())
        });
    });
}

/// One insertion and one removal in a table of that many, reclaimed every 64.
fn change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sad_insert_remove");
    group.throughput(Throughput::Elements(2));
    for count in [1, 10_000, 1_000_000] {
        let table = table(count);
        let entry = Arc::new(Entry([0; 128]));
        let mut index = 0_u32;
        group.bench_function(count.to_string(), |bencher| {
            bencher.iter_batched(
                || Arc::clone(&entry),
                |entry| {
                    index = index.wrapping_add(1);
                    // Odd SPIs in the range that `spi` gives out sparsely: nearly always new.
                    let spi = Spi(index.wrapping_mul(0x85eb_ca6b) | 0x200);
                    if table.insert(spi, entry).is_ok() {
                        table.remove(spi);
                    }
                    if index.is_multiple_of(64) {
                        reclaim();
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, pin, change);
criterion_main!(benches);
