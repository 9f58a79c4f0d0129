//! What is remembered of a server beside its streams: the driver's own facts, given back at the load.
//!
//! Objects within a database come in the schema's archive. Here stands what such an archive doesn't hold: roles,
//! databases with their settings and grants, owners, and what has to be done after the rows are there.

use serde::{Deserialize, Serialize};

/// Version of this document; a newer one is refused. In images of version 1 rows are UTF-8, whatever their database's
/// encoding is; since then they are in the encoding of their database.
pub(super) const VERSION: u32 = 2;
/// The longest facts that are read.
pub(super) const LONGEST: usize = 256 * 1024 * 1024;

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    pub version: u32,
    /// `150018`.
    pub server: u32,
    /// Major version of the `pg_dump` that wrote the archives; `pg_restore` must be at least this.
    pub tool: u32,
    /// Whether verifiers of passwords could be read.
    pub verifiers: bool,
    pub roles: Vec<Role>,
    pub memberships: Vec<Membership>,
    /// `ALTER ROLE … SET` for all databases.
    pub settings: Vec<Setting>,
    /// The server's own non-default settings.
    pub parameters: Vec<(String, String)>,
    /// `GRANT … ON PARAMETER`.
    #[serde(default)]
    pub parameter_grants: Vec<ParameterGrant>,
    pub databases: Vec<Database>,
}

/// A role. Predefined ones are not listed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Role {
    pub name: String,
    pub superuser: bool,
    pub inherit: bool,
    pub create_role: bool,
    pub create_db: bool,
    pub login: bool,
    pub replication: bool,
    pub bypass: bool,
    pub limit: i64,
    pub until: Option<String>,
    /// A SCRAM or MD5 verifier, where it could be read; else the password of the application's configuration.
    pub password: Option<String>,
    pub comment: Option<String>,
}

/// `GRANT role TO member`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Membership {
    pub role: String,
    pub member: String,
    pub admin: bool,
    #[serde(default)]
    pub grantor: Option<String>,
    /// From version 16 on.
    pub inherit: Option<bool>,
    pub set: Option<bool>,
}

/// `SET name = value` of a database, a role, or a role in a database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Setting {
    pub role: Option<String>,
    /// `search_path=shop, public`, as the catalog has it.
    pub text: String,
}

/// One privilege of an ACL.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Grant {
    /// Absent for `PUBLIC`.
    pub grantee: Option<String>,
    pub privilege: String,
    pub grantable: bool,
    /// Absent: the owner.
    #[serde(default)]
    pub grantor: Option<String>,
}

/// One right to set one of the server's own parameters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ParameterGrant {
    pub parameter: String,
    #[serde(flatten)]
    pub grant: Grant,
}

/// A database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Database {
    pub name: String,
    pub owner: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    /// `c` libc, `i` ICU, `b` builtin.
    pub provider: String,
    pub locale: Option<String>,
    pub limit: i64,
    pub comment: Option<String>,
    pub settings: Vec<Setting>,
    /// Absent: the default grants.
    pub grants: Option<Vec<Grant>>,
    /// Whether others are made after its pattern.
    #[serde(default)]
    pub template: bool,
    #[serde(default)]
    pub inside: Inside,
}

/// What is known of a database's inside.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Inside {
    /// Whether there is a schema called `public`.
    pub public: bool,
    pub extensions: Vec<Extension>,
    /// Objects whose owner isn't the database's.
    pub owners: Vec<Owned>,
    pub views: Vec<MaterialisedView>,
    /// What was left out, by kind and name.
    pub left_out: Vec<LeftOut>,
}

/// An extension.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Extension {
    pub name: String,
    pub version: String,
    pub schema: String,
    /// Can be made by a database's owner.
    pub trusted: bool,
    /// Comes with every server (`plpgsql`).
    pub built_in: bool,
    /// Extensions that it builds on.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Whether its schema is its own, made with it.
    #[serde(default)]
    pub own_schema: bool,
}

/// Who owns an object, as `pg_identify_object` names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Owned {
    pub kind: String,
    pub identity: String,
    pub owner: String,
}

/// A materialised view: refreshed, not copied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MaterialisedView {
    pub schema: String,
    pub name: String,
    pub populated: bool,
    /// Rows that it had.
    #[serde(default)]
    pub rows: u64,
}

/// Something that a load can't make again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LeftOut {
    /// `event trigger`, `subscription`, `extension` …
    pub kind: String,
    pub name: String,
    pub why: String,
    /// Whether nothing can be saved without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}
