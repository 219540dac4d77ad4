"""Greedy answers in batches: left-padded prompts, a key-value cache, and finished rows leave the batch."""

from collections.abc import Callable
from typing import Any

import torch

from finetune_trainer import loss, model, signals

CACHED = {"cuda": 65_536, "cpu": 8_192}
"""Positions of the key-value cache of one batch."""


def greedy(
    tuned: Any,
    head: loss.Head,
    prompts: list[list[int]],
    stops: frozenset[int],
    limit: int,
    where: torch.device,
    done: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """The most likely continuation of each prompt, up to and with the stop token, at most `limit` tokens.

    `done` is called with the number of prompts answered so far.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    finished = 0
    while order:
        longest, count = 0, 0
        for index in order:
            longest = max(longest, len(prompts[index]))
            if count and (longest + limit) * (count + 1) > CACHED[where.type]:
                break
            count += 1
        batch, order = order[:count], order[count:]
        found = _batch(tuned, head, [prompts[index] for index in batch], stops, limit, where)
        for index, answer in zip(batch, found, strict=True):
            answers[index] = answer
        finished += count
        done(finished)
    return answers


@torch.inference_mode()
def _batch(
    tuned: Any, head: loss.Head, prompts: list[list[int]], stops: frozenset[int], limit: int, where: torch.device
) -> list[list[int]]:
    import transformers

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=where)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=where)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = transformers.DynamicCache(config=tuned.config.get_text_config())
    ends = torch.tensor(sorted(stops), device=where)
    answers: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    for length in range(1, limit + 1):
        signals.check()
        logits = _last(tuned, head, ids, mask, positions, cache)
        chosen = logits.argmax(-1)
        for row, token in zip(alive, chosen.tolist(), strict=True):
            answers[row].append(token)
        keep = ~torch.isin(chosen, ends)
        if length == limit or not bool(keep.any()):
            break
        if not bool(keep.all()):
            kept = keep.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            alive = [alive[row] for row in kept.tolist()]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
        positions = positions[:, -1:] + 1
    return answers


def _last(
    tuned: Any, head: loss.Head, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
) -> torch.Tensor:
    """Logits of the next token, for each row."""
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    if head.weight is None:
        logits: torch.Tensor = tuned(**inputs, use_cache=True).logits[:, -1].float()
        return logits
    return head.logits(model.decoder(tuned)(**inputs, use_cache=True).last_hidden_state[:, -1])
