"""The cluster's certificates: one authority, and a certificate for every identity, made by openssl in about a second.

Elliptic keys, since RSA keys would take most of a control plane's start.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from toolbox import shell

_DAYS = "365"


@dataclass(frozen=True)
class Identity:
    """Who a certificate speaks for: file name, user, groups, and the addresses of a server (`IP:…`, `DNS:…`)."""

    file: str
    user: str
    groups: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def subject(self) -> str:
        return "".join(f"/O={group}" for group in self.groups) + f"/CN={self.user}"


def make(folder: Path, identities: Sequence[Identity]) -> None:
    """Writes ca.crt, ca.key, sa.key, sa.pub and FILE.crt, FILE.key for every identity into `folder`."""
    folder.mkdir(parents=True, mode=0o700)
    _key(folder / "sa.key")
    shell.run(["openssl", "ec", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub"])
    _key(folder / "ca.key")
    # Debian's default configuration adds the extensions that mark an authority.
    authority: list[str | Path] = ["-x509", "-days", _DAYS, "-subj", "/CN=localcluster-ca", "-key", folder / "ca.key"]
    shell.run(["openssl", "req", "-new", *authority, "-out", folder / "ca.crt"])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda numbered: _sign(folder, numbered[0], numbered[1]), enumerate(identities, start=2)))


def _key(path: Path) -> None:
    shell.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])
    path.chmod(0o600)


def _sign(folder: Path, serial: int, identity: Identity) -> None:
    stem = folder / identity.file
    _key(Path(f"{stem}.key"))
    shell.run(
        ["openssl", "req", "-new", "-key", f"{stem}.key", "-subj", identity.subject(), "-out", f"{stem}.csr"],
    )
    names = ",".join(identity.addresses or (f"DNS:{identity.file}",))
    Path(f"{stem}.ext").write_text(
        f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n"
    )
    authority: list[str | Path] = [
        "-CA",
        folder / "ca.crt",
        "-CAkey",
        folder / "ca.key",
        "-set_serial",
        str(serial),
        "-days",
        _DAYS,
    ]
    shell.run(
        ["openssl", "x509", "-req", "-in", f"{stem}.csr", *authority, "-extfile", f"{stem}.ext", "-out", f"{stem}.crt"]
    )
    for leftover in (".csr", ".ext"):
        Path(f"{stem}{leftover}").unlink()
