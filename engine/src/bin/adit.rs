//! `adit`: the command line of the gateway.

use std::process::ExitCode;

use adit_engine::control::cli::{self, Hooks};
use adit_engine::io::steering;

fn main() -> ExitCode {
    let detach = |bpffs: &std::path::Path, instance: &str| {
        steering::detach(bpffs, instance).map(drop).map_err(|error| error.to_string())
    };
    cli::main(&Hooks { offline: None, detach: Some(detach) })
}
