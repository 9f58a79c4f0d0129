//! What makes a process an agent of its site, in one file (0600) or one Secret: the site's key, and what its broker knows it
//! by.
//!
//! The key is written down before anybody hears of it: an answer to the enrolment that was lost is asked for again, with
//! the same token and the same key. Several agents of a site share the file, or a copy of it.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use ocopea_agent::platform::kept::{Held, KeptSecret};
use ocopea_coordinator::api::{Enrol, Enrolled};
use ocopea_protocol::{
    failure::TaskFailure,
    identity::{IdentityError, Once, Sealed, SiteKey},
    ids::SiteId,
    secret::Secret,
};
use reqwest::Certificate;
use serde::{Deserialize, Serialize};
use url::Url;

use super::files::write_secret;
use crate::client::{self, Failure};

/// How long the coordinator may take to answer an enrolment.
const ANSWER: Duration = Duration::from_secs(60);

/// The file's contents.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Of this file's shape.
    version: u16,
    /// Where the site was enrolled.
    coordinator: Url,
    /// With what: it lets this key in again, and no other.
    token: Secret,
    /// The site's own key, 64 hexadecimal digits.
    key: Secret,
    /// What came of it.
    pub site: Option<Enrolment>,
}

/// A site, as the coordinator has it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// Its id.
    pub id: SiteId,
    /// Its name.
    pub name: String,
    /// Its broker's address; `None` until somebody has accepted it.
    pub broker: Option<Broker>,
}

/// What agents of a site connect by.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// `amqps://HOST:PORT/VHOST`.
    pub url: String,
    /// The site's user.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Certificates (PEM) that its server is checked against.
    pub certificates: Option<String>,
}

/// How to ask for an identity.
pub struct Application {
    /// The coordinator.
    pub coordinator: Url,
    /// A join token or an enrolment key.
    pub token: Secret,
}

/// Where it is kept; beside it is what an enrolment began with, until it is answered.
pub enum Place {
    /// A file; the beginning in a file beside it (`.joining`).
    File(PathBuf),
    /// A Secret of the cluster that the agent runs in, which its replicas share.
    Secret(Box<KeptSecret>),
}

/// The Secret's entries.
const IDENTITY: &str = "identity.json";
const JOINING: &str = "joining.json";
/// How often a Secret is read anew because somebody else wrote it.
const MOST_WRITES: u32 = 10;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Secret(secret) => write!(f, "{secret}"),
        }
    }
}

/// Both, as they were found.
#[derive(Default)]
struct Found {
    identity: Option<Kept>,
    joining: Option<Kept>,
    held: Held,
}

/// What is kept, and how to ask for it.
pub struct IdentityFile {
    place: Place,
    http: reqwest::Client,
}

fn broken(error: &IdentityError) -> Failure {
    Failure::local(error.to_string())
}

impl Kept {
    /// Signs agents in.
    pub fn key(&self) -> Result<SiteKey, Failure> {
        SiteKey::parse(self.key.reveal()).map_err(|error| broken(&error))
    }
}

impl IdentityFile {
    /// A place that may hold one; the coordinator is checked against these certificates beside the system's.
    pub fn new(place: Place, certificates: &[Certificate]) -> Result<Self, Failure> {
        let mut http = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).timeout(ANSWER);
        for certificate in certificates {
            http = http.add_root_certificate(certificate.clone());
        }
        // A redirect would be told the token.
        let http = http.redirect(reqwest::redirect::Policy::none());
        Ok(Self { place, http: http.build().map_err(|error| Failure::local(error.to_string()))? })
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What it holds.
    pub async fn load(&self) -> Result<Option<Kept>, Failure> {
        Ok(self.find().await?.identity)
    }

    async fn find(&self) -> Result<Found, Failure> {
        match &self.place {
            Place::File(path) => {
                let identity = read(path)?;
                Ok(Found { identity, joining: read(&path.with_added_extension("joining"))?, held: Held::default() })
            }
            Place::Secret(secret) => {
                let held = secret.read().await.map_err(of_cluster)?;
                let part =
                    |entry: &str| held.get(entry).map(|text| parse(text, &format!("{secret}, {entry}"))).transpose();
                Ok(Found { identity: part(IDENTITY)?, joining: part(JOINING)?, held })
            }
        }
    }

    /// Answers whether it is stored: not when somebody else wrote since `found` was read.
    async fn store(&self, kept: &Kept, found: &Found) -> Result<bool, Failure> {
        let text = serde_json::to_string_pretty(kept).map_err(|error| Failure::local(error.to_string()))?;
        match &self.place {
            Place::File(path) => {
                let fault = |error: std::io::Error| {
                    Failure::local(format!("the identity {} can't be written: {error}", self.place))
                        .next("name another file with --identity")
                };
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(fault)?;
                }
                let joining = path.with_added_extension("joining");
                write_secret(if kept.site.is_some() { path } else { &joining }, &text).map_err(fault)?;
                if kept.site.is_some()
                    && let Err(error) = std::fs::remove_file(&joining)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    // It holds the same key; the next start finds the answered one first.
                    tracing::debug!(%error, "the beginning of the enrolment stays");
                }
                Ok(true)
            }
            Place::Secret(secret) => {
                let entries: &[_] = match kept.site {
                    Some(_) => &[(IDENTITY, Some(text.as_str())), (JOINING, None)],
                    None => &[(JOINING, Some(text.as_str()))],
                };
                secret.write(&found.held, entries).await.map_err(of_cluster)
            }
        }
    }

    /// What is kept. Another token or coordinator than its own is a new beginning, with a key of its own.
    pub async fn open(&self, application: Option<Application>) -> Result<Kept, Failure> {
        let Some(Application { coordinator, token }) = application else {
            return self.load().await?.ok_or_else(|| {
                Failure::usage(format!("{} holds no identity of a site yet", self.place))
                    .next("join with what `ocopea sites add NAME` prints: --coordinator URL --join-token TOKEN")
            });
        };
        for _ in 0..MOST_WRITES {
            let found = self.find().await?;
            for known in [&found.identity, &found.joining].into_iter().flatten() {
                if known.token == token && known.coordinator == coordinator {
                    return Ok(known.clone());
                }
            }
            let key = SiteKey::generate().map_err(|error| broken(&error))?;
            let key = Secret::new(key.to_text().as_str());
            let (coordinator, token) = (coordinator.clone(), token.clone());
            let kept = Kept { version: 1, coordinator, token, key, site: None };
            // Where another replica began first, its key is the site's.
            if self.store(&kept, &found).await? {
                return Ok(kept);
            }
        }
        Err(self.contended())
    }

    fn contended(&self) -> Failure {
        Failure::local(format!("{} is written by others again and again", self.place))
            .next("see who writes it: only agents of one site share an identity")
    }

    /// Asks the coordinator, and keeps what it says. A new password comes with each answer.
    pub async fn enrol(&self, kept: &mut Kept, name: Option<&str>) -> Result<(), Failure> {
        let key = kept.key()?;
        let once = Once::generate().map_err(|error| broken(&error))?;
        let question = Enrol {
            token: kept.token.reveal().to_owned(),
            name: kept.site.as_ref().map(|site| site.name.clone()).or(name.map(str::to_owned)),
            key: key.public().map_err(|error| broken(&error))?.to_string(),
            answer_key: once.public().to_string(),
        };
        let address = client::joined(&kept.coordinator, "api/v1/enrol")?;
        let answer: Enrolled = client::post(&self.http, address, &question).await?;
        let malformed = |what: &str| Failure::local(format!("the coordinator's answer can't be read: {what}"));
        let id: SiteId = answer.site.parse().map_err(|_| malformed("the site's id"))?;
        let broker = match answer.broker {
            None => None,
            Some(access) => {
                let bytes = |text: &str| hex::decode(text).map_err(|_| malformed("the sealed password"));
                let sealed = Sealed {
                    encapsulated: bytes(&access.password.encapsulated)?,
                    bytes: bytes(&access.password.bytes)?,
                };
                let password = once.open(id, &sealed).map_err(|error| broken(&error))?;
                let password = Secret::new(password.as_str());
                Some(Broker { url: access.url, user: access.user, password, certificates: access.certificates })
            }
        };
        kept.site = Some(Enrolment { id, name: answer.name, broker });
        for _ in 0..MOST_WRITES {
            if self.store(kept, &self.find().await?).await? {
                return Ok(());
            }
        }
        Err(self.contended())
    }
}

/// A file's contents; `None` where there is none.
fn read(path: &Path) -> Result<Option<Kept>, Failure> {
    match std::fs::read(path) {
        Ok(text) => parse(&text, &path.display().to_string()).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::local(format!("{} can't be read: {error}", path.display()))),
    }
}

fn parse(text: &[u8], shown: &str) -> Result<Kept, Failure> {
    // What is in it isn't repeated.
    let kept: Kept = serde_json::from_slice(text).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        Failure::local(format!("{shown} is no identity of a site ({place})"))
            .next("put its backup back, or name another file with --identity and join again")
    })?;
    if kept.version != 1 {
        return Err(Failure::local(format!("{shown} is of version {}, this program knows 1", kept.version))
            .next("upgrade this program"));
    }
    kept.key()?;
    Ok(kept)
}

fn of_cluster(failure: TaskFailure) -> Failure {
    Failure { cause: failure.cause, next: failure.next, ..Failure::local(failure.what) }
}
