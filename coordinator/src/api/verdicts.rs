//! Where an image can run, with every reason: what it needs against what each site's agents found last.

use axum::{
    Json,
    extract::{Path, State as Extract},
};
use ocopea_catalog_db::{
    CatalogError,
    images::Image,
    model::{Role, Standing},
    sites::Site,
};
use ocopea_protocol::{
    image::Location,
    needs::NEEDS_VERSION,
    time::Timestamp,
    verdict::{Answer, Needs, Reason, Verdict, verdict},
};
use ocopea_repository::{Body, Component, Requirements};

use super::{
    ReasonView, State, VerdictView,
    problem::{Caller, Problem},
    sites::{is_silent, silence},
};

/// The sites that the caller sees, each with its verdict for this image: where it can run first, then by name.
///
/// A verdict is made from what the site's agents reported last (`age_s`). `unknown` never counts as compatible: the
/// reason says how to find out. The plan of a restore (`dry_run`) asks the site itself.
#[utoipa::path(get, path = "/api/v1/images/{image}/sites", params(("image" = String, Path, description = "id, or a name that only one image has")),
    responses((status = 200, body = Vec<VerdictView>), (status = 404, body = Problem)))]
pub(super) async fn for_image(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(image): Path<String>,
) -> Result<Json<Vec<VerdictView>>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let (coordinator, catalog) = (&state.coordinator, &state.coordinator.catalog);
    let image = catalog.image(actor.team, &image).await?;
    let location = coordinator
        .all_repositories()
        .await?
        .into_iter()
        .find(|repository| repository.reference() == image.repository)
        .map(|repository| repository.location);
    let needs = needs(&image).map_err(CatalogError::from)?;
    let now = coordinator.seams.clock.now();
    let mut sites = catalog.sites_of(&actor).await?;
    sites.retain(|site| site.standing != Standing::Removed);
    // A directory is read by agents of this process; others may be on another machine.
    let directory = match &location {
        Some(Location::Directory { path }) => Some(path.as_str()),
        _ => None,
    };
    let mut views: Vec<(Answer, VerdictView)> = sites
        .into_iter()
        .map(|site| {
            let elsewhere = directory.filter(|_| !state.access.look_again(&site.name));
            let verdict = of_site(&site, &needs, elsewhere, now);
            (verdict.answer, view(site, verdict, now))
        })
        .collect();
    views.sort_by(|(one, a), (other, b)| other.cmp(one).then_with(|| a.site.cmp(&b.site)));
    Ok(Json(views.into_iter().map(|(_, view)| view).collect()))
}

/// What of a record tells of needs.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Told {
    components: Vec<Component>,
    requirements: Requirements,
}

/// What an image needs, as its record says.
fn needs(image: &Image) -> Result<Needs, serde_json::Error> {
    let record: Told = serde_json::from_str(&image.body)?;
    let mut needs = Needs { kinds: record.requirements.kinds, ..Needs::default() };
    // A newer release may have noted what this one doesn't know.
    needs.more = (record.requirements.version == NEEDS_VERSION).then_some(record.requirements.needs);
    for component in record.components {
        match component.body {
            Body::Container { platforms, .. } => {
                let platforms = platforms.into_iter().map(|platform| platform.platform);
                let real = platforms.filter(|platform| !platform.starts_with("unknown")).collect();
                needs.containers.push((component.name, real));
            }
            Body::Data { found, .. } => needs.data.push((component.name, found.kind)),
            Body::Config { .. } => {}
        }
    }
    Ok(needs)
}

/// `directory`: where the image lies, if the site's agents may not get there.
fn of_site(site: &Site, needs: &Needs, directory: Option<&str>, now: Timestamp) -> Verdict {
    let open = |what: &str, found: String, mend: String| Reason {
        answer: Answer::Unknown,
        what: what.to_owned(),
        needed: "word of its agents".to_owned(),
        found,
        mend,
    };
    let report = match &site.report {
        _ if site.standing == Standing::Pending => {
            let mend = format!("accept it: ocopea sites approve {}", site.name);
            return vec![open("the site", "it waits to be accepted".to_owned(), mend)].into();
        }
        // What was found so long ago is not known now.
        _ if is_silent(site, now) => {
            let mend = "see why its agent is silent, or start it".to_owned();
            return vec![open("the site", silence(site), mend)].into();
        }
        None => {
            let mend = "wait a minute for its first report".to_owned();
            return vec![open("the site", "its agent has not reported yet".to_owned(), mend)].into();
        }
        Some(report) => report,
    };
    let mut reasons = verdict(needs, report).reasons;
    if let Some(path) = directory {
        reasons.push(Reason {
            needed: "to read the repository".to_owned(),
            ..open(
                "the repository",
                format!("it is the directory {path}, which may be on another machine than the site's agent"),
                format!("ask the site: ocopea restore IMAGE --site {} --dry-run", site.name),
            )
        });
    }
    reasons.into()
}

fn view(site: Site, verdict: Verdict, now: Timestamp) -> VerdictView {
    VerdictView {
        id: site.id.to_string(),
        site: site.name,
        verdict: verdict.answer.as_str().to_owned(),
        reasons: verdict
            .reasons
            .into_iter()
            .map(|reason| ReasonView {
                verdict: reason.answer.as_str().to_owned(),
                what: reason.what,
                needed: reason.needed,
                found: reason.found,
                mend: reason.mend,
            })
            .collect(),
        reported: site.reported.map(Timestamp::rfc3339),
        age_s: site.reported.map(|at| u64::try_from((now.0 - at.0) / 1000).unwrap_or(0)),
    }
}
