"""The other side of a delivery, in a stage of the job: an adapter goes to one pod of a pool, and is waited for on all of them.

The stage has downloaded the adapter with its own credentials; the pods get none. Pods copy it from each other, so one upload is
enough. A pod answers 404 until the operator's index has the adapter.
"""

import dataclasses
import pathlib
import socket
import time

import pydantic

from finetune_api import layout, reasons, serving
from finetune_trainer.gateway import archive
from finetune_trainer.process import errors, http, log, signals
from finetune_trainer.store import folders

PAUSE = 1.0
"""Seconds between two looks at the pods."""

STRAGGLERS = 30.0
"""Seconds for pods that do not answer, once another one is ready: they serve nobody, and copy the adapter when they start."""

UPLOAD_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class Delivered:
    """The adapter on every pod that serves.

    endpoints: base URLs of OpenAI's API, without /v1, one for each pod: http://ADDRESS:DELIVERY_PORT/adapters/SHA256
    key: their bearer token
    model: the adapter's name there; the base model has its own name (`ResolvedBaseModel.name`)
    """

    endpoints: tuple[str, ...]
    key: str
    model: str


def deliver(
    folder: pathlib.Path,
    sha256: str,
    pool_host: str,
    *,
    patience: float = 600.0,
    port: int = serving.DELIVERY_PORT,
) -> Delivered:
    """Delivers the adapter in `folder`, and waits until every serving pod of the pool has loaded it.

    folder: the adapter's files with their manifest.json, as `stages.fetch` leaves them
    sha256: of manifest.json, the adapter's name in the index
    pool_host: DNS name of the pool's headless Service
    patience: seconds for all of it: until the pool has a pod, the index has the adapter, the engines have loaded it

    Raises:
        Failure: AdapterIncompatible where a pod refuses the files, AdapterNotServed where an engine refuses them, ServerFailed
            when the patience is over.
    """
    manifest = (folder / layout.MANIFEST).read_bytes()
    found = folders.parse(manifest, str(folder))
    if found.sha256 != sha256:
        raise folders.Corrupt(f"{folder}: the manifest's SHA-256 is {found.sha256}, expected {sha256}")
    files = [(name, folder / name) for name in (layout.MANIFEST, *(file.path for file in found.files))]
    key, deadline, ready_since = serving.verify_key(manifest), time.monotonic() + patience, 0.0
    while True:
        signals.check()
        pods = [_look(address, port, sha256) for address in _addresses(pool_host, port)]
        ready = [pod for pod in pods if pod.state == "Ready"]
        now = time.monotonic()
        ready_since = (ready_since or now) if ready else 0.0
        patient = now - ready_since < STRAGGLERS
        if ready and not any(pod.waited_for(patient) for pod in pods):
            return Delivered(tuple(f"{pod.url}/adapters/{sha256}" for pod in ready), key, sha256)
        if now > deadline:
            raise _too_late(pool_host, sha256, pods, patience)
        if not any(pod.state in ("Ready", "Loading") for pod in pods):
            _upload(pods, files, sha256)
        time.sleep(PAUSE)


@dataclasses.dataclass(frozen=True)
class Pod:
    """One pod as it was seen. state: of the adapter; Unlisted: its index has not the adapter; Silent: it does not answer."""

    url: str
    state: str
    message: str = ""
    serving: bool = False

    def waited_for(self, patient: bool) -> bool:
        """Whether a delivery is not complete without this pod."""
        return (self.state == "Silent" and patient) or (self.serving and self.state != "Ready")


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(address[0]) for *_, address in found})


def _look(address: str, port: int, sha256: str) -> Pod:
    """Raises Failure where the engine has refused the adapter."""
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
    try:
        with http.Server(url, seconds=10, size=serving.STATE_BYTES) as server:
            state = serving.State.model_validate(server.ask("/state"))
    except (http.Failed, pydantic.ValidationError) as error:
        return Pod(url, "Silent", errors.describe(error))
    for adapter in state.adapters:
        if adapter.sha256 == sha256:
            if adapter.state == "Failed":
                raise errors.Failure(
                    reasons.Reason.ADAPTER_NOT_SERVED, f"the engine of {url} refuses the adapter: {adapter.message}"
                )
            return Pod(url, adapter.state, adapter.message, state.engine_ready)
    return Pod(url, "Unlisted", f"its index ({state.etag or 'none yet'}) has not the adapter", state.engine_ready)


def _upload(pods: list[Pod], files: list[tuple[str, pathlib.Path]], sha256: str) -> None:
    """To the first pod that takes it, if one does. Raises Failure where the files are refused."""
    for pod in sorted(pods, key=lambda pod: not pod.serving):
        if pod.state != "Missing":
            continue
        try:
            with http.Server(pod.url, seconds=UPLOAD_SECONDS, size=1 << 20) as server:
                size = archive.size(files)
                server.put(f"/adapters/{sha256}", archive.pieces(files), size, seconds=UPLOAD_SECONDS)
        except http.Failed as failed:
            if failed.status in (400, 413, 422):
                raise errors.Failure(
                    reasons.Reason.ADAPTER_INCOMPATIBLE, f"the pool refuses the adapter: {failed}"
                ) from failed
            log.warning("a pod did not take the adapter; another one is tried", pod=pod.url, problem=str(failed))
        else:
            log.info("adapter delivered", pod=pod.url, bytes=size)
            return


def _too_late(host: str, sha256: str, pods: list[Pod], patience: float) -> errors.Failure:
    states = "; ".join(f"{pod.url}: {pod.state}{f' ({pod.message})' if pod.message else ''}" for pod in pods[:5])
    seen = states or f"{host} has no address: the pool has no pods"
    return errors.Failure(
        reasons.Reason.SERVER_FAILED,
        f"the pool has not loaded adapter {sha256[:12]} on all pods after {patience:.0f} s. Seen last: {seen}. Check the pods "
        "of the ServingPool, and that its index reaches them.",
    )
