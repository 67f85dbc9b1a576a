//! Reassembly and quoted packets: see `adit_tests::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| adit_tests::fuzzing::fragments(input));
