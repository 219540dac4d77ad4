"""A FakeCluster with our real Cache and Reconciler on it, a clock, and a script of how the pods fare."""

import copy
import datetime
import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

from finetune_api import job, outcome, status
from finetune_api.reasons import Phase, Reason, Stage
from finetune_operator import cache, cluster, index, poolreconcile, reconcile, settings
from finetune_operator.manifests import stages
from finetune_operator.observe import label, projections
from flow import fakecluster
from flow.fakecluster import Ends, Play, Raw
from support import manifests, queue

NAME = "support-tone"
SETTINGS: dict[str, Any] = {
    "images": {"trainer": "registry/trainer:1", "fetch": "registry/fetch:1", "serving": "registry/vllm:1"},
    "gpuTypes": {"nvidia-l4": {"nodeSelector": {"gpu": "l4"}}},
    "preflight": {"requests": {"cpu": "500m", "memory": "2Gi"}},
    "verify": {"requests": {"cpu": "100m", "memory": "128Mi"}},
}
KINDS = {"FineTuneJob", "BaseModel", "Job", "Pod", "Deployment", "Service"}
"""Everything that is there where jobs live."""
ALWAYS = tuple(stage for stage in Stage if stage is not Stage.BASELINE)
"""The stages of a job without a gate that a prompt could pass."""
ASKED: dict[str, Any] = {"spec.evaluation.gates": [{"metric": "ExactMatch", "minimum": 0.8}]}
"""A job with such a gate."""
KUEUE: dict[str, Any] = {"kueue": {"enabled": True}}
TEAM: dict[str, Any] = {"spec.resources.queueName": "team-a"}
FOUND = status.Preflight(verdict="Recommended", examples=1000, tokens=90_000, trainable_tokens=30_000)


def finetunejob(name: str = NAME, **changes: Any) -> Raw:
    """A FineTuneJob as its author writes it; `changes` by dotted path."""
    return manifests.changed(manifests.MINIMAL | {"metadata": {"name": name}}, **changes)


def preflight(**changes: Any) -> str:
    answer = outcome.Outcome(stage=Stage.PREFLIGHT, preflight=FOUND)
    return answer.model_copy(update=changes).termination_message()


def baseline(sufficient: job.Contender | None = None, **changes: Any) -> str:
    words = "the prompt of today passes the gates" if sufficient else "no prompt passes the gates"
    found = status.Baseline(sufficient=sufficient, examples=32, message=words)
    return outcome.Outcome(stage=Stage.BASELINE, baseline=found).model_copy(update=changes).termination_message()


def sha256_of(revision: str) -> str:
    """Of the adapter that training a revision gives."""
    return hashlib.sha256(revision.encode()).hexdigest()


def train(revision: str = "r", **changes: Any) -> str:
    adapter = status.Adapter(uri=f"s3://acme/finetune/{revision}/adapter", sha256=sha256_of(revision), bytes=1, rank=16)
    answer = outcome.Outcome(stage=Stage.TRAIN, training=outcome.Training(adapter=adapter, steps=100, loss=0.5))
    return answer.model_copy(update=changes).termination_message()


def evaluate(passed: bool = True, **changes: Any) -> str:
    gate = status.GateResult(metric="ExactMatch", requirement="at least 0.8", observed="0.9", passed=passed)
    found = status.Evaluation(passed=passed, score="0.9", examples=100, gates=[gate], canary="s3://acme/canary.json")
    answer = outcome.Outcome(stage=Stage.EVALUATE, evaluation=found, report="s3://acme/report.html")
    return answer.model_copy(update=changes).termination_message()


def verify() -> str:
    found = outcome.Verification(tokens_per_second=50, difference_from_base=1, difference_from_evaluation=0)
    return outcome.Outcome(stage=Stage.VERIFY, verification=found).termination_message()


def refusal(stage: Stage, reason: Reason, message: str = "so it is") -> str:
    """What a stage says when it knows why it failed."""
    return outcome.Outcome(stage=stage, reason=reason, message=message).termination_message()


class Everywhere(dict[str, str]):
    """Refuses the pods of all Jobs of a stage, or of all servers."""

    def __init__(self, stage: str, words: str) -> None:
        super().__init__()
        self.stage, self.words = stage, words

    def __contains__(self, name: object) -> bool:
        text = str(name)
        marker = {"baseline": "-base", "evaluate": "-eval", "verify": "-check", "server": ""}.get(
            self.stage, f"-{self.stage}-"
        )
        return bool(marker) and marker in text if self.stage != "server" else text.count("-") == 3

    def __getitem__(self, name: str) -> str:
        return self.words

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        return self.words if name in self else default


class InMemory:
    """A FakeCluster as the stand-in for Kueue sees it."""

    def __init__(self, cluster: fakecluster.FakeCluster) -> None:
        self.cluster = cluster

    def jobs(self) -> list[Raw]:
        return copy.deepcopy(self.cluster.of("Job"))

    def workloads(self) -> list[Raw]:
        return copy.deepcopy(self.cluster.of("Workload"))

    def create_workload(self, workload: Raw) -> None:
        self.cluster._store("Workload", workload)

    def set_conditions(self, workload: str, conditions: list[Raw]) -> None:
        self.cluster.edit("Workload", workload, lambda raw: raw["status"].update(conditions=conditions))

    def patch_job(self, name: str, change: Callable[[Raw], None]) -> None:
        self.cluster.edit("Job", name, change)


def queues(cluster: fakecluster.FakeCluster, room: dict[str, int]) -> queue.Queues:
    """The stand-in for Kueue, at work in this cluster."""
    kueue = queue.Queues(InMemory(cluster), room, lambda: cluster.now)
    cluster.controllers.append(kueue.step)
    return kueue


class World:
    """One operator and one cluster. `script` maps a stage, or "server", to the plays of its successive pods."""

    def __init__(self, script: dict[str, list[Play]] | None = None, chart: dict[str, Any] | None = None) -> None:
        self.script = {key: list(plays) for key, plays in (script or {}).items()}
        self._cast: dict[str, Play] = {}
        self.cluster = fakecluster.FakeCluster(self._play)
        self.chart = settings.Settings.model_validate(SETTINGS | (chart or {}))
        self.dirty: set[str] = set()
        self.timers: dict[str, datetime.datetime] = {}
        self.failures: list[Exception] = []
        self.boot()

    def boot(self, chart: dict[str, Any] | None = None) -> None:
        """A fresh operator process, perhaps with other settings: it knows what it lists, and nothing else."""
        if chart is not None:
            self.chart = settings.Settings.model_validate(SETTINGS | chart)
        self.cache = cache.Cache(self.dirty.add)
        self.reconciler = reconcile.Reconciler(self.cluster, self.cache, self.chart, lambda: self.cluster.now)
        self.indexes = index.Indexes(self.cache, lambda: True)
        self.pools = poolreconcile.Reconciler(
            self.cluster, self.cache, self.indexes, self.chart, lambda: self.cluster.now
        )
        self.cluster.list_all()
        self.timers.clear()
        self.dirty.clear()
        ours = ("BaseModel", "ServingPool")
        for kind in (*ours, *projections.PROJECTIONS):
            items = [raw for raw in self.cluster.of(kind) if kind in ours or projections.uid_of(raw)]
            self.cache.listed(kind, None, copy.deepcopy(items), str(self.cluster.version))
        if self.chart.kueue.enabled:
            self.cache.listed("Workload", None, copy.deepcopy(self.cluster.of("Workload")), str(self.cluster.version))
        for raw in self.cluster.of("FineTuneJob"):
            self.cache.put_parent(copy.deepcopy(raw))

    # -- the script --

    def _play(self, pod: Raw) -> Play:
        """How this pod fares: decided once, by the first line of its role's script that is left."""
        uid, labels = pod["metadata"]["uid"], pod["metadata"]["labels"]
        if uid not in self._cast:
            role = labels.get(label.STAGE, "server")
            lines = self.script.get(role, [])
            self._cast[uid] = lines.pop(0) if lines else self._usual(role, labels)
        return self._cast[uid]

    @staticmethod
    def _usual(role: str, labels: Raw) -> Play:
        first = labels.get(label.COMPLETION_INDEX, "0") == "0"
        shown = {
            "preflight": preflight(),
            # the first of several pods answers for all
            "train": train(labels.get(label.REVISION, "")) if first else "",
            "baseline": baseline(),
            "evaluate": evaluate(),
            "verify": verify(),
            "server": "",
        }
        return Ends(0, shown[role])

    def recast(self, role: str, play: Play) -> None:
        """What the running pods of a role do from now on: a hanging one may end, an unschedulable one may run."""
        for pod in self.cluster.of("Pod"):
            if pod["metadata"]["labels"].get(label.STAGE, "server") == role:
                self._cast[pod["metadata"]["uid"]] = play

    def let_go(self, role: str) -> None:
        """Running pods of a role end well."""
        for pod in self.cluster.of("Pod"):
            if pod["metadata"]["labels"].get(label.STAGE, "server") == role:
                self._cast[pod["metadata"]["uid"]] = self._usual(role, pod["metadata"]["labels"])

    # -- the drive --

    def deliver(self, count: int | None = None) -> None:
        """Hand undelivered watch events to the cache, in the order of each kind."""
        some, self.cluster.undelivered = (
            self.cluster.undelivered[:count],
            self.cluster.undelivered[len(self.cluster.undelivered) if count is None else count :],
        )
        for event, kind, raw in some:
            self.deliver_one(event, kind, raw)

    def deliver_one(self, event: str, kind: str, raw: Raw) -> None:
        self.cluster.deliver(event, kind, raw)
        if kind == "FineTuneJob":
            if event == "DELETED":
                self.cache.drop_parent(raw["metadata"]["uid"])
                self.timers.pop(raw["metadata"]["uid"], None)
            else:
                self.cache.put_parent(raw)
        elif kind in {"BaseModel", "ServingPool", "Workload"} or projections.uid_of(raw):
            if kind == "Workload" and not self.chart.kueue.enabled:
                return
            self.cache.receive(kind, None, event, raw)

    async def reconcile(self, uid: str) -> None:
        self.dirty.discard(uid)
        self.timers.pop(uid, None)
        try:
            again = await (self.pools if uid in self.cache.pools else self.reconciler).reconcile(uid)
        except reconcile.Conflict:
            again = 0.1
        except (cluster.Failure, OSError) as failure:
            self.failures.append(failure)
            again = 1.0
        if again is not None:
            self.timers[uid] = self.cluster.now + datetime.timedelta(seconds=again)
        self.check()

    async def tick(self) -> bool:
        """Everything that can happen now happens once. Returns whether anything did."""
        self.deliver()
        due = {uid for uid, time in self.timers.items() if time <= self.cluster.now}
        todo = sorted(self.dirty | due)
        for uid in todo:
            await self.reconcile(uid)
        moved = self.cluster.step()
        self.check()
        return moved or bool(todo) or bool(self.cluster.undelivered)

    async def settle(self, patience: float = 50_000, until: Callable[[], bool] | None = None) -> None:
        """Tick until nothing is left to do, passing over pauses, `patience` seconds in all."""
        end = self.cluster.now + datetime.timedelta(seconds=patience)
        for _ in range(2000):
            if until is not None and until():
                return
            if await self.tick():
                self.cluster.now += datetime.timedelta(seconds=0.2)
                continue
            soon = [t for t in self.timers.values() if t - self.cluster.now < datetime.timedelta(seconds=590)]
            if not soon or min(soon) > end:
                assert until is None, f"nothing is left to do, and still not: {self.phase}"
                return
            self.cluster.now = max(min(soon), self.cluster.now)
        raise AssertionError("it never comes to rest: " + str(self.cluster.requests[-20:]))

    async def wait(self, seconds: float) -> None:
        """Time goes by; the operator looks as often as it asked to."""
        end = self.cluster.now + datetime.timedelta(seconds=seconds)
        while self.cluster.now < end:
            if await self.tick():
                self.cluster.now += datetime.timedelta(seconds=0.2)
            else:
                due = min(self.timers.values(), default=end)
                self.cluster.now = max(self.cluster.now, min(due, end))
        await self.tick()

    async def rest(self) -> None:
        """Tick until nothing is left to do; once more must be a no-op."""
        await self.settle()
        await self.nothing_is_left_to_do()

    async def nothing_is_left_to_do(self) -> None:
        version, asked = self.cluster.version, len(self.cluster.requests)
        for uid in [*self.cache.parents, *self.cache.pools]:
            await self.reconcile(uid)
        written = [r for r in self.cluster.requests[asked:] if r[0] not in {"refusal", "unprepared", "find"}]
        assert written == [], "a reconcile at rest still writes"
        assert self.cluster.version == version

    # -- invariants, after every tick --

    def check(self) -> None:
        for parent in self.cluster.of("FineTuneJob"):
            uid = parent["metadata"]["uid"]
            assert not parent["metadata"].get("finalizers")
            for stage in Stage:
                pods = [
                    (p["metadata"]["labels"]["batch.kubernetes.io/job-name"], fakecluster.index_of(p))
                    for p in self.cluster.of("Pod")
                    if p["metadata"]["labels"].get(label.STAGE) == stage
                    and p["metadata"]["labels"][label.ATTEMPT] != str(stages.AGAIN)
                    and p["metadata"]["labels"][label.UID] == uid
                    and p["status"]["phase"] in {"Pending", "Running"}
                ]
                assert len({job for job, _ in pods}) <= 1, f"two attempts of {stage} at once: {pods}"
                assert len(set(pods)) == len(pods), f"a pod of {stage} twice at once: {pods}"
                jobs = [
                    j["metadata"]["name"]
                    for j in self.cluster.of("Job")
                    if j["metadata"]["labels"][label.STAGE] == stage
                    and j["metadata"]["labels"][label.ATTEMPT] != str(stages.AGAIN)
                    and j["metadata"]["labels"][label.UID] == uid
                    and not fakecluster.over(j)
                ]
                assert len(jobs) <= 1, f"two active Jobs of {stage}: {jobs}"
            kstatus(parent)

    # -- a look around --

    def apply(self, name: str = NAME, **changes: Any) -> None:
        self.cluster.put(finetunejob(name, **changes))

    def add_model(self, **changes: Any) -> None:
        self.cluster.put(manifests.changed(manifests.ENTRY, **changes))

    @property
    def job(self) -> Raw:
        return self.cluster.get("FineTuneJob", NAME)

    @property
    def state(self) -> status.Status:
        return status.Status.model_validate(self.job.get("status", {}))

    @property
    def phase(self) -> Phase | None:
        return self.state.phase

    def condition(self, kind: str) -> status.Condition | None:
        return next((c for c in self.state.conditions if c.type == kind), None)

    def is_true(self, kind: str) -> bool:
        found = self.condition(kind)
        return found is not None and found.status == "True"

    def reason(self, kind: str) -> str | None:
        found = self.condition(kind)
        return found.reason if found else None

    def run_file(self, kind: str, name: str) -> Raw:
        """What the pods of a Job or Deployment are told."""
        annotations = self.cluster.get(kind, name)["spec"]["template"]["metadata"]["annotations"]
        notified: Raw = json.loads(annotations[label.RUN_FILE])
        return notified

    def tell(self, **changes: Any) -> None:
        """The training's pod is asked how far it is, and says so; `changes` to its report."""
        uid = self.job["metadata"]["uid"]
        self.deliver()
        pod = self.cache.reporting[uid]
        report = {
            "uid": uid, "revision": self.state.revision, "attempt": self.state.attempt, "stage": "train",
            "progress": {"percent": 40, "step": 4, "totalSteps": 10, "loss": "0.7", "eta": "12m"},
        }  # fmt: skip
        shown = outcome.ProgressReport.model_validate(report | changes)
        self.cache.put_reading(uid, projections.Reading(pod.name, shown))

    def attempts(self, stage: str) -> list[str]:
        """Names of all Jobs of a stage that ever existed."""
        marker = {"baseline": "-base", "evaluate": "-eval", "verify": "-check"}.get(stage, f"-{stage}-")
        return [name for kind, name, _ in self.cluster.created if kind == "Job" and marker in name]

    def pods(self, role: str) -> list[Raw]:
        return [p for p in self.cluster.of("Pod") if p["metadata"]["labels"].get(label.STAGE, "server") == role]

    def serving(self) -> str | None:
        """The release that the job's Service sends requests to."""
        if ("Service", "ml", NAME) not in self.cluster.objects:
            return None
        return str(self.cluster.get("Service", NAME)["spec"]["selector"][label.RELEASE])

    def runs(self, role: str) -> Callable[[], bool]:
        return lambda: any(
            p["status"]["phase"] == "Running" and not p["metadata"].get("deletionTimestamp") for p in self.pods(role)
        )


def kstatus(parent: Raw) -> str:
    """What `kubectl` plugins, Argo and Flux compute from a status, by kstatus' rules."""
    state = parent.get("status", {})
    conditions = {c["type"]: c for c in state.get("conditions", [])}
    if state.get("observedGeneration", 0) != parent["metadata"]["generation"]:
        return "InProgress"
    if conditions.get("Reconciling", {}).get("status") == "True":
        return "InProgress"
    if conditions.get("Stalled", {}).get("status") == "True":
        return "Failed"
    return "Current" if conditions["Ready"]["status"] == "True" else "InProgress"


def shuffled(items: list[Any], seed: int) -> list[Any]:
    items = list(items)
    random.Random(seed).shuffle(items)
    return items
