"""A client and a program that takes tasks, in plain Python, written from the protocol page alone.

    raw.py WORKER SERVICE INSTANCE

WORKER is the id of the one worker that runs there; it echoes the events `raw.echo`. The others are URLs for the users
convoke-service and convoke-instance. Ends with 0 if every answer was right.
"""

import json
import socket
import struct
import sys
import uuid
from urllib.parse import urlsplit

# MessagePack

NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
           0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
LENGTHS = {0xC4: (bytes, ">B"), 0xC5: (bytes, ">H"), 0xC6: (bytes, ">I"),
           0xD9: (str, ">B"), 0xDA: (str, ">H"), 0xDB: (str, ">I"),
           0xDC: (list, ">H"), 0xDD: (list, ">I"), 0xDE: (dict, ">H"), 0xDF: (dict, ">I")}


def pack(value):
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return b"\xdb" + struct.pack(">I", len(text)) + text
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    pairs = b"".join(pack(name) + pack(inner) for name, inner in value.items())
    return b"\xdf" + struct.pack(">I", len(value)) + pairs


def unpack(data):
    value, end = value_at(data, 0)
    assert end == len(data), "bytes follow the value"
    return value


def value_at(data, at):
    first, at = data[at], at + 1
    if first < 0x80 or first >= 0xE0:
        return first - (256 if first >= 0xE0 else 0), at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in NUMBERS:
        end = at + struct.calcsize(NUMBERS[first])
        return struct.unpack(NUMBERS[first], data[at:end])[0], end
    if first < 0xC0:
        kind, length = (dict, list, str, str)[first - 0x80 >> 4], first & (0x1F if first >= 0xA0 else 0x0F)
    else:
        kind, form = LENGTHS[first]
        end = at + struct.calcsize(form)
        length, at = struct.unpack(form, data[at:end])[0], end
    if kind in (bytes, str):
        raw = data[at:at + length]
        return (raw if kind is bytes else raw.decode()), at + length
    values = []
    for _ in range(length * (2 if kind is dict else 1)):
        value, at = value_at(data, at)
        values.append(value)
    return (values if kind is list else dict(zip(values[::2], values[1::2]))), at


# Redis

class Redis:
    def __init__(self, url):
        url = urlsplit(url)
        self.wire = socket.create_connection((url.hostname, url.port), timeout=60).makefile("rwb")
        self("AUTH", url.username, url.password)

    def __call__(self, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self.wire.write(b"*%d\r\n" % len(words))
        self.wire.write(b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        self.wire.flush()
        return self.answer()

    def answer(self):
        line = self.wire.readline()[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"-" or not kind:
            raise RuntimeError(rest.decode() or "the connection ended")
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if rest == b"-1":
            return None
        if kind == b"$":
            return self.wire.read(int(rest) + 2)[:-2]
        return [self.answer() for _ in range(int(rest))]

    def read(self, stream, after="0"):
        """The entries of a stream behind an id, once there are any."""
        entries = self("XREAD", "BLOCK", 50_000, "STREAMS", stream, after)
        assert entries, f"nothing came on {stream} after {after}"
        decoded = []
        for entry, fields in entries[0][1]:
            fields = dict(zip((name.decode() for name in fields[::2]), fields[1::2]))
            data = fields.pop("data", b"\xc0")
            decoded.append((entry.decode(), {name: value.decode() for name, value in fields.items()}, data))
        return decoded


# Convoke

class Client:
    def __init__(self, url):
        self.redis = Redis(url)

    def publish(self, type, data, **fields):
        words = [word for pair in fields.items() for word in pair]
        stream = "cb:events:" + type.split(".")[0]
        return self.redis("XADD", stream, "*", "type", type, "data", data, *words).decode()

    def ask(self, type, data=None, status="ok"):
        """Publishes, waits for the reply, and gives its result."""
        to, own = f"cb:reply:{uuid.uuid4()}", str(uuid.uuid4())
        self.publish(type, pack(data), id=own, source="raw", replyto=to)
        [(_, fields, data)] = self.redis.read(to)
        data = unpack(data)
        told = fields["type"], fields["correlationid"], fields["status"]
        assert told == (type + ".result", own, status), (fields, data)
        assert status == "ok" or data["code"] == status, data
        return data


def check(found, **wanted):
    """The fields of a result that must be as they are named."""
    found = {name: found.get(name) for name in wanted}
    assert found == wanted, f"{found} is not {wanted}"


def finds_the_bus_healthy(client):
    health = client.ask("system.health")
    check(health, status="healthy", partition=False)
    check(health["instances"], healthy=1, suspect=0, lost=0)


def asks_and_publishes(client, worker):
    value = {"text": "é", "list": [None, True, -1, 2**40, 0.5], "bytes": b"\0\xff", "long": "x" * 300}
    check({"echo": client.ask("raw.echo", value)}, echo=value)
    client.ask("raw.nobody", status="unimplemented")

    entry = client.publish("raw.echo", pack("alone"))
    [(_, fields, data)] = client.redis.read("cb:results:raw")
    check(fields, correlationid=entry, type="raw.echo.result", status="ok", source=worker)
    check({"result": unpack(data)}, result="alone")


def speaks_json(client):
    value, to = {"text": "é", "bytes": {"$bin": "00ff"}}, f"cb:reply:{uuid.uuid4()}"
    entry = client.publish("raw.echo", json.dumps(value), datacontenttype="application/json", replyto=to)
    [(_, fields, data)] = client.redis.read(to)
    check(fields, correlationid=entry, status="ok", datacontenttype="application/json")
    check({"result": json.loads(data)}, result=value)


def registers_and_pulses(client, worker):
    for id, kind in ("raw-1", "raw.job"), ("raw-2", "raw.other"):
        wanted = {"id": id, "roles": ["voter"], "capabilities": [kind], "capacity": 2, "ttl_ms": 600_000}
        registered = client.ask("system.register", wanted)
        check(registered, registered=True, ttl_ms=600_000, leader=worker, assigned=[])
        own = {"instance_id": id, "incarnation": registered["incarnation"]}
        pulse = client.ask("system.heartbeat", {**own, "load": 0.5})
        check(pulse, alive=True, leader=worker)
    seen = {peer["id"]: "healthy" for peer in pulse["watch"]}
    assert worker in seen, pulse
    check(client.ask("system.heartbeat", {**own, "observed": seen}), alive=True)

    other = {**own, "incarnation": own["incarnation"] - 1}
    check(client.ask("system.heartbeat", other), alive=False)
    client.ask("system.unregister", other, status="failed_precondition")
    client.ask("system.unregister", {"instance_id": worker}, status="permission_denied")


def votes(client, worker):
    def vote(id, value, status="ok"):
        ballot = {"decision": "raw", "instance_id": id, "value": value, "role": "voter"}
        return client.ask("system.quorum.vote", ballot, status)

    check(vote("raw-1", "yes"), voted=True, quorum_reached=False, electorate=2, quorum=2, status="open")
    vote("raw-1", "no", status="already_exists")
    vote(worker, "yes", status="failed_precondition")
    check(vote("raw-2", "yes"), quorum_reached=True, final_decision="yes", vote_count=2, status="decided")


def takes_a_task(client):
    created = client.ask("task.create", {"task_id": "raw", "kind": "raw.job", "payload": {"n": 6}, "role": "voter"})
    check(created, status="assigned", assigned_to="raw-1")
    last, fence = "0", 0
    for attempt in 1, 2:
        [(last, fields, data)] = client.redis.read("cb:inbox:raw-1", last)
        task = unpack(data)
        check(fields, type="task.assigned", id=f"raw/{task['fence']}")
        check(task, task_id="raw", kind="raw.job", payload={"n": 6}, attempt=attempt)
        assert task["fence"] > fence, task
        fence = task["fence"]
        report = {"task_id": "raw", "instance_id": "raw-1", "fence": fence}
        if attempt == 1:
            check(client.ask("task.fail", {**report, "error": "once more"}), status="assigned")
            client.ask("task.complete", report, status="aborted")
    for _ in "twice":
        check(client.ask("task.complete", {**report, "result": {"n": 36}}), status="completed")
    check(client.ask("task.get", {"task_id": "raw"}), status="completed", result={"n": 36}, attempt=2)


def leaves_and_looks_back(client):
    check(client.ask("system.unregister", {"instance_id": "raw-1"}), unregistered=True, tasks_reassigned=0)
    wanted = [
        ("instance.registered", "raw-1"),
        ("instance.registered", "raw-2"),
        ("quorum.decided", "raw"),
        ("task.completed", "raw"),
        ("instance.unregistered", "raw-1"),
    ]
    told = []
    for _, fields, data in client.redis.read("cb:broadcast"):
        fact = unpack(data)
        about = fact.get("id") or fact.get("decision") or fact.get("task_id")
        told.append((fields["type"], about))
    # Versions may add facts.
    told = [fact for fact in told if fact in wanted]
    assert told == wanted, told


def main(worker, service, instance):
    service, instance = Client(service), Client(instance)
    finds_the_bus_healthy(instance)
    asks_and_publishes(service, worker)
    speaks_json(service)
    registers_and_pulses(instance, worker)
    votes(instance, worker)
    takes_a_task(instance)
    leaves_and_looks_back(instance)


main(*sys.argv[1:])
