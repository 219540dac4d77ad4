"""Trains with LLaMA-Factory. Runs inside the peer's own environment: `python with_llama_factory.py JOB.json`.

Its own templates learn one token more (the line break after an answer), so it is given the tokens and labels that the other
sides train on, as a tokenized data set; then it trains by its public entry. Imports nothing of this project but `clock`.
"""

import json
import pathlib
import sys

import clock
import datasets
import transformers
from llamafactory.train import tuner


def main(path: str) -> None:
    job = json.loads(pathlib.Path(path).read_text())
    settings = dict(job["settings"])
    micro = settings.setdefault("per_device_train_batch_size", 1)
    scratch = pathlib.Path(job["scratch"])
    tokenize(job, scratch / "tokens")
    watch = clock.Clock(job["learningRates"])
    arguments = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job["model"],
        "template": "smollm2",
        "dataset": "chats",
        "tokenized_path": str(scratch / "tokens"),
        "cutoff_len": job["maximumLength"],
        "finetuning_type": "lora",
        "lora_rank": job["rank"],
        "lora_alpha": job["alpha"],
        "lora_dropout": job["dropout"],
        "lora_target": "all",
        "output_dir": str(scratch / "out"),
        "max_steps": len(job["learningRates"]),
        "learning_rate": max(job["learningRates"]),
        "weight_decay": job["weightDecay"],
        "max_grad_norm": job["clip"],
        "seed": job["seed"],
        "gradient_accumulation_steps": job["batch"] // micro,
        "disable_shuffling": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    tuner.run_exp(arguments | settings, callbacks=[watch])
    watch.write(job["result"])


def tokenize(job: dict[str, object], folder: pathlib.Path) -> None:
    """The chats as token ids, with -100 where nothing is learned."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    tokenizer.chat_template = job["template"]
    found = tokenizer.apply_chat_template(
        job["chats"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    rows = {
        "input_ids": found["input_ids"],
        "attention_mask": [[1] * len(ids) for ids in found["input_ids"]],
        "labels": [
            [token if learned else -100 for token, learned in zip(ids, mask, strict=True)]
            for ids, mask in zip(found["input_ids"], found["assistant_masks"], strict=True)
        ],
    }
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(folder)


if __name__ == "__main__":
    main(sys.argv[1])
