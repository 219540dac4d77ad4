"""The YAML description of a task of the installed lm-evaluation-harness. The package is not imported for it."""

import dataclasses
import importlib.util
import pathlib
from typing import Any

import yaml

from finetune_api import reasons
from finetune_trainer.process import errors

PACKAGE = "lm_eval"

Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Function:
    """!function in a task's YAML: a name in a Python file."""

    file: pathlib.Path
    name: str


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


class _Loader(yaml.SafeLoader):
    """YAML with !function, which is recorded but not imported."""

    folder: pathlib.Path


def _function(loader: _Loader, node: yaml.ScalarNode) -> Function:
    module, _, name = str(loader.construct_scalar(node)).rpartition(".")
    return Function(loader.folder / f"{module.replace('.', '/')}.py", name)


_Loader.add_constructor("!function", _function)


def read(path: pathlib.Path) -> Config:
    """A task's configuration, merged with the files that it includes."""
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
