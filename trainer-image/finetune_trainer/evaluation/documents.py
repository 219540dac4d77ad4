"""The documents of intent.retrieval: files -> texts -> passages, for the contender RAG."""

import re
from collections.abc import Iterator, Sequence

from finetune_api import job, reasons
from finetune_trainer.data import dataset, rows
from finetune_trainer.process import errors, log
from finetune_trainer.store import objects, storage

PLAIN = (".txt", ".md")
"""Files that are one document each; all others have a document in each row."""

WORDS = 200
"""Words of a passage, about: paragraphs are kept together up to this many."""

BYTES = 16 * 2**20
"""Of a plain document; a larger one should be several."""

INTRODUCTION = "Use these passages where they help:"


def find(store: storage.Storage, uris: Sequence[str]) -> list[objects.Entry]:
    """The files. Raises Failure when a pattern matches none, one is of another kind or too large, or all are empty."""
    found = [entry for uri in uris for entry in _matching(store, uri)]
    for entry in found:
        if entry.uri.lower().endswith(PLAIN):
            if entry.size > BYTES:
                raise _refused(
                    f"{entry.uri} has {entry.size} bytes, at most {BYTES} are read; split it into several files"
                )
        elif not rows.is_known(entry.uri):
            raise _refused(
                f"{entry.uri} is no document that can be read: the name must end with .txt or .md, or, with a field `text` in "
                "each row, with .jsonl, .json, .csv or .parquet (also .gz or .zst); convert it to text, or name other files"
            )
    if not any(entry.size for entry in found):
        raise _refused(f"the documents ({', '.join(uris)}) are empty; name files with text, or remove intent.retrieval")
    return found


def _matching(store: storage.Storage, uri: str) -> list[objects.Entry]:
    try:
        found = store.glob(uri)
    except errors.NotFound:
        found = []
    if "*" in uri or "?" in uri:
        found = [entry for entry in found if not rows.is_marker(entry.uri)]
    if not found:
        message = f"intent.retrieval: {uri} matches no file; correct it, or upload the file"
        raise errors.Failure(reasons.Reason.DATASET_NOT_FOUND, message)
    return list(found)


def _refused(message: str) -> errors.Failure:
    return errors.Failure(reasons.Reason.DATASET_INVALID, f"intent.retrieval: {message}")


def passages(store: storage.Storage, uris: Sequence[str]) -> Iterator[str]:
    """The passages of all documents, in their order. Raises Failure as `find`."""
    for entry in find(store, uris):
        if entry.uri.lower().endswith(PLAIN):
            yield from cut(store.read(entry.uri).decode(errors="replace"))
            continue
        for one in dataset.parse(rows.read(store, entry.uri), job.Format.TEXT):
            if isinstance(one, rows.Bad):
                log.warning("a row of intent.retrieval.uris is left out", source=one.source, problem=one.problem)
            else:
                yield from cut(one.text or "")


def cut(text: str) -> Iterator[str]:
    """Passages of about WORDS words: whole paragraphs where they fit, longer paragraphs in parts."""
    passage: list[str] = []
    count = 0
    for part in _parts(text):
        words = len(part.split())
        if passage and count + words > WORDS:
            yield "\n".join(passage)
            passage, count = [], 0
        passage.append(part)
        count += words
    if passage:
        yield "\n".join(passage)


def _parts(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        if len(words) <= WORDS:
            if words:
                yield paragraph.strip()
            continue
        for begin in range(0, len(words), WORDS):
            yield " ".join(words[begin : begin + WORDS])


def before(question: str, found: Sequence[str]) -> str:
    """The question with passages before it, as RAG is asked."""
    return "\n\n".join([INTRODUCTION, *found, question]) if found else question
