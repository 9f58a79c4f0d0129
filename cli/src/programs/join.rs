//! `ocopea join`: the cluster of one's own machine as a site that nobody else sees, for as long as this runs.

use ocopea_coordinator::api::{JoinToken, Me, NewSite};

use super::{
    agent::{self, AgentProgram, usual_identity},
    identity::{IdentityFile, Place},
    settings::Given,
};
use crate::{
    arguments::Join,
    client::{self, Client, Failure},
    output,
};

/// What may be a site's name of a text: lower-case letters, digits, '-'.
fn named(text: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = text.chars().map(fits).take(50).collect();
    name.trim_matches('-').to_owned()
}

/// Makes the site, unless it is there from an earlier time, and is its agent.
pub async fn run(options: Join, url: Option<String>, token: Option<String>) -> Result<(), Failure> {
    let path = options.identity.clone().or_else(|| usual_identity(&options.context)).ok_or_else(|| {
        Failure::usage("there is no home directory to keep the site's identity in").next("name a file with --identity")
    })?;
    let known = IdentityFile::new(Place::File(path.clone()), &[])?.load().await?.is_some();
    let mut joining = (None, None);
    if !known {
        let mut url = options.address.or(url);
        if let Some(given) = &url
            && given.contains("code=")
        {
            let account = client::sign_in(given).await?;
            account.store().map_err(|error| Failure::local(format!("the token can't be kept: {error}")))?;
            url = Some(account.url);
        }
        let client = Client::new(url, token)?;
        let name = match options.name {
            Some(name) => name,
            None => {
                let me: Me = client.get("/api/v1/me").await?;
                named(&format!("{}-{}", me.user, options.context))
            }
        };
        let added: JoinToken =
            client.post("/api/v1/sites", &NewSite { name, private: true, expires_s: Some(600) }).await?;
        output::remark(format!(
            "site {} is added: only you see it; `ocopea sites remove {}` ends it",
            added.name, added.name
        ));
        joining = (Some(client.url().to_owned()), Some(added.token));
    }
    let shown = |path: std::path::PathBuf| path.display().to_string();
    agent::run(Given::<AgentProgram>::typed([
        ("coordinator", joining.0),
        ("join-token", joining.1),
        ("coordinator-certificates", options.coordinator_certificates.map(shown)),
        ("identity", Some(shown(path))),
        ("kubeconfig", options.kubeconfig.map(shown)),
        ("context", Some(options.context)),
        ("registry", options.registry),
        ("mover-image", options.mover_image),
    ]))
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_and_a_context_make_a_sites_name() {
        assert_eq!(named("Dana Scully-kind-kind"), "dana-scully-kind-kind");
        assert_eq!(named("-ü@x/"), "x");
        assert!(named(&"x".repeat(99)).parse::<ocopea_protocol::names::SiteName>().is_ok());
    }
}
