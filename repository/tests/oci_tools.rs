//! Other people's tools copy what lies in a repository, as it lies there.

mod common;

use std::{path::Path, process::Command};

use common::*;

/// A tool that isn't here: nothing is tried, but where everything was set up for it, that is a fault.
fn absent(tool: &str) {
    assert!(std::env::var_os("OCOPEA_TEST_TOOLS").is_none(), "{tool} is not installed");
    println!("{tool} is not installed: not tried");
}

/// Runs a tool; `None` when this machine doesn't have it.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    let output = match Command::new(tool).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            absent(tool);
            return None;
        }
        Err(error) => panic!("{tool}: {error}"),
    };
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every blob that the image needs is in the copy, byte by byte; its index may have been rewritten.
fn is_whole(world: &World, saved: &Saved, copy: &Path) {
    let own = world.objects();
    let mut compared = 0;
    for (name, bytes) in own.iter().filter(|(name, _)| name.starts_with("blobs/")) {
        if *name == format!("blobs/sha256/{}", saved.reference.index.hex()) {
            continue;
        }
        assert!(
            std::fs::read(copy.join(name)).is_ok_and(|copied| copied == *bytes),
            "{name} is not in the copy: {}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(300)])
        );
        compared += 1;
    }
    assert!(compared > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_images_and_single_containers_out_of_the_directory() {
    let world = World::new().await;
    let saved = world.save("first", &[(b"a", prose(3_000_000, 1)), (b"b", noise(100_000, 2))], None).await;
    let out = tempfile::tempdir().unwrap();
    let (image, at) = (saved.reference.image, world.path(""));
    let at = at.to_str().unwrap().trim_end_matches('/');
    let whole = format!("oci:{at}:{image}");
    let Some(_) = run("skopeo", &["copy", "--all", &whole, &format!("oci:{}:copy", out.path().join("all").display())])
    else {
        return;
    };
    is_whole(&world, &saved, &out.path().join("all"));
    for (reference, architecture) in [(format!("{image}/web"), "amd64"), (format!("{image}/web-linux-arm64"), "arm64")]
    {
        let from = format!("oci:{at}:{reference}");
        let shown = run("skopeo", &["inspect", &from]).unwrap();
        assert!(shown.contains(&format!("\"Architecture\": \"{architecture}\"")), "{shown}");
        let to = out.path().join(architecture);
        run("skopeo", &["copy", &from, &format!("dir:{}", to.display())]);
        let manifest = std::fs::read(to.join("manifest.json")).unwrap();
        let ocopea_repository::Body::Container { platforms, .. } = &saved.record.components[1].body else { panic!() };
        assert!(platforms.iter().any(|platform| platform.manifest == sha256(&manifest)), "the same digest");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oras_copies_images_and_single_containers_out_of_the_directory() {
    let world = World::new().await;
    let saved = world.save("first", &[(b"a", prose(3_000_000, 1))], None).await;
    let out = tempfile::tempdir().unwrap();
    let (image, at) = (saved.reference.image, world.path(""));
    let at = at.to_str().unwrap().trim_end_matches('/');
    let to = out.path().join("all");
    let arguments =
        ["cp", "--from-oci-layout", &format!("{at}:{image}"), "--to-oci-layout", &format!("{}:copy", to.display())];
    let Some(_) = run("oras", &arguments) else { return };
    is_whole(&world, &saved, &to);
    let index = format!("blobs/sha256/{}", saved.reference.index.hex());
    assert_eq!(std::fs::read(to.join(&index)).unwrap(), world.objects()[&index], "oras keeps the index too");
    let one = out.path().join("one");
    run(
        "oras",
        &[
            "cp",
            "--from-oci-layout",
            &format!("{at}:{image}/web"),
            "--to-oci-layout",
            &format!("{}:web", one.display()),
        ],
    );
    let ocopea_repository::Body::Container { platforms, .. } = &saved.record.components[1].body else { panic!() };
    assert!(one.join(format!("blobs/sha256/{}", platforms[0].manifest.hex())).exists());
}

/// Debian's registry on a free port of the loopback interface, gone with the test.
struct Registry {
    child: std::process::Child,
    _directory: tempfile::TempDir,
    host: String,
}

impl Registry {
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let settings = directory.path().join("registry.yaml");
        let root = directory.path().join("blobs");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n",
            root.display()
        );
        std::fs::write(&settings, text).unwrap();
        let silent = std::process::Stdio::null;
        let child =
            Command::new("docker-registry").arg("serve").arg(&settings).stdout(silent()).stderr(silent()).spawn();
        let Ok(child) = child else {
            absent("docker-registry");
            return None;
        };
        let registry = Self { child, _directory: directory, host };
        for _ in 0..200 {
            if std::net::TcpStream::connect(&registry.host).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the registry does not answer");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_copies_images_and_containers_once_they_are_in_a_registry() {
    let world = World::new().await;
    let saved = world.save("first", &[(b"a", prose(3_000_000, 1))], None).await;
    let Some(registry) = Registry::start() else { return };
    let (image, at) = (saved.reference.image, world.path(""));
    let at = at.to_str().unwrap().trim_end_matches('/');
    let (whole, single) = (format!("{}/whole:1", registry.host), format!("{}/web:1", registry.host));
    let arguments = ["cp", "--from-oci-layout", &format!("{at}:{image}"), "--to-plain-http", &whole];
    let Some(_) = run("oras", &arguments) else { return };
    let from = format!("oci:{at}:{image}/web");
    run("skopeo", &["copy", "--preserve-digests", "--dest-tls-verify=false", &from, &format!("docker://{single}")]);
    let ocopea_repository::Body::Container { platforms, .. } = &saved.record.components[1].body else { panic!() };
    for (from, to, digest) in [
        (&whole, format!("{}/copy/whole:2", registry.host), saved.reference.index),
        (&single, format!("{}/copy/web:2", registry.host), platforms[0].manifest),
    ] {
        let Some(_) = run("crane", &["copy", "--insecure", from, &to]) else { return };
        assert_eq!(run("crane", &["digest", "--insecure", &to]).unwrap().trim(), digest.to_string());
        run("crane", &["validate", "--insecure", "--fast", "--remote", &to]);
    }
    // And back out of the registry whole, every blob as it was.
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("back");
    let from = format!("{}/copy/whole:2", registry.host);
    run("oras", &["cp", "--from-plain-http", &from, "--to-oci-layout", &format!("{}:x", to.display())]);
    is_whole(&world, &saved, &to);
}
