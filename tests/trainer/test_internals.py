"""What we use of packages beyond their promises: docs/internals.md is the list, and each of its names is checked here."""

import ast
import functools
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "internals.md").read_text()
CODE = ("operator/finetune_operator", "trainer-image/finetune_trainer", "trainer-image/finetune_cli")
PROJECTS = {"Kopf": "kopf", "The Kubernetes client": "kubernetes", "PEFT": "peft", "lm-evaluation-harness": "lm-eval"}
"""Headings of the page whose project has another name."""
PACKAGES = ("kopf", "kubernetes", "transformers", "peft", "bitsandbytes", "lm_eval")
"""Imported at their top these are their public API; torch has public modules at all depths."""
EXAMPLES = ("llama", "mistral", "qwen3", "gemma2", "gemma3", "tuned", "adapted", "quantised", "settings", "answer")


def lines() -> Iterator[tuple[str, list[str], list[str]]]:
    """Of each line of a table: the heading above it, the names, the files."""
    heading = ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| `"):
            what, where, *_ = line.strip("|").split(" | ")
            yield heading, re.findall(r"`([^`]+)`", what), re.findall(r"`([^`]+)`", where)


NAMES = {name: files for _, names, files in lines() for name in names}


@functools.cache
def example(name: str) -> Any:
    """One of the objects with which a name of the page may begin."""
    from tests.trainer import decoders

    families = {
        "llama": "llama 3",
        "mistral": "mistral, sliding window",
        "qwen3": "qwen 3",
        "gemma2": "gemma 2, soft-capping",
        "gemma3": "gemma 3, alternating windows",
    }
    if name.endswith("_layer"):
        return example(name.removesuffix("_layer")).base_model.layers[0]
    match name:
        case "tuned":
            return decoders.made(decoders.FAMILIES["llama 3"]())
        case "adapted":
            return example("tuned").get_base_model().base_model.layers[0].self_attn.q_proj
        case "quantised":
            import bitsandbytes

            return bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4")
        case "settings":
            import kopf

            return kopf.OperatorSettings()
        case "answer":
            from kubernetes.aio.client import rest

            return rest.RESTResponse(SimpleNamespace(status=200, reason="OK"))
        case _:
            return decoders.made(decoders.FAMILIES[families[name]]()).get_base_model()


def resolved(path: str) -> Any:
    """What a dotted path names. `x()` in it makes an object of the class x."""
    head, *rest = path.split(".")
    value = example(head) if head.removesuffix("_layer") in EXAMPLES else importlib.import_module(head)
    for number, part in enumerate(rest):
        if inspect.ismodule(value) and not hasattr(value, part.removesuffix("()")):
            value = importlib.import_module(".".join([head, *rest[: number + 1]]))
            continue
        value = getattr(value, part.removesuffix("()"))
        value = value() if part.endswith("()") else value
    return value


def parameters(value: Any) -> set[str]:
    if hasattr(value, "_schema"):  # an operator of torch
        return {argument.name for argument in value._schema.arguments}
    return set(inspect.signature(value).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_private_names_that_we_use_still_exist(name: str) -> None:
    path, wanted = re.fullmatch(r"(.*?)(?:\(([\w, ]+)\))?", name).groups()  # type: ignore[union-attr]
    value = resolved(path)
    if wanted:
        assert set(wanted.split(", ")) <= parameters(value), f"{path} has the parameters {sorted(parameters(value))}"


def test_every_name_is_used_in_the_files_of_its_line() -> None:
    for name, files in NAMES.items():
        words = re.sub(r"\([\w, ]+\)$", "", name).replace(".default", "").removesuffix(".weight").split(".")
        last = words[-2] if words[-1] in {"out", "grad_input"} else words[-1]
        assert files, f"the line of {name} names no file"
        for file in files:
            assert re.search(rf"\b{last}\b", (REPOSITORY / file).read_text()), f"{file} does not use {name} any more"


def test_each_package_has_the_bound_that_the_page_says() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    required = dict(
        re.fullmatch(r"([\w-]+)(.*)", one).groups() for extra in extras.values() for one in extra if "[" not in one
    )  # type: ignore[union-attr]
    headings = {heading for heading, _, _ in lines()}
    assert len(headings) == 8
    for heading in headings:
        title, bound = re.fullmatch(r"(.+): `(.+)`", heading).groups()  # type: ignore[union-attr]
        assert required[PROJECTS.get(title, title)].partition(";")[0] == bound
        assert re.search(r"<|==", bound)


def used(tree: ast.AST) -> Iterator[str]:
    """Dotted names of a file that reach into a package: deep imports, private parts, torch's operators, Kopf's settings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES and "." in alias.name
            )
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", ast.unparse(node)):
            root, *parts = ast.unparse(node).split(".")
            private = any(part.startswith("_") and not part.startswith("__") for part in parts)
            operator = parts[:2] == ["ops", "aten"] and len(parts) > 3
            if root in (*PACKAGES, "torch") and (private or operator):
                yield ".".join([root, *parts])
            elif root == "options" and len(parts) > 1 and isinstance(node.ctx, ast.Store):
                yield ".".join(["settings", *parts])


def test_a_use_beyond_promises_that_no_line_names_is_refused() -> None:
    listed = [re.sub(r"\([\w, ]*\)", "", name) for name in NAMES]
    seen = set()
    for folder in CODE:
        for file in (REPOSITORY / folder).rglob("*.py"):
            for name in used(ast.parse(file.read_text())):
                seen.add(name)
                known = any(one == name or one.startswith(f"{name}.") or name.startswith(f"{one}.") for one in listed)
                assert known, f"{file.relative_to(REPOSITORY)} uses {name}, which docs/internals.md does not list"
    assert {"torch.ops.aten._softmax.out", "lm_eval.tasks._yaml_loader", "settings.posting.enabled"} <= seen
