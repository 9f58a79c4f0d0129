//! How operations end that don't succeed: what they made is taken back, or stays known.

use ocopea_catalog_db::{model::OperationState, tasks::Task};
use ocopea_coordinator::{
    engine::{self, Order},
    plan::{Context, Request, remove::RemoveRequest, repository::DeleteRequest, restore::RestoreRequest},
};
use ocopea_protocol::{
    ids::OperationId,
    names::EnvironmentName,
    plan::{ContainerPlacement, RestorePlan},
    task::{Claimed, EnvironmentMark, TaskOutput},
};

use super::*;

/// An operation whose tasks end as the test says.
struct Driven<'a> {
    catalog: &'a Catalog,
    actor: &'a Actor,
    operation: OperationId,
}

impl Driven<'_> {
    async fn tasks(&self) -> Vec<Task> {
        self.catalog.tasks(self.actor.team, self.operation).await.unwrap()
    }

    async fn claim(&self, label: &str) -> Claimed {
        let all = self.tasks().await;
        let task = all.iter().find(|task| task.label == label).unwrap_or_else(|| panic!("no {label} in {all:#?}"));
        let transaction = self.catalog.begin().await.unwrap();
        let instance = InstanceId::generate(&self.catalog.seams);
        let lease = Duration::from_secs(20);
        let claimed = transaction.claim(task.id, task.site, instance, lease).await.unwrap().unwrap();
        transaction.commit().await.unwrap();
        Claimed { task: task.id, operation: self.operation, attempt: claimed.attempt, instance }
    }

    async fn succeed(&self, claimed: &Claimed, output: &str) {
        let transaction = self.catalog.begin().await.unwrap();
        assert!(transaction.succeed(claimed, output).await.unwrap());
        engine::settle(&transaction, self.operation).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn done(&self, label: &str, output: &str) {
        self.succeed(&self.claim(label).await, output).await;
    }

    async fn failed(&self, label: &str) {
        let claimed = self.claim(label).await;
        let failure = TaskFailure::permanent("site.refused", "can't do it", "the cluster refuses it");
        let transaction = self.catalog.begin().await.unwrap();
        transaction.fail(&claimed, &failure).await.unwrap().unwrap();
        engine::settle(&transaction, self.operation).await.unwrap();
        transaction.commit().await.unwrap();
    }
}

struct Empty {
    _directory: tempfile::TempDir,
    catalog: Catalog,
    actor: Actor,
}

async fn empty() -> Empty {
    let directory = tempfile::tempdir().unwrap();
    let seams = Seams::real(TaskTracker::new());
    let catalog = Catalog::sqlite(&directory.path().join("catalog"), seams).await.unwrap();
    let actor = catalog.ensure_first_user("team", "dana").await.unwrap();
    Empty { _directory: directory, catalog, actor }
}

#[tokio::test]
async fn a_deletion_that_is_stopped_behind_its_deed_shows_no_image_without_a_ref() {
    let Empty { catalog, actor, .. } = &empty().await;
    let seams = &catalog.seams;
    for (found, shown) in [("null", false), ("{}", true)] {
        let mut record = [0u8; 32];
        seams.entropy.fill(&mut record);
        let image = Image {
            repository: None,
            id: ImageId::generate(seams),
            team: actor.team,
            record: Digest(record),
            name: "shop".to_owned(),
            application: "shop".to_owned(),
            site: "desk".to_owned(),
            creator: "dana".to_owned(),
            comment: String::new(),
            bytes: 1,
            new_bytes: 1,
            created: seams.clock.now(),
            labels: BTreeMap::new(),
            body: "{}".to_owned(),
        };
        let transaction = catalog.begin().await.unwrap();
        transaction.add_image(&image).await.unwrap();
        transaction.commit().await.unwrap();
        let order = Order {
            repository: None,
            request: Request::DeleteImage(DeleteRequest { image: image.id }),
            title: "delete image".to_owned(),
            site: None,
            context: Context::default(),
            image: Some(image.id),
            environment: None,
            removing: None,
        };
        let operation = engine::accept(catalog, actor, order, None).await.unwrap();
        let deletion = Driven { catalog, actor, operation };
        let claimed = deletion.claim("do").await;
        // Too late: it is being done.
        engine::cancel(catalog, actor, operation).await.unwrap();
        deletion.succeed(&claimed, "{}").await;
        deletion.done("undo:look", found).await;
        let ended = catalog.operation(actor.team, operation).await.unwrap();
        assert_eq!(ended.state, OperationState::Cancelled);
        let there = catalog.image(actor.team, &image.id.to_string()).await.is_ok();
        assert_eq!(there, shown, "the ref: {found}");
    }
}

fn order(request: Request, title: &str, site: SiteId) -> Order {
    Order {
        repository: None,
        request,
        title: title.to_owned(),
        site: Some(site),
        context: Context::default(),
        image: None,
        environment: None,
        removing: None,
    }
}

/// An environment that a restore is making: planned, its namespace there, its container pushed.
async fn making<'a>(catalog: &'a Catalog, actor: &'a Actor) -> (Driven<'a>, EnvironmentId) {
    let site = catalog.ensure_site("desk").await.unwrap();
    let (record, name): (Digest, EnvironmentName) = (Digest([7; 32]), "copy".parse().unwrap());
    let environment = Environment {
        id: EnvironmentId::generate(&catalog.seams),
        team: actor.team,
        name: name.to_string(),
        site,
        image: ImageId::generate(&catalog.seams),
        record,
        state: EnvironmentState::Creating,
        url: None,
        owner: "dana".to_owned(),
        placements: vec![],
        created: catalog.seams.clock.now(),
    };
    let id = environment.id;
    let request =
        RestoreRequest { record, name: name.clone(), versions: vec![], dry_run: false, approve: None, streams: vec![] };
    let context = Context { environment: Some(id), ..Context::default() };
    let order_of = order(Request::Restore(request), "restore", site);
    let restore = Order { environment: Some(environment), context, ..order_of };
    let operation = engine::accept(catalog, actor, restore, None).await.unwrap();
    let restore = Driven { catalog, actor, operation };
    let component = "web".parse().unwrap();
    let target = "registry.example/copy/web".to_owned();
    let plan = TaskOutput::Planned(Box::new(RestorePlan {
        environment: name.clone(),
        steps: vec![],
        refusals: vec![],
        notices: vec![],
        containers: vec![ContainerPlacement { component, digest: record, target, push: true }],
        data: vec![],
        objects_digest: String::new(),
        digest: String::new(),
    }));
    restore.done("pin", "{}").await;
    restore.done("plan", &text(&plan)).await;
    restore.done("namespace", &text(&TaskOutput::Done)).await;
    restore.done("push:web", &text(&TaskOutput::Done)).await;
    (restore, id)
}

fn text(output: &TaskOutput) -> String {
    serde_json::to_string(output).unwrap()
}

/// Begins to remove the environment.
async fn removing<'a>(catalog: &'a Catalog, actor: &'a Actor, id: EnvironmentId) -> Driven<'a> {
    let there = catalog.environment(actor.team, "copy").await.unwrap();
    let name: EnvironmentName = "copy".parse().unwrap();
    let operation = OperationId::generate(&catalog.seams);
    let mark = EnvironmentMark { environment: id, name, operation, record: there.record };
    let request = Request::Remove(RemoveRequest { mark, placements: there.placements });
    let remove = Order { removing: Some(id), ..order(request, "remove", there.site) };
    let operation = engine::accept(catalog, actor, remove, None).await.unwrap();
    Driven { catalog, actor, operation }
}

#[tokio::test]
async fn an_environment_whose_removal_ended_behind_its_namespace_is_not_said_to_run() {
    let Empty { catalog, actor, .. } = &empty().await;
    let (restore, id) = making(catalog, actor).await;
    let state = async || catalog.begin().await.unwrap().environment(id).await.unwrap().state;
    for label in ["foundation", "consumers"] {
        restore.done(label, &text(&TaskOutput::Done)).await;
    }
    restore.done("ready", &text(&TaskOutput::Ready { url: None, notes: vec![] })).await;
    restore.done("unpin", "{}").await;
    assert_eq!(state().await, EnvironmentState::Running);

    // Refused: nothing was touched.
    removing(catalog, actor, id).await.failed("namespace").await;
    assert_eq!(state().await, EnvironmentState::Running);
    // Stopped before any agent took it: likewise.
    let stopped = removing(catalog, actor, id).await;
    engine::cancel(catalog, actor, stopped.operation).await.unwrap();
    let transaction = catalog.begin().await.unwrap();
    engine::settle(&transaction, stopped.operation).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(state().await, EnvironmentState::Running);
    // The namespace is gone, what was pushed is not.
    let remove = removing(catalog, actor, id).await;
    remove.done("namespace", &text(&TaskOutput::Done)).await;
    remove.failed("push:web").await;
    assert_eq!(state().await, EnvironmentState::Incomplete);
    // It can be removed all the same.
    let remove = removing(catalog, actor, id).await;
    remove.done("namespace", &text(&TaskOutput::Done)).await;
    remove.done("push:web", &text(&TaskOutput::Done)).await;
    assert_eq!(state().await, EnvironmentState::Removed);
}

#[tokio::test]
async fn what_could_not_be_taken_back_stays_known_and_can_be_removed() {
    let Empty { catalog, actor, .. } = &empty().await;
    let (restore, id) = making(catalog, actor).await;
    let operation = restore.operation;
    let state = async || catalog.begin().await.unwrap().environment(id).await.unwrap().state;
    restore.failed("foundation").await;
    restore.done("undo:unpin", "{}").await;
    restore.failed("undo:namespace").await;

    let ended = catalog.operation(actor.team, operation).await.unwrap();
    assert_eq!(ended.state, OperationState::Failed);
    let failure = ended.failure.unwrap();
    let told = "could not be taken back: namespace (the cluster refuses it), push:web (what it waits for failed)";
    assert!(failure.cause.contains(told), "{failure}");
    assert!(failure.next.contains("ocopea remove copy"), "{failure}");
    assert!(restore.tasks().await.iter().all(|task| task.state.is_terminal()), "nothing waits for ever");
    assert_eq!(state().await, EnvironmentState::Incomplete);

    // People see it, and it goes when what stood in the way is gone; a removal that fails leaves it as it was.
    for removes in [false, true] {
        let there = catalog.environment(actor.team, "copy").await.unwrap();
        assert_eq!(there.placements.len(), 1);
        let remove = removing(catalog, actor, id).await;
        assert_eq!(state().await, EnvironmentState::Removing);
        if removes {
            remove.done("namespace", &serde_json::to_string(&TaskOutput::Done).unwrap()).await;
            remove.done("push:web", &serde_json::to_string(&TaskOutput::Done).unwrap()).await;
            assert_eq!(state().await, EnvironmentState::Removed);
        } else {
            remove.failed("namespace").await;
            assert_eq!(state().await, EnvironmentState::Incomplete);
        }
    }
    assert!(catalog.environment(actor.team, "copy").await.is_err());
}
