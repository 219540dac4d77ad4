"""From manifests to a job: its spec, its base model and its run file, by the same code as the operator's.

Local runs accept plain paths where the API has URIs, relative to the manifest. Everything else is as in a
cluster, so that the manifest can be applied there once the paths are URIs of a bucket.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import finetune_api
from finetune_api import basemodel, candidates, job, revision, run, servingpool
from finetune_cli import answer, documents, manifests, rules

URIS: dict[str, tuple[tuple[str, ...], ...]] = {
    "FineTuneJob": (
        ("spec", "dataset", "train"),
        ("spec", "dataset", "validation", "uris"),
        ("spec", "dataset", "test", "uris"),
        ("spec", "evaluation", "forgetting", "uris"),
        ("spec", "intent", "retrieval", "uris"),
        ("spec", "evaluation", "harness", "tasks", "*", "uris"),
        ("spec", "evaluation", "harness", "tasks", "*", "fewShotUris"),
        ("spec", "storage", "output"),
        ("spec", "baseModel", "source"),
    ),
    "BaseModel": (("spec", "source"),),
    "ServingPool": (("spec", "baseModel", "source"),),
}
"""Fields of URIs, or of lists of them; *: of each item."""

SUFFIXES = (".yaml", ".yml", ".json")


@dataclasses.dataclass(frozen=True)
class Job:
    """A job that can be run on this machine."""

    document: documents.Document
    spec: job.FineTuneJobSpec
    base: run.ResolvedBaseModel
    notes: tuple[str, ...] = ()
    entry: documents.Document | None = None
    """The BaseModel that the job names, if it names one."""

    def check_model(self) -> None:
        """Raises documents.Invalid where the base model should be a folder of this machine and is none."""
        place: tuple[documents.Document, documents.Path] = self.document, ("spec", "baseModel", "source")
        if self.entry is not None:
            place = self.entry, ("spec", "source")
        document, path = place
        if problem := missing_folder(self.base.source, str(document.at(path).value)):
            raise documents.Invalid([document.problem(path, problem)])

    @property
    def run(self) -> run.Run:
        """The run file of the job's revision, as the operator would write it."""
        metadata = self.document.data["metadata"]
        annotations = metadata.get("annotations") or {}
        sections = revision.inputs(self.spec, str(annotations.get(revision.RUN_ANNOTATION, "")))
        return revision.run_of(
            self.spec,
            self.base,
            name=self.document.name,
            namespace=metadata.get("namespace", "default"),
            revision=revision.training_hash(sections),
            evaluation_hash=revision.evaluation_hash(sections),
            memory=_memory(self.spec.resources),
        )

    def summary(self) -> answer.Job:
        made = self.run
        return answer.Job(
            namespace=made.namespace, name=made.name, revision=made.revision, output=answer.place(made.layout.root)
        )


def _memory(wanted: job.TrainingResources) -> str | None:
    """The memory of training in the cluster, if it is known here."""
    if not wanted.gpus:
        return wanted.requests.memory
    from finetune_trainer.stages import estimate

    known = estimate.GPUS.get(wanted.gpu_type or "")
    return f"{known}Gi" if known else None


def read(file: pathlib.Path, catalogue: pathlib.Path | None = None) -> Job:
    """The one FineTuneJob of a file, whose ServingPools are checked, too; `catalogue`: a file or folder of BaseModels. Raises
    documents.Invalid."""
    in_file = [_local(one) for document in documents.read(file) for one in _items(document)]
    jobs = [document for document in in_file if document.kind == "FineTuneJob"]
    if len(jobs) != 1:
        found_kinds = ", ".join(f"{one.kind or 'no kind'} {one.name}".strip() for one in in_file) or "nothing"
        message = f"must contain exactly one FineTuneJob; found {found_kinds}"
        raise documents.Invalid([answer.Problem(file=str(file), message=message)])
    spec = manifests.check(jobs[0], job.FineTuneJobSpec)
    for pool in (document for document in in_file if document.kind == "ServingPool"):
        if str(pool.data.get("apiVersion")).startswith(f"{finetune_api.GROUP}/"):
            manifests.check(pool, servingpool.ServingPoolSpec)
    entries = {name: _entry(name, jobs[0], in_file, catalogue) for name in _named(spec)}
    spec, chosen = _smallest(spec, entries)
    entry = entries.get(spec.base_model.name or "")
    base = _base(jobs[0], spec, entry)
    _claims(jobs[0], spec)
    notes = [note for note in (rules.missing(), chosen) if note]
    return Job(jobs[0], spec, base, tuple(notes), entry)


def _named(spec: job.FineTuneJobSpec) -> list[str]:
    return spec.base_model.candidates or [name for name in [spec.base_model.name] if name is not None]


def _smallest(spec: job.FineTuneJobSpec, entries: Mapping[str, documents.Document]) -> tuple[job.FineTuneJobSpec, str]:
    """The job with the smallest of its candidates, and a note on it; as it is where it has one base model."""
    if not spec.base_model.candidates:
        return spec, ""
    sizes = {name: manifests.check(entry, basemodel.BaseModelSpec).parameters for name, entry in entries.items()}
    first, *others = candidates.smallest_first(spec.base_model.candidates, sizes)
    note = (
        f"baseModel.candidates: this is about {first} alone, which a cluster trains first; for {' or '.join(others)} set "
        "baseModel.name in place of candidates"
    )
    return candidates.of(spec, first), note


def _base(
    document: documents.Document, spec: job.FineTuneJobSpec, entry: documents.Document | None
) -> run.ResolvedBaseModel:
    checked = None if entry is None else manifests.check(entry, basemodel.BaseModelSpec)
    base = revision.resolve(spec.base_model, checked)
    assert base is not None, "a missing entry was reported before"
    if base.source.startswith("pvc://") and "FINETUNE_MODEL_PATH" not in os.environ:
        message = (
            f"is {base.source}, a volume of the cluster: for a local run set FINETUNE_MODEL_PATH to the model's folder, or "
            "name a folder as baseModel.source"
        )
        raise documents.Invalid([document.problem(("spec", "baseModel"), message)])
    return base


def missing_folder(source: str, written: str) -> str | None:
    """What is wrong with a local base model, `written` so, that is no folder; None where it is one, or not local."""
    from finetune_trainer.store import files

    if not source.startswith("file://"):
        return None
    folder = files.path_of(source)
    if folder.is_dir():
        return None
    if folder.exists():
        return f"is the file {folder}; name the model's folder"
    hub = f"; for a model of the hub write hf://{written}" if re.fullmatch(r"\w[\w.-]*/[\w.-]+", written) else ""
    return f"is no folder: {folder} does not exist{hub}"


def _claims(document: documents.Document, spec: job.FineTuneJobSpec) -> None:
    """Raises documents.Invalid for data on a claim that has no folder here."""
    on_claims = [uri for uri in spec.dataset.train if uri.startswith("pvc://")]
    if on_claims and "FINETUNE_DATA_PATH" not in os.environ:
        message = (
            f"names {on_claims[0]}, on a volume of the cluster: for a local run set FINETUNE_DATA_PATH to a folder with a "
            "folder for each claim, or name files"
        )
        raise documents.Invalid([document.problem(("spec", "dataset", "train"), message)])


def _entry(
    name: str, document: documents.Document, in_file: list[documents.Document], catalogue: pathlib.Path | None
) -> documents.Document:
    """The BaseModel of that name: from the job's file, the catalogue, or a file next to the job's."""
    models = [one for one in in_file if one.kind == "BaseModel"]
    if catalogue is not None:
        models += _models(catalogue, strict=True)
    elif all(one.name != name for one in models):
        models += _models(document.file.parent, strict=False)
    for one in models:
        if one.name == name:
            return one
    known = ", ".join(sorted({one.name for one in models})) or "none"
    listed = name in (document.data["spec"]["baseModel"].get("candidates") or [])
    message = (
        f"{'has' if listed else 'is'} {name}, and there is no BaseModel of that name here (known: {known}). Write a manifest of "
        f"kind BaseModel with metadata.name {name} and spec.source, a folder or hf://organisation/name, into the same file, or "
        "give a file of them by --catalogue (from `kubectl get basemodels -o yaml`); or set baseModel.source instead"
    )
    raise documents.Invalid([document.problem(("spec", "baseModel", "candidates" if listed else "name"), message)])


def _models(place: pathlib.Path, *, strict: bool) -> list[documents.Document]:
    """The BaseModels of a file, or of a folder's files; unless `strict`, files that are not manifests are skipped."""
    found = []
    try:
        files = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES) if place.is_dir() else [place]
    except OSError as error:
        raise documents.Invalid(
            [answer.Problem(file=str(place), message=f"cannot be read: {error.strerror}")]
        ) from None
    for file in files:
        try:
            inside = documents.read(file, only="BaseModel")
        except documents.Invalid:
            if strict:
                raise
            continue
        found += [_local(one) for document in inside for one in _items(document) if one.kind == "BaseModel"]
    return found


def _items(document: documents.Document) -> Iterator[documents.Document]:
    """A manifest, or the items of a List as kubectl prints it."""
    if document.kind != "List":
        yield document
        return
    items = document.data.get("items")
    for index, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, dict):
            yield documents.Document(document.file, document.at(("items", index)), item)


# -- plain paths --


def _local(document: documents.Document) -> documents.Document:
    """The document with URIs where it had plain paths."""
    data = document.data
    for path in URIS.get(document.kind, ()):
        data = _with_uris(data, path, document.file.parent)
    return dataclasses.replace(document, data=data)


def _with_uris(data: Any, path: tuple[str, ...], folder: pathlib.Path) -> Any:
    if not path:
        return [uri(one, folder) for one in data] if isinstance(data, list) else uri(data, folder)
    if path[0] == "*":
        return [_with_uris(one, path[1:], folder) for one in data] if isinstance(data, list) else data
    if not isinstance(data, dict) or path[0] not in data:
        return data
    return data | {path[0]: _with_uris(data[path[0]], path[1:], folder)}


def uri(value: Any, folder: pathlib.Path) -> Any:
    """A plain path as a file:// URI; everything else as it is."""
    from finetune_trainer.store import files

    if not isinstance(value, str) or not value or "://" in value:
        return value
    path = pathlib.Path(os.path.normpath(folder.absolute() / pathlib.Path(value).expanduser()))
    return files.address(path)
