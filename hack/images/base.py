"""The base image of all others: a public slim Python, or, where no public registry answers, a Debian built here.

The first choice is kept (until `clean`): the same inputs must give the same tags tomorrow.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from images import registry
from images.builder import Builder
from toolbox import cache, debian, say, shell

PUBLIC = "docker.io/library/python:3.11-slim-bookworm"
_PUBLIC_HOST = "registry-1.docker.io"
_SUITE = "bookworm"
_PACKAGES = ("python3", "python3-venv", "ca-certificates", "libgomp1", "libnuma1")
# Documentation and package lists are of no use in an image.
_UNWANTED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/apt/lists", "var/cache")


def ensure(builder: Builder) -> tuple[str, str]:
    """Makes the base available; returns its reference and its identity, which goes into every tag."""
    if given := os.environ.get("BASE_IMAGE"):
        return given, given
    record = cache.folder("images") / f"base-{builder.name}.json"
    if record.exists():
        reference, identity = json.loads(record.read_text())
        if reference == PUBLIC or builder.exists(reference):
            return reference, identity
    if registry.answers(_PUBLIC_HOST):
        chosen = (PUBLIC, PUBLIC)
    else:
        say.line("  no public registry answers: making the base image here, from Debian packages")
        chosen = _bootstrap(builder)
    record.write_text(json.dumps(chosen))
    return chosen


def _bootstrap(builder: Builder) -> tuple[str, str]:
    identity = f"{_SUITE}-" + hashlib.sha256(" ".join((*_PACKAGES, *_UNWANTED)).encode()).hexdigest()[:8]
    reference = f"localhost/finetune-base:{identity}"
    if builder.exists(reference):
        return reference, identity
    if os.geteuid() != 0:
        raise say.Problem(
            "making a base image needs root: run this with sudo, or set BASE_IMAGE to one with Python 3.11"
        )
    debian.ensure(
        ("debootstrap", "/usr/share/keyrings/debian-archive-keyring.gpg"),
        "making a base image without a public registry",
    )
    root = cache.folder("images") / "rootfs"
    shutil.rmtree(root, ignore_errors=True)
    with say.step(f"base image: Debian {_SUITE} with {' '.join(_PACKAGES)}", "60 s"):
        include = f"--include={','.join(_PACKAGES)}"
        shell.run(["debootstrap", "--variant=minbase", include, _SUITE, root, *mirror()])
        for name in _UNWANTED:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir(parents=True)
        archive = root.with_suffix(".tar")
        shell.run(["tar", "--create", "--numeric-owner", "--one-file-system", "-C", root, "-f", archive, "."])
        builder.import_root(archive, reference)
        archive.unlink()
        shutil.rmtree(root)
    return reference, identity


def mirror() -> list[str]:
    """The mirror that this machine installs from, so that a private one is used where there is one."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.exists() and (found := mirror_in(path.read_text())):
            return [found]
    return []


def mirror_in(text: str) -> str:
    """The first archive of Debian (not its security updates) in a file of apt's, in either of its formats."""
    for line in text.splitlines():
        words = line.split()
        if not words or words[0] not in ("deb", "URIs:"):
            continue
        for word in words[1:]:
            if word.startswith(("http://", "https://")) and word.rstrip("/").endswith("/debian"):
                return word
    return ""
