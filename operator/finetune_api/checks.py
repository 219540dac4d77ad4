"""The rules by which preflight checks a job's examples before a GPU is asked for: one table for API, trainer and documentation.

What a rule looks for is code of the trainer (`finetune_trainer.checks`); its name, its severity and what may be done about it
are part of the API.
"""

import dataclasses
import enum
from typing import Annotated

import pydantic
from pydantic import Field

from finetune_api import model


class Policy(enum.StrEnum):
    DROP = "Drop"
    """Leave the rows out, before the split is made, and say how many."""
    WARN = "Warn"
    """Say so and go on."""
    FAIL = "Fail"
    """End the job with reason DatasetInvalid."""
    # Not "Off": YAML readers turn a bare Off into false.
    IGNORE = "Ignore"
    """Do not look."""


class Severity(enum.StrEnum):
    ERROR = "error"
    """Training or evaluation would be wrong. The verdict becomes Caution."""
    WARNING = "warning"
    """Training or evaluation would be worse, or a model would give away what should stay private. The verdict becomes Caution
    from one example in a hundred on."""
    NOTE = "note"
    """Worth knowing; the verdict stays as it is."""


class Scope(enum.StrEnum):
    BROKEN = "broken"
    """Rows that are no examples: they can only be left out (Drop) or end the job (Fail)."""
    ROWS = "rows"
    """Examples: every policy."""
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
    """A sentence: what the rule fires on."""
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
        "Nobody knows what it was meant to teach; often the upload broke off.",
        "Write the file anew as UTF-8. Drop leaves out single lines; a file that breaks off fails all the same, since what "
        "follows in it is lost.",
    ),
    Rule(
        "schema",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "A row lacks a field of its format, or a field is of another type.",
        "The row is no example.",
        "Compare it with dataset.format; the finding says what was seen and what was expected.",
    ),
    Rule(
        "roleOrder",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "The turns of a chat do not alternate between user and assistant, after at most one system turn, up to an answer; "
        "results of tools stand between a call and what the assistant does next.",
        "Chat templates render such a chat as something that the server will never see.",
        "Merge turns of the same role, or cut the chat after its last answer.",
    ),
    Rule(
        "toolCalls",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "A tool or a call is not as OpenAI's API has it, a call is of a tool that the row does not have or its arguments are no "
        "JSON object, a result belongs to no call, or a call has no result before the next turn.",
        "The model learns calls that nobody can make, or sees results that it never asked for.",
        "Write `tools`, `tool_calls` and `tool_call_id` as a request has them; a chat may end with calls.",
    ),
    Rule(
        "emptyAnswers",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "An answer that calls no tool, or a prompt that must have a text, is empty or only white space.",
        "A model that learns it falls silent.",
        "Fill in what should have been said, or drop the rows.",
    ),
    Rule(
        "template",
        _ERROR,
        Policy.FAIL,
        Scope.BROKEN,
        "The model's chat template refuses the chat, leaves out its tools or calls, or renders the turns before an answer "
        "differently once the answer follows.",
        "The answer cannot be learned as the server will be asked for it.",
        "Read the finding: often the model knows no system turn or no tools, or rewrites earlier turns (then training.lossOn: "
        "LastAssistant helps).",
    ),
    Rule(
        "untrainable",
        _WARNING,
        Policy.DROP,
        Scope.ROWS,
        "No token of the answer is left to learn once the example is cut at training.maxSequenceLength.",
        "The example costs time and teaches nothing.",
        "Raise training.maxSequenceLength or shorten the prompts.",
    ),
    Rule(
        "duplicates",
        _WARNING,
        Policy.DROP,
        Scope.ROWS,
        "An example repeats an earlier one of the same files, prompt and answer alike.",
        "It counts twice in training, and the data are fewer than they look.",
        "Leave the repetitions out; Drop keeps the first of each.",
    ),
    Rule(
        "nearDuplicates",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "Five percent of the examples or more are nearly the same text as an earlier one; what a tenth of all examples share, "
        "such as a system prompt, does not count.",
        "The data are less diverse than their number says, and the model learns them by heart.",
        "Collect different cases instead of variants. Drop keeps the first of each group, whatever their share.",
    ),
    Rule(
        "contradictions",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "The same prompt has different answers (of preference pairs: an answer is chosen here and rejected there).",
        "The model learns to waver between them. Where several answers are right, this is fine.",
        "Decide which answer is right. Drop leaves out all rows of such a prompt.",
    ),
    Rule(
        "leakage",
        _ERROR,
        Policy.FAIL,
        Scope.ROWS,
        "The prompt of a validation or test example of its own file is also in the training data.",
        "The evaluation measures memory and not skill.",
        "Remove the prompt from one side. Drop leaves it out of training and keeps the held-out example.",
    ),
    Rule(
        "nearLeakage",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "After the split, five percent of the validation and test examples or more are nearly the same text as a training "
        "example.",
        "The evaluation says more than it knows.",
        "Hold out by customer, document or date instead of by row. Drop leaves the similar examples out of "
        "training, whatever their share.",
    ),
    Rule(
        "truncation",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "Five percent of the examples or more are longer than training.maxSequenceLength and are cut.",
        "Cut answers have no stop token: the model learns the beginning of an answer and not its end.",
        "Raise training.maxSequenceLength or shorten the examples. Drop leaves out every cut example.",
    ),
    Rule(
        "stopToken",
        _ERROR,
        Policy.FAIL,
        Scope.ROWS,
        "A learned answer has no token at which the server stops, before the next turn begins or at the end.",
        "The model will not stop when it has answered, and learns to write the user's turn as well.",
        "Check the chat template and the model's generation_config.json; where only earlier turns are concerned, "
        "training.lossOn: LastAssistant helps.",
    ),
    Rule(
        "promptPrefix",
        _NOTE,
        Policy.WARN,
        Scope.ROWS,
        "Tokenized as a whole, the answer's first letters would merge with the prompt's last ones.",
        "Trained like that, the model would learn a token that it cannot begin with when asked. The trainer tokenizes both sides "
        "on their own, as the server does.",
        "Nothing; a chat template that ends the prompt with a special token or a line break avoids it.",
    ),
    Rule(
        "doubleBos",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "An example begins with two begin-of-sequence tokens.",
        "The model never saw that before, and the server may or may not repeat it.",
        "Remove the token from the data: the chat template or the tokenizer writes it.",
    ),
    Rule(
        "specialTokens",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "A text contains a special token of the model, such as `<|im_end|>`.",
        "The model reads it as a command: a turn that ends early, or a role that nobody has.",
        "Remove it: often a chat was rendered before it was saved.",
    ),
    Rule(
        "labelImbalance",
        _WARNING,
        Policy.WARN,
        Scope.WHOLE,
        "The answers are a few labels, and one of them is four in five, or half of all and ten times the rarest.",
        "A model that always says the most frequent label looks good and is useless.",
        "Collect more of the rare labels, and gate on a metric that counts each label alike.",
    ),
    Rule(
        "constantAnswers",
        _WARNING,
        Policy.WARN,
        Scope.WHOLE,
        "At least 95 % of the answers are the same.",
        "There is nothing to learn but that answer.",
        "Check that the right field is the answer; a task with one answer needs no model.",
    ),
    Rule(
        "jsonAnswers",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "Most answers are JSON objects or lists, and this one does not parse.",
        "The model learns to break the format now and then.",
        "Repair the rows, or drop them.",
    ),
    Rule(
        "toolArguments",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "The arguments of a learned call do not fit the parameters of its tool, by JSON Schema.",
        "The model learns to call tools in a way that they refuse.",
        "Correct the call or the tool's parameters, or drop the rows.",
    ),
    Rule(
        "reasoningTags",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "Some answers have a reasoning block such as `<think>`, others have none; or a block is not closed.",
        "The model cannot know when to reason, and the server may show what should be hidden.",
        "Have it in all answers or in none. Drop leaves out the rarer kind.",
    ),
    Rule(
        "refusals",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "An answer refuses, or speaks of itself as an AI.",
        "Leftovers of the model that wrote the data; the tuned model will refuse what it should do.",
        "Read them: keep refusals that are meant, drop the rest.",
    ),
    Rule(
        "languageMix",
        _NOTE,
        Policy.WARN,
        Scope.ROWS,
        "An answer is neither in the language of most answers nor in that of its prompt.",
        "The model will switch languages by itself.",
        "Translate the rows or drop them.",
    ),
    Rule(
        "secrets",
        _ERROR,
        Policy.FAIL,
        Scope.ROWS,
        "A text contains a key, token or password of a known form.",
        "A model repeats what it learned, to anyone who asks. The finding names the place, never the secret.",
        "Revoke the secret, remove it from the data, and run again.",
    ),
    Rule(
        "personalData",
        _WARNING,
        Policy.WARN,
        Scope.ROWS,
        "A text contains an e-mail address, an international phone number, an IBAN, or the number of a payment card.",
        "A model repeats what it learned; there may be no permission to train on it.",
        "Replace it with placeholders, or drop the rows.",
    ),
)

BY_ID = {rule.id: rule for rule in RULES}


def _ids(*scopes: Scope) -> list[str]:
    return [rule.id for rule in RULES if rule.scope in scopes]


_KNOWN = (
    f"self.all(k, k in {_ids(*Scope)})",
    f"dataset.checks knows the rules {', '.join(_ids(*Scope))}",
)
_BROKEN = (
    f"self.all(k, !(k in {_ids(Scope.BROKEN)}) || self[k] in ['Drop', 'Fail'])",
    f"{', '.join(_ids(Scope.BROKEN))} speak of rows that are no examples: write Drop or Fail",
)
_WHOLE = (
    f"self.all(k, !(k in {_ids(Scope.WHOLE)}) || self[k] != 'Drop')",
    f"{', '.join(_ids(Scope.WHOLE))} speak of the data as a whole, not of rows: write Warn, Fail or Ignore",
)


def _possible(chosen: dict[str, Policy]) -> dict[str, Policy]:
    """The same three rules for run files that no API server has seen."""
    for id, policy in chosen.items():
        if id not in BY_ID:
            raise ValueError(f"{id!r} is no rule: {_KNOWN[1]}")
        if policy not in ALLOWED[BY_ID[id].scope]:
            raise ValueError(f"{id} cannot be {policy}: write {', '.join(ALLOWED[BY_ID[id].scope])}")
    return chosen


Checks = Annotated[
    dict[str, Policy],
    Field(max_length=len(RULES), json_schema_extra=model.rules(_KNOWN, _BROKEN, _WHOLE)),
    pydantic.AfterValidator(_possible),
]


def policy(chosen: dict[str, Policy], id: str) -> Policy:
    """What a job does about a rule."""
    return chosen.get(id, BY_ID[id].default)
