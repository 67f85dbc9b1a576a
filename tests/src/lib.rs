//! What tests share that look at adit from outside.

pub mod netns;
