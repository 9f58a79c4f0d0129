//! Connections: how many, how patiently, and what is said of bytes that are no request.
//!
//! What can't be parsed (an address or headers that are too long, no HTTP at all) is answered by the HTTP library itself,
//! without a word. [`Worded`] gives such an answer the shape of all others.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, http::StatusCode};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use ocopea_protocol::seams::Seams;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::Problem;

/// Connections at the same time; more wait to be taken.
const CONNECTIONS: usize = 2048;
/// Bytes of a request's head.
const LONGEST_HEAD: usize = 192 * 1024;
/// How long a connection may take to say what it wants.
const HEAD: Duration = Duration::from_secs(30);

/// Serves until `stop`, with TLS where it is given; requests that run then are finished.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    seams: Seams,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No file descriptor is free, or the peer was gone before it came.
                tracing::warn!(%error, "a connection could not be taken");
                seams.clock.sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        // Small answers are not held back for more.
        let _ = stream.set_nodelay(true);
        let (router, stop, tls, clock) = (router.clone(), stop.clone(), tls.clone(), seams.clone());
        seams.spawner.spawn(
            "http",
            Box::pin(async move {
                let ended = match tls {
                    None => attend(stream, router, &stop).await,
                    Some(tls) => match clock.timeout(HEAD, tls.accept(stream)).await {
                        Some(Ok(stream)) => attend(stream, router, &stop).await,
                        // Nothing was asked yet.
                        Some(Err(error)) => {
                            tracing::debug!(%error, "a connection did not come about");
                            Ok(())
                        }
                        None => Ok(()),
                    },
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
                drop(place);
            }),
        );
    }
}

async fn attend<S>(stream: S, router: Router, stop: &CancellationToken) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(Worded { inner: stream, pending: Vec::new() });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(io, TowerToHyperService::new(router))
        .with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// A stream on which no refusal goes out without words.
struct Worded<S> {
    inner: S,
    /// What was put in place of an answer, as far as it isn't written.
    pending: Vec<u8>,
}

/// A better answer than `head`, if that is a whole refusal with nothing in it: ours always say something.
fn worded(head: &[u8]) -> Option<Vec<u8>> {
    let text = head.strip_suffix(b"\r\n\r\n").and_then(|head| std::str::from_utf8(head).ok())?;
    let (first, rest) = text.split_once("\r\n")?;
    let status = first.strip_prefix("HTTP/1.1 ").or_else(|| first.strip_prefix("HTTP/1.0 "))?.get(..3)?;
    let status = status.parse().ok().and_then(|status| StatusCode::from_u16(status).ok())?;
    let refused = status.is_client_error() || status.is_server_error();
    let empty = rest.split("\r\n").any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    if !(refused && empty) {
        return None;
    }
    let why = match status {
        StatusCode::URI_TOO_LONG => "the address is longer than 65,534 bytes",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "the headers are too long, or too many",
        StatusCode::REQUEST_TIMEOUT => "the request's head took too long",
        _ => "this is no HTTP request that can be read",
    };
    let body = serde_json::to_string(&Problem::new(status, "request", why)).ok()?;
    let length = body.len();
    let kept = rest.split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("content-length:"));
    let mut out = format!("{first}\r\ncontent-type: application/problem+json\r\ncontent-length: {length}\r\n");
    kept.for_each(|line| out.push_str(&format!("{line}\r\n")));
    out.push_str("\r\n");
    out.push_str(&body);
    Some(out.into_bytes())
}

impl<S: AsyncWrite + Unpin> Worded<S> {
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Worded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Worded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        if let Some(better) = worded(buf) {
            self.pending = better;
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_without_words_is_given_some() {
        let bare = b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let better = String::from_utf8(worded(bare).unwrap()).unwrap();
        let (head, body) = better.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nconnection: close") && head.contains("application/problem+json"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())) && !head.contains("length: 0"), "{head}");
        assert!(serde_json::from_str::<Problem>(body).is_ok_and(|problem| problem.status == 414));
        for other in [
            &b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 4\r\n\r\n",
            b"\x01\x00\x00\x00\x05HTTP/",
            b"",
        ] {
            assert_eq!(worded(other), None);
        }
    }
}
