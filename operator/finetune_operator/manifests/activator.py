"""What takes the requests for a job's own servers while none of them is ready: a Deployment of the gateway alone, and the Service
by which it reaches the servers of whatever release serves."""

from finetune_api import deployment
from finetune_operator import settings
from finetune_operator.manifests import gateway, meta, service
from finetune_operator.observe import label, parents
from finetune_operator.observe.records import Release


def name_of_servers(name: str) -> str:
    """The Service of the servers alone: the job's own leads to the activator while there are none."""
    return f"{name}-servers"


def is_of(parent: parents.Parent, manifest: meta.Manifest) -> bool:
    """Whether the job serves without this object, and only its servers do not sleep."""
    place = manifest["kind"], manifest["metadata"]["name"]
    return place in {
        ("Deployment", gateway.name_of_activator(parent.name)),
        ("Service", name_of_servers(parent.name)),
    }


def build(
    parent: parents.Parent, chart: settings.Settings, serves: Release, idle: deployment.Idle
) -> list[meta.Manifest]:
    """The Deployment, with the digest of its spec, and the Service without one."""
    secret = serves.deployment.api_key_secret
    item = {"key": "API_KEY", "path": parent.namespace}
    volumes = [{"name": "keys", "secret": {"secretName": secret, "items": [item]}}] if secret else []
    mounts = [{"name": "keys", "mountPath": gateway.KEYS, "readOnly": True}] if secret else []
    container = gateway.container(
        chart,
        [
            f"--pool={parent.namespace}/{parent.name}",
            f"--peers={name_of_servers(parent.name)}.{parent.namespace}.svc",
            f"--base-model={serves.base_model.name}",
            f"--model={serves.served_model_name}",
            f"--grace={gateway.GRACE_SECONDS}",
            *([f"--keys={gateway.KEYS}"] if secret else []),
            gateway.hold(idle),
        ],
        mounts,
    )
    labels = meta.labels(parent, chart.labels)
    metadata = meta.owned(parent, gateway.name_of_activator(parent.name), labels)
    made = gateway.activator(parent, chart, metadata, container, volumes, serves.storage.service_account_name)
    selector = {label.UID: parent.uid, label.RELEASE: serves.name}
    return [gateway.scaled(made), service.to(parent, chart, name_of_servers(parent.name), selector)]
