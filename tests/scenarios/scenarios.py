"""What people ask for, as a table: data, the change of the job, and the verdict that preflight must give with its reasons.

`rules` are those of the advisor that must speak above a note, all of them; `findings` are data checks that must be among what was
found. Training on these data is for scenarios of their own.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from tests.scenarios import data

FIT, CAREFUL, UNFIT = "Recommended", "Caution", "NotRecommended"
MINIMUM = 200

Rows = list[data.Row]

LARGE = {
    "layers": 80,
    "hiddenSize": 8192,
    "intermediateSize": 28672,
    "attentionHeads": 64,
    "keyValueHeads": 8,
    "headDim": 128,
    "vocabularySize": 128256,
    "maxPositions": 131072,
}


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    rows: Callable[[], Rows]
    verdict: str
    rules: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    reason: str | None = None
    """Why the job ends; None: it continues."""
    job: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Sections of the run file."""
    test: Callable[[], Rows] | None = None
    """A test file of its own."""

    def __str__(self) -> str:
        return self.name


def intent(*goals: str, advice: str = "Warn", every: str = "Rarely") -> dict[str, Any]:
    return {"intent": {"goals": list(goals), "advice": advice, "changeFrequency": every}}


# -- data that something is wrong with --


def contradictory() -> Rows:
    rows = data.classification(300)
    return rows + [data.chat(row["messages"][0]["content"], "other") for row in rows[:60]]


def copies() -> Rows:
    """Five questions a hundred times, each with another name."""
    rng = random.Random("copies")
    forms = ("Where is my order, {}?", "Hello {}, my parcel is late.", "{} says thank you.", "{} wants the money back.")
    return [data.chat(forms[number % 4].format(data.name(rng)), f"{{'intent': {number % 4}}}") for number in range(400)]


def numbered() -> Rows:
    return [data.chat(f"The pump {number} is broken.", "Send somebody.") for number in range(300)]


def constant() -> Rows:
    return [data.chat(row["messages"][0]["content"], "Please call our desk.") for row in data.classification(300)]


def imbalanced() -> Rows:
    return data.classification(400, weights=(90, 4, 3, 3))


def secret() -> Rows:
    rows = data.style(300)
    for number in range(0, 300, 50):
        rows[number]["messages"][-1]["content"] += " Use the token glpat-" + "q7Rk2ZpL9mVx4TbN8cYw."
    return rows


def reasoning() -> Rows:
    rows = data.classification(300)
    for row in rows[:100]:
        row["messages"][-1]["content"] = f"<think>It is about a thing.</think>{row['messages'][-1]['content']}"
    return rows


def long() -> Rows:
    rows = data.summaries(300)
    for row in rows[:60]:
        row["messages"][-1]["content"] += " and so on" * 400
    return rows


def cut() -> Rows:
    """As a column of 150 characters holds them."""
    rows = data.style(300)
    for row in rows:
        row["messages"][-1]["content"] = row["messages"][-1]["content"][:150]
    return rows


def two_languages() -> Rows:
    rows = data.style(300)
    answers = [row["messages"][-1]["content"] for row in data.stil(300)]
    for number in range(0, 300, 6):
        text = f"Wir danken Ihnen sehr für die Nachricht, und es ist uns eine Freude. {answers[number]}"
        rows[number]["messages"][-1]["content"] = text
    return rows


def broken_json() -> Rows:
    rows = data.extraction(300)
    for row in rows[:30]:
        row["messages"][-1]["content"] = row["messages"][-1]["content"][:-4]
    return rows


def twice() -> Rows:
    return data.style(300) * 2


SCENARIOS = (
    # enough data?
    Scenario("twenty rows", lambda: data.extraction(20), UNFIT, ("examples_are_too_few",)),
    Scenario("a few dozen rows", lambda: data.style(60), UNFIT, ("examples_are_too_few",)),
    Scenario(
        "a few dozen rows, enforced",
        lambda: data.style(60),
        UNFIT,
        ("examples_are_too_few",),
        reason="TooFewExamples",
        job=intent("Style", advice="Enforce"),
    ),
    Scenario("a few dozen rows, ignored", lambda: data.style(60), FIT, job=intent("Style", advice="Ignore")),
    Scenario("hundreds of rows", lambda: data.extraction(300), FIT, job=intent("Format")),
    Scenario("every row twice", twice, CAREFUL, findings=("duplicates",)),
    Scenario("near copies of four prompts", copies, UNFIT, ("examples_are_near_copies",)),
    Scenario(
        "near copies, enforced",
        copies,
        UNFIT,
        ("examples_are_near_copies",),
        reason="TooFewExamples",
        job=intent(advice="Enforce"),
    ),
    Scenario(
        "one prompt, numbered, and one answer",
        numbered,
        UNFIT,
        ("examples_are_near_copies", "answer_is_always_the_same"),
    ),
    Scenario("the same answer to everything", constant, UNFIT, ("answer_is_always_the_same",), ("constantAnswers",)),
    # good data?
    Scenario("contradictory answers", contradictory, CAREFUL, findings=("contradictions",)),
    Scenario("one label nearly always", imbalanced, CAREFUL, findings=("labelImbalance",)),
    Scenario("JSON that breaks", broken_json, CAREFUL, findings=("jsonAnswers",)),
    Scenario("a secret in some answers", secret, UNFIT, findings=("secrets",), reason="DatasetInvalid"),
    Scenario("reasoning in a third of the answers", reasoning, CAREFUL, findings=("reasoningTags",)),
    Scenario("answers longer than the longest sequence", long, CAREFUL, findings=("truncation",)),
    Scenario("answers cut at a number of characters", cut, CAREFUL, findings=("cutAnswers",)),
    Scenario("two languages", two_languages, FIT, findings=("languageMix",)),
    Scenario(
        "the test is in the training data",
        lambda: data.extraction(300),
        UNFIT,
        findings=("leakage",),
        reason="DatasetInvalid",
        test=lambda: data.extraction(30),
    ),
    # the right reason?
    Scenario("format only", lambda: data.extraction(400, 1), FIT, job=intent("Format", "Consistency")),
    Scenario("style", lambda: data.style(400, 1), FIT, job=intent("Style")),
    Scenario("classification", lambda: data.classification(400, 1), FIT, job=intent("Domain", "Cost")),
    Scenario("many codes", lambda: data.coding(900), FIT, job=intent("Domain")),
    Scenario("translation", lambda: data.translation(300), FIT, job=intent("Domain")),
    Scenario("summaries", lambda: data.summaries(300), FIT, job=intent("Style", "TokenReduction")),
    Scenario("code", lambda: data.code(300), FIT, job=intent("Format")),
    Scenario("politeness in German", lambda: data.stil(400), FIT, job=intent("Style")),
    Scenario("knowledge, stated", lambda: data.company(300), UNFIT, ("goal_is_knowledge",), job=intent("Knowledge")),
    Scenario(
        "knowledge, enforced",
        lambda: data.company(300),
        UNFIT,
        ("goal_is_knowledge",),
        reason="FineTuningNotRecommended",
        job=intent("Knowledge", advice="Enforce"),
    ),
    Scenario(
        "knowledge besides style",
        lambda: data.style(300),
        CAREFUL,
        ("goal_is_knowledge",),
        job=intent("Knowledge", "Style", advice="Enforce"),
    ),
    Scenario("knowledge, ignored", lambda: data.prices(300), FIT, job=intent("Knowledge", advice="Ignore")),
    Scenario("facts about firms, not stated", lambda: data.company(300), CAREFUL, ("answers_look_like_facts",)),
    Scenario("a price list", lambda: data.prices(300), CAREFUL, ("answers_look_like_facts",), job=intent("Style")),
    Scenario("drugs and doses", lambda: data.medicine(300), CAREFUL, ("answers_look_like_facts",)),
    Scenario("facts in German", lambda: data.firmen(300), CAREFUL, ("answers_look_like_facts",)),
    Scenario(
        "facts, enforced: a guess ends no job",
        lambda: data.company(300),
        CAREFUL,
        ("answers_look_like_facts",),
        job=intent(advice="Enforce"),
    ),
    Scenario(
        "general capability",
        lambda: data.style(300),
        UNFIT,
        ("goal_is_general_capability",),
        reason="FineTuningNotRecommended",
        job=intent("GeneralCapability", advice="Enforce"),
    ),
    Scenario(
        "weekly changes",
        lambda: data.extraction(300),
        UNFIT,
        ("requirements_change_often",),
        job=intent("Format", every="Weekly"),
    ),
    Scenario(
        "daily changes, enforced",
        lambda: data.extraction(300),
        UNFIT,
        ("requirements_change_often",),
        reason="FineTuningNotRecommended",
        job=intent("Format", advice="Enforce", every="Daily"),
    ),
    Scenario(
        "monthly changes",
        lambda: data.extraction(300),
        CAREFUL,
        ("requirements_change_monthly",),
        job=intent("Format", advice="Enforce", every="Monthly"),
    ),
    # the right size?
    Scenario(
        "a model of 70 billion",
        lambda: data.extraction(300),
        CAREFUL,
        ("base_model_is_large",),
        job={"baseModel": {"name": "llama-3.1-70b", "parameters": 70_553_706_496, "architecture": LARGE}},
    ),
)
