"""Every line that the process says is one JSON object, with the job that it is about."""

import asyncio
import gc
import json
import logging
import subprocess
import sys

import aiohttp
import pytest

from finetune_operator import __main__, log


def line(**extra: object) -> dict[str, str]:
    record = logging.LogRecord("finetune_operator.x", logging.INFO, "", 0, "said %s", ("this\nand that",), None)
    record.__dict__ |= extra
    text = log.JsonLines().format(record)
    assert "\n" not in text
    found: dict[str, str] = json.loads(text)
    return found


def test_a_line_about_a_job_names_it() -> None:
    about = {"namespace": "ml", "job": "support-tone", "revision": "0123abcd", "stage": "train"}
    assert about.items() <= line(**about).items()
    assert line(**about)["message"] == "said this\nand that"


def test_a_line_about_no_job_leaves_the_fields_out() -> None:
    assert set(line(namespace=None)) == {"time", "level", "logger", "message"}


SCRIPT = """
import logging, warnings
from finetune_operator import log
log.configure("INFO")
logging.getLogger("kopf").info("not ours to log")
logging.getLogger("finetune_operator").info("ours")
warnings.warn("of a library", stacklevel=1)
raise {error}
"""


@pytest.mark.parametrize("error, words", [("RuntimeError('so it ends')", "so it ends"), ("KeyError(7)", "KeyError(7)")])
def test_warnings_and_the_traceback_of_a_crash_are_json_lines(error: str, words: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(error=error)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ""
    shown = [json.loads(text) for text in done.stdout.splitlines()]
    assert [one["level"] for one in shown] == ["INFO", "WARNING", "CRITICAL"]
    assert "of a library" in shown[1]["message"]
    assert words in shown[2]["message"]
    assert "Traceback" in shown[2]["traceback"]


def test_a_request_that_the_end_of_the_process_cut_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Kopf forgets those of its first scan."""

    async def forgotten(stopping: bool) -> None:
        stop = asyncio.Event()
        if stopping:
            stop.set()
        __main__.quiet_at_the_end(asyncio.get_running_loop(), stop)
        closed = asyncio.get_running_loop().create_future()
        closed.set_exception(aiohttp.ClientConnectionError("Connection closed"))
        del closed
        gc.collect()

    asyncio.run(forgotten(stopping=True))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    asyncio.run(forgotten(stopping=False))
    assert [record.levelname for record in caplog.records if "never retrieved" in record.message] == ["ERROR"]
