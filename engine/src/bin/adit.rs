//! `adit`: the command line of the gateway.

use std::process::ExitCode;

use adit_engine::control::cli::{self, Hooks};
use adit_engine::{io::steering, offline};

fn main() -> ExitCode {
    let detach = |bpffs: &std::path::Path, instance: &str| {
        steering::detach(bpffs, instance).map(drop).map_err(|error| error.to_string())
    };
    cli::main(&Hooks { offline: Some(offline::main), detach: Some(detach) })
}
