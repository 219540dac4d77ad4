"""The base models: the demo's SmolLM2-135M, and a larger one of random weights with the same tokenizer."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from toolbox import cache, say

SMALL, LARGE = "smollm2-135m-instruct", "qwen2.5-0.5b-random"

TITLES = {
    SMALL: "SmolLM2-135M-Instruct, pretrained",
    LARGE: "The shape of Qwen2.5-0.5B with random weights and SmolLM2's tokenizer",
}

SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
}
"""config.json of Qwen/Qwen2.5-0.5B."""

PROGRAM = pathlib.Path(__file__).parent / "sides" / "random_model.py"


def prepare(name: str) -> pathlib.Path:
    """The model's folder; made when it is absent. Raises say.Problem."""
    small = cache.root() / "model" / SMALL
    if not small.exists():
        _run(cache.REPOSITORY / "hack" / "model.py")
    if name == SMALL:
        return small
    target = cache.folder("bench") / name
    if not target.exists():
        with say.step(f"{name}: writing random weights to {target}", "20 s"):
            _run(PROGRAM, json.dumps({"model_type": "qwen2"} | SHAPE), small, target)
    return target


def _run(program: pathlib.Path, *words: str | pathlib.Path) -> None:
    # In a process of its own: what this one keeps in memory would count in the peaks of those that it starts.
    done = subprocess.run(
        [sys.executable, program, *words], stdout=subprocess.DEVNULL, env={**os.environ, "TQDM_DISABLE": "1"}
    )
    if done.returncode:
        raise say.Problem(f"`{program}` failed with exit code {done.returncode}")


def shape(folder: pathlib.Path) -> dict[str, Any]:
    """The model's config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
