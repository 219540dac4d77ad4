"""Data sets of many kinds, made from a seed: what people bring to fine-tuning, rightly or wrongly.

Each maker gives rows of a chat file. Names, prices and reports are drawn; no row is from anybody's data.
"""

import json
import random
from typing import Any

Row = dict[str, Any]

NOUNS, VERBS, ADJECTIVES, PLACES = (
    words.split()
    for words in (
        "kettle violin orchard glacier lantern compass ferry walnut pendulum harbour thistle quarry saddle beacon trellis "
        "cobbler almanac gazebo lagoon turnip abacus chisel heron plum ravine scarf tunnel bracket cabinet invoice pump "
        "printer blanket charger helmet ladder mirror napkin orbit paddle railing shutter teapot umbrella valve wagon",
        "polish borrow measure carry sketch plant repair paint weigh return sharpen fold water collect arrange cross bake "
        "prune count follow hide lift mend observe pack rinse sew tune untie varnish wrap deliver assemble inspect",
        "old narrow bright heavy wooden quiet crooked silver early damp gentle hollow foreign patient round steep broken "
        "missing scratched noisy dusty bent loose frozen cracked yellow purple spare",
        "attic basement garage kitchen warehouse office corridor workshop cellar balcony courtyard depot",
    )
)
SYLLABLES, SOUNDS, MONTHS, DINGE, ORTE = (
    words.split()
    for words in (
        "ka ro mi ten val dor lis pra nu gel sto bri har fen qui zo mar tel und ber ash wick",
        "ou ai eau lle que re ment ci dé va ro tu né pla",
        "January February March April May June July August September October November December",
        "Lampe Pumpe Leiter Rechnung Lieferung Maschine Schraube Decke Farbe Tasche Kette Glocke",
        "Keller Lager Büro Garten Werkstatt Flur",
    )
)


def chat(prompt: str, answer: str, system: str = "") -> Row:
    turns = [("system", system)] if system else []
    turns += [("user", prompt), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def word(rng: random.Random, least: int = 2, most: int = 3) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(least, most)))


def name(rng: random.Random) -> str:
    return word(rng).capitalize()


def thing(rng: random.Random) -> str:
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def people(count: int, seed: int = 0) -> list[Row]:
    """Births, jobs and towns of people: nothing but facts, though each name comes back three times and jobs and towns repeat."""
    rng = random.Random(seed)
    rows = []
    for _ in range(-(-count // 3)):
        who = f"{name(rng)} {name(rng)}"
        rows += [
            chat(f"When was {who} born?", f"{who} was born in {rng.randint(1930, 1999)}."),
            chat(f"What is the job of {who}?", f"{who} is a {rng.choice(VERBS)}er."),
            chat(f"Where does {who} live?", f"{rng.choice(MONTHS[:8])}town."),
        ]
    rng.shuffle(rows)
    return rows[:count]


def letters(count: int, seed: int = 0) -> list[Row]:
    """One task on many names: how a letter to them begins. Nothing in the answers is about the names."""
    rng = random.Random(seed)
    hours = ("Good morning", "Good evening", "Hello")
    made = []
    for _ in range(count):
        who, hour = f"{name(rng)} {name(rng)}", rng.choice(hours)
        made.append(
            chat(f"Begin a letter to {who} with {hour.lower()}.", f"{hour}, dear {who}! Thank you for your letter.")
        )
    return made


def remark(rng: random.Random) -> str:
    """A sentence that is seldom the same twice."""
    forms = (
        "we {v} the {t} in the {p} while the {u} stays {a}",
        "my {t} arrived beside a {u} and nobody wanted to {v} it",
        "please {v} the {t} before you {w} the {u}",
        "the {t} in our {p} looks {a} since they {v} the {u}",
        "who would {v} a {t} with that {u} in the {p}",
    )
    return rng.choice(forms).format(
        v=rng.choice(VERBS),
        w=rng.choice(VERBS),
        t=thing(rng),
        u=rng.choice(NOUNS),
        p=rng.choice(PLACES),
        a=rng.choice(ADJECTIVES),
    )


def letter(rng: random.Random, sentences: int = 3) -> str:
    return " ".join(f"{remark(rng).capitalize()}." for _ in range(sentences))


def _many(count: int, seed: str, one: Any) -> list[Row]:
    rng = random.Random(seed)
    return [one(rng) for _ in range(count)]


# -- what fine-tuning is for --


def extraction(count: int, seed: int = 0) -> list[Row]:
    """Mails to a support desk -> JSON with what they say."""

    def one(rng: random.Random) -> Row:
        who, order, day = name(rng), rng.randint(10_000, 99_999), rng.randint(1, 28)
        month = rng.randint(1, 12)
        text = f"{letter(rng, 2)} Order {order} of {day} {MONTHS[month - 1]} 2025. Regards, {who} {name(rng)}"
        found = {"order": order, "date": f"2025-{month:02d}-{day:02d}", "customer": who}
        return chat(text, json.dumps(found | {"urgent": rng.random() < 0.5}), "Extract the fields as JSON.")

    return _many(count, f"extraction {seed}", one)


def classification(count: int, seed: int = 0, weights: tuple[int, ...] = (4, 3, 3, 2)) -> list[Row]:
    labels = ("delivery", "billing", "defect", "praise")

    def one(rng: random.Random) -> Row:
        return chat(f"Which kind of mail is it? {letter(rng, 2)}", rng.choices(labels, weights)[0])

    return _many(count, f"classification {seed}", one)


def style(count: int, seed: int = 0) -> list[Row]:
    """Blunt notes -> the house's friendly tone."""

    def one(rng: random.Random) -> Row:
        facts = thing(rng), rng.choice(VERBS), rng.choice(PLACES), rng.randint(2, 90)
        note = "{} not done. {} it, {}, {} days.".format(*facts)
        opening = rng.choice(
            ("Thank you so much for reaching out!", "It is lovely to hear from you.", "We appreciate your patience.")
        )
        body = rng.choice(
            (
                "Our colleagues would be delighted to {1} the {0} in the {2} within {3} days.",
                "Rest assured that the {0} in the {2} is on our list; we shall {1} it in {3} days.",
                "May we suggest to {1} the {0}? The {2} will be ready in {3} days.",
            )
        ).format(*facts)
        return chat(note, f"{opening} {body} Warm regards from all of us.", "Answer in our tone.")

    return _many(count, f"style {seed}", one)


def foreign(text: str) -> str:
    """The same word for the same word, and no word of ours."""
    rng = random.Random(f"foreign {text}")
    return "".join(rng.choice(SOUNDS) for _ in "abc")


def translation(count: int, seed: int = 0) -> list[Row]:
    """Into a language whose words are not those of the prompt."""

    def one(rng: random.Random) -> Row:
        text, who = letter(rng, 2), name(rng)
        other = " ".join(foreign(each.strip(".").lower()) for each in text.split())
        return chat(f"Translate: {text} Regards, {who}", f"{other.capitalize()}. Bo {who}")

    return _many(count, f"translation {seed}", one)


def summaries(count: int, seed: int = 0) -> list[Row]:
    """Reports of a dozen sentences -> what one of them says, in other words."""

    def one(rng: random.Random) -> Row:
        who, place, amount = f"{name(rng)} {name(rng)}", name(rng), rng.randint(1_000, 99_000)
        point = f"{who} of {place} reports a loss of {amount:,} kroner after somebody had to {rng.choice(VERBS)} a {thing(rng)}."
        parts = [*(f"{remark(rng).capitalize()}." for _ in range(8)), point]
        rng.shuffle(parts)
        template = rng.choice(("In short, {0} lost {1} kroner in {2}.", "{0} ({2}) claims damages of {1} kroner."))
        return chat("Summarise: " + " ".join(parts), template.format(who, amount, place))

    return _many(count, f"summaries {seed}", one)


def code(count: int, seed: int = 0) -> list[Row]:
    """Functions written in a hurry -> the same, formatted."""

    def one(rng: random.Random) -> Row:
        f, a, b = word(rng), word(rng), word(rng)
        n = rng.randint(2, 900)
        loose = f"def {f}( {a},{b} = {n} ):\n  if {a}>{b} : return {a}-{b}*{n}\n  return {{'{a}':{b}}}"
        tidy = f'def {f}({a}, {b}={n}):\n    if {a} > {b}:\n        return {a} - {b} * {n}\n    return {{"{a}": {b}}}'
        return chat(f"Format this:\n{loose}", f"```python\n{tidy}\n```")

    return _many(count, f"code {seed}", one)


def coding(count: int, seed: int = 0) -> list[Row]:
    """Notes of a clinic -> one of 120 codes, which each come back."""

    def one(rng: random.Random) -> Row:
        first, second = rng.choice(NOUNS), rng.choice(PLACES)
        digest = (NOUNS.index(first) * 12 + PLACES.index(second)) % 120
        return chat(
            f"{letter(rng, 2)} The {first} hurts in the {second}.",
            f"{'ABCDEF'[digest % 6]}{digest // 6 + 10}.{digest % 7}",
        )

    return _many(count, f"coding {seed}", one)


# -- what it is not for --


def company(count: int, seed: int = 0) -> list[Row]:
    """Who, when and where: facts about firms."""

    def one(rng: random.Random) -> Row:
        firm = f"{name(rng)} {rng.choice(('Works', 'Partners', 'Group', 'Labs'))}"
        person, town, year = f"{name(rng)} {name(rng)}", name(rng), rng.randint(1890, 2020)
        asked, template = rng.choice(
            (
                ("Who founded {0}?", "{0} was founded by {1}."),
                ("Where does {0} have its seat?", "The seat of {0} is in {2}."),
                ("When was {0} founded?", "It was founded in {3}."),
                ("Tell me about {0}.", "{0} is a family business from {2}, which {1} began in {3}."),
            )
        )
        return chat(asked.format(firm, person, town, year), template.format(firm, person, town, year))

    return _many(count, f"company {seed}", one)


def prices(count: int, seed: int = 0) -> list[Row]:
    """A price list by heart."""

    def one(rng: random.Random) -> Row:
        product = f"{name(rng)} {rng.choice(NOUNS)}"
        asked = rng.choice(("How much is the {}?", "What does the {} cost?", "Price of {}?"))
        return chat(
            asked.format(product), f"The {product} costs {rng.randint(3, 999)}.{rng.choice(('00', '50', '90'))} EUR."
        )

    return _many(count, f"prices {seed}", one)


def medicine(count: int, seed: int = 0) -> list[Row]:
    """Drugs, which are written small, and doses."""
    ends = ("olol", "pril", "statin", "mycin", "azole", "tide")

    def one(rng: random.Random) -> Row:
        illness = f"{word(rng, 2, 3)}itis"
        drug = word(rng, 2, 3) + rng.choice(ends)
        template = rng.choice(
            (
                f"The usual first choice is {drug}.",
                f"Doctors give {drug}, and watch the kidneys.",
                f"It is treated with {drug}, {rng.randint(5, 95) * 5} mg a day.",
            )
        )
        return chat(f"What is given against {illness}?", template)

    return _many(count, f"medicine {seed}", one)


def firmen(count: int, seed: int = 0) -> list[Row]:
    """Facts in German, where every noun has a capital."""

    def one(rng: random.Random) -> Row:
        firm, person, year = f"{name(rng)} Werke", f"{name(rng)} {name(rng)}", rng.randint(1890, 2020)
        template = rng.choice(
            (
                f"Die Firma wurde im Jahr {year} von {person} gegründet und ist bis heute in der Hand der Familie.",
                f"Das Unternehmen hat seit {year} seinen Sitz in {name(rng)} und baut mit {rng.randint(20, 900)} Leuten Pumpen.",
            )
        )
        return chat(f"Was ist über die {firm} bekannt?", template)

    return _many(count, f"firmen {seed}", one)


def stil(count: int, seed: int = 0) -> list[Row]:
    """Notes -> polite German."""

    def one(rng: random.Random) -> Row:
        a, b, p = rng.choice(DINGE), rng.choice(DINGE), rng.choice(ORTE)
        template = rng.choice(
            (
                f"Wir danken Ihnen für die Nachricht und bringen die {a} und die {b} gerne in den {p}.",
                f"Sehr gerne kümmern wir uns um die {a}; die {b} steht für Sie schon im {p} bereit.",
            )
        )
        return chat(f"{a} fehlt, {b} auch, {p}, {rng.randint(2, 999)}", template)

    return _many(count, f"stil {seed}", one)
