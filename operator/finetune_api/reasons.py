"""Condition types and reasons: the one list that status, events, metrics and documentation share."""

import enum


class Condition(enum.StrEnum):
    """Types of `status.conditions`."""

    ACCEPTED = "Accepted"
    """The spec is complete and what it names (the BaseModel, the Secrets) exists."""
    PREFLIGHT_PASSED = "PreflightPassed"
    """The data was read, checked and split, and nothing in it ends the job."""
    BASELINE_MEASURED = "BaselineMeasured"
    """It is known whether a prompt alone passes the gates; absent where nothing was to be decided before training."""
    TRAINED = "Trained"
    """The adapter of this revision lies in S3, complete."""
    EVALUATED = "Evaluated"
    """Tuned model and baselines were compared on the test examples, and every gate passed."""
    DEPLOYED = "Deployed"
    """A verified revision serves; the message says which."""
    READY = "Ready"
    """The job has what the spec asks for: the wanted revision serves, or, without a deployment, its report is there."""
    RECONCILING = "Reconciling"
    """The operator is at work, or waits for the world to change."""
    STALLED = "Stalled"
    """The wanted revision will not come by itself: the message says what to do."""
    COMPLETE = "Complete"
    """The revision ended well."""
    FAILED = "Failed"
    """The revision ended badly; it is not tried again until the spec or the annotation finetune.dev/run changes."""
    SUSPENDED = "Suspended"
    """spec.suspend is true and no stage runs."""


class Stage(enum.StrEnum):
    """The stages that run as a Job of the trainer image, in their order."""

    PREFLIGHT = "preflight"
    """Reads, checks and splits the data."""
    BASELINE = "baseline"
    """Asks the base model with a prompt, and with examples, whether that passes the gates."""
    TRAIN = "train"
    """Trains the adapter."""
    EVALUATE = "evaluate"
    """Compares the tuned model with base, prompt and few-shot examples on the test examples."""
    VERIFY = "verify"
    """Compares the served model with what the evaluation recorded."""


class Phase(enum.StrEnum):
    """`status.phase`: a summary of the conditions for people, never read by the operator."""

    PENDING = "Pending"
    """Waiting for something that the spec names, or for the operator's next step."""
    PREFLIGHT = "Preflight"
    """The data is read, checked and split."""
    BASELINE = "Baseline"
    """The base model is asked with a prompt, to see whether that is enough."""
    QUEUED = "Queued"
    """The next stage waits in a queue, or its pod is not placed yet."""
    TRAINING = "Training"
    """The adapter is trained."""
    EVALUATING = "Evaluating"
    """The tuned model is compared with its baselines."""
    DEPLOYING = "Deploying"
    """The server starts or is being verified."""
    READY = "Ready"
    """The wanted revision serves."""
    COMPLETE = "Complete"
    """The revision ended well, and nothing is to be served."""
    FAILED = "Failed"
    """The revision ended badly; an earlier one may still serve."""
    SUSPENDED = "Suspended"
    """spec.suspend is true."""


class Reason(enum.StrEnum):
    """Why a condition has its status. Those in WAITING pass by themselves when the world changes."""

    # good news and ordinary progress
    ACCEPTED = "Accepted"
    """The spec and what it names are in order."""
    WAITING = "Waiting"
    """An earlier stage is not done yet."""
    RUNNING = "Running"
    """The stage's pod is at work."""
    SUCCEEDED = "Succeeded"
    """The stage ended well."""
    SERVING = "Serving"
    """The wanted revision is verified and serves."""
    DISABLED = "Disabled"
    """deployment.enabled is false, so nothing is served."""
    SUSPENDED = "Suspended"
    """spec.suspend is true: the stage's pod was stopped, its checkpoints are kept. Set it to false to go on."""
    RESUMED = "Resumed"
    """spec.suspend went back to false."""
    RETRYING = "Retrying"
    """An attempt failed in a way that may pass; the next one starts after a pause."""
    SUPERSEDED = "Superseded"
    """The spec changed while this revision was under way; a newer revision took its place."""
    QUEUED = "Queued"
    """The stage waits in its queue (resources.queueName) for quota; the message quotes Kueue."""
    EVICTED = "Evicted"
    """The queue took the stage's quota back, for a more important job for example; it waits there again, and goes on from the
    newest checkpoint."""
    DISRUPTED = "Disrupted"
    """The stage's pod is being taken from its machine, or the machine does not answer. Another pod goes on from the newest
    checkpoint, and nothing counts as a failure."""
    VERIFYING = "Verifying"
    """The new server is ready and is being compared with what the evaluation recorded."""
    STARTING = "Starting"
    """The stage's pod exists and does not run yet: it is being placed, or its images are being pulled."""
    ROLLING_OUT = "RollingOut"
    """The server's pods are being replaced."""
    PROMPT_ALREADY_SUFFICIENT = "PromptAlreadySufficient"
    """The base model passes the gates with a prompt or a few examples. Under intent.advice: Enforce the job ends well,
    untrained."""
    # waits until the world changes
    BASE_MODEL_NOT_FOUND = "BaseModelNotFound"
    """No BaseModel of that name exists. `kubectl get basemodels` lists the catalogue."""
    CREDENTIALS_MISSING = "CredentialsMissing"
    """A Secret that the spec names is absent or lacks a key. Create it in the job's namespace."""
    UNSCHEDULABLE = "Unschedulable"
    """No node fits the pod: its GPU type, GPUs, CPU, memory or tolerations. The message quotes the scheduler."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """A ResourceQuota or LimitRange of the namespace refuses the pod."""
    QUEUE_REFUSED = "QueueRefused"
    """The queue will not take the stage as things are: the LocalQueue is missing or stopped, or Kueue does not look after it."""
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """The node cannot pull an image. Check its name and the pull secrets."""
    POD_REFUSED = "PodRefused"
    """The API server refuses the pod, for example by a policy of the cluster. The message quotes it."""
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    """S3 cannot be reached. Check storage.endpoint and the network policy."""
    # ends the revision
    INVALID_SPEC = "InvalidSpec"
    """The spec contradicts itself in a way that only the operator can see. Edit it."""
    DATASET_NOT_FOUND = "DatasetNotFound"
    """A training, validation or test file does not exist, or a pattern matches none."""
    BUCKET_NOT_FOUND = "BucketNotFound"
    """The bucket does not exist at this endpoint."""
    S3_ACCESS_DENIED = "S3AccessDenied"
    """The store refuses the credentials, or they may not read the data or write the output."""
    DATASET_INVALID = "DatasetInvalid"
    """Examples cannot be read, or a data check whose policy is Fail found something; the message names rule, file and line."""
    MODEL_INVALID = "ModelInvalid"
    """The base model's files cannot be loaded."""
    TOO_FEW_EXAMPLES = "TooFewExamples"
    """The training split has fewer examples than dataset.minimumExamples, or so few once near copies count once."""
    FINE_TUNING_NOT_RECOMMENDED = "FineTuningNotRecommended"
    """intent.advice is Enforce, and fine-tuning is the wrong tool for what the job wants; the message says which is right."""
    INSUFFICIENT_GPU_MEMORY = "InsufficientGpuMemory"
    """Training would not fit the GPU by the estimate. Lower maxSequenceLength or choose another gpuType."""
    TRAINER_OUT_OF_MEMORY = "TrainerOutOfMemory"
    """Training ran out of memory twice, the second time with half the micro-batch."""
    LOSS_DIVERGED = "LossDiverged"
    """The loss exploded or is not a number. Lower training.learningRate."""
    TRAINER_ERROR = "TrainerError"
    """The stage failed as often as training.retries allows; status.failure has its last lines."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """The revision took longer than activeDeadlineSeconds."""
    EVALUATION_BELOW_GATE = "EvaluationBelowGate"
    """A gate did not pass; status.evaluation.gates says which and what was measured."""
    JUDGE_FAILED = "JudgeFailed"
    """A gate needs evaluation.judge, and its endpoint cannot be reached or refuses; the message quotes it. The stage is tried
    again as often as training.retries allows."""
    ADAPTER_INCOMPATIBLE = "AdapterIncompatible"
    """vLLM would refuse the adapter, or serve it without effect."""
    ADAPTER_NOT_SERVED = "AdapterNotServed"
    """The server answers, but not as the tuned model did in the evaluation."""
    SERVER_FAILED = "ServerFailed"
    """The server's pods do not become ready; status.failure has their last lines."""
    ROLLED_BACK = "RolledBack"
    """The new revision could not serve; the one before serves again."""


WAITING = frozenset(
    {
        Reason.BASE_MODEL_NOT_FOUND,
        Reason.CREDENTIALS_MISSING,
        Reason.UNSCHEDULABLE,
        Reason.QUOTA_EXCEEDED,
        Reason.QUEUE_REFUSED,
        Reason.IMAGE_PULL_FAILED,
        Reason.POD_REFUSED,
        Reason.STORAGE_UNAVAILABLE,
    }
)
"""Reasons of a job that goes on by itself once the world changes; all others that are not progress end the revision."""
