"""From a base model's source to a local folder: hf:// through huggingface_hub, s3:// through storage, others in place.

Used by preflight (configuration and tokenizer only), train and evaluate (everything), and fetch. Free of torch.
"""

import fnmatch
import json
import os
import pathlib
from typing import Any

from finetune_api import reasons, run
from finetune_trainer.process import errors, log
from finetune_trainer.store import files, storage
from finetune_trainer.store import weights as contents

SMALL = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a tokenizer and of a configuration."""

WEIGHTS = "*.safetensors"

IGNORED = ("consolidated*", "original/*")
"""Second copies of the weights in other layouts, which some publishers add."""


def resolve(
    base: run.ResolvedBaseModel, store: storage.Storage, into: pathlib.Path, *, weights: bool = True
) -> pathlib.Path:
    """The model's files in a local folder: `into`, or where they are mounted. Raises Failure(ModelInvalid and the like)."""
    scheme, _, rest = base.source.partition("://")
    if scheme == "hf":
        folder = _hub(base, rest, into, weights)
    elif scheme == "s3":
        folder = _bucket(base.source, storage.of_base_model(base, store), into, weights)
    elif scheme == "pvc":
        folder = pathlib.Path(os.environ.get("FINETUNE_MODEL_PATH", run.MODEL_PATH))
    else:
        folder = files.path_of(base.source)
    check(folder, base.source, weights=weights or scheme in ("pvc", "file"))
    return folder


def _bucket(source: str, store: storage.Storage, into: pathlib.Path, weights: bool) -> pathlib.Path:
    prefix = source.rstrip("/") + "/"
    entries = list(store.entries(prefix, flat=True))
    if not entries:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{source} has no files; expected config.json, tokenizer.json and safetensors. Upload the model or correct "
            "the BaseModel's source.",
        )
    names = [entry.uri.removeprefix(prefix) for entry in entries]
    if not any(_matches(name, WEIGHTS) for name in names):
        raise errors.Failure(reasons.Reason.MODEL_INVALID, _no_weights(source, names))
    for entry, name in zip(entries, names, strict=True):
        if _matches(name, WEIGHTS) and entry.size < contents.SMALLEST:
            contents.refuse_pointer(name, store.read(entry.uri), source)
        path = into / name
        wanted = _matches(name, *SMALL, *((WEIGHTS,) if weights else ()))
        if wanted and not (path.is_file() and path.stat().st_size == entry.size):
            store.download(entry.uri, path)
    return into


def _hub(base: run.ResolvedBaseModel, name: str, into: pathlib.Path, weights: bool) -> pathlib.Path:
    import huggingface_hub
    import huggingface_hub.errors as hub

    patterns = [*SMALL, *((WEIGHTS,) if weights else ())]
    log.info("downloading the base model from the hub", model=name, revision=base.revision or "main", weights=weights)
    try:
        if not weights:
            names = huggingface_hub.HfApi().list_repo_files(name, revision=base.revision)
            if not any(_matches(file, WEIGHTS) for file in names):
                raise errors.Failure(reasons.Reason.MODEL_INVALID, _no_weights(base.source, names))
        folder = huggingface_hub.snapshot_download(
            name, revision=base.revision, allow_patterns=patterns, ignore_patterns=list(IGNORED), local_dir=into
        )
    except hub.GatedRepoError as error:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{base.source} is gated: accept its licence on the hub and set the BaseModel's accessTokenSecret to a Secret "
            "whose key HF_TOKEN may read it.",
        ) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{base.source} at revision {base.revision or 'main'} does not exist on the hub, or needs an access token. "
            "Correct the source, or set accessTokenSecret.",
        ) from error
    except errors.Failure:
        raise
    except Exception as error:
        raise errors.Failure(
            reasons.Reason.STORAGE_UNAVAILABLE,
            f"{base.source} could not be downloaded from the hub ({errors.describe(error)}). Without access to it, copy the "
            "model into S3 or a volume and use an s3:// or pvc:// source.",
        ) from error
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
    if weights and not any(_matches(name, WEIGHTS) for name in names):
        raise errors.Failure(reasons.Reason.MODEL_INVALID, _no_weights(source, names))
    for name in names:
        if _matches(name, *SMALL, WEIGHTS) and (folder / name).is_file():
            contents.check(folder / name, source, whole=weights)
    return config


def _matches(name: str, *kinds: str) -> bool:
    """Whether a file is of one of these kinds, and no second copy."""
    return any(fnmatch.fnmatch(name, kind) for kind in kinds) and not any(
        fnmatch.fnmatch(name, kind) for kind in IGNORED
    )


def _no_weights(source: str, names: list[str]) -> str:
    return (
        f"{source} has no *.safetensors in the transformers layout (found: {', '.join(names[:8])}). Pickled weights are never "
        "loaded; save the model with safetensors."
    )
