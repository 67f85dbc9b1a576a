//! The SPD (RFC 4301 section 4.4.1): ordered policies, compiled; first match wins.

pub mod classifier;
pub mod cover;
pub mod spd;

pub use spd::{Action, Policy, Spd, Tunnel};
