import copy
import dataclasses
import functools
import itertools
import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer import families, tiny

from finetune_api import job, reasons, run
from finetune_trainer.data import corpus, dataset, tokens
from finetune_trainer.process import errors, machine
from finetune_trainer.stages import preflight
from finetune_trainer.store import folders, storage

World = Callable[..., run.Run]


# --- Many at once is one by one ---

WORDS = st.sampled_from(
    'dog|the|e fox| th|\n|\n\n|  |Is 12 late?|{|"a": 1}|ü|漢字|✓|\t|[INST]|<think>|assistant|parcel|item|items|'
    "<s>|</s>|<~im_end~>|<~end~>| <~end~>  ".replace("~", "\0").split("|")
).map(lambda word: word.replace("\0", "|"))
CONTENT = st.lists(WORDS, min_size=1, max_size=6).map("".join)


@st.composite
def example(draw: st.DrawFn) -> dataset.Example:
    kind = draw(st.sampled_from(["chat", "chat", "chat", "text", "pair"]))
    if kind == "text":
        return dataset.Example("x", text=draw(CONTENT))
    turns = [dataset.Message("system", draw(CONTENT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(dataset.Message("user", draw(CONTENT)))
        turns.append(dataset.Message("assistant", draw(CONTENT), learned=draw(st.booleans())))
    turns[-1] = dataclasses.replace(turns[-1], learned=True)
    return dataset.Example("x", tuple(turns), rejected=draw(CONTENT) if kind == "pair" else None)


@functools.cache
def encoder(tokenizer: str, template: str) -> tokens.Encoder:
    made = copy.copy(families.TOKENIZERS[tokenizer]())
    made.chat_template = families.TEMPLATES[template]
    return tokens.Encoder(made, frozenset({2, 4}), 10_000)


def one_by_one(encoder: tokens.Encoder, example: dataset.Example) -> Any:
    try:
        return encoder.rows(example)
    except dataset.Wrong as wrong:
        return str(wrong)


@pytest.mark.parametrize("template", families.TEMPLATES)
@pytest.mark.parametrize("tokenizer", families.TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(
    examples=st.lists(example(), min_size=1, max_size=8),
    loss_on=st.sampled_from(job.LossOn),
    limit=st.sampled_from([4, 25, 10_000]),
)
def test_a_batch_encodes_as_one_by_one(
    tokenizer: str, template: str, examples: list[dataset.Example], loss_on: job.LossOn, limit: int
) -> None:
    made = dataclasses.replace(encoder(tokenizer, template), loss_on=loss_on, max_length=limit)
    found = [str(one) if isinstance(one, dataset.Wrong) else one for one in made.batch(examples)]
    assert found == [one_by_one(made, one) for one in examples]


def test_the_shortcut_is_taken_where_special_tokens_stand_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tokenized besides the texts: a few words that all examples share, or each whole prompt."""
    chats = [
        dataset.Example("x", (dataset.Message("user", f"dog {n}"), dataset.Message("assistant", "fox")))
        for n in range(50)
    ]
    for template, expected in (("ChatML", 51), ("Gemma", 51), ("Llama 2", 100)):
        made = encoder("bytes", template)
        counted: list[str] = []
        patch_call(monkeypatch, type(made.tokenizer), counted)
        made.batch(chats)
        monkeypatch.undo()
        assert len(counted) == expected


def patch_call(monkeypatch: pytest.MonkeyPatch, kind: Any, texts: list[str]) -> None:
    """Notes every text that such a tokenizer gets."""
    call = kind.__call__

    def noting(self: Any, text: Any, **named: Any) -> Any:
        texts.extend([text] if isinstance(text, str) else text)
        return call(self, text, **named)

    monkeypatch.setattr(kind, "__call__", noting)


def test_both_sides_of_a_pair_begin_with_the_same_prompt_and_only_answers_are_learned() -> None:
    context = (dataset.Message("user", "dog"), dataset.Message("assistant", "first"), dataset.Message("user", "th"))
    pair = dataset.Example("x", (*context, dataset.Message("assistant", "e fox")), rejected="quick")
    for tokenizer, template in itertools.product(families.TOKENIZERS, families.TEMPLATES):
        if template == "without":
            continue
        made = dataclasses.replace(encoder(tokenizer, template), loss_on=job.LossOn.ALL)
        chosen, rejected = made.rows(pair)
        begin = chosen.learned.index(True)
        assert rejected.learned.index(True) == begin
        assert chosen.ids[:begin] == rejected.ids[:begin] == made.prompt(pair)
        assert chosen.ids != rejected.ids


# --- On the disk ---


@pytest.fixture
def split(tmp_path: pathlib.Path) -> pathlib.Path:
    return written(
        tmp_path / "train.jsonl", [dataset.example(row, job.Format.CHAT, "x") for row in tiny.examples(2500)]
    )


def written(path: pathlib.Path, examples: list[dataset.Example]) -> pathlib.Path:
    path.write_text("".join(one.line() for one in examples))
    return path


@pytest.fixture
def real(base: pathlib.Path) -> tokens.Encoder:
    return tokens.load(base, job.Training(max_sequence_length=512))


def test_a_corpus_holds_what_the_encoder_gives(
    split: pathlib.Path, real: tokens.Encoder, tmp_path: pathlib.Path
) -> None:
    made = corpus.build(split, real, tmp_path / "cache")
    expected = [real.encode(one) for one in dataset.frozen(split)]
    assert list(made) == expected
    assert (len(made), made.examples, made.pairs) == (2500, 2500, False)
    assert made.lengths.tolist() == [len(one.ids) for one in expected]
    assert made.trainable.tolist() == [one.trainable for one in expected]
    assert not made.ids(7).flags.owndata
    assert made.ids(7).dtype == np.int32
    assert made.learned(7).tolist() == expected[7].learned
    with pytest.raises(IndexError):
        made[2500]


def test_a_corpus_is_read_from_the_disk_and_not_into_memory(
    split: pathlib.Path, real: tokens.Encoder, tmp_path: pathlib.Path
) -> None:
    made = corpus.build(split, real, tmp_path / "cache")
    assert isinstance(made.all_ids, np.memmap)
    assert isinstance(made.all_learned, np.memmap)
    chosen = made.select([3, 1])
    assert list(chosen) == [made[3], made[1]]
    assert chosen.all_ids is made.all_ids


def test_examples_are_encoded_without_holding_all_of_them(
    real: tokens.Encoder, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "EXAMPLES", 64)
    split = written(
        tmp_path / "big.jsonl", [dataset.Example("x", text=f"{n} " + "the fox " * 100) for n in range(2000)]
    )
    tracemalloc.start()
    made = corpus.build(split, real, tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.all_ids.nbytes > 1e6
    assert peak < 2e6


def test_encoded_examples_are_not_encoded_again(
    split: pathlib.Path, real: tokens.Encoder, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list(corpus.build(split, real, tmp_path / "cache"))
    monkeypatch.setattr(tokens.Encoder, "details", lambda *given: pytest.fail("encoded again"))
    assert list(corpus.build(split, real, tmp_path / "cache")) == first


def damage(path: pathlib.Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(data[:-5] if how == "cut" else data[:20] + bytes([data[20] ^ 1]) + data[21:])


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_cache_is_made_again(real: tokens.Encoder, tmp_path: pathlib.Path, how: str) -> None:
    few = [dataset.example(row, job.Format.CHAT, "x") for row in tiny.examples(50)]
    split = written(tmp_path / "train.jsonl", few)
    first = list(corpus.build(split, real, tmp_path / "cache"))
    for name in ("ids.bin", "learned.bin", "ends.npy", "trainable.npy", "truncated.npy", corpus.INFO):
        (path,) = (tmp_path / "cache").glob(f"*/{name}")
        damage(path, how)
        assert list(corpus.build(split, real, tmp_path / "cache")) == first, name


def test_other_examples_settings_or_tokenizers_are_another_corpus(split: pathlib.Path, real: tokens.Encoder) -> None:
    identities = {
        real.identity,
        dataclasses.replace(real, max_length=100).identity,
        dataclasses.replace(real, loss_on=job.LossOn.ALL).identity,
        dataclasses.replace(real, files="other").identity,
    }
    assert len(identities) == 4
    assert len({corpus.key(sha, identity) for sha in ("a", "b") for identity in identities}) == 8


def test_an_encoding_that_is_interrupted_leaves_nothing(
    split: pathlib.Path, real: tokens.Encoder, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    details, calls = tokens.Encoder.details, []

    def dying(self: tokens.Encoder, examples: Any) -> Any:
        calls.append(len(examples))
        if len(calls) == 2:
            raise errors.Stopped
        return details(self, examples)

    monkeypatch.setattr(tokens.Encoder, "details", dying)
    with pytest.raises(errors.Stopped):
        corpus.build(split, real, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_example_that_the_template_refuses_is_named(
    split: pathlib.Path, real: tokens.Encoder, tmp_path: pathlib.Path
) -> None:
    real.tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(errors.Failure, match="x: the model's chat template refuses it") as caught:
        corpus.build(split, real, tmp_path / "cache")
    assert caught.value.reason is reasons.Reason.DATASET_INVALID


def test_examples_without_a_learned_token_are_left_out_pairs_as_a_whole(
    real: tokens.Encoder, tmp_path: pathlib.Path
) -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dataset.Example:
        turns = (dataset.Message("user", prompt), dataset.Message("assistant", chosen))
        return dataset.Example("x", turns, rejected=rejected)

    short = dataclasses.replace(real, max_length=20)
    made = corpus.build(
        written(
            tmp_path / "a.jsonl", [pair("dog", "yes", "no"), pair("dog " * 30, "yes", "no"), pair("fox", "a", "b")]
        ),
        short,
        tmp_path / "cache",
    )
    assert (len(made), made.examples, made.pairs) == (6, 3, True)
    left = made.taught()
    assert list(left) == [made[0], made[1], made[4], made[5]]
    assert made.teaching.tolist() == [True, False, True]
    assert list(made.select([2])) == [made[4], made[5]]


def test_an_empty_split_is_a_corpus_too(real: tokens.Encoder, tmp_path: pathlib.Path) -> None:
    made = corpus.build(written(tmp_path / "none.jsonl", []), real, tmp_path / "cache")
    assert (len(made), made.examples, list(made), made.lengths.tolist()) == (0, 0, [], [])
    assert len(made.taught()) == 0


# --- From preflight to training ---


def loaded(spec: run.Run, base: pathlib.Path) -> corpus.Splits:
    return corpus.load(storage.Storage(), spec.layout.data, base, spec.training)


@pytest.mark.parametrize("form", ["chat", "preference"])
def test_training_takes_the_tokens_that_preflight_made(
    world: World, base: pathlib.Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    spec = world() if form == "chat" else world(pairs(60), training={"objective": "DPO"})
    preflight.preflight(spec)
    monkeypatch.setattr(tokens, "load", lambda *given: pytest.fail("training needs no tokenizer"))
    found = loaded(spec, base)
    monkeypatch.undo()
    made = tokens.load(base, spec.training)
    folder = pathlib.Path(spec.layout.data.removeprefix("file://"))
    for name, part in (("train", found.train), ("validation", found.validation)):
        assert list(part) == [row for one in dataset.frozen(folder / f"{name}.jsonl") for row in made.rows(one)]
    assert found.template == tiny.CHAT_TEMPLATE
    assert found.train.pairs is (form == "preference")
    assert found.sha256 == getattr(folders.manifest(storage.Storage(), spec.layout.data), "sha256", None)


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": f"Is {n} late?"}], "chosen": f"it is {n}", "rejected": "Thank you"}
        for n in range(count)
    ]


def test_another_tokenizer_than_preflights_encodes_the_text_again(
    world: World, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    import shutil

    spec = world()
    preflight.preflight(spec)
    first = loaded(spec, base)
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    (moved / "chat_template.jinja").write_text("Hello\n" + tiny.CHAT_TEMPLATE)
    again = loaded(spec, moved)
    assert again.train.lengths.tolist() != first.train.lengths.tolist()
    assert list(again.train) == [
        tokens.load(moved, spec.training).encode(one) for one in dataset.frozen(machine.work() / "data/train.jsonl")
    ]
    assert again.template == "Hello\n" + tiny.CHAT_TEMPLATE


def test_model_weights_do_not_change_the_identity_of_the_encoder(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """preflight fetches tokenizer and configuration only."""
    before = tokens.files(base)
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert tokens.files(tmp_path) == before
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert tokens.files(tmp_path) == before
    (tmp_path / "chat_template.jinja").write_text("other")
    assert tokens.files(tmp_path) != before


def test_files_that_are_there_already_are_not_fetched_again(
    world: World, base: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world()
    preflight.preflight(spec)
    fetched: list[str] = []
    download = storage.Storage.download
    monkeypatch.setattr(
        storage.Storage, "download", lambda self, uri, path: (fetched.append(uri), download(self, uri, path))[1]
    )
    loaded(spec, base)
    assert len(fetched) == 12
    assert not any(uri.endswith(".jsonl") for uri in fetched)
    (machine.work() / "data/corpus/train/ids.bin").write_bytes(b"x")
    loaded(spec, base)
    assert len(fetched) == 13


def test_a_split_that_is_missing_or_teaches_nothing_is_explained(world: World, base: pathlib.Path) -> None:
    spec = world()
    with pytest.raises(errors.Failure, match="run the preflight stage") as caught:
        loaded(spec, base)
    assert caught.value.reason is reasons.Reason.DATASET_NOT_FOUND
    preflight.preflight(spec)
    short = spec.model_copy(update={"training": spec.training.model_copy(update={"max_sequence_length": 16})})
    with pytest.raises(errors.Failure, match="no training example has a token to learn"):
        loaded(short, base)


@pytest.mark.parametrize("part", ["train", "test"])
def test_pairs_and_other_examples_do_not_mix(world: World, tmp_path: pathlib.Path, part: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(tiny.jsonl(pairs(60)))
    (tmp_path / "chats.jsonl").write_text(tiny.jsonl(tiny.examples(2)))
    first, second = (f"file://{tmp_path}/{name}.jsonl" for name in ("pairs", "chats"))
    changes = {"train": [first, second]} if part == "train" else {"train": [first], "test": {"uris": [second]}}
    with pytest.raises(errors.Failure, match=r"chats.jsonl:1: .*a dataset has only pairs, or none") as caught:
        preflight.preflight(world(dataset=changes, training={"objective": "DPO"}))
    assert caught.value.reason is reasons.Reason.DATASET_INVALID
