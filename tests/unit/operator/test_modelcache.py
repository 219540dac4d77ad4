"""The claim on which pods share base models: who may write to it, who reads, and which pods have nothing to do with it."""

import re
from typing import Any

import pytest

from finetune_api import run
from finetune_api.reasons import Stage
from finetune_operator import settings
from support import templates

LOADING = (Stage.BASELINE, Stage.TRAIN, Stage.EVALUATE)
CACHE = {"modelCache": {"claimName": "models", "size": "500Gi"}}
SOURCES = ["hf://a/b", "s3://models/b"]


def mounts(container: dict[str, Any]) -> dict[str, bool]:
    """Path -> whether it can be written."""
    return {one["mountPath"]: not one.get("readOnly", False) for one in container["volumeMounts"]}


def claims(template: dict[str, Any]) -> list[str]:
    found = [one.get("persistentVolumeClaim", {}).get("claimName") for one in template["spec"]["volumes"]]
    return [name for name in found if name]


def keys(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", "by reference") for one in container["env"]}


@pytest.mark.parametrize("which", [*LOADING, None])
@pytest.mark.parametrize("source", SOURCES)
def test_only_the_container_that_fetches_can_write_to_the_cache(which: Stage | None, source: str) -> None:
    base = {"source": source, "accessTokenSecret": "hub"}
    made = templates.of(which, templates.chart(**CACHE), base=base)
    fetch, *others = templates.containers(made)
    assert claims(made) == ["models"]
    assert (fetch["name"], fetch["image"]) == ("fetch", "reg/fetch:1")
    assert fetch["args"][:3] == ["fetch", "--run", run.PATH]
    assert fetch["args"][-4:] == ["--cache", run.CACHE_PATH, "--cache-size", "500Gi"]
    assert fetch["args"][fetch["args"].index("--base-to") + 1] == run.MODEL_PATH
    assert mounts(fetch)[run.CACHE_PATH] is mounts(fetch)["/models"] is mounts(fetch)["/tmp"] is True
    assert keys(fetch)["HF_TOKEN"] == "by reference"
    assert others
    for one in others:
        assert mounts(one)[run.CACHE_PATH] is mounts(one)["/models"] is False, one["name"]
        assert one["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_stage_knows_where_its_model_is_and_a_server_holds_the_lock() -> None:
    values = templates.chart(**CACHE)
    assert keys(templates.of(Stage.TRAIN, values)["spec"]["containers"][0])[run.FETCHED] == run.MODEL_PATH
    server = templates.of(None, values)["spec"]["containers"][0]
    without = templates.of(None, templates.chart())["spec"]["containers"][0]
    assert server["command"][:2] == ["python3", "-c"]
    assert server["command"][3:] == without["command"]
    assert server["args"] == without["args"]


@pytest.mark.parametrize("which", [Stage.TRAIN, None])
def test_what_fetches_holds_no_gpus_and_is_within_every_quota(which: Stage | None) -> None:
    wanted = {"gpus": 2, "requests": {"cpu": "4", "memory": "16Gi"}}
    fetch, main = templates.containers(templates.of(which, templates.chart(**CACHE), wanted))
    assert main["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in {**fetch["resources"]["requests"], **fetch["resources"]["limits"]}
    assert fetch["resources"]["requests"] == {"cpu": "4", "memory": "16Gi"}
    assert fetch["resources"]["limits"] == {"memory": "16Gi"}


@pytest.mark.parametrize("which", [Stage.PREFLIGHT, Stage.VERIFY])
def test_stages_that_load_no_weights_do_not_wait_for_the_claim(which: Stage) -> None:
    assert templates.of(which, templates.chart(**CACHE)) == templates.of(which, templates.chart())


@pytest.mark.parametrize("which", [*LOADING, None])
def test_a_model_on_a_claim_of_its_own_is_not_copied(which: Stage | None) -> None:
    own = {"source": "pvc://own/llama"}
    assert templates.of(which, templates.chart(**CACHE), base=own) == templates.of(which, templates.chart(), base=own)


@pytest.mark.parametrize("which", [*LOADING, None])
def test_the_weights_of_the_cache_need_no_disk_of_the_pod(which: Stage | None) -> None:
    eight = {"parameters": 8_000_000_000}
    made = templates.of(which, templates.chart(**CACHE), base=eight)
    assert templates.amounts(made)["requests"]["ephemeral-storage"] == "2Gi"
    alone = templates.of(which, templates.chart(), base=eight)
    assert templates.amounts(alone)["requests"]["ephemeral-storage"] == "19Gi"


def test_a_namespace_has_a_claim_of_its_own_or_none() -> None:
    def claim(**by_namespace: str) -> settings.ModelClaim | None:
        cache = {"claimName": "models", "claimNameByNamespace": by_namespace}
        return templates.chart(modelCache=cache).model_claim("ml")

    assert claim() == settings.ModelClaim(name="models")
    assert claim(ml="fast", others="slow") == settings.ModelClaim(name="fast")
    assert claim(ml="") is None
    assert templates.chart().model_claim("ml") is None


def test_several_pods_that_train_together_all_have_the_model_before_they_start() -> None:
    made = templates.of(Stage.TRAIN, templates.chart(**CACHE), {"gpus": 8}, nodes=4)
    fetch, main = templates.containers(made)
    assert mounts(fetch)[run.CACHE_PATH] is True
    assert "/dev/shm" in mounts(main)
    assert "/dev/shm" not in mounts(fetch)


def test_no_name_of_a_volume_or_container_is_used_twice() -> None:
    for which in (*LOADING, None):
        spec = templates.of(which, templates.chart(**CACHE), {"gpus": 2})["spec"]
        for names in (
            [one["name"] for one in spec["volumes"]],
            [one["name"] for one in [*spec["initContainers"], *spec["containers"]]],
        ):
            assert len(names) == len(set(names)), which
            assert all(re.fullmatch("[a-z0-9-]+", name) for name in names)
