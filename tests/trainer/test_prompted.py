"""training.prompt: the adapter is trained, evaluated and verified with the system prompt of the job, and says so."""

import json
import pathlib
from collections.abc import Callable

import pytest
from tests.trainer import tiny

from finetune_api import job, results, run
from finetune_trainer import report
from finetune_trainer.data import corpus, dataset, prompted, tokens
from finetune_trainer.evaluation import contenders, divergence
from finetune_trainer.process import machine
from finetune_trainer.stages import evaluate, preflight, train
from finetune_trainer.store import folders, storage

World = Callable[..., run.Run]
SYSTEM = "Answer with JSON only."
OWN = "You sort mail."
CHAT = dataset.example(tiny.examples(1)[0], job.Format.CHAT, "f:1")


def turns(example: dataset.Example) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in example.messages]


def test_the_prompt_takes_the_place_of_the_examples_own() -> None:
    question, answer = turns(CHAT)[1:]
    assert turns(prompted.with_system(CHAT, SYSTEM, inline=False)) == [("system", SYSTEM), question, answer]
    assert turns(prompted.with_system(CHAT, SYSTEM, inline=True)) == [
        ("user", f"{SYSTEM}\n\n{question[1]}"),
        answer,
    ]
    plain = dataset.from_record({"source": "t", "text": "Thank you!"})
    assert prompted.with_system(plain, SYSTEM, inline=False) == plain


def test_an_adapter_is_asked_with_the_prompt_that_it_was_trained_with() -> None:
    script = contenders.Script(job.Prompt(system="another"), trained={job.Contender.TUNED: SYSTEM})
    assert turns(script.ask(CHAT, job.Contender.TUNED))[0] == ("system", SYSTEM)
    assert turns(script.ask(CHAT, job.Contender.SERVING))[0] == ("system", OWN)
    assert turns(script.ask(CHAT, job.Contender.PROMPT))[0] == ("system", "another")


def test_only_a_training_with_the_prompt_gets_it_in_its_run_file(world: World) -> None:
    intent = {"prompt": {"system": SYSTEM, "fewShot": 2}}
    assert world(intent=intent).without_judgement().intent == job.Intent()
    trained = world(intent=intent, training={"prompt": "Prompt"}).without_judgement()
    assert (trained.trained_prompt, trained.intent.prompt.few_shot) == (SYSTEM, job.Prompt().few_shot)


def test_a_job_is_trained_and_judged_with_its_prompt(
    world: World, base: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in divergence.PROMPTS:
        monkeypatch.setitem(divergence.PROMPTS, kind, 2)
    rules = {
        "baselines": ["Base", "Prompt"],
        "generation": {"maxNewTokens": 4},
        "maximumExamples": 4,
        "forgetting": {"maximumQuestions": 8},
        "gates": [],
    }
    spec = world(training={"maxSteps": 2, "prompt": "Prompt"}, intent={"prompt": {"system": SYSTEM}}, evaluation=rules)
    preflight.preflight(spec)
    store = storage.of(spec.storage)

    # What is learned has the prompt, the frozen text is as written, and another prompt would be encoded again.
    def first(system: str | None) -> str:
        found = corpus.load(store, spec.layout.data, base, spec.training, system).train
        return str(tokens.load(base, spec.training).tokenizer.decode(found.ids(0)))

    assert SYSTEM in first(SYSTEM)
    assert OWN not in first(SYSTEM)
    assert OWN in first(None)
    assert all(turns(one)[0][1] == OWN for one in dataset.frozen(machine.work() / "data" / "train.jsonl"))

    train.train(spec.without_judgement(), 1, 1.0)
    manifest = folders.manifest(store, spec.layout.adapter)
    assert manifest is not None
    assert manifest.extra[prompted.KEY] == SYSTEM
    found = evaluate.evaluate(spec, None, None, 1)
    assert "clients must send the system prompt of intent.prompt" in found.message
    folder = pathlib.Path(spec.layout.evaluation("e1").removeprefix("file://"))
    asked = json.loads((folder / "canary.json").read_text())["request"]["messages"]
    assert asked[0] == {"role": "system", "content": SYSTEM}, "the server is verified as clients will ask it"
    scores = results.Results.model_validate_json((folder / "results.json").read_text())
    spent = {one.contender: one.prompt for one in scores.tokens}
    assert spent[job.Contender.TUNED] == spent[job.Contender.PROMPT] != spent[job.Contender.BASE]
    assert scores.training.prompt == SYSTEM
    assert "; the system prompt in each request" in report.page(scores)
