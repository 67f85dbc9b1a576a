//! The SPD (RFC 4301 section 4.4.1): ordered policies, compiled; first match wins.
//!
//! [`Spd::classify_linear`] is the definition. [`classifier`] answers the same from a decision tree,
//! [`flow_cache`] remembers the answers of one worker, and [`cover`] is what the kernel hooks need to know to
//! let no packet past the engine that the policy would protect or discard.

pub mod classifier;
pub mod cover;
pub mod flow_cache;
pub mod path;
pub mod spd;
pub mod tfc;

#[cfg(test)]
mod tests;

pub use cover::{Cover, Prefix};
pub use flow_cache::{FlowCache, FlowKey, PolicyCache};
pub use path::Path;
pub use spd::{Action, Fallback, Fragmentation, Policy, Spd, Tunnel};

/// An address as a number of its version's width; versions never mix where these are compared.
fn address_bits(address: std::net::IpAddr) -> u128 {
    match address {
        std::net::IpAddr::V4(address) => u128::from(address.to_bits()),
        std::net::IpAddr::V6(address) => address.to_bits(),
    }
}
