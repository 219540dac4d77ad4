"""What this process was given to keep to itself, taken out of everything that it says: logs, outcomes, texts of errors.

Other programs' words come through us (a store's refusal, a server's answer, a library's exception), and some of them repeat
what they were sent.
"""

import json
import os

from finetune_api import run

VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "API_KEY", run.JUDGE_KEY)
"""The environment variables by which a pod gets the contents of its Secrets."""
LEAST = 6
"""Shorter values are no secrets, and would take words out of every sentence."""
GONE = "[secret]"


def redact(text: str) -> str:
    """The text without the values of VARIABLES, as they are and as JSON writes them; nor with one that was cut off at its
    end."""
    # Without the line's end that many Secrets have, too: it is not sent.
    for value in {form for name in VARIABLES for form in (os.environ.get(name, ""), os.environ.get(name, "").strip())}:
        if len(value) < LEAST:
            continue
        for form in {value, json.dumps(value)[1:-1]}:
            text = text.replace(form, GONE)
            part = next((n for n in range(len(form) - 1, LEAST - 1, -1) if text.endswith(form[:n])), 0)
            text = text[: len(text) - part] + GONE if part else text
    return text
