"""What a job names, before its data are read: can the output be written, and the base model, documents and benchmarks be used?

Each raises Failure with what to change.
"""

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

from finetune_api import reasons, run
from finetune_trainer.data import tokens
from finetune_trainer.evaluation import documents, feasible, metrics
from finetune_trainer.planning import architecture
from finetune_trainer.process import errors, imports, log
from finetune_trainer.store import folders, sources, storage


def may_list(spec: run.Run, store: storage.Storage) -> None:
    """Raises Failure now where the key may not list the output. A missing object then looks like a forbidden one, and training
    could not find its checkpoints."""
    next(iter(store.entries(f"{spec.layout.root}/")), None)


def writable(spec: run.Run, store: storage.Storage) -> None:
    """Raises now the error that training would raise after its last step."""
    marker = f"{spec.layout.root}/.writable"
    try:
        store.write(marker, b"")
        store.read(marker)
    except errors.Failure as failure:
        if not marker.startswith("file://"):
            raise  # S3's messages say what to check
        message = f"storage.output cannot be written: {failure.message}"
        raise errors.Failure(failure.reason, message) from failure
    if not folders.discard(store, marker):
        log.warning(
            "the key may not delete objects (s3:DeleteObject): checkpoints and replaced files stay behind",
            output=spec.layout.root,
        )


def check_schema(spec: run.Run) -> None:
    """Raises Failure(InvalidSpec) now for a schema that the evaluation could not use."""
    if spec.evaluation.output_schema is None:
        return
    try:
        metrics.validator(spec.evaluation.output_schema)
    except ValueError as error:
        raise errors.Failure(
            reasons.Reason.INVALID_SPEC, f"evaluation.outputSchema is not a usable JSON Schema: {error}"
        ) from None


def check_documents(spec: run.Run, store: storage.Storage) -> None:
    """Raises Failure now for documents that the evaluation could not find."""
    if spec.intent.retrieval is not None:
        documents.find(store, spec.intent.retrieval.uris)


def check_benchmarks(spec: run.Run, store: storage.Storage, encoder: tokens.Encoder) -> dict[str, dict[str, Any]]:
    """What is known of each benchmark: the fields of task_gates.Known. Raises Failure now for benchmarks that the evaluation
    could not run, and for gates on them that it could not decide."""
    rules = spec.evaluation.harness
    if rules is None:
        return {}
    if rules.chat_template and not encoder.tokenizer.chat_template:
        raise errors.Failure(
            reasons.Reason.INVALID_SPEC,
            f"evaluation.harness.chatTemplate: {spec.base_model.source} has no chat template; leave it out",
        )
    from finetune_trainer.harness import measures, tasks

    known = {task.name: measures.known(task) for task in tasks.load(spec, rules, store)}
    feasible.check_benchmarks(rules, known)
    return {name: dataclasses.asdict(one) for name, one in known.items()}


def load(spec: run.Run, folder: pathlib.Path) -> tokens.Encoder:
    """The encoder, after checking that the model can be trained. Raises Failure(ModelInvalid)."""
    config = sources.check(folder, spec.base_model.source, weights=False)
    kind = config.get("model_type")
    known = kind in architecture.FAST
    if not known and not is_causal(kind):
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: config.json says model_type {kind!r}, which is not a causal language model that "
            "this trainer knows; choose another base model",
        )
    if problem := architecture.tower(config):
        raise errors.Failure(reasons.Reason.MODEL_INVALID, f"{spec.base_model.source}: {problem}")
    if missing := architecture.missing_sizes(config):
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: config.json does not say {', '.join(missing)}, without which the weights cannot be "
            "loaded; copy the config.json that belongs to them",
        )
    try:
        lean = known and spec.evaluation.harness is None  # the package of benchmarks may ask transformers for models
        with imports.without("torch", "transformers") if lean else contextlib.nullcontext(False) as absent:
            if absent:
                os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = (
                    "1"  # it would advise to install torch; a tokenizer needs none
                )
            return tokens.load(folder, spec.training, spec.trained_prompt)
    except Exception as error:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: the tokenizer cannot be loaded ({errors.describe(error)}); the folder needs "
            "tokenizer.json and tokenizer_config.json",
        ) from error


def is_causal(kind: object) -> bool:
    """Whether transformers has a causal language model of this model_type."""
    from transformers.models.auto import modeling_auto

    return kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def adapted_layers(spec: run.Run, folder: pathlib.Path) -> dict[str, Any]:
    """What of the base model learns, as far as it is not that of every transformer. Raises Failure(MODEL_INVALID)."""
    if sources.check(folder, spec.base_model.source, weights=False).get("model_type") in architecture.FAST:
        return {}
    from finetune_trainer.engine import adapted

    found = adapted.find(folder, spec.training.lora.target_modules)
    if found is None:
        return {}
    if found.towers:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: training.lora.targetModules: {spec.training.lora.target_modules} would adapt "
            f"{len(found.towers)} layers that read images or sound, such as {found.towers[0]}; choose the model of the same "
            "family for text alone",
        )
    return {"experts": found.experts, "layers": list(found.names)}
