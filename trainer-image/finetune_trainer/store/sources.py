"""From a base model's source to a local folder: hf:// through huggingface_hub, s3:// through storage, others in place.

Used by preflight (configuration and tokenizer only), train and evaluate (everything), and fetch. Free of torch.
"""

import json
import os
import pathlib
from typing import Any

from finetune_api import reasons, run
from finetune_trainer.process import errors, log
from finetune_trainer.store import files, locks, origin, storage
from finetune_trainer.store import weights as contents


def resolve(
    base: run.ResolvedBaseModel, store: storage.Storage, into: pathlib.Path, *, weights: bool = True
) -> pathlib.Path:
    """The model's files in a local folder: `into`, or where they are mounted or the pod's init container put them. Raises
    Failure(ModelInvalid and the like)."""
    scheme, _, rest = base.source.partition("://")
    fetched = os.environ.get(run.FETCHED)
    if fetched and weights and scheme in ("hf", "s3"):
        folder = pathlib.Path(fetched)
        locks.use(folder)
    elif scheme == "hf":
        folder = _hub(base, rest, into, weights)
    elif scheme == "s3":
        folder = _bucket(base, store, into, weights)
    elif scheme == "pvc":
        folder = pathlib.Path(os.environ.get("FINETUNE_MODEL_PATH", run.MODEL_PATH))
    else:
        folder = files.path_of(base.source)
    check(folder, base.source, weights=weights or scheme in ("pvc", "file"))
    return folder


def _bucket(base: run.ResolvedBaseModel, store: storage.Storage, into: pathlib.Path, weights: bool) -> pathlib.Path:
    found = origin.of(base, store)
    for file in found.files:
        path = into / file.name
        wanted = weights or not origin.matches(file.name, origin.WEIGHTS)
        if wanted and not (path.is_file() and path.stat().st_size == file.size):
            found.store.download(f"{base.source.rstrip('/')}/{file.name}", path)
    return into


def _hub(base: run.ResolvedBaseModel, name: str, into: pathlib.Path, weights: bool) -> pathlib.Path:
    import huggingface_hub

    patterns = [*origin.SMALL, *((origin.WEIGHTS,) if weights else ())]
    log.info("downloading the base model from the hub", model=name, revision=base.revision or "main", weights=weights)
    with origin.explained(base):
        if not weights:
            names = huggingface_hub.HfApi().list_repo_files(name, revision=base.revision)
            if not any(origin.matches(file, origin.WEIGHTS) for file in names):
                raise origin.no_weights(base.source, names)
        folder = huggingface_hub.snapshot_download(
            name, revision=base.revision, allow_patterns=patterns, ignore_patterns=list(origin.IGNORED), local_dir=into
        )
    return pathlib.Path(folder)


def check(folder: pathlib.Path, source: str, *, weights: bool = True) -> dict[str, Any]:
    """The model's config.json, after checking that the folder is one we load. Raises Failure(ModelInvalid)."""
    try:
        data = (folder / "config.json").read_bytes()
        names = sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{source} has no config.json; expected a folder in the transformers layout. Correct the BaseModel's source.",
        ) from None
    except OSError as error:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID, f"{source}: config.json cannot be read: {error.strerror}"
        ) from None
    contents.refuse_pointer("config.json", data, source)
    try:
        config: dict[str, Any] = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID, f"{source}: config.json is not valid JSON: {error}"
        ) from error
    if not isinstance(config, dict):
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{source}: config.json has a {type(config).__name__}, expected an object with model_type and sizes",
        )
    if "auto_map" in config:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{source} needs its own code (auto_map in config.json), which is never run. Choose a model that "
            "transformers supports.",
        )
    if weights and not any(origin.matches(name, origin.WEIGHTS) for name in names):
        raise origin.no_weights(source, names)
    for name in names:
        if origin.matches(name, *origin.SMALL, origin.WEIGHTS) and (folder / name).is_file():
            contents.check(folder / name, source, whole=weights)
    return config
