"""Answers of many prompts together against transformers' own `generate`, one prompt at a time, in float32."""

import pathlib
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.trainer import decoders

from finetune_api import job
from finetune_trainer.engine import decoding, generate, kv_cache, lora, loss, model, passes
from finetune_trainer.process import errors, signals

CPU = torch.device("cpu")
STOPS = frozenset(range(40, 72))
LIMIT = 14


def prompts(shared: int = 0, count: int = 7) -> list[list[int]]:
    """Of unequal lengths, two of them equal; all begin with the same `shared` tokens."""
    numbers = np.random.default_rng(3)
    common = numbers.integers(64, 384, shared)
    tails = [numbers.integers(64, 384, length) for length in (3, 19, 9, 40, 1, 9, 5, 12, 33)[:count]]
    return [np.concatenate([common, tail]).tolist() for tail in [*tails, tails[1]]]


def one_by_one(
    tuned: Any, asked: list[list[int]], limit: int = LIMIT, stops: frozenset[int] = STOPS
) -> list[list[int]]:
    found = []
    for prompt in asked:
        answer = tuned.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(stops) or None,
            pad_token_id=0,
        )
        found.append(answer[0, len(prompt) :].tolist())
    return found


def greedy(
    tuned: Any, asked: list[list[int]], limit: int = LIMIT, stops: frozenset[int] = STOPS, **more: Any
) -> list[list[int]]:
    head = model.head(tuned.get_base_model() if hasattr(tuned, "get_base_model") else tuned)
    return generate.greedy(tuned, head, asked, stops, limit, CPU, **more)


def made(family: str) -> Any:
    config = decoders.FAMILIES[family]()
    config.tie_word_embeddings = False  # a random model with tied weights says the same word again and again
    return decoders.made(config).eval()


@pytest.mark.parametrize("shared", [0, 50])
@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_answers_are_those_of_transformers(family: str, shared: int) -> None:
    tuned = made(family)
    free = one_by_one(tuned, prompts(shared), stops=frozenset())
    stops = frozenset(answer[place + 1] for place, answer in enumerate(free[:4]))
    found = greedy(tuned, prompts(shared), stops=stops)
    assert decoding.of(model.decoder(tuned), CPU) is not None, "the family is known"
    ends = [next((end for end, token in enumerate(answer) if token in stops), LIMIT) for answer in free]
    assert found == [answer[: end + 1] for answer, end in zip(free, ends, strict=True)]
    assert len(set(map(len, found))) > 1, "rows end at different times"
    assert len({token for answer in free for token in answer}) > 20, "answers are no repetitions"


@pytest.mark.parametrize("family", ["llama 3", "gemma 3, alternating windows"])
def test_long_prompts_are_read_piece_by_piece(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = made(family)
    wanted = one_by_one(tuned, prompts(50))
    monkeypatch.setattr(decoding, "PIECE", 16)
    monkeypatch.setitem(decoding.TOGETHER, "cpu", 48)
    assert greedy(tuned, prompts(50)) == wanted


@pytest.mark.parametrize("plain", [False, True])
def test_with_the_adapters_off_it_is_the_base_model(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = made("qwen 3")
    if plain:
        monkeypatch.setattr(decoding, "of", lambda *_: None)
    with lora.disabled(tuned):
        base = greedy(tuned, prompts(30))
        assert base == one_by_one(tuned, prompts(30))
    assert greedy(tuned, prompts(30)) == one_by_one(tuned, prompts(30)) != base


def test_a_model_without_adapter_answers_too(base: pathlib.Path) -> None:
    loaded = model.load(base, job.Precision.FLOAT32, CPU)
    assert greedy(loaded, prompts()) == one_by_one(loaded, prompts())


def test_a_forward_pass_uses_the_current_adapter_weights() -> None:
    tuned = made("llama 3")
    before = greedy(tuned, prompts())
    with torch.no_grad():
        for weight in lora.parameters(tuned).values():
            weight.mul_(-1.5)
    found = greedy(tuned, prompts())
    assert found == one_by_one(tuned, prompts()) != before


def test_an_adapter_that_came_later_is_used() -> None:
    torch.manual_seed(2)
    loaded = transformers.AutoModelForCausalLM.from_config(decoders.FAMILIES["llama 3"]()).eval().requires_grad_(False)
    before = greedy(loaded, prompts())
    tuned = lora.add(loaded, job.LoRA(rank=8), "base").eval()
    for weight in lora.parameters(tuned).values():
        torch.nn.init.normal_(weight, std=0.1)
    found = greedy(tuned, prompts())
    assert found == one_by_one(tuned, prompts()) != before


def storages(tuned: Any) -> set[int]:
    """Where the weights of a model's linear layers are."""
    layers = [module for module in model.decoder(tuned).modules() if isinstance(module, torch.nn.Linear)]
    return {layer.weight.untyped_storage().data_ptr() for layer in layers}


def test_answers_while_it_trains_copy_no_weights() -> None:
    tuned = made("llama 3")
    motor = passes.of(tuned, model.head(tuned.get_base_model()), CPU)
    assert isinstance(motor, passes.Fast)
    before = storages(tuned)
    joined = {linear.weight.untyped_storage().data_ptr() for one in motor._inner.layers for linear in one.linears}
    assert joined <= before, "the passes' own"
    for _ in range(2):
        assert greedy(tuned, prompts(30)) == one_by_one(tuned, prompts(30))
        assert storages(tuned) == before
        with torch.no_grad():
            for weight in lora.parameters(tuned).values():
                weight.mul_(-1.5)


def test_what_generated_before_training_keeps_no_weights() -> None:
    torch.manual_seed(2)
    loaded = transformers.AutoModelForCausalLM.from_config(decoders.FAMILIES["llama 3"]()).eval().requires_grad_(False)
    greedy(loaded, prompts())
    answering = decoding.of(model.decoder(loaded), CPU)
    assert answering is not None
    copied = [weakref.ref(linear.weight) for one in answering.decoder.layers for linear in one.linears]
    del answering
    tuned = lora.add(loaded, job.LoRA(rank=8, dropout=0), "base")
    assert isinstance(passes.of(tuned, model.head(loaded), CPU), passes.Fast)
    assert not any(weight() is not None for weight in copied)


def test_dropout_is_no_obstacle() -> None:
    tuned = decoders.made(decoders.FAMILIES["qwen 2.5"](), dropout=0.2).eval()
    assert greedy(tuned, prompts()) == one_by_one(tuned, prompts())
    assert decoding.of(model.decoder(tuned), CPU) is not None


@pytest.mark.parametrize("shared", [0, 30])
def test_prompts_wait_for_places(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = made("llama 3")
    wanted = one_by_one(tuned, prompts(shared))
    monkeypatch.setitem(decoding.ROWS, "cpu", 3)
    done_counts: list[int] = []
    assert greedy(tuned, prompts(shared), done=done_counts.append) == wanted
    assert done_counts == sorted(set(done_counts))
    assert done_counts[-1] == len(wanted)
    assert len(done_counts) > 2


def test_answers_that_outgrow_the_memory_wait_and_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = made("mistral, sliding window")
    asked = prompts(30)
    wanted = one_by_one(tuned, asked, 40, frozenset())
    entered: list[int] = []
    enter = decoding.Decoding.enter

    def noted(self: decoding.Decoding, rows: list[list[int]], room: int) -> torch.Tensor:
        entered.append(len(rows))
        return enter(self, rows, room)

    monkeypatch.setattr(generate, "AHEAD", 2)
    monkeypatch.setattr(kv_cache, "EVEN", 16)
    monkeypatch.setattr(decoding.Decoding, "enter", noted)
    monkeypatch.setattr(decoding.Decoding, "_budget", lambda self: 280 * self._cache.bytes)
    assert greedy(tuned, asked, 40, frozenset()) == wanted
    assert sum(entered[1:]) > len(asked), "some began twice; the first rows are those of the probe"


def test_halved_batches_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = made("llama 3")
    asked = prompts(count=9)
    wanted = one_by_one(tuned, asked)
    at_once: list[int] = []
    budgets: list[int] = []
    read, step = decoding.Decoding._read_together, decoding.Decoding.step

    def noted(self: decoding.Decoding, rows: list[list[int]], piece: int) -> torch.Tensor:
        at_once.append(len(rows) * piece)
        return read(self, rows, piece)

    def stepped(self: decoding.Decoding, tokens: list[int], room: int) -> torch.Tensor:
        at_once.append(len(tokens))
        budgets.append(self._budget())
        return step(self, tokens, room)

    greedy(tuned, asked)  # compares the states of a known family first, which is not measured here
    monkeypatch.setattr(decoding, "ROWS", {"cpu": 4})
    monkeypatch.setattr(decoding, "TOGETHER", {"cpu": 96})
    monkeypatch.setattr(decoding.Decoding, "_read_together", noted)
    monkeypatch.setattr(decoding.Decoding, "step", stepped)
    most = []
    for scale in (1.0, 0.5):
        at_once.clear()
        assert greedy(tuned, asked, scale=scale) == wanted
        most.append((max(at_once), budgets[-1]))
    (whole, memory), (half, less) = most
    assert (whole, half) == (96, 48)
    assert less == pytest.approx(memory / 2, rel=0.01)


def test_an_unknown_model_family_can_halve_its_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.GraniteConfig(**decoders.SIZE, residual_multiplier=0.5)
    tuned = decoders.made(config).eval()
    asked = prompts(30)
    sizes: list[int] = []
    batch = generate._batch

    def noted(model_: Any, head: loss.Head, rows: list[Any], *rest: Any) -> None:
        sizes.append(len(rows))
        batch(model_, head, rows, *rest)

    monkeypatch.setattr(generate, "CACHED", {"cpu": 4 * (70 + LIMIT)})
    monkeypatch.setattr(generate, "_batch", noted)
    whole = greedy(tuned, asked)
    most, _ = max(sizes), sizes.clear()
    assert greedy(tuned, asked, scale=0.5) == whole
    assert max(sizes) <= most / 2 + 1


def test_an_unknown_family_is_answered_by_transformers(caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.GraniteConfig(**decoders.SIZE, residual_multiplier=0.5)
    tuned = decoders.made(config).eval()
    found = greedy(tuned, prompts(30))
    assert decoding.of(model.decoder(tuned), CPU) is None
    assert found == one_by_one(tuned, prompts(30))
    assert caplog.text.count("transformers generates the answers") == 1


def test_a_head_of_an_unknown_kind_is_no_obstacle() -> None:
    tuned = decoders.made(transformers.GraniteConfig(**decoders.SIZE, logits_scaling=4.0)).eval()
    found = generate.greedy(tuned, loss.Head(None), prompts(), STOPS, LIMIT, CPU)
    assert found == one_by_one(tuned, prompts())


def test_transformers_batches_are_as_large_as_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = made("llama 3")
    whole = greedy(tuned, prompts())
    monkeypatch.setattr(decoding, "of", lambda *_: None)
    monkeypatch.setitem(generate.CACHED, "cpu", 60)
    done_counts: list[int] = []
    assert greedy(tuned, prompts(), done=done_counts.append) == whole
    assert done_counts[-1] == len(whole)


def test_in_bfloat16_most_answers_begin_alike() -> None:
    tuned = made("llama 3")
    for name, weight in tuned.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.bfloat16()
    found, wanted = greedy(tuned, prompts(50)), one_by_one(tuned, prompts(50))
    assert sum(one[0] == other[0] for one, other in zip(found, wanted, strict=True)) >= len(wanted) - 2


def test_no_prompts_have_no_answers() -> None:
    assert greedy(made("llama 3"), []) == []


def test_sigterm_ends_the_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = made("llama 3")
    monkeypatch.setattr(signals._stop, "asked", True)
    with pytest.raises(errors.Stopped):
        greedy(tuned, prompts())


def drawn(tuned: Any, asked: list[list[int]], seed: int = 1, temperature: float = 1.0) -> list[list[list[int]]]:
    head = model.head(tuned.get_base_model())
    return generate.sample(tuned, head, asked, STOPS, LIMIT, CPU, samples=4, temperature=temperature, seed=seed)


@pytest.mark.parametrize("shared", [0, 30])
def test_samples_are_the_same_again_however_they_are_batched(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, asked = made("gemma 2, soft-capping"), prompts(shared)
    found = drawn(tuned, asked)
    assert [len(answers) for answers in found] == [4] * len(asked)
    assert any(len(set(map(tuple, answers))) > 1 for answers in found)
    assert drawn(tuned, asked, seed=2) != found
    monkeypatch.setitem(decoding.ROWS, "cpu", 3)
    assert drawn(tuned, asked) == found
    monkeypatch.setattr(decoding, "of", lambda *_: None)
    assert drawn(tuned, asked) == found


def test_a_prompt_is_read_once_for_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = made("llama 3")
    read: list[int] = []
    inner = decoding.Decoding._read

    def noted(self: decoding.Decoding, rows: list[list[int]]) -> torch.Tensor:
        read.append(len(rows))
        return inner(self, rows)

    decoding.of(model.decoder(tuned), CPU)
    monkeypatch.setattr(decoding.Decoding, "_read", noted)
    drawn(tuned, prompts()[:7])
    assert sum(read) == 7


def test_samples_are_drawn_by_the_models_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, -1.0, float("-inf")]).log_softmax(-1)
    rows = [generate.Completion(0, [1], generator=random.Random(number)) for number in range(4000)]
    found = torch.bincount(torch.tensor(generate._drawn(logits.expand(4000, 4), rows)), minlength=4) / 4000
    assert found.tolist() == pytest.approx(logits.exp().tolist(), abs=0.03)


def test_near_the_temperature_zero_samples_are_the_greedy_answers() -> None:
    tuned = made("llama 3")
    wanted = greedy(tuned, prompts())
    assert drawn(tuned, prompts(), temperature=1e-4) == [[answer] * 4 for answer in wanted]
