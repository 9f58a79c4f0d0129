//! `pg_dump` and `pg_restore`: found where they are new enough, run, and never believed before their exit status.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use ocopea_protocol::{failure::TaskFailure, secret::Secret};
use tokio::io::AsyncReadExt;

use super::{connect::Server, sql};
use crate::data::Tools;

/// The largest archive or script of one database's schema that is taken.
const LARGEST: usize = 64 * 1024 * 1024;
/// How long a program may say nothing.
const SILENCE: Duration = Duration::from_secs(300);
/// How long `--version` may take.
const VERSION: Duration = Duration::from_secs(30);

/// A place where client programs run, and how new they are there.
#[derive(Clone)]
pub(super) struct Client {
    tools: Arc<dyn Tools>,
    server: Server,
    pub major: u32,
}

impl Client {
    /// The first place whose `program` is at least of major version `least`.
    pub(super) async fn choose(server: &Server, program: &str, least: u32) -> Result<Self, TaskFailure> {
        let mut seen = Vec::new();
        for tools in &server.reach.tools {
            let client = Self { tools: tools.clone(), server: server.clone(), major: 0 };
            let place = tools.place();
            let said = server.seams.timeout(VERSION, client.run(program, &["--version"], &[], None)).await;
            match said {
                Some(Ok(said)) => match major(&String::from_utf8_lossy(&said)) {
                    Some(major) if major >= least => return Ok(Self { major, ..client }),
                    Some(major) => seen.push(format!("{major} in {place}")),
                    None => seen.push(format!("an unknown version in {place}")),
                },
                Some(Err(failure)) if failure.code == "cancelled" => return Err(failure),
                Some(Err(failure)) => seen.push(format!("none in {place} ({})", failure.cause)),
                None => seen.push(format!("no answer in {place}")),
            }
        }
        let found = if seen.is_empty() { "no place to look for it".to_owned() } else { seen.join(", ") };
        Err(server
            .failure("data.tool", format!("it needs {program} of PostgreSQL {least} or newer; found: {found}"))
            .next(format!("install postgresql-client-{least} or newer where Ocopea runs")))
    }

    /// The schema of one database as an archive, under an exported snapshot if one is named.
    /// `encoding` is the database's: its names come as UTF-8, but for one that doesn't know what its bytes mean.
    pub(super) async fn dump(
        &self,
        database: &str,
        encoding: &str,
        snapshot: Option<&str>,
    ) -> Result<Bytes, TaskFailure> {
        let (host, port) = self.tools.address();
        let login = &self.server.login;
        let environment = [
            ("PGHOST", host),
            ("PGPORT", port.to_string()),
            ("PGUSER", login.user.clone()),
            // Only `--dbname` would be taken for a connection string.
            ("PGDATABASE", database.to_owned()),
            ("PGPASSWORD", login.password.reveal().to_owned()),
            ("PGCONNECT_TIMEOUT", "10".to_owned()),
            ("PGAPPNAME", super::connect::APPLICATION.to_owned()),
            ("PGSSLMODE", login.options.get("sslmode").cloned().unwrap_or_else(|| "prefer".to_owned())),
            ("PGOPTIONS", "-c statement_timeout=0 -c lock_timeout=5s".to_owned()),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), Secret::new(value)));
        let under = snapshot.map(|snapshot| format!("--snapshot={snapshot}"));
        let mut arguments = vec![
            "--format=custom",
            "--compress=0",
            "--schema-only",
            "--no-password",
            "--no-subscriptions",
            "--no-tablespaces",
            "--no-security-labels",
            "--lock-wait-timeout=5000",
        ];
        // What the database or the login sets as a role for its sessions doesn't hold here.
        let role = format!("--role={}", login.user);
        arguments.push(&role);
        if encoding != "SQL_ASCII" {
            arguments.push("--encoding=UTF8");
        }
        arguments.extend(under.as_deref());
        self.run("pg_dump", &arguments, &environment, None).await.map_err(|mut failure| {
            failure.cause = format!("schema of database \"{database}\": {}", failure.cause);
            failure
        })
    }

    /// The statements of an archive, or of one of its sections.
    pub(super) async fn statements(
        &self,
        archive: &Bytes,
        section: Option<&str>,
        owners: bool,
    ) -> Result<Vec<String>, TaskFailure> {
        let section = section.map(|section| format!("--section={section}"));
        let mut arguments = vec!["--file=-"];
        arguments.extend(section.as_deref());
        if !owners {
            arguments.push("--no-owner");
        }
        let script = self.run("pg_restore", &arguments, &[], Some(archive.clone())).await?;
        let script = String::from_utf8(script.to_vec())
            .map_err(|_| self.server.failure("data.schema", "the schema's script is not UTF-8"))?;
        // Cutting megabytes takes a while: not on an async thread.
        let cut = self.server.seams.compute("cut schema script", move || sql::statements(&script)).await;
        match cut {
            Some(Ok(statements)) => Ok(statements),
            Some(Err(error)) => Err(self.server.failure("data.schema", error)),
            None => Err(TaskFailure::cancelled(self.server.what())),
        }
    }

    /// Runs a program to its end; its output counts only when it ended well.
    async fn run(
        &self,
        program: &str,
        arguments: &[&str],
        environment: &[(String, Secret)],
        input: Option<Bytes>,
    ) -> Result<Bytes, TaskFailure> {
        let server = &self.server;
        let place = self.tools.place();
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let input = input.map(|bytes| {
            let reader: Box<dyn tokio::io::AsyncRead + Send + Unpin> = Box::new(std::io::Cursor::new(bytes));
            reader
        });
        let mut running = self.tools.start(program, &arguments, environment, input).await?;
        let mut output = Vec::new();
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let read = tokio::select! {
                biased;
                () = server.stop.cancelled() => return Err(TaskFailure::cancelled(server.what())),
                read = running.output.read(&mut buffer) => read,
                () = server.seams.clock.sleep(SILENCE) => {
                    let cause = format!("{program} in {place} has said nothing for {} s", SILENCE.as_secs());
                    return Err(server.retry("data.tool", cause));
                }
            };
            match read {
                Ok(0) => break,
                Ok(length) if output.len() + length > LARGEST => {
                    let cause = format!("{program} wrote more than {} MiB of schema", LARGEST >> 20);
                    return Err(server.failure("data.too-large", cause));
                }
                Ok(length) => output.extend_from_slice(&buffer[..length]),
                Err(error) => {
                    return Err(server.retry("data.tool", format!("reading from {program} in {place}: {error}")));
                }
            }
        }
        let ended = tokio::select! {
            biased;
            () = server.stop.cancelled() => return Err(TaskFailure::cancelled(server.what())),
            ended = running.ended => ended,
            () = server.seams.clock.sleep(VERSION) => {
                return Err(server.retry("data.tool", format!("{program} in {place} closed its output and doesn't end")));
            }
        };
        match ended {
            Ok((0, _)) => Ok(Bytes::from(output)),
            Ok((status, said)) => {
                let said: String = said.chars().take(2000).collect();
                let cause = format!("{program} in {place} ended with status {status}: {}", said.trim());
                // What a dump stumbles over changes while it runs: locks, dropped objects, a dying server.
                let gone = [
                    "server closed the connection",
                    "could not connect",
                    "connection to server at",
                    "terminating connection",
                ];
                let code = if gone.iter().any(|words| said.contains(words)) { "data.unreachable" } else { "data.tool" };
                Err(server.retry(code, cause))
            }
            Err(_) => Err(server.retry("data.tool", format!("{program} in {place} was lost"))),
        }
    }
}

/// The major version in `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major(said: &str) -> Option<u32> {
    let after = said.split("PostgreSQL)").nth(1)?;
    let digits: String = after.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_client_programs_are_read_as_they_print_them() {
        assert_eq!(major("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major("pg_restore (PostgreSQL) 17beta1\n"), Some(17));
        assert_eq!(major("bash: pg_dump: not found"), None);
    }
}
