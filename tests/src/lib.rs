//! The harness, end-to-end scenarios and benches
