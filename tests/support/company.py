"""What a company has of its own: a store whose certificate is of its own authority, and data on a volume of the node."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from demo import install
from support import authority, stores
from support import site as sites
from support.site import BUCKET, NAMESPACE, Site

BUNDLE, KEYS, SHELF = "company-ca", "company-keys", "shelf"


@contextlib.contextmanager
def storage(site: Site, folder: Path) -> Iterator[dict[str, Any]]:
    """The `storage` of a job with the company's bundle, whose ConfigMap is not there yet (see `publish`). On an existing cluster,
    which does not reach this machine, the store is the site's own."""
    wanted = {**site.spec("s3://x/y")["storage"], "caBundle": {"configMap": BUNDLE}}
    address = urlsplit(site.store.endpoint).hostname if site.local else "127.0.0.1"
    _, certificate, key = authority.issue(folder / "ca", str(address))
    if not site.local:
        yield wanted
        return
    with stores.versity(folder / "store", (certificate, key), str(address)) as store:
        store.client.create_bucket(Bucket=BUCKET)
        for uri in site.objects.names(f"s3://{BUCKET}/models/{sites.MODEL}/"):
            name = uri.removeprefix(f"s3://{BUCKET}/")
            store.client.put_object(Bucket=BUCKET, Key=name, Body=site.objects.read(uri))
        keys = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), stores.ROOT, strict=True))
        site.kube.apply(install.secret(KEYS, NAMESPACE, keys))
        yield {**wanted, "endpoint": store.url, "region": "us-east-1", "credentialsSecret": KEYS}


def publish(site: Site, folder: Path) -> None:
    """The ConfigMap with the bundle, as the platform team would add it."""
    data = {"ca.crt": (folder / "ca" / "ca.crt").read_text()}
    meta = {"name": BUNDLE, "namespace": NAMESPACE}
    site.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})


def shelve(site: Site, folder: Path, rows: list[Any]) -> str:
    """Rows as a file on a static PersistentVolume of the node, and its URI; on an existing cluster in the bucket."""
    if not site.local:
        return site.upload_rows("shelf/train.jsonl", rows)
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.chmod(0o755)
    [node] = site.kube.items("nodes")
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node["metadata"]["name"]]}
    size, modes = {"storage": "1Gi"}, ["ReadOnlyMany"]
    volume = {
        "capacity": size,
        "accessModes": modes,
        "storageClassName": "",
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": NAMESPACE, "name": SHELF},
        "local": {"path": str(folder)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
    }
    claim = {
        "accessModes": modes,
        "storageClassName": "",
        "volumeName": SHELF,
        "resources": {"requests": size},
    }
    meta = {"name": SHELF, "namespace": NAMESPACE}
    site.kube.apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": SHELF}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim},
    )
    return f"pvc://{SHELF}/train.jsonl"
