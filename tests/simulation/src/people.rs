//! What people ask for, as the API does it: under a key, again when nobody answered.

use std::{collections::BTreeMap, time::Duration};

use ocopea_catalog_db::{CatalogError, environments::Environment, images::ImageSearch, model::EnvironmentState};
use ocopea_coordinator::{
    Coordinator,
    engine::{self, Order, accept},
    plan::{
        Context, Request,
        remove::RemoveRequest,
        repository::{CollectRequest, DeleteRequest, VerifyRequest},
        restore::RestoreRequest,
        save::SaveRequest,
    },
    repositories::Unusable,
};
use ocopea_protocol::{
    ids::{EnvironmentId, ImageId, OperationId, SiteId},
    task::{EnvironmentMark, Source},
};
use ocopea_repository::{Body, Record};

use crate::{runtime::lock, scenario::World};

/// What somebody wants.
#[derive(Clone, Debug)]
pub enum Wish {
    Save { site: usize, application: &'static str, freeze: bool },
    Restore { image: ImageId, site: usize, name: String },
    Remove { environment: EnvironmentId },
    Delete { image: ImageId },
    Collect { grace_s: u64 },
    Verify,
}

/// Why a request was refused.
#[derive(Debug)]
enum Refused {
    /// It may be asked again.
    Now(String),
    /// It won't go.
    Ever(String),
}

impl From<Unusable> for Refused {
    fn from(error: Unusable) -> Self {
        match error {
            Unusable::Catalog(error) => error.into(),
            other => Self::Now(other.to_string()),
        }
    }
}

impl From<CatalogError> for Refused {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Database(_) | CatalogError::InDoubt(_) | CatalogError::Superseded => {
                Self::Now(error.to_string())
            }
            other => Self::Ever(other.to_string()),
        }
    }
}

impl From<ocopea_repository::Error> for Refused {
    fn from(error: ocopea_repository::Error) -> Self {
        Self::Now(error.to_string())
    }
}

/// One person: asks for some things, one after the other.
pub async fn person(world: World, number: u64) {
    let wishes = world.sim.chance(|chance| chance.within(1..3));
    for wish in 0..wishes {
        let pause = world.sim.chance(|chance| chance.within(0..9000));
        world.sim.sleep(Duration::from_millis(pause)).await;
        let Some(what) = choose(&world, number, wish).await else { continue };
        let key = format!("person {number} wish {wish}");
        let twice = world.sim.chance(|chance| chance.per_mille(250));
        let accepted = if twice {
            // Impatient: the same twice at once.
            let (one, two) =
                tokio::join!(ask_for(&world, key.clone(), what.clone()), ask_for(&world, key.clone(), what.clone()));
            one.or(two)
        } else {
            ask_for(&world, key, what).await
        };
        let (cancels, after) = world.sim.chance(|chance| (chance.per_mille(250), chance.within(0..12_000)));
        if let Some(operation) = accepted
            && cancels
        {
            world.sim.sleep(Duration::from_millis(after)).await;
            let actor = world.actor.clone();
            world.sim.note(|| format!("somebody stops {operation}"));
            world
                .at_coordinator(move |coordinator| {
                    Box::pin(async move {
                        // It may be over, or nobody may answer.
                        let _ = engine::cancel(&coordinator.catalog, &actor, operation).await;
                        coordinator.ring();
                    })
                })
                .await;
        }
    }
}

async fn choose(world: &World, number: u64, wish: u64) -> Option<Wish> {
    let (kind, site) = world.sim.chance(|chance| (chance.below(100), chance.below(2) as usize));
    let images = world.database.ask("SELECT id FROM images ORDER BY id");
    let image = || {
        let one = world.sim.chance(|chance| chance.below(images.len() as u64));
        images.get(one as usize)?.parse::<ImageId>().ok()
    };
    Some(match kind {
        0..35 => {
            let (shop, freeze) = world.sim.chance(|chance| (chance.per_mille(600), chance.per_mille(300)));
            Wish::Save { site, application: if shop { "shop" } else { "blog" }, freeze }
        }
        35..68 => {
            // Sometimes two want the same name.
            let name = if world.sim.chance(|chance| chance.per_mille(150)) {
                "taken".to_owned()
            } else {
                format!("copy-{number}-{wish}")
            };
            Wish::Restore { image: image()?, site, name }
        }
        68..78 => {
            let there =
                world.database.ask("SELECT id FROM environments WHERE state IN ('running', 'incomplete') ORDER BY id");
            let one = world.sim.chance(|chance| chance.below(there.len() as u64));
            Wish::Remove { environment: there.get(one as usize)?.parse().ok()? }
        }
        78..88 => Wish::Delete { image: image()? },
        88..97 => Wish::Collect { grace_s: world.sim.chance(|chance| chance.within(1..16)) },
        _ => Wish::Verify,
    })
}

/// Asks until somebody answers, and notes what was answered.
pub async fn ask_for(world: &World, key: String, wish: Wish) -> Option<OperationId> {
    for _ in 0..8 {
        let (actor, sites, asked, under) = (world.actor.clone(), world.sites.clone(), wish.clone(), key.clone());
        let answer = world
            .at_coordinator(move |coordinator| {
                Box::pin(async move {
                    let sites: Vec<SiteId> = sites.iter().map(|(id, _)| *id).collect();
                    take(&coordinator, &actor, &sites, &under, asked).await
                })
            })
            .await;
        match answer {
            Some(Ok(operation)) => {
                world.sim.note(|| format!("{key}: {wish:?} is {operation}"));
                let known = lock(&world.accepted).insert(key.clone(), operation);
                if known.is_some_and(|known| known != operation) {
                    world.sim.wrong("one request was accepted as two operations".to_owned());
                }
                return Some(operation);
            }
            Some(Err(Refused::Ever(why))) => {
                world.sim.note(|| format!("{key}: {wish:?} is refused: {why}"));
                return None;
            }
            Some(Err(Refused::Now(why))) => world.sim.note(|| format!("{key}: not now: {why}")),
            None => world.sim.note(|| format!("{key}: nobody answers")),
        }
        let pause = world.sim.chance(|chance| chance.within(200..4000));
        world.sim.sleep(Duration::from_millis(pause)).await;
    }
    None
}

async fn take(
    coordinator: &Coordinator,
    actor: &ocopea_catalog_db::access::Actor,
    sites: &[SiteId],
    key: &str,
    wish: Wish,
) -> Result<OperationId, Refused> {
    if let Some(known) = coordinator.catalog.known_request(actor.team, key, "the same").await? {
        return Ok(known);
    }
    let mut order = order(coordinator, actor, sites, wish).await?;
    // What tells the operations of one request.
    order.title = key.to_owned();
    let accepted = accept(&coordinator.catalog, actor, order, Some((key, "the same"))).await?;
    coordinator.ring();
    Ok(accepted)
}

async fn order(
    coordinator: &Coordinator,
    actor: &ocopea_catalog_db::access::Actor,
    sites: &[SiteId],
    wish: Wish,
) -> Result<Order, Refused> {
    let catalog = &coordinator.catalog;
    let empty = |request: Request| Order {
        request,
        title: String::new(),
        site: None,
        context: Context::default(),
        image: None,
        environment: None,
        removing: None,
        repository: None,
    };
    Ok(match wish {
        Wish::Save { site, application, freeze } => {
            let base = catalog.last_image_of(actor.team, application, None, None).await?.map(|image| image.record);
            let key = coordinator.repository(None).await?.new_image_key(actor.team).await?;
            let namespace = application.parse().map_err(|_| Refused::Ever("no namespace".to_owned()))?;
            let source = Source { namespace, selector: None, without: vec![], credentials: vec![], freeze };
            let request = SaveRequest {
                source,
                sealed_credentials: None,
                name: application.to_owned(),
                labels: BTreeMap::new(),
                comment: String::new(),
            };
            let image = Some(ImageId::generate(&coordinator.seams));
            let context = Context { image, key: Some(key), base, ..Context::default() };
            Order { site: Some(sites[site]), context, ..empty(Request::Save(request)) }
        }
        Wish::Restore { image, site, name } => {
            let image = catalog.image(actor.team, &image.to_string()).await?;
            let record: Record = serde_json::from_str(&image.body).map_err(|error| Refused::Ever(error.to_string()))?;
            let streams = record
                .components
                .iter()
                .filter_map(|component| match &component.body {
                    Body::Data { streams, .. } => Some((component.name.clone(), streams.clone())),
                    _ => None,
                })
                .collect();
            let environment = Environment {
                id: EnvironmentId::generate(&coordinator.seams),
                team: actor.team,
                name: name.clone(),
                site: sites[site],
                image: image.id,
                record: image.record,
                state: EnvironmentState::Creating,
                url: None,
                owner: actor.user_name.clone(),
                placements: vec![],
                created: coordinator.seams.clock.now(),
            };
            let request = RestoreRequest {
                record: image.record,
                name: name.parse().map_err(|_| Refused::Ever("no name".to_owned()))?,
                versions: vec![],
                dry_run: false,
                approve: None,
                streams,
            };
            Order {
                site: Some(sites[site]),
                context: Context { environment: Some(environment.id), ..Context::default() },
                image: Some(image.id),
                environment: Some(environment),
                ..empty(Request::Restore(request))
            }
        }
        Wish::Remove { environment } => {
            let found = catalog.environment(actor.team, &environment.to_string()).await?;
            let request = RemoveRequest {
                mark: EnvironmentMark {
                    environment: found.id,
                    name: found.name.parse().map_err(|_| Refused::Ever("no name".to_owned()))?,
                    operation: OperationId::generate(&coordinator.seams),
                    record: found.record,
                },
                placements: found.placements.clone(),
            };
            Order {
                site: Some(found.site),
                image: Some(found.image),
                removing: Some(found.id),
                ..empty(Request::Remove(request))
            }
        }
        Wish::Delete { image } => {
            let found = catalog.image(actor.team, &image.to_string()).await?;
            Order { image: Some(found.id), ..empty(Request::DeleteImage(DeleteRequest { image: found.id })) }
        }
        Wish::Collect { grace_s } => empty(Request::Collect(CollectRequest { grace_s })),
        Wish::Verify => empty(Request::Verify(VerifyRequest { image: None })),
    })
}

/// Removes everything, so that what then is left was leaked.
pub async fn clear(world: &World) {
    let catalog = world.catalog();
    let there = "SELECT id FROM environments WHERE state IN ('running', 'incomplete') ORDER BY id";
    for environment in world.database.ask(there) {
        if let Ok(environment) = environment.parse() {
            ask_for(world, format!("clear {environment}"), Wish::Remove { environment }).await;
        }
    }
    let search = ImageSearch { limit: 1000, ..ImageSearch::default() };
    for image in catalog.images(world.actor.team, &search).await.unwrap_or_default() {
        ask_for(world, format!("clear {}", image.id), Wish::Delete { image: image.id }).await;
    }
    all_over(world).await;
    for round in 0..2 {
        ask_for(world, format!("clear collect {round}"), Wish::Collect { grace_s: 1 }).await;
        all_over(world).await;
    }
}

/// As long as it takes: who waits for it knows how long that may be.
async fn all_over(world: &World) {
    let begun = world.sim.now();
    while !world.database.ask("SELECT id FROM operations WHERE state IN ('running', 'undoing')").is_empty()
        && world.sim.now() - begun < Duration::from_secs(1500)
    {
        world.sim.sleep(Duration::from_millis(300)).await;
    }
}
