"""vLLM's command line: the arguments that a job may set, and those that the catalogue and the chart may set.

Users who may create a job are not administrators: a job's arguments come from a list of safe ones. tests/e2e checks the list
against the parser of the serving image. Catalogue and chart belong to the platform team, which may set any argument except
those that the operator sets itself.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from finetune_api import model

ALLOWED: dict[str, tuple[str, ...]] = {
    "context and memory": (
        *("--max-model-len", "--gpu-memory-utilization", "--kv-cache-memory-bytes", "--kv-cache-dtype"),
        *("--block-size", "--cpu-offload-gb", "--enable-prefix-caching", "--no-enable-prefix-caching"),
    ),
    "precision": ("--dtype", "--quantization"),
    "parallelism": (
        *("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"),
        "--enable-expert-parallel",
    ),
    "scheduling": (
        *("--max-num-seqs", "--max-num-batched-tokens", "--enable-chunked-prefill", "--no-enable-chunked-prefill"),
        *("--scheduling-policy", "--async-scheduling", "--no-async-scheduling", "--stream-interval"),
        "--enforce-eager",
    ),
    "tools and reasoning": (
        *("--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser"),
        *("--exclude-tools-when-tool-choice-none", "--chat-template-content-format", "--default-chat-template-kwargs"),
    ),
    "answers": (
        *("--override-generation-config", "--max-logprobs", "--logprobs-mode", "--return-tokens-as-token-ids"),
        *("--response-role", "--seed"),
    ),
    "what is reported": (
        *("--enable-prompt-tokens-details", "--enable-force-include-usage", "--enable-request-id-headers"),
        *("--disable-log-stats", "--disable-uvicorn-access-log", "--uvicorn-log-level"),
    ),
}
"""Allowed arguments, by subject."""

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank."""

SET_BY_THE_OPERATOR = (
    *("--model", "--served-model-name", "--host", "--port", "--enable-lora", "--lora-modules", "--max-lora-rank"),
    *("--chat-template", "--api-key", "--config"),
)

# vLLM reads underscores as dashes, and the part after a dot as a key of the argument's value.
_NAME = "{a}.split('=')[0].split('.')[0].replace('_', '-')"
_JOINED = (
    r"self.all(a, !a.matches('^-[^=\\s]*\\s'))",
    "an argument and its value must be joined by '=' (--max-model-len=4096) or be two items of the list",
)


def _listed() -> list[str]:
    return [name for names in ALLOWED.values() for name in names]


def _rules_of_jobs() -> dict[str, Any]:
    """An item is the full name of an allowed argument, or the value of the previous item."""
    good = f"!a.startsWith('-') || {_NAME.format(a='a')} in {_listed()} || a.matches('^-[^=\\\\s]*\\\\s')"
    others = (
        f"jobs may set {', '.join(_listed())}. Ask the platform team for other arguments: they can be set for a base "
        "model in the catalogue (BaseModel spec.defaults.serving.extraArgs) or for all in the chart "
        "(serving.args)"
    )
    first = f"self.filter(a, !({good}))[0]"
    listed = model.rules((f"self.all(a, {good})", f"must contain only these arguments: {others}"), _JOINED)
    listed["x-kubernetes-validations"][0]["messageExpression"] = f'"must not contain " + {first} + ": {others}"'
    return listed


def value(given: Sequence[str], name: str) -> str | None:
    """The value of vLLM's last argument of this name: --name=value, or in two."""
    found = re.findall(rf"(?:^|\s)--{name}[=\s](\S+)", " ".join(given))
    return found[-1] if found else None


def replicas(given: Sequence[str]) -> int:
    """Copies of the model in one server (--data-parallel-size)."""
    return _size(given, "data")


def tensor_parallel(gpus: int, given: Sequence[str]) -> int:
    """Over how many of a server's GPUs a layer is split, after the copies and pipeline stages that its arguments request."""
    return max(1, gpus // (replicas(given) * _size(given, "pipeline")))


def max_lora_rank(rank: int) -> int:
    """vLLM's argument for adapters of this rank."""
    return next(allowed for allowed in RANKS if allowed >= rank)


def _size(given: Sequence[str], kind: str) -> int:
    found = value(given, f"{kind}-parallel-size") or ""
    return max(1, int(found)) if found.isdigit() else 1


Items = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=32)]

OfJobs = Annotated[Items, Field(json_schema_extra=_rules_of_jobs())]
"""Arguments that a job sets."""

OfTheCatalogue = Annotated[
    Items,
    Field(
        json_schema_extra=model.rules(
            (
                f"self.all(a, !({_NAME.format(a='a')} in {list(SET_BY_THE_OPERATOR)}))",
                f"must not contain {', '.join(SET_BY_THE_OPERATOR)}, which the operator sets: remove it",
            ),
            _JOINED,
        )
    ),
]
"""Arguments that an entry of the catalogue sets."""
