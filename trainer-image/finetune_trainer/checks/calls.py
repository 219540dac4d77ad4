"""The row rule about tool calls. Rows that are not examples are refused where rows are read, in `dataset`."""

import dataclasses
from collections.abc import Iterator

from finetune_trainer.checks import rule
from finetune_trainer.data import dataset, toolcalls


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Fires where the arguments of a learned call do not fit the parameters of its tool."""

    id: str = "toolArguments"

    def fires(self, row: rule.TokenizedExample) -> bool:
        return any(_problems(row.example))

    def words(self, example: dataset.Example) -> str:
        """The first call; never its arguments, which may be private."""
        return next(_problems(example), "")


def _problems(example: dataset.Example) -> Iterator[str]:
    if example.tools is None:
        return
    for turn in example.messages:
        for call in turn.calls if turn.learned else ():
            if problem := toolcalls.problem(call, example.tools):
                yield problem
            elif why := toolcalls.unusable(example.tools).get(call.name):
                yield f"calls {call.name!r}, whose parameters are no usable JSON Schema: {why}"
