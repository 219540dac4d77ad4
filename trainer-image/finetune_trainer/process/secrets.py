"""Values of secrets, removed from everything that this process writes: logs, outcomes, error messages.

These quote other programs (a store's refusal, a server's answer, a library's exception), and some programs repeat
what they were sent.
"""

import json
import os

from finetune_api import run

VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "API_KEY", run.JUDGE_KEY)
"""The environment variables by which a pod gets the contents of its Secrets."""
SHORTEST = 6
"""Shorter values are not secrets, and removing them would damage every sentence."""
REDACTED = "[secret]"


def redact(text: str) -> str:
    """The text without the values of VARIABLES, as they are and as JSON writes them; nor with one that was cut off at its
    end."""
    # Also without the newline that many Secrets end with: it is not sent.
    for value in {form for name in VARIABLES for form in (os.environ.get(name, ""), os.environ.get(name, "").strip())}:
        if len(value) < SHORTEST:
            continue
        for form in {value, json.dumps(value)[1:-1]}:
            text = text.replace(form, REDACTED)
            part = next((n for n in range(len(form) - 1, SHORTEST - 1, -1) if text.endswith(form[:n])), 0)
            text = text[: len(text) - part] + REDACTED if part else text
    return text
