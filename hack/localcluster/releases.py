"""Official release downloads of the cluster's programs: only ever used with the checksum that the project publishes.

A download is optional: what is not published in this form, or whose checksum cannot be had, is built from the Go
modules, which carry their own checksums.
"""

import hashlib
import http.client
import io
import os
import platform
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from toolbox import say

_CONNECT_SECONDS = 4
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class Unreachable(Exception):
    """The site did not answer at all: nothing else will come from a network like this."""


@dataclass(frozen=True)
class Release:
    """Where a program is published. `member` is its path in the archive; empty: the file is the program."""

    url: str
    checksum: str
    member: str = ""


def locate(name: str, version: str, machine: str) -> Release | None:
    """The release of a program for a machine (amd64, arm64), or None where no official binary fits."""
    number = version.removeprefix("v")
    if name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"):
        url = f"https://dl.k8s.io/release/{version}/bin/linux/{machine}/{name}"
        return Release(url, f"{url}.sha256")
    if name == "etcd":
        folder = f"https://github.com/etcd-io/etcd/releases/download/{version}"
        stem = f"etcd-{version}-linux-{machine}"
        return Release(f"{folder}/{stem}.tar.gz", f"{folder}/SHA256SUMS", f"{stem}/etcd")
    if name == "coredns":
        url = f"https://github.com/coredns/coredns/releases/download/{version}/coredns_{number}_linux_{machine}.tgz"
        return Release(url, f"{url}.sha256", "coredns")
    if name == "helm":
        url = f"https://get.helm.sh/helm-{version}-linux-{machine}.tar.gz"
        return Release(url, f"{url}.sha256sum", f"linux-{machine}/helm")
    return None


def fetch(name: str, version: str, target: Path) -> bool:
    """Downloads a program to `target`, in one step; False when it is not published or not published with a checksum.

    Raises Unreachable when the site does not answer, say.Problem when the checksum differs.
    """
    release = locate(name, version, _MACHINES.get(platform.machine(), ""))
    if release is None:
        return False
    listed = _get(release.checksum)
    content = None if listed is None else _get(release.url)
    if listed is None or content is None:
        return False
    verify(content, expected(listed.decode(), release.url.rsplit("/", 1)[1]), release.url)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_bytes(extract(content, release.member) if release.member else content)
    part.chmod(0o755)
    part.replace(target)
    return True


def expected(listing: str, file: str) -> str:
    """The sha256 for a file in a checksum listing: `HASH`, or lines of `HASH  FILE`; empty when it is not there."""
    for words in map(str.split, listing.splitlines()):
        if len(words) == 1 or (len(words) == 2 and words[1].lstrip("*").rsplit("/", 1)[-1] == file):
            return words[0].lower()
    return ""


def verify(content: bytes, checksum: str, url: str) -> None:
    seen = hashlib.sha256(content).hexdigest()
    if seen != checksum:
        raise say.Problem(f"{url} has sha256 {seen}, its project publishes {checksum or 'none'}: not used")


def extract(archive: bytes, member: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for entry in opened:
            if entry.isfile() and entry.name.removeprefix("./") == member:
                file = opened.extractfile(entry)
                if file:
                    return file.read()
    raise say.Problem(f"the release archive has no file {member}")


def _get(url: str) -> bytes | None:
    """The body of a page, None when the site says that there is none."""
    try:
        with urllib.request.urlopen(url, timeout=_CONNECT_SECONDS) as answer:  # noqa: S310
            return bytes(answer.read())
    except urllib.error.HTTPError:
        return None
    except (OSError, http.client.HTTPException) as error:
        host = url.split("/")[2]
        raise Unreachable(f"{host}: {getattr(error, 'reason', error)}") from error
