//! The operator's side: configuration, the control socket, transactions, reports.
//!
//! ```text
//! file ──┐                        ┌─> tables that workers read (SAD, SPD)
//!        ├─ config ─ check ─ apply┤
//! socket ┘                        └─> Datapath (steering hooks), Leases (sequence numbers on disk)
//! ```
//!
//! One shape of a tunnel or policy serves the file and the socket ([`config`]); one set of rules decides
//! whether it stands ([`check`]); one transaction puts it in place, whole or not at all ([`apply`]).

pub mod apply;
pub mod audit;
pub mod check;
pub mod cli;
pub mod client;
pub mod config;
pub mod consistent;
pub mod events;
mod group;
mod keys;
pub mod leases;
pub mod lifetimes;
mod prepare;
pub mod problem;
pub mod protocol;
mod render;
pub mod replace;
pub mod report;
pub mod server;
pub mod settings;
mod value;

pub use apply::{Control, Datapath};
pub use problem::{Problem, Problems};
