"""Adapters of random weights, each with an answer of its own."""

import dataclasses
import hashlib
import json
import pathlib

RANK = 8


@dataclasses.dataclass
class Adapter:
    folder: pathlib.Path
    sha256: str
    bytes: int
    answer: str = ""


def make(base: pathlib.Path, work: pathlib.Path, count: int) -> list[Adapter]:
    """LoRA adapters of random weights, as the trainer saves one: PEFT's files and a manifest."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned, made = peft.get_peft_model(model, config), []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if "lora_" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
        folder = work / f"adapter-{seed}"
        tuned.save_pretrained(folder, safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)
        made.append(_listed(folder))
    return made


def _listed(folder: pathlib.Path) -> Adapter:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    listed = [
        {"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in files
    ]
    text = json.dumps({"files": listed}, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(text)
    return Adapter(folder, hashlib.sha256(text.encode()).hexdigest(), sum(path.stat().st_size for path in files))
