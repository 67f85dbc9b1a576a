//! The two kernel programs and what attaches them, seen from outside: crafted frames through the kernel's own test
//! run, random policies against a linear oracle, and real traffic in namespaces while processes die.

mod attach;
mod decisions;
mod frames;
mod property;
mod sandbox;
mod vlans;
