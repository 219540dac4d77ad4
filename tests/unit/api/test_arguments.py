"""vLLM's arguments in a job: what opens the server is refused in every spelling that its parser understands.

Judged by the rule that the API server applies, and by a parser like vLLM's: one of argparse's, which takes the beginning of a
name for the name.
"""

import argparse

import pytest

from finetune_api import basemodel, job, schema
from finetune_cli import rules

REFUSED = basemodel._REFUSED_ARGUMENTS
SCHEMA = schema.schema_of(job.FineTuneJobSpec)["properties"]["deployment"]["properties"]["extraArgs"]


def refused(*arguments: str) -> bool:
    return bool(rules.broken(SCHEMA, list(arguments)))


def test_the_parser_does_take_half_a_name(vllm: argparse.ArgumentParser) -> None:
    assert vllm.parse_args(["--trust-rem=x"]).trust_remote_code == "x"


@pytest.fixture(scope="module")
def vllm() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    for name in (
        *REFUSED,
        *basemodel._KEPT_ARGUMENTS,
        "--max-model-len",
        "--max-num-seqs",
        "--chat-template-content-format",
    ):
        parser.add_argument(name, nargs="?", const="on")
    return parser


def test_the_rules_are_looked_at() -> None:
    assert rules.missing() is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_argument_is_refused_in_every_spelling(name: str) -> None:
    for spelling in (name, f"{name}=x", name.replace("-", "_").replace("__", "--", 1), f"{name}.a=1", f"{name}.a+=1"):
        assert refused(spelling), spelling
        assert refused("--max-model-len=512", spelling), spelling


@pytest.mark.parametrize("name", REFUSED)
def test_no_beginning_of_its_name_reaches_the_parser(name: str, vllm: argparse.ArgumentParser) -> None:
    """Every prefix that the parser would take for this argument is refused."""
    for end in range(3, len(name)):
        short = name[:end]
        try:
            found, _ = vllm.parse_known_args([f"{short}=x"])
        except (argparse.ArgumentError, SystemExit):  # ambiguous
            continue
        if vars(found)[name[2:].replace("-", "_")] == "x":
            assert refused(f"{short}=x"), short


@pytest.mark.parametrize(
    "argument",
    [
        "--max-model-len=4096",
        "--max_num_seqs=8",
        "--enforce-eager",
        "--reasoning-parser=qwen3",
        "--tool-call-parser=hermes",
        "--chat-template-content-format=string",
        "--enable-prefix-caching",
        "-O3",
        "4096",
    ],
)
def test_what_people_tune_is_accepted(argument: str) -> None:
    assert not refused(argument)


def test_nothing_follows_an_end_of_the_arguments() -> None:
    assert refused("--", "x")
