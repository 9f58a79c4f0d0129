//! Protections that can be broken one at a time, and who must notice it.
//!
//! To add one: `seams.planted("name")` where the protection is, a row here, and `make simulate PLANTED=name`.

/// Who notices.
pub enum Noticed {
    /// A seed.
    BySeeds,
    /// A test of this crate, by its target and its name, run with `OCOPEA_PLANTED`.
    ByTest(&'static str, &'static str, &'static str),
}

/// A broken protection.
pub struct Planted {
    pub name: &'static str,
    pub what: &'static str,
    pub noticed: Noticed,
}

const fn seeds(name: &'static str, what: &'static str) -> Planted {
    Planted { name, what, noticed: Noticed::BySeeds }
}

pub const PLANTED: &[Planted] = &[
    seeds("outbox-row-lost", "a task becomes ready without a hint in the outbox"),
    seeds("hint-forgotten-first", "the relay forgets a hint before the bus has it"),
    seeds("heartbeat-unfenced", "a heartbeat counts, whoever holds the task, and though it is over"),
    seeds("claimed-twice", "a claimed task is given to another"),
    seeds("attempt-not-counted", "a claim makes no new attempt"),
    seeds("attempt-stays-open", "what is handed back leaves its attempt open"),
    seeds("lease-never-ends", "a lease that ran out gives nothing back"),
    seeds("lease-ends-early", "a lease is taken for over while it is young"),
    seeds("clock-set-unseen", "a clock that was set means nothing to leases"),
    seeds("needs-ignored", "a task is ready before those that it needs are done"),
    seeds("outcome-without-consequence", "an outcome is recorded without what follows from it"),
    seeds("end-left-again", "a terminal state is left when somebody stops the operation"),
    seeds("cancel-loses", "an operation goes on though it is to stop"),
    seeds("undo-skipped", "what failed is not taken back"),
    seeds("undo-too-early", "taking back begins while tasks are under way"),
    seeds("ref-not-undone", "a commit that was called off keeps its ref"),
    seeds("environment-stays-open", "the environment of a failed restore stays as it was"),
    seeds("key-ignored", "a request's key is not remembered"),
    seeds("audit-row-lost", "an operation is accepted without its audit row"),
    seeds("polls-ignored", "agents take no task from a poll"),
    seeds("task-stays-taken", "an agent takes no task twice"),
    seeds("lost-lease-kept", "an agent works on when its lease is over"),
    seeds("refusal-unheard", "an agent works on when its heartbeat is refused"),
    seeds("cancel-unheard", "an agent works on when it is told to stop"),
    seeds("work-goes-on", "work that was dropped goes on"),
    seeds("pin-skipped", "nothing is pinned"),
    seeds("pin-stays", "a pin is never ended"),
    seeds("pins-ignored", "collections don't look at pins"),
    seeds("no-grace", "what was condemned is deleted with the next collection, whatever the grace time"),
    seeds("refs-not-looked-at-again", "what was condemned is deleted though a ref names it since"),
    seeds("stored-again-unseen", "what was condemned is deleted though it was stored again since"),
    seeds("two-collections", "two collections are claimed at the same time"),
    Planted {
        name: "result-unfenced",
        what: "the outcome of an older attempt counts",
        noticed: Noticed::ByTest(
            "ocopea-catalog-db",
            "catalog",
            "an_outcome_counts_only_from_the_attempt_that_holds_the_task",
        ),
    },
    Planted {
        name: "holder-goes-back",
        what: "a heartbeat that comes late makes a snapshot that is open one that waits to be opened",
        noticed: Noticed::ByTest(
            "ocopea-catalog-db",
            "catalog",
            "a_holders_heartbeat_that_comes_late_closes_no_snapshot",
        ),
    },
    Planted {
        name: "deletion-not-looked-at",
        what: "a deletion that failed behind the deed shows the image again",
        noticed: Noticed::ByTest(
            "ocopea-coordinator",
            "api",
            "a_deletion_that_is_stopped_behind_its_deed_shows_no_image_without_a_ref",
        ),
    },
    Planted {
        name: "instance-unchecked",
        what: "whoever speaks is believed, signed in or not",
        noticed: Noticed::ByTest(
            "ocopea-coordinator",
            "api",
            "a_task_is_for_a_signed_in_agent_of_its_site_and_nobody_else_can_read_or_end_it",
        ),
    },
    Planted {
        name: "epoch-unchecked",
        what: "a leader that was replaced goes on changing things",
        noticed: Noticed::ByTest("ocopea-catalog-db", "catalog", "what_was_begun_in_an_epoch_that_is_over_is_refused"),
    },
];
