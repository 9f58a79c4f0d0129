"""As much of MongoDB's wire protocol as a test needs to write documents and to read them all again: no driver is installed."""
import hashlib
import itertools
import socket
import struct


def _element(name, value):
    key = name.encode() + b"\0"
    if isinstance(value, bool):
        return b"\x08" + key + bytes([value])
    if isinstance(value, int):
        return b"\x12" + key + struct.pack("<q", value)
    if isinstance(value, str):
        text = value.encode() + b"\0"
        return b"\x02" + key + struct.pack("<i", len(text)) + text
    if isinstance(value, dict):
        return b"\x03" + key + encoded(value)
    if isinstance(value, list):
        return b"\x04" + key + encoded({str(i): item for i, item in enumerate(value)})
    raise TypeError(f"{name}: {type(value)} isn't written")


def encoded(document):
    """BSON of numbers, texts, truths, lists and documents."""
    body = b"".join(_element(name, value) for name, value in document.items())
    return struct.pack("<i", len(body) + 5) + body + b"\0"


FIXED = {0x01: "<d", 0x10: "<i", 0x12: "<q", 0x11: "<q", 0x09: "<q"}


def decoded(data, at=0):
    """The document that begins at `at`. The documents of an answer stay bytes, to be hashed as they are; other lists are left out."""
    end = at + struct.unpack_from("<i", data, at)[0]
    at += 4
    found = {}
    while data[at] != 0:
        kind = data[at]
        stop = data.index(b"\0", at + 1)
        name = data[at + 1:stop].decode()
        at = stop + 1
        if kind in FIXED:
            found[name] = struct.unpack_from(FIXED[kind], data, at)[0]
            at += struct.calcsize(FIXED[kind])
        elif kind == 0x02:
            size = struct.unpack_from("<i", data, at)[0]
            found[name] = data[at + 4:at + 3 + size].decode()
            at += 4 + size
        elif kind == 0x03:
            found[name] = decoded(data, at)
            at += struct.unpack_from("<i", data, at)[0]
        elif kind == 0x04:
            found[name] = _raw(data, at) if name in ("firstBatch", "nextBatch") else None
            at += struct.unpack_from("<i", data, at)[0]
        elif kind == 0x08:
            found[name] = data[at] != 0
            at += 1
        elif kind == 0x07:
            found[name] = data[at:at + 12]
            at += 12
        elif kind == 0x05:
            size = struct.unpack_from("<i", data, at)[0]
            found[name] = data[at + 5:at + 5 + size]
            at += 5 + size
        elif kind == 0x0A:
            found[name] = None
        else:
            raise ValueError(f"BSON type {kind:#x} of {name} isn't read")
    assert at == end - 1
    return found


def _raw(data, at):
    """The documents of a list, each as its bytes."""
    at += 4
    items = []
    while data[at] != 0:
        at = data.index(b"\0", at + 1) + 1
        size = struct.unpack_from("<i", data, at)[0]
        items.append(data[at:at + size])
        at += size
    return items


class Mongo:
    """A connection to one server, for one database."""

    def __init__(self, host, database, port=27017):
        self.socket = socket.create_connection((host, port), timeout=30)
        self.database, self.numbers = database, itertools.count(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def _take(self, count):
        parts = []
        while count:
            part = self.socket.recv(min(count, 1 << 20))
            if not part:
                raise OSError("the server closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def ask(self, **command):
        """Runs a command (the first argument names it), and fails where the server says so."""
        body = struct.pack("<iB", 0, 0) + encoded({**command, "$db": self.database})
        self.socket.sendall(struct.pack("<iiii", len(body) + 16, next(self.numbers), 0, 2013) + body)
        size, _, _, code = struct.unpack("<iiii", self._take(16))
        answer = self._take(size - 16)
        if code != 2013:
            raise OSError(f"an answer of kind {code}")
        found = decoded(answer, 5)
        if found.get("ok") != 1:
            raise OSError(f"{next(iter(command))}: {found}")
        return found

    def collections(self):
        found = self.ask(listCollections=1, cursor={})["cursor"]["firstBatch"]
        return sorted(name for name in (decoded(item)["name"] for item in found) if not name.startswith("system."))

    def documents(self, collection):
        """Every document, as its bytes."""
        cursor = self.ask(find=collection, batchSize=5000)["cursor"]
        items = cursor["firstBatch"]
        while cursor["id"]:
            cursor = self.ask(getMore=cursor["id"], collection=collection, batchSize=5000)["cursor"]
            items += cursor["nextBatch"]
        return items

    def content(self):
        """[documents, digest] of each collection, whatever order the server keeps them in."""
        found = {}
        for collection in self.collections():
            items = sorted(self.documents(collection))
            found[collection] = [len(items), hashlib.sha256(b"".join(items)).hexdigest()[:16]]
        return found
