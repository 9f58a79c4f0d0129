"""What the tests that end parts of Ocopea share: where things are, an application to save, and looks at what is there."""
import base64
import functools
import json
import os
import ssl
import subprocess
import threading
import urllib.error
import urllib.request

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target")), "debug", "ocopea")
REGISTRY = os.environ.get("OCOPEA_TEST_REGISTRY", "172.31.0.254:5000")
KUBECONFIG = os.environ.get("KUBECONFIG", os.path.join(os.environ.get("TESTBED", os.path.join(TOP, ".testbed")), "kubeconfig"))
CONTEXTS = ("a", "b")
TERMINAL = ("succeeded", "failed", "cancelled")

# A database, a volume, and something that uses both.
WHOLE = """
apiVersion: v1
kind: Secret
metadata: {name: db}
stringData: {uri: "mongodb://db.NAMESPACE.svc.cluster.local:27017/shop"}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {selector: {app: db}, ports: [{port: 27017}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: uploads}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: db, image: "REGISTRY/testbed/mongodb:6", ports: [{containerPort: 27017}],
        readinessProbe: {tcpSocket: {port: 27017}, periodSeconds: 1}, volumeMounts: [{name: data, mountPath: /data/db}]}]
      volumes: [{name: data, emptyDir: {}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: "REGISTRY/testbed/busybox:1",
        command: [sh, -c, "trap exit TERM; [ -e /uploads/a ] || { echo some > /uploads/a; mkdir /uploads/b; echo more > /uploads/b/c; }; while :; do sleep 1; done"],
        env: [{name: MONGODB_URI, valueFrom: {secretKeyRef: {name: db, key: uri}}}], volumeMounts: [{name: uploads, mountPath: /uploads}]}]
      volumes: [{name: uploads, persistentVolumeClaim: {claimName: uploads}}]
"""

say_lock = threading.Lock()


def say(text):
    with say_lock:
        print(text, flush=True)


def kubectl(context, *arguments, text=None):
    command = ["kubectl", "--kubeconfig", KUBECONFIG, "--context", context, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=240)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Cluster:
    """A cluster's API, asked directly: a program of its own for each look would be most of the work."""

    def __init__(self, context):
        with open(KUBECONFIG) as file:
            config = json.load(file)
        named = {c["name"]: c["context"] for c in config["contexts"]}[context]
        cluster = {c["name"]: c["cluster"] for c in config["clusters"]}[named["cluster"]]
        user = {u["name"]: u["user"] for u in config["users"]}[named["user"]]
        self.server, self.token = cluster["server"], user["token"]
        ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.trust = ssl.create_default_context(cadata=ca)

    def names(self, path):
        request = urllib.request.Request(f"{self.server}{path}", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30, context=self.trust) as answer:
            return sorted(item["metadata"]["name"] for item in json.load(answer)["items"])


class Wrong(Exception):
    """What is there is not what should be there."""


@functools.cache
def cluster(context):
    return Cluster(context)


def pushed(prefix):
    """Manifests in the part of the registry that lies below `prefix`."""
    def get(path):
        try:
            with urllib.request.urlopen(f"http://{REGISTRY}/v2/{path}", timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {}
            raise
    mine = [r for r in get(f"_catalog?n=1000&last={prefix}").get("repositories") or [] if r.startswith(prefix + "/")]
    return {repository: tags for repository in mine if (tags := get(f"{repository}/tags/list").get("tags") or [])}


def unpush(repository, tag):
    """Takes a manifest out of the registry."""
    kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    place = f"http://{REGISTRY}/v2/{repository}/manifests/"
    try:
        with urllib.request.urlopen(urllib.request.Request(place + tag, method="HEAD", headers={"Accept": kinds}), timeout=20) as answer:
            digest = answer.headers["Docker-Content-Digest"]
        urllib.request.urlopen(urllib.request.Request(place + digest, method="DELETE"), timeout=20).close()
    except urllib.error.HTTPError as error:
        # Two tags of one manifest go at once.
        if error.code != 404:
            raise


def objects(context, namespace):
    """KIND/NAME of everything in a namespace that a save or a restore might touch."""
    core = ["pods", "services", "configmaps", "secrets", "persistentvolumeclaims", "resourcequotas", "serviceaccounts"]
    paths = [f"/api/v1/namespaces/{namespace}/{kind}" for kind in core]
    paths += [f"/apis/{kind.replace(':', f'/namespaces/{namespace}/')}" for kind in
              ("apps/v1:deployments", "apps/v1:statefulsets", "apps/v1:replicasets", "batch/v1:jobs")]
    return [f"{path.rsplit('/', 1)[1]}/{name}" for path in paths for name in cluster(context).names(path)]
