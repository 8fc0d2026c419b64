"""A client in plain Python, written from the protocol page alone: it has many requests under way at a time, over all
partitions of a domain, while slots move.

    replies.py URL DOMAIN PARTITIONS COUNT

URL is that of one node of a cluster, for the user convoke-publisher; PARTITIONS counts where nobody used the domain before.
Workers double the numbers of the events DOMAIN.double. It writes a line when it has looked where the slots are, and begins
when it reads one. Its last line is what came of it, as JSON. Ends with 0 if each reply was right, and came once.
"""

import asyncio
import binascii
import json
import sys
import time
import uuid
from urllib.parse import urlsplit

import msgpack

UNDER_WAY = 1000
BATCH = 50


def crc16(text):
    return binascii.crc_hqx(text.encode(), 0)


def slot_of(key):
    inside = key[key.find("{") + 1:key.find("}")]
    return crc16(inside) % 16384


class Refused(Exception):
    """What a node answered in the place of a result."""


class Wire:
    """One connection to a node."""

    @classmethod
    async def open(cls, place, login):
        wire = cls()
        wire.input, wire.output = await asyncio.open_connection(*place, limit=1 << 20)
        await wire.call("AUTH", *login)
        return wire

    def send(self, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self.output.write(b"*%d\r\n" % len(words))
        self.output.write(b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))

    async def answer(self):
        line = (await self.input.readuntil(b"\r\n"))[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            return Refused(rest.decode())
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if rest == b"-1":
            return None
        if kind == b"$":
            return (await self.input.readexactly(int(rest) + 2))[:-2]
        return [await self.answer() for _ in range(int(rest))]

    async def call(self, *words):
        self.send(*words)
        answer = await self.answer()
        if isinstance(answer, Refused):
            raise answer
        return answer


class Cluster:
    """Where the slots are."""

    def __init__(self, url):
        url = urlsplit(url)
        self.seed, self.login = (url.hostname, url.port), (url.username, url.password)
        self.owners, self.moved, self.asked = {}, 0, 0

    async def look(self):
        wire = await Wire.open(self.seed, self.login)
        for first, last, (host, port, *_), *_ in await wire.call("CLUSTER", "SLOTS"):
            place = ((host or b"").decode() or self.seed[0], port)
            self.owners.update(dict.fromkeys(range(first, last + 1), place))

    def told(self, slot, refused):
        """What a refusal says: whom to ask this once, or None after what was learned."""
        word, *rest = str(refused).split()
        if word not in ("MOVED", "ASK"):
            return None
        host, port = rest[1].rsplit(":", 1)
        place = (host or self.seed[0], int(port))
        if word == "ASK":
            self.asked += 1
            return place
        self.moved += 1
        self.owners[slot] = place
        return None


class Way:
    """Connections of one's own to wherever one key's slot is."""

    def __init__(self, cluster, key):
        self.cluster, self.slot, self.wires = cluster, slot_of(key), {}

    async def wire(self, place):
        if place not in self.wires:
            self.wires[place] = await Wire.open(place, self.cluster.login)
        return self.wires[place]

    async def home(self):
        return await self.wire(self.cluster.owners[self.slot])

    async def call(self, *words, after=None):
        """Sends a command until a node has run it, `after` what was refused before."""
        refused = after
        while True:
            once = refused and self.cluster.told(self.slot, refused)
            if refused and str(refused).split()[0] in ("TRYAGAIN", "CLUSTERDOWN", "LOADING"):
                await asyncio.sleep(0.02)
            try:
                if once:
                    wire = await self.wire(once)
                    wire.send("ASKING")
                    wire.send(*words)
                    await wire.answer()
                    answer = await wire.answer()
                else:
                    answer = await (await self.home()).call(*words)
            except Refused as error:
                answer = error
            if not isinstance(answer, Refused):
                return answer
            known = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "UNBLOCKED")
            if str(answer).split()[0] not in known:
                raise answer
            refused = answer


class Client:
    def __init__(self, cluster, domain, partitions):
        self.cluster, self.domain, self.set = cluster, domain, partitions
        self.name = str(uuid.uuid4())
        self.control = Way(cluster, "{cb}")
        self.queues, self.tasks = {}, []
        self.waiting, self.answers, self.doubled = {}, {}, 0
        self.room = asyncio.Semaphore(UNDER_WAY)

    def key(self, partition, kind):
        return f"{{cb:{self.domain}:{partition}}}:{kind}"

    async def look(self):
        """How many partitions the domain has; the first who uses it says it."""
        said = await self.control.call("HGET", "{cb}:domains", self.domain)
        if said is None:
            first = {"version": 1, "partitions": self.set, "order": "none"}
            await self.control.call("HSETNX", "{cb}:domains", self.domain, msgpack.packb(first))
            said = await self.control.call("HGET", "{cb}:domains", self.domain)
        self.partitions = msgpack.unpackb(said)["partitions"]

    async def look_again(self):
        while True:
            await asyncio.sleep(1)
            await self.look()

    def start(self, work):
        self.tasks.append(asyncio.ensure_future(work))

    async def ask(self, number):
        await self.room.acquire()
        # Every other one has a subject.
        event = {"type": f"{self.domain}.double", "data": msgpack.packb(number), "id": f"{self.name}/{number}", "source": "py"}
        if number % 2:
            event["subject"] = f"s-{number % 97}"
        partition = crc16(event.get("subject", event["id"])) % self.partitions
        event["replyto"] = self.key(partition, f"reply:{self.name}")
        event["deadline"] = int(time.time() * 1000) + 300_000
        self.waiting[event["id"]] = number
        if partition not in self.queues:
            self.queues[partition] = asyncio.Queue()
            self.start(self.publish(partition))
            self.start(self.read(partition))
        await self.queues[partition].put(event)

    async def publish(self, partition):
        """What is to be published into a partition goes there in pipelines."""
        queue, events = self.queues[partition], self.key(partition, "events")
        way = Way(self.cluster, events)
        while True:
            batch = [await queue.get()]
            while len(batch) < BATCH and not queue.empty():
                batch.append(queue.get_nowait())
            adds = [["XADD", events, "*"] + [word for pair in event.items() for word in pair] for event in batch]
            wire = await way.home()
            for add in adds:
                wire.send(*add)
            answers = [await wire.answer() for _ in adds]
            for add, answer in zip(adds, answers):
                if isinstance(answer, Refused):
                    await way.call(*add, after=answer)

    async def read(self, partition):
        stream, last = self.key(partition, f"reply:{self.name}"), b"0"
        way = Way(self.cluster, stream)
        while True:
            read = await way.call("XREAD", "COUNT", 500, "BLOCK", 1000, "STREAMS", stream, last)
            for last, fields in read[0][1] if read else []:
                self.hear(dict(zip(fields[::2], fields[1::2])))

    def hear(self, reply):
        if reply[b"type"].endswith(b".progress"):
            return
        id = reply[b"correlationid"].decode()
        if id in self.answers:
            self.doubled += 1
            return
        number = self.waiting.pop(id)
        assert reply[b"status"] == b"ok", reply
        assert reply[b"type"].decode() == f"{self.domain}.double.result", reply
        self.answers[id] = msgpack.unpackb(reply[b"data"])
        assert self.answers[id] == 2 * number, (number, reply)
        self.room.release()

    async def ask_all(self, count):
        for number in range(count):
            await self.ask(number)
        while self.waiting:
            await asyncio.sleep(0.01)


async def main(url, domain, partitions, count):
    cluster = Cluster(url)
    await cluster.look()
    print("looked", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    client, began = Client(cluster, domain, int(partitions)), time.monotonic()
    await client.look()
    client.start(client.look_again())
    asks = asyncio.ensure_future(client.ask_all(int(count)))
    # What fails ends all.
    while not asks.done():
        done, _ = await asyncio.wait([asks, *client.tasks], timeout=1, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    print(json.dumps({
        "client": client.name, "replies": len(client.answers), "doubled": client.doubled,
        "partitions": len(client.queues), "moved": cluster.moved, "asked": cluster.asked,
        "seconds": round(time.monotonic() - began, 2),
    }))
    assert len(client.answers) == int(count) and not client.doubled


asyncio.run(main(*sys.argv[1:]))
