//! Rights first: before a byte is copied it is proven that everything may be read, or said what may not.

use ocopea_protocol::{failure::TaskFailure, inventory::Gap, names::ComponentName};
use serde::Deserialize;

use super::{
    catalog::OURS,
    connect::{Identity, Server, Session},
    facts::LeftOut,
    sql,
};

/// How many things one gap names.
const NAMED: usize = 20;

#[derive(Deserialize)]
struct Unreadable {
    kind: String,
    schema: String,
    name: String,
    usage: bool,
    readable: bool,
    filtered: bool,
}

/// What this login can't read of one database, each with the statements that would grant it.
pub(super) async fn gaps(
    session: &mut Session,
    who: &Identity,
    service: &ComponentName,
) -> Result<Vec<Gap>, TaskFailure> {
    let unlogged = unlogged(session, service).await?;
    if who.superuser {
        return Ok(unlogged);
    }
    let database = session.database.clone();
    let rows: Vec<Unreadable> = session
        .list(&format!(
            "SELECT CASE c.relkind WHEN 'S' THEN 'sequence' ELSE 'table' END AS kind, n.nspname AS schema, \
             c.relname AS name, has_schema_privilege(n.oid, 'USAGE') AS usage, \
             CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT') \
               ELSE has_table_privilege(c.oid, 'SELECT') END AS readable, \
             c.relkind IN ('r', 'p') AND row_security_active(c.oid) AS filtered \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE (c.relkind IN ('r', 'p', 'S') OR c.relkind = 'm' AND c.relispopulated) \
             AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND {OURS} ORDER BY 2, 3"
        ))
        .await?;
    let role = sql::ident(&who.user);
    let mut gaps = unlogged;
    let gap = |what: String, why: String, statements: Vec<String>| Gap {
        name: service.to_string(),
        what,
        why,
        blocking: true,
        next: format!("run in database {}: {}", sql::ident(&database), statements.join(" ")),
    };
    for kind in ["table", "sequence"] {
        let hidden: Vec<&Unreadable> =
            rows.iter().filter(|row| row.kind == kind && !(row.usage && row.readable)).collect();
        if !hidden.is_empty() {
            let mut statements: Vec<String> = Vec::new();
            for row in hidden.iter().take(NAMED) {
                let usage = format!("GRANT USAGE ON SCHEMA {} TO {role};", sql::ident(&row.schema));
                if !row.usage && !statements.contains(&usage) {
                    statements.push(usage);
                }
                if !row.readable {
                    let object = sql::qualified(&row.schema, &row.name);
                    statements.push(format!("GRANT SELECT ON {} {object} TO {role};", kind.to_uppercase()));
                }
            }
            if hidden.len() > NAMED && session.version >= 140_000 {
                statements = vec![format!("GRANT pg_read_all_data TO {role};")];
            }
            gaps.push(gap(
                format!("{} {kind}(s) of database {}: {}", hidden.len(), sql::shown(&database), names(&hidden)),
                format!("user {role} may not read them"),
                statements,
            ));
        }
    }
    let filtered: Vec<&Unreadable> = rows.iter().filter(|row| row.filtered).collect();
    if !filtered.is_empty() {
        gaps.push(gap(
            format!("{} table(s) of database {}: {}", filtered.len(), sql::shown(&database), names(&filtered)),
            format!("row level security hides rows from user {role}"),
            vec![format!("ALTER ROLE {role} BYPASSRLS;")],
        ));
    }
    gaps.extend(large_objects(session, &role, &gap).await?);
    Ok(gaps)
}

/// Unlogged tables have rows on the primary alone: nobody can read them on a standby.
async fn unlogged(session: &mut Session, service: &ComponentName) -> Result<Vec<Gap>, TaskFailure> {
    #[derive(Deserialize)]
    struct Row {
        schema: String,
        name: String,
    }
    let rows: Vec<Row> = session
        .list(&format!(
            "SELECT n.nspname AS schema, c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE pg_is_in_recovery() AND c.relkind IN ('r', 'S', 'm') AND c.relpersistence = 'u' \
             AND n.nspname !~ '^pg_' AND {OURS} ORDER BY 1, 2"
        ))
        .await?;
    if rows.is_empty() {
        return Ok(vec![]);
    }
    let mut names: Vec<String> =
        rows.iter().take(NAMED).map(|row| format!("{}.{}", sql::shown(&row.schema), sql::shown(&row.name))).collect();
    if rows.len() > NAMED {
        names.push("…".to_owned());
    }
    let database = sql::shown(&session.database);
    Ok(vec![Gap {
        name: service.to_string(),
        what: format!("{} unlogged table(s) of database {database}: {}", rows.len(), names.join(", ")),
        why: "the server is a standby: their rows are on its primary alone".to_owned(),
        blocking: true,
        next: "save the primary, or run ALTER TABLE … SET LOGGED for them there".to_owned(),
    }])
}

/// A database that nobody may connect to.
pub(super) fn closed(service: &ComponentName, name: &str) -> Gap {
    Gap {
        name: service.to_string(),
        what: format!("database {}", sql::shown(name)),
        why: "it lets nobody connect".to_owned(),
        blocking: true,
        next: format!("run ALTER DATABASE {} ALLOW_CONNECTIONS true;", sql::ident(name)),
    }
}

/// A database that doesn't let this login in. Nobody keeps data in `template1`, so there it is only said.
pub(super) fn shut(server: &Server, name: &str, why: String) -> Gap {
    Gap {
        name: server.name.to_string(),
        what: format!("database {}", sql::shown(name)),
        why,
        blocking: name != "template1",
        next: format!("run GRANT CONNECT ON DATABASE {} TO {};", sql::ident(name), sql::ident(&server.login.user)),
    }
}

/// Large objects have no predefined role that reads them all.
async fn large_objects(
    session: &mut Session,
    role: &str,
    gap: &impl Fn(String, String, Vec<String>) -> Gap,
) -> Result<Option<Gap>, TaskFailure> {
    #[derive(Deserialize)]
    struct Hidden {
        oid: i64,
        of: i64,
    }
    let hidden: Vec<Hidden> = session
        .list(&format!(
            "SELECT m.oid::int8 AS oid, count(*) OVER () AS of FROM pg_largeobject_metadata m \
             WHERE NOT pg_has_role(m.lomowner, 'USAGE') AND NOT EXISTS (SELECT 1 FROM aclexplode(m.lomacl) a \
               WHERE a.privilege_type = 'SELECT' AND CASE a.grantee WHEN 0 THEN true ELSE pg_has_role(a.grantee, 'USAGE') END) \
             ORDER BY m.oid LIMIT {NAMED}"
        ))
        .await?;
    let Some(first) = hidden.first() else { return Ok(None) };
    let oids: Vec<String> = hidden.iter().map(|hidden| hidden.oid.to_string()).collect();
    let more = if first.of > hidden.len() as i64 { " …" } else { "" };
    let what = format!(
        "{} large object(s) of database {}: {}{more}",
        first.of,
        sql::shown(&session.database),
        oids.join(", ")
    );
    let statements = if more.is_empty() {
        vec![format!("GRANT SELECT ON LARGE OBJECT {} TO {role};", oids.join(", "))]
    } else {
        vec![format!(
            "DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP \
             EXECUTE format('GRANT SELECT ON LARGE OBJECT %s TO %I', o, {}); END LOOP; END $$;",
            sql::literal(&session.server.login.user)
        )]
    };
    Ok(Some(gap(what, format!("user {role} may not read them"), statements)))
}

/// What a load could not make again, as gaps.
pub(super) fn unloadable(service: &ComponentName, database: &str, left_out: &[LeftOut]) -> Vec<Gap> {
    left_out
        .iter()
        .map(|left| {
            let own = format!("{service}:{}:{}.{}", left.kind.replace(' ', "-"), sql::shown(database), left.name);
            // What can't be left out by itself leaves only the whole service to be left out.
            let (name, next) = if left.refused {
                (service.to_string(), format!("remove the {}, or leave out the whole service", left.kind))
            } else {
                let quoted = format!("'{}'", own.replace('\'', "'\\''"));
                (own, format!("leave it out by name: --without {quoted}, or remove it"))
            };
            Gap {
                name,
                what: format!("{} {} of database {}", left.kind, left.name, sql::shown(database)),
                why: format!("it can't be restored: {}", left.why),
                blocking: true,
                next,
            }
        })
        .collect()
}

/// Gaps that stop a copy whatever was left out by name.
pub(super) fn failure(server: &Server, gaps: &[Gap]) -> Option<TaskFailure> {
    let blocking = || gaps.iter().filter(|gap| gap.blocking);
    blocking().next()?;
    let all: Vec<String> = blocking().map(|gap| format!("{}: {}", gap.what, gap.why)).collect();
    let next: Vec<&str> = blocking().map(|gap| gap.next.as_str()).collect();
    Some(
        server
            .failure("data.rights", all.join("; "))
            .next(format!("{}; or pass --credentials with a role that may read everything", next.join("; "))),
    )
}

fn names(rows: &[&Unreadable]) -> String {
    let mut names: Vec<String> =
        rows.iter().take(NAMED).map(|row| format!("{}.{}", sql::shown(&row.schema), sql::shown(&row.name))).collect();
    if rows.len() > NAMED {
        names.push("…".to_owned());
    }
    names.join(", ")
}
