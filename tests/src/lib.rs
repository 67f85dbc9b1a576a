//! Everything seen from outside the engine: helpers here, one topic a file in `tests/`.

pub mod vectors;
