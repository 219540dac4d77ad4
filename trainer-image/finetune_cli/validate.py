"""`finetune validate DATA...`: the data checks of preflight, on files. No job, no split, and without --model no tokens."""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import pydantic

from finetune_api import checks, job, run
from finetune_cli import answer, documents, jobs

TOKENS = ("template", "untrainable", "truncation", "stopToken", "promptPrefix", "doubleBos", "specialTokens")
"""Rules that need the model's tokenizer."""

PAIRS = "these are preference pairs (chosen and rejected): a job that learns from them sets training.objective: DPO"
"""A note: the rows are good, and the default objective would refuse them."""


class ByteTokenizer:
    """The tokenizer where there is no model: text as its bytes, turns one after the other."""

    chat_template = "none"
    bos_token_id = eos_token_id = None
    is_fast = False

    def apply_chat_template(self, turns: list[dict[str, Any]], *, tools: Any = None, **_: Any) -> str:
        parts = [
            turn.get("name", "")
            + turn.get("reasoning_content", "")
            + turn["content"]
            + (json.dumps(turn["tool_calls"]) if "tool_calls" in turn else "")
            for turn in turns
        ]
        return "\n".join([*([json.dumps(tools)] if tools else []), *parts]) + "\n"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode("utf-8", "surrogatepass"))}


@dataclasses.dataclass(frozen=True)
class Request:
    """What to check, and how."""

    data: list[str]
    held_out: list[str]
    kind: job.Format
    model: pathlib.Path | None
    policies: dict[str, checks.Policy]
    longest: int


def validate(request: Request) -> answer.Answer:
    """Reads all files and applies all rules. Raises Failure, documents.Invalid."""
    from finetune_trainer.data import tokens
    from finetune_trainer.store import storage

    spec = as_run(request)
    store = storage.of(spec.storage, 20)
    if request.model is None:
        encoder = tokens.Encoder(ByteTokenizer(), frozenset(), 2**30)
    else:
        if problem := jobs.missing_folder(spec.base_model.source, str(request.model)):
            raise documents.Invalid([answer.Problem(message=f"--model {problem}")])
        from finetune_trainer.stages import prerequisites

        encoder = prerequisites.load(spec, request.model)
    with temporary() as work:
        return apply_rules(request, spec, store, encoder, work)


def apply_rules(request: Request, spec: run.Run, store: Any, encoder: Any, work: pathlib.Path) -> answer.Answer:
    """The answer for the files of a spec."""
    import numpy as np

    from finetune_trainer.stages import collect

    found = collect.read_all(spec, store, encoder, work)
    reviewed = found.review.apply_rules(found.corpus, found.examples)
    part = np.where(reviewed.keep, reviewed.columns.part.astype(np.int8), np.int8(-1))
    place = reviewed.after_split(part)
    findings = answer.findings([one.document() for one in reviewed.findings])
    failing = [one for one in findings if one.policy == checks.Policy.FAIL]
    train = found.corpus.select(np.flatnonzero(place == 0))
    with_model = request.model is not None
    counts = answer.Counts(
        examples=int((place == 0).sum()),
        test_examples=int((place == 2).sum()),
        tokens=int(train.lengths.sum()) if with_model else None,
        trainable_tokens=int(train.trainable.sum()) if with_model else None,
    )
    notes = [] if with_model else [f"without --model these rules are not checked: {', '.join(TOKENS)}"]
    if found.pairs:
        notes.append(PAIRS)
    message = f"{len(failing)} of the rules that fired would fail a job" if failing else "nothing that would fail a job"
    return answer.Answer(
        command="validate",
        exit_code=answer.Exit.INVALID if failing else answer.Exit.DONE,
        message=message,
        counts=counts,
        findings=findings,
        notes=notes,
    )


def as_run(request: Request) -> run.Run:
    """The files as a run file's dataset. Raises documents.Invalid."""
    if manifests := [one for one in (*request.data, *request.held_out) if one.endswith((".yaml", ".yml"))]:
        message = "is a manifest, not data: `finetune advise` checks a FineTuneJob, and the BaseModels and ServingPools beside it"
        raise documents.Invalid([answer.Problem(file=one, message=message) for one in manifests])
    policies = request.policies
    if request.model is None:
        # Broken rows cannot be ignored, and without a template no row breaks it.
        policies = policies | {id: checks.Policy.IGNORE for id in TOKENS if id != "template"}
    here = pathlib.Path.cwd()
    held_out = [jobs.uri(one, here) for one in request.held_out]
    try:
        return run.Run.model_validate(
            {
                "name": "validate",
                "namespace": "default",
                "revision": "none",
                "evaluation_hash": "none",
                "served_model_name": "none",
                "base_model": {"name": "none", "source": jobs.uri(str(request.model or "none"), here)},
                "storage": {"output": "file:///none"},
                "training": {"max_sequence_length": request.longest},
                "dataset": {
                    "train": [jobs.uri(one, here) for one in request.data],
                    "format": request.kind,
                    "checks": policies,
                    "test": {"uris": held_out} if held_out else {"fraction": 0.1},
                },
            }
        )
    except pydantic.ValidationError as error:
        problems = [answer.Problem(message=_refusal(found)) for found in error.errors()]
        if len(request.data) > 64:
            problems = [
                answer.Problem(
                    message=f"{len(request.data)} files, at most 64: quote the pattern, as in 'data/*.jsonl'"
                )
            ]
        raise documents.Invalid(problems) from error


def _refusal(found: Any) -> str:
    """A finding of pydantic in the command line's words."""
    seen, message = answer.place(str(found["input"])[:200]), found["msg"].removeprefix("Value error, ")
    if "max_sequence_length" in found["loc"]:
        return f"--max-sequence-length {seen}: {message.replace('Input should', 'must')}"
    if found["type"] == "string_pattern_mismatch":
        return f"{seen!r} is not a file, a pattern or an s3:// URI"
    return f"{seen}: {message}"


@contextlib.contextmanager
def temporary() -> Iterator[pathlib.Path]:
    """A temporary folder, also as the trainer's work folder."""
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        before = os.environ.get("FINETUNE_WORK")
        os.environ["FINETUNE_WORK"] = folder
        try:
            yield pathlib.Path(folder)
        finally:
            if before is None:
                del os.environ["FINETUNE_WORK"]
            else:
                os.environ["FINETUNE_WORK"] = before
