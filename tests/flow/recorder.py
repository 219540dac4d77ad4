"""Every version of every FineTuneJob that the flow tests bring about, with what was true in the cluster at that moment."""

import copy
import dataclasses
import weakref
from typing import Any

from finetune_operator.observe import label

Raw = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of a job, and the world around it as it really was: not as the status says."""

    raw: Raw
    serving: str | None
    """The revision of the ready pods that the job's Service sends requests to."""
    done: frozenset[str]
    """Stages of the status' revision of which a Job ended well."""

    @property
    def key(self) -> tuple[int, str]:
        """Generation and run annotation: what the author requested."""
        meta = self.raw["metadata"]
        return meta["generation"], str((meta.get("annotations") or {}).get("finetune.dev/run", ""))


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


def _serving(cluster: Any, raw: Raw) -> str | None:
    meta = raw["metadata"]
    service = cluster.objects.get(("Service", meta["namespace"], meta["name"]))
    if service is None:
        return None
    wanted = service["spec"]["selector"].items()
    for pod in cluster.of("Pod"):
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        if ready and wanted <= pod["metadata"]["labels"].items():
            return str(pod["metadata"]["labels"][label.REVISION])
    return None


def _done(cluster: Any, raw: Raw) -> frozenset[str]:
    revision = raw.get("status", {}).get("revision")
    found = set()
    for job in cluster.of("Job"):
        labels = job["metadata"]["labels"]
        over = [c["type"] for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"]
        if labels[label.UID] == raw["metadata"]["uid"] and labels[label.REVISION] == revision and "Complete" in over:
            found.add(labels[label.STAGE])
    return frozenset(found)
