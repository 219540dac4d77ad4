"""Examples of another kind than the job needs are refused in preflight, with the way out."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import reasons, run
from finetune_trainer.process import errors
from finetune_trainer.stages import preflight

World = Callable[..., run.Run]
CASES = pathlib.Path(__file__).parent / "cases"

PAIRS = [
    {"prompt": f"Is {n} late?", "chosen": f"{n} is on time.", "rejected": f"No idea about {n}."} for n in range(30)
]
TEXTS = [{"text": f"Story {n} of a fox that went {n} miles to see the sea."} for n in range(30)]
ONE_PROMPT = [{"prompt": "Write a text.", "completion": f"Our kettle {n * n} is sturdy."} for n in range(40)]
GATE = {"gates": [{"metric": "ExactMatch", "minimum": 0.5}]}


def case(name: str) -> list[Any]:
    return [json.loads(line) for line in (CASES / name).read_text().splitlines()]


@pytest.mark.parametrize(
    "rows, changes, words",
    [
        (PAIRS, {}, ["preference pairs", "training.objective: DPO"]),
        (case("01-preference-rows.jsonl"), {}, ["preference pairs", "training.objective: DPO"]),
        (tiny.examples(30), {"training": {"objective": "DPO"}}, ["one answer each", "training.objective: SFT"]),
        (
            case("02-chat-rows.jsonl"),
            {"training": {"objective": "DPO"}},
            ["one answer each", "training.objective: SFT"],
        ),
        (TEXTS, {"training": {"objective": "DPO"}}, ["one answer each"]),
        (TEXTS, {"evaluation": GATE}, ["the gate on ExactMatch", "plain text"]),
        (TEXTS, {"evaluation": {"labels": ["a", "b"]}}, ["evaluation.labels", "plain text"]),
        (TEXTS, {"evaluation": {"outputSchema": {"type": "object"}}}, ["evaluation.outputSchema"]),
        (ONE_PROMPT, {}, ["all 40 examples have the same prompt", "dataset.test.uris"]),
        (case("53-constant-prompt.jsonl"), {}, ["have the same prompt", "dataset.test.uris"]),
        (ONE_PROMPT[:3], {"evaluation": GATE}, ["the gate on ExactMatch needs test examples", "all 3 examples"]),
        (tiny.examples(3), {"evaluation": GATE}, ["needs test examples", "3 different prompts"]),
        (
            [{**row, "customer": "a"} for row in tiny.examples(40)],
            {"dataset": {"groupBy": "customer"}},
            ["the 40 examples have 1 group by dataset.groupBy (customer)", "a field with more values"],
        ),
        (
            TEXTS,
            {"training": {"prompt": "Prompt"}, "intent": {"prompt": {"system": "Be brief."}}},
            ["training.prompt Prompt", "plain text", "remove training.prompt"],
        ),
    ],
)
def test_examples_of_another_kind_than_the_job_needs_are_refused(
    world: World, rows: list[Any], changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(errors.Failure) as caught:
        preflight.preflight(world(rows, **changes))
    assert caught.value.reason is reasons.Reason.DATASET_INVALID
    for one in words:
        assert one in caught.value.message


@pytest.mark.parametrize(
    "rows, changes",
    [
        (PAIRS, {"training": {"objective": "DPO"}}),
        (TEXTS, {"evaluation": {"gates": [{"metric": "Perplexity", "maximum": 9.0}]}}),
        (tiny.examples(3), {}),
        (tiny.examples(80), {"evaluation": GATE}),
    ],
)
def test_examples_of_the_right_kind_pass(world: World, rows: list[Any], changes: dict[str, Any]) -> None:
    assert preflight.preflight(world(rows, **changes)).preflight is not None
