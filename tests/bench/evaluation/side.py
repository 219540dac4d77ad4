"""Answers prompts by one side and says how long it took: `python -m tests.bench.evaluation.side JOB.json`.

A process of its own for each run, since our side lays the weights out again. Loading is not measured; both sides answer two
prompts beforehand.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from finetune_trainer.process import machine

OURS, BATCHED, SINGLE = "finetune-trainer", "transformers, batches of 32", "transformers, one by one"
BATCH = 32
RANK, ALPHA = 16, 32
DEVIATION = 0.01
"""Of the random adapter's second matrices: enough for other answers than the base model's, few enough for text."""

ENVIRONMENT = {
    "GOMP_SPINCOUNT": "10000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(machine.CODES),
    "LRU_CACHE_CAPACITY": str(machine.CODES),
}
"""What the product's command sets for itself; transformers has what is usual."""

Answer = Callable[[list[list[int]]], list[list[int]]]


def main(path: str) -> None:
    job = json.loads(pathlib.Path(path).read_text())
    torch.set_num_threads(machine.threads())
    answer = SIDES[job["side"]](job)
    answer(job["prompts"][:2])
    begun = time.perf_counter()
    answers = answer(job["prompts"])
    seconds = time.perf_counter() - begun
    pathlib.Path(job["result"]).write_text(json.dumps({"seconds": seconds, "answers": answers}))


def write_adapter(base: pathlib.Path, folder: pathlib.Path) -> None:
    """A random adapter as PEFT writes it."""
    from finetune_api import job as api
    from finetune_trainer.engine import lora, model

    torch.manual_seed(0)
    loaded = model.load(base, api.Precision.FLOAT32, torch.device("cpu"))
    tuned = lora.add(loaded, api.LoRA(rank=RANK, alpha=ALPHA), str(base))
    for name, weight in lora.parameters(tuned).items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=DEVIATION)
    tuned.save_pretrained(folder)


def ours(job: dict[str, Any]) -> Answer:
    import safetensors.torch

    from finetune_api import job as api
    from finetune_trainer.engine import generate, lora, model

    machine.return_freed_memory()
    where = torch.device("cpu")
    base = model.load(pathlib.Path(job["model"]), api.Precision(job["precision"]), where)
    head = model.head(base)
    tuned = lora.add(base, api.LoRA(rank=RANK, alpha=ALPHA), "base").eval()
    stored = safetensors.torch.load_file(pathlib.Path(job["adapter"]) / "adapter_model.safetensors")
    with torch.no_grad():
        for name, weight in lora.parameters(tuned).items():
            weight.copy_(stored[name.replace(f".{lora.ADAPTER}.", ".")])
    stops = frozenset(job["stops"])
    return lambda prompts: generate.greedy(tuned, head, prompts, stops, job["limit"], where)


def theirs(size: int) -> Callable[[dict[str, Any]], Answer]:
    """`generate` of transformers in batches of a size: prompts of like lengths together, padded on the left."""

    def load(job: dict[str, Any]) -> Answer:
        import peft
        import transformers

        transformers.utils.logging.disable_progress_bar()
        dtype = torch.bfloat16 if job["precision"] == "BFloat16" else torch.float32
        base = transformers.AutoModelForCausalLM.from_pretrained(
            job["model"], dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
        tuned = peft.PeftModel.from_pretrained(base, job["adapter"], autocast_adapter_dtype=False)
        settled = tuned.merge_and_unload() if job["merged"] else tuned
        settled.eval()

        def answer(prompts: list[list[int]]) -> list[list[int]]:
            order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
            found: list[list[int]] = [[] for _ in prompts]
            for begin in range(0, len(order), size):
                here = order[begin : begin + size]
                written = _generate(settled, [prompts[number] for number in here], job)
                for number, ids in zip(here, written, strict=True):
                    found[number] = ids
            return found

        return answer

    return load


@torch.inference_mode()
def _generate(model: Any, prompts: list[list[int]], job: dict[str, Any]) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    written = model.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        max_new_tokens=job["limit"],
        do_sample=False,
        eos_token_id=job["stops"],
        pad_token_id=job["stops"][0],
    )
    return [_cut(row, set(job["stops"])) for row in written[:, longest:].tolist()]


def _cut(ids: list[int], stops: set[int]) -> list[int]:
    """Up to and with the first stop token."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


SIDES: dict[str, Callable[[dict[str, Any]], Answer]] = {OURS: ours, BATCHED: theirs(BATCH), SINGLE: theirs(1)}


if __name__ == "__main__":
    main(sys.argv[1])
