"""Why a task may not run here: its description, and its functions, read as text before they are imported.

A task is refused if its own code downloads code or data, opens files, starts programs, evaluates text as code, or needs a package
that is not installed. That is not a sandbox: the package is pinned by its hash. It excludes code that a question or an answer
could trigger.
"""

import ast
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from finetune_trainer.harness import description

MODULES = frozenset({
    "__future__", "abc", "ast", "collections", "copy", "dataclasses", "datasets", "enum", "functools", "hashlib", "html",
    "itertools", "json", "logging", "math", "numpy", "pandas", "random", "re", "regex", "rouge_score", "sacrebleu", "scipy",
    "sklearn", "statistics", "string", "sympy", "sys", "textwrap", "tqdm", "typing", "typing_extensions", "unicodedata",
    "warnings", "word2number",
})  # fmt: skip
"""What a task's functions may import, besides modules of the package, which are checked in the same way."""

TRUSTED = ("lm_eval.api", "lm_eval.filters", "lm_eval.utils", "lm_eval.config")
"""Modules of the package that are always imported."""

CALLS = frozenset({"eval", "exec", "compile", "open", "__import__", "input", "breakpoint"})

ATTRIBUTES = frozenset({"load_dataset", "load_from_disk", "read_csv", "read_json", "read_parquet", "read_pickle"})
"""Ways to files and the hub through allowed packages."""

FETCHED = "it downloads a metric as code"


def of(config: description.Config) -> str | None:
    """Why a task may not run here; None where it may."""
    return next((problem for rule in RULES if (problem := rule(config))), None)


def made_by_a_class(config: description.Config) -> str | None:
    return "it is a Python class, not a description" if "class" in config else None


def runs_what_the_model_wrote(config: description.Config) -> str | None:
    return "it runs code that the model wrote" if config.get("unsafe_code") else None


def sees_or_hears(config: description.Config) -> str | None:
    return "it asks about images or sounds" if config.get("doc_to_image") or config.get("doc_to_audio") else None


def makes_its_own_data(config: description.Config) -> str | None:
    return "it makes or downloads its questions with its own code" if config.get("custom_dataset") else None


def takes_prompts_from_elsewhere(config: description.Config) -> str | None:
    return "it takes its prompts from the package promptsource" if config.get("use_prompt") else None


def samples(config: description.Config) -> str | None:
    how = config.get("generation_kwargs") or {}
    drawn = how.get("do_sample") and float(how.get("temperature", 1.0)) > 0
    return "its answers are sampled, but here they are greedy" if drawn or config.get("repeats", 1) > 1 else None


def fetches_a_metric(config: description.Config) -> str | None:
    listed = [one["metric"] for one in config.get("metric_list") or []]
    if any(one.get("hf_evaluate") for one in config.get("metric_list") or []):
        return FETCHED
    if isinstance(config.get("process_results"), description.Function):
        return None
    strange = [one for one in listed if isinstance(one, str) and one not in metrics()]
    return f"{FETCHED}: {strange[0]}" if strange else None


def calls_what_it_may_not(config: description.Config) -> str | None:
    seen: set[pathlib.Path] = set()
    return next((problem for function in _functions(config) if (problem := hazard(function.file, seen))), None)


RULES: tuple[Callable[[description.Config], str | None], ...] = (
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
    """The package's own metrics; for any other name it would download code from the hub."""
    tree = ast.parse((description.root().parent / "api" / "metrics.py").read_text(encoding="utf-8"))
    return frozenset(
        str(keyword.value.value)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register_metric"
        for keyword in call.keywords
        if keyword.arg == "metric" and isinstance(keyword.value, ast.Constant)
    )


def _functions(value: Any) -> Iterator[description.Function]:
    if isinstance(value, description.Function):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _functions(inner)


def hazard(file: pathlib.Path, seen: set[pathlib.Path]) -> str | None:
    """Why a Python file, or one of the package that it imports, is refused; `seen`: files already checked."""
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
    if name.startswith(f"{description.PACKAGE}.tasks."):
        inner = description.root().parent.parent / f"{name.replace('.', '/')}.py"
        return hazard(inner, seen) if inner.is_file() else f"its {file.name} imports {name}"
    if any(name == one or name.startswith(f"{one}.") for one in TRUSTED):
        return None
    top = name.partition(".")[0]
    if top not in MODULES:
        return f"its {file.name} imports {name or '.'}"
    there = top in sys.stdlib_module_names or importlib.util.find_spec(top) is not None
    return None if there else f"its {file.name} needs the package {top}"
