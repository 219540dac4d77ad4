"""Every version of every FineTuneJob that the flow tests bring about, with what was true in the cluster at that moment."""

import copy
import dataclasses
import itertools
import weakref
from typing import Any

from finetune_operator.observe import label

Raw = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of a job, and the world around it as it really was: not as the status says."""

    raw: Raw
    serving: frozenset[str]
    """Revisions of the ready pods that the job's Service sends requests to: as it is, and as watch events have told the
    operator so far, which cannot know of a pod that was lost a moment ago."""
    done: frozenset[str]
    """Stages of the status' revision of which a Job ended well."""

    @property
    def key(self) -> tuple[int, str]:
        """Generation and run annotation: what the author requested."""
        meta = self.raw["metadata"]
        return meta["generation"], str((meta.get("annotations") or {}).get("finetune.dev/run", ""))


pooled: "weakref.WeakKeyDictionary[Any, set[str]]" = weakref.WeakKeyDictionary()
"""Revisions that the stand-ins for gateways hold."""
_recorded: "weakref.WeakKeyDictionary[Any, list[Version]]" = weakref.WeakKeyDictionary()


def note(cluster: Any, raw: Raw) -> None:
    """A version of a job was stored in this cluster."""
    _recorded.setdefault(cluster, []).append(Version(copy.deepcopy(raw), _serving(cluster, raw), _done(cluster, raw)))


def take() -> list[list[Version]]:
    """What was recorded since the last call: a list for each job of each cluster, in its order."""
    lives: dict[tuple[int, str], list[Version]] = {}
    for cluster, versions in list(_recorded.items()):
        for version in versions:
            lives.setdefault((id(cluster), version.raw["metadata"]["uid"]), []).append(version)
        versions.clear()
    return list(lives.values())


def _serving(cluster: Any, raw: Raw) -> frozenset[str]:
    meta, found = raw["metadata"], set()
    worlds = (cluster.objects, cluster.delivered)
    for objects, others in itertools.product(worlds, worlds):
        service = objects.get(("Service", meta["namespace"], meta["name"]))
        wanted = service["spec"]["selector"].items() if service else None
        for (kind, _, _), pod in others.items() if wanted else ():
            ready = kind == "Pod" and any(
                c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])
            )
            if ready and wanted <= pod["metadata"]["labels"].items():
                found.add(_revision(meta, pod, objects))
    return frozenset(found | pooled.get(cluster, set()))


def _revision(meta: Raw, pod: Raw, objects: Raw) -> str:
    """Of a server; of an activator, that which its Service of servers leads to."""
    labels = pod["metadata"]["labels"]
    if label.ACTIVATOR not in labels:
        return str(labels[label.REVISION])
    servers = objects.get(("Service", meta["namespace"], f"{meta['name']}-servers"))
    return str(servers["spec"]["selector"][label.RELEASE].split("-")[-2]) if servers else ""


def _done(cluster: Any, raw: Raw) -> frozenset[str]:
    revision = raw.get("status", {}).get("revision")
    found = set()
    for job in cluster.of("Job"):
        labels = job["metadata"]["labels"]
        over = [c["type"] for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"]
        if labels[label.UID] == raw["metadata"]["uid"] and labels[label.REVISION] == revision and "Complete" in over:
            found.add(labels[label.STAGE])
    return frozenset(found)
