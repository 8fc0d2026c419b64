#!/usr/bin/python3
"""Checks that the dashboard and the alert rules ask for nothing that is not told, and writes the dashboard's queries as rules, for
promtool to parse.

    dashboard.py EXPOSITION RULES
"""

import json
import re
import sys
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
# Told by node_exporter.
FOREIGN = {"node_textfile_mtime_seconds"}


def told(text):
    """The names of the samples; of families that only show once something happened, by their help."""
    samples = {re.match(r"[a-z_]+", line)[0] for line in text.splitlines() if line and line[0] != "#"}
    return samples | set(re.findall(r"^# TYPE (\S+)", text, re.M))


def main(exposition, rules):
    known = told(Path(exposition).read_text()) | FOREIGN
    board = json.loads((DEPLOY / "grafana/convoke.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    variables = [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    alerts = (DEPLOY / "prometheus/convoke.rules.yml").read_text()
    asked = {name for text in [*queries, *variables, *re.findall(r"expr:(.*?)for:", alerts, re.S)] for name in re.findall(r"\b(?:convoke|node)_[a-z_]+", text)}
    # No handler has a circuit in this run.
    unknown = asked - known - {"convoke_handler_circuit"}
    if unknown:
        sys.exit(f"dashboard: nobody tells {', '.join(sorted(unknown))}")
    unasked = {name for name in known if not name.endswith("_bucket")} - asked - FOREIGN
    panels = [(panel["id"], panel["gridPos"]) for panel in board["panels"]]
    cells = [(x, y) for _, at in panels for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    if len(cells) != len(set(cells)) or len({number for number, _ in panels}) != len(panels):
        sys.exit("dashboard: panels overlap, or two have one id")
    with open(rules, "w") as file:
        file.write("groups:\n  - name: queries\n    rules:\n")
        for number, query in enumerate(queries):
            query = query.replace("$__rate_interval", "5m").replace("$type", ".*")
            file.write(f"      - record: q{number}\n        expr: {json.dumps(query)}\n")
    of_families = len([name for name in unasked if not re.search(r"_(sum|count|seconds)$", name)])
    print(f"{len(queries)} queries in {len(panels)} panels ask for {len(asked)} names, all told; {of_families} are told and asked by nobody")


if __name__ == "__main__":
    main(*sys.argv[1:])
