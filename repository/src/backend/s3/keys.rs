//! Keys that requests are signed with, and where they come from. Renewed before they end, for as long as a copy takes.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use object_store::{CredentialProvider, aws::AwsCredential};
use ocopea_protocol::{image::StoreKeys, seams::Seams, secret::Secret};

use super::{fault::Fault, sources};
use crate::error::Trouble;

/// Keys are renewed when so much of their life is left, or a third of it where that is less.
const EARLY: Duration = Duration::from_secs(300);
/// Keys that can't be renewed early are used to their end; so often it is tried until then.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest id, secret or token.
const LONGEST: usize = 16 << 10;

/// Where a process has its keys from. Never holds a secret that could be printed.
#[derive(Clone, Debug, Default)]
pub enum KeySource {
    /// As the tools of AWS look for them: environment variables, web identity, the profile that `AWS_PROFILE` names or
    /// the default one, the container's own endpoint.
    #[default]
    Environment,
    /// A profile in the files of the tools of AWS.
    Profile(String),
    /// These.
    Static(StoreKeys),
    /// Keys lent for a token in a file, by a security token service.
    WebIdentity(WebIdentity),
    /// The same, with the token file and the service of the environment.
    Role {
        /// The role.
        role: String,
        /// A name for the session, for logs of the service.
        session: String,
    },
    /// Whatever gives keys.
    Custom(Arc<dyn GivesKeys>),
}

/// What a security token service is asked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebIdentity {
    /// The role.
    pub role: String,
    /// The file with the token; read anew each time.
    pub token_file: std::path::PathBuf,
    /// A name for the session, for logs of the service.
    pub session: String,
    /// The service: `https://sts.REGION.amazonaws.com`.
    pub endpoint: String,
}

/// A source of keys of one's own.
#[async_trait]
pub trait GivesKeys: fmt::Debug + Send + Sync {
    /// Keys that are in force now; `refused` is the id of those that the store refuses already. The error is told to
    /// people.
    async fn keys(&self, refused: Option<&str>) -> std::result::Result<StoreKeys, String>;
}

/// Keys that came with tasks, and the tasks' ways to ask for newer ones. All tasks of a process that work with one place
/// share them: each of these ways works for as long as its own task does.
#[derive(Debug, Default)]
pub(crate) struct Lent {
    first: Mutex<Option<StoreKeys>>,
    ways: Mutex<Vec<Weak<dyn GivesKeys>>>,
}

impl Lent {
    pub(crate) fn new(first: StoreKeys) -> Self {
        Self { first: Mutex::new(Some(first)), ways: Mutex::default() }
    }

    /// Another task works with the place.
    pub(crate) fn add(&self, way: &Arc<dyn GivesKeys>) {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.retain(|way| way.strong_count() > 0);
        ways.push(Arc::downgrade(way));
    }
}

#[async_trait]
impl GivesKeys for Lent {
    async fn keys(&self, refused: Option<&str>) -> std::result::Result<StoreKeys, String> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(first) = first.filter(|first| refused != Some(first.id.as_str())) {
            return Ok(first);
        }
        let ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut why = "they came with a task that is over".to_owned();
        // The newest task has the longest to go.
        for way in ways.iter().rev().filter_map(Weak::upgrade) {
            match way.keys(refused).await {
                Ok(keys) => return Ok(keys),
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}

/// Whether what is given as keys can stand in a request.
pub(crate) fn check(keys: StoreKeys) -> Result<StoreKeys, Fault> {
    let word =
        |text: &str| !text.is_empty() && text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_graphic());
    let token = keys.token.as_ref().is_none_or(|token| word(token.reveal()));
    if word(&keys.id) && keys.id.len() <= 256 && word(keys.secret.reveal()) && token {
        Ok(keys)
    } else {
        let why = "the given keys hold characters that keys don't have, or are too long or empty";
        Err(Fault::Trouble(Trouble::Keys, why.to_owned()))
    }
}

/// Keeps keys until shortly before their end. One request at a time asks for newer ones.
pub(crate) struct Renewing {
    source: KeySource,
    context: sources::Context,
    seams: Seams,
    now: Mutex<Option<Held>>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Held {
    keys: StoreKeys,
    /// Milliseconds of this machine's clock: from then on newer ones are asked for.
    renew: Option<i64>,
    signing: Arc<AwsCredential>,
}

impl fmt::Debug for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing").finish_non_exhaustive()
    }
}

impl Renewing {
    pub(crate) fn new(source: KeySource, context: sources::Context, seams: &Seams) -> Self {
        Self { source, context, seams: seams.clone(), now: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    fn held(&self) -> Option<Held> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The id of the keys in use.
    pub(crate) fn id(&self) -> Option<String> {
        self.held().map(|held| held.keys.id)
    }

    /// Keys that are in force, renewed if it is time.
    pub(crate) async fn keys(&self) -> Result<StoreKeys, Fault> {
        self.current().await.map(|held| held.keys)
    }

    async fn current(&self) -> Result<Held, Fault> {
        if let Some(held) = self.held().filter(|held| self.is_early(held)) {
            return Ok(held);
        }
        let in_force = |held: &Held| held.keys.expires.is_none_or(|end| self.seams.clock.now() < end);
        let _one = match self.asking.try_lock() {
            Ok(one) => one,
            // One is enough to wait for a source that takes its time.
            Err(_) => match self.held().filter(in_force) {
                Some(held) => return Ok(held),
                None => self.asking.lock().await,
            },
        };
        // Another one may have asked meanwhile.
        let old = self.held();
        if let Some(held) = old.clone().filter(|held| self.is_early(held)) {
            return Ok(held);
        }
        match self.ask(None).await {
            Ok(held) => Ok(held),
            Err(fault) => {
                // What is still in force goes on; it is asked again soon.
                let now = self.seams.clock.now();
                let old = old.filter(in_force).ok_or(fault.clone())?;
                tracing::warn!(%fault, "newer keys of the store can't be had yet");
                let later = Held { renew: Some(now.plus(PAUSE).0), ..old };
                *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Some(later.clone());
                Ok(later)
            }
        }
    }

    fn is_early(&self, held: &Held) -> bool {
        held.renew.is_none_or(|renew| self.seams.clock.now().0 < renew)
    }

    async fn ask(&self, refused: Option<&str>) -> Result<Held, Fault> {
        self.hold(sources::ask(&self.source, &self.context, refused).await?)
    }

    /// Keys came with another task: they are used unless the ones in use live longer.
    pub(crate) fn offer(&self, keys: &StoreKeys) {
        let end = |keys: &StoreKeys| keys.expires.map_or(i64::MAX, |end| end.0);
        let shorter = |held: Held| held.keys.expires.is_some() && end(keys) < end(&held.keys);
        if self.held().is_some_and(shorter) {
            return;
        }
        if let Err(fault) = self.hold(keys.clone()) {
            tracing::warn!(%fault, "the store's keys that came with a task can't be used");
        }
    }

    fn hold(&self, keys: StoreKeys) -> Result<Held, Fault> {
        let keys = check(keys)?;
        let now = self.seams.clock.now().0;
        let early = i64::try_from(EARLY.as_millis()).unwrap_or(0);
        let renew = keys.expires.map(|end| end.0 - early.min((end.0 - now).max(0) / 3));
        if renew.is_some_and(|renew| renew <= now) && keys.expires.is_some_and(|end| end.0 <= now) {
            let why = format!("the keys that {} gives ended already", self.source.name());
            return Err(Fault::Trouble(Trouble::Expired, why));
        }
        let held = Held {
            signing: Arc::new(AwsCredential {
                key_id: keys.id.clone(),
                secret_key: keys.secret.reveal().to_owned(),
                token: keys.token.as_ref().map(|token| token.reveal().to_owned()),
            }),
            keys,
            renew,
        };
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Some(held.clone());
        Ok(held)
    }

    /// After the store refused `used`: whether there are other keys now.
    pub(crate) async fn renew(&self, used: Option<&str>) -> bool {
        let _one = self.asking.lock().await;
        if self.id().as_deref() != used {
            return true;
        }
        match self.ask(used).await {
            Ok(held) => Some(held.keys.id.as_str()) != used,
            Err(fault) => {
                tracing::warn!(%fault, "newer keys of the store can't be had");
                false
            }
        }
    }
}

#[async_trait]
impl CredentialProvider for Renewing {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let held = self.current().await;
        held.map(|held| held.signing)
            .map_err(|fault| object_store::Error::Generic { store: "S3", source: Box::new(fault) })
    }
}

impl KeySource {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Environment => "the environment".to_owned(),
            Self::Profile(name) => format!("the profile {name:.80?}"),
            Self::Static(_) => "the configuration".to_owned(),
            Self::WebIdentity(identity) => format!("the token service {:.200}", identity.endpoint),
            Self::Role { role, .. } => format!("the role {role:.200}"),
            Self::Custom(_) => "the given source".to_owned(),
        }
    }
}

pub(crate) fn plain(id: String, secret: String, token: Option<String>) -> StoreKeys {
    StoreKeys { id, secret: Secret::new(secret), token: token.map(Secret::new), expires: None }
}

#[cfg(test)]
mod tests {
    use ocopea_protocol::time::Timestamp;

    use super::*;
    use crate::testing::seams;

    /// Gives keys that live as long as it is told; each time others.
    #[derive(Debug)]
    struct Numbered(Mutex<(u32, Vec<Option<i64>>)>);

    #[async_trait]
    impl GivesKeys for Numbered {
        async fn keys(&self, _: Option<&str>) -> std::result::Result<StoreKeys, String> {
            let mut state = self.0.lock().unwrap();
            let life = state.1.pop().ok_or("none left")?;
            state.0 += 1;
            let expires = life.map(|life| Timestamp(seams().clock.now().0 + life));
            Ok(StoreKeys { expires, ..plain(format!("K{}", state.0), "s".to_owned(), None) })
        }
    }

    fn renewing(lives: &[Option<i64>]) -> Renewing {
        let lives = lives.iter().rev().copied().collect();
        let source = KeySource::Custom(Arc::new(Numbered(Mutex::new((0, lives)))));
        Renewing::new(source, sources::Context::none(), &seams())
    }

    #[tokio::test]
    async fn keys_are_kept_until_a_third_of_their_life_is_left() {
        let keys = renewing(&[Some(900), Some(100_000)]);
        assert_eq!(keys.keys().await.unwrap().id, "K1");
        assert_eq!(keys.keys().await.unwrap().id, "K1");
        seams().clock.sleep(Duration::from_millis(650)).await;
        assert_eq!(keys.keys().await.unwrap().id, "K2");
    }

    #[tokio::test]
    async fn a_source_that_fails_costs_nothing_while_the_old_keys_are_in_force() {
        let keys = renewing(&[Some(900)]);
        assert_eq!(keys.keys().await.unwrap().id, "K1");
        seams().clock.sleep(Duration::from_millis(700)).await;
        assert_eq!(keys.keys().await.unwrap().id, "K1");
        // And is asked again, once they aren't; the pause between is over by then.
        let mut held = keys.held().unwrap();
        held.renew = Some(0);
        held.keys.expires = Some(Timestamp(1));
        *keys.now.lock().unwrap() = Some(held);
        assert!(keys.keys().await.is_err());
    }

    fn lent(id: &str, life: i64) -> StoreKeys {
        let expires = Some(Timestamp(seams().clock.now().0 + life));
        StoreKeys { expires, ..plain(id.to_owned(), "s".to_owned(), None) }
    }

    /// Answers first at once, then when it is told.
    #[derive(Debug, Default)]
    struct Slow {
        asked: Mutex<u32>,
        told: tokio::sync::Notify,
    }

    #[async_trait]
    impl GivesKeys for Slow {
        async fn keys(&self, _: Option<&str>) -> std::result::Result<StoreKeys, String> {
            let number = {
                let mut asked = self.asked.lock().unwrap();
                *asked += 1;
                *asked
            };
            if number > 1 {
                self.told.notified().await;
            }
            Ok(lent(&format!("K{number}"), 3000))
        }
    }

    #[tokio::test]
    async fn a_source_that_takes_its_time_holds_up_one_while_the_old_keys_are_in_force() {
        let source = Arc::new(Slow::default());
        let keys = Renewing::new(KeySource::Custom(source.clone()), sources::Context::none(), &seams());
        assert_eq!(keys.keys().await.unwrap().id, "K1");
        seams().clock.sleep(Duration::from_millis(2050)).await;
        let others = async {
            while *source.asked.lock().unwrap() < 2 {
                tokio::task::yield_now().await;
            }
            for _ in 0..3 {
                assert_eq!(keys.keys().await.unwrap().id, "K1");
            }
            source.told.notify_one();
        };
        let (first, ()) = tokio::join!(keys.keys(), others);
        assert_eq!(first.unwrap().id, "K2");
        assert_eq!(keys.keys().await.unwrap().id, "K2");
    }

    #[tokio::test]
    async fn keys_that_came_with_a_task_are_asked_for_anew_by_whichever_task_still_runs() {
        let source = Arc::new(Lent::new(lent("T", 900)));
        let keys = Renewing::new(KeySource::Custom(source.clone()), sources::Context::none(), &seams());
        let way = |lives: &[Option<i64>]| -> Arc<dyn GivesKeys> {
            Arc::new(Numbered(Mutex::new((0, lives.iter().rev().copied().collect()))))
        };
        let (over, none_left, one) = (way(&[None]), way(&[]), way(&[Some(900)]));
        for way in [&one, &none_left, &over] {
            source.add(way);
        }
        drop(over);
        assert_eq!(keys.keys().await.unwrap().id, "T");
        seams().clock.sleep(Duration::from_millis(650)).await;
        assert_eq!(keys.keys().await.unwrap().id, "K1");
        // No task is left: what is held is used to its end, then that is said.
        drop((none_left, one));
        assert!(!keys.renew(Some("K1")).await);
        seams().clock.sleep(Duration::from_millis(950)).await;
        let fault = keys.keys().await.unwrap_err().to_string();
        assert!(fault.contains("a task that is over"), "{fault}");
    }

    #[tokio::test]
    async fn of_keys_that_tasks_bring_those_that_live_longest_are_used() {
        let source = Arc::new(Lent::new(lent("A", 60_000)));
        let keys = Renewing::new(KeySource::Custom(source), sources::Context::none(), &seams());
        assert_eq!(keys.keys().await.unwrap().id, "A");
        for (offered, used) in [(lent("B", 30_000), "A"), (lent("C", 90_000), "C"), (lent("D", -1), "C")] {
            keys.offer(&offered);
            assert_eq!(keys.keys().await.unwrap().id, used);
        }
        // Keys without an end are replaced by whatever comes: somebody has changed them.
        for id in ["E", "F"] {
            keys.offer(&plain(id.to_owned(), "s".to_owned(), None));
            assert_eq!(keys.keys().await.unwrap().id, id);
        }
        keys.offer(&lent("G", 5000));
        assert_eq!(keys.keys().await.unwrap().id, "G");
    }

    #[tokio::test]
    async fn keys_that_ended_before_they_came_are_none() {
        assert!(matches!(renewing(&[Some(-5)]).keys().await, Err(Fault::Trouble(Trouble::Expired, _))));
    }

    #[tokio::test]
    async fn keys_that_would_break_a_request_are_refused() {
        for bad in ["", "a b", "a\nb", "\u{e4}", &"x".repeat(LONGEST + 1)] {
            assert!(check(plain("id".to_owned(), bad.to_owned(), None)).is_err(), "{bad:.10?}");
            assert!(check(plain("id".to_owned(), "s".to_owned(), Some(bad.to_owned()))).is_err(), "{bad:.10?}");
            assert!(check(plain(bad.to_owned(), "s".to_owned(), None)).is_err(), "{bad:.10?}");
        }
        let shown = format!("{:?}", KeySource::Static(plain("id".to_owned(), "canary-77".to_owned(), None)));
        assert!(!shown.contains("canary-77"), "{shown}");
    }
}
