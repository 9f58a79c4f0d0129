//! Tokens, roles, teams.

use super::*;

/// Every operation of the API: the role that it needs, and a body that is well-formed.
fn operations() -> BTreeMap<&'static str, (Role, Value)> {
    use Role::{Administrator, Operator, Viewer};
    let save = json!({"site": "desk", "namespace": "shop"});
    BTreeMap::from([
        ("get /api/v1/applications", (Viewer, Value::Null)),
        ("get /api/v1/enrolment-keys", (Administrator, Value::Null)),
        ("post /api/v1/enrolment-keys", (Administrator, json!({"name": "edges", "names": "edge-*", "uses": 3}))),
        ("delete /api/v1/enrolment-keys/{key}", (Administrator, Value::Null)),
        ("get /api/v1/environments", (Viewer, Value::Null)),
        ("get /api/v1/environments/{environment}", (Viewer, Value::Null)),
        ("delete /api/v1/environments/{environment}", (Operator, Value::Null)),
        ("get /api/v1/environments/{environment}/connections/{service}", (Operator, Value::Null)),
        ("post /api/v1/environments/{environment}/connections/{service}", (Operator, Value::Null)),
        ("post /api/v1/environments/{environment}/exec", (Operator, Value::Null)),
        ("get /api/v1/environments/{environment}/logs", (Viewer, Value::Null)),
        ("get /api/v1/images", (Viewer, Value::Null)),
        ("get /api/v1/images/{image}", (Viewer, Value::Null)),
        ("get /api/v1/images/{image}/sites", (Viewer, Value::Null)),
        ("delete /api/v1/images/{image}", (Operator, Value::Null)),
        ("post /api/v1/images/{image}/comments", (Operator, json!({"body": "text"}))),
        ("patch /api/v1/images/{image}/labels", (Operator, json!({"labels": {"a": "b"}}))),
        ("post /api/v1/inspections", (Viewer, save.clone())),
        ("get /api/v1/me", (Viewer, Value::Null)),
        ("get /api/v1/operations", (Viewer, Value::Null)),
        ("get /api/v1/operations/{id}", (Viewer, Value::Null)),
        ("post /api/v1/operations/{id}/cancel", (Operator, Value::Null)),
        ("get /api/v1/operations/{id}/events", (Viewer, Value::Null)),
        ("get /api/v1/repositories", (Viewer, Value::Null)),
        ("post /api/v1/repositories", (Administrator, json!({"name": "archive", "location": "nowhere"}))),
        ("get /api/v1/repositories/{repository}", (Viewer, Value::Null)),
        ("patch /api/v1/repositories/{repository}", (Administrator, json!({"agents_have_keys": false}))),
        ("delete /api/v1/repositories/{repository}", (Administrator, Value::Null)),
        ("put /api/v1/repositories/{repository}/default", (Administrator, Value::Null)),
        ("post /api/v1/repository/collections", (Administrator, json!({"grace_s": 3600}))),
        ("get /api/v1/repository/keys", (Administrator, Value::Null)),
        ("post /api/v1/repository/keys", (Administrator, json!({"rotate": false}))),
        ("delete /api/v1/repository/keys/{key}", (Administrator, Value::Null)),
        ("post /api/v1/repository/reindexes", (Administrator, Value::Null)),
        ("post /api/v1/repository/verifications", (Operator, json!({}))),
        ("post /api/v1/restores", (Operator, json!({"image": NOBODY, "site": "desk", "name": "copy"}))),
        ("post /api/v1/saves", (Operator, save)),
        ("get /api/v1/quarantine", (Administrator, Value::Null)),
        ("delete /api/v1/session", (Viewer, Value::Null)),
        ("get /api/v1/sites", (Viewer, Value::Null)),
        ("get /api/v1/status", (Administrator, Value::Null)),
        ("post /api/v1/sites", (Administrator, json!({"name": "edge"}))),
        // A private one is its owner's; of others see `agents`.
        ("delete /api/v1/sites/{site}", (Operator, Value::Null)),
        ("post /api/v1/sites/{site}/approval", (Administrator, Value::Null)),
        ("get /api/v1/tokens", (Viewer, Value::Null)),
        ("post /api/v1/tokens", (Viewer, json!({"name": "t", "scope": "viewer"}))),
        ("delete /api/v1/tokens/{id}", (Viewer, Value::Null)),
    ])
}

/// Those that want no token: what their bodies hold is all that is asked for.
const OPEN: [&str; 3] = ["post /api/v1/sign-in", "post /api/v1/enrol", "post /api/v1/session"];

fn filled(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('/').skip(1) {
        out.push('/');
        out.push_str(match part {
            "{id}" | "{image}" => NOBODY,
            "{environment}" | "{service}" | "{key}" | "{site}" | "{repository}" => "nothing",
            other => other,
        });
    }
    with_query(path, out)
}

/// With what has to be asked along.
fn with_query(path: &str, mut target: String) -> String {
    if path.ends_with("/exec") {
        target.push_str("?command=[%22ls%22]");
    }
    if path.ends_with("/connections/{service}") {
        target.push_str("?address=127.0.0.1:4711");
    }
    target
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_wants_a_token_and_the_role_that_is_written_down_for_it() {
    let server = Server::start().await;
    let document: Value = serde_json::from_str(&api::openapi()).unwrap();
    let mut documented: Vec<String> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        documented.extend(methods.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
    }
    documented.retain(|one| !OPEN.contains(&one.as_str()));
    documented.sort();
    let mut table: Vec<&str> = operations().into_keys().collect();
    table.sort_unstable();
    assert_eq!(documented, table, "an operation without a line in the table, or a line without an operation");
    let mut of_role = BTreeMap::new();
    for role in [Role::Viewer, Role::Operator, Role::Administrator] {
        let member = server.catalog.ensure_member("team", role.as_str(), role).await.unwrap();
        of_role.insert(role, server.token(&member, role).await);
    }
    for (operation, (wanted, body)) in operations() {
        let (method, path) = operation.split_once(' ').unwrap();
        let path = filled(path);
        for token in [None, Some("ocopea_0000"), Some(""), Some("\u{7f}")] {
            let request = match token {
                Some("\u{7f}") => server.request(method, &path, None).header("Authorization", "Basic dXNlcjpwYXNz"),
                token => server.request(method, &path, token),
            };
            let answer = server.ask(request.json(&body)).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{operation} with {token:?}");
            assert!(answer.body["next"].as_str().unwrap().contains("sign"));
        }
        for (role, token) in &of_role {
            let answer = server.ask(server.request(method, &path, Some(token)).json(&body)).await;
            let forbidden = answer.status == StatusCode::FORBIDDEN;
            assert_eq!(
                forbidden,
                *role < wanted,
                "{operation} as {}: {} {}",
                role.as_str(),
                answer.status,
                answer.body
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_code_is_exchanged_once_and_a_revoked_token_ends_at_once() {
    let server = Server::start().await;
    let expires = server.catalog.seams.clock.now().plus(Duration::from_secs(60));
    server.catalog.add_sign_in_code(server.actor.user, &tokens::hash("code_x"), expires).await.unwrap();
    let both = futures::future::join_all(
        (0..4).map(|_| server.ask(server.request("post", "/api/v1/sign-in", None).json(&json!({"code": "code_x"})))),
    )
    .await;
    let fine: Vec<&Answer> = both.iter().filter(|answer| answer.status == StatusCode::OK).collect();
    assert_eq!(fine.len(), 1);
    let token = fine[0].body["token"].as_str().unwrap().to_owned();
    let me = server.ask(server.request("get", "/api/v1/me", Some(&token))).await;
    assert_eq!((me.body["user"].as_str(), me.body["role"].as_str()), (Some("dana"), Some("administrator")));
    let viewer = server.token(&server.actor, Role::Viewer).await;
    // What was given away for one purpose makes nothing that outlives it, and ends nobody else's.
    let more = server.post("/api/v1/tokens", &viewer, &json!({"name": "t", "scope": "viewer"})).await;
    assert_eq!(more.status, StatusCode::FORBIDDEN, "{}", more.body);
    let member = server.catalog.ensure_member("team", "vic", Role::Viewer).await.unwrap();
    let own = server.token(&member, Role::Viewer).await;
    let more = server.post("/api/v1/tokens", &own, &json!({"name": "t", "scope": "administrator"})).await;
    assert_eq!(more.status, StatusCode::UNPROCESSABLE_ENTITY, "a token never allows more than its maker");
    let own = server.ask(server.request("get", "/api/v1/tokens", Some(&token))).await;
    assert!(!own.body.to_string().contains(&token), "no secret is shown twice");
    for one in own.body.as_array().unwrap().iter().filter(|one| one["name"] == "test") {
        let path = format!("/api/v1/tokens/{}", one["id"].as_str().unwrap());
        let ended = server.ask(server.request("delete", &path, Some(&viewer))).await;
        assert!(ended.status == StatusCode::FORBIDDEN, "{}", ended.body);
        let ended = server.ask(server.request("delete", &path, Some(&token))).await;
        assert_eq!(ended.status, StatusCode::NO_CONTENT);
    }
    let me = server.ask(server.request("get", "/api/v1/me", Some(&viewer))).await;
    assert_eq!(me.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_team_is_not_found() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Operator).await;
    let stranger = server.catalog.ensure_member("other", "eve", Role::Administrator).await.unwrap();
    let theirs = server.token(&stranger, Role::Administrator).await;
    let save = server.post("/api/v1/saves", &token, &json!({"site": "desk", "namespace": "shop"})).await;
    let id = save.body["operation"].as_str().unwrap();
    for (method, path) in [
        ("get", format!("/api/v1/operations/{id}")),
        ("get", format!("/api/v1/operations/{id}/events")),
        ("post", format!("/api/v1/operations/{id}/cancel")),
    ] {
        let ours = server.ask(server.request(method, &path, Some(&theirs))).await;
        assert_eq!(ours.status, StatusCode::NOT_FOUND, "{method} {path}");
    }
    let list = server.ask(server.request("get", "/api/v1/operations", Some(&theirs))).await;
    assert_eq!(list.body["items"].as_array().unwrap().len(), 0);
    let own = server.ask(server.request("get", "/api/v1/operations", Some(&token))).await;
    assert_eq!(own.body["items"].as_array().unwrap().len(), 1);
}

/// What an operation of the API has to do with teams.
enum Of {
    /// It names one thing of a team: another's isn't found.
    One,
    /// It lists a team's things.
    Many,
    /// It belongs to the person who asks.
    Person,
    /// It belongs to the installation.
    Installation,
}

fn ownership(operation: &str) -> Option<Of> {
    Some(match operation.split_once(' ')?.1 {
        "/api/v1/images/{image}"
        | "/api/v1/images/{image}/sites"
        | "/api/v1/images/{image}/comments"
        | "/api/v1/images/{image}/labels"
        | "/api/v1/environments/{environment}"
        | "/api/v1/environments/{environment}/connections/{service}"
        | "/api/v1/environments/{environment}/exec"
        | "/api/v1/environments/{environment}/logs"
        | "/api/v1/operations/{id}"
        | "/api/v1/operations/{id}/cancel"
        | "/api/v1/operations/{id}/events"
        | "/api/v1/restores"
        | "/api/v1/repository/verifications"
        | "/api/v1/tokens/{id}" => Of::One,
        "/api/v1/images" | "/api/v1/environments" | "/api/v1/operations" | "/api/v1/applications" => Of::Many,
        "/api/v1/me" | "/api/v1/session" | "/api/v1/tokens" => Of::Person,
        "/api/v1/sites"
        | "/api/v1/sites/{site}"
        | "/api/v1/sites/{site}/approval"
        | "/api/v1/enrolment-keys"
        | "/api/v1/enrolment-keys/{key}"
        | "/api/v1/inspections"
        | "/api/v1/saves"
        | "/api/v1/repositories"
        | "/api/v1/repositories/{repository}"
        | "/api/v1/repositories/{repository}/default"
        | "/api/v1/repository/collections"
        | "/api/v1/repository/reindexes"
        | "/api/v1/repository/keys"
        | "/api/v1/repository/keys/{key}"
        | "/api/v1/quarantine"
        | "/api/v1/status" => Of::Installation,
        _ => return None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_operation_of_the_api_shows_or_changes_what_is_another_teams() {
    let server = Server::start().await;
    let stranger = server.catalog.ensure_member("other", "eve", Role::Administrator).await.unwrap();
    let (image, environment) = furnish(&server, &server.actor, "dana-s").await;
    furnish(&server, &stranger, "eve-s").await;
    let ours = server.token(&server.actor, Role::Administrator).await;
    let theirs = server.token(&stranger, Role::Administrator).await;
    let save = server.post("/api/v1/saves", &ours, &json!({"site": "desk", "namespace": "shop"})).await;
    let operation = save.body["operation"].as_str().unwrap().to_owned();
    let tokens = server.ask(server.request("get", "/api/v1/tokens", Some(&ours))).await;
    let token = tokens.body[0]["id"].as_str().unwrap().to_owned();
    let secrets = [image.to_string(), environment.to_string(), operation.clone(), token.clone(), "dana".to_owned()];
    let document: Value = serde_json::from_str(&api::openapi()).unwrap();
    let bodies = operations();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let name = format!("{method} {path}");
            if OPEN.contains(&name.as_str()) {
                continue;
            }
            let of = ownership(&name).unwrap_or_else(|| panic!("{name} is in no class: whose is it?"));
            let of_token = path.starts_with("/api/v1/tokens");
            // By id, and where there is one by name.
            for by_name in [false, true] {
                let pick = |id: String| if by_name { "dana-s".to_owned() } else { id };
                let target = path
                    .replace("{image}", &pick(image.to_string()))
                    .replace("{environment}", &pick(environment.to_string()))
                    .replace("{id}", if of_token { &token } else { &operation })
                    .replace("{service}", "db")
                    .replace("{key}", "none")
                    .replace("{site}", "none")
                    .replace("{repository}", "none");
                let target = with_query(path, target);
                let body = match name.as_str() {
                    "post /api/v1/restores" => {
                        json!({"image": pick(image.to_string()), "site": "desk", "name": "copy"})
                    }
                    "post /api/v1/repository/verifications" => json!({"image": pick(image.to_string())}),
                    _ => bodies[name.as_str()].1.clone(),
                };
                let mut request = server.request(method, &target, Some(&theirs)).json(&body);
                if target.contains("/exec") {
                    request = request.header("Upgrade", "ocopea-exec").header("Connection", "Upgrade");
                }
                if target.contains("/connections/") && method == "post" {
                    request = request.header("Upgrade", "ocopea-connect").header("Connection", "Upgrade");
                }
                let answer = server.ask(request).await;
                let text = answer.body.to_string();
                match of {
                    Of::One => assert_eq!(answer.status, StatusCode::NOT_FOUND, "{name} {target}: {text}"),
                    Of::Many | Of::Person | Of::Installation => {
                        let seen: Vec<_> = secrets.iter().filter(|secret| text.contains(*secret)).collect();
                        assert!(seen.is_empty(), "{name}: {seen:?} in {text}");
                    }
                }
            }
        }
    }
    // And nothing of it has changed.
    let image = server.ask(server.request("get", &format!("/api/v1/images/{image}"), Some(&ours))).await;
    assert_eq!(image.body["labels"], json!({"of": "dana-s"}));
    assert_eq!(image.body["comments"].as_array().unwrap().len(), 1);
    let one = server.ask(server.request("get", &format!("/api/v1/operations/{operation}"), Some(&ours))).await;
    assert_eq!(one.body["state"], "running");
    assert_eq!(server.ask(server.request("get", "/api/v1/me", Some(&ours))).await.status, StatusCode::OK);
}
