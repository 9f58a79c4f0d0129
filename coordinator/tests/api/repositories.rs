//! Several repositories, as the API has them; saves to them are in `tests/tests/stores.rs`.

use super::*;

async fn view(server: &Server, token: &str, name: &str) -> Answer {
    server.ask(server.request("get", &format!("/api/v1/repositories/{name}"), Some(token))).await
}

async fn names(server: &Server, token: &str) -> Vec<String> {
    let list = server.ask(server.request("get", "/api/v1/repositories", Some(token))).await;
    list.body.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

fn within(server: &Server, name: &str) -> String {
    server.directory.join(name).to_str().unwrap().to_owned()
}

async fn add(server: &Server, token: &str, name: &str, location: &str) -> Answer {
    server.post("/api/v1/repositories", token, &json!({"name": name, "location": location})).await
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_added_seen_made_the_default_and_forgotten_without_a_byte_of_it_touched() {
    let server = Server::start().await;
    let admin = server.token(&server.actor, Role::Administrator).await;
    let viewer = server.token(&server.actor, Role::Viewer).await;
    assert_eq!(names(&server, &viewer).await, ["default"]);
    let given = view(&server, &viewer, "default").await.body;
    assert_eq!(
        (&given["given_at_start"], &given["is_default"], &given["state"]),
        (&json!(true), &json!(true), &json!("ready"))
    );
    let place = within(&server, "archive");
    let added = add(&server, &admin, "archive", &place).await;
    assert_eq!(added.status, StatusCode::CREATED, "{}", added.body);
    assert_eq!((&added.body["kind"], &added.body["location"]), (&json!("directory"), &json!(place)));
    assert!(added.body["found"].as_array().unwrap().len() == 3, "{}", added.body);
    assert_eq!(names(&server, &viewer).await, ["archive", "default"]);
    let body = json!({"site": "desk", "namespace": "shop", "repository": "archive"});
    let save = server.post("/api/v1/saves", &admin, &body).await;
    assert_eq!(save.status, StatusCode::ACCEPTED, "{}", save.body);
    let busy = server.ask(server.request("delete", "/api/v1/repositories/archive", Some(&admin))).await;
    assert_eq!(busy.status, StatusCode::CONFLICT, "{}", busy.body);
    assert!(busy.body["detail"].as_str().unwrap().contains("used by 1 operation"), "{}", busy.body);
    let path = format!("/api/v1/operations/{}/cancel", save.body["operation"].as_str().unwrap());
    assert!(server.ask(server.request("post", &path, Some(&admin))).await.status.is_success());
    // The other one is the default: saves that name none go there.
    for (name, default) in [("archive", "archive"), ("default", "default")] {
        let path = format!("/api/v1/repositories/{name}/default");
        assert_eq!(server.ask(server.request("put", &path, Some(&admin))).await.status, StatusCode::NO_CONTENT);
        for one in ["archive", "default"] {
            assert_eq!(view(&server, &viewer, one).await.body["is_default"], json!(one == default));
        }
    }
    for _ in 0..100 {
        let removed = server.ask(server.request("delete", "/api/v1/repositories/archive", Some(&admin))).await;
        if removed.status == StatusCode::NO_CONTENT {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(view(&server, &viewer, "archive").await.status, StatusCode::NOT_FOUND);
    let given = server.ask(server.request("delete", "/api/v1/repositories/default", Some(&admin))).await;
    assert_eq!(given.status, StatusCode::CONFLICT, "{}", given.body);
    // What it holds is there; it can be added again, under another name too.
    assert!(server.directory.join("archive/ocopea-repository").exists());
    let again = add(&server, &admin, "cellar", &place).await;
    assert_eq!(again.status, StatusCode::CREATED, "{}", again.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_already_or_anothers_or_no_place_at_all_is_refused_by_name() {
    let server = Server::start().await;
    let admin = server.token(&server.actor, Role::Administrator).await;
    assert_eq!(add(&server, &admin, "archive", &within(&server, "archive")).await.status, StatusCode::CREATED);
    // The same installation's key opens a copy, and so its id is seen.
    copy(&server.directory.join("archive"), &server.directory.join("copy"));
    let keys = Keyring::generate(&server.catalog.seams);
    let foreign = Location::Directory { path: within(&server, "foreign") };
    Repository::create(&foreign, &StoreAccess::default(), &keys, &server.catalog.seams).await.unwrap();
    std::fs::create_dir(server.directory.join("full")).unwrap();
    std::fs::write(server.directory.join("full/something"), "else").unwrap();
    for (name, location, status, why) in [
        ("archive", within(&server, "elsewhere"), StatusCode::CONFLICT, "there is a repository archive already"),
        ("b", within(&server, "archive"), StatusCode::CONFLICT, "the repository archive lies there already"),
        ("b", within(&server, "archive/inner"), StatusCode::CONFLICT, "the repository archive lies there already"),
        ("b", within(&server, "repository"), StatusCode::CONFLICT, "the repository default lies there already"),
        ("b", within(&server, "copy"), StatusCode::CONFLICT, "it is the repository archive already"),
        ("b", within(&server, "foreign"), StatusCode::CONFLICT, "the repository b"),
        ("b", within(&server, "full"), StatusCode::CONFLICT, "the repository b"),
        ("Not A Name", within(&server, "b"), StatusCode::UNPROCESSABLE_ENTITY, "repository name"),
        ("b", "relative".to_owned(), StatusCode::UNPROCESSABLE_ENTITY, "absolute path"),
        ("b", format!("{}/../b", within(&server, "x")), StatusCode::UNPROCESSABLE_ENTITY, "absolute path"),
        ("b", "s3://A/b".to_owned(), StatusCode::UNPROCESSABLE_ENTITY, "bucket"),
    ] {
        let refused = add(&server, &admin, name, &location).await;
        let detail = refused.body["detail"].as_str().unwrap();
        assert_eq!(refused.status, status, "{location}: {}", refused.body);
        assert!(detail.contains(why), "{location}: {}", refused.body);
    }
    let refused = add(&server, &admin, "b", &within(&server, "foreign")).await;
    assert!(refused.body["next"].as_str().unwrap().contains("another installation"), "{}", refused.body);
    let slow = json!({"name": "b", "location": within(&server, "b"), "limits": {"upload": 1000}});
    let refused = server.post("/api/v1/repositories", &admin, &slow).await;
    assert_eq!((refused.status, &refused.body["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("limits")));
    assert_eq!(names(&server, &admin).await, ["archive", "default"]);
    assert!(!server.directory.join("elsewhere").exists(), "nothing is written where it is refused before");
    let nowhere = json!({"site": "desk", "namespace": "shop", "repository": "nowhere"});
    let refused = server.post("/api/v1/saves", &admin, &nowhere).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND, "{}", refused.body);
    assert_eq!(refused.body["next"], "see the repositories: ocopea repositories");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_to_add_one_is_one_repository() {
    let server = Server::start().await;
    let admin = server.token(&server.actor, Role::Administrator).await;
    let body = json!({"name": "archive", "location": within(&server, "archive")});
    let mut ids = Vec::new();
    for _ in 0..3 {
        let request = server.request("post", "/api/v1/repositories", Some(&admin)).json(&body);
        let answer = server.ask(request.header("Idempotency-Key", "once")).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        ids.push(answer.body["id"].clone());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_added_and_taken_away_in_every_repository_at_once() {
    let server = Server::start().await;
    let admin = server.token(&server.actor, Role::Administrator).await;
    let place = within(&server, "archive");
    assert_eq!(add(&server, &admin, "archive", &place).await.status, StatusCode::CREATED);
    let first = server.ask(server.request("get", "/api/v1/repository/keys", Some(&admin))).await;
    let old = first.body[0]["id"].as_str().unwrap().to_owned();
    let added = server.post("/api/v1/repository/keys", &admin, &json!({"rotate": true})).await;
    assert_eq!(added.status, StatusCode::OK, "{}", added.body);
    let opens = async |place: &str| {
        let text = std::fs::read_to_string(server.directory.join("repository.key")).unwrap();
        let ring = Keyring::parse(&text).unwrap();
        let location = Location::Directory { path: place.to_owned() };
        Repository::open(&location, &StoreAccess::default(), &ring, &server.catalog.seams)
            .await
            .map(|_| ring.ids().len())
    };
    for place in [&place, &within(&server, "repository")] {
        assert_eq!(opens(place).await.unwrap(), 2);
    }
    let path = format!("/api/v1/repository/keys/{old}");
    let removed = server.ask(server.request("delete", &path, Some(&admin))).await;
    assert_eq!(removed.status, StatusCode::OK, "{}", removed.body);
    for place in [&place, &within(&server, "repository")] {
        assert_eq!(opens(place).await.unwrap(), 1);
        let left = std::fs::read_dir(std::path::Path::new(place).join("keys/repository")).unwrap().count();
        assert_eq!(left, 1, "{place}");
    }
}
