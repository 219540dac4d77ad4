"""Injected containers on a real node: what a mesh or an agent adds to every pod of a job."""

import pytest

from finetune_operator.observe import label
from support import policies
from support.site import NAMESPACE, Site, chats, condition


@pytest.mark.parametrize("native", [True, False], ids=["native", "classic"])
def test_a_job_succeeds_with_a_sidecar_in_every_pod_and_frees_its_pods(site: Site, native: bool) -> None:
    name = "with-native" if native else "with-classic"
    data = site.upload_rows(f"{name}/train.jsonl", chats(40))
    made = policies.inject_sidecar(NAMESPACE, site.images["trainer"], native=native)
    with policies.in_force(site.kube, made):
        site.apply(name, site.spec(data, training={"maxSteps": 2, "batchSize": 2, "retries": 0}))
        job = site.until_condition(name, "Complete")
    place = "initContainers" if native else "containers"
    pods = site.pods(name)
    assert all(any(c["name"] == policies.SIDECAR for c in pod["spec"].get(place, [])) for pod in pods)
    stages = [run["metadata"]["labels"][label.STAGE] for run in site.jobs(name)]
    assert len(stages) == len(set(stages)), "one attempt of each stage"
    assert condition(job, "Trained")["status"] == "True"

    def freed(_: object) -> bool:
        return not [pod for pod in site.pods(name) if pod["status"]["phase"] == "Running"]

    site.until(name, freed, "no pod of a stage that has ended runs", 150)
