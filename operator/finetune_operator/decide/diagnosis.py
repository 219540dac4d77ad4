"""What is wrong with a pod, in terms of the contract: a reason, what was seen, what to do."""

import dataclasses
import re

import pydantic

from finetune_api import course, outcome
from finetune_api.exits import Exit
from finetune_api.reasons import Reason, Stage
from finetune_operator.observe import containers, label, projections

PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
EXCEEDED = re.compile(
    r"exceeded quota: (?P<quota>[^,]+), requested: (?P<asked>.+), used: (?P<used>.+), limited: (?P<allowed>.+)"
)
UNMEASURED = re.compile(r"failed quota: (?P<quota>[^:]+): (?P<wants>must specify .+)")
OUT_OF_RANGE = re.compile(
    r"forbidden: (?P<rule>\[?(?:(?:maximum|minimum) \S+ usage per|\S+ max limit to request ratio per) .+)"
)
"""Messages of Kubernetes' admission plugins ResourceQuota and LimitRanger."""
ABOVE_LIMIT = re.compile(
    r'Invalid value: "?(?P<asked>[^":]+)"?: must be less than or equal to (?P<what>\S+) limit of (?P<limit>[^\s,\]]+)'
)
"""A request above the limit of its container, which our pods set only where a LimitRange does."""
ABSENT = re.compile(r'(?P<kind>configmap|secret) "[^"]+" not found|references non-existent \w+ key', re.IGNORECASE)
"""Messages of the kubelet of a volume whose ConfigMap or Secret is absent, or lacks a key."""
_USED = (
    r"exceeds the total limit of containers|exceeded its local ephemeral storage limit|Usage of EmptyDir volume|"
    rf"Container ({'|'.join(sorted(label.CONTAINERS))}) was using"
)
USED_TOO_MUCH = re.compile(_USED)
"""In the kubelet's message of an eviction: the pod's own limit, or on a node that ran out, more than it had requested."""
VOLUME = re.compile(
    r'persistentvolumeclaim "|unbound immediate PersistentVolumeClaims|available persistent volumes to bind'
    r"|volume node affinity conflict|PersistentVolume's node affinity"
)
"""In the scheduler's message: a claim, and not a node, is what the pod lacks."""
_AMOUNT = re.compile(r"([^=,]+)=([^,]+)")
RESTARTS = 3
"""A server that crashed this often does not recover on its own."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """`ends`: whether waiting does not help."""

    reason: Reason
    message: str
    ends: bool = False
    exit_code: int | None = None
    log_tail: str | None = None


def answer(pod: projections.Pod | None) -> outcome.Outcome | None:
    """The outcome in the stage's termination message; None if there is none."""
    if pod is None or pod.terminated is None:
        return None
    try:
        return outcome.Outcome.model_validate_json(pod.terminated.message)
    except pydantic.ValidationError:
        return None


def refused(what: str, words: str) -> Problem:
    """Why the API server refuses an object: which quota, and how much was requested, is used and allowed."""
    if found := EXCEEDED.search(words):
        asked, used, allowed = (dict(_AMOUNT.findall(found[name])) for name in ("asked", "used", "allowed"))
        amounts = [
            f"{n} of {key}: {used.get(key, 0)} of {allowed.get(key, '?')} are in use" for key, n in asked.items()
        ]
        text = f"ResourceQuota {found['quota']} refuses {what}, which requests {'; '.join(amounts)}. Free some, "
        "request less "
        return Problem(Reason.QUOTA_EXCEEDED, text + "(resources), or have the quota raised.")
    if found := UNMEASURED.search(words):
        return Problem(
            Reason.QUOTA_EXCEEDED,
            f"ResourceQuota {found['quota']} refuses {what}: it {found['wants']}. Set resources.requests (its memory "
            "is also the limit) and resources.limits, or have them set for all jobs in the chart (pods.requests, pods.limits).",
        )
    if found := OUT_OF_RANGE.search(words):
        return Problem(
            Reason.QUOTA_EXCEEDED,
            f"a LimitRange of the namespace refuses {what}: {found['rule'].strip('[]')}. Change resources.requests (its memory "
            "is also the limit) or resources.limits (those of preflight and verify are in the chart), or have the LimitRange "
            "changed.",
        )
    if found := ABOVE_LIMIT.search(words):
        return Problem(
            Reason.QUOTA_EXCEEDED,
            f"a LimitRange of the namespace limits the {found['what']} of a container to {found['limit']}, and {what} requests "
            f"{found['asked']}. Set resources.limits, or have the limit set for all jobs in the chart (pods.limits).",
        )
    return Problem(
        Reason.POD_REFUSED, f"the API server refuses {what}: {words}. Change the spec, or the namespace's policies."
    )


def not_started(pod: projections.Pod | None, refusal: str) -> Problem | None:
    """Why a pod does not start; None if nothing is wrong so far."""
    if pod is None:
        return refused("the pod", refusal) if refusal else None
    if pod.unschedulable and VOLUME.search(pod.unschedulable) and "Insufficient" not in pod.unschedulable:
        return Problem(
            Reason.VOLUME_UNAVAILABLE,
            f"a claim keeps the pod from every node: {pod.unschedulable} Create the PersistentVolumeClaim in the job's "
            "namespace, have it bound, or let it be reached from the nodes that fit: one of a pvc:// source, or of the chart's "
            "modelCache. The job then continues automatically.",
        )
    if pod.unschedulable:
        return Problem(
            Reason.UNSCHEDULABLE,
            f"no node fits the pod: {pod.unschedulable} Add a node that fits, or change resources (gpus, gpuType, "
            "requests, nodeSelector, tolerations).",
        )
    if pod.waiting is None or (pod.waiting.injected and pod.started is not None and pod.stage):
        return None
    seen = pod.waiting.message or pod.waiting.reason
    if pod.waiting.reason == containers.UNPREPARED:
        return _unprepared(pod, seen)
    if pod.waiting.reason in PULL:
        return Problem(
            Reason.IMAGE_PULL_FAILED,
            f"the image of container {pod.waiting.container} cannot be pulled: {seen}. Check the image's name, the registry "
            "and the pull secret.",
        )
    if pod.waiting.reason == "CreateContainerConfigError" and "secret" in seen.lower():
        return Problem(
            Reason.CREDENTIALS_MISSING,
            f"{seen}: create that Secret in the job's namespace, with the keys in the documentation; the job then "
            "continues automatically.",
        )
    if pod.waiting.reason in {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}:
        text = f"container {pod.waiting.container} cannot be created: {seen.rstrip('.')}"
        return Problem(Reason.POD_REFUSED, f"{text}. Check its image, and the node's container runtime.")
    if pod.waiting.injected and pod.waiting.reason == "CrashLoopBackOff":
        return held_up(pod, f"container {pod.waiting.container} ends again and again: {seen}")
    return None


def _unprepared(pod: projections.Pod, seen: str) -> Problem:
    """The node cannot mount a volume of the pod, or connect it to the network."""
    if not ABSENT.search(seen):
        reason = Reason.VOLUME_UNAVAILABLE if "volume" in seen.lower() else Reason.POD_REFUSED
        text = f"the node cannot prepare pod {pod.name}: {seen}. Check the pod's claims and the node; the kubelet tries again"
        return Problem(reason, text)
    bundle = " (storage.caBundle, or the chart's caBundle)" if f'volume "{label.AUTHORITIES}"' in seen else ""
    return Problem(
        Reason.CREDENTIALS_MISSING,
        f"{seen}{bundle}: create it in the job's namespace, with the key that is named; the job then continues automatically, "
        "within two minutes.",
    )


def held_up(pod: projections.Pod, what: str) -> Problem:
    """A container or gate that others added keeps a pod from starting or becoming ready."""
    text = f"pod {pod.name}: {what}. It was added by others (a mesh, an agent, a policy): check it, or exempt the pod."
    return Problem(Reason.SIDECAR_NOT_READY, text)


def used_too_much(pod: projections.Pod) -> bool:
    """Whether the kubelet ended the pod because of what it used itself."""
    return bool(USED_TOO_MUCH.search(pod.words))


def evicted(what: str, pod: projections.Pod, place: str = "resources") -> Problem:
    """Such an end: another pod would end in the same way. `place`: of its resources, in the spec."""
    code = pod.terminated.exit_code if pod.terminated is not None else None
    seen = f"{what} was evicted ({pod.words})"
    if "ephemeral" not in pod.words and "EmptyDir" not in pod.words:
        text = f"{seen}: request more memory ({place}.requests.memory)"
        return Problem(Reason.TRAINER_OUT_OF_MEMORY, text, exit_code=code)
    text = f"{seen}: request more disk ({place}.requests.ephemeralStorage), at least the size of base model and data"
    return Problem(Reason.DISK_EXCEEDED, text, exit_code=code)


def disrupted(pod: projections.Pod | None) -> Problem | None:
    """Whether a running pod is being evicted, or its node is unreachable."""
    if pod is None or pod.terminated is not None or not (pod.unreachable or (pod.disrupted and pod.deleting)):
        return None
    if not pod.unreachable:
        text = f"pod {pod.name} is being evicted ({pod.disruption}) and saves a checkpoint; another pod will resume"
    elif not pod.deleting:
        text = (
            f"the node of pod {pod.name} is unreachable. If it does not recover, Kubernetes deletes the pod when its "
            "tolerations expire, after five minutes by default"
        )
    else:
        text = (
            f"pod {pod.name} is being deleted ({pod.disruption or 'deleted'}), but its node is unreachable, so it "
            "may still be running. Another pod will resume when the node is back, or its Node object is deleted "
            "or has the taint node.kubernetes.io/out-of-service"
        )
    return Problem(Reason.DISRUPTED, text)


ADVICE = {
    Reason.TRAINER_OUT_OF_MEMORY: "out of memory: request more memory or a larger GPU, or lower training.maxSequenceLength",
    Reason.LOSS_DIVERGED: "the loss diverged: lower training.learningRate or check the data",
    Reason.STORAGE_UNAVAILABLE: "S3 is unreachable: check storage.endpoint and the network",
}


def unserved(stage: Stage, pod: projections.Pod) -> Problem:
    """The end of the server beside a stage, in its last words."""
    end = pod.server_end
    assert end is not None
    oom = "it was killed at its memory limit; " if end.reason == "OOMKilled" else ""
    tail = end.message[-1500:]
    return Problem(
        Reason.SERVER_FAILED,
        f"the server beside the {stage} ended with exit code {end.exit_code}: {oom}last lines: "
        f"{tail.strip()[-300:] or 'none'}. Check evaluation.resources, deployment.extraArgs and image, or set evaluation.engine: "
        "InProcess.",
        exit_code=end.exit_code,
        log_tail=tail or None,
    )


def failed(stage: Stage, pod: projections.Pod | None, job_failure: str) -> Problem:
    """Why an attempt failed. `ends` is true if another one would fail in the same way."""
    if pod is None or pod.terminated is None:
        seen = f" ({pod.words})" if pod is not None and pod.words else f" ({job_failure})" if job_failure else ""
        return Problem(Reason.TRAINER_ERROR, f"the {stage} pod disappeared without reporting an outcome{seen}")
    end, reported = pod.terminated, answer(pod)
    tail = None if reported else end.message[-1500:] or None
    ends = end.exit_code in {Exit.INVALID, Exit.DIVERGED}
    if end.reason == "OOMKilled":
        return Problem(
            Reason.TRAINER_OUT_OF_MEMORY,
            f"the {stage} pod was killed at its memory limit: raise resources.requests.memory, or lower "
            "training.maxSequenceLength",
            exit_code=end.exit_code,
            log_tail=tail,
        )
    if reported is not None and reported.reason is Reason.SERVER_FAILED and pod.server_end is not None:
        return unserved(stage, pod)
    if reported is not None and reported.reason is not None:
        return Problem(reported.reason, reported.message, ends=ends, exit_code=end.exit_code)
    reason = next((why for code, why in course.REASONS.items() if code == end.exit_code), Reason.TRAINER_ERROR)
    why = pod.words or end.reason or "no reason"
    text = ADVICE.get(reason, f"the {stage} pod ended with exit code {end.exit_code} ({why})")
    message = reported.message if reported and reported.message else text
    if tail:
        message = f"{message}; last lines: {tail.strip()[-300:]}"
    return Problem(reason, message, ends=ends, exit_code=end.exit_code, log_tail=tail)


def server(pod: projections.Pod | None) -> Problem | None:
    """Why a server's pod is not ready; None while it may still become ready."""
    if problem := not_started(pod, ""):
        return problem
    if pod is not None and pod.unreachable:
        return disrupted(pod)
    if pod is not None and pod.unready:
        return held_up(pod, f"its server is ready, but {pod.unready}")
    if pod is None or pod.terminated is None:
        return None
    end, reported = pod.terminated, answer(pod)
    if reported is not None and reported.reason is not None and end.exit_code == Exit.INVALID:
        return Problem(reported.reason, reported.message, ends=True, exit_code=end.exit_code)
    if reported is not None and end.exit_code == Exit.STORAGE:
        return Problem(Reason.STORAGE_UNAVAILABLE, reported.message, exit_code=end.exit_code)
    if pod.restarts >= RESTARTS:
        oom = "it was killed at its memory limit; " if end.reason == "OOMKilled" else ""
        tail = end.message[-1500:]
        return Problem(
            Reason.SERVER_FAILED,
            f"container {end.container} of the server ended {pod.restarts} times with exit code {end.exit_code}: {oom}"
            f"last lines: {tail.strip()[-300:] or 'none'}. Check deployment.extraArgs, image and resources.",
            ends=True,
            exit_code=end.exit_code,
            log_tail=tail or None,
        )
    return None
