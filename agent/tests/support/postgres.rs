//! Real PostgreSQL servers for tests: started on a free port of the loopback interface, gone with the test.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use tempfile::TempDir;

/// The administrator's password of every test server.
pub const PASSWORD: &str = "Administrat0r's \"secret\"";

/// A running server. Dropped, it is killed at once and its files are removed.
pub struct Postgres {
    directory: TempDir,
    child: Child,
    settings: Vec<(String, String)>,
    pub port: u16,
}

/// Where PostgreSQL's own programs are.
pub fn binaries() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    found.retain(|path| path.join("initdb").exists());
    found.sort();
    found.pop().expect("PostgreSQL's server is not installed: apt-get install postgresql")
}

/// A command that runs as a user that PostgreSQL accepts, and that dies with this thread.
fn as_server_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.arg("--").arg(program).current_dir("/");
    command
}

fn root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map(|own| own.uid() == 0).unwrap_or(false)
}

/// A cluster is made once and then copied: `initdb` takes longer than most tests.
fn template() -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let version = binaries().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let user = if root() { "root" } else { "user" };
    let place = std::env::temp_dir().join(format!("ocopea-test-postgres-{version}-{user}"));
    if place.join("data/PG_VERSION").exists() {
        return place.join("data");
    }
    let making = TempDir::new_in(std::env::temp_dir()).unwrap();
    let password = making.path().join("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    if root() {
        run(Command::new("chown").arg("-R").arg("postgres:postgres").arg(making.path()));
    }
    run(as_server_user(&binaries().join("initdb"))
        .args(["--no-sync", "--auth=scram-sha-256", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"])
        .arg("--pwfile")
        .arg(&password)
        .arg("-D")
        .arg(making.path().join("data")));
    // Another test's process may have been faster: then its template is as good.
    let _ = std::fs::rename(making.path(), &place);
    place.join("data")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Postgres {
    /// Starts a server of its own, with further settings.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        run(Command::new("cp").arg("-a").arg(template()).arg(directory.path().join("data")));
        Self::start_in(directory, settings).unwrap_or_else(|| Self::start(settings))
    }

    /// Starts a server that follows `primary` and takes nothing but reads.
    #[allow(dead_code, reason = "each test takes what it needs")]
    pub fn standby(primary: &Self) -> Self {
        let directory = TempDir::new().unwrap();
        if root() {
            run(Command::new("chown").arg("postgres:postgres").arg(directory.path()));
        }
        run(as_server_user(&binaries().join("pg_basebackup"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-R", "-c", "fast", "-p", &primary.port.to_string(), "-D"])
            .arg(directory.path().join("data"))
            .env("PGPASSWORD", PASSWORD));
        Self::start_in(directory, &[]).expect("the standby's port was taken")
    }

    /// `None` when somebody else took the port in between.
    fn start_in(directory: TempDir, settings: &[(&str, &str)]) -> Option<Self> {
        if root() {
            run(Command::new("chown").arg("postgres:postgres").arg(directory.path()));
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let settings: Vec<_> = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let child = Self::spawn(&directory, port, &settings);
        let mut server = Self { directory, child, settings, port };
        server.wait_until_up().then_some(server)
    }

    fn spawn(directory: &TempDir, port: u16, settings: &[(String, String)]) -> Child {
        let mut command = as_server_user(&binaries().join("postgres"));
        command.arg("-D").arg(directory.path().join("data")).arg("-p").arg(port.to_string());
        let own = [
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            ("fsync", "off"),
            ("wal_level", "logical"),
            ("log_min_messages", "fatal"),
        ];
        let settings = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.into_iter().chain(settings) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Stops it in the midst of everything and starts it again, as `pg_ctl restart -m immediate` does, away for a while in between.
    #[allow(dead_code, reason = "each test takes what it needs")]
    pub fn restart(&mut self, away: Duration) {
        run(Command::new("kill").args(["-QUIT", &self.child.id().to_string()]));
        self.child.wait().unwrap();
        pause(away);
        self.child = Self::spawn(&self.directory, self.port, &self.settings);
        assert!(self.wait_until_up(), "PostgreSQL doesn't start again");
    }

    fn wait_until_up(&mut self) -> bool {
        for _ in 0..300 {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            let answer = self.command("pg_isready").arg("-q").status().unwrap();
            if answer.success() {
                return true;
            }
            pause(Duration::from_millis(50));
        }
        panic!("PostgreSQL doesn't start: {}", std::fs::read_to_string(self.directory.path().join("log")).unwrap());
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// A client program that reaches this server as its administrator.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binaries().join(program));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
            command.env_remove(name);
        }
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", PASSWORD)
            .env("PGCLIENTENCODING", "UTF8")
            .current_dir("/");
        command
    }

    /// Runs a script; answers what it prints.
    pub fn psql(&self, database: &str, script: &str) -> String {
        self.try_psql(database, script).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a script; answers what it prints, or the error.
    pub fn try_psql(&self, database: &str, script: &str) -> Result<String, String> {
        let mut child = self
            .command("psql")
            .env("PGDATABASE", database)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let script = script.to_owned();
        let feed = std::thread::Builder::new()
            .spawn(move || {
                let _ = input.write_all(script.as_bytes());
            })
            .unwrap();
        let output = child.wait_with_output().unwrap();
        feed.join().unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Starts a script that goes on beside the test.
    #[allow(dead_code, reason = "each test takes what it needs")]
    pub fn psql_beside(&self, database: &str, script: &str) -> Beside {
        let mut child = self
            .command("psql")
            .env("PGDATABASE", database)
            .args(["-X", "-q", "-A", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        Beside(child)
    }

    /// Stops it as a power cut would: no process says goodbye.
    pub fn kill(&mut self) {
        let children = Command::new("pgrep").arg("-P").arg(self.child.id().to_string()).output().unwrap();
        let _ = self.child.kill();
        for pid in String::from_utf8_lossy(&children.stdout).split_whitespace() {
            let _ = Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status();
        }
        let _ = self.child.wait();
    }

    /// CPU seconds of the server, its finished sessions included.
    #[allow(dead_code, reason = "each test takes what it needs")]
    pub fn cpu(&self) -> f64 {
        cpu_of(&self.child.id().to_string())
    }

    /// Freezes every process of it: connections stay open and nothing answers.
    #[allow(dead_code, reason = "each test takes what it needs")]
    pub fn freeze(&self) {
        let children = Command::new("pgrep").arg("-P").arg(self.child.id().to_string()).output().unwrap();
        let all = format!("{} {}", self.child.id(), String::from_utf8_lossy(&children.stdout));
        for pid in all.split_whitespace() {
            let _ = Command::new("kill").args(["-STOP", pid]).stderr(Stdio::null()).status();
        }
    }

    /// Everything that a copy must bring back, by name, as PostgreSQL's own tools print it.
    pub fn picture(&self) -> BTreeMap<String, String> {
        let mut picture = BTreeMap::new();
        let globals = self.command("pg_dumpall").args(["--globals-only"]).output().unwrap();
        assert!(globals.status.success(), "{}", String::from_utf8_lossy(&globals.stderr));
        let mut lines: Vec<String> =
            plain(&String::from_utf8_lossy(&globals.stdout)).lines().map(str::to_owned).collect();
        lines.sort();
        picture.insert("roles".to_owned(), lines.join("\n"));
        let names = self
            .psql("postgres", "SELECT to_json(datname) FROM pg_database WHERE datname <> 'template0' ORDER BY datname");
        for name in names.lines().map(|line| serde_json::from_str::<String>(line).unwrap()) {
            // With the database's own properties: encoding, locale, owner, grants, settings, comment.
            let schema = self
                .command("pg_dump")
                .args(["--schema-only", "--create", "--no-subscriptions"])
                .env("PGDATABASE", &name)
                .output()
                .unwrap();
            assert!(schema.status.success(), "{}", String::from_utf8_lossy(&schema.stderr));
            picture.insert(format!("{name}: schema"), plain(&String::from_utf8_lossy(&schema.stdout)));
            for (what, answer) in self.contents(&name) {
                picture.insert(format!("{name}: {what}"), answer);
            }
        }
        picture
    }

    /// Count and hash of every table, state of every sequence, every large object, every materialised view.
    fn contents(&self, database: &str) -> Vec<(String, String)> {
        // Columns by name: the order within an inherited table may change, as with PostgreSQL's own tools.
        let script = r#"
SET datestyle = ISO; SET timezone = UTC; SET extra_float_digits = 3; SET search_path = ''; SET row_security = off;
SELECT format('SELECT ''rows of '' || to_json(%L::text), count(*) || '' '' || coalesce(md5(string_agg(h, '''' ORDER BY h)), '''')
  FROM (SELECT md5(ROW(%s)::text) AS h FROM ONLY %s) q', c.oid::regclass, coalesce((SELECT string_agg(quote_ident(attname), ','
  ORDER BY attname) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped), ''), c.oid::regclass)
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'm') AND relispopulated
AND nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema' ORDER BY c.oid::regclass::text \gexec
SELECT 'unpopulated ' || to_json(oid::regclass::text), '' FROM pg_class WHERE NOT relispopulated ORDER BY 1;
SELECT format('SELECT ''sequence '' || to_json(%L::text), last_value || '' '' || is_called FROM %s', oid::regclass, oid::regclass)
FROM pg_class WHERE relkind = 'S' ORDER BY oid::regclass::text \gexec
SELECT 'large object ' || oid, concat_ws(' ', pg_get_userbyid(lomowner), lomacl,
  to_json(obj_description(oid, 'pg_largeobject')), md5(lo_get(oid)), length(lo_get(oid))) FROM pg_largeobject_metadata ORDER BY oid;
"#;
        let answers = self.psql(database, script);
        answers
            .lines()
            .map(|line| line.rsplit_once('|').unwrap_or_else(|| panic!("{line}")))
            .map(|(what, answer)| (what.to_owned(), answer.to_owned()))
            .collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// CPU seconds of a process and of its children that ended, in hundredths as the kernel counts them.
#[allow(dead_code, reason = "each test takes what it needs")]
pub fn cpu_of(process: &str) -> f64 {
    let line = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = line.rsplit(") ").next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(4).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// A client that runs beside a test, ended with it.
#[allow(dead_code, reason = "each test takes what it needs")]
pub struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A script without what changes from dump to dump.
fn plain(script: &str) -> String {
    script
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .filter(|line| !line.starts_with("-- Dumped") && !line.is_empty() && *line != "--")
        .collect::<Vec<_>>()
        .join("\n")
}

/// Waits in a test; nothing is decided by how long.
#[expect(clippy::disallowed_methods, reason = "a test that waits for another process")]
pub fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// What differs between two pictures, for people.
pub fn differences(saved: &BTreeMap<String, String>, restored: &BTreeMap<String, String>) -> Vec<String> {
    let mut out = Vec::new();
    let names: std::collections::BTreeSet<&String> = saved.keys().chain(restored.keys()).collect();
    for name in names {
        let (a, b) = (saved.get(name), restored.get(name));
        if a == b {
            continue;
        }
        let lines = |text: Option<&String>| -> Vec<String> {
            text.map(|t| t.lines().map(str::to_owned).collect()).unwrap_or_default()
        };
        let (a, b) = (lines(a), lines(b));
        out.push(format!("== {name}"));
        out.extend(a.iter().filter(|line| !b.contains(line)).take(20).map(|line| format!("  - {line}")));
        out.extend(b.iter().filter(|line| !a.contains(line)).take(20).map(|line| format!("  + {line}")));
        if a.len() == b.len() && a != b && a.iter().all(|line| b.contains(line)) {
            out.push("  the same lines in another order".to_owned());
        }
    }
    out
}
