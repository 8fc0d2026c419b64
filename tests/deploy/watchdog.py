#!/usr/bin/python3
"""A worker under a watchdog, as systemd keeps one (Type=notify, WatchdogSec), and under load.

    watchdog.py --binary FILE [--minutes N] [--watchdog SECONDS]

First it works for so many minutes, through an outage of its server every ten minutes or twice in all: it must never be
killed. Then every thread that runs handlers is stopped, as handlers that hold their threads would: it must be killed
within five quarters of WatchdogSec, and not before its half. Needs redis-server; prints what it saw, exits 1 if something was wrong.
"""

import argparse
import ctypes
import os
import pathlib
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
# Events a second.
RATE = 5
OUTAGE = 25


class Systemd:
    """Starts the worker, listens to it, and kills it when it is silent for too long."""

    def __init__(self, binary, place, port, watchdog):
        self.watchdog = watchdog
        self.path = place / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.command = [binary, "worker", "--id", "w-1", "--exec", "demo.echo=cat", "--runtime-dir", str(place / "run")]
        self.environment = {
            "PATH": os.environ["PATH"],
            "CONVOKE_REDIS_URL": f"redis://127.0.0.1:{port}",
            "NOTIFY_SOCKET": str(self.path),
            "WATCHDOG_USEC": str(int(watchdog * 1e6)),
        }
        self.log = open(place / "worker.log", "ab")
        self.kills, self.exits, self.words, self.longest = [], 0, 0, 0.0
        self.status, self.stopped = "", []
        self.start()

    def start(self):
        words = ["sh", "-c", 'export WATCHDOG_PID=$$; exec "$@"', "sh", *self.command]
        self.process = subprocess.Popen(words, env=self.environment, stderr=self.log)
        self.heard = time.monotonic()

    def look(self, until):
        """Keeps watch until then, or until it killed something."""
        while time.monotonic() < until:
            wait = min(until, self.heard + self.watchdog) - time.monotonic()
            if select.select([self.socket], [], [], max(wait, 0))[0]:
                for line in self.socket.recv(4096).decode().split("\n"):
                    if line == "WATCHDOG=1":
                        now = time.monotonic()
                        self.longest = max(self.longest, now - self.heard)
                        self.heard = now
                        self.words += 1
                    elif line.startswith("STATUS="):
                        self.status = line[7:]
            elif (silent := time.monotonic()) >= self.heard + self.watchdog:
                self.process.send_signal(signal.SIGABRT)
                for thread in self.stopped:
                    # A traced thread's end is its tracer's to see; the process waits for that.
                    os.waitpid(thread, WALL)
                self.process.wait()
                self.kills.append((silent, self.status))
                self.start()
                return
            if self.process.poll() is not None:
                self.exits += 1
                self.start()


class Load:
    """Publishes some events a second, and a batch of pings now and then."""

    def __init__(self, port):
        self.port, self.sent, self.over = port, 0, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        bus = None
        while not self.over.wait(1 / RATE):
            pings = 200 if self.sent % (60 * RATE) == 0 else 0
            try:
                bus = bus or socket.create_connection(("127.0.0.1", self.port), timeout=60)
                bus.sendall(add("cb:events:demo", "demo.echo", b"\x01") + pings * add("cb:events:system", "system.ping", b"\x80"))
                left = 1 + pings
                while left > 0:
                    left -= bus.recv(65536).count(b"\r\n") // 2 or 1
            except OSError:
                bus = None
                continue
            self.sent += 1 + pings


def add(stream, kind, data):
    words = [b"XADD", stream.encode(), b"*", b"type", kind.encode(), b"data", data]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def ask(port, *words):
    return subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True, check=False).stdout.strip()


def hang(pid):
    """Stops each thread of the runtime on which lanes and handlers run, and no other; they stay so until the process dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    stopped = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        name = pathlib.Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()
        if not name.startswith("tokio-"):
            continue
        for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
            if libc.ptrace(request, int(thread), None, None) != 0:
                raise OSError(ctypes.get_errno(), f"thread {name} cannot be stopped")
        stopped.append(int(thread))
        # That it stopped.
        os.waitpid(int(thread), WALL)
    return stopped


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--watchdog", type=float, default=10)
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    place = pathlib.Path(tempfile.mkdtemp(prefix="convoke-watchdog-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    redis = subprocess.Popen(["redis-server", "--port", str(port), "--dir", str(place), "--save", ""], stdout=subprocess.DEVNULL)
    wrong = []
    systemd = load = None
    try:
        while ask(port, "ping") != "PONG":
            time.sleep(0.1)
        systemd = Systemd(os.path.realpath(asked.binary), place, port, asked.watchdog)
        load = Load(port)
        began = time.monotonic()
        end = began + 60 * asked.minutes
        every = min(600, 60 * asked.minutes / 3)
        outages = 0
        while time.monotonic() < end:
            systemd.look(min(end, began + (outages + 1) * every))
            if time.monotonic() >= began + (outages + 1) * every and time.monotonic() < end - OUTAGE:
                redis.send_signal(signal.SIGSTOP)
                systemd.look(time.monotonic() + OUTAGE)
                redis.send_signal(signal.SIGCONT)
                outages += 1
        kills, exits = len(systemd.kills), systemd.exits
        ran = ask(port, "xlen", "cb:results:demo")
        print(
            f"{asked.minutes:g} minutes under WatchdogSec={asked.watchdog:g}, {outages} outages of {OUTAGE} s, {load.sent} events sent, "
            f"{ran} results kept: {kills} kills, {exits} other ends, {systemd.words} words, the longest silence {systemd.longest:.1f} s",
            flush=True,
        )
        if kills or exits:
            wrong.append(f"it was killed, or ended: {systemd.kills}")
        load.over.set()
        systemd.look(time.monotonic() + 3)
        systemd.stopped = stopped = hang(systemd.process.pid)
        hung = time.monotonic()
        systemd.look(hung + 2 * asked.watchdog)
        if len(systemd.kills) == kills:
            wrong.append("a hung lane was not noticed")
        else:
            at, said = systemd.kills[-1]
            quarters = (at - hung) / asked.watchdog * 4
            print(f"{len(stopped)} threads stopped: killed {at - hung:.1f} s later, {quarters:.1f} quarters of WatchdogSec, and said before: {said}")
            if not 2 <= quarters <= 5.2:
                wrong.append("it was killed too early, or too late")
        systemd.look(time.monotonic() + 3)
        if systemd.process.poll() is not None:
            wrong.append("the one that was started in its place does not run")
    finally:
        if systemd:
            systemd.process.kill()
        redis.send_signal(signal.SIGCONT)
        redis.kill()
    for what in wrong:
        print(f"WRONG: {what}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
