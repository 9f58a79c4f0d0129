//! What every backend must do. Each one's tests call [`check`] with an empty store.
#![expect(clippy::panic, reason = "a conformance suite fails by panicking; it runs in tests only")]

use bytes::Bytes;
use futures::{StreamExt, future::join_all, stream};

use super::{Backend, Put};
use crate::{crypto::sha256, error::Error};

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
    a_stream_is_taken_whole_and_right_or_not_at_all(backend).await;
}

async fn objects_are_written_read_and_deleted(backend: &dyn Backend) {
    require(matches!(backend.get("a/b", 10).await, Err(Error::NotFound(_))), "what isn't there is not found");
    require(matches!(backend.create("a/b", Bytes::from_static(b"0123456789")).await, Ok(Put::Created)), "create makes");
    require(matches!(backend.create("a/b", Bytes::from_static(b"x")).await, Ok(Put::Existed)), "create never overwrites");
    require(backend.get("a/b", 10).await.is_ok_and(|b| &b[..] == b"0123456789"), "what was written is read");
    require(backend.get("a/b", 9).await.is_err(), "a limit holds");
    require(backend.range("a/b", 3, 4).await.is_ok_and(|b| &b[..] == b"3456"), "a range is read");
    require(backend.range("a/b", 8, 100).await.is_ok_and(|b| &b[..] == b"89"), "a range ends with the object");
    require(backend.create("a/c/d", Bytes::new()).await.is_ok(), "an empty object is fine");
    let names = backend.list("a/").await.map(|l| l.into_iter().map(|e| (e.name, e.size)).collect::<Vec<_>>());
    require(names.is_ok_and(|n| n == [("a/b".to_owned(), 10), ("a/c/d".to_owned(), 0)]), "a listing is whole and sorted");
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

async fn a_stream_is_taken_whole_and_right_or_not_at_all(backend: &dyn Backend) {
    let parts = || stream::iter([Ok(Bytes::from_static(b"he")), Ok(Bytes::from_static(b"llo"))]).boxed();
    let name = format!("blobs/sha256/{}", sha256(b"hello").hex());
    let wrong = format!("blobs/sha256/{}", sha256(b"other").hex());
    require(matches!(backend.create_stream(&wrong, 5, parts()).await, Err(Error::WrongDigest { .. })), "a wrong digest is refused");
    require(backend.create_stream(&name, 6, parts()).await.is_err(), "a short stream is refused");
    require(backend.create_stream(&name, 4, parts()).await.is_err(), "a long stream is refused");
    let cut = stream::iter([Ok(Bytes::from_static(b"he")), Err(std::io::Error::other("cut"))]).boxed();
    require(backend.create_stream(&name, 5, cut).await.is_err(), "a cut stream is refused");
    require(backend.list("blobs/").await.is_ok_and(|l| l.is_empty()), "nothing of them is there");
    require(matches!(backend.create_stream(&name, 5, parts()).await, Ok(Put::Created)), "the right one is taken");
    require(backend.get(&name, 5).await.is_ok_and(|b| &b[..] == b"hello"), "and read");
}
