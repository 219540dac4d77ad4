"""The init container of a server, and of stages whose base model comes from a cache: base model and adapter, checked, as local
files where vLLM and the stage find them.

Runs in the slim image. Repeating it costs nothing when the files are complete.
"""

import dataclasses
import pathlib
import shutil

from finetune_api import layout, outcome, reasons, run
from finetune_trainer.process import errors, log
from finetune_trainer.store import basecache, folders, sources, storage


@dataclasses.dataclass(frozen=True)
class Cache:
    """The folder of base models that pods share; `limit`: bytes of all of them."""

    root: pathlib.Path
    limit: int | None = None


def fetch(
    spec: run.Run | run.PoolRun,
    uri: str | None,
    sha256: str,
    base_to: pathlib.Path,
    adapter_to: pathlib.Path,
    cache: Cache | None = None,
) -> outcome.Outcome:
    """Puts the base model (unless it is mounted) into `base_to`, the adapter, if there is one, into `adapter_to`. With a cache,
    `base_to` is a link into it. Raises Failure."""
    store = storage.of(spec.storage, 30)
    scheme = spec.base_model.source.partition("://")[0]
    message = f"base model {spec.base_model.source} is at {base_to}"
    if scheme in ("hf", "s3"):
        if cache is None:
            sources.resolve(spec.base_model, store, base_to)
        else:
            _link(base_to, basecache.provide(spec.base_model, store, cache.root, cache.limit))
        log.info("base model fetched", source=spec.base_model.source, folder=str(base_to))
    if uri is not None:
        found = adapter(store, uri.rstrip("/"), sha256, adapter_to)
        message = f"adapter {uri} of {found.bytes} bytes is at {adapter_to}"
        log.info("adapter fetched", adapter=uri, folder=str(adapter_to), bytes=found.bytes)
    return outcome.Outcome(stage="fetch", message=message)


def _link(base_to: pathlib.Path, folder: pathlib.Path) -> None:
    new = base_to.with_name(f".{base_to.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(folder)
    new.replace(base_to)


def adapter(store: storage.Storage, uri: str, sha256: str, to: pathlib.Path) -> folders.Manifest:
    """The adapter's folder as it was saved, chat template included. The manifest appears last."""
    mark = to / layout.MANIFEST
    if mark.is_file():
        present = folders.parse(mark.read_bytes(), str(to))
        if present.sha256 == sha256:
            return present
    to.mkdir(parents=True, exist_ok=True)
    partial = to / ".part"  # `to` may be a mount: files can be renamed only within it
    shutil.rmtree(partial, ignore_errors=True)
    try:
        found = folders.load(store, uri, partial, expected=sha256)
    except errors.NotFound:
        raise errors.Failure(
            reasons.Reason.ADAPTER_INCOMPATIBLE, f"{uri} has no complete adapter; was it deleted from the bucket?"
        ) from None
    (partial / layout.MANIFEST).write_bytes(store.read(f"{uri}/{layout.MANIFEST}"))
    mark.unlink(missing_ok=True)
    for file in found.files:
        target = to / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        (partial / file.path).replace(target)
    (partial / layout.MANIFEST).replace(mark)
    shutil.rmtree(partial, ignore_errors=True)
    return found
