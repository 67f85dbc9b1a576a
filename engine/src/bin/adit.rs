//! `adit`: the command line of the gateway.

use std::process::ExitCode;

use adit_engine::control::cli::{self, Hooks};
use adit_engine::io::{host, steering};
use adit_engine::offline;

fn main() -> ExitCode {
    let detach = |bpffs: &std::path::Path, instance: &str| {
        // First what fails while the daemon runs.
        steering::detach(bpffs, instance).map_err(|error| error.to_string())?;
        host::remove(instance).map_err(|error| format!("the host path: {error}"))
    };
    cli::main(&Hooks { offline: Some(offline::main), detach: Some(detach) })
}
