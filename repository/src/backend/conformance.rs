//! What every backend must do. Each one's tests call [`check`] with an empty store.
#![expect(clippy::panic, reason = "a conformance suite fails by panicking; it runs in tests only")]

use bytes::Bytes;
use futures::future::join_all;

use super::{Backend, Put};
use crate::error::Error;

fn require(holds: bool, what: &str) {
    if !holds {
        panic!("backend conformance: {what}");
    }
}

/// Runs the whole suite.
pub async fn check(backend: &dyn Backend) {
    objects_are_written_read_and_deleted(backend).await;
    one_of_many_creates_wins(backend).await;
    hostile_names_are_refused(backend).await;
    an_upload_is_there_whole_or_not_at_all(backend).await;
    every_write_renews_the_time(backend).await;
}

async fn objects_are_written_read_and_deleted(backend: &dyn Backend) {
    require(matches!(backend.get("a/b", 10).await, Err(Error::Missing { .. })), "what isn't there is not found");
    require(matches!(backend.create("a/b", Bytes::from_static(b"0123456789")).await, Ok(Put::Created)), "create makes");
    require(
        matches!(backend.create("a/b", Bytes::from_static(b"x")).await, Ok(Put::Existed)),
        "create never overwrites",
    );
    require(backend.get("a/b", 10).await.is_ok_and(|b| &b[..] == b"0123456789"), "what was written is read");
    require(backend.get("a/b", 9).await.is_err(), "a limit holds");
    require(backend.range("a/b", 3, 4).await.is_ok_and(|b| &b[..] == b"3456"), "a range is read");
    require(backend.range("a/b", 8, 100).await.is_ok_and(|b| &b[..] == b"89"), "a range ends with the object");
    require(backend.create("a/c/d", Bytes::new()).await.is_ok(), "an empty object is fine");
    let names = backend.list("a/").await.map(|l| l.into_iter().map(|e| (e.name, e.size)).collect::<Vec<_>>());
    require(
        names.is_ok_and(|n| n == [("a/b".to_owned(), 10), ("a/c/d".to_owned(), 0)]),
        "a listing is whole and sorted",
    );
    require(backend.replace("a/b", Bytes::from_static(b"new")).await.is_ok(), "replace overwrites");
    require(matches!(backend.head("a/b").await, Ok(Some(e)) if e.size == 3), "head tells the size");
    require(backend.delete("a/b").await.is_ok() && backend.delete("a/b").await.is_ok(), "deleting twice is fine");
    require(matches!(backend.head("a/b").await, Ok(None)), "what was deleted is gone");
    require(backend.list("nothing/").await.is_ok_and(|l| l.is_empty()), "an empty listing is no error");
}

async fn one_of_many_creates_wins(backend: &dyn Backend) {
    let tries = (0..16u8).map(|n| backend.create("race/one", Bytes::from(vec![n; 1000])));
    let won = join_all(tries).await.into_iter().filter(|put| matches!(put, Ok(Put::Created))).count();
    require(won == 1, "exactly one create wins");
    let whole = backend.get("race/one", 2000).await.is_ok_and(|b| b.len() == 1000 && b.iter().all(|x| *x == b[0]));
    require(whole, "the winner's bytes are there, unmixed");
}

async fn hostile_names_are_refused(backend: &dyn Backend) {
    for name in ["", "/etc/x", "../x", "a/../../x", "a//b", "a/./b", "a\0b", "a b", "a\n", &"x/".repeat(400)] {
        require(backend.create(name, Bytes::new()).await.is_err(), "a hostile name is refused");
        require(backend.get(name, 1).await.is_err(), "a hostile name is refused");
    }
}

async fn an_upload_is_there_whole_or_not_at_all(backend: &dyn Backend) {
    let begun = async || match backend.upload(None).await {
        Ok(mut upload) => {
            require(
                upload.write(vec![Bytes::from_static(b"h"), Bytes::from_static(b"e")]).await.is_ok(),
                "an upload takes bytes",
            );
            require(upload.write(vec![Bytes::from_static(b"llo")]).await.is_ok(), "an upload takes more bytes");
            upload
        }
        Err(error) => panic!("backend conformance: an upload begins: {error}"),
    };
    drop(begun().await);
    require(backend.list("blobs/").await.is_ok_and(|l| l.is_empty()), "nothing of a dropped upload is there");
    require(begun().await.finish("blobs/x").await.is_ok(), "an upload gets its name");
    require(backend.get("blobs/x", 5).await.is_ok_and(|b| &b[..] == b"hello"), "and is read");
    require(begun().await.finish("blobs/x").await.is_ok(), "an upload replaces what is there");
    require(backend.list("blobs/").await.is_ok_and(|l| l.len() == 1), "once");
}

async fn every_write_renews_the_time(backend: &dyn Backend) {
    let time = async || backend.head("blobs/x").await.ok().flatten().map_or(0, |entry| entry.modified);
    let first = time().await;
    let mut tries = 0;
    while time().await == first {
        tries += 1;
        require(tries < 5000, "a write renews the store's time of an object");
        require(backend.replace("blobs/x", Bytes::from_static(b"again")).await.is_ok(), "replace overwrites");
    }
    require(time().await > first, "time goes forward");
}
