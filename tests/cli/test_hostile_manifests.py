"""Manifests that a parser stumbles over are refused with line and field, and what kubectl prints is accepted."""

import json
import pathlib
import time

import pytest

from finetune_cli import __main__, answer, documents, jobs

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: tone
spec:
  baseModel: {source: base}
  dataset:
    train: [train.jsonl]
  storage: {output: out}
  training: {epochs: 1}
"""

LAUGHS = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 10))


def problem(folder: pathlib.Path, text: str | bytes) -> answer.Problem:
    """The one problem of a manifest."""
    file = folder / "job.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(documents.Invalid) as caught:
        jobs.read(file)
    [found] = caught.value.problems
    return found


def test_aliases_that_multiply_are_counted_and_not_expanded(tmp_path: pathlib.Path) -> None:
    begun = time.monotonic()
    found = problem(tmp_path, "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + LAUGHS + JOB)
    assert time.monotonic() - begun < 20
    assert (found.path, found.line) == ("a5", 6)
    assert "fewer aliases" in found.message


def test_an_alias_of_the_object_around_it_is_refused_with_its_field(tmp_path: pathlib.Path) -> None:
    found = problem(tmp_path, "x: &a [*a]\n" + JOB)
    assert (found.path, found.line) == ("x[0]", 1)
    assert "contains it" in found.message


@pytest.mark.parametrize("levels", [300, 3000])
def test_nesting_beyond_a_hundred_levels_is_refused_with_its_line(levels: int, tmp_path: pathlib.Path) -> None:
    found = problem(tmp_path, JOB.replace("epochs: 1", "epochs: " + "[" * levels + "]" * levels))
    assert "nested too deeply" in found.message
    assert found.line == 10
    if levels == 300:
        assert found.path == "spec.training.epochs"


@pytest.mark.parametrize("written", ["1:30", "01:30", "1:30.5"])
def test_a_number_to_the_base_of_sixty_is_text(written: str, tmp_path: pathlib.Path) -> None:
    found = problem(tmp_path, JOB.replace("epochs: 1", f"maxSteps: {written}"))
    assert found.path == "spec.training.maxSteps"
    assert "integer" in found.message
    assert f'found "{written}"' in found.message


@pytest.mark.parametrize("written, steps", [("0x1f", 31), ("0b11", 3), ("010", 8), ("1_000", 1000), ("+7", 7)])
def test_other_forms_of_integers_are_read_as_by_kubectl(written: str, steps: int, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("epochs: 1", f"maxSteps: {written}"))
    assert jobs.read(file).spec.training.max_steps == steps


@pytest.mark.parametrize(
    "old, new, path, words",
    [
        ("name: tone", "name: 123", "metadata.name", "must be text: write '123'"),
        ("name: tone", "name: true", "metadata.name", "reads it as true"),
        ("name: tone", "name: no", "metadata.name", "reads it as false, as it does yes, no, on and off"),
        ("name: tone", "name: [a]", "metadata.name", 'must be text; found ["a"]'),
        ("name: tone", "{}", "metadata.name", "is missing"),
        ("name: tone", "name: " + "a" * 300, "metadata.name", "at most 253"),
        ("name: tone", "name: tone\n  namespace: 5", "metadata.namespace", "write '5'"),
        ("name: tone", "name: tone\n  annotations: [a, b]", "metadata.annotations", "an object of texts"),
        ("name: tone", "name: tone\n  annotations: text", "metadata.annotations", "an object of texts"),
        ("name: tone", "name: tone\n  annotations: {a: 1}", "metadata.annotations.a", "write '1'"),
        ("name: tone", "name: tone\n  labels: {a: [1]}", "metadata.labels.a", "must be text"),
        ("  name: tone", "  - tone", "metadata", "an object with a name"),
        ("{source: base}", "{source: 5}", "spec.baseModel.source", "write '5'"),
        ("{source: base}", "{source: !!binary aGk=}", "spec.baseModel.source", "has the tag !!binary"),
        ("{source: base}", "!!set {source}", "spec.baseModel", "has the tag !!set"),
        ("{source: base}", "{source: !!python/name:os.system }", "spec.baseModel.source", "!!python/name:os.system"),
        ("{source: base}", "{source: !mine x}", "spec.baseModel.source", "has the tag !mine"),
        ("name: tone", "name: 2024-01-01", "metadata.name", "must begin with a letter"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_what_to_write(
    old: str, new: str, path: str, words: str, tmp_path: pathlib.Path
) -> None:
    found = problem(tmp_path, JOB.replace(old, new))
    assert found.path == path
    assert words in found.message


def test_a_character_that_yaml_does_not_have_is_named_with_its_line(tmp_path: pathlib.Path) -> None:
    found = problem(tmp_path, JOB.replace("source: base", "source: 'base\x07'"))
    assert "U+0007" in found.message
    assert found.line == JOB.partition("source: base")[0].count("\n") + 1


def test_a_message_does_not_repeat_its_field(tmp_path: pathlib.Path) -> None:
    assert problem(tmp_path, JOB.replace("name: tone", "name: 2024-01-01")).text.count("metadata.name") == 1


def test_a_job_as_kubectl_prints_it_is_run_without_its_status(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "job.yaml"
    server = "  uid: abc\n  resourceVersion: '5'\n  generation: 1\n  managedFields: [{manager: kubectl}]\n"
    file.write_text(JOB.replace("  name: tone\n", "  name: tone\n" + server) + "status: {phase: Ready}\n")
    assert jobs.read(file).document.name == "tone"


def test_a_list_as_kubectl_prints_it_has_the_job_among_its_items(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "job.yaml"
    indented = JOB.replace("\n", "\n    ").rstrip()
    file.write_text(f"apiVersion: v1\nkind: List\nitems:\n-   {indented}\n")
    assert jobs.read(file).document.name == "tone"
    file.write_text("apiVersion: v1\nkind: List\nitems: 5\n")
    with pytest.raises(documents.Invalid, match="found nothing"):
        jobs.read(file)


def test_a_manifest_in_utf_16_is_read_and_other_encodings_are_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(JOB.encode("utf-16"))
    assert jobs.read(file).document.name == "tone"
    file.write_bytes(b"\xef\xbb\xbf" + JOB.encode())
    assert jobs.read(file).document.name == "tone"
    assert "is not UTF-8" in problem(tmp_path, JOB.replace("tone", "töne").encode("latin-1")).message


def test_data_beside_the_job_are_not_parsed_as_manifests(tmp_path: pathlib.Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "a" * 40, "completion": "b"}] * 30_000))
    begun = time.monotonic()
    found = problem(tmp_path, JOB.replace("{source: base}", "{name: missing}"))
    assert time.monotonic() - begun < 20
    assert found.path == "spec.baseModel.name"


def test_a_file_too_large_for_a_manifest_is_not_read_whole(tmp_path: pathlib.Path) -> None:
    assert "is it a manifest?" in problem(tmp_path, "a: b\n" * 2**20).message


@pytest.mark.parametrize("name", [".", "n" * 300 + ".yaml"])
def test_a_folder_or_an_impossible_name_is_no_manifest(
    name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["advise", str(tmp_path / name)]) == answer.Exit.INVALID
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "source, words",
    [
        ("org/some-model", "for a model of the hub write hf://org/some-model"),
        ("./models/some-model", "models/some-model does not exist"),
        ("job.yaml", "is the file"),
    ],
)
def test_a_base_model_that_is_no_folder_is_named_with_its_line(source: str, words: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("source: base", f"source: {source}"))
    with pytest.raises(documents.Invalid) as caught:
        jobs.read(file).check_model()
    [found] = caught.value.problems
    assert (found.path, found.line) == ("spec.baseModel.source", 6)
    assert words in found.message
    assert ("hf://" in found.message) is (source == "org/some-model")
