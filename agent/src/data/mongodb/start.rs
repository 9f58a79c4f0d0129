//! A server that has just been started for a restore: waits until it is one that can be loaded.
//!
//! Images start a first server for their own scripts, which nobody may sign in to yet and which goes away again. A
//! member of a replica set holds nothing and takes nothing before somebody tells it its set: where nothing of the
//! application does (the Job that did it is done, and isn't run again), that is ours to do, as it was when it was saved.

use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use ocopea_protocol::failure::TaskFailure;

use super::{
    catalog::ReplicaSet,
    connect::{AUTHENTICATION, Connected, Purpose, connect, run, server, stopped},
};
use crate::data::Subject;

/// How long a server may take until it lets its administrator in and may be written to.
const STARTS: Duration = Duration::from_secs(90);
/// How long others may take to initiate a replica set: a script in the pod, a sidecar.
const OTHERS: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// In the arguments of the server that the official image starts for its scripts.
const FOR_SCRIPTS: &str = "docker-entrypoint-temp";

/// Connects for a load, as soon as that makes sense.
pub(super) async fn ready(subject: &Subject, set: Option<&ReplicaSet>) -> Result<Connected, TaskFailure> {
    let clock = &subject.seams.clock;
    let since = clock.monotonic();
    loop {
        let waited = clock.monotonic().saturating_sub(since);
        let why = match connect(subject, Purpose::Load).await {
            Ok(connected) if connected.is_uninitiated() => {
                if waited >= OTHERS {
                    initiate(subject, &connected, set).await?
                } else {
                    waiting(subject, "it belongs to a replica set that nobody has initiated yet")
                }
            }
            Ok(connected) if connected.is_no_primary() => {
                if waited >= OTHERS {
                    // It is the one that can be reached; where it may not, the wait ends in the word below.
                    let _ = run(subject, &connected, "admin", "make primary", doc! {"replSetStepUp": 1}).await;
                }
                let primary = connected.hello.get_str("primary").unwrap_or("none");
                waiting(subject, &format!("it is not the primary of its replica set, which is {primary}"))
            }
            Ok(connected) if runs_scripts(subject, &connected).await? => {
                waiting(subject, "the scripts of its first start still run")
            }
            Ok(connected) => return Ok(connected),
            Err(failure) if failure.code == AUTHENTICATION => failure,
            Err(failure) => return Err(failure),
        };
        if waited >= STARTS {
            return Err(why);
        }
        tracing::debug!(component = %subject.name, cause = why.cause, "the server is not ready to be loaded");
        tokio::select! {
            biased;
            () = subject.stop.cancelled() => return Err(stopped(subject, "load")),
            () = clock.sleep(PAUSE) => {}
        }
    }
}

fn waiting(subject: &Subject, why: &str) -> TaskFailure {
    TaskFailure::retryable("data.starting", format!("can't load \"{}\"", subject.name), why)
        .next("see what the server's own log says")
}

/// Whether this is the server that the image starts for its scripts only. One that doesn't tell is taken for the real.
async fn runs_scripts(subject: &Subject, connected: &Connected) -> Result<bool, TaskFailure> {
    match run(subject, connected, "admin", "look at", doc! {"getCmdLineOpts": 1}).await {
        Ok(answer) => Ok(answer
            .get_array("argv")
            .is_ok_and(|words| words.iter().filter_map(Bson::as_str).any(|word| word.contains(FOR_SCRIPTS)))),
        Err(failure) if failure.is_retryable() || failure.code == "cancelled" => Err(failure),
        Err(_) => Ok(false),
    }
}

/// Tells the server which replica set it is; answers what there is to wait for then.
async fn initiate(
    subject: &Subject,
    connected: &Connected,
    set: Option<&ReplicaSet>,
) -> Result<TaskFailure, TaskFailure> {
    // Without a word of what was saved the server takes its own name.
    let config = set.map(|set| configuration(set, &server(subject).map(|s| s.hosts.clone()).unwrap_or_default()));
    let command = doc! {"replSetInitiate": config.unwrap_or_default()};
    match run(subject, connected, "admin", "initiate the replica set of", command).await {
        Ok(_) => Ok(waiting(subject, "its replica set was just initiated")),
        Err(failure) if failure.code == "cancelled" => Err(failure),
        // Somebody else was faster, or other members are not there yet: that will be seen.
        Err(failure) => Ok(TaskFailure::retryable("data.starting", failure.what, failure.cause)
            .next("see whether all members of the replica set run")),
    }
}

/// The saved members under the names that they have in any namespace: `db-0.db.shop.svc.cluster.local` is `db-0.db`.
fn configuration(set: &ReplicaSet, services: &[String]) -> Document {
    let all = |hosts: &[String], more: Document| -> Vec<Document> {
        hosts
            .iter()
            .map(|host| {
                let mut member = doc! {"host": local(host, services)};
                member.extend(more.clone());
                member
            })
            .collect()
    };
    let mut members = all(&set.hosts, Document::new());
    members.extend(all(&set.passives, doc! {"priority": 0}));
    members.extend(all(&set.arbiters, doc! {"arbiterOnly": true}));
    for (at, member) in (0i32..).zip(&mut members) {
        member.insert("_id", at);
    }
    doc! {"_id": &set.name, "members": members}
}

fn local(host: &str, services: &[String]) -> String {
    let (name, port) = host.rsplit_once(':').unwrap_or((host, "27017"));
    let labels: Vec<&str> = name.split('.').collect();
    let of_cluster = labels.len() > 2 && labels.contains(&"svc");
    let service = labels.iter().position(|label| services.iter().any(|service| service == label));
    match service.filter(|at| of_cluster && *at <= 1).and_then(|at| labels.get(..=at)) {
        Some(short) => format!("{}:{port}", short.join(".")),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_set_is_initiated_under_names_that_hold_in_any_namespace() {
        let set = ReplicaSet {
            name: "rs0".to_owned(),
            hosts: vec!["db-0.db.shop.svc.cluster.local:27017".to_owned(), "db-1.db:27018".to_owned()],
            passives: vec!["db.example.com:1".to_owned()],
            arbiters: vec!["db-arbiter-0.db-arbiter.shop.svc:27017".to_owned()],
        };
        let config = configuration(&set, &["db".to_owned(), "db-arbiter".to_owned()]);
        let wanted = doc! {"_id": "rs0", "members": [
            {"host": "db-0.db:27017", "_id": 0}, {"host": "db-1.db:27018", "_id": 1},
            {"host": "db.example.com:1", "priority": 0, "_id": 2},
            {"host": "db-arbiter-0.db-arbiter:27017", "arbiterOnly": true, "_id": 3},
        ]};
        assert_eq!(config, wanted);
    }
}
