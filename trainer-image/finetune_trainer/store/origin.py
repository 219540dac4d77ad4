"""A base model as its source lists it, the hub or S3: names, sizes and hashes of the files that are loaded, and their download.

`sources` fetches by it into a pod, `basecache` into the folder that pods share. Free of torch.
"""

import contextlib
import dataclasses
import fnmatch
import hashlib
import pathlib
import shutil
from collections.abc import Iterator

from finetune_api import reasons, run
from finetune_trainer.process import errors
from finetune_trainer.store import storage
from finetune_trainer.store import weights as contents

SMALL = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a tokenizer and of a configuration."""

WEIGHTS = "*.safetensors"

IGNORED = ("consolidated*", "original/*")
"""Second copies of the weights in other layouts, which some publishers add."""

NOTES = ".cache"
"""Where the hub's client notes what it has downloaded into a folder."""


@dataclasses.dataclass(frozen=True)
class File:
    """One file. `tag`: changes with its contents. `hash`: "sha256:...", "md5:..." or "git:..."; "" if the source gives none."""

    name: str
    size: int
    tag: str
    hash: str = ""


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a source has now. `commit`: of the hub."""

    base: run.ResolvedBaseModel
    store: storage.Storage
    files: tuple[File, ...]
    commit: str = ""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def key(self) -> str:
        """A folder's name that no other content has: of the model, the source and the hashes of its files. A store that somebody
        else runs may claim any hashes, so its address is in it, too."""
        where = self.store.endpoint if self.base.source.startswith("s3://") else ""
        seen = [self.base.source, where, self.commit, *(f"{file.name} {file.size} {file.tag}" for file in self.files)]
        name = "".join(c if c.isalnum() or c in "-." else "-" for c in self.base.source.rpartition("/")[2])
        return f"{name.lstrip('.')[:60]}-{hashlib.sha256(chr(10).join(seen).encode()).hexdigest()[:16]}"

    def arrive(self, file: File, folder: pathlib.Path) -> str:
        """Downloads a file into `folder`, unless it is there, and checks it. Returns "sha256:...".

        Raises Failure: of the source, and StorageUnavailable for other contents than the source names.
        """
        path, expected = folder / file.name, self._expected(file)

        def arrived() -> bool:
            return path.is_file() and path.stat().st_size == file.size and digest(path, expected) == expected

        if not arrived():
            self._download(file, folder)
        if not arrived():
            size = path.stat().st_size
            path.unlink()
            shutil.rmtree(folder / NOTES, ignore_errors=True)
            raise errors.Failure(
                reasons.Reason.STORAGE_UNAVAILABLE,
                f"{self.base.source}: {file.name} arrived with {size} bytes, and not with {file.size} bytes and the hash "
                f"{expected or '(none)'} that its source names. The next attempt downloads it again.",
            )
        return expected if expected.startswith("sha256:") else digest(path, "sha256:")

    def _expected(self, file: File) -> str:
        return file.hash or (self.store.md5(self._uri(file)) if self.base.source.startswith("s3://") else "")

    def _uri(self, file: File) -> str:
        return f"{self.base.source.rstrip('/')}/{file.name}"

    def _download(self, file: File, folder: pathlib.Path) -> None:
        if self.base.source.startswith("s3://"):
            self.store.download(self._uri(file), folder / file.name)
            return
        import huggingface_hub

        name = self.base.source.removeprefix("hf://")
        with explained(self.base):
            huggingface_hub.hf_hub_download(name, file.name, revision=self.commit, local_dir=folder)


def of(base: run.ResolvedBaseModel, store: storage.Storage) -> Origin:
    """The files of an hf:// or s3:// source with weights. Raises Failure."""
    if base.source.startswith("s3://"):
        return _bucket(base, storage.of_base_model(base, store))
    return _hub(base, store)


def digest(path: pathlib.Path, like: str) -> str:
    """The hash of a file in the form of another one; "" for none."""
    kind = like.partition(":")[0]
    if not kind:
        return ""
    with path.open("rb") as file:
        if kind != "git":
            return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"
        blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        return f"git:{hashlib.file_digest(file, lambda: blob).hexdigest()}"


def matches(name: str, *kinds: str) -> bool:
    """Whether a file is of one of these kinds, and no second copy."""
    return any(fnmatch.fnmatch(name, kind) for kind in kinds) and not any(
        fnmatch.fnmatch(name, kind) for kind in IGNORED
    )


def no_weights(source: str, names: list[str]) -> errors.Failure:
    return errors.Failure(
        reasons.Reason.MODEL_INVALID,
        f"{source} has no *.safetensors in the transformers layout (found: {', '.join(names[:8])}). Pickled weights are never "
        "loaded; save the model with safetensors.",
    )


def _bucket(base: run.ResolvedBaseModel, store: storage.Storage) -> Origin:
    prefix = base.source.rstrip("/") + "/"
    entries = {entry.uri.removeprefix(prefix): entry for entry in store.entries(prefix, flat=True)}
    if not entries:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{base.source} has no files; expected config.json, tokenizer.json and safetensors. Upload the model or correct "
            "the BaseModel's source.",
        )
    if not any(matches(name, WEIGHTS) for name in entries):
        raise no_weights(base.source, list(entries))
    for name, entry in entries.items():
        if matches(name, WEIGHTS) and entry.size < contents.SMALLEST:
            contents.refuse_pointer(name, store.read(entry.uri), base.source)
    # a store may list anything, and a name must not lead out of the folder
    wanted = {name: entry for name, entry in entries.items() if matches(name, *SMALL, WEIGHTS) and "/" not in name}
    return Origin(base, store, tuple(File(name, entry.size, entry.etag) for name, entry in wanted.items()))


def _hub(base: run.ResolvedBaseModel, store: storage.Storage) -> Origin:
    import huggingface_hub

    name = base.source.removeprefix("hf://")
    with explained(base):
        found = huggingface_hub.HfApi().model_info(name, revision=base.revision, files_metadata=True)
        commit = found.sha or base.revision or "main"
        # The list of a gated model is public, its files are not.
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(name, "config.json", revision=commit))
    files = []
    for one in found.siblings or []:
        inside = ".." not in pathlib.PurePosixPath(one.rfilename).parts and not one.rfilename.startswith("/")
        if inside and matches(one.rfilename, *SMALL, WEIGHTS):
            sha256 = f"sha256:{one.lfs.sha256}" if one.lfs else ""
            size = one.lfs.size if one.lfs else one.size
            checked = sha256 or (f"git:{one.blob_id}" if one.blob_id else "")
            files.append(File(one.rfilename, size or 0, checked, checked))
    if not any(matches(file.name, WEIGHTS) for file in files):
        raise no_weights(base.source, [one.rfilename for one in found.siblings or []])
    return Origin(base, store, tuple(files), commit)


@contextlib.contextmanager
def explained(base: run.ResolvedBaseModel) -> Iterator[None]:
    """Raises Failure in place of the errors of the hub."""
    import huggingface_hub.errors as hub

    try:
        yield
    except hub.GatedRepoError as error:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{base.source} is gated: accept its licence on the hub and set the BaseModel's accessTokenSecret to a Secret "
            "whose key HF_TOKEN may read it.",
        ) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{base.source} at revision {base.revision or 'main'} does not exist on the hub, or needs an access token. "
            "Correct the source, or set accessTokenSecret.",
        ) from error
    except errors.Failure:
        raise
    except Exception as error:
        raise errors.Failure(
            reasons.Reason.STORAGE_UNAVAILABLE,
            f"{base.source} could not be downloaded from the hub ({errors.describe(error)}). Without access to it, copy the "
            "model into S3 or a volume and use an s3:// or pvc:// source.",
        ) from error
