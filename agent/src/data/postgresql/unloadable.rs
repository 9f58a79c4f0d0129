//! What no load could make again: found at the save, by name, and refused or left out by choice.
//!
//! A load runs without superuser rights, so whatever only a superuser can make belongs here, and so does what would act
//! by itself at the copy: subscriptions, foreign servers, schedulers.

use ocopea_protocol::failure::TaskFailure;

use super::{
    connect::Session,
    facts::{Extension, LeftOut},
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
        let mut out: Vec<LeftOut> = self
            .list(
                "SELECT kind, name, why FROM (\
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
                 UNION ALL SELECT 'function', p.oid::regprocedure::text, 'it is written in ' || l.lanname || \
                   ', which only a superuser may use', p.tableoid, p.oid FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
                   WHERE p.oid >= 16384 AND p.prokind <> 'a' AND NOT l.lanpltrusted AND l.lanname <> 'sql' \
                   AND NOT (l.lanname = 'internal' AND EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass \
                     AND d.objid = p.oid AND d.deptype = 'i')) \
                 UNION ALL SELECT 'function', p.oid::regprocedure::text, 'only a superuser can make one leakproof', \
                   p.tableoid, p.oid FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
                   WHERE p.oid >= 16384 AND p.proleakproof AND (l.lanpltrusted OR l.lanname = 'sql') \
                 UNION ALL SELECT 'base type', t.oid::regtype::text, 'only a superuser can make one', t.tableoid, t.oid \
                   FROM pg_type t WHERE t.oid >= 16384 AND t.typtype = 'b' AND t.typelem = 0 \
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
                   'a cast without a function can only be made by a superuser', tableoid, oid FROM pg_cast \
                   WHERE oid >= 16384 AND castmethod = 'b' \
                 UNION ALL SELECT 'transform', trftype::regtype::text, 'only a superuser can make one', tableoid, oid \
                   FROM pg_transform WHERE oid >= 16384 \
                 ) x WHERE NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = x.tableoid AND d.objid = x.oid \
                   AND d.objsubid = 0 AND d.deptype = 'e') ORDER BY 1, 2",
            )
            .await?;
        out.extend(
            self.list::<LeftOut>(
                "SELECT 'subscription' AS kind, subname AS name, 'it would replicate from the original' AS why \
                 FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            .await
            .or_else(|failure| if failure.code == "data.rights" { Ok(vec![]) } else { Err(failure) })?,
        );
        for extension in extensions.iter().cloned() {
            let known = allowed(&extension.name) || extension.trusted || extension.built_in;
            if let Some((_, why)) = UNKNOWN.iter().find(|(name, _)| *name == extension.name) {
                out.push(LeftOut { kind: "extension".to_owned(), name: extension.name, why: (*why).to_owned() });
            } else if !known {
                let why = "only a superuser can make it, and it isn't among those that a load may have made".to_owned();
                out.push(LeftOut { kind: "extension".to_owned(), name: extension.name, why });
            }
        }
        Ok(out)
    }
}
