//! Pure functions over bytes: how an inner packet becomes an ESP tunnel packet and back.

pub mod ecn;
pub mod esp;
pub mod fragment;
pub mod mss;
pub mod tunnel;
