//! A peer of MongoDB's wire protocol that keeps documents as bytes, records every command, and answers what MongoDB's
//! documentation says a replica set or single server answers — or what a test says it does instead.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use mongodb::bson::{Bson, Document, RawArrayBuf, RawDocument, RawDocumentBuf, Timestamp, doc, raw::cstr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// The time that the peer's snapshots have.
pub const NOW: Timestamp = Timestamp { time: 1_700_000_000, increment: 7 };

/// A collection or view.
#[derive(Clone, Default)]
pub struct Stored {
    pub kind: Option<&'static str>,
    pub options: Document,
    pub uuid: u8,
    pub documents: Vec<Vec<u8>>,
    pub indexes: Vec<Document>,
}

/// What the peer holds and how it is.
#[derive(Default)]
pub struct State {
    /// Put over the answer to hello.
    pub hello: Document,
    pub collections: BTreeMap<(String, String), Stored>,
    pub commands: Vec<(String, Document)>,
    pub cursors: BTreeMap<i64, Vec<Vec<u8>>>,
    pub next_cursor: i64,
    pub locked: bool,
}

/// A test's own answer to a command; `None` for the usual one.
pub type Script = Arc<dyn Fn(&mut State, &str, &Document) -> Option<Document> + Send + Sync>;

pub struct Peer {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

/// An error as a server answers it.
pub fn error(code: i32, name: &str, message: &str) -> Document {
    doc! {"ok": 0.0, "code": code, "codeName": name, "errmsg": message}
}

impl Peer {
    pub async fn start(state: State, script: Script) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let (state, script) = (Arc::clone(&shared), Arc::clone(&script));
                connections.spawn(async move {
                    let _ = serve(connection, &state, &script).await;
                });
            }
        });
        Self { address, state, _tasks: tasks }
    }

    /// A peer without wishes of its own.
    pub async fn plain(state: State) -> Self {
        Self::start(state, Arc::new(|_, _, _| None)).await
    }

    /// Every command of that name so far.
    pub fn sent(&self, name: &str) -> Vec<Document> {
        let state = self.state.lock().unwrap();
        let of = |command: &Document| command.keys().next().is_some_and(|first| first == name);
        state.commands.iter().filter(|(_, command)| of(command)).map(|(_, command)| command.clone()).collect()
    }
}

impl State {
    pub fn replica_set() -> Self {
        Self {
            hello: doc! {"setName": "rs0", "hosts": ["elsewhere:27017"], "me": "elsewhere:27017", "secondary": false},
            ..Self::default()
        }
    }

    pub fn with(mut self, database: &str, name: &str, stored: Stored) -> Self {
        self.collections.insert((database.to_owned(), name.to_owned()), stored);
        self
    }

    fn cursor(
        &mut self,
        database: &str,
        documents: Vec<Vec<u8>>,
        batch: usize,
        first: bool,
        id: i64,
        at: Option<Timestamp>,
    ) -> RawDocumentBuf {
        let (now, later) = documents.split_at(documents.len().min(batch.max(1)));
        let mut array = RawArrayBuf::new();
        now.iter().for_each(|one| array.push(RawDocumentBuf::from_bytes(one.clone()).unwrap()));
        let id = if later.is_empty() {
            0
        } else {
            let id = if id == 0 {
                self.next_cursor += 1;
                self.next_cursor
            } else {
                id
            };
            self.cursors.insert(id, later.to_vec());
            id
        };
        let mut cursor = RawDocumentBuf::new();
        cursor.append(cstr!("id"), id);
        cursor.append(cstr!("ns"), format!("{database}.x").as_str());
        if first {
            cursor.append(cstr!("firstBatch"), array)
        } else {
            cursor.append(cstr!("nextBatch"), array)
        }
        if let Some(at) = at {
            cursor.append(cstr!("atClusterTime"), at);
        }
        let mut answer = RawDocumentBuf::new();
        answer.append(cstr!("cursor"), cursor);
        answer.append(cstr!("ok"), 1.0);
        answer
    }

    fn answer(&mut self, database: &str, command: &Document, raw: &RawDocument) -> RawDocumentBuf {
        let name = command.keys().next().cloned().unwrap_or_default();
        let target = command.get_str(&name).unwrap_or_default().to_owned();
        let key = (database.to_owned(), target.clone());
        let batch = usize::try_from(command.get_i32("batchSize").unwrap_or(101)).unwrap().min(400);
        let plain = |answer: Document| RawDocumentBuf::try_from(&answer).unwrap();
        let ok = || plain(doc! {"ok": 1.0});
        match name.as_str() {
            "hello" | "isMaster" | "ismaster" => {
                let mut hello = doc! {
                    "isWritablePrimary": true, "ismaster": true, "helloOk": true, "minWireVersion": 0, "maxWireVersion": 21,
                    "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
                    "logicalSessionTimeoutMinutes": 30, "ok": 1.0,
                };
                hello.extend(self.hello.clone());
                plain(hello)
            }
            "buildInfo" => plain(doc! {"version": "7.0.5", "ok": 1.0}),
            "ping" | "endSessions" | "killCursors" => ok(),
            "listDatabases" => {
                let mut names: Vec<String> = self.collections.keys().map(|(database, _)| database.clone()).collect();
                names.extend(["admin", "config", "local"].map(str::to_owned));
                names.sort();
                names.dedup();
                plain(
                    doc! {"databases": names.into_iter().map(|name| doc! {"name": name}).collect::<Vec<_>>(), "ok": 1.0},
                )
            }
            "listCollections" => {
                let of = self.collections.iter().filter(|((db, _), _)| db == database);
                let entries = of.map(|((_, name), stored)| {
                    let uuid = mongodb::bson::Binary {
                        subtype: mongodb::bson::spec::BinarySubtype::Uuid,
                        bytes: vec![stored.uuid; 16],
                    };
                    plain(doc! {
                        "name": name, "type": stored.kind.unwrap_or("collection"), "options": stored.options.clone(),
                        "info": {"readOnly": false, "uuid": uuid},
                    })
                    .into_bytes()
                });
                let entries = entries.collect();
                self.cursor(database, entries, 1000, true, 0, None)
            }
            "listIndexes" => {
                let Some(stored) = self.collections.get(&key) else {
                    return plain(error(26, "NamespaceNotFound", "ns does not exist"));
                };
                let mut indexes = vec![bytes(&doc! {"v": 2, "key": {"_id": 1}, "name": "_id_"})];
                indexes.extend(stored.indexes.iter().map(bytes));
                self.cursor(database, indexes, 1000, true, 0, None)
            }
            "collStats" => {
                let Some(stored) = self.collections.get(&key) else {
                    return plain(error(26, "NamespaceNotFound", "ns does not exist"));
                };
                let size: usize = stored.documents.iter().map(Vec::len).sum();
                plain(doc! {"count": stored.documents.len() as i64, "size": size as i64, "ok": 1.0})
            }
            "find" => {
                let all = self.collections.get(&key).map(|stored| stored.documents.clone()).unwrap_or_default();
                let filter = command.get_document("filter").cloned().unwrap_or_default();
                let mut found: Vec<Vec<u8>> = all.into_iter().filter(|one| matches(one, &filter)).collect();
                if let Ok(limit) = command.get_i32("limit") {
                    found.truncate(usize::try_from(limit).unwrap());
                }
                let at = command
                    .get_document("readConcern")
                    .ok()
                    .filter(|concern| concern.get_str("level").ok() == Some("snapshot"));
                self.cursor(database, found, batch, true, 0, at.map(|_| NOW))
            }
            "getMore" => {
                let id = command.get_i64("getMore").unwrap();
                let Some(rest) = self.cursors.remove(&id) else {
                    return plain(error(43, "CursorNotFound", "cursor not found"));
                };
                self.cursor(database, rest, batch, false, id, None)
            }
            "explain" => plain(
                doc! {"queryPlanner": {"winningPlan": {"stage": "FETCH", "inputStage": {"stage": "IXSCAN"}}}, "ok": 1.0},
            ),
            "aggregate" => {
                let all = self.collections.get(&key).map(|stored| stored.documents.clone()).unwrap_or_default();
                let step = (all.len() / 200).max(1);
                let mut ids: Vec<i32> = all
                    .iter()
                    .step_by(step)
                    .filter_map(|one| RawDocument::from_bytes(one).unwrap().get_i32("_id").ok())
                    .collect();
                ids.sort_unstable();
                let ids = ids.into_iter().map(|id| bytes(&doc! {"_id": id})).collect();
                self.cursor(database, ids, 100_000, true, 0, None)
            }
            "create" => {
                let mut options = command.clone();
                for key in ["create", "$db", "lsid", "$clusterTime", "$readPreference", "txnNumber"] {
                    options.remove(key);
                }
                let kind = options.contains_key("viewOn").then_some("view");
                self.collections.insert(key, Stored { kind, options, ..Stored::default() });
                ok()
            }
            "insert" => {
                let stored = self.collections.entry(key).or_default();
                let before = stored.documents.len();
                for one in raw.get_array("documents").unwrap() {
                    stored.documents.push(one.unwrap().as_document().unwrap().as_bytes().to_vec());
                }
                plain(doc! {"n": (stored.documents.len() - before) as i32, "ok": 1.0})
            }
            "createIndexes" => {
                let stored = self.collections.entry(key).or_default();
                stored
                    .indexes
                    .extend(command.get_array("indexes").unwrap().iter().map(|one| one.as_document().unwrap().clone()));
                ok()
            }
            "collMod" => {
                let stored = self.collections.get_mut(&key).unwrap();
                for (key, value) in command.iter().filter(|(key, _)| key.starts_with("validat")) {
                    stored.options.insert(key, value.clone());
                }
                ok()
            }
            "drop" => {
                self.collections.remove(&key);
                ok()
            }
            "dropDatabase" => {
                self.collections.retain(|(db, _), _| db != database);
                ok()
            }
            "usersInfo" => plain(doc! {"users": [], "ok": 1.0}),
            "rolesInfo" => plain(doc! {"roles": [], "ok": 1.0}),
            "getParameter" => plain(doc! {"minSnapshotHistoryWindowInSeconds": 300, "ok": 1.0}),
            "currentOp" => {
                let mut state = doc! {"inprog": [], "ok": 1.0};
                if self.locked {
                    state.insert("fsyncLock", true);
                }
                plain(state)
            }
            "fsync" => {
                self.locked = true;
                plain(doc! {"lockCount": 1i64, "ok": 1.0})
            }
            "fsyncUnlock" if self.locked => {
                self.locked = false;
                plain(doc! {"lockCount": 0i64, "ok": 1.0})
            }
            "fsyncUnlock" => plain(error(20, "IllegalOperation", "fsyncUnlock called when not locked")),
            other => plain(error(59, "CommandNotFound", &format!("no such command: '{other}'"))),
        }
    }
}

pub fn bytes(document: &Document) -> Vec<u8> {
    RawDocumentBuf::try_from(document).unwrap().into_bytes()
}

/// As much of MongoDB's matching as ranges of integer ids need: comparisons hold only between values of one kind.
fn matches(document: &[u8], filter: &Document) -> bool {
    if let Ok(list) = filter.get_array("$nor") {
        return !list.iter().any(|one| matches(document, one.as_document().unwrap()));
    }
    let Ok(wanted) = filter.get_document("_id") else { return true };
    let raw = RawDocument::from_bytes(document).unwrap();
    if let Some(equal) = wanted.get("$eq") {
        return raw.get("_id").unwrap().is_some_and(|id| Bson::try_from(id).unwrap() == *equal);
    }
    let Ok(id) = raw.get_i32("_id") else { return false };
    wanted.iter().all(|(operator, bound)| match (operator.as_str(), bound) {
        ("$lt", Bson::Int32(bound)) => id < *bound,
        ("$gte", Bson::Int32(bound)) => id >= *bound,
        _ => false,
    })
}

async fn serve(mut connection: TcpStream, state: &Mutex<State>, script: &Script) -> std::io::Result<()> {
    loop {
        let mut head = [0; 16];
        connection.read_exact(&mut head).await?;
        let int = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut body = vec![0; usize::try_from(int(0)).unwrap() - 16];
        connection.read_exact(&mut body).await?;
        let (request, kind) = (int(4), int(12));
        let (database, raw) = match kind {
            // OP_MSG: flags, then sections; commands of this driver have one.
            2013 => {
                let raw = first(&body[5..]);
                (raw.get_str("$db").unwrap_or("admin").to_owned(), raw)
            }
            // OP_QUERY, for the very first hello: flags, name, skip, limit, query.
            2004 => {
                let name = body[4..].iter().position(|b| *b == 0).unwrap();
                ("admin".to_owned(), first(&body[4 + name + 1 + 8..]))
            }
            other => panic!("operation {other}"),
        };
        // Documents that hold what no text may hold stay in `raw` alone.
        let parts =
            raw.iter().filter_map(|part| part.ok().and_then(|(name, value)| Some((name, Bson::try_from(value).ok()?))));
        let command: Document = parts.map(|(name, value)| (name.to_string(), value)).collect();
        let answer = {
            let mut state = state.lock().unwrap();
            state.commands.push((database.clone(), command.clone()));
            match script(&mut state, &database, &command) {
                Some(answer) => RawDocumentBuf::try_from(&answer).unwrap(),
                None => state.answer(&database, &command, &raw),
            }
        };
        let mut out = Vec::new();
        let answer = answer.as_bytes();
        let extra: &[u8] =
            if kind == 2013 { &[0; 5] } else { &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0] };
        let length = i32::try_from(16 + extra.len() + answer.len()).unwrap();
        for number in [length, 1, request, if kind == 2013 { 2013 } else { 1 }] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(extra);
        out.extend_from_slice(answer);
        connection.write_all(&out).await?;
    }
}

fn first(bytes: &[u8]) -> RawDocumentBuf {
    let length = usize::try_from(i32::from_le_bytes(bytes[..4].try_into().unwrap())).unwrap();
    RawDocumentBuf::from_bytes(bytes[..length].to_vec()).unwrap()
}
