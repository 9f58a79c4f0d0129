//! The commands.

use std::{io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use tokio_util::task::TaskTracker;

use crate::{
    config::{Config, Database},
    load::{self, Sizes, data::INCIDENT, writer},
    model::Slug,
    store,
    version::{VERSION_FILE, Version},
    web, world,
};

/// How long a command waits for the database.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets-chat: a small chat service.
#[derive(Parser)]
#[command(name = "lets-chat", disable_version_flag = true)]
pub struct Cli {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The file that says which version this is
    #[arg(long, global = true, default_value = VERSION_FILE)]
    version_file: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct DatabaseArgs {
    /// Everything in one MongoDB: mongodb://HOST:PORT/NAME
    #[arg(long, env = "MONGODB_URI", hide_env_values = true, global = true)]
    mongodb_uri: Option<String>,
    /// PostgreSQL, with --uploads-dir: postgres://USER:PASSWORD@HOST:PORT/NAME
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    database_url: Option<String>,
    /// The uploads' directory beside PostgreSQL
    #[arg(long, env = "UPLOADS_DIR", global = true)]
    uploads_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the page and the API
    Serve {
        /// Where
        #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// What the page calls this installation
        #[arg(long, env = "LETS_CHAT_TITLE", default_value = "Lets-chat")]
        title: String,
    },
    /// Bring the database's schema to this version's
    Migrate,
    /// Fill an empty service with a seeded history, or keep writing to a running one
    Load(LoadArgs),
    /// Say how much there is, and the newest message
    Count,
    /// Check that everything fits together; fails when it doesn't
    Check {
        /// Messages by which the rooms' counters may be off in sum: a copy that was read while people wrote
        #[arg(long, default_value_t = 0)]
        allow_drift: u64,
    },
    /// Destroy visibly: delete a room's messages, garble the newest texts and one upload
    Damage {
        /// The room that loses its messages
        #[arg(long, default_value = INCIDENT)]
        room: String,
        /// Texts that are garbled
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=100_000))]
        texts: u32,
        /// Without it nothing is done
        #[arg(long)]
        yes: bool,
    },
    /// Say which version this is
    Version,
}

#[derive(Args)]
struct LoadArgs {
    /// The same seed and sizes give the same history
    #[arg(long, default_value_t = 4711)]
    seed: u64,
    /// All messages
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    messages: u32,
    /// Accounts
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    users: u32,
    /// Rooms
    #[arg(long, default_value_t = 18, value_parser = clap::value_parser!(u32).range(3..=500))]
    rooms: u32,
    /// Uploads, about 30 kB each
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    uploads: u32,
    /// The time of the last message, RFC 3339
    #[arg(long, default_value = "2026-11-02T15:30:00Z")]
    until: String,
    /// Delete everything that is there first
    #[arg(long)]
    replace: bool,
    /// Post to a running service instead, until stopped
    #[arg(long)]
    keep_writing: bool,
    /// With --keep-writing: messages a second
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    rate: u32,
    /// With --keep-writing: stop after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// With --keep-writing: the service
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
}

/// One line for people, or one object for programs: everything here prints JSON, a line per result.
fn print(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Runs a command; its exit status is 0, or 1 when `check` or the writer found something wrong.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let version = Version::of_this_machine(&cli.version_file)?;
    let DatabaseArgs { mongodb_uri, database_url, uploads_dir } = cli.database;
    let database = || Database::from_values(mongodb_uri, database_url, uploads_dir);
    let config = |title: String| anyhow::Ok(Config { version, database: database()?, title });
    let good = Ok(ExitCode::SUCCESS);
    match cli.command {
        Command::Version => {
            print(&serde_json::json!({ "version": version.to_string(), "schema": version.schema() }))?;
            good
        }
        Command::Serve { listen, title } => {
            web::serve(config(title)?, listen).await?;
            good
        }
        Command::Load(args) if args.keep_writing => keep_writing(&args).await,
        Command::Load(args) => {
            let sizes = sizes(&args)?;
            let store = ready(&config(String::new())?).await?;
            let loaded = load::load(&store, sizes, args.replace).await?;
            print(&serde_json::json!({
                "loaded": loaded.sizes.mark(), "thereBefore": loaded.before, "seconds": loaded.took.as_secs_f64(),
                "settingsThatTheServerRefused": loaded.refused, "signInAs": "dana", "password": load::PASSWORD,
            }))?;
            good
        }
        Command::Migrate => {
            let config = config(String::new())?;
            let store = store::connect(&config, PATIENCE).await?;
            let done = store.migrate().await.context("the schema couldn't be migrated")?;
            print(&serde_json::json!({ "schema": version.schema(), "done": done }))?;
            good
        }
        Command::Count => {
            let store = ready(&config(String::new())?).await?;
            print(&store.counts().await?)?;
            good
        }
        Command::Check { allow_drift } => {
            let store = ready(&config(String::new())?).await?;
            let findings = store.check().await?;
            print(&findings)?;
            let fits = findings.broken == 0 && findings.drift <= allow_drift;
            Ok(if fits { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Damage { room, texts, yes } => {
            let room = Slug::parse(&room)?;
            anyhow::ensure!(yes, "this destroys messages of room {room} and {texts} texts: say --yes");
            let store = ready(&config(String::new())?).await?;
            print(&store.damage(&room, texts).await?)?;
            good
        }
    }
}

/// The store, reached and with this version's schema.
async fn ready(config: &Config) -> anyhow::Result<std::sync::Arc<dyn store::Storage>> {
    let store = store::connect(config, PATIENCE).await?;
    store.schema().await?.suits(config.version)?;
    Ok(store)
}

fn sizes(args: &LoadArgs) -> anyhow::Result<Sizes> {
    let wide = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    Ok(Sizes {
        seed: args.seed,
        messages: wide(args.messages),
        users: wide(args.users),
        rooms: wide(args.rooms),
        uploads: wide(args.uploads),
        until: world::parse_rfc3339(&args.until)
            .with_context(|| format!("--until {:?} is no time such as 2026-11-02T15:30:00Z", args.until))?,
    })
}

async fn keep_writing(args: &LoadArgs) -> anyhow::Result<ExitCode> {
    let tracker = TaskTracker::new();
    let stop = world::stop_signal(&tracker)?;
    let writing = writer::Writing {
        url: args.url.clone(),
        rate: args.rate,
        span: args.seconds.map(Duration::from_secs),
        seed: args.seed,
    };
    let written = writer::keep_writing(&writing, &stop, |so_far| {
        tracing::info!(posted = so_far.posted, failed = so_far.failed, "writing");
    })
    .await;
    stop.cancel();
    let written = written?;
    print(&written)?;
    Ok(if written.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
