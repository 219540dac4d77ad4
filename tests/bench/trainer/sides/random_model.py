"""Writes a model of random weights as a publisher would upload it: `python random_model.py CONFIG TOKENIZER TARGET`.

CONFIG is a config.json as text, model_type included; the tokenizer is that of another model's folder.
"""

import json
import os
import pathlib
import shutil
import sys

import torch
import transformers

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def main(config: str, source: pathlib.Path, target: pathlib.Path) -> None:
    numbers = json.loads(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(numbers.pop("model_type"), **numbers, **ends)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    model.generation_config = transformers.GenerationConfig(**ends)
    scratch = target.with_name(f".making-{target.name}-{os.getpid()}")
    model.save_pretrained(scratch)
    for name in TOKENIZER:
        shutil.copy(source / name, scratch / name)
    scratch.rename(target)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
