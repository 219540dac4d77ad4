"""The services beside the cluster: an S3 server (VersityGW over a folder) and a container registry on loopback."""

import json
from pathlib import Path

from localcluster.plan import REGION, Plan
from toolbox import cache, say, shell


def s3(plan: Plan) -> list[str | Path]:
    """S3 listens where the API server does: with a node that is the bridge, which host and pods both reach."""
    data = plan.state / "s3"
    data.mkdir(exist_ok=True)
    return [
        plan.binary("versitygw"),
        f"--port={plan.address}:{plan.ports['s3']}",
        f"--region={REGION}",
        "--quiet",
        "posix",
        data,
    ]


def s3_environment(plan: Plan) -> dict[str, str]:
    return {"ROOT_ACCESS_KEY": plan.access_key, "ROOT_SECRET_KEY": plan.secret_key}


def registry(plan: Plan) -> list[str | Path]:
    """Debian's docker-registry; containerd pulls from a loopback address by plain HTTP without configuration."""
    return ["docker-registry", "serve", _registry_config(plan)]


def collect_garbage(plan: Plan) -> None:
    """Frees the blobs of images that were removed; only possible while the registry does not run."""
    marker = cache.folder("registry") / "garbage"
    if marker.exists():
        say.line("  removing the registry's blobs that no image uses any more")
        shell.run(["docker-registry", "garbage-collect", "--delete-untagged", _registry_config(plan)], check=False)
        marker.unlink()


def _registry_config(plan: Plan) -> Path:
    config = plan.state / "registry.yaml"
    config.write_text(
        json.dumps(
            {
                "version": "0.1",
                "log": {"level": "warn", "accesslog": {"disabled": True}},
                "storage": {
                    "filesystem": {"rootdirectory": str(cache.folder("registry"))},
                    "delete": {"enabled": True},
                    "cache": {"blobdescriptor": "inmemory"},
                },
                "http": {"addr": plan.registry},
            }
        )
    )
    return config
