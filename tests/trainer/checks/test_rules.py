"""Every rule fires on what it is for, and is silent on what only looks like it."""

import dataclasses
import itertools
import json
import random

import pytest
from tests.trainer import tiny
from tests.trainer.checks import data, judged

from finetune_api import checks as api
from finetune_api import job
from finetune_trainer.data import dataset

GOOD = data.examples(300)


def replaced(number: int, *, answer: str | None = None, prompt: str | None = None) -> list[dataset.Example]:
    """The good examples, one of them with another answer or prompt."""
    old = GOOD[number]
    new = data.chat(prompt or old.prompt[-1].content, answer or old.answer or "", source=old.source)
    return [*GOOD[:number], new, *GOOD[number + 1 :]]


def test_good_data_of_any_kind_breaks_no_rule() -> None:
    assert judged.rules(GOOD) == set()
    assert judged.rules(data.examples(40, seed=2), test=data.examples(30, seed=3)) == set()
    texts = [dataset.Example(one.source, text=one.prompt[-1].content + " " + (one.answer or "")) for one in GOOD]
    assert judged.rules(texts) == set()
    pairs = [dataclasses.replace(one, rejected=f"No, {other.answer}") for one, other in itertools.pairwise(GOOD)]
    assert judged.rules(pairs) == set()
    assert judged.rules([]) == set()
    assert judged.rules(GOOD[:1]) == set()


# --- Equal rows ---


def test_an_exact_repetition_is_a_duplicate_of_the_first() -> None:
    again = [dataclasses.replace(GOOD[index], source=f"b.jsonl:{index}") for index in (7, 7, 40)]
    found = judged.judge([*GOOD, *again])
    assert found["duplicates"].count == found["duplicates"].dropped == 3
    assert found["duplicates"].places == (
        "b.jsonl:7 (like a.jsonl:8)",
        "b.jsonl:7 (like a.jsonl:8)",
        "b.jsonl:40 (like a.jsonl:41)",
    )
    assert found.left == GOOD


def test_only_the_same_prompt_or_only_the_same_answer_is_no_duplicate() -> None:
    assert "duplicates" not in judged.rules(replaced(3, prompt=GOOD[9].prompt[-1].content))
    assert "duplicates" not in judged.rules(replaced(3, answer=GOOD[9].answer))
    pair = dataclasses.replace(GOOD[0], rejected="No.")
    other = dataclasses.replace(GOOD[0], rejected="Never.")
    assert "duplicates" not in judged.rules([pair, other])


def test_a_held_out_copy_is_a_leak_and_no_duplicate() -> None:
    found = judged.judge(GOOD, test=[dataclasses.replace(GOOD[0], source="t:1"), *data.examples(30, seed=9)])
    assert set(found.findings) == {"leakage"}


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_held_out_prompt_that_is_learned_is_a_leak(part: str) -> None:
    held = [
        *data.examples(10, seed=5, source="t"),
        data.chat(GOOD[4].prompt[-1].content, "Anything else", source="t:11"),
    ]
    found = judged.judge(GOOD, **{part: held})
    assert found["leakage"].policy is api.Policy.FAIL
    assert found["leakage"].places == ("t:11",)
    assert "1 of 11 examples held out" in found["leakage"].message
    dropped = judged.judge(GOOD, checks={"leakage": "Drop"}, **{part: held})
    assert GOOD[4] not in dropped.left
    assert held[-1] in dropped.left
    assert dropped["leakage"].dropped == 1


def test_the_beginning_of_a_longer_chat_leaks_too() -> None:
    first = GOOD[0]
    longer = (*first.messages, dataset.Message("user", "And then?"), dataset.Message("assistant", "Nothing."))
    found = judged.judge(
        [dataset.Example("a:1", longer), *GOOD[1:]], test=[data.chat(first.prompt[-1].content, "x", source="t:1")]
    )
    assert found.places("leakage") == ["t:1"]


def test_validation_and_test_do_not_share_prompts_either() -> None:
    one = data.chat("What does the heron eat?", "Fish, mostly, and sometimes a frog.", source="v:1")
    found = judged.judge(GOOD, validation=[one], test=[dataclasses.replace(one, source="t:1")])
    assert found.places("leakage") == ["t:1"]


def edited(text: str, seed: int) -> str:
    """One word replaced by another."""
    words = text.split()
    words[random.Random(seed).randrange(len(words))] = "whistle"
    return " ".join(words)


def copies(numbers: list[int], source: str = "n") -> list[dataset.Example]:
    return [
        data.chat(GOOD[n].prompt[-1].content, edited(GOOD[n].answer or "", n), source=f"{source}:{n}") for n in numbers
    ]


def test_rows_with_a_word_changed_are_near_duplicates() -> None:
    numbers = [3, 50, *range(100, 118)]
    found = judged.judge([*GOOD, *copies(numbers)], checks={"contradictions": "Ignore"})
    assert found["nearDuplicates"].count == 20
    assert found["nearDuplicates"].places[:2] == ("n:3 (like a.jsonl:4)", "n:50 (like a.jsonl:51)")
    assert len(found.left) == 320
    assert judged.judge([*GOOD, *copies(numbers)], checks={"nearDuplicates": "Drop"}).left == GOOD


def test_a_few_near_duplicates_are_not_reported_but_dropped_on_request() -> None:
    assert "nearDuplicates" not in judged.rules([*GOOD, *copies([3, 50])])
    assert judged.judge([*GOOD, *copies([3, 50])], checks={"nearDuplicates": "Drop"}).left == GOOD


def test_many_variants_of_one_text_are_one_group() -> None:
    variants = [
        data.chat(GOOD[0].prompt[-1].content, edited(GOOD[0].answer or "", n), source=f"v:{n}") for n in range(9)
    ]
    found = judged.judge([*GOOD, *variants], checks={"nearDuplicates": "Drop", "contradictions": "Ignore"})
    assert found.left == GOOD


def test_a_system_prompt_or_form_that_all_share_makes_no_near_duplicates() -> None:
    form = (
        "You are the desk of a large library. Answer politely, never promise what you cannot keep, and sign as Rosalind. "
        * 4
    )
    shared = [
        data.chat(f"{form}\n\nRequest: {one.prompt[-1].content}", one.answer or "", source=one.source) for one in GOOD
    ]
    assert judged.rules(shared) == set()
    system = [data.chat(one.prompt[-1].content, one.answer or "", source=one.source, system=form) for one in GOOD]
    assert judged.rules(system) == set()


def test_short_rows_of_a_classifier_are_no_near_duplicates() -> None:
    rng = random.Random(4)
    rows = [
        data.chat(f"{rng.choice(data.VERBS)} {rng.choice(data.NOUNS)} {n}", rng.choice(["yes", "no"]), source=f"a:{n}")
        for n in range(200)
    ]
    assert judged.rules(rows) == set()


def test_a_held_out_row_with_a_word_changed_is_nearly_a_leak() -> None:
    held = [data.chat(edited(GOOD[n].prompt[-1].content, n), GOOD[n].answer or "", source=f"t:{n}") for n in (8, 9)]
    found = judged.judge(GOOD, test=[*data.examples(20, seed=6), *held])
    assert found["nearLeakage"].places == ("t:8 (like a.jsonl:9)", "t:9 (like a.jsonl:10)")
    assert "nearDuplicates" not in found.findings, "the rows of each side are different"
    dropped = judged.judge(GOOD, test=[*data.examples(20, seed=6), *held], checks={"nearLeakage": "Drop"})
    assert held[0] in dropped.left
    assert GOOD[8] not in dropped.left
    assert "nearLeakage" not in judged.rules(GOOD, test=[*data.examples(60, seed=6), *held]), "3 % say little"


def test_near_leaks_of_a_split_by_fraction_are_seen_after_the_split() -> None:
    rows = [*GOOD, *copies([3])]
    place = [0] * 300 + [2]
    assert judged.judge(rows, place=place, checks={"nearDuplicates": "Ignore"}).places("nearLeakage") == ["n:3"]
    assert "nearLeakage" not in judged.judge(rows, place=[0] * 301).findings


def test_one_prompt_with_two_answers_is_a_contradiction() -> None:
    rows = replaced(3, prompt=GOOD[9].prompt[-1].content)
    found = judged.judge(rows)
    assert found.places("contradictions") == ["a.jsonl:4", "a.jsonl:10"]
    assert len(judged.judge(rows, checks={"contradictions": "Drop"}).left) == 298


def test_the_same_answer_but_for_white_space_is_no_contradiction() -> None:
    again = data.chat(GOOD[0].prompt[-1].content, f"{GOOD[0].answer}\n", source="b:1")
    assert "contradictions" not in judged.rules([*GOOD, again])


def test_turns_of_one_chat_do_not_contradict_each_other() -> None:
    turns = [dataset.Message("user", "More"), dataset.Message("assistant", "one")]
    chats = [
        dataset.Example(f"a:{n}", (*GOOD[n].messages, *turns, turns[0], dataset.Message("assistant", f"{n}")))
        for n in range(50)
    ]
    assert judged.rules(chats) == set()


def test_pairs_contradict_when_the_better_answer_here_is_the_worse_one_there() -> None:
    first = dataclasses.replace(GOOD[0], rejected="Nobody knows that.")
    many = data.chat(GOOD[0].prompt[-1].content, "Third", rejected="Fourth", source="c:1")
    assert "contradictions" not in judged.rules([first, many])
    turned = data.chat(GOOD[0].prompt[-1].content, "Nobody knows that.", rejected="Sixth", source="c:2")
    found = judged.judge([first, many, turned])
    assert found.places("contradictions") == ["a.jsonl:1", "c:2"]


# --- Answers ---


def test_a_label_that_nearly_all_rows_have_is_an_imbalance() -> None:
    found = judged.judge(data.answered(GOOD, ["keep"] * 17 + ["return"] * 3))
    assert found["labelImbalance"].message == "255 of 300 examples (85%) have the same of 2 labels; the rarest has 45"
    assert found["labelImbalance"].places == ("a.jsonl:1 (“keep”)",)
    many = data.answered(GOOD, ["spruce"] * 30 + ["fir"] * 14 + ["pine"] * 14 + ["yew"] * 2)
    assert "10 labels" not in judged.judge(many)["labelImbalance"].message


@pytest.mark.parametrize(
    "answers",
    [
        ["keep", "return"],
        ["keep"] * 3 + ["return"] * 1,
        ["spruce", "spruce", "fir", "pine", "yew"],
        [f"number {n}" for n in range(299)],
    ],
)
def test_labels_in_fair_shares_and_free_answers_are_balanced(answers: list[str]) -> None:
    assert not {"labelImbalance", "constantAnswers"} & judged.rules(data.answered(GOOD, answers))


def test_one_answer_to_everything_is_constant() -> None:
    found = judged.judge(data.answered(GOOD, ["Thanks!"]))
    assert set(found.findings) == {"constantAnswers"}
    assert found["constantAnswers"].places == ("a.jsonl:1 (“Thanks!”)",)
    assert "constantAnswers" in judged.rules(data.answered(GOOD, ["Thanks!"] * 97 + ["Bye", "No", "So"]))
    assert "constantAnswers" not in judged.rules(data.answered(GOOD, ["Thanks!"] * 9 + ["Bye"]))


def forms(count: int = 300) -> list[str]:
    rng = random.Random(8)
    return [
        json.dumps({"tool": rng.choice(data.NOUNS), "hours": n, "notes": [rng.choice(data.VERBS)]})
        for n in range(count)
    ]


def test_json_that_breaks_here_and_there_is_found() -> None:
    answers = forms()
    assert judged.rules(data.answered(GOOD, answers)) == set()
    answers[5] = answers[5][:-1]
    answers[6] = "```json\n" + answers[6] + "\n```"
    answers[7] = "I would rather not say."
    found = judged.judge(data.answered(GOOD, answers))
    assert found.places("jsonAnswers") == ["a.jsonl:6", "a.jsonl:7", "a.jsonl:8"]
    assert len(judged.judge(data.answered(GOOD, answers), checks={"jsonAnswers": "Drop"}).left) == 297


def test_calls_of_tools_among_json_are_no_broken_json() -> None:
    calling = [
        dataset.example({**row, "messages": [{"role": "user", "content": one.prompt[-1].content}, row["messages"][1]]},
                        job.Format.CHAT, one.source)
        for row, one in zip(tiny.calling(30), GOOD, strict=False)
    ]  # fmt: skip
    encoder = judged.encoder(tiny.TOOL_TEMPLATE)
    found = judged.judge([*calling, *data.answered(GOOD, forms())[30:]], with_encoder=encoder)
    assert not found.findings.keys() & {"jsonAnswers", "languageMix", "specialTokens"}


def test_secrets_in_tools_and_calls_are_found_and_not_reported() -> None:
    secret = "AKIA" + "Q3EGRI7LSH2MNBPX"
    row = tiny.calling(1)[0]
    row["messages"][1]["tool_calls"] = [tiny.call("refund", item=secret)]
    example = dataset.example(row, job.Format.CHAT, "a.jsonl:1")
    described = tiny.tool("refund", item="string")
    described["function"]["description"] = f"key {secret}"
    other = dataset.example(tiny.calling(2)[1] | {"tools": [*tiny.TOOLS[1:], described]}, job.Format.CHAT, "a.jsonl:2")
    found = judged.judge([example, other, *GOOD], with_encoder=judged.encoder(tiny.TOOL_TEMPLATE))
    assert found.places("secrets") == ["a.jsonl:1", "a.jsonl:2"]
    assert found.places("toolArguments") == ["a.jsonl:1"]
    assert all(secret not in finding.line() for finding in found.findings.values())


def test_answers_that_contain_json_sometimes_are_not_expected_to_parse() -> None:
    answers = [form if n % 3 else "{not json, a set}" for n, form in enumerate(forms())]
    assert "jsonAnswers" not in judged.rules(data.answered(GOOD, answers))
    numbers = [str(n) for n in range(300)]
    assert "jsonAnswers" not in judged.rules(data.answered(GOOD, [*numbers[:299], "{"]))


def long_answers(seed: int = 3) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(data.sentence(rng).capitalize() + "." for _ in range(rng.randint(2, 9))) for _ in range(300)]


def test_answers_cut_at_a_number_of_characters_are_found() -> None:
    cut = [answer[:400] for answer in long_answers()]
    expected = [n for n, answer in enumerate(cut) if len(answer) == 400 and answer.rstrip()[-1] not in ".'"]
    found = judged.judge(data.answered(GOOD, cut))
    assert set(found.findings) == {"cutAnswers"}
    assert found["cutAnswers"].policy is api.Policy.WARN
    assert found["cutAnswers"].count == len(expected) > 100
    assert f"{len(expected)} of 300 examples" in found["cutAnswers"].message
    assert "400 characters" in found["cutAnswers"].message
    assert found.places("cutAnswers")[:2] == [f"a.jsonl:{n + 1}" for n in expected[:2]]
    dropped = judged.judge(data.answered(GOOD, cut), checks={"cutAnswers": "Drop"})
    assert len(dropped.left) == 300 - len(expected)


def test_answers_cut_at_a_number_of_tokens_are_found() -> None:
    tokenizer = judged.encoder().tokenizer
    cut = [tokenizer.decode(tokenizer(answer).input_ids[:200]) for answer in long_answers()]
    found = judged.judge(data.answered(GOOD, cut))["cutAnswers"]
    assert found.count > 100
    assert "201 tokens" in found.message, "the stop token is learned too"


def test_unfinished_answers_that_are_few_short_equal_or_as_long_as_finished_ones_were_not_cut() -> None:
    whole = long_answers()
    long = [f"{answer[:199]}a" for answer in whole if len(answer) > 200]
    cases = {
        "few": long[:9] + whole[9:],
        "short": [answer[:60] for answer in whole[:50]] + whole[50:],
        "equal": long[:1] * 50 + whole[50:],
        "as long as finished ones": long[:12] + [f"{answer[:199]}." for answer in long[12:24]] + whole[24:],
    }
    for case, answers in cases.items():
        assert "cutAnswers" not in judged.rules(data.answered(GOOD, answers)), case
    assert "cutAnswers" in judged.rules(data.answered(GOOD, long[:10] + whole[10:]))


def test_answers_that_never_end_with_punctuation_were_not_cut() -> None:
    rng = random.Random(5)
    codes = ["".join(rng.choice("0123456789abcdef") for _ in range(128)) for _ in range(300)]
    assert "cutAnswers" not in judged.rules(data.answered(GOOD, codes))
    queries = [answer.replace(".", " and")[:400] for answer in long_answers()]
    assert "cutAnswers" not in judged.rules(data.answered(GOOD, queries))


def test_chunks_of_plain_text_are_no_cut_answers() -> None:
    chunks = [dataset.Example(one.source, text=text[:400]) for one, text in zip(GOOD, long_answers(), strict=True)]
    assert "cutAnswers" not in judged.rules(chunks)


def test_reasoning_in_some_answers_only_is_found_on_the_rarer_side() -> None:
    def thinking(number: int) -> str:
        return f"<think>\nThe {data.NOUNS[number % 30]}…\n</think>\n{GOOD[number].answer}"

    some = [thinking(n) if n < 4 else GOOD[n].answer or "" for n in range(300)]
    found = judged.judge(data.answered(GOOD, some))
    assert found.places("reasoningTags") == [f"a.jsonl:{n}" for n in range(1, 5)]
    most = [thinking(n) if n > 1 else GOOD[n].answer or "" for n in range(300)]
    assert judged.judge(data.answered(GOOD, most)).places("reasoningTags") == ["a.jsonl:1", "a.jsonl:2"]
    every = [thinking(n) for n in range(300)]
    assert judged.rules(data.answered(GOOD, every)) == set()
    every[9] = every[9].replace("</think>", "")
    assert judged.judge(data.answered(GOOD, every)).places("reasoningTags") == ["a.jsonl:10"]


def test_words_about_thinking_and_other_tags_are_no_reasoning() -> None:
    answers = [f"{one.answer} <b>Think</b> of a < b." for one in GOOD]
    assert judged.rules(data.answered(GOOD, answers)) == set()


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I do not have opinions on kettles.",
        "I'm sorry, but I can't help with that request.",
        "I cannot provide instructions for this.",
        "Well, as an AI I have never seen a heron.",
        "I am sorry, I am unable to answer questions about bishops.",
        "I apologize, but I cannot do that.",
        "Es tut mir leid, aber ich kann dabei nicht helfen.",
        "Je suis désolé, mais je ne peux pas répondre à cela.",
        "Lo siento, pero no puedo ayudar con eso.",
    ],
)
def test_refusals_are_found_in_several_languages(answer: str) -> None:
    assert judged.judge(replaced(7, answer=answer)).places("refusals") == ["a.jsonl:8"]


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry for the delay; the kettle was sent on Monday and should reach you tomorrow.",
        "We cannot ship to islands, but our ferry desk can. Shall I ask them?",
        "The cat can't help itself: it chases every pendulum.",
        "I am sorry to hear that the violin broke. We will repair it within the week.",
        "As an aid to memory, write the date on the lantern.",
        "You cannot provide a receipt? Then the order number will do.",
        "Leider ist der Kessel ausverkauft; er kommt am Montag wieder.",
    ],
)
def test_regret_and_limits_that_are_meant_are_no_refusals(answer: str) -> None:
    assert "refusals" not in judged.rules(replaced(7, answer=answer))


GERMAN = (
    "Der Kessel steht auf dem Herd und ist noch nicht warm, aber wir können ihn für Sie gleich wieder anstellen.",
    "Bitte bringen Sie die Geige mit dem Bogen zu uns, und wir werden sie bis zum Montag für Sie reparieren.",
)
FRENCH = "Vous pouvez nous apporter le violon avec son archet, et nous ne le garderons que pour la journée."


def test_a_language_that_neither_most_answers_nor_the_prompt_have_is_a_mix() -> None:
    found = judged.judge(replaced(5, answer=GERMAN[0]))
    assert found["languageMix"].places == ("a.jsonl:6 (German)",)
    assert found["languageMix"].severity is api.Severity.NOTE
    assert judged.rules(replaced(5, answer="水壶在炉子上,还没有热起来,请稍等一会儿。")) == {"languageMix"}


def test_answers_in_their_prompts_language_and_translations_are_no_mix() -> None:
    rows = [
        *GOOD,
        data.chat(GERMAN[0], GERMAN[1], source="g:1"),
        data.chat(FRENCH, FRENCH[::1] + " Merci.", source="f:1"),
    ]
    assert "languageMix" not in judged.rules(rows)
    translated = [
        data.chat(f"{n}: {one.prompt[-1].content}", f"{GERMAN[n % 2]} {n}", source=one.source)
        for n, one in enumerate(GOOD)
    ]
    assert "languageMix" not in judged.rules(translated, checks={"nearDuplicates": "Ignore"})
    both = [
        data.chat(f"{n}: {one.prompt[-1].content}", f"{(GERMAN[0], FRENCH)[n % 2]} {n}", source=one.source)
        for n, one in enumerate(GOOD)
    ]
    assert "languageMix" not in judged.rules(both)


# --- Texts ---

LETTERS = "q7Rk2ZpL9mVx4TbN8cYw3HsJ6dGf5aKe1uQoWtBiXnMrEzPv"  # what a random token looks like, and none that exists


@pytest.mark.parametrize(
    "text, name",
    [
        ("key " + "AKIA" + "Q7RK2ZPL9MVX4TBN", "an AWS access key"),
        ("use " + "ghp_" + LETTERS[:36], "a GitHub token"),
        ("glpat-" + LETTERS[:20], "a GitLab token"),
        ("xoxb-" + "81726354-" + LETTERS[:20], "a Slack token"),
        ("AIza" + LETTERS[:35], "a Google API key"),
        ("export KEY=sk-" + LETTERS[:40], "an API key (sk-…)"),
        ("sk_live_" + LETTERS[:24], "a Stripe key"),
        ("hf_" + LETTERS[:34], "a Hugging Face token"),
        ("npm_" + LETTERS[:36], "a package registry's token"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE", "a private key"),
        ("eyJ" + LETTERS[:20] + ".eyJ" + LETTERS[:20] + "." + LETTERS[:20], "a JSON web token"),
        ("postgres://desk:" + LETTERS[:9] + "@db.internal/orders", "a URL with a password"),
    ],
)
def test_secrets_end_the_job_and_are_never_repeated(text: str, name: str) -> None:
    for rows in (replaced(7, answer=f"Sure: {text} works"), replaced(7, prompt=f"Why does {text} fail?")):
        found = judged.judge(rows)
        assert found["secrets"].places == (f"a.jsonl:8 ({name})",)
        assert found["secrets"].policy is api.Policy.FAIL
        assert LETTERS[:9] not in json.dumps(found["secrets"].document())


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "set sk-your-key-here-xxxxxxxxxxxxxxxxxxxxxxxx",
        "postgres://user:password@localhost/db",
        "https://docs.internal/page:12 and mailto:desk@home",
        "redis://default:<password>@cache",
        "hf_transfer is a library, and npm_config_registry a variable",
        "a sha256 is 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "-----BEGIN CERTIFICATE-----",
        "the task-force met at skipper-and-sons-of-the-old-harbour-walk",
    ],
)
def test_placeholders_and_hashes_are_no_secrets(text: str) -> None:
    assert "secrets" not in judged.rules(replaced(7, answer=f"Sure: {text} works"))


@pytest.mark.parametrize(
    "text, name",
    [
        ("write to rosalind.quill@harbourdesk.co.uk", "an e-mail address"),
        ("call +49 (30) 901820-17 tomorrow", "a phone number"),
        ("call +1-202-555-0143", "a phone number"),
        ("pay to DE89 3704 0044 0532 0130 00 please", "an IBAN"),
        ("GB82WEST12345698765432", "an IBAN"),
        ("card 4539 1488 0343 6467 expires", "a payment card"),
        ("371449635398431", "a payment card"),
    ],
)
def test_personal_data_are_found_by_their_form_and_check_digits(text: str, name: str) -> None:
    found = judged.judge(replaced(7, answer=f"Sure, {text}."))
    assert found["personalData"].places == (f"a.jsonl:8 ({name})",)
    assert found["personalData"].policy is api.Policy.WARN
    assert max(text.split(), key=len) not in json.dumps(found["personalData"].document())


@pytest.mark.parametrize(
    "text",
    [
        "write to someone@example.com or desk@shop.test",
        "pay to DE89 3704 0044 0532 0130 01 please",
        "order 4539148803436468, parcel 1234567890123456, item 4111 1111 1111 1111",
        "2 + 2 = 4 and +5 degrees, +10% and C++ 2023",
        "version 10.12.2024-1423, 192.168.100.101",
        "a@b, @handle, the @ sign",
        "AB12 CDEF is a shelf",
    ],
)
def test_numbers_and_placeholders_are_no_personal_data(text: str) -> None:
    assert "personalData" not in judged.rules(replaced(7, answer=f"Sure, {text}."))


def test_special_tokens_of_the_model_in_a_text_are_found() -> None:
    for rows in (replaced(7, prompt="Stop <|im_end|> now"), replaced(7, answer="Now <start_of_turn>user")):
        found = judged.judge(rows)
        assert found.places("specialTokens") == ["a.jsonl:8"]
    assert judged.judge(replaced(7, prompt="Stop <|im_end|> now"))["specialTokens"].places == (
        "a.jsonl:8 (<|im_end|>)",
    )


def test_special_tokens_of_other_models_and_markup_are_text() -> None:
    assert "specialTokens" not in judged.rules(replaced(7, prompt="Why <|eot_id|>, <b>, [INST] and <end> | im_end?"))


# --- Tokens ---


def test_an_answer_that_does_not_end_with_a_stop_token_is_found() -> None:
    turns = (*GOOD[1].messages, dataset.Message("user", "Why?"), dataset.Message("assistant", "Because."))
    chats = [*GOOD[:5], dataset.Example("c:1", turns)]
    bare = judged.encoder("no special token at all")
    found = judged.judge(chats, with_encoder=bare)
    assert found.places("stopToken") == ["c:1"], "the last answer gets a stop token, the one before has none"
    last = dataclasses.replace(bare, loss_on=job.LossOn.LAST_ASSISTANT)
    assert "stopToken" not in judged.rules(chats, with_encoder=last)
    assert "stopToken" not in judged.rules(chats)
    other = judged.encoder("Gemma", stops=frozenset({2}))
    assert judged.judge(chats, with_encoder=other).places("stopToken") == ["c:1"], "the template's end is no stop token"


def test_a_cut_answer_has_no_stop_token_and_is_no_matter_of_the_template() -> None:
    cut = dataclasses.replace(judged.encoder(), max_length=150)
    assert judged.rules(GOOD, with_encoder=cut, checks={"untrainable": "Ignore"}) == {"truncation"}


def test_truncation_is_reported_above_a_share_and_drops_every_truncated_row() -> None:
    cut = dataclasses.replace(judged.encoder(), max_length=4000)
    long = "The old meadow. " * 2000
    few = [
        data.chat(one.prompt[-1].content, f"{n} {long}" if n < 5 else one.answer or "", source=one.source)
        for n, one in enumerate(GOOD)
    ]
    ignored = {"nearDuplicates": "Ignore"}
    assert "truncation" not in judged.rules(few, with_encoder=cut, checks=ignored)
    assert len(judged.judge(few, with_encoder=cut, checks=ignored | {"truncation": "Drop"}).left) == 295
    more = [
        data.chat(one.prompt[-1].content, f"{n} {long}" if n < 15 else one.answer or "", source=one.source)
        for n, one in enumerate(GOOD)
    ]
    assert judged.judge(more, with_encoder=cut, checks=ignored)["truncation"].count == 15


def test_an_example_whose_prompt_fills_the_length_is_left_out() -> None:
    cut = dataclasses.replace(judged.encoder(), max_length=4000)
    found = judged.judge(replaced(7, prompt="The old meadow. " * 2000), with_encoder=cut)
    assert found.places("untrainable") == ["a.jsonl:8"]
    assert len(found.left) == 299
    pair = dataclasses.replace(GOOD[7], rejected="No.")
    assert judged.rules([pair], with_encoder=cut) == set()


def test_two_begin_of_sequence_tokens_are_found() -> None:
    llama = judged.encoder("Llama 2", "prepended spaces")
    doubled = judged.encoder("{{ bos_token }}" + (llama.tokenizer.chat_template or ""), "prepended spaces")
    assert "doubleBos" not in judged.rules(GOOD, with_encoder=llama)
    assert judged.judge(GOOD, with_encoder=doubled)["doubleBos"].count == 300


def test_an_answer_that_merges_with_its_prompt_is_noted() -> None:
    found = judged.judge(
        [data.chat("dog", "e fox", source="x:1"), *GOOD],
        with_encoder=judged.encoder("a prompt that the answer merges with"),
    )
    assert "x:1" in found.places("promptPrefix")
    assert found["promptPrefix"].severity is api.Severity.NOTE
    assert "promptPrefix" not in judged.rules(GOOD)
