//! The pages: what `web/` was built to, as one program serves it.
//!
//! A program of a release has them inside; one that is built for development reads `web/dist` of its sources whenever it
//! is asked, so that a new build of the pages is served at once. Where there is none, one page says how to build them.
//!
//! What a browser gets runs no script and takes no style but those that this process served: every answer carries a
//! nonce of its own for the style elements that the pages' components write. Nothing may frame it.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use rust_embed::RustEmbed;

use super::Problem;

#[derive(RustEmbed)]
#[folder = "../web/dist"]
struct Built;

/// Stands in the built page where each answer's nonce comes.
const NONCE: &str = "NONCE-OF-THE-ANSWER";

/// What is served where the pages were not built.
const NOT_BUILT: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Ocopea</title>\
    <h1>The pages were not built</h1>\
    <p>This program serves the API and the command line, but its web pages are not in it.</p>\
    <p>Next: run <code>make web</code> in the source tree (it needs Node.js and npm), then build this program again.</p>\
    <p>The API is described at <a href=\"/api/v1/openapi.json\">/api/v1/openapi.json</a>.</p></html>";

/// Media types of what a build brings. Anything else in it is not served.
const KINDS: &[(&str, &str)] = &[
    ("js", "text/javascript; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("svg", "image/svg+xml"),
    ("woff2", "font/woff2"),
    ("txt", "text/plain; charset=utf-8"),
];

/// Compressed forms that the build leaves beside a file, the best first.
const CODINGS: [(&str, &str); 2] = [("br", "br"), ("gzip", "gz")];

/// Answers what no route of the API does: a file of the pages, a page, or that there is nothing.
pub(super) async fn serve(request: Request) -> Response {
    let path = request.uri().path();
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    let nothing = || Problem::not_found("this address", "see /api/v1/openapi.json for what there is").into_response();
    if !reads || path == "/api" || path.starts_with("/api/") {
        return nothing();
    }
    if let Some(found) = file(path, request.headers()) {
        return found;
    }
    // An address that people see is one page, whatever stands in it: the page finds out what is meant.
    if accepts(request.headers(), &header::ACCEPT, "text/html") { page() } else { nothing() }
}

/// A file with a hash in its name: it never changes.
fn file(path: &str, asked: &HeaderMap) -> Option<Response> {
    let name = path.strip_prefix('/').filter(|name| name.starts_with("assets/") || *name == "favicon.svg")?;
    // No name of a built file has anything else in it.
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)) || name.contains("..") {
        return None;
    }
    let kind = KINDS.iter().find(|(end, _)| name.rsplit('.').next() == Some(end))?.1;
    let packed = CODINGS.iter().find_map(|(coding, end)| {
        let wanted = accepts(asked, &header::ACCEPT_ENCODING, coding);
        wanted.then(|| Built::get(&format!("{name}.{end}"))).flatten().map(|file| (Some(*coding), file))
    });
    let (coding, file) = packed.or_else(|| Built::get(name).map(|file| (None, file)))?;
    let caching = if name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "max-age=3600" };
    let mut response = Response::new(Body::from(file.data.into_owned()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if let Some(coding) = coding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    Some(response)
}

/// Whether a list (`text/html, */*;q=0.8`) names this, and doesn't refuse it.
fn accepts(asked: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let lists = asked.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|one| {
        let mut parts = one.split(';').map(str::trim);
        parts.next().is_some_and(|name| name.eq_ignore_ascii_case(wanted))
            && !parts.any(|part| matches!(part.trim_end_matches('0'), "q=" | "q=0." | "Q=" | "Q=0."))
    })
}

/// The one page, with a nonce of its own.
fn page() -> Response {
    let Some(nonce) = crate::tokens::generate("n") else {
        let none = "the system gives no randomness";
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "random", none).into_response();
    };
    let nonce = nonce.reveal();
    let built = Built::get("index.html");
    let text = match &built {
        Some(file) => String::from_utf8_lossy(&file.data).replace(NONCE, nonce),
        None => NOT_BUILT.to_owned(),
    };
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data:; \
         font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// What every answer says to browsers. What the API says is kept nowhere.
pub(super) async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_is_read_from_lists_and_a_weight_of_nothing_refuses() {
        let of = |text: &str| HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_str(text).unwrap())]);
        for text in ["text/html", "a/b, TEXT/HTML;q=0.5", "text/html;q=0.001"] {
            assert!(accepts(&of(text), &header::ACCEPT, "text/html"), "{text}");
        }
        for text in ["*/*", "", "text/htmlx", "text/html;q=0", "text/html; q=0.000"] {
            assert!(!accepts(&of(text), &header::ACCEPT, "text/html"), "{text}");
        }
    }

    #[test]
    fn no_name_leads_out_of_the_build() {
        for path in ["/assets/../index.html", "/assets/..%2f..%2fCargo.toml", "/Cargo.toml", "/assets/", "/assets/a.rs"]
        {
            assert!(file(path, &HeaderMap::new()).is_none(), "{path}");
        }
    }
}
