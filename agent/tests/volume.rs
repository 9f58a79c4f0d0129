//! The volume driver with the real mover on real directories: what is saved is what comes back.
#![expect(clippy::unwrap_used, reason = "a test's helpers stop at the first surprise too")]

#[path = "support/image.rs"]
mod image;

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, OnceLock},
};

use async_trait::async_trait;
use image::{TestImage, TestRepository};
use ocopea_agent::{
    data::{Copied, DataService, Loaded, Reach, RunningTool, Subject, Tools, VolumeReach, volume::Volume},
    platform::exec::HostTools,
};
use ocopea_mover::wire::Job;
use ocopea_protocol::{
    failure::{FailureClass, TaskFailure},
    image::{Consistency, ConsistencyLevel, DataKind, StreamInfo},
    names::Digest,
    seams::Seams,
    task::Progress,
};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The program as it is built beside these tests.
fn mover() -> &'static Path {
    static MOVER: OnceLock<PathBuf> = OnceLock::new();
    MOVER.get_or_init(|| {
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "ocopea-mover"]).status().unwrap();
        assert!(built.success(), "the mover can't be built");
        let this = std::env::current_exe().unwrap();
        this.parent().unwrap().parent().unwrap().join("ocopea-mover")
    })
}

/// A directory as a volume.
struct Directory {
    root: PathBuf,
    writers: Vec<String>,
    /// What the mover says is cut off after so many bytes.
    cut: Option<u64>,
    jobs: Mutex<Vec<Job>>,
    /// Done to the directory before a mover starts.
    meanwhile: Option<Box<dyn Fn(Job) + Send + Sync>>,
}

#[async_trait]
impl VolumeReach for Directory {
    fn claim(&self) -> String {
        "uploads".to_owned()
    }

    async fn writers(&self) -> Result<Vec<String>, TaskFailure> {
        Ok(self.writers.clone())
    }

    async fn hold_writers(&self) -> Result<Option<String>, TaskFailure> {
        unreachable!("there is no cluster to end them in")
    }

    async fn let_go(&self, _hold: Option<&str>) -> Result<(), TaskFailure> {
        Ok(())
    }

    async fn mover(
        &self,
        job: Job,
        input: Option<Box<dyn AsyncRead + Send + Unpin>>,
    ) -> Result<RunningTool, TaskFailure> {
        self.jobs.lock().unwrap().push(job);
        if let Some(meanwhile) = &self.meanwhile {
            meanwhile(job);
        }
        let verb = match job {
            Job::Read => "read",
            Job::Count => "count",
            Job::Scan => "scan",
            Job::Write => "write",
        };
        let tools = HostTools { address: ([127, 0, 0, 1], 1).into(), seams: seams() };
        let arguments = [verb.to_owned(), "--root".to_owned(), self.root.display().to_string()];
        let mut tool = tools.start(mover().to_str().unwrap(), &arguments, &[], input).await?;
        if let Some(cut) = self.cut {
            tool.output = Box::new(tool.output.take(cut));
        }
        Ok(tool)
    }
}

fn seams() -> Seams {
    Seams::real(TaskTracker::new())
}

fn directory(root: &Path) -> Directory {
    Directory { root: root.to_owned(), writers: vec![], cut: None, jobs: Mutex::default(), meanwhile: None }
}

fn subject(volume: Directory) -> Subject {
    Subject {
        name: "uploads".parse().unwrap(),
        reach: Reach::Volume(Arc::new(volume)),
        seams: seams(),
        stop: CancellationToken::new(),
        progress: Arc::new(|_: Progress| {}),
    }
}

struct Saved {
    copied: Copied,
    manifest: Digest,
    new_bytes: u64,
}

async fn save(subject: &Subject, image: &TestImage) -> Result<Saved, TaskFailure> {
    let held = Volume.prepare(subject, false).await?.open().await?;
    let writer = image.writer(&subject.name, DataKind::Volume).await;
    let copied = Volume.copy(subject, &held.snapshot(), &writer).await?;
    let new_bytes = writer.written().new_bytes;
    let manifest = image.finish(writer, &copied.facts).await;
    held.release().await?;
    Ok(Saved { copied, manifest, new_bytes })
}

async fn load(subject: &Subject, image: &TestImage, saved: &Saved) -> Result<Loaded, TaskFailure> {
    Volume.load(subject, &image.reader(&saved.manifest).await, &saved.copied.streams).await
}

/// Everything that files can be.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("a/b/empty")).unwrap();
    fs::write(root.join("a/text"), "hello\n").unwrap();
    fs::write(root.join("a/zero"), "").unwrap();
    let noise: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(root.join("a/b/noise"), &noise).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(b"island", 700_000_000).unwrap();
    symlink("../nowhere", root.join("a/link")).unwrap();
    fs::hard_link(root.join("a/text"), root.join("a/b/also")).unwrap();
    fs::write(root.join("a/odd \n\u{7f}ü'\""), "x").unwrap();
    fs::set_permissions(root.join("a/text"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o1770)).unwrap();
    let status = Command::new("mkfifo").arg(root.join("a/pipe")).status().unwrap();
    assert!(status.success());
    let status = Command::new("touch").args(["-d", "2001-02-03 04:05:06.123456789"]).arg(root.join("a/zero")).status();
    assert!(status.unwrap().success());
}

/// What `find` says of a tree, and of the files' contents.
fn picture(root: &Path) -> Vec<String> {
    let found = Command::new("find")
        .args([".", "-printf", "%P|%y|%m|%U:%G|%s|%n|%T@|%l\\0"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(found.status.success());
    let mut lines: Vec<String> = found
        .stdout
        .split(|b| *b == 0)
        .filter(|line| !line.is_empty())
        .map(|line| {
            let line = String::from_utf8_lossy(line).into_owned();
            // The size of a directory is its filesystem's own affair.
            if line.split('|').nth(1) == Some("d") {
                line.replacen(line.split('|').nth(4).unwrap(), "", 1)
            } else {
                line
            }
        })
        .collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_comes_back_exactly_as_it_was_saved_and_saving_it_again_adds_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(from.path());
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let source = subject(directory(from.path()));
    let looked = Volume.inspect(&source).await.unwrap();
    assert_eq!(looked.gaps, vec![]);
    assert_eq!(looked.bytes.unwrap(), 3_000_000 + (1 << 30) + 6 + 1);
    let saved = save(&source, &image).await.unwrap();
    let [files] = saved.copied.streams.as_slice() else { panic!("{:?}", saved.copied.streams) };
    assert_eq!((files.name.as_str(), files.unit.as_str(), files.items), ("files", "files", 5));
    assert_eq!(saved.copied.consistency.level, ConsistencyLevel::Snapshot);
    assert!(saved.new_bytes < 3_300_000, "holes are not stored: {}", saved.new_bytes);

    let target = subject(directory(to.path()));
    let loaded = load(&target, &image, &saved).await.unwrap();
    assert_eq!(loaded.streams, saved.copied.streams);
    assert_eq!(picture(to.path()), picture(from.path()));
    let same =
        Command::new("diff").args(["-r", "--no-dereference", "--exclude=pipe"]).args([from.path(), to.path()]).status();
    assert!(same.unwrap().success());

    // Known again, wherever it lies now.
    let again = save(&target, &image).await.unwrap();
    assert_eq!(again.copied.streams, saved.copied.streams);
    assert!(again.new_bytes < 4096, "{} bytes are new", again.new_bytes);

    // An attempt that finished unheard is taken for what it is; what somebody else has there is not touched.
    let repeated = load(&target, &image, &saved).await.unwrap();
    assert_eq!(repeated.streams, saved.copied.streams);
    fs::write(to.path().join("foreign"), "mine").unwrap();
    let refused = load(&target, &image, &saved).await.unwrap_err();
    assert_eq!((refused.code.as_str(), refused.class), ("data.not-empty", FailureClass::Permanent));
    assert_eq!(fs::read(to.path().join("foreign")).unwrap(), b"mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_changed_bytes_in_the_middle_add_little() {
    let from = tempfile::tempdir().unwrap();
    let mut noise: Vec<u8> =
        (0..20_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8 ^ (i >> 9) as u8).collect();
    fs::write(from.path().join("big"), &noise).unwrap();
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    save(&subject(directory(from.path())), &image).await.unwrap();
    noise.splice(5_000_000..5_000_000, *b"inserted");
    fs::write(from.path().join("big"), &noise).unwrap();
    fs::write(from.path().join("a-new-one"), &noise[..3_000_000]).unwrap();
    let again = save(&subject(directory(from.path())), &image).await.unwrap();
    assert!(again.new_bytes < 8_000_000, "{} bytes are new", again.new_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_writers_change_meanwhile_is_named_and_the_image_says_so() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("still"), "s").unwrap();
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let quiet = Directory { writers: vec!["pod web-0".to_owned()], ..directory(from.path()) };
    let quiet = save(&subject(quiet), &image).await.unwrap();
    assert_eq!(quiet.copied.consistency.level, ConsistencyLevel::CrashConsistent);
    assert!(quiet.copied.consistency.why.contains("pod web-0"));

    let (root, stop) = (from.path().to_owned(), CancellationToken::new());
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        let mut count = 0u32;
        while !stopped.is_cancelled() {
            fs::write(root.join("busy"), count.to_string().repeat(100_000)).unwrap();
            count += 1;
        }
    });
    // On a busy machine the writer may stand still for as long as a whole save takes: then nothing has changed. Its first
    // write may come when the directory was read already: then that has changed, and no file.
    let names_it = |one: &Consistency| one.changed.iter().any(|name| name.contains("busy"));
    let mut consistency = None;
    for _ in 0..20 {
        let busy = Directory { writers: vec!["pod web-0".to_owned()], ..directory(from.path()) };
        let saved = save(&subject(busy), &image).await.unwrap().copied.consistency;
        if names_it(consistency.insert(saved)) {
            break;
        }
    }
    stop.cancel();
    writer.join().unwrap();
    let consistency = consistency.unwrap();
    assert_eq!(consistency.level, ConsistencyLevel::Inconsistent);
    assert!(names_it(&consistency), "{consistency:?}");
}

/// What was told of it and is void counts on both sides.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_grows_while_it_is_read_is_read_again_and_saved() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("log"), vec![7u8; 4_000_000]).unwrap();
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    use std::io::Write;
    let (mut log, stop) =
        (fs::File::options().append(true).open(from.path().join("log")).unwrap(), CancellationToken::new());
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        while !stopped.is_cancelled() {
            log.write_all(b"a line\n").unwrap();
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    });
    let mut torn = false;
    for _ in 0..20 {
        let busy = Directory { writers: vec!["pod web-0".to_owned()], ..directory(from.path()) };
        let saved = save(&subject(busy), &image).await.unwrap().copied.consistency;
        torn = saved.changed.iter().any(|name| name.contains("log (changed while it was read)"));
        if torn {
            break;
        }
    }
    stop.cancel();
    writer.join().unwrap();
    assert!(torn, "in twenty saves nothing changed while it was read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_or_a_mover_that_dies_is_a_failure_that_can_be_tried_again() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(from.path());
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    for cut in [0, 3, 60, 5_000, 2_000_000] {
        let failure = save(&subject(Directory { cut: Some(cut), ..directory(from.path()) }), &image).await;
        let failure = failure.err().unwrap();
        assert!(failure.is_retryable(), "cut at {cut}: {failure:?}");
    }
    let saved = save(&subject(directory(from.path())), &image).await.unwrap();
    // Cut after the greeting: what was begun is cleared away by the next attempt.
    let failed = load(&subject(Directory { cut: Some(60), ..directory(to.path()) }), &image, &saved).await.unwrap_err();
    assert!(failed.is_retryable(), "{failed:?}");
    let loaded = load(&subject(directory(to.path())), &image, &saved).await.unwrap();
    assert_eq!(loaded.streams, saved.copied.streams);
    assert_eq!(picture(to.path()), picture(from.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_is_a_named_failure() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let noise: Vec<u8> = (0..6_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(from.path().join("big"), noise).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(to.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("not tried: mounting needs root");
        return;
    }
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let saved = save(&subject(directory(from.path())), &image).await.unwrap();
    let failed = load(&subject(directory(to.path())), &image, &saved).await;
    Command::new("umount").arg(to.path()).status().unwrap();
    let failed = failed.unwrap_err();
    assert_eq!(failed.code, "data.full");
    assert!(failed.cause.contains("big"), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arrival_that_differs_is_seen_in_its_content_hash() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(from.path());
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let saved = save(&subject(directory(from.path())), &image).await.unwrap();
    load(&subject(directory(to.path())), &image, &saved).await.unwrap();
    fs::set_permissions(to.path().join("a/zero"), fs::Permissions::from_mode(0o600)).unwrap();
    let other: Vec<StreamInfo> = save(&subject(directory(to.path())), &image).await.unwrap().copied.streams;
    assert_ne!(other[0].content, saved.copied.streams[0].content);
    assert_eq!(other[0].items, saved.copied.streams[0].items);
}
