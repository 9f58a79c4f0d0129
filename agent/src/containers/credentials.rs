//! Who signs in at which registry: pull secrets of the pods, and the user's Docker configuration.

use std::{collections::BTreeMap, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use ocopea_protocol::{seams::Seams, secret::Secret};
use serde::Deserialize;

use super::credential_helpers::CredentialHelpers;

/// A Docker configuration file or pull secret is never longer.
const LONGEST: usize = 1024 * 1024;

/// A user name and password, or a token in the password's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// User name.
    pub user: String,
    /// Password or token.
    pub password: Secret,
}

/// Credentials by registry host (and path prefix); several may fit, and are tried as kubelets do.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    by_prefix: BTreeMap<String, Vec<Credential>>,
    helpers: CredentialHelpers,
}

/// Why a configuration could not be used.
#[derive(Debug, thiserror::Error)]
#[error("docker configuration {origin}: {why}")]
pub struct CredentialsError {
    origin: String,
    why: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl Credentials {
    /// Reads `config.json` as Docker and `kubernetes.io/dockerconfigjson` secrets have it. Programs that it names are
    /// not asked: it may be anybody's.
    pub fn parse(origin: &str, text: &[u8]) -> Result<Self, CredentialsError> {
        Ok(Self { helpers: CredentialHelpers::default(), ..Self::parse_own(origin, text)? })
    }

    /// As [`Self::parse`], for the user's own configuration: the programs that it names are asked.
    fn parse_own(origin: &str, text: &[u8]) -> Result<Self, CredentialsError> {
        let fault = |why: String| CredentialsError { origin: origin.to_owned(), why };
        if text.len() > LONGEST {
            return Err(fault(format!("longer than {LONGEST} bytes")));
        }
        let config: DockerConfig = serde_json::from_slice(text)
            .map_err(|error| fault(format!("is not the expected JSON: line {}", error.line())))?;
        let mut by_prefix = BTreeMap::new();
        for (key, auth) in config.auths {
            if let Some(credential) = auth.credential().map_err(fault)? {
                by_prefix.entry(normal(&key)).or_insert_with(Vec::new).push(credential);
            }
        }
        let store = config.creds_store.filter(|store| !store.is_empty());
        Ok(Self { by_prefix, helpers: CredentialHelpers { by_host: config.cred_helpers, store, search: None } })
    }

    /// Reads the user's own file; a missing one is an empty configuration.
    pub async fn read(path: &Path) -> Result<Self, CredentialsError> {
        match tokio::fs::read(path).await {
            Ok(text) => Self::parse_own(&path.display().to_string(), &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(CredentialsError { origin: path.display().to_string(), why: error.to_string() }),
        }
    }

    /// Adds others, to be tried after those that are here. The last that names programs is the one whose are asked.
    pub fn extend(&mut self, others: Self) {
        if others.helpers != CredentialHelpers::default() {
            self.helpers = others.helpers;
        }
        for (prefix, more) in others.by_prefix {
            let known = self.by_prefix.entry(prefix).or_default();
            for credential in more {
                if !known.contains(&credential) {
                    known.push(credential);
                }
            }
        }
    }

    /// What the program that keeps the user's passwords knows for the host of `repository`, or why it didn't say.
    pub async fn ask(&self, repository: &str, seams: &Seams) -> Result<Option<Credential>, String> {
        self.helpers.find(repository.split('/').next().unwrap_or_default(), seams).await
    }

    /// The credentials for `repository` (`HOST/PATH/NAME`) that stand here, those with the longest prefix first.
    pub fn listed(&self, repository: &str) -> Vec<&Credential> {
        let mut fitting: Vec<_> = self.by_prefix.iter().filter(|(prefix, _)| fits(prefix, repository)).collect();
        fitting.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        fitting.into_iter().flat_map(|(_, credentials)| credentials).collect()
    }
}

/// Whether a key means `repository`; `*` stands for a label of the host, or a part of one.
fn fits(prefix: &str, repository: &str) -> bool {
    let (host, path) = prefix.split_once('/').unwrap_or((prefix, ""));
    let (found, rest) = repository.split_once('/').unwrap_or((repository, ""));
    let (wanted, labels): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), found.split('.').collect());
    let same_host =
        wanted.len() == labels.len() && wanted.iter().zip(labels).all(|(pattern, label)| fits_label(pattern, label));
    same_host && rest.strip_prefix(path).is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

fn fits_label(pattern: &str, label: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == label };
    label.len() >= before.len() + after.len() && label.starts_with(before) && label.ends_with(after)
}

impl Auth {
    fn credential(self) -> Result<Option<Credential>, String> {
        if let Some(token) = self.identitytoken.filter(|token| !token.is_empty()) {
            return Ok(Some(Credential { user: "<token>".to_owned(), password: Secret::new(token) }));
        }
        if let (Some(user), Some(password)) = (self.username, self.password) {
            return Ok(Some(Credential { user, password: Secret::new(password) }));
        }
        let Some(encoded) = self.auth.filter(|auth| !auth.is_empty()) else {
            return Ok(None);
        };
        let plain = STANDARD.decode(encoded.trim()).map_err(|_| "an \"auth\" is not base64".to_owned())?;
        let plain = String::from_utf8(plain).map_err(|_| "an \"auth\" is not UTF-8".to_owned())?;
        let (user, password) = plain.split_once(':').ok_or("an \"auth\" has no colon")?;
        Ok(Some(Credential { user: user.to_owned(), password: Secret::new(password.trim_end_matches('\0')) }))
    }
}

/// `https://index.docker.io/v1/` and its like, as a prefix of image references.
pub(super) fn normal(key: &str) -> String {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    if bare == "index.docker.io" { "docker.io".to_owned() } else { bare.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_neighbours_are_not_confused() {
        let text = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "registry.example:5000": {"username": "a", "password": "b"},
            "registry.example:5000/team": {"auth": "dGVhbTpzOmVjcmV0"},
            "empty.example": {}
        }}"#;
        let found = Credentials::parse("test", text).unwrap();
        assert_eq!(found.listed("docker.io/library/x")[0].user, "u");
        assert_eq!(found.listed("registry.example:5000/other/x")[0].user, "a");
        let team = found.listed("registry.example:5000/team/x")[0];
        assert_eq!((team.user.as_str(), team.password.reveal()), ("team", "s:ecret"));
        assert_eq!(found.listed("registry.example:5000/teamwork")[0].user, "a");
        assert!(found.listed("empty.example/x").is_empty());
        assert!(found.listed("registry.example:50001/x").is_empty());
        assert!(!format!("{found:?}").contains("s:ecret"));
    }

    #[test]
    fn several_that_fit_are_tried_in_turn_and_stars_stand_for_parts_of_hosts() {
        let mut own =
            Credentials::parse("secret", br#"{"auths": {"*.example": {"username": "a", "password": "old"}}}"#).unwrap();
        let more = br#"{"auths": {"r.example": {"username": "b", "password": "new"}, "*.example": {"username": "c", "password": "x"}}}"#;
        own.extend(Credentials::parse("docker", more).unwrap());
        let users: Vec<&str> = own.listed("r.example/x").into_iter().map(|c| c.user.as_str()).collect();
        assert_eq!(users.len(), 3, "{users:?}");
        assert_eq!(users.iter().position(|u| *u == "a").unwrap() + 1, users.iter().position(|u| *u == "c").unwrap());
        assert!(own.listed("a.b.example/x").is_empty() && own.listed("example/x").is_empty());
    }

    #[test]
    fn broken_configurations_are_named_without_showing_them() {
        for text in [&b"{"[..], br#"{"auths": {"h": {"auth": "%%%"}}}"#, br#"{"auths": {"h": {"auth": "c2VjcmV0"}}}"#] {
            let error = Credentials::parse("secret/pull", text).unwrap_err().to_string();
            assert!(error.contains("secret/pull") && !error.contains("c2VjcmV0"), "{error}");
        }
    }

    #[tokio::test]
    async fn programs_of_the_users_own_configuration_are_asked_and_those_of_others_are_not() {
        let place = tempfile::tempdir().unwrap();
        let program = format!("ocopea-test-{}", std::process::id());
        let path = place.path().join(format!("docker-credential-{program}"));
        let script = "#!/bin/sh\nread -r host\ncase $host in\n\
            known.example) echo '{\"ServerURL\":\"known.example\",\"Username\":\"u\",\"Secret\":\"s\"}' ;;\n\
            https://index.docker.io/v1/) echo '{\"Username\":\"hub\",\"Secret\":\"h\"}' ;;\n\
            *) echo 'credentials not found in native keychain'; exit 1 ;;\nesac\n";
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let search = std::env::var_os("PATH").unwrap_or_default();
        let search =
            std::env::join_paths(std::iter::once(place.path().to_owned()).chain(std::env::split_paths(&search)));
        let text = format!(r#"{{"credsStore": "{program}", "credHelpers": {{"bad.example": "../x"}}}}"#);
        let seams = Seams::real(tokio_util::task::TaskTracker::new());
        let own = Credentials::parse_own("test", text.as_bytes()).unwrap();
        let own = Credentials { helpers: CredentialHelpers { search: search.ok(), ..own.helpers }, ..own };
        let user = async |repository| own.ask(repository, &seams).await.map(|found| found.map(|found| found.user));
        assert_eq!(user("known.example/x").await, Ok(Some("u".to_owned())));
        assert_eq!(user("docker.io/library/x").await, Ok(Some("hub".to_owned())));
        assert_eq!(user("other.example/x").await, Ok(None));
        let why = user("bad.example/x").await.unwrap_err();
        assert!(why.contains("docker-credential-../x") && why.contains("bad.example"), "{why}");
        let others = Credentials::parse("secret", text.as_bytes()).unwrap();
        assert_eq!(others.ask("known.example/x", &seams).await, Ok(None), "a pull secret runs nothing");
    }
}
