"""Tasks for which it is known, from how their data are made, which method is enough: a prompt, examples, documents, a schema, or
only training. Models are rules: what each can do with a prompt is known, too.

A model gets the turns before its answer, as (role, content), and whether the answer is held to a schema.
"""

import collections
import dataclasses
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from tests.scenarios import data

from finetune_trainer.evaluation import documents, retrieval

Turns = Sequence[tuple[str, str]]
Model = Callable[[Turns, bool], str]
Pair = tuple[str, str]

UNSURE = "I am not sure."

FRAMES = (
    "I would like to {}, please.",
    "Could you {} for me today?",
    "How can I {}?",
    "My colleague wants to {} soon.",
    "Where do we {} here?",
    "{} before Friday.",
    "Somebody must {}.",
    "Is it possible to {} online?",
)
BRIEF = ("{} price", "cost of {}", "{}?", "buy {}", "{} please", "how much {}", "{} now", "order {}")
EMPTY = {*retrieval.words(" ".join(FRAMES + BRIEF)), *data.ADJECTIVES, "the", "of", "we", "writes"}


# --- Models ---


def shown(turns: Turns) -> list[Pair]:
    """The questions and answers before the question."""
    asked = [content for role, content in turns[:-1] if role == "user"]
    return list(zip(asked, (content for role, content in turns if role == "assistant"), strict=True))


def shared(one: str, other: str) -> float:
    """The share of the words with a meaning of their own that both have."""
    first, second = (set(retrieval.words(text)) - EMPTY for text in (one, other))
    return len(first & second) / max(1, len(first | second))


def imitates(turns: Turns, held: bool) -> str:
    """Answers like the example that shares the most words with the question, the last one of equals."""
    pairs = shown(turns)
    return max(reversed(pairs), key=lambda pair: shared(pair[0], turns[-1][1]))[1] if pairs else UNSURE


def votes(turns: Turns, held: bool) -> str:
    """Gives the most frequent answer of the examples that share more than half of the question's words."""
    near = [answer for asked, answer in shown(turns) if shared(asked, turns[-1][1]) > 0.5]
    return collections.Counter(near).most_common(1)[0][0] if near else UNSURE


def sees_beginnings(turns: Turns, held: bool) -> str:
    """Answers like an example whose first word begins with the same three letters."""
    pairs = [answer for asked, answer in shown(turns) if asked[:3] == turns[-1][1][:3]]
    return pairs[-1] if pairs else UNSURE


def reads(turns: Turns, held: bool) -> str:
    """Looks the answer up in the passages before the question: the rest of the line that begins with what is asked about."""
    *passages, asked = turns[-1][1].split("\n")
    if documents.INTRODUCTION not in passages:
        return UNSURE
    about = asked.split(": ")[-1].strip("?")
    return next((line.split(" = ")[1] for line in passages if line.startswith(f"{about} = ")), UNSURE)


def reads_all(turns: Turns, held: bool) -> str:
    """Replaces each word of the question by what the passages say of it."""
    *passages, asked = turns[-1][1].split("\n")
    known = dict(line.split(" = ") for line in passages if " = " in line)
    return " ".join(known.get(word, UNSURE) for word in asked.split(": ")[-1].split())


def adds(turns: Turns, held: bool) -> str:
    first, _, second = turns[-1][1].split("\n")[0].removesuffix("?").removeprefix("What is ").split()
    return str(int(first) + int(second))


def obeys(turns: Turns, held: bool) -> str:
    wanted = any(role == "system" and "capitals" in content for role, content in turns)
    return turns[-1][1].upper() if wanted else turns[-1][1]


def chats(inner: Model) -> Model:
    """The same answer with words around it, as models for chats write; none where a schema leaves no room for them."""
    return lambda turns, held: inner(turns, held) if held else f"Sure! Here it is: {inner(turns, held)}"


def fills(turns: Turns, held: bool) -> str:
    """Knows the fields of an order without any example."""
    _, amount, _, thing, _, place = turns[-1][1].strip(".").split()
    return json.dumps({"amount": int(amount), "thing": thing, "place": place})


def chooses(turns: Turns, held: bool) -> str:
    """Chooses the label whose words the question has, among those that an instruction lists; it sees nothing in examples."""
    lines = [line for _, content in turns for line in content.split("\n")]
    asked = set(retrieval.words(" ".join(line for line in turns[-1][1].split("\n") if not line.startswith("- "))))
    labels = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return next((label for label in labels if set(label.split("_")) <= asked), UNSURE)


def names_keys(turns: Turns, held: bool) -> str:
    """Knows the fields of an order; the keys have names of its own unless an instruction names them."""
    _, amount, _, thing, _, place = turns[-1][1].split("\n")[0].strip(".").split()
    named = re.findall(r'"(\w+)" \(', " ".join(content for _, content in turns))
    return json.dumps(dict(zip(named or ("count", "item", "to"), (int(amount), thing, place), strict=True)))


def explains(turns: Turns, held: bool) -> str:
    """Adds, and says so, unless an instruction wants nothing but the answer."""
    brief = any("Write only the answer" in content for _, content in turns)
    return adds(turns, held) if brief else f"The sum is {adds(turns, held)}."


# --- Tasks ---


def drawn(count: int, name: str, one: Callable[[random.Random, int], Pair]) -> list[Pair]:
    """Pairs whose questions are all different."""
    rng, found = random.Random(name), dict[str, str]()
    for number in range(20 * count):
        asked, answer = one(rng, number)
        found.setdefault(asked, answer)
    return list(found.items())[:count]


WISHES = [f"{verb} the {noun}" for noun, verb in zip(data.NOUNS[:40], data.VERBS, strict=False)]


def intents(labels: int, count: int = 260) -> list[Pair]:
    """A wish in one of eight frames and its label; each wish has two words of its own."""

    def one(rng: random.Random, number: int) -> Pair:
        wish = rng.choice(WISHES[:labels])
        return f"{rng.choice(FRAMES).format(wish)} {rng.choice(data.ADJECTIVES)}", wish.replace(" ", "_")

    return drawn(count, f"intents {labels}", one)


def noisy(count: int = 300) -> list[Pair]:
    """Twelve wishes, of which the label of every third row is that of another: what is usual has to be seen."""
    rng = random.Random("noisy")
    pairs = intents(12, count)
    wrong = [answer for _, answer in pairs]
    return [
        (asked, rng.choice(wrong) if number < count - QUESTIONS and number % 3 == 0 else answer)
        for number, (asked, answer) in enumerate(pairs)
    ]


def codes(count: int = 400) -> list[Pair]:
    """Part numbers: their first three characters say which of 60 shelves, the rest is never the same twice. Words beside them are
    about nothing, so that similar rows have nothing to do with each other."""
    kinds = [f"{letter}{number}" for letter in "KLMPRT" for number in range(10, 20)]

    def one(rng: random.Random, number: int) -> Pair:
        kind = rng.choice(kinds)
        return (
            f"{kind}{rng.randint(1000, 9999)} {rng.choice(data.NOUNS)} {rng.choice(data.PLACES)}",
            f"s{kinds.index(kind)}",
        )

    return drawn(count, "codes", one)


def customers(count: int = 300) -> list[Pair]:
    """Sixty customers, each with a team of its own, whatever they write."""
    rng = random.Random("customers")
    teams = {f"{data.name(rng)} {data.name(rng)}": data.word(rng) for _ in range(60)}

    def one(rng: random.Random, number: int) -> Pair:
        who = rng.choice(list(teams))
        return f"{who} writes: we {rng.choice(data.VERBS)} the {rng.choice(data.NOUNS)}", teams[who]

    return drawn(count, "customers", one)


def faults(count: int = 260) -> list[Pair]:
    """Fifty fault numbers, each with a remedy of its own, whatever the message says besides."""
    rng = random.Random("faults")
    remedies = {f"F{rng.randint(1000, 9999)}": f"{rng.choice(data.VERBS)} {data.word(rng)}" for _ in range(50)}

    def one(rng: random.Random, number: int) -> Pair:
        fault = rng.choice(list(remedies))
        return f"{rng.choice(FRAMES).format('clear')} {fault} {rng.choice(data.ADJECTIVES)}", remedies[fault]

    return drawn(count, "faults", one)


def asked_again(frames: tuple[str, ...], count: int = 260) -> list[Pair]:
    """Questions that came before in other words: the prices of fifty things, each in eight questions."""
    rng = random.Random("asked again")
    facts = {f"the {noun} of {data.name(rng)}": f"{rng.randint(100, 9999)} EUR" for noun in data.NOUNS[:50]}

    def one(rng: random.Random, number: int) -> Pair:
        about = rng.choice(list(facts))
        return rng.choice(frames).format(about), facts[about]

    return drawn(count, f"asked again {len(frames[0])}", one)


def handbook(count: int = 260, foreign: bool = False) -> tuple[list[Pair], str]:
    """Facts, each asked once, and the handbook that has them all."""
    rng = random.Random(f"handbook {foreign}")
    signs = "日月火水木金土山川田人口手目耳足石花草虫犬猫鳥魚空雨雪風"

    def subject() -> str:
        return "".join(rng.choice(signs) for _ in range(5)) if foreign else f"{data.name(rng)} {rng.choice(data.NOUNS)}"

    facts = {subject(): str(rng.randint(100, 99_999)) for _ in range(count)}
    text = "\n\n".join(f"{about} = {value}" for about, value in facts.items())
    return [(f"Price of: {about}?", value) for about, value in facts.items()], text


def glossary(count: int = 260) -> tuple[list[Pair], str]:
    """Three words of a house's language, each of them in its glossary."""
    rng = random.Random("glossary")
    known = {word: data.word(rng, 3, 4) for word in data.NOUNS + data.VERBS}
    pairs = drawn(
        count,
        "glossary",
        lambda rng, _: (lambda words: (f"Translate: {' '.join(words)}", " ".join(known[word] for word in words)))(
            rng.sample(list(known), 3)
        ),
    )
    return pairs, "\n\n".join(f"{word} = {other}" for word, other in known.items())


def another_handbook(count: int = 260) -> tuple[list[Pair], str]:
    """The facts, and the handbook of another house."""
    return handbook(count)[0], handbook(count, foreign=True)[1]


def sums(count: int = 200) -> list[Pair]:
    def one(rng: random.Random, number: int) -> Pair:
        first, second = rng.randint(10, 999), rng.randint(10, 999)
        return f"What is {first} + {second}?", str(first + second)

    return drawn(count, "sums", one)


def capitals(count: int = 200) -> list[Pair]:
    def one(rng: random.Random, number: int) -> Pair:
        text = data.remark(rng)
        return text, text.upper()

    return drawn(count, "capitals", one)


def orders(count: int = 200) -> list[Pair]:
    """Texts -> JSON; every answer is another one."""

    def one(rng: random.Random, number: int) -> Pair:
        found = {"amount": rng.randint(1, 999), "thing": rng.choice(data.NOUNS), "place": rng.choice(data.PLACES)}
        return "Send {amount} of {thing} to {place}.".format(**found), json.dumps(found)

    return drawn(count, "orders", one)


ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {"amount": {"type": "integer"}, "thing": {"type": "string"}, "place": {"type": "string"}},
    "required": ["amount", "thing", "place"],
}


def routed(count: int = 260) -> list[Pair]:
    """Wishes -> JSON with the label, of which there are forty."""
    return [(asked, json.dumps({"label": answer})) for asked, answer in intents(40, count)]


def of_table(table: Callable[[int, int], list[data.Row]], count: int) -> list[Pair]:
    """The pairs of one of the tables in `data`."""
    return [(row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in table(count, 1)]


def in_other_words(count: int = 260) -> list[Pair]:
    """Wishes of which no two rows of a label share a word: the words of each row are made for it."""

    def one(rng: random.Random, number: int) -> Pair:
        return " ".join(data.word(rng, 4, 5) for _ in range(4)), rng.choice(WISHES[:40]).replace(" ", "_")

    return drawn(count, "other words", one)


QUESTIONS = 24
"""Pairs at the end of each task that are asked; the others are training examples."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked, of whom, and which method must be found to be enough (None: only training may be)."""

    name: str
    pairs: Callable[[], list[Pair]]
    model: Model
    enough: str | None
    handbook: Callable[[], str] | None = None
    schema: dict[str, Any] | None = None
    system: str | None = None
    few: int = 3
    gate: tuple[str, float] = ("ExactMatch", 0.5)
    room: int = 1500
    """Tokens for what stands before a question."""
    at_least: int = 4
    """Retrieved examples that the choice must come to, where Retrieved is enough."""

    def __str__(self) -> str:
        return self.name


TASKS = (
    # retrieved examples
    Task("forty intents", lambda: intents(40), imitates, "Retrieved"),
    Task("routing by customer", customers, imitates, "Retrieved"),
    Task("questions that came before in other words", lambda: asked_again(BRIEF), imitates, "Retrieved"),
    Task("labels of which a third is wrong", noisy, votes, "Retrieved", at_least=16),
    # BM25 counts each word: it finds the same sentence about another thing before the same thing in other sentences.
    Task("the same, in long sentences that all share", lambda: asked_again(FRAMES), imitates, "Retrieved", at_least=16),
    Task("remedies by the number of a fault", faults, imitates, "Retrieved"),
    # an instruction on the form of the answer
    Task("forty labels, once they are listed", lambda: intents(40), chooses, "Optimized", room=4000),
    Task("fields in JSON, once their keys are named", orders, names_keys, "Optimized", room=4000),
    Task("sums that the model explains unless told not to", sums, explains, "Optimized"),
    # a few, or many
    Task("six intents, one example each", lambda: intents(6), imitates, "FewShot", few=6),
    Task(
        "shelves by the beginning of a number", codes, sees_beginnings, "ManyShot", gate=("ExactMatch", 0.8), room=3000
    ),
    # documents
    Task("facts of a handbook", lambda: handbook()[0], reads, "RAG", lambda: handbook()[1]),
    Task(
        "facts of a handbook, in a script without spaces",
        lambda: handbook(foreign=True)[0],
        reads,
        "RAG",
        lambda: handbook(foreign=True)[1],
    ),
    Task("a house's language, by its glossary", lambda: glossary()[0], reads_all, "RAG", lambda: glossary()[1]),
    # decoding by a schema
    Task("fields in JSON, with words around it", orders, chats(fills), "Structured", schema=ORDER),
    Task(
        "labels in JSON, by retrieved examples, with words around it",
        routed,
        chats(imitates),
        "Structured",
        schema={"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]},
        gate=("JsonSchema", 0.7),
    ),
    # less than that
    Task("sums that the model can do", sums, adds, "Base"),
    Task("a rule that one sentence says", capitals, obeys, "Prompt", system="Write in capitals."),
    # nothing but training
    Task("facts of a handbook that the job does not name", lambda: handbook()[0], reads, None),
    Task(
        "facts, and the handbook of another house",
        lambda: another_handbook()[0],
        reads,
        None,
        lambda: another_handbook()[1],
    ),
    Task("a house's tone", lambda: of_table(data.style, 200), imitates, None),
    Task("fields of mails", lambda: of_table(data.extraction, 200), imitates, None),
    Task("forty intents that share no words", in_other_words, imitates, None),
)
