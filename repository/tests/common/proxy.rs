//! Stands in front of a real S3 server and does what networks, gateways and overloaded services do.
//!
//! It reads one request after the other, asks its rule what to do with it, and passes it on byte by byte: signatures
//! stay right, since nothing that was signed is changed unless the rule says so.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use object_store::{
    aws::{AwsAuthorizer, AwsCredential},
    client::HttpRequestBody,
};
use ocopea_protocol::image::StoreKeys;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub length: usize,
    /// Which request it is, from 0.
    pub number: usize,
}

impl Asked {
    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }
}

/// An answer, to be changed.
#[derive(Debug)]
pub struct Answered {
    pub head: String,
    pub body: Vec<u8>,
}

/// What is done with a request.
#[derive(Clone)]
pub enum Do {
    Pass,
    /// Answers itself: status and code.
    Refuse(u16, &'static str),
    /// Breaks the connection off instead of passing it on.
    Reset,
    /// Passes it on and breaks off instead of answering.
    Lose,
    /// Says nothing.
    Stall,
    /// Passes so many bytes of the answer's body, then breaks off.
    Cut(usize),
    /// Passes so many bytes of the answer's body, then says nothing.
    Hang(usize),
    /// Passes the answer's body byte by byte, so far apart.
    Drip(Duration),
    /// Passes it on without its condition, signed anew: as a gateway does that doesn't know conditions.
    Unconditional(StoreKeys),
    /// Changes the answer.
    Change(fn(&mut Answered)),
}

type Rule = Arc<dyn Fn(&Asked) -> Do + Send + Sync>;

pub struct Proxy {
    pub endpoint: String,
    rule: Arc<Mutex<Rule>>,
    /// Requests so far.
    pub asked: Arc<AtomicUsize>,
    /// Requests that weren't just passed on.
    pub harmed: Arc<AtomicUsize>,
    /// The most requests that the server was asked at the same time.
    pub most: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// In front of `http://HOST:PORT`; passes everything.
    #[expect(clippy::disallowed_methods, reason = "a server of the test's own")]
    pub async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let pass: Rule = Arc::new(|_| Do::Pass);
        let rule = Arc::new(Mutex::new(pass));
        let (asked, harmed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let server = server.trim_start_matches("http://").to_owned();
        let most = Arc::new(AtomicUsize::new(0));
        let counts = Counts { asked: asked.clone(), harmed: harmed.clone(), now: Arc::default(), most: most.clone() };
        let rules = rule.clone();
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (server, rules, counts) = (server.clone(), rules.clone(), counts.clone());
                // A client that goes away is none of its faults.
                open.spawn(async move { drop(serve(client, &server, &rules, &counts).await) });
            }
        });
        Self { endpoint, rule, asked, harmed, most, task }
    }

    pub fn rule(&self, rule: impl Fn(&Asked) -> Do + Send + Sync + 'static) {
        *self.rule.lock().unwrap() = Arc::new(rule);
    }

    /// Passes everything again; answers for how many requests were harmed.
    pub fn heal(&self) -> usize {
        self.rule(|_| Do::Pass);
        self.harmed.swap(0, SeqCst)
    }
}

async fn head_of(stream: &mut TcpStream, rest: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            let later = rest.split_off(end + 4);
            let head = String::from_utf8_lossy(rest).into_owned();
            *rest = later;
            return Ok(Some(head));
        }
        let mut piece = vec![0; 16 << 10];
        match stream.read(&mut piece).await? {
            0 => return Ok(None),
            length => rest.extend_from_slice(&piece[..length]),
        }
    }
}

fn headers(head: &str) -> BTreeMap<String, String> {
    let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect()
}

fn reset(client: &TcpStream) {
    // Closed at once, whatever is still under way.
    let _ = client.set_zero_linger();
}

async fn forever() -> io::Result<()> {
    std::future::pending().await
}

#[derive(Clone)]
struct Counts {
    asked: Arc<AtomicUsize>,
    harmed: Arc<AtomicUsize>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

async fn serve(mut client: TcpStream, server: &str, rules: &Mutex<Rule>, counts: &Counts) -> io::Result<()> {
    let mut rest = Vec::new();
    while let Some(head) = head_of(&mut client, &mut rest).await? {
        let headers = headers(&head);
        let length: usize = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut words = head.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let number = counts.asked.fetch_add(1, SeqCst);
        let request = Asked { method, path, headers, length, number };
        let rule = rules.lock().unwrap().clone();
        let todo = rule(&request);
        counts.harmed.fetch_add(usize::from(!matches!(todo, Do::Pass)), SeqCst);
        match todo {
            Do::Reset => {
                reset(&client);
                return Ok(());
            }
            Do::Stall => return forever().await,
            _ => {}
        }
        while rest.len() < length {
            let mut piece = vec![0; 64 << 10];
            match client.read(&mut piece).await? {
                0 => return Ok(()),
                more => rest.extend_from_slice(&piece[..more]),
            }
        }
        let later = rest.split_off(length);
        let body = std::mem::replace(&mut rest, later);
        counts.most.fetch_max(counts.now.fetch_add(1, SeqCst) + 1, SeqCst);
        let answered = match todo {
            Do::Refuse(status, code) => Ok(refusal(status, code)),
            Do::Unconditional(ref keys) if request.headers.contains_key("if-none-match") => {
                passed_on(server, &unconditional(&head, &request, keys), &body).await
            }
            _ => passed_on(server, &head, &body).await,
        };
        counts.now.fetch_sub(1, SeqCst);
        let mut answered = answered?;
        if request.method == "HEAD" {
            answered.body.clear();
        }
        match todo {
            Do::Lose => {
                reset(&client);
                return Ok(());
            }
            Do::Change(change) => {
                change(&mut answered);
                // An answer to HEAD tells the length of a body that it doesn't have.
                if request.method != "HEAD" {
                    let told = format!("content-length: {}", answered.body.len());
                    answered.head = replaced(&answered.head, "content-length", &told);
                }
            }
            _ => {}
        }
        client.write_all(answered.head.as_bytes()).await?;
        match todo {
            Do::Cut(bytes) | Do::Hang(bytes) => {
                client.write_all(answered.body.get(..bytes).unwrap_or(&answered.body)).await?;
                client.flush().await?;
                if matches!(todo, Do::Hang(_)) {
                    return forever().await;
                }
                return Ok(());
            }
            Do::Drip(pause) => {
                let clock = super::seams().clock;
                for byte in &answered.body {
                    client.write_all(&[*byte]).await?;
                    clock.sleep(pause).await;
                }
            }
            _ => client.write_all(&answered.body).await?,
        }
    }
    Ok(())
}

fn refusal(status: u16, code: &str) -> Answered {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>said by the proxy</Message></Error>");
    let head =
        format!("HTTP/1.1 {status} No\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n", body.len());
    Answered { head, body: body.into_bytes() }
}

/// A head with another line for a header.
pub fn replaced(head: &str, name: &str, line: &str) -> String {
    let kept = head.trim_end().split("\r\n").filter(|line| {
        let named = line.split(':').next().unwrap_or_default();
        !named.eq_ignore_ascii_case(name)
    });
    let mut lines: Vec<&str> = kept.collect();
    lines.extend(Some(line).filter(|line| !line.is_empty()));
    format!("{}\r\n\r\n", lines.join("\r\n"))
}

/// The head without its condition, under a signature that fits.
fn unconditional(head: &str, request: &Asked, keys: &StoreKeys) -> String {
    let url = format!("http://{}{}", request.headers["host"], request.path);
    let signed = AwsCredential { key_id: keys.id.clone(), secret_key: keys.secret.reveal().to_owned(), token: None };
    let mut again = http::Request::builder().method(request.method.as_str()).uri(url);
    let old = ["if-none-match", "authorization", "host", "x-amz-date", "x-amz-content-sha256"];
    for (name, value) in request.headers.iter().filter(|(name, _)| !old.contains(&name.as_str())) {
        again = again.header(name, value);
    }
    let mut again = again.body(HttpRequestBody::empty()).unwrap();
    let digest = hex::decode(&request.headers["x-amz-content-sha256"]).unwrap();
    AwsAuthorizer::new(&signed, "s3", "us-east-1").try_authorize(&mut again, Some(&digest)).unwrap();
    let mut out = format!("{}\r\nhost: {}\r\n", head.split("\r\n").next().unwrap(), request.headers["host"]);
    for (name, value) in again.headers() {
        out.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    format!("{out}\r\n")
}

async fn passed_on(server: &str, head: &str, body: &[u8]) -> io::Result<Answered> {
    let mut upstream = TcpStream::connect(server).await?;
    // One connection for each request: its end is the answer's.
    let head = replaced(head, "connection", "connection: close");
    upstream.write_all(head.as_bytes()).await?;
    upstream.write_all(body).await?;
    let mut all = Vec::new();
    let head = head_of(&mut upstream, &mut all).await?.unwrap_or_default();
    upstream.read_to_end(&mut all).await?;
    Ok(Answered { head: replaced(&head, "connection", ""), body: all })
}
