//! The catalog on a database that the caller brings: the simulation's, which answers at once.
//!
//! It speaks SQLite's SQL. A driver never waits for anything within a transaction, so that none sees another in its midst:
//! what it wants to wait for, it waits for in [`Driver::pause`].

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use sea_orm::{
    DatabaseBackend, DatabaseConnection, DatabaseConnectionType, DbErr, ExecResult, MockDatabase,
    MockDatabaseConnection, MockDatabaseTrait, MockExecResult, QueryResult, RuntimeErr, Statement, Value, sqlx,
};

/// A value of a row or of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A number.
    Integer(i64),
    /// A text.
    Text(String),
    /// The bytes of a UUID.
    Id([u8; 16]),
}

/// A row by its columns' names.
pub type Row = Vec<(String, Cell)>;

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It counts.
    Done,
    /// It doesn't, and may be done again.
    NotDone,
    /// Nobody knows.
    InDoubt,
}

/// Why a statement was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection was cut before: it may be done again.
    Cut,
    /// The database refuses it.
    Refused(String),
}

/// A database.
#[async_trait]
pub trait Driver: Send + Sync {
    /// In front of a transaction, and behind it: others may come in between.
    async fn pause(&self);
    /// Begins a transaction; there is one at a time.
    fn begin(&self);
    /// Ends it. What came of it is told by [`Self::committed`].
    fn commit(&self);
    /// What came of the last [`Self::commit`]: asked at once.
    fn committed(&self) -> Committed;
    /// Ends it undone.
    fn roll_back(&self);
    /// Changes something; how many rows.
    fn execute(&self, sql: &str, values: &[Cell]) -> Result<u64, Fault>;
    /// Asks.
    fn query(&self, sql: &str, values: &[Cell]) -> Result<Vec<Row>, Fault>;
}

/// The ORM's own place for a database that isn't one of its own is its mock's: it answers at once, by the driver.
pub(crate) fn connect(driver: Arc<dyn Driver>) -> DatabaseConnection {
    DatabaseConnectionType::MockDatabaseConnection(Arc::new(MockDatabaseConnection::new(Adapter(driver)))).into()
}

/// A connection that was cut.
pub(crate) fn cut() -> DbErr {
    let cause = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(sqlx::Error::Io(cause))))
}

struct Adapter(Arc<dyn Driver>);

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Adapter")
    }
}

fn cell(value: Value) -> Result<Cell, DbErr> {
    Ok(match value {
        Value::Bool(value) => value.map_or(Cell::Null, |value| Cell::Integer(value.into())),
        Value::Int(value) => value.map_or(Cell::Null, |value| Cell::Integer(value.into())),
        Value::BigInt(value) => value.map_or(Cell::Null, Cell::Integer),
        Value::BigUnsigned(Some(value)) => {
            Cell::Integer(i64::try_from(value).map_err(|error| DbErr::Type(error.to_string()))?)
        }
        Value::String(value) => value.map_or(Cell::Null, Cell::Text),
        Value::Uuid(value) => value.map_or(Cell::Null, |value| Cell::Id(value.into_bytes())),
        Value::BigUnsigned(None) => Cell::Null,
        other => return Err(DbErr::Type(format!("no driver takes {other:?}"))),
    })
}

fn value(cell: Cell) -> Value {
    match cell {
        // Whatever type is asked for: there is none.
        Cell::Null => Value::String(None),
        Cell::Integer(number) => Value::BigInt(Some(number)),
        Cell::Text(text) => Value::String(Some(text)),
        Cell::Id(bytes) => Value::Uuid(Some(uuid::Uuid::from_bytes(bytes))),
    }
}

fn fault(fault: Fault) -> DbErr {
    match fault {
        Fault::Cut => cut(),
        Fault::Refused(why) => DbErr::Custom(why),
    }
}

fn taken_apart(statement: &Statement) -> Result<(String, Vec<Cell>), DbErr> {
    let values = statement.values.clone().map(|values| values.0).unwrap_or_default();
    Ok((statement.sql.clone(), values.into_iter().map(cell).collect::<Result<_, _>>()?))
}

fn named(row: Row) -> BTreeMap<String, Value> {
    row.into_iter().map(|(column, cell)| (column, value(cell))).collect()
}

impl MockDatabaseTrait for Adapter {
    fn execute(&mut self, _counter: usize, statement: Statement) -> Result<ExecResult, DbErr> {
        let (sql, values) = taken_apart(&statement)?;
        let rows_affected = self.0.execute(&sql, &values).map_err(fault)?;
        // Nothing but the ORM's own mock makes such a result.
        let answer = MockExecResult { last_insert_id: 0, rows_affected };
        MockDatabase::new(DatabaseBackend::Sqlite).append_exec_results([answer]).execute(0, statement)
    }

    fn query(&mut self, _counter: usize, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let (sql, values) = taken_apart(&statement)?;
        let rows = self.0.query(&sql, &values).map_err(fault)?;
        let answer = rows.into_iter().map(named).collect::<Vec<_>>();
        MockDatabase::new(DatabaseBackend::Sqlite).append_query_results([answer]).query(0, statement)
    }

    fn begin(&mut self) {
        self.0.begin();
    }

    fn commit(&mut self) {
        self.0.commit();
    }

    fn rollback(&mut self) {
        self.0.roll_back();
    }

    fn drain_transaction_log(&mut self) -> Vec<sea_orm::Transaction> {
        Vec::new()
    }

    fn get_database_backend(&self) -> DatabaseBackend {
        DatabaseBackend::Sqlite
    }

    fn ping(&self) -> Result<(), DbErr> {
        Ok(())
    }
}
