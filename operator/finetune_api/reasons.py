"""Condition types and reasons, used by status, events, metrics and documentation."""

import enum


class Condition(enum.StrEnum):
    """Types of `status.conditions`."""

    ACCEPTED = "Accepted"
    """The spec is complete and what it names (the BaseModel, the Secrets) exists."""
    PREFLIGHT_PASSED = "PreflightPassed"
    """The data was read, checked and split, and nothing in it ends the job."""
    BASELINE_MEASURED = "BaselineMeasured"
    """Whether a prompt alone passes the gates has been measured. Absent if nothing can be decided before training."""
    TRAINED = "Trained"
    """The adapter of this revision is complete in S3."""
    EVALUATED = "Evaluated"
    """The tuned model was compared with the baselines on the test examples, and every gate passed."""
    DEPLOYED = "Deployed"
    """A verified revision serves; the message names it."""
    READY = "Ready"
    """The spec is fulfilled: the current revision serves, or, without a deployment, its report exists."""
    RECONCILING = "Reconciling"
    """The operator is working on the job, or waits for an external change."""
    STALLED = "Stalled"
    """The current revision failed, or has waited longer than the chart's stalledAfterSeconds for what somebody has to do: the
    message says what. A waiting job resumes automatically."""
    COMPLETE = "Complete"
    """The revision succeeded."""
    FAILED = "Failed"
    """The revision failed; it is not retried until the spec or the annotation finetune.dev/run changes."""
    SUSPENDED = "Suspended"
    """spec.suspend is true and no stage runs."""
    ROUTED = "Routed"
    """A Gateway leads requests for deployment.route.host to the release that serves; during a rollout in steps the message has
    the share of each. Of a ServingPool: it leads requests for route.host to the pod that the endpoint picker picks. Absent: there
    is no route."""
    OVERRIDDEN = "Overridden"
    """An admission controller or another manager changed fields of the server or its Service, such as the image or the number of
    replicas; the message names field and manager. They are left as they are. Absent: nobody did."""


class Stage(enum.StrEnum):
    """The stages that run as a Job of the trainer image, in their order."""

    PREFLIGHT = "preflight"
    """Reads, checks and splits the data."""
    BASELINE = "baseline"
    """Measures whether the base model passes the gates with a prompt or a few examples."""
    TRAIN = "train"
    """Trains the adapter."""
    EVALUATE = "evaluate"
    """Compares the tuned model with base, prompt and few-shot examples on the test examples."""
    VERIFY = "verify"
    """Compares the served model with what the evaluation recorded."""


class Phase(enum.StrEnum):
    """`status.phase`: a summary of the conditions for people, never read by the operator."""

    PENDING = "Pending"
    """The job waits for something that the spec names, or for the operator's next step."""
    PREFLIGHT = "Preflight"
    """The data is being read, checked and split."""
    BASELINE = "Baseline"
    """The base model is being evaluated with a prompt, to see whether that is enough."""
    QUEUED = "Queued"
    """The next stage waits in a queue, or its pod is not scheduled yet."""
    TRAINING = "Training"
    """The adapter is being trained."""
    EVALUATING = "Evaluating"
    """The tuned model is being compared with its baselines."""
    DEPLOYING = "Deploying"
    """The server starts or is being verified."""
    READY = "Ready"
    """The current revision serves."""
    COMPLETE = "Complete"
    """The revision succeeded, and nothing is served."""
    FAILED = "Failed"
    """The revision failed; an earlier one may still serve."""
    SUSPENDED = "Suspended"
    """spec.suspend is true."""


class Reason(enum.StrEnum):
    """Why a condition has its status. Those in WAITING end automatically after an external change."""

    # progress and success
    ACCEPTED = "Accepted"
    """The spec is valid, and what it names exists."""
    WAITING = "Waiting"
    """An earlier stage is not done yet, or pods of the stage do not run yet."""
    RUNNING = "Running"
    """The stage's pod is running."""
    SUCCEEDED = "Succeeded"
    """The stage succeeded."""
    SERVING = "Serving"
    """The current revision is verified and serves."""
    DISABLED = "Disabled"
    """deployment.enabled is false, so nothing is served."""
    SUSPENDED = "Suspended"
    """spec.suspend is true: the stage's pod was stopped, its checkpoints are kept. Set it to false to resume."""
    RESUMED = "Resumed"
    """spec.suspend was set back to false."""
    RETRYING = "Retrying"
    """An attempt failed in a way that may be transient; the next one starts after a pause."""
    SUPERSEDED = "Superseded"
    """The spec changed while this revision was in progress; a newer revision replaced it."""
    QUEUED = "Queued"
    """The stage waits in its queue (resources.queueName) for quota; the message quotes Kueue."""
    EVICTED = "Evicted"
    """The queue evicted the stage, for example for a job with higher priority. It waits for quota again, and resumes from the
    newest checkpoint."""
    DISRUPTED = "Disrupted"
    """The stage's pod is being evicted, or its node is unreachable. Another pod resumes from the newest checkpoint; this does
    not count as a failure."""
    CHANGED_BY_OTHERS = "ChangedByOthers"
    """An admission controller or another manager changed fields of the server or its Service; they are left as they are."""
    STARTING = "Starting"
    """The server's pods are not ready yet: they are being scheduled, pull images or load the model."""
    ASLEEP = "Asleep"
    """The ServingPool, of the condition or of the job, has had no request for as long as its spec.idle says, or the job's own
    servers as its deployment.idle says, and there are none: the next request starts them."""
    WAKING = "Waking"
    """The servers of a ServingPool or of a job that slept start, because of a request, or because a job's revision needs them."""
    ROLLING_OUT = "RollingOut"
    """The new revision was verified and gets a part of the traffic; the message says which step, and what is missing."""
    ROLLOUT_HELD = "RolloutHeld"
    """The annotation finetune.dev/rollout holds the rollout, or cannot be read. Without it, or with another value, the rollout
    continues."""
    AWAITING_APPROVAL = "AwaitingApproval"
    """deployment.approval is Required, and the verified revision waits for the annotation finetune.dev/approve; the message has
    the command."""
    PROMPT_ALREADY_SUFFICIENT = "PromptAlreadySufficient"
    """The base model passes the gates with a prompt or a few examples. Under intent.advice: Enforce the job is complete
    without training."""
    # waits for an external change
    BASE_MODEL_NOT_FOUND = "BaseModelNotFound"
    """No BaseModel of that name exists. `kubectl get basemodels` lists the catalogue."""
    SERVED_NAME_TAKEN = "ServedNameTaken"
    """Another job of the namespace answers under the same served name: set another deployment.servedModelName. Or somebody
    else's Service has the job's name: rename the job."""
    POOL_NOT_FOUND = "PoolNotFound"
    """The ServingPool of deployment.pool does not exist: create it, or set another one, or Dedicated."""
    POOL_UNFIT = "PoolUnfit"
    """The ServingPool of deployment.pool cannot serve the job: it does not allow its namespace, or base model, rank or context
    length do not fit; the message says what was seen, what would fit, and what to do."""
    ROUTE_UNAVAILABLE = "RouteUnavailable"
    """The HTTPRoute, or a ServingPool's InferencePool, cannot be written (chart, CRDs), or the Gateway does not accept it; the
    message says which, and what to do."""
    CREDENTIALS_MISSING = "CredentialsMissing"
    """A Secret, or the ConfigMap with certificate authorities, is absent or lacks a key. Create it in the job's namespace."""
    UNSCHEDULABLE = "Unschedulable"
    """No node fits the pod's GPU type, GPUs, CPU, memory or tolerations. The message quotes the scheduler."""
    VOLUME_UNAVAILABLE = "VolumeUnavailable"
    """A PersistentVolumeClaim that the pod mounts (of a pvc:// source, or the chart's modelCache) is missing, unbound, or out of
    the nodes' reach, or a node cannot mount it. The message quotes the scheduler or the kubelet."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """A ResourceQuota or LimitRange of the namespace refuses the pod."""
    QUEUE_REFUSED = "QueueRefused"
    """The queue does not accept the stage: the LocalQueue is missing or stopped, or Kueue does not manage it."""
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """The node cannot pull an image. Check its name and the pull secrets."""
    POD_REFUSED = "PodRefused"
    """The API server refuses the pod, for example because of an admission policy, or its node cannot connect it to the
    network. The message quotes them."""
    SIDECAR_NOT_READY = "SidecarNotReady"
    """A container or readiness gate that others added to the pod keeps it from starting, or a server from becoming ready; the
    message names it."""
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    """S3 or the hub cannot be reached (check storage.endpoint and the network policy), or the cache of base models has no room or
    cannot be used. The message says which."""
    # ends the revision
    INVALID_SPEC = "InvalidSpec"
    """The spec is inconsistent in a way that only the operator can detect. Edit it."""
    DATASET_NOT_FOUND = "DatasetNotFound"
    """A training, validation or test file does not exist, or a pattern matches none."""
    BUCKET_NOT_FOUND = "BucketNotFound"
    """The bucket does not exist at this endpoint."""
    S3_ACCESS_DENIED = "S3AccessDenied"
    """The store refuses the credentials, or they lack the permission to read the data or write the output."""
    DATASET_INVALID = "DatasetInvalid"
    """Examples cannot be read, or a data check whose policy is Fail found something; the message names rule, file and line."""
    MODEL_INVALID = "ModelInvalid"
    """The base model's files cannot be loaded."""
    TOO_FEW_EXAMPLES = "TooFewExamples"
    """The training split has fewer examples than dataset.minimumExamples, or far fewer when near duplicates count once."""
    FINE_TUNING_NOT_RECOMMENDED = "FineTuningNotRecommended"
    """intent.advice is Enforce, and fine-tuning is the wrong tool for the job's goals; the message names a better one."""
    INSUFFICIENT_GPU_MEMORY = "InsufficientGpuMemory"
    """According to the estimate, training, evaluation or server do not fit their GPUs, or cannot be split over them; the message
    says what to change."""
    TRAINER_OUT_OF_MEMORY = "TrainerOutOfMemory"
    """A stage ran out of memory twice, the second time with half the batch (in training, half the micro-batch)."""
    LOSS_DIVERGED = "LossDiverged"
    """The loss diverged or is NaN. Lower training.learningRate."""
    TRAINER_ERROR = "TrainerError"
    """The stage failed as often as training.retries allows; status.failure has its last log lines."""
    GPU_NOT_VISIBLE = "GpuNotVisible"
    """The pod was granted GPUs that it cannot use: a fault of driver, container toolkit or runtime class. The message says what
    it sees. The stage is retried as often as training.retries allows."""
    GPU_UNSUPPORTED = "GpuUnsupported"
    """The GPU is too old for the image's CUDA, or lacks bfloat16, which training.precision demands."""
    COLLECTIVE_FAILED = "CollectiveFailed"
    """The GPUs of a training cannot exchange tensors: NCCL reports an error of its own, which the message quotes. The stage is
    retried as often as training.retries allows."""
    DISK_EXCEEDED = "DiskExceeded"
    """The kubelet evicted the pod as often as training.retries allows because it used more disk than its limit, or than it
    had requested on a node that ran out. Raise resources.requests.ephemeralStorage."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """The revision took longer than activeDeadlineSeconds."""
    EVALUATION_BELOW_GATE = "EvaluationBelowGate"
    """A gate did not pass; status.evaluation.gates has all gates with the measured values. With baseModel.candidates the next one
    follows where that is shown by evidence; else the job ends."""
    JUDGE_FAILED = "JudgeFailed"
    """A gate needs evaluation.judge, and its endpoint is unreachable or refuses requests; the message quotes it. The stage is
    retried as often as training.retries allows."""
    CANDIDATE_FAILED = "CandidateFailed"
    """A gate needs one of evaluation.candidates, and its endpoint is unreachable or refuses requests; the message quotes it. The
    stage is retried as often as training.retries allows."""
    ADAPTER_INCOMPATIBLE = "AdapterIncompatible"
    """vLLM would refuse the adapter, or serve it without effect."""
    ADAPTER_NOT_SERVED = "AdapterNotServed"
    """The server answers, but not like the tuned model did in the evaluation."""
    SERVER_FAILED = "ServerFailed"
    """The server's pods do not become ready, or the server beside baseline or evaluation ended; status.failure has its last log
    lines."""
    ROLLED_BACK = "RolledBack"
    """The new revision could not serve, or was shown to answer worse than the former one; the former one serves again."""


WAITING = frozenset(
    {
        Reason.BASE_MODEL_NOT_FOUND,
        Reason.SERVED_NAME_TAKEN,
        Reason.POOL_NOT_FOUND,
        Reason.POOL_UNFIT,
        Reason.ROUTE_UNAVAILABLE,
        Reason.AWAITING_APPROVAL,
        Reason.ROLLOUT_HELD,
        Reason.CREDENTIALS_MISSING,
        Reason.UNSCHEDULABLE,
        Reason.VOLUME_UNAVAILABLE,
        Reason.QUOTA_EXCEEDED,
        Reason.QUEUE_REFUSED,
        Reason.IMAGE_PULL_FAILED,
        Reason.POD_REFUSED,
        Reason.SIDECAR_NOT_READY,
        Reason.STORAGE_UNAVAILABLE,
    }
)
"""Reasons of a job that continues automatically after an external change; all others that are not progress end the revision."""
BY_SOMEBODY = WAITING - {Reason.STORAGE_UNAVAILABLE, Reason.AWAITING_APPROVAL, Reason.ROLLOUT_HELD}
"""Those that wait for what somebody has to do, after a while with Stalled=True. A rollout that a person holds or has not approved
yet is no fault. A node without room (Unschedulable because of
Insufficient resources) is not among these: other jobs end."""
