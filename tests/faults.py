#!/usr/bin/env python3
"""Ends `ocopea up` at every step of every operation, and at random moments, and looks at what is left.

    faults.py quick            every failpoint once, with an application of a few kB and no pods
    faults.py full             every failpoint once, with databases, volumes and running pods
    faults.py kills N [SEED]   N times kill -9 at a random moment of a save, restore, remove, delete or collection
    options: --only WORD (points that contain it), --jobs N (worlds at once)

After each end it starts again, waits until the operation has come to one end, and compares what the clusters, the
registry, the repository and the data directory hold with what they should hold. Needs the testbed (make testbed).
"""
import argparse
import concurrent.futures
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from parts import BINARY, CONTEXTS, KUBECONFIG, REGISTRY, TERMINAL, WHOLE, Wrong, cluster, kubectl, objects, pushed, say

# What may lie in a data directory and in a repository, beside blobs.
DATA = {"catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm", "installation.key", "repository.key", "lock", "ocopea.log", "ocopea.log.1", "repository"}

SMALL = """
apiVersion: v1
kind: Secret
metadata: {name: settings}
stringData: {url: "http://web.NAMESPACE.svc:80/", token: "not for logs"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: texts}
data: {greeting: "hello NAMESPACE"}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "REGISTRY/testbed/busybox:1", command: [sleep, "1000000"]}]}
"""
# Nothing that it limits may be made again: a restore fails in the middle.
REFUSED = """
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: no-more-services}
spec: {hard: {count/services: "0"}}
"""


class World:
    """One Ocopea with a data directory, a port, namespaces and a path in the registry of its own."""

    count = 0
    lock = threading.Lock()

    def __init__(self, name, manifests, mover):
        with World.lock:
            World.count += 1
            number = World.count
        self.name = f"f{os.getpid()}-{number}-{name}"
        self.source, self.copy = f"{self.name}-src", f"{self.name}-copy"
        self.port = 20000 + (os.getpid() % 500) * 40 + number
        self.prefix = f"faults/{self.name}"
        self.dir = tempfile.mkdtemp(prefix="ocopea-faults-")
        self.data = os.path.join(self.dir, "data")
        self.seen = os.path.join(self.dir, "seen")
        self.mover, self.process = mover, None
        self.environment = {**os.environ, "KUBECONFIG": KUBECONFIG, "XDG_CONFIG_HOME": os.path.join(self.dir, "config")}
        kubectl("a", "create", "namespace", self.source)
        kubectl("a", "-n", self.source, "apply", "-f", "-",
                text=manifests.replace("NAMESPACE", self.source).replace("REGISTRY", REGISTRY))
        if mover:
            kubectl("a", "-n", self.source, "rollout", "status", "deployment/db", "deployment/web", "--timeout=180s")
        self.source_objects = None

    def start(self, point=None, see=False):
        environment = dict(self.environment)
        if point:
            environment["OCOPEA_FAILPOINT"] = point
        if see:
            environment["OCOPEA_FAILPOINTS_SEEN"] = self.seen
        command = [BINARY, "up", "--data", self.data, "--listen", f"127.0.0.1:{self.port}"]
        for context in CONTEXTS:
            command += ["--site", f"{context}={context},registry=http://{REGISTRY}/{self.prefix}"]
        if self.mover:
            command += ["--mover-image", self.mover]
        log = open(os.path.join(self.dir, "up.log"), "wb")
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        for _ in range(600):
            if self.process.poll() is not None:
                # A point that the start itself passes, with what an earlier process left: that is an end, too.
                if point:
                    return
                raise Wrong(f"ocopea up did not start: {self.log()}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=1)
                return
            except OSError:
                time.sleep(0.05)
        raise Wrong("ocopea up does not answer")

    def log(self):
        with open(os.path.join(self.dir, "up.log"), errors="replace") as file:
            return file.read()[-1500:]

    def stop(self, number=signal.SIGKILL):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired as error:
                self.process.kill()
                raise Wrong("SIGTERM did not end it within a minute") from error
        self.process = None

    def died(self, within=120):
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        self.process = None
        return True

    def call(self, *arguments, fine=(0,)):
        done = subprocess.run([BINARY, *arguments], env=self.environment, capture_output=True, text=True, timeout=300)
        if fine and done.returncode not in fine:
            raise Wrong(f"ocopea {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def get(self, what):
        """A list through the API."""
        with open(os.path.join(self.dir, "config", "ocopea", "account.json")) as file:
            token = json.load(file)["token"]
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/v1/{what}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        return found["items"] if isinstance(found, dict) else found

    def operations(self):
        return self.get("operations?limit=100")

    def settled(self, known, within=240):
        """Waits until all operations are over; those that are not in `known`."""
        end = time.time() + within
        while True:
            fresh = [o for o in self.operations() if o["id"] not in known]
            if all(o["state"] in TERMINAL for o in fresh):
                return fresh
            if time.time() > end:
                raise Wrong(f"still not over after {within} s: {[(o['title'], o['state']) for o in fresh]}")
            time.sleep(0.1)

    def destroy(self):
        self.stop()
        for context in CONTEXTS:
            left = [n for n in self.namespaces(context)]
            if left:
                kubectl(context, "delete", "namespace", "--wait=false", *left)
        shutil.rmtree(self.dir, ignore_errors=True)

    # What is there.

    def namespaces(self, context):
        return [n for n in cluster(context).names("/api/v1/namespaces") if n.startswith(f"{self.name}-")]

    def pushed(self):
        """Manifests in this world's part of the registry."""
        return pushed(self.prefix)

    def objects(self):
        return objects("a", self.source)

    def blobs(self):
        count = 0
        for _, _, files in os.walk(os.path.join(self.data, "repository", "blobs")):
            count += len(files)
        return count

    def left_over(self):
        """What the data directory holds and should not."""
        left = [n for n in os.listdir(self.data) if n not in DATA]
        for place in ("tmp", "staging", "pins"):
            for folder, _, files in os.walk(os.path.join(self.data, "repository", place)):
                left += [os.path.relpath(os.path.join(folder, name), self.data) for name in files]
        return left

    def check(self, known):
        """Compares everything with what the operations that ended say."""
        fresh = self.settled(known)
        environments = {e["name"]: e for e in self.get("environments")}
        running = sorted(name for name, e in environments.items() if e["state"] == "running")
        # All that a fault leaves half made can be taken back here: nothing is in the way of it.
        if other := {name: e["state"] for name, e in environments.items() if e["state"] != "running"}:
            raise Wrong(f"environments {other}; {fresh}")
        if self.namespaces("b") != running:
            raise Wrong(f"namespaces {self.namespaces('b')}, environments {running}; {fresh}")
        if self.namespaces("a") != [self.source]:
            raise Wrong(f"namespaces at a: {self.namespaces('a')}")
        if self.source_objects is None:
            self.source_objects = self.objects()
        elif self.objects() != self.source_objects:
            raise Wrong(f"the application was changed: {self.objects()} instead of {self.source_objects}")
        for repository in self.pushed():
            if not any(repository.startswith(f"{self.prefix}/{name}") for name in running):
                raise Wrong(f"{repository} is still in the registry")
        images = [image["id"] for image in self.get("images")]
        refs = os.path.join(self.data, "repository", "refs")
        # Before the first image there is none.
        refs = sorted(os.listdir(refs)) if os.path.isdir(refs) else []
        if sorted(images) != refs:
            raise Wrong(f"the catalog has {images}, the repository {refs}")
        # What is derived from the refs is written behind an operation's end: a file on its way is no leftover, one that
        # stays is.
        until = time.monotonic() + 10
        while left := self.left_over():
            if time.monotonic() > until:
                raise Wrong(f"left over in the data directory: {left}")
            time.sleep(0.2)
        self.call("repository", "verify")
        for operation in fresh:
            kind, ended = operation["title"].split()[0], operation["state"]
            saved = [i for i in self.get("images") if i["name"] == "it"] if kind == "save" else []
            if kind == "save" and len(saved) != (1 if ended == "succeeded" else 0):
                raise Wrong(f"the save {ended}, and there are {len(saved)} images of it")
            if kind == "restore" and (self.copy in running) != (ended == "succeeded"):
                raise Wrong(f"the restore {ended}, and its environment is {'' if self.copy in running else 'not '}there")
        return fresh

    def empty(self):
        """Removes everything through Ocopea itself; nothing may be left."""
        for environment in self.get("environments"):
            self.call("remove", environment["name"], fine=())
        for image in self.get("images"):
            self.call("rm", image["id"])
        self.call("repository", "collect", "--grace", "0s")
        self.call("repository", "collect", "--grace", "0s")
        if self.blobs():
            raise Wrong(f"{self.blobs()} blobs are left when nothing is saved any more")
        if self.pushed():
            raise Wrong(f"the registry still holds {self.pushed()}")


class Scenario:
    """An operation: what it needs, and how it begins."""

    def __init__(self, name, manifests):
        self.name, self.manifests = name, manifests

    def prepare(self, world):
        if self.name != "save" and "first" not in [i["name"] for i in world.get("images")]:
            world.call("save", f"a/{world.source}", "--name", "first")
        environments = [e["name"] for e in world.get("environments") if e["state"] == "running"]
        if self.name == "remove" and world.copy not in environments:
            world.call("restore", "first", "--site", "b", "--as", world.copy)
        if self.name in ("restore", "failing-restore", "save", "delete", "collect") and world.copy in environments:
            world.call("remove", world.copy)
        for image in world.get("images"):
            if image["name"] == "it":
                world.call("rm", image["id"])
        if self.name in ("delete", "collect"):
            world.call("save", f"a/{world.source}", "--name", "it")
        if self.name == "collect":
            world.call("rm", "it")

    def begin(self, world):
        """Asks for the operation; the process may die at any moment of this."""
        what = {
            "save": ["save", f"a/{world.source}", "--name", "it", "--detach"],
            "restore": ["restore", "first", "--site", "b", "--as", world.copy, "--detach"],
            "failing-restore": ["restore", "first", "--site", "b", "--as", world.copy, "--detach"],
            "remove": ["remove", world.copy],
            "delete": ["rm", "it"],
            "collect": ["repository", "collect", "--grace", "0s"],
        }[self.name]
        return subprocess.Popen([BINARY, *what], env=world.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def known(world):
    return {o["id"] for o in world.operations()}


def end(process):
    try:
        process.wait(120)
    except subprocess.TimeoutExpired:
        process.kill()


def leave(process):
    """Ends a command whose Ocopea is dead: it would wait a minute for it to come back."""
    process.kill()
    process.wait()


def points_of(world, scenario, only):
    """Lets the operation run through once and notes what it passes."""
    world.start()
    scenario.prepare(world)
    world.stop(signal.SIGTERM)
    world.start(see=True)
    # What a start passes without any operation is no step of one.
    open(world.seen, "w").close()
    before = known(world)
    end(scenario.begin(world))
    world.settled(before)
    with open(world.seen) as file:
        text = file.read()
    world.check(before)
    world.stop()
    seen = sorted(set(text.split()))
    # The same step of many components is the same code: the first two of each.
    return [p for p in seen if int(p.split("#")[1]) <= 2 and only in p]


def at_each_point(scenario, mover, only, part, parts):
    """Every point of a scenario whose number is `part` modulo `parts`."""
    world = World(scenario.name, scenario.manifests, mover)
    results = []
    try:
        points = points_of(world, scenario, only)[part::parts]
        for point in points:
            began = time.time()
            try:
                # What checked the last point prepares the next.
                if not world.process:
                    world.start()
                scenario.prepare(world)
                before = known(world)
                world.stop()
                world.start(point=point)
                asked = scenario.begin(world) if world.process else None
                dead = world.died(within=60)
                if asked:
                    leave(asked)
                world.stop()
                world.start()
                fresh = world.check(before)
                if not dead:
                    ended = [(o["title"], o["state"], (o.get("failure") or {}).get("cause")) for o in fresh]
                    raise Wrong(f"the point was not reached; began: {asked and asked.returncode}, ended: {ended}")
                states = ", ".join(o["state"] for o in fresh) or "never accepted"
                results.append(True)
                say(f"ok      {scenario.name}: {point}: {states}, {time.time() - began:.1f} s")
            except (Wrong, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                results.append(False)
                say(f"FAILED  {scenario.name}: {point}: {error}")
                world.stop()
        world.stop()
        world.start()
        world.empty()
        say(f"ok      {scenario.name}: nothing is left at the end")
    except (Wrong, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        results.append(False)
        say(f"FAILED  {scenario.name}: {error}")
    finally:
        try:
            world.destroy()
        except (Wrong, RuntimeError, OSError) as error:
            say(f"        {world.name} could not be removed: {error}")
    return results


def at_random(names, manifests, mover, times, seed):
    chance = random.Random(seed)
    world = World("kills", manifests, mover)
    results = []
    try:
        world.start()
        for number in range(times):
            scenario = Scenario(names[number % len(names)], manifests)
            try:
                scenario.prepare(world)
                before = known(world)
                asked = scenario.begin(world)
                pause = chance.choice([0.3, 1, 3, 8]) * chance.random()
                time.sleep(pause)
                world.stop()
                leave(asked)
                world.start()
                fresh = world.check(before)
                states = ", ".join(o["state"] for o in fresh) or "never accepted"
                results.append(True)
                say(f"ok      kill -9 {pause:.2f} s into {scenario.name}: {states}")
            except (Wrong, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                results.append(False)
                say(f"FAILED  kill -9 in {scenario.name}: {error}")
                world.stop()
                world.start()
        world.empty()
        say("ok      nothing is left at the end of the kills")
    except (Wrong, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        results.append(False)
        say(f"FAILED  kills: {error}")
    finally:
        try:
            world.destroy()
        except (Wrong, RuntimeError, OSError) as error:
            say(f"        {world.name} could not be removed: {error}")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quick", "full", "kills"])
    parser.add_argument("times", nargs="?", type=int, default=5)
    parser.add_argument("seed", nargs="?", type=int, default=int(time.time()))
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--mover", default=os.environ.get("OCOPEA_MOVER_IMAGE", ""))
    given = parser.parse_args()
    if not os.path.exists(BINARY):
        sys.exit(f"error: there is no {BINARY}\n  next:  cargo build -p ocopea-cli")
    if given.what != "quick" and not given.mover:
        sys.exit("error: no mover image is named\n  next:  --mover \"$(tests/testbed/mover-image.sh | tail -1)\"")
    began = time.time()
    results = []
    if given.what == "kills":
        say(f"seed {given.seed}")
        results = at_random(["save", "restore", "remove", "delete", "collect"], WHOLE, given.mover, given.times, given.seed)
    else:
        manifests, mover = (SMALL, None) if given.what == "quick" else (WHOLE, given.mover)
        scenarios = [Scenario(n, manifests) for n in ("save", "restore", "remove", "delete", "collect")]
        scenarios.append(Scenario("failing-restore", manifests + REFUSED))
        parts = 2 if given.jobs > len(scenarios) else 1
        with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
            shares = [(scenario, part) for part in range(parts) for scenario in scenarios]
            for part in pool.map(lambda s: at_each_point(s[0], mover, given.only, s[1], parts), shares):
                results += part
    failed = results.count(False)
    print(f"\nfaults ({given.what}): {len(results) - failed} passed, {failed} failed, {time.time() - began:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
