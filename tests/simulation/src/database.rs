//! The catalog's database: SQLite in memory, which answers at once. Triggers watch what must never happen.

use std::{path::Path, sync::Mutex, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use ocopea_catalog_db::driver::{Cell, Committed, Driver, Fault, Row};
use rusqlite::{
    Connection, ToSql,
    backup::Backup,
    types::{ToSqlOutput, Value, ValueRef},
};

use crate::{
    runtime::{Sim, lock},
    scenario::Weather,
};

/// States that nothing leaves, claims that two have, and outcomes that count twice.
const WATCH: &str = "
CREATE TABLE wrong (what TEXT NOT NULL);
CREATE TRIGGER operation_ended AFTER UPDATE OF state ON operations
WHEN OLD.state IN ('succeeded', 'failed', 'cancelled') AND NEW.state <> OLD.state
BEGIN INSERT INTO wrong VALUES ('an operation became ' || NEW.state || ' after it had ' || OLD.state); END;
CREATE TRIGGER task_ended AFTER UPDATE OF state ON tasks
WHEN OLD.state IN ('succeeded', 'failed', 'cancelled') AND NEW.state <> OLD.state
BEGIN INSERT INTO wrong VALUES ('a task became ' || NEW.state || ' after it had ' || OLD.state); END;
CREATE TRIGGER task_claimed_twice AFTER UPDATE OF instance ON tasks
WHEN OLD.state = 'claimed' AND NEW.state = 'claimed' AND NEW.instance IS NOT OLD.instance
BEGIN INSERT INTO wrong VALUES ('a claimed task was given to another'); END;
CREATE TRIGGER two_collections AFTER UPDATE OF state ON tasks
WHEN NEW.kind = 'collect' AND NEW.state = 'claimed' AND (SELECT count(*) FROM tasks WHERE kind = 'collect' AND state = 'claimed') > 1
BEGIN INSERT INTO wrong VALUES ('two collections run at the same time'); END;
CREATE TRIGGER output_changed AFTER UPDATE OF output ON tasks
WHEN OLD.output IS NOT NULL AND NEW.output IS NOT OLD.output
BEGIN INSERT INTO wrong VALUES ('the outcome of a task was written twice'); END;
";

/// A catalog with nothing but the watch, made by the real migrations in the file at `path`.
pub fn template(path: &Path) -> anyhow::Result<Connection> {
    let file = Connection::open(path).context("the template can't be opened")?;
    let mut template = Connection::open_in_memory()?;
    copy(&file, &mut template)?;
    template.execute_batch(WATCH)?;
    Ok(template)
}

fn copy(from: &Connection, to: &mut Connection) -> anyhow::Result<()> {
    Backup::new(from, to)?.run_to_completion(1000, Duration::ZERO, None)?;
    Ok(())
}

struct Inner {
    connection: Connection,
    within: bool,
    /// The transaction fails with its next statement.
    cut: bool,
    committed: Committed,
}

pub struct SimDatabase {
    sim: Sim,
    weather: Weather,
    inner: Mutex<Inner>,
}

impl SimDatabase {
    pub fn new(sim: &Sim, weather: &Weather, template: &Connection) -> anyhow::Result<Self> {
        let mut connection = Connection::open_in_memory()?;
        copy(template, &mut connection)?;
        connection.set_prepared_statement_cache_capacity(256);
        connection
            .execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;")?;
        let inner = Inner { connection, within: false, cut: false, committed: Committed::Done };
        Ok(Self { sim: sim.clone(), weather: weather.clone(), inner: Mutex::new(inner) })
    }

    /// Texts of the first column, for checks.
    pub fn ask(&self, sql: &str) -> Vec<String> {
        let rows = self.query(sql, &[]).unwrap_or_else(|fault| panic!("{sql}: {fault:?}"));
        let text = |cell: Option<(String, Cell)>| match cell {
            Some((_, Cell::Text(text))) => text,
            Some((_, Cell::Integer(number))) => number.to_string(),
            Some((_, Cell::Id(bytes))) => uuid::Uuid::from_bytes(bytes).to_string(),
            _ => String::new(),
        };
        rows.into_iter().map(|row| text(row.into_iter().next())).collect()
    }
}

struct Bound<'a>(&'a Cell);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0 {
            Cell::Null => ToSqlOutput::Owned(Value::Null),
            Cell::Integer(number) => ToSqlOutput::Owned(Value::Integer(*number)),
            Cell::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Cell::Id(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
        })
    }
}

fn cell(value: ValueRef<'_>) -> Result<Cell, Fault> {
    let refused = |what: &str| Fault::Refused(format!("{what} is nothing that the catalog has"));
    Ok(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Integer(number),
        ValueRef::Real(_) => return Err(refused("a fraction")),
        ValueRef::Text(text) => Cell::Text(std::str::from_utf8(text).map_err(|_| refused("such a text"))?.to_owned()),
        ValueRef::Blob(bytes) => Cell::Id(bytes.try_into().map_err(|_| refused("a blob"))?),
    })
}

fn refused(sql: &str) -> impl Fn(rusqlite::Error) -> Fault {
    move |error| Fault::Refused(format!("{error}: {sql}"))
}

impl Inner {
    fn cut(&mut self) -> Result<(), Fault> {
        if self.within && self.cut { Err(Fault::Cut) } else { Ok(()) }
    }
}

#[async_trait]
impl Driver for SimDatabase {
    async fn pause(&self) {
        let slow = self.weather.of(|weather| weather.database_slow);
        let kind = self.sim.chance(|chance| chance.below(1000));
        if kind < slow {
            let span = self.sim.chance(|chance| chance.within(100..3000));
            self.sim.sleep(Duration::from_millis(span)).await;
        } else if kind < 150 {
            let span = self.sim.chance(|chance| chance.within(1..10));
            self.sim.sleep(Duration::from_millis(span)).await;
        } else if kind < 600 {
            self.sim.give_way().await;
        }
    }

    fn begin(&self) {
        let cut = self.weather.of(|weather| weather.database_fails);
        let cut = self.sim.chance(|chance| chance.per_mille(cut));
        let mut inner = lock(&self.inner);
        assert!(!inner.within, "a transaction waits for something in its midst");
        inner.within = true;
        inner.cut = cut;
        inner.connection.prepare_cached("BEGIN").and_then(|mut begin| begin.execute([])).expect("it begins");
    }

    fn commit(&self) {
        let doubts = self.weather.of(|weather| weather.database_fails);
        let (doubt, done) = self.sim.chance(|chance| (chance.per_mille(doubts), chance.per_mille(500)));
        let mut inner = lock(&self.inner);
        inner.within = false;
        let end = if doubt && !done { "ROLLBACK" } else { "COMMIT" };
        let ended = inner.connection.prepare_cached(end).and_then(|mut end| end.execute([]));
        inner.committed = match ended {
            Ok(_) if doubt => Committed::InDoubt,
            Ok(_) => Committed::Done,
            Err(error) => {
                self.sim.wrong(format!("the database refuses a commit: {error}"));
                Committed::NotDone
            }
        };
    }

    fn committed(&self) -> Committed {
        lock(&self.inner).committed
    }

    fn roll_back(&self) {
        let mut inner = lock(&self.inner);
        if std::mem::replace(&mut inner.within, false) {
            let ended = inner.connection.prepare_cached("ROLLBACK").and_then(|mut end| end.execute([]));
            ended.expect("it ends");
        }
    }

    fn execute(&self, sql: &str, values: &[Cell]) -> Result<u64, Fault> {
        let mut inner = lock(&self.inner);
        inner.cut()?;
        let mut statement = inner.connection.prepare_cached(sql).map_err(refused(sql))?;
        let rows = statement.execute(rusqlite::params_from_iter(values.iter().map(Bound))).map_err(refused(sql))?;
        Ok(rows as u64)
    }

    fn query(&self, sql: &str, values: &[Cell]) -> Result<Vec<Row>, Fault> {
        let mut inner = lock(&self.inner);
        inner.cut()?;
        let mut statement = inner.connection.prepare_cached(sql).map_err(refused(sql))?;
        let names: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
        let mut found = statement.query(rusqlite::params_from_iter(values.iter().map(Bound))).map_err(refused(sql))?;
        let mut rows = Vec::new();
        while let Some(row) = found.next().map_err(refused(sql))? {
            let mut cells = Row::with_capacity(names.len());
            for (at, name) in names.iter().enumerate() {
                cells.push((name.clone(), cell(row.get_ref(at).map_err(refused(sql))?)?));
            }
            rows.push(cells);
        }
        Ok(rows)
    }
}
