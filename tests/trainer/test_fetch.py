import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from finetune_api import reasons, run
from finetune_trainer.process import errors
from finetune_trainer.stages import fetch
from finetune_trainer.store import folders, sources, storage

World = Callable[..., run.Run]


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> tuple[str, str]:
    """URI and SHA-256 of an adapter's folder."""
    local = tmp_path / "local"
    local.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"):
        (local / name).write_text(name)
    uri = f"file://{tmp_path}/adapter"
    return uri, folders.save(storage.Storage(), local, uri).sha256


def test_the_adapter_arrives_complete_with_its_chat_template(
    world: World, saved: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    to = tmp_path / "to" / "adapter"
    answer = fetch.fetch(world(), *saved, tmp_path / "base", to)
    assert answer.reason is None
    assert (to / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert sorted(path.name for path in to.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "manifest.json",
    ]
    assert not (tmp_path / "base").exists(), "a file:// base stays where it is"


def test_a_second_fetch_does_nothing(
    world: World, saved: tuple[str, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch.fetch(world(), *saved, tmp_path / "base", tmp_path / "to")
    monkeypatch.setattr(folders, "load", None)
    fetch.fetch(world(), *saved, tmp_path / "base", tmp_path / "to")


def test_files_of_an_earlier_attempt_are_replaced(world: World, saved: tuple[str, str], tmp_path: pathlib.Path) -> None:
    to = tmp_path / "to"
    (to / ".part").mkdir(parents=True)
    (to / ".part" / "half").write_text("x")
    (to / "adapter_model.safetensors").write_text("old")
    fetch.fetch(world(), *saved, tmp_path / "base", to)
    assert (to / "adapter_model.safetensors").read_text() == "adapter_model.safetensors"
    assert not (to / ".part").exists()


def test_another_adapter_than_the_evaluated_one_is_not_served(
    world: World, saved: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(errors.Failure, match="replaced"):
        fetch.fetch(world(), saved[0], "0" * 64, tmp_path / "base", tmp_path / "to")
    path = pathlib.Path(saved[0].removeprefix("file://")) / "adapter_model.safetensors"
    path.write_text("changed")
    with pytest.raises(errors.Failure, match="SHA-256"):
        fetch.fetch(world(), *saved, tmp_path / "base", tmp_path / "to")
    assert not (tmp_path / "to" / "manifest.json").exists()


def test_a_missing_adapter_is_reported(world: World, tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.Failure, match="no complete adapter") as caught:
        fetch.fetch(world(), f"file://{tmp_path}/none", "0" * 64, tmp_path / "base", tmp_path / "to")
    assert caught.value.reason is reasons.Reason.ADAPTER_INCOMPATIBLE


def test_a_base_model_in_s3_is_copied_with_its_weights(
    world: World, saved: tuple[str, str], tmp_path: pathlib.Path, base: pathlib.Path, s3: Any, s3_server: str
) -> None:
    for path in base.iterdir():
        s3.upload_file(str(path), "data", f"models/tiny/{path.name}")
    for second in ("pytorch_model.bin", "consolidated.safetensors", "consolidated.safetensors.index.json"):
        s3.put_object(Bucket="data", Key=f"models/tiny/{second}", Body=b"the same weights once more")
    spec = world(baseModel={"name": "tiny-base", "source": "s3://data/models/tiny"}, storage={"endpoint": s3_server})
    fetch.fetch(spec, *saved, tmp_path / "base", tmp_path / "to")
    assert {path.name for path in (tmp_path / "base").iterdir()} == {path.name for path in base.iterdir()}
    assert folders.sha256(tmp_path / "base" / "model.safetensors") == folders.sha256(base / "model.safetensors")


def test_a_second_copy_of_the_weights_is_not_fetched_from_the_hub(
    world: World, saved: tuple[str, str], tmp_path: pathlib.Path, base: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import utils

    listed = [path.name for path in base.iterdir()]
    fetched: list[str] = []

    def download(_: str, *, local_dir: pathlib.Path, allow_patterns: Any, ignore_patterns: Any, **__: Any) -> str:
        there = [*listed, "consolidated.safetensors", "original/model.safetensors", "model.bin"]
        fetched.extend(utils.filter_repo_objects(there, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    spec = world(baseModel={"name": "tiny-base", "source": "hf://org/model"})
    fetch.fetch(spec, *saved, tmp_path / "base", tmp_path / "to")
    assert sorted(fetched) == sorted(listed)


def test_weights_only_in_another_format_are_refused(world: World, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "consolidated.safetensors").write_text("weights")
    spec = world(baseModel={"name": "tiny-base", "source": f"file://{folder}"})
    with pytest.raises(errors.Failure, match=r"consolidated\.safetensors") as caught:
        sources.resolve(spec.base_model, storage.of(spec.storage), tmp_path / "base")
    assert caught.value.reason is reasons.Reason.MODEL_INVALID


def test_a_hub_that_cannot_be_reached_is_explained(
    world: World, saved: tuple[str, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    spec = world(baseModel={"name": "tiny-base", "source": "hf://org/model"})
    with pytest.raises(errors.Failure, match="s3:// or pvc:// source") as caught:
        fetch.fetch(spec, *saved, tmp_path / "base", tmp_path / "to")
    assert caught.value.exit == 5
