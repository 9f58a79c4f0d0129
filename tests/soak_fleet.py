"""The soak's fleet: its parts, how each is harmed and mended, and what it answers when it is asked."""
import base64
import contextlib
import functools
import glob
import json
import os
import re
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request

from parts import BINARY, TOP, Wrong

COORDINATORS = ("coordinator-1", "coordinator-2")
AGENTS = ("agent-a1", "agent-a2", "agent-b1", "agent-b2")
# Longer than an agent's lease (20 s) and a leader's (15 s).
FROZEN = 25
# How long a request waits for a coordinator that doesn't answer before the other one is asked.
PATIENCE = 5


class Refused(Exception):
    """A coordinator understood, and said no."""

    def __init__(self, status, problem):
        super().__init__(f"{status} {problem.get('title', '')}: {problem.get('detail', '')}")
        self.status = status


def run(*command, environment=None, within=180):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=within)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-800:] or done.stdout.strip()[-800:]}")
    return done.stdout


class Fleet:
    """Two coordinators, two agents at each of two sites, a broker, a database, a store."""

    def __init__(self, state, name, ports):
        self.state, self.name, self.ports = state, name, ports
        # Queues that a fault deleted, with the moment in milliseconds.
        self.deleted = {}
        self.environment = {**os.environ, "FLEET_STATE": state, "FLEET_NAME": name, "FLEET_PORTS": " ".join(map(str, ports))}

    def script(self, *arguments, within=300):
        return run(os.path.join(TOP, "tests", "fleet.sh"), *arguments, environment=self.environment, within=within)

    def up(self):
        self.script("up", within=1800)
        self.__dict__.pop("sites", None)

    def down(self):
        self.script("down")

    def server(self, which, *arguments, within=120):
        """rabbitmq.sh, postgresql.sh: VERB DIR ARGUMENT..."""
        verb, *others = arguments
        return run(os.path.join(TOP, "tests", "testbed", f"{which}.sh"), verb, os.path.join(self.state, which), *others, within=within)

    # Processes.

    def pid(self, name):
        try:
            with open(os.path.join(self.state, f"{name}.pid")) as file:
                return int(file.read())
        except (OSError, ValueError):
            return None

    def runs(self, name):
        pid = self.pid(name)
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return os.path.basename(BINARY).encode() in file.read()
        except OSError:
            return False

    def signal(self, name, number):
        if self.runs(name):
            os.kill(self.pid(name), number)

    def slay(self, *names):
        for name in names:
            self.signal(name, signal.SIGKILL)
        for name in names:
            for _ in range(200):
                if not self.runs(name):
                    break
                time.sleep(0.01)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.state, f"{name}.pid"))

    def start(self, *names):
        self.script("start", *names)

    def kill_all(self):
        """Before everything is removed: none of it need end in order."""
        self.slay(*(name for name in COORDINATORS + AGENTS if self.runs(name)))
        if os.path.exists(os.path.join(self.state, "rabbitmq", "env")):
            self.server("rabbitmq", "kill")

    def missing(self):
        """Processes that ended though nobody ended them."""
        return [name for name in COORDINATORS + AGENTS if not self.runs(name)]

    # The catalog, beside all coordinators.

    def query(self, statement):
        return self.queries(rows=statement)["rows"]

    def queries(self, **statements):
        """Rows of each statement, all as of one moment."""
        settings = dict(line.split("=", 1) for line in open(os.path.join(self.state, "postgresql", "env")).read().split())
        with open(settings["PASSWORD_FILE"]) as file:
            password = file.read().strip()
        command = ["psql", "-XAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", settings["PORT"], "-U", settings["USER"], "-d", settings["DATABASE"],
                   "-c", "SELECT json_build_object(" + ", ".join(f"'{name}', (SELECT coalesce(json_agg(found), '[]') FROM ({text}) AS found)" for name, text in statements.items()) + ")"]
        return json.loads(run(*command, environment={**os.environ, "PGPASSWORD": password, "PGCONNECT_TIMEOUT": "10"}, within=60))

    @functools.cached_property
    def sites(self):
        return {row["name"]: row["id"] for row in self.query("SELECT name, id FROM sites WHERE removed IS NULL")}

    def leader(self):
        """The coordinator that leads, going by the instance that it says it is."""
        held = self.query("SELECT holder FROM epochs WHERE name = 'leader' AND holder IS NOT NULL")
        for name in COORDINATORS:
            with open(os.path.join(self.state, f"{name}.log"), errors="replace") as file:
                said = re.findall(r'"who leads has changed".*?"instance":"([^"]+)"', file.read())
            if held and said and said[-1] == held[0]["holder"]:
                return name
        return None

    def working(self, site):
        """The agent of a site that holds a task, going by when the processes began and when their instances signed in."""
        held = self.query(f"SELECT DISTINCT i.created FROM tasks t JOIN instances i ON i.id = t.instance WHERE t.state = 'claimed' AND t.site = '{self.sites[site]}'")
        if not held:
            return None
        began = {name: os.stat(os.path.join(self.state, f"{name}.pid")).st_mtime for name in AGENTS if name.startswith(f"agent-{site}") and self.runs(name)}
        before = {name: at for name, at in began.items() if at * 1000 <= held[0]["created"]}
        return max(before, key=before.get) if before else None

    # The broker, through its management.

    def broker(self, method, path, body=None):
        settings = dict(line.split("=", 1) for line in open(os.path.join(self.state, "rabbitmq", "env")).read().split())
        request = urllib.request.Request(f"{settings['MANAGEMENT']}/api/{path}", method=method,
                                         data=json.dumps(body).encode() if body is not None else None)
        login = base64.b64encode(f"{settings['USER']}:{settings['PASSWORD']}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def take_out(self, queue):
        """What waits in a queue; it waits there no more."""
        return self.broker("POST", f"queues/ocopea/{queue}/get", {"count": 1000, "ackmode": "ack_requeue_false", "encoding": "base64"}) or []

    def broker_answers(self):
        try:
            return self.broker("GET", "overview") is not None
        except OSError:
            return False

    # The coordinators, as a program uses them.

    @functools.cached_property
    def trust(self):
        return ssl.create_default_context(cafile=os.path.join(self.state, "tls", "ca.pem"))

    @functools.cached_property
    def token(self):
        with open(os.path.join(self.state, "config", "ocopea", "account.json")) as file:
            return json.load(file)["token"]

    def ask(self, method, path, body=None, key=None, through=0, within=120):
        """Asks a coordinator, and the other one where that gives no answer: as a load balancer does it."""
        until = time.time() + within
        said = None
        while time.time() < until:
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
            if key:
                headers["Idempotency-Key"] = key
            request = urllib.request.Request(f"https://127.0.0.1:{self.ports[through % 2]}/api/v1/{path}", method=method, headers=headers,
                                             data=json.dumps(body).encode() if body is not None else None)
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE, context=self.trust) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                text = error.read()
                problem = json.loads(text) if text.startswith(b"{") else {}
                if error.code < 500 and error.code != 429:
                    raise Refused(error.code, problem) from error
                said = f"{error.code} {problem.get('detail', '')}"
            except (OSError, ValueError) as error:
                said = str(error)
            through += 1
            time.sleep(0.2)
        raise Wrong(f"no coordinator answered {method} {path} within {within} s: {said}")

    def all(self, what):
        """A whole list."""
        items, cursor = [], None
        while True:
            page = self.ask("GET", f"{what}?limit=100" + (f"&cursor={cursor}" if cursor else ""))
            if isinstance(page, list):
                return page
            items += page["items"]
            cursor = page.get("next") or page.get("cursor")
            if not cursor:
                return items

    def ready(self, within=60):
        """Waits until both coordinators can use what they need."""
        for port in self.ports:
            until = time.time() + within
            while True:
                try:
                    urllib.request.urlopen(f"https://127.0.0.1:{port}/readyz", timeout=PATIENCE, context=self.trust).close()
                    break
                except OSError as error:
                    if time.time() > until:
                        said = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else error
                        raise Wrong(f"the coordinator at {port} is not ready {within} s after all parts run: {said}") from error
                    time.sleep(0.2)

    # What lies in the store.

    def blobs(self):
        return [path for path in glob.glob(os.path.join(self.state, "s3", "data", "fleet", "ocopea", "blobs", "**"), recursive=True) if os.path.isfile(path)]

    def refs(self):
        return sorted(os.path.basename(path) for path in glob.glob(os.path.join(self.state, "s3", "data", "fleet", "ocopea", "refs", "*")))


# Faults. Each takes the fleet, a source of chance and the site that the operation works at; it harms, waits, mends, and
# says what it did. When it comes back, all parts run. To add one: a function here, its line in FAULTS.

def agent_of(fleet, chance, site):
    """Mostly the one that works: the other's end changes nothing."""
    return (chance.random() < 0.7 and fleet.working(site)) or f"agent-{site}{chance.choice('12')}"


def mended(fleet, names, chance, say, why=""):
    pause = 3 * chance.random()
    say(f"kill {' '.join(names)}{why}")
    fleet.slay(*names)
    time.sleep(pause)
    fleet.start(*names)


def kill_agent(fleet, chance, site, say):
    # The other site's now and then: it must not matter.
    if chance.random() < 0.1:
        site = "b" if site == "a" else "a"
    mended(fleet, [agent_of(fleet, chance, site)], chance, say)


def kill_agents(fleet, chance, site, say):
    mended(fleet, [f"agent-{site}1", f"agent-{site}2"], chance, say)


def kill_coordinator(fleet, chance, _site, say):
    mended(fleet, [chance.choice(COORDINATORS)], chance, say)


def kill_leader(fleet, chance, _site, say):
    leader = fleet.leader()
    mended(fleet, [leader or chance.choice(COORDINATORS)], chance, say, " (leads)" if leader else " (nobody is known to lead)")


def kill_broker(fleet, chance, _site, say):
    pause = chance.uniform(1, 8)
    say(f"kill the broker for {pause:.1f} s")
    fleet.server("rabbitmq", "kill")
    time.sleep(pause)
    fleet.server("rabbitmq", "restart")


def kill_postgresql(fleet, chance, _site, say):
    pause = chance.uniform(1, 5)
    say(f"kill PostgreSQL for {pause:.1f} s")
    fleet.server("postgresql", "kill")
    time.sleep(pause)
    fleet.server("postgresql", "start")


def frozen(fleet, name, say):
    say(f"freeze {name}")
    fleet.signal(name, signal.SIGSTOP)
    try:
        time.sleep(FROZEN)
    finally:
        fleet.signal(name, signal.SIGCONT)


def freeze_agent(fleet, chance, site, say):
    frozen(fleet, agent_of(fleet, chance, site), say)


def freeze_coordinator(fleet, chance, _site, say):
    frozen(fleet, (chance.random() < 0.5 and fleet.leader()) or chance.choice(COORDINATORS), say)


def memory_alarm(fleet, chance, _site, say):
    pause = chance.uniform(2, 10)
    say(f"memory alarm for {pause:.1f} s")
    try:
        fleet.server("rabbitmq", "ctl", "set_vm_memory_high_watermark", "absolute", "1")
        time.sleep(pause)
    finally:
        fleet.server("rabbitmq", "ctl", "set_vm_memory_high_watermark", "absolute", "1GB")


def disk_alarm(fleet, chance, _site, say):
    pause = chance.uniform(2, 10)
    say(f"disk alarm for {pause:.1f} s")
    try:
        fleet.server("rabbitmq", "ctl", "set_disk_free_limit", "1000GB")
        time.sleep(pause)
    finally:
        fleet.server("rabbitmq", "ctl", "set_disk_free_limit", "50MB")


def queue_of(fleet, chance, site):
    return "requests" if chance.random() < 0.5 else f"tasks.{fleet.sites[site]}"


def purge_queue(fleet, chance, site, say):
    queue = queue_of(fleet, chance, site)
    say(f"purge {queue}")
    fleet.broker("DELETE", f"queues/ocopea/{queue}/contents")


def delete_queue(fleet, chance, site, say):
    queue = queue_of(fleet, chance, site)
    say(f"delete {queue}")
    fleet.broker("DELETE", f"queues/ocopea/{queue}")
    fleet.deleted[queue] = int(time.time() * 1000)


# NAME: (function, how often a full run has it in the midst of a save or a restore)
FAULTS = {
    "kill agent": (kill_agent, 225),
    "kill both agents": (kill_agents, 50),
    "kill coordinator": (kill_coordinator, 125),
    "kill leader": (kill_leader, 100),
    "kill broker": (kill_broker, 50),
    "kill PostgreSQL": (kill_postgresql, 50),
    "freeze agent": (freeze_agent, 15),
    "freeze coordinator": (freeze_coordinator, 15),
    "memory alarm": (memory_alarm, 10),
    "disk alarm": (disk_alarm, 10),
    "purge queue": (purge_queue, 15),
    "delete queue": (delete_queue, 15),
}
