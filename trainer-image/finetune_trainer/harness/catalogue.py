"""The tasks of the installed lm-evaluation-harness that may run here, by name. The package is not imported for it."""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Iterable

from finetune_api import job, reasons
from finetune_trainer.harness import description, refusal
from finetune_trainer.process import errors

NAMED = re.compile(rb"^[\"']?(task|group)[\"']?:[ \t]*[\"']?([^\s\"'\[{#][^\n\"'#]*)", re.MULTILINE)
"""A task's or a group's name at the beginning of a line; not a list of a group's tasks."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A task that may run here."""

    name: str
    file: pathlib.Path
    config: description.Config
    """As written, with what it includes; functions are `description.Function`."""

    @property
    def shots(self) -> int:
        """Few-shot examples before each question."""
        return int(self.config.get("num_fewshot") or 0)

    @property
    def split(self) -> str | None:
        """The split of its own dataset that the questions come from."""
        found: str | None = self.config.get("test_split") or self.config.get("validation_split")
        return found

    @property
    def dataset(self) -> str:
        """Its own dataset, as text: allenai/ai2_arc, ARC-Easy, test."""
        parts = (self.config.get("dataset_path"), self.config.get("dataset_name"), self.split)
        return ", ".join(str(part) for part in parts if part)


def find(wanted: Iterable[str]) -> list[Entry]:
    """The tasks of these names. Raises Failure(InvalidSpec) for the first that is unknown or may not run here."""
    names = list(wanted)
    files, groups = _files(names)
    found = []
    for name in names:
        if name not in files:
            raise _failure(name, _unknown(name, files, groups))
        config = description.read(files[name])
        if problem := refusal.of(config):
            raise _failure(
                name,
                f"cannot run here: {problem}. Choose another task, or run this one on the served endpoint with lm_eval.",
            )
        found.append(Entry(name, files[name], config))
    return found


def _failure(name: str, problem: str) -> errors.Failure:
    return errors.Failure(reasons.Reason.INVALID_SPEC, f"evaluation.harness.tasks: {name} {problem}")


def _files(names: list[str]) -> tuple[dict[str, pathlib.Path], set[str]]:
    """The files of tasks, and the names of groups, read until each of `names` is found.

    There are more than ten thousand files: those with a similar name come first.
    """
    begins = {re.split(r"[^a-z0-9]", name.lower())[0] for name in names}
    paths = sorted(description.root().rglob("*.yaml"))
    paths.sort(key=lambda path: not any(part.lower().startswith(tuple(begins)) for part in path.parts[-3:]))
    found: dict[str, pathlib.Path] = {}
    groups: set[str] = set()
    for path in paths:
        for kind, name in NAMED.findall(path.read_bytes()):
            text = name.decode(errors="replace").strip()
            if kind == b"task":
                found.setdefault(text, path)
            else:
                groups.add(text)
        if all(name in found for name in names):
            break
    return found, groups


def _unknown(name: str, files: Iterable[str], groups: set[str]) -> str:
    tasks = sorted(files)
    if name in groups:
        inside = [one for one in tasks if one.startswith(f"{name}_")]
        such = f", for example {', '.join(inside[:5])}" if inside else ""
        return f"is a group of tasks: name single tasks{such}"
    near = difflib.get_close_matches(name, tasks, 5)
    known = (
        f"similar ones are {', '.join(near)}" if near else f"there are {len(tasks)}, for example arc_easy and hellaswag"
    )
    return f"is not a task of lm-evaluation-harness in this release; {known}"


def by_name(harness: job.Harness) -> dict[str, Entry]:
    """The entries of a job's tasks. Raises Failure."""
    names = [task.name for task in harness.tasks]
    return dict(zip(names, find(names), strict=True))
