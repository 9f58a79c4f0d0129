//! The testbed's MongoDB-wire server, started for a test on a port of its own and killed with it; and a proxy that
//! cuts and stalls what passes through it.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Once,
        atomic::{AtomicU8, AtomicU64, Ordering::SeqCst},
    },
};

use futures::StreamExt;
use mongodb::{
    Client,
    bson::{Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc},
    options::{ClientOptions, ServerAddress},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A running server.
pub struct Mongod {
    child: Child,
    port: u16,
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/testbed/mongod.sh")
}

impl Mongod {
    /// Starts one that keeps its data in memory.
    pub fn start() -> Self {
        static BUILT: Once = Once::new();
        BUILT.call_once(|| {
            let status = Command::new(script()).arg("build").status().unwrap();
            assert!(status.success(), "the testbed's MongoDB-wire server can't be built");
        });
        for _ in 0..5 {
            let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            let mut child = Command::new(script())
                .args(["run", "127.0.0.1", &port.to_string(), "memory"])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let output = child.stdout.take().unwrap();
            let up = BufReader::new(output).lines().map_while(Result::ok).any(|line| line.starts_with("listening on"));
            if up {
                return Self { child, port };
            }
            // Somebody else took the port in between.
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("the MongoDB-wire server doesn't start");
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn client(&self) -> Client {
        client(self.address())
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops every thread of it: connections stay open and nothing answers.
    pub fn freeze(&self) {
        let status = Command::new("kill").args(["-STOP", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn client(address: SocketAddr) -> Client {
    let address = ServerAddress::Tcp { host: address.ip().to_string(), port: Some(address.port()) };
    Client::with_options(ClientOptions::builder().hosts(vec![address]).direct_connection(true).build()).unwrap()
}

/// Puts documents into a collection as they are.
pub async fn insert(client: &Client, database: &str, collection: &str, documents: &[Vec<u8>]) {
    for some in documents.chunks(1000) {
        let mut array = RawArrayBuf::new();
        some.iter().for_each(|one| array.push(RawDocumentBuf::from_bytes(one.clone()).unwrap()));
        let mut command = rawdoc! {"insert": collection};
        command.append(mongodb::bson::raw::cstr!("documents"), array);
        let answer = client.database(database).run_raw_command(command).await.unwrap();
        assert!(!answer.contains_key("writeErrors"), "{answer}");
    }
}

pub fn bytes(document: &Document) -> Vec<u8> {
    RawDocumentBuf::try_from(document).unwrap().into_bytes()
}

/// All that a server holds: documents as bytes, and indexes, by name.
pub async fn picture(client: &Client) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut picture = BTreeMap::new();
    for database in client.list_database_names().await.unwrap() {
        let database = client.database(&database);
        for name in database.list_collection_names().await.unwrap() {
            let mut documents = Vec::new();
            let mut batches = database.collection::<RawDocumentBuf>(&name).find(doc! {}).batch().await.unwrap();
            while let Some(batch) = batches.next().await {
                for one in batch.unwrap().doc_slices().unwrap() {
                    documents.push(one.unwrap().as_document().unwrap().as_bytes().to_vec());
                }
            }
            documents.sort();
            picture.insert(format!("{}.{name}", database.name()), documents);
            let mut indexes = Vec::new();
            let mut listed = database.run_cursor_command(doc! {"listIndexes": &name}).await.unwrap();
            while listed.advance().await.unwrap() {
                indexes.push(listed.current().as_bytes().to_vec());
            }
            indexes.sort();
            picture.insert(format!("indexes of {}.{name}", database.name()), indexes);
        }
    }
    picture
}

/// What a proxy does with what the server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Passes it on.
    None,
    /// Closes the connection once so many bytes have passed.
    Cut,
    /// Says nothing more once so many bytes have passed.
    Stall,
}

/// A proxy in front of a server.
pub struct Proxy {
    pub address: SocketAddr,
    fault: Arc<AtomicU8>,
    budget: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, budget) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
        let mut tasks = JoinSet::new();
        let shared = (Arc::clone(&fault), Arc::clone(&budget));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (fault, budget) = (Arc::clone(&shared.0), Arc::clone(&shared.1));
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                        (client.into_split(), server.into_split());
                    let up = async move {
                        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                    };
                    let down = async move {
                        let mut buffer = vec![0; 64 * 1024];
                        loop {
                            let Ok(read @ 1..) = from_server.read(&mut buffer).await else { return };
                            let left = budget.load(SeqCst);
                            if fault.load(SeqCst) != 0 {
                                budget.store(left.saturating_sub(read as u64), SeqCst);
                                if left < read as u64 {
                                    if fault.load(SeqCst) == 2 {
                                        std::future::pending::<()>().await;
                                    }
                                    return;
                                }
                            }
                            if to_client.write_all(&buffer[..read]).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::select! {
                        () = up => {}
                        () = down => {}
                    }
                });
            }
        });
        Self { address, fault, budget, _tasks: tasks }
    }

    /// From now on, after so many bytes.
    pub fn set(&self, fault: Fault, after: u64) {
        self.budget.store(after, SeqCst);
        self.fault.store(
            match fault {
                Fault::None => 0,
                Fault::Cut => 1,
                Fault::Stall => 2,
            },
            SeqCst,
        );
    }
}

/// Takes connections and never says a word.
pub struct Mute {
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Mute {
    pub async fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut kept = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                kept.push(connection);
            }
        });
        Self { address, _tasks: tasks }
    }
}
