"""Programs that come as Debian packages: which are missing, and how they get here.

On Debian and Ubuntu, as root, they are installed after saying which; elsewhere the message says what to install.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from toolbox import lock, say, shell

# program or file -> package
PACKAGES = {
    "openssl": "openssl",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "docker-registry": "docker-registry",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "chromium-headless-shell": "chromium-headless-shell",
    "faketime": "faketime",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
_POLICY = Path("/usr/sbin/policy-rc.d")
_LOCK = Path("/run/finetune-debian.lock")


def missing(programs: Sequence[str]) -> list[str]:
    """Which of these programs are absent; a name with a slash is a file, or one of its usual other places."""
    return [program for program in programs if locate(program) is None]


def locate(program: str) -> str | None:
    if not program.startswith("/"):
        return shell.find(program)
    for folder in (Path(program).parent, Path("/opt/cni/bin"), Path("/usr/libexec/cni")):
        if (folder / Path(program).name).exists():
            return str(folder / Path(program).name)
    return None


def ensure(programs: Sequence[str], purpose: str) -> None:
    """Installs what is missing where that is possible; raises say.Problem with what to do where it is not."""
    absent = missing(programs)
    if not absent:
        return
    packages = sorted({PACKAGES[program] for program in absent})
    names = ", ".join(Path(program).name for program in absent)
    if shell.find("apt-get") is None:
        raise say.Problem(
            f"{purpose} needs {names}, not found on this machine. Install them (on Debian: {' '.join(packages)}),"
            " or give KUBECONFIG and REGISTRY of an existing cluster instead."
        )
    if os.geteuid() != 0:
        raise say.Problem(
            f"{purpose} needs {names}. Install them with `sudo apt-get install {' '.join(packages)}`,"
            " or give KUBECONFIG and REGISTRY of an existing cluster instead."
        )
    with lock.held(_LOCK, "another command that installs Debian packages"):
        if missing(programs):
            with say.step(f"Debian packages: installing {' '.join(packages)}", "30 s"):
                install(packages)
    if absent := missing(programs):
        raise say.Problem(f"{', '.join(absent)} still missing after installing {' '.join(packages)}")


def install(packages: Sequence[str]) -> None:
    """Installs Debian packages, as root."""
    # The cluster starts its own containerd and registry: the packages must not start services on the machine's ports.
    placed = not _POLICY.exists()
    if placed:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        try:
            shell.run(command, environment=quiet)
        except say.Problem:
            shell.run(["apt-get", "update"], environment=quiet)
            shell.run(command, environment=quiet)
    finally:
        if placed:
            _POLICY.unlink(missing_ok=True)
