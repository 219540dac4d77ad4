"""Log lines of every stage: one JSON object a line on stderr, so that collectors need no parser of their own."""

import datetime
import json
import logging
import os
import sys
from typing import Any

from finetune_trainer.process import secrets

LOGGER = logging.getLogger("finetune")

QUIET = (
    "py.warnings",
    "botocore",
    "boto3",
    "s3transfer",
    "urllib3",
    "huggingface_hub",
    "transformers",
    "peft",
    "bitsandbytes",
    "filelock",
    "httpx",
)


_about: dict[str, str] = {}


class Formatter(logging.Formatter):
    """A record as one JSON line: time, level, message, the process's own fields, and the fields of the call."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname, "message": record.getMessage(), **_about}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return secrets.redact(json.dumps(line, ensure_ascii=False, default=str))


def about(**fields: str) -> None:
    """Adds fields to all further lines of this process: namespace, job, revision and stage, as in the operator's log."""
    _about.update(fields)


def configure() -> None:
    """Sends all records to stderr; libraries' from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    LOGGER.setLevel(os.environ.get("FINETUNE_LOG_LEVEL", "INFO"))
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


def info(message: str, **fields: Any) -> None:
    LOGGER.info(message, extra={"fields": fields})


def warning(message: str, **fields: Any) -> None:
    LOGGER.warning(message, extra={"fields": fields})


def exception(message: str, **fields: Any) -> None:
    """An error with the trace of the exception that is being handled."""
    LOGGER.error(message, extra={"fields": fields}, exc_info=True)
