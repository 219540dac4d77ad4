"""The pods of one attempt together: one for each node. They begin when all have started, and end together."""

import dataclasses

from finetune_api.exits import Exit
from finetune_operator.decide import diagnosis
from finetune_operator.observe import observation, projections

TELLING = {Exit.INVALID, Exit.OUT_OF_MEMORY, Exit.DIVERGED, Exit.STORAGE}
"""Exit codes that name a cause; a pod never has one of these only because another pod left."""
SIGKILL = 137


@dataclasses.dataclass(frozen=True)
class Gang:
    """An attempt's Job and its pods by index: the newest of each, None if there is none."""

    job: projections.StageJob
    pods: tuple[projections.Pod | None, ...]
    replaced: tuple[projections.Pod, ...] = ()
    """Earlier pods that its Job has replaced, the newest last."""

    @property
    def first(self) -> projections.Pod | None:
        """The pod whose outcome counts."""
        return self.pods[0]

    @property
    def present(self) -> list[projections.Pod]:
        return [pod for pod in self.pods if pod is not None]

    @property
    def begun(self) -> bool:
        """Whether every container has started, so that work may have been done."""
        return all(pod is not None and pod.started is not None for pod in self.pods)

    @property
    def ends_known(self) -> bool:
        """Whether it is known how the pods ended: these events come from another watch than the Job's."""
        if self.job.succeeded:
            return self.first is not None and self.first.terminated is not None
        ended = [pod for pod in self.present if pod.terminated is not None or pod.words]
        return any(not pod.disrupted for pod in ended) and len(ended) == len(self.present)

    @property
    def disrupted(self) -> str | None:
        """Which of several pods was evicted, and why. A single pod is replaced by its Job."""
        if self.job.nodes == 1:
            return None
        gone = [f"pod {pod.name} was evicted ({pod.disruption})" for pod in self.present if pod.disrupted]
        if self.job.ending and not gone:
            # the others stopped because they lost it
            gone = [f"the node of pod {pod.name} is unreachable" for pod in self.present if pod.unreachable]
        if not gone and self.job.failure == "PodFailurePolicy":
            gone = ["a pod was evicted"]
        return gone[0] if gone else None

    @property
    def overdrawn(self) -> projections.Pod | None:
        """A pod that the kubelet ended because of what it used itself, also if its Job has replaced it: the next one would
        fare no better."""
        return next((pod for pod in (*self.replaced, *self.present) if diagnosis.used_too_much(pod)), None)

    @property
    def unserved(self) -> projections.Pod | None:
        """A pod whose server ended before the stage's own container started. The kubelet would start it again without end."""
        waits = [pod for pod in self.present if pod.phase == "Pending" and not (pod.deleting or pod.disrupted)]
        return next((pod for pod in waits if pod.server_end is not None), None)

    @property
    def refused(self) -> projections.Pod | None:
        """A pod that the kubelet ended or refused for another reason; None if another pod names a cause."""
        if any(map(_names_a_cause, self.present)):
            return None
        return next((pod for pod in self.present if pod.words and not diagnosis.used_too_much(pod)), None)

    @property
    def lingering(self) -> projections.Pod | None:
        """A pod whose own container has ended, and which injected containers hold: its Job would never end."""
        if self.job.over or self.job.ending:
            return None
        ended = [pod for pod in self.present if pod.terminated is not None and pod.lingering]
        return next((pod for pod in ended if pod is self.first or _code(pod) != Exit.DONE), None)

    @property
    def lost(self) -> projections.Pod | None:
        """A pod whose node came back without its containers; None if another pod names a cause."""
        if any(map(_names_a_cause, self.present)):
            return None
        return next(
            (p for p in self.present if p.terminated is not None and p.terminated.reason in projections.LOST), None
        )

    @property
    def stopped(self) -> bool:
        """Whether several pods ended and none of them failed: each was told to stop, or lost another one."""
        cause = self.cause
        if self.job.nodes == 1 or self.job.succeeded:
            return False
        return cause is None or (cause.terminated is not None and cause.terminated.exit_code == Exit.STOPPED)

    @property
    def cause(self) -> projections.Pod | None:
        """The pod whose end explains best why all ended; None if none does.

        When a pod ends, the others follow: with exit code 143 as if told to stop, killed, or with an error. So a code that
        names a cause comes first, since clocks may differ; then the earliest end, a kill first.
        """
        return min((pod for pod in self.present if pod.terminated is not None), key=_order, default=None)


def _code(pod: projections.Pod) -> int:
    return pod.terminated.exit_code if pod.terminated is not None else -1


def _names_a_cause(pod: projections.Pod) -> bool:
    end = pod.terminated
    return end is not None and (end.reason == "OOMKilled" or end.exit_code in TELLING)


def _order(pod: projections.Pod) -> tuple[int, float, bool, int]:
    end = pod.terminated
    assert end is not None
    rank = 0 if _names_a_cause(pod) else 2 if end.exit_code in {Exit.STOPPED, Exit.DONE} else 1
    finished = end.finished.timestamp() if end.finished else float("inf")
    return rank, finished, end.exit_code != SIGKILL, pod.node


def of(obs: observation.Observation, job: projections.StageJob) -> Gang:
    """The gang of a Job."""
    every = obs.pods_of(job.name)
    newest = {pod.node: pod for pod in every}
    earlier = tuple(pod for pod in every if newest[pod.node] is not pod)
    return Gang(job, tuple(newest.get(node) for node in range(job.nodes)), earlier)
