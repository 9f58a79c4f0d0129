//! One request after the other, each tried as often as [`Patience`] allows, and every answer looked at.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::Method;
use object_store::{
    Attribute, Attributes, CopyOptions, GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, Checksum},
    client::{CredentialProvider, HttpClient, HttpRequestBody},
};
use ocopea_protocol::seams::Seams;

use super::{
    fault::Fault,
    keys::Renewing,
    place::Place,
    transport::{Patience, Seen, Transport},
};
use crate::{
    backend::{Entry, Put, limited::Throttle},
    error::{Error, Result, Trouble},
};

/// Set aside for an object before its bytes come.
const SET_ASIDE: u64 = 4 << 20;
/// Metadata of objects that are made only where there is none: which call made them.
const WRITE_ID: &str = "ocopea-write";

/// What all calls to one place have in common.
pub(crate) struct Common {
    pub(crate) place: Place,
    pub(crate) seams: Seams,
    pub(crate) patience: Patience,
    pub(crate) keys: Arc<Renewing>,
    pub(crate) seen: Arc<Seen>,
    transport: Transport,
    http: HttpClient,
    throttle: Arc<Throttle>,
    retries: AtomicU64,
}

/// Calls with one kind of checksum. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) store: AmazonS3,
    pub(crate) common: Arc<Common>,
}

/// A fault that stayed, and how often it was tried.
pub(crate) struct Failed {
    pub(crate) fault: Fault,
    pub(crate) tries: u32,
}

/// For `map_err`.
pub(crate) fn fault(error: object_store::Error) -> Fault {
    Fault::of(&error)
}

impl Calls {
    pub(crate) fn new(
        place: Place,
        transport: Transport,
        keys: Arc<Renewing>,
        seen: Arc<Seen>,
        (patience, throttle): (Patience, Arc<Throttle>),
        seams: &Seams,
    ) -> Result<Self> {
        let common = Common {
            place,
            seams: seams.clone(),
            patience,
            keys,
            seen,
            http: transport.http(),
            transport,
            throttle,
            retries: AtomicU64::new(0),
        };
        let common = Arc::new(common);
        Ok(Self { store: common.store(None)?, common })
    }

    /// The same with another checksum on what is sent.
    pub(crate) fn with_checksum(&self, checksum: Option<Checksum>) -> Result<Self> {
        Ok(Self { store: self.common.store(checksum)?, common: self.common.clone() })
    }

    /// Requests that were sent once more, since the place was opened.
    pub(crate) fn retries(&self) -> u64 {
        self.common.retries.load(Relaxed)
    }

    pub(crate) fn failed(&self, action: &'static str, object: &str, failed: Failed) -> Error {
        failed.fault.into_error(action, object, &self.common.place.to_string(), failed.tries)
    }

    /// Tries `once` until it succeeds, fails for good, or has been tried often and long enough.
    pub(crate) async fn tried<T, F>(&self, once: impl Fn(u32) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let common = &self.common;
        let (clock, patience) = (&common.seams.clock, &common.patience);
        let begun = clock.monotonic();
        let (mut tries, mut wait, mut renewed) = (1, patience.first_wait, false);
        loop {
            let used = common.keys.id();
            let done = {
                let _turn = common.throttle.turn().await;
                once(tries).await
            };
            let fault = match done {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            let newer = fault.is_about_keys() && !renewed && common.keys.renew(used.as_deref()).await;
            renewed |= fault.is_about_keys();
            // Keys that ended don't come back by waiting; other keys are tried at once.
            let again = newer || (fault.may_pass() && !fault.is_about_keys());
            if !again || tries >= patience.tries || clock.monotonic().saturating_sub(begun) >= patience.whole {
                return Err(Failed { fault, tries });
            }
            common.retries.fetch_add(1, Relaxed);
            tracing::debug!(%fault, tries, place = %common.place, "the store is asked once more");
            if !newer {
                clock.sleep(common.seams.jittered(wait)).await;
                wait = (wait * 2).min(patience.longest_wait);
            }
            tries += 1;
        }
    }

    /// Writes an object, over what may be there.
    pub(crate) async fn put(&self, name: &str, payload: PutPayload) -> Result<(), Failed> {
        let path = self.common.place.path(name);
        self.tried(|_| {
            let (payload, path) = (payload.clone(), &path);
            async move { self.store.put(path, payload).await.map(drop).map_err(fault) }
        })
        .await
    }

    /// Makes an object where there is none, by the service's own check.
    pub(crate) async fn create(&self, name: &str, bytes: &Bytes) -> Result<Put, Failed> {
        let path = self.common.place.path(name);
        let id = self.common.seams.uuid().simple().to_string();
        let attributes = Attributes::from_iter([(Attribute::Metadata(WRITE_ID.into()), id.clone())]);
        self.tried(|tries| {
            let options = PutOptions { mode: PutMode::Create, attributes: attributes.clone(), ..PutOptions::default() };
            let (path, id) = (&path, &id);
            async move {
                match self.store.put_opts(path, bytes.clone().into(), options).await.map_err(fault) {
                    Ok(_) => Ok(Put::Created),
                    // It may have been made by an earlier try whose answer was lost.
                    Err(Fault::Exists) if tries > 1 && self.made_by(path, id).await? => Ok(Put::Created),
                    Err(Fault::Exists) => Ok(Put::Existed),
                    Err(fault) => Err(fault),
                }
            }
        })
        .await
    }

    async fn made_by(&self, path: &object_store::path::Path, id: &str) -> Result<bool, Fault> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let there = match self.store.get_opts(path, options).await.map_err(fault) {
            Ok(there) => there,
            // Made and deleted again: by whom can't be told; the call before it is done again.
            Err(Fault::Missing) => return Ok(false),
            Err(fault) => return Err(fault),
        };
        Ok(there.attributes.get(&Attribute::Metadata(WRITE_ID.into())).is_some_and(|made| made.as_ref() == id))
    }

    /// Whether an object of that size is there. For use within one try: it takes no turn of its own, since whoever holds
    /// one and waits for another may wait for ever.
    pub(crate) async fn is_there(&self, path: &object_store::path::Path, size: u64) -> Result<bool, Fault> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.store.get_opts(path, options).await.map_err(fault) {
            Ok(there) => Ok(there.meta.size == size),
            Err(Fault::Missing) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Reads a whole object; one that is longer than `limit` bytes is told by its size.
    pub(crate) async fn get(&self, name: &str, limit: u64) -> Result<Result<Bytes, u64>, Failed> {
        let path = self.common.place.path(name);
        self.tried(|_| {
            let path = &path;
            async move {
                let found = self.store.get_opts(path, GetOptions::default()).await.map_err(fault)?;
                let size = found.meta.size;
                if size > limit {
                    return Ok(Err(size));
                }
                body(found, size).await.map(Ok)
            }
        })
        .await
    }

    /// Reads a part; shorter only where the object ends.
    pub(crate) async fn range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, Failed> {
        let path = self.common.place.path(name);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let range = GetRange::Bounded(offset..offset.saturating_add(length));
        let read = self.tried(|_| {
            let options = GetOptions { range: Some(range.clone()), ..GetOptions::default() };
            let path = &path;
            async move {
                let found = self.store.get_opts(path, options).await.map_err(fault)?;
                let expected = found.meta.size.min(offset.saturating_add(length)).saturating_sub(offset);
                if found.range.start != offset || found.range.end - found.range.start != expected {
                    return Err(Fault::answer(format!("it gave bytes {:?} where others were asked for", found.range)));
                }
                body(found, expected).await
            }
        });
        match read.await {
            Err(Failed { fault: Fault::Range, tries }) => match self.head(name).await? {
                Some(entry) if entry.size > offset => {
                    Err(Failed { fault: Fault::answer("it says that the object ends before it does"), tries })
                }
                Some(_) => Ok(Bytes::new()),
                None => Err(Failed { fault: Fault::Missing, tries }),
            },
            other => other,
        }
    }

    /// Size and time.
    pub(crate) async fn head(&self, name: &str) -> Result<Option<Entry>, Failed> {
        let path = self.common.place.path(name);
        self.tried(|_| {
            let path = &path;
            async move {
                let options = GetOptions { head: true, ..GetOptions::default() };
                match self.store.get_opts(path, options).await.map_err(fault) {
                    Ok(found) => entry(name.to_owned(), &found.meta).map(Some),
                    Err(Fault::Missing) => Ok(None),
                    // The answer to HEAD has no body that would tell why; that to GET has.
                    Err(first @ Fault::Trouble(Trouble::Rights | Trouble::Answer | Trouble::Region, _)) => {
                        let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
                        let second = self.store.get_opts(path, options).await.map_err(fault);
                        Err(second.err().filter(|fault| matches!(fault, Fault::Trouble(..))).unwrap_or(first))
                    }
                    Err(fault) => Err(fault),
                }
            }
        })
        .await
    }

    /// Removes an object; one that isn't there is fine.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), Failed> {
        let path = self.common.place.path(name);
        self.tried(|_| {
            let path = &path;
            async move {
                match self.store.delete(path).await.map_err(fault) {
                    Ok(()) | Err(Fault::Missing) => Ok(()),
                    // A bucket that keeps everything for a time.
                    Err(Fault::Unsupported(why)) => Err(Fault::Trouble(Trouble::Rights, why)),
                    Err(fault) => Err(fault),
                }
            }
        })
        .await
    }

    /// Copies an object within the store, over what may be there.
    pub(crate) async fn copy(&self, from: &str, to: &str) -> Result<(), Failed> {
        let (from, to) = (self.common.place.path(from), self.common.place.path(to));
        self.tried(|_| {
            let (from, to) = (&from, &to);
            async move { self.store.copy_opts(from, to, CopyOptions::default()).await.map_err(fault) }
        })
        .await
    }

    /// A request that the library doesn't know, signed by it. `query` begins with '?', or is empty.
    pub(crate) async fn raw(
        &self,
        method: Method,
        key: Option<&str>,
        query: &str,
        header: Option<(&'static str, &str)>,
        body: Bytes,
    ) -> Result<Bytes, Fault> {
        let common = &self.common;
        let key = key.map(|key| format!("/{key}")).unwrap_or_default();
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{key}{query}", common.place.bucket_url()))
            .header(http::header::CONTENT_LENGTH, body.len());
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let mut request =
            request.body(HttpRequestBody::from(body)).map_err(|error| Fault::answer(error.to_string()))?;
        let signing = common.keys.get_credential().await.map_err(fault)?;
        let authorizer = AwsAuthorizer::new(&signing, "s3", &common.place.region);
        authorizer.try_authorize(&mut request, None).map_err(fault)?;
        let of = |error: object_store::client::HttpError| {
            let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Fault>());
            source.cloned().unwrap_or_else(|| Fault::unreachable(error.to_string()))
        };
        common.http.execute(request).await.map_err(of)?.into_body().bytes().await.map_err(of)
    }
}

impl Common {
    fn store(&self, checksum: Option<Checksum>) -> Result<AmazonS3> {
        let never = RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.place.bucket)
            .with_region(&self.place.region)
            // With the bucket in it, wherever that stands.
            .with_endpoint(self.place.bucket_url())
            .with_virtual_hosted_style_request(true)
            .with_credentials(self.keys.clone())
            .with_http_connector(self.transport.clone())
            // Counted and waited for in one place: `tried`.
            .with_retry(never)
            .with_disable_bulk_delete(true)
            // Where TLS keeps the bytes as they are, a signature needn't go over them once more.
            .with_unsigned_payload(!self.place.is_plain());
        if let Some(checksum) = checksum {
            builder = builder.with_checksum_algorithm(checksum);
        }
        builder.build().map_err(|error| Error::Misuse(format!("{}: {error:.300}", self.place)))
    }
}

/// All bytes of an answer: as many as there should be.
async fn body(found: GetResult, expected: u64) -> Result<Bytes, Fault> {
    let mut stream = found.into_stream();
    let mut all = BytesMut::with_capacity(usize::try_from(expected.min(SET_ASIDE)).unwrap_or(0));
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(fault)?;
        if (all.len() + piece.len()) as u64 > expected {
            return Err(Fault::answer(format!("it sent more than {expected} bytes")));
        }
        all.extend_from_slice(&piece);
    }
    if all.len() as u64 == expected {
        Ok(all.freeze())
    } else {
        Err(Fault::unreachable(format!("its answer ended after {} of {expected} bytes", all.len())))
    }
}

/// As the repository sees it. Answers to HEAD have whole seconds only, so listings count no finer.
pub(crate) fn entry(name: String, meta: &object_store::ObjectMeta) -> Result<Entry, Fault> {
    match meta.last_modified.timestamp() {
        seconds if seconds > 0 => Ok(Entry { name, size: meta.size, modified: seconds.saturating_mul(1000) }),
        _ => Err(Fault::answer("it doesn't tell when the object was written")),
    }
}
