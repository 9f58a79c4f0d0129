//! Bodies of requests: read whole, within bounds of size and time, before anything answers.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Request, State as Extract},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::BytesMut;
use futures::StreamExt;

use super::{Problem, State};

/// The largest body, in bytes.
const LARGEST: usize = 1024 * 1024;

/// How much of a body that is too long is read before it is refused. Who is answered while they still send gets a
/// reset connection in place of the answer (RFC 9112, 9.6).
const READ_ON: usize = 16 * LARGEST;

/// How long a body may take.
const SPAN: Duration = Duration::from_secs(30);

/// Hands on the request with its body in memory, or refuses it.
pub(super) async fn read_whole(Extract(state): Extract<State>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let declared = parts.headers.get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    let read = state.coordinator.seams.timeout(SPAN, read(body, declared.unwrap_or(0))).await;
    match read {
        Some(Ok(body)) => next.run(Request::from_parts(parts, body)).await,
        Some(Err(problem)) => problem.into_response(),
        None => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "slow",
            format!("the request's body took more than {} seconds", SPAN.as_secs()),
        )
        .into_response(),
    }
}

async fn read(body: Body, declared: u64) -> Result<Body, Problem> {
    let too_long = || {
        let detail = format!("the request's body is longer than {LARGEST} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail)
    };
    if declared > READ_ON as u64 {
        return Err(too_long());
    }
    let mut stream = body.into_data_stream();
    let mut whole = BytesMut::new();
    let mut length = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "broken", format!("the body ends: {error}")))?;
        length += piece.len();
        if length > READ_ON {
            break;
        }
        if length <= LARGEST {
            whole.extend_from_slice(&piece);
        }
    }
    if length > LARGEST { Err(too_long()) } else { Ok(Body::from(whole.freeze())) }
}
