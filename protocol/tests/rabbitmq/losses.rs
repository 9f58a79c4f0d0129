//! What happens when something goes away: nothing that was taken is lost, nobody hangs, and all comes back by itself.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

use super::*;

fn spawn(work: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(work))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_hint_that_was_taken_is_lost_when_the_broker_ends() {
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let mut hasty = server.own_settings();
    hasty.limit = Duration::from_secs(3);
    let bus = Arc::new(RabbitCoordinatorBus::start(&hasty, &seams()).unwrap());
    let (site, settings) = server.site().await;
    let agent = Arc::new(agent(site, &settings));
    let (taken, seen) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Mutex::new(BTreeSet::new())));
    let publishing = {
        let (bus, taken) = (Arc::clone(&bus), Arc::clone(&taken));
        spawn(async move {
            for number in 0u32.. {
                match bus.publish(site, number.to_le_bytes().to_vec().into()).await {
                    Ok(()) => drop(taken.lock().unwrap().insert(number)),
                    Err(error) => {
                        tracing::debug!(%error, "not published");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        })
    };
    let reading = {
        let (agent, seen) = (Arc::clone(&agent), Arc::clone(&seen));
        spawn(async move {
            while let Ok(hint) = agent.next_hint().await {
                let number = u32::from_le_bytes(hint.bytes[..].try_into().unwrap());
                seen.lock().unwrap().insert(number);
                hint.accept();
            }
        })
    };
    let more = async |what| {
        let before = taken.lock().unwrap().len();
        until(what, async || taken.lock().unwrap().len() > before + 50).await;
    };
    more("hints flow").await;
    // The broker (3.10) writes down that a queue is on this node within seconds: what was declared just before a loss
    // of power may have to be made anew, and is empty then.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (new, _) = server.site().await;
    bus.publish(new, Bytes::from_static(b"new")).await.unwrap();
    server.script("kill", &[]).await;
    server.script("restart", &[]).await;
    more("hints flow after a kill").await;
    until("a new site's hints are taken, too", async || bus.publish(new, Bytes::from_static(b"new")).await.is_ok())
        .await;
    server.script("restart", &[]).await;
    more("hints flow after a restart").await;
    drop(publishing);
    until("all that was taken arrives", async || taken.lock().unwrap().is_subset(&seen.lock().unwrap())).await;
    drop(reading);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_asker_hangs_when_the_broker_is_killed() {
    const PATIENCE: u64 = 5_000;
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let bus = Arc::new(coordinator(server));
    let _served = echo(Arc::clone(&bus));
    let (site, settings) = server.site().await;
    let agent = Arc::new(agent(site, &settings));
    let (right, failed, slowest) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let done = AtomicBool::new(false);
    let asking = async |asker: u32| {
        let mut number = 0u32;
        while !done.load(SeqCst) {
            number += 1;
            let question = Bytes::from(format!("{asker}.{number}"));
            let began = Instant::now();
            match agent.request(question.clone(), PATIENCE).await {
                Ok(answer) => {
                    assert_eq!(answer, question);
                    right.fetch_add(1, SeqCst);
                }
                Err(_) => {
                    failed.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            slowest.fetch_max(u32::try_from(began.elapsed().as_millis()).unwrap(), SeqCst);
        }
    };
    let killing = async {
        let more = async |what| {
            let before = right.load(SeqCst);
            until(what, async || right.load(SeqCst) > before + 50).await;
        };
        more("answers flow").await;
        server.script("kill", &[]).await;
        until("askers are told", async || failed.load(SeqCst) > 0).await;
        server.script("restart", &[]).await;
        more("answers flow again").await;
        done.store(true, SeqCst);
    };
    let askers = futures::future::join_all((0..8).map(&asking));
    soon("every asker ends", async { tokio::join!(askers, killing) }).await;
    assert!(u64::from(slowest.load(SeqCst)) < PATIENCE + 3_000, "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_stops_publishing_only_and_says_so() {
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let mut settings = server.own_settings();
    settings.limit = Duration::from_secs(3);
    let bus = Arc::new(RabbitCoordinatorBus::start(&settings, &seams()).unwrap());
    let _served = echo(Arc::clone(&bus));
    let (site, settings) = server.site().await;
    let agent = agent(site, &settings);
    bus.publish(site, Bytes::from_static(b"before")).await.unwrap();
    assert_eq!(soon("it comes", agent.next_hint()).await.unwrap().bytes, "before");
    soon("it is answered", agent.request(Bytes::from_static(b"?"), 30_000)).await.unwrap();
    for number in 0..40u8 {
        bus.publish(site, vec![number].into()).await.unwrap();
    }

    server.script("ctl", &["set_vm_memory_high_watermark", "absolute", "1"]).await;
    until("publishing is refused, and why", async || {
        let result = soon("an answer", bus.publish(site, Bytes::from_static(b"meanwhile"))).await;
        result.is_err_and(|error| error.to_string().contains("short of memory or disk"))
    })
    .await;
    assert!(matches!(bus.state().publishing, LinkState::Connected { blocked: Some(_), .. }));
    // One that connects meanwhile doesn't take the silence for a broken queue.
    let taking = bus.state().requests;
    let another = coordinator(server);
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(another.publish(site, Bytes::from_static(b"meanwhile")).await.is_err());
    drop(another);
    assert_eq!(bus.state().requests, taking);
    // More than the broker had sent before: its acknowledgements arrive.
    for number in 0..40u8 {
        let hint = soon("hints come during an alarm", agent.next_hint()).await.unwrap();
        assert_eq!(hint.bytes[..], [number]);
    }
    until("asking is refused, and why", async || {
        let result = agent.request(Bytes::from_static(b"?"), 2_000).await;
        result.is_err_and(|error| error.to_string().contains("short of memory or disk"))
    })
    .await;

    server.script("ctl", &["set_vm_memory_high_watermark", "absolute", "1GB"]).await;
    until("hints are taken again", async || bus.publish(site, Bytes::from_static(b"after")).await.is_ok()).await;
    until("it is answered again", async || agent.request(Bytes::from_static(b"?"), 5_000).await.is_ok()).await;
    until("the last hint comes", async || agent.next_hint().await.unwrap().bytes == "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_or_purged_queue_is_there_again_with_the_next_hint() {
    let server = &Server::calm().await;
    let bus = coordinator(server);
    let (site, settings) = server.site().await;
    let queue = format!("queues/{{v}}/{}", topology::tasks(site));
    // Nobody reads yet.
    bus.publish(site, Bytes::from_static(b"deleted")).await.unwrap();
    server.done(Method::DELETE, &queue, None).await;
    bus.publish(site, Bytes::from_static(b"one")).await.unwrap();
    let agent = agent(site, &settings);
    assert_eq!(soon("it comes", agent.next_hint()).await.unwrap().bytes, "one");
    // Somebody reads: the consumer ends with the queue.
    server.done(Method::DELETE, &queue, None).await;
    bus.publish(site, Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(soon("it comes", agent.next_hint()).await.unwrap().bytes, "two");
    server.done(Method::DELETE, &format!("{queue}/contents"), None).await;
    bus.publish(site, Bytes::from_static(b"three")).await.unwrap();
    assert_eq!(soon("it comes", agent.next_hint()).await.unwrap().bytes, "three");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_again_after_their_queue_or_exchange_was_deleted() {
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let bus = Arc::new(coordinator(server));
    let _served = echo(Arc::clone(&bus));
    let (site, settings) = server.site().await;
    let agent = agent(site, &settings);
    for what in ["queues/{v}/requests", "exchanges/{v}/events"] {
        until("it is answered", async || agent.request(Bytes::from_static(b"?"), 5_000).await.is_ok()).await;
        server.done(Method::DELETE, what, None).await;
        if what.starts_with("exchanges") {
            // Nothing at the coordinator's end notices: it declares at its next connection.
            until("both are listed", async || server.connections("admin").await.len() == 2).await;
            for connection in server.connections("admin").await {
                server.close_connection(&connection).await;
            }
        }
    }
    until("it is answered", async || agent.request(Bytes::from_static(b"?"), 5_000).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_too_long_ago_is_dropped_and_lies_in_no_quarantine() {
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let bus = coordinator(server);
    let (site, settings) = server.site().await;
    bus.ensure_site(site).await.unwrap();
    let agent = agent(site, &settings);
    let serving = bus.next_request();
    let (first, ()) = tokio::join!(agent.request(Bytes::from_static(b"?"), 20_000), async {
        drop(soon("it is asked", serving).await.unwrap().reply.send(Bytes::from_static(b"!")));
    });
    assert_eq!(first.unwrap(), "!");
    bus.close().await;
    drop(bus);
    until("no coordinator is there", async || server.connections("admin").await.is_empty()).await;
    for _ in 0..3 {
        assert!(agent.request(Bytes::from_static(b"nobody answers"), 300).await.is_err());
    }
    // Counted by the broker: reading them would count as giving them out.
    let returned = async || {
        let (_, queue) = server.manage(Method::GET, "queues/{v}/returned", None).await;
        queue["messages"].as_u64()
    };
    until("they are too old", async || returned().await == Some(3)).await;
    let bus = coordinator(server);
    until("they are dropped", async || returned().await == Some(0)).await;
    let kept = server.messages(topology::QUARANTINE).await;
    let late = kept.iter().filter(|message| message["properties"]["headers"]["x-first-death-reason"] == "expired");
    assert_eq!(late.count(), 0, "{kept:?}");
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_broker_closes_come_back() {
    let server = &Server::calm().await;
    let bus = Arc::new(coordinator(server));
    let _served = echo(Arc::clone(&bus));
    let (site, settings) = server.site().await;
    let agent = agent(site, &settings);
    let works = async || {
        until("a hint is taken", async || bus.publish(site, Bytes::from_static(b"hint")).await.is_ok()).await;
        soon("it comes", agent.next_hint()).await.unwrap().accept();
        until("it is answered", async || agent.request(Bytes::from_static(b"?"), 5_000).await.is_ok()).await;
    };
    works().await;
    until("both are listed", async || server.connections(&settings.user).await.len() == 2).await;
    for connection in server.connections(&settings.user).await {
        server.close_connection(&connection).await;
    }
    until("it is noticed", async || {
        let state = agent.state();
        [state.hints, state.requests]
            .iter()
            .all(|link| matches!(link, LinkState::Connected { last_error: Some(why), .. } if why.contains("closed")))
    })
    .await;
    works().await;
}

/// Passes bytes on, until it is told to stall: then it holds connections open and passes nothing.
struct Proxy {
    port: u16,
    stalled: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

async fn pump(from: &mut (impl AsyncReadExt + Unpin), to: &mut (impl AsyncWriteExt + Unpin), stalled: &AtomicBool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        while stalled.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

impl Proxy {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stalled = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stalled);
        let task = spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let stalled = Arc::clone(&seen);
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    let (mut near_in, mut near_out) = near.split();
                    let (mut far_in, mut far_out) = far.split();
                    tokio::select! {
                        () = pump(&mut near_in, &mut far_out, &stalled) => {}
                        () = pump(&mut far_in, &mut near_out, &stalled) => {}
                    }
                });
            }
        });
        Self { port, stalled, _task: task }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_fell_silent_is_given_up_and_made_anew() {
    let server = &Server::calm().await;
    let bus = Arc::new(coordinator(server));
    let _served = echo(Arc::clone(&bus));
    let (site, mut settings) = server.site().await;
    let proxy = Proxy::start(settings.address.port).await;
    settings.address.port = proxy.port;
    settings.heartbeat = Duration::from_secs(1);
    settings.limit = Duration::from_secs(1);
    let agent = agent(site, &settings);
    until("it is answered", async || agent.request(Bytes::from_static(b"?"), 5_000).await.is_ok()).await;
    bus.publish(site, Bytes::from_static(b"before")).await.unwrap();
    assert_eq!(soon("it comes", agent.next_hint()).await.unwrap().bytes, "before");

    proxy.stalled.store(true, SeqCst);
    assert!(soon("it is given up", agent.request(Bytes::from_static(b"?"), 1_500)).await.is_err());
    until("both notice, and can't connect", async || {
        let state = agent.state();
        [state.hints, state.requests].iter().all(
            |link| matches!(link, LinkState::Connecting { last_error: Some(why) } if why.contains("no answer within")),
        )
    })
    .await;
    let threads = std::fs::read_dir("/proc/self/task").unwrap().filter(|task| {
        let name = task.as_ref().unwrap().path().join("comm");
        std::fs::read_to_string(name).is_ok_and(|name| name.starts_with("lapin"))
    });
    // Attempts that came to nothing leave no thread behind; other tests have theirs at the same time.
    assert!(threads.count() < 60);

    bus.publish(site, Bytes::from_static(b"meanwhile")).await.unwrap();
    proxy.stalled.store(false, SeqCst);
    until("the hint comes", async || {
        let hint = tokio::time::timeout(Duration::from_secs(1), agent.next_hint()).await;
        hint.is_ok_and(|hint| hint.unwrap().bytes == "meanwhile")
    })
    .await;
    until("it is answered", async || agent.request(Bytes::from_static(b"?"), 5_000).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_no_broker_is_said_to_be_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _speaks = spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(60)).await;
                drop(stream);
            });
        }
    });
    let address = format!("amqp://127.0.0.1:{port}/v");
    let mut settings = Settings::new(address.parse().unwrap(), "user", Secret::new("password"));
    settings.limit = Duration::from_secs(2);
    let bus = RabbitCoordinatorBus::start(&settings, &seams()).unwrap();
    let (site, _) = (ocopea_protocol::ids::SiteId::generate(&seams()), ());
    until("it is said", async || {
        let error = bus.publish(site, Bytes::from_static(b"x")).await.unwrap_err().to_string();
        error.contains("no AMQP broker")
    })
    .await;
    bus.close().await;
    assert_eq!(bus.publish(site, Bytes::from_static(b"x")).await, Err(BusError::Closed));
}
