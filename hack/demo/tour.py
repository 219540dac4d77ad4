"""The demo, step by step: cluster, images, base model, data, chart, job, result. Every step is idempotent."""

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from demo import clock, follow, gateway, install, needs, place, prepare, progress, result
from demo.objects import Objects
from demo.place import Place
from demo.progress import End, Job
from toolbox import cache, say

BUCKET = "finetune-demo"
QUICKSTART = cache.REPOSITORY / "examples" / "quickstart.yaml"
REPORT = cache.REPOSITORY / "out" / "demo" / "report.html"
RUN = "finetune.dev/run"
_INTRODUCTION = """\
One FineTuneJob, from a data file in S3 to an answer of the tuned model, on a real Kubernetes cluster:
cluster -> images of this checkout -> data and base model into S3 -> operator by its Helm chart -> preflight ->
LoRA training of SmolLM2-135M on the CPU -> evaluation against the base -> vLLM serves what passed its gates."""


def run(*, again: bool) -> int:
    """Returns the exit code: 0 when the job serves, 1 when it ended otherwise."""
    given = place.existing()
    machine = needs.look()
    _announce(given, machine)
    needs.require(needs.missing_for_images() if given else needs.missing_locally(machine))
    watch = clock.Clock()

    manifest = yaml.safe_load(QUICKSTART.read_text())
    namespace = manifest["metadata"]["namespace"]
    ready = prepare.existing(given, namespace, watch) if given else prepare.local(watch, cold=not machine.warm)
    where, images = ready.where, ready.images
    store = where.store
    if store is None:
        with watch.step("S3 store: a pod of the demo", "10 s"):
            store = gateway.ensure(where.kube, images["s3"])
    with _objects(where, store) as objects:
        with watch.step("Data and base model into the bucket", "2 s"):
            _upload(objects, manifest, ready.model)
        with watch.step("Operator: CRDs, namespaces, Secret, Helm chart", "15 s"):
            _install(where, store, images, manifest)
        job = _run_job(where, store, manifest, watch, again=again)
        if progress.end(job) is not End.SERVES:
            return _ended_otherwise(where, job, watch, objects)
        with watch.step("The result"):
            _show(where, job, objects)
    _farewell(where, job, watch)
    return 0


def _announce(given: tuple[str, str] | None, machine: needs.Machine) -> None:
    say.line(_INTRODUCTION)
    if given:
        say.line(f"Cluster: from KUBECONFIG={given[0]}; images go through {given[1]}.")
    else:
        say.line(
            f"Cluster: a local node of this machine ({machine.cores} cores, {machine.memory / needs.GIB:.0f} GB of memory"
            f" free, {machine.disk / needs.GIB:.0f} GB of disk free)."
        )
    say.line(
        f"Caches: {cache.root()} (FINETUNE_CACHE). Time: "
        + (
            "about 5 minutes, 1 when the job is done already."
            if machine.warm
            else "10 to 20 minutes at first, 5 later."
        )
    )


@contextmanager
def _objects(where: Place, store: place.ObjectStore) -> Iterator[Objects]:
    if where.store:
        yield Objects(store, store.endpoint)
        return
    with where.kube.forward(f"service/{gateway.NAME}", gateway.PORT, gateway.NAMESPACE) as endpoint:
        yield Objects(store, endpoint)


def _model_source() -> str:
    return f"s3://{BUCKET}/models/{install.MODEL}"


def _upload(objects: Objects, manifest: dict[str, Any], model: Path) -> None:
    objects.make_bucket(BUCKET)
    for uri in manifest["spec"]["dataset"]["train"]:
        path = cache.REPOSITORY / "examples" / "support-desk" / uri.rpartition("/")[2]
        if not objects.upload(path, uri):
            say.line(f"  {uri}: unchanged")
    objects.upload_folder(model, _model_source())


def _install(where: Place, store: place.ObjectStore, images: dict[str, str], manifest: dict[str, Any]) -> None:
    kube = where.kube
    install.crds(kube)
    install.make_namespace(kube, install.SYSTEM)
    install.make_namespace(kube, manifest["metadata"]["namespace"])
    install.credentials(
        kube, manifest["metadata"]["namespace"], manifest["spec"]["storage"]["credentialsSecret"], store
    )
    install.chart(kube, install.values(images, _model_source()))


def _run_job(
    where: Place, store: place.ObjectStore, manifest: dict[str, Any], watch: clock.Clock, *, again: bool
) -> Job:
    kube = where.kube
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    manifest["spec"]["storage"] |= {"endpoint": store.endpoint, "region": store.region}
    before = kube.get("finetunejob", name, namespace)
    known = (before or {}).get("status", {}).get("revision", "")
    what = f"Job {namespace}/{name}"
    if again:
        manifest["metadata"].setdefault("annotations", {})[RUN] = time.strftime("%Y-%m-%dT%H-%M-%S")
    elif before and (asked := before["metadata"].get("annotations", {}).get(RUN)):
        # The run that was requested last time: without the annotation this would be another one.
        manifest["metadata"].setdefault("annotations", {})[RUN] = asked
    with watch.step(f"{what}: kubectl apply -f examples/quickstart.yaml", "4 min"):
        kube.apply(manifest)
        if before and not again:
            say.line("  the job exists: this shows its state (train again: make demo RUN=again)")
        return follow.until_end(kube, name, namespace, watch, not_revision=known if again else "")


def _show(where: Place, job: Job, objects: Objects) -> None:
    say.line("\nBase and tuned model on held-out test examples:\n")
    say.line(result.metrics(job))
    samples = _samples(job, objects)
    say.line("\n" + result.side_by_side(samples[:3]))
    _keep_report(job, objects)
    serving = job["status"]["deployment"]
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    messages = samples[-1]["messages"]
    base = job["spec"]["baseModel"]["name"]
    with where.kube.forward(f"service/{name}", 8000, namespace) as url:
        say.line(f"\nA chat request through Service {namespace}/{name} ({serving['endpoint']}):\n")
        say.line(f"  asked                  {' '.join(result.question(messages).split())}")
        for model in (base, serving["model"]):
            began = time.monotonic()
            answer = result.chat(url, model, messages)
            say.line(f"  {model:<22} {' '.join(answer.split())}   [{time.monotonic() - began:.1f} s]")


def _samples(job: Job, objects: Objects) -> list[dict[str, Any]]:
    status = job["status"]
    root = status["artifacts"]["report"].rpartition("/")[0]
    text = objects.read(f"{root}/evaluation/{status['evaluationHash']}/samples.jsonl").decode()
    return [json.loads(line) for line in text.splitlines()]


def _keep_report(job: Job, objects: Objects) -> None:
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_bytes(objects.read(job["status"]["artifacts"]["report"]))


def _ended_otherwise(where: Place, job: Job, watch: clock.Clock, objects: Objects) -> int:
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    if progress.end(job) is End.FAILED:
        say.line(f"\nThe job failed. {progress.failure(job)}")
    else:
        say.line(f"\nThe job does not serve: its phase is {job['status'].get('phase')}.")
    if job["status"].get("evaluation"):
        say.line("\n" + result.metrics(job))
        _keep_report(job, objects)
        say.line(f"\n  report:     {REPORT.relative_to(cache.REPOSITORY)}")
    say.line(f"\n  look:       export KUBECONFIG={shlex.quote(where.kube.config)}")
    say.line(f"              kubectl -n {namespace} describe finetunejob {name}")
    say.line("  try again:  make demo RUN=again")
    say.line(f"  stop:       {_stop(where)}")
    say.line("\n" + watch.table())
    return 1


def _stop(where: Place) -> str:
    if where.local:
        return "make demo-down"
    return f"make demo-down KUBECONFIG={shlex.quote(where.kube.config)} REGISTRY={where.registry}"


def _farewell(where: Place, job: Job, watch: clock.Clock) -> None:
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    body = json.dumps({"model": job["status"]["deployment"]["model"], "messages": [{"role": "user", "content": "..."}]})
    folder = shlex.quote(str(Path(where.kube.kubectl).parent))
    lines = [
        f"\nReport:       {REPORT.relative_to(cache.REPOSITORY)}",
        f"Explore:      export KUBECONFIG={shlex.quote(where.kube.config)} PATH={folder}:$PATH",
        f"              kubectl -n {namespace} get finetunejobs -o wide",
        f"              kubectl -n {namespace} describe finetunejob {name}",
        "              kubectl explain finetunejob.spec.training",
        f"Try it:       kubectl -n {namespace} port-forward service/{name} 8000 &",
        "              curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\",
        f"                -d {shlex.quote(body)}",
        "Train again:  make demo RUN=again",
        f"Stop:         {_stop(where)}",
    ]
    say.line("\n".join(lines))
    say.line("\nDurations:\n" + watch.table())
