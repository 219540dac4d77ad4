"""A stand-in for Kueue, which cannot be built here: it does to Jobs and says in Workloads what Kueue's sources and documentation
say that it does, and nothing of how it decides.

A LocalQueue has room for some pods; whoever comes first gets it. What is imitated, since the operator meets it: a Workload for
each Job with a queue's label (owned by it, found by its uid), the conditions QuotaReserved, Admitted and Evicted with
Kueue's reasons and words, `suspend` as the only switch, and the changes of the pod template at admission, undone at eviction
(kueue: pkg/controller/jobs/job/job_controller.go, apis/kueue/v1beta2/workload_types.go, docs/tasks/troubleshooting).
"""

import copy
import datetime
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import kubernetes.client

Raw = dict[str, Any]

GROUP, VERSION = "kueue.x-k8s.io", "v1beta2"
LABEL, JOB_UID = f"{GROUP}/queue-name", f"{GROUP}/job-uid"
STOPPING = f"{GROUP}/stopping"
FLAVOR = {"cloud.provider.com/node-pool": "training"}
"""What the stand-in's ResourceFlavor asks of nodes: it goes into the template of an admitted Job."""
TAINT = {"key": "training", "operator": "Exists", "effect": "NoSchedule"}
PODSET = {f"{GROUP}/podset": "main"}

CRD: Raw = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": f"workloads.{GROUP}",
        # the group is one of Kubernetes' own; this is not the real one, and says so
        "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in of finetune-operator's tests"},
    },
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"kind": "Workload", "listKind": "WorkloadList", "plural": "workloads", "singular": "workload"},
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


class Server(Protocol):
    """What the stand-in needs of an API server, real or in memory."""

    def jobs(self) -> list[Raw]: ...
    def workloads(self) -> list[Raw]: ...
    def create_workload(self, workload: Raw) -> None: ...
    def set_conditions(self, workload: str, conditions: list[Raw]) -> None: ...
    def patch_job(self, name: str, change: Callable[[Raw], None]) -> None: ...


class Queues:
    """`room`: LocalQueue -> how many pods may run. A queue that is not there has none, and says that it does not exist."""

    def __init__(self, server: Server, room: dict[str, int], now: Callable[[], datetime.datetime]) -> None:
        self.server, self.room, self._now = server, room, now
        self.held: set[str] = set()
        """Names of Jobs that are not let in, whatever room there is."""

    def step(self) -> None:
        """Every Job goes one step further."""
        workloads = {w["metadata"]["labels"][JOB_UID]: w for w in self.server.workloads()}
        used: Counter[str] = Counter()
        mine = [job for job in self.server.jobs() if LABEL in (job["metadata"].get("labels") or {})]
        for job in mine:
            if not job["spec"].get("suspend") and not over(job):
                used[job["metadata"]["labels"][LABEL]] += job["spec"].get("parallelism", 1)
        for job in sorted(mine, key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["name"])):
            meta = job["metadata"]
            if over(job) or meta.get("deletionTimestamp") or not job["spec"].get("suspend"):
                continue
            if meta["uid"] not in workloads:
                self.server.create_workload(workload(job))
                continue
            queue, pods = meta["labels"][LABEL], job["spec"].get("parallelism", 1)
            present = workloads[meta["uid"]]
            if queue not in self.room:
                self._say(present, QuotaReserved=("False", "Inadmissible", f"LocalQueue {queue} doesn't exist"))
            elif meta["name"] in self.held or used[queue] + pods > self.room[queue]:
                missing = max(1, used[queue] + pods - self.room[queue])
                words = (
                    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor "
                    f"default-flavor, {missing} more needed"
                )
                self._say(present, QuotaReserved=("False", "Pending", words))
            else:
                used[queue] += pods
                self._admit(job, present)

    def _admit(self, job: Raw, present: Raw) -> None:
        conditions = {
            "QuotaReserved": ("True", "QuotaReserved", "Quota reserved in ClusterQueue cluster-queue"),
            "Admitted": ("True", "Admitted", "The workload is admitted"),
        }
        if any(c["type"] == "Evicted" for c in present.get("status", {}).get("conditions", [])):
            conditions["Evicted"] = ("False", "QuotaReserved", "Previously: Preempted to accommodate a workload")
        self._say(present, **conditions)
        self.server.patch_job(job["metadata"]["name"], let_in)

    def evict(self, name: str, reason: str = "Preempted", message: str = "") -> None:
        """Take a running Job's quota back, and keep it out until `held` says otherwise."""
        self.held.add(name)
        job = next(job for job in self.server.jobs() if job["metadata"]["name"] == name)
        present = next(w for w in self.server.workloads() if w["metadata"]["labels"][JOB_UID] == job["metadata"]["uid"])
        words = message or "Preempted to accommodate a workload (UID: 4711) due to prioritization in the ClusterQueue"
        self._say(present, Evicted=("True", reason, words))
        self.server.patch_job(name, throw_out)
        self._say(
            present,
            QuotaReserved=("False", "Pending", words),
            Admitted=("False", "NoReservation", "The workload has no reservation"),
        )

    def _say(self, present: Raw, **shown: tuple[str, str, str]) -> None:
        old = {c["type"]: c for c in present.setdefault("status", {}).get("conditions", [])}
        stamp = self._now().isoformat(timespec="seconds").replace("+00:00", "Z")
        for kind, (status, reason, message) in shown.items():
            new = {"type": kind, "status": status, "reason": reason, "message": message}
            flipped = old.get(kind, {}).get("status") != status
            old[kind] = {**new, "lastTransitionTime": stamp if flipped else old[kind]["lastTransitionTime"]}
        conditions = list(old.values())
        if conditions != present["status"].get("conditions"):
            present["status"]["conditions"] = conditions
            self.server.set_conditions(present["metadata"]["name"], copy.deepcopy(conditions))


class OnServer:
    """A namespace of a real API server as the stand-in sees it, with the administrator's rights."""

    def __init__(self, client: kubernetes.client.ApiClient, namespace: str) -> None:
        self.client, self.namespace = client, namespace
        self.batch = kubernetes.client.BatchV1Api(client)
        self.custom = kubernetes.client.CustomObjectsApi(client)
        self.where = (GROUP, VERSION, namespace, "workloads")

    def _job(self, name: str) -> Raw:
        read = self.batch.read_namespaced_job(name, self.namespace)
        return copy.deepcopy(self.client.sanitize_for_serialization(read))

    def jobs(self) -> list[Raw]:
        listed = self.batch.list_namespaced_job(self.namespace, label_selector=LABEL)
        return list(self.client.sanitize_for_serialization(listed)["items"])

    def workloads(self) -> list[Raw]:
        return list(self.custom.list_namespaced_custom_object(*self.where)["items"])

    def create_workload(self, workload: Raw) -> None:
        self.custom.create_namespaced_custom_object(*self.where, workload)

    def set_conditions(self, workload: str, conditions: list[Raw]) -> None:
        body = {"status": {"conditions": conditions}}
        self.custom.patch_namespaced_custom_object_status(*self.where, workload, body)

    def patch_job(self, name: str, change: Callable[[Raw], None]) -> None:
        """As Kueue: the template of a Job can be changed as long as it has not started, so its start is taken back first; again
        and again while the Job controller, which is stopping it, writes it once more."""
        before, wanted = self._job(name), self._job(name)
        change(wanted)
        stops = wanted["spec"]["suspend"] and not before["spec"].get("suspend")
        if stops:
            self.batch.patch_namespaced_job(name, self.namespace, {"spec": {"suspend": True}})
        for again in range(50):
            if stops:
                self.batch.patch_namespaced_job_status(name, self.namespace, {"status": {"startTime": None}})
            wanted = self._job(name)
            change(wanted)
            try:
                self.batch.replace_namespaced_job(name, self.namespace, wanted)
                return
            except kubernetes.client.ApiException as error:
                if error.status not in (409, 422) or again == 49:
                    raise
                time.sleep(0.1)


def workload(job: Raw) -> Raw:
    meta = job["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Workload",
        "metadata": {
            "name": f"job-{meta['name']}",
            "namespace": meta["namespace"],
            "labels": {JOB_UID: meta["uid"]},
            "ownerReferences": [owner],
        },
        "spec": {"active": True, "queueName": meta["labels"][LABEL], "podSets": [{"name": "main"}]},
        "status": {"conditions": []},
    }


def let_in(job: Raw) -> None:
    """What admission does to a Job: it may run, and only where its flavor is."""
    job["spec"]["suspend"] = False
    template = job["spec"]["template"]
    template["metadata"].setdefault("labels", {}).update(PODSET)
    template["spec"].setdefault("nodeSelector", {}).update(FLAVOR)
    template["spec"].setdefault("tolerations", []).append(TAINT)


def throw_out(job: Raw) -> None:
    """What eviction does to it: it may not run, and its template is as its author wrote it."""
    job["spec"]["suspend"] = True
    job.get("status", {}).pop("startTime", None)
    template = job["spec"]["template"]
    for key in PODSET:
        template["metadata"]["labels"].pop(key, None)
    for key in FLAVOR:
        template["spec"].get("nodeSelector", {}).pop(key, None)
    template["spec"]["tolerations"] = [t for t in template["spec"].get("tolerations", []) if t != TAINT]


def over(job: Raw) -> bool:
    ends = {"Complete", "Failed"}
    return any(c["type"] in ends and c["status"] == "True" for c in job.get("status", {}).get("conditions") or [])
