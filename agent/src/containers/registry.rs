//! One registry, spoken to through `oci-client`; deletion, which that lacks, directly.

use std::{str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use ocopea_protocol::{failure::TaskFailure, names::Digest, seams::Seams};
use tokio_util::sync::CancellationToken;

use super::{
    credentials::{Credential, Credentials},
    manifest::{self, ACCEPTED, Manifest},
};

/// Tries per request, with growing pauses between.
const TRIES: u32 = 4;

/// Tags that are asked for at once, and at most.
const TAGS_PER_PAGE: usize = 1000;
const MOST_TAGS: usize = 10_000;
/// The code of what a registry refuses for want of credentials.
pub(super) const DENIED: &str = "registry.denied";

/// What to do about a registry that serves what wasn't asked for.
pub(super) const DAMAGED: &str =
    "the registry's storage is damaged or it is not the one that it claims to be; push the image again";

/// A site's registry: `[http://]HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryHost {
    /// Spoken to without TLS.
    pub plain: bool,
    /// `HOST[:PORT]`.
    pub host: String,
    /// Path below which Ocopea may push; may be empty.
    pub path: String,
}

impl RegistryHost {
    /// `HOST/PATH` or `HOST`.
    pub fn base(&self) -> String {
        if self.path.is_empty() { self.host.clone() } else { format!("{}/{}", self.host, self.path) }
    }
}

impl FromStr for RegistryHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (plain, rest) = match text.split_once("://") {
            Some(("http", rest)) => (true, rest),
            Some(("https", rest)) => (false, rest),
            Some((other, _)) => return Err(format!("{other}:// is not a registry's scheme: use http:// or https://")),
            None => (false, text),
        };
        let rest = rest.trim_end_matches('/');
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host_fits = !host.is_empty()
            && host.len() <= 255
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
        if !host_fits {
            return Err(format!("{host:?} is not a registry's host (expected HOST[:PORT][/PATH])"));
        }
        let part_fits = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        };
        if path.len() > 128 || (!path.is_empty() && !path.split('/').all(part_fits)) {
            return Err(format!("{path:?} is not a path in a registry (a-z, 0-9, '.', '-', '_' between slashes)"));
        }
        Ok(Self { plain, host: host.to_owned(), path: path.to_owned() })
    }
}

/// What a reference stands for in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// Platforms: of an index those it lists, else empty (known only from the config).
    pub platforms: Vec<String>,
}

fn basic(known: &Credential) -> RegistryAuth {
    RegistryAuth::Basic(known.user.clone(), known.password.reveal().to_owned())
}

/// How registries are reached.
#[derive(Clone)]
pub struct RegistryContext {
    /// Who signs in.
    pub credentials: Arc<Credentials>,
    /// Hosts that are spoken to without TLS.
    pub plain_hosts: Vec<String>,
    /// Clock and chance.
    pub seams: Seams,
    /// Cancelled when nothing may be touched any more.
    pub stop: CancellationToken,
}

/// A repository in a registry (`HOST/PATH/NAME`) and a client for it.
pub(super) struct Remote {
    client: Client,
    auth: RegistryAuth,
    context: RegistryContext,
    host: String,
    path: String,
    scheme: &'static str,
}

impl RegistryContext {
    /// Opens `repository` (`HOST/PATH/NAME`, without tag and digest) and signs in, with the first credentials that the
    /// registry takes.
    pub(super) async fn remote(&self, repository: &str, operation: RegistryOperation) -> Result<Remote, TaskFailure> {
        let fault = |why: String| {
            TaskFailure::permanent("container.reference", format!("can't use container image {repository:.200}"), why)
        };
        let reference = Reference::from_str(repository).map_err(|error| fault(error.to_string()))?;
        if reference.digest().is_some() || repository.ends_with(&format!(":{}", reference.tag().unwrap_or("latest"))) {
            return Err(fault("a name without tag and digest was expected".to_owned()));
        }
        let canonical = format!("{}/{}", reference.registry(), reference.repository());
        let mut known = self.credentials.listed(repository);
        let more = self.credentials.listed(&canonical);
        known.extend(more.into_iter().filter(|more| !known.contains(more)).collect::<Vec<_>>());
        let mut denied = None;
        for known in &known {
            match self.signed_in(&reference, basic(known), operation).await {
                Err(failure) if failure.code == DENIED => denied = denied.or(Some(failure)),
                other => return other,
            }
        }
        // What stands in files is not enough: the program that keeps passwords is asked, which may take its time.
        let (asked, silence) = match self.credentials.ask(&canonical, &self.seams).await {
            Ok(asked) => (asked, None),
            Err(why) => (None, Some(why)),
        };
        let last = match (asked, denied) {
            (None, Some(denied)) => Err(denied),
            (None, None) => self.signed_in(&reference, RegistryAuth::Anonymous, operation).await,
            (Some(asked), denied) => match self.signed_in(&reference, basic(&asked), operation).await {
                Err(failure) if failure.code == DENIED => Err(denied.unwrap_or(failure)),
                other => other,
            },
        };
        last.map_err(|failure| match silence {
            Some(why) if failure.code == DENIED => {
                TaskFailure { cause: format!("{}; {why}", failure.cause), ..failure }
            }
            _ => failure,
        })
    }

    async fn signed_in(
        &self,
        reference: &Reference,
        auth: RegistryAuth,
        operation: RegistryOperation,
    ) -> Result<Remote, TaskFailure> {
        let remote = self.with(reference, auth).map_err(|error| {
            TaskFailure::permanent("container.reference", format!("can't use container image {reference}"), error)
        })?;
        remote.sign_in(operation).await.map(|()| remote)
    }

    fn with(&self, reference: &Reference, auth: RegistryAuth) -> Result<Remote, OciDistributionError> {
        let host = reference.resolve_registry().to_owned();
        let loopback = host.starts_with("localhost") || host.starts_with("127.") || host.starts_with("[::1]");
        let plain = loopback || self.plain_hosts.contains(&host);
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            use_monolithic_push: true,
            platform_resolver: None,
            connect_timeout: Some(Duration::from_secs(10)),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: concat!("ocopea/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config)?;
        let scheme = if plain { "http" } else { "https" };
        Ok(Remote { client, auth, context: self.clone(), host, path: reference.repository().to_owned(), scheme })
    }

    /// What `version` (a tag, or `@sha256:…`) of `repository` is; `None` when the registry hasn't got it.
    pub async fn resolve(&self, repository: &str, version: &str) -> Result<Option<Resolved>, TaskFailure> {
        let remote = self.remote(repository, RegistryOperation::Pull).await?;
        let Some((digest, bytes)) = remote.manifest(version).await? else {
            return Ok(None);
        };
        let (parsed, _) = manifest::parse(repository, &bytes)?;
        let platforms = match parsed {
            Manifest::Image { .. } => Vec::new(),
            Manifest::Index { entries } => entries.into_iter().map(|entry| entry.platform).collect(),
        };
        Ok(Some(Resolved { digest, platforms }))
    }

    /// Whether the registry answers and takes the credentials; what it said if not.
    pub async fn answers(&self, registry: &RegistryHost) -> Result<(), TaskFailure> {
        self.remote(&format!("{}/ocopea-probe", registry.base()), RegistryOperation::Push).await.map(drop)
    }
}

fn remote_reference(host: &str, path: &str, version: &str) -> Reference {
    match version.strip_prefix('@') {
        Some(digest) => Reference::with_digest(host.to_owned(), path.to_owned(), digest.to_owned()),
        None => Reference::with_tag(host.to_owned(), path.to_owned(), version.to_owned()),
    }
}

impl Remote {
    /// `HOST/PATH/NAME`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    pub(super) fn reference(&self, version: &str) -> Reference {
        remote_reference(&self.host, &self.path, version)
    }

    /// Signs in for pushing or pulling; a wrong password is found here.
    async fn sign_in(&self, operation: RegistryOperation) -> Result<(), TaskFailure> {
        let reference = self.reference("latest");
        let token = self
            .retried("sign in to", |client, auth| {
                let reference = reference.clone();
                async move { client.auth(&reference, &auth, operation).await }
            })
            .await?;
        let RegistryAuth::Basic(user, password) = &self.auth else { return Ok(()) };
        if token.is_some() {
            return Ok(());
        }
        // Without a token server nobody has looked at the password yet.
        let asked = self.http("sign in to")?.get(format!("{}://{}/v2/", self.scheme, self.host));
        let answer = asked.basic_auth(user, Some(password)).send().await;
        match answer.map(|answer| answer.status().as_u16()) {
            Ok(401 | 403) => Err(self.denied("sign in to")),
            _ => Ok(()),
        }
    }

    fn denied(&self, verb: &str) -> TaskFailure {
        let cause = match &self.auth {
            RegistryAuth::Basic(user, _) => format!("the registry refused the credentials of {user:.100}"),
            _ => "the registry wants credentials, and none are known for it".to_owned(),
        };
        TaskFailure::permanent(DENIED, format!("can't {verb} {}", self.name()), cause).next(
            "check the pull secret of the application, or sign in with `docker login` as the user who runs Ocopea",
        )
    }

    /// For what the client of the distribution API lacks.
    fn http(&self, verb: &str) -> Result<reqwest::Client, TaskFailure> {
        reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| TaskFailure::permanent("registry.client", format!("can't {verb} {}", self.name()), error))
    }

    /// All tags, page by page; none where the registry doesn't know the name.
    pub(super) async fn tags(&self) -> Result<Vec<String>, TaskFailure> {
        let reference = self.reference("latest");
        let mut tags: Vec<String> = Vec::new();
        while tags.len() < MOST_TAGS {
            let last = tags.last().cloned();
            let page = self
                .retried("list the tags of", |client, auth| {
                    let (reference, last) = (reference.clone(), last.clone());
                    async move {
                        match client.list_tags(&reference, &auth, Some(TAGS_PER_PAGE), last.as_deref()).await {
                            Ok(page) => Ok(page.tags),
                            Err(error) if is_absent(&error) => Ok(Vec::new()),
                            Err(error) => Err(error),
                        }
                    }
                })
                .await?;
            let more = page.len() == TAGS_PER_PAGE && page.last() != tags.last();
            tags.extend(page);
            if !more {
                break;
            }
        }
        Ok(tags)
    }

    /// The manifest of a tag or `@digest`, checked against the digest; `None` when it isn't there.
    pub(super) async fn manifest(&self, version: &str) -> Result<Option<(Digest, Bytes)>, TaskFailure> {
        let reference = self.reference(version);
        let fetched = self
            .retried("read a manifest of", |client, auth| {
                let reference = reference.clone();
                async move {
                    match client.pull_manifest_raw(&reference, &auth, &ACCEPTED).await {
                        Ok((bytes, _)) => Ok(Some(bytes)),
                        Err(error) if is_absent(&error) => Ok(None),
                        Err(error) => Err(error),
                    }
                }
            })
            .await?;
        let Some(bytes) = fetched else {
            return Ok(None);
        };
        // The registry's own word for the digest is not believed.
        let digest = sha256(&bytes);
        if let Some(asked) = version.strip_prefix('@')
            && digest.to_string() != asked
        {
            return Err(self.wrong_digest(asked, &digest));
        }
        Ok(Some((digest, bytes)))
    }

    /// A blob's bytes as they stream, unchecked: the receiver hashes them.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, TaskFailure> {
        let reference = self.reference("latest");
        let text = digest.to_string();
        let sized = self
            .retried("read a layer of", |client, _| {
                let (reference, text) = (reference.clone(), text.clone());
                async move { client.pull_blob_stream(&reference, text.as_str()).await }
            })
            .await?;
        Ok(sized.stream.boxed())
    }

    pub(super) async fn has_blob(&self, digest: &Digest) -> Result<bool, TaskFailure> {
        let reference = self.reference("latest");
        let text = digest.to_string();
        self.retried("look for a layer in", |client, _| {
            let (reference, text) = (reference.clone(), text.clone());
            async move { client.blob_exists(&reference, &text).await }
        })
        .await
    }

    /// Uploads a blob; the stream is made anew for each try.
    pub(super) async fn push_blob<F, S>(&self, digest: &Digest, size: u64, open: F) -> Result<(), TaskFailure>
    where
        F: Fn() -> S,
        S: Future<Output = Result<BoxStream<'static, Result<Bytes, OciDistributionError>>, TaskFailure>>,
    {
        let reference = self.reference("latest");
        let text = digest.to_string();
        let mut tried = 0;
        loop {
            tried += 1;
            let stream = open().await?;
            let sent = tokio::select! {
                () = self.context.stop.cancelled() => return Err(self.stopped()),
                sent = self.client.push_blob_stream(&reference, stream, &text, Some(size)) => sent,
            };
            match sent {
                Ok(_) => return Ok(()),
                Err(error) if tried < TRIES && is_passing(&error) => self.pause(tried).await?,
                Err(error) => return Err(self.failure("push a layer to", &error)),
            }
        }
    }

    pub(super) async fn push_manifest(&self, version: &str, media_type: &str, bytes: &[u8]) -> Result<(), TaskFailure> {
        let reference = self.reference(version);
        let media = media_type.parse::<reqwest::header::HeaderValue>().map_err(|error| {
            TaskFailure::permanent("container.manifest", format!("can't push {}", self.name()), error)
        })?;
        let body = Bytes::copy_from_slice(bytes);
        self.retried("push a manifest to", |client, _| {
            let (reference, media, body) = (reference.clone(), media.clone(), body.clone());
            async move { client.push_manifest_raw(&reference, body, media).await.map(drop) }
        })
        .await
    }

    /// Deletes a manifest; one that isn't there is fine.
    pub(super) async fn delete_manifest(&self, digest: &Digest) -> Result<(), TaskFailure> {
        let fault = |cause: String| {
            TaskFailure::retryable("registry.delete", format!("can't delete {}@{digest}", self.name()), cause)
                .next("allow deletion in the registry (REGISTRY_STORAGE_DELETE_ENABLED=true in distribution's), or delete it by hand")
        };
        let http = self.http("delete a manifest of")?;
        let token = self
            .client
            .auth(&self.reference("latest"), &self.auth, RegistryOperation::Push)
            .await
            .map_err(|error| self.failure("sign in to", &error))?;
        let url = format!("{}://{}/v2/{}/manifests/{digest}", self.scheme, self.host, self.path);
        let request = match (&token, &self.auth) {
            (Some(token), _) => http.delete(url).bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => http.delete(url).basic_auth(user, Some(password)),
            (None, _) => http.delete(url),
        };
        let answer = request.send().await.map_err(|error| fault(error.without_url().to_string()))?;
        match answer.status().as_u16() {
            200..=299 | 404 => Ok(()),
            status => Err(fault(format!("the registry answered {status}"))),
        }
    }

    pub(super) fn wrong_digest(&self, asked: &str, found: &Digest) -> TaskFailure {
        TaskFailure::permanent(
            "container.digest",
            format!("can't copy container image {}@{asked}", self.name()),
            format!("the registry served something else: {found}"),
        )
        .next(DAMAGED)
    }

    /// Runs `call` up to [`TRIES`] times while its errors pass by themselves.
    async fn retried<T, F, R>(&self, verb: &str, call: F) -> Result<T, TaskFailure>
    where
        F: Fn(Client, RegistryAuth) -> R,
        R: Future<Output = Result<T, OciDistributionError>>,
    {
        let mut tried = 0;
        loop {
            tried += 1;
            // The client stores credentials per registry when it is given them; blob calls rely on that.
            self.client.store_auth_if_needed(&self.host, &self.auth).await;
            let outcome = tokio::select! {
                () = self.context.stop.cancelled() => return Err(self.stopped()),
                outcome = call(self.client.clone(), self.auth.clone()) => outcome,
            };
            match outcome {
                Ok(value) => return Ok(value),
                Err(error) if tried < TRIES && is_passing(&error) => self.pause(tried).await?,
                Err(error) => return Err(self.failure(verb, &error)),
            }
        }
    }

    async fn pause(&self, tried: u32) -> Result<(), TaskFailure> {
        let span = self.context.seams.jittered(Duration::from_millis(250 << tried));
        if self.context.seams.sleep_unless(&self.context.stop, span).await { Ok(()) } else { Err(self.stopped()) }
    }

    fn stopped(&self) -> TaskFailure {
        TaskFailure::cancelled(format!("stopped while working with {}", self.name()))
    }

    fn failure(&self, verb: &str, error: &OciDistributionError) -> TaskFailure {
        let what = format!("can't {verb} {}", self.name());
        if is_denied(error) {
            return self.denied(verb);
        }
        let cause = sanitised(error);
        if matches!(error, OciDistributionError::DigestError(_)) {
            return TaskFailure::permanent("container.digest", what, cause).next(DAMAGED);
        }
        if is_passing(error) {
            TaskFailure::retryable("registry.unreachable", what, cause)
                .next("check that the registry runs and can be reached from here")
        } else {
            TaskFailure::permanent("registry.refused", what, cause)
        }
    }
}

/// The whole chain of causes, without the URL's query (it may hold a token).
fn sanitised(error: &OciDistributionError) -> String {
    let mut text = match error {
        OciDistributionError::RequestError(inner) => {
            let mut text = "request failed".to_owned();
            let mut cause = std::error::Error::source(inner);
            while let Some(inner) = cause {
                text = format!("{text}: {inner}");
                cause = inner.source();
            }
            text
        }
        other => other.to_string(),
    };
    if text.len() > 600 {
        text = text.chars().take(600).collect();
    }
    text
}

/// Whether the registry's answer has one of these codes; its words are its own.
fn says(error: &OciDistributionError, codes: &[OciErrorCode]) -> bool {
    match error {
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| codes.contains(&error.code))
        }
        _ => false,
    }
}

fn is_absent(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        other => says(other, &[OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound]),
    }
}

fn is_denied(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => true,
        OciDistributionError::ServerError { code, .. } => matches!(code, 401 | 403),
        other => says(other, &[OciErrorCode::Unauthorized, OciErrorCode::Denied]),
    }
}

/// Whether trying again may help: the network, or the server's own trouble.
fn is_passing(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(inner) => {
            inner.status().is_none_or(|status| status.is_server_error() || status.as_u16() == 429)
        }
        OciDistributionError::IoError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 429,
        other => says(other, &[OciErrorCode::Toomanyrequests]),
    }
}

/// SHA-256 of what was received.
pub fn sha256(bytes: &[u8]) -> Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0u8; 32];
    out.copy_from_slice(digest.as_ref());
    Digest(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_parsed_and_nonsense_refused() {
        let parsed: RegistryHost = "http://172.31.0.254:5000/team/apps/".parse().unwrap();
        assert_eq!((parsed.plain, parsed.base().as_str()), (true, "172.31.0.254:5000/team/apps"));
        assert_eq!("registry.example".parse::<RegistryHost>().map(|r| r.base()).unwrap(), "registry.example");
        for text in ["", "ftp://x", "http://", "host/../x", "host//x", "host/A", "ho st/x", "host/x\0"] {
            assert!(text.parse::<RegistryHost>().is_err(), "{text:?}");
        }
    }
}
