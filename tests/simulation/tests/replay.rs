//! A seed is the same each time.

use std::process::Command;

fn played(seed: u64) -> String {
    let played = Command::new(env!("CARGO_BIN_EXE_simulate")).args(["--seed", &seed.to_string()]).output().unwrap();
    // All that happens, with its moments, and the number of the whole trace.
    format!("{}{}", String::from_utf8_lossy(&played.stderr), String::from_utf8_lossy(&played.stdout))
}

#[test]
fn a_seed_replays_exactly_in_another_process_and_no_two_seeds_are_the_same() {
    let all: Vec<String> = (0..12).map(played).collect();
    for (seed, first) in all.iter().enumerate() {
        assert!(first.contains("trace "), "seed {seed}: {first}");
        assert!(!first.contains("WRONG"), "seed {seed}: {first}");
        assert_eq!(*first, played(seed as u64), "seed {seed}");
    }
    let traces: std::collections::BTreeSet<&str> = all.iter().filter_map(|all| all.split("trace ").nth(1)).collect();
    assert_eq!(traces.len(), all.len());
}
