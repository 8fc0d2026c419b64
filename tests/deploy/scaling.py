#!/usr/bin/python3
"""Simulates how many workers the rules of deploy/kubernetes/overlays/keda/scaling.yaml give.

A real redis-server holds the work, and the questions that KEDA's scalers ask are asked of it, by the user of
overlays/keda/users.acl. Simulated are the workers, the time, and the published rules of KEDA and of the
HorizontalPodAutoscaler:

- a trigger of redis-streams is the group's lag (nil counts as 0), or else its pending entries; one of redis is the
  number of members of a list, set, hash or sorted set;
- of each trigger the wish is ceil(value / target), none within a tenth of the target; the highest wins;
- what the policies of scaleUp and scaleDown allow in their periods, and the highest wish of the stabilization window;
- with minReplicaCount 0 the last worker goes when no trigger was active for cooldownPeriod, and the first comes when
  one is, looked at every pollingInterval.

Exits 1 where a worker is missing while work waits, or is late; and where rules that are known to be wrong pass.
"""

import math
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import redis
import yaml

ROOT = Path(__file__).resolve().parents[2]
KEDA = ROOT / "deploy/kubernetes/overlays/keda"
STREAM, DELAYED, GROUP = "cb:events:image", "cb:delayed:image", "workers"
# What a worker holds at a time, as its setting concurrency has it.
CONCURRENCY = 64
# Events that one finishes in a second.
SPEED = 10
# From the wish to a pod that reads.
STARTS = 10
SYNC = 15
COUNT = "local c={zset='zcard',set='scard',list='llen',hash='hlen',none='llen'} return redis.call(c[redis.call('type',KEYS[1]).ok],KEYS[1])"


class Server:
    """A redis-server of this run's own."""

    def __init__(self):
        self.dir = tempfile.TemporaryDirectory()
        socket = f"{self.dir.name}/socket"
        users = (KEDA / "users.acl").read_text().replace("0" * 64, sha256(b"test").hexdigest())
        acl = Path(self.dir.name, "users.acl")
        acl.write_text("user default on nopass ~* &* +@all\n" + users)
        words = ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--aclfile", str(acl)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=self.dir.name)
        self.admin = redis.Redis(unix_socket_path=socket)
        self.keda = redis.Redis(unix_socket_path=socket, username="convoke-keda", password="test")
        for _ in range(100):
            try:
                self.admin.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.05)
        sys.exit("scaling: redis-server does not start")

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.dir.cleanup()


class Workers:
    """What pods do to the server, a second at a time."""

    def __init__(self, admin):
        self.redis, self.pods, self.held = admin, [], {}

    def scale(self, count, now):
        while len(self.pods) > count:
            # It drains: what it holds it finishes, and reads no more.
            self.held.setdefault("leaving", []).extend(self.held.pop(self.pods.pop()[0], []))
        while len(self.pods) < count:
            name = f"w-{len(self.pods)}"
            self.pods.append((name, now + STARTS if now else 0))

    def second(self, now):
        ready = [name for name, since in self.pods if since <= now]
        if ready:
            due = self.redis.zrangebyscore(DELAYED, 0, now)
            if due:
                self.redis.zremrangebyscore(DELAYED, 0, now)
                self.add(len(due))
        done = []
        pipeline = self.redis.pipeline(transaction=False)
        for name in ready:
            room = CONCURRENCY - len(self.held.setdefault(name, []))
            pipeline.xreadgroup(GROUP, name, {STREAM: ">"}, count=room)
        for name, got in zip(ready, pipeline.execute()):
            held = self.held[name]
            held.extend(entry for _, entries in got for entry, _ in entries)
            done += held[:SPEED]
            del held[:SPEED]
        done += self.held.get("leaving", [])[:SPEED]
        del self.held.get("leaving", [])[:SPEED]
        if done:
            self.redis.xack(STREAM, GROUP, *done)
        return len(done)

    def add(self, count):
        pipeline = self.redis.pipeline(transaction=False)
        for _ in range(count):
            pipeline.xadd(STREAM, {"type": "image.resize"})
        pipeline.execute()


def value(keda, trigger):
    """What that trigger's scaler finds; None where it fails."""
    asked = trigger["metadata"]
    try:
        if trigger["type"] == "redis":
            return int(keda.eval(COUNT, 1, asked["listName"]))
        if "lagCount" in asked:
            groups = keda.xinfo_groups(asked["stream"])
            lag = next(group["lag"] for group in groups if group["name"].decode() == asked["consumerGroup"])
            return lag or 0
        return keda.xpending(asked["stream"], asked["consumerGroup"])["pending"]
    except (redis.ResponseError, StopIteration) as error:
        if isinstance(error, redis.exceptions.NoPermissionError) or "ACL failure" in str(error):
            raise
        return None


def target(trigger):
    asked = trigger["metadata"]
    return int(asked.get("lagCount") or asked.get("pendingEntriesCount") or asked["listLength"])


def active(trigger, found):
    asked = trigger["metadata"]
    return (found or 0) > int(asked.get("activationLagCount") or asked.get("activationListLength") or 0)


class Scaler:
    """KEDA and the autoscaler, by the rules of a ScaledObject."""

    def __init__(self, spec):
        self.spec = spec
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self.up, self.down = behavior["scaleUp"], behavior["scaleDown"]
        self.least, self.most = spec["minReplicaCount"], spec["maxReplicaCount"]
        self.replicas, self.wishes, self.steps, self.last_active = self.least, [], [], 0

    def second(self, now, keda):
        if now % self.spec["pollingInterval"] == 0 and self.least == 0:
            if any(active(trigger, value(keda, trigger)) for trigger in self.spec["triggers"]):
                self.last_active = now
                self.replicas = self.replicas or 1
            elif now - self.last_active >= self.spec.get("cooldownPeriod", 300):
                self.replicas = 0
        if now % SYNC == 0 and self.replicas > 0:
            self.sync(now, [value(keda, trigger) for trigger in self.spec["triggers"]])
        return self.replicas

    def sync(self, now, found):
        current, wishes = self.replicas, []
        for trigger, count in zip(self.spec["triggers"], found):
            if count is None:
                continue
            ratio = count / (target(trigger) * current)
            wishes.append(current if abs(1 - ratio) <= 0.1 else math.ceil(count / target(trigger)))
        if not wishes:
            return
        wish = max(wishes)
        if None in found:
            wish = max(wish, current)
        window = self.down["stabilizationWindowSeconds"]
        self.wishes = [(at, one) for at, one in self.wishes if now - at < window] + [(now, wish)]
        if wish < current:
            wish = min(current, max(one for _, one in self.wishes))
        if wish > current:
            wish = min(wish, max(self.limit(policy, now, +1) for policy in self.up["policies"]))
        elif wish < current:
            wish = max(wish, min(self.limit(policy, now, -1) for policy in self.down["policies"]))
        wish = min(max(wish, self.least, 1), self.most)
        if wish != current:
            self.steps.append((now, wish - current))
            self.replicas = wish

    def limit(self, policy, now, sign):
        steps = [step for at, step in self.steps if now - at < policy["periodSeconds"] and step * sign > 0]
        before = self.replicas - sum(steps)
        change = policy["value"] if policy["type"] == "Pods" else math.ceil(before * policy["value"] / 100)
        return before + sign * change


class Series:
    """What was seen, a second at a time."""

    def __init__(self):
        self.replicas, self.waiting, self.unmanned, self.lag_is_nil = [], [], 0, False
        # When the last of the work was done.
        self.done = math.inf


def run(spec, seconds, publish, trouble=None):
    """Seconds of life, with what `publish` adds at each."""
    server = Server()
    try:
        workers, scaler, series = Workers(server.admin), Scaler(spec), Series()
        workers.scale(scaler.replicas, 0)
        # A worker makes its groups when it starts.
        server.admin.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        waiting = 0
        for now in range(seconds):
            events, delayed = publish(now)
            workers.add(events)
            if delayed:
                server.admin.zadd(DELAYED, {f"{now}-{n}": delayed[1] for n in range(delayed[0])})
                waiting += delayed[0]
            if trouble:
                trouble(server.admin, now)
            waiting += events
            if waiting:
                finished = workers.second(now)
                waiting -= finished
                series.done = now if finished else series.done
            workers.scale(scaler.second(now, server.keda), now)
            series.replicas.append(scaler.replicas)
            series.waiting.append(waiting)
            series.unmanned += waiting > 0 and scaler.replicas == 0
            if now % 60 == 30 and server.admin.exists(STREAM):
                for group in server.admin.xinfo_groups(STREAM):
                    series.lag_is_nil |= group["lag"] is None
        return series
    finally:
        server.close()


def once(at, count):
    return lambda now: (count if now == at else 0, None)


def forget_one(at):
    """Deletes an entry that nobody has read yet: from then on the server cannot tell the lag."""

    def trouble(admin, now):
        if now == at:
            entries = admin.xrange(STREAM, count=1_000_000)
            admin.xdel(STREAM, entries[-2][0])

    return trouble


def main():
    documents = yaml.safe_load_all((KEDA / "scaling.yaml").read_text())
    spec = next(d["spec"] for d in documents if d["kind"] == "ScaledObject")
    wrong = {
        **spec,
        "minReplicaCount": 0,
        "triggers": [trigger for trigger in spec["triggers"] if "lagCount" in trigger["metadata"]],
    }
    failures = []

    def check(what, holds, told):
        print(f"{'ok  ' if holds else 'FAIL'} {what}: {told}")
        if not holds:
            failures.append(what)

    def reached(series, count, since):
        at = next((at for at, n in enumerate(series.replicas) if at >= since and n >= count), None)
        return None if at is None else at - since

    single = run(spec, 300, once(60, 1))
    check("the single first event", single.unmanned == 0 and single.done <= 61, f"done {single.done - 60} s after it came")

    burst = run(spec, 2400, once(60, 20_000))
    late = reached(burst, 2, 60)
    check("a burst: the first further worker", late is not None and late <= 15, f"asked for after {late} s")
    late = reached(burst, 20, 60)
    check("a burst: all that may be", late is not None and late <= 60, f"asked for after {late} s")
    check("a burst: done", burst.unmanned == 0 and not burst.waiting[-1], f"after {burst.done - 60} s, {20_000 // SPEED} s with one")
    check("a burst: one is left at the end", burst.replicas[-1] == 1, f"{burst.replicas[-1]}")

    blind = run(spec, 400, once(60, 20_000), forget_one(60))
    check("a lag that is nil", blind.lag_is_nil, "the server does not tell it")
    late = reached(blind, 20, 60)
    check("a lag that is nil: all that may be", late is not None and late <= 120, f"asked for after {late} s")
    check("a lag that is nil: never without a worker", blind.unmanned == 0, f"{blind.unmanned} s")

    later = run(spec, 200, lambda now: (0, (50_000, 900) if now == 60 else None))
    late = reached(later, 10, 60)
    check("delayed work alone", later.unmanned == 0 and late is not None and late <= 60, f"10 workers after {late} s, 840 s before it is due")

    drip = run(spec, 1200, lambda now: (1 if now % 20 == 0 else 0, None))
    check("a drip of events", max(drip.replicas) == 1 and drip.unmanned == 0, f"{max(drip.replicas)} worker")

    # Rules that others got wrong: if these pass, nothing above says anything.
    missed = run(wrong, 1200, once(900, 1))
    check("by lag alone, from zero: the single event waits", missed.unmanned > 100, f"{missed.unmanned} s without a worker")
    missed = run(wrong, 1500, once(60, 20_000), forget_one(60))
    check("by lag alone, nil: work waits for nobody", missed.unmanned > 100, f"{missed.unmanned} s without a worker")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
