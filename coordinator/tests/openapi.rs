//! The checked-in description is the code's own.

#[test]
fn the_checked_in_openapi_file_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let stored = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        stored == ocopea_coordinator::api::openapi(),
        "docs/openapi.json is stale: cargo run -p ocopea-coordinator --example openapi > docs/openapi.json"
    );
}

#[test]
fn every_operation_wants_a_token_but_those_whose_bodies_hold_a_secret() {
    let document: serde_json::Value = serde_json::from_str(&ocopea_coordinator::api::openapi()).unwrap();
    let mut open = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let own = operation.get("security").and_then(|s| s.as_array());
            if own.is_some_and(|rules| {
                rules.is_empty() || rules.iter().any(|r| r.as_object().is_some_and(|r| r.is_empty()))
            }) {
                open.push(format!("{method} {path}"));
            }
        }
    }
    assert_eq!(open, ["post /api/v1/enrol", "post /api/v1/session", "post /api/v1/sign-in"]);
}
