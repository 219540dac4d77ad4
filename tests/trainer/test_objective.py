"""Supervised training, direct preference optimisation, and the frozen base in 4 bits, against the libraries of the field."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.trainer import test_engine, tiny

from finetune_api import job, run
from finetune_trainer.data import corpus, tokens
from finetune_trainer.engine import lora, loss, model, passes, prefix_tree
from finetune_trainer.stages import evaluate, preflight, train
from finetune_trainer.store import storage
from finetune_trainer.training import adapter, batches, loop, objective

CPU = torch.device("cpu")


def pairs(count: int) -> list[dict[str, Any]]:
    """Preferences: a JSON answer is chosen, another one rejected."""
    found = []
    for one in tiny.examples(count):
        turns = one["messages"]
        wrong = {"role": "assistant", "content": "I am not sure, " + turns[1]["content"]}
        found.append({"prompt": turns[:2], "chosen": [turns[2]], "rejected": [wrong]})
    return found


def test_dpo_has_the_loss_and_gradients_of_trl(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import datasets
    import peft
    import transformers
    import trl

    def plain() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    mine = lora.add(plain().requires_grad_(False).eval(), job.LoRA(rank=8, alpha=24), "base")
    torch.manual_seed(3)
    for weight in lora.parameters(mine).values():
        torch.nn.init.normal_(weight, std=0.1)
    theirs = peft.get_peft_model(plain(), mine.peft_config[lora.ADAPTER])

    config = trl.DPOConfig(
        output_dir=str(tmp_path), beta=0.3, use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=6,
        gradient_checkpointing=False, max_length=None,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=theirs,
        args=config,
        train_dataset=datasets.Dataset.from_list(pairs(6)),
        processing_class=tokens.load(base, job.Training()).tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    # TRL takes the adapter as it is now, which does nothing, for its reference.
    theirs.load_state_dict(mine.state_dict(), strict=False)
    trainer.model.eval()
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    rows = []
    lengths = batch["attention_mask"].sum(1).tolist()
    for ids, marks, length in zip(batch["input_ids"], batch["completion_mask"], lengths, strict=True):
        rows.append(prefix_tree.TokenRow(ids[:length].numpy(), marks[:length].numpy().astype(bool)))
    alternating = [row for both in zip(rows[:6], rows[6:], strict=True) for row in both]
    motor = passes.of(mine, model.head(mine.get_base_model()), CPU)
    assert isinstance(motor, passes.Fast)
    aim = objective.Preference(0.3)
    assert aim.learn(motor, alternating, 6) == pytest.approx(expected.item(), rel=1e-5)
    wanted = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    assert wanted
    test_engine.close(lora.parameters(mine), wanted)
    assert aim.value(motor, alternating) == pytest.approx(6 * expected.item(), rel=1e-5)
    shared = prefix_tree.build(alternating).tokens
    prompts = sum(int((~row.learned).sum()) for row in alternating[::2])
    assert shared <= prefix_tree.build(alternating, share=False).tokens - prompts // 2, (
        "the prompt of a pair is computed once"
    )


World = Callable[..., run.Run]


def test_supervised_training_has_the_losses_of_trl_step_by_step(
    world: World, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """From the same initial adapter, on the same examples in the same steps, at the same rates, in float32."""
    import datasets
    import peft
    import transformers
    import trl

    steps, batch = 6, 8
    spec = world(training={"precision": "Float32", "maxSteps": steps, "batchSize": batch, "learningRate": 0.002})
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    folder = pathlib.Path(spec.layout.adapter.removeprefix("file://"))
    history = json.loads((folder / "training.json").read_text())["history"]

    data = corpus.load(storage.of(spec.storage), spec.layout.data, base, spec.training).train
    plan = batches.plan(data.examples, spec.training)
    read = [(data.ids(at), data.learned(at)) for number in range(steps) for at in plan.step(number)]
    rows = [
        {"input_ids": ids.tolist(), "labels": np.where(learned, ids, -100).tolist()} for ids, learned in read
    ]  # fmt: skip

    class Rates(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] = history[state.global_step]["learningRate"]

    torch.manual_seed(spec.training.seed)
    mine = lora.add(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), spec.training.lora, "base"
    )
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.get_peft_model(plain, mine.peft_config[lora.ADAPTER])
    theirs.load_state_dict(mine.state_dict())
    config = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"), max_steps=steps, per_device_train_batch_size=batch // 2,
        gradient_accumulation_steps=2, weight_decay=0.0, max_grad_norm=loop.CLIP, train_sampling_strategy="sequential",
        max_length=None, bf16=False, gradient_checkpointing=False, use_cpu=True, report_to=[], logging_steps=1,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=theirs,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokens.load(base, job.Training()).tokenizer,
        callbacks=[Rates()],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logged] == pytest.approx([point["loss"] for point in history], rel=1e-4)
    norms = [point["gradientNorm"] for point in history]
    assert [entry["grad_norm"] for entry in logged] == pytest.approx(norms, rel=1e-3)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_a_dpo_job_learns_to_prefer_the_chosen_answers(world: World) -> None:
    training = {"objective": "DPO", "dpo": {"beta": 0.5}, "maxSteps": 20, "batchSize": 4, "learningRate": 0.002}
    spec = world(pairs(40), training=training)
    preflight.preflight(spec)
    found = train.train(spec, 1, 1.0).training
    assert found is not None
    assert found.loss < 0.3 < 0.69, "it begins at log 2"
    scored = evaluate.evaluate(spec, None, None, 1).evaluation
    assert scored is not None
    assert scored.examples > 0, "held-out chosen answers are what it is measured by"


def test_qlora_computes_with_the_base_in_4_bits(base: pathlib.Path) -> None:
    """The same adapter on the dequantised weights, by transformers, PEFT and autograd."""
    small = model.load(base, job.Precision.FLOAT32, CPU, quantised=True)
    tuned = lora.add(small, job.LoRA(rank=8, alpha=24), "base")
    torch.manual_seed(3)
    for weight in lora.parameters(tuned).values():
        torch.nn.init.normal_(weight, std=0.1)
    head = model.head(small)
    motor = passes.of(tuned, head, CPU)
    assert isinstance(motor, passes.Fast)
    numbers = np.random.default_rng(1)
    rows = [
        prefix_tree.TokenRow(numbers.integers(1, 300, length), numbers.random(length) < 0.4) for length in (40, 90, 33)
    ]

    whole = model.load(base, job.Precision.FLOAT32, CPU)
    import bitsandbytes.functional

    for name, layer in small.named_modules():
        if hasattr(getattr(layer, "weight", None), "quant_state"):
            plain = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            whole.get_submodule(name.replace(".base_layer", "")).weight.data = plain.float()
    reference = lora.add(whole, job.LoRA(rank=8, alpha=24), "base")
    for name, weight in lora.parameters(reference).items():
        weight.data = lora.parameters(tuned)[name].data.clone()
    total, wanted = test_engine.one_by_one(reference, rows)
    assert objective.Supervised().learn(motor, rows, 1) == pytest.approx(total, rel=1e-4)
    test_engine.close(lora.parameters(tuned), wanted)
    assert loss.head_of(small).weight is not None


def test_a_qlora_job_trains_an_adapter_for_the_whole_base(world: World, base: pathlib.Path) -> None:
    spec = world(training={"method": "QLoRA", "maxSteps": 20})
    preflight.preflight(spec)
    found = train.train(spec, 1, 1.0).training
    assert found is not None
    assert found.loss < 2.0
    folder = pathlib.Path(found.adapter.uri.removeprefix("file://"))
    adapter.check(folder, spec.base_model.name)
