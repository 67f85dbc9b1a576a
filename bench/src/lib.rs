//! Measuring equipment: what makes traffic, what counts it, and what it is compared with.

pub mod redirect;
pub mod traffic;
