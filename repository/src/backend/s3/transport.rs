//! HTTP under `object_store`: the workspace's own client, with a limit on every wait.
//!
//! A request is given up when it can't connect, when no byte moves for [`Patience::stall`], when all of it takes
//! longer than its bytes would at [`Patience::slowest`], or when no answer comes. Answers that aren't a success become
//! [`Fault`]s here.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::{Body, Frame, SizeHint};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use ocopea_protocol::seams::{BoxFuture, Seams};

use super::fault::{Fault, Refusal, text_of};
use crate::error::Trouble;

/// Longest error document that is read.
const LONGEST_ERROR: usize = 64 << 10;
/// Longest document of a success that a service sends instead of an object.
const LONGEST_DOCUMENT: usize = 16 << 20;
/// Bytes that are handed to the connection at once: what progress is measured in.
const FRAME: usize = 128 << 10;
/// How much longer a service may take to copy an object or put its parts together.
const LONG_WORK: u32 = 10;

/// How long a store behind a network is waited for, and how often it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For an answer, once the request is sent.
    pub answer: Duration,
    /// While no byte moves.
    pub stall: Duration,
    /// Bytes per second below which a transfer is given up.
    pub slowest: u64,
    /// Tries of one request in all.
    pub tries: u32,
    /// The first wait between two tries; each further one is twice as long, with jitter.
    pub first_wait: Duration,
    /// The longest wait between two tries.
    pub longest_wait: Duration,
    /// No new try begins so long after the first.
    pub whole: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            stall: Duration::from_secs(20),
            slowest: 64 << 10,
            tries: 8,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(10),
            whole: Duration::from_secs(300),
        }
    }
}

impl Patience {
    /// How long a transfer of so many bytes may take.
    fn transfer(&self, bytes: u64) -> Duration {
        self.answer + Duration::from_millis(bytes.saturating_mul(1000) / self.slowest.max(1))
    }
}

/// What answers tell of the store.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Its clock at its last answer, in milliseconds; 0 before the first.
    pub(crate) date: AtomicI64,
    /// A deletion left a version.
    pub(crate) hides: AtomicBool,
}

impl Seen {
    fn look_at(&self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(date) = text("date").and_then(http_date) {
            self.date.store(date, Relaxed);
        }
        if text("x-amz-delete-marker") == Some("true") {
            self.hides.store(true, Relaxed);
        }
    }
}

/// Milliseconds of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<i64> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let seconds = time::PrimitiveDateTime::parse(text, format).ok()?.assume_utc().unix_timestamp();
    seconds.checked_mul(1000)
}

/// The client with its limits. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Transport {
    client: reqwest::Client,
    seams: Seams,
    patience: Patience,
    seen: Arc<Seen>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl Transport {
    /// `roots`: further certificate authorities, PEM.
    pub(crate) fn new(roots: &[u8], patience: Patience, seams: &Seams, seen: Arc<Seen>) -> Result<Self, Fault> {
        let certificate = |error: reqwest::Error| Fault::Trouble(Trouble::Certificate, told(&error));
        let mut builder = reqwest::Client::builder()
            .connect_timeout(patience.connect)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("ocopea/", env!("CARGO_PKG_VERSION")));
        if !roots.is_empty() {
            builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(roots).map_err(certificate)?);
        }
        let client = builder.build().map_err(certificate)?;
        Ok(Self { client, seams: seams.clone(), patience, seen })
    }

    /// For requests to others than the store.
    pub(crate) fn client(&self) -> reqwest::Client {
        self.client.clone()
    }

    pub(crate) fn http(&self) -> HttpClient {
        HttpClient::new(self.clone())
    }

    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, Fault> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse::<reqwest::Url>().map_err(|error| Fault::answer(error.to_string()))?;
        let length = body.content_length() as u64;
        let long = parts.method == Method::POST || parts.headers.contains_key("x-amz-copy-source");
        // Every query but that for a part asks for a document, not for an object's bytes.
        let asked = long || parts.uri.query().is_some_and(|query| parts.method == Method::GET && !query.is_empty());
        let head = parts.method == Method::HEAD;
        let sent = Arc::new(AtomicU64::new(0));
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(reqwest::Body::wrap(Sending { body, rest: Bytes::new(), sent: sent.clone() }));
        let answer = self.answer(self.client.execute(request), length, &sent, long).await?;
        let answer: http::Response<reqwest::Body> = answer.map_err(|error| unsent(&error))?.into();
        let (parts, body) = answer.into_parts();
        self.seen.look_at(&parts.headers);
        let known = parts.headers.get(http::header::CONTENT_LENGTH);
        let known: Option<u64> = known.and_then(|length| length.to_str().ok()).and_then(|length| length.parse().ok());
        let expected = known.filter(|_| !head);
        let span = match expected {
            Some(length) => self.patience.transfer(length),
            None => self.patience.answer * LONG_WORK,
        };
        let body = Receiving {
            body,
            expected,
            received: 0,
            timers: Mutex::new(Timers { end: self.seams.clock.sleep(span), stall: self.stall(), last: 0 }),
            transport: self.clone(),
        };
        let body = HttpResponseBody::new(body);
        if !parts.status.is_success() {
            let document = document(body, LONGEST_ERROR).await.unwrap_or_default();
            return Err(refused(parts.status.as_u16(), &parts.headers, &document));
        }
        if asked {
            // A service that began to answer may find out later that it can't.
            let document = document(body, LONGEST_DOCUMENT).await?;
            let text = String::from_utf8_lossy(&document);
            if text.contains("<Error>") {
                return Err(refused(500, &parts.headers, &document));
            }
            return Ok(HttpResponse::from_parts(parts, document.into()));
        }
        Ok(HttpResponse::from_parts(parts, body))
    }

    fn stall(&self) -> BoxFuture<()> {
        self.seams.clock.sleep(self.patience.stall)
    }

    /// Waits for the head of an answer for as long as bytes go out, and then for a time.
    async fn answer<T>(
        &self,
        call: impl Future<Output = T>,
        length: u64,
        sent: &AtomicU64,
        long: bool,
    ) -> Result<T, Fault> {
        let more = if long { self.patience.answer * LONG_WORK } else { Duration::ZERO };
        let mut end = self.seams.clock.sleep(self.patience.connect + self.patience.transfer(length) + more);
        let mut call = std::pin::pin!(call);
        let mut last = 0;
        loop {
            tokio::select! {
                biased;
                value = &mut call => return Ok(value),
                () = &mut end => return Err(Fault::unreachable("no answer came in time")),
                () = self.stall(), if last < length => {
                    let now = sent.load(Relaxed);
                    if now == last {
                        return Err(Fault::unreachable(format!("it took {now} of {length} bytes and no more")));
                    }
                    last = now;
                }
            }
        }
    }
}

/// All of a body, in bounds.
async fn document(mut body: HttpResponseBody, most: usize) -> Result<Vec<u8>, Fault> {
    let mut all = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| fault_in(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + data.len() > most {
            return Err(Fault::answer(format!("its answer is longer than {most} bytes")));
        }
        all.extend_from_slice(&data);
    }
    Ok(all)
}

fn fault_in(error: &HttpError) -> Fault {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Fault>());
    source.cloned().unwrap_or_else(|| Fault::unreachable(error.to_string()))
}

fn refused(status: u16, headers: &HeaderMap, document: &[u8]) -> Fault {
    let document = String::from_utf8_lossy(document);
    let header = headers.get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
    let region = header.or(Some(text_of(&document, "Region")).filter(|region| !region.is_empty()));
    let (code, message) = (text_of(&document, "Code"), text_of(&document, "Message"));
    Fault::refused(&Refusal { status, code, message, region })
}

/// An error and its sources in one line, without the request's URL.
fn told(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        let text = source.to_string();
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        next = source.source();
    }
    if parts.is_empty() { format!("{error:.200}") } else { parts.join(": ").chars().take(400).collect() }
}

/// No answer came.
fn unsent(error: &reqwest::Error) -> Fault {
    let why = told(error);
    if why.contains("certificate") {
        return Fault::Trouble(Trouble::Certificate, why);
    }
    let timeout = if error.is_timeout() && error.is_connect() { "no connection came about in time: " } else { "" };
    Fault::unreachable(format!("{timeout}{why}"))
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Of this kind nothing is tried again below: waits and tries are counted in one place.
        self.exchange(request).await.map_err(|fault| HttpError::new(HttpErrorKind::Unknown, fault))
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.http())
    }
}

/// A body on its way out, in small frames that are counted.
struct Sending {
    body: HttpRequestBody,
    rest: Bytes,
    sent: Arc<AtomicU64>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if self.rest.is_empty() {
            self.rest = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                other => return Poll::Ready(other),
            };
        }
        let length = self.rest.len().min(FRAME);
        let now = self.rest.split_to(length);
        self.sent.fetch_add(length as u64, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(now))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64 + self.body.size_hint().lower())
    }
}

/// A body on its way in: whole, and in time.
struct Receiving {
    body: reqwest::Body,
    expected: Option<u64>,
    received: u64,
    timers: Mutex<Timers>,
    transport: Transport,
}

struct Timers {
    end: BoxFuture<()>,
    stall: BoxFuture<()>,
    /// What had been received when the stall's timer was started.
    last: u64,
}

impl Receiving {
    fn given_up(&mut self, cx: &mut Context<'_>) -> Option<String> {
        let received = self.received;
        let again = self.transport.clone();
        let timers = self.timers.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if timers.end.as_mut().poll(cx).is_ready() {
            return Some(format!("its answer comes too slowly: {received} bytes so far"));
        }
        while timers.stall.as_mut().poll(cx).is_ready() {
            if timers.last == received {
                return Some(format!("its answer stopped after {received} bytes"));
            }
            timers.last = received;
            timers.stall = again.stall();
        }
        None
    }
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let failed = |fault: Fault| Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Unknown, fault))));
        if let Some(why) = self.given_up(cx) {
            return failed(Fault::unreachable(why));
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                self.received += frame.data_ref().map_or(0, |data| data.len() as u64);
                match self.expected {
                    Some(expected) if self.received > expected => {
                        failed(Fault::answer(format!("it sends more than the {expected} bytes that it announced")))
                    }
                    _ => Poll::Ready(Some(Ok(frame))),
                }
            }
            Some(Err(error)) => failed(Fault::unreachable(format!(
                "its answer broke off after {} bytes: {}",
                self.received,
                told(&error)
            ))),
            None => match self.expected {
                Some(expected) if self.received != expected => {
                    failed(Fault::unreachable(format!("its answer ended after {} of {expected} bytes", self.received)))
                }
                _ => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.expected.is_none_or(|expected| expected == self.received)
    }

    // Nobody sets memory aside for what a service only announces.
    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_answers_are_read_as_the_stores_clock() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000));
        assert_eq!(http_date("yesterday"), None);
        assert_eq!(http_date(""), None);
    }

    #[test]
    fn a_transfer_may_take_as_long_as_the_slowest_would() {
        let patience = Patience { answer: Duration::from_secs(1), slowest: 1000, ..Patience::default() };
        assert_eq!(patience.transfer(5000), Duration::from_secs(6));
        assert!(patience.transfer(u64::MAX) > Duration::from_secs(1));
    }
}
