import json
import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer import tiny
from tests.trainer.checks import data, judged

from finetune_api import checks as api
from finetune_api import reasons, run
from finetune_trainer.checks import review, similar
from finetune_trainer.data import dataset, tokens
from finetune_trainer.process import errors
from finetune_trainer.stages import preflight

World = Callable[..., run.Run]
GOOD = data.examples(80)
SECRET = "glpat-" + "q7Rk2ZpL9mVx4TbN8cYw"


def stored(spec: run.Run) -> dict[str, Any]:
    path = pathlib.Path(spec.layout.preflight.removeprefix("file://"))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def frozen(spec: run.Run) -> dict[str, list[dataset.Example]]:
    folder = pathlib.Path(spec.layout.data.removeprefix("file://"))
    return {name: dataset.frozen(folder / f"{name}.jsonl") for name in dataset.SPLITS}


def failed(spec: run.Run) -> errors.Failure:
    with pytest.raises(errors.Failure) as caught:
        preflight.preflight(spec)
    assert caught.value.reason is reasons.Reason.DATASET_INVALID
    assert caught.value.exit == 2
    assert not pathlib.Path(spec.layout.data.removeprefix("file://")).exists()
    return caught.value


# --- Policies ---


def leaky() -> list[dataset.Example]:
    return [*GOOD, data.chat("Which token?", f"Take {SECRET} for it.", source="s:1")]


def test_every_rule_of_the_api_is_applied_by_the_review() -> None:
    made = review.Review({}, judged.encoder())
    by_row = {one.id for one in made._row_rules}
    read = {rule.id for rule in api.RULES if rule.scope is api.Scope.BROKEN}
    assert by_row | read | set(review.TABLE_RULES) | {"untrainable", "truncation", *review.APART} == set(api.BY_ID)
    assert by_row == set(review.MESSAGES)


def test_a_policy_says_what_becomes_of_the_rows() -> None:
    for policy, left, there in (("Warn", 81, True), ("Fail", 81, True), ("Drop", 80, True), ("Ignore", 81, False)):
        found = judged.judge(leaky(), checks={"secrets": policy})
        assert (len(found.left), "secrets" in found.findings) == (left, there)
        assert [one.rule for one in found.reviewed.failing] == (["secrets"] if policy == "Fail" else [])
    assert judged.judge(leaky(), checks={"secrets": "Drop"})["secrets"].dropped == 1


def test_rules_apply_in_the_order_of_the_table_and_do_not_count_what_is_gone() -> None:
    twice = [*leaky(), data.chat("Which token?", f"Take {SECRET} for it.", source="s:2")]
    found = judged.judge(twice)
    assert list(found.findings) == ["duplicates", "secrets"]
    assert (found["duplicates"].count, found["secrets"].count) == (1, 1)
    both = judged.judge(twice, checks={"duplicates": "Warn"})
    assert both["secrets"].count == 2


def test_findings_name_the_first_twenty_places_and_count_all() -> None:
    rows = [
        data.chat(one.prompt[-1].content, f"Mail a.{n}@harbourdesk.co.uk", source=f"a:{n}")
        for n, one in enumerate(GOOD)
    ]
    found = judged.judge(rows)["personalData"]
    assert found.count == 80
    assert len(found.places) == 20
    assert found.line().startswith(
        "personalData: 80 of 80 examples contain what looks like personal data: a:0 (an e-mail address);"
    )
    assert found.line().endswith("; and 77 more")
    document = found.document()
    assert (document["severity"], document["policy"], document["count"]) == ("warning", "Warn", 80)
    assert document["means"]
    assert document["advice"]


def test_a_line_for_the_status_has_a_bound() -> None:
    places = tuple(f"s3://bucket/folder/train.jsonl:{n}: {'a long story ' * 40}" for n in range(20))
    finding = review.Finding("schema", api.Policy.FAIL, 20, "20 rows are not examples", places)
    assert len(finding.line()) < 500
    assert finding.line().startswith("schema: 20 rows are not examples: train.jsonl:0: a long story")
    assert finding.line().endswith("…; and 17 more")
    assert list(places) == finding.document()["places"]


# --- From the job to the status ---


def test_a_rule_that_fails_ends_the_job_with_all_findings(world: World) -> None:
    spec = world(data.rows([*leaky(), GOOD[3]]))
    failure = failed(spec)
    assert "secrets: 1 of 81 examples contain what looks like a secret" in failure.message
    assert "train.jsonl:81 (a GitLab token)" in failure.message
    assert "set dataset.checks (secrets) to another policy" in failure.message
    assert failure.preflight is not None
    assert [line.partition(":")[0] for line in failure.preflight.findings] == ["secrets", "duplicates"]
    assert failure.preflight.verdict == "NotRecommended"
    document = stored(spec)
    assert document["outcome"]["reason"] == "DatasetInvalid"
    assert {one["rule"] for one in document["findings"]} == {"secrets", "duplicates"}
    assert SECRET not in json.dumps(document) + failure.message


def test_data_that_did_not_pass_are_looked_at_again(world: World) -> None:
    failed(world(data.rows(leaky())))
    assert preflight.preflight(world(data.rows(GOOD))).reason is None


def test_dropped_examples_are_reported_and_not_in_the_split(world: World) -> None:
    spec = world(data.rows([*leaky(), GOOD[3], GOOD[3]]), dataset={"checks": {"secrets": "Drop"}})
    answer = preflight.preflight(spec).preflight
    assert answer is not None
    parts = frozen(spec)
    assert sum(map(len, parts.values())) == 80
    assert (answer.examples, answer.validation_examples, answer.test_examples) == tuple(map(len, parts.values()))
    assert answer.findings[0].startswith("duplicates: 2 of 83 examples repeat an earlier one; 2 left out: ")
    assert "1 left out" in answer.findings[1]
    assert answer.verdict == "Caution"
    facts = stored(spec)["facts"]["findings"]
    assert [(one["rule"], one["dropped"]) for one in facts] == [("duplicates", 2), ("secrets", 1)]


def test_a_note_alone_does_not_change_the_verdict(world: World) -> None:
    rows = data.rows([*GOOD, data.chat("Where is it?", "Der Kessel steht auf dem Herd und ist noch nicht für Sie da.")])
    answer = preflight.preflight(world(rows)).preflight
    assert answer is not None
    assert answer.findings[0].startswith("languageMix")
    assert answer.verdict == "Recommended"
    assert not any("languageMix" in text for text in answer.advice)


@pytest.mark.parametrize("count, verdict", [(1, "Recommended"), (3, "Caution")])
def test_a_warning_changes_the_verdict_from_one_example_in_a_hundred_on(world: World, count: int, verdict: str) -> None:
    rows = data.examples(200)
    rows[:count] = data.answered(rows[:count], [f"As an AI, I have no number {n}." for n in range(count)])
    answer = preflight.preflight(world(data.rows(rows))).preflight
    assert answer is not None
    assert answer.findings[0].startswith(f"refusals: {count} of 200 examples")
    assert answer.verdict == verdict


def broken(rows: list[Any]) -> str:
    lines = tiny.jsonl(rows).splitlines()
    bad = [
        '{"messages": [',
        '{"chat": []}',
        json.dumps({"messages": [{"role": "user", "content": "x"}]}),
        json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}),
    ]
    return "\n".join([*lines[:40], *bad, *lines[40:]])


BROKEN = ("unreadable", "schema", "roleOrder", "emptyAnswers")


def test_each_kind_of_broken_row_has_its_rule(world: World) -> None:
    failure = failed(world(broken(data.rows(GOOD))))
    assert failure.preflight is not None
    for number, (id, line) in enumerate(zip(BROKEN, failure.preflight.findings, strict=True), 41):
        assert line.startswith(f"{id}: 1 row is not an example: ")
        assert f"train.jsonl:{number}: " in line


def test_broken_rows_can_be_left_out(world: World) -> None:
    spec = world(broken(data.rows(GOOD)), dataset={"checks": dict.fromkeys(BROKEN, "Drop")})
    answer = preflight.preflight(spec).preflight
    assert answer is not None
    assert sum(map(len, frozen(spec).values())) == 80
    assert [line.partition(":")[0] for line in answer.findings] == list(BROKEN)
    assert all("1 left out" in line for line in answer.findings)


def test_a_truncated_file_fails_even_when_broken_lines_are_dropped(world: World, tmp_path: pathlib.Path) -> None:
    (tmp_path / "more.json").write_text('[{"text": "a"}')
    spec = world(dataset={"train": [f"file://{tmp_path}/more.json"], "checks": {"unreadable": "Drop"}})
    assert "the file is cut off" in failed(spec).message


def test_a_template_that_refuses_rows_is_a_rule_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.data import tokens

    render = tokens.Encoder.render

    def refusing(self: tokens.Encoder, turns: Any, *, answer: bool = False, tools: str | None = None) -> str:
        if turns[0].content.startswith("Who"):
            raise dataset.Wrong("the model's chat template refuses it: no questions about people")
        return render(self, turns, answer=answer, tools=tools)

    monkeypatch.setattr(tokens.Encoder, "render", refusing)
    who = sum(one.messages[0].content.startswith("Who") for one in GOOD)
    assert f"template: {who} rows are not examples" in failed(world(data.rows(GOOD))).message
    spec = world(data.rows(GOOD), dataset={"checks": {"template": "Drop"}})
    preflight.preflight(spec)
    assert sum(map(len, frozen(spec).values())) == 80 - who


def test_nothing_left_to_train_on_is_reported_with_what_took_it(world: World) -> None:
    rows = [data.chat(one.prompt[-1].content, f"{n} {SECRET}") for n, one in enumerate(GOOD)]
    failure = failed(world(data.rows(rows), dataset={"checks": {"secrets": "Drop"}}))
    assert "no training example with a token to learn remains: secrets: 80 of 80" in failure.message


def test_too_few_is_judged_by_what_is_left(world: World) -> None:
    same = [GOOD[0]] * 300
    answer = preflight.preflight(world(data.rows(same), intent={"advice": "Enforce"}, dataset={"minimumExamples": 200}))
    assert answer.reason is reasons.Reason.TOO_FEW_EXAMPLES
    assert answer.preflight is not None
    assert answer.preflight.examples == 1
    assert "299 left out" in answer.preflight.findings[0]


@pytest.mark.slow
def test_a_row_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its text: some 120 bytes, of which 65 are the sketch."""
    made = review.Review({}, judged.encoder())
    details = judged.encoder().details(GOOD)
    monkeypatch.setattr(similar, "BATCH", 2**14)

    def take(times: int) -> None:
        for number in range(times):
            found = details[number % 80]
            assert isinstance(found, tokens.Details)
            made.take(0, GOOD[number % 80], found)

    take(4000)
    tracemalloc.start()
    take(10_000)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 10_000 * 160 + 2**18


TEXTS = st.sampled_from(
    ["dog", "the fox", "yes", "<think>a</think> no", '{"a": 1}', '{"a": ', "As an AI, no.", "<|im_end|>", "a@b.io"]
)


@st.composite
def example(draw: st.DrawFn) -> dataset.Example:
    turns = []
    for _ in range(draw(st.integers(1, 2))):
        turns += [dataset.Message("user", draw(TEXTS)), dataset.Message("assistant", draw(TEXTS))]
    return dataset.Example("x:1", tuple(turns))


POLICIES = st.fixed_dictionaries({}, optional={rule.id: st.sampled_from(api.ALLOWED[rule.scope]) for rule in api.RULES})


@settings(max_examples=100, deadline=None)
@given(st.lists(example(), max_size=30), st.lists(example(), max_size=8), POLICIES)
def test_rows_are_dropped_once_and_for_the_reason_that_is_reported(
    train: list[dataset.Example], test: list[dataset.Example], policies: dict[str, api.Policy]
) -> None:
    found = judged.judge(train, test=test, checks={id: str(policy) for id, policy in policies.items()})
    every = [*train, *test]
    assert len(found.left) == len(every) - sum(finding.dropped for finding in found.findings.values())
    for id, finding in found.findings.items():
        assert finding.policy is api.policy(policies, id)
        assert finding.policy is not api.Policy.IGNORE
        assert 0 < finding.count <= len(every)
        assert len(finding.places) == min(finding.count, review.PLACES)
        assert not finding.dropped or finding.policy is api.Policy.DROP
    train_rows, test_rows = (
        [one for one in found.left if any(one is other for other in part)] for part in (train, test)
    )
    if api.policy(policies, "duplicates") is api.Policy.DROP:
        for part in (train_rows, test_rows):
            assert len({one.line() for one in part}) == len(part)
    if api.policy(policies, "leakage") is api.Policy.DROP:
        assert not {one.key() for one in test_rows} & set().union(*(one.keys() for one in train_rows))
    if api.policy(policies, "contradictions") is api.Policy.DROP:
        assert len({one.key() for one in found.left}) == len({(one.key(), one.answer) for one in found.left})
