//! Prints the API's description: `cargo run -p ocopea-coordinator --example openapi > docs/openapi.json`.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

fn main() {
    print!("{}", ocopea_coordinator::api::openapi());
}
