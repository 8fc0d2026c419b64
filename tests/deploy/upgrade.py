#!/usr/bin/python3
"""Rolls four workers of one program to another one and back, one by one, under load: nothing is lost, nothing happens twice.

    upgrade.py --old FILE --new FILE [--rate EVENTS] [--workers N]

Each worker drains, ends with 0, and comes back under its id as the other program; then the next one. All the while events are published, with a
backlog before each step: some that succeed, some that fail at first and wait in the delay queue, batches of both kinds asked by
either program. In the end each event has exactly one result, each item of a batch ran to one end, and nothing is pending, delayed or dead.
Needs redis-server and redis-cli.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

BACKLOG = 60
ITEMS = 20


class Bus:
    def __init__(self, place):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.place = place
        words = ["redis-server", "--port", str(self.port), "--dir", str(place), "--save", ""]
        self.server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        until("Redis answers", lambda: self.ask("ping") == "PONG")
        self.sent, self.lock, self.over = [], threading.Lock(), threading.Event()

    def ask(self, *words):
        return subprocess.run(["redis-cli", "-p", str(self.port), *words], capture_output=True, text=True, check=False).stdout.strip()

    def publish(self, count):
        """Adds events, each third of which fails at first."""
        with self.lock:
            lines = []
            for _ in range(count):
                number = len(self.sent)
                kind = "demo.again" if number % 3 == 0 else "demo.echo"
                self.sent.append(f"e-{number}")
                # A payload of MessagePack: 1.
                lines.append(f'XADD cb:events:demo * type {kind} id e-{number} data "\\x01"\n')
            told = subprocess.run(["redis-cli", "-p", str(self.port)], input="".join(lines), capture_output=True, text=True, check=True)
            assert told.stdout.count("-") == count, told.stdout

    def load(self, rate):
        while not self.over.wait(1):
            self.publish(rate)

    def results(self):
        """How many results there are of each event."""
        words = self.ask("--json", "xrange", "cb:results:demo", "-", "+")
        counts = collections.Counter()
        for _, fields in json.loads(words or "[]"):
            said = dict(zip(fields[::2], fields[1::2], strict=True))
            counts[said["correlationid"]] += said["status"] == "ok" or 1000
        return counts


def until(what, is_so, within=240):
    end = time.monotonic() + within
    while not is_so():
        if time.monotonic() > end:
            sys.exit(f"WRONG: not within {within} s: {what}")
        time.sleep(0.2)


class Worker:
    def __init__(self, bus, name):
        self.bus, self.name, self.process = bus, name, None

    def start(self, program):
        again = "[ $CONVOKE_EVENT_ATTEMPT -gt 1 ] || exit 75; cat"
        words = [program, "worker", "--id", self.name, "--exec", "demo.echo=cat", "--exec", f"demo.again={again}"]
        words += ["--stream-history", "1000000", "--concurrency", "8", "--backoff-base", "2s"]
        words += ["--handler-timeout", "2m", "--drain-timeout", "2m"]
        environment = {"PATH": os.environ["PATH"], "CONVOKE_REDIS_URL": f"redis://127.0.0.1:{self.bus.port}"}
        environment["RUNTIME_DIRECTORY"] = str(self.bus.place / "run")
        log = open(self.bus.place / f"{self.name}.log", "ab")
        self.process = subprocess.Popen(words, env=environment, stderr=log, stdout=log)
        # An older program may know no probe.
        until(f"{self.name} is registered", lambda: self.bus.ask("zscore", "cb:instances:active", self.name) != "")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=240)
        if code != 0:
            sys.exit(f"WRONG: {self.name} ends with {code}")


def ask_batch(bus, program, number, mode):
    """A batch, asked by one of the programs; its answer is read at the end."""
    items = [f"{number}.{item}" for item in range(ITEMS)]
    payload = {"batch_id": f"b-{number}", "item_type": "demo.echo", "mode": mode, "items": items}
    words = [program, "request", "system.batch.process", "--redis-url", f"redis://127.0.0.1:{bus.port}"]
    words += ["--data", json.dumps(payload), "--timeout", "15m"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--old", required=True)
    parser.add_argument("--new", required=True)
    parser.add_argument("--rate", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4)
    asked = parser.parse_args()
    place = pathlib.Path(tempfile.mkdtemp(prefix="convoke-upgrade-"))
    bus = Bus(place)
    workers = [Worker(bus, f"w-{number}") for number in range(asked.workers)]
    batches = []
    began = time.monotonic()
    try:
        for worker in workers:
            worker.start(asked.old)
        load = threading.Thread(target=bus.load, args=(asked.rate,), daemon=True)
        load.start()
        steps = [(worker, asked.old, asked.new) for worker in workers] + [(worker, asked.new, asked.old) for worker in workers]
        for number, (worker, before, after) in enumerate(steps):
            bus.publish(BACKLOG)
            mode = ("exclusive", "fan_out")[number % 2]
            batches.append(ask_batch(bus, (before, after)[number // 2 % 2], number, mode))
            worker.stop()
            worker.start(after)
            print(f"{time.monotonic() - began:.0f} s: {worker.name} is {after}", flush=True)
        bus.over.set()
        load.join()
        for number, batch in enumerate(batches):
            said, complained = batch.communicate(timeout=900)
            if batch.returncode != 0:
                sys.exit(f"WRONG: batch {number}: {complained}")
            result = json.loads(said)
            if result["items_processed"] != ITEMS or result["items_failed"] != 0:
                sys.exit(f"WRONG: batch {number}: {result}")
        until("each event has a result", lambda: len([one for one in bus.results() if one.startswith("e-")]) >= len(bus.sent), 900)
        for worker in workers:
            worker.stop()
        results = bus.results()
        lost = [one for one in bus.sent if results[one] == 0]
        doubled = [one for one, count in results.items() if count > 1]
        left = {
            "pending": bus.ask("xpending", "cb:events:demo", "workers").split("\n")[0],
            "delayed": bus.ask("zcard", "cb:delayed:demo"),
            "dead": bus.ask("xlen", "cb:dead:demo"),
        }
        print(
            f"{len(bus.sent)} events ({len(bus.sent) // 3} of them tried twice) and {len(batches)} batches of {ITEMS} in {time.monotonic() - began:.0f} s, "
            f"{len(steps)} workers replaced: {len(lost)} lost, {len(doubled)} doubled or failed; left: {left}"
        )
        if lost or doubled or set(left.values()) - {"0", ""}:
            sys.exit(f"WRONG: lost {lost[:9]}, doubled or failed {doubled[:9]}, left {left}")
    finally:
        for worker in workers:
            if worker.process and worker.process.poll() is None:
                worker.process.kill()
        for batch in batches:
            batch.kill()
        bus.server.kill()
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
