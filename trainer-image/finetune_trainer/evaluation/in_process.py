"""Contenders answered by our own engine in this process: on CPUs, on a laptop, and where a job wants it.

Common prefixes are read once; a model of a family that the engine does not know goes through transformers.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from finetune_api import job, run
from finetune_trainer.data import tokens
from finetune_trainer.engine import (
    decoder,
    decoding,
    devices,
    generate,
    grammar,
    lora,
    loss,
    model,
    prefix_tree,
    prefixes,
)
from finetune_trainer.evaluation import engines
from finetune_trainer.planning import architecture, memory
from finetune_trainer.process import log, machine, signals
from finetune_trainer.training import adapter, batches

TOKENS = {"cuda": 16_384, "cpu": 2_048}
"""Tokens of a batch whose losses are computed."""

SHARE = 0.8
"""Share of the memory that the base model's weights may take; the rest is for keys, values and logits."""

LOOK_BACK = 2
"""Extra tokens in which an ending text is searched: a model may tokenize it differently."""


@dataclasses.dataclass
class InProcess:
    """The loaded model, with an adapter or without."""

    model: Any
    head: loss.Head
    where: torch.device
    spec: run.Run
    tokenizer: Any
    scale: float = 1.0
    """The share of the usual rows and tokens that is taken at once, after an out-of-memory."""
    grammars: dict[engines.Ending, grammar.Grammar] = dataclasses.field(default_factory=dict)
    """Of the schemas that answers were held to."""

    @property
    def kind(self) -> engines.Kind:
        return job.EvaluationEngine.IN_PROCESS

    @property
    def positions(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def add_adapter(self, which: job.Contender, folder: pathlib.Path) -> str | None:
        base = self.model.unload() if hasattr(self.model, "unload") else self.model
        wanted = self.spec.training.lora
        if which is job.Contender.SERVING:
            config = json.loads((folder / engines.ADAPTER_CONFIG).read_text())
            chosen = next((m for m in job.Modules if lora.targets(base, m) == sorted(config["target_modules"])), None)
            if chosen is None:
                return f"it adapts {', '.join(config['target_modules'])}"
            wanted = job.LoRA(rank=config["r"], alpha=config["lora_alpha"], target_modules=chosen)
        self.model = lora.add(base, wanted, self.spec.base_model.name)
        adapter.load(folder, self.model)
        self.model.eval()
        return None

    @contextlib.contextmanager
    def _as(self, which: job.Contender) -> Iterator[None]:
        """The model as this contender, within the context."""
        adapted = hasattr(self.model, "disable_adapter")
        with lora.disabled(self.model) if adapted and which not in engines.ADAPTED else lora.enabled():
            yield

    def refusal(self, prompt: list[int], ending: engines.Ending) -> str | None:
        try:
            self._rules(ending)
        except grammar.Refused as refused:
            return str(refused)
        return None

    def _rules(self, ending: engines.Ending) -> grammar.Grammar | None:
        if ending.schema is None:
            return None
        if ending not in self.grammars:
            vocabulary = self.model.config.get_text_config().vocab_size
            self.grammars[ending] = grammar.Grammar(ending.schema, self.tokenizer, ending.stops, vocabulary)
        return self.grammars[ending]

    def greedy(
        self,
        which: job.Contender,
        prompts: Sequence[list[int]],
        ending: engines.Ending,
        done: engines.Done = engines.silent,
    ) -> list[list[int]]:
        ended = ends_with(self.tokenizer, ending.texts) if ending.texts else None
        with self._as(which):
            return generate.greedy(
                self.model,
                self.head,
                list(prompts),
                ending.stops,
                ending.limit,
                self.where,
                done,
                ended,
                scale=self.scale,
                rules=self._rules(ending),
            )

    def sample(
        self,
        which: job.Contender,
        prompts: Sequence[list[int]],
        ending: engines.Ending,
        rules: job.Consistency,
        seed: int,
        done: engines.Done = engines.silent,
    ) -> list[list[list[int]]]:
        with self._as(which):
            return generate.sample(
                self.model,
                self.head,
                list(prompts),
                ending.stops,
                ending.limit,
                self.where,
                samples=rules.samples,
                temperature=rules.temperature,
                seed=seed,
                done=done,
                scale=self.scale,
                rules=self._rules(ending),
            )

    @torch.no_grad()
    def likelihoods(
        self, which: job.Contender, encoded: Sequence[tokens.Encoded], done: engines.Done = engines.silent
    ) -> list[tuple[float, bool]]:
        own = None if self.head.weight is None else decoding.of(model.decoder(self.model), self.where)
        sums = torch.zeros(len(encoded), dtype=torch.float64)
        misses = torch.zeros(len(encoded), dtype=torch.int64)
        over = 0
        with self._as(which):
            for part, owners, (values, best) in self._together(own.decoder, encoded) if own else self._padded(encoded):
                rows = torch.tensor(part)[owners.cpu()]
                sums.index_add_(0, rows, values.double().cpu())
                misses.index_add_(0, rows, (~best).long().cpu())
                over += len(part)
                done(over)
        return list(zip(sums.tolist(), (misses == 0).tolist(), strict=True))

    @property
    def _at_once(self) -> int:
        return max(1, int(self.scale * TOKENS[self.where.type]))

    def _together(self, engine: decoder.Decoder, encoded: Sequence[tokens.Encoded]) -> Iterator["Scored"]:
        rows = [prefix_tree.TokenRow(np.array(one.ids), np.array(one.learned)) for one in encoded]
        adapted = lora.active(self.model)
        engine.refresh()
        # What all rows begin with comes on top of a batch: counted in it, a long prompt would leave room for a single row.
        limit = self._at_once + prefixes.of_all([row.ids for row in rows])
        for part in batches.cut([[row] for row in rows], limit):
            signals.check()
            batch = prefix_tree.build([rows[index] for index in part]).to(self.where)
            states = engine.forward(batch, save=False, adapted=adapted)
            yield part, batch.rows, loss.likelihoods(states, batch.targets, self.head)

    def _padded(self, encoded: Sequence[tokens.Encoded]) -> Iterator["Scored"]:
        for part in batches.micro(range(len(encoded)), [len(one.ids) for one in encoded], self._at_once):
            signals.check()
            rows = [encoded[index] for index in part]
            states, targets = model.labelled(
                self.model, self.head, [row.ids for row in rows], [row.learned for row in rows], self.where
            )
            owners = torch.repeat_interleave(torch.tensor([row.trainable for row in rows]))
            yield part, owners, loss.likelihoods(states, targets, self.head)

    def log_probabilities(self, which: job.Contender, prompt: list[int], answer: list[int]) -> list[float]:
        marks = [False] * len(prompt) + [True] * len(answer)
        with self._as(which), torch.inference_mode():
            states, targets = model.labelled(self.model, self.head, [prompt + answer], [marks], self.where)
            found: list[float] = loss.log_probabilities(states, targets, self.head).tolist()
            return found


Scored = tuple[list[int], torch.Tensor, tuple[torch.Tensor, torch.Tensor]]
"""Some rows' numbers; of each of their learned tokens: its row, its log-probability, whether it is the likeliest."""


def load(spec: run.Run, folder: pathlib.Path, tokenizer: Any, scale: float = 1.0) -> InProcess:
    """The base model without an adapter. Raises Failure."""
    torch.set_num_threads(machine.threads())
    where = devices.of()
    base = model.load(folder, spec.training.precision, where, quantised(spec, folder, where))
    return InProcess(base, model.head(base), where, spec, tokenizer, scale)


def quantised(spec: run.Run, folder: pathlib.Path, where: torch.device) -> bool:
    """Whether the base is loaded in 4 bits, as QLoRA trains it: only where its weights do not fit as a server holds them."""
    if spec.training.method is not job.Method.QLORA:
        return False
    shape = architecture.of(json.loads((folder / "config.json").read_text()))
    if shape is None:
        return True
    whole, available = shape.parameters * devices.dtype(spec.training.precision, where).itemsize, model.memory(where)
    if whole <= SHARE * available:
        return False
    log.warning(
        "the base model is asked in 4 bits, as it is trained: its weights do not fit otherwise",
        weights=memory.text(whole),
        available=memory.text(available),
    )
    return True


def ends_with(tokenizer: Any, texts: Sequence[str]) -> generate.Ended:
    """Whether an answer ends with one of these texts: everything after it would be cut off."""
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    tail = max(lengths, default=0) + LOOK_BACK

    def ended(answer: list[int]) -> bool:
        end = tokenizer.decode(answer[-tail:], skip_special_tokens=False)
        return any(text in end for text in texts)

    return ended
