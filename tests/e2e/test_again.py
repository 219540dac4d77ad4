"""A job that a GitOps tool pruned and applied again: what it left in S3 saves the training while the data are the same.

Changed data are trained on again: tests/trainer/test_again.py.
"""

from support import site as sites
from support.site import BUCKET, NAMESPACE, Site

NAME = "pruned"


def completed(site: Site, data: str) -> sites.Job:
    site.apply(NAME, site.spec(data))
    return site.until_condition(NAME, "Complete", seconds=300)


def pruned(site: Site) -> None:
    site.kube.run("delete", "finetunejob", NAME, "--namespace", NAMESPACE, "--timeout=60s")


def trained(site: Site, job: sites.Job) -> bool:
    """Whether the job's training pod made steps."""
    [pod] = site.pods(NAME, stage="train", uid=job["metadata"]["uid"])
    return '"message": "step"' in site.logs(pod["metadata"]["name"])


def test_unchanged_data_are_not_trained_on_again(site: Site) -> None:
    data = site.upload_rows("pruned/train.jsonl", sites.chats(60))
    first = completed(site, data)
    assert trained(site, first)
    pruned(site)
    left = site.objects.names(f"s3://{BUCKET}/output/{NAMESPACE}/{NAME}/")
    assert any(name.endswith("adapter_model.safetensors") for name in left)
    assert any(name.endswith("report.html") for name in left)

    second = completed(site, data)
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["status"]["artifacts"]["adapter"] == first["status"]["artifacts"]["adapter"]
    assert second["status"]["evaluation"] == first["status"]["evaluation"]
    assert not trained(site, second)
    site.delete(NAME)
