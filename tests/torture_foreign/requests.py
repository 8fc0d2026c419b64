"""Publishes requests with redis-py and msgpack alone, and checks that each gets its reply once.

    requests.py URL CLIENTS REQUESTS

Every client has its requests outstanding all at once. Prints one line and exits 1 if a reply is
missing, wrong, or there twice.
"""

import collections
import sys
import threading
import time
import uuid

import msgpack
import redis

PATIENCE = 60


def client(url, serial, requests, failures):
    bus = redis.Redis.from_url(url)
    mailbox = f"cb:reply:python-{serial}-{uuid.uuid4()}"
    expected = {}
    pipe = bus.pipeline(transaction=False)
    for n in range(requests):
        event = f"{serial}-{n}"
        # Every tenth takes a while, so that replies overtake each other.
        work = {"n": serial * requests + n, "ms": 5 if n % 10 == 0 else 0}
        expected[event] = work["n"]
        fields = {"type": "load.work", "id": event, "data": msgpack.packb(work), "replyto": mailbox}
        pipe.xadd("cb:events:load", fields)
    pipe.execute()

    replies = collections.Counter()
    after = "0"
    until = time.monotonic() + PATIENCE
    while len(replies) < requests and time.monotonic() < until:
        for _, entries in bus.xread({mailbox: after}, count=1000, block=1000):
            for after, reply in entries:
                event = reply[b"correlationid"].decode()
                replies[event] += 1
                result = msgpack.unpackb(reply[b"data"])
                if reply[b"status"] != b"ok" or result != expected.get(event):
                    failures.append(f"{event}: {reply}")
                if reply[b"type"] != b"load.work.result":
                    failures.append(f"{event}: {reply[b'type']}")
    failures += [f"{event}: no reply" for event in expected if not replies[event]]
    # A second reply would be behind the last first one.
    time.sleep(0.5)
    late = bus.xread({mailbox: after})
    failures += [f"{mailbox}: a reply too many" for _, entries in late for _ in entries]
    failures += [f"{event}: {times} replies" for event, times in replies.items() if times > 1]


def main():
    url, clients, requests = sys.argv[1], *map(int, sys.argv[2:])
    failures = []
    threads = [
        threading.Thread(target=client, args=(url, serial, requests, failures))
        for serial in range(clients)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    if failures:
        sys.exit(1)
    print(f"{clients * requests} requests, {clients * requests} replies, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
