"""Trains with TRL's SFTTrainer. Runs inside the peer's own environment: `python with_trl.py JOB.json`.

The job gives model, chats, recipe and settings. Imports nothing of this project but its neighbour `clock`.
"""

import json
import pathlib
import sys

import clock
import datasets
import peft
import torch
import transformers
import trl


def main(path: str) -> None:
    job = json.loads(pathlib.Path(path).read_text())
    settings = dict(job["settings"])
    if threads := settings.pop("threads", None):
        torch.set_num_threads(threads)
    dtype = settings.pop("dtype", None)
    micro = settings.setdefault("per_device_train_batch_size", 8)
    config = trl.SFTConfig(
        output_dir=job["scratch"],
        max_steps=len(job["learningRates"]),
        learning_rate=max(job["learningRates"]),
        weight_decay=job["weightDecay"],
        max_grad_norm=job["clip"],
        seed=job["seed"],
        gradient_accumulation_steps=job["batch"] // micro,
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
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    tokenizer.chat_template = job["template"]
    watch = clock.Clock(job["learningRates"])
    trainer = trl.SFTTrainer(
        model=job["model"],
        args=config,
        train_dataset=datasets.Dataset.from_list([{"messages": chat} for chat in job["chats"]]),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(
            r=job["rank"], lora_alpha=job["alpha"], lora_dropout=job["dropout"], target_modules="all-linear"
        ),
        callbacks=[watch],
    )
    trainer.train()
    watch.write(job["result"])


if __name__ == "__main__":
    main(sys.argv[1])
