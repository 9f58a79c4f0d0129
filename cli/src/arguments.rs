//! What can be typed.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    output::parse_rate,
    programs::{agent::AgentProgram, coordinator::CoordinatorProgram, settings::Given},
};

/// Copies whole running applications: containers, configuration and all data.
#[derive(Debug, Parser)]
#[command(
    name = "ocopea",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  ocopea up --site desk=kind-desk,registry=http://localhost:5000/apps --site lab=kind-lab
  ocopea applications
  ocopea save desk/lets-chat --name \"messages in wrong order\" --label bug=4711
  ocopea restore \"messages in wrong order\" --site lab --as debug-4711
  ocopea environments

Exit status: 1 failed, 2 usage, 3 not found, 4 refused, 5 conflict, 6 unreachable"
)]
pub struct Arguments {
    /// Where the coordinator is
    #[arg(long, global = true, env = "OCOPEA_URL", help_heading = "Connection")]
    pub url: Option<String>,
    /// The token to use instead of the one that signing in left
    #[arg(long, global = true, env = "OCOPEA_TOKEN", hide_env_values = true, help_heading = "Connection")]
    pub token: Option<String>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

/// How lists and things are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// For people and programs
    Yaml,
    /// Names or ids, one a line
    Name,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs coordinator, catalog and an agent per site in this process
    Up(Up),
    /// Runs a coordinator on PostgreSQL, RabbitMQ and S3; several may run side by side
    #[command(after_help = "\
Example:
  ocopea coordinator --config /etc/ocopea/coordinator.toml
  ocopea coordinator --config /etc/ocopea/coordinator.toml sign-in-code

Every setting may also stand in the environment: OCOPEA_CATALOG for --catalog, and so on. Flags go before the environment,
and that before the file. Passwords are read from files. docs/fleet.md has a whole example.")]
    Coordinator {
        #[command(flatten)]
        settings: Given<CoordinatorProgram>,
        #[command(subcommand)]
        command: Option<CoordinatorCommand>,
    },
    /// Runs an agent beside a cluster; it dials out only
    #[command(after_help = "\
Examples:
  ocopea agent --coordinator https://ocopea.example --join-token join_… --context kind-desk --registry registry.desk/apps
  ocopea agent --context kind-desk --registry registry.desk/apps

The token is needed once: what it brought is kept in the file that --identity names, for several agents of the site, too.
Every setting may also stand in the environment (OCOPEA_REGISTRY for --registry) or in the --config file.")]
    Agent {
        #[command(flatten)]
        settings: Given<AgentProgram>,
    },
    /// Joins this machine's cluster to a coordinator, as a site that only you see, for as long as it runs
    #[command(after_help = "\
Examples:
  ocopea join https://ocopea.example --context kind-kind --registry http://localhost:5001/ocopea
  ocopea join --context kind-kind
  ocopea join 'https://ocopea.example/sign-in?code=code_…' --context minikube --as laptop

Then, in another shell: ocopea restore IMAGE --site NAME --as COPY. It dials out only, and goes on where it was when it is
started again.")]
    Join(Join),
    /// Exchanges a sign-in code for a token, and keeps it for this shell's user
    #[command(after_help = "Example:\n  ocopea sign-in 'http://127.0.0.1:8700/sign-in?code=code_…'")]
    SignIn {
        /// The address that `ocopea up` printed, with its code
        url: String,
    },
    /// Shows how the installation is doing, and what somebody should look at
    #[command(after_help = "Examples:\n  ocopea status\n  ocopea status -o json | jq -r '.worries[].what'")]
    Status,
    /// Lists messages that nobody could read, and why
    #[command(after_help = "\
Example:
  ocopea quarantine

They stay where they are, in the broker's queue of that name: look at them there, and purge it when you have seen enough.")]
    Quarantine,
    /// Lists the sites and what they can do; adds and removes sites
    #[command(
        after_help = "Examples:\n  ocopea sites\n  ocopea sites -o json | jq -r '.[] | select(.state != \"ready\") | .why'\n  ocopea sites add desk"
    )]
    #[command(args_conflicts_with_subcommands = true)]
    Sites {
        #[command(subcommand)]
        command: Option<Sites>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Lists what runs at the sites
    #[command(after_help = "Examples:\n  ocopea applications --site desk\n  ocopea applications -o name")]
    Applications {
        /// Only at this site
        #[arg(long)]
        site: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Shows what a save of an application would find, and what it would leave out and why
    #[command(after_help = "Examples:\n  ocopea inspect desk/lets-chat\n  ocopea inspect desk/shop?app=cart -o json")]
    Inspect(Source),
    /// Saves a running application as an image
    #[command(after_help = "\
Examples:
  ocopea save desk/lets-chat --name \"messages in wrong order\" --label bug=4711 --comment \"seen by accident\"
  ocopea save desk/shop?app=cart --without mailer --credentials db=admin:PASSWORD")]
    Save(Save),
    /// Restores an image in a new environment
    #[command(after_help = "\
Examples:
  ocopea restore 019d2c51-… --site lab --as debug-4711 --dry-run
  ocopea restore \"messages in wrong order\" --site lab --as debug-4711 --set lets-chat=1.4.2")]
    Restore(Restore),
    /// Lists saved images
    #[command(
        after_help = "Examples:\n  ocopea images wrong order\n  ocopea images --label bug=4711 --by dana --since 7d\n  ocopea images --application shop --since 2026-11-01 -o name"
    )]
    Images(Images),
    /// Shows one image
    #[command(
        after_help = "Examples:\n  ocopea show \"messages in wrong order\"\n  ocopea show 019d2c51-… -o json | jq .body.components"
    )]
    Show {
        /// Its id, or its name
        image: String,
    },
    /// Sets labels of an image (NAME=VALUE), or takes them away (NAME-)
    #[command(after_help = "Example:\n  ocopea label \"messages in wrong order\" bug=4711 seen-")]
    Label {
        /// Its id, or its name
        image: String,
        /// NAME=VALUE or NAME-
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Comments on an image
    #[command(after_help = "Example:\n  ocopea comment \"messages in wrong order\" \"it is the room #incident-4711\"")]
    Comment {
        /// Its id, or its name
        image: String,
        /// What to say
        text: String,
    },
    /// Deletes an image
    #[command(
        after_help = "Examples:\n  ocopea rm 019d2c51-…\n  ocopea images --application shop --before 90d -o name | xargs -n 1 ocopea rm"
    )]
    Rm {
        /// Its id, or its name
        image: String,
    },
    /// Lists environments
    #[command(
        after_help = "Examples:\n  ocopea environments --watch\n  ocopea environments -o json | jq -r \".[].url\""
    )]
    Environments {
        #[command(flatten)]
        watch: Watch,
    },
    /// Prints an environment's logs
    #[command(after_help = "Examples:\n  ocopea logs debug-4711\n  ocopea logs debug-4711 lets-chat -f")]
    Logs {
        /// The environment
        environment: String,
        /// Only this component
        component: Option<String>,
        /// Go on as lines come
        #[arg(short, long)]
        follow: bool,
    },
    /// Runs a program in a container of an environment
    #[command(after_help = "\
Examples:
  ocopea exec debug-4711 lets-chat -- /lets-chat count
  ocopea exec debug-4711 postgres -- psql -U postgres chat
  echo 'db.stats()' | ocopea exec debug-4711 mongo -- mongosh --quiet
With a terminal on both sides it is an interactive session; else input and output are passed on as they are. Ends with
the program's own exit status.")]
    Exec {
        /// The environment
        environment: String,
        /// A workload, pod, container or image; needed when several run
        component: Option<String>,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Opens a loopback port to a service of an environment, until interrupted
    #[command(
        after_help = "Examples:\n  ocopea connect debug-4711 mongo\n  ocopea connect debug-4711 postgres --port 15432"
    )]
    Connect {
        /// The environment
        environment: String,
        /// The Service or data service
        service: String,
        /// The port to listen on
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Removes an environment: exactly what was made for it
    #[command(after_help = "Example:\n  ocopea remove debug-4711")]
    Remove {
        /// The environment
        environment: String,
    },
    /// Lists operations, shows or watches one
    #[command(
        after_help = "Examples:\n  ocopea operations\n  ocopea operations --watch\n  ocopea operations watch 019d2c51-…"
    )]
    #[command(args_conflicts_with_subcommands = true)]
    Operations {
        #[command(subcommand)]
        command: Option<Operations>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Stops an operation; what it made is taken back
    #[command(after_help = "Example:\n  ocopea cancel 019d2c51-…")]
    Cancel {
        /// Its id
        operation: String,
    },
    /// Lists the copy repositories; adds, shows and removes them
    #[command(after_help = "\
Examples:
  ocopea repositories
  ocopea repositories add archive 's3://copies/archive?region=eu-west-1' --profile archive
  ocopea repositories default archive
  ocopea save desk/lets-chat --repository archive")]
    #[command(args_conflicts_with_subcommands = true)]
    Repositories {
        #[command(subcommand)]
        command: Option<Repositories>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Looks after the default copy repository, or another one
    #[command(
        after_help = "Examples:\n  ocopea repository verify\n  ocopea repository --repository archive collect --grace 24h\n  ocopea repository key rotate"
    )]
    Repository {
        /// Which; the default one unless given. Keys are those of all repositories
        #[arg(long, global = true)]
        repository: Option<String>,
        #[command(subcommand)]
        command: RepositoryCommand,
    },
    /// Makes, lists and revokes API tokens
    #[command(
        after_help = "Examples:\n  ocopea tokens\n  ocopea tokens create pipeline --scope operator\n  ocopea tokens revoke 019d2c51-…"
    )]
    Tokens {
        #[command(subcommand)]
        command: Option<Tokens>,
    },
    /// Prints completions for a shell
    #[command(
        after_help = "Examples:\n  source <(ocopea completions bash)\n  ocopea completions zsh > ~/.zfunc/_ocopea\n  ocopea completions fish > ~/.config/fish/completions/ocopea.fish"
    )]
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  ocopea up --site desk=kind-desk,registry=http://localhost:5000/apps --site lab=kind-lab,registry=registry.lab/apps
  ocopea up --site desk=kind-desk --repository 's3://copies/team?region=eu-west-1'

Keys of a bucket come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or web identity: docs/s3.md")]
pub struct Up {
    /// A site: NAME=CONTEXT[,registry=[http://]HOST/PATH], CONTEXT from the kubeconfig; may be given several times
    #[arg(long = "site", required = true, value_name = "NAME=CONTEXT[,registry=…]")]
    pub sites: Vec<String>,
    /// Where catalog, repository and keys lie
    #[arg(long, env = "OCOPEA_DATA")]
    pub data: Option<PathBuf>,
    /// A bucket as repository instead of a directory: s3://BUCKET/PREFIX[?endpoint=URL&region=R&path-style=true].
    /// Remembered from the first start on
    #[arg(long, env = "OCOPEA_REPOSITORY", value_name = "s3://BUCKET/PREFIX[?…]")]
    pub repository: Option<String>,
    /// Requests to that bucket at the same time; 32 unless given
    #[arg(long, env = "OCOPEA_REPOSITORY_REQUESTS", value_name = "N")]
    pub repository_requests: Option<u32>,
    /// What may be sent to the repository: 50MiB/s; as much as there is room for unless given
    #[arg(long, env = "OCOPEA_REPOSITORY_UPLOAD_LIMIT", value_name = "BYTES/s", value_parser = parse_rate)]
    pub repository_upload_limit: Option<u64>,
    /// What may be read from the repository; likewise
    #[arg(long, env = "OCOPEA_REPOSITORY_DOWNLOAD_LIMIT", value_name = "BYTES/s", value_parser = parse_rate)]
    pub repository_download_limit: Option<u64>,
    /// Copies at the same time, at each site
    #[arg(long, env = "OCOPEA_COPIES", value_name = "N", default_value_t = 4)]
    pub copies: u32,
    /// What may be sent to all repositories together: 50MiB/s; as much as there is room for unless given
    #[arg(long, env = "OCOPEA_UPLOAD_LIMIT", value_name = "BYTES/s", value_parser = parse_rate)]
    pub upload_limit: Option<u64>,
    /// What may be read from all repositories together; likewise
    #[arg(long, env = "OCOPEA_DOWNLOAD_LIMIT", value_name = "BYTES/s", value_parser = parse_rate)]
    pub download_limit: Option<u64>,
    /// The address to serve at
    #[arg(long, default_value = "127.0.0.1:8700")]
    pub listen: String,
    /// The kubeconfig; else $KUBECONFIG, else ~/.kube/config
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The image of the pods that read and write volumes
    #[arg(long)]
    pub mover_image: Option<String>,
    /// Serves metrics for Prometheus at this address, without tokens
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub struct Join {
    /// The coordinator; else the one that this shell's user is signed in at. With a sign-in code, that is used first
    #[arg(value_name = "URL")]
    pub address: Option<String>,
    /// The cluster, as the kubeconfig calls it
    #[arg(long)]
    pub context: String,
    /// The site's name; your own and the context's unless given
    #[arg(long = "as", value_name = "NAME")]
    pub name: Option<String>,
    /// The kubeconfig; else $KUBECONFIG, else ~/.kube/config
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The registry that restores push to and the cluster's nodes pull from
    #[arg(long, value_name = "[http://]HOST/PATH")]
    pub registry: Option<String>,
    /// The image of the pods that read and write volumes
    #[arg(long)]
    pub mover_image: Option<String>,
    /// What makes this the site's agent (0600); else a file of that context's name below ~/.local/share/ocopea/agents
    #[arg(long)]
    pub identity: Option<PathBuf>,
    /// Certificates (PEM) that the coordinator is checked against, beside the system's
    #[arg(long)]
    pub coordinator_certificates: Option<PathBuf>,
}

/// Whether a list is followed.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Watch {
    /// Go on, and show what changes
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct Source {
    /// SITE/NAMESPACE[?SELECTOR]
    pub application: String,
    /// Leaves out a component, an object (kind/name) or a gap by name; may be given several times
    #[arg(long)]
    pub without: Vec<String>,
    /// Other credentials for a data service: SERVICE=USER:PASSWORD
    #[arg(long, value_name = "SERVICE=USER:PASSWORD")]
    pub credentials: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Save {
    #[command(flatten)]
    pub source: Source,
    /// The image's name; the application and the time unless given
    #[arg(long)]
    pub name: Option<String>,
    /// A label, NAME=VALUE; may be given several times
    #[arg(long = "label")]
    pub labels: Vec<String>,
    /// A comment
    #[arg(long, default_value = "")]
    pub comment: String,
    /// Hold writes while data is copied, 300 seconds at most: locks servers without snapshots, and scales to zero what
    /// writes to volumes
    #[arg(long)]
    pub freeze: bool,
    /// The repository; the default one unless given
    #[arg(long)]
    pub repository: Option<String>,
    /// Don't wait: print the operation's id
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// The image's id, or its name where only one has it
    pub image: String,
    /// The site
    #[arg(long)]
    pub site: String,
    /// The environment's name
    #[arg(long = "as", value_name = "NAME")]
    pub name: String,
    /// Another version of a component: COMPONENT=TAG or COMPONENT=@DIGEST
    #[arg(long = "set", value_name = "COMPONENT=VERSION")]
    pub versions: Vec<String>,
    /// Only prints what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Executes exactly the plan of this digest, or nothing
    #[arg(long, value_name = "DIGEST")]
    pub approve: Option<String>,
    /// Don't wait: print the operation's id
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub struct Images {
    /// Words that must all occur
    pub words: Vec<String>,
    /// Label: NAME or NAME=VALUE
    #[arg(long)]
    pub label: Option<String>,
    /// The application
    #[arg(long)]
    pub application: Option<String>,
    /// Who saved it
    #[arg(long)]
    pub by: Option<String>,
    /// The site it was saved at
    #[arg(long)]
    pub site: Option<String>,
    /// The repository it lies in
    #[arg(long)]
    pub repository: Option<String>,
    /// Not older than this: 90m, 12h, 7d, 2026-11-25 or 2026-11-25T08:30:00Z
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// Older than this: 90m, 12h, 7d, 2026-11-25 or 2026-11-25T08:30:00Z
    #[arg(long, value_name = "WHEN")]
    pub before: Option<String>,
    #[command(flatten)]
    pub watch: Watch,
}

#[derive(Debug, Subcommand)]
pub enum Operations {
    /// Shows one with its tasks
    #[command(after_help = "Example:\n  ocopea operations show 019d2c51-…")]
    Show {
        /// Its id
        id: String,
    },
    /// Follows one until it is over
    #[command(after_help = "Example:\n  ocopea operations watch 019d2c51-…")]
    Watch {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Repositories {
    /// Lists them
    #[command(after_help = "Example:\n  ocopea repositories list -o name")]
    List,
    /// Adds one: tries with real objects what its store can, and makes the repository where there is none
    #[command(after_help = "\
Examples:
  ocopea repositories add archive 's3://copies/archive?region=eu-west-1'
  ocopea repositories add archive 's3://copies?endpoint=https://s3.example.com' --access-key-id AKIA… --secret-key-file key
  ocopea repositories add cellar /srv/cellar --upload-limit 50MiB/s

Unless said otherwise, the keys of the bucket are those of the coordinator's environment; agents get them with their tasks.")]
    Add(Box<AddRepository>),
    /// Changes keys or limits of one that was added; what isn't given stays
    #[command(
        after_help = "Examples:\n  ocopea repositories change archive --access-key-id AKIA… --secret-key-file key\n  ocopea repositories change archive --upload-limit 20MiB/s"
    )]
    Change(Box<ChangeRepository>),
    /// Shows one: where it lies, what its store can, what lies in it
    #[command(after_help = "Example:\n  ocopea repositories show archive")]
    Show {
        /// Its name
        name: String,
    },
    /// Forgets one and how it is got at; nothing in it is deleted. Refused while images lie in it
    #[command(after_help = "Example:\n  ocopea repositories remove archive")]
    Remove {
        /// Its name
        name: String,
    },
    /// Has saves go there that name no repository
    #[command(after_help = "Example:\n  ocopea repositories default archive")]
    Default {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct AddRepository {
    /// Its name: a-z, 0-9, '-'
    pub name: String,
    /// s3://BUCKET/PREFIX[?endpoint=URL&region=R&path-style=true], or a directory where agents are in the same process
    pub location: String,
    #[command(flatten)]
    pub keys: KeyOptions,
    /// Agents have keys of their own: tasks bring none
    #[arg(long)]
    pub agents_have_keys: bool,
    #[command(flatten)]
    pub limits: LimitOptions,
}

#[derive(Debug, Args)]
pub struct ChangeRepository {
    /// Its name
    pub name: String,
    #[command(flatten)]
    pub keys: KeyOptions,
    /// Keys of the coordinator's environment
    #[arg(long, conflicts_with_all = ["profile", "role", "access_key_id"])]
    pub environment: bool,
    /// Whether agents have keys of their own
    #[arg(long, value_name = "true|false")]
    pub agents_have_keys: Option<bool>,
    #[command(flatten)]
    pub limits: LimitOptions,
    /// Takes all limits away
    #[arg(long, conflicts_with_all = ["requests", "upload_limit", "download_limit"])]
    pub no_limits: bool,
}

#[derive(Debug, Args)]
pub struct KeyOptions {
    /// Keys of this profile of the tools of AWS, at the coordinator
    #[arg(long, conflicts_with_all = ["role", "access_key_id"])]
    pub profile: Option<String>,
    /// Keys that a token service lends for this role: web identity, with the token file and the service of the
    /// coordinators' environment (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ENDPOINT_URL_STS)
    #[arg(long, conflicts_with = "access_key_id")]
    pub role: Option<String>,
    /// The id of a key; its secret is read from --secret-key-file and kept sealed
    #[arg(long, value_name = "ID", requires = "secret_key_file")]
    pub access_key_id: Option<String>,
    /// The file with the key's secret
    #[arg(long, value_name = "FILE", requires = "access_key_id")]
    pub secret_key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LimitOptions {
    /// Requests of each process to its store at the same time; 32 to a bucket unless given
    #[arg(long, value_name = "N")]
    pub requests: Option<u32>,
    /// What each process may send to it: 50MiB/s; as much as there is room for unless given
    #[arg(long, value_name = "BYTES/s", value_parser = parse_rate)]
    pub upload_limit: Option<u64>,
    /// What each process may read from it; likewise
    #[arg(long, value_name = "BYTES/s", value_parser = parse_rate)]
    pub download_limit: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum RepositoryCommand {
    /// Reads everything back and names what is broken, with every image that it affects
    #[command(
        after_help = "Examples:\n  ocopea repository verify\n  ocopea repository verify --image \"messages in wrong order\""
    )]
    Verify {
        /// Only this image
        #[arg(long)]
        image: Option<String>,
    },
    /// Deletes what no image needs any more
    #[command(after_help = "Example:\n  ocopea repository collect --grace 24h")]
    Collect {
        /// Time between being found dead and being deleted: 0s, 90m, 24h
        #[arg(long, default_value = "1h")]
        grace: String,
    },
    /// Brings images that the catalog lacks back from the repository
    #[command(after_help = "Example:\n  ocopea repository reindex")]
    Reindex,
    /// Looks after the keys that the repository is opened with
    #[command(after_help = "Examples:\n  ocopea repository key list\n  ocopea repository key rotate")]
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Lists the keys' ids
    #[command(after_help = "Example:\n  ocopea repository key list -o name")]
    List,
    /// Adds a new key: it opens everything, as the others do
    #[command(after_help = "Example:\n  ocopea repository key add")]
    Add,
    /// Adds a new key, and has images that are saved from now on use new team keys
    #[command(after_help = "Example:\n  ocopea repository key rotate")]
    Rotate,
    /// Takes a key away: it opens nothing any more
    #[command(after_help = "Example:\n  ocopea repository key remove 1f0c…")]
    Remove {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum CoordinatorCommand {
    /// Prints an address that signs the first user in, once, for ten minutes
    #[command(after_help = "Example:\n  ocopea coordinator sign-in-code")]
    SignInCode,
    /// Makes the key files of a new installation, for a Secret that coordinators only read
    #[command(after_help = "Example:\n  ocopea coordinator make-keys keys")]
    MakeKeys {
        /// The directory that they are written to; what is there already is kept
        directory: std::path::PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum Sites {
    /// Adds a site, and prints what its first agent is started with
    #[command(after_help = "Examples:\n  ocopea sites add desk\n  ocopea sites add lab --expires 30m -o name")]
    Add {
        /// Its name: lower-case letters, digits, '-'
        name: String,
        /// For how long the token works: 30m, 12h, 7d; a day unless given
        #[arg(long)]
        expires: Option<String>,
    },
    /// Removes a site: its agents are let in no more, at once; what runs there goes on running
    #[command(after_help = "Example:\n  ocopea sites remove desk")]
    Remove {
        /// Its name, or its id
        name: String,
    },
    /// Accepts a site that came with an enrolment key and waits
    #[command(after_help = "Example:\n  ocopea sites approve desk")]
    Approve {
        /// Its name, or its id
        name: String,
    },
    /// Shows where an image can run, and why not elsewhere
    #[command(
        after_help = "Examples:\n  ocopea sites for \"messages in wrong order\"\n  ocopea sites for 019d2c51-… -o name   # only where it can run"
    )]
    For {
        /// Its id, or its name
        image: String,
    },
    /// Lists, makes and revokes enrolment keys: one for many sites, which name themselves
    #[command(
        after_help = "Examples:\n  ocopea sites keys\n  ocopea sites keys create shops --names 'shop-*' --uses 50\n  ocopea sites keys revoke 019d2c51-…"
    )]
    Keys {
        #[command(subcommand)]
        command: Option<EnrolmentKeys>,
    },
}

#[derive(Debug, Subcommand)]
pub enum EnrolmentKeys {
    /// Makes an enrolment key and prints it once
    #[command(
        after_help = "Examples:\n  ocopea sites keys create shops --names 'shop-*' --uses 50 --expires 7d\n  ocopea sites keys create lab --names 'lab-*' --uses 3 --approves"
    )]
    Create {
        /// What it is for
        name: String,
        /// Names that sites may give themselves; * stands for any letters
        #[arg(long)]
        names: String,
        /// How many sites may come with it
        #[arg(long)]
        uses: u32,
        /// Accept them at once; else each waits for `ocopea sites approve`
        #[arg(long)]
        approves: bool,
        /// For how long it works: 30m, 12h, 7d; a day unless given
        #[arg(long)]
        expires: Option<String>,
    },
    /// Ends an enrolment key or join token at once; sites that came with it stay
    #[command(after_help = "Example:\n  ocopea sites keys revoke 019d2c51-…")]
    Revoke {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Tokens {
    /// Makes a token and prints it once
    #[command(after_help = "Example:\n  ocopea tokens create pipeline --scope viewer")]
    Create {
        /// What it is for
        name: String,
        /// viewer, operator or administrator
        #[arg(long, default_value = "operator")]
        scope: String,
        /// For how long it works: 90d, 12h, 30m; without end unless given
        #[arg(long)]
        expires: Option<String>,
    },
    /// Ends a token at once
    #[command(after_help = "Example:\n  ocopea tokens revoke 019d2c51-…")]
    Revoke {
        /// Its id
        id: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn each(command: &clap::Command, seen: &mut impl FnMut(&clap::Command)) {
        seen(command);
        command.get_subcommands().filter(|one| one.get_name() != "help").for_each(|one| each(one, seen));
    }

    #[test]
    fn what_can_be_typed_fits_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_commands_help_has_an_example_of_it() {
        let mut whole = Arguments::command();
        whole.build();
        each(&whole, &mut |command| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let name = command.get_bin_name().unwrap_or_default();
            assert!(help.contains("Example") && help.contains(name), "{name}");
        });
    }

    #[test]
    fn every_example_can_be_typed() {
        let mut whole = Arguments::command();
        whole.build();
        let mut tried = 0;
        each(&whole, &mut |command| {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines().filter_map(|line| line.strip_prefix("  ocopea")) {
                let line = format!("ocopea{}", line.split(['|', '>', ';', '#']).next().unwrap_or_default());
                // Words as a shell has them: what stands in quotes is one.
                let mut words = vec![String::new()];
                let mut quote = None;
                for c in line.trim().chars() {
                    match (c, quote) {
                        ('"' | '\'', None) => quote = Some(c),
                        (c, Some(open)) if c == open => quote = None,
                        (' ', None) => words.push(String::new()),
                        (c, _) => words.last_mut().unwrap().push(c),
                    }
                }
                let parsed = Arguments::try_parse_from(&words);
                assert!(parsed.is_ok(), "{words:?}: {}", parsed.err().unwrap());
                tried += 1;
            }
        });
        assert!(tried > 30, "{tried}");
    }
}
