"""Token spans: texts as token ids, many at once, and where in them their prompts end. The fast path of `tokens`.

Tokenizing a prompt a second time to find its end costs as much as the prompt itself. It is not needed where a
special token stands before the prompt's end: tokenizers cut a text at its special tokens before anything else, so that
what comes before such a cut has the same ids in the prompt and in the whole text. Only the rest after it is tokenized
again, and that is mostly the same few tokens ("assistant\\n") for all examples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

Found = tuple[list[int], list[int | None]]
Mask = np.ndarray[Any, np.dtype[np.bool]]


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A prompt, cut at its last special token: `head` ids of the whole text come before it, `tail` is the text from there."""

    head: int
    tail: str


def find(tokenizer: Any, texts: Sequence[tuple[str, Sequence[str]]], *, special: bool) -> list[Found]:
    """For each text and its prompts, which are prefixes of it: the text's ids, and the number of ids of each prompt.

    None for a prompt whose own ids are not a prefix of the text's. `tokenizer` is one of transformers' fast
    tokenizers; `special` is its add_special_tokens.
    """
    if not texts:
        return []
    encodings = _encode(tokenizer, [text for text, _ in texts], special)
    anchors = _anchors(tokenizer)
    # Special tokens that the tokenizer adds around a text would be elsewhere in a part of it.
    cuts = [
        [_Cut(0, prompt) if special else _cut(encoding, ids, prompt, anchors) for prompt in prompts]
        for (encoding, ids), (_, prompts) in zip(encodings, texts, strict=True)
    ]
    tails = list({cut.tail for made in cuts for cut in made})
    known = {tail: ids for tail, (_, ids) in zip(tails, _encode(tokenizer, tails, special), strict=True)}
    return [(ids, [_end(ids, cut, known) for cut in made]) for (_, ids), made in zip(encodings, cuts, strict=True)]


def _encode(tokenizer: Any, texts: list[str], special: bool) -> list[tuple[Any, list[int]]]:
    """Each text's encoding and ids."""
    if not texts:
        return []
    found = tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return list(zip(found.encodings, found["input_ids"], strict=True))


def _anchors(tokenizer: Any) -> Mask:
    """For each id whether it is an added token that the tokenizer cuts out of the raw text, whatever is next to it."""
    found = np.zeros(max(tokenizer.vocab_size, len(tokenizer)) + 1, dtype=bool)
    for id, token in tokenizer.added_tokens_decoder.items():
        found[id] = not (token.normalized or token.single_word)
    return found


def _cut(encoding: Any, ids: list[int], prompt: str, anchors: Mask) -> _Cut:
    last = _Cut(0, prompt)
    for index in np.flatnonzero(anchors[ids]).tolist():
        begin, end = encoding.token_to_chars(index)
        if end > len(prompt):
            break
        last = _Cut(index, prompt[begin:])
    return last


def _end(ids: list[int], cut: _Cut, known: dict[str, list[int]]) -> int | None:
    tail = known[cut.tail]
    end = cut.head + len(tail)
    return end if ids[cut.head : end] == tail else None
