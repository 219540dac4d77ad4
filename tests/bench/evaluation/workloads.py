"""What is asked: mails of the support desk's example, with a short system prompt or after solved examples. Pure but for reading
that file."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

MAILS = pathlib.Path(__file__).resolve().parents[3] / "examples/support-desk/train.jsonl"

Turns = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """Questions of one kind. `solved`: examples with their answers before each question, the same ones for all."""

    name: str
    title: str
    system: str
    solved: int
    mails: tuple[int, ...]
    """Mails in a question, in turns."""
    goal: float
    """How many times the tokens per second of transformers' batches are wanted."""


ALL = (
    Workload(
        "shared-prefix",
        "a system prompt and solved examples that all questions share",
        "You sort mail for a support desk. Answer with one JSON object on one line and nothing else. Its keys are intent "
        "(refund, question, praise or complaint), priority (high when the customer waits or threatens to leave, otherwise "
        "low), product (the device that the mail is about) and reply (whether somebody has to answer).",
        solved=6,
        mails=(1,),
        goal=5.0,
    ),
    Workload(
        "short",
        "short questions",
        "You work at a support desk. Answer the customer in two or three friendly sentences.",
        solved=0,
        mails=(2, 3),
        goal=1.5,
    ),
)
BY_NAME = {workload.name: workload for workload in ALL}


def questions(workload: Workload, count: int) -> list[Turns]:
    """Chats that end with a question."""
    chats = [json.loads(line)["messages"] for line in MAILS.read_text().splitlines()]
    solved = [turn for chat in chats[: workload.solved] for turn in chat[1:]]
    rest = [chat[1]["content"] for chat in chats[workload.solved :]]
    found, begin = [], 0
    for number in range(count):
        size = workload.mails[number % len(workload.mails)]
        text = "\n\n".join(rest[(begin + place) % len(rest)] for place in range(size))
        begin += size
        found.append([{"role": "system", "content": workload.system}, *solved, {"role": "user", "content": text}])
    return found


def shared(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with."""
    one, other = min(prompts), max(prompts)
    return next((place for place in range(len(one)) if one[place] != other[place]), len(one))


def prompts(workload: Workload, count: int, encode: Callable[[Turns], list[int]]) -> list[list[int]]:
    return [encode(question) for question in questions(workload, count)]
