//! `adit`: the command line of the gateway.

use std::process::ExitCode;

use adit_engine::control::cli::{self, Hooks};

fn main() -> ExitCode {
    cli::main(&Hooks { offline: None, detach: None })
}
