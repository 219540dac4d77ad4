"""Row rules about tokens. What the corpus counts anyway (lengths, truncation) is judged in `review`."""

import dataclasses

from finetune_trainer.checks import rule
from finetune_trainer.data import dataset


@dataclasses.dataclass(frozen=True)
class StopToken:
    """Fires where a learned answer does not end with a token that ends an answer."""

    id: str = "stopToken"

    def fires(self, row: rule.TokenizedExample) -> bool:
        return row.details.unended

    def words(self, example: dataset.Example) -> str:
        return ""


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
