//! Control messages and configurations: see `adit_tests::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| adit_tests::fuzzing::control(input));
