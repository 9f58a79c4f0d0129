//! Key files.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| ocopea_repository::fuzzing::keys(text));
