"""The rules by which preflight checks a job's examples before a GPU is requested: one table for API, trainer and documentation.

The trainer implements the rules (`finetune_trainer.checks`); their ids, severities and allowed policies are part of the API.
"""

import dataclasses
import enum
from typing import Annotated

import pydantic
from pydantic import Field

from finetune_api import model


class Policy(enum.StrEnum):
    DROP = "Drop"
    """Remove the rows before the split, and report how many."""
    WARN = "Warn"
    """Report it and continue."""
    FAIL = "Fail"
    """End the job with reason DatasetInvalid."""
    # Not "Off": YAML readers turn a bare Off into false.
    IGNORE = "Ignore"
    """Skip the check."""


class Severity(enum.StrEnum):
    ERROR = "error"
    """Training or evaluation would be wrong. The verdict becomes Caution."""
    WARNING = "warning"
    """Training or evaluation would be worse, or the model could reveal private data. The verdict becomes Caution if at least
    one example in a hundred is affected."""
    NOTE = "note"
    """For information; the verdict does not change."""


class Scope(enum.StrEnum):
    BROKEN = "broken"
    """Rows that are not valid examples: they can only be removed (Drop) or end the job (Fail)."""
    ROWS = "rows"
    """Examples: all policies."""
    WHOLE = "whole"
    """The data as a whole: there is no row to drop (Warn, Fail or Ignore)."""


ALLOWED: dict[Scope, tuple[Policy, ...]] = {
    Scope.BROKEN: (Policy.DROP, Policy.FAIL),
    Scope.ROWS: tuple(Policy),
    Scope.WHOLE: (Policy.WARN, Policy.FAIL, Policy.IGNORE),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    id: str
    severity: Severity
    default: Policy
    scope: Scope
    means: str
    """A sentence: when the rule fires."""
    matters: str
    """A sentence: why it matters."""
    advice: str
    """A sentence: what to do."""


_ERROR, _WARNING, _NOTE = Severity

RULES: tuple[Rule, ...] = (
    Rule(
        "unreadable",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "A line or file is not UTF-8, not valid JSON, CSV or Parquet, or its compression is damaged.",
        "The data is damaged; often an upload was interrupted.",
        "Write the file again, text files as UTF-8. Drop removes single lines; a truncated file fails in any case, since its "
        "remaining data is lost.",
    ),
    Rule(
        "schema",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "A row lacks a field of its format, or a field has the wrong type.",
        "The row is not an example.",
        "Compare it with dataset.format; the finding says what was seen and what was expected.",
    ),
    Rule(
        "unlearnableFields",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "A field changes what a row means in a way that cannot be learned: a label that marks the answer as bad, a "
        "weight other than 0 or 1, a rejected answer without a chosen one, an image or audio.",
        "Without that field, the model would learn something else than intended.",
        "Drop removes such rows, so that only rows labelled as good are learned; or write the rows without that field.",
    ),
    Rule(
        "roleOrder",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "The turns of a chat do not alternate between user and assistant, after at most one system turn, and end "
        "with an answer; tool results must follow their call and precede the assistant's next turn.",
        "Chat templates render such a chat in a form that the server never gets.",
        "Merge turns of the same role, or cut the chat after its last answer.",
    ),
    Rule(
        "toolCalls",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "A tool or call does not have the form of OpenAI's API, a call names a tool that the row does not define or "
        "its arguments are not a JSON object, a result belongs to no call, or a call has no result before the "
        "next turn.",
        "The model learns calls that cannot be executed, or sees results of calls that it did not make.",
        "Write `tools`, `tool_calls` and `tool_call_id` as in a request; a chat may end with calls.",
    ),
    Rule(
        "emptyAnswers",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "An answer without a tool call, or a prompt that needs text, is empty or only white space.",
        "The model learns to answer with nothing.",
        "Fill in the missing text, or drop the rows.",
    ),
    Rule(
        "template",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "The model's chat template refuses the chat, omits its tools or calls, or renders the turns before an "
        "answer differently once the answer is added.",
        "The answer cannot be learned in the form in which the server will generate it.",
        "Read the finding: often the template supports no system turn or no tools, or rewrites earlier turns (then "
        "training.lossOn: LastAssistant helps).",
    ),
    Rule(
        "unusedFields",
        _WARNING,
        Policy.WARN,
        Scope.WHOLE,
        "A row, turn, content part or call has an unused field; fields that only describe a row, such as id, source "
        "or score, are ignored.",
        "Its content is not learned.",
        "Remove the field, or use a supported field: docs/guides/what-your-data-may-look-like.md lists the fields.",
    ),
    Rule(
        "untrainable",
        _WARNING,
        Policy.DROP,
        Scope.ROWS,
        "No token of the answer is left once the example is truncated to training.maxSequenceLength.",
        "The example costs time without any effect.",
        "Raise training.maxSequenceLength or shorten the prompts.",
    ),
    Rule(
        "duplicates",
        _WARNING,
        Policy.DROP,
        Scope.ROWS,
        "An example repeats an earlier one of the same files, both prompt and answer.",
        "It counts twice in training, and there is less data than it seems.",
        "Remove the repetitions; Drop keeps the first of each.",
    ),
    Rule(
        "nearDuplicates",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "Five percent of the examples or more are nearly the same text as an earlier one; text that a tenth of all "
        "examples share, such as a system prompt, is ignored.",
        "The data is less diverse than its size suggests, and the model memorizes it.",
        "Collect different cases instead of variants. Drop keeps the first of each group, even below five percent.",
    ),
    Rule(
        "contradictions",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "The same prompt has different answers (in preference pairs: an answer is chosen in one and rejected in "
        "another).",
        "The model learns to alternate between them. Ignore this if several answers are right.",
        "Decide which answer is right. Drop removes all rows of such a prompt.",
    ),
    Rule(
        "leakage",
        _ERROR,
        Policy.FAIL,
        Scope.ROWS,
        "The prompt of an example of a separate validation or test file, or its group by dataset.groupBy, is also in the "
        "training data.",
        "The evaluation measures memorization instead of generalization.",
        "Remove the prompt, or the group, from one side. Drop removes it from training and keeps the held-out example.",
    ),
    Rule(
        "nearLeakage",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "After the split, five percent of the validation and test examples or more are nearly the same text as a training "
        "example.",
        "The evaluation is too optimistic.",
        "Hold out by customer, document or date instead of by row. Drop removes the similar examples from training, "
        "even below five percent.",
    ),
    Rule(
        "truncation",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "Five percent of the examples or more are longer than training.maxSequenceLength and are truncated.",
        "Truncated answers have no stop token: the model learns the beginning of an answer but not its end.",
        "Raise training.maxSequenceLength or shorten the examples. Drop removes every truncated example.",
    ),
    Rule(
        "stopToken",
        _ERROR,
        Policy.FAIL,
        Scope.ROWS,
        "A learned answer does not end with a token at which the server stops, either before the next turn or at "
        "the end.",
        "The model will not stop after its answer, and learns to write the user's turn as well.",
        "Check the chat template and the model's generation_config.json; if only earlier turns are affected, "
        "training.lossOn: LastAssistant helps.",
    ),
    Rule(
        "promptPrefix",
        _NOTE,
        Policy.WARN,
        Scope.ROWS,
        "If tokenized as a whole, the answer's first characters would merge with the prompt's last ones.",
        "The model would learn a first token that it cannot generate when served. The trainer therefore tokenizes "
        "prompt and answer separately, as the server does.",
        "Nothing to do; a chat template that ends the prompt with a special token or a line break avoids it.",
    ),
    Rule(
        "doubleBos",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "An example starts with two begin-of-sequence tokens.",
        "The model was not trained on that, and the server may or may not reproduce it.",
        "Remove the token from the data: the chat template or the tokenizer adds it.",
    ),
    Rule(
        "specialTokens",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "A text contains a special token of the model, such as `<|im_end|>`.",
        "The model interprets it: a turn ends early, or a wrong role begins.",
        "Remove it: often chats were saved after rendering.",
    ),
    Rule(
        "labelImbalance",
        _WARNING,
        Policy.WARN,
        Scope.WHOLE,
        "The answers are a few labels, and one of them makes up 80 %, or half of all answers and ten times the rarest.",
        "A model that always answers with the most frequent label scores well and is useless.",
        "Collect more examples of the rare labels, and use a gate on a metric that weights all labels equally.",
    ),
    Rule(
        "constantAnswers",
        _WARNING,
        Policy.WARN,
        Scope.WHOLE,
        "At least 95 % of the answers are the same.",
        "There is nothing else to learn.",
        "Check that the answer is in the right field; a task with one answer needs no model.",
    ),
    Rule(
        "jsonAnswers",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "Most answers are JSON objects or lists, and this one does not parse.",
        "The model learns to break the format occasionally.",
        "Fix the rows, or drop them.",
    ),
    Rule(
        "cutAnswers",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "Ten different answers or more have exactly the same length, in characters or tokens, and stop without closing "
        "punctuation, while at least 80 % of the other answers end with it.",
        "The answers were probably cut at a length limit when they were written; the model learns to stop in the middle of "
        "a sentence.",
        "Write the answers again with a higher limit, such as max_tokens of the model that generated them or the width of a "
        "database column, or drop the rows.",
    ),
    Rule(
        "toolArguments",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "The arguments of a learned call do not match the JSON Schema of the tool's parameters.",
        "The model learns calls that the tools refuse.",
        "Fix the call or the tool's parameters, or drop the rows.",
    ),
    Rule(
        "reasoningTags",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "Some answers have a reasoning block such as `<think>`, others have none; or a block is not closed.",
        "The model cannot know when to reason, and the server may show reasoning that should be hidden.",
        "Use it in all answers or in none. Drop removes the rarer kind.",
    ),
    Rule(
        "refusals",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "An answer is a refusal, or describes itself as an AI.",
        "These are left over from the model that generated the data; the tuned model will refuse valid requests.",
        "Review them: keep intended refusals, drop the rest.",
    ),
    Rule(
        "languageMix",
        _NOTE,
        Policy.WARN,
        Scope.ROWS,
        "An answer is neither in the language of most answers nor in the language of its prompt.",
        "The model will switch languages unexpectedly.",
        "Translate the rows or drop them.",
    ),
    Rule(
        "secrets",
        _ERROR,
        Policy.FAIL,
        Scope.ROWS,
        "A text contains a key, token or password of a known form.",
        "The model can reveal it to any user. The finding names the place, never the secret.",
        "Revoke the secret, remove it from the data, and run again.",
    ),
    Rule(
        "personalData",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "A text contains an e-mail address, an international phone number, an IBAN, or the number of a payment card.",
        "The model can reveal it, and training on it may not be permitted.",
        "Replace it with placeholders, or drop the rows.",
    ),
)

BY_ID = {rule.id: rule for rule in RULES}


def _ids(*scopes: Scope) -> list[str]:
    return [rule.id for rule in RULES if rule.scope in scopes]


_KNOWN = (
    f"self.all(k, k in {_ids(*Scope)})",
    f"the rules of dataset.checks are {', '.join(_ids(*Scope))}",
)
_BROKEN = (
    f"self.all(k, !(k in {_ids(Scope.BROKEN)}) || self[k] in ['Drop', 'Fail'])",
    f"{', '.join(_ids(Scope.BROKEN))} are about rows that are not valid examples: write Drop or Fail",
)
_WHOLE = (
    f"self.all(k, !(k in {_ids(Scope.WHOLE)}) || self[k] != 'Drop')",
    f"{', '.join(_ids(Scope.WHOLE))} are about the data as a whole, not about rows: write Warn, Fail or Ignore",
)


def _possible(chosen: dict[str, Policy]) -> dict[str, Policy]:
    """The same three rules for run files that were not validated by an API server."""
    for id, policy in chosen.items():
        if id not in BY_ID:
            raise ValueError(f"{id!r} is not a rule: {_KNOWN[1]}")
        if policy not in ALLOWED[BY_ID[id].scope]:
            raise ValueError(f"{id} cannot be {policy}: write {', '.join(ALLOWED[BY_ID[id].scope])}")
    return chosen


Checks = Annotated[
    dict[str, Policy],
    Field(max_length=len(RULES), json_schema_extra=model.rules(_KNOWN, _BROKEN, _WHOLE)),
    pydantic.AfterValidator(_possible),
]


def policy(chosen: dict[str, Policy], id: str) -> Policy:
    """The job's policy for a rule."""
    return chosen.get(id, BY_ID[id].default)
