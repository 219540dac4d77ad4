"""The log: one JSON object per line on stdout, with the job that it is about, so that collectors need no parser."""

import datetime
import json
import logging
import sys
from types import TracebackType

ABOUT = ("namespace", "job", "revision", "stage")
"""Fields of a line that is about a job; those of the trainer's lines have the same names."""
QUIET = ("kopf", "kubernetes", "aiohttp.access", "asyncio")
"""Libraries of which only warnings are logged."""


class JsonLines(logging.Formatter):
    """A record as one line: time, level, logger, message, and the job that it is about, if any."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for field in ABOUT:
            if value := getattr(record, field, None):
                line[field] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: str) -> None:
    """All records, warnings of libraries and the traceback of a crash go to stdout as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _last_words
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("finetune_operator").critical("the process ends: %r", error, exc_info=(kind, error, trace))
