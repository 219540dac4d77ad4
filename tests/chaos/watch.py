"""Watches the fleet through every outage, and keeps what it saw: the present objects, and the story of each job."""

import collections
import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path

from chaos import api, history
from finetune_operator.observe import label, projections

KINDS = {"FineTuneJob": api.FINETUNEJOBS, "Job": api.JOBS, "Pod": api.PODS}


@dataclasses.dataclass
class Seen:
    """What was seen of the job of one uid."""

    statuses: list[history.Status] = dataclasses.field(default_factory=list)
    jobs: dict[str, history.Job] = dataclasses.field(default_factory=dict)
    pods: dict[str, history.Pod] = dataclasses.field(default_factory=dict)


class Watch:
    """`audit`: the API server's audit log, where it can be read; what no watch saw, it tells."""

    def __init__(self, server: api.Api, audit: Path | None) -> None:
        self._server, self._audit = server, audit
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._seen: dict[str, Seen] = collections.defaultdict(Seen)
        self._present: dict[str, dict[str, api.Raw]] = {kind: {} for kind in KINDS}
        self._created: collections.Counter[str] = collections.Counter()
        self._threads = [threading.Thread(target=self._follow, args=(kind,), daemon=True) for kind in KINDS]
        if audit is not None:
            self._threads.append(threading.Thread(target=self._read_audit, args=(audit,), daemon=True))

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    # -- what is asked of it --

    def check(self) -> None:
        """Raises where it does not see any more: what nobody watches, nobody finds."""
        if not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("a watching thread ended; its traceback is above")

    def job(self, name: str) -> api.Raw | None:
        """The FineTuneJob as it was seen last."""
        with self._lock:
            return self._present["FineTuneJob"].get(name)

    def pods(self, holds: Callable[[api.Raw], bool]) -> list[api.Raw]:
        """Pods of stages, as seen last."""
        with self._lock:
            return [pod for pod in self._present["Pod"].values() if holds(pod)]

    def seen(self, uid: str) -> Seen:
        with self._lock:
            mine = self._seen[uid]
            return Seen(list(mine.statuses), dict(mine.jobs), dict(mine.pods))

    def created(self, names: set[str]) -> dict[str, int]:
        """How often each of these Jobs was created, by the audit log."""
        with self._lock:
            return {name: self._created[name] for name in sorted(names) if self._created[name]}

    # -- how it knows --

    def _follow(self, kind: str) -> None:
        while not self._stop.is_set():
            try:
                listed = self._server.request("GET", KINDS[kind])
                self._listed(kind, listed["items"])
                version = listed["metadata"]["resourceVersion"]
                while not self._stop.is_set():
                    for event, raw in self._server.watch(KINDS[kind], version):
                        if event == "ERROR":
                            raise OSError(str(raw))
                        version = raw["metadata"]["resourceVersion"]
                        self._received(kind, event, raw)
            except (OSError, ValueError):
                self._stop.wait(0.2)

    def _listed(self, kind: str, items: list[api.Raw]) -> None:
        for raw in items:
            self._received(kind, "ADDED", raw)
        names = {raw["metadata"]["name"] for raw in items}
        with self._lock:
            gone = [raw for name, raw in self._present[kind].items() if name not in names]
        for raw in gone:
            self._received(kind, "DELETED", raw)

    def _received(self, kind: str, event: str, raw: api.Raw) -> None:
        name = raw["metadata"]["name"]
        with self._lock:
            if event == "DELETED":
                self._present[kind].pop(name, None)
            else:
                self._present[kind][name] = raw
            if kind == "FineTuneJob":
                statuses = self._seen[raw["metadata"]["uid"]].statuses
                status = history.status(raw)
                if event != "DELETED" and (not statuses or statuses[-1] != status):
                    statuses.append(status)
                return
            uid = projections.uid_of(raw)
            if uid is None:
                return
            if kind == "Job":
                self._seen[uid].jobs[raw["metadata"]["uid"]] = history.job(raw)
            elif label.STAGE in raw["metadata"]["labels"]:
                fresh, known = history.pod(raw), self._seen[uid].pods.get(raw["metadata"]["uid"])
                if known is not None:  # a container's state can be taken back, its times cannot
                    fresh = dataclasses.replace(
                        fresh, started=known.started or fresh.started, ended=fresh.ended or known.ended
                    )
                if event == "DELETED" and fresh.ended is None:  # nobody saw when it ended
                    fresh = dataclasses.replace(fresh, started=None)
                self._seen[uid].pods[fresh.uid] = fresh

    def _read_audit(self, path: Path) -> None:
        """Follows the log from its present end, over its rotations."""
        file = path.open()
        file.seek(0, 2)
        half = ""
        while not self._stop.wait(0.5):
            fresh = path.exists() and path.stat().st_ino != Path(f"/proc/self/fd/{file.fileno()}").stat().st_ino
            *lines, half = (half + file.read()).split("\n")
            self._count(lines)
            if fresh:
                file.close()
                file, half = path.open(), ""

    def _count(self, lines: list[str]) -> None:
        for line in lines:
            if '"resource":"jobs"' not in line or '"code":201' not in line:
                continue
            event = json.loads(line)
            if event["objectRef"].get("apiGroup") == "batch" and event["stage"] == "ResponseComplete":
                with self._lock:
                    self._created[event["objectRef"].get("name", "")] += 1
