"""All Prometheus metrics of operator and trainer, and those of vLLM that documentation and dashboards use.

All metrics of a job have the labels of JOB, whichever component exports them. Label values are names and constants of the
contract, never numbers or texts that grow with the data, and a job's series end with the job.
"""

import dataclasses
import enum

JOB = ("namespace", "finetunejob", "revision", "stage")
"""Labels of all metrics of a job; scrape rules add the same labels to vLLM's series."""

SERVE = "serve"
"""The value of `stage` for servers, which are not a stage in the API."""


class Kind(enum.StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric family. `name` is as in a query: counters end in _total."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """Its name in Prometheus' Python client."""
        return self.name.removesuffix("_total")


def _gauge(name: str, unit: str, help_: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, unit, help_, labels)


def _counter(name: str, unit: str, help_: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, unit, help_, labels)


# --- the operator itself: counted since its process started ---

STAGE_DURATION = Metric(
    "finetune_stage_duration_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time from the creation of a stage's Job to its end, including waiting for a node.",
    ("stage", "result"),
    (5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 48 * 3600),
)
QUEUE_WAIT = Metric(
    "finetune_queue_wait_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time from the creation of a stage's Job to the start of its container; with resources.queueName, each of its waits "
    "in the queue.",
    ("stage",),
    (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600),
)
RETRIES = _counter("finetune_retries_total", "attempts", "Attempts that failed and are retried.", "stage", "reason")
RECONCILE_DURATION = Metric(
    "finetune_reconcile_duration_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Duration of one reconcile of one job, including its requests to the API server.",
    (),
    (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
RECONCILE_ERRORS = _counter(
    "finetune_reconcile_errors_total",
    "reconciles",
    "Reconciles that failed and are retried: refused by the API server, API server unreachable, or a defect in the "
    "operator.",
    "kind",
)
LEADER = _gauge("finetune_leader", "0 or 1", "1 on the leader, 0 on standby replicas.")
FLEET = _gauge("finetune_jobs", "jobs", "FineTuneJobs by phase; on the leader.", "phase")
POOL_GPUS = _gauge(
    "finetune_pool_gpus",
    "GPUs",
    "GPUs that a ServingPool's pods hold now; on the leader.",
    "namespace",
    "pool",
    "gpu_type",
)

OPERATOR = (STAGE_DURATION, QUEUE_WAIT, RETRIES, RECONCILE_DURATION, RECONCILE_ERRORS, LEADER, FLEET, POOL_GPUS)

# --- each job, from its status: exported by the operator for as long as the job exists ---

STATUS = _gauge(
    "finetune_job_status",
    "always 1",
    "The job's phase, its current stage, and the reason of its Ready condition.",
    *JOB,
    "phase",
    "reason",
)
START = _gauge(
    "finetune_job_start_timestamp_seconds", "Unix time", "When the revision started or was resumed.", *JOB[:3]
)
COMPLETION = _gauge(
    "finetune_job_completion_timestamp_seconds", "Unix time", "When the revision ended, successfully or not.", *JOB[:3]
)
PROGRESS = _gauge("finetune_job_progress_ratio", "0 to 1", "Share of the planned optimizer steps done.", *JOB)
STEPS = _gauge("finetune_job_steps", "steps", "Optimizer steps done.", *JOB)
PLANNED_STEPS = _gauge("finetune_job_planned_steps", "steps", "Optimizer steps planned.", *JOB)
EPOCHS = _gauge("finetune_job_epochs", "epochs", "Passes over the training data done.", *JOB)
LOSS = _gauge("finetune_job_loss", "nats per learned token", "Loss of the last step.", *JOB)
VALIDATION_LOSS = _gauge("finetune_job_validation_loss", "nats per learned token", "Loss of the last validation.", *JOB)
SPEED = _gauge("finetune_job_tokens_per_second", "tokens per second", "Tokens trained on per second.", *JOB)
ETA = _gauge("finetune_job_eta_seconds", "seconds", "Estimated time until training ends, while it runs.", *JOB)
CHECKPOINT_STEP = _gauge(
    "finetune_job_checkpoint_step", "steps", "Optimizer step of the newest checkpoint in S3.", *JOB
)
CHECKPOINT_TIME = _gauge(
    "finetune_job_checkpoint_timestamp_seconds", "Unix time", "When the newest checkpoint was complete in S3.", *JOB
)
EVALUATION = _gauge(
    "finetune_job_evaluation_value",
    "the metric's own",
    "A metric of the evaluation for one contender (Base, Tuned, ...), on held-out test examples.",
    *JOB,
    "metric",
    "contender",
)
PASSED = _gauge("finetune_job_evaluation_passed", "0 or 1", "Whether every gate of the evaluation passed.", *JOB)
REPLICAS = _gauge(
    "finetune_job_replicas",
    "pods",
    "Server pods requested for the serving revision; 0 while they sleep, or wake.",
    *JOB,
)
READY_REPLICAS = _gauge("finetune_job_ready_replicas", "pods", "Ready server pods of the serving revision.", *JOB)
SERVED_SPEED = _gauge(
    "finetune_job_verified_tokens_per_second",
    "tokens per second",
    "Speed of a single request during verification of the serving release.",
    *JOB,
)
GPUS = _gauge(
    "finetune_job_gpus",
    "GPUs",
    "GPUs that the job's pods hold now, by stage and GPU type; those of a ServingPool are the pool's.",
    *JOB,
    "gpu_type",
)
GPU_SECONDS = _counter(
    "finetune_job_gpu_seconds_total",
    "GPU-seconds",
    "GPU time held by the pods of all stages, attempts and revisions, from scheduling to their end; serving is not "
    "counted.",
    *JOB[:2],
)
COST = _counter(
    "finetune_job_cost_total",
    "the currency",
    "Cost of that GPU time, by the pricePerHour of each GPU type.",
    *JOB[:2],
    "currency",
)

JOBS = (
    STATUS,
    START,
    COMPLETION,
    PROGRESS,
    STEPS,
    PLANNED_STEPS,
    EPOCHS,
    LOSS,
    VALIDATION_LOSS,
    SPEED,
    ETA,
    CHECKPOINT_STEP,
    CHECKPOINT_TIME,
    EVALUATION,
    PASSED,
    REPLICAS,
    READY_REPLICAS,
    SERVED_SPEED,
    GPUS,
    GPU_SECONDS,
    COST,
)

# --- a stage's pod: exported by the trainer while the pod runs, updated at every step ---


def _trainer(name: str, unit: str, help_: str) -> Metric:
    return _gauge(f"finetune_trainer_{name}", unit, help_, *JOB)


TRAINER = {
    "progress_ratio": _trainer("progress_ratio", "0 to 1", "Share of the stage's work done."),
    "step": _trainer("step", "steps", "Optimizer steps done."),
    "total_steps": _trainer("total_steps", "steps", "Optimizer steps planned."),
    "epoch": _trainer("epoch", "epochs", "Passes over the training data done."),
    "loss": _trainer("loss", "nats per learned token", "Loss of the last step."),
    "validation_loss": _trainer("validation_loss", "nats per learned token", "Loss of the last validation."),
    "learning_rate": _trainer("learning_rate", "none", "Learning rate of the last step."),
    "gradient_norm": _trainer("gradient_norm", "none", "Norm of the last step's gradient before clipping."),
    "tokens_per_second": _trainer("tokens_per_second", "tokens per second", "Tokens trained on per second."),
    "eta_seconds": _trainer("eta_seconds", "seconds", "Estimated time until training ends."),
    "memory_bytes": _trainer("memory_bytes", "bytes", "Peak memory of the GPU, or of the process on a CPU."),
}
"""Key: its name in the training loop."""

# --- the gateway of a ServingPool's pod: counted since its process started ---

MODEL = (*JOB[:3], "model")
"""Labels of what clients got from a model; `model` is the name that they send. The base model has neither job nor revision."""

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

GATEWAY = {
    "requests": _counter(
        "finetune_gateway_requests_total",
        "requests",
        "Requests: Answered, Failed (5xx, or broken off by the engine), Abandoned by the client before the end of the answer, or "
        "Refused by the engine as the client's mistake (4xx).",
        *MODEL,
        "result",
    ),
    "tokens": _counter("finetune_gateway_tokens_total", "tokens", "Tokens, of Prompt or Answer.", *MODEL, "kind"),
    "seconds": Metric(
        "finetune_gateway_request_duration_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Time from a request to the end of its answer.",
        MODEL,
        _SECONDS,
    ),
    "first_token": Metric(
        "finetune_gateway_time_to_first_token_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Time from a request to the first chunk of its answer; of streams.",
        MODEL,
        _SECONDS,
    ),
    "refused": _counter(
        "finetune_gateway_refused_total",
        "requests",
        "Requests of clients that the gateway answered with an error of its own, by HTTP status.",
        "status",
    ),
    "running": _gauge("finetune_gateway_running_requests", "requests", "Requests that are being answered."),
    "waiting": _gauge(
        "finetune_gateway_waiting_requests",
        "requests",
        "Requests that wait for their adapter, or in an activator for a pod that can answer.",
    ),
    "adapters": _gauge(
        "finetune_gateway_adapters", "adapters", "Adapters of the index on this pod, by state.", "state"
    ),
    "resident": _gauge(
        "finetune_gateway_resident_adapters", "adapters", "Adapters in the engine's memory, by the order of their use."
    ),
    "engine_ready": _gauge("finetune_gateway_engine_ready", "0 or 1", "Whether the engine answers."),
}
"""Key: its name in the gateway."""

# --- vLLM's metrics that the serving dashboard and the alerts use ---

VLLM = (
    _gauge("vllm:num_requests_running", "requests", "Requests being processed."),
    _gauge("vllm:num_requests_waiting", "requests", "Requests waiting to be scheduled."),
    _gauge("vllm:kv_cache_usage_perc", "0 to 1", "Share of the KV cache in use."),
    _counter("vllm:prefix_cache_queries_total", "tokens", "Prompt tokens looked up in the prefix cache."),
    _counter("vllm:prefix_cache_hits_total", "tokens", "Prompt tokens found in the prefix cache, and not computed "
                                                       "again."),
    _counter("vllm:prompt_tokens_total", "tokens", "Prompt tokens processed."),
    _counter("vllm:generation_tokens_total", "tokens", "Tokens generated."),
    _counter(
        "vllm:request_success_total", "requests", "Completed requests, by the reason why they ended.",
        "finished_reason",
    ),
    Metric(
        "vllm:time_to_first_token_seconds", Kind.HISTOGRAM, "seconds", "Time from a request to its first token."
    ),
    Metric("vllm:inter_token_latency_seconds", Kind.HISTOGRAM, "seconds", "Time between two tokens of one answer."),
    Metric("vllm:e2e_request_latency_seconds", Kind.HISTOGRAM, "seconds", "Time from a request to its last token."),
)  # fmt: skip
"""The labels of JOB come from the scrape rules; vLLM adds model_name (the base model) and engine."""
ENGINE_LOAD = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
"""What the gateway of a pool's pod passes on of its engine, for autoscalers."""
ENDPOINT_PICKER = (*ENGINE_LOAD, "vllm:lora_requests_info", "vllm:cache_config_info")
"""What it passes on for an endpoint picker of Gateway API's inference extension, at /engine/metrics of the same port: apart,
since vLLM has a time series of lora_requests_info for each set of adapters that were ever in use together."""
