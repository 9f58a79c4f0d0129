//! A schema's statements, run one by one as the load's temporary owner.
//!
//! `pg_restore` turns the archive into a script; running it here names the statement that fails, keeps grants for
//! the end, builds indexes in parallel from an archive that isn't a file, and needs no route from the tool to the
//! database.

use std::sync::Mutex;

use futures::{TryStreamExt, stream::FuturesUnordered};
use ocopea_protocol::failure::TaskFailure;

use super::{connect::Session, facts::LeftOut, sql};

/// What becomes of a statement.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Run now.
    Run,
    /// Run now, and it may run beside others of its like.
    Index,
    /// A session's setting: may be unknown to an older server.
    Setting,
    /// A grant, or a comment on an extension that isn't the owner's: run by the provisioner when owners stand.
    Grant,
    /// Left out, as said at the save.
    Leave,
    /// Replaced by our own.
    Skip,
}

fn fate(statement: &str) -> Fate {
    let head = sql::head(statement, 4);
    let is = |start: &str| head == start || (head.starts_with(start) && head[start.len()..].starts_with(' '));
    if is("GRANT")
        || is("REVOKE")
        || is("ALTER DEFAULT PRIVILEGES")
        || is("SET SESSION AUTHORIZATION")
        || is("RESET SESSION AUTHORIZATION")
        || is("COMMENT ON EXTENSION")
    {
        Fate::Grant
    } else if is("CREATE EXTENSION")
        || is("SET CLIENT_ENCODING")
        || statement.starts_with("SELECT pg_catalog.set_config('search_path'")
    {
        // Extensions are there; the session's own settings stay: rows go through it too.
        Fate::Skip
    } else if is("SET") {
        Fate::Setting
    } else if [
        "CREATE EVENT TRIGGER",
        "ALTER EVENT TRIGGER",
        "COMMENT ON EVENT TRIGGER",
        "CREATE SUBSCRIPTION",
        "ALTER SUBSCRIPTION",
        "CREATE SERVER",
        "ALTER SERVER",
        "COMMENT ON SERVER",
        "CREATE USER MAPPING",
        "CREATE FOREIGN",
        "ALTER FOREIGN",
        "COMMENT ON FOREIGN",
    ]
    .iter()
    .any(|start| is(start))
        || (is("CREATE PUBLICATION") && statement.contains(" FOR ALL TABLES"))
    {
        Fate::Leave
    } else if is("CREATE INDEX") || is("CREATE UNIQUE INDEX") || constraint(statement) {
        Fate::Index
    } else {
        Fate::Run
    }
}

/// `ALTER TABLE ONLY t ADD CONSTRAINT c PRIMARY KEY|UNIQUE|EXCLUDE`: builds an index of its table alone.
fn constraint(statement: &str) -> bool {
    statement.starts_with("ALTER TABLE ONLY ")
        && !statement.contains("FOREIGN KEY")
        && ["PRIMARY KEY", "UNIQUE", "EXCLUDE"].iter().any(|word| statement.contains(word))
        && statement.contains("ADD CONSTRAINT")
}

/// Runs a section. Answers the grants, for later.
pub(super) async fn section(
    sessions: &mut [Session],
    statements: Vec<String>,
    left_out: &[LeftOut],
    notices: &mut Vec<String>,
) -> Result<Vec<String>, TaskFailure> {
    let mut grants = Vec::new();
    let mut indexes: Vec<String> = Vec::new();
    for statement in statements {
        let fate = if of_publication(&statement, left_out) { Fate::Leave } else { fate(&statement) };
        if fate == Fate::Index {
            indexes.push(statement);
            continue;
        }
        beside(sessions, std::mem::take(&mut indexes)).await?;
        match fate {
            Fate::Grant => grants.push(statement),
            Fate::Skip => {}
            Fate::Leave => notices.push(format!("left out, as said when it was saved: {}", short(&statement))),
            Fate::Setting => {
                for session in sessions.iter_mut() {
                    match session.run(&statement).await {
                        Err(failure) if failure.cause.contains("SQLSTATE 42704") => {}
                        other => other?,
                    }
                }
            }
            Fate::Run | Fate::Index => {
                let Some(first) = sessions.first_mut() else { continue };
                match first.run_long(&statement, &format!("restoring {}", short(&statement))).await {
                    Ok(_) => {}
                    // Made already, for an extension.
                    Err(failure) if sql::head(&statement, 2) == "CREATE SCHEMA" && failure.cause.contains("42P06") => {}
                    Err(failure) if leaves(&failure, left_out) => {
                        notices.push(format!("left out with what it needs: {} ({})", short(&statement), failure.cause));
                    }
                    Err(failure) => return Err(failure),
                }
            }
        }
    }
    beside(sessions, indexes).await?;
    Ok(grants)
}

/// Whether a statement is about a publication that was left out.
fn of_publication(statement: &str, left_out: &[LeftOut]) -> bool {
    let Some((head, name)) = statement.split_once(" PUBLICATION ") else { return false };
    ["CREATE", "ALTER", "COMMENT ON"].contains(&head)
        && left_out.iter().filter(|left| left.kind == "publication").any(|left| {
            [left.name.clone(), sql::ident(&left.name)]
                .iter()
                .any(|own| name.strip_prefix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')))
        })
}

/// Whether a failure is the consequence of something that was left out by choice.
fn leaves(failure: &TaskFailure, left_out: &[LeftOut]) -> bool {
    let alone = ["event trigger", "subscription", "publication"];
    left_out.iter().any(|left| !alone.contains(&left.kind.as_str()))
        && ["42501", "42704", "42P01", "42P13", "42883", "3F000"]
            .iter()
            .any(|code| failure.cause.contains(&format!("SQLSTATE {code}")))
}

/// Builds indexes with all sessions at once.
async fn beside(sessions: &mut [Session], statements: Vec<String>) -> Result<(), TaskFailure> {
    if statements.is_empty() {
        return Ok(());
    }
    let queue = Mutex::new(std::collections::VecDeque::from(statements));
    let builders: FuturesUnordered<_> = sessions
        .iter_mut()
        .map(async |session| {
            loop {
                let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                let Some(statement) = next else { return Ok::<(), TaskFailure>(()) };
                session.run_long(&statement, &format!("restoring {}", short(&statement))).await?;
            }
        })
        .collect();
    builders.try_collect::<Vec<()>>().await.map(|_| ())
}

/// Runs grants as the provisioner, each seen to be one and nothing else.
pub(super) async fn grants(
    admin: &mut Session,
    grants: &[String],
    left_out: &[LeftOut],
    notices: &mut Vec<String>,
) -> Result<(), TaskFailure> {
    for grant in grants {
        let fine = match sql::head(grant, 3).as_str() {
            head if head.starts_with("GRANT") || head.starts_with("REVOKE") => {
                // On an object: a grant of a role is no part of a schema.
                grant.contains(" ON ")
            }
            "COMMENT ON EXTENSION"
            | "ALTER DEFAULT PRIVILEGES"
            | "SET SESSION AUTHORIZATION"
            | "RESET SESSION AUTHORIZATION" => true,
            _ => false,
        };
        if !fine {
            notices.push(format!("left out: {}", short(grant)));
            continue;
        }
        match admin.run(grant).await {
            Ok(()) => {}
            Err(failure) if leaves(&failure, left_out) || failure.cause.contains("SQLSTATE 42704") => {
                notices.push(format!("not granted: {} ({})", short(grant), failure.cause));
            }
            Err(mut failure) => {
                failure.cause = format!("{}: {}", short(grant), failure.cause);
                return Err(failure);
            }
        }
    }
    Ok(())
}

/// A statement's beginning, for people.
pub(super) fn short(statement: &str) -> String {
    let line: String = statement.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = line.chars().take(120).collect();
    if cut.len() < line.len() { format!("{cut}…") } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_meet_their_fate_by_their_first_words() {
        for (statement, expected) in [
            ("GRANT SELECT ON TABLE s.a TO bob", Fate::Grant),
            ("ALTER DEFAULT PRIVILEGES FOR ROLE a GRANT SELECT ON TABLES TO b", Fate::Grant),
            ("SET SESSION AUTHORIZATION bob", Fate::Grant),
            ("COMMENT ON EXTENSION hstore IS 'x'", Fate::Grant),
            ("SET check_function_bodies = false", Fate::Setting),
            ("SET client_encoding = 'LATIN1'", Fate::Skip),
            ("SELECT pg_catalog.set_config('search_path', '', false)", Fate::Skip),
            ("CREATE EVENT TRIGGER x ON ddl_command_end EXECUTE FUNCTION f()", Fate::Leave),
            ("CREATE PUBLICATION p FOR ALL TABLES WITH (publish = 'insert')", Fate::Leave),
            ("CREATE PUBLICATION p WITH (publish = 'insert')", Fate::Run),
            ("CREATE FOREIGN TABLE x (a int) SERVER s", Fate::Leave),
            ("CREATE UNIQUE INDEX i ON s.t USING btree (a)", Fate::Index),
            ("ALTER TABLE ONLY s.a\n    ADD CONSTRAINT a_pkey PRIMARY KEY (id)", Fate::Index),
            ("ALTER TABLE ONLY s.a\n    ADD CONSTRAINT f FOREIGN KEY (x) REFERENCES s.b(\"PRIMARY KEY\")", Fate::Run),
            ("CREATE TABLE \"GRANT\" (a int)", Fate::Run),
            ("SETTLE x", Fate::Run),
        ] {
            assert_eq!(fate(statement), expected, "{statement}");
        }
    }
}
