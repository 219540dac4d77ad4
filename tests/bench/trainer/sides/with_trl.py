"""Trains with TRL's SFTTrainer. Runs inside the peer's own environment: `python with_trl.py JOB.json`.

The job gives model, data, recipe and settings; the result is when each optimizer step ended, its loss, and the tokens
that its batches held. Imports nothing of this project.
"""

import json
import pathlib
import sys
import time
from typing import Any

import datasets
import peft
import torch
import transformers
import trl


class Clock(transformers.TrainerCallback):
    """Notes when each optimizer step ended, and the loss that the trainer logs for it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(time.time())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


class Counting:
    """The trainer's own collator; counts what it hands out. Padding is no token."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.batches: list[tuple[int, int]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.inner(examples)
        mask = batch.get("attention_mask")
        tokens = batch["input_ids"].numel() if mask is None else int(mask.sum())
        self.batches.append((tokens, int((batch["labels"][:, 1:] != -100).sum())))
        return batch


def main(path: str) -> None:
    job = json.loads(pathlib.Path(path).read_text())
    settings = dict(job["settings"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    tokenizer.chat_template = job["template"]
    dtype = settings.pop("dtype", None)
    micro = settings.setdefault("per_device_train_batch_size", 8)
    pieces = settings.setdefault("gradient_accumulation_steps", job["batch"] // micro)
    config = trl.SFTConfig(
        output_dir=job["scratch"],
        max_steps=len(job["learningRates"]),
        learning_rate=max(job["learningRates"]),
        weight_decay=job["weightDecay"],
        max_grad_norm=job["clip"],
        seed=job["seed"],
        assistant_only_loss=True,
        model_init_kwargs={"dtype": dtype} if dtype else None,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"max_length": job["maximumLength"], **settings},
    )
    clock = Clock()
    trainer = trl.SFTTrainer(
        model=job["model"],
        args=config,
        train_dataset=datasets.Dataset.from_list([{"messages": chat} for chat in job["chats"]]),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(
            r=job["rank"], lora_alpha=job["alpha"], lora_dropout=job["dropout"], target_modules="all-linear"
        ),
        callbacks=[clock],
    )
    trainer.data_collator = counting = Counting(trainer.data_collator)
    optimizer = trainer.create_optimizer()
    rates = [rate / max(job["learningRates"]) for rate in job["learningRates"]]
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    trainer.train()
    steps = [counting.batches[first : first + pieces] for first in range(0, len(clock.ends) * pieces, pieces)]
    result = {
        "ends": clock.ends,
        "losses": clock.losses,
        "tokens": [sum(tokens for tokens, _ in step) for step in steps],
        "labelled": [sum(labelled for _, labelled in step) for step in steps],
        "trainable": sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
        "threads": torch.get_num_threads(),
    }
    pathlib.Path(job["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
