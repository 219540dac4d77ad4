"""Builds what a registry lacks and pushes it; records the newest images and removes older ones."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from images import base, builder, catalogue, registry
from images.builder import Builder
from images.catalogue import Image
from localcluster import binaries
from toolbox import cache, lock, say

_RECENT = 3


def build(wanted: Sequence[Image], host: str, given_tag: str = "") -> dict[str, str]:
    """Makes these images available at the registry `host`; returns key -> reference."""
    if not registry.answers(host):
        raise say.Problem(
            f"no registry answers at {host}. The local cluster's is in cluster.json (python3 hack/localcluster up);"
            " of an existing cluster, give one that it can pull from."
        )
    with _builder() as program:
        reference, identity = base.ensure(program)
        return {image.key: _publish(image, program, host, reference, identity, given_tag) for image in wanted}


def prepare(wanted: Sequence[Image]) -> None:
    """Builds these images and pushes nothing: for a registry that is not up yet, `build` will find them built."""
    with _builder() as program:
        reference, identity = base.ensure(program)
        for image in wanted:
            _ensure_local(image, program, reference, identity)


@contextmanager
def _builder() -> Iterator[Builder]:
    with lock.held(cache.folder("images") / ".lock", "another build of images"), closing(builder.choose()) as program:
        yield program


def _publish(image: Image, program: Builder, host: str, base_image: str, identity: str, given_tag: str) -> str:
    content = catalogue.tag(image, identity)
    reference = f"{host}/{image.repository}:{given_tag or content}"
    if not given_tag and registry.digest(host, image.repository, content):
        say.line(f"  {image.key}: unchanged ({reference})")
    else:
        local = _ensure_local(image, program, base_image, identity)
        program.tag(local, reference)
        with say.step(f"{image.key}: pushing {reference}"):
            program.push(reference)
    _let_go(image, program, host, content)
    return reference


def _ensure_local(image: Image, program: Builder, base_image: str, identity: str) -> str:
    """Builds an image, after its base, unless it was built before."""
    local = f"localhost/{image.repository}:{catalogue.tag(image, identity)}"
    if program.exists(local):
        return local
    arguments = {"BASE_IMAGE": base_image}
    if image.parent:
        arguments[image.parent_argument] = _ensure_local(catalogue.BY_KEY[image.parent], program, base_image, identity)
    context = binaries.ensure(["versitygw"]) if image is catalogue.S3 else cache.REPOSITORY
    with say.step(f"{image.key}: building with {program.name}", image.usually):
        program.build(image, local, arguments, context)
    return local


def _let_go(image: Image, program: Builder, host: str, content: str) -> None:
    """Keeps the newest tags of an image and removes the others here and from a local registry."""
    path = cache.folder("images") / "recent.json"
    recent: dict[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}
    keep, old = newest(recent.get(image.repository, []), content)
    for tag in old:
        program.remove(f"localhost/{image.repository}:{tag}")
        program.remove(f"{host}/{image.repository}:{tag}")
        if registry.remove(host, image.repository, tag):
            # The registry collects its garbage when it starts.
            Path(cache.folder("registry"), "garbage").touch()
    path.write_text(json.dumps({**recent, image.repository: keep}))


def newest(known: Sequence[str], tag: str) -> tuple[list[str], list[str]]:
    """Tags to keep, newest first, and tags to remove."""
    ordered = [tag, *(other for other in known if other != tag)]
    return ordered[:_RECENT], ordered[_RECENT:]
