//! Seal and open, bursts of 32 packets of one SA in memory: what the crypto of a packet costs without a NIC.
//!
//! Criterion's throughput is packets; the time of one burst divided by 32 is the time of a packet.

use std::hint::black_box;

use adit_engine::crypto::key::{Key, KeyMaterial};
use adit_engine::crypto::sequence::SequenceCounter;
use adit_engine::crypto::{IvSource, Open, Opener, Seal, Sealer, Suite};
use adit_engine::wire::Spi;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BURST: usize = 32;
/// Frames lie as in a UMEM for MTU 1500.
const FRAME: usize = 2048;

fn keys(suite: Suite) -> KeyMaterial {
    let key = |length: usize| {
        let bytes: Box<[u8]> = (1..=length as u8).map(|n| n.wrapping_mul(37)).collect();
        Key::new(bytes.into())
    };
    KeyMaterial {
        encryption: key(suite.encryption_key_length()),
        authentication: key(suite.authentication_key_length()),
    }
}

/// Seals one burst; `payloads` and `frames` hold a packet every [`FRAME`] bytes.
fn seal(
    sealer: &Sealer,
    numbers: &SequenceCounter,
    ivs: &mut IvSource,
    (payloads, payload_length): (&[u8], usize),
    (frames, esp_length): (&mut [u8], usize),
) {
    let mut fresh = numbers.take(BURST as u64, u64::MAX).expect("numbers enough");
    let mut pairs = frames.chunks_exact_mut(FRAME).zip(payloads.chunks_exact(FRAME));
    let mut burst: [Seal<'_>; BURST] = std::array::from_fn(|_| {
        let (frame, payload) = pairs.next().expect("as many frames as packets");
        Seal {
            esp: &mut frame[..esp_length],
            payload: &payload[..payload_length],
            next_header: 4,
            sequence: fresh.next().expect("as many numbers as packets"),
        }
    });
    sealer.seal(Spi(0x1234), black_box(&mut burst), ivs);
}

fn crypto(criterion: &mut Criterion) {
    let suites = [
        ("aes-128-gcm", "none"),
        ("aes-256-gcm", "none"),
        ("aes-128-ccm", "none"),
        ("chacha20-poly1305", "none"),
        ("aes-128-gmac", "none"),
        ("aes-128-ctr", "aes-cmac"),
        ("aes-128-cbc", "sha256"),
        ("aes-256-cbc", "sha512"),
        ("3des", "sha1"),
    ];
    for (encryption, authentication) in suites {
        let (encryption, authentication) = (encryption.parse().unwrap(), authentication.parse().unwrap());
        let suite = Suite::new(encryption, authentication, None).unwrap();
        let mut group = criterion.benchmark_group(format!("{encryption}+{authentication}"));
        group.throughput(Throughput::Elements(BURST as u64));
        for payload_length in [64usize, 512, 1400] {
            let text_length = (payload_length + 2).next_multiple_of(suite.alignment().into());
            let esp_length =
                8 + usize::from(suite.iv_length()) + text_length + usize::from(suite.icv_length());
            // With ESN, so that the numbers suffice for any number of rounds.
            let sealer = Sealer::new(suite, &keys(suite), true).unwrap();
            let opener = Opener::new(suite, &keys(suite), true).unwrap();
            let payloads = vec![0x45; FRAME * BURST];
            let mut frames = vec![0; FRAME * BURST];
            let mut ivs = IvSource::from_seed([7; 32]);
            let mut seal_burst = |numbers: &SequenceCounter| {
                seal(&sealer, numbers, &mut ivs, (&payloads, payload_length), (&mut frames, esp_length));
            };

            let numbers = SequenceCounter::starting_after(0);
            group.bench_function(format!("seal/{payload_length}"), |bencher| {
                bencher.iter(|| seal_burst(&numbers));
            });

            seal_burst(&SequenceCounter::starting_after(0));
            let mut plaintexts = vec![0; FRAME * BURST];
            group.bench_function(format!("open/{payload_length}"), |bencher| {
                bencher.iter(|| {
                    let mut pairs = frames.chunks_exact(FRAME).zip(plaintexts.chunks_exact_mut(FRAME));
                    let mut sequence = 0;
                    let mut burst: [Open<'_>; BURST] = std::array::from_fn(|_| {
                        let (frame, plaintext) = pairs.next().expect("as many frames as packets");
                        sequence += 1;
                        Open {
                            esp: &frame[..esp_length],
                            plaintext: &mut plaintext[..text_length],
                            sequence,
                            verdict: None,
                        }
                    });
                    opener.open(black_box(&mut burst));
                    assert!(burst.iter().all(|packet| packet.verdict.is_some()));
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, crypto);
criterion_main!(benches);
