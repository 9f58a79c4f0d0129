//! Sessions of browsers, and the pages, over real HTTP.

use ocopea_coordinator::api::{CSRF, SESSION};
use ocopea_protocol::time::Timestamp;
use reqwest::{RequestBuilder, Response};

use super::*;

/// A sign-in code, as `ocopea up` makes one.
async fn code(server: &Server) -> String {
    let code = tokens::generate("code").unwrap().reveal().to_owned();
    let expires = server.catalog.seams.clock.now().plus(Duration::from_secs(600));
    server.catalog.add_sign_in_code(server.actor.user, &tokens::hash(&code), expires).await.unwrap();
    code
}

async fn enter(server: &Server, change: impl FnOnce(RequestBuilder) -> RequestBuilder) -> Response {
    let body = json!({"code": code(server).await});
    let request = server.request("post", "/api/v1/session", None).header(CSRF, "1").json(&body);
    change(request).send().await.unwrap()
}

fn set_cookie(response: &Response) -> String {
    response.headers()["set-cookie"].to_str().unwrap().to_owned()
}

/// The cookie as a browser sends it back.
async fn signed_in(server: &Server) -> String {
    let response = enter(server, |request| request).await;
    assert_eq!(response.status(), StatusCode::OK);
    set_cookie(&response).split(';').next().unwrap().to_owned()
}

fn with(server: &Server, method: &str, path: &str, cookie: &str) -> RequestBuilder {
    server.request(method, path, None).header("cookie", format!("other=1; {cookie}; more=2"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_becomes_a_session_that_scripts_and_other_sites_cannot_use() {
    let server = Server::start().await;
    let body = json!({"code": code(&server).await});
    let begin = || server.request("post", "/api/v1/session", None).header(CSRF, "1").json(&body);
    let response = begin().send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let cookie = set_cookie(&response);
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/", "; Max-Age=1209600"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains("Domain"), "{cookie}");
    let port = server.url.rsplit_once(':').unwrap().1;
    assert!(cookie.starts_with(&format!("ocopea_session_{port}=session_")), "{cookie}");
    let text = response.text().await.unwrap();
    assert!(text.contains("\"user\"") && !text.contains("session_"), "a script could read the session: {text}");
    assert_eq!(server.ask(begin()).await.status, StatusCode::NOT_FOUND, "a code works once");
    let me = server.ask(with(&server, "get", "/api/v1/me", cookie.split(';').next().unwrap())).await;
    assert_eq!((me.status, &me.body["user"]), (StatusCode::OK, &json!("dana")));
    let kept = server.catalog.tokens(server.actor.user).await.unwrap();
    assert!(kept.iter().any(|token| token.name == SESSION && token.expires.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_over_tls_is_sent_over_tls_only() {
    let server = Server::start().await;
    let host = server.url.trim_start_matches("http://").to_owned();
    let response = enter(&server, |request| request.header("origin", format!("https://{host}"))).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(set_cookie(&response).contains("; Secure"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_page_makes_a_browser_send_changes_nothing() {
    let server = Server::start().await;
    let cookie = signed_in(&server).await;
    let new = json!({"name": "made by a forger", "scope": "administrator"});
    let ask = || with(&server, "post", "/api/v1/tokens", &cookie).json(&new);
    let own = server.url.clone();
    let other_port = own.rsplit_once(':').unwrap().0.to_owned() + ":1";
    let refused = [
        ask(),
        ask().header(CSRF, "1").header("origin", "https://evil.example"),
        ask().header(CSRF, "1").header("origin", "null"),
        ask().header(CSRF, "1").header("origin", other_port),
        ask().header(CSRF, "1").header("origin", own.replace("http:", "https:") + ".evil.example"),
        ask().header(CSRF, "1").header("origin", own.clone() + "@evil.example"),
        ask().header(CSRF, "1").header("sec-fetch-site", "cross-site"),
        ask().header(CSRF, "1").header("sec-fetch-site", "same-site"),
        ask().header(CSRF, "1").header("sec-fetch-site", "none"),
    ];
    for request in refused {
        let answer = server.ask(request).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.body);
        assert_eq!(answer.body["type"], "urn:ocopea:problem:foreign-page");
    }
    // Nor is somebody signed in, or out, by another's page.
    let body = json!({"code": code(&server).await});
    let begin = || server.request("post", "/api/v1/session", None).json(&body);
    for request in [begin(), begin().header(CSRF, "1").header("origin", "https://evil.example")] {
        assert_eq!(server.ask(request).await.status, StatusCode::FORBIDDEN);
    }
    assert_eq!(server.ask(with(&server, "delete", "/api/v1/session", &cookie)).await.status, StatusCode::FORBIDDEN);
    let made = server.catalog.tokens(server.actor.user).await.unwrap();
    assert!(made.iter().all(|token| token.name != "made by a forger"));
    let answer =
        server.ask(ask().header(CSRF, "1").header("origin", own).header("sec-fetch-site", "same-origin")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_signed_out_revoked_or_is_too_old_opens_nothing() {
    let server = Server::start().await;
    let cookie = signed_in(&server).await;
    let second = signed_in(&server).await;
    let answer = with(&server, "delete", "/api/v1/session", &cookie).header(CSRF, "1").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    assert!(set_cookie(&answer).contains("=; Path=/; Max-Age=0"), "the browser forgets it");
    assert_eq!(server.ask(with(&server, "get", "/api/v1/me", &cookie)).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(server.ask(with(&server, "get", "/api/v1/me", &second)).await.status, StatusCode::OK);
    let tokens_now = server.catalog.tokens(server.actor.user).await.unwrap();
    let open = tokens_now.iter().find(|token| token.name == SESSION && !token.revoked).unwrap();
    server.catalog.revoke_token(server.actor.user, open.id).await.unwrap();
    assert_eq!(server.ask(with(&server, "get", "/api/v1/me", &second)).await.status, StatusCode::UNAUTHORIZED);
    let old = tokens::generate("session").unwrap().reveal().to_owned();
    let over = Timestamp(server.catalog.seams.clock.now().0 - 1);
    server
        .catalog
        .sign_in(&tokens::hash(&code(&server).await), SESSION, &tokens::hash(&old), Some(over))
        .await
        .unwrap();
    let name = cookie.split('=').next().unwrap();
    for value in [old.as_str(), "", "session_", "x;y"] {
        let request = with(&server, "get", "/api/v1/me", &format!("{name}={value}"));
        assert_eq!(server.ask(request).await.status, StatusCode::UNAUTHORIZED, "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_needs_no_header_and_goes_before_a_cookie() {
    let server = Server::start().await;
    let cookie = signed_in(&server).await;
    let token = server.token(&server.actor, Role::Administrator).await;
    let new = json!({"name": "by a program", "scope": "viewer"});
    let request = with(&server, "post", "/api/v1/tokens", &cookie).bearer_auth(&token).json(&new);
    assert_eq!(server.ask(request).await.status, StatusCode::OK);
    let wrong = with(&server, "get", "/api/v1/me", &cookie).bearer_auth("ocopea_0");
    assert_eq!(server.ask(wrong).await.status, StatusCode::UNAUTHORIZED);
    let answer = server.ask(server.request("delete", "/api/v1/session", Some(&token))).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "a token is no session");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_that_people_see_is_a_page_under_a_strict_policy() {
    let server = Server::start().await;
    let mut nonces = Vec::new();
    for path in ["/", "/sign-in?code=code_0", "/images/018f0000-0000-7000-8000-000000000001/restore", "/%3Cscript%3E"] {
        let response = server.request("get", path, None).header("accept", "text/html").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "text/html; charset=utf-8");
        assert_eq!((header("x-content-type-options"), header("x-frame-options")), ("nosniff".into(), "DENY".into()));
        assert_eq!((header("referrer-policy"), header("cache-control")), ("no-referrer".into(), "no-store".into()));
        let policy = header("content-security-policy");
        for part in ["default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        nonces.push(policy);
        let text = response.text().await.unwrap();
        assert!(!text.contains("<script>") && !text.contains("NONCE-OF-THE-ANSWER"), "{text}");
    }
    nonces.dedup();
    assert_eq!(nonces.len(), 4, "a nonce is used once");
    let api = server.request("get", "/api/v1/nothing", None).header("accept", "text/html").send().await.unwrap();
    assert_eq!(api.status(), StatusCode::NOT_FOUND, "the API has no pages");
    for (method, path) in
        [("get", "/images"), ("post", "/images"), ("get", "/assets/../../Cargo.toml"), ("get", "/assets/%2e%2e/x")]
    {
        let answer = server.ask(server.request(method, path, None)).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
    }
}
