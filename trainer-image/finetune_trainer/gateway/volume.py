"""Adapters as folders of the volume that the engine reads: SHA256/, complete and checked, or not there.

Files arrive in a hidden folder, are checked against the manifest, which the adapter's name is the hash of, and are renamed into
place together. The one change: adapter_config.json names the engine's base model (vLLM compares it), and lies beside as it
came, for pods that copy it. Several pods may share the volume: whoever comes second finds the folder there, and uses it.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import time
from typing import Any

from finetune_api import layout, serving
from finetune_trainer.gateway import archive
from finetune_trainer.process import log
from finetune_trainer.store import folders

WEIGHTS, CONFIG, TEMPLATE = "adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"

ORIGINAL = f".{CONFIG}"
"""adapter_config.json as it came, beside the one that the engine reads."""

FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,90}\.(safetensors|json|jinja|txt)")

MANIFEST_BYTES, FILES, TEXT_BYTES = 1 << 20, 64, 4 << 20
"""Most bytes of a manifest, number of files, and bytes of a file that is no weights."""

ABANDONED = 3600.0
"""Seconds after which a delivery of another pod on the same volume has certainly ended."""

HEX = re.compile(r"[0-9a-f]{64}")


class Unfit(Exception):
    """Content that this pool does not take, whoever sends it."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One on the volume. template: its chat template; key: `serving.verify_key`."""

    sha256: str
    bytes: int
    template: str | None
    key: str


class Volume:
    """`adapters`: what is complete, by sha256."""

    def __init__(self, root: pathlib.Path, model_path: str, max_rank: int) -> None:
        self.root, self._model_path, self._max_rank = root, model_path, max_rank
        self.adapters: dict[str, Adapter] = {}
        self._own = f".incoming-{socket.gethostname()}-"

    def open(self) -> None:
        """Removes what earlier processes left half done, and reads what is complete."""
        self.root.mkdir(parents=True, exist_ok=True)
        for entry in self.root.iterdir():
            if entry.name.startswith(".incoming-"):
                with contextlib.suppress(OSError):
                    if entry.name.startswith(self._own) or time.time() - entry.stat().st_mtime > ABANDONED:
                        shutil.rmtree(entry, ignore_errors=True)
            elif HEX.fullmatch(entry.name):
                self.find(entry.name)

    def path(self, sha256: str) -> pathlib.Path:
        return self.root / sha256

    def find(self, sha256: str) -> Adapter | None:
        """The adapter, if the volume has it; another pod may have put it there. One that is damaged is removed."""
        folder = self.path(sha256)
        if not folder.is_dir():
            self.adapters.pop(sha256, None)
            return None
        try:
            self.adapters[sha256] = self._read(folder, sha256)
        except (OSError, ValueError, Unfit, folders.Corrupt) as problem:
            log.warning("an adapter on the volume is damaged, and is removed", sha256=sha256, problem=str(problem))
            self.remove(sha256)
        return self.adapters.get(sha256)

    def _read(self, folder: pathlib.Path, sha256: str) -> Adapter:
        """An adapter as `_finish` left it: sizes are checked again, and its configuration, which names the base model."""
        manifest = (folder / layout.MANIFEST).read_bytes()
        found = parse(manifest, sha256)
        original = (folder / ORIGINAL).read_bytes()
        for file in found.files:
            path = folder / (ORIGINAL if file.path == CONFIG else file.path)
            if path.stat().st_size != file.size:
                raise Unfit(f"{file.path} has {path.stat().st_size} bytes, expected {file.size}")
        wanted = self._configured(original)
        if (folder / CONFIG).read_bytes() != wanted:
            _replace(folder / CONFIG, wanted)
        template = folder / TEMPLATE
        return Adapter(
            sha256,
            found.bytes,
            template.read_text() if template.is_file() else None,
            serving.verify_key(manifest),
        )

    def files(self, sha256: str) -> list[tuple[str, pathlib.Path]]:
        """An adapter's files as they came, the manifest first."""
        folder = self.path(sha256)
        names = [file.path for file in parse((folder / layout.MANIFEST).read_bytes(), sha256).files]
        return [
            (name, folder / (ORIGINAL if name == CONFIG else name)) for name in (layout.MANIFEST, *names)
        ]  # fmt: skip

    async def receive(self, stream: archive.Stream, manifest: bytes, held: serving.Held) -> Adapter:
        """Takes the rest of a tar file. Raises Unfit or archive.Bad; then, as after a cancellation, nothing of it stays."""
        found = parse(manifest, held.sha256)
        folder = self.root / f"{self._own}{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            (folder / layout.MANIFEST).write_bytes(manifest)
            await self._contents(stream, found, folder)
            await asyncio.to_thread(self._finish, folder, held.sha256)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, True))
        adapter = self.find(held.sha256)
        if adapter is None:
            raise Unfit("it was removed while it arrived")
        return adapter

    async def manifest(self, stream: archive.Stream, held: serving.Held) -> bytes:
        """The first file of a tar file, which proves that its sender has this adapter. Raises Unfit or archive.Bad."""
        first = await archive.header(stream)
        if first is None or first.name != layout.MANIFEST or first.size > MANIFEST_BYTES:
            raise Unfit(f"the first file is to be {layout.MANIFEST}, of at most {MANIFEST_BYTES} bytes")
        manifest = b"".join([piece async for piece in archive.content(stream, first.size)])
        found = parse(manifest, held.sha256)
        if found.bytes > held.bytes:
            raise Unfit(f"its files have {found.bytes} bytes, the index allows {held.bytes}")
        return manifest

    async def _contents(self, stream: archive.Stream, found: folders.Manifest, folder: pathlib.Path) -> None:
        missing = {file.path: file for file in found.files}
        while (header := await archive.header(stream)) is not None:
            file = missing.pop(header.name, None)
            if file is None:
                raise Unfit(f"{header.name[:100]!r} is not in the manifest, or came twice")
            if header.size != file.size:
                raise Unfit(f"{file.path} has {header.size} bytes, the manifest says {file.size}")
            digest = hashlib.sha256()
            with (folder / file.path).open("wb") as target:
                async for piece in archive.content(stream, file.size):
                    await asyncio.to_thread(_write, target, digest, piece)
            if digest.hexdigest() != file.sha256:
                raise Unfit(f"{file.path} has the SHA-256 {digest.hexdigest()}, the manifest says {file.sha256}")
        if missing:
            raise Unfit(f"{', '.join(sorted(missing))} did not come, although the manifest lists it")

    def _finish(self, folder: pathlib.Path, sha256: str) -> None:
        """Names the engine's base model, writes all of it to the disk, and renames it into place."""
        original = (folder / CONFIG).read_bytes()
        wanted = self._configured(original)
        (folder / CONFIG).rename(folder / ORIGINAL)
        (folder / CONFIG).write_bytes(wanted)
        for path in (*folder.iterdir(), folder):
            _sync(path)
        try:
            folder.rename(self.path(sha256))
        except OSError:
            if not self.path(sha256).is_dir():
                raise
            # another pod on the same volume was faster
        _sync(self.root)

    def _configured(self, original: bytes) -> bytes:
        """adapter_config.json with the engine's base model. Raises Unfit."""
        try:
            config: Any = json.loads(original)
        except (ValueError, RecursionError) as error:
            raise Unfit(f"{CONFIG} is not JSON: {error}") from None
        rank = config.get("r") if isinstance(config, dict) else None
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1 or config.get("peft_type") != "LORA":
            raise Unfit(f"{CONFIG} does not describe a LoRA adapter with a rank")
        if rank > self._max_rank:
            raise Unfit(
                f"the rank is {rank}, the pool takes at most {self._max_rank}: raise spec.adapters.maxRank of the "
                "ServingPool, or train with a smaller rank"
            )
        return json.dumps({**config, "base_model_name_or_path": self._model_path}, indent=1).encode()

    def remove(self, sha256: str) -> None:
        """Takes an adapter away, at once for readers."""
        self.adapters.pop(sha256, None)
        hidden = self.root / f"{self._own}{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            self.path(sha256).rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def parse(manifest: bytes, sha256: str) -> folders.Manifest:
    """A manifest that describes an adapter, and nothing but one. Raises Unfit."""
    if (seen := hashlib.sha256(manifest).hexdigest()) != sha256:
        raise Unfit(f"{layout.MANIFEST} has the SHA-256 {seen}, expected {sha256}")
    try:
        found = folders.parse(manifest, sha256)
    except folders.Corrupt as corrupt:
        raise Unfit(corrupt.message) from None
    names = [file.path for file in found.files]
    if len(names) > FILES or len(set(names)) < len(names):
        raise Unfit(f"{layout.MANIFEST} lists {len(names)} files, {len(set(names))} of them different; at most {FILES}")
    for file in found.files:
        if not isinstance(file.path, str) or not FILE.fullmatch(file.path) or file.path == layout.MANIFEST:
            raise Unfit(
                f"{layout.MANIFEST} lists {str(file.path)[:100]!r}: files of an adapter are .safetensors, .json, .jinja and "
                ".txt, without folders"
            )
        if not isinstance(file.size, int) or file.size < 0:
            raise Unfit(f"{file.path}: {file.size!r} is no size")
        if not file.path.endswith(".safetensors") and file.size > TEXT_BYTES:
            raise Unfit(f"{file.path} has {file.size} bytes, at most {TEXT_BYTES} are allowed")
    if lacking := {WEIGHTS, CONFIG} - set(names):
        raise Unfit(f"{layout.MANIFEST} does not list {', '.join(sorted(lacking))}")
    return found


def _write(target: Any, digest: Any, piece: bytes) -> None:
    target.write(piece)
    digest.update(piece)


def _replace(path: pathlib.Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    new.write_bytes(content)
    new.replace(path)


def _sync(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
