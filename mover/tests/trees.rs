//! What is read is what is written: on real directories of this machine, compared by other code than the mover's own.
//! They need root, as owners, devices and `trusted.*` do.

mod common;

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use common::{Random, copy, make, name, relay, run, set, time, told, truth};
use ocopea_mover::{
    Class,
    entry::{Entry, Kind},
    wire::{FrameReader, FrameWriter, Job, Message},
};
use rustix::fs::{FileType, Mode, mkfifoat, mknodat};

/// Two places to copy between: the machine's own filesystem and memory, both ways.
fn places() -> Vec<(tempfile::TempDir, tempfile::TempDir)> {
    let disk = || tempfile::tempdir().unwrap();
    let memory = || tempfile::tempdir_in("/dev/shm").unwrap();
    vec![(disk(), disk()), (disk(), memory()), (memory(), disk())]
}

fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

const NOBODY: u32 = u32::MAX;

/// One of everything that can be saved.
fn zoo(root: &Path) {
    let file = |path: &str, contents: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    };
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    file("empty", b"");
    let big = file("deep/er/big", &Random(5).bytes(3_000_000));
    chown(&big, Some(1234), Some(4_000_000_000)).unwrap();
    let suid = file("bin/suid", b"#!/bin/sh\n");
    chown(&suid, Some(77), Some(78)).unwrap();
    mode(&suid, 0o6755);
    // cap_net_bind_service, effective and permitted.
    set(&suid, "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let secret = file("secret/none", b"nobody may");
    mode(&secret, 0);
    mode(&root.join("secret"), 0o500);
    let tagged = file("tagged", b"x");
    set(&tagged, "user.comment", "gr\u{fc}n".as_bytes());
    set(&tagged, "user.empty", b"");
    set(&tagged, "trusted.own", &[0, 1, 2, 255]);
    set(&tagged, "user.large", &vec![b'l'; 3000]);
    let ruled = file("acl/ruled", b"x");
    let access = acl(&[(1, 6, NOBODY), (2, 7, 1000), (4, 4, NOBODY), (0x10, 7, NOBODY), (0x20, 0, NOBODY)]);
    set(&ruled, "system.posix_acl_access", &access);
    set(&root.join("acl"), "system.posix_acl_default", &access);
    // Made under a default ACL: what it inherited is its own now.
    fs::write(root.join("acl/heir"), b"x").unwrap();
    fs::create_dir_all(root.join("acl/heirs/of heirs")).unwrap();
    let group = root.join("acl/heirs");
    chown(&group, None, Some(55)).unwrap();
    mode(&group, 0o2775);
    fs::create_dir_all(root.join("nothing/in/here")).unwrap();
    mode(&root.join("nothing"), 0o1777);
    symlink("/etc/passwd", root.join("out")).unwrap();
    symlink("../../../..", root.join("deep/up")).unwrap();
    symlink(name(b"any \xff bytes\n"), root.join("dangling")).unwrap();
    lchown(root.join("dangling"), Some(9), Some(10)).unwrap();
    set(&root.join("dangling"), "trusted.link", b"on a link");
    mkfifoat(rustix::fs::CWD, root.join("pipe"), Mode::from_raw_mode(0o640)).unwrap();
    lchown(root.join("pipe"), Some(3), Some(4)).unwrap();
    set(&root.join("pipe"), "trusted.pipe", b"on a pipe");
    fs::hard_link(&tagged, root.join("deep/er/tagged too")).unwrap();
    fs::hard_link(&tagged, root.join("acl/tagged as well")).unwrap();
    fs::hard_link(root.join("out"), root.join("zzz link to a link")).unwrap();
    fs::hard_link(root.join("pipe"), root.join("also a pipe")).unwrap();
    for bytes in
        [&b"\xff\xfe\x01"[..], b"new\nline", b"-rf", b" ", b"...", b"*", b"\"'`$(x)", b"a\\b", "ünï".as_bytes()]
    {
        fs::write(root.join(name(bytes)), bytes).unwrap();
    }
    fs::write(root.join(name(&[b'n'; 255])), b"longest").unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(&[7; 5000], 1 << 24).unwrap();
    sparse.set_len((1 << 25) + 12_345).unwrap();
    fs::File::create(root.join("only a hole")).unwrap().set_len(1 << 26).unwrap();
    let zeros = file("written zeros", &vec![0; 1 << 20]);
    mode(&zeros, 0o444);
    // Times last, deepest first.
    let mut paths: Vec<PathBuf> = truth(root).into_keys().collect();
    paths.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for (n, path) in (0..).zip(&paths) {
        time(
            &root.join(path),
            [0, -86_400, 1_700_000_000, 4_102_444_800][n % 4],
            123_456_789 + i64::try_from(n).unwrap(),
        );
    }
    mode(root, 0o2751);
    chown(root, Some(501), Some(502)).unwrap();
    mode(root, 0o2751);
    set(root, "user.root", b"has attributes too");
    time(root, 1_600_000_000, 999_999_999);
}

#[test]
fn everything_comes_back_as_it_was() {
    for (from, to) in places() {
        zoo(from.path());
        let wanted = truth(from.path());
        assert!(wanted.len() > 35);
        let said = copy(from.path(), to.path());
        assert_eq!((said.skipped, said.again), (vec![], 0));
        let found = truth(to.path());
        for (path, wanted) in &wanted {
            let found = found.get(path).unwrap_or_else(|| panic!("{path:?} is missing"));
            let blocks = |n: u64| n.next_multiple_of(64);
            assert!(
                blocks(found.blocks) <= blocks(wanted.blocks),
                "{path:?} takes {} blocks, it took {}",
                found.blocks,
                wanted.blocks
            );
            // tmpfs counts no blocks of its own for what a larger page holds.
            let alike = common::Truth { blocks: wanted.blocks, ..found.clone() };
            assert_eq!(&alike, wanted, "{path:?}");
        }
        assert_eq!(found.len(), wanted.len());
        let (a, b) = (told(from.path(), Job::Count).unwrap(), told(to.path(), Job::Count).unwrap());
        assert_eq!(blake3::hash(&a), blake3::hash(&b), "both count the same");
    }
}

#[test]
fn counts_are_those_of_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    zoo(dir.path());
    let truth = truth(dir.path());
    let count = |kind: &str| truth.values().filter(|t| t.kind == kind).count() as u64;
    let (_, said) = relay(&told(dir.path(), Job::Read).unwrap());
    let totals = said.totals;
    assert_eq!(totals.entries, truth.len() as u64);
    assert_eq!(totals.directories, count("directory"));
    assert_eq!(totals.hard_links, 4);
    assert_eq!(totals.files + totals.symlinks + totals.fifos + 4, truth.len() as u64 - count("directory"));
    assert!(totals.bytes > (1 << 26) && totals.data < 8_000_000, "holes are not sent: {totals:?}");
    assert_eq!(totals.changed, 0, "{:?}", said.changed);
}

#[test]
fn the_same_tree_is_told_in_the_same_bytes_whatever_the_order_it_was_made_in() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (dir, step) in [(one.path(), 1), (two.path(), 617)] {
        for n in 0..1000 {
            let n = (n * step) % 1000;
            let path = dir.join(format!("{}/{}", n % 7, n));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, n.to_string()).unwrap();
            time(&path, 5, n);
        }
        for n in 0..7 {
            time(&dir.join(n.to_string()), 6, n);
        }
        time(dir, 7, 0);
    }
    assert!(told(one.path(), Job::Read).unwrap() == told(two.path(), Job::Read).unwrap());
}

#[test]
fn sockets_and_devices_are_told_and_not_saved() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
    mknodat(
        rustix::fs::CWD,
        from.path().join("null"),
        FileType::CharacterDevice,
        Mode::RUSR,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    mknodat(rustix::fs::CWD, from.path().join("disk"), FileType::BlockDevice, Mode::RUSR, rustix::fs::makedev(7, 0))
        .unwrap();
    fs::write(from.path().join("file"), "x").unwrap();
    let said = copy(from.path(), to.path());
    assert_eq!(said.skipped, ["Device disk", "Device null", "Socket socket"]);
    assert_eq!(said.totals.skipped, 3);
    assert_eq!(truth(to.path()).len(), 2);
}

/// Does something to the tree as soon as some bytes were told.
struct Meddler<'a> {
    told: Vec<u8>,
    at: &'a [u8],
    act: Option<Box<dyn FnOnce() + 'a>>,
}

impl Write for Meddler<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.told.extend_from_slice(bytes);
        if self.told.windows(self.at.len()).any(|window| window == self.at)
            && let Some(act) = self.act.take()
        {
            act();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn meddled(root: &Path, at: &[u8], act: impl FnOnce()) -> common::Said {
    let meddler = Meddler { told: Vec::new(), at, act: Some(Box::new(act)) };
    let mut out = FrameWriter::new(meddler);
    out.send(&Message::Hello { job: Job::Read, trusted: true, entries: 0, data: 0 }).unwrap();
    let totals = ocopea_mover::read::walk(ocopea_mover::open_root(root).unwrap(), Job::Read, &mut out).unwrap();
    out.send(&Message::End(totals)).unwrap();
    assert!(out.get_mut().act.is_none());
    relay(&out.get_mut().told).1
}

#[test]
fn a_directory_removed_before_it_is_listed_is_counted_and_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a-short-life")).unwrap();
    fs::write(dir.path().join("stays"), "x").unwrap();
    let said = meddled(dir.path(), b"a-short-life", || fs::remove_dir(dir.path().join("a-short-life")).unwrap());
    assert!(said.changed.contains(&"Vanished a-short-life".to_owned()), "{:?}", said.changed);
    assert_eq!(said.totals.files, 1);
}

#[test]
fn what_is_removed_or_renamed_behind_the_reader_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("a/one"), "x").unwrap();
    fs::write(dir.path().join("zuletzt"), "x").unwrap();
    let said = meddled(dir.path(), b"zuletzt", || {
        // A filesystem's clock goes by ticks: what changes within the tick of the beginning is seen, but not named.
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::rename(dir.path().join("a/one"), dir.path().join("a/two")).unwrap();
    });
    assert!(said.changed.iter().any(|name| name == "AfterStart a"), "{:?}", said.changed);
}

#[test]
fn a_flag_of_the_filesystem_that_isnt_saved_is_told() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("fixed"), "x").unwrap();
    fs::write(from.path().join("free"), "x").unwrap();
    let file = fs::File::open(from.path().join("fixed")).unwrap();
    let plain = rustix::fs::ioctl_getflags(&file).unwrap();
    rustix::fs::ioctl_setflags(&file, plain | rustix::fs::IFlags::IMMUTABLE).unwrap();
    let said = std::panic::catch_unwind(|| copy(from.path(), to.path()));
    rustix::fs::ioctl_setflags(&file, plain).unwrap();
    assert_eq!(said.unwrap().skipped, ["Attribute fixed (chattr +i)"]);
    assert!(truth(from.path()) == truth(to.path()));
}

#[test]
fn another_filesystem_below_the_root_is_told_and_not_entered() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("mounted")).unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    // In a mount namespace of its own: nothing is left mounted whatever happens.
    let script = format!(
        "mount -t tmpfs none {0}/mounted && echo inside > {0}/mounted/in && exec {1} read --root {0}",
        dir.path().display(),
        common::BIN
    );
    let (out, code, errors) = run(std::process::Command::new("unshare").args(["--mount", "sh", "-c", &script]));
    assert_eq!(code, 0, "{errors}");
    let (_, said) = relay(&out);
    assert_eq!(said.skipped, ["MountPoint mounted"]);
    assert_eq!(said.totals.entries, 2);
}

#[test]
fn twenty_thousand_small_files_are_copied_in_seconds() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut random = Random(11);
    for n in 0..20_000u64 {
        let dir = from.path().join(format!("{:02x}", n % 200));
        fs::create_dir_all(&dir).unwrap();
        let length = usize::try_from(random.next() % 600).unwrap();
        fs::write(dir.join(format!("{:x}", random.next())), random.bytes(length)).unwrap();
    }
    let start = Instant::now();
    let said = copy(from.path(), to.path());
    let took = start.elapsed();
    assert_eq!((said.totals.files, said.totals.directories), (20_000, 201));
    assert!(truth(from.path()) == truth(to.path()));
    // Not a benchmark: quadratic work would take minutes.
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn trees_deeper_than_paths_can_be_are_copied() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let depth = 600;
    let step = &[b'd'; 50][..];
    let root = ocopea_mover::open_root(from.path()).unwrap();
    let mut chain = vec![root];
    for _ in 0..depth {
        let here = chain.last().unwrap();
        rustix::fs::mkdirat(here, step, Mode::RWXU).unwrap();
        let below =
            rustix::fs::openat(here, step, rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC, Mode::empty())
                .unwrap();
        rustix::io::write(
            rustix::fs::openat(
                &below,
                "file",
                rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
                Mode::RUSR,
            )
            .unwrap(),
            b"deep",
        )
        .unwrap();
        chain.push(below);
    }
    // The second name of the shallowest file, at the bottom.
    rustix::fs::linkat(&chain[1], "file", chain.last().unwrap(), "linked", rustix::fs::AtFlags::empty()).unwrap();
    rustix::fs::symlinkat("x", chain.last().unwrap(), "link at the bottom").unwrap();
    drop(chain);
    let said = copy(from.path(), to.path());
    assert_eq!(said.totals.directories, depth + 1);
    assert_eq!(said.totals.hard_links, 1);
    let (a, b) = (told(from.path(), Job::Count).unwrap(), told(to.path(), Job::Count).unwrap());
    assert!(a == b);
    // Longer than a path may be for a frame: said, not cut.
    let deeper = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {} && for i in $(seq 340); do mkdir {d} && cd -P {d} || exit 1; done",
        deeper.path().display(),
        d = "d".repeat(200)
    );
    assert!(std::process::Command::new("bash").args(["-c", &script]).status().unwrap().success());
    assert_eq!(told(deeper.path(), Job::Read).unwrap_err().class, Class::Limit);
}

#[test]
fn a_sparse_file_keeps_its_holes_and_costs_no_more_to_send() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut file = fs::File::create(from.path().join("f")).unwrap();
    for n in 0..1000u64 {
        file.seek(SeekFrom::Start(n * 1_000_000)).unwrap();
        file.write_all(&[1; 100]).unwrap();
    }
    drop(file);
    let said = copy(from.path(), to.path());
    assert!(said.totals.data <= 1000 * 8192, "{}", said.totals.data);
    let blocks = |dir: &tempfile::TempDir| fs::metadata(dir.path().join("f")).unwrap().blocks();
    assert_eq!(blocks(&from), blocks(&to));
    assert!(truth(from.path()) == truth(to.path()));
}

#[test]
fn a_filesystems_own_lost_found_is_no_file_of_the_application() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("f"), "x").unwrap();
    fs::create_dir(to.path().join("lost+found")).unwrap();
    copy(from.path(), to.path());
    let (a, b) = (told(from.path(), Job::Count).unwrap(), told(to.path(), Job::Count).unwrap());
    assert!(a == b);
    // With something in it, it is saved, and comes back into the one that is there.
    let again = tempfile::tempdir().unwrap();
    fs::create_dir(again.path().join("lost+found")).unwrap();
    fs::write(to.path().join("lost+found/#12"), "found").unwrap();
    copy(to.path(), again.path());
    assert!(truth(to.path()) == truth(again.path()));
}

#[test]
fn a_volume_that_holds_something_is_left_as_it_is() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    zoo(from.path());
    zoo(to.path());
    let before = truth(to.path());
    let (stream, _) = relay(&told(from.path(), Job::Read).unwrap());
    let fault = make(to.path(), &stream).unwrap_err();
    assert_eq!(fault.class, Class::NotEmpty);
    assert!(fault.message.contains("it holds "), "{fault}");
    assert!(truth(to.path()) == before);
}

#[test]
fn what_an_unfinished_write_left_is_removed_by_the_next_and_nothing_else() {
    let (from, to, outside) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    zoo(from.path());
    fs::write(outside.path().join("canary"), "lives").unwrap();
    symlink(outside.path(), from.path().join("deep/away")).unwrap();
    let (stream, _) = relay(&told(from.path(), Job::Read).unwrap());
    for part in [200, stream.len() / 3, stream.len() - 20] {
        let fault = make(to.path(), &stream[..part]).unwrap_err();
        assert_eq!(fault.class, Class::Cut);
        let fault = told(to.path(), Job::Read).unwrap_err();
        assert!(fault.message.contains("half-written"), "{fault}");
    }
    make(to.path(), &stream).unwrap();
    assert!(told(from.path(), Job::Count).unwrap() == told(to.path(), Job::Count).unwrap());
    assert_eq!(fs::read_to_string(outside.path().join("canary")).unwrap(), "lives");
}

#[test]
fn two_writers_dont_meet_in_one_volume() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("f"), "x").unwrap();
    let (stream, _) = relay(&told(from.path(), Job::Read).unwrap());
    let other = ocopea_mover::open_root(to.path()).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(make(to.path(), &stream).unwrap_err().class, Class::Busy);
    drop(other);
    make(to.path(), &stream).unwrap();
}

#[test]
fn the_programs_write_ends_with_what_can_be_read_back() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    zoo(from.path());
    let (stream, said) = relay(&told(from.path(), Job::Read).unwrap());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &stream).unwrap();
    let out = std::process::Command::new(common::BIN)
        .args(["write", "--root"])
        .arg(to.path())
        .stdin(fs::File::open(file.path()).unwrap())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut reader = FrameReader::new(out.stdout.as_slice());
    assert_eq!(reader.hello().unwrap().0, Job::Write);
    let mut entries = 0;
    loop {
        match reader.next().unwrap() {
            Message::Entry(_) => entries += 1,
            Message::End(totals) => {
                assert_eq!(totals.of_tree(), said.totals.of_tree());
                break;
            }
            _ => {}
        }
    }
    assert_eq!(entries, said.totals.entries);
}

fn entry(path: &[u8], kind: Kind) -> Message<'static> {
    let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { 0o755 };
    let path = path.to_vec();
    if let Kind::HardLink(target) = kind {
        return Message::Entry(Entry::hard_link(path, target));
    }
    Message::Entry(Entry { path, kind, mode, uid: 0, gid: 0, seconds: 1, nanos: 0, attributes: vec![] })
}

#[test]
fn a_hostile_stream_writes_nothing_outside() {
    let above = tempfile::tempdir().unwrap();
    let (outside, to) = (above.path().join("outside"), above.path().join("to"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "lives").unwrap();
    fs::create_dir(&to).unwrap();
    let before = truth(&outside);
    let root = || entry(b"", Kind::Directory);
    let link = |path: &[u8]| entry(path, Kind::Symlink(outside.to_str().unwrap().as_bytes().to_vec()));
    let file = |path: &[u8]| entry(path, Kind::File);
    let hard = |path: &[u8], target: &[u8]| entry(path, Kind::HardLink(target.to_vec()));
    let hello = |data| Message::Hello { job: Job::Write, trusted: false, entries: 100, data };
    let streams: Vec<(u64, Vec<Message<'_>>)> = vec![
        (9, vec![root(), link(b"l"), file(b"l/x")]),
        (9, vec![root(), link(b"l"), entry(b"l", Kind::Directory)]),
        (9, vec![root(), link(b"l"), entry(b"l/d", Kind::Directory)]),
        (9, vec![root(), link(b"l"), hard(b"m", b"l/canary")]),
        (9, vec![root(), entry(b"a", Kind::Directory), entry(b"a/up", Kind::Symlink(b"..".to_vec())), file(b"a/up/x")]),
        (9, vec![root(), file(b"../x")]),
        (9, vec![root(), file(b"/x")]),
        (9, vec![root(), entry(b"a", Kind::Directory), file(b"a/../../x")]),
        (9, vec![root(), hard(b"m", b"../outside/canary")]),
        (9, vec![root(), hard(b"m", b".ocopea-unfinished")]),
        (9, vec![root(), file(b".ocopea-unfinished")]),
        (9, vec![file(b"x")]),
        (9, vec![root(), Message::Data { offset: 0, bytes: b"of no file" }]),
        (3, vec![root(), file(b"x"), Message::Data { offset: 0, bytes: b"more than announced" }]),
        (9, vec![root(), file(b"x"), Message::Data { offset: u64::MAX - 2, bytes: b"far" }]),
        (9, vec![root(), file(b"x"), Message::Done { size: 0, hash: [0; 32] }]),
    ];
    for (data, messages) in streams {
        let mut bytes = Vec::new();
        let mut out = FrameWriter::new(&mut bytes);
        out.send(&hello(data)).unwrap();
        messages.iter().for_each(|message| out.send(message).unwrap());
        let fault = make(&to, &bytes).unwrap_err();
        assert!(matches!(fault.class, Class::Refused | Class::Protocol), "{messages:?}: {fault:?}");
        assert!(truth(&outside) == before, "{messages:?}");
        assert_eq!(fs::read_dir(above.path()).unwrap().count(), 2, "{messages:?}");
    }
    assert!(!Path::new("/x").exists());
}
