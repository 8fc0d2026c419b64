"""Every system and task event, spoken with redis-py and msgpack alone.

    coordination.py URL

A worker with a handler for `load.work` must be there. Registers three instances of its own, has them
vote, gives one of them a task and completes it, lets the worker run a task and a batch, and looks at
every answer for the fields that the protocol names.
"""

import sys
import time
import uuid

import msgpack
import redis

bus = None
mailbox = f"cb:reply:python-{uuid.uuid4()}"
after = "0"


class Refused(Exception):
    """An error reply: its code is the first argument."""


def on(stream):
    """All entries of a stream."""
    [(_, entries)] = bus.xread({stream: "0"})
    return entries


def ask(kind, data, source="python"):
    """Publishes a request and awaits its reply: the result, or Refused."""
    global after
    domain = kind.split(".")[0]
    fields = {"type": kind, "data": msgpack.packb(data), "replyto": mailbox, "source": source}
    entry = bus.xadd(f"cb:events:{domain}", fields)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for _, replies in bus.xread({mailbox: after}, count=1, block=1000):
            [(after, reply)] = replies
            if reply[b"correlationid"] != entry:
                continue
            check(reply[b"type"].decode() == kind + ".result", f"{kind}: {reply[b'type']}")
            result = msgpack.unpackb(reply[b"data"])
            if reply[b"status"] != b"ok":
                has(kind, result, "code message retryable")
                check(result["code"] == reply[b"status"].decode(), f"{kind}: {result}")
                raise Refused(result["code"], result["message"])
            return result
    raise SystemExit(f"{kind}: no reply")


def refused(code, kind, data):
    try:
        result = ask(kind, data)
    except Refused as refusal:
        check(refusal.args[0] == code, f"{kind}: {refusal.args} instead of {code}")
    else:
        raise SystemExit(f"{kind}: {result} instead of {code}")


def check(holds, what):
    if not holds:
        raise SystemExit(what)


def has(what, result, fields):
    missing = [field for field in fields.split() if field not in result]
    check(not missing, f"{what}: {missing} missing in {result}")


def facts(kind):
    entries = on("cb:broadcast")
    return [msgpack.unpackb(e[b"data"]) for _, e in entries if e[b"type"] == kind.encode()]


def eventually(what, condition):
    until = time.monotonic() + 30
    while not condition():
        check(time.monotonic() < until, what)
        time.sleep(0.05)


def instances():
    for name in ("p-1", "p-2", "p-3"):
        given = {"id": name, "roles": ["voter", "scribe"], "capacity": 2, "ttl_ms": 600_000}
        result = ask("system.register", given)
        has("register", result, "registered incarnation ttl_ms leader assigned")
        again = ask("system.register", given)
        check(again["incarnation"] == result["incarnation"], "a live instance keeps its incarnation")
    beat = {"instance_id": "p-1", "incarnation": result["incarnation"] + 1}
    check(ask("system.heartbeat", beat)["alive"] is False, "another incarnation is not alive")
    result = ask("system.heartbeat", {"instance_id": "p-1", "load": 0.5})
    has("heartbeat", result, "alive ttl_ms leader")
    check(result["alive"] is True, "p-1 is alive")
    check({f["id"] for f in facts("instance.registered")} >= {"p-1", "p-2", "p-3"}, "facts")


def votes():
    vote = {"decision": "colour", "role": "voter", "value": "red"}
    first = ask("system.quorum.vote", {**vote, "instance_id": "p-1"})
    has("vote", first, "voted quorum_reached vote_count quorum electorate status")
    check((first["electorate"], first["quorum"]) == (3, 2), f"vote: {first}")
    check(first["status"] == "open" and not first["quorum_reached"], f"vote: {first}")
    again = ask("system.quorum.vote", {**vote, "instance_id": "p-1"})
    check(again["vote_count"] == 1, f"a vote is counted once: {again}")
    refused("already_exists", "system.quorum.vote", {**vote, "instance_id": "p-1", "value": "blue"})
    refused("failed_precondition", "system.quorum.vote", {**vote, "instance_id": "stranger"})
    second = ask("system.quorum.vote", {**vote, "instance_id": "p-2"})
    check(second["status"] == "decided" and second["final_decision"] == "red", f"vote: {second}")
    late = ask("system.quorum.vote", {**vote, "instance_id": "p-3", "value": "blue"})
    check(late["final_decision"] == "red" and late["vote_count"] == 2, f"vote: {late}")
    [fact] = [f for f in facts("quorum.decided") if f["decision"] == "colour"]
    has("quorum.decided", fact, "decision value vote_count quorum electorate")


def tasks():
    created = ask("task.create", {"kind": "scribe.write", "role": "scribe", "payload": {"n": 1}})
    has("task.create", created, "task_id status assigned_to")
    owner, task = created["assigned_to"], created["task_id"]
    check(created["status"] == "assigned" and owner.startswith("p-"), f"task: {created}")
    [(_, entry)] = on(f"cb:inbox:{owner}")
    check(entry[b"type"] == b"task.assigned", f"inbox: {entry}")
    assigned = msgpack.unpackb(entry[b"data"])
    has("task.assigned", assigned, "task_id kind payload fence attempt")
    check(assigned["payload"] == {"n": 1} and assigned["task_id"] == task, f"inbox: {assigned}")
    done = {"task_id": task, "instance_id": owner, "fence": assigned["fence"], "result": "written"}
    refused("aborted", "task.complete", {**done, "fence": assigned["fence"] - 1})
    check(ask("task.complete", done)["status"] == "completed", "completed")
    refused("not_found", "task.get", {"task_id": "nobody-made-this"})
    check(any(f["task_id"] == task for f in facts("task.completed")), "task.completed")

    given_up = ask("task.create", {"kind": "scribe.write", "role": "scribe", "max_attempts": 1})
    owner = given_up["assigned_to"]
    assigned = msgpack.unpackb(on(f"cb:inbox:{owner}")[-1][1][b"data"])
    failed = {"task_id": given_up["task_id"], "instance_id": owner, "fence": assigned["fence"]}
    check(ask("task.fail", {**failed, "error": "no ink"})["status"] == "failed", "failed")

    run = ask("task.create", {"kind": "load.work", "payload": {"n": 7, "ms": 0}})
    eventually("the worker runs its task by itself", lambda: status(run["task_id"]) == "completed")
    ask("task.list", {"status": "completed", "limit": 5})


def status(task):
    found = ask("task.get", {"task_id": task})
    return found.get("task", found)["status"]


def batches():
    items = [{"n": n, "ms": 0} for n in range(20)]
    batch = {"batch_id": "b-1", "item_type": "load.work", "items": items}
    fields = "processed processor_id items_processed items_failed total fence status"
    result = ask("system.batch.process", batch)
    has("batch", result, fields)
    check(result["processed"] and result["status"] == "completed", f"batch: {result}")
    check((result["items_processed"], result["total"]) == (20, 20), f"batch: {result}")
    again = ask("system.batch.process", batch)
    check(again["items_processed"] == 20 and again["fence"] == result["fence"], f"batch: {again}")
    spread = ask("system.batch.process", {**batch, "batch_id": "b-2", "mode": "fan_out"})
    check(spread["status"] == "completed" and spread["items_processed"] == 20, f"batch: {spread}")
    [fact] = [f for f in facts("batch.completed") if f["batch_id"] == "b-1"]
    has("batch.completed", fact, "processor_id items_processed items_failed total fence")


def overview():
    health = ask("system.health", {})
    has("health", health, "status services instances partition at")
    has("health.services", health["services"], "redis postgres mcp")
    has("health.instances", health["instances"], "healthy suspect lost")
    check(health["services"]["redis"]["status"] == "up", f"health: {health}")
    state = ask("system.get_state", {"recent": 5})
    has("state", state, "version at instances tasks batches decisions streams recent_events")
    has("state.tasks", state["tasks"], "pending assigned completed failed items")
    check(state["tasks"]["completed"] >= 2 and state["tasks"]["failed"] >= 1, f"{state['tasks']}")
    check(len(state["recent_events"]) == 5, f"state: {state['recent_events']}")
    check(any(b.get("batch_id", b.get("id")) == "b-1" for b in state["batches"]), "state.batches")
    check(len(state["decisions"]) == 1, f"state: {state['decisions']}")
    for stream in state["streams"]:
        has("state.streams", stream, "name length pending lag")
    metrics = ask("system.metrics", {"detailed": True})
    fields = "events_processed events_failed tasks_completed average_latency_ms p50_ms p99_ms"
    has("metrics", metrics, fields + " throughput memory_bytes instances handlers queue scaling")
    handler = metrics["handlers"]["load.work"]
    fields = "calls errors retries p50_ms p99_ms circuit rate_limited cache_hits"
    has("metrics.handlers", handler, fields)
    has("metrics.scaling", metrics["scaling"], "instance_count load_balance")
    check("handlers" not in ask("system.metrics", {}), "plain metrics are plain")
    methods = {m["type"]: m for m in ask("system.discover", {})["methods"]}
    fields = "type description input_schema output_schema timeout_ms instances"
    has("discover", methods["load.work"], fields)
    only = ask("system.discover", {"domain": "load"})["methods"]
    check([m["type"] for m in only] == ["load.work"], f"discover: {only}")


def leave():
    for name in ("p-1", "p-2", "p-3"):
        result = ask("system.unregister", {"instance_id": name})
        has("unregister", result, "unregistered tasks_reassigned")
        check(result["unregistered"] is True, f"unregister: {result}")


def main():
    global bus
    bus = redis.Redis.from_url(sys.argv[1])
    for part in (instances, votes, tasks, batches, overview, leave):
        part()
    print("instances, votes, tasks, batches and the overview speak the protocol")


if __name__ == "__main__":
    main()
