"""A manifest is read as the API server reads it, and what is wrong has file, line and path."""

import json
import pathlib

import pytest
import yaml
from tests.cluster import test_api_refuses as api_server

from finetune_api import basemodel, revision
from finetune_api import job as contract
from finetune_cli import documents, jobs, manifests, rules
from support import manifests as samples


def document(manifest: dict, folder: pathlib.Path) -> documents.Document:
    file = folder / "manifest.yaml"
    file.write_text(json.dumps(manifest))  # YAML, too, and never in doubt what is text
    [found] = documents.read(file)
    return found


def problems(file: pathlib.Path) -> list[str]:
    with pytest.raises(documents.Invalid) as caught:
        jobs.read(file)
    return [problem.text.removeprefix(f"{file.parent}/") for problem in caught.value.problems]


def written(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    return file


GOOD = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: tone
spec:
  baseModel: {source: base}
  dataset:
    train:
    - data/*.jsonl
    - s3://bucket/more.jsonl
    validation:
  storage: {output: my out}
  training:
    learningRate: 2e-4
"""


@pytest.mark.parametrize("case", api_server.REFUSED, ids=lambda case: case[0].replace(" ", "_"))
def test_what_the_api_server_refuses_is_refused_here_at_the_same_field(case, tmp_path: pathlib.Path) -> None:
    _, changes, field, _ = case
    changed = {api_server.full(path): value for path, value in changes.items()}
    found = document(samples.changed(samples.MINIMAL, **changed), tmp_path)
    with pytest.raises(documents.Invalid) as caught:
        manifests.check(found, contract.FineTuneJobSpec)
    assert api_server.full(field).replace("[a]", ".a") in {problem.path for problem in caught.value.problems}


def test_a_server_may_be_configured_to_read_calls_and_a_gate_may_ask_for_them(tmp_path: pathlib.Path) -> None:
    wanted = {
        "spec.deployment.extraArgs": ["--enable-auto-tool-choice", "--tool-call-parser=hermes"],
        "spec.evaluation.gates": [
            {"metric": "ToolCallMatch", "minimum": 0.9, "over": "Base"},
            {"metric": "ToolCallValid", "minimum": 1},
        ],
        "spec.dataset.checks": {"toolCalls": "Drop", "toolArguments": "Fail"},
    }
    manifests.check(document(samples.changed(samples.MINIMAL, **wanted), tmp_path), contract.FineTuneJobSpec)
    few = {"spec.evaluation.gates": [{"metric": "ToolCallMatch", "minimum": 90}]}
    with pytest.raises(documents.Invalid, match="share from 0 to 1"):
        manifests.check(document(samples.changed(samples.MINIMAL, **few), tmp_path), contract.FineTuneJobSpec)


@pytest.mark.parametrize("case", api_server.REFUSED_ENTRIES, ids=lambda case: case[0].replace(" ", "_"))
def test_so_are_entries_of_the_catalogue(case, tmp_path: pathlib.Path) -> None:
    _, changes, field, _ = case
    changed = {api_server.full(path): value for path, value in changes.items()}
    found = document(samples.changed(samples.ENTRY, **changed), tmp_path)
    with pytest.raises(documents.Invalid) as caught:
        manifests.check(found, basemodel.BaseModelSpec)
    assert api_server.full(field) in {problem.path for problem in caught.value.problems}


@pytest.mark.parametrize("path", sorted((samples.REPOSITORY / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_accepted(path: pathlib.Path) -> None:
    for found in documents.read(path):
        if found.kind == "FineTuneJob":
            manifests.check(found, contract.FineTuneJobSpec)


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_job_in_a_pool_has_no_defaults_of_a_server_of_its_own(gpus: int, tmp_path: pathlib.Path) -> None:
    job = samples.changed(samples.MINIMAL, **{"spec.deployment": {"pool": "chat"}, "spec.resources": {"gpus": gpus}})
    assert manifests.check(document(job, tmp_path), contract.FineTuneJobSpec).deployment.pool == "chat"
    own = samples.changed(job, **{"spec.deployment.resources": {"gpus": 1}})
    with pytest.raises(documents.Invalid) as caught:
        manifests.check(document(own, tmp_path), contract.FineTuneJobSpec)
    assert "no effect with deployment.pool" in caught.value.problems[0].text


def test_problems_name_file_line_and_field(tmp_path: pathlib.Path) -> None:
    text = GOOD.replace("    learningRate: 2e-4", "    learningRate: fast\n    lora: {Rank: 1}\n    epochs: -1")
    assert problems(written(tmp_path, text)) == [
        'job.yaml:14: spec.training.learningRate must be a valid number; found "fast"',
        "job.yaml:15: spec.training.lora.Rank is an unknown field; known are alpha, dropout, rank, targetModules",
        "job.yaml:16: spec.training.epochs must be greater than 0; found -1",
    ]


def test_fields_that_contradict_each_other_are_named_with_the_line_of_the_first(tmp_path: pathlib.Path) -> None:
    text = GOOD + "    epochs: 1\n    maxSteps: 1\n"
    assert problems(written(tmp_path, text)) == [
        "job.yaml:15: spec.training: set at most one of training.epochs and training.maxSteps"
    ]
    text = GOOD + "    prompt: Prompt\n"
    assert problems(written(tmp_path, text)) == [
        "job.yaml:15: spec: training.prompt Prompt needs intent.prompt.system, the prompt to train with"
    ]
    text = GOOD + "  evaluation:\n    gates: [{metric: JsonValid}]\n"
    assert problems(written(tmp_path, text)) == [
        "job.yaml:16: spec.evaluation.gates[0]: a gate needs minimum, maximum or over"
    ]


def test_lists_are_refused_in_plain_words(tmp_path: pathlib.Path) -> None:
    evaluation = "  evaluation:\n    baselines: Base\n    labels: [one]\n    harness: {tasks: []}\n"
    assert problems(written(tmp_path, GOOD + evaluation)) == [
        'job.yaml:16: spec.evaluation.baselines must be a list; found "Base"',
        'job.yaml:17: spec.evaluation.labels must have at least 2 items; found ["one"]',
        "job.yaml:18: spec.evaluation.harness.tasks must have at least 1 item; found []",
    ]


def test_without_the_rules_package_a_note_says_what_was_not_checked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "missing", lambda: "were not checked")
    found = jobs.read(written(tmp_path, GOOD + "    epochs: 1\n    maxSteps: 1\n"))
    assert found.notes == ("were not checked",)


def test_plain_paths_are_files_beside_the_manifest(tmp_path: pathlib.Path) -> None:
    found = jobs.read(written(tmp_path, GOOD)).run
    assert found.dataset.train == [f"file://{tmp_path}/data/*.jsonl", "s3://bucket/more.jsonl"]
    assert found.storage.output == f"file://{tmp_path}/my%20out"
    assert (found.base_model.name, found.base_model.source) == ("base", f"file://{tmp_path}/base")


def test_a_null_is_an_absent_field_and_numbers_are_numbers(tmp_path: pathlib.Path) -> None:
    found = jobs.read(written(tmp_path, GOOD)).run
    assert found.dataset.validation.fraction == 0.05
    assert found.training.learning_rate == 2e-4


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a: [1\n", "job.yaml:2: is not valid YAML"),
        ("- 1\n", "job.yaml:1: is not a manifest"),
        ("a: 1\nb: 2\na: 3\n", "job.yaml:3: a is a duplicate key"),
        ("", "job.yaml: must contain exactly one FineTuneJob; found nothing"),
        (
            GOOD + "---\n" + GOOD,
            "job.yaml: must contain exactly one FineTuneJob; found FineTuneJob tone, FineTuneJob tone",
        ),
        (GOOD.replace("v1alpha1", "v2"), "job.yaml:1: apiVersion is 'finetune.dev/v2'; expected finetune.dev/v1alpha1"),
        (GOOD.replace("name: tone", "name: ../x"), "job.yaml:4: metadata.name must be lower-case"),
    ],
)
def test_what_is_no_manifest_of_one_job_is_refused(tmp_path: pathlib.Path, text: str, problem: str) -> None:
    assert problems(written(tmp_path, text))[0].startswith(problem)


POOL = (
    "apiVersion: finetune.dev/v1alpha1\nkind: ServingPool\nmetadata: {name: chat}\nspec: {baseModel: {name: small}}\n"
)


def test_a_serving_pool_beside_the_job_is_checked_too(tmp_path: pathlib.Path) -> None:
    assert jobs.read(written(tmp_path, GOOD + "---\n" + POOL)).spec.dataset.train
    wrong = POOL.replace("}}\n", "}, replica: 2}\n")
    [problem] = problems(written(tmp_path, GOOD + "---\n" + wrong))
    assert problem.startswith("job.yaml:19: spec.replica is an unknown field")
    jobs.read(written(tmp_path, GOOD + "---\n" + POOL.replace("name: small", "source: ./base")))
    jobs.read(written(tmp_path, GOOD + "---\n" + wrong.replace("finetune.dev", "example.com")))
    [problem] = problems(written(tmp_path, POOL))
    assert problem == "job.yaml: must contain exactly one FineTuneJob; found ServingPool chat"


# -- the base model --

BY_NAME = GOOD.replace("{source: base}", "{name: small}")
ENTRY = "apiVersion: finetune.dev/v1alpha1\nkind: BaseModel\nmetadata: {name: small}\nspec: {source: models/small}\n"


def test_a_name_is_looked_up_in_the_jobs_file_then_next_to_it(tmp_path: pathlib.Path) -> None:
    file = written(tmp_path, BY_NAME)
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "models.yaml").write_text(ENTRY)
    assert jobs.read(file).base.source == f"file://{tmp_path}/models/small"
    file.write_text(BY_NAME + "---\n" + ENTRY.replace("models/small", "mine"))
    assert jobs.read(file).base.source == f"file://{tmp_path}/mine"


def test_a_catalogue_may_be_what_kubectl_prints(tmp_path: pathlib.Path) -> None:
    items = [yaml.safe_load(ENTRY), yaml.safe_load(ENTRY.replace("small}", "other}"))]
    items[0]["metadata"] |= {"uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    catalogue = tmp_path / "elsewhere" / "models.yaml"
    catalogue.parent.mkdir()
    catalogue.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    found = jobs.read(written(tmp_path, BY_NAME), catalogue)
    assert found.base.source == f"file://{tmp_path}/elsewhere/models/small"


def test_a_missing_model_is_reported_with_what_to_do(tmp_path: pathlib.Path) -> None:
    [problem] = problems(written(tmp_path, BY_NAME))
    assert problem.startswith("job.yaml:6: spec.baseModel.name is small, and there is no BaseModel of that name")
    assert "--catalogue" in problem


def test_of_several_base_models_the_smallest_is_taken_with_a_note_and_its_own_revision(tmp_path: pathlib.Path) -> None:
    sized = [
        ENTRY.replace("name: small", f"name: {name}").replace("{source", f"{{parameters: {size}, source")
        for name, size in (("large", 7), ("tiny", 1))
    ]
    models = "".join(f"---\n{one}" for one in sized)
    text = BY_NAME.replace("{name: small}", "{candidates: [large, tiny]}")
    found, single = (
        jobs.read(written(tmp_path, one + models)) for one in (text, BY_NAME.replace("name: small", "name: tiny"))
    )
    assert (found.base.name, found.run.revision) == ("tiny", single.run.revision)
    assert any("about tiny alone" in note and "for large set baseModel.name" in note for note in found.notes)
    [problem] = problems(written(tmp_path, text + "---\n" + sized[0]))
    assert "spec.baseModel.candidates has tiny, and there is no BaseModel of that name" in problem


def test_a_volume_of_the_cluster_needs_a_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, GOOD.replace("source: base", "source: pvc://claim/model"))
    assert "FINETUNE_MODEL_PATH" in problems(file)[0]
    monkeypatch.setenv("FINETUNE_MODEL_PATH", str(tmp_path))
    assert jobs.read(file).base.source == "pvc://claim/model"


def test_data_on_a_volume_of_the_cluster_need_a_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, GOOD.replace("- data/*.jsonl", "- pvc://claim/data/*.jsonl"))
    assert "FINETUNE_DATA_PATH" in problems(file)[0]
    monkeypatch.setenv("FINETUNE_DATA_PATH", str(tmp_path))
    assert jobs.read(file).spec.dataset.train[0] == "pvc://claim/data/*.jsonl"


def test_revision_and_run_file_are_those_of_the_operator(tmp_path: pathlib.Path) -> None:
    from finetune_operator import revisions

    text = (samples.REPOSITORY / "examples" / "every-field.yaml").read_text()
    found = jobs.read(written(tmp_path, text))
    wanted = revisions.want(found.spec, "", None)
    assert (found.run.revision, found.run.evaluation_hash) == (wanted.revision, wanted.evaluation_hash)
    text = text.replace("name: every-field", f"name: every-field\n  annotations: {{{revision.RUN_ANNOTATION}: again}}")
    again = jobs.read(written(tmp_path, text))
    assert again.run.revision == revisions.want(found.spec, "again", None).revision != wanted.revision
    parts = ("intent", "dataset", "storage", "training", "evaluation")
    assert all(getattr(found.run, part) == getattr(found.spec, part) for part in parts)
