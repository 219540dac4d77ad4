"""The check of retired words: what it refuses, and what it leaves alone."""

import pytest

import words


@pytest.mark.parametrize(
    "line, word",
    [
        ("The loop goes on.", "goes on"),
        ("class DuelRow:", "Duel"),
        ("best_rivals = 3", "rivals"),
        ("What was asked for is logged.", "asked for"),
        ("The pod was taken from its machine.", "taken from its machine"),
        ("in every so-manieth step", "so-manieth"),
    ],
)
def test_a_retired_word_is_refused_in_prose_and_in_names(line: str, word: str) -> None:
    ((number, found, instead),) = words.in_text(f"fine\n{line}\n")
    assert (number, found) == (2, word)
    assert instead


def test_words_that_only_look_alike_are_accepted() -> None:
    accepted = "M_ARENA_MAX, individuals, a slopestyle run; the judge was asked, the machine was told, we said so"
    assert not list(words.in_text(accepted))


def test_some_words_are_refused_as_names_alone() -> None:
    code = 'told = said_by = "what was said, told and kept"  # said and told\n'
    assert [(number, name) for number, name, _ in words.in_names(code)] == [(1, "told"), (1, "said_by")]


def test_exempt_files_and_data_are_not_checked() -> None:
    paths = words.tracked()
    assert "trainer-image/README.md" in paths
    assert not any(path.startswith(words.EXEMPT) or path.endswith(words.DATA) for path in paths)
