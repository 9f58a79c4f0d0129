//! Packs and chunks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ocopea_repository::fuzzing::pack(bytes));
