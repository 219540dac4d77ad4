"""The catalogue that ships: BaseModels with the numbers of their config.json."""

import json
import re
from typing import Any

from tests.chart.conftest import CHART, Render

from finetune_api import basemodel

SHIPPED = {
    "llama-3.1-8b-instruct",
    "llama-3.1-70b-instruct",
    "qwen2.5-7b-instruct",
    "qwen2.5-72b-instruct",
    "mistral-7b-instruct-v0.3",
    "gemma-2-9b-it",
    "gemma-2-27b-it",
}


def models(render: Render, values: Any = None) -> dict[str, basemodel.BaseModelSpec]:
    return {
        name: basemodel.BaseModelSpec.model_validate(manifest["spec"])
        for name, manifest in render(values)["BaseModel"].items()
    }


def parameters(shape: basemodel.Architecture, *, biases: bool, norms: int) -> int:
    """Parameters of a decoder with grouped attention and a gated feed-forward layer, counted from its shape."""
    queries, keys = shape.attention_heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    attention = 2 * shape.hidden_size * queries + 2 * shape.hidden_size * keys
    if biases:
        attention += queries + 2 * keys
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size + norms * shape.hidden_size
    embeddings = shape.vocabulary_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    return embeddings + shape.layers * layer + shape.hidden_size


def test_the_seven_models_ship_and_each_is_a_valid_spec(render: Render) -> None:
    found = models(render)
    assert set(found) == SHIPPED
    for name, spec in found.items():
        assert spec.source.startswith("hf://"), name
        assert spec.architecture, name
        assert spec.family, name
        assert spec.license, name


def test_the_parameters_of_each_model_follow_from_its_architecture(render: Render) -> None:
    for name, spec in models(render).items():
        assert spec.architecture
        # Qwen 2.5 has biases on queries, keys and values; Gemma 2 has four norms in a layer.
        counted = parameters(
            spec.architecture, biases=spec.family == "qwen-2.5", norms=4 if spec.family == "gemma-2" else 2
        )
        assert spec.parameters == counted, name


def test_revisions_are_commits_so_that_jobs_repeat(render: Render) -> None:
    for name, spec in models(render).items():
        assert re.fullmatch(r"[0-9a-f]{40}", spec.revision or ""), name


def test_gated_models_name_their_token(render: Render) -> None:
    gated = {name for name, spec in models(render).items() if spec.access_token_secret}
    assert gated == {name for name in SHIPPED if name.startswith(("llama", "gemma"))}


def test_entries_are_added_changed_and_dropped(render: Render) -> None:
    found = models(
        render,
        {
            "catalogue": {
                "gemma-2-27b-it": None,
                "qwen2.5-7b-instruct": {"source": "s3://models/qwen", "revision": None},
                "own": {"source": "pvc://models/own", "defaults": {"serving": {"extraArgs": ["--max-model-len=4096"]}}},
            }
        },
    )
    assert set(found) == SHIPPED - {"gemma-2-27b-it"} | {"own"}
    changed = found["qwen2.5-7b-instruct"]
    assert (changed.source, changed.revision, changed.family) == ("s3://models/qwen", None, "qwen-2.5")
    assert found["own"].defaults.serving.extra_args == ["--max-model-len=4096"]


def test_the_catalogue_can_be_left_out(render: Render) -> None:
    assert "BaseModel" not in render({"catalogue": None})


def test_the_values_schema_knows_every_field_of_a_base_model() -> None:
    definitions = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    shape, entry = definitions["architecture"], definitions["baseModel"]
    contract = basemodel.BaseModelSpec.model_json_schema(by_alias=True)
    assert set(entry["properties"]) == set(contract["properties"])
    assert set(entry["required"]) == set(contract["required"])
    assert set(shape["properties"]) == set(contract["$defs"]["Architecture"]["properties"])
    assert set(shape["required"]) == set(contract["$defs"]["Architecture"]["required"])
    defaults = entry["properties"]["defaults"]["properties"]
    assert set(defaults) == set(contract["$defs"]["Defaults"]["properties"])
    assert set(defaults["training"]["properties"]) == set(contract["$defs"]["TrainingDefaults"]["properties"])
    assert set(defaults["serving"]["properties"]) == set(contract["$defs"]["ServingDefaults"]["properties"])
