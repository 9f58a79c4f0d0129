//! Programs that keep a user's registry passwords: `credsStore` and `credHelpers` of the user's own Docker
//! configuration. They are asked at every use, since some give passwords that soon expire. A pull secret's are never
//! run: who may write one in a cluster doesn't choose what runs here.
//!
//! The protocol is that of `docker-credential-NAME get`: the host on standard input, JSON on standard output.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    process::Stdio,
    time::Duration,
};

use ocopea_protocol::{seams::Seams, secret::Secret};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::credentials::Credential;

/// How long a program may take; some ask a cloud.
const PATIENCE: Duration = Duration::from_secs(15);
/// No answer is longer.
const LONGEST: u64 = 64 * 1024;
/// What Docker calls its own registry here.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Which program to ask for which host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CredentialHelpers {
    pub(super) by_host: BTreeMap<String, String>,
    pub(super) store: Option<String>,
    /// Where programs are looked for; as this process does, unless given.
    pub(super) search: Option<OsString>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl CredentialHelpers {
    /// What the program for `host` knows, or why it didn't say.
    pub(super) async fn find(&self, host: &str, seams: &Seams) -> Result<Option<Credential>, String> {
        let own = self.by_host.iter().find(|(key, _)| super::credentials::normal(key) == host);
        let (wanted, program) = match (own, &self.store) {
            (Some((key, program)), _) => (key.as_str(), program),
            (None, Some(store)) if host == "docker.io" => (DOCKER_HUB, store),
            (None, Some(store)) => (host, store),
            (None, None) => return Ok(None),
        };
        let asked = seams.timeout(PATIENCE, ask(program, wanted, self.search.as_deref())).await;
        let asked = asked.unwrap_or_else(|| Err(format!("it didn't answer within {} s", PATIENCE.as_secs())));
        asked.map_err(|why| format!("docker-credential-{program} gave no password for {host}: {why}"))
    }
}

async fn ask(name: &str, host: &str, search: Option<&OsStr>) -> Result<Option<Credential>, String> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(harmless) {
        return Err("its name is none of a program".to_owned());
    }
    let mut command = Command::new(format!("docker-credential-{name}"));
    if let Some(search) = search {
        command.env("PATH", search);
    }
    let mut child = command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (mut stdin, stdout) = stdin.zip(stdout).ok_or("it has no input or output")?;
    // One that ended without reading says why in its output.
    let _ = stdin.write_all(host.as_bytes()).await;
    drop(stdin);
    let mut answer = Vec::new();
    stdout.take(LONGEST).read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        // The protocol's own words for "I have none", which is no fault.
        return if said.contains("credentials not found") { Ok(None) } else { Err(format!("{status}: {said:.200}")) };
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| "its answer is not the expected JSON".to_owned())?;
    Ok(Some(Credential { user: answer.username, password: Secret::new(answer.secret) }))
}
