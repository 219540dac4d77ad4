"""The run file: all inputs of a stage's pod, as JSON. The operator writes it, the trainer image reads it.

It works without Kubernetes too: write one by hand, with file:// URIs instead of s3://, and start the stages one by one.
"""

from typing import Literal

from pydantic import Field

from finetune_api import basemodel, candidates, job, layout, model

PATH = "/etc/finetune/run.json"
"""Where the pods find the run file."""

MODEL_PATH = "/models/base"
"""Where the pods find the base model when it is mounted (pvc://), and where the server's fetch puts it."""

ADAPTER_PATH = "/models/adapter"

CACHE_PATH = "/model-cache"
"""Where the pods find the claim with base models that the namespace shares; MODEL_PATH is then a link into it."""

FETCHED = "FINETUNE_FETCHED_MODEL"
"""Environment of a stage whose init container has fetched an hf:// or s3:// model: its folder. Absent: the stage fetches."""

METRICS_PORT = 9400
"""Port of a stage's pod for its Prometheus metrics and its progress."""

PROGRESS_PATH = "/progress"
"""Path of the progress on that port: an `outcome.ProgressReport`; 204 if there is none yet."""

PROGRESS_BYTES = 4096
"""Maximum size of a report; a longer one is ignored."""

SERVER_PORT = 8000
"""Port of vLLM and of its Service."""

RENDEZVOUS_PORT = 29500
"""Port of the first of several training pods, to which the others connect."""

NODES, NODE, RENDEZVOUS = "FINETUNE_NODES", "FINETUNE_NODE", "FINETUNE_RENDEZVOUS"
"""Environment of the pods of a multi-node training: their number, the index of this one (from 0), and host:port of the first.
Absent for a single pod. The run file describes the spec, these the current attempt."""

DATA_PATH = "/data"
"""Where the pods find the claims of pvc:// data files, each in a folder of its name."""

DATA_KEYS, BASE_MODEL_KEYS = "DATA_", "BASE_MODEL_"
"""Prefixes of the AWS_ variables with the keys of dataset.storage and of the BaseModel's storage."""

GPUS = "FINETUNE_GPUS"
"""Environment of a stage's pod: the GPUs that it was granted. Absent without any."""

CA_PATH = "/etc/finetune-ca/ca.crt"
"""Where the pods find the bundle of certificate authorities, if the job or the chart names one."""

JUDGE_KEY = "JUDGE_API_KEY"
"""Environment of the evaluation's pod: the key of evaluation.judge."""

OPTIMIZER_KEY = "OPTIMIZER_API_KEY"
"""Environment of the pods of baseline and evaluation: the key of intent.prompt.optimizer."""

CANDIDATE_KEYS = "CANDIDATE_API_KEY_"
"""Prefix of the environment of the pods of baseline and evaluation with the keys of evaluation.candidates."""


def candidate_key(name: str) -> str:
    """The variable with the key of a candidate: CANDIDATE_API_KEY_GPT_LARGE for gpt-large."""
    return CANDIDATE_KEYS + name.upper().replace("-", "_")


class ResolvedBaseModel(model.Model):
    """The base model, resolved from the catalogue or the job's own source."""

    name: str = Field(description="The name under which it is served, and the adapter's base_model_name_or_path.")
    source: basemodel.Source
    revision: str | None = None
    parameters: int | None = None
    architecture: basemodel.Architecture | None = None
    access_token_secret: str | None = None
    storage: job.Connection | None = None
    extra_args: list[str] = Field(default_factory=list, description="Arguments of vLLM from the catalogue.")
    learning_rate: float | None = Field(default=None, description="The catalogue's default for jobs that set none.")
    learning_rate_rule: Literal["Formula"] | None = Field(
        default=None,
        description="How the learning rate of a job is chosen if neither it nor the catalogue has one. Absent in records of "
        "earlier versions: 2e-4, or 1e-4 from 30 billion parameters on.",
    )


class Place(model.Model):
    """What the pods of a later stage may use, by spec and chart."""

    gpus: int = 0
    memory: job.Quantity | None = Field(default=None, description="Of each GPU. Absent: unknown.")
    arguments: list[str] = Field(default_factory=list, description="vLLM's, if a server runs there.")


class PoolRun(model.Model):
    """The run file of a ServingPool's pods, which no job owns: what their init container fetches."""

    name: str
    namespace: str
    base_model: ResolvedBaseModel
    storage: job.Connection

    @property
    def revision(self) -> str:
        """Of logs: a pool has none."""
        return ""


class Run(model.Model):
    """One revision of one job."""

    name: str
    namespace: str
    uid: str | None = Field(
        default=None,
        description="The job's uid, which differs from that of a later job with the same name. Absent outside a "
        "cluster.",
    )
    revision: str
    evaluation_hash: str
    intent: job.Intent = Field(default_factory=job.Intent)
    base_model: ResolvedBaseModel
    dataset: job.Dataset
    storage: job.Storage
    training: job.Training = Field(
        description="As in the spec; baseModel.learningRate applies if it sets no learning rate."
    )
    evaluation: job.Evaluation = Field(default_factory=job.Evaluation)
    gpus: int = Field(default=0, description="GPUs of each training pod; the trainer runs one process on each.")
    nodes: int = Field(
        default=1, description="Training pods by the spec; the number of an attempt is in its environment."
    )
    memory: job.Quantity | None = Field(
        default=None,
        description="Memory that training may use: per GPU by its gpuType, or per pod on CPUs. Absent: unknown.",
    )
    gpu_type: str | None = Field(default=None, description="resources.gpuType of the training.")
    evaluating: Place | None = Field(
        default=None,
        description="Where baseline and evaluation will run; only for preflight, which judges their memory.",
    )
    serving: Place | None = Field(default=None, description="The same of the server; absent without one.")
    gpu_types: dict[str, float] | None = Field(
        default=None,
        description="GiB of one GPU of each of the chart's gpuTypes; only for preflight, which names one that would do.",
    )
    price_per_gpu_hour: float | None = Field(
        default=None, description="The chart's price of that type. Absent: unknown."
    )
    currency: str = Field(default="USD", description="The currency of all prices.")
    served_model_name: str
    measured: list[candidates.Measured] | None = Field(
        default=None,
        description="What smaller models reached in jobs of the namespace; only for preflight of a large base model.",
    )
    smaller: list[candidates.Candidate] | None = Field(
        default=None,
        description="Those of baseModel.candidates that were evaluated before and missed a gate; only for the evaluation, whose "
        "report shows them.",
    )
    progress_file: str | None = Field(
        default=None,
        description="A file of this machine that the trainer writes its progress to, an `outcome.ProgressReport`; absent in a "
        "cluster, where the pod is asked.",
    )

    def without_judgement(self) -> "Run":
        """The run file for stages that do not evaluate: training, verification and the server's init container."""
        system = self.intent.prompt.system if self.training.teacher else self.trained_prompt
        intent = job.Intent(prompt=job.Prompt(system=system))
        update = {"intent": intent, "evaluation": job.Evaluation(gates=[]), "evaluation_hash": ""}
        return self.without_later_stages().model_copy(update=update)

    def without_later_stages(self) -> "Run":
        """The run file for all stages but preflight: an edit of what a later stage requests changes nothing for them."""
        later = ("evaluating", "serving", "measured", "smaller", "gpu_types")
        return self.model_copy(update=dict.fromkeys(later))

    @property
    def trained_prompt(self) -> str | None:
        """The system prompt that the adapter is trained and asked with in place of the examples' own; None: their own."""
        return self.intent.prompt.system if self.training.prompt is job.TrainingPrompt.PROMPT else None

    @property
    def teaching(self) -> job.Candidate | None:
        """The candidate that writes the answers (training.teacher); None: the base model does, or they are those of the rows."""
        return next((one for one in self.evaluation.others if one.name == self.training.teacher), None)

    @property
    def contending(self) -> list[job.Candidate]:
        """The candidates that the tuned model is compared with."""
        return [one for one in self.evaluation.others if one.name != self.training.teacher]

    @property
    def data(self) -> list[str]:
        """The URIs of all data files: of the splits, and of the evaluation."""
        held_out = [*(self.dataset.validation.uris or []), *(self.dataset.test.uris or [])]
        asked = [
            *(self.evaluation.forgetting.uris or []),
            *(self.intent.retrieval.uris if self.intent.retrieval else []),
        ]
        for task in self.evaluation.harness.tasks if self.evaluation.harness else []:
            asked += [*(task.uris or []), *(task.few_shot_uris or [])]
        return [*self.dataset.train, *held_out, *asked]

    @property
    def examples(self) -> str:
        """Folder of the examples with the answers that are learned and tested: the frozen split, or the teacher's copy of it."""
        return self.layout.taught if self.training.teacher else self.layout.data

    @property
    def layout(self) -> layout.Layout:
        return layout.Layout(self.storage.output, self.namespace, self.name, self.revision)
