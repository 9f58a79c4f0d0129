//! Records, configurations, manifests and small objects.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ocopea_repository::fuzzing::record(bytes));
