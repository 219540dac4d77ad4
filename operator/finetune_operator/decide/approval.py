"""Between verification and traffic, in a pool or not: the record that a release was verified, and what people say about it.

    finetune.dev/approve: RELEASE                      deployment.approval Required: it may get traffic
    finetune.dev/rollout: hold                         nothing changes until the annotation is removed
    finetune.dev/rollout: promote REVISION             all traffic now
    finetune.dev/rollout: rollback REVISION            back to the former revision

An annotation stays where it is. So each names what it is about, except `hold`: it means nothing to a later revision.
"""

from typing import Literal, NamedTuple

from finetune_api import deployment, outcome, status
from finetune_api.reasons import Condition, Reason
from finetune_operator.decide import verdict
from finetune_operator.decide.verdict import Verdict
from finetune_operator.decide.world import World
from finetune_operator.observe.records import Release

Verb = Literal["hold", "promote", "rollback"]


class Order(NamedTuple):
    """The annotation finetune.dev/rollout. `verb`: None if there is none for this release. `problem`: why it cannot be read."""

    verb: Verb | None = None
    problem: str = ""


def order(world: World, release: Release) -> Order:
    """What the annotation says about this release."""
    text = world.obs.parent.order
    verb, _, named = text.partition(" ")
    if not text:
        return Order()
    if text == "hold":
        return Order("hold")
    if verb in {"promote", "rollback"} and named.strip():
        about = named.strip() in {release.revision, release.name}
        return Order("promote" if verb == "promote" else "rollback") if about else Order()
    return Order(
        None,
        f"annotation {deployment.ROLLOUT} is {text[:60]!r}: write hold, or promote or rollback and the revision that is meant "
        f"(promote {release.revision}), or remove it",
    )


def is_verified(world: World, candidate: Release) -> bool:
    found = world.state.rollout
    return found is not None and found.release == candidate.name


def verified(candidate: Release, world: World, answer: outcome.Outcome) -> Verdict:
    """The server was verified; whether the release gets traffic is decided in the same pass."""
    speed = round(answer.verification.tokens_per_second) if answer.verification else None
    found = status.Rollout(
        release=candidate.name, revision=candidate.revision, verified_at=world.now, tokens_per_second=speed
    )
    return Verdict(edits={"rollout": found}, candidate=candidate, proceed=True)


def waits(world: World, candidate: Release) -> Verdict | None:
    """What keeps a verified release from (more) traffic: no approval yet, or an annotation; None if nothing does."""
    asked = order(world, candidate)
    if asked.problem or asked.verb == "hold":
        text = asked.problem or f"annotation {deployment.ROLLOUT} holds the rollout: remove it to continue"
        return verdict.says(Condition.DEPLOYED, "Unknown", Reason.ROLLOUT_HELD, f"{text}{_so_far(world)}")
    parent = world.obs.parent
    if world.spec.deployment.approval == "Required" and parent.approved != candidate.name and asked.verb != "promote":
        text = (
            f"revision {candidate.revision} was verified and waits for approval: kubectl -n {parent.namespace} annotate "
            f"--overwrite finetunejob {parent.name} {deployment.APPROVE}={candidate.name}"
        )
        return verdict.says(Condition.DEPLOYED, "Unknown", Reason.AWAITING_APPROVAL, text)
    return None


def _so_far(world: World) -> str:
    found = world.state.rollout
    return f"; revision {found.revision} gets {found.weight} % of the requests" if found is not None else ""
