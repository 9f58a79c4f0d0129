//! What a server's errors mean for trying again, in words.

use ocopea_protocol::failure::TaskFailure;
use sqlx::postgres::PgDatabaseError;

use super::connect::Server;

/// The longest text of a server that is repeated.
const LONGEST: usize = 600;

/// An error of the connection or the server as a task's failure.
pub(super) fn of(server: &Server, doing: &str, error: &sqlx::Error) -> TaskFailure {
    match error {
        sqlx::Error::Database(database) => match database.try_downcast_ref::<PgDatabaseError>() {
            Some(database) => of_server(server, doing, database),
            None => server.failure("data.server", format!("{error} while {doing}")),
        },
        sqlx::Error::Io(io) => {
            server.retry("data.unreachable", format!("{}: {} while {doing}", server.reach.address, io))
        }
        sqlx::Error::Tls(tls) => server.failure("data.tls", format!("{}: {tls} while {doing}", server.reach.address)),
        other => server
            .retry("data.protocol", format!("{}: {} while {doing}", server.reach.address, cut(&other.to_string()))),
    }
}

fn of_server(server: &Server, doing: &str, error: &PgDatabaseError) -> TaskFailure {
    let code = error.code();
    let mut said = format!("{} (SQLSTATE {code})", cut(error.message()));
    if let Some(place) = error.r#where() {
        said = format!("{said}, {}", cut(place.lines().next().unwrap_or_default()));
    }
    let cause = format!("{said} while {doing}");
    match code {
        "28000" | "28P01" => server.failure("data.authentication", said),
        "3D000" => server.failure("data.missing", cause),
        "42501" => server.failure("data.rights", cause),
        // "cannot execute … during recovery"
        "25006" => server
            .failure("data.standby", cause)
            .next("the server takes no writes: it is a standby, or default_transaction_read_only holds it"),
        "53100" | "53200" => {
            server.failure("data.full", cause).next("give the server more disk or memory, then run the operation again")
        }
        "53300" => server
            .retry("data.busy", cause)
            .next("raise max_connections of the server, or close connections that nobody uses"),
        "55P03" => server.retry("data.locked", cause),
        // Shut down, crashed, starting up, and connections that broke.
        "57P01" | "57P02" | "57P03" | "57P05" => server.retry("data.unreachable", cause),
        "40001" | "40P01" | "72000" => server.retry("data.conflict", cause),
        "23514" => server.failure("data.refused", cause).next(
            "a CHECK that reads other tables can't be restored before they are full: make it NOT VALID where it was \
             saved, or a trigger",
        ),
        _ if code.starts_with("08") => server.retry("data.unreachable", cause),
        _ if code.starts_with("22") || code.starts_with("23") => server.failure("data.refused", cause),
        _ => server.failure("data.server", cause),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST).filter(|c| !c.is_control()).collect()
}
