"""Who may use which namespace's models: the keys of a mounted Secret, a file for each namespace, reread while the pod runs.

A line of a file is a key, or `sha256:` and the key's hash in hex. In memory there are only hashes.
"""

import hashlib
import hmac
import pathlib
import re
import time

from finetune_trainer.process import log

HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")

FRESH = 2.0
"""Seconds for which the files are not looked at again."""


class Unknown(Exception):
    """No key, or none that is known; the text says what to do."""


class Tenants:
    """The keys of a pool. `folder`: None where no key is needed, and everybody is the namespace `own`."""

    def __init__(self, folder: pathlib.Path | None, own: str) -> None:
        self._folder, self._own = folder, frozenset({own})
        self._keys: dict[bytes, frozenset[str]] = {}
        self._looked = float("-inf")
        self._seen: list[tuple[str, int, int, int]] | None = None

    def namespaces(self, authorization: str | None) -> frozenset[str]:
        """Those of the key in a request's header. Raises Unknown."""
        if self._folder is None:
            return self._own
        self._reread()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unknown("a key is needed: send it as `Authorization: Bearer KEY`")
        presented = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found: frozenset[str] = frozenset()
        for known, namespaces in self._keys.items():  # all of them, whichever matches
            found |= namespaces if hmac.compare_digest(known, presented) else frozenset()
        if not found:
            raise Unknown("the key is not known here: ask whoever manages the Secret of keys")
        return found

    def _reread(self) -> None:
        """Reads the files again where they have changed."""
        now = time.monotonic()
        if now - self._looked < FRESH:
            return
        self._looked = now
        assert self._folder is not None
        try:
            files = sorted(path for path in self._folder.iterdir() if not path.name.startswith(".") and path.is_file())
            seen = [(path.name, path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino) for path in files]
            if seen == self._seen:
                return
            keys = self._read(files)
        except FileNotFoundError:
            seen, keys = [], {}  # the Secret is optional: it does not exist, or not yet
        except OSError as error:
            log.warning("the keys cannot be read; those from before stay", problem=str(error))
            return
        if self._seen is not None:
            log.info("the keys have changed", keys=len(keys))
        self._seen, self._keys = seen, keys

    def _read(self, files: list[pathlib.Path]) -> dict[bytes, frozenset[str]]:
        keys: dict[bytes, frozenset[str]] = {}
        for path in files:
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                if not (line := line.strip()):
                    continue
                text = line.decode("utf-8", "surrogateescape")
                if hashed := HASHED.fullmatch(text):
                    digest = bytes.fromhex(hashed[1])
                elif text.startswith("sha256:"):
                    log.warning("a line of the keys is no SHA-256 in hex, and is ignored", entry=path.name, line=number)
                    continue
                else:
                    digest = hashlib.sha256(line).digest()
                keys[digest] = keys.get(digest, frozenset()) | {path.name}
        return keys
