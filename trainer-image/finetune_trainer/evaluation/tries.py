"""How often models of a job were evaluated on the same test examples.

A gate lets a model that misses its bound pass in at most 1 - confidence of all cases, for one evaluation. Whoever edits a job and
evaluates it again on the same examples until it passes draws that lot each time: k evaluations at a level of 5 % let such a model
pass in up to k times 5 % of all cases (Boole's inequality, which also holds where the evaluations depend on each other).

A small object of the job has a line for each evaluation, by the hash of the test examples, so that nothing is listed, and
revisions that left the status' history count too.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from finetune_api import results, run
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import gates
from finetune_trainer.process import errors, log
from finetune_trainer.store import storage

MOST = 1_000
"""Evaluations that are remembered; of more, the newest."""


def fingerprint(examples: Iterable[dataset.Example]) -> str:
    """The hash of the test examples, wherever they stand in their files."""
    lines = sorted(example.content() for example in examples)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def record(spec: run.Run, store: storage.Storage, tested: str, adapter: str) -> int:
    """Adds this evaluation to those on the test examples with this hash; a repeated attempt adds nothing. Returns how many there
    are. adapter: the SHA-256 of its manifest."""
    place = spec.layout.tries(tested)
    known = _known(store, place)
    this = {"revision": spec.revision, "evaluation": spec.evaluation_hash, "adapter": adapter}
    if this not in known:
        known = [*known, this][-MOST:]
        store.write(place, (json.dumps({"evaluations": known}, indent=1) + "\n").encode())
    return len(known)


def of(count: int, tested: str, required: Iterable[gates.Bounds]) -> results.Tries:
    """What so many evaluations mean for the gates of this one."""
    levels = [1 - gate.confidence for gate in required if gate.confidence > gates.POINT]
    bound = min(1.0, round(count * max(levels), 6)) if levels else None
    return results.Tries(evaluations=count, test_set=tested, false_pass=bound)


def _known(store: storage.Storage, place: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(store.read(place))["evaluations"]
        return [one for one in found if isinstance(one, dict)]
    except errors.NotFound:
        return []
    except (ValueError, KeyError, TypeError) as error:
        log.warning("earlier evaluations on these test examples cannot be read", uri=place, problem=str(error))
        return []
