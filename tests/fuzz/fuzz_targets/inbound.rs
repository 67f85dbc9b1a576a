//! The pipeline, also behind a valid ICV: see `adit_tests::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| adit_tests::fuzzing::inbound(input));
