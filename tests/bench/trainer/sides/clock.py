"""What all of the peers' programs share: a callback for transformers' Trainer, on which the peers are built.

It sets each step's learning rate, counts the tokens of the batches, and notes when each optimizer step ended and its loss.
"""

import json
import pathlib
import time
from typing import Any

import torch
import transformers


class Counting:
    """The trainer's own collator; counts what it hands out. Padding is no token, and no token is learned as the first."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.batches: list[tuple[int, int]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        batch = self.inner(examples)
        mask = batch.get("attention_mask")
        tokens = batch["input_ids"].numel() if mask is None else int(mask.sum())
        self.batches.append((tokens, int((batch["labels"][:, 1:] != -100).sum())))
        return batch


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """The callback of one run. `rates`: the learning rate of each optimizer step."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates
        self.ends: list[float] = []
        self.busy: list[float] = []
        self.losses: list[float] = []
        self.pieces = 1
        self.counting: Counting | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **_: Any) -> None:
        self.pieces = args.gradient_accumulation_steps
        # accelerate's loader passes on what the one inside it collates.
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        self.counting = loader.collate_fn = Counting(loader.collate_fn)

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rates[state.global_step]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(time.time())
        self.busy.append(time.process_time())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def write(self, path: str) -> None:
        """The result of the run as JSON."""
        if self.counting is None:
            raise RuntimeError("the trainer did not begin")
        batches, pieces = self.counting.batches, self.pieces
        steps = [batches[first : first + pieces] for first in range(0, len(self.ends) * pieces, pieces)]
        result = {
            "ends": self.ends,
            "busy": self.busy,
            "losses": self.losses,
            "tokens": [sum(tokens for tokens, _ in step) for step in steps],
            "labelled": [sum(labelled for _, labelled in step) for step in steps],
            "threads": torch.get_num_threads(),
        }
        pathlib.Path(path).write_text(json.dumps(result))
