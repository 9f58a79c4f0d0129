//! Roles: made before anything that names them, given their rights and passwords last.

use std::collections::BTreeSet;

use ocopea_protocol::failure::TaskFailure;
use serde::Deserialize;

use super::{
    connect::Session,
    facts::{Facts, Role, Setting},
    owners, sql,
};
use crate::data::Login;

/// How the temporary owner of a load is called, before a random end.
pub(super) const TEMPORARY: &str = "ocopea_load_";

/// Settings that name libraries: a missing one would keep everybody out.
const LIBRARIES: [&str; 3] = ["local_preload_libraries", "session_preload_libraries", "shared_preload_libraries"];
/// Settings whose values are lists of names, each quoted by itself.
const LISTS: [&str; 2] = ["search_path", "temp_tablespaces"];

/// Roles that the server has.
pub(super) async fn existing(admin: &mut Session) -> Result<BTreeSet<String>, TaskFailure> {
    #[derive(Deserialize)]
    struct Row {
        name: String,
    }
    let rows: Vec<Row> = admin.list("SELECT rolname AS name FROM pg_roles").await?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}

/// Drops the roles that the server's start made, and what they may and set. Its databases are gone by then.
///
/// Ours stays, and so does what the server needs itself or owns a tablespace.
pub(super) async fn clear(admin: &mut Session) -> Result<(), TaskFailure> {
    for one in admin.parameter_grants().await? {
        let grantee = one.grant.grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), sql::ident);
        admin.run(&format!("REVOKE ALL ON PARAMETER {} FROM {grantee} CASCADE", parameter(&one.parameter))).await?;
    }
    admin.run("ALTER ROLE ALL RESET ALL").await?;
    let own = admin.server.login.user.clone();
    for role in existing(admin).await?.iter().filter(|role| !role.starts_with("pg_") && **role != own) {
        match admin.run(&format!("DROP ROLE {}", sql::ident(role))).await {
            Err(failure) if failure.cause.contains("SQLSTATE 2BP01") => {}
            other => other?,
        }
    }
    for m in admin.memberships().await?.iter().filter(|m| m.member != own) {
        admin.run(&format!("REVOKE {} FROM {}", sql::ident(&m.role), sql::ident(&m.member))).await?;
    }
    Ok(())
}

/// Makes missing roles, members of each other, without any other right yet.
pub(super) async fn make(admin: &mut Session, facts: &Facts) -> Result<Vec<String>, TaskFailure> {
    let there = existing(admin).await?;
    for role in facts.roles.iter().filter(|role| ours(&role.name) && !there.contains(&role.name)) {
        admin.run(&format!("CREATE ROLE {} NOLOGIN", sql::ident(&role.name))).await?;
    }
    let there = existing(admin).await?;
    let mut notices = Vec::new();
    for membership in facts.memberships.iter().filter(|m| ours(&m.member)) {
        if !there.contains(&membership.role) || !there.contains(&membership.member) {
            notices
                .push(format!("{} is no member of {}: there is no such role here", membership.member, membership.role));
            continue;
        }
        let mut options = Vec::new();
        if admin.version >= 160_000 {
            options.push(format!("ADMIN {}", membership.admin));
            options.extend(membership.inherit.map(|yes| format!("INHERIT {yes}")));
            options.extend(membership.set.map(|yes| format!("SET {yes}")));
        } else if membership.admin {
            options.push("ADMIN OPTION".to_owned());
        }
        let with = if options.is_empty() { String::new() } else { format!(" WITH {}", options.join(", ")) };
        let grant = format!("GRANT {} TO {}{with}", sql::ident(&membership.role), sql::ident(&membership.member));
        let by = membership.grantor.as_ref().filter(|grantor| there.contains(*grantor));
        match by {
            Some(by) => match admin.run(&format!("{grant} GRANTED BY {}", sql::ident(by))).await {
                // Who gave it may not give it here: the membership itself is what matters.
                Err(failure) if failure.code == "data.rights" || failure.code == "data.server" => {
                    admin.run(&grant).await?;
                }
                done => done?,
            },
            None => admin.run(&grant).await?,
        }
    }
    Ok(notices)
}

/// A role that may be made: neither predefined nor a load's own.
fn ours(name: &str) -> bool {
    !name.starts_with("pg_") && !name.starts_with(TEMPORARY)
}

/// A parameter's name as a statement wants it.
fn parameter(name: &str) -> String {
    name.split('.').map(sql::ident).collect::<Vec<_>>().join(".")
}

/// What every role is and may, but the one that we are: attributes, settings, comments, passwords. Repeating it
/// changes nothing.
pub(super) async fn finish(admin: &mut Session, facts: &Facts, logins: &[Login]) -> Result<Vec<String>, TaskFailure> {
    let mut notices = Vec::new();
    let there = existing(admin).await?;
    for role in facts.roles.iter().filter(|role| ours(&role.name)) {
        admin.run(&format!("ALTER ROLE {} RESET ALL", sql::ident(&role.name))).await?;
        if let Some(comment) = &role.comment {
            admin.run(&format!("COMMENT ON ROLE {} IS {}", sql::ident(&role.name), sql::literal(comment))).await?;
        }
    }
    for setting in &facts.settings {
        match &setting.role {
            Some(role) if ours(role) && there.contains(role) => {
                apply(admin, &format!("ALTER ROLE {}", sql::ident(role)), setting, &mut notices).await?;
            }
            Some(_) => {}
            None => apply(admin, "ALTER ROLE ALL", setting, &mut notices).await?,
        }
    }
    for one in &facts.parameter_grants {
        let known = ["SET", "ALTER SYSTEM"].contains(&one.grant.privilege.as_str()) && admin.version >= 150_000;
        if !known || one.grant.grantee.as_ref().is_some_and(|role| !there.contains(role)) {
            notices.push(format!("{} on parameter {} was not granted here", one.grant.privilege, one.parameter));
            continue;
        }
        let on = format!("PARAMETER {}", parameter(&one.parameter));
        admin.run(&owners::statement(&on, &one.grant)).await?;
    }
    let own = admin.server.login.user.clone();
    for role in facts.roles.iter().filter(|role| ours(&role.name) && role.name != own) {
        let statement = attributes(role, facts.verifiers, logins, false, &mut notices);
        admin.run(&statement).await?;
    }
    Ok(notices)
}

/// Gives our own login what it had. The very last step of a load: from then on its saved password holds.
pub(super) async fn finish_own(
    admin: &mut Session,
    facts: &Facts,
    logins: &[Login],
) -> Result<Vec<String>, TaskFailure> {
    let mut notices = Vec::new();
    let own = admin.server.login.user.clone();
    for role in facts.roles.iter().filter(|role| ours(&role.name) && role.name == own) {
        let statement = attributes(role, facts.verifiers, logins, true, &mut notices);
        admin.run(&statement).await?;
    }
    Ok(notices)
}

/// `ALTER ROLE` with all that a role is.
fn attributes(role: &Role, verifiers: bool, logins: &[Login], own: bool, notices: &mut Vec<String>) -> String {
    let mut out = format!("ALTER ROLE {} WITH", sql::ident(&role.name));
    let mut flag = |yes: bool, name: &str| out.push_str(&format!(" {}{name}", if yes { "" } else { "NO" }));
    // The administrator that we are stays what it is here.
    if !own {
        flag(role.superuser, "SUPERUSER");
        flag(role.inherit, "INHERIT");
        flag(role.create_role, "CREATEROLE");
        flag(role.create_db, "CREATEDB");
        flag(role.login, "LOGIN");
        flag(role.replication, "REPLICATION");
        flag(role.bypass, "BYPASSRLS");
    }
    out.push_str(&format!(" CONNECTION LIMIT {}", role.limit));
    if let Some(until) = &role.until {
        out.push_str(&format!(" VALID UNTIL {}", sql::literal(until)));
    }
    let configured = logins.iter().find(|login| login.user == role.name && !login.password.reveal().is_empty());
    match &role.password {
        Some(verifier) if is_verifier(verifier) => out.push_str(&format!(" PASSWORD {}", sql::literal(verifier))),
        Some(_) => notices.push(format!("the password of role {} is of an unknown kind and was left out", role.name)),
        None if verifiers && !own => out.push_str(" PASSWORD NULL"),
        None if verifiers => {}
        None => match configured {
            Some(login) => out.push_str(&format!(" PASSWORD {}", sql::literal(login.password.reveal()))),
            None if role.login && !own => {
                notices
                    .push(format!("role {} has no password here: it could not be read when it was saved", role.name));
            }
            None => {}
        },
    }
    out
}

/// Whether a text is what PostgreSQL stores of a password, and not a password.
fn is_verifier(text: &str) -> bool {
    text.starts_with("SCRAM-SHA-256$")
        || (text.len() == 35 && text.starts_with("md5") && text[3..].bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `target SET name = value`.
pub(super) async fn apply(
    admin: &mut Session,
    target: &str,
    setting: &Setting,
    notices: &mut Vec<String>,
) -> Result<(), TaskFailure> {
    let Some(assignment) = assignment(&setting.text) else {
        let name = setting.text.split('=').next().unwrap_or_default();
        notices.push(format!("the setting {name} of {target} was left out: it names libraries or is no setting"));
        return Ok(());
    };
    match admin.run(&format!("{target} SET {assignment}")).await {
        Err(failure) if ["data.server", "data.refused"].contains(&failure.code.as_str()) => {
            notices.push(format!("the setting {assignment} of {target} was refused here: {}", failure.cause));
            Ok(())
        }
        other => other,
    }
}

/// `search_path=a, "B c"` as the catalog has it → `"search_path" = 'a', 'B c'`.
pub(super) fn assignment(text: &str) -> Option<String> {
    let (name, value) = text.split_once('=')?;
    let fine = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b));
    if !fine || LIBRARIES.contains(&name) {
        return None;
    }
    let value = if LISTS.contains(&text.split('=').next().unwrap_or_default()) {
        names(value).iter().map(|name| sql::literal(name)).collect::<Vec<_>>().join(", ")
    } else {
        sql::literal(value)
    };
    let value = if value.is_empty() { "''".to_owned() } else { value };
    Some(format!("{} = {value}", parameter(name)))
}

/// A list of names, quoted where it must be: `"$user", public`.
pub(super) fn names(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let (mut quoted, mut any) = (false, false);
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                name.push('"');
            }
            '"' => {
                quoted = !quoted;
                any = true;
            }
            ',' if !quoted => {
                names.push(std::mem::take(&mut name));
                any = false;
            }
            c if !quoted && c.is_whitespace() => {}
            c => {
                name.push(c);
                any = true;
            }
        }
    }
    if any {
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_as_lists_or_as_texts() {
        assert_eq!(
            assignment("search_path=\"$user\", public, \"a,\"\"b\"").unwrap(),
            "\"search_path\" = '$user', 'public', 'a,\"b'"
        );
        assert_eq!(assignment("search_path=\"\"").unwrap(), "\"search_path\" = ''");
        assert_eq!(assignment("work_mem=64MB").unwrap(), "\"work_mem\" = '64MB'");
        assert_eq!(assignment("app.tenant=it's = x").unwrap(), "\"app\".\"tenant\" = 'it''s = x'");
        assert!(assignment("session_preload_libraries=evil").is_none());
        assert!(
            assignment("a b=c").is_none() && assignment("x; DROP TABLE y=1").is_none() && assignment("none").is_none()
        );
    }

    #[test]
    fn only_what_a_server_stores_of_a_password_is_taken_for_it() {
        assert!(is_verifier("SCRAM-SHA-256$4096:aa$bb:cc"));
        assert!(is_verifier(&format!("md5{}", "a".repeat(32))));
        assert!(!is_verifier("hunter2") && !is_verifier("md5short"));
    }
}
