"""Values of secrets, removed from everything that this process writes: logs, outcomes, error messages.

These quote other programs (a store's refusal, a server's answer, a library's exception), and some programs repeat
what they were sent.
"""

import json
import os
import re

from finetune_api import run

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
VARIABLES = (
    *(prefix + name for prefix in ("", run.DATA_KEYS, run.BASE_MODEL_KEYS) for name in KEYS),
    *("HF_TOKEN", "API_KEY", run.JUDGE_KEY, run.OPTIMIZER_KEY),
)
"""The environment variables by which a pod gets the contents of its Secrets."""
SENT = re.compile(
    r"AWS4-[A-Z0-9-]+ Credential=.*?Signature=\w+"
    r"|(?<=Credential=)[^,&\s\"']+|(?<=Signature=)[^,&\s\"']+|(?<=Security-Token=)[^,&\s\"']+"
    r"|(?<=Bearer )[\w.~+/=-]{12,}|(?<=://)[^\s/@]+(?=@)",
    re.DOTALL | re.IGNORECASE,
)
"""What requests carry to prove who sends them: a signature with the key's id, a token, the user and password of a URL."""
KEY_ID = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{8,}")
"""The id of a key of AWS, from wherever the client has it; its first letters tell the kind."""
TRIMMED = (
    *(name for name in VARIABLES if name != "API_KEY"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "HF_ENDPOINT"),
)
"""Variables whose outer white space means nothing. API_KEY is the server's as well, which takes it as it is."""
SHORTEST = 6
"""Shorter values are not secrets, and removing them would damage every sentence."""
REDACTED = "[secret]"
OUTER = " \t\r\n\v\f\u0085\u00a0\u200b\u2028\u2029\u2060\ufeff"
"""White space, and what looks like none, as editors and web pages add it around a value."""
_hidden: set[str] = set()


def redact(text: str) -> str:
    """The text without what a request is authenticated with, without ids of keys, and without the values of VARIABLES, as they
    are and as JSON writes them; nor with one that was cut off at its end."""
    text = KEY_ID.sub(r"\1…", SENT.sub(REDACTED, text))
    # Also without the line break that many Secrets end with: it is not sent.
    candidates = (name for name in os.environ if name.startswith(run.CANDIDATE_KEYS))
    values = {
        form
        for name in (*VARIABLES, *candidates)
        for form in (os.environ.get(name, ""), os.environ.get(name, "").strip())
    }
    for value in values | _hidden:
        if len(value) < SHORTEST:
            continue
        for form in {value, json.dumps(value)[1:-1]}:
            text = text.replace(form, REDACTED)
            part = next((n for n in range(len(form) - 1, SHORTEST - 1, -1) if text.endswith(form[:n])), 0)
            text = text[: len(text) - part] + REDACTED if part else text
    return text


def hide(*values: str | None) -> None:
    """Adds secrets that are not in VARIABLES, for example those of a credentials file."""
    _hidden.update(value for value in values if value)


def trim() -> None:
    """Cuts white space and line breaks around the values of TRIMMED, which Secrets written by hand or from files often have. A
    value of nothing else counts as absent."""
    for name in TRIMMED:
        if name not in os.environ:
            continue
        if value := os.environ[name].strip(OUTER):
            os.environ[name] = value
        else:
            del os.environ[name]


def unsendable(name: str) -> str | None:
    """What no header can carry in a variable's value, in words that do not show the value; None if it can be sent."""
    for position, character in enumerate(os.environ.get(name, ""), 1):
        if not "!" <= character <= "~":
            return f"{name} has the character U+{ord(character):04X} at position {position}, which no request can carry"
    return None
