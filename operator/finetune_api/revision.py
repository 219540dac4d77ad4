"""What a revision consists of, its name, and its run file: shared by the operator and runs without a cluster.

spec -> inputs (sections) -> `training`, the revision's hash; `evaluation`, the hash of its evaluation spec + resolved base
model -> `run_of`, the run file of its stages

Pure. What an edit means, against the record of an earlier reconcile, is the operator's: `finetune_operator.revisions`.
"""

import collections
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from finetune_api import basemodel, job, run

RUN_ANNOTATION = "finetune.dev/run"
"""Any new value requests a new run with the same spec."""

TRAINING = "training"
PREFLIGHT = "preflight"
EVALUATION = "evaluation"
RELEASE = "release"
ENVIRONMENT = "environment"
"""Where and with which resources the stages run: changes no result, but an edit retries a failed stage."""
BASE_MODEL = "baseModel"
POOL = "pool"
"""The ServingPool that serves the revision; absent: a server of the job's own."""


def digest(value: Any, length: int = 64) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:length]


def inputs(spec: job.FineTuneJobSpec, run_annotation: str, *, chosen: bool = False) -> dict[str, dict[str, Any]]:
    """The spec, sorted into the sections that decide which stages run again. Absent fields are recorded as null.

    `chosen`: without the fields that have their default; an empty part becomes null or empty.
    """
    whole: dict[str, Any] = collections.defaultdict(
        dict, spec.model_dump(mode="json", by_alias=True, exclude_defaults=chosen)
    )
    # A candidate is a revision of its own, whose spec names it: see `finetune_api.candidates`.
    base_model = {k: v for k, v in whole["baseModel"].items() if k != "candidates"}
    dataset = dict(whole["dataset"])
    training = {k: v for k, v in whole["training"].items() if k not in {"retries", "checkpoints"}}
    minimum = dataset.pop("minimumExamples", None)
    data_store = dataset.pop("storage", None)
    intent = dict(whole["intent"])
    evaluation = {
        **whole["evaluation"],
        "prompt": intent.pop("prompt", None),
        "retrieval": intent.pop("retrieval", None),
    }
    optimizer = dict((evaluation["prompt"] or {}).get("optimizer") or {})
    optimizer_key = optimizer.pop("apiKeySecret", None)
    if evaluation["prompt"]:
        evaluation["prompt"] = {**evaluation["prompt"], "optimizer": optimizer or None}
    judge = dict(evaluation["judge"]) if evaluation.get("judge") else {}
    judge_key = judge.pop("apiKeySecret", None)
    if judge:
        evaluation["judge"] = judge
    candidates = [dict(one) for one in evaluation.pop("candidates", None) or []]
    candidate_keys = {one["name"]: key for one in candidates if (key := one.pop("apiKeySecret", None))}
    evaluation["candidates"] = candidates or None
    environment = {
        "storage": whole["storage"],
        "datasetStorage": data_store,
        "resources": whole["resources"],
        "evaluationResources": evaluation.pop("resources", None),
        "judgeApiKeySecret": judge_key,
        "candidateApiKeySecrets": candidate_keys or None,
        "optimizerApiKeySecret": optimizer_key,
        "activeDeadlineSeconds": whole["activeDeadlineSeconds"],
        "retries": whole["training"].get("retries"),
    }
    # Recorded only where it affects the weights, so that no other revision's hash has it.
    learned = spec.training.prompt is job.TrainingPrompt.PROMPT or spec.training.teacher is not None
    prompt: dict[str, Any] = {"prompt": spec.intent.prompt.system} if learned else {}
    taught = next((one for one in spec.evaluation.others if one.name == spec.training.teacher), None)
    teacher = {"teacher": {"endpoint": taught.endpoint, "model": taught.model}} if taught else {}
    of_no_release = {"replicas", "rollout", "enabled", "approval", "route", "idle"}
    deployment = {k: v for k, v in whole["deployment"].items() if k not in of_no_release}
    return {
        TRAINING: {
            "baseModel": base_model,
            "dataset": dataset,
            "training": training,
            "run": run_annotation,
            **prompt,
            **teacher,
        },
        PREFLIGHT: {**intent, "minimumExamples": minimum},
        EVALUATION: evaluation,
        RELEASE: deployment,
        ENVIRONMENT: environment,
    }


PLACES = {
    (TRAINING, "prompt"): "spec.intent.prompt.system",
    (TRAINING, "teacher"): "spec.evaluation.candidates",
    (TRAINING, "run"): f"annotation {RUN_ANNOTATION}",
    (PREFLIGHT, "minimumExamples"): "spec.dataset.minimumExamples",
    (EVALUATION, "prompt"): "spec.intent.prompt",
    (EVALUATION, "retrieval"): "spec.intent.retrieval",
    (ENVIRONMENT, "datasetStorage"): "spec.dataset.storage",
    (ENVIRONMENT, "evaluationResources"): "spec.evaluation.resources",
    (ENVIRONMENT, "judgeApiKeySecret"): "spec.evaluation.judge.apiKeySecret",
    (ENVIRONMENT, "candidateApiKeySecrets"): "spec.evaluation.candidates",
    (ENVIRONMENT, "optimizerApiKeySecret"): "spec.intent.prompt.optimizer.apiKeySecret",
    (ENVIRONMENT, "retries"): "spec.training.retries",
}
"""Where an input stands in the manifest, unless below its section's own object."""
OBJECTS = {PREFLIGHT: "spec.intent", EVALUATION: "spec.evaluation", RELEASE: "spec.deployment"}


def field_of(section: str, path: str) -> str:
    """The field of the manifest that an input of a section comes from: (training, training.lora.rank) is
    spec.training.lora.rank."""
    first, dot, rest = path.partition(".")
    return PLACES.get((section, first), f"{OBJECTS.get(section, 'spec')}.{first}") + dot + rest


def training_hash(sections: Mapping[str, Any]) -> str:
    """The name of a revision: a hash of everything that affects the weights."""
    return digest(sections[TRAINING], 8)


def evaluation_hash(sections: Mapping[str, Any]) -> str:
    """The name of an evaluation of a revision."""
    return digest(sections[EVALUATION], 8)


def resolve(reference: job.BaseModelReference, entry: basemodel.BaseModelSpec | None) -> run.ResolvedBaseModel | None:
    """The base model that a reference resolves to; None when the catalogue lacks it."""
    if reference.source is not None:
        name = reference.source.rstrip("/").rsplit("/", 1)[-1].lower()
        return run.ResolvedBaseModel(
            name=name, source=reference.source, revision=reference.revision, learning_rate_rule="Formula"
        )
    if entry is None or reference.name is None:
        return None
    return run.ResolvedBaseModel(
        name=reference.name,
        source=entry.source,
        revision=entry.revision,
        parameters=entry.parameters,
        architecture=entry.architecture,
        access_token_secret=entry.access_token_secret,
        storage=entry.storage,
        extra_args=entry.defaults.serving.extra_args,
        learning_rate=entry.defaults.training.learning_rate,
        learning_rate_rule="Formula",
    )


def run_of(
    spec: job.FineTuneJobSpec,
    base: run.ResolvedBaseModel,
    *,
    name: str,
    namespace: str,
    revision: str,
    evaluation_hash: str,
    memory: str | None = None,
    price_per_gpu_hour: float | None = None,
    currency: str | None = None,
    uid: str | None = None,
    evaluating: run.Place | None = None,
    serving: run.Place | None = None,
) -> run.Run:
    """The run file of a revision. For memory, price and currency see `run.Run`."""
    made = run.Run(
        name=name,
        namespace=namespace,
        uid=uid,
        revision=revision,
        evaluation_hash=evaluation_hash,
        intent=spec.intent,
        base_model=base,
        dataset=spec.dataset,
        storage=spec.storage,
        training=spec.training,
        evaluation=spec.evaluation,
        gpus=spec.resources.gpus,
        nodes=spec.resources.nodes,
        memory=memory,
        gpu_type=spec.resources.gpu_type,
        evaluating=evaluating,
        serving=serving,
        price_per_gpu_hour=price_per_gpu_hour,
        served_model_name=spec.deployment.served_model_name or name,
    )
    return made if currency is None else made.model_copy(update={"currency": currency})
