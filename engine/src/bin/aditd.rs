//! `aditd`: the gateway daemon. Everything it does is in [`adit_engine::daemon`].

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use adit_engine::daemon::log::Lossy;
use clap::Parser;
use tracing_subscriber::EnvFilter;

/// The adit gateway daemon: IPsec ESP tunnels over AF_XDP.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Configuration file (adit config check FILE tells what is wrong with one)
    #[arg(long, value_name = "FILE", default_value = "/etc/adit/adit.toml")]
    config: PathBuf,
    /// Replace an XDP program of somebody else on a steered interface
    #[arg(long)]
    force: bool,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("ADIT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let stderr = Lossy::new(std::io::stderr(), arguments.log_json);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    if arguments.log_json {
        log.json().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
    match adit_engine::daemon::run(&arguments.config, arguments.force) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
