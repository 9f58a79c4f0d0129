//! Where an image can run.

use ocopea_catalog_db::images::Image;
use ocopea_protocol::{
    message::SiteReport,
    needs::{Capabilities, Known, NodeFound, NodesFound, StorageFound, Taken},
};

use super::*;

/// What a small application with a volume needs.
fn needing(server: &Server, name: &str, requirements: Value) -> Image {
    let digest = format!("sha256:{}", "1".repeat(64));
    let found = json!({"name": "web", "repository": "registry.example/web", "tag": null, "digest": digest, "used_by": [], "pull_secrets": []});
    let platforms = json!([{"platform": "linux/amd64", "manifest": digest}]);
    let part = |name: &str, body: Value| json!({"name": name, "manifest": digest, "bytes": 1, "new_bytes": 1, "stored_bytes": 1, "body": body});
    let components = json!([
        part("config", json!({"config": {"objects": 1, "kinds": ["apps/v1 Deployment"]}})),
        part("web", json!({"container": {"found": found, "platforms": platforms}})),
    ]);
    Image {
        body: json!({"components": components, "requirements": requirements}).to_string(),
        ..image(server, &server.actor, name, "shop")
    }
}

fn requirements(version: u32) -> Value {
    json!({"version": version, "platforms": ["linux/amd64"], "kinds": ["apps/v1 Deployment"], "data": [],
        "data_bytes": null, "container_bytes": 1, "kubernetes": "1.36.0", "needs": [
            {"storage-class": {"claims": ["uploads"], "class": "fast", "bytes": 1000, "shared": false}},
            {"pod": {"by": "deployment/web", "replicas": 2, "cpu_m": 500, "memory": 1_000_000, "extended": {}, "node": {},
                "affinity": [], "tolerations": [], "host_ports": []}},
            {"of-a-newer-release": {}}]})
}

/// A site that can run it.
fn able(server: &Server) -> SiteReport {
    SiteReport {
        architectures: vec!["linux/amd64".to_owned()],
        data_kinds: vec!["volume".to_owned()],
        registry: Some("registry:5000".to_owned()),
        capabilities: Capabilities {
            kinds: Known::Found(vec!["apps/v1 Deployment".to_owned()]),
            storage: Known::Found(vec![StorageFound {
                name: "fast".to_owned(),
                default: true,
                shared: None,
                free: None,
            }]),
            nodes: Known::Found(NodesFound {
                nodes: vec![NodeFound {
                    name: "one".to_owned(),
                    cpu_m: 2000,
                    memory: 1 << 30,
                    taken: Some(Taken::default()),
                    ..NodeFound::default()
                }],
                more: 0,
            }),
            ..Capabilities::default()
        },
        ..super::server::report(&server.catalog.seams)
    }
}

async fn add(server: &Server, image: &Image) {
    let transaction = server.catalog.begin().await.unwrap();
    transaction.add_image(image).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn verdicts(server: &Server, token: &str, image: &str) -> Vec<Value> {
    let path = format!("/api/v1/images/{image}/sites");
    let answer = server.ask(server.request("get", &path, Some(token))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.body.as_array().unwrap().clone()
}

#[tokio::test]
async fn sites_are_offered_with_every_reason_and_those_that_can_run_it_first() {
    let server = Server::start().await;
    let catalog = &server.catalog;
    let token = server.token(&server.actor, Role::Viewer).await;
    let able_site = catalog.ensure_site("able").await.unwrap();
    catalog.report_site(able_site, &able(&server)).await.unwrap();
    let small = catalog.ensure_site("small").await.unwrap();
    let mut report = able(&server);
    report.registry = None;
    if let Known::Found(nodes) = &mut report.capabilities.nodes {
        nodes.nodes[0].cpu_m = 700;
    }
    catalog.report_site(small, &report).await.unwrap();
    let image = needing(&server, "noted", requirements(2));
    add(&server, &image).await;

    let found = verdicts(&server, &token, "noted").await;
    let told: Vec<(&str, &str)> =
        found.iter().map(|site| (site["site"].as_str().unwrap(), site["verdict"].as_str().unwrap())).collect();
    assert_eq!(told, [("able", "unknown"), ("silent", "unknown"), ("desk", "no"), ("small", "no")]);
    // No agent is in this process, and the repository is a directory: nothing else stands against it.
    assert_eq!(found[0]["reasons"].as_array().unwrap().len(), 1, "{}", found[0]);
    assert_eq!(found[0]["reasons"][0]["what"], "the repository");
    assert!(found[1]["reasons"][0]["found"].as_str().unwrap().contains("was heard of yet"), "{}", found[1]);
    let of_small: Vec<&str> =
        found[3]["reasons"].as_array().unwrap().iter().map(|reason| reason["what"].as_str().unwrap()).collect();
    assert_eq!(of_small, ["all of its pods together", "container web", "the repository"], "all reasons at once");
    assert!(found[3]["age_s"].as_u64().unwrap() < 60);
}

#[tokio::test]
async fn what_an_older_or_a_newer_release_noted_counts_as_unknown() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Viewer).await;
    let site = server.catalog.ensure_site("able").await.unwrap();
    server.catalog.report_site(site, &able(&server)).await.unwrap();
    for version in [1, 3] {
        let name = format!("of-{version}");
        add(&server, &needing(&server, &name, requirements(version))).await;
        let found = verdicts(&server, &token, &name).await;
        let able = found.iter().find(|verdict| verdict["site"] == "able").unwrap();
        assert_eq!(able["verdict"], "unknown", "{able}");
        let reasons = able["reasons"].as_array().unwrap();
        let noted = reasons.iter().find(|reason| reason["what"] == "what its pods ask for").unwrap();
        assert!(noted["mend"].as_str().unwrap().contains("--dry-run"), "{able}");
    }
}

#[tokio::test]
async fn an_image_of_another_team_has_no_verdicts() {
    let server = Server::start().await;
    add(&server, &needing(&server, "ours", requirements(2))).await;
    let stranger = server.catalog.ensure_member("other", "eve", Role::Administrator).await.unwrap();
    let theirs = server.token(&stranger, Role::Administrator).await;
    let answer = server.ask(server.request("get", "/api/v1/images/ours/sites", Some(&theirs))).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}
