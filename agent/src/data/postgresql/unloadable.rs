//! What no load could make again: found at the save, by name, and refused or left out by choice.
//!
//! A load runs without superuser rights, so whatever only a superuser can make belongs here, and so does what would act
//! by itself at the copy: subscriptions, foreign servers, schedulers.

use ocopea_protocol::failure::TaskFailure;
use serde::Deserialize;

use super::{
    connect::Session,
    facts::{Extension, LeftOut},
    sql,
};

/// Extensions that a load may have the provisioner make, besides the trusted ones. All are part of PostgreSQL's own
/// distribution or widely reviewed, and none of them runs anything by itself.
const ALLOWED: [&str; 22] = [
    "amcheck",
    "autoinc",
    "bloom",
    "dict_int",
    "dict_xsyn",
    "earthdistance",
    "insert_username",
    "moddatetime",
    "pageinspect",
    "pg_buffercache",
    "pg_freespacemap",
    "pg_prewarm",
    "pg_stat_statements",
    "pg_surgery",
    "pg_visibility",
    "pgrowlocks",
    "pgstattuple",
    "postgis",
    "refint",
    "sslinfo",
    "vector",
    "xml2",
];

/// Extensions whose data needs a procedure of their own, or that act by themselves.
const UNKNOWN: [(&str, &str); 8] = [
    ("timescaledb", "its hypertables need its own procedure to be loaded"),
    ("timescaledb_toolkit", "it belongs to TimescaleDB"),
    ("citus", "its data lies on several servers"),
    ("pg_cron", "it would start its jobs at the copy"),
    ("pg_partman", "its background worker would change the copy"),
    ("pglogical", "it would replicate from the original"),
    ("pgagent", "it would start its jobs at the copy"),
    ("plrust", "its functions run outside the database"),
];

/// Whether the provisioner may make this extension.
pub(super) fn allowed(extension: &str) -> bool {
    ALLOWED.contains(&extension)
}

impl Session {
    /// What no load could make again as a database's owner without further rights.
    pub(super) async fn unloadable(&mut self, extensions: &[Extension]) -> Result<Vec<LeftOut>, TaskFailure> {
        let of_schemas = if self.version >= 150_000 {
            "UNION ALL SELECT 'publication', p.pubname, 'only a superuser can publish whole schemas', p.tableoid, p.oid \
               FROM pg_publication p WHERE EXISTS (SELECT 1 FROM pg_publication_namespace n WHERE n.pnpubid = p.oid) "
        } else {
            ""
        };
        let mut found: Vec<Found> = self
            .list(&format!(
                "SELECT kind, name, why, tableoid::oid::int8 AS class, oid::int8 AS oid FROM (\
                 SELECT 'event trigger' AS kind, evtname::text AS name, 'only a superuser can make one' AS why, \
                   tableoid, oid FROM pg_event_trigger \
                 UNION ALL SELECT 'foreign-data wrapper', fdwname, 'only a superuser can make one', tableoid, oid \
                   FROM pg_foreign_data_wrapper \
                 UNION ALL SELECT 'foreign server', srvname, 'it leads outside the copy, with credentials of its own', \
                   tableoid, oid FROM pg_foreign_server \
                 UNION ALL SELECT 'foreign table', c.oid::regclass::text, 'its rows lie on another server', c.tableoid, c.oid \
                   FROM pg_class c WHERE relkind = 'f' \
                 UNION ALL SELECT 'publication', pubname, 'only a superuser can publish all tables', tableoid, oid \
                   FROM pg_publication WHERE puballtables \
                 {of_schemas}\
                 UNION ALL SELECT 'function', p.oid::regprocedure::text, 'it is written in ' || l.lanname || \
                   ', which only a superuser may use', p.tableoid, p.oid FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
                   WHERE p.oid >= 16384 AND p.prokind <> 'a' AND NOT l.lanpltrusted AND l.lanname <> 'sql' \
                   AND NOT (l.lanname = 'internal' AND EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass \
                     AND d.objid = p.oid AND d.deptype = 'i')) \
                 UNION ALL SELECT 'function', p.oid::regprocedure::text, 'only a superuser can make one leakproof', \
                   p.tableoid, p.oid FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
                   WHERE p.oid >= 16384 AND p.proleakproof AND (l.lanpltrusted OR l.lanname = 'sql') \
                 UNION ALL SELECT 'function', p.oid::regprocedure::text, 'only a superuser can give one a support function', \
                   p.tableoid, p.oid FROM pg_proc p WHERE p.oid >= 16384 AND p.prosupport <> 0 \
                 UNION ALL SELECT 'function', p.oid::regprocedure::text, 'it sets ' || s.name || \
                   ', which only a superuser may', p.tableoid, p.oid FROM pg_proc p, unnest(p.proconfig) c, pg_settings s \
                   WHERE p.oid >= 16384 AND s.name = split_part(c, '=', 1) AND s.context NOT IN ('user', 'backend') \
                 UNION ALL SELECT 'function', p.oid::regprocedure::text, \
                   'only a superuser can make an aggregate whose state is internal', p.tableoid, p.oid \
                   FROM pg_proc p JOIN pg_aggregate a ON a.aggfnoid = p.oid WHERE p.oid >= 16384 \
                   AND ('internal'::regtype IN (a.aggtranstype, a.aggmtranstype)) \
                 UNION ALL SELECT 'base type', t.oid::regtype::text, 'only a superuser can make one', t.tableoid, t.oid \
                   FROM pg_type t WHERE t.oid >= 16384 AND (t.typtype = 'b' AND t.typelem = 0 OR NOT t.typisdefined) \
                   AND NOT EXISTS (SELECT 1 FROM pg_type a WHERE a.typarray = t.oid) \
                 UNION ALL SELECT 'operator class', opcname, 'only a superuser can make one', tableoid, oid \
                   FROM pg_opclass WHERE oid >= 16384 \
                 UNION ALL SELECT 'operator family', opfname, 'only a superuser can make one', tableoid, oid \
                   FROM pg_opfamily WHERE oid >= 16384 \
                 UNION ALL SELECT 'access method', amname, 'only a superuser can make one', tableoid, oid \
                   FROM pg_am WHERE oid >= 16384 \
                 UNION ALL SELECT 'text search parser', prsname, 'only a superuser can make one', tableoid, oid \
                   FROM pg_ts_parser WHERE oid >= 16384 \
                 UNION ALL SELECT 'text search template', tmplname, 'only a superuser can make one', tableoid, oid \
                   FROM pg_ts_template WHERE oid >= 16384 \
                 UNION ALL SELECT 'language', lanname, 'only a superuser can make one', tableoid, oid \
                   FROM pg_language WHERE oid >= 16384 \
                 UNION ALL SELECT 'cast', castsource::regtype::text || ' as ' || casttarget::regtype::text, \
                   CASE castmethod WHEN 'b' THEN 'a cast without a function can only be made by a superuser' \
                     ELSE 'only a superuser can make one between types of the server' END, tableoid, oid FROM pg_cast \
                   WHERE oid >= 16384 AND (castmethod = 'b' OR castsource < 16384 AND casttarget < 16384) \
                 UNION ALL SELECT 'transform', trftype::regtype::text, 'only a superuser can make one', tableoid, oid \
                   FROM pg_transform WHERE oid >= 16384 \
                 ) x WHERE NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = x.tableoid AND d.objid = x.oid \
                   AND d.objsubid = 0 AND d.deptype = 'e') ORDER BY 1, 2"
            ))
            .await?;
        found.dedup_by(|a, b| (a.left.kind == b.left.kind) && (a.left.name == b.left.name));
        let mut roots: Vec<String> = found.iter().map(|found| format!("({}, {})", found.class, found.oid)).collect();
        let mut out: Vec<LeftOut> = found.into_iter().map(|found| found.left).collect();
        out.extend(
            self.list::<LeftOut>(
                "SELECT 'subscription' AS kind, subname AS name, 'it would replicate from the original' AS why \
                 FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            .await
            .or_else(|failure| if failure.code == "data.rights" { Ok(vec![]) } else { Err(failure) })?,
        );
        let mut gone: Vec<String> = Vec::new();
        for extension in extensions.iter().cloned() {
            let known = allowed(&extension.name) || extension.trusted || extension.built_in;
            let unknown = UNKNOWN.iter().find(|(name, _)| *name == extension.name);
            if unknown.is_none() && known {
                continue;
            }
            gone.push(sql::literal(&extension.name));
            let why = unknown.map_or(
                "only a superuser can make it, and it isn't among those that a load may have made",
                |(_, why)| *why,
            );
            let (kind, why) = ("extension".to_owned(), why.to_owned());
            out.push(LeftOut { kind, name: extension.name, why, refused: unknown.is_some() });
        }
        if !gone.is_empty() {
            let members: Vec<Member> = self
                .list(&format!(
                    "SELECT d.classid::int8 AS class, d.objid::int8 AS oid FROM pg_depend d \
                     JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass \
                     WHERE d.deptype = 'e' AND e.extname IN ({})",
                    gone.join(", ")
                ))
                .await?;
            roots.extend(members.iter().map(|member| format!("({}, {})", member.class, member.oid)));
        }
        out.extend(self.lost_with(&roots).await?);
        Ok(out)
    }

    /// Tables that need what is left out, as the type of a column, in a default or a check: without them rows would
    /// be lost, so there is nothing to choose.
    async fn lost_with(&mut self, roots: &[String]) -> Result<Vec<LeftOut>, TaskFailure> {
        if roots.is_empty() {
            return Ok(vec![]);
        }
        self.list(&format!(
            "WITH RECURSIVE step(refclassid, refobjid, classid, objid) AS MATERIALIZED (\
               SELECT refclassid, refobjid, classid, objid FROM pg_depend WHERE deptype IN ('n', 'a', 'i') \
               UNION ALL SELECT 'pg_attrdef'::regclass, oid, 'pg_class'::regclass, adrelid FROM pg_attrdef \
               UNION ALL SELECT 'pg_constraint'::regclass, oid, 'pg_class'::regclass, conrelid FROM pg_constraint \
                 WHERE contype = 'c' AND conrelid <> 0 \
               UNION ALL SELECT 'pg_class'::regclass, oid, 'pg_type'::regclass, reltype FROM pg_class WHERE relkind = 'c'), \
             gone(class, oid) AS (\
               SELECT c::oid, o::oid FROM (VALUES {}) roots(c, o) \
               UNION SELECT s.classid, s.objid FROM step s JOIN gone g ON s.refclassid = g.class AND s.refobjid = g.oid) \
             SELECT 'table' AS kind, c.oid::regclass::text AS name, \
               'it needs something that can''t be restored' AS why, true AS refused \
             FROM gone g JOIN pg_class c ON g.class = 'pg_class'::regclass AND g.oid = c.oid \
             WHERE c.relkind IN ('r', 'p', 'm') AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = g.class \
               AND d.objid = g.oid AND d.deptype = 'e') ORDER BY 2",
            roots.join(", ")
        ))
        .await
    }
}

/// Something that is left out, and where it stands in the catalogs.
#[derive(Deserialize)]
struct Found {
    #[serde(flatten)]
    left: LeftOut,
    class: i64,
    oid: i64,
}

/// A member of an extension.
#[derive(Deserialize)]
struct Member {
    class: i64,
    oid: i64,
}
