//! The way to the broker: TCP, TLS, and the runtime that the client library is given.
//!
//! The library runs on what it is handed. It gets a stream that can be cut off at any time (its thread then ends,
//! whatever the network does), whose bytes went through the [guard](super::guard), and an executor that sleeps and
//! spawns through [`Seams`].

use std::{
    future::Future,
    io::{self, Read, Write},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{
    Runtime,
    traits::{Executor, Reactor, RuntimeKit},
    util::{DummyIO, Task, TaskImpl},
};
use futures::{FutureExt, Stream, stream};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, uri};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::Handle,
    sync::oneshot,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    address::{InvalidSettings, Settings},
    guard::{FRAME, Guard},
};
use crate::{
    seams::{BoxFuture, Seams},
    secret::Secret,
};

/// Channels of one connection at most.
const CHANNELS: u16 = 160;
/// Certificates that are read from settings at most.
const CERTIFICATES: usize = 1024;

/// What TLS connections are checked by.
pub(super) fn tls(settings: &Settings) -> Result<Arc<ClientConfig>, InvalidSettings> {
    let refused = |why: String| InvalidSettings {
        what: "can't verify a broker",
        why,
        next: "give the certificates (PEM) of the authority that signed the broker's",
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?;
    let Some(certificates) = &settings.certificates else {
        let verifier = builder.with_platform_verifier().map_err(|error| refused(error.to_string()))?;
        return Ok(Arc::new(verifier.with_no_client_auth()));
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(certificates.as_bytes()).take(CERTIFICATES) {
        let certificate =
            certificate.map_err(|error| refused(format!("the given certificates can't be read: {error}")))?;
        roots.add(certificate).map_err(|error| refused(format!("a given certificate can't be used: {error}")))?;
    }
    if roots.is_empty() {
        return Err(refused("there is no certificate in what was given".to_owned()));
    }
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// A connection, and what cuts it off.
pub(super) struct Open {
    pub(super) connection: Connection,
    /// Cuts the stream when dropped.
    pub(super) cut: Cut,
}

/// Cuts a stream when dropped: everything that waits for it ends with an error.
pub(super) struct Cut(CancellationToken);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Why there is no connection.
pub(super) enum NoConnection {
    /// Nobody there, or not in time, or nobody that is to be trusted.
    Unreachable(String),
    /// The broker was there and said no.
    Library(lapin::Error),
}

/// Connects and signs in. Takes as long as it takes: the caller sets the limit and drops this.
pub(super) async fn open(
    settings: &Settings,
    password: &Secret,
    tls: &Arc<ClientConfig>,
    seams: &Seams,
) -> Result<Open, NoConnection> {
    let unreachable = |what: &str, error: &dyn std::fmt::Display| {
        NoConnection::Unreachable(format!("{what} {}: {error}", settings.address))
    };
    let address = &settings.address;
    let tcp = TcpStream::connect((address.host.as_str(), address.port))
        .await
        .map_err(|error| unreachable("nobody answers at", &error))?;
    tcp.set_nodelay(true).map_err(|error| unreachable("can't connect to", &error))?;
    let socket = if address.tls {
        let name =
            ServerName::try_from(address.host.clone()).map_err(|error| unreachable("no name to verify:", &error))?;
        let secured = tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
        Socket::Tls(Box::new(secured.map_err(|error| unreachable("no TLS with", &error))?))
    } else {
        Socket::Plain(tcp)
    };
    let token = CancellationToken::new();
    let cut = Cut(token.clone());
    let cancelled = Box::pin(token.clone().cancelled_owned());
    let stream = GuardedStream { socket, guard: Guard::default(), read: vec![0; 32 * 1024], token, cancelled };
    // It connects once: whoever wants another connection comes here again.
    let ready = Mutex::new(Some(stream));
    let runtime = Runtime::new(Kit { seams: seams.clone(), handle: Handle::current() });
    let connect = async move |_, _| {
        let stream = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stream = stream.ok_or_else(|| lapin::Error::from(io::Error::from(io::ErrorKind::ConnectionAborted)))?;
        Ok(AsyncTcpStream::Plain(stream))
    };
    let uri = uri::AMQPUri {
        scheme: if address.tls { uri::AMQPScheme::AMQPS } else { uri::AMQPScheme::AMQP },
        authority: uri::AMQPAuthority {
            userinfo: uri::AMQPUserInfo { username: settings.user.clone(), password: password.reveal().to_owned() },
            host: address.host.clone(),
            port: address.port,
        },
        vhost: address.vhost.clone(),
        query: uri::AMQPQueryString {
            frame_max: Some(FRAME),
            channel_max: Some(CHANNELS),
            heartbeat: Some(u16::try_from(settings.heartbeat.as_secs()).unwrap_or(60)),
            connection_timeout: None,
            auth_mechanism: Some(uri::SASLMechanism::Plain),
        },
    };
    let properties = ConnectionProperties::default().with_connection_name(settings.name.as_str().into());
    let connection = Connection::connector(uri, runtime, connect, properties).await.map_err(NoConnection::Library)?;
    Ok(Open { connection, cut })
}

enum Socket {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Socket {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

/// What the library reads from and writes to.
pub(super) struct GuardedStream {
    socket: Socket,
    guard: Guard,
    read: Vec<u8>,
    token: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl GuardedStream {
    fn uncut(&self) -> io::Result<()> {
        if self.token.is_cancelled() { Err(io::Error::from(io::ErrorKind::ConnectionAborted)) } else { Ok(()) }
    }
}

impl futures::io::AsyncRead for GuardedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(this.uncut().map(|()| 0));
        }
        loop {
            let given = this.guard.give(buffer);
            if given > 0 || buffer.is_empty() {
                return Poll::Ready(Ok(given));
            }
            let mut read = ReadBuf::new(&mut this.read);
            ready!(this.socket.poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(0));
            }
            this.guard.take(read.filled())?;
        }
    }
}

impl futures::io::AsyncWrite for GuardedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.uncut()?;
        match &mut self.get_mut().socket {
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.uncut()?;
        match &mut self.get_mut().socket {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Never waits: the library's thread calls it when the other side is believed dead.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = match &mut self.get_mut().socket {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        if closed.is_pending() { Poll::Ready(Ok(())) } else { closed }
    }
}

/// Runs the library's own tasks.
#[derive(Clone)]
pub(super) struct Kit {
    seams: Seams,
    handle: Handle,
}

impl std::fmt::Debug for Kit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kit")
    }
}

/// What the library may wait for. One that was never finished is waited for in vain: the library lets go of all that
/// it starts.
pub(super) struct Spawned<T>(oneshot::Receiver<T>);

impl<T> Future for Spawned<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match self.0.poll_unpin(cx) {
            Poll::Ready(Ok(value)) => Poll::Ready(value),
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: Send + 'static> TaskImpl for Spawned<T> {}

impl Executor for Kit {
    type Task<T: Send + 'static> = Spawned<T>;

    fn block_on<T, F: Future<Output = T>>(&self, work: F) -> T {
        self.handle.block_on(work)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, work: F) -> Task<Spawned<T>> {
        let (done, value) = oneshot::channel();
        // Nobody may be waiting for the value.
        let work = work.map(|value| drop(done.send(value)));
        let _inside = self.handle.enter();
        self.seams.spawner.spawn("rabbitmq.library", Box::pin(work));
        Spawned(value).into()
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Spawned<T>> {
        let (done, value) = oneshot::channel();
        let _inside = self.handle.enter();
        self.seams.spawner.spawn_blocking("rabbitmq.library", Box::new(|| drop(done.send(work()))));
        Spawned(value).into()
    }
}

impl Reactor for Kit {
    type TcpStream = GuardedStream;
    type Sleep = BoxFuture<()>;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl futures::io::AsyncRead + futures::io::AsyncWrite + Send + Unpin + 'static> {
        // Streams are made by `open`, and handed over ready.
        Err::<DummyIO, _>(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        let _inside = self.handle.enter();
        self.seams.clock.sleep(span)
    }

    fn interval(&self, _span: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        stream::pending()
    }

    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<GuardedStream>> + Send + 'static {
        std::future::ready(Err(io::Error::from(io::ErrorKind::Unsupported)))
    }
}

impl RuntimeKit for Kit {}
