//! adit: a userspace IPsec (ESP/AH) packet engine for Linux gateways, on AF_XDP.
//!
//! The modules are layers, and imports point downwards only (a test reads them and says so):
//!
//! ```text
//! wire < crypto < transform < sa < policy, route < pipeline < io | control < daemon | offline
//! ```
//!
//! `pipeline` and everything below it has no threads, sockets or clock: time, randomness and tables
//! come in as arguments, so all of it runs under `cargo test`, a fuzzer or a benchmark, without root.
//! `io` and `control` never see each other; `daemon` is the only file that sees both. `offline` is the engine
//! without sockets: captures, tests and benchmarks run it.

pub mod control;
pub mod crypto;
pub mod daemon;
pub mod io;
pub mod offline;
pub mod pipeline;
pub mod policy;
pub mod route;
pub mod sa;
pub mod transform;
pub mod wire;
