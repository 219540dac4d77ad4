"""The status of a FineTuneJob: what the operator reports, and its only state."""

import datetime
from typing import Literal

from pydantic import Field

from finetune_api import candidates as basemodels
from finetune_api import job, model, reasons, serving

Time = datetime.datetime


class Reported(model.Model):
    """Written by one version of the operator or trainer and read by another: unknown fields are ignored, not refused."""

    model_config = model.Model.model_config | {"extra": "ignore"}


class Condition(Reported):
    """One of `status.conditions`, as in metav1.Condition."""

    type: str = Field(description="The condition's type.")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    observed_generation: int = Field(ge=0, description="The generation of the spec that the condition is about.")
    last_transition_time: Time = Field(description="When the status last changed.")
    reason: str = Field(description="A reason from the documented list, in CamelCase.")
    message: str = Field(description="What was seen and what to do.")


class Waiting(Reported):
    """What the job waits for. The condition Ready has the message."""

    reason: str = Field(description="The reason, from the documented list.")
    since: Time = Field(description="Since when it has been waiting for this.")


class EvaluationEstimate(Reported):
    """GPUs that baseline and evaluation need, by the estimate."""

    gpus: int = Field(description="The number of GPUs.")
    gpu_type: str | None = Field(default=None, description="Their type, a key of the chart's gpuTypes.")


class Preflight(Reported):
    """What preflight found before a GPU was requested."""

    verdict: Literal["Recommended", "Caution", "NotRecommended"] = Field(
        description="Whether fine-tuning is the right tool, as far as the data show."
    )
    advice: list[str] = Field(default_factory=list, description="Recommendations, in short sentences.")
    findings: list[str] = Field(
        default_factory=list,
        description="Findings of the data checks: rule, rows, file and line. preflight.json has all of them.",
    )
    examples: int = Field(description="Training examples.")
    validation_examples: int = Field(default=0, description="Validation examples.")
    test_examples: int = Field(default=0, description="Test examples.")
    data: str | None = Field(
        default=None,
        description="A hash of the data files by URI, size and tag: jobs that have the same read the same files.",
    )
    tokens: int = Field(description="Tokens of the training examples.")
    trainable_tokens: int = Field(description="Tokens of the training examples that are learned.")
    examples_with_tools: int = Field(
        default=0,
        description="Examples of all splits that have tools, for which the server needs a parser of tool calls.",
    )
    learning_rate: str | None = Field(
        default=None,
        description="The peak learning rate of training and where it comes from, for example 0.00028 (by llama of width "
        "4096, 128 examples a step, 500 steps). Absent: not known before training.",
    )
    estimated_memory: str | None = Field(
        default=None, description="Estimated accelerator memory of training, for example 21Gi."
    )
    estimated_duration: str | None = Field(
        default=None,
        description="Estimated duration of training, for example 1h20m. Absent: the accelerator is unknown.",
    )
    estimated_cost: str | None = Field(
        default=None, description="Estimated cost of training, for example 3.10 USD. Absent: the chart has no price."
    )
    estimated_evaluation: EvaluationEstimate | None = Field(
        default=None,
        description="The fewest of the training's GPUs that baseline and evaluation need, which they request if "
        "evaluation.resources is absent. Absent: the GPU's memory is unknown.",
    )


class Progress(Reported):
    """The progress of training."""

    summary: str | None = Field(default=None, description="Percent as text, for example 43%.")
    percent: int = Field(ge=0, le=100, description="Steps done, in percent.")
    step: int = Field(description="Optimizer steps done.")
    total_steps: int = Field(description="Optimizer steps planned.")
    epoch: str | None = Field(default=None, description="Epochs done, for example 1.25.")
    trial: str | None = Field(
        default=None,
        description="The learning rate that training.search tries now, for example 0.0004, 2 of 4. Absent: it tries none.",
    )
    loss: str | None = Field(default=None, description="Loss of the last step, in nats per answer token.")
    validation_loss: str | None = Field(default=None, description="Loss of the last validation.")
    tokens_per_second: int | None = Field(default=None, description="Tokens trained on per second.")
    eta: str | None = Field(default=None, description="Estimated time left, for example 12m30s.")
    updated_at: Time | None = Field(default=None, description="When the trainer wrote this.")


class Checkpoint(Reported):
    """A checkpoint that is complete in S3."""

    uri: str = Field(description="The checkpoint's folder.")
    step: int = Field(description="The optimizer step it was saved after.")
    saved_at: Time = Field(description="When it was complete in S3.")


class Adapter(Reported):
    """The trained adapter."""

    uri: str = Field(description="The adapter's folder, in PEFT's layout.")
    sha256: str = Field(description="The SHA-256 of its manifest, which lists the hash of every file.")
    bytes: int = Field(description="The size of the folder in bytes.")
    rank: int = Field(default=16, description="The adapter's rank.")
    chat_template: bool = Field(default=False, description="Whether the folder carries a chat template.")


class Artifacts(Reported):
    """Files that the job has written."""

    adapter: Adapter | None = Field(default=None, description="The trained adapter.")
    report: str | None = Field(default=None, description="The report, one HTML file.")


class MetricValue(Reported):
    """One metric of one contender."""

    name: job.Metric = Field(description="The metric.")
    contender: job.Contender = Field(description="Which model was measured.")
    value: str = Field(description="The value, for example 0.9250.")
    low: str | None = Field(default=None, description="The lower end of its 95 % interval.")
    high: str | None = Field(default=None, description="The upper end of its 95 % interval.")


Missed = Literal["ByEvidence", "Undecided"]
"""How a gate was missed."""


class GateResult(Reported):
    """A gate, with what was measured."""

    metric: job.Metric | None = Field(
        default=None, description="The gate's metric. Absent: it is on a public benchmark."
    )
    task: str | None = Field(
        default=None, description="The public benchmark that the gate is on. Absent: it is on a metric."
    )
    requirement: str = Field(description="The requirement as text.")
    observed: str = Field(description="The measured value as text.")
    passed: bool = Field(description="Whether the gate passed.")
    missed: Missed | None = Field(
        default=None,
        description="ByEvidence: a model that meets the bound would seldom be measured like this (gate.confidence). Undecided: "
        "it might meet it, or it was not measured. Absent: the gate passed.",
    )
    power: str | None = Field(
        default=None,
        description="How good a model must truly be to pass so many test examples in 80 of 100 cases. Absent: the value alone "
        "decides, or nothing was measured.",
    )


class Baseline(Reported):
    """How good the base model is with a prompt alone, measured on validation examples before training."""

    sufficient: job.Contender | None = Field(
        default=None, description="The contender that passes the gates without training. Absent: none does."
    )
    undecided: list[job.Contender] = Field(
        default_factory=list,
        description="Contenders that would be sufficient by the values measured, on too few validation examples to be sure.",
    )
    examples: int = Field(description="Validation examples used.")
    metrics: list[MetricValue] = Field(default_factory=list, description="The gates' metrics of each contender.")
    left_out: list[str] = Field(
        default_factory=list,
        description="Contenders, or variants of them, that were not measured, each with the reason.",
    )
    message: str = Field(default="", description="The result in a sentence.")


class Evaluation(Reported):
    """The comparison of the tuned model with its baselines."""

    passed: bool = Field(description="Whether every gate passed.")
    score: str | None = Field(
        default=None,
        description="The tuned model's value of the first gate's metric; without gates, of the headline metric.",
    )
    examples: int = Field(description="Test examples scored.")
    metrics: list[MetricValue] = Field(default_factory=list, description="All metrics of all contenders.")
    tries: int | None = Field(
        default=None, description="Evaluations of this job on the same test examples, this one included."
    )
    gates: list[GateResult] = Field(default_factory=list, description="Each gate with what was measured.")
    best_baseline: job.Contender | None = Field(
        default=None,
        description="The baseline that is best by the headline metric of results.json. Absent: none was measured.",
    )
    more_data: str | None = Field(
        default=None,
        description="Whether more training rows would help, in a sentence. Absent: the training's losses are not known.",
    )
    missed: Missed | None = Field(
        default=None,
        description="ByEvidence: the model is shown to miss a gate. Undecided: it may be good enough. Absent: it passed.",
    )
    remedy: str | None = Field(
        default=None,
        description="What may let the same base model pass: more rows or more steps, by the losses of its training. Absent: it "
        "passed, the losses show no such thing, or a gate is missed by evidence and by more than that.",
    )
    left_out: list[str] = Field(
        default_factory=list,
        description="Contenders, or variants of them, that were not measured, each with the reason.",
    )
    unanswered: list[str] = Field(
        default_factory=list,
        description="Models of evaluation.candidates that did not answer, or not all questions: why.",
    )
    canary: str | None = Field(default=None, description="Recorded answers that the served model must reproduce.")
    tokens_saved_per_request: int | None = Field(
        default=None,
        description="Prompt tokens of the best baseline minus those of the tuned model, averaged over the test "
        "examples.",
    )


class Deployment(Reported):
    """The server that is serving now."""

    pool: str | None = Field(
        default=None, description="The ServingPool, as NAMESPACE/NAME. Absent: a server of the job's own."
    )
    endpoint: str = Field(description="The base URL inside the cluster; clients append /v1/chat/completions.")
    model: str = Field(description="The name that clients send as `model`.")
    revision: str = Field(description="The revision that serves.")
    base_model: str | None = Field(default=None, description="Its base model. Absent in records of earlier versions.")
    release: str = Field(description="The name of the release that serves; of its Deployment, unless in a pool.")
    replicas: int = Field(default=0, description="Requested pods; an autoscaler may have changed the spec's number.")
    ready_replicas: int = Field(default=0, description="Ready pods; of a pool's, those whose server has the adapter.")
    selector: str | None = Field(
        default=None, description="Labels of these pods, for autoscalers that scale the FineTuneJob."
    )
    tokens_per_second: int | None = Field(
        default=None, description="Tokens per second of a single request during verification."
    )
    switched_at: Time | None = Field(default=None, description="When all traffic switched to this release.")
    asleep_since: Time | None = Field(
        default=None,
        description="Since when servers of the job's own sleep, because no client asked (deployment.idle). Absent: they do not.",
    )
    held_since: Time | None = Field(
        default=None,
        description="Since when no server is to be ready: they sleep, or start again while requests are held. Absent: servers "
        "are to be ready, or nothing holds requests.",
    )


class Finding(Reported):
    """A comparison of the new revision's answers with those of the former one."""

    p: float = Field(
        description="How likely a revision that is not worse would look like this, adjusted by Holm for the number of "
        "comparisons."
    )
    seen: str = Field(description="What was compared, and both values.")


class Rollout(Reported):
    """How far the traffic has changed to the verified release of the current spec."""

    release: str = Field(description="The release, as in status.release.")
    revision: str = Field(description="Its revision.")
    verified_at: Time = Field(description="When the server was verified.")
    tokens_per_second: int | None = Field(
        default=None, description="Tokens per second of a single request during verification."
    )
    step: int = Field(default=0, description="The step of deployment.rollout.steps, from 1; 0: it has not begun.")
    weight: int = Field(default=0, description="Percent of the requests that the new revision gets.")
    since: Time | None = Field(default=None, description="When this step, or the watch after the last one, began.")
    watched_until: Time | None = Field(
        default=None, description="When the watch after the last step ends. Absent: it has not begun, or is over."
    )
    looks: int = Field(default=0, description="How often the two revisions were compared in this rollout.")
    requests: int = Field(
        default=0, description="Requests of the new revision in this step, when it was last compared."
    )
    former: serving.Traffic | None = Field(
        default=None, description="The former revision's traffic before all of it changed, for the watch."
    )
    findings: list[Finding] = Field(
        default_factory=list, description="What the last comparison showed, the least likely by chance first."
    )


class Queue(Reported):
    """How long the revision has waited in its queue; this does not count towards activeDeadlineSeconds."""

    name: str | None = Field(
        default=None, description="The LocalQueue. Absent: the stage's Job was suspended by something else."
    )
    since: Time | None = Field(
        default=None, description="Since when the stage has been waiting. Absent: it is not waiting."
    )
    waited_seconds: int = Field(default=0, description="Seconds that the revision waited before that.")


class Cost(Reported):
    """The cost of the job so far, over all its stages, attempts and revisions."""

    gpu_hours: str = Field(
        description="GPU-hours held by the pods of its stages, from scheduling to their end, for example 1.250000. "
        "Servers are not counted."
    )
    amount: str | None = Field(
        default=None,
        description="Their cost by the chart's gpuTypes.*.pricePerHour, for example 0.875000. GPUs without a price "
        "are not counted. Absent: no GPU had a price.",
    )
    currency: str | None = Field(default=None, description="The currency of the amount.")
    counted_until: Time = Field(description="The time up to which the cost was counted.")


class Failure(Reported):
    """Why the job failed or was last retried."""

    stage: str = Field(description="The stage that failed.")
    reason: reasons.Reason = Field(description="The reason, from the documented list.")
    attempt: int = Field(default=1, description="The attempt that failed.")
    exit_code: int | None = Field(default=None, description="The container's exit code.")
    message: str = Field(description="What was seen and what to do.")
    log_tail: str | None = Field(default=None, description="The last log lines of the container.")
    time: Time | None = Field(default=None, description="When it ended.")


class Revision(Reported):
    """A past or current revision, for `status.history`."""

    revision: str = Field(description="The revision's hash.")
    outcome: reasons.Reason = Field(description="How it ended.")
    score: str | None = Field(default=None, description="Its score.")
    adapter: str | None = Field(default=None, description="Its adapter's folder.")
    finished_at: Time | None = Field(default=None, description="When it ended.")


class Status(Reported):
    """What the operator reports about a FineTuneJob."""

    phase: reasons.Phase | None = Field(default=None, description="A summary of the conditions for people.")
    observed_generation: int | None = Field(
        default=None, description="The generation of the spec that the status is about."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="The stages (Accepted, PreflightPassed, BaselineMeasured, Trained, Evaluated, Deployed), their "
        "summary (Ready, Reconciling, Stalled), the outcome (Complete, Failed, Suspended), and Overridden: what others changed.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    base_model: str | None = Field(default=None, description="The base model as resolved.")
    candidates: list[basemodels.Candidate] = Field(
        default_factory=list,
        max_length=8,
        description="Each of spec.baseModel.candidates, the smallest first. Empty: the job has one base model.",
    )
    revision: str | None = Field(
        default=None, description="The hash of everything that affects training: base model, dataset, training."
    )
    evaluation_hash: str | None = Field(default=None, description="The hash of the evaluation's settings.")
    release: str | None = Field(default=None, description="The name of the Deployment for the current spec.")
    stage: str | None = Field(default=None, description="The stage in progress.")
    attempt: int | None = Field(default=None, description="The attempt of the stage in progress.")
    failed_attempts: int | None = Field(default=None, description="Attempts of this stage that failed.")
    micro_batch_scale: float | None = Field(
        default=None,
        description="The factor applied to the usual micro-batch, or to the batches of baseline and evaluation; "
        "halved after running out of memory.",
    )
    waiting: Waiting | None = Field(
        default=None,
        description="What the job waits for, and since when. Absent: a stage runs, or the job is at rest.",
    )
    retry_at: Time | None = Field(default=None, description="When the next attempt starts.")
    start_time: Time | None = Field(default=None, description="When the revision started or was resumed.")
    completion_time: Time | None = Field(default=None, description="When the revision ended.")
    queue: Queue | None = Field(
        default=None, description="How long the revision waited in a queue. Absent: it never did."
    )
    preflight: Preflight | None = Field(default=None, description="What preflight found.")
    baseline: Baseline | None = Field(
        default=None, description="How good the base model is with a prompt alone. Absent: not measured."
    )
    progress: Progress | None = Field(default=None, description="The progress of training.")
    checkpoint: Checkpoint | None = Field(default=None, description="The newest checkpoint.")
    artifacts: Artifacts | None = Field(default=None, description="Files that the job has written.")
    evaluation: Evaluation | None = Field(
        default=None, description="The comparison of the tuned model with its baselines."
    )
    deployment: Deployment | None = Field(default=None, description="The server that is serving now.")
    rollout: Rollout | None = Field(
        default=None,
        description="How far the traffic has changed to the verified release. Absent: nothing is verified.",
    )
    cost: Cost | None = Field(default=None, description="The cost of the job so far. Absent: no GPU was used.")
    failure: Failure | None = Field(default=None, description="Why the job or its last attempt failed.")
    history: list[Revision] = Field(
        default_factory=list, max_length=10, description="The last ten revisions, newest first."
    )
    resolved: str | None = Field(
        default=None,
        description="The spec of the revision with all defaults, as it was trained, in JSON. The operator compares "
        "the current spec with it.",
    )
    serving: str | None = Field(
        default=None,
        description="The inputs of the serving Deployment, in JSON. The operator restores the Deployment from them.",
    )
    candidate: str | None = Field(
        default=None,
        description="The release that a ServingPool holds besides, to verify it or for a part of the traffic.",
    )
    previous: list[str] = Field(
        default_factory=list,
        description="Former releases that a ServingPool still holds, newest first, in JSON as `serving`.",
    )
