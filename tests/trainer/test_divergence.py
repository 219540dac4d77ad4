"""The divergence of an adapted model from its base: the estimate against the sum over the whole vocabulary."""

import pathlib
from collections.abc import Callable

import pytest
import torch
from tests.trainer import tiny

from finetune_api import job, run
from finetune_trainer.data import dataset
from finetune_trainer.engine import lora, model
from finetune_trainer.evaluation import answers, contenders, divergence, evidence, in_process

World = Callable[..., run.Run]
BASE, TUNED = job.Contender.BASE, job.Contender.TUNED


@pytest.fixture(scope="module")
def examples() -> list[dataset.Example]:
    return [dataset.from_record({"source": str(n), **row}) for n, row in enumerate(tiny.examples(40))]


@pytest.fixture
def runner(base: pathlib.Path, world: World) -> answers.ModelRunner:
    spec = world(training={"precision": "Float32"})
    plain = model.load(base, job.Precision.FLOAT32, torch.device("cpu"))
    encoder = answers.tokens.load(base, spec.training)
    engine = in_process.InProcess(plain, model.head(plain), torch.device("cpu"), spec, encoder.tokenizer)
    engine.model = lora.add(plain, spec.training.lora, "tiny-base").eval()
    return answers.ModelRunner(engine, encoder, contenders.Script(job.Prompt()), spec.evaluation)


def moved(runner: answers.ModelRunner) -> None:
    torch.manual_seed(5)
    for weight in lora.parameters(runner.engine.model).values():  # type: ignore[attr-defined]
        torch.nn.init.normal_(weight, std=0.08)


def exact(runner: answers.ModelRunner, prompts: list[list[int]]) -> float:
    """KL(tuned || base) of the first token, summed over the vocabulary and averaged over the prompts."""
    engine = runner.engine
    assert isinstance(engine, in_process.InProcess)
    found = []
    for prompt in prompts:
        each = []
        for which in (TUNED, BASE):
            with engine._as(which), torch.inference_mode():
                each.append(torch.log_softmax(engine.model(torch.tensor([prompt])).logits[0, -1].double(), -1))
        found.append(float((each[0].exp() * (each[0] - each[1])).sum()))
    return sum(found) / len(found)


def test_the_estimate_is_the_divergence_within_its_error(
    runner: answers.ModelRunner, examples: list[dataset.Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(runner)
    monkeypatch.setattr(divergence, "LENGTH", 1)
    prompts = [runner.encoder.prompt(one) for one in examples]
    rules = job.Consistency(samples=32, temperature=1.0)
    found = divergence.of_prompts(runner.engine, prompts, runner.encoder.stops, rules, 3)
    wanted = exact(runner, prompts)
    low, high = evidence.interval(found, 0.999) or (0.0, 0.0)
    assert wanted > 0.05, "the adapter moves the model"
    assert low < wanted < high
    assert high - low < wanted, "the error is small beside the divergence"


def test_an_adapter_that_changes_nothing_does_not_diverge(
    runner: answers.ModelRunner, examples: list[dataset.Example]
) -> None:
    found = divergence.measure(runner, examples, 3)
    assert found is not None
    assert found.value == pytest.approx(0.0, abs=1e-4)
    assert found.examples == divergence.PROMPTS[job.EvaluationEngine.IN_PROCESS]


def test_plain_texts_have_no_prompt_to_diverge_on(runner: answers.ModelRunner) -> None:
    assert divergence.measure(runner, [dataset.from_record({"source": "t", "text": "Thank you!"})], 3) is None
