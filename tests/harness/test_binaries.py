"""Where the cluster's programs come from: the order of the sources, and that no release is used unverified."""

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster import binaries, releases
from toolbox import say

PROGRAM = b"#!/bin/sh\necho released\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address of a web server that shows it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "site"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    (tmp_path / "site").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "site", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def publish(site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, checksum: str, content: bytes = PROGRAM) -> None:
    folder, address = site
    (folder / "kubectl").write_bytes(content)
    if checksum:
        (folder / "kubectl.sha256").write_text(checksum)
    release = releases.Release(f"{address}/kubectl", f"{address}/kubectl.sha256")
    monkeypatch.setattr(releases, "locate", lambda *_: release)


def test_a_release_with_the_published_checksum_is_used(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(site, monkeypatch, hashlib.sha256(PROGRAM).hexdigest())
    assert releases.fetch("kubectl", "v1.0.0", tmp_path / "kubectl")
    assert (tmp_path / "kubectl").read_bytes() == PROGRAM
    assert (tmp_path / "kubectl").stat().st_mode & 0o111


def test_a_release_with_another_checksum_is_refused(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(site, monkeypatch, hashlib.sha256(b"something else").hexdigest())
    with pytest.raises(say.Problem, match="sha256"):
        releases.fetch("kubectl", "v1.0.0", tmp_path / "kubectl")
    assert not (tmp_path / "kubectl").exists()


def test_a_release_without_a_checksum_is_not_used(
    site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(site, monkeypatch, "")
    assert not releases.fetch("kubectl", "v1.0.0", tmp_path / "kubectl")


def test_a_network_without_the_release_site_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = releases.Release("http://127.0.0.1:9/kubectl", "http://127.0.0.1:9/kubectl.sha256")
    monkeypatch.setattr(releases, "locate", lambda *_: release)
    with pytest.raises(releases.Unreachable):
        releases.fetch("kubectl", "v1.0.0", tmp_path / "kubectl")


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ("abc\n", "abc"),
        ("abc  other.tar.gz\ndef  etcd.tar.gz\n", "def"),
        ("ABC *etcd.tar.gz\n", "abc"),
        ("abc  ./etcd.tar.gz\n", "abc"),
        ("abc  other.tar.gz\n", ""),
    ],
)
def test_checksum_listings_are_read_in_the_forms_that_projects_use(listing: str, found: str) -> None:
    assert releases.expected(listing, "etcd.tar.gz") == found


def test_a_program_is_taken_from_its_place_in_the_archive() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in (("README", b"words"), ("linux-amd64/helm", PROGRAM)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    assert releases.extract(buffer.getvalue(), "linux-amd64/helm") == PROGRAM
    with pytest.raises(say.Problem, match="linux-amd64/kubectl"):
        releases.extract(buffer.getvalue(), "linux-amd64/kubectl")


def test_a_given_folder_comes_first_and_the_cache_fills_its_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FINETUNE_BIN", str(tmp_path / "given"))
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "etcd").write_text("given")
    for name in ("etcd", "kubectl"):
        (binaries.store() / name).write_text("cached")
    folder = binaries.ensure(["etcd", "kubectl"])
    assert (folder / "etcd").read_text() == "given"
    assert (folder / "kubectl").read_text() == "cached"


def test_every_version_is_the_locked_one() -> None:
    assert binaries.version("k8s.io/kubernetes").startswith("v1.")
    # Held by a replacement, below what other tools ask for.
    assert binaries.version("go.etcd.io/etcd/server/v3").startswith("v3.")
    with pytest.raises(say.Problem, match=r"go\.mod has no version of example\.com/absent"):
        binaries.version("example.com/absent")


def test_programs_say_the_version_that_they_were_built_from() -> None:
    flags = binaries.link_flags("v1.36.3")
    assert "gitVersion=v1.36.3" in flags
    assert "gitMajor=1" in flags
    assert "gitMinor=36" in flags
