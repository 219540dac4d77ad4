"""vLLM's command line: which of its arguments a job may set, and which the catalogue and the chart may.

Whoever may create a job is not an administrator: an argument of a job's is one of a list that opens nothing. tests/e2e checks the
list against the parser of the serving image. The catalogue and the chart are the platform team's, who may set any argument but
those that the operator sets itself.
"""

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
"""What users need, by subject."""

SET_BY_THE_OPERATOR = (
    *("--model", "--served-model-name", "--host", "--port", "--enable-lora", "--lora-modules", "--max-lora-rank"),
    *("--chat-template", "--api-key", "--config"),
)

# vLLM reads underscores as dashes, and what follows a dot as a key of the argument's value.
_NAME = "{a}.split('=')[0].split('.')[0].replace('_', '-')"
_JOINED = (
    r"self.all(a, !a.matches('^-[^=\\s]*\\s'))",
    "an argument and its value must be joined by '=' (--max-model-len=4096) or be two items of the list",
)


def _listed() -> list[str]:
    return [name for names in ALLOWED.values() for name in names]


def _rules_of_jobs() -> dict[str, Any]:
    """An item is an allowed argument, under its whole name, or the value of the one before it."""
    good = f"!a.startsWith('-') || {_NAME.format(a='a')} in {_listed()} || a.matches('^-[^=\\\\s]*\\\\s')"
    others = (
        f"jobs may set {', '.join(_listed())}. For another one ask the platform team: the catalogue sets it for a base model "
        "(BaseModel spec.defaults.serving.extraArgs), the chart for all (serving.args)"
    )
    first = f"self.filter(a, !({good}))[0]"
    listed = model.rules(
        (f"self.all(a, {good})", f"must not contain arguments but those of this list: {others}"), _JOINED
    )
    listed["x-kubernetes-validations"][0]["messageExpression"] = f'"must not contain " + {first} + ": {others}"'
    return listed


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
