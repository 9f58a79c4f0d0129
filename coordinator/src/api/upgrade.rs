//! Connections of HTTP/1.1 that are upgraded to carry something else (RFC 9110, section 7.8).

use axum::{
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::{State, problem::Problem};

/// Refuses a request that doesn't ask for `protocol`.
pub(super) fn expected(request: &Request, protocol: &'static str) -> Result<(), Problem> {
    let wishes = request.headers().get(header::UPGRADE).is_some_and(|wish| wish.as_bytes() == protocol.as_bytes());
    if wishes {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade", format!("Upgrade: {protocol} is expected")))
}

/// Switches to `protocol`: `carry` has the connection from then on, until `no_longer`.
pub(super) fn switched<C>(
    state: &State,
    request: Request,
    protocol: &'static str,
    no_longer: impl Future<Output = ()> + Send + 'static,
    carry: impl FnOnce(TokioIo<Upgraded>) -> C + Send + 'static,
) -> Response
where
    C: Future<Output = std::io::Result<()>> + Send,
{
    let upgrade = hyper::upgrade::on(request);
    state.coordinator.seams.spawner.spawn(
        "upgraded",
        Box::pin(async move {
            match upgrade.await {
                Ok(connection) => {
                    let carried = tokio::select! {
                        carried = carry(TokioIo::new(connection)) => carried,
                        () = no_longer => Err(std::io::Error::other("its token is no longer good")),
                    };
                    if let Err(error) = carried {
                        tracing::debug!(%error, protocol, "an upgraded connection ended");
                    }
                }
                Err(error) => tracing::debug!(%error, protocol, "a connection was not upgraded"),
            }
        }),
    );
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(protocol)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
