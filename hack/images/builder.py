"""The two programs that build images: docker where its daemon answers, else buildah, which needs no daemon."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from images import registry
from images.catalogue import Image
from toolbox import cache, debian, mounts, overlay, shell, uv

_AUTHORITIES = (
    "SSL_CERT_FILE",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
_FORWARDED = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


class Builder(Protocol):
    """Local images are named as they are pushed, REGISTRY/REPOSITORY:TAG, or localhost/… where they are not."""

    name: str

    def exists(self, reference: str) -> bool: ...

    def build(self, image: Image, reference: str, arguments: Mapping[str, str], context: Path) -> None: ...

    def push(self, reference: str) -> None: ...

    def tag(self, existing: str, reference: str) -> None: ...

    def remove(self, reference: str) -> None: ...

    def import_root(self, archive: Path, reference: str) -> None: ...

    def close(self) -> None: ...


def choose() -> Builder:
    if shell.find("docker") and shell.run(["docker", "info", "--format", "{{.ID}}"], timeout=10, check=False).strip():
        return Docker()
    debian.ensure(("buildah",), "building images without docker")
    return Buildah()


def certificate_bundle() -> Path | None:
    """The certificate authorities that this machine trusts: builds download through the same network."""
    for place in _AUTHORITIES:
        path = Path(place if place.startswith("/") else os.environ.get(place, "/nonexistent"))
        if path.is_file():
            return path
    return None


def _common(arguments: Mapping[str, str], image: Image, reference: str) -> list[str | Path]:
    words: list[str | Path] = ["--tag", reference, "--file", cache.REPOSITORY / image.dockerfile]
    if image.target:
        words += ["--target", image.target]
    if bundle := certificate_bundle():
        words.append(f"--secret=id=ca,src={bundle}")
    forwarded = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    for key, value in {**forwarded, **arguments}.items():
        words.append(f"--build-arg={key}={value}")
    return words


class Buildah:
    """As root, by chroot: no daemon, no user namespaces, the storage in our cache folder."""

    name = "buildah"

    def __init__(self) -> None:
        storage = cache.folder("images", "storage")
        driver = "overlay" if overlay.works(storage) else "vfs"
        self._base = [
            shell.find("buildah") or "buildah",
            "--root",
            str(storage / driver),
            "--runroot",
            str(cache.run_folder()),
            "--storage-driver",
            driver,
        ]
        # Build contexts and cache mounts lie below TMPDIR.
        self._environment = {"TMPDIR": str(cache.folder("images", "tmp")), "BUILDAH_ISOLATION": "chroot"}

    def close(self) -> None:
        """Removes the working containers of failed builds, and the mounts that builds leave behind."""
        self._run("rm", "--all", check=False)
        mounts.remove(cache.root() / "images" / "storage")

    def _run(self, command: str, *words: str | Path, check: bool = True) -> str:
        return shell.run([*self._base, command, *words], environment=self._environment, check=check)

    def exists(self, reference: str) -> bool:
        return bool(self._run("inspect", "--type", "image", "--format", "{{.FromImageID}}", reference, check=False))

    def build(self, image: Image, reference: str, arguments: Mapping[str, str], context: Path) -> None:
        # The machine's own package cache: what the project's environment holds is not fetched twice.
        host = Path(uv.run("cache", "dir").strip())
        host.mkdir(parents=True, exist_ok=True)
        self._run(
            "build",
            "--layers",
            "--format=oci",
            "--network=host",
            f"--volume={host}:/host-uv-cache",
            *_common({**arguments, "UV_CACHE_DIR": "/host-uv-cache"}, image, reference),
            context,
        )

    def push(self, reference: str) -> None:
        host = reference.split("/", 1)[0]
        words = ["--compression-format=zstd", "--compression-level=1"] if registry.local(host) else []
        self._run("push", f"--tls-verify={str(not registry.local(host)).lower()}", *words, reference)

    def tag(self, existing: str, reference: str) -> None:
        self._run("tag", existing, reference)

    def remove(self, reference: str) -> None:
        self._run("rmi", reference, check=False)

    def import_root(self, archive: Path, reference: str) -> None:
        container = self._run("from", "scratch").strip()
        try:
            self._run("add", "--quiet", container, archive, "/")
            self._run("config", "--cmd", "python3", container)
            self._run("commit", "--quiet", "--format=oci", container, reference)
        finally:
            self._run("rm", container, check=False)


class Docker:
    name = "docker"

    def _run(self, *words: str | Path, check: bool = True) -> str:
        return shell.run(["docker", *words], environment={"DOCKER_BUILDKIT": "1"}, check=check)

    def exists(self, reference: str) -> bool:
        return bool(self._run("image", "inspect", "--format", "{{.Id}}", reference, check=False).strip())

    def build(self, image: Image, reference: str, arguments: Mapping[str, str], context: Path) -> None:
        self._run("build", *_common(arguments, image, reference), context)

    def push(self, reference: str) -> None:
        self._run("push", "--quiet", reference)

    def tag(self, existing: str, reference: str) -> None:
        self._run("tag", existing, reference)

    def remove(self, reference: str) -> None:
        self._run("image", "rm", reference, check=False)

    def import_root(self, archive: Path, reference: str) -> None:
        self._run("import", archive, reference)

    def close(self) -> None:
        """Nothing to do: the daemon cleans up itself."""
