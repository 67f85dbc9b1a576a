//! The kernel's side of the packet path: frames, rings, steering, and the only loop.

pub mod steering;
