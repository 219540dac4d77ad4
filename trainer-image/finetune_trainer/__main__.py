"""`finetune-trainer STAGE --run FILE`: runs a stage, and turns its end into an outcome and an exit code.

Two verbs are no stages: `estimate` is for people, `gateway` a server. Heavy imports wait until a stage needs them: --help,
estimate, fetch, verify and gateway run without torch.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic

from finetune_api import course, exits, outcome, reasons, resources, run
from finetune_trainer.gateway import settings
from finetune_trainer.process import errors, imports, log, machine, secrets, signals, termination, trust

if TYPE_CHECKING:
    from finetune_trainer.evaluation import server

Stage = Callable[[Any, argparse.Namespace], outcome.Outcome]


R = TypeVar("R", run.Run, run.PoolRun)


def _preflight(spec: run.Run, _: argparse.Namespace) -> outcome.Outcome:
    from finetune_trainer.stages import preflight

    return preflight.preflight(spec)


def _sidecar(options: argparse.Namespace) -> "server.Sidecar | None":
    from finetune_trainer.evaluation import server

    if options.server is None:
        return None
    return server.Sidecar(options.server, options.server_folder, options.scoring_at_once)


def _baseline(spec: run.Run, options: argparse.Namespace) -> outcome.Outcome:
    from finetune_trainer.stages import baseline

    return baseline.baseline(spec, options.attempt, options.micro_batch_scale, _sidecar(options))


def _train(spec: run.Run, options: argparse.Namespace) -> outcome.Outcome:
    from finetune_trainer.stages import train

    return train.train(spec, options.attempt, options.micro_batch_scale)


def _evaluate(spec: run.Run, options: argparse.Namespace) -> outcome.Outcome:
    from finetune_trainer.stages import evaluate

    serving = evaluate.ServingAdapter(options.serving, options.serving_sha256) if options.serving else None
    return evaluate.evaluate(
        spec,
        options.adapter,
        options.sha256,
        options.attempt,
        serving,
        options.micro_batch_scale,
        _sidecar(options),
    )


def _verify(spec: run.Run, options: argparse.Namespace) -> outcome.Outcome:
    from finetune_trainer.stages import verify

    if options.pool is None:
        return verify.verify(spec, options.endpoint, options.canary, patience=options.patience)
    return verify.verify_pool(
        spec,
        options.pool,
        options.base_model or spec.base_model.name,
        options.canary,
        options.adapter or spec.layout.adapter,
        options.sha256,
        patience=options.patience,
    )


def _fetch(spec: run.Run | run.PoolRun, options: argparse.Namespace) -> outcome.Outcome:
    from finetune_trainer.stages import fetch

    limit = None if options.cache_size is None else int(resources.amount(options.cache_size) or 0)
    cache = fetch.Cache(options.cache, limit) if options.cache else None
    return fetch.fetch(spec, options.adapter, options.sha256, options.base_to, options.adapter_to, cache)


STAGES: dict[str, tuple[Stage, str]] = {
    "preflight": (_preflight, "check data and model, freeze the split, estimate, advise"),
    "baseline": (_baseline, "check whether the base model passes the gates with a prompt or a few examples"),
    "train": (_train, "train the adapter, or resume from the newest checkpoint"),
    "evaluate": (
        _evaluate,
        "compare the tuned model with its baselines on the test examples, check the gates, write the report",
    ),
    "verify": (_verify, "check that a running server applies the adapter"),
    "fetch": (_fetch, "download base model and adapter"),
}


ESTIMATE, GATEWAY = "estimate", "gateway"


def _estimate(options: argparse.Namespace) -> int:
    """Prints the memory that training needs; the exit code says whether it fits."""
    import json

    from finetune_trainer.stages import estimate

    try:
        found = estimate.estimate(_read(options.run), options.memory)
    except (errors.Failure, ValueError) as problem:
        message = problem.message if isinstance(problem, errors.Failure) else str(problem)
        print(f"finetune-trainer estimate: {message}", file=sys.stderr)
        return problem.exit if isinstance(problem, errors.Failure) else exits.Exit.INVALID
    print(json.dumps(found.document(), indent=1) if options.output == "json" else estimate.text(found))
    return exits.Exit.INVALID if found.chosen.fits is False else exits.Exit.DONE


def _gateway(options: argparse.Namespace) -> int:
    """Serves until SIGTERM."""
    from finetune_trainer.gateway import activator, pod, settings

    log.about(pool=options.pool)
    serve = pod.serve if options.hold is None else activator.serve
    serve(settings.of(options))
    return int(exits.Exit.DONE)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="finetune-trainer",
        description="The stages of a FineTuneJob. Exit codes: 0 done, 2 bad configuration or data, 3 out of memory, "
        "4 diverged, 5 storage unavailable, 143 stopped with a checkpoint saved, 1 anything else.",
    )
    stages = whole.add_subparsers(dest="stage", required=True, metavar="STAGE")
    made = {}
    described = {name: text for name, (_, text) in STAGES.items()}
    described[ESTIMATE] = "print the memory that training needs, and what to change where it does not fit"
    for name, text in described.items():
        made[name] = stages.add_parser(name, help=text, description=text)
        made[name].add_argument("--run", type=pathlib.Path, default=pathlib.Path(run.PATH), help="the run file (JSON)")
    for name in ("baseline", "train", "evaluate"):
        made[name].add_argument("--attempt", type=int, default=1, help="number of this attempt, for progress reports")
        made[name].add_argument(
            "--micro-batch-scale",
            type=float,
            default=1.0,
            help="factor on the micro-batch, below 1 after an out-of-memory error",
        )
    for name in ("baseline", "evaluate"):
        made[name].add_argument("--server", help="base URL of a vLLM server that answers; default: this process does")
        made[name].add_argument(
            "--server-folder",
            type=pathlib.Path,
            default=pathlib.Path(run.MODEL_PATH).parent,
            help="folder shared with that server: it has the base model in base/, and gets the adapters",
        )
        made[name].add_argument(
            "--scoring-at-once", type=int, default=64, help="requests for log-probabilities that server gets at once"
        )
    made["evaluate"].add_argument("--adapter", help="folder of the adapter; default: this revision's")
    made["evaluate"].add_argument("--sha256", help="SHA-256 that the adapter's manifest must have")
    made["evaluate"].add_argument("--serving", help="folder of the adapter that is served now; default: none")
    made["evaluate"].add_argument("--serving-sha256", help="SHA-256 of that adapter's manifest")
    where = made["verify"].add_mutually_exclusive_group(required=True)
    where.add_argument("--endpoint", help="base URL of the server, without /v1")
    where.add_argument(
        "--pool", help="DNS name of the pods of a ServingPool: the adapter is delivered, and each is asked"
    )
    made["verify"].add_argument("--base-model", help="name of the base model in the pool; default: the run file's")
    made["verify"].add_argument("--adapter", help="folder of the adapter to deliver; default: this revision's")
    made["verify"].add_argument("--sha256", default="", help="SHA-256 of the adapter's manifest")
    made["verify"].add_argument("--canary", required=True, help="canary.json of the evaluation")
    made["verify"].add_argument("--patience", type=float, default=600, help="seconds to wait for the server")
    made["fetch"].add_argument("--adapter", help="folder of the adapter; default: the base model alone")
    made["fetch"].add_argument("--sha256", default="", help="SHA-256 of the adapter's manifest")
    made["fetch"].add_argument(
        "--base-to", type=pathlib.Path, default=pathlib.Path(run.MODEL_PATH), help="folder for the base model"
    )
    made["fetch"].add_argument(
        "--adapter-to", type=pathlib.Path, default=pathlib.Path(run.ADAPTER_PATH), help="folder for the adapter"
    )
    made["fetch"].add_argument(
        "--cache", type=pathlib.Path, help="folder of base models that pods share; --base-to is then a link into it"
    )
    made["fetch"].add_argument(
        "--cache-size", help="how much all models in it may take, for example 500Gi; default: what the file system has"
    )
    about = "serve a pool's models: what stands before the engine in each pod of a ServingPool"
    settings.add_arguments(stages.add_parser(GATEWAY, help=about, description=about))
    made[ESTIMATE].add_argument(
        "--memory", help="memory that training may use, for example 22Gi; default: as the run file says"
    )
    made[ESTIMATE].add_argument("--output", choices=("table", "json"), default="table", help="output format")
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Runs one stage; returns the exit code."""
    log.configure()
    secrets.trim()
    options = parser().parse_args(arguments)
    if options.stage == ESTIMATE:
        return _estimate(options)
    if options.stage == GATEWAY:
        return _gateway(options)
    # OpenMP reads this once, when torch is imported; its default would be the host's cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(machine.threads()))
    # Waiting threads spin for a moment, then sleep. No spinning costs a third of the speed on dedicated cores, long spinning
    # two thirds on shared ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # oneDNN generates code for every shape of a matrix product, 0.65 MiB each, and torch caches it again: by default 1,024 each.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(machine.CODES))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(machine.CODES))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    begun = time.monotonic()
    result, code = _run(options)
    log.info("the stage ended", stage=options.stage, exit=int(code), seconds=round(time.monotonic() - begun, 1))
    termination.write(result)
    return int(code)


def _run(options: argparse.Namespace) -> tuple[outcome.Outcome, int]:
    """The stage's outcome and exit code, whatever happens in it; SIGTERM has no effect once it is over."""
    try:
        signals.install()
        found = _outcome(options)
        signals.ignore()
        return found
    except errors.Stopped as stopped:
        return outcome.Outcome(stage=options.stage, message=str(stopped) or "stopped on request"), exits.Exit.STOPPED


def _outcome(options: argparse.Namespace) -> tuple[outcome.Outcome, int]:
    """As `_run`, but raises Stopped."""
    stage = options.stage
    try:
        spec = _read_to_fetch(options.run) if stage == "fetch" else _read(options.run)
        trust.install()
        log.about(namespace=spec.namespace, job=spec.name, revision=spec.revision, stage=stage)
        return STAGES[stage][0](spec, options), exits.Exit.DONE
    except errors.Failure as failure:
        log.warning(failure.message, reason=failure.reason)
        result = outcome.Outcome(
            stage=stage, reason=failure.reason, message=failure.message, preflight=failure.preflight
        )
        return result, failure.exit
    except Exception as error:
        if errors.out_of_memory(error):
            return _out_of_memory(stage, error), exits.Exit.OUT_OF_MEMORY
        log.exception("the stage failed")
        return outcome.Outcome(stage=stage, reason=reasons.Reason.TRAINER_ERROR, message=errors.defect(error)), 1


def _out_of_memory(stage: str, error: BaseException) -> outcome.Outcome:
    text = " ".join(str(error).split())[:300]
    log.warning("out of memory", problem=text)
    halved = (
        "The next attempt halves the micro-batch; if that is not enough, request"
        if stage in course.LOADING
        else "Request"
    )
    message = f"out of memory ({text}). {halved} more memory or a larger GPU, or lower training.maxSequenceLength."
    return outcome.Outcome(stage=stage, reason=reasons.Reason.TRAINER_OUT_OF_MEMORY, message=message)


def _read_to_fetch(path: pathlib.Path) -> run.Run | run.PoolRun:
    """The run file of a job, or of a ServingPool, which has no data."""
    of_a_pool = path.is_file() and b'"dataset"' not in path.read_bytes()
    return _parsed(path, run.PoolRun) if of_a_pool else _read(path)


def _read(path: pathlib.Path) -> run.Run:
    return _parsed(path, run.Run)


def _parsed(path: pathlib.Path, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise errors.Failure(reasons.Reason.INVALID_SPEC, f"the run file {path}: {error.strerror}") from error
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:5]
        )
        raise errors.Failure(reasons.Reason.INVALID_SPEC, f"the run file {path} is not valid: {problems}") from error


def entry() -> None:
    """Ends the process at once: threads that wait for a dead store must not delay it."""
    machine.return_freed_memory()
    imports.one_stage()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
