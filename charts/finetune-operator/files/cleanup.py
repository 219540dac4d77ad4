"""After `helm upgrade`: removes what the operator created and has no right to remove any more.

Of a value that was taken back (ingress.enabled, those of gatewayAPI): all objects of its kind, which UNWANTED names.

Of earlier releases: what jobs had in addition to Jobs, Deployments and Services. That is a Role and a RoleBinding, which are no
longer needed, and ConfigMaps and a ServiceAccount, which pods of such a release need to start: those are kept as long as a Job or
server references them, and are deleted with the next upgrade or with their FineTuneJob.

Runs in a pod with the operator's image and only the standard library. It never fails the upgrade: objects that cannot be
removed are reported, and keep no others from being removed; what is left to do after LONGEST is reported too.
"""

import contextlib
import json
import os
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator
from typing import Any

ACCOUNT = pathlib.Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
OURS = "app.kubernetes.io/managed-by=finetune-operator,finetune.dev/uid"
RBAC = "apis/rbac.authorization.k8s.io/v1"
AT_ONCE = (f"{RBAC}/rolebindings", f"{RBAC}/roles")
UNLESS_USED = ("api/v1/configmaps", "api/v1/serviceaccounts")
UNWANTED = os.environ.get("UNWANTED", "").split()
"""Kinds that the operator may not write, in the form of UNLESS_USED."""
USERS = ("api/v1/pods", "apis/batch/v1/jobs", "apis/apps/v1/deployments")
LONGEST = 180
"""Seconds; its Job has 240, with the start of its pod."""
END = time.monotonic() + LONGEST
Raw = dict[str, Any]


def ask(method: str, path: str) -> Raw:
    left = END - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"not tried, as all else took {LONGEST} seconds")
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    head = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"}
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    request = urllib.request.Request(f"{server}/{path}", method=method, headers=head)
    try:
        with urllib.request.urlopen(request, timeout=min(left, 30), context=trusted) as answer:
            found: Raw = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return {"metadata": {}}  # gone already, or the cluster has no such kind


def place(kind: str, namespace: str) -> str:
    """The path of all objects of a kind: in a namespace, or everywhere where that is empty."""
    version, _, plural = kind.rpartition("/")
    return f"{version}/namespaces/{namespace}/{plural}" if namespace else kind


def listed(kind: str, namespace: str) -> Iterator[Raw]:
    """The operator's objects of a kind."""
    query = {"labelSelector": OURS, "limit": "500"}
    while True:
        page = ask("GET", f"{place(kind, namespace)}?{urllib.parse.urlencode(query)}")
        yield from page.get("items") or []
        if not (token := page["metadata"].get("continue")):
            return
        query["continue"] = token


def is_over(raw: Raw) -> bool:
    """Whether it is a pod or a Job that has ended, and so needs nothing."""
    state = raw.get("status") or {}
    ended = {c["type"] for c in state.get("conditions") or [] if c["status"] == "True"} & {"Complete", "Failed"}
    return bool(ended) or state.get("phase") in {"Succeeded", "Failed"}


def used_by(raw: Raw) -> Iterator[tuple[str, str, str]]:
    """(kind, namespace, name) of what this pod, or the pods of this Job or Deployment, need to start."""
    namespace, spec = raw["metadata"]["namespace"], raw["spec"]
    pod = spec["template"]["spec"] if "template" in spec else spec
    yield UNLESS_USED[1], namespace, pod.get("serviceAccountName", "")
    for volume in pod.get("volumes") or []:
        yield UNLESS_USED[0], namespace, (volume.get("configMap") or {}).get("name", "")


def is_ours(raw: Raw) -> bool:
    """Whether it belongs to a FineTuneJob or a ServingPool."""
    owners = raw["metadata"].get("ownerReferences") or []
    kinds = {o["kind"] for o in owners if o["apiVersion"].startswith("finetune.dev/")}
    return bool(kinds & {"FineTuneJob", "ServingPool"})


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """A refusal is printed, and ends nothing else."""
    try:
        yield
    except (OSError, LookupError, ValueError) as error:
        answer = error.read().decode()[:500] if isinstance(error, urllib.error.HTTPError) else ""
        print(f"may be left behind: {what}: {error} {answer}", flush=True)


def remove(kind: str, namespace: str, used: Collection[tuple[str, str, str]] = ()) -> tuple[int, int]:
    """How many objects of a kind were removed, and how many are kept because they are in use."""
    removed = stay = 0
    ours = list[Raw]()
    with reported(place(kind, namespace)):
        ours = [raw for raw in listed(kind, namespace) if is_ours(raw)]
    for raw in ours:
        meta = raw["metadata"]
        if (kind, meta["namespace"], meta["name"]) in used:
            stay += 1
            continue
        path = f"{place(kind, meta['namespace'])}/{meta['name']}"
        with reported(path):
            ask("DELETE", path)
            removed += 1
    return removed, stay


def of_earlier_releases(namespace: str) -> str:
    found = [remove(kind, namespace) for kind in AT_ONCE]
    with reported(f"{' and '.join(UNLESS_USED)}, as what is in use is not known"):
        used = {one for kind in USERS for raw in listed(kind, namespace) if not is_over(raw) for one in used_by(raw)}
        found += [remove(kind, namespace, used) for kind in UNLESS_USED]
    removed, stay = (sum(numbers) for numbers in zip(*found, strict=True))
    return f"{removed} objects of an earlier release were removed, {stay} are still in use and are kept"


def of_values(namespace: str) -> str:
    found = {kind.rpartition("/")[2]: remove(kind, namespace)[0] for kind in UNWANTED}
    words = ", ".join(f"{removed} {plural}" for plural, removed in found.items())
    return f"of values that are off were removed: {words or 'nothing'}"


def main() -> None:
    for namespace in sys.argv[1:] or [""]:
        where = f"in {namespace}" if namespace else "in all namespaces"
        for clean in (of_values, of_earlier_releases):
            print(f"{where}: {clean(namespace)}", flush=True)


if __name__ == "__main__":
    main()
