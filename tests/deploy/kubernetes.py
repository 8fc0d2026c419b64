#!/usr/bin/python3
"""Checks what `kubectl kustomize` made of an overlay of deploy/kubernetes: what no schema says.

    kubernetes.py FILE
"""

import re
import sys

import yaml

SECONDS = {"s": 1, "m": 60, "h": 3600}
CONCURRENCY = 64


def main(path):
    with open(path) as file:
        found = {}
        for one in yaml.safe_load_all(file):
            found.setdefault(one["kind"], []).append(one)
    deployment, = found["Deployment"]
    config, = found["ConfigMap"]
    pod = deployment["spec"]["template"]["spec"]
    worker, = pod["containers"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    problems = []

    def want(what, holds):
        if not holds:
            problems.append(what)

    def chosen(selector):
        chosen = selector.get("matchLabels")
        return bool(chosen) and chosen.items() <= labels.items()

    number, unit = re.fullmatch(r"(\d+)([smh])", config["data"]["CONVOKE_DRAIN_TIMEOUT"]).groups()
    drain = int(number) * SECONDS[unit]
    want("the grace period is above drain_timeout", pod["terminationGracePeriodSeconds"] >= drain + 10)
    for probe, asked in [("startupProbe", "live"), ("livenessProbe", "live"), ("readinessProbe", "ready")]:
        want(f"{probe} asks {asked}", worker[probe]["exec"]["command"] == ["convoke", "probe", asked])
    want("nobody is root", pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0)
    want("the root is read-only", worker["securityContext"]["readOnlyRootFilesystem"])
    want("no capability is left", worker["securityContext"]["capabilities"] == {"drop": ["ALL"]})
    want("memory is limited", "memory" in worker["resources"]["limits"])
    want("the deployment chooses its pods", chosen(deployment["spec"]["selector"]))
    want("the pods are spread", {one["topologyKey"] for one in pod["topologySpreadConstraints"]} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"})
    want("what is spread is the workers", all(chosen(one["labelSelector"]) for one in pod["topologySpreadConstraints"]))
    want("each has a topology once", len(pod["topologySpreadConstraints"]) == 2)
    budget, = found["PodDisruptionBudget"]
    want("the budget is of the workers", chosen(budget["spec"]["selector"]) and budget["spec"]["maxUnavailable"] == 1)
    policy, = found["NetworkPolicy"]
    want("the network policy is of the workers", chosen(policy["spec"]["podSelector"]))
    want("nobody connects to a worker", policy["spec"]["ingress"] == [] and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"})
    mounts = {one["name"]: one["mountPath"] for one in worker["volumeMounts"]}
    want("no mount hides a change of the secret", not any("subPath" in one for one in worker["volumeMounts"]))
    for env in worker["env"]:
        if env["name"].endswith("_FILE"):
            want(f"{env['name']} is in the secret's directory", env["value"].startswith(mounts["secrets"] + "/"))
        if "secretKeyRef" in str(env.get("valueFrom")):
            problems.append(f"{env['name']} holds a secret, which every process of the pod can read and no change reaches")
    want("its socket has room", any(mounts["run"] + "/" in env.get("value", "") for env in worker["env"]))
    want("the settings are those of this map", worker["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}])
    for scaled in found.get("ScaledObject", []):
        spec = scaled["spec"]
        want("what is scaled is the deployment", spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"])
        want("the number is KEDA's alone", "replicas" not in deployment["spec"])
        want("one worker is left", spec["minReplicaCount"] >= 1)
        kinds = {kind for one in spec["triggers"] for kind in ("lagCount", "pendingEntriesCount", "listLength") if kind in one["metadata"]}
        want("lag, pending and delayed are counted", kinds == {"lagCount", "pendingEntriesCount", "listLength"})
        for one in spec["triggers"]:
            pending = int(one["metadata"].get("pendingEntriesCount", 0))
            want("a worker that is full asks for another", pending < CONCURRENCY)
            login, = [auth for auth in found["TriggerAuthentication"] if auth["metadata"]["name"] == one["authenticationRef"]["name"]]
            want("the scaler logs in", {"address", "username", "password"} == {ref["parameter"] for ref in login["spec"]["secretTargetRef"]})
    for problem in problems:
        print(f"kubernetes: {path}: not so: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main(sys.argv[1])
