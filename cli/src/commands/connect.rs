//! `ocopea connect`: a port of this machine that leads to a service of an environment, wherever that runs.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ocopea_coordinator::api::connect::{Connection, PROTOCOL};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use super::segment;
use crate::{
    client::{Client, Failure},
    output::{self, line},
};

/// Connections at a time.
const MOST: usize = 128;
/// The pause after a connection that could not be taken: out of file descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn connect(client: &Client, environment: &str, service: &str, port: u16) -> Result<(), Failure> {
    let fault = |error: std::io::Error| {
        Failure::local(format!("can't listen at port {port} of this machine: {error}"))
            .next("choose another port with --port, or let the system choose one")
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(fault)?;
    let address = listener.local_addr().map_err(fault)?;
    let path: Arc<str> =
        format!("/api/v1/environments/{}/connections/{}", segment(environment), segment(service)).into();
    let way: Connection = client.get(&format!("{path}?address={address}")).await?;
    line(&way.connection);
    output::remark(format!("{} listens at {address} until interrupted (Ctrl-C)", way.what));
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(()),
        never = serve(client, &path, &listener) => match never {},
    }
}

async fn serve(client: &Client, path: &Arc<str>, listener: &TcpListener) -> std::convert::Infallible {
    let seams = ocopea_protocol::seams::Seams::real(Default::default());
    let room = Arc::new(Semaphore::new(MOST));
    let mut connections = JoinSet::new();
    loop {
        // Ended ones are of no further interest.
        while connections.try_join_next().is_some() {}
        let permit = Arc::clone(&room).acquire_owned().await;
        let Ok((connection, from)) = listener.accept().await else {
            seams.clock.sleep(PAUSE).await;
            continue;
        };
        let (client, path) = (client.clone(), Arc::clone(path));
        connections.spawn(async move {
            let _permit = permit;
            if let Err(failure) = carry(&client, &path, connection, from).await {
                let why = [failure.what, failure.cause, failure.next].into_iter().filter(|words| !words.is_empty());
                output::remark(format!("a connection was not made: {}", why.collect::<Vec<_>>().join("; ")));
            }
        });
    }
}

async fn carry(client: &Client, path: &str, mut connection: TcpStream, from: SocketAddr) -> Result<(), Failure> {
    let mut upgraded = client.upgrade(path, &[], PROTOCOL).await?;
    // Small requests and answers go back and forth: waiting for more bytes would only add latency.
    let carried = match connection.set_nodelay(true) {
        Ok(()) => tokio::io::copy_bidirectional(&mut connection, &mut upgraded).await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = carried {
        // Either end may leave as it likes.
        tracing::debug!(%error, %from, "a connection ended");
    }
    Ok(())
}
