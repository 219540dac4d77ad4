"""Transformers' passes without padding: the examples of a micro-batch in one row, each attending to itself alone.

    rows -> forward: positions that begin again with each example
         -> transformers makes a mask through `_masks`, which asks for one of each example
         -> transformers attends through `_attend`, which attends within each example

Masks and attention stay transformers' own (and the family's, where it has an attention of its own), called for one example at a
time; on a GPU one kernel of variable length instead, where masks and precision allow it. Before it is used it is compared with
padded passes on the very model and device (`proven`): layers that pass something on from token to token in another way, as
convolutions and recurrent ones do, differ, and what does not support it raises.
"""

import contextlib
import contextvars
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed.tensor

from finetune_trainer.engine import comparison, layers, lora, loss, model, prefix_tree
from finetune_trainer.process import log

NAME = "finetune_packed"
"""Of the attention, among transformers' implementations."""

EACH, VARLEN = "each", "varlen"
"""How examples are attended: one call each, or one kernel for all."""

SAMPLED = 64
"""Queries whose mask is compared before the kernel of variable length, which takes no mask, is used instead of it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Examples one after the other."""

    lengths: list[int]
    implementation: str
    """Transformers' attention of this model."""
    way: str


_row: contextvars.ContextVar[Row] = contextvars.ContextVar("packed row")
"""What the passes of a model are about; its layers get `Masks`, also where they run again in a backward pass."""


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """What the layers of a kind get for their attention mask."""

    row: Row
    each: list[torch.Tensor | None] = dataclasses.field(default_factory=list)
    """Of each example [1, 1, n, n]; None: causal."""
    ends: torch.Tensor | None = None
    """For the kernel: where examples end, from 0."""
    window: int | None = None
    """For the kernel: tokens that a position attends to, itself included."""


# -- passes --


class Packing:
    """The packed passes of a model."""

    def __init__(self, tuned: Any, head: loss.Head, where: torch.device, way: str) -> None:
        _register()
        self._tuned, self._head, self._where, self._way = tuned, head, where, way
        self._configs = configs(tuned)
        self._implementation = implementation(tuned)

    def labelled(self, rows: Sequence[prefix_tree.TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """As `model.labelled`, which pads: the states [n, d] that predict the learned tokens, and these tokens [n], row by row.

        Tokens that none of these depends on are left out. Where nothing is learned there is a pass of one token all the same,
        since several processes must run equally many.
        """
        rows = [row for row in rows if prefix_tree.needed(row)] or rows[:1]
        lengths = [max(1, prefix_tree.needed(row)) for row in rows]
        ids, following, learned = (
            torch.from_numpy(np.concatenate(parts).astype(kind))
            for parts, kind in (
                ([row.ids[:length] for row, length in zip(rows, lengths, strict=True)], np.int64),
                ([row.ids[1 : length + 1] for row, length in zip(rows, lengths, strict=True)], np.int64),
                ([row.learned[1 : length + 1] for row, length in zip(rows, lengths, strict=True)], bool),
            )
        )
        positions = torch.cat([torch.arange(length) for length in lengths])
        at = learned.nonzero()[:, 0].to(self._where)
        given = {"input_ids": ids[None].to(self._where), "position_ids": positions[None].to(self._where)}
        token = _row.set(Row(lengths, self._implementation, self._way))
        try:
            with self.installed():
                if self._head.weight is None:
                    states = self._tuned(**given, use_cache=False).logits
                else:
                    states = model.decoder(self._tuned)(**given, use_cache=False).last_hidden_state
        finally:
            _row.reset(token)
        return states[0][at], following.to(self._where)[at]

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Within it the model attends by `_attend`. A backward pass needs it too, where it runs layers again."""
        for config in self._configs:
            config._attn_implementation = NAME
        try:
            yield
        finally:
            for config in self._configs:
                config._attn_implementation = self._implementation


def implementation(tuned: Any) -> str:
    """The attention that transformers has chosen for this model."""
    found: str = configs(tuned)[0]._attn_implementation
    return found


def configs(tuned: Any) -> list[Any]:
    """The configurations that the modules below the head read, without doubles; first that of the whole."""
    found = {id(module.config): module.config for module in model.decoder(tuned).modules() if hasattr(module, "config")}
    return list(found.values())


# -- what transformers calls --


def _register() -> None:
    import transformers

    transformers.AttentionMaskInterface.register(NAME, _masks)
    transformers.AttentionInterface.register(NAME, _attend)


def _masks(
    *, batch_size: int, q_length: int, kv_length: int, mask_function: Any, device: Any, **settings: Any
) -> Masks:
    """The masks of one kind of layers, by transformers' own function (`sdpa_mask`, ...) for each example. Raises Unknown."""
    import transformers

    row = _row.get()
    if batch_size != 1 or not q_length == kv_length == sum(row.lengths):
        raise layers.Unknown("it asks for masks of another shape than that of its input")
    if row.way == VARLEN:
        window = settings.get("local_size")
        ends = torch.tensor([0, *np.cumsum(row.lengths)], dtype=torch.int32, device=device)
        if settings.get("use_vmap") or not _is_causal(row, mask_function, window, device):
            raise layers.Unknown("its masks are neither causal nor a sliding window")
        return Masks(row, ends=ends, window=window)
    made = transformers.AttentionMaskInterface()[row.implementation]
    same = settings | {"batch_size": 1, "mask_function": mask_function, "device": device, "allow_is_causal_skip": False}
    begins = np.cumsum([0, *row.lengths[:-1]]).tolist()
    each = [
        made(**same | {"q_length": length, "kv_length": length, "q_offset": begin, "kv_offset": begin})
        for begin, length in zip(begins, row.lengths, strict=True)
    ]
    return Masks(row, [_unless_causal(mask) for mask in each])


def _unless_causal(mask: torch.Tensor | None) -> torch.Tensor | None:
    """None for a mask that is causal, for which there are faster kernels; additive ones stay."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return None if torch.equal(mask[0, 0], torch.ones_like(mask[0, 0]).tril()) else mask


def _is_causal(row: Row, mask_function: Any, window: int | None, device: Any) -> bool:
    """Whether some rows of the mask are those of causal attention within each example, and within the window."""
    size = sum(row.lengths)
    owners = torch.repeat_interleave(torch.tensor(row.lengths, device=device))
    keys, zero = torch.arange(size, device=device), torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    queries = torch.linspace(0, size - 1, min(size, SAMPLED), device=device).long()
    distance = queries[:, None] - keys
    wanted = (owners[queries][:, None] == owners) & (distance >= 0)
    if window is not None:
        wanted &= distance < window
    found = mask_function(zero, zero, queries[None, None, :, None], keys[None, None, None])
    return torch.equal(found.expand(1, 1, *wanted.shape)[0, 0], wanted)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any
) -> tuple[torch.Tensor, None]:
    """[1, heads, T, width] each -> [1, T, heads, width]. Raises Unknown."""
    if not isinstance(attention_mask, Masks):
        raise layers.Unknown(f"an attention of it takes {type(attention_mask).__name__} for a mask")
    if attention_mask.ends is not None:
        return _attend_varlen(query, key, value, attention_mask, settings), None
    lengths = attention_mask.row.lengths
    attention = _attention(module, attention_mask.row.implementation)
    parts = [
        attention(module, *own, mask, **settings)[0]
        for *own, mask in zip(
            *(torch.split(part, lengths, 2) for part in (query, key, value)), attention_mask.each, strict=True
        )
    ]
    return torch.cat(parts, 1), None


def _attention(module: Any, name: str) -> Any:
    """Transformers' attention of this name; eager is a function of each family."""
    import transformers

    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return transformers.AttentionInterface()[name]


def _attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, masks: Masks, settings: dict[str, Any]
) -> torch.Tensor:
    from torch.nn.attention import varlen

    if settings.get("position_bias") is not None:
        raise layers.Unknown("its attention adds a bias, which the kernel does not take")
    longest = max(masks.row.lengths)
    kernel: Any = varlen.varlen_attn
    mixed: torch.Tensor = kernel(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        masks.ends,
        masks.ends,
        longest,
        longest,
        scale=settings.get("scaling"),
        # the kernel counts the tokens before a position, without itself
        window_size=(-1 if masks.window is None else masks.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed[None]


# -- whether a model can do it --


def proven(tuned: Any, head: loss.Head, where: torch.device, agreed: Callable[[bool], bool] = bool) -> Packing | None:
    """Packed passes, where states and gradients of the adapter are those of padded ones; else None, and the log says why.

    agreed: whether something holds in all processes, which are asked once for each way: sharded ones run equally many passes.
    """
    for way in (VARLEN, EACH):
        packing = _proven(tuned, head, where, way) if way == EACH or _may_take_kernel(tuned, where) else None
        if agreed(packing is not None):
            return packing
        if packing is not None:
            log.warning("micro-batches are not packed in this way", way=way, differs="in another process")
    return None


def _proven(tuned: Any, head: loss.Head, where: torch.device, way: str) -> Packing | None:
    try:
        packing = Packing(tuned, head, where, way)
        _compare(tuned, head, where, packing)
        return packing
    except Exception as problem:  # whatever a family's own code raises
        if isinstance(problem, torch.OutOfMemoryError) and is_sharded(tuned):
            raise  # other processes wait for this one within the pass
        log.warning("micro-batches are not packed in this way", way=way, differs=comparison.described(problem))
        return None


def is_sharded(tuned: Any) -> bool:
    return any(isinstance(weight, torch.distributed.tensor.DTensor) for weight in tuned.parameters())


def _may_take_kernel(tuned: Any, where: torch.device) -> bool:
    """Whether the kernel could compute what transformers' attention does: it has no dropout, and no float32."""
    if where.type != "cuda" or implementation(tuned) != "sdpa" or _dtype(tuned) is torch.float32:
        return False
    return not any(
        isinstance(value, float) and value > 0
        for holder in (*model.decoder(tuned).modules(), *configs(tuned))
        for name, value in vars(holder).items()
        if "drop" in name
    )


def _dtype(tuned: Any) -> torch.dtype:
    found: torch.dtype = next(model.decoder(tuned).parameters()).dtype
    return found


def _compare(tuned: Any, head: loss.Head, where: torch.device, packing: Packing) -> None:
    """Raises Unknown when the packed passes of a few examples differ from the padded ones."""
    rows = [prefix_tree.TokenRow(row.ids, np.ones(len(row.ids), dtype=bool)) for row in comparison.examples()]
    ids, marks = [row.ids.tolist() for row in rows], [row.learned.tolist() for row in rows]
    weights = list(lora.parameters(tuned).values())
    tuned.eval()
    with short_windows(tuned):
        expected, _ = model.labelled(tuned, head, ids, marks, where)
        upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(where, expected.dtype)
        wanted = gradient_of(expected, upstream, weights)
        found, _ = packing.labelled(rows)
        gradient = gradient_of(found, upstream, weights)
    bound = comparison.EXACT if expected.dtype is torch.float32 else comparison.ON_DEVICE[expected.dtype]
    # For each token, since what passes from one example to the next in a convolution reaches only its first ones.
    difference = (found.detach().float() - expected.detach().float()).norm(dim=-1)
    relative = float((difference / expected.detach().float().norm(dim=-1)).max())
    if not relative <= bound:
        raise layers.Unknown(f"states of a token differ by {relative:.2g} of their norm, above {bound:.2g}")
    comparison.equal("gradients", gradient, wanted, bound)


def gradient_of(states: torch.Tensor, upstream: torch.Tensor, weights: list[torch.nn.Parameter]) -> torch.Tensor:
    """The adapter's gradients as one vector; leaves none behind."""
    for weight in weights:
        weight.grad = None
    torch.autograd.backward(states, upstream)
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    return torch.cat([gradient.flatten().float() for gradient in found])


@contextlib.contextmanager
def short_windows(tuned: Any) -> Iterator[None]:
    """Windows of a few tokens, so that the examples cross them."""
    holders = [*configs(tuned), *model.decoder(tuned).modules()]
    before = [
        (holder, holder.sliding_window)
        for holder in holders
        if isinstance(vars(holder).get("sliding_window"), int) and holder.sliding_window
    ]
    try:
        for holder, window in before:
            holder.sliding_window = min(window, comparison.WINDOW)
        yield
    finally:
        for holder, window in before:
            holder.sliding_window = window
