"""A model folder that was fetched in part, or whose configuration does not fit, is refused before a GPU is requested."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from finetune_api import job, reasons, run
from finetune_trainer.engine import adapted
from finetune_trainer.planning import architecture
from finetune_trainer.process import errors
from finetune_trainer.stages import preflight
from finetune_trainer.store import sources, storage

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 269060552\n"
)


@pytest.fixture
def copy(base: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(base, tmp_path / "copy")
    return tmp_path / "copy"


def configured(folder: pathlib.Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    changed = change(config)
    path.write_text(json.dumps(config if changed is None else changed))


def cut(folder: pathlib.Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def indexed(folder: pathlib.Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda folder: (folder / "model.safetensors").write_text(POINTER),
            ["model.safetensors", "Git LFS", "git lfs pull"],
        ),
        (lambda folder: (folder / "tokenizer.json").write_text(POINTER), ["tokenizer.json", "Git LFS"]),
        (lambda folder: (folder / "config.json").write_text(POINTER), ["config.json", "Git LFS"]),
        (cut, ["model.safetensors is cut off", "copy the model again"]),
        (lambda folder: (folder / "model.safetensors").write_text("Entry not found"), ["not a file of safetensors"]),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), ["not a file of safetensors (0 bytes)"]),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" + b"\0" * 2000), ["header cannot be read"]),
        (indexed, ["names 2 files", "model-00002-of-00002.safetensors"]),
        (lambda folder: configured(folder, lambda config: [config]), ["config.json has a list"]),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), ["config.json is not valid JSON"]),
        (lambda folder: configured(folder, lambda config: config.pop("hidden_size") and None), ["hidden_size"]),
        (lambda folder: configured(folder, lambda config: config.update(vocab_size="384")), ["vocab_size"]),
        (
            lambda folder: configured(folder, lambda _: {"model_type": "llama"}),
            ["does not say", "hidden_size", "num_hidden_layers"],
        ),
    ],
)
def test_a_model_that_could_not_be_loaded_is_invalid_before_training(
    change: Callable[[pathlib.Path], Any], words: list[str], copy: pathlib.Path, world: Any
) -> None:
    change(copy)
    with pytest.raises(errors.Failure) as caught:
        preflight.preflight(world(baseModel={"name": "tiny-base", "source": f"file://{copy}"}))
    assert caught.value.reason is reasons.Reason.MODEL_INVALID
    assert [word for word in words if word not in caught.value.message] == []


@pytest.mark.parametrize("what", ["a file", "a config.json that is a folder", "nothing"])
def test_what_is_no_model_folder_is_named(what: str, copy: pathlib.Path) -> None:
    place = copy / "config.json"
    if what == "a file":
        copy = place
    elif what == "nothing":
        copy = copy / "other"
    else:
        place.unlink()
        place.mkdir()
    with pytest.raises(errors.Failure, match=r"has no config\.json") as caught:
        sources.check(copy, f"file://{copy}")
    assert caught.value.reason is reasons.Reason.MODEL_INVALID


def test_a_pointer_in_s3_is_found_without_downloading_the_weights(
    s3: Any, s3_server: str, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    store = storage.Storage(s3_server, patience=2)
    for path in copy.iterdir():
        store.write(f"s3://data/model/{path.name}", path.read_bytes())
    base = run.ResolvedBaseModel(name="tiny-base", source="s3://data/model")
    assert sources.resolve(base, store, tmp_path / "good", weights=False) == tmp_path / "good"
    assert not (tmp_path / "good" / "model.safetensors").exists()
    store.write("s3://data/model/model.safetensors", POINTER.encode())
    with pytest.raises(errors.Failure, match="Git LFS pointer"):
        sources.resolve(base, store, tmp_path / "bad", weights=False)


@pytest.mark.parametrize(
    "config, missing",
    [
        ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "bos_token_id": 50256}, []),
        ({"model_type": "gpt2", "bos_token_id": 50256}, list(architecture.SIZES)),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 640}}, []),
        ({"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": True}, list(architecture.SIZES[1:])),
    ],
)
def test_a_configuration_has_sizes_under_the_names_of_its_family(config: dict[str, Any], missing: list[str]) -> None:
    assert architecture.missing_sizes(config) == missing


SMALL = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512,
}  # fmt: skip
MIXTRAL = SMALL | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
SHARED = SMALL | {
    "model_type": "qwen2_moe", "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32
}  # fmt: skip
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
OTHER_SIZES = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 384}


def folder_of(config: dict[str, Any], folder: pathlib.Path) -> pathlib.Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "config, modules, names, experts",
    [
        (MIXTRAL, "AllLinear", ATTENTION, 4),
        (MIXTRAL, "Attention", ATTENTION, 4),
        (SHARED, "MLP", ("down_proj", "gate_proj", "shared_expert_gate", "up_proj"), 4),
        (SMALL | {"model_type": "olmo"}, "MLP", ("down_proj", "gate_proj", "up_proj"), None),
    ],
)
def test_what_learns_is_known_from_the_modules_without_weights(
    config: dict[str, Any], modules: str, names: tuple[str, ...], experts: int | None, tmp_path: pathlib.Path
) -> None:
    found = adapted.find(folder_of(config, tmp_path), job.Modules(modules))
    assert found == adapted.Layers(names, (), experts)


@pytest.mark.parametrize("config, modules", [(MIXTRAL, "MLP"), (OTHER_SIZES, "AllLinear"), (OTHER_SIZES, "MLP")])
def test_modules_in_which_nothing_would_learn_are_refused(
    config: dict[str, Any], modules: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(errors.Failure, match=f"targetModules: {modules}") as caught:
        adapted.find(folder_of(config, tmp_path), job.Modules(modules))
    assert caught.value.reason is reasons.Reason.MODEL_INVALID


def test_layers_that_read_images_are_known_by_their_names(tmp_path: pathlib.Path) -> None:
    config = {"model_type": "gemma3", "text_config": SMALL | {"model_type": "gemma3_text", "head_dim": 32}}
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config["vision_config"] = tower | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
    found = adapted.find(folder_of(config, tmp_path), job.Modules.ATTENTION)
    assert found is not None
    assert any("vision_tower" in name for name in found.towers)
    assert not any("language_model" in name for name in found.towers)


def test_a_model_that_cannot_be_built_here_is_left_to_training(tmp_path: pathlib.Path) -> None:
    assert adapted.find(folder_of({"model_type": "of next year"}, tmp_path), job.Modules.ALL_LINEAR) is None


def test_preflight_says_that_experts_do_not_learn_and_refuses_where_nothing_would(
    copy: pathlib.Path, world: Any
) -> None:
    configured(copy, lambda _: MIXTRAL)
    base = {"name": "tiny-base", "source": f"file://{copy}"}
    found = preflight.preflight(world(baseModel=base)).preflight
    assert any("mixture of 4 experts" in one and "q_proj" in one for one in found.advice)
    with pytest.raises(errors.Failure, match="targetModules: MLP"):
        preflight.preflight(world(baseModel=base, revision="r2", training={"lora": {"targetModules": "MLP"}}))


def test_preflight_refuses_a_model_with_a_vision_tower(copy: pathlib.Path, world: Any) -> None:
    configured(copy, lambda config: config.update(vision_config={"hidden_size": 64}))
    with pytest.raises(errors.Failure, match="vision_config") as caught:
        preflight.preflight(world(baseModel={"name": "tiny-base", "source": f"file://{copy}"}))
    assert caught.value.reason is reasons.Reason.MODEL_INVALID
