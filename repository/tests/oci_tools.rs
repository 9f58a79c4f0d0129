//! Other people's tools copy what lies in a repository, as it lies there.

mod common;

use std::{path::Path, process::Command};

use common::*;

/// Runs a tool; `None` when this machine doesn't have it.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    let output = match Command::new(tool).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("{tool} is not installed: not tried");
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
