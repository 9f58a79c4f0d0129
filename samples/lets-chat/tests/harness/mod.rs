//! Real servers for the tests, each of its own, in a temporary directory, gone with the test.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lets_chat::world::sleep;
use tempfile::TempDir;

/// A server, stopped when dropped. Should the test die first, the kernel stops it (`--pdeathsig`).
pub struct Server {
    pub address: String,
    pub uploads: PathBuf,
    child: Child,
    _directory: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.starts_with(b"0\n"))
}

/// PostgreSQL's own programs, newest version first.
fn postgres_programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> =
        std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin")).collect();
    versions.sort();
    versions.into_iter().rev().find(|programs| programs.join("initdb").is_file())
}

/// `None`, said on stderr, when this machine has no PostgreSQL.
pub async fn postgres() -> Option<Server> {
    let Some(programs) = postgres_programs() else {
        eprintln!("not tried: this machine has no PostgreSQL in /usr/lib/postgresql");
        return None;
    };
    let directory = tempfile::tempdir().unwrap();
    let (data, port) = (directory.path().join("data"), free_port());
    let own: &[&str] = if root() { &["--reuid=postgres", "--regid=postgres", "--init-groups"] } else { &[] };
    if root() {
        let done = Command::new("chown").arg("postgres").arg(directory.path()).status().unwrap();
        assert!(done.success(), "the user postgres comes with the package");
    }
    let run = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(own).args(["--pdeathsig", "QUIT"]).arg(programs.join(program)).current_dir(directory.path());
        command
    };
    let made = run("initdb").args(["-A", "trust", "-U", "chat", "--locale=C.UTF-8", "-D"]).arg(&data).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let child = run("postgres")
        .arg("-D")
        .arg(&data)
        .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let uploads = directory.path().join("uploads");
    std::fs::create_dir(&uploads).unwrap();
    let address = format!("postgres://chat@127.0.0.1:{port}/postgres");
    Some(Server { address, uploads, child, _directory: directory })
}

/// `None`, said on stderr, when this machine has no Java for the MongoDB-wire server of the testbed.
pub async fn mongodb() -> Option<Server> {
    if found("java").is_none() {
        eprintln!("not tried: this machine has no Java for the MongoDB-wire server");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let (file, port) = (directory.path().join("mongod.h2"), free_port());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/testbed/mongod.sh");
    // Built beforehand: what is started below is the server itself, so that it can be stopped.
    let built = Command::new(&script).arg("build").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(&script)
        .args(["run", "127.0.0.1", &port.to_string()])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let address = format!("mongodb://127.0.0.1:{port}/lets-chat");
    Some(Server { address, uploads: PathBuf::new(), child, _directory: directory })
}

/// Asks until the answer is the wanted one, at most half a minute.
pub async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    for _ in 0..300 {
        if ask().await {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} didn't happen within 30 s");
}
