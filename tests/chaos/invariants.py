"""What must hold whatever struck: each rule looks at the whole story of one job and says what is wrong. Pure."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator

from chaos import history
from finetune_api.reasons import Stage


@dataclasses.dataclass(frozen=True)
class Violation:
    """A rule that did not hold for a job, and what was seen."""

    job: str
    rule: str
    seen: str

    def __str__(self) -> str:
        return f"{self.job}: {self.rule}: {self.seen}"


Rule = Callable[[history.Story], Iterator[str]]


def it_ended_as_without_the_fault(story: history.Story) -> Iterator[str]:
    if story.outcome is None:
        last = story.statuses[-1].phase if story.statuses else "no status"
        yield f"it did not end; the last phase was {last}"
        return
    for field in dataclasses.fields(history.Outcome):
        wanted, seen = getattr(story.expected, field.name), getattr(story.outcome, field.name)
        if wanted != seen:
            yield f"{field.name} is {seen!r}, and {wanted!r} without faults"


def one_job_for_each_attempt(story: history.Story) -> Iterator[str]:
    """By what was watched, and by what the API server says that it created."""
    attempts: dict[tuple[str, str, int], dict[str, str]] = collections.defaultdict(dict)
    for job in story.jobs:
        attempts[job.stage, job.revision, job.attempt][job.uid] = job.name
    for (stage, revision, attempt), found in attempts.items():
        if len(found) > 1:
            yield f"{len(found)} Jobs of {stage} attempt {attempt} of revision {revision}: {sorted(found.values())}"
    for name, times in story.created.items():
        if times > 1:
            yield f"Job {name} was created {times} times"


def one_pod_trains_at_a_time(story: history.Story) -> Iterator[str]:
    """Two would write the same checkpoints."""
    training = [pod for pod in story.pods if pod.stage == Stage.TRAIN and pod.started]
    for one, other in itertools.combinations(training, 2):
        if one.node != other.node:
            continue
        first, second = sorted((one, other), key=lambda pod: pod.started)  # type: ignore[arg-type, return-value]
        if first.ended is None or first.ended > second.started:  # type: ignore[operator]
            yield f"pods of {first.job} and {second.job} ran at once: {first.ended} is after {second.started}"


def attempts_have_causes(story: history.Story) -> Iterator[str]:
    """Only what happens to a job's own pods may cost it an attempt; an API server, a kubelet or a clock may not. An eviction
    may (of several pods that train together, or of one that has just ended well), and S3 that is away for longer than a stage
    waits, but not as a failure."""
    attempts = collections.Counter((job.stage, job.revision) for job in story.jobs)
    spent = sum(count - 1 for count in attempts.values())
    causes = [*story.struck, *["suspended and resumed"] * story.resumed]
    shown = list(dict.fromkeys(status.failure for status in story.statuses if status.failure))
    if spent > len(causes):
        yield f"{spent} attempts beyond the first ones, and only these causes: {causes}; the failures were {shown}"
    failed = sum(max(0, after.failures - before.failures) for before, after in itertools.pairwise(story.statuses))
    if failed > len(story.killed):
        yield f"{failed} attempts failed, and only these strikes explain that: {list(story.killed)}; they were {shown}"


def an_end_is_final(story: history.Story) -> Iterator[str]:
    """Until the spec is edited."""
    for before, after in itertools.pairwise(story.statuses):
        same = before.generation == before.observed == after.generation
        if same and before.end and after.end != before.end:
            yield f"{before.end} became {after.end or after.phase}, and nobody had edited the spec"


def nothing_is_lost(story: history.Story) -> Iterator[str]:
    yield from story.lost


def nothing_is_left(story: history.Story) -> Iterator[str]:
    if story.left:
        yield f"children outlive the job: {', '.join(story.left)}"


RULES: tuple[Rule, ...] = (
    it_ended_as_without_the_fault,
    one_job_for_each_attempt,
    one_pod_trains_at_a_time,
    attempts_have_causes,
    an_end_is_final,
    nothing_is_lost,
    nothing_is_left,
)


def violations(story: history.Story) -> list[Violation]:
    return [Violation(story.name, rule.__name__.replace("_", " "), seen) for rule in RULES for seen in rule(story)]
