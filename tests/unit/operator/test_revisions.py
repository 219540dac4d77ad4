"""Which edit means which work, and what never counts as an edit."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from finetune_api import basemodel, evaluation, job, revision
from finetune_operator import revisions
from support import manifests


def spec(**changes) -> job.FineTuneJobSpec:
    raw = manifests.changed(manifests.MINIMAL, **{f"spec.{path}": value for path, value in changes.items()})
    return job.FineTuneJobSpec.model_validate(raw["spec"])


def record(**changes) -> dict:
    """What the status keeps of a spec, read back from its text."""
    return json.loads(json.dumps(revisions.want(spec(**changes), "", None).resolved))


def sections(recorded: dict, wanted: job.FineTuneJobSpec, annotation: str = "") -> set[str]:
    return {section for section, paths in revisions.want(wanted, annotation, recorded).changed.items() if paths}


TRAINS = [
    {"dataset.checks": {"duplicates": "Warn"}},
    {"dataset.train": ["s3://acme/support/other.jsonl"]},
    {"dataset.format": "Chat"},
    {"dataset.test": {"uris": ["s3://acme/test.jsonl"]}},
    {"dataset.validation": {"fraction": 0.1}},
    {"baseModel.name": "llama"},
    {"training.epochs": 2},
    {"training.learningRate": 1e-4},
    {"training.search": {"learningRates": 4}},
    {"training.lora.rank": 32},
    {"training.lora.dropout": 0.1},
    {"training.batchSize": 8},
    {"training.seed": 1},
    {"training.lossOn": "All"},
    {"training.earlyStopping.patience": 5},
    {"training.objective": "DPO"},
    {"training.method": "QLoRA"},
    {"training.objective": "DPO", "training.dpo": {"beta": 0.2}},
]
EVALUATES = [
    {"evaluation.gates": [{"metric": "ExactMatch", "minimum": 0.8}]},
    {"evaluation.baselineBudget": 0.5},
    {"intent.retrieval": {"uris": ["s3://acme/handbook/*.md"]}},
    {"evaluation.maximumExamples": 7},
    {"evaluation.generation.maxNewTokens": 7},
    {"evaluation.judge": {"endpoint": "https://judge.example/v1", "model": "wise"}},
    {"evaluation.candidates": [{"name": "large", "endpoint": "https://models.example/v1", "model": "wise"}]},
    {"intent.prompt.optimizer": {"endpoint": "https://models.example/v1", "model": "wise"}},
]
RELEASES = [
    {"deployment.image": "vllm:2"},
    {"deployment.extraArgs": ["--enforce-eager"]},
    {"deployment.servedModelName": "other"},
    {"deployment.resources.gpus": 2},
    {"deployment.resources.nodeSelector": {"disk": "fast"}},
    {"deployment.apiKeySecret": "key"},
]
SURROUNDS = [
    {"storage.endpoint": "https://minio.example"},
    {"storage.credentialsSecret": "another"},
    {"storage.encryption": "KMS"},
    {"dataset.storage": {"endpoint": "https://archive.example", "credentialsSecret": "reader"}},
    {"resources.gpus": 4},
    {"resources.nodes": 2},
    {"resources.requests.memory": "64Gi"},
    {"resources.nodeSelector": {"disk": "fast"}},
    {"evaluation.resources": {"gpus": 0}},
    {"training.retries": 7},
    {"activeDeadlineSeconds": 7},
]
CHECKS = [{"intent.advice": "Enforce"}, {"dataset.minimumExamples": 7}]
NOTHING = [
    {"suspend": True},
    {"deployment.replicas": 3},
    {"deployment.rollout.strategy": "Recreate"},
    {"deployment.enabled": False},
    {"ttlSecondsAfterFinished": 7},
    {"training.checkpoints.everyMinutes": 1},
    {"training.checkpoints.keep": 9},
]


@pytest.mark.parametrize(
    "edit, section",
    [
        *[(edit, {"training"}) for edit in TRAINS],
        *[(edit, {"evaluation"}) for edit in EVALUATES],
        *[(edit, {"release"}) for edit in RELEASES],
        *[(edit, {"environment"}) for edit in SURROUNDS],
        *[(edit, {"preflight"}) for edit in CHECKS],
        *[(edit, set()) for edit in NOTHING],
    ],
)
def test_an_edit_means_just_this_work_and_so_does_its_return(edit: dict, section: set[str]) -> None:
    assert sections(record(), spec(**edit)) == section
    assert sections(record(**edit), spec()) == section


def test_a_new_value_of_the_run_annotation_means_a_new_revision() -> None:
    assert sections(record(), spec(), "again") == {"training"}


@pytest.mark.parametrize("field", ["prompt", "teacher"])
def test_a_prompt_that_is_trained_with_belongs_to_the_weights(field: str) -> None:
    plain = {"intent.prompt.system": "Sort."}
    trained = plain | {f"training.{field}": "Prompt"}
    assert "prompt" not in record(**plain)["training"], "the hashes of other revisions stay as they are"
    assert sections(record(**plain), spec(**{"intent.prompt.system": "Sort it."})) == {"evaluation"}
    assert sections(record(**plain), spec(**trained)) == {"training"}
    assert sections(record(**trained), spec(**plain)) == {"training"}
    edited = spec(**trained | {"intent.prompt.system": "Sort it."})
    found = revisions.want(edited, "", record(**trained))
    assert {section for section, paths in found.changed.items() if paths} == {"training", "evaluation"}
    assert found.why("training") == "spec.intent.prompt.system changed"
    assert sections(record(**trained), spec(**trained)) == set()


def test_a_candidate_that_teaches_belongs_to_the_weights() -> None:
    def named(**more: Any) -> dict[str, Any]:
        large = {"name": "large", "endpoint": "https://models.example/v1", "model": "wise-70b", **more}
        return {"evaluation.candidates": [large]}

    compared, taught = named(), named() | {"training.teacher": "large"}
    assert "teacher" not in record(**compared)["training"], "the hashes of other revisions stay as they are"
    assert sections(record(**compared), spec(**taught)) == {"training"}
    found = revisions.want(spec(**taught | named(model="wise-400b")), "", record(**taught))
    assert found.why("training") == "spec.evaluation.candidates.model changed"
    priced = spec(**taught | named(pricePerMillionPromptTokens=2.5))
    assert sections(record(**taught), priced) == {"evaluation"}
    assert sections(record(**taught), spec(**taught | named(apiKeySecret="another"))) == {"environment"}


@pytest.mark.parametrize("former", evaluation.FORMER_DEFAULTS, ids=len)
def test_a_baseline_that_is_new_by_default_evaluates_nothing_again(former: list[str]) -> None:
    """A manifest without baselines, replaced after an upgrade, has today's default."""
    recorded = record()
    recorded["evaluation"]["baselines"] = former
    found = revisions.want(spec(), "", recorded)
    assert not any(found.changed.values())
    assert found.evaluation_hash == revision.evaluation_hash(recorded)
    assert sections(recorded, spec(**{"evaluation.baselines": former})) == set(), "applied, it keeps what it had"
    assert sections(recorded, spec(**{"evaluation.baselines": ["Base"]})) == {"evaluation"}
    edited = revisions.want(spec(**{"evaluation.maximumExamples": 7}), "", recorded)
    assert "Optimized" in edited.resolved["evaluation"]["baselines"], "the next evaluation has it"


def test_the_judges_secret_may_be_renamed_without_judging_again() -> None:
    judge = {"endpoint": "https://judge.example/v1", "model": "wise"}
    before = {"evaluation.judge": judge}
    edits = {"evaluation": {"model": "wiser"}, "environment": {"apiKeySecret": "key"}}
    for section, edit in edits.items():
        assert sections(record(**before), spec(**{"evaluation.judge": judge | edit})) == {section}


def test_a_candidates_secret_may_be_renamed_without_asking_it_again() -> None:
    large = {"name": "large", "endpoint": "https://models.example/v1", "model": "wise"}
    edits = {"evaluation": {"pricePerMillionPromptTokens": 2.0}, "environment": {"apiKeySecret": "key"}}
    for section, edit in edits.items():
        before, after = {"evaluation.candidates": [large]}, {"evaluation.candidates": [large | edit]}
        assert sections(record(**before), spec(**after)) == {section}


def test_the_optimizers_secret_may_be_renamed_without_asking_it_again() -> None:
    wise = {"endpoint": "https://models.example/v1", "model": "wise"}
    edits = {"evaluation": {"calls": 300}, "environment": {"apiKeySecret": "key"}}
    for section, edit in edits.items():
        before, after = {"intent.prompt.optimizer": wise}, {"intent.prompt.optimizer": wise | edit}
        assert sections(record(**before), spec(**after)) == {section}


@pytest.mark.parametrize("edit", [*TRAINS, *EVALUATES, *RELEASES])
def test_every_kind_of_work_changes_just_its_own_hash(edit: dict) -> None:
    before, after = revisions.want(spec(), "", None), revisions.want(spec(**edit), "", record())
    names = ("revision", "evaluation_hash", "release_hash")
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    expected = "revision" if edit in TRAINS else "evaluation_hash" if edit in EVALUATES else "release_hash"
    assert changed == [expected]


def test_a_field_that_the_record_lacks_is_unchanged_and_keeps_the_hash() -> None:
    """An operator's upgrade brought a new field with a default."""
    old = record()
    del old["environment"]["resources"]["nodes"]
    del old["training"]["training"]["lossOn"]
    old["training"]["dataset"].pop("format")
    wanted = revisions.want(spec(), "", old)
    assert not any(wanted.changed.values())
    assert wanted.revision == revision.digest(old["training"], 8)
    assert wanted.resolved["training"] == old["training"]


NEW = {"objective", "dpo", "method"}
"""Fields of spec.training that records of the first release lack."""


def of_the_first_release() -> dict:
    """A record as it was written before these fields existed."""
    old = record()
    old["training"]["training"] = {k: v for k, v in old["training"]["training"].items() if k not in NEW}
    del old["environment"]["resources"]["nodes"]
    return old


def test_a_job_of_the_first_release_keeps_its_hash_and_its_record() -> None:
    old = of_the_first_release()
    wanted = revisions.want(spec(), "", old)
    assert not any(wanted.changed.values())
    assert wanted.revision == revision.digest(old["training"], 8)
    assert {section: wanted.resolved[section] for section in old} == old


@pytest.mark.parametrize(
    "edit, section, path",
    [
        ({"training.objective": "DPO"}, "training", "training.objective"),
        ({"training.method": "QLoRA"}, "training", "training.method"),
        ({"resources.nodes": 2}, "environment", "resources.nodes"),
    ],
)
def test_a_new_field_that_is_set_is_an_edit_also_of_a_job_of_the_first_release(edit, section, path) -> None:
    """The record says nothing of it, but it was made with what is the default now."""
    wanted = revisions.want(spec(**edit), "", of_the_first_release())
    assert wanted.changed == {name: [path] if name == section else [] for name in wanted.changed}


def test_a_new_field_deep_in_a_list_is_an_edit_only_when_it_is_set() -> None:
    tolerations = [{"key": "a", "operator": "Exists"}]
    old = record(**{"resources.tolerations": tolerations})
    del old["environment"]["resources"]["tolerations"][0]["effect"]
    del old["environment"]["resources"]["tolerations"][0]["operator"]
    assert sections(old, spec(**{"resources.tolerations": [{"key": "a"}]})) == set()
    wanted = revisions.want(spec(**{"resources.tolerations": [{"key": "a", "effect": "NoSchedule"}]}), "", old)
    assert wanted.changed["environment"] == ["resources.tolerations[0].effect"]


def test_a_field_that_only_the_record_knows_is_unchanged() -> None:
    """A downgrade, or an upgrade that dropped a field."""
    old = record()
    old["training"]["training"]["dora"] = True
    old["evaluation"]["oracle"] = {"model": "x"}
    assert sections(old, spec()) == set()


def test_a_section_that_the_record_lacks_is_unchanged_and_taken_up() -> None:
    old = record()
    del old["preflight"]
    wanted = revisions.want(spec(), "", old)
    assert not any(wanted.changed.values())
    assert "preflight" in wanted.resolved


def test_after_a_real_edit_the_whole_section_is_recorded_again() -> None:
    old = record()
    del old["training"]["training"]["lossOn"]
    wanted = revisions.want(spec(**{"training.seed": 1}), "", old)
    assert wanted.changed["training"] == ["training.seed"]
    assert wanted.resolved["training"]["training"]["lossOn"] == "Assistant"


@pytest.mark.parametrize(
    "recorded, wanted, paths",
    [
        ({"a": None}, {"a": None}, []),
        ({"a": None}, {"a": 1}, ["a"]),
        ({"a": 1}, {"a": None}, ["a"]),
        ({"a": {"b": 1}}, {"a": None}, ["a"]),
        ({"a": None}, {"a": {"b": 1}}, ["a"]),
        ({"a": []}, {"a": None}, []),
        ({"a": None}, {"a": []}, ["a"]),
        ({"a": 0}, {"a": 0.0}, []),
        ({"a": 2e-4}, {"a": 0.0002}, []),
        ({"a": [1, 2]}, {"a": [1, 2]}, []),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["a[0]", "a[1]"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a"]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1, "new": 2}]}, []),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, ["a[0].b"]),
        ({"nodeSelector": {}}, {"nodeSelector": {"a": "b"}}, ["nodeSelector"]),
        ({"nodeSelector": {"a": "b"}}, {"nodeSelector": {}}, ["nodeSelector"]),
        ({"x": {"nodeSelector": {"a": "b"}}}, {"x": {"nodeSelector": {"a": "c"}}}, ["x.nodeSelector"]),
        ({"x": [{"nodeSelector": {}}]}, {"x": [{"nodeSelector": {"a": "c"}}]}, ["x[0].nodeSelector"]),
    ],
)
def test_what_counts_as_a_change(recorded: dict, wanted: dict, paths: list[str]) -> None:
    assert revisions.changes(recorded, wanted, chosen={}) == paths


def test_numbers_as_the_api_server_stores_them_are_no_change() -> None:
    """It writes 0.0 as 0 and 2e-4 as 0.0002; our defaults may be an int where the schema says float."""
    raw = manifests.changed(manifests.MINIMAL, **{"spec.training": {"learningRate": 2e-4, "epochs": 3.0}})["spec"]
    stored = json.loads(json.dumps(job.FineTuneJobSpec.model_validate(raw).wire()))
    stored["training"]["lora"]["dropout"] = 0
    stored["training"]["epochs"] = 3
    first = revisions.want(job.FineTuneJobSpec.model_validate(raw), "", None)
    again = revisions.want(job.FineTuneJobSpec.model_validate_json(json.dumps(stored)), "", first.resolved)
    assert not any(again.changed.values())
    assert again.revision == first.revision


def test_defaults_that_the_api_server_fills_in_are_no_change() -> None:
    written = job.FineTuneJobSpec.model_validate(manifests.MINIMAL["spec"])
    filled = job.FineTuneJobSpec.model_validate(written.wire())
    assert not any(revisions.want(filled, "", revisions.want(written, "", None).resolved).changed.values())


def test_the_order_of_keys_does_not_matter() -> None:
    assert revision.digest({"a": 1, "b": {"c": 1, "d": 2}}) == revision.digest({"b": {"d": 2, "c": 1}, "a": 1})


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(max_size=3),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_nothing_differs_from_itself(value) -> None:
    assert revisions.changes(value, json.loads(json.dumps(value)), chosen=value) == []


def test_every_field_of_the_spec_belongs_to_one_section_or_to_none_on_purpose() -> None:
    """A new field that nobody sorted in would silently mean no work."""
    whole = spec().model_dump(mode="json", by_alias=True)
    assert set(whole) == {
        "intent", "baseModel", "dataset", "storage", "training", "resources", "evaluation", "deployment", "suspend",
        "activeDeadlineSeconds", "ttlSecondsAfterFinished",
    }  # fmt: skip
    inputs = revision.inputs(spec(), "")
    assert set(whole["intent"]) - set(inputs["preflight"]) == {"prompt", "retrieval"}
    assert inputs["evaluation"]["prompt"] == whole["intent"]["prompt"]
    assert set(whole["training"]) - set(inputs["training"]["training"]) == {"retries", "checkpoints"}
    assert set(whole["deployment"]) - set(inputs["release"]) == {
        "enabled", "replicas", "rollout", "approval", "route", "idle",
    }  # fmt: skip
    assert set(whole["evaluation"]) - set(inputs["evaluation"]) == {"resources"}
    assert set(whole["dataset"]) - set(inputs["training"]["dataset"]) == {"minimumExamples", "storage"}


# -- the base model --

ENTRY = basemodel.BaseModelSpec.model_validate(
    manifests.ENTRY["spec"]
    | {
        "revision": "abc",
        "accessTokenSecret": "hf",
        "defaults": {"training": {"learningRate": 1e-4}, "serving": {"extraArgs": ["-x"]}},
    }
)


def test_an_entry_of_the_catalogue_is_resolved_whole() -> None:
    base = revision.resolve(job.BaseModelReference(name="qwen2.5-7b-instruct"), ENTRY)
    assert base is not None
    assert (base.name, base.source, base.revision) == ("qwen2.5-7b-instruct", "hf://Qwen/Qwen2.5-7B-Instruct", "abc")
    assert (base.access_token_secret, base.extra_args, base.learning_rate) == ("hf", ["-x"], 1e-4)


def test_a_revision_that_began_with_the_fixed_learning_rate_keeps_it_until_it_is_trained_again() -> None:
    old = record()
    old["baseModel"] = {"name": "qwen2.5-7b-instruct", "source": "hf://Qwen/Qwen2.5-7B-Instruct"}
    assert revisions.want(spec(), "", old).resolved["baseModel"] == old["baseModel"]
    assert "baseModel" not in revisions.want(spec(**{"training.epochs": 2}), "", old).resolved
    fresh = revision.resolve(job.BaseModelReference(name="qwen2.5-7b-instruct"), ENTRY)
    assert fresh is not None
    assert fresh.learning_rate_rule == "Formula"


def test_a_missing_entry_resolves_to_nothing() -> None:
    assert revision.resolve(job.BaseModelReference(name="x"), None) is None


@pytest.mark.parametrize(
    "source, name", [("hf://Org/My-Model", "my-model"), ("s3://bucket/models/m/", "m"), ("pvc://claim", "claim")]
)
def test_a_source_of_the_jobs_own_needs_no_catalogue(source: str, name: str) -> None:
    base = revision.resolve(job.BaseModelReference(source=source), None)
    assert base is not None
    assert (base.name, base.source) == (name, source)


def test_a_resolved_base_model_stays_while_the_training_section_does() -> None:
    old = record() | {"baseModel": {"name": "m", "source": "hf://old/one"}}
    preserved = revisions.want(spec(**{"deployment.image": "vllm:2"}), "", old)
    assert preserved.resolved["baseModel"]["source"] == "hf://old/one"
    edited = revisions.want(spec(**{"training.seed": 1}), "", old)
    assert "baseModel" not in edited.resolved, "a new revision takes the catalogue as it is then"


@pytest.mark.parametrize("edit", [one for one in TRAINS + EVALUATES + RELEASES + SURROUNDS + CHECKS if len(one) == 1])
def test_a_change_is_named_by_its_field_in_the_manifest(edit: dict[str, Any]) -> None:
    (field,) = edit
    wanted = revisions.want(spec(**edit), "", record())
    assert wanted.why(*wanted.changed).startswith(f"spec.{field}")


def test_an_empty_list_of_gates_is_an_edit_and_an_upgrade_is_none() -> None:
    """Earlier operators recorded an absent list as an empty one; a job that they evaluated is not evaluated again."""
    assert sections(record(), spec(**{"evaluation.gates": []})) == {"evaluation"}
    assert sections(record(**{"evaluation.gates": []}), spec()) == set()
