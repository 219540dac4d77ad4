"""The models alone: names on the wire, what they refuse, what they accept."""

import pydantic
import pytest

from finetune_api import basemodel, checks, job, layout, outcome, run, status
from support import manifests


def spec(**changes):
    return job.FineTuneJobSpec.model_validate(manifests.changed(manifests.MINIMAL, **changes)["spec"])


@pytest.mark.parametrize("manifest", [manifests.MINIMAL, manifests.every_field()], ids=["minimal", "every-field"])
def test_a_spec_survives_the_wire(manifest):
    parsed = job.FineTuneJobSpec.model_validate(manifest["spec"])
    assert job.FineTuneJobSpec.model_validate(parsed.wire()) == parsed
    assert job.FineTuneJobSpec.model_validate_json(parsed.model_dump_json(by_alias=True)) == parsed


def test_an_entry_of_the_catalogue_survives_the_wire():
    parsed = basemodel.BaseModelSpec.model_validate(manifests.ENTRY["spec"])
    assert basemodel.BaseModelSpec.model_validate(parsed.wire()) == parsed


def test_the_wire_has_camel_case_and_no_nulls():
    wire = spec().wire()
    assert wire["training"]["maxSequenceLength"] == 2048
    assert "maxSteps" not in wire["training"]


def test_the_defaults_are_those_of_good_practice():
    training = spec().training
    assert (training.lora.rank, training.lora.alpha, training.lora.dropout) == (16, 32, 0)
    assert (training.batch_size, training.retries, training.seed) == (16, 2, 42)
    assert training.learning_rate is None  # by a formula


def test_an_unknown_field_is_named_in_the_refusal():
    with pytest.raises(pydantic.ValidationError, match=r"training\.learningrate"):
        spec(**{"spec.training.learningrate": 1})


@pytest.mark.parametrize(
    "chosen, words",
    [
        ({"typos": "Drop"}, "unreadable, schema"),
        ({"schema": "Ignore"}, "schema cannot be Ignore: write Drop, Fail"),
        ({"labelImbalance": "Drop"}, "labelImbalance cannot be Drop: write Warn, Fail, Ignore"),
        ({"secrets": "Off"}, "'Drop', 'Warn', 'Fail' or 'Ignore'"),
    ],
)
def test_a_check_that_cannot_be_done_is_refused_with_what_can(chosen, words):
    with pytest.raises(pydantic.ValidationError) as caught:
        spec(**{"spec.dataset.checks": chosen})
    assert words in str(caught.value)


def test_every_check_has_a_default_that_it_allows():
    for rule in checks.RULES:
        assert rule.default in checks.ALLOWED[rule.scope]
        assert all(sentence.endswith(".") for sentence in (rule.means, rule.matters, rule.advice))
    assert len(checks.BY_ID) == len(checks.RULES)
    assert checks.policy({"secrets": checks.Policy.DROP}, "secrets") is checks.Policy.DROP
    assert checks.policy({}, "secrets") is checks.Policy.FAIL


def test_a_value_cannot_be_changed_after_it_was_read():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        spec().suspend = True


@pytest.mark.parametrize("amount, stored", [(4, "4"), ("4", "4"), ("500m", "500m"), ("1.5Gi", "1.5Gi")])
def test_a_quantity_is_stored_as_text(amount, stored):
    assert job.Requests.model_validate({"cpu": amount}).cpu == stored


@pytest.mark.parametrize("amount", [True, 0.5, "four", "-1", -1, "4 Gi", "1e3", ""])
def test_a_quantity_is_not(amount):
    with pytest.raises(pydantic.ValidationError):
        job.Requests.model_validate({"cpu": amount})


@pytest.mark.parametrize(
    "kind, needed",
    [
        (status.Status, {}),
        (status.Checkpoint, {"uri": "s3://b/c", "step": 1, "savedAt": "2026-01-02T03:04:05Z"}),
        (status.Evaluation, {"passed": True, "examples": 1}),
        (status.Progress, {"percent": 1, "step": 1, "totalSteps": 2}),
    ],
)
def test_a_report_of_a_newer_version_stays_readable(kind, needed):
    assert kind.model_validate({**needed, "inventedLater": 1}) == kind.model_validate(needed)


def test_a_time_is_written_with_its_zone():
    checkpoint = status.Checkpoint.model_validate({"uri": "s3://b/c", "step": 1, "savedAt": "2026-01-02T03:04:05Z"})
    assert checkpoint.wire()["savedAt"] == "2026-01-02T03:04:05Z"


def test_a_run_file_survives_the_wire_and_knows_its_places():
    parsed = run.Run(
        name="support-tone",
        namespace="ml",
        revision="3f2a9c1b",
        evaluation_hash="77aa",
        base_model=run.ResolvedBaseModel(name="qwen", source="hf://Qwen/Qwen2.5-7B-Instruct"),
        dataset=spec().dataset,
        storage=spec().storage,
        training=spec().training,
        served_model_name="support-tone",
    )
    assert run.Run.model_validate_json(parsed.model_dump_json(by_alias=True)) == parsed
    assert parsed.layout.adapter == "s3://acme/finetune/ml/support-tone/3f2a9c1b/adapter"


@pytest.mark.parametrize("output", ["s3://acme/finetune", "s3://acme/finetune/"])
def test_everything_of_a_revision_lies_below_its_folder(output):
    places = layout.Layout(output, "ml", "support-tone", "3f2a9c1b")
    root = "s3://acme/finetune/ml/support-tone/3f2a9c1b"
    assert places.root == root
    assert places.preflight == f"{root}/preflight.json"
    assert places.data == f"{root}/data"
    assert places.checkpoint(43) == f"{root}/checkpoints/00000043"
    assert places.evaluation("77aa") == f"{root}/evaluation/77aa"
    assert places.report == f"{root}/report.html"


def test_checkpoints_sort_by_their_step():
    places = layout.Layout("s3://a", "ml", "x", "r")
    folders = [places.checkpoint(step) for step in (9, 10, 99_999_999)]
    assert folders == sorted(folders)


def test_the_progress_of_another_attempt_can_be_distinguished():
    report = outcome.ProgressReport.model_validate(
        {"revision": "3f2a9c1b", "attempt": 2, "progress": {"percent": 1, "step": 1, "totalSteps": 100}}
    )
    assert (report.revision, report.attempt, report.checkpoint) == ("3f2a9c1b", 2, None)


@pytest.mark.parametrize(
    "resources, server, gpus",
    [
        ({"gpus": 0}, {}, 0),
        ({"gpus": 0}, {"requests": {"cpu": "2"}}, 0),
        ({"gpus": 0}, {"gpus": 1}, 1),
        ({"gpus": 0}, {"gpuType": "nvidia-l4"}, 1),
        ({"gpus": 4}, {}, 1),
        ({}, {}, 1),
    ],
)
def test_the_server_of_a_cpu_job_requests_no_gpu_by_default(resources: dict, server: dict, gpus: int) -> None:
    raw = manifests.changed(
        manifests.MINIMAL, **{"spec.resources": resources, "spec.deployment": {"resources": server}}
    )
    assert job.FineTuneJobSpec.model_validate(raw["spec"]).deployment.resources.gpus == gpus
    assert raw["spec"]["deployment"]["resources"] == server, "the input stays as it is"


@pytest.mark.parametrize(
    "wrong", [None, 1, [], "x", {"resources": 1}, {"deployment": 1}, {"deployment": {"resources": []}}]
)
def test_a_spec_of_the_wrong_kind_is_still_a_validation_error(wrong: object) -> None:
    with pytest.raises(pydantic.ValidationError):
        job.FineTuneJobSpec.model_validate(wrong)
