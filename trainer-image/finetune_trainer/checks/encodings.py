"""Row rules about tokens. What the corpus counts anyway (lengths, truncation) is judged in `review`."""

import dataclasses

from finetune_trainer.checks import rule
from finetune_trainer.data import dataset, tokens


@dataclasses.dataclass(frozen=True)
class StopToken:
    """Fires where a learned answer does not end with a token that ends an answer."""

    encoder: tokens.Encoder
    id: str = "stopToken"

    def fires(self, row: rule.TokenizedExample) -> bool:
        return row.details.unended

    def words(self, example: dataset.Example) -> str:
        """What differs between the chat template and the server."""
        ends = ", ".join(repr(one) for one in self.encoder.stop_texts) or "no token: the tokenizer has no eos_token"
        if not (end := self.encoder.turn_end):
            return f"the server stops at {ends}"
        return f"the chat template ends turns with {end!r}, the server stops at {ends}"


@dataclasses.dataclass(frozen=True)
class DoubleBos:
    """Fires where a text begins with two begin-of-sequence tokens."""

    bos: int | None
    id: str = "doubleBos"

    def fires(self, row: rule.TokenizedExample) -> bool:
        return self.bos is not None and any(encoded.ids[:2] == [self.bos, self.bos] for encoded in row.details.rows)

    def words(self, example: dataset.Example) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class PromptPrefix:
    """Fires where the tokens of the prompt are not a prefix of the tokens of prompt and answer together."""

    id: str = "promptPrefix"

    def fires(self, row: rule.TokenizedExample) -> bool:
        return row.details.merged

    def words(self, example: dataset.Example) -> str:
        return ""
