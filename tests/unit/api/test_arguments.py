"""vLLM's arguments: a job sets those of a list under their whole names, the catalogue all but the operator's own.

Judged by the rules that the API server applies. The list itself is held against vLLM's parser in tests/e2e.
"""

import pytest

from finetune_api import arguments, basemodel, job, schema
from finetune_cli import rules

ALLOWED = [name for names in arguments.ALLOWED.values() for name in names]
JOBS = schema.schema_of(job.FineTuneJobSpec)["properties"]["deployment"]["properties"]["extraArgs"]
CATALOGUE = schema.schema_of(basemodel.BaseModelSpec)["properties"]["defaults"]["properties"]["serving"]["properties"]
OPENING = [
    "--trust-remote-code",
    "--middleware",
    "--tool-parser-plugin",
    "--otlp-traces-endpoint",
    "--ssl-keyfile",
]


def refused(*given: str) -> list[str]:
    return [message for _, message in rules.broken(JOBS, list(given))]


def test_the_rules_are_evaluated_here() -> None:
    assert rules.missing() is None


@pytest.mark.parametrize("name", ALLOWED)
def test_an_argument_of_the_list_is_accepted_in_every_spelling(name: str) -> None:
    for spelling in (name, f"{name}=x", name.replace("-", "_").replace("__", "--", 1), f"{name}.a=1"):
        assert refused(spelling) == [], spelling
        assert refused(spelling, "value", "--seed=1") == [], spelling


@pytest.mark.parametrize("name", [*OPENING, *arguments.SET_BY_THE_OPERATOR])
def test_every_other_argument_is_refused_by_its_name_with_who_may_set_it(name: str) -> None:
    for spelling in (name, f"{name}=x", name.replace("-", "_").replace("__", "--", 1), f"{name}.a=1"):
        (message,) = refused("--max-model-len=512", spelling)
        assert message.startswith(f"must not contain {spelling}:")
        assert "--max-model-len" in message
        assert "defaults.serving.extraArgs" in message
        assert "serving.args" in message


@pytest.mark.parametrize("name", ALLOWED)
def test_only_whole_names_of_the_list_are_accepted(name: str) -> None:
    """Python's argparse takes the beginning of a name for the name, and that may be another one's."""
    for end in range(1, len(name)):
        if name[:end] not in ALLOWED:
            assert refused(f"{name[:end]}=x") != [], name[:end]


@pytest.mark.parametrize("given", ["--", "-", "--=x", "-tp=2", "-O3"])
def test_nothing_else_begins_with_a_dash(given: str) -> None:
    assert refused(given) != []


def test_an_argument_and_its_value_are_no_one_item() -> None:
    assert "joined by '='" in refused("--max-model-len 4096")[0]


def test_nothing_is_allowed_that_the_operator_sets() -> None:
    assert not set(ALLOWED) & set(arguments.SET_BY_THE_OPERATOR)
    assert len(ALLOWED) == len(set(ALLOWED))


@pytest.mark.parametrize("name", arguments.SET_BY_THE_OPERATOR)
def test_the_catalogue_sets_all_but_what_the_operator_sets(name: str) -> None:
    assert rules.broken(CATALOGUE["extraArgs"], [f"{name}=x"]) != []
    assert rules.broken(CATALOGUE["extraArgs"], OPENING) == []
