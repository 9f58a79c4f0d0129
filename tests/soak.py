#!/usr/bin/env python3
"""A fleet under kill -9: saves, restores, removals, deletions, collections and verifications, one fault in the midst of each.

    soak.py quick [--seed N]      some operations, each with a fault, in some two minutes, the fleet's start included
    soak.py full  [--seed N]      as many as make 500 kills of agents and coordinators, 50 of the broker, 50 of PostgreSQL and
                                  some of every other fault (soak_fleet.py), all in the midst of saves and restores, but no
                                  longer than HOURS (6)
    options: --resume (goes on with what an earlier run has done and left standing), --stop (at the first thing that is wrong),
             --only WORD (faults that contain it), --steps N (at the most), --keep (leaves everything standing)

After each operation it compares the catalog, the clusters, the registry, the broker and the store with what should be
there, and what was restored with what was saved. It keeps its state in .ocopea/soak (quick: .ocopea/quick-soak): a fleet of
its own, progress.jsonl with a line for each step, and failures/ with the logs of each step that went wrong. Needs the
testbed and its images (make testbed-images).
"""
import argparse
import collections
import concurrent.futures
import datetime
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import urllib.error

from mongo_wire import Mongo
from parts import CONTEXTS, REGISTRY, TERMINAL, TOP, WHOLE, Wrong, cluster, kubectl, objects, pushed, say, unpush
from soak_fleet import AGENTS, COORDINATORS, FAULTS, Fleet, Refused

# A short run stands beside a long one; a third beside them has another name and other ports.
QUICKLY = "quick" in sys.argv[1:]
NAME = os.environ.get("SOAK_NAME", "quick-soak" if QUICKLY else "soak")
STATE = os.path.join(TOP, ".ocopea", NAME)
PORTS = tuple(map(int, os.environ.get("SOAK_PORTS", "8741 8742" if QUICKLY else "8731 8732").split()))
SOURCE = f"{NAME}-source"
# An operation that isn't over by then is stuck.
BOUND = 240
# Everything that is written behind an operation's end is written by then.
SETTLE = 20
# The goal of design/quality.md: p99 of the time that an operation takes longer than undisturbed, once all parts run.
RECOVERED = 60
MOST_IMAGES, MOST_COPIES = 5, 2
KILLS = ("kill agent", "kill both agents", "kill coordinator", "kill leader")
# What a short run begins with: one of each kind that mends fast.
QUICK = ("kill coordinator", "kill leader", "kill agent", "kill PostgreSQL", "purge queue", "delete queue")
# Without so many, whatever time they take, it would show nothing.
LEAST = 3
# What a short run takes for usual, in s: it has no time to measure.
USUAL = {"save": 4.0, "restore": 9.0}


def ended_at(view):
    return datetime.datetime.fromisoformat(view["ended"].replace("Z", "+00:00")).timestamp()


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def seconds(value):
    return "" if value is None else f"{value:.1f}"


class Application:
    """What is saved: collections of documents and a volume with files, some of both new before each save."""

    def __init__(self, seed):
        self.seed = seed

    def up(self):
        # An earlier run's may be on its way out.
        if kubectl("a", "get", "namespace", SOURCE, "--ignore-not-found", "-o", "jsonpath={.status.phase}") == "Terminating":
            kubectl("a", "wait", "--for=delete", f"namespace/{SOURCE}", "--timeout=120s")
        if SOURCE not in cluster("a").names("/api/v1/namespaces"):
            kubectl("a", "create", "namespace", SOURCE)
        kubectl("a", "-n", SOURCE, "apply", "-f", "-", text=WHOLE.replace("NAMESPACE", SOURCE).replace("REGISTRY", REGISTRY))
        kubectl("a", "-n", SOURCE, "rollout", "status", "deployment/db", "deployment/web", "--timeout=180s")
        for number in range(5):
            self.change(number)

    def change(self, number):
        """Other documents in one collection, other bytes in one file."""
        chance = random.Random(f"{self.seed}/data/{number}")
        documents = [{"_id": i, "text": chance.randbytes(chance.randrange(20, 400)).hex(), "of": {"step": number}} for i in range(1000)]
        collection = f"c{number % 5}"
        with Mongo(self.address("a", SOURCE), "shop") as mongo:
            if collection in mongo.collections():
                mongo.ask(drop=collection)
            mongo.ask(insert=collection, documents=documents)
        kubectl("a", "-n", SOURCE, "exec", "deployment/web", "--", "sh", "-c", f"head -c 3000000 /dev/urandom > /uploads/f{number % 5}; echo {number} > /uploads/last")

    @staticmethod
    def address(context, namespace):
        return kubectl(context, "-n", namespace, "get", "service", "db", "-o", "jsonpath={.spec.clusterIP}")

    def content(self, context, namespace):
        """What there is: [documents, digest] of each collection, and a digest of all files with their names."""
        with Mongo(self.address(context, namespace), "shop") as mongo:
            collections = mongo.content()
        files = kubectl(context, "-n", namespace, "exec", "deployment/web", "--", "sh", "-c", "cd /uploads; find . | sort | while read -r f; do echo \"$f\"; [ ! -f \"$f\" ] || md5sum <\"$f\"; done")
        return {"collections": collections, "files": hashlib.sha256(files.encode()).hexdigest()[:16]}


class Disturbance(threading.Thread):
    """A fault at a moment, beside an operation."""

    def __init__(self, fleet, fault, at, chance, site):
        super().__init__(daemon=True)
        self.fleet, self.fault, self.at, self.chance, self.site = fleet, fault, at, chance, site
        self.what, self.began, self.whole, self.error = fault, None, None, None

    def run(self):
        time.sleep(self.at)
        self.began = time.time()
        try:
            FAULTS[self.fault][0](self.fleet, self.chance, self.site, self.said)
        except Exception as error:  # noqa: BLE001 - it is reported where the step ends
            self.error = error
        self.whole = time.time()

    def said(self, what):
        self.what, self.began = what, time.time()


class Soak:
    def __init__(self, given):
        self.given = given
        self.fleet = Fleet(os.path.join(STATE, "fleet"), NAME, PORTS)
        self.application = None
        self.steps, self.typical, self.seed = [], {}, given.seed
        # Operations that were asked for here, and what is wrong since an earlier step.
        self.mine, self.reported = set(), set()
        self.images, self.copies, self.objects = {}, {}, None
        self.began = time.time()

    # What was done, in a file.

    def path(self, *names):
        return os.path.join(STATE, *names)

    def load(self):
        with open(self.path("progress.jsonl")) as file:
            for line in file:
                entry = json.loads(line)
                if "seed" in entry:
                    self.seed, self.typical = entry["seed"], entry["typical"]
                else:
                    self.steps.append(entry)
        self.images = {entry["image"]: entry for entry in self.steps if entry.get("image")}
        self.reported = {text for entry in self.steps for text in entry["wrong"] if text != "messages in quarantine"}

    def note(self, entry):
        with open(self.path("progress.jsonl"), "a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    # Where everything stands.

    def settle(self, within):
        """Waits until no operation runs. Those that this run doesn't know are an earlier one's, which was ended."""
        until = time.time() + within
        while True:
            operations = self.fleet.all("operations")
            if all(o["state"] in TERMINAL for o in operations):
                return operations
            if time.time() > until:
                raise Wrong(f"still not over: {[(o['id'], o['title'], o['state']) for o in operations if o['state'] not in TERMINAL]}")
            time.sleep(0.5)

    def look(self):
        """Goes by what is there: images that an earlier step made, copies that run."""
        self.mine |= {row["id"] for row in self.fleet.query("SELECT id FROM operations")}
        known = {entry["name"]: entry for entry in self.images.values() if "name" in entry}
        self.images = {}
        for image in self.fleet.all("images"):
            if image["name"] in known:
                self.images[image["id"]] = known[image["name"]]
            else:
                self.operate("delete", ("DELETE", f"images/{image['id']}", None), "clear")
        self.copies = {}
        for environment in self.fleet.all("environments"):
            if environment["state"] == "running" and environment["image"] in self.images:
                self.copies[environment["name"]] = environment
            elif environment["state"] == "running":
                self.operate("remove", ("DELETE", f"environments/{environment['id']}", None), "clear")
        self.objects = objects("a", SOURCE)

    # One operation.

    def operate(self, kind, request, number, fault=None, at=0.0, chance=None, site="a"):
        """Asks for it, harms something meanwhile, waits for its end. [view, disturbance]"""
        chance = chance or random.Random(0)
        disturbance = fault and Disturbance(self.fleet, fault, max(at, 0), random.Random(chance.random()), site)
        if disturbance:
            disturbance.start()
        if at < 0:
            time.sleep(-at)
        method, path, body = request
        through = chance.randrange(2)
        try:
            operation = self.fleet.ask(method, path, body, key=f"{NAME}-{self.seed}-{number}-{kind}-{int(self.began)}", through=through)["operation"]
            self.mine.add(operation)
            until = time.time() + BOUND
            while True:
                view = self.fleet.ask("GET", f"operations/{operation}", through=chance.randrange(2))
                if view["state"] in TERMINAL:
                    break
                if time.time() > until and not (disturbance and disturbance.is_alive()):
                    raise Wrong(f"stuck: {operation} {view['title']} is {view['state']} after {BOUND} s: {[(t['label'], t['state'], t['attempt']) for t in view['tasks'] if t['state'] not in TERMINAL]}")
                time.sleep(0.1)
        finally:
            if disturbance:
                disturbance.join(300)
                if disturbance.is_alive():
                    raise RuntimeError(f"{disturbance.what} doesn't end")
                if disturbance.error:
                    raise RuntimeError(f"{disturbance.what}: {disturbance.error}")
        return view, disturbance

    def choose(self, chance):
        """[kind, request, site, what it is of] by chance, from what is possible."""
        free = sorted(i for i in self.images if i not in {c["image"] for c in self.copies.values()})
        weights = {"save": 5, "restore": 5, "remove": 2, "delete": 1, "collect": 0.7, "verify": 0.7}
        if not self.images:
            weights = {"save": 1}
        elif len(self.images) >= MOST_IMAGES:
            weights["save"], weights["delete"] = 0, 6
        if not self.copies:
            weights["remove"] = 0
        elif len(self.copies) >= MOST_COPIES:
            weights["restore"], weights["remove"] = 0, 8
        if not free:
            weights["delete"] = 0
        kinds = sorted(weights)
        kind = chance.choices(kinds, [weights[k] for k in kinds])[0]
        return self.request(kind, chance, free)

    def request(self, kind, chance, free):
        number = len(self.steps) + 1
        if kind == "save":
            name = f"s{number}"
            return kind, ("POST", "saves", {"site": "a", "namespace": SOURCE, "name": name}), "a", name
        if kind == "restore":
            image, name = chance.choice(sorted(self.images)), f"{NAME}-{number}"
            return kind, ("POST", "restores", {"image": image, "site": "b", "name": name}), "b", (image, name)
        if kind == "remove":
            name = chance.choice(sorted(self.copies))
            return kind, ("DELETE", f"environments/{self.copies[name]['id']}", None), "b", name
        if kind == "delete":
            image = chance.choice(free)
            return kind, ("DELETE", f"images/{image}", None), chance.choice("ab"), image
        if kind == "collect":
            return kind, ("POST", "repository/collections", {"grace_s": chance.choice([0, 0, 3])}), chance.choice("ab"), None
        return kind, ("POST", "repository/verifications", {"image": chance.choice([None, *sorted(self.images)])}), chance.choice("ab"), None

    # What must be so.

    def check(self, kind, subject, view, content, entry):
        """Everything that is wrong after an operation, in words."""
        wrong = []
        state = view["state"]

        def must(holds, text):
            if not holds:
                wrong.append(text)

        missing = self.fleet.missing()
        must(not missing, f"ended by themselves: {missing}")
        if missing:
            self.fleet.start(*missing)
        self.fleet.ready()
        if state == "failed" and not entry["fault"]:
            wrong.append(f"failed though nothing was harmed: {view['failure']}")
        images = self.fleet.query("SELECT id, name FROM images WHERE deleting IS NULL")
        if kind == "save":
            made = [i for i in images if i["name"] == subject]
            must(len(made) == (1 if state == "succeeded" else 0), f"the save {state}, and there are {len(made)} images of it")
            if made:
                self.images[made[0]["id"]] = entry
                entry.update(image=made[0]["id"], name=subject, content=content)
                wrong += self.verify(made[0]["id"], content)
        if kind == "restore" and state == "succeeded":
            image, name = subject
            environment = [e for e in self.fleet.all("environments") if e["name"] == name]
            must(len(environment) == 1 and environment[0]["state"] == "running", f"the restore succeeded, and its environment is {environment}")
            if environment:
                self.copies[name] = environment[0]
            there = self.application.content("b", name)
            must(there == self.images[image]["content"], f"what was restored differs: {there} instead of {self.images[image]['content']}")
        if kind == "remove" and state == "succeeded":
            self.copies.pop(subject)
        if kind == "delete" and state == "succeeded":
            self.images.pop(subject)
        if kind == "verify" and state == "succeeded":
            must(not self.broken(view), f"a verification finds {self.broken(view)}")
        return wrong + self.whole()

    @staticmethod
    def broken(view):
        """What a verification found: the operation succeeds, whatever it finds."""
        result = view["result"] or {}
        return result.get("broken", "no answer") or (result.get("blobs", 0) == 0 and result.get("images") != 0 and "nothing to read")

    def verify(self, image, content):
        """Reads it whole; and the documents that it counts are those that there were."""
        wrong = []
        view, _ = self.operate("verify", ("POST", "repository/verifications", {"image": image}), f"{len(self.steps) + 1}-of-save")
        if view["state"] != "succeeded":
            wrong.append(f"the image {image} can't be verified: {view['failure']}")
        elif self.broken(view):
            wrong.append(f"the image {image} is broken: {self.broken(view)}")
        body = self.fleet.ask("GET", f"images/{image}")["body"]
        streams = [s for c in body["components"] for s in ((c.get("body") or {}).get("data") or {}).get("streams", [])]
        counted = {s["name"].split(".")[-1]: s["items"] for s in streams if s["name"].split(".")[-1] in content["collections"]}
        if counted != {name: count for name, (count, _) in content["collections"].items()}:
            wrong.append(f"the image counts {counted}, there were {content['collections']}")
        return wrong

    def whole(self):
        """What must hold whenever no operation runs."""
        until = time.time() + SETTLE
        # What an earlier step left is waited for no more.
        while set(wrong := self.unsettled()) - self.reported and time.time() < until:
            time.sleep(0.5)
        found = cluster("b").names("/api/v1/namespaces")
        there = {n for n in found if n.startswith(f"{NAME}-")}
        if there != set(self.copies):
            wrong.append(f"namespaces {sorted(there)} at b, environments {sorted(self.copies)}")
        for repository in pushed(NAME):
            if not any(repository.startswith(f"{NAME}/{name}") for name in self.copies):
                wrong.append(f"{repository} is still in the registry")
        if (now := objects("a", SOURCE)) != self.objects:
            wrong.append(f"the application was changed: {sorted(set(now) ^ set(self.objects))}")
        catalog = sorted(row["record"].removeprefix("sha256:") for row in self.fleet.query("SELECT record FROM images"))
        refs = self.fleet.refs()
        if len(catalog) != len(refs):
            wrong.append(f"the catalog has {len(catalog)} images, the repository {len(refs)} refs: {refs}")
        for name in COORDINATORS + AGENTS:
            with open(os.path.join(STATE, "fleet", f"{name}.log"), errors="replace") as file:
                for line in file:
                    if "panicked at" in line:
                        wrong.append(f"{name}: {line.strip()[:300]}")
        fresh = [w for w in wrong if w not in self.reported]
        self.reported |= set(fresh)
        return fresh

    def unasked(self, queue):
        """Whether a site's queue was deleted, and nothing was for it since: it is made again with the next hint."""
        since = self.fleet.deleted.get(queue)
        if since is None or not queue.startswith("tasks."):
            return False
        site = queue.removeprefix("tasks.")
        return not self.fleet.query(f"SELECT id FROM tasks WHERE site = '{site}' AND not_before > {since} LIMIT 1")

    def unsettled(self):
        """What may last for some seconds behind an operation's end, and no longer."""
        wrong = []
        found = self.fleet.queries(
            tasks="SELECT o.id, o.title, o.state, t.label, t.state AS task FROM tasks t JOIN operations o ON o.id = t.operation WHERE t.state IN ('waiting', 'ready', 'claimed')",
            attempts="SELECT t.label, t.operation FROM attempts a JOIN tasks t ON t.id = a.task WHERE a.ended IS NULL AND t.state IN ('succeeded', 'failed', 'cancelled')",
            outbox="SELECT task, kind FROM outbox",
            operations="SELECT id, title, state FROM operations",
            audit="SELECT subject, count(*) FROM audit WHERE action LIKE '%.request' GROUP BY subject HAVING count(*) <> 1",
            images="SELECT name, count(*) FROM images WHERE deleting IS NULL GROUP BY name HAVING count(*) > 1",
            environments="SELECT name, state FROM environments WHERE state NOT IN ('running', 'removed', 'failed')")
        wrong += [f"{row['title']} ({row['id']}) is {row['state']}, and its task {row['label']} {row['task']}" for row in found["tasks"]]
        wrong += [f"an attempt at {row['label']} of {row['operation']} never ended" for row in found["attempts"]]
        wrong += [f"a hint waits in the outbox: {row['kind']} {row['task']}" for row in found["outbox"]]
        wrong += [f"nobody asked for {row['title']} ({row['id']}, {row['state']}): done twice" for row in found["operations"] if row["id"] not in self.mine]
        wrong += [f"{row['count']} audit rows of {row['subject']}" for row in found["audit"]]
        wrong += [f"{row['count']} images are called {row['name']}" for row in found["images"]]
        wrong += [f"the environment {row['name']} is {row['state']}" for row in found["environments"]]
        try:
            queues = {q["name"]: q for q in self.fleet.broker("GET", "queues/ocopea")}
        except OSError as error:
            return wrong + [f"the broker's management doesn't answer: {error}"]
        for queue in ("requests", "quarantine", *(f"tasks.{site}" for site in self.fleet.sites.values())):
            if queue not in queues and not self.unasked(queue):
                wrong.append(f"the queue {queue} is gone")
        if queues.get("quarantine", {}).get("messages"):
            wrong.append("messages in quarantine")
        movers = [f"{context}/{name}" for context, namespace in (("a", SOURCE), *(("b", n) for n in self.copies))
                  for name in cluster(context).names(f"/apis/batch/v1/namespaces/{namespace}/jobs?labelSelector=ocopea.dev/mover")]
        if movers:
            wrong.append(f"movers are left: {movers}")
        return wrong

    # Steps.

    def step(self, fault, kind=None):
        number = len(self.steps) + 1
        chance = random.Random(f"{self.seed}/{number}")
        if kind:
            free = sorted(i for i in self.images if i not in {c["image"] for c in self.copies.values()})
            kind, request, site, subject = self.request(kind, chance, free)
        else:
            kind, request, site, subject = self.choose(chance)
        # Only saves and restores are counted; of the others some are left alone.
        if fault == "by chance":
            fault = self.next_fault(chance) if kind in ("save", "restore") or chance.random() < 0.3 else None
        typical = self.typical.get(kind, 1.0)
        at = chance.uniform(-0.3, 0.9 * typical)
        entry = {"step": number, "operation": kind, "fault": fault, "what": fault, "at": round(at, 2), "state": None, "midst": False, "recovered": None, "wrong": [], "time": int(time.time())}
        content, began, view = None, time.time(), None
        try:
            if kind == "save":
                self.application.change(number + 5)
                content = self.application.content("a", SOURCE)
            began = time.time()
            view, disturbance = self.operate(kind, request, number, fault, at, chance, site)
            entry["state"], entry["took"], entry["id"] = view["state"], round(ended_at(view) - began, 1), view["id"]
            entry["again"] = sum(max(0, task["attempt"] - 1) for task in view["tasks"])
            if view.get("failure"):
                entry["failure"] = view["failure"]
            if disturbance:
                entry["what"], entry["at"] = disturbance.what, round(disturbance.began - began, 2)
                entry["midst"] = disturbance.began < ended_at(view)
                entry["recovered"] = round(max(0.0, ended_at(view) - disturbance.whole - typical), 1) if entry["midst"] else None
            entry["wrong"] = self.check(kind, subject, view, content, entry)
        except (Wrong, Refused, RuntimeError, OSError, KeyError) as error:
            entry["wrong"].append(f"{type(error).__name__}: {error}")
        self.steps.append(entry)
        self.note(entry)
        moment = f", {entry['what']} at {entry['at']:.1f} s" if fault else ""
        after = f", recovered in {entry['recovered']} s" if entry["recovered"] is not None else ", the fault came too late" if fault and view else ""
        again = f", {entry['again']} tasks tried again" if entry.get("again") else ""
        say(f"seed {self.seed} step {number}: {kind}{moment}: {entry['state'] or 'no end'} after {entry.get('took', time.time() - began):.1f} s{after}{again}")
        if entry.get("failure"):
            say(f"        {entry['failure'].get('what', '')}: {entry['failure'].get('cause', '')}")
        if entry["wrong"]:
            self.keep(entry)
        return entry

    def keep(self, entry):
        """Says what is wrong, keeps the logs, and clears up so that the next step begins with nothing of it."""
        place = self.path("failures", f"step-{entry['step']}")
        os.makedirs(place, exist_ok=True)
        for text in entry["wrong"]:
            say(f"WRONG   {text}")
        for name in COORDINATORS + AGENTS:
            with open(os.path.join(STATE, "fleet", f"{name}.log"), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 300_000))
                with open(os.path.join(place, f"{name}.log"), "wb") as copy:
                    copy.write(file.read())
        with open(os.path.join(place, "step.json"), "w") as file:
            json.dump(entry, file, indent=1)
        # The next step begins with an empty one.
        if kept := self.fleet.take_out("quarantine"):
            self.reported.discard("messages in quarantine")
            deaths = collections.Counter(f"{death['reason']} in {death['queue']}" for message in kept for death in (message["properties"].get("headers") or {}).get("x-death", [])[:1])
            say(f"        in quarantine: {dict(deaths) or len(kept)}")
            with open(os.path.join(place, "quarantine.json"), "w") as file:
                json.dump(kept, file, indent=1)
        say(f"        its logs are in {place}")
        if self.given.stop:
            return
        try:
            for operation in self.fleet.all("operations"):
                if operation["state"] not in TERMINAL:
                    self.fleet.ask("POST", f"operations/{operation['id']}/cancel")
            self.settle(120)
            self.look()
        except (Wrong, Refused, RuntimeError, OSError) as error:
            say(f"        and can't be cleared up: {error}")

    def counted(self, fault):
        return sum(1 for s in self.steps if s["fault"] == fault and s["midst"] and s["operation"] in ("save", "restore"))

    def remaining(self):
        return {fault: left for fault, (_, wanted) in FAULTS.items()
                if self.given.only in fault and (left := wanted - self.counted(fault)) > 0}

    def next_fault(self, chance):
        left = self.remaining() or dict.fromkeys((f for f in FAULTS if self.given.only in f), 1)
        names = sorted(left)
        # The rare ones come early, too: a run that is ended halfway has seen all of them.
        return chance.choices(names, [left[n] ** 0.5 for n in names])[0]

    # Runs.

    def prepare(self):
        if not self.given.resume:
            if os.path.isdir(STATE):
                self.clear()
            os.makedirs(STATE)
        elif os.path.exists(self.path("progress.jsonl")):
            self.load()
        else:
            raise Wrong(f"there is nothing to go on with in {STATE}")
        say(f"seed {self.seed}: starting a fleet")
        application = threading.Thread(target=self.application_up)
        application.start()
        # What an earlier run had frozen or ended when it was ended itself.
        for name in COORDINATORS + AGENTS:
            self.fleet.signal(name, signal.SIGCONT)
        if self.given.resume and not self.fleet.broker_answers():
            self.fleet.server("rabbitmq", "restart")
        self.fleet.up()
        if self.given.resume:
            self.fleet.server("rabbitmq", "ctl", "set_vm_memory_high_watermark", "absolute", "1GB")
            self.fleet.server("rabbitmq", "ctl", "set_disk_free_limit", "50MB")
        application.join()
        if self.application is None:
            raise Wrong("the application didn't start")
        self.settle(BOUND)
        self.look()
        if not self.typical:
            self.measure(1 if QUICKLY else 2)
            self.note({"seed": self.seed, "typical": self.typical, "machine": f"{os.cpu_count()} cores", "time": int(time.time())})

    def application_up(self):
        application = Application(self.seed)
        try:
            application.up()
        except (RuntimeError, OSError) as error:
            say(f"        {error}")
            return
        self.application = application

    def measure(self, rounds):
        """What each operation takes at the least when nothing is harmed."""
        took = {}
        # The first of each finds nothing that an earlier one left; later ones are quicker.
        kinds = ["save"] if QUICKLY else ["save", "restore", "save", "delete", "collect", "verify", "remove", "restore", "remove"]
        for kind in kinds * rounds:
            entry = self.step(None, kind)
            if entry["wrong"]:
                raise Wrong("something is wrong before anything was harmed")
            took.setdefault(kind, []).append(entry["took"])
        self.typical = USUAL if QUICKLY else {kind: min(times) for kind, times in took.items()}
        say(f"{'usual' if QUICKLY else 'undisturbed'}, in s: {self.typical}")

    def run(self):
        deadline = self.began + (75 if QUICKLY else 3600 * float(os.environ.get("HOURS", "6")))
        first = len(self.steps)
        queue = [f for f in QUICK if self.given.only in f]
        if QUICKLY:
            random.Random(self.seed).shuffle(queue)
        least = min(LEAST, len(queue)) if QUICKLY else 0

        def goes_on():
            return time.time() < deadline or sum(bool(s["fault"]) for s in self.steps[first:]) < least

        while goes_on() and len(self.steps) - first < self.given.steps:
            if not QUICKLY and not self.remaining():
                break
            if QUICKLY and not queue:
                break
            # Both main operations, whatever chance says.
            kind = None
            if QUICKLY:
                kind = ("save", "restore")[len(queue) % 2]
                if kind == "restore" and len(self.copies) >= MOST_COPIES:
                    kind = "save"
            entry = self.step(queue.pop() if QUICKLY else "by chance", kind)
            if entry["wrong"] and self.given.stop:
                return
        if not QUICKLY and (left := self.remaining()):
            say(f"not reached within the time: {left}")

    def finish(self):
        """Removes everything through Ocopea itself; nothing may be left."""
        wrong = []
        removals = [("remove", ("DELETE", f"environments/{e['id']}", None)) for e in self.copies.values()]
        deletions = [("delete", ("DELETE", f"images/{image}", None)) for image in self.images]
        collection = [("collect", ("POST", "repository/collections", {"grace_s": 0}))]
        number = 0
        # All at once, where none stands in another's way.
        for together in (removals + deletions, collection, collection):
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                numbered = [(kind, request, f"end-{number + i}") for i, (kind, request) in enumerate(together)]
                for view, _ in pool.map(lambda one: self.operate(*one), numbered):
                    if view["state"] != "succeeded":
                        wrong.append(f"{view['title']} at the end: {view['state']}: {view['failure']}")
            number += len(together)
        self.images, self.copies = {}, {}
        wrong += self.whole()
        if blobs := self.fleet.blobs():
            wrong.append(f"{len(blobs)} blobs are left when nothing is saved any more: {blobs[:3]}")
        users = {u["name"] for u in self.fleet.broker("GET", "users")}
        if users != {"admin", *(f"site-{site}" for site in self.fleet.sites.values())}:
            wrong.append(f"users at the broker: {sorted(users)}")
        for text in wrong:
            say(f"WRONG   {text}")
        if not wrong:
            say("everything was removed, and nothing is left")
        return wrong

    def clear(self):
        self.fleet.kill_all()
        self.fleet.down()
        for context in CONTEXTS:
            if left := [n for n in cluster(context).names("/api/v1/namespaces") if n.startswith(f"{NAME}-")]:
                kubectl(context, "delete", "namespace", f"--wait={'false' if QUICKLY else 'true'}", *left)
        # What was pushed by a run that was ended is nobody's any more.
        for repository, tags in pushed(NAME).items():
            for tag in tags:
                unpush(repository, tag)
        shutil.rmtree(STATE, ignore_errors=True)

    def table(self):
        rows = [("fault", "tried", "in the midst", "succeeded", "failed cleanly", "wrong", "p50", "p99", "max")]

        def row(name, steps):
            times = [s["recovered"] for s in steps if s["recovered"] is not None]
            good = [s for s in steps if not s["wrong"]]
            rows.append((name, len(steps), sum(s["midst"] for s in steps), sum(s["state"] == "succeeded" for s in good), sum(s["state"] == "failed" for s in good),
                         len(steps) - len(good), seconds(percentile(times, 0.5)), seconds(percentile(times, 0.99)), seconds(max(times, default=None))))
        for fault in FAULTS:
            if steps := [s for s in self.steps if s["fault"] == fault]:
                row(fault, steps)
        row("(none)", [s for s in self.steps if not s["fault"]])
        row("all faults", [s for s in self.steps if s["fault"]])
        widths = [max(len(str(r[i])) for r in rows) for i in range(len(rows[0]))]
        print("\nrecovery in s: from when all parts run again to the operation's end, less what it takes undisturbed")
        for cells in rows:
            print("  ".join(str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(cells, widths))))
        sorts = collections.Counter(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[\d.]+\b", "…", text)[:160] for s in self.steps for text in s["wrong"])
        for text, count in sorts.most_common():
            print(f"wrong {count} times: {text}")
        kills = sum(self.counted(k) for k in KILLS)
        print(f"in the midst of saves and restores: {kills} kills of agents and coordinators, {self.counted('kill broker')} of the broker, {self.counted('kill PostgreSQL')} of PostgreSQL")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quick", "full"])
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", type=int, default=1_000_000)
    given = parser.parse_args()
    soak = Soak(given)
    wrong, whole = [], False
    try:
        soak.prepare()
        soak.run()
        stopped = given.stop and any(s["wrong"] for s in soak.steps)
        if not stopped and not given.keep:
            wrong = soak.finish()
        whole = True
    except (Wrong, Refused, RuntimeError, OSError, urllib.error.URLError) as error:
        say(f"WRONG   {error}")
    except KeyboardInterrupt:
        say("interrupted")
    soak.table()
    failed = sum(bool(s["wrong"]) for s in soak.steps)
    times = [s["recovered"] for s in soak.steps if s["recovered"] is not None]
    slow = (percentile(times, 0.99) or 0) > RECOVERED
    right = whole and not wrong and not failed and not slow
    if slow:
        say(f"WRONG   recovery takes longer than {RECOVERED} s at p99")
    say(f"soak ({given.what}, seed {soak.seed}): {len(soak.steps)} steps, {failed} wrong, {time.time() - soak.began:.0f} s: {'all right' if right else 'NOT RIGHT'}")
    if right and not given.keep:
        soak.clear()
    elif not right:
        say(f"what stands stays: look into {STATE}; go on with --resume; remove it with FLEET_STATE={STATE}/fleet FLEET_NAME={NAME} tests/fleet.sh down")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
