"""Checkpoints of a training run: everything needed to resume exactly, as safetensors and JSON, no pickle.

    checkpoints/<step>/  adapter · optimizer · random · best .safetensors, state.json, manifest.json (last);
                         during a search the best candidate so far in leader/, with the same files

The loop takes a Snapshot (a copy in memory) and continues; a thread writes, hashes and uploads it. A later attempt resumes from
the newest folder whose manifest and hashes are correct; an incomplete one is ignored.
"""

import dataclasses
import datetime
import json
import pathlib
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch

from finetune_api import layout, status
from finetune_trainer.process import errors, log
from finetune_trainer.store import folders, storage
from finetune_trainer.training import trials

Tensors = dict[str, torch.Tensor]

LEADER = "leader"


@dataclasses.dataclass
class State:
    """The loop's state besides tensors. Mutable."""

    step: int = 0
    """Optimizer steps done; also the sampler's position, see `batches`."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Time spent in steps, over all attempts."""
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """Of each step: step, loss, learningRate, gradientNorm."""
    validations: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """Of each validation: step, loss, and the score of the answers where there is one."""
    best_loss: float | None = None
    """The loss of the validation whose adapter is kept."""
    best_step: int = 0
    worse: int = 0
    """Validations in a row without a lower loss or a better score."""
    best_score: float | None = None
    """The score of the validation whose adapter is kept, higher is better."""

    def is_better(self, loss: float, score: float | None) -> bool:
        """Whether a validation is better than the one whose adapter is kept: by the score, then by the loss."""
        if self.best_loss is None:
            return True
        if score is None or self.best_score is None or score == self.best_score:
            return loss < self.best_loss
        return score > self.best_score

    def copy(self) -> "State":
        return dataclasses.replace(self, history=list(self.history), validations=list(self.validations))


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory."""

    state: State
    adapter: Tensors
    optimizer: Tensors
    random: Tensors
    best: Tensors | None
    search: trials.Search | None = None
    leader: "Snapshot | None" = None
    """The best of the search's candidates that have ended, as it was then."""

    @property
    def number(self) -> int:
        """Optimizer steps of all candidates; the name of the checkpoint."""
        return self.state.step + (self.search.steps if self.search else 0)


def randomness() -> Tensors:
    """The state of torch's generators; examples are chosen without them."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_randomness(states: Tensors) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def capture(
    weights: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: State,
    random: Tensors,
    best: Tensors | None,
    searched: trials.Search | None = None,
    leader: Snapshot | None = None,
) -> Snapshot:
    """A copy of everything, on the CPU."""
    moments: Tensors = {}
    for name, weight in weights.items():
        for key, value in optimizer.state.get(weight, {}).items():
            moments[f"{name}|{key}"] = value.detach().cpu().clone()
    return Snapshot(state.copy(), copy(weights), moments, random, best, copy_of(searched), leader)


def copy_of(searched: trials.Search | None) -> trials.Search | None:
    return searched and dataclasses.replace(searched, trials=list(searched.trials))


def copy(weights: dict[str, torch.nn.Parameter]) -> Tensors:
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}


def restore(snapshot: Snapshot, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Restores a copy of a snapshot's tensors. The optimizer's step counters go to the weights' device."""
    load_into(snapshot.adapter, weights)
    optimizer.state.clear()
    for name, weight in weights.items():
        states = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = snapshot.optimizer.get(f"{name}|{key}")
            if value is not None:
                states[key] = value.to(weight.device, copy=True)
        if states:
            optimizer.state[weight] = states
    restore_randomness(snapshot.random)


def load_into(tensors: Tensors, weights: dict[str, torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])


def write(snapshot: Snapshot, folder: pathlib.Path, fingerprint: str) -> None:
    """The files of a checkpoint, without the manifest."""
    safetensors.torch.save_file(snapshot.adapter, folder / "adapter.safetensors")
    safetensors.torch.save_file(snapshot.optimizer, folder / "optimizer.safetensors")
    safetensors.torch.save_file(snapshot.random, folder / "random.safetensors")
    if snapshot.best is not None:
        safetensors.torch.save_file(snapshot.best, folder / "best.safetensors")
    document = {"fingerprint": fingerprint, **dataclasses.asdict(snapshot.state)}
    if snapshot.search is not None:
        document["search"] = dataclasses.asdict(snapshot.search)
    if snapshot.leader is not None:
        (folder / LEADER).mkdir()
        write(snapshot.leader, folder / LEADER, fingerprint)
    (folder / "state.json").write_text(json.dumps(document))


def read(folder: pathlib.Path, fingerprint: str) -> Snapshot:
    """The checkpoint in a folder. Raises Corrupt when it belongs to another run."""
    try:
        document = json.loads((folder / "state.json").read_text())
        if document.pop("fingerprint") != fingerprint:
            raise folders.Corrupt("it was saved with other data or settings")
        parts = {
            name: safetensors.torch.load_file(folder / f"{name}.safetensors")
            for name in ("adapter", "optimizer", "random", "best")
            if (name == "best" and (folder / "best.safetensors").exists()) or name != "best"
        }
        searched = document.pop("search", None)
        leader = read(folder / LEADER, fingerprint) if (folder / LEADER).exists() else None
        return Snapshot(
            State(**document),
            parts["adapter"],
            parts["optimizer"],
            parts["random"],
            parts.get("best"),
            searched and trials.Search(**searched),
            leader,
        )
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise folders.Corrupt(f"it cannot be read: {error}") from error


def newest(store: storage.Storage, where: layout.Layout, fingerprint: str) -> Snapshot | None:
    """The newest complete and undamaged checkpoint; None where there is none."""
    for step in reversed(complete(store, where)):
        uri = where.checkpoint(step)
        with tempfile.TemporaryDirectory() as temporary:
            try:
                folders.load(store, uri, pathlib.Path(temporary))
                return read(pathlib.Path(temporary), fingerprint)
            except (folders.Corrupt, errors.NotFound) as problem:
                log.warning("checkpoint skipped", checkpoint=uri, problem=problem.message)
    return None


def complete(store: storage.Storage, where: layout.Layout) -> list[int]:
    """Steps of the checkpoints that have a manifest; an empty one is of a checkpoint that was withdrawn."""
    steps = []
    for entry in store.entries(f"{where.checkpoints}/"):
        step, _, name = entry.uri.removeprefix(f"{where.checkpoints}/").partition("/")
        if name == layout.MANIFEST and step.isdigit() and entry.size:
            steps.append(int(step))
    return sorted(steps)


class Saver:
    """Uploads snapshots in the background, one at a time; a newer one replaces a waiting one."""

    def __init__(
        self,
        store: storage.Storage,
        where: layout.Layout,
        fingerprint: str,
        keep: int,
        saved: Callable[[status.Checkpoint], Any],
    ) -> None:
        self._store, self._where, self._fingerprint, self._keep, self._saved = store, where, fingerprint, keep, saved
        self._lock = threading.Condition()
        self._waiting: Snapshot | None = None
        self._busy = False
        self._done = -1
        self._thread: threading.Thread | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Saves a snapshot soon. A failure is logged; training continues, and the next snapshot tries again."""
        with self._lock:
            self._waiting = snapshot
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
                self._thread.start()
            self._lock.notify_all()

    def settle(self, seconds: float) -> None:
        """Waits until no upload is pending, for at most this time."""
        with self._lock:
            self._lock.wait_for(lambda: self._waiting is None and not self._busy, seconds)

    def save(self, snapshot: Snapshot) -> None:
        """Saves a snapshot now, unless its step is saved already. Raises Failure."""
        with self._lock:
            self._waiting = None
            self._lock.wait_for(lambda: not self._busy, 10)
            if self._done == snapshot.number:
                return
        self._save(snapshot)

    def _work(self) -> None:
        while True:
            snapshot = None  # free the last one while waiting for the next
            with self._lock:
                self._lock.wait_for(lambda: self._waiting is not None)
                snapshot, self._waiting, self._busy = self._waiting, None, True
            try:
                if snapshot is not None:
                    self._save(snapshot)
            except Exception as error:
                problem = error.message if isinstance(error, errors.Failure) else errors.describe(error)
                log.warning("checkpoint not saved; training continues", problem=problem)
            finally:
                with self._lock:
                    self._busy = False
                    self._lock.notify_all()

    def _save(self, snapshot: Snapshot) -> None:
        step = snapshot.number
        uri = self._where.checkpoint(step)
        with tempfile.TemporaryDirectory() as temporary:
            write(snapshot, pathlib.Path(temporary), self._fingerprint)
            manifest = folders.save(self._store, pathlib.Path(temporary), uri)
        self._done = step
        log.info("checkpoint saved", checkpoint=uri, step=step, bytes=manifest.bytes)
        self._saved(status.Checkpoint(uri=uri, step=step, saved_at=datetime.datetime.now(datetime.UTC)))
        for old in complete(self._store, self._where)[: -self._keep]:
            folders.remove(self._store, self._where.checkpoint(old))
