"""The server's init container: the base model and the adapter, checked, as local files where vLLM finds them.

Runs in the slim image. Repeating it costs nothing when the files are complete.
"""

import pathlib
import shutil

from finetune_api import layout, outcome, reasons, run
from finetune_trainer.process import errors, log
from finetune_trainer.store import folders, sources, storage


def fetch(spec: run.Run, uri: str, sha256: str, base_to: pathlib.Path, adapter_to: pathlib.Path) -> outcome.Outcome:
    """Puts the base model (unless it is mounted) into `base_to`, the adapter into `adapter_to`. Raises Failure."""
    store = storage.of(spec.storage, 30)
    scheme = spec.base_model.source.partition("://")[0]
    if scheme in ("hf", "s3"):
        sources.resolve(spec.base_model, store, base_to)
        log.info("base model fetched", source=spec.base_model.source, folder=str(base_to))
    found = _adapter(store, uri.rstrip("/"), sha256, adapter_to)
    message = f"adapter {uri} of {found.bytes} bytes is at {adapter_to}"
    log.info("adapter fetched", adapter=uri, folder=str(adapter_to), bytes=found.bytes)
    return outcome.Outcome(stage="fetch", message=message)


def _adapter(store: storage.Storage, uri: str, sha256: str, to: pathlib.Path) -> folders.Manifest:
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
