"""Whether the files of a model folder are what their names say: complete, and not pointers to something else. Free of torch.

`sources` asks before anything is loaded, so that a model that was fetched in part fails in preflight and not on a GPU.
"""

import json
import pathlib

from finetune_api import reasons
from finetune_trainer.process import errors

SMALLEST = 1024
"""Bytes below which a file may be a pointer."""

POINTER = b"version https://git-lfs"

LONGEST_HEADER = 100 * 2**20
"""Bytes of the longest header that safetensors allows."""


def check(path: pathlib.Path, source: str, *, whole: bool) -> None:
    """Raises Failure(ModelInvalid) for a pointer, and with `whole` for weights that are cut off or missing."""
    size = path.stat().st_size
    if size < SMALLEST:
        refuse_pointer(path.name, path.read_bytes(), source)
    if not whole:
        return
    problem = None
    if path.suffix == ".safetensors":
        problem = _cut(path, size)
    elif path.name.endswith(".safetensors.index.json"):
        problem = _missing(path)
    if problem:
        raise errors.Failure(reasons.Reason.MODEL_INVALID, f"{source}: {path.name} {problem}; copy the model again")


def refuse_pointer(name: str, data: bytes, source: str) -> None:
    """Raises Failure(ModelInvalid) for the text that Git LFS leaves in the place of a file that was not downloaded."""
    if data.startswith(POINTER):
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{source}: {name} is a Git LFS pointer of {len(data)} bytes and not the file itself. Run `git lfs pull` in the "
            "model's folder, and copy it again where it was copied from there.",
        )


def _cut(path: pathlib.Path, size: int) -> str | None:
    """What is wrong with a file of safetensors, by its header: 8 bytes with the header's length, JSON, then the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(LONGEST_HEADER, size):
            return f"is not a file of safetensors ({size} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
            end = 8 + length + max(ends, default=0)
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
            return "is not a file of safetensors: its header cannot be read"
    return f"is cut off: it has {size} bytes, and its header names {end}" if size < end else None


def _missing(path: pathlib.Path) -> str | None:
    """What is wrong with an index of weights that lie in several files."""
    try:
        wanted = set(json.loads(path.read_bytes())["weight_map"].values())
        missing = sorted(name for name in wanted if not (path.parent / name).is_file())
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return "is not an index of weights"
    return f"names {len(wanted)} files, of which {len(missing)} are missing, such as {missing[0]}" if missing else None
