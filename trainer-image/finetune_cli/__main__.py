"""`finetune VERB ...`: chooses the verb, and turns how it ends into an answer and an exit code.

Heavy imports wait until a verb needs them: --help and a manifest that is wrong cost no torch and no transformers.
"""

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Callable

from finetune_api import checks, job
from finetune_cli import answer, manifests

Verb = Callable[[argparse.Namespace], tuple[answer.Answer, str | None]]


def _validate(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    from finetune_cli import validate

    wanted = validate.Wanted(
        data=options.data,
        held_out=options.held_out,
        kind=job.Format(options.format),
        model=options.model,
        policies=_policies(options.checks),
        longest=options.max_sequence_length,
    )
    return validate.validate(wanted), None


def _policies(chosen: list[str]) -> dict[str, checks.Policy]:
    """Of rule=Policy pairs. Raises manifests.Invalid."""
    found = {}
    for pair in chosen:
        id, _, word = pair.partition("=")
        if id not in checks.BY_ID:
            message = f"--checks {pair}: there is no rule {id!r}; known are {', '.join(checks.BY_ID)}"
            raise manifests.Invalid([answer.Problem(message=message)])
        allowed = {policy.value: policy for policy in checks.ALLOWED[checks.BY_ID[id].scope]}
        if word not in allowed:
            message = f"--checks {pair}: {id} cannot be {word!r}; write {', '.join(allowed)}"
            raise manifests.Invalid([answer.Problem(message=message)])
        found[id] = allowed[word]
    return found


def _advise(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    from finetune_cli import advise, jobs

    return advise.advise(jobs.read(options.job, options.catalogue)), None


def _estimate(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    from finetune_cli import estimate, jobs

    wanted = jobs.read(options.job, options.catalogue)
    if options.memory is not None:
        _size(options.memory)
    return estimate.estimate(wanted, options.memory, read=not options.assume_longest)


def _size(quantity: str) -> None:
    """Raises manifests.Invalid for what is no size of memory."""
    from finetune_trainer.planning import forecast

    try:
        forecast.size(quantity)
    except ValueError as error:
        raise manifests.Invalid([answer.Problem(message=f"--memory: {error}")]) from None


def _run(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    from finetune_cli import jobs, run, show

    wanted = jobs.read(options.job, options.catalogue)
    resume = shlex.join(["finetune", *options.words])
    return run.run_all(wanted, options.work, show.Screen(), resume), None


def _report(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    from finetune_cli import jobs, report

    place: pathlib.Path = options.place
    if place.is_dir() or place.name == report.RESULTS:
        return report.of_folder(place), None
    return report.of_job(jobs.read(place, options.catalogue)), None


VERBS: dict[answer.Command, tuple[Verb, str]] = {
    "validate": (_validate, "check data files: what would spoil a training or an evaluation, with file and line"),
    "advise": (_advise, "check a job's data, model and memory, and say whether fine-tuning fits; nothing is kept"),
    "estimate": (_estimate, "print what a job's training will take: memory, time and price"),
    "run": (_run, "run a job on this machine: preflight, baseline, train, evaluate; the same command again resumes"),
    "report": (_report, "print what the evaluation of a finished run found"),
}


def parser() -> argparse.ArgumentParser:
    codes = ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in answer.Exit)
    whole = argparse.ArgumentParser(
        prog="finetune",
        description=f"A FineTuneJob without a cluster: the same manifest, the same checks, the same stages. Exit codes: {codes}.",
    )
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="VERB")
    made: dict[str, argparse.ArgumentParser] = {
        name: verbs.add_parser(name, help=text, description=text) for name, (_, text) in VERBS.items()
    }
    made["validate"].add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="files, quoted patterns such as 'data/*.jsonl', or file:// and s3:// URIs",
    )
    made["validate"].add_argument(
        "--held-out",
        action="append",
        default=[],
        metavar="DATA",
        help="test files, to see whether their prompts are in DATA too; may be repeated",
    )
    made["validate"].add_argument(
        "--format", choices=[kind.value for kind in job.Format], default=job.Format.AUTO.value, help="as dataset.format"
    )
    made["validate"].add_argument(
        "--model", type=pathlib.Path, metavar="FOLDER", help="a model's folder, for the checks that look at tokens"
    )
    made["validate"].add_argument(
        "--max-sequence-length", type=int, default=2048, metavar="TOKENS", help="with --model: where examples are cut"
    )
    made["validate"].add_argument(
        "--checks",
        action="append",
        default=[],
        metavar="RULE=POLICY",
        help="as dataset.checks: Drop, Warn, Fail or Ignore; may be repeated",
    )
    for name in ("advise", "estimate", "run"):
        made[name].add_argument("job", type=pathlib.Path, metavar="JOB.yaml", help="the file of a FineTuneJob")
    made["report"].add_argument(
        "place", type=pathlib.Path, metavar="DIR|JOB.yaml", help="a folder of results, or the file of the job"
    )
    for name in ("advise", "estimate", "run", "report"):
        made[name].add_argument(
            "--catalogue",
            type=pathlib.Path,
            metavar="FILE",
            help="a file or folder of BaseModels; absent: the job's own file, then the files next to it",
        )
    made["estimate"].add_argument("--memory", metavar="SIZE", help="what training may use, for example 22Gi")
    made["estimate"].add_argument(
        "--assume-longest",
        action="store_true",
        help="do not read the data: every example is as long as training.maxSequenceLength",
    )
    made["run"].add_argument(
        "--work", type=pathlib.Path, metavar="FOLDER", help="for logs and downloads; absent: below ~/.cache/finetune"
    )
    for one in made.values():
        one.add_argument(
            "--output",
            choices=("table", "json"),
            default="table",
            help="how it is printed; json: one document on stdout",
        )
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(words)
    options.words = words
    found, table = _answered(options)
    if options.output == "json":
        print(found.model_dump_json(by_alias=True, exclude_none=True, indent=1))
    else:
        _print(found, table)
    return found.exit_code


def _print(found: answer.Answer, table: str | None) -> None:
    from finetune_cli import show

    if found.problems:
        show.problems(found)
    else:
        show.text(found, table)


def _answered(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    """The verb's answer, whatever happens in it."""
    from finetune_trainer.process import errors

    verb: answer.Command = options.verb
    try:
        return VERBS[verb][0](options)
    except manifests.Invalid as invalid:
        code, message = answer.Exit.INVALID, f"{len(invalid.problems)} problems in the input"
        return answer.Answer(command=verb, exit_code=code, message=message, problems=list(invalid.problems)), None
    except errors.Failure as failure:
        code, message = answer.code(failure.reason), answer.place(failure.message)
        problem = answer.Problem(message=f"{failure.reason}: {message}")
        return answer.Answer(
            command=verb, exit_code=code, message=message, reason=failure.reason, problems=[problem]
        ), None
    except (KeyboardInterrupt, errors.Stopped):
        problem = answer.Problem(message="stopped")
        return answer.Answer(command=verb, exit_code=answer.Exit.STOPPED, message="stopped", problems=[problem]), None


def entry() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.exit(main())


if __name__ == "__main__":
    entry()
