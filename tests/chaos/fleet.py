"""The fleet: small jobs of several kinds that are applied, edited, suspended, judged and deleted, one after another.

Each worker is an author with one job at a time. What a job of a kind comes to without faults is seen first, in a calm.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import botocore.exceptions

from chaos import api, history, invariants, pools, watch
from demo import install
from finetune_operator.observe import label
from support import site as sites
from toolbox import say

NAMESPACE = "chaos"
PATIENCE = 900.0
"""Seconds after which a job that has not ended never will. Crashed pods are restarted after minutes at the longest."""
LINGER = 180.0
"""Seconds that the children of a deleted job may take to disappear, while faults continue."""
TRAINING: dict[str, Any] = {
    "maxSteps": 120,
    "batchSize": 2,
    "learningRate": 0.001,
    "lora": {"rank": 8},
    "checkpoints": {"everyMinutes": 0.02, "keep": 2},
    "earlyStopping": {"patience": 100},
    # every strike at a job's own pod costs an attempt, and there are many
    "retries": 20,
}
EVALUATION: dict[str, Any] = {
    "maximumExamples": 4,
    "generation": {"maxNewTokens": 4},
    "baselines": ["Base"],
    "gates": [],
}


class Stuck(Exception):
    """A job did not reach the expected state."""


@dataclasses.dataclass
class Author:
    """One job's author: applies it, waits, edits."""

    name: str
    kind: str
    server: api.Api
    seen: watch.Watch
    base: Mapping[str, Any]
    calm: bool = False
    """Whether it only finds out what the jobs of its kind come to."""
    began: float = dataclasses.field(default_factory=time.monotonic)
    uid: str = ""
    generation: int = 0
    resumed: int = 0
    struck: list[str] = dataclasses.field(default_factory=list)
    killed: list[str] = dataclasses.field(default_factory=list)

    def apply(self, **changes: Any) -> None:
        """The spec with these sections changed."""
        spec = {**self.base, **changes}
        kind = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob"}
        made = self.server.apply({**kind, "metadata": {"name": self.name}, "spec": spec})
        self.uid, self.generation = made["metadata"]["uid"], made["metadata"]["generation"]

    def until(self, what: str, holds: Callable[[api.Raw], bool]) -> api.Raw:
        """The job, once the operator has seen its last edit and `holds` is true of its status."""
        end = time.monotonic() + PATIENCE
        while True:
            job = self.seen.job(self.name)
            if job is not None and job["metadata"]["uid"] == self.uid:
                state = job.get("status") or {}
                if state.get("observedGeneration", 0) >= self.generation and holds(state):
                    return job
            if time.monotonic() > end:
                raise Stuck(f"not {what} within {PATIENCE:.0f} s: {json.dumps((job or {}).get('status'))[:1500]}")
            time.sleep(0.2)

    def until_over(self) -> None:
        self.until("over", lambda state: bool(history.end(state)))

    def until_step(self, step: int) -> None:
        """Training has come so far, or is over already."""

        def holds(state: api.Raw) -> bool:
            return int((state.get("progress") or {}).get("step") or 0) >= step or bool(history.end(state))

        self.until(f"at step {step}", holds)


def plain(author: Author) -> None:
    """Trains, checkpoints, is evaluated."""
    author.apply()
    author.until_over()


def below_its_gate(author: Author) -> None:
    """Ends as Failed: its gate cannot be met."""
    author.apply(evaluation={**EVALUATION, "gates": [{"metric": "Loss", "maximum": 0.000001}]})
    author.until_over()


def asked_first(author: Author) -> None:
    """Has a baseline before its training, and a gate that it passes."""
    author.apply(intent={}, evaluation={**EVALUATION, "gates": [{"metric": "Loss", "maximum": 50, "confidence": 0.5}]})
    author.until_over()


def paused(author: Author) -> None:
    """Is suspended during training, and resumed."""
    author.apply()
    author.until_step(20)
    author.apply(suspend=True)

    def stopped(state: api.Raw) -> bool:
        return state.get("phase") == "Suspended" or bool(history.end(state))

    author.until("suspended", stopped)
    time.sleep(2)
    author.resumed += 1
    author.apply(suspend=False)
    author.until_over()


def edited(author: Author) -> None:
    """Is edited to a new revision during training; the first one never ends. In the calm it is that revision from the start."""
    if not author.calm:
        author.apply()
        author.until_step(20)
    author.apply(training={**TRAINING, "learningRate": 0.002})
    author.until_over()


def on_two_nodes(author: Author) -> None:
    """Two pods train together: both stop when a fault hits one of them."""
    author.apply(resources={**author.base["resources"], "nodes": 2})
    author.until_over()


def served(author: Author) -> None:
    """Runs every stage up to a server."""
    resources = {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}}
    author.apply(deployment={"resources": resources, "extraArgs": ["--max-model-len=256"]})
    author.until("served", lambda state: state.get("phase") == "Ready" or bool(history.end(state)))


def pooled(author: Author) -> None:
    """Is served by a pool, and answers there as without faults."""
    training = {**TRAINING, "maxSequenceLength": pools.CONTEXT}
    author.apply(training=training, deployment={"pool": pools.NAME, "servedModelName": author.name})
    author.until("served", lambda state: state.get("phase") == "Ready" or bool(history.end(state)))


KINDS: dict[str, Callable[[Author], None]] = {
    "plain": plain,
    "paused": paused,
    "edited": edited,
    "gate": below_its_gate,
    "asked": asked_first,
    "pair": on_two_nodes,
    "served": served,
    "pooled": pooled,
}
AS = {"paused": "plain"}
"""Kinds that come to the same as another one: the calm leaves them out."""
SHORT = ("plain", "gate", "paused", "edited")
MIX = (*SHORT, "pair", "asked", "plain", "edited", "paused", "gate", "pair", "pooled", "edited", "served")
"""A server takes half a minute of a core, so there are few of them."""


@dataclasses.dataclass(frozen=True)
class Life:
    """A job that is over. `began` and `ended`: seconds on this process's clock."""

    job: str
    kind: str
    began: float
    ended: float
    attempts: int
    outcome: history.Outcome | None
    violations: tuple[invariants.Violation, ...]


class Fleet:
    """Jobs on a site, `size` at a time."""

    def __init__(self, site: sites.Site, server: api.Api, seen: watch.Watch, data: str, prefix: str) -> None:
        self._site, self._server, self._seen, self._prefix = site, server, seen, prefix
        self._base = site.spec(data, training=TRAINING, evaluation=EVALUATION, intent={"advice": "Ignore"})
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._alive: dict[str, Author] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._broken: BaseException | None = None
        self.expected: dict[str, history.Outcome] = {}
        self.lives: list[Life] = []

    def calm(self, kinds: tuple[str, ...]) -> None:
        """One job for each kind of end, without any fault: what it comes to is expected of all later ones."""
        if "pooled" in kinds:
            self._site.kube.apply(pools.manifest(self._site, NAMESPACE))
        threads = [
            threading.Thread(target=self._guarded, args=(self._calm, kind), daemon=True)
            for kind in dict.fromkeys(AS.get(kind, kind) for kind in kinds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.check()

    def _calm(self, kind: str) -> None:
        life = self.live(kind, calm=True)
        if life.violations or life.outcome is None:
            raise say.Problem(f"without any fault: {'; '.join(map(str, life.violations))}")

    def start(self, size: int, kinds: tuple[str, ...]) -> None:
        turn = itertools.cycle(kinds)

        def work() -> None:
            while not self._stop.is_set():
                with self._lock:
                    kind = next(turn)
                self.lives.append(self.live(kind))

        self._threads = [threading.Thread(target=self._guarded, args=(work,), daemon=True) for _ in range(size)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """No new jobs; waits for the end of running ones."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._server.delete(f"{api.SERVINGPOOLS}/{pools.NAME}", propagationPolicy="Background")
        self._left("")
        self.check()

    def check(self) -> None:
        """Raises what a worker met that no job explains."""
        if self._broken is not None:
            raise self._broken

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            self._broken = self._broken or error

    def alive(self) -> dict[str, str]:
        """Running jobs, and their phase."""
        with self._lock:
            names = list(self._alive)
        return {name: ((self._seen.job(name) or {}).get("status") or {}).get("phase") or "new" for name in names}

    def struck(self, job: str, words: str, *, killed: bool) -> None:
        """A fault hit a pod of this job. `killed`: as a failure of its attempt, and not as a disruption."""
        with self._lock:
            if job in self._alive:
                self._alive[job].struck.append(words)
                if killed:
                    self._alive[job].killed.append(words)

    def live(self, kind: str, *, calm: bool = False) -> Life:
        """A complete life, from apply to the end of the last child."""
        name = f"{kind}-{self._prefix}{next(self._numbers)}"
        author = Author(name, kind, self._server, self._seen, self._base, calm)
        with self._lock:
            self._alive[author.name] = author
        try:
            stuck = ""
            try:
                KINDS[kind](author)
            except Stuck as problem:
                stuck = str(problem)
            story = self._story(author, stuck)
        finally:
            with self._lock:
                del self._alive[author.name]
        found = tuple(invariants.violations(story))
        for violation in found:
            say.line(f"    VIOLATED: {str(violation)[:2000]}")
        return Life(author.name, kind, author.began, time.monotonic(), len(story.jobs), story.outcome, found)

    def _story(self, author: Author, stuck: str) -> history.Story:
        """Its result. Its children and, while it lasts, the job itself are read before and after its deletion."""
        state = (self._seen.job(author.name) or {}).get("status") or {}
        weights, lost = ("", []) if stuck else self._artifacts(state)
        answer = pools.answer(self._server, author.name, LINGER) if author.kind == "pooled" and not stuck else ""
        outcome = None if stuck else history.outcome(state, weights, answer)
        if author.kind not in {"served", "pooled"}:
            time.sleep(1)  # whatever would start again after the end would start now
        self._server.delete(f"{api.FINETUNEJOBS}/{author.name}", propagationPolicy="Background")
        left = self._left(author.uid)
        if answer and not pools.gone(self._server, author.name, LINGER):
            left += (f"model {author.name} in the pool",)
        if outcome is not None and weights:
            lost += self._artifacts(state)[1]
        seen = self._seen.seen(author.uid)
        jobs = tuple(seen.jobs.values())
        kind = AS.get(author.kind, author.kind)
        if outcome is not None and author.calm:
            self.expected[kind] = outcome
        return history.Story(
            name=author.name,
            expected=self.expected.get(kind, history.Outcome("", "")),
            outcome=outcome,
            jobs=jobs,
            created=self._seen.created({job.name for job in jobs}),
            pods=tuple(seen.pods.values()),
            statuses=tuple(seen.statuses),
            struck=tuple(author.struck),
            killed=tuple(author.killed),
            resumed=author.resumed,
            lost=tuple(dict.fromkeys(lost)),
            left=left if not stuck else (*left, stuck),
        )

    def _artifacts(self, state: api.Raw) -> tuple[str, list[str]]:
        """The hash of the trained tensors, and what is wrong with what the status names."""
        artifacts = state.get("artifacts") or {}
        lost: list[str] = []
        weights = ""
        if adapter := artifacts.get("adapter"):
            manifest = self._read(f"{adapter['uri']}/manifest.json")
            if hashlib.sha256(manifest).hexdigest() != adapter["sha256"]:
                lost.append(f"{adapter['uri']}/manifest.json is not the one of the status")
            for file in json.loads(manifest)["files"]:
                content = self._read(f"{adapter['uri']}/{file['path']}")
                if hashlib.sha256(content).hexdigest() != file["sha256"] or len(content) != file["size"]:
                    lost.append(f"{adapter['uri']}/{file['path']} is not as its manifest says")
                if file["path"] == "adapter_model.safetensors":
                    weights = file["sha256"]
        if (report := artifacts.get("report")) and b"<html" not in self._read(report):
            lost.append(f"{report} is no report")
        return weights, lost

    def _read(self, uri: str) -> bytes:
        """An object, once S3 is back; what it has not is empty."""
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(botocore.exceptions.BotoCoreError, OSError):
                try:
                    return self._site.objects.read(uri)
                except say.Problem as problem:
                    if "NoSuchKey" in str(problem):
                        return b""
            if time.monotonic() > end:
                raise say.Problem(f"{uri} cannot be read, and S3 should be there")
            time.sleep(0.5)

    def _left(self, uid: str) -> tuple[str, ...]:
        """Children that are still there when they should be gone."""
        end = time.monotonic() + LINGER
        while True:
            left = self.children(uid)
            if not left or time.monotonic() > end:
                return left
            time.sleep(1)

    def children(self, uid: str = "") -> tuple[str, ...]:
        """Names of the children of one job, or of all."""
        selector = label.UID + (f"%3D{uid}" if uid else "")
        return tuple(
            f"{kind} {raw['metadata']['name']}"
            for kind, path in api.CHILDREN.items()
            for raw in self._server.items(path, selector)
        )


def prepare(site: sites.Site) -> str:
    """The fleet's namespace with its credentials, and the URI of its data."""
    install.make_namespace(site.kube, NAMESPACE)
    install.credentials(site.kube, NAMESPACE, sites.SECRET, site.store)
    return site.upload_rows("chaos/train.jsonl", sites.chats(40))
