#!/usr/bin/env python3
"""image.py BINARY OUT VERSION...: an OCI layout with one image per version, standard library only.

All versions share the layer with the program and the libraries that it loads; a second layer of a few bytes says which
version the image is. The same input gives the same digests.
"""
import gzip, hashlib, io, json, os, re, subprocess, sys, tarfile

binary, out, versions = sys.argv[1], sys.argv[2], sys.argv[3:]
blobs = os.path.join(out, "blobs", "sha256")
os.makedirs(blobs, exist_ok=True)


def put(data):
    digest = hashlib.sha256(data).hexdigest()
    with open(os.path.join(blobs, digest), "wb") as file:
        file.write(data)
    return "sha256:" + digest, len(data)


def layer(entries):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data, mode in entries:
            info = tarfile.TarInfo(name)
            info.mode = mode
            if data is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    diff = "sha256:" + hashlib.sha256(raw.getvalue()).hexdigest()
    digest, size = put(gzip.compress(raw.getvalue(), 6, mtime=0))
    return diff, {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size}


def read(path):
    with open(path, "rb") as file:
        return file.read()


def libraries(program):
    """What the loader would load, the loader included, each where it looks for it; nothing for a static program."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True)
    paths = re.findall(r"(?:=> |^\s*)(/\S+) \(0x", said.stdout, re.MULTILINE)
    return [(path.lstrip("/"), read(path), 0o755) for path in sorted(set(paths))]


program = layer([("lets-chat", read(binary), 0o755), ("etc", None, 0o755), ("uploads", None, 0o777), *libraries(binary)])
manifests = []
for version in versions:
    label = layer([("etc", None, 0o755), ("etc/lets-chat-version", (version + "\n").encode(), 0o644)])
    config = {
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {
            "User": "10001:10001", "Entrypoint": ["/lets-chat"], "Cmd": ["serve"], "WorkingDir": "/",
            "Env": ["PATH=/"], "ExposedPorts": {"8080/tcp": {}},
            "Labels": {"org.opencontainers.image.title": "lets-chat", "org.opencontainers.image.version": version},
        },
        "rootfs": {"type": "layers", "diff_ids": [program[0], label[0]]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "program"},
                    {"created": "2026-01-01T00:00:00Z", "created_by": "version " + version}],
    }
    digest, size = put(json.dumps(config, sort_keys=True).encode())
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size},
        "layers": [program[1], label[1]],
    }
    digest, size = put(json.dumps(manifest, sort_keys=True).encode())
    manifests.append({
        "mediaType": manifest["mediaType"], "digest": digest, "size": size,
        "platform": {"architecture": "amd64", "os": "linux"},
        "annotations": {"org.opencontainers.image.ref.name": version},
    })
    print(version, digest)
with open(os.path.join(out, "index.json"), "w") as file:
    json.dump({"schemaVersion": 2, "manifests": manifests}, file)
with open(os.path.join(out, "oci-layout"), "w") as file:
    file.write('{"imageLayoutVersion":"1.0.0"}')
