//! The engine without a network card: bursts of packets in memory through the full pipeline, outbound and
//! inbound, per algorithm and size.
//!
//! Two gateways stand back to back. Every round, A seals a burst (timed), the frames are carried over to B's
//! receive buffers (not timed), and B opens them (timed), so every number is fresh and nothing is replayed.
//! Buffers rotate over 512 frames, so that frames come from the second-level cache rather than the first, as
//! with a card that writes into the last-level cache. A figure is the median over all rounds.
//!
//! "crypto" is the same `seal` or `open` called alone on the same buffers; "rest" is what the pipeline takes
//! without it: parsing, policy, SA lookup, replay window, headers, checks, routes, frames. There is no row
//! with a null cipher that skips crypto, because an SA without integrity is refused everywhere; the
//! difference of two measurements is honest about that, and as exact as both are.
//!
//! Cycles are those of the time stamp counter, which ticks at the nominal frequency whatever the core runs at.

use std::time::{Duration, Instant};

use adit_engine::crypto::sequence::SequenceCounter;
use adit_engine::crypto::{Authentication, Encryption, IvSource, Open, Opener, Seal, Sealer, Suite};
use adit_engine::pipeline::Received;
use adit_engine::route::PortId;
use adit_engine::transform::esp::Layout;
use adit_engine::wire::ethernet::HEADER_LENGTH;
use adit_tests::memory::{Gateway, INSIDE, OUTSIDE, Options, Peer, SPI_TO_B, Site};
use adit_tests::packet::{frame, udp_ports};
use clap::Parser;
use serde_json::json;

/// Measures the pipeline in memory: ns and cycles per packet, Mpps per core.
#[derive(Parser)]
struct Arguments {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Only suites whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Packets in a burst, 1 to 64.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
    burst: u16,
    /// Flows (source ports) that the packets of a burst rotate over.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    flows: u16,
    /// Inner packet sizes, bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512, 1400])]
    sizes: Vec<usize>,
    /// Time for each line, milliseconds.
    #[arg(long, default_value_t = 200)]
    milliseconds: u64,
    /// All suites, not only those that gateways agree on most.
    #[arg(long)]
    all: bool,
}

/// What gateways agree on, and one of each kind.
const USUAL: &[(Encryption, Authentication)] = &[
    (Encryption::Null, Authentication::Sha256),
    (Encryption::TripleDes, Authentication::Sha1),
    (Encryption::Aes128Cbc, Authentication::Sha1),
    (Encryption::Aes128Cbc, Authentication::Sha256),
    (Encryption::Aes256Cbc, Authentication::Sha256),
    (Encryption::Aes256Cbc, Authentication::Sha512),
    (Encryption::Aes128Ccm, Authentication::None),
    (Encryption::Aes128Gcm, Authentication::None),
    (Encryption::Aes256Gcm, Authentication::None),
];

/// Receive buffers in rotation.
const BUFFERS: usize = 512;

/// One line: all times in ns per packet.
struct Line {
    suite: Suite,
    direction: &'static str,
    size: usize,
    total: f64,
    crypto: f64,
}

fn main() {
    let arguments = Arguments::parse();
    let cycles_per_ns = calibrate();
    let suites: Vec<Suite> = match arguments.all {
        true => Suite::all().collect(),
        false => USUAL.iter().map(|&(cipher, hash)| Suite::new(cipher, hash, None).unwrap()).collect(),
    };
    let mut lines = Vec::new();
    for suite in suites.into_iter().filter(|suite| name(suite).contains(&arguments.only)) {
        for &size in &arguments.sizes {
            lines.extend(measure(suite, size, &arguments, cycles_per_ns));
        }
    }
    match arguments.json {
        true => print_json(&lines, &arguments, cycles_per_ns),
        false => print_table(&lines, &arguments, cycles_per_ns),
    }
}

fn name(suite: &Suite) -> String {
    match suite.authentication() {
        Authentication::None => suite.encryption().name().to_owned(),
        authentication => format!("{} {}", suite.encryption().name(), authentication.name()),
    }
}

/// A burst's receive buffers, used in turn.
struct Buffers {
    frames: Vec<Vec<u8>>,
    next: usize,
}

impl Buffers {
    fn new(frames: Vec<Vec<u8>>) -> Self {
        Self { frames, next: 0 }
    }

    /// The next `count` frames; the place moves on.
    fn take(&mut self, count: usize) -> &mut [Vec<u8>] {
        if self.next + count > self.frames.len() {
            self.next = 0;
        }
        self.next += count;
        &mut self.frames[self.next - count..self.next]
    }
}

fn measure(suite: Suite, size: usize, arguments: &Arguments, cycles_per_ns: f64) -> [Line; 2] {
    let count = usize::from(arguments.burst);
    let options = Options::with_suite(suite);
    let (mut a, mut b) = Gateway::pair(&options);
    let templates: Vec<Vec<u8>> = (0..BUFFERS)
        .map(|index| {
            let port = 1024 + index as u16 % arguments.flows;
            frame(&udp_ports(Site::A.host(false), Site::B.host(false), port, 53, size.max(28) - 28))
        })
        .collect();
    let sealed_length = Peer::of(Site::B, &options).seal(1, 4, &templates[0][HEADER_LENGTH..]).len();
    let mut plain = Buffers::new(templates.clone());
    let mut sealed = Buffers::new(vec![vec![0; HEADER_LENGTH + sealed_length]; BUFFERS]);

    let (mut seal_times, mut open_times) = (Vec::new(), Vec::new());
    let ends = Instant::now() + Duration::from_millis(arguments.milliseconds);
    while seal_times.len() < 20 || Instant::now() < ends {
        let at = plain.next;
        let frames = plain.take(count);
        // The pipeline lowered the TTL in place.
        let at = if at + count > BUFFERS { 0 } else { at };
        for (frame, template) in frames.iter_mut().zip(&templates[at..]) {
            frame[..34].copy_from_slice(&template[..34]);
        }
        seal_times.push(timed(&mut a, INSIDE, frames));
        let arrived = sealed.take(count);
        let mut number = 0;
        a.engine.transmit(|output| {
            arrived[number].copy_from_slice(&output.frame[..output.length]);
            number += 1;
        });
        assert_eq!(number, count, "A dropped: {:?}", a.drops());
        open_times.push(timed(&mut b, OUTSIDE, arrived));
        let mut opened = 0;
        b.engine.transmit(|_| opened += 1);
        assert_eq!(opened, count, "B dropped: {:?}", b.drops());
    }
    let (seal, open) = crypto_alone(&options, &mut plain, &mut sealed, arguments);
    let per_packet = |times: Vec<u64>| median(times) / count as f64 / cycles_per_ns;
    [
        Line { suite, direction: "outbound", size, total: per_packet(seal_times), crypto: per_packet(seal) },
        Line { suite, direction: "inbound", size, total: per_packet(open_times), crypto: per_packet(open) },
    ]
}

/// One burst through one gateway, cycles.
fn timed(gateway: &mut Gateway, port: PortId, frames: &mut [Vec<u8>]) -> u64 {
    let mut burst = Vec::with_capacity(frames.len());
    burst.extend(frames.iter_mut().map(|frame| Received { port, frame }));
    let began = cycles();
    gateway.engine.process(0, &mut burst);
    cycles() - began
}

/// `seal` and `open` alone, on the buffers that the pipelines used.
fn crypto_alone(
    options: &Options,
    plain: &mut Buffers,
    sealed: &mut Buffers,
    arguments: &Arguments,
) -> (Vec<u64>, Vec<u64>) {
    let count = usize::from(arguments.burst);
    let sealer = Sealer::new(options.suite, &options.key_material(), options.esn).unwrap();
    let opener = Opener::new(options.suite, &options.key_material(), options.esn).unwrap();
    let layout = Layout::new(&options.suite);
    let numbers = SequenceCounter::starting_after(0);
    let mut ivs = IvSource::from_seed([3; 32]);
    let mut esp_out = vec![vec![0; 2048]; count];
    let mut plaintext_out = esp_out.clone();
    let (mut seal_times, mut open_times) = (Vec::new(), Vec::new());
    let ends = Instant::now() + Duration::from_millis(arguments.milliseconds / 2);
    while seal_times.len() < 20 || Instant::now() < ends {
        let payloads = plain.take(count);
        let outer = HEADER_LENGTH + 20;
        let fresh = numbers.take(count as u64, u64::MAX).unwrap();
        let mut last = 0;
        let mut seals: Vec<_> = esp_out
            .iter_mut()
            .zip(payloads.iter())
            .zip(fresh)
            .map(|((out, payload), sequence)| {
                last = sequence.get();
                let payload = &payload[HEADER_LENGTH..];
                let esp = &mut out[outer..outer + layout.esp_length(payload.len())];
                Seal { esp, payload, next_header: 4, sequence }
            })
            .collect();
        let began = cycles();
        sealer.seal(SPI_TO_B, &mut seals, &mut ivs);
        seal_times.push(cycles() - began);

        let arrived = sealed.take(count);
        for (frame, esp) in arrived.iter_mut().zip(&esp_out) {
            let length = frame.len();
            frame[outer..].copy_from_slice(&esp[outer..length]);
        }
        let mut opens: Vec<_> = plaintext_out
            .iter_mut()
            .zip(arrived.iter())
            .zip(last + 1 - count as u64..)
            .map(|((out, frame), sequence)| {
                let esp = &frame[outer..];
                let length = layout.ciphertext_length(esp.len()).expect("what was sealed");
                Open {
                    esp,
                    plaintext: &mut out[HEADER_LENGTH..HEADER_LENGTH + length],
                    sequence,
                    verdict: None,
                }
            })
            .collect();
        let began = cycles();
        opener.open(&mut opens);
        open_times.push(cycles() - began);
        assert!(opens.iter().all(|open| open.verdict.is_some()), "what was sealed opens");
    }
    (seal_times, open_times)
}

fn median(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2] as f64
}

/// The time stamp counter, or nanoseconds where there is none.
fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    // SAFETY: RDTSC reads a counter; every x86-64 processor has it, and Linux lets user space use it.
    return unsafe { core::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    return {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    };
}

/// Cycles in a nanosecond.
fn calibrate() -> f64 {
    let (began, first) = (Instant::now(), cycles());
    while began.elapsed() < Duration::from_millis(100) {
        std::hint::spin_loop();
    }
    (cycles() - first) as f64 / began.elapsed().as_nanos() as f64
}

fn print_table(lines: &[Line], arguments: &Arguments, cycles_per_ns: f64) {
    println!(
        "bursts of {}, {} flows, time stamp counter {:.2} GHz",
        arguments.burst, arguments.flows, cycles_per_ns
    );
    println!(
        "{:<20} {:<9} {:>6} {:>10} {:>10} {:>10} {:>10} {:>9}",
        "suite", "direction", "bytes", "ns/packet", "cycles", "crypto ns", "rest ns", "Mpps/core"
    );
    for line in lines {
        println!(
            "{:<20} {:<9} {:>6} {:>10.1} {:>10.0} {:>10.1} {:>10.1} {:>9.3}",
            name(&line.suite),
            line.direction,
            line.size,
            line.total,
            line.total * cycles_per_ns,
            line.crypto,
            line.total - line.crypto,
            1000.0 / line.total
        );
    }
}

fn print_json(lines: &[Line], arguments: &Arguments, cycles_per_ns: f64) {
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            json!({
                "suite": name(&line.suite),
                "direction": line.direction,
                "inner_bytes": line.size,
                "ns_per_packet": line.total,
                "cycles_per_packet": line.total * cycles_per_ns,
                "crypto_ns_per_packet": line.crypto,
                "rest_ns_per_packet": line.total - line.crypto,
                "mpps_per_core": 1000.0 / line.total,
            })
        })
        .collect();
    println!("{}", json!({ "burst": arguments.burst, "flows": arguments.flows, "rows": rows }));
}
