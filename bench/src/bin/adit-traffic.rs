//! Test traffic over AF_XDP: a generator, a sink, and forwarders to compare with. Needs root.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use adit_bench::redirect::AttachMode;
use adit_bench::traffic::forward::{End, forward};
use adit_bench::traffic::frame::{Mac, Template};
use adit_bench::traffic::{end_on_signals, generate, pin, rewrite, sink};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// Results as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Sends numbered UDP frames.
    Generate(GenerateArguments),
    /// Receives, decodes and counts them; ESP is counted as foreign.
    Sink(SinkArguments),
    /// Forwards between two interfaces: a minimal AF_XDP program, nothing of adit in it.
    Forward(ForwardArguments),
    /// Forwards between two interfaces: adit's worker, with a MAC rewrite in place of its pipeline.
    Rewrite(ForwardArguments),
}

#[derive(Args)]
struct GenerateArguments {
    #[arg(long)]
    interface: String,
    /// Transmit queues to use; a flow stays on one.
    #[arg(long, default_value_t = 1)]
    queues: u32,
    /// Bytes of a frame, without FCS.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Frames a second; 0: as many as go.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// Frames; 0: until the time is over.
    #[arg(long, default_value_t = 0)]
    count: u64,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    #[arg(long, value_parser = parse_mac)]
    source_mac: Mac,
    #[arg(long, value_parser = parse_mac)]
    destination_mac: Mac,
    #[arg(long)]
    source: IpAddr,
    #[arg(long)]
    destination: IpAddr,
    /// CPU to run on.
    #[arg(long)]
    core: Option<usize>,
}

#[derive(Args)]
struct SinkArguments {
    #[arg(long)]
    interface: String,
    /// Receive queues to listen to: all that the interface has.
    #[arg(long, default_value_t = 1)]
    queues: u32,
    /// Attach in SKB mode.
    #[arg(long)]
    skb: bool,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Ends after this many frames; 0: does not.
    #[arg(long, default_value_t = 0)]
    count: u64,
    /// Ends when no frame came for so many seconds after the first.
    #[arg(long, default_value_t = 1.0)]
    quiet: f64,
    /// Prints each flow too.
    #[arg(long)]
    per_flow: bool,
    /// CPU to run on.
    #[arg(long)]
    core: Option<usize>,
}

#[derive(Args)]
struct ForwardArguments {
    /// First interface.
    #[arg(long)]
    a: String,
    /// Second interface.
    #[arg(long)]
    b: String,
    /// Where frames go that leave the first.
    #[arg(long, value_parser = parse_mac)]
    a_next_hop: Mac,
    /// Where frames go that leave the second.
    #[arg(long, value_parser = parse_mac)]
    b_next_hop: Mac,
    /// Attach in SKB mode.
    #[arg(long)]
    skb: bool,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// CPUs to run on; `forward` uses the first.
    #[arg(long, default_value = "0", value_delimiter = ',')]
    cores: Vec<usize>,
}

fn parse_mac(text: &str) -> Result<Mac, String> {
    let parts: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    parts.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| "six bytes in hex, aa:bb:…".into())
}

fn mode(skb: bool) -> AttachMode {
    if skb { AttachMode::Skb } else { AttachMode::Native }
}

/// Scripts wait for this line before they start the generator.
fn ready() {
    eprintln!("ready");
}

fn print(json: bool, result: &impl Serialize) -> Result<(), Box<dyn Error>> {
    let value = serde_json::to_value(result)?;
    if json {
        println!("{value}");
        return Ok(());
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        match value.as_f64() {
            Some(number) if value.is_f64() => println!("{name:>18} {number:.3}"),
            _ => println!("{name:>18} {value}"),
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    end_on_signals();
    match cli.verb {
        Verb::Generate(arguments) => {
            pin(arguments.core);
            let template = Template::new(
                arguments.source_mac,
                arguments.destination_mac,
                arguments.source,
                arguments.destination,
                arguments.size,
            )
            .map_err(|error| error.0)?;
            let plan = generate::Plan {
                interface: arguments.interface,
                queues: arguments.queues,
                template,
                size: arguments.size,
                flows: arguments.flows,
                rate: arguments.rate,
                count: arguments.count,
                time: Duration::from_secs_f64(arguments.seconds),
            };
            print(cli.json, &generate::generate(&plan)?)
        }
        Verb::Sink(arguments) => {
            pin(arguments.core);
            let plan = sink::Plan {
                interface: arguments.interface,
                queues: arguments.queues,
                mode: mode(arguments.skb),
                time: Duration::from_secs_f64(arguments.seconds),
                count: arguments.count,
                quiet: Duration::from_secs_f64(arguments.quiet),
            };
            let mut counted = sink::sink(&plan, ready)?;
            if !arguments.per_flow {
                counted.flows.clear();
            }
            print(cli.json, &counted)
        }
        Verb::Forward(arguments) => {
            pin(arguments.cores.first().copied());
            let (ends, mode, time) = ends(&arguments);
            print(cli.json, &forward([&ends[0], &ends[1]], mode, time, ready)?)
        }
        Verb::Rewrite(arguments) => {
            let (ends, mode, time) = ends(&arguments);
            let (forwarded, report) =
                rewrite::rewrite([&ends[0], &ends[1]], arguments.cores, mode, time, ready)?;
            if !cli.json {
                eprintln!("{report:#?}");
            }
            print(cli.json, &forwarded)
        }
    }
}

fn ends(arguments: &ForwardArguments) -> ([End; 2], AttachMode, Duration) {
    let a = End { interface: arguments.a.clone(), next_hop: arguments.a_next_hop };
    let b = End { interface: arguments.b.clone(), next_hop: arguments.b_next_hop };
    ([a, b], mode(arguments.skb), Duration::from_secs_f64(arguments.seconds))
}
