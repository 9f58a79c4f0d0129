//! What the catalogs say of a server and of one database.
//!
//! Every query answers rows of JSON, so that each becomes a type without a second description of its columns.

use ocopea_protocol::failure::TaskFailure;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    connect::Session,
    facts::{Database, Extension, Grant, MaterialisedView, Membership, Owned, ParameterGrant, Role, Setting},
    sql,
};

/// A table whose rows are copied.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Table {
    pub oid: i64,
    pub schema: String,
    pub name: String,
    /// Columns that hold data of their own, by name: the order within the table may differ after a restore.
    pub columns: Vec<String>,
    /// Blocks of the heap.
    pub blocks: i64,
    /// Whether it can be read in ranges of blocks.
    pub ranges: bool,
    /// Of an extension's configuration table: which rows are the user's (`WHERE …`), may be empty.
    pub filter: Option<String>,
}

impl Table {
    /// `shop.public.users`, as the stream is called.
    pub(super) fn stream(&self, database: &str) -> String {
        format!("{}.{}.{}", sql::shown(database), sql::shown(&self.schema), sql::shown(&self.name))
    }

    /// `COPY` of its rows, or of those in some of its blocks; `with` as [`encoded`] answers it.
    pub(super) fn copy_out(&self, blocks: Option<Blocks>, with: &str) -> String {
        let (columns, table) = (self.listed(), sql::qualified(&self.schema, &self.name));
        let filter = self.filter.as_deref().unwrap_or_default();
        match blocks {
            Some(Blocks { from, to }) => {
                let end = to.map(|to| format!(" AND ctid < '({to},0)'::pg_catalog.tid")).unwrap_or_default();
                format!(
                    "COPY (SELECT {columns} FROM ONLY {table} WHERE ctid >= '({from},0)'::pg_catalog.tid{end}) TO STDOUT{with}"
                )
            }
            None if !filter.is_empty() => format!("COPY (SELECT {columns} FROM ONLY {table} {filter}) TO STDOUT{with}"),
            None if columns.is_empty() => format!("COPY {table} TO STDOUT{with}"),
            None => format!("COPY {table} ({columns}) TO STDOUT{with}"),
        }
    }

    /// `COPY` of the rows that these transactions wrote, wherever they lie.
    pub(super) fn copy_written(&self, by: &[u32], with: &str) -> String {
        let (columns, table) = (self.listed(), sql::qualified(&self.schema, &self.name));
        let by: Vec<String> = by.iter().map(u32::to_string).collect();
        format!(
            "COPY (SELECT {columns} FROM ONLY {table} WHERE xmin = ANY ('{{{}}}'::pg_catalog.xid[])) TO STDOUT{with}",
            by.join(",")
        )
    }

    /// How many rows it has.
    pub(super) fn counted(&self) -> String {
        format!("SELECT pg_catalog.count(*) FROM ONLY {}", sql::qualified(&self.schema, &self.name))
    }

    fn listed(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| sql::ident(column)).collect();
        columns.join(", ")
    }

    /// `COPY` of rows into it.
    pub(super) fn copy_in(&self, with: &str) -> String {
        let table = sql::qualified(&self.schema, &self.name);
        if self.columns.is_empty() {
            format!("COPY {table} FROM STDIN{with}")
        } else {
            format!("COPY {table} ({}) FROM STDIN{with}", self.listed())
        }
    }
}

/// Some blocks of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub from: i64,
    /// The first one behind them; `None`: all that follow.
    pub to: Option<i64>,
}

/// The end of a `COPY` whose rows are to be bytes as the database holds them. Converted to UTF-8 they would not all
/// survive: some encodings take bytes that have no meaning in any other.
pub(super) fn encoded(encoding: &str) -> String {
    if encoding == "UTF8" { String::new() } else { format!(" (ENCODING {})", sql::literal(encoding)) }
}

/// A sequence.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Sequence {
    pub oid: i64,
    pub schema: String,
    pub name: String,
}

/// A relation that is locked while a snapshot is held.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Lockable {
    pub oid: i64,
    pub schema: String,
    pub name: String,
}

/// Relations of users: not the system's, not temporary.
const USERS: &str = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

/// Relations that are no extension's own, configuration tables apart.
pub(super) const OURS: &str = "NOT EXISTS (SELECT 1 FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid \
     WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 \
     AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND NOT coalesce(c.oid = ANY (e.extconfig), false))";

impl Session {
    /// All databases by name, without their inside; of those that every server has only what may be changed.
    pub(super) async fn databases(&mut self) -> Result<Vec<Database>, TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            oid: i64,
            #[serde(flatten)]
            database: Database,
            has_acl: bool,
        }
        let (provider, locale) = match self.version {
            170_000.. => ("d.datlocprovider::text", "d.datlocale"),
            150_000.. => ("d.datlocprovider::text", "d.daticulocale"),
            _ => ("'c'", "NULL::text"),
        };
        let rows: Vec<Row> = self
            .list(&format!(
                "SELECT d.oid::int8 AS oid, d.datname AS name, pg_get_userbyid(d.datdba) AS owner, \
                 pg_encoding_to_char(d.encoding) AS encoding, d.datcollate AS collate, d.datctype AS ctype, \
                 {provider} AS provider, {locale} AS locale, d.datconnlimit::int8 AS limit, \
                 shobj_description(d.oid, 'pg_database') AS comment, '[]'::json AS settings, NULL AS grants, \
                 d.datacl IS NOT NULL AS has_acl, d.datistemplate AS template \
                 FROM pg_database d WHERE d.datname <> 'template0' AND d.datallowconn \
                 ORDER BY d.datname COLLATE \"C\""
            ))
            .await?;
        let mut databases = Vec::with_capacity(rows.len());
        for row in rows {
            let mut database = row.database;
            if row.has_acl {
                let grants = self
                    .list(&format!(
                        "SELECT CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END AS grantee, \
                         a.privilege_type AS privilege, a.is_grantable AS grantable, \
                         CASE WHEN a.grantor <> d.datdba THEN pg_get_userbyid(a.grantor) END AS grantor \
                         FROM pg_database d, aclexplode(d.datacl) WITH ORDINALITY a(grantor, grantee, privilege_type, is_grantable, at) \
                         WHERE d.oid = {} ORDER BY a.at",
                        row.oid
                    ))
                    .await?;
                database.grants = Some(grants);
            }
            database.settings = self.settings(row.oid).await?;
            databases.push(database);
        }
        Ok(databases)
    }

    /// Databases that nobody may connect to.
    pub(super) async fn closed_databases(&mut self) -> Result<Vec<String>, TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            name: String,
        }
        let rows: Vec<Row> = self
            .list("SELECT datname AS name FROM pg_database WHERE datname <> 'template0' AND NOT datallowconn")
            .await?;
        Ok(rows.into_iter().map(|row| row.name).collect())
    }

    /// The role that the server was made with.
    pub(super) async fn first_superuser(&mut self) -> Result<String, TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            name: String,
        }
        let row: Row = self.one("SELECT pg_get_userbyid(10) AS name").await?;
        Ok(row.name)
    }

    /// Whether nobody ever made anything in this database, or set anything for it: a server's `template1`, mostly.
    pub(super) async fn untouched(&mut self) -> Result<bool, TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            touched: bool,
        }
        let any: Vec<String> = ["pg_class", "pg_proc", "pg_type", "pg_namespace", "pg_extension", "pg_operator"]
            .iter()
            .map(|catalog| format!("EXISTS (SELECT 1 FROM {catalog} WHERE oid >= 16384)"))
            .collect();
        let row: Row = self
            .one(&format!(
                "SELECT {} OR d.datdba <> 10 OR EXISTS (SELECT 1 FROM pg_largeobject_metadata) \
                 OR EXISTS (SELECT 1 FROM pg_db_role_setting s WHERE s.setdatabase = d.oid) \
                 OR EXISTS (SELECT 1 FROM pg_shdepend s WHERE s.dbid = d.oid AND s.deptype IN ('o', 'a')) AS touched \
                 FROM pg_database d WHERE d.datname = current_database()",
                any.join(" OR ")
            ))
            .await?;
        Ok(!row.touched)
    }

    /// `ALTER DATABASE/ROLE … SET` of one database; 0 for those that hold everywhere.
    pub(super) async fn settings(&mut self, database: i64) -> Result<Vec<Setting>, TaskFailure> {
        self.list(&format!(
            "SELECT CASE s.setrole WHEN 0 THEN NULL ELSE pg_get_userbyid(s.setrole) END AS role, c AS text \
             FROM pg_db_role_setting s, unnest(s.setconfig) WITH ORDINALITY u(c, at) \
             WHERE s.setdatabase = {database} ORDER BY 1 NULLS FIRST, u.at"
        ))
        .await
    }

    /// All roles but predefined ones. Verifiers of passwords only where they may be read.
    pub(super) async fn roles(&mut self, verifiers: bool) -> Result<Vec<Role>, TaskFailure> {
        let (from, password) = if verifiers { ("pg_authid", "r.rolpassword") } else { ("pg_roles", "NULL") };
        self.list(&format!(
            "SELECT r.rolname AS name, r.rolsuper AS superuser, r.rolinherit AS inherit, r.rolcreaterole AS create_role, \
             r.rolcreatedb AS create_db, r.rolcanlogin AS login, r.rolreplication AS replication, \
             r.rolbypassrls AS bypass, r.rolconnlimit::int8 AS limit, r.rolvaliduntil::text AS until, \
             {password} AS password, shobj_description(r.oid, 'pg_authid') AS comment \
             FROM {from} r WHERE r.rolname !~ '^pg_' ORDER BY r.rolname COLLATE \"C\""
        ))
        .await
    }

    /// Who is a member of what.
    pub(super) async fn memberships(&mut self) -> Result<Vec<Membership>, TaskFailure> {
        let options = if self.version >= 160_000 {
            "m.inherit_option AS inherit, m.set_option AS set"
        } else {
            "NULL AS inherit, NULL AS set"
        };
        self.list(&format!(
            "SELECT DISTINCT r.rolname AS role, u.rolname AS member, m.admin_option AS admin, g.rolname AS grantor, {options} \
             FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid JOIN pg_roles u ON u.oid = m.member \
             LEFT JOIN pg_roles g ON g.oid = m.grantor \
             WHERE u.rolname !~ '^pg_' ORDER BY 1, 2"
        ))
        .await
    }

    /// The server's own settings that differ from the default and would matter elsewhere. `files` asks the server's
    /// files, too, which only a superuser may: what this very session, its role or its database sets hides the rest.
    pub(super) async fn parameters(&mut self, files: bool) -> Result<Vec<(String, String)>, TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            name: String,
            value: String,
        }
        let hidden = if files {
            " UNION SELECT f.name, f.setting FROM pg_file_settings f JOIN pg_settings s ON s.name = f.name \
             WHERE f.applied AND s.source IN ('session', 'database', 'user', 'database user', 'global')"
        } else {
            ""
        };
        let rows: Vec<Row> = self
            .list(&format!(
                "SELECT name, value FROM (SELECT name, setting AS value FROM pg_settings \
                 WHERE source IN ('configuration file', 'command line', 'environment variable') \
                 AND context <> 'internal' AND category NOT LIKE 'File Locations%' AND setting IS DISTINCT FROM boot_val{hidden}) q \
                 WHERE name NOT IN ('config_file', 'data_directory', 'hba_file', 'ident_file', 'port', \
                 'listen_addresses', 'unix_socket_directories', 'application_name', 'client_encoding') ORDER BY name",
            ))
            .await?;
        Ok(rows.into_iter().map(|row| (row.name, row.value)).collect())
    }

    /// Rights to set the server's own parameters, from version 15 on.
    pub(super) async fn parameter_grants(&mut self) -> Result<Vec<ParameterGrant>, TaskFailure> {
        if self.version < 150_000 {
            return Ok(vec![]);
        }
        self.list(
            "SELECT p.parname AS parameter, CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END AS grantee, \
             a.privilege_type AS privilege, a.is_grantable AS grantable, \
             CASE WHEN a.grantor <> 10 THEN pg_get_userbyid(a.grantor) END AS grantor FROM pg_parameter_acl p, aclexplode(p.paracl) \
             WITH ORDINALITY a(grantor, grantee, privilege_type, is_grantable, at) \
             WHERE a.grantee <> 10 ORDER BY p.parname COLLATE \"C\", a.at",
        )
        .await
    }

    /// What a copy doesn't bring along, in words.
    pub(super) async fn outside(&mut self) -> Result<Vec<String>, TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            notice: String,
        }
        let rows: Vec<Row> = self
            .list(
                "SELECT 'tables of tablespace ' || spcname || ' come back in the default tablespace' AS notice \
                 FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') \
                 UNION ALL SELECT 'the prepared transaction ' || gid || ' of database ' || database || ' is not in the copy' \
                 FROM pg_prepared_xacts \
                 UNION ALL SELECT 'the replication slot ' || slot_name || ' is not in the copy' FROM pg_replication_slots \
                   WHERE NOT temporary \
                 UNION ALL SELECT 'security labels of ' || provider || ' are not in the copy' \
                 FROM (SELECT DISTINCT provider FROM pg_seclabel UNION SELECT provider FROM pg_shseclabel) labels",
            )
            .await?;
        Ok(rows.into_iter().map(|row| row.notice).take(100).collect())
    }

    /// Tables whose rows are copied: leaf partitions and plain ones; of extensions only configuration tables.
    pub(super) async fn tables(&mut self) -> Result<Vec<Table>, TaskFailure> {
        let ranges = self.version >= 140_000;
        self.list(&format!(
            "SELECT c.oid::int8 AS oid, n.nspname AS schema, c.relname AS name, \
             ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
                   AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attname COLLATE \"C\")::text[] AS columns, \
             pg_relation_size(c.oid) / current_setting('block_size')::int8 AS blocks, \
             {ranges} AND e.oid IS NULL AND m.amname = 'heap' AS ranges, \
             CASE WHEN e.oid IS NOT NULL THEN e.extcondition[array_position(e.extconfig, c.oid)] END AS filter \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am m ON m.oid = c.relam \
             LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 \
                   AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' \
             LEFT JOIN pg_extension e ON e.oid = d.refobjid \
             WHERE c.relkind = 'r' AND {USERS} AND (e.oid IS NULL OR c.oid = ANY (e.extconfig)) \
             ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\""
        ))
        .await
    }

    /// What is locked while a snapshot is held: all tables and partitioned parents; of extensions only configuration
    /// tables, since the others aren't read.
    pub(super) async fn lockables(&mut self) -> Result<Vec<Lockable>, TaskFailure> {
        self.list(&format!(
            "SELECT c.oid::int8 AS oid, n.nspname AS schema, c.relname AS name \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND {USERS} AND {OURS} ORDER BY c.oid"
        ))
        .await
    }

    /// Sequences but those that an extension made for itself.
    pub(super) async fn sequences(&mut self) -> Result<Vec<Sequence>, TaskFailure> {
        self.list(&format!(
            "SELECT c.oid::int8 AS oid, n.nspname AS schema, c.relname AS name \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 \
                   AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' \
             LEFT JOIN pg_extension e ON e.oid = d.refobjid \
             WHERE c.relkind = 'S' AND {USERS} AND (e.oid IS NULL OR c.oid = ANY (e.extconfig)) \
             ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\""
        ))
        .await
    }

    /// Whether a schema called `public` is there.
    pub(super) async fn has_public(&mut self) -> Result<bool, TaskFailure> {
        let rows: Vec<IgnoredAny> = self.list("SELECT oid::int8 FROM pg_namespace WHERE nspname = 'public'").await?;
        Ok(!rows.is_empty())
    }

    /// Extensions.
    pub(super) async fn extensions(&mut self) -> Result<Vec<Extension>, TaskFailure> {
        let mut extensions: Vec<Extension> = self
            .list(
                "SELECT e.extname AS name, e.extversion AS version, n.nspname AS schema, false AS trusted, \
                 e.oid < 16384 AS built_in, ARRAY(SELECT r.extname FROM pg_depend d JOIN pg_extension r ON r.oid = d.refobjid \
                   WHERE d.classid = 'pg_extension'::regclass AND d.objid = e.oid \
                   AND d.refclassid = 'pg_extension'::regclass)::text[] AS needs, \
                 EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid \
                   AND d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e') AS own_schema \
                 FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY e.extname COLLATE \"C\"",
            )
            .await?;
        // What the server has files of is read from its disk each time: only when it matters.
        if extensions.iter().any(|extension| !extension.built_in) {
            let trusted = self.trusted_extensions().await?;
            for extension in &mut extensions {
                extension.trusted = trusted.get(&extension.name).copied().unwrap_or(false);
            }
        }
        Ok(extensions)
    }

    /// Extensions that the server has files of, and whether a database's owner may make them.
    pub(super) async fn trusted_extensions(&mut self) -> Result<std::collections::BTreeMap<String, bool>, TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            name: String,
            trusted: bool,
        }
        let trusted = if self.version >= 130_000 { "bool_or(trusted)" } else { "false" };
        let rows: Vec<Row> = self
            .list(&format!("SELECT name, {trusted} AS trusted FROM pg_available_extension_versions GROUP BY name"))
            .await?;
        Ok(rows.into_iter().map(|row| (row.name, row.trusted)).collect())
    }

    /// Materialised views in the order in which they can be refreshed.
    pub(super) async fn materialised_views(&mut self) -> Result<Vec<MaterialisedView>, TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            oid: i64,
            #[serde(flatten)]
            view: MaterialisedView,
        }
        #[derive(Deserialize)]
        struct Edge {
            from: i64,
            to: i64,
        }
        let views: Vec<Row> = self
            .list(&format!(
                "SELECT c.oid::int8 AS oid, n.nspname AS schema, c.relname AS name, c.relispopulated AS populated \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm' AND {USERS} \
                 ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\""
            ))
            .await?;
        if views.len() < 2 {
            return Ok(views.into_iter().map(|row| row.view).collect());
        }
        let edges: Vec<Edge> = self
            .list(
                "SELECT DISTINCT r.ev_class::int8 AS from, d.refobjid::int8 AS to FROM pg_rewrite r \
                 JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid \
                   AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class \
                 JOIN pg_class c ON c.oid = d.refobjid AND c.relkind IN ('v', 'm') WHERE r.ev_class >= 16384",
            )
            .await?;
        let mut needs: std::collections::BTreeMap<i64, Vec<i64>> = std::collections::BTreeMap::new();
        for edge in edges {
            needs.entry(edge.from).or_default().push(edge.to);
        }
        // Depth first, without recursion: a view comes after all that it reads.
        let mut order: Vec<i64> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for row in &views {
            let mut stack = vec![(row.oid, false)];
            while let Some((oid, done)) = stack.pop() {
                if done {
                    order.push(oid);
                } else if seen.insert(oid) {
                    stack.push((oid, true));
                    stack.extend(needs.get(&oid).into_iter().flatten().map(|next| (*next, false)));
                }
            }
        }
        let mut views: std::collections::BTreeMap<i64, MaterialisedView> =
            views.into_iter().map(|row| (row.oid, row.view)).collect();
        Ok(order.into_iter().filter_map(|oid| views.remove(&oid)).collect())
    }

    /// Owners of all objects of users, as the server names them. `of` limits to one owner.
    pub(super) async fn owners(&mut self, of: Option<&str>) -> Result<Vec<Owned>, TaskFailure> {
        let wanted = of.map(|role| format!("WHERE owner = {}", sql::literal(role))).unwrap_or_default();
        self.list(&format!(
            "SELECT kind, identity, owner FROM (\
               SELECT i.type AS kind, i.identity AS identity, pg_get_userbyid(o.owner) AS owner FROM (\
                 SELECT tableoid, oid, relowner AS owner FROM pg_class \
                   WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f') \
                 UNION ALL SELECT tableoid, oid, proowner FROM pg_proc WHERE oid >= 16384 \
                 UNION ALL SELECT t.tableoid, t.oid, t.typowner FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid \
                   WHERE t.oid >= 16384 AND (t.typrelid = 0 OR c.relkind = 'c') AND t.typtype <> 'm' \
                   AND NOT EXISTS (SELECT 1 FROM pg_type a WHERE a.typarray = t.oid) \
                 UNION ALL SELECT tableoid, oid, nspowner FROM pg_namespace \
                   WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' \
                 UNION ALL SELECT tableoid, oid, oprowner FROM pg_operator WHERE oid >= 16384 \
                 UNION ALL SELECT tableoid, oid, collowner FROM pg_collation WHERE oid >= 16384 \
                 UNION ALL SELECT tableoid, oid, conowner FROM pg_conversion WHERE oid >= 16384 \
                 UNION ALL SELECT tableoid, oid, cfgowner FROM pg_ts_config WHERE oid >= 16384 \
                 UNION ALL SELECT tableoid, oid, dictowner FROM pg_ts_dict WHERE oid >= 16384 \
                 UNION ALL SELECT tableoid, oid, pubowner FROM pg_publication \
                 UNION ALL SELECT tableoid, oid, stxowner FROM pg_statistic_ext\
               ) o(class, oid, owner), LATERAL pg_identify_object(o.class, o.oid, 0) i \
               WHERE i.identity IS NOT NULL \
               AND (i.schema IS NULL OR (i.schema !~ '^pg_' AND i.schema <> 'information_schema')) \
               AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.objsubid = 0 \
                 AND (d.deptype IN ('e', 'i') OR (d.deptype = 'a' AND i.type = 'sequence')))\
             ) all_of_them {wanted} ORDER BY kind, identity"
        ))
        .await
    }

    /// Raw bytes of all tables and large objects, estimated.
    pub(super) async fn bytes(&mut self) -> Result<(u64, u64), TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            bytes: i64,
            tables: i64,
        }
        let row: Row = self
            .one(&format!(
                "SELECT coalesce(sum(pg_table_size(c.oid)), 0)::int8 + pg_relation_size('pg_largeobject') AS bytes, \
                 count(*) AS tables FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind = 'r' AND {USERS}"
            ))
            .await?;
        Ok((u64::try_from(row.bytes).unwrap_or_default(), u64::try_from(row.tables).unwrap_or_default()))
    }

    /// Grants on large objects of these numbers, first and last included.
    pub(super) async fn large_object_grants(
        &mut self,
        first: i64,
        last: i64,
    ) -> Result<Vec<LargeObjectGrant>, TaskFailure> {
        self.list(&format!(
            "SELECT m.oid::int8 AS oid, CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee) END AS grantee, \
             a.privilege_type AS privilege, a.is_grantable AS grantable, \
             CASE WHEN a.grantor <> m.lomowner THEN pg_get_userbyid(a.grantor) END AS grantor \
             FROM pg_largeobject_metadata m, aclexplode(m.lomacl) \
             WITH ORDINALITY a(grantor, grantee, privilege_type, is_grantable, at) \
             WHERE m.oid BETWEEN {first}::oid AND {last}::oid ORDER BY m.oid, a.at"
        ))
        .await
    }
}

/// A grant on a large object.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct LargeObjectGrant {
    pub oid: i64,
    #[serde(flatten)]
    pub grant: Grant,
}
