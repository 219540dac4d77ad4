"""The examples of a job: their files, their format, and how they are split."""

import enum
from typing import Annotated

from pydantic import Field

from finetune_api import checks as data_checks
from finetune_api import model
from finetune_api import storage as stores

Uri = Annotated[
    str,
    model.text(
        r"^((s3|pvc)://[^/\s]+|file://)/\S(.*\S)?$",  # short: the API server limits the cost of all lists of URIs
        "must be s3://bucket/path, pvc://claim/path or file:///path, and not end with white space",
        1024,
    ),
]
UriList = Annotated[list[Uri], Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})]


FieldName = Annotated[str, model.text(r"^\S(.*\S)?$", "must be the name of a field of the rows", 128)]


class Format(enum.StrEnum):
    AUTO = "Auto"
    CHAT = "Chat"
    PROMPT_COMPLETION = "PromptCompletion"
    INSTRUCTION = "Instruction"
    TEXT = "Text"
    PREFERENCE = "Preference"


class Split(model.Model):
    """Held-out examples: from separate files, or a fraction of the training files, split by prompt so that none leaks."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            ("has(self.fraction) != has(self.uris)", "set exactly one of fraction and uris for a held-out split")
        )
    }
    fraction: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        json_schema_extra={"x-message": "must be above 0 and at most 0.5: write 0.1 for 10 %"},
        description="The fraction of the training files' examples to hold out, above 0 and at most 0.5. Examples "
        "with the same prompt stay in the same split.",
    )
    uris: UriList | None = Field(
        default=None, description="Files of held-out examples, in the same formats as dataset.train."
    )


class Dataset(model.Model):
    """The examples: their files, and how they are split."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "(has(self.validation.fraction) ? self.validation.fraction : 0.0)"
                " + (has(self.test.fraction) ? self.test.fraction : 0.0) < 1.0",
                "dataset.validation.fraction and dataset.test.fraction together must be below 1, or nothing is left "
                "to train on",
            ),
            (
                "!has(self.test.uris) || self.test.uris.all(u, !(u in self.train))",
                "dataset.test.uris must not name a file of dataset.train: the model would be evaluated on its "
                "training data",
            ),
            (
                "!has(self.validation.uris) || self.validation.uris.all(u, !(u in self.train))",
                "dataset.validation.uris must not name a file of dataset.train: early stopping would use training data",
            ),
        )
    }
    format: Format = Field(
        default=Format.AUTO,
        description="The format of the examples. Chat: a list `messages` of {role, content}, with `tools` and "
        "`tool_calls` as in OpenAI's API. PromptCompletion: `prompt` and `completion`. Instruction: "
        "`instruction`, optional `input`, `output`. Text: `text`. Preference (for training.objective DPO): "
        "`prompt`, `chosen` and `rejected`, as texts or as lists of messages; or `chosen` and `rejected` alone, "
        "two chats with the same beginning. Other formats, such as ShareGPT's `conversations`, are converted: "
        "docs/guides/what-your-data-may-look-like.md. Auto (the default) chooses by the fields of the first "
        "example.",
    )
    train: UriList = Field(
        description="The training files: 1 to 64 URIs such as s3://bucket/path/train.jsonl. JSONL, JSON, CSV and "
        "Parquet, plain or compressed (.gz, .zst); * and ? match within a folder, ** across folders. A key of S3 is written "
        "as it is, with its spaces, plus and percent signs: nothing is decoded. pvc://claim/path is a file of a claim in the "
        "job's namespace; in pvc:// and file:// URIs %20 is a space and %25 a percent sign."
    )
    storage: stores.Connection | None = Field(
        default=None,
        description="The store of all data files (of the splits, and of evaluation.forgetting and evaluation.harness), where "
        "it is not that of the results, or has other credentials, for example a reader's. It is complete in itself: nothing is "
        "taken from spec.storage. Absent: as spec.storage.",
    )
    validation: Split = Field(
        default_factory=lambda: Split(fraction=0.05),
        description="Examples that early stopping uses. Default: a fraction of 0.05 of the training files.",
    )
    test: Split = Field(
        default_factory=lambda: Split(fraction=0.1),
        description="Held-out examples for the evaluation, never used in training. Default: a fraction of 0.1 of "
        "the training files.",
    )
    group_by: FieldName | None = Field(
        default=None,
        description="The field of the rows that says which of them belong together, such as customer or "
        "metadata.conversation: text or a number, in every row. Rows of one group stay in one split; intervals and tests of "
        "the evaluation count groups, not rows. A row without it is a finding of the check schema. Absent: every row counts "
        "for itself.",
    )
    minimum_examples: int = Field(
        default=200,
        ge=1,
        le=1_000_000_000,
        description="With fewer training examples than this, the advice is TooFewExamples. Default: 200.",
    )
    checks: data_checks.Checks = Field(
        default_factory=dict,
        description="What to do about findings in the examples: a rule's id with Drop (remove the rows), Warn "
        "(report them), Fail (end the job with DatasetInvalid) or Ignore (skip the check), for example "
        "{duplicates: Drop, secrets: Fail}. Every rule has a default; docs/reference/checks.md lists them.",
    )
