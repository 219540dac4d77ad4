"""A task with its questions: the package's own object, built of the entry and of rows from files, or of its dataset on the hub.

Here the package's code runs for the first time. The questions are fixed when it is built: functions of a task may shuffle, and
both models must be asked the same.
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
"""Seconds for the hub to say that it has a dataset."""

FEW_SHOT_SEED, RANDOM_SEED, NUMPY_SEED = 1234, 0, 1234
"""Those of lm-evaluation-harness, so that its prompts are these."""

QUIET = ("lm_eval", "lm-eval", "datasets", "fsspec", "evaluate")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task that can be played."""

    entry: catalogue.Entry
    built: Any
    """The package's object; `built.eval_docs` are the questions that are asked."""
    shots: int

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


def at_hand(spec: run.Run, wanted: job.Harness, store: storage.Storage) -> tuple[list[Task], list[str]]:
    """The tasks whose data is there, and what is the matter with the others: no gate waits for them.

    Raises Failure for tasks that may not run.
    """
    problems: list[str] = []
    found = list(_each(spec, wanted, store, problems))
    for problem in problems:
        log.warning("the evaluation goes on without a benchmark", problem=problem)
    return found, problems


def _each(
    spec: run.Run, wanted: job.Harness, store: storage.Storage, problems: list[str] | None = None
) -> Iterator[Task]:
    """The tasks one by one; the failures of data are added to `problems`, where that is given."""
    entries = catalogue.by_name(wanted)
    shots = {task.name: _shots(task, entries[task.name]) for task in wanted.tasks}
    quieten()
    for task in wanted.tasks:
        try:
            built = _build(task, entries[task.name], shots[task.name], store)
            _fix(built, wanted.maximum_examples, spec.training.seed)
            made = Task(entries[task.name], built, shots[task.name])
            _try(made)
        except errors.Failure as failure:
            if problems is None or failure.reason is reasons.Reason.INVALID_SPEC:
                raise
            problems.append(failure.message)
            continue
        log.info("a benchmark is there", task=task.name, questions=made.questions, few_shot=made.shots)
        yield made


def quieten() -> None:
    """Before the package is imported: no progress bars, no words below an error, nothing told to anybody."""
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
        raise _failure(
            task.name, "is made to be asked without examples; leave fewShot out", reasons.Reason.INVALID_SPEC
        )
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
        _reach(entry)
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
            f"cannot be built of its dataset on the hub, {entry.dataset} ({errors.describe(error)}); give its data in files: "
            "uris",
        ) from error


def _of_files(config: dict[str, Any], parts: dict[str, list[Any]], shots: int, name: str) -> dict[str, Any]:
    """What a configuration says differently for rows of files. Raises Failure."""
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
                raise _failure(name, f"cannot be read: {row.source} is no object with the fields of a question")
            found.append(row.value)
    if not found:
        raise _failure(name, f"has no questions: {', '.join(uris[:3])} is empty")
    return found


def _reach(entry: catalogue.Entry) -> None:
    """Asks the hub whether it has the task's dataset. Raises Failure, soon, where there is no way to it."""
    import huggingface_hub
    import huggingface_hub.errors as hub

    where = str(entry.config.get("dataset_path"))
    files = "Give the task's data in files: uris"
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
            "let the pods out to the hub.",
            reasons.Reason.STORAGE_UNAVAILABLE,
        ) from error


# --- Its questions ---


def _fix(built: Any, maximum: int, seed: int) -> None:
    """Chooses the questions, and keeps them as they are now."""
    docs = built.eval_docs
    chosen = contenders.choose(list(range(len(docs))), maximum, seed)
    split = built.config.test_split or built.config.validation_split
    built.dataset = {split: docs.select(chosen)}
    built.config.process_docs = None
    built.task_docs = built.eval_docs


def _try(task: Task) -> None:
    """Makes all that will be asked, once. Raises Failure for a question that the task cannot make anything of."""
    task.built.set_fewshot_seed(FEW_SHOT_SEED)
    try:
        with silence():
            task.built.build_all_requests()
    except Exception as error:
        raise _misfit(task.entry, list(task.built.eval_docs), error) from error


def _misfit(entry: catalogue.Entry, found: list[Any], error: Exception) -> errors.Failure:
    fields = ", ".join(list(found[0])[:12]) if found else "none"
    return _failure(
        entry.name,
        f"cannot make questions of these rows, with the fields {fields}: {errors.describe(error)}. They must be as in its own "
        f"dataset: {entry.dataset}.",
    )


def _failure(name: str, problem: str, reason: reasons.Reason = reasons.Reason.DATASET_INVALID) -> errors.Failure:
    return errors.Failure(reason, f"evaluation.harness.tasks: {name} {problem}")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What the package prints goes nowhere: its bars are drawn by whoever counts, not asked whether to."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield
