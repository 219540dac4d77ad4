"""The only module that speaks to the Kubernetes API, through the official client: reads, watches, applies, deletes, leads."""

import asyncio
import contextlib
import datetime
import json
import logging
import os
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection import electionconfig, leaderelection
from kubernetes.aio.leaderelection.resourcelock import leaselock

from finetune_api import API_VERSION, GROUP, VERSION

LOG = logging.getLogger(__name__)
MANAGER = "finetune-operator"
Raw = dict[str, Any]

PATHS = {
    "FineTuneJob": (f"apis/{GROUP}/{VERSION}", "finetunejobs"),
    "BaseModel": (f"apis/{GROUP}/{VERSION}", "basemodels"),
    "Job": ("apis/batch/v1", "jobs"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "Service": ("api/v1", "services"),
    "ConfigMap": ("api/v1", "configmaps"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "Pod": ("api/v1", "pods"),
    "Event": ("api/v1", "events"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
}

OUTAGES = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""The API server is away: transient by nature, retried by whoever asked."""

LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, TRY_SECONDS = 15, 6, 2, 2
"""A leader stops at the latest RETRY + RENEW + 2 * TRY + RETRY seconds after its last renewal: before LEASE is over."""


class Failure(Exception):
    """The API server refused a request. `status` is the HTTP status, `args[0]` its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Expired(Exception):
    """The watch's resourceVersion is too old: list again."""


def path_of(kind: str, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
    prefix, plural = PATHS[kind]
    parts = [prefix, *(["namespaces", namespace] if namespace else []), plural, name, subresource]
    return "/" + "/".join(part for part in parts if part)


class Cluster:
    """The API server, with the rights of the operator's ServiceAccount (or of the kubeconfig outside a cluster)."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> "Cluster":
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config()
        else:
            await config.load_kube_config()
        api = client.ApiClient()
        if not urllib.request.getproxies():
            # Else each request asks threads for a proxy and for ~/.netrc: twice the CPU that the request itself takes.
            api.configuration.client_session_kwargs = {"trust_env": False}
        return cls(api)

    async def close(self) -> None:
        await self._api.close()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Raw | None = None,
        content: str = "application/json",
        patience: float = 30,
    ) -> aiohttp.ClientResponse:
        request = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._api.call_api(*request, _request_timeout=patience)
        response: aiohttp.ClientResponse = answer.response
        if response.status >= 400:
            text = await response.text()
            with contextlib.suppress(ValueError):
                text = json.loads(text).get("message", text)
            raise Failure(response.status, text)
        return response

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Raw | None = None,
        content: str = "application/json",
    ) -> Raw:
        """One request and its answer.

        Raises:
            Failure: the API server refused.
            OUTAGES: it could not be reached.
        """
        response = await self._send(method, path, query, body, content)
        answer: Raw = json.loads(await response.read())
        return answer

    async def pages(self, kind: str, namespace: str | None, selector: str = "") -> AsyncIterator[tuple[list[Raw], str]]:
        """Objects of a kind, at most 500 at a time, and the resourceVersion to watch from, which is the same for all pages."""
        query = {"limit": "500", **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self.request("GET", path_of(kind, namespace), query)
            token = page["metadata"].get("continue")
            yield page.pop("items", None) or [], page["metadata"]["resourceVersion"]
            if not token:
                return
            query["continue"] = token

    async def watch(
        self, kind: str, namespace: str | None, selector: str, version: str
    ) -> AsyncIterator[tuple[str, Raw]]:
        """Changes since `version` as (ADDED | MODIFIED | DELETED | BOOKMARK, object), until the server ends the stream.

        Raises:
            Expired: `version` is too old.
        """
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "300",
            **({"labelSelector": selector} if selector else {}),
        }
        try:
            response = await self._send("GET", path_of(kind, namespace), query, patience=330)
        except Failure as failure:
            raise (Expired() if failure.status == 410 else failure) from None
        buffer = b""
        async with response:
            async for chunk in response.content.iter_any():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        code = event["object"].get("code", 0)
                        raise Expired() if code == 410 else Failure(code, event["object"].get("message", ""))
                    yield event["type"], event["object"]

    async def apply(self, manifest: Raw, force: bool) -> Raw:
        """Server-side apply as our field manager: creates, or sets the fields that we own.

        Raises:
            Failure: status 409 when somebody else owns one of these fields, and `force` is false.
        """
        meta = manifest["metadata"]
        path = path_of(manifest["kind"], meta.get("namespace"), meta["name"])
        query = {"fieldManager": MANAGER, "force": "true" if force else "false"}
        return await self.request("PATCH", path, query, manifest, "application/apply-patch+yaml")

    async def exists(self, kind: str, namespace: str | None, name: str, uid: str) -> bool:
        """Whether this very object is still there, asked of the API server itself."""
        page = await self.request("GET", path_of(kind, namespace), {"fieldSelector": f"metadata.name={name}"})
        return any(item["metadata"]["uid"] == uid for item in page.get("items") or [])

    async def delete(self, kind: str, namespace: str, name: str, version: str | None = None) -> None:
        """Delete; a Job stays visible until its pods have ended, so that its successor can wait for them.

        Raises:
            Failure: status 409 when `version` is given and the object has changed since.
        """
        body: Raw = {"propagationPolicy": "Foreground" if kind == "Job" else "Background"}
        if version is not None:
            body["preconditions"] = {"resourceVersion": version}
        try:
            await self.request("DELETE", path_of(kind, namespace, name), body=body)
        except Failure as failure:
            if failure.status != 404:
                raise

    async def patch_status(self, namespace: str, name: str, version: str, changes: Raw) -> Raw:
        """Merge-patch the status of a FineTuneJob, on condition that it is still at `version`.

        Raises:
            Failure: status 409 when it has changed since; 404 when it is gone.
        """
        body = {"metadata": {"resourceVersion": version}, "status": changes}
        path = path_of("FineTuneJob", namespace, name, "status")
        return await self.request("PATCH", path, {"fieldManager": MANAGER}, body, "application/merge-patch+json")

    async def refusal(self, namespace: str, job_uid: str) -> str:
        """Why the API server refuses the pods of a Job, from the Job controller's last event; empty if it does not."""
        selector = f"involvedObject.uid={job_uid},reason=FailedCreate"
        events = await self.request("GET", path_of("Event", namespace), {"fieldSelector": selector})
        messages = [str(e.get("message", "")) for e in events.get("items") or []]
        return messages[-1].removeprefix("Error creating: ") if messages else ""

    async def event(self, regarding: Raw, kind: str, reason: str, message: str) -> None:
        """Record an event. `kind`: Normal or Warning."""
        meta = regarding["metadata"]
        now = datetime.datetime.now(datetime.UTC)
        stamp = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        body: Raw = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{now.timestamp():.6f}", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": "FineTuneJob",
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "reportingInstance": os.environ.get("POD_NAME", MANAGER),
            "action": reason,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        await self.request("POST", path_of("Event", meta["namespace"]), body=body)

    async def lead(
        self, namespace: str, name: str, identity: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Run `work` while holding the Lease; return once it ended or the Lease was lost (then `work` is cancelled)."""
        elected = asyncio.Event()

        async def started() -> None:
            elected.set()

        async def stopped() -> None:
            LOG.error("the lease %s/%s is lost", namespace, name)

        lock = _PatientLock(name, namespace, identity, self._api)
        timing = electionconfig.Config(lock, LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, started, stopped)
        election = asyncio.create_task(leaderelection.LeaderElection(timing).run())
        waiting = asyncio.create_task(elected.wait())
        tasks: set[asyncio.Task[Any]] = {election, waiting}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if elected.is_set():
                working = asyncio.create_task(work())
                tasks.add(working)
                await asyncio.wait({election, working}, return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    working.result()
            if election.done():
                election.result()
        finally:
            for task in tasks:
                task.cancel()
            # Only when nothing of ours is at work any more may somebody else begin.
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._release(namespace, name, identity)

    async def _release(self, namespace: str, name: str, identity: str) -> None:
        """Give the Lease back, so that the other replica need not wait until it expires."""
        path = path_of("Lease", namespace, name)
        try:
            lease = await self.request("GET", path)
            if (lease.get("spec") or {}).get("holderIdentity") == identity:
                body = {
                    "metadata": {"resourceVersion": lease["metadata"]["resourceVersion"]},
                    "spec": {"holderIdentity": None},
                }
                await self.request("PATCH", path, body=body, content="application/merge-patch+json")
        except (Failure, *OUTAGES):
            pass


class _PatientLock(leaselock.LeaseLock):  # type: ignore[misc]
    """A LeaseLock to which an API server that is away or hangs is a failed try, not the end of the process."""

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        try:
            answer: tuple[bool, Any] = await asyncio.wait_for(super().get(name, namespace), TRY_SECONDS)
            return answer
        except OUTAGES as outage:
            return False, ApiException(status=0, reason=str(outage) or "no answer")

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        # not super(): client 37.0 sends `pretty` as a boolean, which its own validation refuses
        body = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        return await self._try(self.api_instance.create_namespaced_lease(namespace, body))

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        # not super(): it logs a traceback whenever the other replica was faster
        assert self.lease_reference is not None
        self.lease_reference.spec = self.update_lease(updated_record, self.lease_reference.spec)
        return await self._try(self.api_instance.replace_namespaced_lease(name, namespace, self.lease_reference))

    @staticmethod
    async def _try(request: Awaitable[Any]) -> bool:
        try:
            await asyncio.wait_for(request, TRY_SECONDS)
            return True
        except (ApiException, *OUTAGES):
            return False
