//! Tables of contents.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ocopea_repository::fuzzing::toc(bytes));
