"""The only module that uses the Kubernetes API, through the official client: reads, watches, applies, deletes."""

import asyncio
import contextlib
import json
import os
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import pydantic_core
from kubernetes.aio import client, config

from finetune_api import API_VERSION, GROUP, VERSION
from finetune_operator import clock
from finetune_operator.observe import label

Raw = dict[str, Any]

PATHS = {
    "FineTuneJob": (f"apis/{GROUP}/{VERSION}", "finetunejobs"),
    "BaseModel": (f"apis/{GROUP}/{VERSION}", "basemodels"),
    "ServingPool": (f"apis/{GROUP}/{VERSION}", "servingpools"),
    "Job": ("apis/batch/v1", "jobs"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "Service": ("api/v1", "services"),
    "Pod": ("api/v1", "pods"),
    "Event": ("api/v1", "events"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "Ingress": ("apis/networking.k8s.io/v1", "ingresses"),
    "HTTPRoute": ("apis/gateway.networking.k8s.io/v1", "httproutes"),
    "InferencePool": ("apis/inference.networking.k8s.io/v1", "inferencepools"),
    "InferenceModelRewrite": ("apis/llm-d.ai/v1alpha2", "inferencemodelrewrites"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "Workload": ("apis/kueue.x-k8s.io", "workloads"),
}
REVIEW = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
"""Every authenticated user may create it."""
UNPREPARED = {"FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox"}
"""Reasons of the events of a pod that its node cannot prepare."""
UNVERSIONED = {"Workload"}
"""Kinds that are read in the API server's preferred version: Kueue's version has changed, the fields used here have not."""

OUTAGES = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""The API server is unreachable: transient, retried by the caller."""


class Failure(Exception):
    """The API server refused a request. `status` is the HTTP status, `args[0]` its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Lapsed(OSError):
    """This replica is no longer leader and must not write: another one may be active."""


class Expired(Exception):
    """The watch's resourceVersion is too old: list again."""


def path_of(kind: str, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
    prefix, plural = PATHS[kind]
    parts = [prefix, *(["namespaces", namespace] if namespace else []), plural, name, subresource]
    return "/" + "/".join(part for part in parts if part)


def _owners(raw: Raw) -> set[str]:
    return {owner["uid"] for owner in raw["metadata"].get("ownerReferences") or []}


class Cluster:
    """The API server, with the rights of the operator's ServiceAccount (or of the kubeconfig outside a cluster).

    `clock` is its clock. `may_write`: whether this replica is still leader; called right before each change.
    """

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self.clock = clock.Clock()
        self.may_write: Callable[[], bool] = lambda: True

    @classmethod
    async def connect(cls) -> "Cluster":
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config()
        else:
            await config.load_kube_config()
        api = client.ApiClient()
        if not urllib.request.getproxies():
            # Otherwise each request looks up proxies and ~/.netrc in threads, which takes twice the CPU of the request
            # itself.
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
        self.clock.observe(response.headers.get("Date"))
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
        """One request and its response.

        Raises:
            Failure: the API server refused.
            OUTAGES: it could not be reached.
        """
        response = await self._send(method, path, query, body, content)
        answer: Raw = pydantic_core.from_json(await response.read())
        return answer

    async def _change(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Raw | None = None,
        content: str = "application/json",
    ) -> Raw:
        """A request that only the leader may send. Raises Lapsed, one of OUTAGES, in addition to `request`'s errors."""
        if not self.may_write():
            raise Lapsed("this replica no longer holds the lease: nothing is written")
        return await self.request(method, path, query, body, content)

    async def _place(self, kind: str, namespace: str | None) -> str:
        """The path of all objects of a kind."""
        path = path_of(kind, namespace)
        if kind not in UNVERSIONED:
            return path
        prefix, _ = PATHS[kind]
        group = await self.request("GET", f"/{prefix}")
        return path.replace(f"/{prefix}/", f"/apis/{group['preferredVersion']['groupVersion']}/", 1)

    async def pages(self, kind: str, namespace: str | None, selector: str = "") -> AsyncIterator[tuple[list[Raw], str]]:
        """Objects of a kind, at most 500 at a time, and the resourceVersion to watch from, which is the same for all pages."""
        path = await self._place(kind, namespace)
        query = {"limit": "500", **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self.request("GET", path, query)
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
            response = await self._send("GET", await self._place(kind, namespace), query, patience=330)
        except Failure as failure:
            raise (Expired() if failure.status == 410 else failure) from None
        buffer = b""
        async with response:
            async for chunk in response.content.iter_any():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = pydantic_core.from_json(line)
                    if event["type"] == "ERROR":
                        code = event["object"].get("code", 0)
                        raise Expired() if code == 410 else Failure(code, event["object"].get("message", ""))
                    yield event["type"], event["object"]

    async def apply(self, manifest: Raw, force: bool) -> Raw:
        """Server-side apply as the operator's field manager: creates the object, or sets the fields that it owns.

        Raises: Failure: status 409 when another manager owns one of these fields, and `force` is false.
        """
        meta = manifest["metadata"]
        path = path_of(manifest["kind"], meta.get("namespace"), meta["name"])
        query = {"fieldManager": label.MANAGER, "force": "true" if force else "false"}
        return await self._change("PATCH", path, query, manifest, "application/apply-patch+yaml")

    async def create(self, manifest: Raw) -> Raw:
        """Create an object that is never changed afterwards. If an object of this name and owner exists, it was created by a
        request whose response was lost: it is returned unchanged.

        Raises:
            Failure: status 409 when an object of somebody else has this name.
        """
        kind, meta = manifest["kind"], manifest["metadata"]
        query = {"fieldManager": label.MANAGER, "fieldValidation": "Strict"}
        try:
            return await self._change("POST", path_of(kind, meta["namespace"]), query, manifest)
        except Failure as failure:
            found = await self.find(kind, meta["namespace"], meta["name"]) if failure.status == 409 else None
            if found is None or _owners(found) != _owners(manifest):
                raise
            return {"kind": kind, **found}  # a list leaves the kind out

    async def may(self, verb: str, kind: str, namespace: str) -> bool:
        """Whether the operator's rights allow this, according to the API server's authorizer. True if this cannot be checked.

        The Status of a refusal does not show it: a missing right and a refusal by admission both have the reason Forbidden,
        with the same details.
        """
        prefix, plural = PATHS[kind]
        group = prefix.split("/")[1] if prefix.startswith("apis/") else ""
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plural}
        body = {**REVIEW, "spec": {"resourceAttributes": attributes}}
        try:
            review = await self.request("POST", f"/apis/{REVIEW['apiVersion']}/selfsubjectaccessreviews", body=body)
        except Failure:
            return True
        return bool(review["status"]["allowed"])

    async def find(self, kind: str, namespace: str | None, name: str) -> Raw | None:
        """The object of this name, from the API server, by a list: `get` would be another right."""
        page = await self.request("GET", path_of(kind, namespace), {"fieldSelector": f"metadata.name={name}"})
        return next(iter(page.get("items") or []), None)

    async def exists(self, kind: str, namespace: str | None, name: str, uid: str) -> bool:
        """Whether the object with this uid still exists."""
        found = await self.find(kind, namespace, name)
        return found is not None and found["metadata"]["uid"] == uid

    async def delete(self, kind: str, namespace: str, name: str, version: str | None = None) -> None:
        """Delete; a Job stays visible until its pods have ended, so that the next attempt can wait for them.

        Raises:
            Failure: status 409 when `version` is given and the object has changed since.
        """
        body: Raw = {"propagationPolicy": "Foreground" if kind == "Job" else "Background"}
        if version is not None:
            body["preconditions"] = {"resourceVersion": version}
        try:
            await self._change("DELETE", path_of(kind, namespace, name), body=body)
        except Failure as failure:
            if failure.status != 404:
                raise

    async def patch_status(
        self, namespace: str, name: str, version: str, changes: Raw, kind: str = "FineTuneJob"
    ) -> Raw:
        """Merge-patch the status of a FineTuneJob or ServingPool, if it is still at `version`.

        Raises:
            Failure: status 409 when it has changed since; 404 when it is gone.
        """
        body = {"metadata": {"resourceVersion": version}, "status": changes}
        path = path_of(kind, namespace, name, "status")
        return await self._change("PATCH", path, {"fieldManager": label.MANAGER}, body, "application/merge-patch+json")

    async def refusal(self, namespace: str, job_uid: str) -> str:
        """Why the API server refuses the pods of a Job, from the Job controller's last event; empty if it does not."""
        selector = f"involvedObject.uid={job_uid},reason=FailedCreate"
        events = await self.request("GET", path_of("Event", namespace), {"fieldSelector": selector})
        messages = [str(e.get("message", "")) for e in events.get("items") or []]
        return messages[-1].removeprefix("Error creating: ") if messages else ""

    async def unprepared(self, namespace: str, pod: str) -> str:
        """Why a node cannot prepare a pod (volumes, network), in the words of the pod's newest event; empty if that is another
        one, for example of the pull of an image."""
        selector = f"involvedObject.kind=Pod,involvedObject.name={pod}"
        events = await self.request("GET", path_of("Event", namespace), {"fieldSelector": selector})
        found: list[Raw] = events.get("items") or []
        newest = max(found, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""), default={})
        return str(newest.get("message", "")) if newest.get("reason") in UNPREPARED else ""

    async def event(self, regarding: Raw, kind: str, reason: str, message: str, of: str = "FineTuneJob") -> None:
        """Record an event. `kind`: Normal or Warning; `of`: the kind of the object."""
        meta = regarding["metadata"]
        now = self.clock.now()
        stamp = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        body: Raw = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{now.timestamp():.6f}", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": of,
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": label.MANAGER},
            "reportingComponent": label.MANAGER,
            "reportingInstance": os.environ.get("POD_NAME", label.MANAGER),
            "action": reason,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        await self._change("POST", path_of("Event", meta["namespace"]), body=body)
