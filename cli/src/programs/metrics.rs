//! Where what is measured is read: an address of its own, without tokens.

use std::{net::SocketAddr, sync::Arc};

use ocopea_coordinator::api;
use ocopea_protocol::seams::{BoxFuture, Seams};
use tokio_util::sync::CancellationToken;

use super::settings::Values;
use crate::{client::Failure, output};

/// Reads the setting.
pub(super) fn setting(values: &mut Values) -> Option<SocketAddr> {
    values.optional("metrics-listen", address)
}

/// An address to serve at.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?}: an IP address and a port are expected, as 0.0.0.0:9400"))
}

/// Serves them until `stop`, where that is wanted.
pub(super) async fn serve(
    at: Option<SocketAddr>,
    measured: Arc<dyn Fn() -> BoxFuture<String> + Send + Sync>,
    seams: &Seams,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let Some(at) = at else { return Ok(()) };
    let listener = tokio::net::TcpListener::bind(at).await.map_err(|error| {
        Failure::local(format!("can't serve metrics at {at}: {error}"))
            .next("choose another address with --metrics-listen")
    })?;
    let at = listener.local_addr().map_err(|error| Failure::local(error.to_string()))?;
    output::line(format!("metrics: http://{at}/metrics"));
    let serving = api::serve(listener, None, api::metrics(measured), seams.clone(), stop.clone());
    seams.spawner.spawn("metrics", Box::pin(serving));
    Ok(())
}
