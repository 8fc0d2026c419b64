"""A client in 50 lines, written from `convoke docs protocol` alone: RESP by hand, JSON, and no library.

    convoke worker --exec text.echo=cat &
    python3 tests/examples/raw.py 6379
"""

import json, socket, sys, time, uuid

wire = socket.create_connection(("127.0.0.1", int(sys.argv[1]))).makefile("rwb")
ME, MAILBOX = f"raw-{uuid.uuid4()}", f"cb:reply:{uuid.uuid4()}"
last = "0"

def send(*words):
    words = [str(word).encode() for word in words]
    wire.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
    wire.flush()
    return read()

def read():
    line = wire.readline()[:-2].decode()
    kind, rest = line[0], line[1:]
    if kind == "-":
        raise RuntimeError(rest)
    if kind in "+:":
        return rest
    if kind == "$":
        return None if rest == "-1" else wire.read(int(rest) + 2)[:-2].decode()
    return None if rest == "-1" else [read() for _ in range(int(rest))]

def publish(kind, data, **fields):
    fields |= {"type": kind, "data": json.dumps(data), "datacontenttype": "application/json", "source": ME}
    return send("XADD", f"cb:events:{kind.split('.')[0]}", "*", *(x for pair in fields.items() for x in pair))

def ask(kind, data):
    global last
    entry = publish(kind, data, replyto=MAILBOX, deadline=int(time.time() * 1000) + 30_000)
    while True:
        [[_, [[last, fields]]]] = send("XREAD", "COUNT", 1, "BLOCK", 30_000, "STREAMS", MAILBOX, last)
        reply = dict(zip(fields[::2], fields[1::2]))
        if reply["correlationid"] == entry and reply["type"].endswith(".result"):
            return reply["status"], json.loads(reply["data"])

print("published", bool(publish("text.echo", "hello")))
print("asked", ask("text.echo", "hello"))
status, mine = ask("system.register", {"id": ME, "roles": ["worker"], "capacity": 2, "capabilities": ["raw.work"]})
print("registered", status)
print("pulsed", ask("system.heartbeat", {"instance_id": ME, "incarnation": mine["incarnation"]})[1]["alive"])
print("voted", ask("system.quorum.vote", {"decision": ME, "instance_id": ME, "value": "yes"})[1]["voted"])
print("created", ask("task.create", {"task_id": f"{ME}-1", "kind": "raw.work", "payload": [1, 2]})[1]["status"])
status, claimed = ask("task.claim", {"instance_id": ME, "incarnation": mine["incarnation"], "limit": 1})
[task] = claimed["tasks"]
done = {"task_id": task["task_id"], "instance_id": ME, "fence": task["fence"], "result": sum(task["payload"])}
print(ask("task.complete", done)[1]["status"], ask("task.get", {"task_id": task["task_id"]})[1]["result"])
print("left", ask("system.unregister", {"instance_id": ME})[1]["unregistered"])
