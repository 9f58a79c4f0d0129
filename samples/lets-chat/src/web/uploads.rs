//! Files.

use axum::{
    Json,
    http::{HeaderMap, StatusCode, header},
    response::{AppendHeaders, IntoResponse},
};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    accounts::{SignedIn, Viewer},
    health::Ready,
    input::{Params, Place, Raw},
    problem::Problem,
};
use crate::model::Title;

/// Pictures that a browser may show in the page; everything else is only ever saved.
const SHOWN: [&str; 5] = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"];

#[derive(Deserialize)]
pub(super) struct Name {
    name: String,
}

/// A media type that is safe to give back: `type/subtype`, nothing more.
fn media_type(headers: &HeaderMap) -> String {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let token =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b));
    match given.split_once('/') {
        Some((left, right)) if given.len() <= 100 && token(left) && token(right) => given,
        _ => "application/octet-stream".into(),
    }
}

/// `POST /api/uploads?name=NAME`, the body is the file.
pub(super) async fn add(
    Ready(store): Ready,
    SignedIn(by): SignedIn,
    Params(name): Params<Name>,
    headers: HeaderMap,
    Raw(bytes): Raw,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let name = Title::parse("name", &name.name)?;
    if bytes.is_empty() {
        return Err(Problem::invalid("the file is empty"));
    }
    let upload = store.save_upload(&name, &media_type(&headers), bytes, &by).await?;
    Ok((StatusCode::CREATED, Json(json!(upload))))
}

/// `GET /uploads/{id}`
pub(super) async fn read(
    Ready(store): Ready,
    viewer: Viewer,
    Place(id): Place<Uuid>,
) -> Result<impl IntoResponse, Problem> {
    let found = store.upload(id, viewer.id()).await?;
    let (upload, bytes) = found.ok_or_else(|| Problem::absent(format!("upload {id} that you may read")))?;
    let shown = SHOWN.contains(&upload.content_type.as_str());
    let kind = if shown { upload.content_type } else { "application/octet-stream".into() };
    let name: String = upload.name.as_str().bytes().map(percent).collect();
    let way = if shown { "inline" } else { "attachment" };
    Ok((
        AppendHeaders([
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_DISPOSITION, format!("{way}; filename*=UTF-8''{name}")),
            (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".into()),
            (header::CACHE_CONTROL, "private, max-age=86400, immutable".into()),
        ]),
        bytes,
    ))
}

/// As RFC 8187 wants names in headers.
fn percent(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_can_carry_nothing_but_itself() {
        let of = |text: &str| media_type(&HeaderMap::from_iter([(header::CONTENT_TYPE, text.parse().unwrap())]));
        assert_eq!(of("Image/PNG; name=x"), "image/png");
        for bad in ["", "text", "text/html, image/png", "a/b/c", "<x>/y"] {
            assert_eq!(of(bad), "application/octet-stream", "{bad}");
        }
        assert_eq!("a\"b\r\n".bytes().map(percent).collect::<String>(), "a%22b%0D%0A");
    }
}
