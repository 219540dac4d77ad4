"""Tasks in the shape of public ones, made from a seed, with what is expected of each before anything is measured."""

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

from tests.scenarios import data, methods

Row = dict[str, Any]


def intents(labels: int) -> Callable[[int], list[Row]]:
    """As CLINC150 and Banking77: short wishes, each with one of so many labels."""
    wishes = [f"{verb} the {noun}" for verb, noun in zip(data.VERBS * 3, data.NOUNS * 2, strict=False)][:labels]

    def rows(count: int) -> list[Row]:
        def one(rng: random.Random, number: int) -> methods.Pair:
            wish = rng.choice(wishes)
            filler = f"{rng.choice(data.ADJECTIVES)} {rng.choice(data.PLACES)}"
            return f"{rng.choice(methods.FRAMES).format(wish)} It is in the {filler}.", wish.replace(" the ", "_")

        return [data.chat(*pair) for pair in methods.drawn(count, f"bench intents {labels}", one)]

    return rows


def arithmetic(count: int) -> list[Row]:
    """As GSM8K's easiest: two steps in words, and the number alone as the answer."""

    def one(rng: random.Random, number: int) -> methods.Pair:
        who, what = data.name(rng), rng.choice(data.NOUNS)
        have, more, gone = rng.randint(10, 60), rng.randint(5, 40), rng.randint(1, 9)
        text = f"{who} has {have} {what}s, buys {more} more and loses {gone}. How many {what}s does {who} have?"
        return text, str(have + more - gone)

    return [data.chat(*pair) for pair in methods.drawn(count, "bench arithmetic", one)]


def knowledge(count: int) -> list[Row]:
    """As closed-book questions: facts of a handbook, each asked once."""
    return [data.chat(*pair) for pair in methods.handbook(count)[0]]


def handbook(count: int) -> str:
    return methods.handbook(count)[1]


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    shape: str
    """The public task that it is like."""
    rows: Callable[[int], list[Row]]
    system: str
    """The prompt that a person would write."""
    expected: str
    """Written before the first run: what should win, and why."""
    metric: str = "ExactMatch"
    minimum: float = 0.8
    answer: int = 24
    """Tokens of an answer, at most."""
    schema: dict[str, Any] | None = None
    documents: Callable[[int], str] | None = None


BUDGET = 10
"""Times the training's time, for the baselines: every one is to be measured here, whatever it takes."""

EXTRACTED = {
    "type": "object",
    "properties": {
        "order": {"type": "integer"},
        "date": {"type": "string", "maxLength": 12},
        "customer": {"type": "string", "maxLength": 24},
        "urgent": {"type": "boolean"},
    },
    "required": ["order", "date", "customer", "urgent"],
    "additionalProperties": False,
}

TASKS = (
    Task(
        "intents10",
        "intent classification, 10 labels",
        intents(10),
        "Answer with the intent of the message, as verb_noun, and nothing else.",
        "retrieved examples come close to training: each label has two words of its own",
    ),
    Task(
        "intents77",
        "intent classification, 77 labels (Banking77)",
        intents(77),
        "Answer with the intent of the message, as verb_noun, and nothing else.",
        "training, by a little: the label is in the words of the message, so that the rule is one for all labels",
    ),
    Task(
        "extraction",
        "extraction to JSON",
        data.extraction,
        "Extract order (a number), date (ISO), customer (the first name) and urgent (true or false) as JSON.",
        "training: a prompt knows neither the form of dates nor which name counts; `urgent` is drawn, nobody can know it",
        metric="FieldF1",
        minimum=0.7,
        answer=64,
        schema=EXTRACTED,
    ),
    Task(
        "style",
        "style transfer",
        data.style,
        "Write the note as a friendly answer to a customer.",
        "training: three openings and three bodies are the house's, no prompt names them",
        metric="RougeL",
        minimum=0.6,
        answer=64,
    ),
    Task(
        "knowledge",
        "closed-book questions",
        knowledge,
        "Answer with the price alone.",
        "the documents: each fact is asked once, so that no held-out answer can be learned",
        documents=handbook,
    ),
    Task(
        "arithmetic",
        "arithmetic in words (GSM8K's easiest)",
        arithmetic,
        "Answer with the number alone.",
        "nothing: a model of this size can hardly add in one step, and a few hundred rows do not teach it",
    ),
)

BY_NAME = {task.name: task for task in TASKS}


def manifest(task: Task, count: int, model: str, folder: str, epochs: float) -> list[dict[str, Any]]:
    """The job and its base model, as for `finetune run` beside data.jsonl and, with documents, handbook.md."""
    evaluation: dict[str, Any] = {
        "maximumExamples": 100,
        "baselineBudget": BUDGET,
        "generation": {"maxNewTokens": task.answer},
        "gates": [{"metric": task.metric, "minimum": task.minimum}, {"metric": task.metric, "over": "BestBaseline"}],
    }
    intent: dict[str, Any] = {"prompt": {"system": task.system, "fewShot": 3}}
    if task.schema is not None:
        evaluation["outputSchema"] = task.schema
    if task.documents is not None:
        intent["retrieval"] = {"uris": [f"{folder}/handbook.md"]}
    spec = {
        "intent": intent,
        "baseModel": {"name": "smollm2-135m-instruct"},
        "dataset": {
            "train": [f"{folder}/data.jsonl"],
            "minimumExamples": 1,
            "validation": {"fraction": 0.15},
            "test": {"fraction": min(0.5, 100 / count) if count > 300 else 0.3},
        },
        "storage": {"output": f"{folder}/out"},
        "training": {"lora": {"rank": 8, "alpha": 16}, "epochs": epochs, "batchSize": 8, "maxSequenceLength": 512},
        "resources": {"gpus": 0},
        "evaluation": evaluation,
    }
    head = {"apiVersion": "finetune.dev/v1alpha1"}
    return [
        head | {"kind": "FineTuneJob", "metadata": {"name": task.name, "namespace": "bench"}, "spec": spec},
        head | {"kind": "BaseModel", "metadata": {"name": "smollm2-135m-instruct"}, "spec": {"source": model}},
    ]


def write(task: Task, count: int, model: str, folder: Any, epochs: float) -> Any:
    """The job's folder; returns the manifest."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task.rows(count)))
    if task.documents is not None:
        (folder / "handbook.md").write_text(task.documents(count))
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump_all(manifest(task, count, model, str(folder), epochs), sort_keys=False))
    return file
