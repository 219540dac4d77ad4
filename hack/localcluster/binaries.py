"""Where the cluster's programs come from, in this order: $FINETUNE_BIN, the cache, official releases, Go modules.

The versions are those of hack/tools/go.mod, whichever way the programs come. The cache's folder is named by that
file's hash, so that different versions never mix.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster import releases
from toolbox import cache, golang, lock, say, shell

_ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false"}


@dataclass(frozen=True)
class Binary:
    """A program, the import path that builds it, the module that has its version, and seconds of a cold build."""

    name: str
    package: str
    module: str
    seconds: int

    @property
    def output(self) -> str:
        """What Go calls it: the last part of the import path that is no version."""
        return re.sub(r"/v\d+$", "", self.package).rpartition("/")[2]


_KUBERNETES = "k8s.io/kubernetes"
ALL = (
    Binary("kube-apiserver", f"{_KUBERNETES}/cmd/kube-apiserver", _KUBERNETES, 220),
    Binary("kube-controller-manager", f"{_KUBERNETES}/cmd/kube-controller-manager", _KUBERNETES, 55),
    Binary("kube-scheduler", f"{_KUBERNETES}/cmd/kube-scheduler", _KUBERNETES, 5),
    Binary("kubectl", f"{_KUBERNETES}/cmd/kubectl", _KUBERNETES, 25),
    Binary("etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", 10),
    Binary("kubelet", f"{_KUBERNETES}/cmd/kubelet", _KUBERNETES, 30),
    Binary("kube-proxy", f"{_KUBERNETES}/cmd/kube-proxy", _KUBERNETES, 10),
    Binary("coredns", "./dns", "github.com/coredns/coredns", 10),
    Binary("pause", "./pause", _KUBERNETES, 2),
    Binary("helm", "helm.sh/helm/v3/cmd/helm", "helm.sh/helm/v3", 60),
    Binary("kwok", "sigs.k8s.io/kwok/cmd/kwok", "sigs.k8s.io/kwok", 25),
    Binary("versitygw", "github.com/versity/versitygw/cmd/versitygw", "github.com/versity/versitygw", 45),
)
BY_NAME = {binary.name: binary for binary in ALL}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
NODE = (*CONTROL_PLANE, "kube-scheduler", "kubelet", "kube-proxy", "coredns", "pause", "versitygw", "helm")


def version(module: str) -> str:
    """The locked version of a module, e.g. v1.36.3; a replacement counts, as it does for the build."""
    text = (golang.MODULE / "go.mod").read_text()
    for pattern in (rf"^\s*{re.escape(module)} => \S+ (v\S+)", rf"^\s*{re.escape(module)} (v\S+)"):
        if found := re.search(pattern, text, re.MULTILINE):
            return found[1]
    raise say.Problem(f"{golang.MODULE / 'go.mod'} has no version of {module}")


def store() -> Path:
    """The cache's folder for the locked versions."""
    locked = hashlib.sha256()
    for name in ("go.mod", "go.sum", "dns/main.go", "pause/main.go"):
        locked.update((golang.MODULE / name).read_bytes())
    return cache.folder("bin", f"{version(_KUBERNETES)}-{locked.hexdigest()[:8]}")


def ensure(names: Sequence[str]) -> Path:
    """Makes these programs available and returns the folder that has them (and whatever came there before)."""
    stored = store()
    given = os.environ.get("FINETUNE_BIN")
    absent = [name for name in names if not (stored / name).exists() and not (given and Path(given, name).exists())]
    if absent:
        _fetch_or_build(absent, stored)
    if not given:
        return stored
    # One folder with the given programs and, for those that it lacks, the cache's.
    folder = cache.folder("bin", "given-" + hashlib.sha256(given.encode()).hexdigest()[:8])
    for name in names:
        source = Path(given, name).absolute()
        _link(folder / name, source if source.exists() else stored / name)
    return folder


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.symlink_to(target)
    fresh.replace(link)


def _fetch_or_build(names: Sequence[str], folder: Path) -> None:
    with lock.held(folder.parent / f".{folder.name}.lock", f"another build of {folder.name}"):
        names = [name for name in names if not (folder / name).exists()]
        wanted = [BY_NAME[name] for name in names]
        if not wanted:
            return
        offline = ""
        for binary in wanted:
            if offline:
                break
            try:
                if releases.fetch(binary.name, version(binary.module), folder / binary.name):
                    say.line(f"  {binary.name}: official release {version(binary.module)}, checksum verified")
            except releases.Unreachable as error:
                offline = str(error)
                say.line(f"  official releases are out of reach ({offline}): building from Go modules instead")
        build = [binary for binary in wanted if not (folder / binary.name).exists()]
        if build:
            _build(build, folder)


def _build(wanted: Sequence[Binary], folder: Path) -> None:
    """All by one command of Go's: while one program is linked, which takes a single core, the others' packages compile."""
    go = golang.find()
    minutes = max(1, round(sum(binary.seconds for binary in wanted) / 60))
    say.line(f"  building {len(wanted)} binaries once, into {folder}: up to {minutes} min on 2 cores")
    flags = ("-ldflags", link_flags(version(_KUBERNETES)))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        argv = [go, "build", *flags, "-o", f"{scratch}/", *(binary.package for binary in wanted)]
        with _telling({Path(scratch, binary.output): binary.name for binary in wanted}):
            shell.run(argv, folder=golang.MODULE, environment=_ENVIRONMENT)
        for binary in wanted:
            Path(scratch, binary.output).replace(folder / binary.name)


@contextlib.contextmanager
def _telling(expected: Mapping[Path, str]) -> Iterator[None]:
    """Reports each of these files when it appears, while the body runs."""
    over = threading.Event()

    def tell() -> None:
        began, left = time.monotonic(), dict(expected)
        while left:
            last = over.wait(1)
            for path in [path for path in left if path.exists()]:
                say.line(f"    {left.pop(path)}: built, {time.monotonic() - began:.0f} s; {len(left)} to come")
            if last:
                return

    teller = threading.Thread(target=tell)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def link_flags(kubernetes: str) -> str:
    """Kubernetes' programs say a version only when the linker is told one; clients compare it."""
    major, minor, _ = kubernetes.removeprefix("v").split(".", 2)
    named = {"gitVersion": kubernetes, "gitMajor": major, "gitMinor": minor}
    return "-s -w " + " ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in named.items())


def remove() -> None:
    shutil.rmtree(cache.root() / "bin", ignore_errors=True)
