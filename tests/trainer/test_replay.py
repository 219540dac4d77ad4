"""General examples in training: which ones, how many, that they are drawn once, and that a resumed training sees the same."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import pytest
import torch
import transformers

from finetune_api import job, run
from finetune_trainer.data import corpus, tokens
from finetune_trainer.evaluation import forgetting
from finetune_trainer.planning import epoch_count
from finetune_trainer.process import errors
from finetune_trainer.stages import preflight, train
from finetune_trainer.store import folders, storage
from finetune_trainer.training import batches, processes, replay

World = Callable[..., run.Run]


def training(share: float, **fields: float) -> job.Training:
    return job.Training.model_validate({"replay": {"share": share}, **fields})


def test_the_share_is_that_of_all_examples() -> None:
    assert epoch_count.replayed(90, training(0.1)) == 10
    assert epoch_count.replayed(50, training(0.5)) == 50
    assert epoch_count.replayed(3, training(0.01)) == 1
    assert epoch_count.replayed(90, job.Training()) == 0


def test_general_examples_come_on_top_of_the_tasks_and_are_counted() -> None:
    plain, mixed = (batches.plan(90, one) for one in (job.Training(epochs=2), training(0.1, epochs=2)))
    assert (plain.total, mixed.total) == (180, 200)
    seen = [number for step in range(mixed.steps) for number in mixed.step(step)]
    assert sorted(seen) == sorted([*range(100), *range(100)]), (
        "each epoch has every example of the task and ten general ones"
    )
    limited = batches.plan(90, training(0.1, maxSteps=5))
    assert (limited.steps, limited.total) == (5, 80)


def test_prompts_are_many_different_and_none_of_the_evaluation() -> None:
    prompts = replay.PROMPTS.read_text().splitlines()
    assert len(set(prompts)) == len(prompts) >= 100
    asked = {one.messages[0].content for one in forgetting.built_in().prompts}
    assert not asked.intersection(prompts)


def test_answers_are_the_base_models_drawn_once_and_learned_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world(training={"replay": {"share": 0.25}, "maxSteps": 2})
    preflight.preflight(spec)
    result = train.train(spec, 1, 1.0)
    assert result.training is not None
    found = corpus.read(path_of(spec.layout.replay))
    split = corpus.read(path_of(spec.layout.data) / "corpus" / "train")
    assert found.examples == epoch_count.replayed(split.examples, spec.training)
    for row in range(found.examples):
        learned = found.learned(row)
        begin = int(learned.argmax())
        assert 0 < begin < len(learned), "a prompt, then an answer"
        assert learned[begin:].all()
        assert len(learned) - begin <= replay.LENGTH
    stored = folders.manifest(storage.of(spec.storage), spec.layout.replay)
    monkeypatch.setattr(replay.generate, "sample", None)
    folders.withdraw(storage.of(spec.storage), spec.layout.adapter)
    train.train(spec, 2, 1.0)
    again = folders.manifest(storage.of(spec.storage), spec.layout.replay)
    assert stored is not None
    assert again is not None
    assert again.sha256 == stored.sha256, "a later attempt reads them"


def test_the_first_loss_is_the_mean_over_task_and_general_examples(base: pathlib.Path, world: World) -> None:
    spec = world(training={"replay": {"share": 0.5}, "maxSteps": 1, "batchSize": 40, "precision": "Float32"})
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    folder = path_of(spec.layout.adapter)
    loss = json.loads((folder / "training.json").read_text())["history"][0]["loss"]
    own, general = corpus.read(path_of(spec.layout.data) / "corpus" / "train"), corpus.read(path_of(spec.layout.replay))
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    nats, count, beyond = 0.0, 0, 0
    for number in batches.plan(own.examples, spec.training).step(0):
        source, row = (own, number) if number < own.examples else (general, number - own.examples)
        beyond += source is general
        ids = torch.tensor(source.ids(row).astype("int64"))
        with torch.inference_mode():
            scores = torch.log_softmax(plain(ids[None]).logits[0, :-1], -1)
        each = -scores.gather(1, ids[1:, None])[:, 0]
        learned = torch.tensor(source.learned(row)[1:])
        nats, count = nats + float(each[learned].sum()), count + int(learned.sum())
    assert beyond > 5
    assert loss == pytest.approx(nats / count, rel=1e-4)


def test_without_room_for_a_prompt_the_training_ends(
    base: pathlib.Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world(training={"replay": {"share": 0.1}})
    encoder = dataclasses.replace(tokens.load(base, spec.training), max_length=2)
    monkeypatch.setattr(replay.tokens, "load", lambda *_: encoder)
    with pytest.raises(errors.Failure, match="no general prompt fits"):
        replay.load(spec, storage.of(spec.storage), processes.ProcessGroup(), None, base, torch.device("cpu"), 20)


def path_of(uri: str) -> pathlib.Path:
    return pathlib.Path(uri.removeprefix("file://"))
