"""`helm test`: every operator that is ready answers, exactly one leads, and the API server accepts a FineTuneJob.

Runs in a pod of the operator's image with nothing but the standard library. The job is a server-side dry run: it goes through
schema, defaults and rules of the CRDs, and is not stored.
"""

import json
import os
import pathlib
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request

ACCOUNT = pathlib.Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
PATIENCE = float(os.environ.get("PATIENCE", "60"))
"""Seconds to wait for a leader: after an upgrade the next one first fills its caches."""


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def leaders(host: str, port: int) -> tuple[int, int]:
    """How many operators answer, and how many of them are leader. Raises OSError if one of them does not answer."""
    found = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    leading = 0
    for address in found:
        base = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        get(f"{base}/healthz")
        get(f"{base}/readyz")
        leading += "\nfinetune_leader 1.0" in get(f"{base}/metrics")
    return len(found), leading


def operators(host: str, port: int) -> str:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            found, leading = leaders(host, port)
            seen = f"{found} operators answer, {leading} of them are leader"
            if leading == 1:
                return seen
        except OSError as error:
            seen = f"http://{host}:{port} does not answer: {error}"
        if time.monotonic() > end:
            raise SystemExit(
                f"{seen} after {PATIENCE:.0f} s; expected one leader: read the logs of the operator's pods"
            )
        time.sleep(1)


def accepted(namespace: str) -> str:
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "helm-test"},
        "spec": {
            "baseModel": {"name": "any"},
            "dataset": {"train": ["s3://bucket/train.jsonl"]},
            "storage": {"output": "s3://bucket/output"},
        },
    }
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs?dryRun=All&fieldValidation=Strict"
    head = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"}
    request = urllib.request.Request(server + path, json.dumps(job).encode(), head)
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=30, context=trusted) as answer:
            made = json.load(answer)
    except urllib.error.HTTPError as error:
        hint = "; are the CRDs installed? kubectl apply --server-side -f crds/" if error.code == 404 else ""
        raise SystemExit(f"a FineTuneJob in {namespace} is refused: {error.read().decode()[:2000]}{hint}") from None
    if made["spec"].get("training", {}).get("method") != "LoRA":
        raise SystemExit("the API server sets no defaults: the CRDs are not those of this chart; apply crds/ again")
    return f"the API server accepts a FineTuneJob in {namespace}, and sets its defaults"


def main() -> None:
    host, port, namespace = sys.argv[1:]
    print(operators(host, int(port)))
    print(accepted(namespace))


if __name__ == "__main__":
    main()
