"""What is left out of a process that compiles nothing: it is not missed, and it can be had back."""

import subprocess
import sys

BEGIN = "import sys; from finetune_trainer import uncompiled; uncompiled.leave_out(); import torch\n"


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + script], capture_output=True, text=True)


def test_the_modules_of_a_training_come_without_compiler_and_quantiser() -> None:
    ended = run(
        "import peft, transformers.models.llama.modeling_llama\n"
        "weight = torch.nn.Parameter(torch.ones(3))\n"
        "optimizer = torch.optim.AdamW([weight])\n"
        "weight.sum().backward(); optimizer.step()\n"
        "absent = [name for name in ('torch._inductor', 'triton', 'bitsandbytes') if sys.modules.get(name)]\n"
        "sys.exit(f'imported: {absent}' if absent else 0)\n"
    )
    assert ended.returncode == 0, ended.stderr


def test_what_was_left_out_can_be_brought_back() -> None:
    ended = run(
        "uncompiled.bring_back()\n"
        "import bitsandbytes, torch._dynamo\n"
        "assert torch._dynamo.config.cache_size_limit\n"
        "assert bitsandbytes.functional.dequantize_4bit\n"
    )
    assert ended.returncode == 0, ended.stderr


def test_a_compiler_that_is_there_stays() -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "import torch._dynamo; from finetune_trainer import uncompiled; uncompiled.leave_out(); "
            "assert torch._dynamo.config.cache_size_limit",
        ],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
