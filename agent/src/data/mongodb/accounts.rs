//! Users and custom roles of the applications: saved with what proves their passwords, never written over others'.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use ocopea_protocol::{failure::TaskFailure, inventory::Gap};
use serde::{Deserialize, Serialize};

use super::{
    catalog::{decode, encode, list, unreadable},
    connect::{Connected, RIGHTS, UNKNOWN, run, server, sources, try_login},
};
use crate::data::{Login, LoginOf, ServerReach, Subject};

/// Users or roles of one server.
const MOST: usize = 10_000;
/// Where credentials lie while the server takes them over.
const TEMPORARY: &str = "ocopea_accounts";

/// Users and roles as the server has them: base64 of BSON each.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Accounts {
    pub(super) users: Vec<String>,
    pub(super) roles: Vec<String>,
    /// Why they could not be read.
    #[serde(default)]
    pub(super) unread: Option<String>,
    /// The application's logins that were let in: `database.user`. Those must be let in after a restore, too; what is
    /// written in some example of its configuration never was. `None`: others were used, and nobody knows.
    #[serde(default)]
    pub(super) let_in: Option<Vec<(String, String)>>,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is in a user proves its password: nothing of it is printed.
        write!(f, "Accounts({} users, {} roles)", self.users.len(), self.roles.len())
    }
}

impl Accounts {
    /// What an image should say about them.
    pub(super) fn notice(&self) -> Option<String> {
        let why = self.unread.as_ref()?;
        Some(format!(
            "users and roles could not be read ({why}): a restore has only those that the server's own start makes"
        ))
    }
}

fn binary(document: &Document) -> String {
    RawDocumentBuf::try_from(document).map(|raw| encode(raw.as_bytes())).unwrap_or_default()
}

fn document(text: &str) -> Result<Document, TaskFailure> {
    let bad = |error: String| TaskFailure::permanent("repository.damaged", "can't read a saved account", error);
    let raw = RawDocumentBuf::from_bytes(decode(text)?).map_err(|error| bad(error.to_string()))?;
    Document::try_from(raw).map_err(|error| bad(error.to_string()))
}

fn documents(answer: &Document, key: &str) -> Vec<Document> {
    answer
        .get_array(key)
        .map(|list| list.iter().filter_map(|one| one.as_document().cloned()).take(MOST).collect())
        .unwrap_or_default()
}

/// What the server itself keeps them in. The role `backup` may read these collections, and not ask for accounts.
async fn kept(subject: &Subject, connected: &Connected, what: &str) -> Result<Vec<Document>, TaskFailure> {
    let verb = format!("read the {what} of");
    let found = list(subject, connected, "admin", &verb, doc! {"find": format!("system.{what}")}).await?;
    let read = |raw| Document::try_from(RawDocumentBuf::from_bytes(raw).ok()?).ok();
    Ok(found.into_iter().take(MOST).filter_map(read).collect())
}

/// What the collection holds, else what the server says: others of the same protocol may have either, or neither.
async fn kept_or(
    kept: Result<Vec<Document>, TaskFailure>,
    told: impl Future<Output = Result<Vec<Document>, TaskFailure>>,
) -> Result<Vec<Document>, TaskFailure> {
    let passing = |failure: &TaskFailure| failure.is_retryable() || failure.code == "cancelled";
    match kept {
        Ok(kept) if !kept.is_empty() => Ok(kept),
        Ok(none) => match told.await {
            Err(failure) if !passing(&failure) => Ok(none),
            other => other,
        },
        Err(failure) if passing(&failure) => Err(failure),
        Err(_) => told.await,
    }
}

/// All users, with credentials where the login may see them.
async fn users(subject: &Subject, connected: &Connected) -> Result<Vec<Document>, TaskFailure> {
    let told = async {
        let command = doc! {"usersInfo": {"forAllDBs": true}, "showCredentials": true, "showCustomData": true, "showAuthenticationRestrictions": false};
        let answer = run(subject, connected, "admin", "read the users of", command).await?;
        Ok(documents(&answer, "users"))
    };
    kept_or(kept(subject, connected, "users").await, told).await
}

async fn roles(subject: &Subject, connected: &Connected) -> Result<Vec<Document>, TaskFailure> {
    let told = async {
        let mut databases: BTreeSet<String> = connected.databases.iter().cloned().collect();
        databases.insert("admin".to_owned());
        let mut out = Vec::new();
        for database in databases.iter().filter(|name| !["local", "config"].contains(&name.as_str())) {
            let command = doc! {"rolesInfo": 1, "showPrivileges": true, "showBuiltinRoles": false};
            let answer = run(subject, connected, database, "read the roles of", command).await?;
            out.extend(
                documents(&answer, "roles").into_iter().filter(|role| !role.get_bool("isBuiltin").unwrap_or(false)),
            );
        }
        Ok(out)
    };
    kept_or(kept(subject, connected, "roles").await, told).await
}

/// What a login may not see of them before a byte is copied; nothing where the server knows no accounts.
pub(super) async fn gap(subject: &Subject, connected: &Connected) -> Result<Option<Gap>, TaskFailure> {
    match both(subject, connected).await {
        Err(failure) if failure.is_retryable() || failure.code == "cancelled" => Err(failure),
        Err(failure) if failure.code == RIGHTS => {
            Ok(Some(unreadable(connected, subject, "users and roles", &failure.cause)))
        }
        _ => Ok(None),
    }
}

async fn both(subject: &Subject, connected: &Connected) -> Result<(Vec<Document>, Vec<Document>), TaskFailure> {
    Ok((users(subject, connected).await?, roles(subject, connected).await?))
}

/// Reads users and roles; a server that knows none has none.
pub(super) async fn read(subject: &Subject, connected: &Connected) -> Result<Accounts, TaskFailure> {
    match both(subject, connected).await {
        Ok((users, roles)) => Ok(Accounts {
            users: users.iter().map(binary).collect(),
            roles: roles.iter().map(binary).collect(),
            ..Accounts::default()
        }),
        Err(failure) if failure.code == UNKNOWN => Ok(Accounts::default()),
        Err(failure) if failure.is_retryable() || failure.code == "cancelled" => Err(failure),
        Err(failure) => Ok(Accounts { unread: Some(failure.cause), ..Accounts::default() }),
    }
}

fn name(account: &Document, key: &str) -> (String, String) {
    let of = |key: &str| account.get_str(key).unwrap_or_default().to_owned();
    (of("db"), of(key))
}

/// Makes the saved roles and users that the target doesn't have; answers what could not be made.
pub(super) async fn restore(
    subject: &Subject,
    connected: &Connected,
    accounts: &Accounts,
) -> Result<Vec<String>, TaskFailure> {
    if accounts.users.is_empty() && accounts.roles.is_empty() {
        return Ok(Vec::new());
    }
    let (existing_users, existing_roles) = match users(subject, connected).await {
        Ok(users) => (users, roles(subject, connected).await?),
        Err(failure) if failure.is_retryable() || failure.code == "cancelled" => return Err(failure),
        Err(failure) => return Ok(vec![format!("users and roles were not restored: {}", failure.cause)]),
    };
    let mut notices = Vec::new();
    let mut note = |what: String, outcome: Result<Document, TaskFailure>| match outcome {
        Ok(_) => Ok(true),
        Err(failure) if failure.is_retryable() || failure.code == "cancelled" => Err(failure),
        Err(failure) => {
            notices.push(format!("{what} was not restored: {}", failure.cause));
            Ok(false)
        }
    };
    let there: BTreeSet<_> = existing_roles.iter().map(|role| name(role, "role")).collect();
    let mut made = Vec::new();
    for text in &accounts.roles {
        let role = document(text)?;
        let (database, role_name) = name(&role, "role");
        if there.contains(&(database.clone(), role_name.clone())) {
            continue;
        }
        let privileges = role.get_array("privileges").cloned().unwrap_or_default();
        let mut command = doc! {"createRole": &role_name, "privileges": privileges, "roles": []};
        if let Some(restrictions) = restrictions(&role) {
            command.insert("authenticationRestrictions", restrictions);
        }
        let outcome = run(subject, connected, &database, "make a role of", command).await;
        if note(format!("role {database}.{role_name}"), outcome)? {
            made.push(role);
        }
    }
    // Roles may stand on each other: only when all are there.
    for role in &made {
        let (database, role_name) = name(role, "role");
        let inherited = role.get_array("roles").cloned().unwrap_or_default();
        if !inherited.is_empty() {
            let command = doc! {"grantRolesToRole": &role_name, "roles": inherited};
            let outcome = run(subject, connected, &database, "make a role of", command).await;
            note(format!("what role {database}.{role_name} inherits"), outcome)?;
        }
    }
    let there: BTreeSet<_> = existing_users.iter().map(|user| name(user, "user")).collect();
    let logins = &server(subject)?.logins;
    let mut with_credentials = Vec::new();
    for text in &accounts.users {
        let user = document(text)?;
        let (database, user_name) = name(&user, "user");
        if there.contains(&(database.clone(), user_name.clone())) {
            continue;
        }
        let own = logins.iter().find(|login| {
            login.of == LoginOf::Application && login.user == user_name && sources(login).contains(&database)
        });
        let what = format!("user {database}.{user_name}");
        if let Some(own) = own {
            let outcome = run(subject, connected, &database, "make a user of", create(&user, own)).await;
            note(what, outcome)?;
        } else if user.get_document("credentials").is_ok_and(|credentials| !credentials.is_empty()) {
            with_credentials.push(stored(&user));
        } else {
            note(what, Err(TaskFailure::permanent(RIGHTS, "", "its credentials could not be read at the save")))?;
        }
    }
    if !with_credentials.is_empty() {
        let outcome = take_over(subject, connected, with_credentials).await;
        note("users whose passwords only the server knows".to_owned(), outcome)?;
    }
    Ok(notices)
}

/// From where an account may be used, where that is restricted.
fn restrictions(account: &Document) -> Option<Bson> {
    account.get("authenticationRestrictions").filter(|of| of.as_array().is_some_and(|list| !list.is_empty())).cloned()
}

/// The application's user, whose password its configuration holds.
fn create(user: &Document, login: &Login) -> Document {
    let mut command = doc! {"createUser": &login.user, "pwd": login.password.reveal()};
    command.insert("roles", user.get_array("roles").cloned().unwrap_or_default());
    if let Some(value) = user.get("customData") {
        command.insert("customData", value.clone());
    }
    let by_credentials =
        || user.get_document("credentials").ok().map(|of| of.keys().cloned().map(Bson::String).collect());
    if let Some(mechanisms) = user.get_array("mechanisms").ok().cloned().or_else(by_credentials) {
        command.insert("mechanisms", mechanisms);
    }
    if let Some(restrictions) = restrictions(user) {
        command.insert("authenticationRestrictions", restrictions);
    }
    command
}

/// A user as the server itself stores it.
fn stored(user: &Document) -> Document {
    let mut stored = Document::new();
    for key in ["_id", "userId", "user", "db", "credentials", "customData", "roles", "authenticationRestrictions"] {
        if let Some(value) = user.get(key) {
            stored.insert(key, value.clone());
        }
    }
    stored
}

/// Lets the server take over users with their credentials, as its own restore tool does. Users that exist were left
/// out before: this command would write over them.
async fn take_over(subject: &Subject, connected: &Connected, users: Vec<Document>) -> Result<Document, TaskFailure> {
    let verb = "restore the users of";
    let drop = || doc! {"drop": TEMPORARY};
    // What an earlier attempt left; it may not be there.
    let _ = run(subject, connected, "admin", verb, drop()).await;
    let users: Vec<Bson> = users.into_iter().map(Bson::Document).collect();
    let insert = async |into: &'static str| {
        let answer = run(subject, connected, "admin", verb, doc! {"insert": into, "documents": users.clone()}).await?;
        match answer.get_array("writeErrors") {
            Ok(errors) if !errors.is_empty() => {
                let what = format!("can't {verb} \"{}\"", subject.name);
                Err(TaskFailure::permanent(
                    "data.refused",
                    what,
                    format!("the server refused {} of them", errors.len()),
                ))
            }
            _ => Ok(answer),
        }
    };
    insert(TEMPORARY).await?;
    let merge = doc! {
        "_mergeAuthzCollections": 1,
        "tempUsersCollection": format!("admin.{TEMPORARY}"),
        "drop": false,
        "db": "",
    };
    let merged = match run(subject, connected, "admin", verb, merge).await {
        // Servers of the same protocol that don't know the command may let their collection be written to.
        Err(failure) if failure.code == UNKNOWN => insert("system.users").await,
        other => other,
    };
    let dropped = run(subject, connected, "admin", verb, drop()).await;
    merged.and(dropped)
}

/// Which of the application's logins the server lets in: database and user.
pub(super) async fn let_in(subject: &Subject) -> Result<Option<Vec<(String, String)>>, TaskFailure> {
    let server = server(subject)?;
    if server.logins.iter().any(|login| login.of == LoginOf::Given) {
        return Ok(None);
    }
    let mut out = Vec::new();
    for (login, source) in of_application(server) {
        match try_login(subject, server, Some((login, source.clone()))).await {
            Ok(_) => out.push((source, login.user.clone())),
            Err(failure) if failure.is_retryable() || failure.code == "cancelled" => return Err(failure),
            Err(_) => {}
        }
    }
    out.sort();
    out.dedup();
    Ok(Some(out))
}

fn of_application(server: &ServerReach) -> impl Iterator<Item = (&Login, String)> {
    server
        .logins
        .iter()
        .filter(|login| login.of == LoginOf::Application && !login.user.is_empty())
        .flat_map(|login| sources(login).into_iter().map(move |source| (login, source)))
}

/// Signs in as the application does, wherever it could when it was saved: only then is a restore one.
pub(super) async fn sign_in_as_application(subject: &Subject, accounts: &Accounts) -> Result<(), TaskFailure> {
    let server = server(subject)?;
    let let_in: BTreeSet<(String, String)> = match &accounts.let_in {
        Some(let_in) => let_in.iter().cloned().collect(),
        None => accounts
            .users
            .iter()
            .map(|text| document(text).map(|user| name(&user, "user")))
            .collect::<Result<_, _>>()?,
    };
    let mut refused: BTreeMap<(String, String), TaskFailure> = BTreeMap::new();
    let mut welcome = BTreeSet::new();
    for (login, source) in of_application(server) {
        let account = (source.clone(), login.user.clone());
        if !let_in.contains(&account) || welcome.contains(&account) {
            continue;
        }
        match try_login(subject, server, Some((login, source))).await {
            Ok(_) => {
                // Another setting may hold an old password of the same user.
                refused.remove(&account);
                welcome.insert(account);
            }
            Err(failure) if failure.is_retryable() || failure.code == "cancelled" => return Err(failure),
            Err(failure) => {
                refused.insert(account, failure);
            }
        }
    }
    match refused.into_values().next() {
        None => Ok(()),
        Some(refusal) => {
            let what = format!("the application can't sign in to the restored \"{}\"", subject.name);
            Err(TaskFailure::permanent("data.login", what, refusal.cause)
                .next("save again with --credentials of a user with the role backup, so that accounts come along"))
        }
    }
}
