"""Writes train.jsonl: a support desk that answers every message with one JSON object of four fixed keys.

python examples/support-desk/make_data.py          writes train.jsonl next to this file python
examples/support-desk/make_data.py --check  fails when the committed file differs

Seeded and without dependencies: the same file every time. The task suits a small model: the format is strict, and intent,
priority, product and whether a reply is needed follow from the message.
"""

import argparse
import json
import pathlib
import random

COUNT, SEED = 320, 7

SYSTEM = "You sort mail for a support desk. Answer with JSON only."

PRODUCTS = {
    "router": ["my router", "the W2 router", "the router you sent me", "our wifi router"],
    "camera": ["the door camera", "my security camera", "the outdoor camera", "our garden camera"],
    "thermostat": ["the thermostat", "my smart thermostat", "the heating thermostat", "our hallway thermostat"],
    "speaker": ["the kitchen speaker", "my speaker", "the new loudspeaker", "our living room speaker"],
    "app": ["the mobile app", "your app", "the phone app", "the app on my tablet"],
    "account": ["my account", "our customer account", "my online account", "my login"],
}

# intent -> (products it can be about, priorities, whether a reply is needed, ways to say it)
INTENTS = {
    "refund": (
        ("router", "camera", "thermostat", "speaker"),
        True,
        [
            "I want my money back for {it}.",
            "I sent {it} back {when} and still wait for the refund.",
            "Please refund {it}, it is not what I ordered.",
            "I was charged twice for {it}. Give me back one of the payments.",
            "How do I get a refund for {it}? I bought it {when}.",
        ],
    ),
    "repair": (
        ("router", "camera", "thermostat", "speaker"),
        True,
        [
            "{it} stopped working {when}.",
            "{it} does not turn on any more.",
            "Since {when} {it} keeps restarting every few minutes.",
            "{it} is broken, the light just blinks red.",
            "Something is wrong with {it}: it makes a strange noise.",
        ],
    ),
    "delivery": (
        ("router", "camera", "thermostat", "speaker"),
        True,
        [
            "Where is {it}? It should have arrived {when}.",
            "I ordered {it} {when} and the parcel has not come.",
            "The tracking page for {it} has not moved since {when}.",
            "Can you tell me when {it} will be delivered?",
            "The courier left {it} at the wrong address {when}.",
        ],
    ),
    "access": (
        ("app", "account"),
        True,
        [
            "I cannot log in to {it} since {when}.",
            "{it} says that my password is wrong, but it is not.",
            "I am locked out of {it}.",
            "The reset mail for {it} never arrives.",
            "Since {when} {it} asks for a code that I do not have.",
        ],
    ),
    "question": (
        ("router", "camera", "thermostat", "speaker", "app"),
        True,
        [
            "Does {it} work without the internet?",
            "How do I connect {it} to a second phone?",
            "Is there a manual for {it}?",
            "Can I use {it} abroad?",
            "How many people can share {it}?",
        ],
    ),
    "praise": (
        ("router", "camera", "thermostat", "speaker", "app"),
        False,
        [
            "I just want to say that I love {it}.",
            "{it} is great, thank you!",
            "Very happy with {it} since {when}.",
            "Thanks to your team, {it} works perfectly now.",
            "Five stars for {it}, well done.",
        ],
    ),
}

WHEN = ["yesterday", "last Monday", "two weeks ago", "this morning", "last week", "a month ago", "last night"]

URGENT = [
    "This is urgent!",
    "I need this solved today.",
    "Please hurry, my shop depends on it.",
    "If this is not fixed today I will cancel.",
]

CALM = ["No hurry.", "Whenever you have time.", "It can wait until next week.", "Take your time."]

OPENINGS = ["Hi,", "Hello,", "Good morning,", "Dear team,", "Hey there,", "", "", ""]

CLOSINGS = ["Thanks, {name}", "Best, {name}", "Regards, {name}", "{name}", "", ""]

NAMES = ["Ana", "Tom", "Mei", "Lars", "Priya", "Omar", "Julia", "Ben", "Sofia", "Kofi", "Ines", "Yuki", "Paul", "Nora"]

CHATTER = [
    "I have been a customer for years.",
    "My neighbour has the same one.",
    "I already tried to call you.",
    "I could not find this on your website.",
    "We moved house recently.",
    "",
    "",
    "",
    "",
]


def message(draw: random.Random, intent: str) -> tuple[str, dict[str, object]]:
    """A customer's message and the answer to learn."""
    products, reply, sentences = INTENTS[intent]
    product = draw.choice(products)
    sentence = draw.choice(sentences).format(it=draw.choice(PRODUCTS[product]), when=draw.choice(WHEN))
    tone = "" if intent == "praise" else draw.choice(["", draw.choice(URGENT), draw.choice(CALM)])
    priority = "high" if tone in URGENT else "low" if tone in CALM or intent == "praise" else "normal"
    closing = draw.choice(CLOSINGS).format(name=draw.choice(NAMES))
    parts = [draw.choice(OPENINGS), sentence[0].upper() + sentence[1:], draw.choice(CHATTER), tone, closing]
    answer = {"intent": intent, "priority": priority, "product": product, "reply": reply}
    return " ".join(part for part in parts if part), answer


def lines() -> list[str]:
    """The examples, each message once, the intents in turn."""
    draw = random.Random(SEED)  # noqa: S311
    seen: set[str] = set()
    found = []
    while len(found) < COUNT:
        text, answer = message(draw, list(INTENTS)[len(found) % len(INTENTS)])
        if text in seen:
            continue
        seen.add(text)
        turns = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": text},
            {"role": "assistant", "content": json.dumps(answer)},
        ]
        found.append(json.dumps({"messages": turns}) + "\n")
    draw.shuffle(found)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    path = pathlib.Path(__file__).with_name("train.jsonl")
    text = "".join(lines())
    if options.parse_args().check:
        return 0 if path.is_file() and path.read_text() == text else 1
    path.write_text(text)
    print(f"{path}: {COUNT} examples")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
