//! Whole bursts through the pipeline, as criterion sees them: for comparing one change with the last. What the
//! figures are made of is `adit-bench`'s to say.

use std::hint::black_box;

use adit_engine::crypto::{Authentication, Encryption};
use adit_engine::pipeline::Received;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, Site, suite};
use adit_tests::packet::{frame, udp};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const BURST: usize = 32;

/// Runs `frames` through `gateway` again and again; each time from a fresh copy.
fn bench(criterion: &mut Criterion, name: &str, gateway: &mut Gateway, frames: Vec<Vec<u8>>, inside: bool) {
    let port = if inside { INSIDE } else { OUTSIDE };
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(frames.len() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter_batched_ref(
            || frames.clone(),
            |frames| {
                let mut frames = frames.iter_mut();
                let mut burst: [Received<'_>; BURST] =
                    std::array::from_fn(|_| Received { port, frame: frames.next().expect("a burst") });
                gateway.engine.process(0, &mut burst);
                gateway.engine.transmit(|output| {
                    black_box(&output.frame[..output.length]);
                });
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn pipeline(criterion: &mut Criterion) {
    for (name, suite) in [
        ("aes-128-gcm", suite(Encryption::Aes128Gcm, Authentication::None)),
        ("aes-128-cbc sha256", suite(Encryption::Aes128Cbc, Authentication::Sha256)),
    ] {
        // Without a window the same packets pass again and again.
        let options = Options { replay_window: 0, ..Options::with_suite(suite) };
        for size in [64, 1400] {
            let inner = udp(Site::A.host(false), Site::B.host(false), size - 28);
            let mut a = Gateway::new(Site::A, &options);
            bench(criterion, &format!("{name} outbound {size}"), &mut a, vec![frame(&inner); BURST], true);
            let (mut b, mut peer) = (Gateway::new(Site::B, &options), Peer::of(Site::B, &options));
            let sealed = (1..=BURST as u64).map(|number| frame(&peer.seal(number, 4, &inner))).collect();
            bench(criterion, &format!("{name} inbound {size}"), &mut b, sealed, false);
            assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
        }
    }
    // What an attacker can send at no cost: refused before any cryptography.
    let mut b = Gateway::new(Site::B, &Options::new());
    let mut peer = Peer::of(Site::B, &Options::new());
    peer.spi.0 += 1;
    let unknown = frame(&peer.seal(1, 4, &udp(Site::A.host(false), Site::B.host(false), 36)));
    bench(criterion, "unknown SPI", &mut b, vec![unknown; BURST], false);
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
