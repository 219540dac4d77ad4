"""Condition types and reasons: the one list that status, events, metrics and documentation share."""

import enum


class Condition(enum.StrEnum):
    """Types of `status.conditions`."""

    ACCEPTED = "Accepted"
    PREFLIGHT_PASSED = "PreflightPassed"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    DEPLOYED = "Deployed"
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


class Stage(enum.StrEnum):
    """The stages that run as a Job of the trainer image, in their order."""

    PREFLIGHT = "preflight"
    TRAIN = "train"
    EVALUATE = "evaluate"
    VERIFY = "verify"


class Phase(enum.StrEnum):
    """`status.phase`: a summary of the conditions for people, never read by the operator."""

    PENDING = "Pending"
    PREFLIGHT = "Preflight"
    QUEUED = "Queued"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    DEPLOYING = "Deploying"
    READY = "Ready"
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


class Reason(enum.StrEnum):
    """Why a condition has its status. `Waiting` ones pass by themselves when the world changes; `Ending` ones do not."""

    # good news and ordinary progress
    ACCEPTED = "Accepted"
    WAITING = "Waiting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    SERVING = "Serving"
    DISABLED = "Disabled"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    RETRYING = "Retrying"
    SUPERSEDED = "Superseded"
    VERIFYING = "Verifying"
    STARTING = "Starting"
    ROLLING_OUT = "RollingOut"
    # waits until the world changes
    BASE_MODEL_NOT_FOUND = "BaseModelNotFound"
    CREDENTIALS_MISSING = "CredentialsMissing"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_REFUSED = "PodRefused"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    # ends the revision
    INVALID_SPEC = "InvalidSpec"
    DATASET_NOT_FOUND = "DatasetNotFound"
    BUCKET_NOT_FOUND = "BucketNotFound"
    S3_ACCESS_DENIED = "S3AccessDenied"
    DATASET_INVALID = "DatasetInvalid"
    MODEL_INVALID = "ModelInvalid"
    TOO_FEW_EXAMPLES = "TooFewExamples"
    INSUFFICIENT_GPU_MEMORY = "InsufficientGpuMemory"
    TRAINER_OUT_OF_MEMORY = "TrainerOutOfMemory"
    LOSS_DIVERGED = "LossDiverged"
    TRAINER_ERROR = "TrainerError"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    EVALUATION_BELOW_GATE = "EvaluationBelowGate"
    ADAPTER_INCOMPATIBLE = "AdapterIncompatible"
    ADAPTER_NOT_SERVED = "AdapterNotServed"
    SERVER_FAILED = "ServerFailed"
    ROLLED_BACK = "RolledBack"


WAITING = frozenset(
    {
        Reason.BASE_MODEL_NOT_FOUND,
        Reason.CREDENTIALS_MISSING,
        Reason.UNSCHEDULABLE,
        Reason.QUOTA_EXCEEDED,
        Reason.IMAGE_PULL_FAILED,
        Reason.POD_REFUSED,
        Reason.STORAGE_UNAVAILABLE,
    }
)
"""Reasons of a job that goes on by itself once the world changes; all others that are not progress end the revision."""
