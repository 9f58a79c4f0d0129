//! The first look: version, size, rights, and what a copy would be.

use ocopea_protocol::{
    failure::TaskFailure,
    image::{Consistency, ConsistencyLevel},
    inventory::Gap,
};

use super::{
    binding::SRV,
    catalog,
    connect::{Purpose, connect, server},
    hold::{self, Instant},
};
use crate::data::{Inspected, Subject};

/// Bytes per second that a save reads at least, for the estimate of how long a snapshot must stand.
const PACE: u64 = 40 * 1024 * 1024;

/// See `DataService::inspect`.
pub(super) async fn inspect(subject: &Subject) -> Result<Inspected, TaskFailure> {
    let connected = connect(subject, Purpose::Save).await?;
    let catalog = catalog::read(subject, &connected).await?;
    let mut gaps = catalog.gaps;
    let sizes = catalog::sizes(subject, &connected, &catalog.facts).await?;
    let bytes: u64 = sizes.iter().map(|size| size.bytes).sum();
    let known = sizes.iter().all(|size| size.bytes > 0 || size.documents == 0);
    let mut consistency = Consistency {
        level: ConsistencyLevel::Inconsistent,
        why: String::new(),
        changed: Vec::new(),
        changed_count: 0,
        frozen_ms: 0,
    };
    if !connected.is_router() {
        gaps.extend(catalog::rights(subject, &connected, &catalog.facts).await?);
        match hold::instant(subject, &connected, &catalog.facts).await? {
            Instant::Snapshot(_) => {
                consistency.level = ConsistencyLevel::Snapshot;
                gaps.extend(too_long(subject, bytes, hold::window(subject, &connected).await?));
            }
            Instant::None(why) => consistency.why = why,
        }
    }
    if server(subject)?.logins.iter().any(|login| login.options.contains_key(SRV)) {
        gaps.push(note(
            subject,
            "a mongodb+srv:// address".to_owned(),
            "its hosts come from DNS records, which are not followed here: the server itself is saved, and at a restore only the name in the address is rewritten".to_owned(),
            "use a mongodb:// address if the restored one can't be resolved".to_owned(),
        ));
    }
    Ok(Inspected {
        version: Some(connected.version.clone()),
        bytes: known.then_some(bytes),
        streams: Some(catalog.facts.collections.iter().filter(|one| !one.view).count() as u64),
        features: catalog.facts.features(),
        consistency,
        gaps,
    })
}

fn note(subject: &Subject, what: String, why: String, next: String) -> Gap {
    Gap { name: subject.name.to_string(), what, why, blocking: false, next }
}

/// Says beforehand that the server may forget the snapshot while it is being read.
fn too_long(subject: &Subject, bytes: u64, window: u64) -> Option<Gap> {
    let seconds = bytes / PACE;
    (seconds > window * 8 / 10).then(|| {
        note(
            subject,
            "the snapshot's window".to_owned(),
            format!(
                "copying {} MB takes about {seconds} s, and the server keeps a snapshot for {window} s",
                bytes / 1_000_000
            ),
            format!("db.adminCommand({{setParameter: 1, minSnapshotHistoryWindowInSeconds: {}}})", seconds * 2 + 60),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ocopea_protocol::seams::Seams;
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::data::{Reach, ServerReach};

    #[test]
    fn a_copy_that_outlasts_the_snapshot_is_named_with_the_parameter_to_raise() {
        let reach = ServerReach { address: ([127, 0, 0, 1], 1).into(), logins: vec![], tools: vec![], hosts: vec![] };
        let subject = Subject {
            name: "db".parse().unwrap(),
            reach: Reach::Server(reach),
            seams: Seams::real(TaskTracker::new()),
            stop: CancellationToken::new(),
            progress: Arc::new(|_| {}),
        };
        assert!(too_long(&subject, 1 << 30, 300).is_none());
        let gap = too_long(&subject, 100 << 30, 300).unwrap();
        assert!(!gap.blocking && gap.next.contains("minSnapshotHistoryWindowInSeconds: 5180"), "{gap:?}");
    }
}
