"""An API server, its controllers and a kubelet in memory: enough of them to play a FineTuneJob's whole life in milliseconds.

The real Reconciler and Cache are driven against it. What is modelled, since the operator leans on it: resourceVersions,
server-side apply by one manager (fields that are no longer applied go), immutable fields, merge patches of the status with a
precondition, foreground deletion (a Job stays until its pods have ended), garbage collection by owner, the Job controller with
backoffLimit 0, `suspend` (its pods go, and are not counted), a podFailurePolicy, Indexed Jobs and their successPolicy (as a real
one was seen to do), Deployments, and watch events that may be delivered late.
"""

import copy
import dataclasses
import datetime
from collections.abc import Callable, Iterable
from typing import Any

from finetune_api import job, schema, servingpool
from finetune_operator import cluster
from finetune_operator.observe import containers, label, projections
from flow import recorder

Raw = dict[str, Any]
Key = tuple[str, str, str]
START = datetime.datetime(2026, 5, 4, 12, 0, 0, tzinfo=datetime.UTC)
IMMUTABLE = {"Job": ("spec", "template"), "Deployment": ("spec", "selector")}
WATCHED = {"FineTuneJob", "BaseModel", "ServingPool", "Workload", *projections.PROJECTIONS}


@dataclasses.dataclass(frozen=True)
class Ends:
    """The container ends with this exit code and termination message."""

    code: int = 0
    message: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Hangs:
    """The container runs until it is stopped."""


@dataclasses.dataclass(frozen=True)
class Waits:
    """The container cannot start, in the kubelet's words."""

    reason: str
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Unprepared:
    """The node cannot prepare the pod: the kubelet says so in an event only."""

    words: str


@dataclasses.dataclass(frozen=True)
class Unschedulable:
    message: str = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


@dataclasses.dataclass(frozen=True)
class Fetches:
    """The container before the stage's own one downloads the base model, without end."""


@dataclasses.dataclass(frozen=True)
class Evicted:
    """The node is drained while the container runs."""


@dataclasses.dataclass(frozen=True)
class Silent:
    """The machine does not answer: the pod is as it was last heard of, and cannot be told to stop."""


@dataclasses.dataclass(frozen=True)
class Crashes:
    """A server's container that falls over and over."""

    code: int = 1
    message: str = "ValueError: no such flag"
    restarts: int = 3


@dataclasses.dataclass(frozen=True)
class ServerEnds:
    """The server beside a stage ends before the stage starts, and is started again."""

    code: int = 1
    message: str = "ValueError: no such flag"
    reason: str = "Error"


@dataclasses.dataclass(frozen=True)
class KubeletEnds:
    """The kubelet ends or refuses the pod, in its words. `code`: the container's, if it ran; `disrupted`: by what others did."""

    reason: str
    message: str
    code: int | None = 137
    disrupted: bool = False


Play = (
    KubeletEnds | Ends | Hangs | Waits | Unprepared | Unschedulable | Fetches | Evicted | Silent | Crashes | ServerEnds
)


def stamp(time: datetime.datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def without(present: Any, former: Any, wanted: Any) -> Any:
    """`present` less what the former apply named and the new one does not."""
    if not (isinstance(present, dict) and isinstance(former, dict) and isinstance(wanted, dict)):
        return present
    stored = {}
    for key, value in present.items():
        if key in former and key not in wanted:
            continue
        stored[key] = without(value, former.get(key), wanted.get(key))
    return stored


def fields_of_change(before: Any, after: Any) -> Raw:
    """The fields that differ, as fieldsV1: containers by name, ports by number and protocol, other lists as a whole."""
    found: Raw = {}
    for key in sorted({*before, *after} if isinstance(before, dict) and isinstance(after, dict) else ()):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if key in {"containers", "initContainers"}:
            pairs = zip(old, new, strict=True)
            items = {f'k:{{"name":"{a["name"]}"}}': fields_of_change(a, b) for a, b in pairs if a != b}
            found[f"f:{key}"] = items
        elif key == "ports":
            added = [port for port in new if port not in old]
            found[f"f:{key}"] = {f'k:{{"port":{p["port"]},"protocol":"TCP"}}': {".": {}, "f:port": {}} for p in added}
        else:
            found[f"f:{key}"] = {} if key == "selector" else fields_of_change(old, new)
    return found


def lost(applied: Any, taken: Raw) -> Any:
    """What an applied spec still owns."""
    if not isinstance(applied, dict):
        return applied
    return {
        key: lost(value, taken.get(f"f:{key}", {})) for key, value in applied.items() if taken.get(f"f:{key}") != {}
    }


class FakeCluster:
    """Implements the methods of `cluster.Cluster` that a reconcile uses. `play` says how a pod's container fares."""

    def __init__(self, play: Callable[[Raw], Play]) -> None:
        self.now = START
        self.play = play
        self.objects: dict[Key, Raw] = {}
        self.applied: dict[Key, Raw] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.created: list[tuple[str, str, str]] = []
        """(kind, name, uid) of everything that ever existed."""
        self.events: list[tuple[str, str, str]] = []
        self.lacking: set[tuple[str, str]] = set()
        """(verb, kind) that the operator has no right to."""
        self.undelivered: list[tuple[str, str, Raw]] = []
        self.delivered: dict[tuple[str, str, str], Raw] = {}
        """The watched objects as the operator knows them: as they were listed, and by the events since."""
        self.refuse: Callable[[str, str, str], cluster.Failure | None] = lambda verb, kind, name: None
        self.refused_pods: dict[str, str] = {}
        """Name of a Job or Deployment, or of a Job with an index -> why its pods are refused."""
        self.stop_slowly = False
        """Pods that were told to stop keep running until this is False again."""
        self.controllers: list[Callable[[], None]] = []
        """Those of others, each of which takes its objects one step further."""
        self.admit: Callable[[Raw], Raw] = lambda raw: raw
        """An admission policy: what it makes of an object that is created or applied."""
        self.sidecar = ""
        """Every pod of a stage gets an injected container: "native", one that ends with 143, "classic", one that never ends, or
        "stuck", a native one that never starts."""
        self.version = 0

    # -- storage --

    def _next(self) -> str:
        self.version += 1
        return str(self.version)

    def _store(self, kind: str, raw: Raw) -> Raw:
        meta = raw["metadata"]
        key = (kind, meta.get("namespace", ""), meta["name"])
        old = self.objects.get(key)
        if kind == "Deployment":
            meta.setdefault("generation", 1)
            meta["generation"] += old is not None and old["spec"] != raw["spec"]
        if old is not None and {**raw, "metadata": {**meta, "resourceVersion": ""}} == {
            **old,
            "metadata": {**old["metadata"], "resourceVersion": ""},
        }:
            return copy.deepcopy(old)
        meta["resourceVersion"] = self._next()
        if old is None:
            meta.setdefault("uid", f"uid-{meta['resourceVersion']}")
            meta.setdefault("creationTimestamp", stamp(self.now))
            self.created.append((kind, meta["name"], meta["uid"]))
        self.objects[key] = raw
        if kind == "FineTuneJob":
            recorder.note(self, raw)
        self._tell("MODIFIED" if old else "ADDED", kind, raw)
        return copy.deepcopy(raw)

    def _drop(self, kind: str, namespace: str, name: str) -> None:
        raw = self.objects.pop((kind, namespace, name), None)
        self.applied.pop((kind, namespace, name), None)
        if raw is not None:
            raw = copy.deepcopy(raw)
            raw["metadata"]["resourceVersion"] = self._next()
            self._tell("DELETED", kind, raw)

    def _tell(self, event: str, kind: str, raw: Raw) -> None:
        if kind in WATCHED:
            self.undelivered.append((event, kind, copy.deepcopy(raw)))

    def list_all(self) -> None:
        """A new operator process lists what there is; events of before mean nothing to it."""
        self.undelivered.clear()
        self.delivered = {key: copy.deepcopy(raw) for key, raw in self.objects.items() if key[0] in WATCHED}

    def deliver(self, event: str, kind: str, raw: Raw) -> None:
        """The operator receives this event."""
        key = (kind, raw["metadata"].get("namespace", ""), raw["metadata"]["name"])
        if event == "DELETED":
            self.delivered.pop(key, None)
        else:
            self.delivered[key] = raw

    def get(self, kind: str, name: str, namespace: str = "ml") -> Raw:
        return self.objects[kind, "" if kind == "BaseModel" else namespace, name]

    def names(self, kind: str) -> list[str]:
        return sorted(name for k, _, name in self.objects if k == kind)

    def of(self, kind: str) -> list[Raw]:
        return [raw for (k, _, _), raw in sorted(self.objects.items()) if k == kind]

    # -- what users do --

    def put(self, manifest: Raw) -> None:
        """`kubectl apply` of a FineTuneJob, ServingPool or BaseModel, by its author."""
        kind, meta = manifest["kind"], manifest["metadata"]
        namespace = "" if kind == "BaseModel" else meta.get("namespace", "ml")
        spec = copy.deepcopy(manifest["spec"])
        if kind == "FineTuneJob":
            spec = job.FineTuneJobSpec.model_validate(spec).wire()  # the API server's defaults
        if kind == "ServingPool":
            spec = servingpool.ServingPoolSpec.model_validate(spec).wire()
        old = self.objects.get((kind, namespace, meta["name"]))
        if old is None:
            raw: Raw = {**manifest, "metadata": {**meta, "namespace": namespace, "generation": 1}, "spec": spec}
            if kind in {"FineTuneJob", "ServingPool"}:
                raw["status"] = {"observedGeneration": schema.UNSEEN}
        else:
            raw = copy.deepcopy(old)
            if raw["spec"] != spec:
                raw["metadata"]["generation"] += 1
            raw["spec"] = spec
            raw["metadata"]["annotations"] = {**raw["metadata"].get("annotations", {}), **meta.get("annotations", {})}
        self._store(kind, copy.deepcopy(raw))

    def edit(self, kind: str, name: str, change: Callable[[Raw], None], manager: str = "kubectl") -> None:
        """Somebody else's hand in any object: the fields of the spec that it changes are its own from then on."""
        before, raw = self.get(kind, name), copy.deepcopy(self.get(kind, name))
        change(raw)
        if taken := fields_of_change(before.get("spec"), raw.get("spec")):
            entry = {"manager": manager, "operation": "Update", "fieldsV1": {"f:spec": taken}}
            raw["metadata"]["managedFields"] = [*raw["metadata"].get("managedFields", []), entry]
            key = (kind, raw["metadata"].get("namespace", ""), name)
            if key in self.applied:
                self.applied[key]["spec"] = lost(self.applied[key]["spec"], taken)
        self._store(kind, raw)

    def remove(self, kind: str, name: str) -> None:
        """Somebody else deletes an object: as `kubectl delete` does, in the background."""
        self._delete(kind, "" if kind == "BaseModel" else "ml", name, "Background")

    # -- cluster.Cluster's methods --

    def _ask(self, verb: str, kind: str, name: str) -> None:
        self.requests.append((verb, kind, name))
        if failure := self.refuse(verb, kind, name):
            raise failure

    async def exists(self, kind: str, namespace: str, name: str, uid: str) -> bool:
        self._ask("exists", kind, name)
        raw = self.objects.get((kind, namespace, name))
        return raw is not None and raw["metadata"]["uid"] == uid

    async def create(self, manifest: Raw) -> Raw:
        kind, meta = manifest["kind"], manifest["metadata"]
        self._ask("create", kind, meta["name"])
        present = self.objects.get((kind, meta["namespace"], meta["name"]))
        if present is None:
            return self._store(kind, self.admit(copy.deepcopy(manifest)))
        if present["metadata"].get("ownerReferences") != meta["ownerReferences"]:
            raise cluster.Failure(409, f"{kind} {meta['name']} already exists")
        return copy.deepcopy(present)

    async def apply(self, manifest: Raw, force: bool) -> Raw:
        kind, meta = manifest["kind"], manifest["metadata"]
        self._ask("apply", kind, meta["name"])
        manifest = copy.deepcopy(manifest)
        key = (kind, meta["namespace"], meta["name"])
        present = self.objects.get(key)
        former = self.applied.get(key, {})
        if present is None:
            self.applied[key] = copy.deepcopy(manifest)
            return self._store(kind, self.admit(manifest))
        if not force and not former:
            raise cluster.Failure(409, 'Apply failed with 1 conflict: conflict with "kubectl": .spec.selector')
        self._check_immutable(kind, present, manifest)
        merged = merge(without(present, former, manifest), manifest)
        if entries := merged["metadata"].pop("managedFields", []):
            theirs = {"f:replicas": {}} if kind == "Deployment" and "replicas" not in manifest["spec"] else {}
            ours = [
                e | {"fieldsV1": {"f:spec": theirs}} for e in entries if theirs.keys() <= e["fieldsV1"]["f:spec"].keys()
            ]
            merged["metadata"]["managedFields"] = ours if theirs else []
        merged = self.admit(merged)
        self.applied[key] = copy.deepcopy(manifest)
        return self._store(kind, merged)

    @staticmethod
    def _check_immutable(kind: str, present: Raw, wanted: Raw) -> None:
        owners = {o["uid"] for raw in (present, wanted) for o in raw["metadata"].get("ownerReferences", [])}
        if len(owners) > 1:
            raise cluster.Failure(422, "Only one reference can have Controller set to true")
        path = IMMUTABLE.get(kind, ())
        old, new = present, wanted
        for part in path:
            old, new = old[part], new[part]
        if path and old != new:
            raise cluster.Failure(422, f"{'.'.join(path)}: field is immutable")

    async def delete(self, kind: str, namespace: str, name: str, version: str | None = None) -> Raw | None:
        self._ask("delete", kind, name)
        present = self.objects.get((kind, namespace, name))
        if present is not None and version is not None and present["metadata"]["resourceVersion"] != version:
            raise cluster.Failure(409, "the object has been modified")
        return self._delete(kind, namespace, name, "Foreground" if kind == "Job" else "Background")

    def _delete(self, kind: str, namespace: str, name: str, policy: str) -> Raw | None:
        raw = self.objects.get((kind, namespace, name))
        if raw is None:
            return None
        if kind == "Pod" or (policy == "Foreground" and self._children(raw)):
            raw = copy.deepcopy(raw)
            raw["metadata"].setdefault("deletionTimestamp", stamp(self.now))
            return self._store(kind, raw)
        self._drop(kind, namespace, name)
        return None

    def _children(self, raw: Raw) -> list[Raw]:
        uid = raw["metadata"]["uid"]
        return [o for o in self.objects.values() if any(r["uid"] == uid for r in _owners(o))]

    def _pods_of(self, raw: Raw) -> list[Raw]:
        return [child for child in self._children(raw) if child["kind"] == "Pod"]

    def taint(self, pod: str) -> None:
        """The machine of a pod has been away for as long as the pod tolerates: the taint manager takes it from there."""
        disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
        self.edit("Pod", pod, lambda raw: raw["status"]["conditions"].append(disrupted))
        self.remove("Pod", pod)

    async def patch_status(
        self, namespace: str, name: str, version: str, changes: Raw, kind: str = "FineTuneJob"
    ) -> Raw:
        self._ask("status", kind, name)
        present = self.objects.get((kind, namespace, name))
        if present is None:
            raise cluster.Failure(404, "not found")
        if present["metadata"]["resourceVersion"] != version:
            raise cluster.Failure(409, "the object has been modified")
        raw = copy.deepcopy(present)
        raw["status"] = merge(raw.get("status", {}), copy.deepcopy(changes))
        return self._store(kind, raw)

    async def refusal(self, namespace: str, job_uid: str) -> str:
        names = [n for (k, _, n), raw in self.objects.items() if k == "Job" and raw["metadata"]["uid"] == job_uid]
        self._ask("refusal", "Job", names[0] if names else "?")
        refused = [
            name for job in names for name in (job, *(f"{job}-{n}" for n in range(64))) if name in self.refused_pods
        ]
        return self.refused_pods[refused[0]] if refused else ""

    async def unprepared(self, namespace: str, pod: str) -> str:
        self._ask("unprepared", "Pod", pod)
        play = self.play(self.get("Pod", pod, namespace))
        return play.words if isinstance(play, Unprepared) else ""

    async def find(self, kind: str, namespace: str, name: str) -> Raw | None:
        self._ask("find", kind, name)
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    async def may(self, verb: str, kind: str, namespace: str) -> bool:
        return (verb, kind) not in self.lacking

    async def event(self, regarding: Raw, kind: str, reason: str, message: str, of: str = "FineTuneJob") -> None:
        self.events.append((kind, reason, message))

    # -- controllers and kubelet: each call takes every object one step further --

    def step(self) -> bool:
        """Whether anything moved."""
        before = self.version
        self._collect_garbage()
        for raw in list(self.of("Job")):
            self._job(copy.deepcopy(raw))
        for raw in list(self.of("Deployment")):
            self._deployment(copy.deepcopy(raw))
        for raw in list(self.of("Pod")):
            self._pod(copy.deepcopy(raw))
        for controller in self.controllers:
            controller()
        return self.version != before

    def _collect_garbage(self) -> None:
        alive = {raw["metadata"]["uid"] for raw in self.objects.values()}
        for (kind, namespace, name), raw in list(self.objects.items()):
            owners = _owners(raw)
            if owners and not any(o["uid"] in alive for o in owners):
                self._delete(kind, namespace, name, "Background")
            elif raw["metadata"].get("deletionTimestamp") and kind != "Pod" and not self._children(raw):
                self._drop(kind, namespace, name)

    def _make_pod(self, owner: Raw, template: Raw, index: int | None = None) -> None:
        meta = owner["metadata"]
        number = f"{self.version + 1:05d}"
        labels = dict(template["metadata"]["labels"])
        if owner["kind"] == "Job":
            labels["batch.kubernetes.io/job-name"] = meta["name"]
        if index is not None:
            labels[label.COMPLETION_INDEX] = str(index)
            number = f"{index}-{number}"
        reference = {"kind": owner["kind"], "name": meta["name"], "uid": meta["uid"], "controller": True}
        self._store(
            "Pod",
            {
                "kind": "Pod",
                "metadata": {
                    "name": f"{meta['name']}-{number}",
                    "namespace": meta["namespace"],
                    "labels": labels,
                    "ownerReferences": [reference],
                },
                "spec": copy.deepcopy(template["spec"]),
                "status": {"phase": "Pending"},
            },
        )

    def _job(self, raw: Raw) -> None:
        meta, state = raw["metadata"], raw.setdefault("status", {})
        if meta.get("deletionTimestamp"):
            for child in self._children(raw):
                self._delete(child["kind"], meta["namespace"], child["metadata"]["name"], "Background")
            return
        pods = self._pods_of(raw)
        if over(raw):
            ttl = raw["spec"].get("ttlSecondsAfterFinished")
            ended = containers.time_of(state["conditions"][-1]["lastTransitionTime"])
            if ttl is not None and ended and (self.now - ended).total_seconds() > ttl:
                self._drop("Job", meta["namespace"], meta["name"])
            return
        if raw["spec"].get("suspend"):
            if state.pop("startTime", None):
                self._store("Job", raw)
            for pod in pods:
                if pod["status"]["phase"] in {"Pending", "Running"}:
                    self._delete("Pod", meta["namespace"], pod["metadata"]["name"], "Background")
            return
        if raw["spec"].get("completionMode") == "Indexed":
            self._take_up(raw)
            self._indexed_job(raw, pods)
            return
        self._take_up(raw)
        if meta["name"] in self.refused_pods:
            return
        living = [p for p in pods if p["status"]["phase"] in {"Pending", "Running"}]
        if living:
            return
        ended = [p for p in pods if not _disrupted(p)]
        if not ended:
            self._make_pod(raw, raw["spec"]["template"])
            return
        good = ended[-1]["status"]["phase"] == "Succeeded"
        reason = "CompletionsReached" if good else "BackoffLimitExceeded"
        self._conclude(raw, "Complete" if good else "Failed", reason)

    def _take_up(self, raw: Raw) -> None:
        """The Job controller notes when it began, also where its pods are refused."""
        if "startTime" not in raw["status"]:
            raw["status"]["startTime"] = stamp(self.now)
            self._store("Job", copy.deepcopy(raw))  # it may end in the same step

    def _conclude(self, raw: Raw, kind: str, reason: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": stamp(self.now)}
        raw["status"].setdefault("conditions", []).append(condition)
        self._store("Job", raw)

    def _indexed_job(self, raw: Raw, pods: list[Raw]) -> None:
        """One pod for each index; the first failure, or the success of index 0, decides and stops the rest."""
        meta, spec = raw["metadata"], raw["spec"]
        decided = raw["status"].get("conditions", [])
        if decided:
            for pod in pods:
                if pod["metadata"].get("deletionTimestamp") and pod["status"]["phase"] == "Failed":
                    self._drop("Pod", meta["namespace"], pod["metadata"]["name"])
                elif pod["status"]["phase"] in {"Pending", "Running"}:
                    self._delete("Pod", meta["namespace"], pod["metadata"]["name"], "Background")
            if not any(pod["status"]["phase"] in {"Pending", "Running"} for pod in self._pods_of(raw)):
                kind = "Complete" if decided[0]["type"] == "SuccessCriteriaMet" else "Failed"
                self._conclude(raw, kind, decided[0]["reason"])
            return
        failed = [pod for pod in pods if pod["status"]["phase"] == "Failed"]
        succeeded = {index_of(pod) for pod in pods if pod["status"]["phase"] == "Succeeded"}
        if any(map(_disrupted, failed)):
            assert spec["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
            self._conclude(raw, "FailureTarget", "PodFailurePolicy")
        elif "successPolicy" in spec and 0 in succeeded:
            self._conclude(raw, "SuccessCriteriaMet", "SuccessPolicy")
        elif failed:
            self._conclude(raw, "FailureTarget", "BackoffLimitExceeded")
        elif len(succeeded) == spec["completions"]:
            self._conclude(raw, "Complete", "CompletionsReached")
        elif meta["name"] not in self.refused_pods:
            for index in set(range(spec["completions"])) - {index_of(pod) for pod in pods}:
                if f"{meta['name']}-{index}" not in self.refused_pods:
                    self._make_pod(raw, spec["template"], index)

    def _deployment(self, raw: Raw) -> None:
        meta, spec = raw["metadata"], raw["spec"]
        template = spec["template"]
        # an evicted pod stays, and its ReplicaSet does not count it any more
        living = [p for p in self._children(raw) if p["status"]["phase"] != "Failed"]
        mine = [p for p in living if not p["metadata"].get("deletionTimestamp")]
        outdated = [p for p in mine if p["spec"] != template["spec"]]
        current = [p for p in mine if p["spec"] == template["spec"]]
        wanted = spec.get("replicas", 1)
        conditions = []
        if len(current) < wanted:
            if meta["name"] in self.refused_pods:
                conditions = [
                    {
                        "type": "ReplicaFailure",
                        "status": "True",
                        "reason": "FailedCreate",
                        "message": self.refused_pods[meta["name"]],
                    }
                ]
            else:
                for _ in range(wanted - len(current)):
                    self._make_pod(raw, template)
        ready = [p for p in current if _ready(p)]
        for pod in current[wanted:] + (outdated if len(ready) >= wanted else []):
            self._delete("Pod", meta["namespace"], pod["metadata"]["name"], "Background")
        left = [p for p in self._children(raw) if not p["metadata"].get("deletionTimestamp")]
        left = [p for p in left if p["status"]["phase"] != "Failed"]
        state = {
            "observedGeneration": meta["generation"],
            "replicas": len(left),
            "updatedReplicas": len([p for p in left if p["spec"] == template["spec"]]),
            "readyReplicas": sum(map(_ready, left)),
            "conditions": conditions,
        }
        if raw.get("status") != state:
            raw["status"] = state
            self._store("Deployment", raw)

    def _pod(self, raw: Raw) -> None:
        meta, state = raw["metadata"], raw["status"]
        if meta.get("deletionTimestamp"):
            if self.stop_slowly or isinstance(self.play(raw), Silent):
                return
            if not self._is_awaited(raw):
                self._drop("Pod", meta["namespace"], meta["name"])
            elif state["phase"] in {"Pending", "Running"}:
                # its Job must see how it ended before it may go
                running, name = {"startedAt": stamp(self.now)}, raw["spec"]["containers"][0]["name"]
                ended = [_ended(name, running, 143, "", "Error", self.now)] if state["phase"] == "Running" else []
                raw["status"] = {**state, "phase": "Failed", "containerStatuses": ended}
                self._store("Pod", raw)
            return
        own = [s for s in state.get("containerStatuses", []) if s["name"] == raw["spec"]["containers"][0]["name"]]
        if state["phase"] in {"Succeeded", "Failed"} or (own and "terminated" in own[0]["state"]):
            return
        server = bool({label.RELEASE, label.POOL} & set(meta["labels"]))
        play = self.play(raw)
        name = raw["spec"]["containers"][0]["name"]
        new: Raw = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
        if not isinstance(play, Unschedulable):
            new |= {"startTime": state.get("startTime", stamp(self.now)), "podIP": "10.1.2.3"}
        running = {"startedAt": stamp(self.now)}
        if state["phase"] == "Running":
            running = own[0]["state"].get("running", running)
        if isinstance(play, Unschedulable):
            new["conditions"] = [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": play.message}
            ]
        elif isinstance(play, Unprepared):
            waiting = {"reason": "ContainerCreating"}
            new["containerStatuses"] = [{"name": name, "restartCount": 0, "state": {"waiting": waiting}}]
        elif isinstance(play, Waits):
            waiting = {"reason": play.reason, "message": play.message}
            new["containerStatuses"] = [{"name": name, "restartCount": 0, "state": {"waiting": waiting}}]
        elif isinstance(play, ServerEnds):
            end = {"exitCode": play.code, "message": play.message, "reason": play.reason, "finishedAt": stamp(self.now)}
            before = {"restartCount": 1, "lastState": {"terminated": end}, "state": {"running": running}}
            new["initContainerStatuses"] = [{"name": label.SERVER, "started": False, **before}]
        elif isinstance(play, Fetches):
            fetch = {
                "name": "fetch",
                "restartCount": 0,
                "state": {"running": {"startedAt": state.get("startTime", stamp(self.now))}},
            }
            waiting = {"reason": "PodInitializing"}
            new["initContainerStatuses"] = [fetch]
            new["containerStatuses"] = [{"name": name, "restartCount": 0, "state": {"waiting": waiting}}]
        elif isinstance(play, Crashes):
            end = {
                "exitCode": play.code, "message": play.message, "reason": "Error",
                "startedAt": running["startedAt"], "finishedAt": stamp(self.now),
            }  # fmt: skip
            new["containerStatuses"] = [
                {
                    "name": name,
                    "restartCount": play.restarts,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting"}},
                    "lastState": {"terminated": end},
                }
            ]
        elif isinstance(play, Silent) and state["phase"] == "Running":
            # the node lifecycle controller says so of the pod, and nobody says anything of its containers
            ready = {"type": "Ready", "status": "False"}
            new = {**state, "conditions": [c for c in state["conditions"] if c["type"] != "Ready"] + [ready]}
        elif state["phase"] == "Pending" or isinstance(play, Hangs) or (server and isinstance(play, Ends)):
            new["phase"] = "Running"
            # a stage has no readiness probe: it is ready as long as it runs
            up = not (server and isinstance(play, Hangs))
            new["containerStatuses"] = [{"name": name, "ready": up, "restartCount": 0, "state": {"running": running}}]
            new["conditions"].append({"type": "Ready", "status": "True" if up else "False"})
        elif isinstance(play, KubeletEnds):
            new |= {"phase": "Failed", "reason": play.reason, "message": play.message}
            if play.disrupted:
                new["conditions"].append(
                    {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
                )
            if play.code is not None:
                new["containerStatuses"] = [_ended(name, running, play.code, "", "Error", self.now)]
        elif isinstance(play, Evicted):
            new["phase"] = "Failed"
            new["conditions"].append({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"})
            new["containerStatuses"] = [_ended(name, running, 143, "", "Error", self.now)]
        else:
            new["phase"] = "Succeeded" if play.code == 0 else "Failed"
            reason = play.reason or ("Completed" if play.code == 0 else "Error")
            new["containerStatuses"] = [_ended(name, running, play.code, play.message, reason, self.now)]
        for now, before in zip(new.get("containerStatuses", []), state.get("containerStatuses", []), strict=False):
            now |= {"lastState": before["lastState"]} if "lastState" in before else {}
        if self.sidecar and not server:
            self._accompany(raw, new)
        if new != state:
            raw["status"] = new
            self._store("Pod", raw)

    def _accompany(self, raw: Raw, new: Raw) -> None:
        """What an injected container makes of the pod's new state."""
        over, up = new["phase"] in {"Succeeded", "Failed"}, new["phase"] == "Running"
        status = {"name": "agent", "ready": up, "started": up, "restartCount": 0, "state": {"running": {}}}
        if self.sidecar == "classic":
            new["containerStatuses"] = [*new.get("containerStatuses", []), status]
            new["phase"] = "Running" if over else new["phase"]
            return
        raw["spec"]["initContainers"] = [{"name": "agent", "restartPolicy": "Always"}]
        if over:
            end = {"exitCode": 143, "reason": "Error", "message": "stopped"}
            status |= {"ready": False, "started": False, "state": {"terminated": end}}
        new["initContainerStatuses"] = [status]
        if self.sidecar == "stuck":
            new["initContainerStatuses"] = [status | {"ready": False, "started": False}]
            new["containerStatuses"], new["phase"] = [], "Pending"

    def _is_awaited(self, raw: Raw) -> bool:
        """Whether the pod's Indexed Job, undecided so far, has yet to count it."""
        jobs = [job for job in self.of("Job") if job["metadata"]["uid"] in {o["uid"] for o in _owners(raw)}]
        return any(
            job["spec"].get("completionMode") == "Indexed"
            and not job["spec"].get("suspend")
            and not job["metadata"].get("deletionTimestamp")
            and not job.get("status", {}).get("conditions")
            for job in jobs
        )


def over(raw: Raw) -> bool:
    """Whether a Job has ended, its pods too."""
    return any(c["type"] in {"Complete", "Failed"} for c in raw.get("status", {}).get("conditions", []))


def index_of(pod: Raw) -> int:
    return int(pod["metadata"]["labels"].get(label.COMPLETION_INDEX, 0))


def _ended(name: str, running: Raw, code: int, message: str, reason: str, now: datetime.datetime) -> Raw:
    end = {**running, "exitCode": code, "message": message, "reason": reason, "finishedAt": stamp(now)}
    return {"name": name, "restartCount": 0, "state": {"terminated": end}}


def _owners(raw: Raw) -> list[Raw]:
    owners: list[Raw] = raw["metadata"].get("ownerReferences", [])
    return owners


def _conditions(raw: Raw) -> Iterable[Raw]:
    conditions: list[Raw] = raw["status"].get("conditions", [])
    return conditions


def _disrupted(raw: Raw) -> bool:
    return any(c["type"] == "DisruptionTarget" for c in _conditions(raw))


def _ready(raw: Raw) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in _conditions(raw))
