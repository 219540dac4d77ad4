"""The result: metrics, answers side by side, and a request to the served model over HTTP."""

import json
import textwrap
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from demo.progress import Job
from toolbox import say

_WIDTH = 46


def metrics(job: Job) -> str:
    """The evaluation as a table: a row for each metric, a column for each contender."""
    measured = job["status"].get("evaluation") or {}
    names: list[str] = []
    values: dict[tuple[str, str], str] = {}
    for metric in measured.get("metrics", []):
        if metric["name"] not in names:
            names.append(metric["name"])
        values[metric["name"], metric["contender"]] = metric["value"]
    everybody = (
        "Base",
        "Prompt",
        "FewShot",
        "Retrieved",
        "Optimized",
        "ManyShot",
        "RAG",
        "Structured",
        "Serving",
        "Tuned",
    )
    contenders = [c for c in everybody if any(c == contender for _, contender in values)]
    lines = [f"  {'metric':<14}" + "".join(f"{c:>12}" for c in contenders)]
    lines += [f"  {name:<14}" + "".join(f"{values.get((name, c), '-'):>12}" for c in contenders) for name in names]
    for gate in measured.get("gates", []):
        verdict = "passed" if gate["passed"] else "FAILED"
        lines.append(f"  gate: {gate['requirement']}; measured {gate['observed']} -> {verdict}")
    return "\n".join(lines)


def side_by_side(samples: Sequence[dict[str, Any]]) -> str:
    """Held-out examples: question, answers of base and tuned, expected answer."""
    shown = []
    for sample in samples:
        asked = question(sample["messages"])
        left, right = _wrap(sample["answers"]["Base"]), _wrap(sample["answers"]["Tuned"])
        rows = max(len(left), len(right))
        left += [""] * (rows - len(left))
        right += [""] * (rows - len(right))
        shown.append(
            "\n".join(
                [
                    f"  asked     {_shorten(asked, 2 * _WIDTH - 8)}",
                    f"  expected  {_shorten(sample['expected'], 2 * _WIDTH - 8)}",
                    f"  {'base':<{_WIDTH}} | tuned",
                    f"  {'-' * _WIDTH}-+-{'-' * _WIDTH}",
                    *(f"  {a:<{_WIDTH}} | {b}".rstrip() for a, b in zip(left, right, strict=True)),
                ]
            )
        )
    return "\n\n".join(shown)


def question(messages: Sequence[dict[str, str]]) -> str:
    """The user's last message."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")


def chat(url: str, model: str, messages: Sequence[dict[str, str]]) -> str:
    """The answer of a served model; greedy, so that it is repeatable."""
    body = json.dumps({"model": model, "messages": list(messages), "temperature": 0, "max_tokens": 128})
    request = urllib.request.Request(  # noqa: S310
        f"{url}/v1/chat/completions", data=body.encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise say.Problem(
            f"{model} answered HTTP {error.code}: {error.read().decode(errors='replace')[:500]}"
        ) from error
    except (urllib.error.URLError, OSError) as error:
        raise say.Problem(f"{model} did not answer at {url}: {error}") from error
    return str(answer["choices"][0]["message"]["content"])


def _wrap(text: str, lines: int = 8) -> list[str]:
    wrapped = [
        part
        for line in text.strip().splitlines() or [""]
        for part in (textwrap.wrap(line, _WIDTH, break_long_words=True) or [""])
    ]
    return wrapped if len(wrapped) <= lines else [*wrapped[: lines - 1], "…"]


def _shorten(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
