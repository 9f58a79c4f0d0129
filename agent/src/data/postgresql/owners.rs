//! Ownership and a database's own properties: the last things of a load, done by the administrator.
//!
//! Objects are found in the target's own catalogs and named by the target itself; the image only says which owner
//! an object of that name had. So nothing that an image holds is executed with the administrator's rights.

use std::collections::BTreeMap;

use ocopea_protocol::failure::TaskFailure;

use super::{
    connect::Session,
    facts::{Database, Grant},
    large_objects::Object,
    roles, sql,
};

/// Gives everything that the temporary owner has to its owners.
pub(super) async fn give(
    admin: &mut Session,
    temporary: &str,
    database: &Database,
    objects: &[Object],
) -> Result<(), TaskFailure> {
    let saved: BTreeMap<(&str, &str), &str> = database
        .inside
        .owners
        .iter()
        .map(|owned| ((owned.kind.as_str(), owned.identity.as_str()), owned.owner.as_str()))
        .collect();
    let there = roles::existing(admin).await?;
    for owned in admin.owners(Some(temporary)).await? {
        let Some(owner) = saved.get(&(owned.kind.as_str(), owned.identity.as_str())) else { continue };
        let kind = match owned.kind.as_str() {
            "statistics object" => "STATISTICS".to_owned(),
            // `ALTER AGGREGATE` has a grammar of its own for arguments.
            "aggregate" | "function" | "procedure" => "ROUTINE".to_owned(),
            kind => kind.to_ascii_uppercase(),
        };
        if there.contains(*owner) {
            admin.run(&format!("ALTER {kind} {} OWNER TO {}", owned.identity, sql::ident(owner))).await?;
        }
    }
    // Nobody made `public` here: it comes with the database, and its owner is the database's unless it was saved.
    let public = saved.get(&("schema", "public")).copied().unwrap_or(&database.owner);
    if database.inside.public && (there.contains(public) || public == "pg_database_owner") {
        admin.run(&format!("ALTER SCHEMA public OWNER TO {}", sql::ident(public))).await?;
    }
    for object in objects.iter().filter(|object| object.owner != database.owner && there.contains(&object.owner)) {
        admin.run(&format!("ALTER LARGE OBJECT {} OWNER TO {}", object.oid, sql::ident(&object.owner))).await?;
    }
    if !there.contains(&database.owner) {
        return Err(admin
            .server
            .failure("data.missing", format!("there is no role \"{}\" to own the database", database.owner)));
    }
    let temporary = sql::ident(temporary);
    admin
        .run_long(
            &format!("REASSIGN OWNED BY {temporary} TO {}; DROP OWNED BY {temporary}", sql::ident(&database.owner)),
            "giving objects to their owner",
        )
        .await?;
    for object in objects {
        if let Some(comment) = &object.comment {
            admin.run(&format!("COMMENT ON LARGE OBJECT {} IS {}", object.oid, sql::literal(comment))).await?;
        }
        if let Some(grants) = &object.grants {
            let name = format!("LARGE OBJECT {}", object.oid);
            admin.run(&privileges(&name, &object.owner, grants, &["SELECT", "UPDATE"])).await?;
        }
    }
    Ok(())
}

/// Grants, settings, comment and limits of the database itself.
pub(super) async fn of_database(
    admin: &mut Session,
    database: &Database,
    notices: &mut Vec<String>,
) -> Result<(), TaskFailure> {
    let name = sql::ident(&database.name);
    if let Some(grants) = &database.grants {
        let on = format!("DATABASE {name}");
        admin
            .run(&format!(
                "REVOKE ALL ON {on} FROM PUBLIC; {}",
                privileges(&on, &database.owner, grants, &["CREATE", "CONNECT", "TEMPORARY"])
            ))
            .await?;
    }
    if let Some(comment) = &database.comment {
        admin.run(&format!("COMMENT ON DATABASE {name} IS {}", sql::literal(comment))).await?;
    }
    if database.limit != -1 {
        admin.run(&format!("ALTER DATABASE {name} CONNECTION LIMIT {}", database.limit)).await?;
    }
    if database.template {
        admin.run(&format!("ALTER DATABASE {name} IS_TEMPLATE true")).await?;
    }
    let there = roles::existing(admin).await?;
    for setting in &database.settings {
        match &setting.role {
            None => roles::apply(admin, &format!("ALTER DATABASE {name}"), setting, notices).await?,
            Some(role) if there.contains(role) => {
                roles::apply(admin, &format!("ALTER ROLE {} IN DATABASE {name}", sql::ident(role)), setting, notices)
                    .await?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The grants of an ACL as statements; only privileges that the object knows.
fn privileges(on: &str, owner: &str, grants: &[Grant], known: &[&str]) -> String {
    let mut out = format!("REVOKE ALL ON {on} FROM {}", sql::ident(owner));
    for grant in grants.iter().filter(|grant| known.contains(&grant.privilege.as_str())) {
        out.push_str(&format!("; {}", statement(on, grant)));
    }
    out
}

/// One grant as statements, given by who gave it.
pub(super) fn statement(on: &str, grant: &Grant) -> String {
    let grantee = grant.grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), sql::ident);
    let with = if grant.grantable { " WITH GRANT OPTION" } else { "" };
    let plain = format!("GRANT {} ON {on} TO {grantee}{with}", grant.privilege);
    match &grant.grantor {
        Some(by) => format!("SET SESSION AUTHORIZATION {}; {plain}; RESET SESSION AUTHORIZATION", sql::ident(by)),
        None => plain,
    }
}
