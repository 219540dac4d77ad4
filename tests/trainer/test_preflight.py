import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import candidates, outcome, reasons, run
from finetune_trainer import __main__
from finetune_trainer.data import dataset
from finetune_trainer.planning import measurements
from finetune_trainer.process import errors, signals
from finetune_trainer.stages import preflight
from finetune_trainer.store import folders, storage

World = Callable[..., run.Run]


def refused(spec: run.Run) -> errors.Failure:
    with pytest.raises(errors.Failure) as caught:
        preflight.preflight(spec)
    assert "facts" not in stored(spec), "what did not pass must be looked at again"
    return caught.value


def stored(spec: run.Run) -> Any:
    path = pathlib.Path(spec.layout.preflight.removeprefix("file://"))
    return json.loads(path.read_text()) if path.exists() else {}


def frozen(spec: run.Run) -> dict[str, list[dataset.Example]]:
    folder = pathlib.Path(spec.layout.data.removeprefix("file://"))
    return {name: dataset.frozen(folder / f"{name}.jsonl") for name in dataset.SPLITS}


def test_good_data_is_recommended_counted_and_frozen(world: World) -> None:
    spec = world()
    answer = preflight.preflight(spec)
    found = answer.preflight
    assert found is not None
    assert answer.reason is None
    assert (found.verdict, found.findings) == ("Recommended", [])
    assert [text.split("?")[0] for text in found.advice] == [
        "Tried a prompt",
        "Can retrieval (RAG) solve it",
        "Enough data",
    ]
    assert (found.examples, found.validation_examples, found.test_examples) == (51, 3, 6)
    assert 0 < found.trainable_tokens < found.tokens
    assert found.estimated_memory is not None
    parts = frozen(spec)
    assert [len(parts[name]) for name in dataset.SPLITS] == [51, 3, 6]
    assert all(":" in example.source for example in parts["train"])
    manifest = folders.manifest(storage.Storage(), spec.layout.data)
    assert manifest is not None
    assert manifest.extra["inputs"][0]["uri"] == spec.dataset.train[0]
    assert manifest.extra["inputs"][0]["etag"]


def test_the_rules_that_spoke_are_stored_and_measurements_of_earlier_releases_are_read(world: World) -> None:
    spec = world(intent={"goals": ["Knowledge"]})
    preflight.preflight(spec)
    document = stored(spec)
    assert document["advice"][0]["rule"] == "goal_is_knowledge"
    assert document["advice"][0]["weight"] == "Against"
    for name in ("distinct", "top_answer", "novelty", "parameters", "work"):
        del document["facts"][name]
    path = pathlib.Path(spec.layout.preflight.removeprefix("file://"))
    path.write_text(json.dumps(document))
    answer = preflight.preflight(world(intent={"goals": ["Style"]}))
    assert answer.preflight is not None
    assert answer.preflight.verdict == "Recommended"
    assert answer.preflight.advice[-1] == "Enough data? Yes: 51 training examples."


def test_no_prompt_is_on_two_sides_of_the_split(world: World) -> None:
    twice = [row for row in tiny.examples(60) for _ in range(3)]
    parts = frozen_after(world(twice, dataset={"checks": {"duplicates": "Ignore"}}))
    keys = {name: {example.key() for example in parts[name]} for name in parts}
    assert not keys["train"] & (keys["test"] | keys["validation"])
    assert len(parts["test"]) >= 18


def frozen_after(spec: run.Run) -> dict[str, list[dataset.Example]]:
    preflight.preflight(spec)
    return frozen(spec)


def test_a_second_attempt_gives_the_same_answer_even_after_the_files_changed(world: World) -> None:
    spec = world()
    first = preflight.preflight(spec)
    again = preflight.preflight(world("broken"))
    assert again == first


def test_another_threshold_judges_the_same_frozen_split(world: World) -> None:
    spec = world()
    preflight.preflight(spec)
    before = frozen(spec)
    strict = world(tiny.examples(30), intent={"advice": "Enforce"}, dataset={"minimumExamples": 1000})
    answer = preflight.preflight(strict)
    assert answer.reason is reasons.Reason.TOO_FEW_EXAMPLES
    assert answer.preflight is not None
    assert answer.preflight.examples == 51
    assert frozen(strict) == before


def test_what_smaller_models_reached_counts_on_the_same_files_alone(world: World) -> None:
    spec = world()
    data = preflight.preflight(spec).preflight
    assert data is not None
    document = json.loads(pathlib.Path(spec.layout.preflight.removeprefix("file://")).read_text())
    large = measurements.Measurements(**document["facts"] | {"parameters": 72_000_000_000})
    one = {"job": "other", "model": "small", "parameters": 7_000_000_000, "result": "Missed", "message": "0.61"}
    verdicts = {}
    for hash_ in (data.data, "of other files"):
        asked = spec.model_copy(update={"measured": [candidates.Measured.model_validate(one | {"data": hash_})]})
        found = preflight.answer(asked, storage.Storage(), large, document["inputs"]).preflight
        assert found is not None
        verdicts[hash_] = found.verdict
    assert verdicts == {data.data: "Recommended", "of other files": "Caution"}


def test_an_attempt_that_died_before_its_end_is_repeated(world: World) -> None:
    spec = world()
    preflight.preflight(spec)
    storage.Storage().delete(spec.layout.preflight)
    assert preflight.preflight(spec).preflight is not None


def test_a_broken_line_is_named_with_its_number(world: World) -> None:
    lines = tiny.jsonl(tiny.examples(60)).splitlines()
    lines[16] = lines[16][:-2]
    failure = refused(world("\n".join(lines)))
    assert failure.reason is reasons.Reason.DATASET_INVALID
    assert failure.exit == 2
    assert "train.jsonl:17: not valid JSON" in failure.message
    assert failure.preflight is not None
    assert failure.preflight.verdict == "NotRecommended"


def test_reading_stops_after_twenty_broken_rows(world: World) -> None:
    spec = world("{}\n" * 1000)
    failure = refused(spec)
    assert "schema: 20 rows are not examples (reading stopped there)" in failure.message
    assert "and 17 more" in failure.message
    (finding,) = stored(spec)["findings"]
    assert len(finding["places"]) == 20


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_invalid(world: World, text: str) -> None:
    failure = refused(world(text))
    assert failure.reason is reasons.Reason.DATASET_INVALID
    assert "are empty" in failure.message


def test_a_missing_file_is_not_found(world: World) -> None:
    failure = refused(world(dataset={"train": ["file:///nowhere/train.jsonl"]}))
    assert failure.reason is reasons.Reason.DATASET_NOT_FOUND
    assert failure.exit == 2


@pytest.mark.parametrize(
    "advice, reason, verdict, expected",
    [
        ("Enforce", reasons.Reason.TOO_FEW_EXAMPLES, "NotRecommended", True),
        ("Warn", None, "NotRecommended", True),
        ("Ignore", None, "Recommended", False),
    ],
)
def test_twelve_examples_are_too_few(world: World, advice: str, reason: Any, verdict: str, expected: bool) -> None:
    spec = world(tiny.examples(12), intent={"advice": advice}, dataset={"minimumExamples": 200})
    answer = preflight.preflight(spec)
    assert answer.preflight is not None
    assert answer.reason is reason
    assert answer.preflight.verdict == verdict
    assert any("fewer than the 200" in sentence for sentence in answer.preflight.advice) is expected
    assert answer.preflight.examples == 10


def with_a_leak(world: World, tmp_path: pathlib.Path, policy: str) -> run.Run:
    """The last of six test examples asks what a training example asks."""
    (tmp_path / "test.jsonl").write_text(tiny.jsonl([*tiny.examples(5, start=900), tiny.examples(1, start=4)[0]]))
    return world(dataset={"test": {"uris": [f"file://{tmp_path}/test.jsonl"]}, "checks": {"leakage": policy}})


def test_held_out_files_are_taken_as_they_are_and_leaks_are_found(world: World, tmp_path: pathlib.Path) -> None:
    answer = preflight.preflight(with_a_leak(world, tmp_path, "Warn"))
    assert answer.preflight is not None
    assert answer.preflight.test_examples == 6
    (finding,) = answer.preflight.findings
    assert finding.startswith("leakage: 1 of 6 examples held out have a prompt that is also in the training data")
    assert finding.endswith("test.jsonl:6")
    assert answer.preflight.verdict == "Caution"


def test_a_leak_ends_the_job_or_leaves_the_training_data(world: World, tmp_path: pathlib.Path) -> None:
    assert "test.jsonl:6" in refused(with_a_leak(world, tmp_path, "Fail")).message
    spec = with_a_leak(world, tmp_path, "Drop")
    answer = preflight.preflight(spec)
    assert answer.preflight is not None
    assert "1 left out" in answer.preflight.findings[0]
    parts = frozen(spec)
    assert sum(map(len, parts.values())) == 65
    asked = {one.key() for one in parts["test"]}
    assert len(asked) == 6
    assert not asked & {one.key() for one in [*parts["train"], *parts["validation"]]}


def test_rows_whose_answer_is_cut_away_are_left_out(world: World) -> None:
    long = tiny.examples(1, start=999)[0]
    long["messages"][1]["content"] = "Thank you " * 300
    spec = world([*tiny.examples(60), long], training={"maxSequenceLength": 128})
    answer = preflight.preflight(spec)
    assert answer.preflight is not None
    assert answer.preflight.findings[0].startswith("untrainable: 1 of 61 examples have no token to learn")
    assert "train.jsonl:61" in answer.preflight.findings[0]
    assert answer.preflight.verdict == "Caution"
    assert sum(map(len, frozen(spec).values())) == 60


def test_nothing_to_learn_at_all_is_invalid(world: World) -> None:
    failure = refused(world(training={"maxSequenceLength": 16}))
    assert failure.reason is reasons.Reason.DATASET_INVALID
    assert "maxSequenceLength" in failure.message


def test_many_truncated_examples_are_a_finding(world: World) -> None:
    rows_ = tiny.examples(60)
    for row in rows_[:30]:
        row["messages"][2]["content"] = "it is great " * 50
    answer = preflight.preflight(world(rows_, training={"maxSequenceLength": 128}))
    assert answer.preflight is not None
    assert answer.preflight.verdict == "Caution"
    assert answer.preflight.findings[0].startswith("truncation: 30 of 60 examples are longer than")
    assert answer.preflight.advice[0].startswith("truncation: Raise training.maxSequenceLength")


def test_a_row_that_the_template_refuses_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.data import tokens

    def render(self: tokens.Encoder, turns: Any, *, answer: bool = False, tools: str | None = None) -> str:
        raise dataset.Wrong("the model's chat template refuses it: no system turns")

    monkeypatch.setattr(tokens.Encoder, "render", render)
    assert "train.jsonl:1: the model's chat template refuses it" in refused(world()).message


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), r"no \*\.safetensors"),
        (lambda folder: edit(folder, auto_map={"AutoModel": "evil.Model"}), "needs its own code"),
        (lambda folder: edit(folder, model_type="t5"), "model_type 't5'"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_trained_is_explained(
    world: World, base: pathlib.Path, tmp_path: pathlib.Path, change: Callable[[pathlib.Path], Any], words: str
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    change(copy)
    with pytest.raises(errors.Failure, match=words) as caught:
        preflight.preflight(world(baseModel={"name": "tiny-base", "source": f"file://{copy}"}))
    assert caught.value.reason is reasons.Reason.MODEL_INVALID


def edit(folder: pathlib.Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_output_that_cannot_be_written_is_found_before_training(world: World, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(errors.Failure):
        preflight.preflight(world(storage={"output": f"file://{tmp_path}/file/out"}))


def test_preflight_end_to_end_with_s3(s3: Any, s3_server: str, base: pathlib.Path, world: World) -> None:
    """Data, model and output in a bucket; preflight does not fetch the weights."""
    fetched: list[str] = []
    for path in base.iterdir():
        s3.upload_file(str(path), "data", f"models/tiny/{path.name}")
    s3.put_object(Bucket="data", Key="in/train.jsonl", Body=tiny.jsonl(tiny.examples(60)).encode())
    spec = world(
        baseModel={"name": "tiny-base", "source": "s3://data/models/tiny"},
        dataset={"train": ["s3://data/in/*.jsonl"]},
        storage={"output": "s3://data/out", "endpoint": s3_server},
    )
    download = storage.Storage.download
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            storage.Storage, "download", lambda self, uri, path: (fetched.append(uri), download(self, uri, path))[1]
        )
        answer = preflight.preflight(spec)
    assert answer.preflight is not None
    assert answer.preflight.examples == 51
    assert fetched
    assert not any(uri.endswith(".safetensors") for uri in fetched)
    listed = {entry["Key"] for entry in s3.list_objects_v2(Bucket="data", Prefix="out/")["Contents"]}
    assert {"out/ml/tiny/r1/preflight.json", "out/ml/tiny/r1/data/manifest.json"} <= listed
    assert not any(".writable" in key for key in listed)


@pytest.mark.parametrize(
    "changes, reason, code",
    [
        ({"storage": {"output": "s3://nowhere/out"}}, reasons.Reason.BUCKET_NOT_FOUND, 2),
        ({"dataset": {"train": ["s3://nowhere/train.jsonl"]}}, reasons.Reason.BUCKET_NOT_FOUND, 2),
        ({"dataset": {"train": ["s3://data/missing.jsonl"]}}, reasons.Reason.DATASET_NOT_FOUND, 2),
        ({"dataset": {"train": ["s3://data/none/*.jsonl"]}}, reasons.Reason.DATASET_NOT_FOUND, 2),
        ({"storage": {"endpoint": "http://127.0.0.1:9"}}, reasons.Reason.STORAGE_UNAVAILABLE, 5),
        ({"baseModel": {"name": "tiny-base", "source": "s3://data/none"}}, reasons.Reason.MODEL_INVALID, 2),
    ],
)
def test_failures_become_outcomes_and_exit_codes(
    changes: dict[str, Any],
    reason: reasons.Reason,
    code: int,
    s3: Any,
    s3_server: str,
    world: World,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr("finetune_trainer.process.log.configure", lambda: None)
    changes = changes | {"storage": {"output": "s3://data/out", "endpoint": s3_server} | changes.get("storage", {})}
    spec = world(**changes)
    (tmp_path / "run.json").write_text(spec.model_dump_json(by_alias=True, exclude_none=True))
    assert __main__.main(["preflight", "--run", str(tmp_path / "run.json")]) == code
    answer = outcome.Outcome.model_validate_json((tmp_path / "termination").read_text())
    assert answer.reason is reason
    assert len(answer.message) > 40


ONE_STAGE = """
import sys
from finetune_trainer import __main__
from finetune_trainer.process import imports
imports.one_stage()
code = __main__.main(["preflight", "--run", sys.argv[1]])
print([name for name in ("torch", "scipy.stats", "transformers") if sys.modules.get(name)])
sys.exit(code)
"""


def test_a_process_of_its_own_finds_the_same_without_torch(world: World, tmp_path: pathlib.Path) -> None:
    gates = [
        {"metric": "JsonSchema", "minimum": 0.5},
        {"metric": "Loss", "over": "Base"},
    ]  # what they can show needs scipy
    spec = world(evaluation={"gates": gates, "outputSchema": {"type": "object"}, "generation": {"maxNewTokens": 24}})
    (tmp_path / "run.json").write_text(spec.model_dump_json(by_alias=True, exclude_none=True))
    words = [sys.executable, "-c", ONE_STAGE, str(tmp_path / "run.json")]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "['scipy.stats', 'transformers']"
    assert [line for line in ended.stderr.splitlines() if not line.startswith("{")] == [], "a log of JSON lines only"
    alone = stored(spec)
    here = spec.model_copy(update={"revision": "here"})
    preflight.preflight(here)
    assert json.loads(json.dumps(stored(here)).replace("/here", f"/{spec.revision}")) == alone


def test_the_run_file_itself_is_checked(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr("finetune_trainer.process.log.configure", lambda: None)
    for text in (None, "{", '{"name": "x", "extra": 1}'):
        path = tmp_path / "run.json"
        if text is not None:
            path.write_text(text)
        assert __main__.main(["preflight", "--run", str(path)]) == 2
        answer = outcome.Outcome.model_validate_json((tmp_path / "termination").read_text())
        assert answer.reason is reasons.Reason.INVALID_SPEC
