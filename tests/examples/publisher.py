"""A publisher and a requester in Python, with `redis` and `msgpack`: all that an event may say.

    python3 tests/examples/publisher.py redis://127.0.0.1

Beside it runs: convoke worker --exec "text.upper=tr '[:lower:]' '[:upper:]'" --exec "text.fail=echo no such text >&2; exit 65"
"""

import sys
import time
import uuid

import msgpack
import redis

bus = redis.Redis.from_url(sys.argv[1])
client = str(uuid.uuid4())
mailbox = f"cb:reply:{client}"
results, dead = "cb:results:text", "cb:dead:text"


def publish(kind, payload, **fields):
    """Stores an event. Its id: whoever sees it again knows that it is the same."""
    event = {"type": kind, "data": msgpack.packb(payload), "id": str(uuid.uuid4()), "source": "shop", **fields}
    bus.xadd(f"cb:events:{kind.split('.')[0]}", event)
    return event["id"]


def first_after(stream, place):
    """Waits for the next entry of a stream that does not only say how far a handler is."""
    while True:
        [[_, [[place, entry]]]] = bus.xread({stream: place}, count=1, block=30_000)
        if not entry[b"type"].endswith(b".progress"):
            return {name.decode(): value for name, value in entry.items()}


def last(stream):
    return bus.xinfo_stream(stream)["last-generated-id"] if bus.exists(stream) else "0"


def ask(kind, payload):
    """A request: the reply, or what went wrong. Nobody works for it after its deadline."""
    place = last(mailbox)
    publish(kind, payload, replyto=mailbox, deadline=int(time.time() * 1000) + 30_000)
    reply = first_after(mailbox, place)
    said = msgpack.unpackb(reply["data"])
    return said if reply["status"] == b"ok" else f"{said['code']}: {said['message']}"


print(ask("text.upper", "cat"))
print(ask("text.fail", "cat"))

place = last(results)
publish("text.upper", "later", notbefore=int(time.time() * 1000) + 300)
print(msgpack.unpackb(first_after(results, place)["data"]))

place, before = last(results), bus.xlen(results)
for _ in range(2):  # It takes effect once, however often it is added.
    publish("text.upper", "once", id=f"order-{client}", dedup=1)
ask("text.upper", "whoever asks has an answer after those before it were read")
print(msgpack.unpackb(first_after(results, place)["data"]), bus.xlen(results) - before)

place = last(dead)
publish("text.fail", "dog")
letter = first_after(dead, place)
print(letter["deadreason"].decode(), letter["deadmessage"].decode())
bus.delete(mailbox)
