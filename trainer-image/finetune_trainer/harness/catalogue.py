"""The tasks that the installed lm-evaluation-harness has, and which of them may run here. Nothing is imported or run for it.

A task is a file of YAML that names functions in Python files beside it. Both are read as text first: a task is refused that
fetches code or data by itself, reads files, starts programs, evaluates text as code, or needs a package that is not here. That
is no sandbox: the package is pinned by its hash. It keeps out what a question or an answer could make run.
"""

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import yaml

from finetune_api import job, reasons
from finetune_trainer import errors

PACKAGE = "lm_eval"

MODULES = frozenset({
    "__future__", "abc", "ast", "collections", "copy", "dataclasses", "datasets", "enum", "functools", "hashlib", "html",
    "itertools", "json", "logging", "math", "numpy", "pandas", "random", "re", "regex", "rouge_score", "sacrebleu", "scipy",
    "sklearn", "statistics", "string", "sympy", "sys", "textwrap", "tqdm", "typing", "typing_extensions", "unicodedata",
    "warnings", "word2number",
})  # fmt: skip
"""What a task's functions may import, besides modules of the package, which are looked at in the same way."""

TRUSTED = ("lm_eval.api", "lm_eval.filters", "lm_eval.utils", "lm_eval.config")
"""Modules of the package that are imported in any case."""

CALLS = frozenset({"eval", "exec", "compile", "open", "__import__", "input", "breakpoint"})

ATTRIBUTES = frozenset({"load_dataset", "load_from_disk", "read_csv", "read_json", "read_parquet", "read_pickle"})
"""Ways to files and the hub through packages that are allowed."""

NAMED = re.compile(rb"^[\"']?(task|group)[\"']?:[ \t]*[\"']?([^\s\"'\[{#][^\n\"'#]*)", re.MULTILINE)
"""A task's or a group's name at the beginning of a line; a list of a group's tasks is none."""

FETCHED = "it fetches a metric as code"

Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Function:
    """!function in a task's YAML: a name in a Python file."""

    file: pathlib.Path
    name: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A task that may run here."""

    name: str
    file: pathlib.Path
    config: Config
    """As written, with what it includes; functions are `Function`."""

    @property
    def shots(self) -> int:
        """Questions with answers that it shows before each question."""
        return int(self.config.get("num_fewshot") or 0)

    @property
    def split(self) -> str | None:
        """The split of its own dataset that is asked."""
        found: str | None = self.config.get("test_split") or self.config.get("validation_split")
        return found

    @property
    def dataset(self) -> str:
        """Its own dataset, for people: allenai/ai2_arc, ARC-Easy, test."""
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
        config = read(files[name])
        if problem := refusal(config):
            raise _failure(
                name,
                f"cannot run here: {problem}. Take another task, or run this one on the served endpoint with lm_eval.",
            )
        found.append(Entry(name, files[name], config))
    return found


def _failure(name: str, problem: str) -> errors.Failure:
    return errors.Failure(reasons.Reason.INVALID_SPEC, f"evaluation.harness.tasks: {name} {problem}")


def root() -> pathlib.Path:
    """The folder of the package's tasks."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise errors.Failure(
            reasons.Reason.INVALID_SPEC,
            f"evaluation.harness needs the package {PACKAGE}, which is not installed here: pip install "
            "'finetune-operator[trainer]'",
        )
    return pathlib.Path(spec.origin).parent / "tasks"


def _files(names: list[str]) -> tuple[dict[str, pathlib.Path], set[str]]:
    """The files of tasks, and the names of groups: of all, or only until each of `names` is there.

    There are more than ten thousand files: those that begin like a name come first.
    """
    begins = {re.split(r"[^a-z0-9]", name.lower())[0] for name in names}
    paths = sorted(root().rglob("*.yaml"))
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
        return f"is a group of tasks: name the tasks that you want{such}"
    near = difflib.get_close_matches(name, tasks, 5)
    known = (
        f"near ones are {', '.join(near)}" if near else f"there are {len(tasks)}, for example arc_easy and hellaswag"
    )
    return f"is no task of lm-evaluation-harness in this release; {known}"


# --- What a task says ---


class _Loader(yaml.SafeLoader):
    """YAML with !function, which is noted and not followed."""

    folder: pathlib.Path


def _function(loader: _Loader, node: yaml.ScalarNode) -> Function:
    module, _, name = str(loader.construct_scalar(node)).rpartition(".")
    return Function(loader.folder / f"{module.replace('.', '/')}.py", name)


_Loader.add_constructor("!function", _function)


def read(path: pathlib.Path) -> Config:
    """A task's configuration, completed by what it includes."""
    loader = _Loader(path.read_bytes())
    loader.folder = path.parent
    try:
        found: Config = loader.get_single_data()
    finally:
        loader.dispose()
    included = found.pop("include", [])
    merged: Config = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= read(path.parent / name)
    return merged | found


# --- What speaks against it ---


def refusal(config: Config) -> str | None:
    """Why a task may not run here; None: it may."""
    return next((problem for rule in RULES if (problem := rule(config))), None)


def made_by_a_class(config: Config) -> str | None:
    return "it is a class of its own, not a description" if "class" in config else None


def runs_what_the_model_wrote(config: Config) -> str | None:
    return "it runs code that the model wrote" if config.get("unsafe_code") else None


def sees_or_hears(config: Config) -> str | None:
    return "it asks about images or sounds" if config.get("doc_to_image") or config.get("doc_to_audio") else None


def makes_its_own_data(config: Config) -> str | None:
    return "it makes or fetches its questions by code of its own" if config.get("custom_dataset") else None


def takes_prompts_from_elsewhere(config: Config) -> str | None:
    return "it takes its prompts from the package promptsource" if config.get("use_prompt") else None


def samples(config: Config) -> str | None:
    how = config.get("generation_kwargs") or {}
    drawn = how.get("do_sample") and float(how.get("temperature", 1.0)) > 0
    return "its answers are sampled, and here they are greedy" if drawn or config.get("repeats", 1) > 1 else None


def fetches_a_metric(config: Config) -> str | None:
    listed = [one["metric"] for one in config.get("metric_list") or []]
    if any(one.get("hf_evaluate") for one in config.get("metric_list") or []):
        return FETCHED
    if isinstance(config.get("process_results"), Function):
        return None
    strange = [one for one in listed if isinstance(one, str) and one not in metrics()]
    return f"{FETCHED}: {strange[0]}" if strange else None


def calls_what_it_may_not(config: Config) -> str | None:
    seen: set[pathlib.Path] = set()
    return next((problem for function in _functions(config) if (problem := hazard(function.file, seen))), None)


RULES: tuple[Callable[[Config], str | None], ...] = (
    made_by_a_class,
    runs_what_the_model_wrote,
    sees_or_hears,
    makes_its_own_data,
    takes_prompts_from_elsewhere,
    samples,
    fetches_a_metric,
    calls_what_it_may_not,
)


def metrics() -> frozenset[str]:
    """The metrics that the package has itself; by any other name it would fetch code from the hub."""
    tree = ast.parse((root().parent / "api" / "metrics.py").read_text(encoding="utf-8"))
    return frozenset(
        str(keyword.value.value)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register_metric"
        for keyword in call.keywords
        if keyword.arg == "metric" and isinstance(keyword.value, ast.Constant)
    )


def _functions(value: Any) -> Iterator[Function]:
    if isinstance(value, Function):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _functions(inner)


def hazard(file: pathlib.Path, seen: set[pathlib.Path]) -> str | None:
    """What a Python file, or one that it imports of the package, does that it may not; `seen`: files that are known."""
    if file in seen:
        return None
    seen.add(file)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        return f"its {file.name} cannot be read ({type(error).__name__})"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in CALLS:
            return f"its {file.name} uses {node.id}"
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            return f"its {file.name} uses {node.attr}"
        for name in _imported(node):
            if problem := _import(name, file, seen):
                return problem
    return None


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "")]
    return []


def _import(name: str, file: pathlib.Path, seen: set[pathlib.Path]) -> str | None:
    if name.startswith(f"{PACKAGE}.tasks."):
        inner = root().parent.parent / f"{name.replace('.', '/')}.py"
        return hazard(inner, seen) if inner.is_file() else f"its {file.name} imports {name}"
    if any(name == one or name.startswith(f"{one}.") for one in TRUSTED):
        return None
    top = name.partition(".")[0]
    if top not in MODULES:
        return f"its {file.name} imports {name or '.'}"
    there = top in sys.stdlib_module_names or importlib.util.find_spec(top) is not None
    return None if there else f"its {file.name} needs the package {top}"


def by_name(harness: job.Harness) -> dict[str, Entry]:
    """The entries of a job's tasks. Raises Failure."""
    names = [task.name for task in harness.tasks]
    return dict(zip(names, find(names), strict=True))
