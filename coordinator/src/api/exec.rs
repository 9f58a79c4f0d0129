//! A program in a container of an environment: one HTTP/1.1 connection, upgraded, that carries frames.
//!
//! The frames are those of [`ocopea_protocol::frames`]; the last of them is `{"code":N}` or a `Problem`.

use axum::{
    extract::{Path, Request, State as Extract},
    response::Response,
};
use ocopea_catalog_db::model::Role;
use ocopea_protocol::{
    failure::TaskFailure,
    frames::{END, Failed, Started, carry, read_frame, write_frame},
    session::BoxedStream,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use utoipa::IntoParams;

use super::{
    State,
    environments::note_use,
    problem::{Caller, Problem, Query},
    upgrade,
};

/// The name in `Upgrade:`.
pub const PROTOCOL: &str = "ocopea-exec";
/// Words of a command, and bytes of each.
const MOST_WORDS: usize = 1000;

/// What to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ExecQuery {
    /// The command and its arguments: a JSON array of strings.
    pub command: String,
    /// A workload, pod, container or image by its last name; needed when the environment has several.
    pub component: Option<String>,
    /// With a terminal.
    #[serde(default)]
    pub tty: bool,
    /// With standard input.
    #[serde(default)]
    pub stdin: bool,
}

/// A program that was started.
pub enum Program {
    /// Through this process's own agents.
    Here(Started),
    /// Through an agent elsewhere: frames, the last of which may be a [`Failed`].
    Elsewhere(BoxedStream),
}

/// Runs a program in a container of an environment. The connection is upgraded to `ocopea-exec`.
#[utoipa::path(post, path = "/api/v1/environments/{environment}/exec", params(("environment" = String, Path), ExecQuery),
    responses((status = 101, description = "frames follow, see the crate's documentation"), (status = 404, body = Problem),
        (status = 426, body = Problem, description = "the request asks for no upgrade")))]
pub(super) async fn exec(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(environment): Path<String>,
    Query(query): Query<ExecQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let (actor, no_longer) = caller.while_at_least(Role::Operator, &state)?;
    let command: Vec<String> = serde_json::from_str(&query.command)
        .map_err(|_| Problem::invalid("command", "a JSON array of strings is expected"))?;
    if command.is_empty() || command.len() > MOST_WORDS || command.iter().any(|word| word.contains('\0')) {
        return Err(Problem::invalid("command", format!("1 to {MOST_WORDS} words without NUL are expected")));
    }
    upgrade::expected(&request, PROTOCOL)?;
    let catalog = &state.coordinator.catalog;
    let (found, site) = super::environments::found(catalog, &actor, &environment).await?;
    // Who ran what where is written down before it runs; not what went through.
    let program = command.first().map_or("", String::as_str);
    let detail = format!("{} {program:.100}", found.name);
    note_use(&state, &actor, "environment.exec", found.id, &detail).await?;
    let started = state.access.exec(&site.name, &found.name, &query, command).await?;
    Ok(upgrade::switched(&state, request, PROTOCOL, no_longer, |connection| relay(connection, started)))
}

/// Carries frames both ways until the program ends or the client is gone.
async fn relay(connection: impl AsyncRead + AsyncWrite, program: Program) -> std::io::Result<()> {
    let end = |failure: TaskFailure| serde_json::to_vec(&Problem::from(failure)).unwrap_or_default();
    let mut stream = match program {
        Program::Here(started) => return carry(connection, started, end).await,
        Program::Elsewhere(stream) => stream,
    };
    let (mut from, mut to) = tokio::io::split(connection);
    let (mut theirs, mut ours) = tokio::io::split(&mut stream);
    let upwards = async {
        tokio::io::copy(&mut from, &mut ours).await?;
        ours.shutdown().await
    };
    let downwards = async {
        while let Some((channel, bytes)) = read_frame(&mut theirs).await? {
            let failure = (channel == END).then(|| serde_json::from_slice::<Failed>(&bytes).ok()).flatten();
            match failure {
                Some(Failed { failure }) => write_frame(&mut to, END, &end(failure)).await?,
                None => write_frame(&mut to, channel, &bytes).await?,
            }
            if channel == END {
                return to.shutdown().await;
            }
        }
        let lost = TaskFailure::retryable("exec.lost", "can't say how the program ended", "its agent was lost")
            .next("see that the site's agents run: ocopea sites");
        write_frame(&mut to, END, &end(lost)).await?;
        to.shutdown().await
    };
    tokio::pin!(upwards, downwards);
    tokio::select! {
        carried = &mut downwards => carried,
        gone = &mut upwards => gone,
    }
}
