"""What the pods of a job may do, and how they are started: every property that safety or vLLM depends on."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from finetune_api import arguments as vllm_arguments
from finetune_api import basemodel, job, run, status
from finetune_api.reasons import Stage
from finetune_operator import revisions, settings
from finetune_operator.manifests import deployment, meta, modelcache, pods, release, service, sidecar, stages
from finetune_operator.observe import label, parents, projections
from support import manifests

CHART = settings.Settings.model_validate(
    {
        "images": {"trainer": "reg/trainer:1", "fetch": "reg/fetch:1", "serving": "reg/vllm:1"},
        "imagePullSecrets": ["pull"],
        "gpuTypes": {
            "nvidia-l4": {
                "nodeSelector": {"gpu": "l4"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            }
        },
        "serving": {"args": ["--max-num-seqs=8"], "env": {"VLLM_LOG": "1"}, "requests": {"memory": "8Gi"}},
        "labels": {"cost-centre": "42", "app.kubernetes.io/managed-by": "somebody"},
    }
)
ADAPTER = status.Adapter(uri="s3://acme/out/adapter", sha256="ab" * 32, bytes=1, rank=16, chat_template=True)
NAME = "support-tone"


def spec(**changes) -> job.FineTuneJobSpec:
    raw = manifests.changed(manifests.MINIMAL, **{f"spec.{path}": value for path, value in changes.items()})
    return job.FineTuneJobSpec.model_validate(raw["spec"])


def parent(name: str = NAME) -> parents.Parent:
    raw = manifests.changed(
        manifests.MINIMAL, **{"metadata.name": name, "metadata.namespace": "ml", "metadata.uid": "u-1"}
    )
    return parents.parent(raw)


def base(source: str = "hf://Qwen/Qwen2.5-7B-Instruct", **more) -> run.ResolvedBaseModel:
    return run.ResolvedBaseModel(name="qwen2.5-7b-instruct", source=source, **more)


def run_of(wanted: job.FineTuneJobSpec, of: run.ResolvedBaseModel) -> run.Run:
    return run.Run(
        name=NAME, namespace="ml", revision="12345678", evaluation_hash="abcdef12", base_model=of, dataset=wanted.dataset,
        storage=wanted.storage, training=wanted.training, evaluation=wanted.evaluation, intent=wanted.intent,
        served_model_name=NAME,
    )  # fmt: skip


def stage(
    which: Stage = Stage.TRAIN,
    of: run.ResolvedBaseModel | None = None,
    key: str | None = None,
    nodes: int = 1,
    queue: str | None = None,
    chart: settings.Settings = CHART,
    beside: sidecar.Plan | None = None,
    **changes,
) -> dict:
    wanted = spec(**changes)
    return stages.build(
        parent(), chart, run_of(wanted, of or base()),
        name="n", stage=which, attempt=2, wanted=wanted.resources, arguments=["--attempt", "2"], nodes=nodes,
        queue=queue, api_key_secret=key, server=beside,
    )  # fmt: skip


PLAN = sidecar.Plan(image=None, arguments=("--max-model-len=4096", "--tensor-parallel-size=8"), rank=20)


def asking(**more) -> dict:
    """An evaluation that asks a server beside it."""
    return stage(Stage.EVALUATE, beside=PLAN, **more)


def server(
    of: run.ResolvedBaseModel | None = None,
    adapter: status.Adapter = ADAPTER,
    chart: settings.Settings = CHART,
    **changes,
) -> dict:
    wanted = spec(**changes)
    content = run_of(wanted, of or base())
    made = release.build("r", content=content, adapter=adapter, spec=wanted, chart=chart, canary=None)
    return deployment.build(parent(), chart, made, content, 2)


def pod_of(manifest: dict) -> dict:
    return manifest["spec"]["template"]["spec"]


def containers(manifest: dict) -> list[dict]:
    return [*pod_of(manifest).get("initContainers", []), *pod_of(manifest)["containers"]]


def environment(container: dict) -> dict:
    return {e["name"]: e.get("value", e.get("valueFrom", {}).get("secretKeyRef")) for e in container["env"]}


EVERYTHING = [
    *[pytest.param(stage(which), id=which) for which in Stage],
    pytest.param(stage(nodes=2), id="train on two nodes"),
    pytest.param(asking(), id="evaluation that asks a server"),
    pytest.param(server(), id="server"),
]


# -- the restricted Pod Security Standard, and more --


@pytest.mark.parametrize("manifest", EVERYTHING)
def test_every_pod_is_allowed_by_the_restricted_standard(manifest: dict) -> None:
    whole = pod_of(manifest)["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] == whole["runAsGroup"] == whole["fsGroup"] == 65532
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(manifest):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod_of(manifest))
    kinds = {kind for volume in pod_of(manifest)["volumes"] for kind in volume} - {"name"}
    assert kinds <= {"emptyDir", "downwardAPI", "persistentVolumeClaim"}


@pytest.mark.parametrize("manifest", EVERYTHING)
def test_with_a_read_only_root_tmp_is_writable_and_home(manifest: dict) -> None:
    for container in containers(manifest):
        assert environment(container)["HOME"] == environment(container)["TMPDIR"] == "/tmp"
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert "readOnly" not in mounts["/tmp"]
    names = {volume["name"] for volume in pod_of(manifest)["volumes"]}
    used = {mount["name"] for container in containers(manifest) for mount in container["volumeMounts"]}
    assert used <= names


@pytest.mark.parametrize("manifest", EVERYTHING)
def test_no_pod_of_a_job_has_a_token_or_an_account_of_its_own(manifest: dict) -> None:
    assert pod_of(manifest)["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod_of(manifest), "the namespace's default one"
    assert not any("projected" in volume for volume in pod_of(manifest)["volumes"])


@pytest.mark.parametrize("manifest", EVERYTHING)
def test_pods_learn_nothing_of_the_services_around_them(manifest: dict) -> None:
    assert pod_of(manifest)["enableServiceLinks"] is False


@pytest.mark.parametrize("manifest", EVERYTHING)
def test_the_kubelet_keeps_the_last_lines_of_every_container(manifest: dict) -> None:
    assert all(c["terminationMessagePolicy"] == "FallbackToLogsOnError" for c in containers(manifest))


@pytest.mark.parametrize("make", [stage, server])
def test_a_chosen_service_account_is_used_without_its_token(make: Callable[..., dict]) -> None:
    made = pod_of(make(**{"storage.serviceAccountName": "chosen"}))
    assert (made["serviceAccountName"], made["automountServiceAccountToken"]) == ("chosen", False)


# -- the run file --


def notified(manifest: dict) -> run.Run:
    """The run file as the pods see it, found by the way that the kubelet goes."""
    template = manifest["spec"]["template"]
    (volume,) = [v["downwardAPI"] for v in pod_of(manifest)["volumes"] if "downwardAPI" in v]
    (item,) = volume["items"]
    for container in containers(manifest):
        if "--run" in container.get("args", []):
            (mount,) = [m for m in container["volumeMounts"] if m["name"] == "run"]
            assert f"{mount['mountPath']}/{item['path']}" == container["args"][container["args"].index("--run") + 1]
    key = re.fullmatch(r"metadata\.annotations\['(.+)'\]", item["fieldRef"]["fieldPath"])
    assert key
    return run.Run.model_validate_json(template["metadata"]["annotations"][key[1]])


@pytest.mark.parametrize("manifest", EVERYTHING)
def test_the_run_file_travels_with_the_pod_and_is_a_file_in_it(manifest: dict) -> None:
    content = notified(manifest)
    assert (content.name, content.namespace, content.revision) == (NAME, "ml", "12345678")


def test_only_stages_that_evaluate_get_evaluation_settings() -> None:
    judged = {"evaluation.maximumExamples": 7, "intent.goals": ["Style"]}
    for which in Stage:
        same = meta.hash_of(stage(which, **judged)) == meta.hash_of(stage(which))
        assert same is (which in {Stage.TRAIN, Stage.VERIFY}), "an edit of the rest leaves a Job where it is"
    assert notified(stage(Stage.EVALUATE, **judged)).evaluation.maximum_examples == 7


def test_the_server_of_a_release_is_the_same_after_an_edit_of_the_spec() -> None:
    content = run_of(spec(), base())
    made = release.build("r", content=content, adapter=ADAPTER, spec=spec(), chart=CHART, canary=None)
    later = run_of(spec(**{"training.seed": 9, "evaluation.maximumExamples": 7}), base())
    assert deployment.build(parent(), CHART, made, content, 1) == deployment.build(parent(), CHART, made, later, 1)
    earlier = made.model_copy(update={"run_file": None})
    assert notified(deployment.build(parent(), CHART, earlier, content, 1)) == content.without_judgement()


# -- secrets --


def test_secrets_travel_by_reference_only() -> None:
    secrets = {"storage.credentialsSecret": "s3", "deployment.apiKeySecret": "key"}
    gated = base(access_token_secret="hf")
    container = containers(stage(Stage.VERIFY, of=gated, key="key", **secrets))[0]
    seen = environment(container)
    assert seen["AWS_ACCESS_KEY_ID"] == {"name": "s3", "key": "AWS_ACCESS_KEY_ID", "optional": False}
    assert seen["AWS_SECRET_ACCESS_KEY"] == {"name": "s3", "key": "AWS_SECRET_ACCESS_KEY", "optional": False}
    assert seen["AWS_SESSION_TOKEN"]["optional"] is True
    assert "HF_TOKEN" not in seen
    assert environment(containers(stage(of=gated))[0])["HF_TOKEN"] == {"name": "hf", "key": "HF_TOKEN"}
    assert seen["API_KEY"] == {"name": "key", "key": "API_KEY"}
    assert not any("key" in argument.lower() for argument in container["args"])


def test_the_judges_key_is_for_the_evaluation_alone() -> None:
    judge = {"evaluation.judge": {"endpoint": "https://judge.example/v1", "model": "wise", "apiKeySecret": "judge"}}
    for one in Stage:
        seen = environment(containers(stage(one, **judge))[0])
        assert seen.get("JUDGE_API_KEY") == ({"name": "judge", "key": "API_KEY"} if one is Stage.EVALUATE else None)
    assert "JUDGE_API_KEY" not in environment(containers(stage(Stage.EVALUATE))[0])


def test_the_keys_of_candidates_are_for_the_stages_that_ask_them() -> None:
    large = {"name": "gpt-large", "endpoint": "https://models.example/v1", "model": "wise", "apiKeySecret": "models"}
    open_ = {"name": "own", "endpoint": "http://own.ml:8000/v1", "model": "wise"}
    for one in Stage:
        seen = environment(containers(stage(one, **{"evaluation.candidates": [large, open_]}))[0])
        asks = one in (Stage.BASELINE, Stage.EVALUATE)
        keys = {name: value for name, value in seen.items() if name.startswith("CANDIDATE_API_KEY_")}
        assert keys == ({"CANDIDATE_API_KEY_GPT_LARGE": {"name": "models", "key": "API_KEY"}} if asks else {})


def test_the_key_of_the_prompt_optimizer_is_for_the_stages_that_ask_it() -> None:
    wise = {"endpoint": "https://models.example/v1", "model": "wise", "apiKeySecret": "models"}
    for one in Stage:
        seen = environment(containers(stage(one, **{"intent.prompt.optimizer": wise}))[0])
        asks = one in (Stage.BASELINE, Stage.EVALUATE)
        assert seen.get("OPTIMIZER_API_KEY") == ({"name": "models", "key": "API_KEY"} if asks else None)


def test_the_server_gets_no_storage_keys_and_its_api_key_by_environment() -> None:
    secrets = {"storage.credentialsSecret": "s3", "deployment.apiKeySecret": "key"}
    fetch, vllm = containers(server(of=base(access_token_secret="hf"), **secrets))
    assert {"AWS_ACCESS_KEY_ID", "HF_TOKEN"} <= set(environment(fetch))
    assert not {"AWS_ACCESS_KEY_ID", "HF_TOKEN"} & set(environment(vllm))
    assert environment(vllm)["VLLM_API_KEY"] == {"name": "key", "key": "API_KEY"}
    assert not any("api-key" in argument for argument in vllm["args"])


def test_without_secrets_the_pods_use_their_own_identity() -> None:
    for container in [*containers(stage()), *containers(server())]:
        assert not any("valueFrom" in variable for variable in container["env"])


def test_the_run_file_holds_no_secret() -> None:
    wanted = spec(**{"storage.credentialsSecret": "s3"})
    content = notified(stages.build(
        parent(), CHART, run_of(wanted, base(access_token_secret="hf")),
        name="n", stage=Stage.TRAIN, attempt=1, wanted=wanted.resources, arguments=[],
    ))  # fmt: skip
    assert content.storage.credentials_secret == "s3"  # the name, for messages
    assert content.revision == "12345678"


# -- names, labels, owners --


def test_every_name_fits_for_a_job_of_forty_characters() -> None:
    long = parent("n" * 40)
    wanted = revisions.want(spec(), "", None)
    names = [meta.stage_job(long, wanted, which, 99) for which in Stage]
    names += [f"{meta.stage_job(long, wanted, Stage.TRAIN, 999)}-63"]  # the host name of the last of 64 pods
    names += [meta.release(long, wanted), meta.nodes_service(long, "1" * 8)]
    assert max(map(len, names)) <= 63
    assert len(set(names)) == len(names)


def test_children_belong_to_the_job_and_block_its_foreground_deletion() -> None:
    children = [
        stage(),
        server(),
        service.build(parent(), CHART, "s", "r"),
        service.nodes(parent(), CHART, "12345678"),
    ]
    for child in children:
        assert child["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "name": NAME, "uid": "u-1",
                "controller": True, "blockOwnerDeletion": True,
            }
        ]  # fmt: skip
        labels = child["metadata"]["labels"]
        assert (labels[label.UID], labels["cost-centre"]) == ("u-1", "42")
        assert labels["app.kubernetes.io/managed-by"] == "finetune-operator", "the chart's labels must not hide ours"


def test_a_service_selects_the_pods_of_one_release_only() -> None:
    made = service.build(parent(), CHART, NAME, "r")
    labels = server()["spec"]["template"]["metadata"]["labels"]
    assert made["spec"]["selector"].items() <= labels.items()
    assert made["spec"]["selector"] == {label.UID: "u-1", label.RELEASE: "r"}
    assert server()["spec"]["selector"]["matchLabels"] == made["spec"]["selector"]
    assert service.endpoint(parent(), NAME) == f"http://{NAME}.ml.svc:8000"


# -- stages --


def test_an_attempt_is_one_pod_that_only_evictions_replace() -> None:
    made = stage()["spec"]
    assert (made["backoffLimit"], made["podReplacementPolicy"]) == (0, "Failed")
    assert pod_of(stage())["restartPolicy"] == "Never"
    assert made["podFailurePolicy"]["rules"] == [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]


def test_several_nodes_are_one_indexed_job_whose_first_pod_decides_the_success() -> None:
    made = stage(nodes=4)["spec"]
    assert (made["completionMode"], made["completions"], made["parallelism"]) == ("Indexed", 4, 4)
    assert (made["backoffLimit"], made["podReplacementPolicy"]) == (0, "Failed")
    assert made["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert made["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_job_in_a_queue_is_suspended_and_labelled_and_its_pods_are_as_ever(nodes: int) -> None:
    free, queued = stage(nodes=nodes), stage(nodes=nodes, queue="team-a")
    assert "suspend" not in free["spec"]
    assert queued["spec"].pop("suspend") is True
    assert queued["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name") == "team-a"
    assert meta.hash_of(free) != meta.hash_of(queued)
    queued["metadata"]["annotations"] = free["metadata"]["annotations"]
    assert queued == free


def test_every_node_learns_its_number_how_many_they_are_and_where_the_first_is() -> None:
    made = stage(nodes=4, **{"resources.gpus": 2})
    variables = {v["name"]: v for v in containers(made)[0]["env"]}
    assert variables["FINETUNE_NODES"]["value"] == "4"
    assert variables["FINETUNE_NODE"]["valueFrom"] == {
        "fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}
    }
    assert variables["FINETUNE_RENDEZVOUS"]["value"] == f"n-0.{NAME}-12345678-nodes.ml.svc:29500"
    assert pod_of(made)["subdomain"] == f"{NAME}-12345678-nodes"
    assert containers(made)[0]["resources"]["limits"]["nvidia.com/gpu"] == "2", "the GPUs are those of one node"
    assert variables["FINETUNE_GPUS"]["value"] == "2", "so that the trainer can see whether they are visible"


def test_the_service_of_the_nodes_gives_each_a_name_before_it_is_ready() -> None:
    made = service.nodes(parent(), CHART, "12345678")
    assert made["metadata"]["name"] == pod_of(stage(nodes=2))["subdomain"]
    assert (made["spec"]["clusterIP"], made["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert [port["port"] for port in made["spec"]["ports"]] == [29500]
    selector = made["spec"]["selector"]
    assert selector.items() <= stage(nodes=2)["spec"]["template"]["metadata"]["labels"].items()
    for other in [stage(which) for which in Stage if which is not Stage.TRAIN] + [server()]:
        assert not selector.items() <= other["spec"]["template"]["metadata"]["labels"].items()


def test_a_single_node_learns_nothing_of_this() -> None:
    made = stage()
    assert not {v["name"] for v in containers(made)[0]["env"]} & {
        "FINETUNE_NODES",
        "FINETUNE_NODE",
        "FINETUNE_RENDEZVOUS",
    }
    assert not {"completions", "parallelism", "completionMode", "successPolicy"} & set(made["spec"])
    assert "subdomain" not in pod_of(made)


def test_the_command_line_of_a_stage() -> None:
    container = containers(stage())[0]
    assert container["args"] == ["train", "--run", "/etc/finetune/run.json", "--attempt", "2"]
    assert "command" not in container
    assert pod_of(stage())["terminationGracePeriodSeconds"] == 120


@pytest.mark.parametrize("which, image", [(Stage.PREFLIGHT, "reg/trainer:1"), (Stage.VERIFY, "reg/fetch:1")])
def test_verification_needs_the_slim_image_only(which: Stage, image: str) -> None:
    assert containers(stage(which))[0]["image"] == image


def test_a_gpu_type_stands_for_a_selector_and_tolerations_which_the_job_may_add_to() -> None:
    made = stage(
        **{
            "resources.gpuType": "nvidia-l4",
            "resources.gpus": 2,
            "resources.nodeSelector": {"zone": "a"},
            "resources.tolerations": [{"key": "spot", "operator": "Exists"}],
            "resources.requests": {"cpu": "4", "memory": "32Gi"},
            "resources.priorityClassName": "high",
        }
    )
    pod = pod_of(made)
    assert pod["nodeSelector"] == {"gpu": "l4", "zone": "a"}
    assert [t["key"] for t in pod["tolerations"]] == ["nvidia.com/gpu", "spot"]
    assert pod["priorityClassName"] == "high"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert containers(made)[0]["resources"] == {
        "requests": {"cpu": "4", "memory": "32Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "32Gi", "nvidia.com/gpu": "2"},
    }
    assert "/dev/shm" in [mount["mountPath"] for mount in containers(made)[0]["volumeMounts"]]


def test_an_unknown_gpu_type_selects_a_node_that_does_not_exist() -> None:
    assert pod_of(stage(**{"resources.gpuType": "abacus"}))["nodeSelector"] == {
        "finetune.dev/unknown-gpu-type": "abacus"
    }


def test_a_job_without_gpus_asks_for_none() -> None:
    assert containers(stage(**{"resources.gpus": 0}))[0]["resources"] == {"requests": {}, "limits": {}}


def test_a_base_model_on_a_claim_is_mounted_read_only() -> None:
    claim = base("pvc://models/qwen/7b")
    for manifest in (stage(of=claim), server(of=claim)):
        volume = next(v for v in pod_of(manifest)["volumes"] if v["name"] == "base")
        assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
        for container in containers(manifest):
            mount = next(m for m in container["volumeMounts"] if m["name"] == "base")
            assert mount == {"name": "base", "mountPath": "/models/base", "readOnly": True, "subPath": "qwen/7b"}
    assert "--base-to" not in containers(server(of=claim))[0]["args"]
    assert pods.base_volume(base("pvc://models"))[1] == [
        {"name": "base", "mountPath": "/models/base", "readOnly": True}
    ]


def test_verification_needs_no_base_model() -> None:
    assert "base" not in [v["name"] for v in pod_of(stage(Stage.VERIFY, of=base("pvc://models/7b")))["volumes"]]


def keys_of(container: dict) -> dict[str, str]:
    """Variables with keys of S3 -> the Secret that they come from."""
    return {
        one["name"]: one["valueFrom"]["secretKeyRef"]["name"]
        for one in container["env"]
        if one["name"].endswith("AWS_ACCESS_KEY_ID")
    }


def test_each_store_has_its_own_keys_in_the_stages_that_use_it() -> None:
    changes = {"storage.credentialsSecret": "writer", "dataset.storage": {"credentialsSecret": "reader"}}
    of = base("s3://models/qwen", storage=job.Connection(credentials_secret="models"))
    own, model, data = (
        {"AWS_ACCESS_KEY_ID": "writer"}, {"BASE_MODEL_AWS_ACCESS_KEY_ID": "models"}, {"DATA_AWS_ACCESS_KEY_ID": "reader"}
    )  # fmt: skip
    for which in (Stage.PREFLIGHT, Stage.BASELINE, Stage.EVALUATE):
        assert keys_of(containers(stage(which, of=of, **changes))[0]) == own | model | data
    assert keys_of(containers(stage(Stage.TRAIN, of=of, **changes))[0]) == own | model
    assert keys_of(containers(stage(Stage.VERIFY, of=of, **changes))[0]) == own
    fetch, vllm = containers(server(of=of, **changes))
    assert keys_of(fetch) == own | model
    assert keys_of(vllm) == {}


def test_claims_with_data_are_mounted_read_only_where_data_are_read() -> None:
    changes = {
        "dataset.train": ["pvc://rows/a/*.jsonl", "pvc://rows/b.jsonl", "pvc://more/c.jsonl", "s3://acme/d.jsonl"]
    }
    for which in (Stage.PREFLIGHT, Stage.BASELINE, Stage.EVALUATE):
        made = stage(which, **changes)
        claims = [v["persistentVolumeClaim"] for v in pod_of(made)["volumes"] if "persistentVolumeClaim" in v]
        assert claims == [{"claimName": "more", "readOnly": True}, {"claimName": "rows", "readOnly": True}]
        mounts = {
            m["mountPath"]: m["readOnly"] for m in containers(made)[0]["volumeMounts"] if "/data/" in m["mountPath"]
        }
        assert mounts == {"/data/more": True, "/data/rows": True}
    assert not any("persistentVolumeClaim" in v for v in pod_of(stage(Stage.TRAIN, **changes))["volumes"])


@pytest.mark.parametrize("by_job", [False, True])
def test_a_bundle_of_authorities_is_mounted_in_every_stage_and_where_models_are_fetched(by_job: bool) -> None:
    changes = {"storage.caBundle": {"configMap": "company-ca", "key": "bundle.pem"}} if by_job else {}
    chart = CHART.model_copy(update={"ca_bundle": job.CaBundle(config_map="platform-ca")})
    name, key = ("company-ca", "bundle.pem") if by_job else ("platform-ca", "ca.crt")
    made = [stage(which, chart=chart, **changes) for which in Stage] + [server(chart=chart, **changes)]
    for manifest in made:
        [volume] = [one for one in pod_of(manifest)["volumes"] if one["name"] == "ca"]
        assert volume["configMap"] == {"name": name, "items": [{"key": key, "path": "ca.crt"}]}
        first = containers(manifest)[0]
        assert {"name": "ca", "mountPath": "/etc/finetune-ca", "readOnly": True} in first["volumeMounts"]
        assert {"name": "FINETUNE_CA_BUNDLE", "value": "/etc/finetune-ca/ca.crt"} in first["env"]
    assert not any(one["name"] == "ca" for manifest in (stage(), server()) for one in pod_of(manifest)["volumes"])


# -- the server --


def test_the_command_line_of_the_server() -> None:
    vllm = containers(server(**{"deployment.extraArgs": ["--max-model-len=4096"], "deployment.resources.gpus": 2}))[1]
    assert vllm["command"] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert vllm["args"] == [
        "--model=/models/base",
        "--served-model-name=qwen2.5-7b-instruct",
        "--port=8000",
        "--enable-lora",
        "--lora-modules=support-tone=/models/adapter",
        "--max-lora-rank=16",
        "--chat-template=/models/adapter/chat_template.jinja",
        "--tensor-parallel-size=2",
        "--max-num-seqs=8",
        "--max-model-len=4096",
    ]
    assert environment(vllm)["HF_HUB_OFFLINE"] == "1"
    assert environment(vllm)["VLLM_LOG"] == "1"


@pytest.mark.parametrize(
    ("given", "split"),
    [
        ([], "--tensor-parallel-size=4"),
        (["--data-parallel-size=2"], "--tensor-parallel-size=2"),
        (["--pipeline-parallel-size", "2"], "--tensor-parallel-size=2"),
        (["--data-parallel-size=2", "--pipeline-parallel-size=2"], None),
    ],
)
def test_copies_and_pipeline_stages_share_the_gpus_of_the_pod(given: list[str], split: str | None) -> None:
    vllm = containers(server(**{"deployment.extraArgs": given, "deployment.resources.gpus": 4}))[1]
    assert [one for one in vllm["args"] if one.startswith("--tensor-parallel-size")] == ([split] if split else [])


def test_the_catalogues_arguments_stand_between_the_operators_and_the_jobs() -> None:
    made = containers(server(of=base(extra_args=["--dtype=half"]), **{"deployment.extraArgs": ["--dtype=auto"]}))[1]
    assert made["args"][-3:] == ["--max-num-seqs=8", "--dtype=half", "--dtype=auto"]


@pytest.mark.parametrize("rank, limit", [(8, 8), (16, 16), (17, 32), (64, 64), (256, 256), (257, 320)])
def test_the_rank_limit_is_one_that_vllm_takes(rank: int, limit: int) -> None:
    adapter = ADAPTER.model_copy(update={"rank": rank, "chat_template": False})
    arguments = containers(server(adapter=adapter))[1]["args"]
    assert f"--max-lora-rank={limit}" in arguments
    assert not any(argument.startswith("--chat-template") for argument in arguments)


def test_the_adapter_is_fetched_by_its_hash_before_the_server_starts() -> None:
    fetch = containers(server())[0]
    assert fetch["image"] == "reg/fetch:1"
    assert fetch["args"] == [
        "fetch", "--run", "/etc/finetune/run.json", "--adapter", "s3://acme/out/adapter", "--sha256", "ab" * 32,
        "--adapter-to", "/models/adapter", "--base-to", "/models/base",
    ]  # fmt: skip


def test_every_container_of_the_server_asks_for_memory_so_that_quotas_let_it_in() -> None:
    assert [c["resources"]["requests"].get("memory") for c in containers(server())] == ["8Gi", "8Gi"]
    fetch, vllm = containers(server(**{"deployment.resources": {"gpus": 1, "requests": {"memory": "64Gi"}}}))
    assert fetch["resources"] == {"requests": {"memory": "64Gi"}, "limits": {"memory": "64Gi"}}
    assert vllm["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "1"}


def test_the_server_is_probed_before_it_gets_requests_and_stops_after_draining() -> None:
    vllm = containers(server())[1]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert vllm[probe]["httpGet"] == {"path": "/health", "port": 8000}
    assert vllm["startupProbe"]["periodSeconds"] * vllm["startupProbe"]["failureThreshold"] >= 3600
    shm = next(v for v in pod_of(server())["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


def test_servers_of_a_release_are_spread_over_nodes() -> None:
    (spread,) = pod_of(server())["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert spread["labelSelector"]["matchLabels"] == server()["spec"]["selector"]["matchLabels"]


def stopped(script: str, counts: list[str]) -> tuple[int, int]:
    """Exit code of a server's preStop hook, and how often it asked; the server has these counts, one after the other."""
    asked = list[str]()

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            count = counts[min(len(asked), len(counts)) - 1]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'# HELP x\nvllm:num_requests_running{{engine="0"}} {count}\nvllm:other 7.0\n'.encode())

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        mine = script.replace(":8000/", f":{listening.server_port}/").replace("sleep(5)", "sleep(0)")
        ended = subprocess.run([sys.executable, "-c", mine.replace("sleep(1)", "sleep(0)")], check=False, timeout=60)
        listening.shutdown()
    return ended.returncode, len(asked)


def test_a_server_that_ends_finishes_its_answers_within_its_grace_period() -> None:
    vllm = containers(server())[1]
    python, option, script = vllm["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, option) == ("python3", "-c")
    assert stopped(script, ["2.0", "1.0", "0.0"]) == (0, 3)
    assert stopped(script.replace("290", "-1"), ["2.0"]) == (0, 0)
    assert pod_of(server())["terminationGracePeriodSeconds"] > 290 + 5


def test_a_release_is_made_again_from_its_record_alone() -> None:
    content = run_of(spec(), base())
    made = release.build("r", content=content, adapter=ADAPTER, spec=spec(), chart=CHART, canary="c")
    again = release.Release.model_validate_json(made.model_dump_json(by_alias=True))
    later = CHART.model_copy(update={"images": settings.Images(trainer="t", fetch="f", serving="s")})
    assert deployment.build(parent(), later, again, content, 2) == deployment.build(parent(), CHART, made, content, 2)


# -- what was written can be compared --


def test_a_manifest_carries_its_own_digest() -> None:
    assert meta.hash_of(stage()) == meta.hash_of(stage())
    assert meta.hash_of(stage()) != meta.hash_of(stage(**{"resources.requests.cpu": "2"}))
    assert json.dumps(stage()) == json.dumps(stage()), "the same input gives the same bytes"


def test_what_we_would_apply_is_not_drift() -> None:
    fresh = server()
    assert projections.server(fresh).guarded == projections.server(json.loads(json.dumps(fresh))).guarded


# -- a server beside baseline and evaluation --


def test_a_server_beside_the_evaluation_gets_the_gpus_and_splits_the_model_over_them() -> None:
    made = asking(**{"resources.gpus": 2, "resources.requests": {"memory": "40Gi"}})
    fetch, vllm, client = containers(made)
    assert [one["name"] for one in (fetch, vllm, client)] == ["fetch", "server", "finetune"]
    assert vllm["resources"]["limits"] == {"memory": "40Gi", "nvidia.com/gpu": "2"}
    assert vllm["args"].index("--tensor-parallel-size=2") > vllm["args"].index("--tensor-parallel-size=8"), (
        "the last counts"
    )
    assert {"name": "shm", "mountPath": "/dev/shm"} in vllm["volumeMounts"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}} in pod_of(made)["volumes"]
    for other in (fetch, client):
        assert not any("gpu" in name for name in other["resources"]["limits"])
        assert "FINETUNE_GPUS" not in environment(other)
        assert not any(mount["name"] == "shm" for mount in other["volumeMounts"])
    assert made["spec"]["template"]["metadata"]["labels"][label.GPUS] == "2", "the pod holds them, for its cost"


def test_a_server_beside_the_evaluation_is_split_over_as_many_gpus_as_the_models_heads_allow() -> None:
    numbers = {
        **{"layers": 28, "hiddenSize": 3584, "intermediateSize": 18944, "attentionHeads": 28, "keyValueHeads": 4},
        **{"headDim": 128, "vocabularySize": 152064, "maxPositions": 32768},
    }
    of = base(architecture=basemodel.Architecture.model_validate(numbers))
    made = sidecar.arguments(PLAN, of, 8, CHART)
    assert vllm_arguments.value(made, "tensor-parallel-size") == "4"
    assert vllm_arguments.value(sidecar.arguments(PLAN, base(), 8, CHART), "tensor-parallel-size") == "8", "unknown"


def test_the_server_beside_the_evaluation_has_image_and_arguments_of_the_one_that_serves() -> None:
    served = release.build("r", content=run_of(spec(), base()), adapter=ADAPTER, spec=spec(), chart=CHART, canary=None)
    vllm = containers(asking())[1]
    assert vllm["image"] == served.image == "reg/vllm:1"
    own = {"--lora-modules", "--chat-template"}
    shared = [one for one in served.arguments if one.split("=")[0] not in own | {"--max-lora-rank"}]
    assert set(shared) <= set(vllm["args"])
    assert {"--max-lora-rank=32", "--max-model-len=4096", "--enable-prefix-caching"} <= set(vllm["args"])
    assert environment(vllm)["VLLM_LOG"] == "1"
    assert containers(stage(Stage.EVALUATE, beside=sidecar.Plan("mine/vllm:2", (), 8)))[1]["image"] == "mine/vllm:2"


def test_the_server_beside_the_evaluation_is_reached_from_its_pod_alone() -> None:
    vllm, client = containers(asking())[1:]
    assert "--host=127.0.0.1" in vllm["args"]
    assert environment(vllm)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "--server=http://127.0.0.1:8000" in client["args"]
    assert "ports" not in vllm
    assert "127.0.0.1:8000/health" in vllm["startupProbe"]["exec"]["command"][-1]


def test_the_server_beside_the_evaluation_takes_its_model_from_the_cache_and_holds_it() -> None:
    cached = CHART.model_copy(update={"model_cache": settings.ModelCache(claim_name="models", size="500Gi")})
    fetch, vllm, client = containers(asking(chart=cached))
    assert (fetch["name"], fetch["args"][-4:]) == ("fetch", ["--cache", run.CACHE_PATH, "--cache-size", "500Gi"])
    assert vllm["command"][:3] == ["python3", "-c", modelcache.HOLD]
    assert vllm["args"] == containers(asking())[1]["args"]
    for one, writes in ((fetch, True), (vllm, False), (client, False)):
        [claim] = [mount for mount in one["volumeMounts"] if mount["mountPath"] == run.CACHE_PATH]
        assert claim.get("readOnly", False) is not writes, one["name"]
    assert environment(client)[run.FETCHED] == run.MODEL_PATH
    assert {"name": "models", "mountPath": "/models"} in client["volumeMounts"], "for the adapters"


def test_the_evaluation_starts_after_its_server_and_shares_a_volume_with_it() -> None:
    made = asking()
    fetch, vllm, client = containers(made)
    assert vllm["restartPolicy"] == "Always", "a native sidecar"
    assert "startupProbe" in vllm
    assert fetch["args"] == ["fetch", "--run", "/etc/finetune/run.json", "--base-to", "/models/base"]
    assert {"name": "models", "mountPath": "/models"} in fetch["volumeMounts"]
    assert {"name": "models", "mountPath": "/models"} in client["volumeMounts"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in vllm["volumeMounts"]
    assert not {"AWS_ACCESS_KEY_ID", "HF_TOKEN"} & set(environment(vllm))


def test_a_model_on_a_claim_is_mounted_by_both_and_nothing_is_fetched() -> None:
    made = asking(of=base("pvc://weights/qwen"))
    vllm, client = containers(made)
    claim = {"name": "base", "mountPath": "/models/base", "readOnly": True, "subPath": "qwen"}
    assert claim in vllm["volumeMounts"]
    assert claim in client["volumeMounts"]


def test_a_server_on_the_cpu_gets_one_scored_request_at_a_time() -> None:
    assert "--scoring-at-once=1" in containers(asking(**{"resources.gpus": 0}))[-1]["args"]
    assert not any("scoring" in one for one in containers(asking(**{"resources.gpus": 1}))[-1]["args"])
