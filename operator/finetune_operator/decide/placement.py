"""Where a job's model is served: by a ServingPool, or by a server of its own. Pure.

deployment.pool: a name    that pool, or a problem: it does not exist, or does not fit
                 Dedicated a server of its own, as with deployment.route and deployment.idle
                 absent    where it was placed before, as long as that fits; or else the default pool that fits; or else a
                           server of its own
"""

import dataclasses
from collections.abc import Mapping, Sequence

from finetune_api import job, revision, run, servingpool, status
from finetune_api.reasons import Reason
from finetune_operator import revisions
from finetune_operator.observe import parents
from finetune_operator.observe.shared import Pool


@dataclasses.dataclass(frozen=True)
class Placement:
    """`pool`: NAMESPACE/NAME; None: a server of its own. `reason` and `problem`: why it cannot serve the job, if so. `news`: why
    it changed without an edit."""

    pool: str | None = None
    reason: Reason = Reason.POOL_UNFIT
    problem: str = ""
    news: str = ""


def place(
    parent: parents.Parent,
    wanted: revisions.Wanted,
    base: run.ResolvedBaseModel | None,
    pools: Mapping[str, Pool],
    no_route: str = "",
) -> Placement:
    """The placement of the job as it is requested now. `no_route`: why it can have no HTTPRoute, if so."""
    assert parent.spec is not None
    spec, namespace = parent.spec, parent.namespace
    asked, own = spec.deployment.pool, spec.deployment.route or spec.deployment.idle
    if asked == servingpool.DEDICATED or base is None or not spec.deployment.enabled or own:
        return _dedicated(spec, no_route)
    if asked is not None:
        name = asked if "/" in asked else f"{namespace}/{asked}"
        pool = pools.get(name)
        return Placement(name, *(_missing(name, pools) if pool is None else _unfit(pool, parent, base)))
    return _by_default(parent, wanted, base, pools)


def _by_default(
    parent: parents.Parent, wanted: revisions.Wanted, base: run.ResolvedBaseModel, pools: Mapping[str, Pool]
) -> Placement:
    assert parent.spec is not None
    before, known = parent.records.pool, parent.records.inputs is not None
    stays = known and not (wanted.changed[revision.TRAINING] or wanted.changed[revision.RELEASE])
    if stays and before is None:
        return _dedicated(parent.spec)

    def fits(pool: Pool) -> bool:
        return not _unfit(pool, parent, base)[1]

    present = pools.get(before) if stays and before is not None else None
    if present is not None and fits(present):
        return Placement(before)
    own_first = sorted(pools.values(), key=lambda pool: (pool.namespace != parent.namespace, pool.name))
    found = next((pool.name for pool in own_first if pool.spec.default and fits(pool)), None)
    if stays:
        news = f"ServingPool {before} " + ("does not exist any more" if present is None else "does not fit any more")
        return dataclasses.replace(Placement(found) if found else _dedicated(parent.spec), news=news)
    return Placement(found) if found else _dedicated(parent.spec)


def _dedicated(spec: job.FineTuneJobSpec, no_route: str = "") -> Placement:
    if not (spec.deployment.rollout.steps and spec.deployment.enabled):
        return Placement()
    if spec.deployment.route is None:
        return Placement(
            None,
            Reason.POOL_NOT_FOUND,
            "deployment.rollout.steps shares the traffic of a ServingPool, and this job has a server of its own: set "
            "deployment.pool (no default pool fits the job), deployment.route, so that a Gateway shares it, or remove the steps",
        )
    if spec.deployment.rollout.strategy == "Recreate":
        text = (
            "deployment.rollout.steps needs both revisions, and rollout.strategy Recreate stops one: remove one of them"
        )
        return Placement(None, Reason.ROUTE_UNAVAILABLE, text)
    if no_route:
        text = f"deployment.rollout.steps needs an HTTPRoute: {no_route}; or set deployment.pool, or remove the steps"
        return Placement(None, Reason.ROUTE_UNAVAILABLE, text)
    return Placement()


def _missing(name: str, pools: Mapping[str, Pool]) -> tuple[Reason, str]:
    names = ", ".join(sorted(pools)[:5]) or "none"
    return Reason.POOL_NOT_FOUND, (
        f"there is no ServingPool {name} (there are: {names}): create it, set another deployment.pool, or Dedicated for a "
        "server of the job's own; the job then continues automatically"
    )


def _unfit(pool: Pool, parent: parents.Parent, base: run.ResolvedBaseModel) -> tuple[Reason, str]:
    """Why the pool cannot serve the job: what was seen, what would fit, what to do; empty if it can."""
    assert parent.spec is not None
    problem = _problem(pool, parent.spec, parent.namespace, base)
    return Reason.POOL_UNFIT, f"ServingPool {pool.name} {problem}" if problem else ""


DEDICATED = "or deployment.pool to Dedicated"


def _problem(pool: Pool, spec: job.FineTuneJobSpec, namespace: str, base: run.ResolvedBaseModel) -> str:
    if not pool.spec.admits(pool.namespace, namespace):
        allowed = ", ".join((pool.namespace, *pool.spec.allowed_namespaces))
        return (
            f"does not allow namespace {namespace}, only: {allowed}. Have it added to the pool's allowedNamespaces, set "
            f"another deployment.pool, {DEDICATED}"
        )
    if pool.base is None:
        return (
            f"has base model {pool.spec.base_model.name}, which is not in the catalogue: see `kubectl get basemodels`"
        )
    if (pool.base.source, pool.base.revision) != (base.source, base.revision):
        seen = f"serves base model {_of(pool.base)}, and the job fine-tunes {_of(base)}"
        return f"{seen}: set a pool of that base model, {DEDICATED}"
    rank, allowed_rank = spec.training.lora.rank, pool.spec.adapters.max_rank
    if rank > allowed_rank:
        return (
            f"takes adapters up to rank {allowed_rank}, and training.lora.rank is {rank}: lower it, have the pool's "
            f"adapters.maxRank raised, {DEDICATED}"
        )
    length, context = spec.training.max_sequence_length, pool.spec.context_length
    if context is not None and length > context:
        return (
            f"has a context of {context} tokens, and training.maxSequenceLength is {length}: lower it, have the pool's "
            f"contextLength raised, {DEDICATED}"
        )
    return ""


def without_parser(pool: Pool, given: Sequence[str], found: status.Preflight | None) -> str:
    """Why the pool's servers would refuse the job's requests with tools; empty if they would not, or there are none. `given`: the
    chart's arguments of servers."""
    base = pool.base.extra_args if pool.base else []
    names = " ".join((*given, *base, *pool.spec.extra_args)).replace("_", "-")
    if not (found and found.examples_with_tools) or all(
        name in names for name in ("--enable-auto-tool-choice", "--tool-call-parser")
    ):
        return ""
    return (
        f"ServingPool {pool.name} cannot take requests with tools, and {found.examples_with_tools} examples have them: have "
        "--enable-auto-tool-choice and --tool-call-parser=NAME added to the pool's extraArgs, or for all of the base model "
        f"to its defaults.serving.extraArgs, set another deployment.pool, {DEDICATED} with these in deployment.extraArgs"
    )


def _of(base: run.ResolvedBaseModel) -> str:
    return f"{base.name} ({base.source}{f' at {base.revision}' if base.revision else ''})"
