//! What makes a process an agent of its site, in one file (0600): the site's key, and what its broker knows it by.
//!
//! The key is written down before anybody hears of it: an answer to the enrolment that was lost is asked for again, with
//! the same token and the same key. Several agents of a site share the file, or a copy of it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use ocopea_coordinator::api::{Enrol, Enrolled};
use ocopea_protocol::{
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

/// The file; beside it (`.joining`) is what an enrolment began with, until it is answered.
pub struct IdentityFile {
    path: PathBuf,
    joining: PathBuf,
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
    /// A file that may be there; the coordinator is checked against these certificates beside the system's.
    pub fn new(path: PathBuf, certificates: &[Certificate]) -> Result<Self, Failure> {
        let mut http = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).timeout(ANSWER);
        for certificate in certificates {
            http = http.add_root_certificate(certificate.clone());
        }
        // A redirect would be told the token.
        let http = http.redirect(reqwest::redirect::Policy::none());
        let joining = path.with_added_extension("joining");
        Ok(Self { path, joining, http: http.build().map_err(|error| Failure::local(error.to_string()))? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn load(&self) -> Result<Option<Kept>, Failure> {
        Self::read(&self.path)
    }

    fn read(path: &Path) -> Result<Option<Kept>, Failure> {
        let shown = path.display();
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::local(format!("{shown} can't be read: {error}"))),
        };
        // What is in it isn't repeated.
        let kept: Kept = serde_json::from_slice(&text).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            Failure::local(format!("{shown} is no identity of a site ({place})"))
                .next("put its backup back, or name another file with --identity and join again")
        })?;
        if kept.version != 1 {
            return Err(Failure::local(format!("{shown} is of version {}, this program knows 1", kept.version))
                .next("upgrade this program"));
        }
        kept.key()?;
        Ok(Some(kept))
    }

    fn store(&self, kept: &Kept) -> Result<(), Failure> {
        let fault = |error: std::io::Error| {
            Failure::local(format!("the identity {} can't be written: {error}", self.path.display()))
                .next("name another file with --identity")
        };
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent).map_err(fault)?;
        }
        let text = serde_json::to_string_pretty(kept).map_err(|error| Failure::local(error.to_string()))?;
        write_secret(if kept.site.is_some() { &self.path } else { &self.joining }, &text).map_err(fault)
    }

    /// What the file holds. Another token or coordinator than its own is a new beginning, with a key of its own.
    pub fn open(&self, application: Option<Application>) -> Result<Kept, Failure> {
        let kept = self.load()?;
        let Some(Application { coordinator, token }) = application else {
            return kept.ok_or_else(|| {
                Failure::usage(format!("{} holds no identity of a site yet", self.path.display()))
                    .next("join with what `ocopea sites add NAME` prints: --coordinator URL --join-token TOKEN")
            });
        };
        for known in [kept, Self::read(&self.joining)?].into_iter().flatten() {
            if known.token == token && known.coordinator == coordinator {
                return Ok(known);
            }
        }
        let key = SiteKey::generate().map_err(|error| broken(&error))?;
        let key = Secret::new(key.to_text().as_str());
        let kept = Kept { version: 1, coordinator, token, key, site: None };
        self.store(&kept)?;
        Ok(kept)
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
        self.store(kept)?;
        match std::fs::remove_file(&self.joining) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                // It holds the same key; the next start finds the answered one first.
                tracing::debug!(%error, "the beginning of the enrolment stays");
            }
            _ => {}
        }
        Ok(())
    }
}
