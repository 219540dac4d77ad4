"""Who is compared, and how it is set. A peer's program in `sides/` runs in an environment of its own (`environment`).

What the recipe fixes for both sides (learning rates, batch, loss on answers only, clipping) is given to every peer.
"""

import dataclasses
import json
import pathlib
from typing import Any

from tests.bench.trainer import batch, course, environment, models, ours, process, recipe, workloads

from toolbox import say

SIDES = pathlib.Path(__file__).parent / "sides"

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "WANDB_DISABLED": "true"}

TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
"""How the base models' template writes a turn."""

MARKED = (
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}"
)
"""The same words, with the marks by which transformers tells what the assistant says."""


LONG = 200


@dataclasses.dataclass(frozen=True)
class Peer:
    """A trainer with its settings."""

    name: str
    title: str
    package: str | None
    """Names its environment's lock and its program; None: the product itself, through transformers' passes."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    long: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What it takes instead for examples of more than LONG tokens."""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    everywhere: bool = True
    """Whether it runs in every cell; else only where the larger model does too, on the small one."""

    def chosen(self, tokens: float) -> dict[str, Any]:
        """The settings for examples of so many tokens on average."""
        return self.settings | self.long if tokens > LONG else self.settings

    def takes(self, workload: workloads.Workload, model: str) -> bool:
        """Whether it takes part in a cell when nobody asks for it by name."""
        return self.everywhere or (workload.large and model == models.SMALL)


TRL_DEFAULTS = Peer("trl-defaults", "TRL's SFTTrainer as it comes", "trl", everywhere=False)

TRL = Peer(
    "trl",
    "TRL's SFTTrainer with its best settings",
    "trl",
    {"dtype": "bfloat16", "gradient_checkpointing": False, "per_device_train_batch_size": 4},
    # Four are 2 to 5 % faster there, for more than twice the memory: see the search.
    long={"per_device_train_batch_size": 1},
)

LLAMA_FACTORY = Peer(
    "llama-factory",
    "LLaMA-Factory in bfloat16 without checkpointing",
    "llama-factory",
    {"bf16": True, "disable_gradient_checkpointing": True, "flash_attn": "sdpa", "per_device_train_batch_size": 4},
    long={"per_device_train_batch_size": 1},
    everywhere=False,
)

STANDARD_PATH = Peer(
    "standard-path",
    "no peer but the product itself through transformers' passes, as for a family that its own do not know",
    None,
    everywhere=False,
)

ALL = (TRL, TRL_DEFAULTS, LLAMA_FACTORY, STANDARD_PATH)
BY_NAME = {peer.name: peer for peer in ALL}


def train(peer: Peer, model: pathlib.Path, work: pathlib.Path, given: batch.Batches) -> course.Course:
    """One run in `work`, an empty folder. Raises say.Problem."""
    if peer.package is None:
        return ours.train(model, work, given, standard=True)
    python = environment.python(peer.package)
    job = {
        "model": str(model),
        "template": marked((model / "chat_template.jinja").read_text()),
        "chats": given.ordered(),
        "batch": recipe.BATCH,
        "rank": recipe.RANK,
        "alpha": recipe.ALPHA,
        "dropout": recipe.DROPOUT,
        "learningRates": recipe.learning_rates(len(given.steps)),
        "clip": recipe.CLIP,
        "weightDecay": recipe.WEIGHT_DECAY,
        "maximumLength": recipe.MAXIMUM_LENGTH,
        "seed": recipe.SEED,
        "settings": peer.chosen(given.mean()),
        "scratch": str(work / "scratch"),
        "result": str(work / "result.json"),
    }
    (work / "job.json").write_text(json.dumps(job))
    surroundings = OFFLINE | {"HF_HOME": str(work / "home")} | peer.environment
    script = SIDES / f"with_{peer.package.replace('-', '_')}.py"
    finished = process.run([python, script, work / "job.json"], surroundings, work / "train.log")
    result = json.loads((work / "result.json").read_text())
    if sum(result["tokens"]) != sum(given.tokens()):
        raise say.Problem(
            f"{peer.name} trained on {sum(result['tokens'])} tokens, the benchmark counts {sum(given.tokens())}"
        )
    return course.Course(
        started=finished.started,
        ends=result["ends"],
        losses=result["losses"],
        tokens=result["tokens"],
        labelled=result["labelled"],
        peak=finished.peak,
        seconds=finished.seconds,
    )


def marked(template: str) -> str:
    """The model's chat template with the marks. Raises say.Problem for a template that it does not know."""
    if TURN not in template:
        raise say.Problem("the base model's chat template is not the one whose answers the benchmark can mark")
    return template.replace(TURN, MARKED)
