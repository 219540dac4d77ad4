"""A task with its questions: the package's own object, built from the entry and from rows of files, or of its dataset on the hub.

Here the package's code runs for the first time. The questions are fixed when it is built: a task's functions may shuffle, and
both models must be asked the same questions.
"""

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import random
from collections.abc import Iterator
from typing import Any

from finetune_api import job, reasons, run
from finetune_trainer.data import rows
from finetune_trainer.evaluation import contenders
from finetune_trainer.harness import catalogue, description
from finetune_trainer.process import errors, log
from finetune_trainer.store import storage

PATIENCE = 20.0
"""Seconds for the hub to answer whether it has a dataset."""

FEW_SHOT_SEED, RANDOM_SEED, NUMPY_SEED = 1234, 0, 1234
"""lm-evaluation-harness's own, so that the prompts are the same."""

QUIET = ("lm_eval", "lm-eval", "datasets", "fsspec", "evaluate")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task that can be run."""

    entry: catalogue.Entry
    built: Any
    """The package's object; `built.eval_docs` are the questions that are asked."""
    shots: int
    available: int = 0
    """Questions that there are, of which some are asked."""

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def version(self) -> str | None:
        found = (self.entry.config.get("metadata") or {}).get("version")
        return None if found is None else str(found)

    @property
    def questions(self) -> int:
        return len(self.built.eval_docs)


def release() -> str:
    return importlib.metadata.version(description.PACKAGE)


def load(spec: run.Run, wanted: job.Harness, store: storage.Storage) -> list[Task]:
    """The tasks of a job with the questions that are asked. Raises Failure."""
    return list(_each(spec, wanted, store))


def available_tasks(spec: run.Run, wanted: job.Harness, store: storage.Storage) -> tuple[list[Task], list[str]]:
    """The tasks whose data are available, and the problems of the others, on which no gate depends.

    Raises Failure for tasks that may not run, and for those with a gate.
    """
    problems: list[str] = []
    found = list(_each(spec, wanted, store, problems))
    for problem in problems:
        log.warning("the evaluation continues without a benchmark", problem=problem)
    return found, problems


def _each(
    spec: run.Run, wanted: job.Harness, store: storage.Storage, problems: list[str] | None = None
) -> Iterator[Task]:
    """The tasks one by one; failures of the data are added to `problems`, if given, but for tasks with a gate."""
    entries = catalogue.by_name(wanted)
    shots = {task.name: _shots(task, entries[task.name]) for task in wanted.tasks}
    silence_logs()
    for task in wanted.tasks:
        try:
            built = _build(task, entries[task.name], shots[task.name], store)
            available = len(built.eval_docs)
            _fix_questions(built, wanted.maximum_examples, spec.training.seed)
            made = Task(entries[task.name], built, shots[task.name], available)
            _build_requests(made)
        except errors.Failure as failure:
            gated = any(gate.task == task.name for gate in wanted.required)
            if problems is None or gated or failure.reason is reasons.Reason.INVALID_SPEC:
                raise
            problems.append(failure.message)
            continue
        log.info("benchmark ready", task=task.name, questions=made.questions, few_shot=made.shots)
        yield made


def silence_logs() -> None:
    """To be called before the package is imported: no progress bars, only errors in the log, no telemetry."""
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import huggingface_hub

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    datasets.disable_progress_bars()


def _shots(task: job.Task, entry: catalogue.Entry) -> int:
    if task.few_shot is None:
        return entry.shots
    if task.few_shot and entry.config.get("num_fewshot") == 0:
        raise _failure(task.name, "does not support few-shot examples; leave fewShot out", reasons.Reason.INVALID_SPEC)
    return task.few_shot


# --- Its data ---


def _build(task: job.Task, entry: catalogue.Entry, shots: int, store: storage.Storage) -> Any:
    """The package's object. Raises Failure."""
    import numpy as np
    from lm_eval.api import task as package
    from lm_eval.tasks import _yaml_loader

    config = _yaml_loader.load_yaml(entry.file)
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    config["num_fewshot"] = shots
    parts = None
    if task.uris is not None:
        parts = {"test": _rows(task.name, task.uris, store)}
        if task.few_shot_uris is not None:
            parts["train"] = _rows(task.name, task.few_shot_uris, store)
    else:
        _check_hub(entry)
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        return package.ConfigurableTask(config=config | (_of_files(config, parts, shots, task.name) if parts else {}))
    except errors.Failure:
        raise
    except Exception as error:
        if parts is not None:
            raise _misfit(entry, parts["test"], error) from error
        raise _failure(
            task.name,
            f"cannot be built from its dataset on the hub, {entry.dataset} ({errors.describe(error)}); give its data as files: "
            "uris",
        ) from error


def _of_files(config: dict[str, Any], parts: dict[str, list[Any]], shots: int, name: str) -> dict[str, Any]:
    """The changes of a configuration for rows of files. Raises Failure."""
    import datasets

    few = dict(config.get("fewshot_config") or {})
    few.pop("split", None)
    if shots and "train" not in parts and "samples" not in few:
        raise _failure(
            name,
            f"shows {shots} questions with answers before each question: give them in fewShotUris, or set fewShot: 0",
            reasons.Reason.INVALID_SPEC,
        )
    made = datasets.DatasetDict({part: datasets.Dataset.from_list(found) for part, found in parts.items()})
    return {
        "custom_dataset": lambda **_: made,
        "dataset_kwargs": None,
        "test_split": "test",
        "validation_split": None,
        "training_split": "train" if "train" in parts else None,
        "fewshot_split": "train" if "train" in parts else None,
        "fewshot_config": few or None,
    }


def _rows(name: str, uris: list[str], store: storage.Storage) -> list[Any]:
    """All rows of some files. Raises Failure for the first that cannot be read."""
    found = []
    for entry in rows.find(store, uris):
        for row in rows.read(store, entry.uri):
            if isinstance(row, rows.Bad):
                raise _failure(name, f"cannot be read: {row.source}: {row.problem}")
            if not isinstance(row.value, dict):
                raise _failure(name, f"cannot be read: {row.source} is not an object with the fields of a question")
            found.append(row.value)
    if not found:
        raise _failure(name, f"has no questions: {', '.join(uris[:3])} is empty")
    return found


def _check_hub(entry: catalogue.Entry) -> None:
    """Asks the hub whether it has the task's dataset. Raises Failure, soon, where the hub cannot be reached."""
    import huggingface_hub
    import huggingface_hub.errors as hub

    where = str(entry.config.get("dataset_path"))
    files = "Give the task's data as files: uris"
    if (entry.config.get("dataset_kwargs") or {}).get("trust_remote_code"):
        raise _failure(
            entry.name, f"has a dataset that is made by a script on the hub ({where}), which is never run. {files}."
        )
    try:
        huggingface_hub.HfApi().dataset_info(where, timeout=PATIENCE)
    except hub.RepositoryNotFoundError as error:
        raise _failure(
            entry.name, f"has the dataset {where}, which is not on the hub, or needs an access token. {files}."
        ) from error
    except Exception as error:
        raise _failure(
            entry.name,
            f"takes its dataset {entry.dataset} from the hub, which cannot be reached ({errors.describe(error)}). {files}, or "
            "allow the pods to reach the hub.",
            reasons.Reason.STORAGE_UNAVAILABLE,
        ) from error


# --- Its questions ---


def _fix_questions(built: Any, maximum: int, seed: int) -> None:
    """Chooses the questions, and fixes them."""
    docs = built.eval_docs
    chosen = contenders.choose(list(range(len(docs))), maximum, seed)
    split = built.config.test_split or built.config.validation_split
    built.dataset = {split: docs.select(chosen)}
    built.config.process_docs = None
    built.task_docs = built.eval_docs


def _build_requests(task: Task) -> None:
    """Builds all requests once. Raises Failure for a question that the task cannot use."""
    task.built.set_fewshot_seed(FEW_SHOT_SEED)
    try:
        with silenced():
            task.built.build_all_requests()
    except Exception as error:
        raise _misfit(task.entry, list(task.built.eval_docs), error) from error


def _misfit(entry: catalogue.Entry, found: list[Any], error: Exception) -> errors.Failure:
    fields = ", ".join(list(found[0])[:12]) if found else "none"
    return _failure(
        entry.name,
        f"cannot build questions from these rows, with the fields {fields}: {errors.describe(error)}. They must have "
        f"the fields of its own dataset: {entry.dataset}.",
    )


def _failure(name: str, problem: str, reason: reasons.Reason = reasons.Reason.DATASET_INVALID) -> errors.Failure:
    return errors.Failure(reason, f"evaluation.harness.tasks: {name} {problem}")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Discards what the package prints, as its progress bars."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield
