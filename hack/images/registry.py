"""A registry: whether it answers, whether it has an image; and removing old tags from the local one."""

import http.client
import json
import ssl
import urllib.error
import urllib.request
from typing import cast

_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


def local(host: str) -> bool:
    """Whether a registry speaks plain HTTP by convention: those on loopback do."""
    name = host.rsplit(":", 1)[0]
    return name == "localhost" or name.startswith("127.")


def answers(host: str) -> bool:
    """Whether there is a registry, with a short timeout; one that requires a login counts."""
    return _request("GET", host, "/v2/") is not None


def digest(host: str, repository: str, tag: str) -> str:
    """The digest of an image, empty where the registry has none (or requires a login)."""
    answer = _request("HEAD", host, f"/v2/{repository}/manifests/{tag}")
    return answer.headers.get("Docker-Content-Digest", "") if answer is not None and answer.status == 200 else ""


def remove(host: str, repository: str, tag: str) -> bool:
    """Removes an image from a local registry; its blobs go when the registry collects its garbage."""
    found = digest(host, repository, tag)
    if not found or not local(host):
        return False
    answer = _request("DELETE", host, f"/v2/{repository}/manifests/{found}")
    return answer is not None and answer.status == 202


def tags(host: str, repository: str) -> list[str]:
    answer = _request("GET", host, f"/v2/{repository}/tags/list")
    if answer is None or answer.status != 200:
        return []
    return list(json.loads(answer.read()).get("tags") or [])


def _request(method: str, host: str, path: str) -> http.client.HTTPResponse | urllib.error.HTTPError | None:
    scheme = "http" if local(host) else "https"
    request = urllib.request.Request(f"{scheme}://{host}{path}", method=method, headers={"Accept": _ACCEPT})  # noqa: S310
    try:
        context = None if scheme == "http" else ssl.create_default_context()
        return cast(http.client.HTTPResponse, urllib.request.urlopen(request, timeout=4, context=context))  # noqa: S310
    except urllib.error.HTTPError as error:
        return error
    except (OSError, http.client.HTTPException):
        return None
