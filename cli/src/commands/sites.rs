//! Sites: which there are, and how they come and go.

use ocopea_coordinator::api::{
    EnrolmentKeyView, IssuedEnrolmentKey, JoinToken, NewEnrolment, NewSite, ReasonView, SiteView, VerdictView,
};
use reqwest::Method;
use serde_json::Value;

use super::{segment, when};
use crate::{
    arguments::{EnrolmentKeys, Format, Sites, Watch},
    client::{Client, Failure},
    listing::Listing,
    output::{self, line, parse_span, size},
};

pub(super) async fn sites(
    client: &Client,
    format: Format,
    command: Option<Sites>,
    watch: Watch,
) -> Result<(), Failure> {
    match command {
        None => list(client, format, watch).await,
        Some(Sites::Add { name, expires }) => {
            let expires_s = expires.as_deref().map(parse_span).transpose()?;
            let added: JoinToken = client.post("/api/v1/sites", &NewSite { name, private: false, expires_s }).await?;
            match format {
                Format::Json | Format::Yaml => output::print(format, &added)?,
                Format::Name => line(added.token),
                Format::Table => {
                    line(format!("site {} is added. Beside its cluster, until {}:", added.name, added.expires));
                    line("");
                    line(format!(
                        "  ocopea agent --coordinator {} --join-token {} --context CONTEXT",
                        client.url(),
                        added.token
                    ));
                    line("");
                    output::remark(
                        "the token lets one agent in, once; the agent keeps what it is given in a file of its own",
                    );
                }
            }
            Ok(())
        }
        Some(Sites::Remove { name }) => {
            client.order(Method::DELETE, &format!("/api/v1/sites/{}", segment(&name)), None).await?;
            output::remark(format!(
                "✓ site {name} removed: its agents are let in no more; what runs there goes on running"
            ));
            Ok(())
        }
        Some(Sites::Approve { name }) => {
            client.order(Method::POST, &format!("/api/v1/sites/{}/approval", segment(&name)), None).await?;
            output::remark(format!("✓ site {name} accepted"));
            Ok(())
        }
        Some(Sites::For { image }) => verdicts(client, format, &image).await,
        Some(Sites::Keys { command }) => keys(client, format, command).await,
    }
}

/// The sites with their verdicts; as names, only those where the image can run.
async fn verdicts(client: &Client, format: Format, image: &str) -> Result<(), Failure> {
    let found: Vec<VerdictView> = client.get(&format!("/api/v1/images/{}/sites", segment(image))).await?;
    if format == Format::Name {
        found.iter().filter(|site| can_run(site)).for_each(|site| line(&site.site));
        return Ok(());
    }
    if matches!(format, Format::Json | Format::Yaml) {
        return output::print(format, &found);
    }
    // One row for each reason; the site stands in the first.
    let rows: Vec<[String; 5]> = found.iter().flat_map(rows_of).collect();
    let listing = Listing {
        head: &["SITE", "VERDICT", "LOOKED", "WHY", "WHAT TO DO"],
        row: &|row: &[String; 5]| row.to_vec(),
        name: &|[site, ..]| site.clone(),
        empty: "there is no site",
    };
    listing.print(format, &rows)
}

fn rows_of(site: &VerdictView) -> Vec<[String; 5]> {
    let told = |reason: &ReasonView| {
        (format!("{}: needs {}; found: {}", reason.what, reason.needed, reason.found), reason.mend.clone())
    };
    let mut reasons: Vec<(String, String)> = site.reasons.iter().map(told).collect();
    if reasons.is_empty() {
        reasons.push(Default::default());
    }
    let age = site.age_s.map_or_else(|| "never".to_owned(), |age| format!("{age} s ago"));
    let mut head = [site.site.clone(), site.verdict.clone(), age];
    reasons
        .into_iter()
        .map(|(why, mend)| {
            let [site, verdict, age] = std::mem::take(&mut head);
            [site, verdict, age, why, mend]
        })
        .collect()
}

fn can_run(site: &VerdictView) -> bool {
    matches!(site.verdict.as_str(), "compatible" | "changes")
}

async fn list(client: &Client, format: Format, watch: Watch) -> Result<(), Failure> {
    let row = |site: &SiteView| {
        let report = site.report.as_ref();
        let text = |field: &str| report.and_then(|r| r[field].as_str()).unwrap_or("-").to_owned();
        let kinds = report
            .and_then(|r| r["data_kinds"].as_array())
            .map_or_else(String::new, |kinds| kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
        let age = site.age_s.map_or_else(|| "-".to_owned(), |age| format!("{age} s"));
        let name = if site.private { format!("{} (yours alone)", site.name) } else { site.name.clone() };
        let limits = report.map_or_else(String::new, |report| limits(&report["limits"]));
        vec![name, site.state.clone(), text("platform"), kinds, text("registry"), limits, age, site.why.clone()]
    };
    let head = ["SITE", "STATE", "PLATFORM", "DATA", "REGISTRY", "COPIES", "REPORTED", "MISSING"];
    let listing = Listing { head: &head, row: &row, name: &|site| site.name.clone(), empty: "there is no site" };
    listing.run(format, watch, async || client.get("/api/v1/sites").await).await
}

/// How many copies an agent makes at once, and how fast.
fn limits(limits: &Value) -> String {
    let Some(copies) = limits["copies"].as_u64() else { return "-".to_owned() };
    let rate = |word: &str, field: &str| limits[field].as_u64().map(|rate| format!("{word} {}/s", size(rate)));
    let rates = [rate("up", "upload"), rate("down", "download")];
    [Some(copies.to_string())].into_iter().chain(rates).flatten().collect::<Vec<_>>().join(", ")
}

async fn keys(client: &Client, format: Format, command: Option<EnrolmentKeys>) -> Result<(), Failure> {
    match command {
        None => {
            let found: Vec<EnrolmentKeyView> = client.get("/api/v1/enrolment-keys").await?;
            let row = |key: &EnrolmentKeyView| {
                let accepts = if key.approves { "at once" } else { "after approval" };
                vec![
                    key.id.clone(),
                    key.name.clone(),
                    key.names.clone(),
                    format!("{} of {}", key.uses, key.most_uses),
                    accepts.to_owned(),
                    when(&key.created),
                    key.state.clone(),
                ]
            };
            let head = ["KEY", "FOR", "NAMES", "USED", "ACCEPTED", "MADE", "STATE"];
            let listing =
                Listing { head: &head, row: &row, name: &|key| key.id.clone(), empty: "there is no join token or key" };
            listing.print(format, &found)
        }
        Some(EnrolmentKeys::Create { name, names, uses, approves, expires }) => {
            let expires_s = expires.as_deref().map(parse_span).transpose()?;
            let new = NewEnrolment { name, names, uses, approves, expires_s };
            let issued: IssuedEnrolmentKey = client.post("/api/v1/enrolment-keys", &new).await?;
            match format {
                Format::Json | Format::Yaml => output::print(format, &issued)?,
                Format::Table | Format::Name => line(issued.key),
            }
            Ok(())
        }
        Some(EnrolmentKeys::Revoke { id }) => {
            client.order(Method::DELETE, &format!("/api/v1/enrolment-keys/{}", segment(&id)), None).await?;
            output::remark("✓ enrolment key revoked; sites that came with it stay");
            Ok(())
        }
    }
}
