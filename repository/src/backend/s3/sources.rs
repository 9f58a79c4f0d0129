//! The usual places of keys: environment variables, profiles, a token service, a container's endpoint.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ocopea_protocol::{image::StoreKeys, seams::Seams, secret::Secret, time::Timestamp};
use serde::Deserialize;

use super::{
    fault::{Fault, text_of},
    keys::{KeySource, WebIdentity, plain},
};
use crate::error::Trouble;

/// Longest file or answer that keys are read from.
const LONGEST: u64 = 1 << 20;
/// How long a source of keys may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Where containers of ECS find relative paths.
const CONTAINER_HOST: &str = "http://169.254.170.2";
/// How long a role is asked for.
const LENT_FOR: &str = "3600";

type Lookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What the sources are asked with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) variable: Lookup,
    pub(crate) client: Option<reqwest::Client>,
    pub(crate) region: String,
    pub(crate) seams: Option<Seams>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Context {
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { variable: Arc::new(|_| None), client: None, region: String::new(), seams: None }
    }

    fn set(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    async fn file(&self, path: &Path) -> Result<String, String> {
        let seams = self.seams.as_ref().ok_or("no files are read here")?;
        let (path, shown) = (path.to_owned(), path.display().to_string());
        let read = move || {
            use std::io::Read;
            let mut text = String::new();
            std::fs::File::open(&path)?.take(LONGEST).read_to_string(&mut text)?;
            Ok::<_, std::io::Error>(text)
        };
        let read = seams.compute("repository.keys", read).await.ok_or("the process is stopping")?;
        read.map_err(|error| format!("{shown}: {error}"))
    }

    async fn fetch(&self, request: reqwest::RequestBuilder) -> Result<(u16, String), String> {
        let seams = self.seams.as_ref().ok_or("nothing is fetched here")?;
        let exchange = async {
            let mut answer = request.send().await.map_err(|error| error.without_url().to_string())?;
            let (status, mut body) = (answer.status().as_u16(), Vec::new());
            while let Some(piece) = answer.chunk().await.map_err(|error| error.without_url().to_string())? {
                body.extend_from_slice(&piece);
                if body.len() as u64 > LONGEST {
                    return Err(format!("it answers with more than {LONGEST} bytes"));
                }
            }
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        seams.timeout(PATIENCE, exchange).await.unwrap_or_else(|| Err("no answer came in time".to_owned()))
    }
}

fn none(why: impl Into<String>) -> Fault {
    Fault::Trouble(Trouble::NoKeys, why.into())
}

/// Asks a source.
pub(crate) async fn ask(source: &KeySource, context: &Context, refused: Option<&str>) -> Result<StoreKeys, Fault> {
    match source {
        KeySource::Static(keys) => Ok(keys.clone()),
        KeySource::Custom(source) => source.keys(refused).await.map_err(none),
        KeySource::Profile(name) => profile(name, context).await.map_err(none),
        KeySource::WebIdentity(identity) => web_identity(identity, context).await.map_err(none),
        KeySource::Role { role, session } => match context.set("AWS_WEB_IDENTITY_TOKEN_FILE") {
            Some(file) => as_role(role.clone(), file, session.clone(), context).await.map_err(none),
            None => Err(none("AWS_WEB_IDENTITY_TOKEN_FILE is not set, and no token is sent but that one's")),
        },
        KeySource::Environment => environment(context).await.map_err(none),
    }
}

async fn environment(context: &Context) -> Result<StoreKeys, String> {
    match (context.set("AWS_ACCESS_KEY_ID"), context.set("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => return Ok(plain(id, secret, context.set("AWS_SESSION_TOKEN"))),
        (Some(_), None) => return Err("AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not".to_owned()),
        (None, Some(_)) => return Err("AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not".to_owned()),
        (None, None) => {}
    }
    if let (Some(file), Some(role)) = (context.set("AWS_WEB_IDENTITY_TOKEN_FILE"), context.set("AWS_ROLE_ARN")) {
        let session = context.set("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "ocopea".to_owned());
        return as_role(role, file, session, context).await;
    }
    if let Some(name) = context.set("AWS_PROFILE") {
        return profile(&name, context).await;
    }
    if let Some(url) = context.set("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        return container(&url, context).await;
    }
    if let Some(path) = context.set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        return container(&format!("{CONTAINER_HOST}{path}"), context).await;
    }
    profile("default", context).await.map_err(|why| format!("neither the environment nor a profile has keys ({why})"))
}

async fn as_role(role: String, file: String, session: String, context: &Context) -> Result<StoreKeys, String> {
    let endpoint = context.set("AWS_ENDPOINT_URL_STS");
    let endpoint = endpoint.unwrap_or_else(|| format!("https://sts.{}.amazonaws.com", context.region));
    web_identity(&WebIdentity { role, token_file: file.into(), session, endpoint }, context).await
}

/// The sections of an INI file as the tools of AWS write it.
fn sections(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let (mut sections, mut name): (BTreeMap<_, BTreeMap<_, _>>, String) = (BTreeMap::new(), String::new());
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(title) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            // `config` writes [profile NAME], `credentials` [NAME].
            title.trim().trim_start_matches("profile ").trim().clone_into(&mut name);
        } else if let Some((key, value)) = line.split_once('=') {
            let section: &mut BTreeMap<String, String> = sections.entry(name.clone()).or_default();
            section.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    sections
}

async fn profile(name: &str, context: &Context) -> Result<StoreKeys, String> {
    let home = context.set("HOME").map(PathBuf::from);
    let place = |variable: &str, file: &str| {
        context.set(variable).map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".aws").join(file)))
    };
    let files = [place("AWS_SHARED_CREDENTIALS_FILE", "credentials"), place("AWS_CONFIG_FILE", "config")];
    let (mut found, mut whys) = (BTreeMap::new(), Vec::new());
    for path in files.into_iter().flatten() {
        match context.file(&path).await {
            // The first file counts where both say something.
            Ok(text) => {
                for (key, value) in sections(&text).remove(name).unwrap_or_default() {
                    found.entry(key).or_insert(value);
                }
            }
            Err(why) => whys.push(why),
        }
    }
    let get = |key: &str| found.get(key).filter(|value| !value.is_empty()).cloned();
    if let (Some(id), Some(secret)) = (get("aws_access_key_id"), get("aws_secret_access_key")) {
        return Ok(plain(id, secret, get("aws_session_token")));
    }
    if let (Some(role), Some(file)) = (get("role_arn"), get("web_identity_token_file")) {
        let session = get("role_session_name").unwrap_or_else(|| "ocopea".to_owned());
        let region = get("region").unwrap_or_else(|| context.region.clone());
        let endpoint = context.set("AWS_ENDPOINT_URL_STS");
        let endpoint = endpoint.unwrap_or_else(|| format!("https://sts.{region}.amazonaws.com"));
        return Box::pin(web_identity(&WebIdentity { role, token_file: file.into(), session, endpoint }, context))
            .await;
    }
    let other = ["credential_process", "sso_session", "sso_start_url", "source_profile"];
    match other.iter().find(|key| found.contains_key(**key)) {
        Some(key) => Err(format!("profile {name:?} has its keys from {key}, which is not supported")),
        None if whys.is_empty() => Err(format!("profile {name:?} has no keys")),
        None => Err(format!("profile {name:?} has no keys; {}", whys.join("; "))),
    }
}

async fn web_identity(identity: &WebIdentity, context: &Context) -> Result<StoreKeys, String> {
    let whose = |why: String| format!("the token service {:.200}: {why}", identity.endpoint);
    let token = context.file(&identity.token_file).await?;
    let client = context.client.as_ref().ok_or("nothing is fetched here")?;
    let form = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("DurationSeconds", LENT_FOR),
        ("RoleArn", &identity.role),
        ("RoleSessionName", &identity.session),
        ("WebIdentityToken", token.trim()),
    ];
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let request = client
        .post(&identity.endpoint)
        .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body);
    let (status, text) = context.fetch(request).await.map_err(whose)?;
    if status != 200 {
        let (code, message) = (text_of(&text, "Code"), text_of(&text, "Message"));
        return Err(whose(format!("it answered {status} {code:.80} {message:.200}")));
    }
    let lent = text_of(&text, "Credentials");
    let field = |tag: &str| Some(text_of(lent, tag).to_owned()).filter(|value| !value.is_empty());
    let keys = (field("AccessKeyId"), field("SecretAccessKey"), field("Expiration"));
    let (Some(id), Some(secret), Some(end)) = keys else {
        return Err(whose("its answer holds no keys".to_owned()));
    };
    lent_until(plain(id, secret, field("SessionToken")), &end).map_err(whose)
}

fn lent_until(keys: StoreKeys, end: &str) -> Result<StoreKeys, String> {
    let end = time::OffsetDateTime::parse(end, &time::format_description::well_known::Rfc3339);
    let end = end.map_err(|_| "it names no time at which the keys end".to_owned())?;
    let end = i64::try_from(end.unix_timestamp_nanos() / 1_000_000).map_err(|error| error.to_string())?;
    Ok(StoreKeys { expires: Some(Timestamp(end)), ..keys })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Lent {
    access_key_id: String,
    secret_access_key: Secret,
    token: Option<Secret>,
    expiration: String,
}

async fn container(url: &str, context: &Context) -> Result<StoreKeys, String> {
    let whose = |why: String| format!("the container's endpoint for keys, {url:.200}: {why}");
    let client = context.client.as_ref().ok_or("nothing is fetched here")?;
    let mut request = client.get(url);
    let token = match context.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(path) => Some(context.file(Path::new(&path)).await?),
        None => context.set("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
    };
    if let Some(token) = token {
        request = request.header(http::header::AUTHORIZATION, token.trim());
    }
    let (status, text) = context.fetch(request).await.map_err(whose)?;
    if status != 200 {
        return Err(whose(format!("it answered {status}")));
    }
    let lent: Lent = serde_json::from_str(&text).map_err(|_| whose("its answer holds no keys".to_owned()))?;
    let keys = StoreKeys { id: lent.access_key_id, secret: lent.secret_access_key, token: lent.token, expires: None };
    lent_until(keys, &lent.expiration).map_err(whose)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::seams;

    fn context(pairs: &[(&str, &str)]) -> Context {
        let pairs: BTreeMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let variable: Lookup = Arc::new(move |name| pairs.get(name).cloned());
        Context { variable, client: None, region: "us-east-1".to_owned(), seams: Some(seams()) }
    }

    #[tokio::test]
    async fn variables_come_first_and_must_be_both() {
        let both = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "B"), ("AWS_SESSION_TOKEN", "C")];
        let keys = ask(&KeySource::Environment, &context(&both), None).await.unwrap();
        let token = keys.token.as_ref().map(Secret::reveal);
        assert_eq!((keys.id.as_str(), keys.secret.reveal(), token), ("A", "B", Some("C")));
        for one in [&both[..1], &both[1..2]] {
            let error = ask(&KeySource::Environment, &context(one), None).await.unwrap_err().to_string();
            assert!(error.contains("is not"), "{error}");
        }
    }

    #[tokio::test]
    async fn profiles_are_read_as_the_tools_write_them() {
        let place = tempfile::tempdir().unwrap();
        let aws = place.path().join(".aws");
        std::fs::create_dir(&aws).unwrap();
        std::fs::write(
            aws.join("credentials"),
            "# mine\n[default]\naws_access_key_id = D\naws_secret_access_key=E=\n\n[team]\naws_access_key_id=T\n",
        )
        .unwrap();
        std::fs::write(
            aws.join("config"),
            "[profile team]\naws_secret_access_key = U\naws_access_key_id = X\n[profile sso]\nsso_session = s\n",
        )
        .unwrap();
        let home = place.path().to_str().unwrap();
        let of = async |pairs: &[(&str, &str)]| ask(&KeySource::Environment, &context(pairs), None).await;
        let keys = of(&[("HOME", home)]).await.unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.reveal()), ("D", "E="));
        let keys = of(&[("HOME", home), ("AWS_PROFILE", "team")]).await.unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.reveal()), ("T", "U"));
        let error = of(&[("HOME", home), ("AWS_PROFILE", "sso")]).await.unwrap_err().to_string();
        assert!(error.contains("sso_session"), "{error}");
        let error = of(&[("HOME", "/absent")]).await.unwrap_err().to_string();
        assert!(error.contains("/absent/.aws/credentials"), "{error}");
        let keys = ask(&KeySource::Profile("team".to_owned()), &context(&[("HOME", home)]), None).await.unwrap();
        assert_eq!(keys.id, "T");
    }

    #[tokio::test]
    async fn a_role_is_asked_for_with_the_token_of_the_environment_and_no_other() {
        let role = KeySource::Role { role: "arn:aws:iam::1:role/r".to_owned(), session: "s".to_owned() };
        let why = ask(&role, &context(&[("AWS_ROLE_ARN", "r")]), None).await.unwrap_err().to_string();
        assert!(why.contains("AWS_WEB_IDENTITY_TOKEN_FILE is not set"), "{why}");
        let named = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/absent/token")];
        let why = ask(&role, &context(&named), None).await.unwrap_err().to_string();
        assert!(why.contains("/absent/token"), "{why}");
    }

    #[test]
    fn ends_of_lent_keys_are_read_or_refused() {
        let keys = || plain("a".to_owned(), "b".to_owned(), None);
        assert_eq!(lent_until(keys(), "2026-11-26T08:00:00Z").unwrap().expires, Some(Timestamp(1_795_680_000_000)));
        assert!(lent_until(keys(), "soon").is_err());
    }

    #[test]
    fn files_of_any_content_are_read_without_a_fault() {
        for text in ["", "[", "]", "[]\n=", "a=b", "[x\ny=z", "[profile ]\n\u{0}=\u{0}"] {
            sections(text);
        }
    }
}
