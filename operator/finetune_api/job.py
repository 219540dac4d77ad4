"""FineTuneJob: what a user requests. Validation is schema and CEL, so that the API server refuses mistakes at once.

Each part of the spec is a module of its own; all are available here, as `job.Training`, `job.Dataset` and so on.
"""

from typing import Any

import pydantic
from pydantic import Field

from finetune_api import model
from finetune_api.basemodel import BaseModelReference, StartingModel
from finetune_api.benchmarks import Harness, Task, TaskGate
from finetune_api.contenders import Candidate, Contender
from finetune_api.dataset import Dataset, Format, Split, Uri, UriList
from finetune_api.deployment import Deployment, Rollout
from finetune_api.evaluation import Consistency, Evaluation, EvaluationEngine, Generation, Judge
from finetune_api.gates import LOWER_IS_BETTER, PAIRWISE, SHARES, Gate, Metric
from finetune_api.intent import Advice, ChangeFrequency, Goal, Intent, Optimizer, Prompt
from finetune_api.resources import (
    Labels,
    LabelValue,
    Limits,
    Quantity,
    Requests,
    Resources,
    Toleration,
    TrainingResources,
)
from finetune_api.storage import Addressing, CaBundle, Checksums, Connection, Encryption, Storage
from finetune_api.training import (
    DPO,
    PROMPTED,
    Checkpoints,
    EarlyStopping,
    GradientCheckpointing,
    LoRA,
    LossOn,
    Method,
    Modules,
    Objective,
    Precision,
    Teacher,
    Training,
    TrainingPrompt,
)

__all__ = [
    "DPO",
    "LOWER_IS_BETTER",
    "MAXIMUM_NAME",
    "NAME_RULES",
    "PAIRWISE",
    "PRINTER_COLUMNS",
    "PROMPTED",
    "SHARES",
    "Addressing",
    "Advice",
    "BaseModelReference",
    "CaBundle",
    "Candidate",
    "ChangeFrequency",
    "Checkpoints",
    "Checksums",
    "Connection",
    "Consistency",
    "Contender",
    "Dataset",
    "Deployment",
    "EarlyStopping",
    "Encryption",
    "Evaluation",
    "EvaluationEngine",
    "FineTuneJobSpec",
    "Format",
    "Gate",
    "Generation",
    "Goal",
    "GradientCheckpointing",
    "Harness",
    "Intent",
    "Judge",
    "LabelValue",
    "Labels",
    "Limits",
    "LoRA",
    "LossOn",
    "Method",
    "Metric",
    "Modules",
    "Objective",
    "Optimizer",
    "Precision",
    "Prompt",
    "Quantity",
    "Requests",
    "Resources",
    "Rollout",
    "Split",
    "StartingModel",
    "Storage",
    "Task",
    "TaskGate",
    "Teacher",
    "Toleration",
    "Training",
    "TrainingPrompt",
    "TrainingResources",
    "Uri",
    "UriList",
]

MAXIMUM_NAME = 40
"""Longest metadata.name: children append revision, stage and attempt, and Kubernetes names have at most 63 characters."""


def _part(data: Any, name: str) -> dict[str, Any] | None:
    """A part of a spec that may not be valid; None if it is not an object."""
    found = (data.get(name) or {}) if isinstance(data, dict) else None
    return found if isinstance(found, dict) else None


class FineTuneJobSpec(model.Model):
    """One job from data to an evaluated, served model."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "self.training.objective != 'DPO' || self.dataset.format in ['Preference', 'Auto']",
                "training.objective DPO learns from preferences: set dataset.format to Preference or Auto",
            ),
            (
                "self.training.objective == 'DPO' || self.dataset.format != 'Preference'",
                "dataset.format Preference needs training.objective DPO: set it, or choose another format",
            ),
            (
                "!has(self.evaluation.gates) || !self.evaluation.gates.exists(g, has(g.over) && g.over == 'Prompt') || "
                "has(self.intent.prompt.system)",
                "a gate over Prompt needs intent.prompt.system, the prompt to beat",
            ),
            (
                "!has(self.evaluation.gates) || !self.evaluation.gates.exists(g, has(g.over) && g.over == 'FewShot') || "
                "self.intent.prompt.fewShot > 0",
                "a gate over FewShot needs intent.prompt.fewShot of at least 1",
            ),
            (
                "!has(self.evaluation.gates) || !self.evaluation.gates.exists(g, has(g.over) && g.over == 'RAG') || "
                "has(self.intent.retrieval)",
                "a gate over RAG needs intent.retrieval",
            ),
            (
                "!has(self.intent.prompt.optimizer) || 'Optimized' in self.evaluation.baselines",
                "intent.prompt.optimizer improves the prompts of Optimized: name it in evaluation.baselines, too",
            ),
            (
                "self.training.prompt != 'Prompt' || has(self.intent.prompt.system)",
                "training.prompt Prompt needs intent.prompt.system, the prompt to train with",
            ),
            (
                "!has(self.training.teacher) || self.training.teacher != 'Prompt' || has(self.intent.prompt.system)",
                "training.teacher Prompt needs intent.prompt.system, the prompt with which the base model answers",
            ),
            (
                "!has(self.training.teacher) || self.training.teacher == 'Prompt' || (has(self.evaluation.candidates) && "
                "self.evaluation.candidates.exists(c, c.name == self.training.teacher))",
                "training.teacher must be Prompt or the name of one of evaluation.candidates",
            ),
            (
                "!has(self.training.teacher) || self.dataset.format in ['Chat', 'PromptCompletion', 'Instruction', 'Auto']",
                "training.teacher needs questions: set dataset.format to Chat, PromptCompletion, Instruction or Auto",
            ),
            (
                "!has(self.training.teacher) || self.training.teacher != 'Prompt' || 'Base' in self.evaluation.baselines",
                "with training.teacher Prompt the tuned model is compared with Base: add it to evaluation.baselines",
            ),
            (
                "!has(self.training.teacher) || !has(self.evaluation.gates) || self.evaluation.gates.all(g, !has(g.over) || "
                "self.training.teacher != g.over)",
                "a gate cannot be over training.teacher: its answers are the reference, which nothing can beat: compare with a "
                "baseline or BestBaseline, or set a minimum",
            ),
            (
                "!has(self.training.teacher) || self.training.teacher != 'Prompt' || !has(self.evaluation.gates) || "
                "self.evaluation.gates.all(g, !has(g.over) || "
                "!(g.over in ['Prompt', 'FewShot', 'Retrieved', 'Optimized', 'ManyShot', 'RAG', 'Structured']))",
                "with training.teacher Prompt the answers with it are the reference, which nothing can beat: compare with "
                "Base or BestBaseline, or set a minimum",
            ),
            (
                "self.training.batchSize >= self.resources.nodes * (self.resources.gpus > 0 ? self.resources.gpus : 1)",
                "training.batchSize must be at least resources.nodes times resources.gpus, one example per step for "
                "every GPU: raise it, or use fewer GPUs",
            ),
            (
                "!has(self.baseModel.candidates) || !has(self.evaluation.gates) || self.evaluation.gates.size() > 0 || "
                "(has(self.evaluation.harness) && has(self.evaluation.harness.gates))",
                "baseModel.candidates needs gates, by which a candidate is enough: leave evaluation.gates out for the default "
                "ones, or state some",
            ),
            (
                "!has(self.baseModel.candidates) || !has(self.deployment.pool) || self.deployment.pool == 'Dedicated'",
                "a ServingPool serves one base model: with baseModel.candidates leave deployment.pool out (a default pool of the "
                "candidate that passes is used, if there is one), or set it to Dedicated",
            ),
        )
    }

    @pydantic.model_validator(mode="before")
    @classmethod
    def _servers_of_cpu_jobs(cls, data: Any) -> Any:
        """The default of deployment.resources.gpus depends on resources.gpus."""
        trains, deployment = _part(data, "resources"), _part(data, "deployment")
        serves = _part(deployment, "resources")
        if trains is None or trains.get("gpus") != 0 or deployment is None or serves is None:
            return data
        if "gpus" in serves or serves.get("gpuType", serves.get("gpu_type")) is not None:
            return data
        return {**data, "deployment": {**deployment, "resources": {**serves, "gpus": 0}}}

    intent: Intent = Field(
        default_factory=Intent, description="Goals of the job, the current prompt, and how strictly advice is applied."
    )
    base_model: StartingModel = Field(
        description="The model to start from: exactly one of name, candidates and source."
    )
    dataset: Dataset = Field(description="The examples.")
    storage: Storage = Field(description="Where results are written, and how S3 is reached.")
    training: Training = Field(default_factory=Training, description="How the adapter is trained.")
    resources: TrainingResources = Field(
        default_factory=TrainingResources, description="Number, resources and placement of the training pods."
    )
    evaluation: Evaluation = Field(
        default_factory=Evaluation,
        description="How the tuned model is compared with its baselines, and the gates that it must pass.",
    )
    deployment: Deployment = Field(default_factory=Deployment, description="How the tuned model is served.")
    suspend: bool = Field(
        default=False,
        description="true stops the running stage and keeps its checkpoints; false resumes it. A model that serves "
        "is not affected.",
    )
    active_deadline_seconds: int = Field(
        default=86_400,
        ge=1,
        le=31_536_000,
        description="Seconds that a revision may take from start to end. Waiting is included; suspension and the "
        "time in a queue (resources.queueName) are not. Default: 86400.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=315_360_000,
        description="Seconds after which a Complete or Failed job is deleted. A job that serves is never deleted, "
        "and files in S3 stay. Absent: never.",
    )


NAME_RULES = model.rules(
    (
        f"self.metadata.name.size() <= {MAXIMUM_NAME}",
        f"metadata.name must have at most {MAXIMUM_NAME} characters, since the job's pods add revision, stage and "
        "attempt",
    ),
    (
        "!self.metadata.name.contains('.')",
        "metadata.name must not contain a dot, since the model's Service has the same name",
    ),
    (
        "self.metadata.name.matches('^[a-z]')",
        "metadata.name must begin with a letter, since the model's Service has the same name",
    ),
    (
        "!has(self.spec.baseModel.name) || self.spec.baseModel.name != (has(self.spec.deployment.servedModelName) ? "
        "self.spec.deployment.servedModelName : self.metadata.name)",
        "the served name (deployment.servedModelName, or else metadata.name) must differ from baseModel.name: the server "
        "lists both",
    ),
    (
        "!has(self.spec.baseModel.candidates) || !((has(self.spec.deployment.servedModelName) ? "
        "self.spec.deployment.servedModelName : self.metadata.name) in self.spec.baseModel.candidates)",
        "the served name (deployment.servedModelName, or else metadata.name) must differ from each of baseModel.candidates: the "
        "server lists both",
    ),
)

PRINTER_COLUMNS: list[dict[str, Any]] = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"},
    {"name": "Waiting", "type": "date", "jsonPath": ".status.waiting.since"},
    {"name": "Progress", "type": "string", "jsonPath": ".status.progress.summary"},
    {"name": "ETA", "type": "string", "jsonPath": ".status.progress.eta"},
    {"name": "Loss", "type": "string", "jsonPath": ".status.progress.loss"},
    {"name": "Score", "type": "string", "jsonPath": ".status.evaluation.score"},
    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Model", "type": "string", "jsonPath": ".status.baseModel", "priority": 1},
    {"name": "Revision", "type": "string", "jsonPath": ".status.revision", "priority": 1},
    {"name": "Serving", "type": "string", "jsonPath": ".status.deployment.revision", "priority": 1},
    {"name": "Attempt", "type": "integer", "jsonPath": ".status.attempt", "priority": 1},
    {"name": "Queue", "type": "string", "jsonPath": ".spec.resources.queueName", "priority": 1},
    {"name": "Endpoint", "type": "string", "jsonPath": ".status.deployment.endpoint", "priority": 1},
]
