"""A JSON schema as a mask over the vocabulary: the tokens with which an answer still conforms to it. `generate` asks for it
before it chooses each token. The grammar and the masks are llguidance's, which vLLM can use, too.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

WHITE_SPACE = r"\n? {0,16}"
"""Between the parts of an answer: compact, on one line or indented, as the model likes. A small model repeats white space without
an end where the grammar has none."""


class Refused(ValueError):
    """No answer can be held to this schema; the text says why."""


class Matcher(Protocol):
    """The state of one answer."""

    def compute_bitmask(self) -> bytes:
        """A bit for each token of the vocabulary; the stop tokens alone where nothing else may follow."""
        ...

    def consume_token(self, sampled_token: int) -> bool: ...


class Grammar:
    """Answers that are JSON, conform to a schema, and then stop. Fields come in the order of the schema."""

    def __init__(self, schema: str, tokenizer: Any, stops: frozenset[int], vocabulary: int) -> None:
        """schema: as JSON; vocabulary: number of logits. Raises Refused."""
        import llguidance

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise Refused("the model's tokenizer is none of the tokenizers library")
        size = max(vocabulary, len(tokenizer))
        self._tokenizer = llguidance.LLTokenizer(backend.to_str(), n_vocab=size, eos_token=sorted(stops))
        self._grammar = llguidance.LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_pattern": WHITE_SPACE}
        )
        if problem := llguidance.LLMatcher.validate_grammar(self._grammar, self._tokenizer):
            raise Refused(problem)

    def matcher(self) -> Matcher:
        """At the beginning of an answer."""
        import llguidance

        return llguidance.LLMatcher(self._tokenizer, self._grammar, log_level=0)

    def masked(self, logits: torch.Tensor, matchers: Sequence[Matcher]) -> torch.Tensor:
        """Logits [n, vocabulary], changed in place: those of tokens that must not follow are -inf. matchers: of the n rows."""
        words = b"".join(one.compute_bitmask() for one in matchers)
        bits = np.unpackbits(np.frombuffer(words, np.uint8).reshape(len(matchers), -1), axis=1, bitorder="little")
        refused = torch.from_numpy(bits[:, : logits.shape[1]] == 0).to(logits.device)
        return logits.masked_fill_(refused, float("-inf"))
