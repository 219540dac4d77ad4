"""The API server's audit log: which rights a user needed, and for what."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Right = tuple[str, str, str]
"""API group, resource (with its subresource), verb."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One request as the API server saw it."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    code: int
    allowed: bool
    uri: str
    time: str

    def rights(self) -> set[Right]:
        """What authorization it needed. A server-side apply that creates needs `create` besides `patch`, and of an
        authorization that is requested within a request only the code tells."""
        verbs = {self.verb, "create"} if self.verb == "patch" and self.code == 201 else {self.verb}
        return {(self.group, self.resource, verb) for verb in verbs}


def requests(log: Path, user: str, since: str = "") -> list[Request]:
    """The requests of a user for resources, rotated files included, in the order in which they were answered.

    since: a time as the log writes it (RFC 3339, UTC).
    """
    files = [*sorted(log.parent.glob(f"{log.stem}-*{log.suffix}")), log]
    return [one for file in files for one in _of(file) if one.user == user and one.time >= since]


def _of(file: Path) -> Iterator[Request]:
    with file.open() as lines:
        for line in lines:
            try:
                event: dict[str, Any] = json.loads(line)
            except ValueError:  # the last one, half written
                continue
            about = event.get("objectRef")
            if event["stage"] not in {"ResponseComplete", "ResponseStarted"} or about is None:
                continue
            resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
            yield Request(
                user=event["user"].get("username", ""),  # none where the request could not be authenticated
                verb=event["verb"],
                group=about.get("apiGroup", ""),
                resource=resource,
                namespace=about.get("namespace", ""),
                name=about.get("name", ""),
                code=event.get("responseStatus", {}).get("code", 0),
                allowed=event.get("annotations", {}).get("authorization.k8s.io/decision") == "allow",
                uri=event["requestURI"],
                time=event["requestReceivedTimestamp"],
            )
