"""TRL's trainer on the same rows, in this process; with liger-kernel's kernels too where that is installed."""

import importlib.util
import tempfile
import time
from typing import Any

import numpy as np
import torch
from tests.bench.gpu import models
from tests.trainer import tiny

from finetune_trainer.engine import prefix_tree


def names(where: torch.device) -> list[str]:
    """The peers that can run here. liger-kernel's kernels are Triton's, for GPUs only."""
    liger = where.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    return ["TRL", "TRL with Liger"] if liger else ["TRL"]


def measure(
    name: str,
    config: Any,
    rows: list[prefix_tree.TokenRow],
    quantised: bool,
    where: torch.device,
    seconds: float,
    *,
    checkpointing: bool,
) -> tuple[float, float]:
    """Tokens per second after the first step, and seconds from nothing to the end of that step. One batch of all rows a step."""
    import datasets
    import peft
    import transformers
    import trl

    class Watch(transformers.TrainerCallback):
        """Notes the end of each step, and stops the training in time."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            self.ends.append(time.monotonic())
            if len(self.ends) > 1 and self.ends[-1] - self.ends[0] >= seconds:
                control.should_training_stop = True

    begun, watch = time.monotonic(), Watch()
    entries = [
        {"input_ids": row.ids.tolist(), "completion_mask": row.learned.astype(np.int64).tolist()} for row in rows
    ]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl.SFTTrainer(
            model=models.bare(config, where, quantised=quantised),
            args=trl.SFTConfig(
                output_dir=scratch,
                max_steps=1000,
                per_device_train_batch_size=len(rows),
                learning_rate=1e-4,
                max_length=None,
                bf16=where.type == "cuda",
                use_liger_kernel=name == "TRL with Liger",
                gradient_checkpointing=checkpointing,
                completion_only_loss=True,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=where.type == "cpu",
            ),
            train_dataset=datasets.Dataset.from_list(entries * 4),
            processing_class=tiny.make_tokenizer(),
            peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[watch],
        )
        trainer.train()
    tokens = sum(len(row.ids) for row in rows)
    return tokens * (len(watch.ends) - 1) / (watch.ends[-1] - watch.ends[0]), watch.ends[0] - begun
