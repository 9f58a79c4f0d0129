//! A real S3 server for each test binary, and a bucket for each test. `tests/testbed/s3.sh` has it.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use ocopea_protocol::{
    image::{Location, StoreKeys},
    secret::Secret,
};
use ocopea_repository::{
    StoreAccess,
    backend::s3::{KeySource, Patience},
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/testbed/s3.sh");

/// What a test waits for a store.
pub const HASTY: Patience = Patience {
    connect: Duration::from_secs(10),
    answer: Duration::from_secs(20),
    stall: Duration::from_secs(10),
    slowest: 16 << 10,
    tries: 5,
    first_wait: Duration::from_millis(20),
    longest_wait: Duration::from_millis(200),
    whole: Duration::from_secs(120),
};

/// A server; ends when the test's process does, however that ends.
pub struct Server {
    place: PathBuf,
    said: BTreeMap<String, String>,
    /// Its input is what the server watches.
    _child: Child,
    _place: tempfile::TempDir,
}

/// What a bucket keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    Objects,
    Versions,
    Locked,
}

fn run(place: &Path, options: &[&str]) -> (Child, BTreeMap<String, String>) {
    let mut command = Command::new(SCRIPT);
    command.arg("run").arg(place).args(options).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = BTreeMap::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "READY" {
            return (child, said);
        }
        if let Some((name, value)) = line.split_once('=') {
            said.insert(name.to_owned(), value.to_owned());
        }
    }
    panic!("the S3 server didn't start: {:?}", child.wait());
}

impl Server {
    pub fn start(options: &[&str]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("s3");
        let (child, said) = run(&place, options);
        Self { place, said, _child: child, _place: directory }
    }

    /// The one of this process, which can keep versions.
    pub fn of_process() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(&["versioning"]))
    }

    pub fn endpoint(&self) -> String {
        self.said["ENDPOINT"].clone()
    }

    pub fn ca(&self) -> Vec<u8> {
        std::fs::read(&self.said["CA"]).unwrap()
    }

    pub fn keys(&self) -> StoreKeys {
        keys(&self.said["KEY_ID"], &self.said["SECRET"])
    }

    pub fn access(&self) -> StoreAccess {
        access(self.keys())
    }

    fn script(&self, command: &str, arguments: &[&str]) {
        let status = Command::new(SCRIPT).arg(command).arg(&self.place).args(arguments).status().unwrap();
        assert!(status.success(), "{command} {arguments:?}");
    }

    /// A new bucket.
    pub fn bucket(&self, keeps: Keeps) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let bucket = format!("copies-{}", NUMBER.fetch_add(1, SeqCst));
        let kind = match keeps {
            Keeps::Objects => "",
            Keeps::Versions => "versioned",
            Keeps::Locked => "locked",
        };
        self.script("bucket", &[&bucket, kind]);
        bucket
    }

    pub fn location(&self, bucket: &str) -> Location {
        location(&self.endpoint(), bucket)
    }

    /// An account; what it may do is said by policies.
    pub fn user(&self, id: &str, secret: &str) -> StoreKeys {
        self.script("user", &[id, secret]);
        keys(id, secret)
    }

    /// Ends an account at once.
    pub fn no_user(&self, id: &str) {
        self.script("no-user", &[id]);
    }

    /// Lets accounts do these things in a bucket, and nothing else.
    pub fn policy(&self, bucket: &str, users: &[&str], actions: &[&str]) {
        let statement = serde_json::json!({"Statement": [
            {"Effect": "Allow", "Principal": {"AWS": users}, "Action": actions,
             "Resource": [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")]},
        ]});
        let file = self.place.join(format!("{bucket}.json"));
        std::fs::write(&file, statement.to_string()).unwrap();
        self.script("policy", &[bucket, file.to_str().unwrap()]);
    }

    /// Where the server keeps a bucket: a file for each object.
    pub fn files(&self, bucket: &str) -> PathBuf {
        self.place.join("data").join(bucket)
    }
}

pub fn keys(id: &str, secret: &str) -> StoreKeys {
    StoreKeys { id: id.to_owned(), secret: Secret::new(secret), token: None, expires: None }
}

pub fn access(keys: StoreKeys) -> StoreAccess {
    let mut access = StoreAccess::with_keys(KeySource::Static(keys));
    access.patience = HASTY;
    access
}

pub fn location(endpoint: &str, bucket: &str) -> Location {
    Location::S3 {
        endpoint: endpoint.to_owned(),
        region: "us-east-1".to_owned(),
        bucket: bucket.to_owned(),
        prefix: "repo".to_owned(),
        path_style: true,
    }
}
