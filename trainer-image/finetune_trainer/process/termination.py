"""The outcome of a process, where the kubelet reads it."""

import os
import pathlib

from finetune_api import outcome
from finetune_trainer.process import log, secrets


def write(result: outcome.Outcome) -> None:
    """Writes the outcome to the container's termination message; without a kubelet, to stdout."""
    message = secrets.redact(result.termination_message())
    named = os.environ.get("FINETUNE_TERMINATION_PATH")
    path = pathlib.Path(named or outcome.TERMINATION_PATH)
    if named or (path.is_file() and os.access(path, os.W_OK)):
        try:
            path.write_text(message)
            return
        except OSError as error:
            log.warning("the outcome could not be written", path=str(path), problem=str(error))
    print(message, flush=True)
