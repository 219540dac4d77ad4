"""The trainer through transformers' passes, as for a family that its own do not know: with finetune-trainer's arguments."""

import sys
from typing import Any, NoReturn

from finetune_trainer import __main__
from finetune_trainer.engine import decoder, layers


def unknown(*_: Any) -> NoReturn:
    raise layers.Unknown("the benchmark measures the standard path")


if __name__ == "__main__":
    decoder.of = unknown  # type: ignore[assignment]
    sys.exit(__main__.main())
