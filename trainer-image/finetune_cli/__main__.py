"""`finetune VERB ...`: runs a verb, and turns its end into an answer and an exit code.

Heavy imports wait until a verb needs them: --help and a wrong manifest import neither torch nor transformers.
"""

import argparse
import io
import json
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable

from finetune_api import checks, job
from finetune_cli import answer, documents
from finetune_trainer.process import secrets

Verb = Callable[[argparse.Namespace], tuple[answer.Answer, str | None]]


def _validate(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    from finetune_cli import validate

    wanted = validate.Request(
        data=options.data,
        held_out=options.held_out,
        kind=job.Format(options.format),
        model=options.model,
        policies=_policies(options.checks),
        longest=options.max_sequence_length,
    )
    return validate.validate(wanted), None


def _policies(chosen: list[str]) -> dict[str, checks.Policy]:
    """Policies from rule=Policy pairs. Raises documents.Invalid."""
    found = {}
    for pair in chosen:
        id, _, word = pair.partition("=")
        if id not in checks.BY_ID:
            message = f"--checks {pair}: unknown rule {id!r}; known are {', '.join(checks.BY_ID)}"
            raise documents.Invalid([answer.Problem(message=message)])
        allowed = {policy.value: policy for policy in checks.ALLOWED[checks.BY_ID[id].scope]}
        if word not in allowed:
            message = f"--checks {pair}: {id} cannot be {word!r}; write {', '.join(allowed)}"
            raise documents.Invalid([answer.Problem(message=message)])
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
    """Raises documents.Invalid unless `quantity` is a size of memory."""
    from finetune_trainer.planning import forecast

    try:
        forecast.size(quantity)
    except ValueError as error:
        raise documents.Invalid([answer.Problem(message=f"--memory: {error}")]) from None


def _run(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    from finetune_cli import jobs, run, show

    wanted = jobs.read(options.job, options.catalogue)
    resume = shlex.join(["finetune", *options.given])
    return run.run_all(wanted, options.work, show.Screen(), resume), None


def _report(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    from finetune_cli import jobs, report

    place: pathlib.Path = options.place
    if place.is_dir() or place.name == report.RESULTS:
        return report.of_folder(place), None
    return report.of_job(jobs.read(place, options.catalogue)), None


def _chat(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    from finetune_cli import chat

    found = chat.chat(options)
    return found, chat.printable(found.reply.text) if found.reply else None


VERBS: dict[answer.Command, tuple[Verb, str]] = {
    "validate": (_validate, "check data files for what would harm training or evaluation, with file and line"),
    "advise": (_advise, "check a job's data, model and memory, and advise whether to fine-tune; stores nothing"),
    "estimate": (_estimate, "estimate memory, duration and price of a job's training"),
    "run": (_run, "run a job on this machine: preflight, baseline, train, evaluate; repeat the command to resume"),
    "report": (_report, "print the results of a finished run's evaluation"),
    "chat": (_chat, "ask a served model, by the name of its job in a cluster (with kubectl) or by its address"),
}


CODES = {
    answer.Exit.DONE: "done",
    answer.Exit.UNEXPECTED: "a stage failed",
    answer.Exit.INVALID: "invalid arguments, job or data",
    answer.Exit.OUT_OF_MEMORY: "out of memory",
    answer.Exit.DIVERGED: "training diverged",
    answer.Exit.STORAGE: "storage unreachable",
    answer.Exit.GATES: "a gate did not pass",
    answer.Exit.DEFECT: "internal error",
    answer.Exit.STOPPED: "stopped",
}


def parser() -> argparse.ArgumentParser:
    codes = ", ".join(f"{code.value} {CODES[code]}" for code in answer.Exit)
    root = argparse.ArgumentParser(
        prog="finetune",
        description=f"Run and check FineTuneJobs without a cluster: the same manifest, checks and stages; and ask what a "
        f"cluster serves. Exit codes: {codes}.",
    )
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
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
        help="test files, checked for prompts that are also in DATA; may be repeated",
    )
    made["validate"].add_argument(
        "--format",
        choices=[kind.value for kind in job.Format],
        default=job.Format.AUTO.value,
        help="format of the rows, as dataset.format",
    )
    made["validate"].add_argument(
        "--model", type=pathlib.Path, metavar="FOLDER", help="folder of a model, for the checks that need a tokenizer"
    )
    made["validate"].add_argument(
        "--max-sequence-length",
        type=int,
        default=2048,
        metavar="TOKENS",
        help="with --model: examples are cut at this length",
    )
    made["validate"].add_argument(
        "--checks",
        action="append",
        default=[],
        metavar="RULE=POLICY",
        help="policy of a check, as in dataset.checks: Drop, Warn, Fail or Ignore; may be repeated",
    )
    for name in ("advise", "estimate", "run"):
        made[name].add_argument("job", type=pathlib.Path, metavar="JOB.yaml", help="manifest of a FineTuneJob")
    made["report"].add_argument(
        "place", type=pathlib.Path, metavar="DIR|JOB.yaml", help="folder of results, or manifest of the job"
    )
    for name in ("advise", "estimate", "run", "report"):
        made[name].add_argument(
            "--catalogue",
            type=pathlib.Path,
            metavar="FILE",
            help="file or folder of BaseModels; default: the job's own file, then the files next to it",
        )
    made["estimate"].add_argument("--memory", metavar="SIZE", help="memory that training may use, for example 22Gi")
    made["estimate"].add_argument(
        "--assume-longest",
        action="store_true",
        help="do not read the data: assume that every example has training.maxSequenceLength tokens",
    )
    made["run"].add_argument(
        "--work",
        type=pathlib.Path,
        metavar="FOLDER",
        help="folder for logs and downloads; default: below ~/.cache/finetune",
    )
    _of_chat(made["chat"])
    for one in made.values():
        one.add_argument(
            "--output",
            choices=("table", "json"),
            default="table",
            help="output format; json: one document on stdout",
        )
        one.add_argument("--debug", action="store_true", help="print the traceback of an internal error, too")
    return root


def _of_chat(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "target", metavar="JOB|URL", help="name of a FineTuneJob that is served, or http(s)://HOST[:PORT]"
    )
    made.add_argument("question", nargs="?", metavar="QUESTION", help="default: a pipe's text, or a conversation")
    made.add_argument("--namespace", "-n", metavar="NAME", help="the job's; default: the one of kubectl's context")
    made.add_argument("--model", metavar="NAME", help="default: the job's, or the server's only one")
    made.add_argument(
        "--key-file",
        type=pathlib.Path,
        metavar="FILE",
        help="file with the key of a client; default: the environment variable FINETUNE_API_KEY",
    )
    made.add_argument(
        "--plain-http",
        action="store_true",
        help="send the key to another machine by http, without TLS; default: refuse to",
    )
    made.add_argument("--system", metavar="TEXT", help="a system message, as the model was trained with")
    made.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer; default: the server's")
    made.add_argument(
        "--temperature", type=float, metavar="T", help="0 for the most probable answer; default: the server's"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    secrets.trim()
    given = sys.argv[1:] if arguments is None else arguments
    options = _parsed(given)
    options.given = given
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal may know ASCII only, a file's name may be any bytes
    found, table = _answered(options)
    try:
        _print(options, found, table)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # as of `finetune ... | head`; the second is rich's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        found = _defect(options, error)
        _print(options, found, None)
    return found.exit_code


def _parsed(given: list[str]) -> argparse.Namespace:
    """argparse would take a question only right after the name; here it may also follow the options."""
    root = parser()
    options, rest = root.parse_known_args(given)
    if options.verb == "chat" and options.question is None and len(rest) == 1 and not rest[0].startswith("-"):
        options.question, rest = rest[0], []
    if rest:
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _print(options: argparse.Namespace, found: answer.Answer, table: str | None) -> None:
    from finetune_cli import show

    if options.output == "json":
        document = found.model_dump(mode="json", by_alias=True, exclude_none=True)
        everywhere = (getattr(sys.stdout, "encoding", None) or "ascii").lower() != "utf-8"
        print(json.dumps(document, indent=1, ensure_ascii=everywhere))
    elif found.problems:
        show.problems(found)
    else:
        show.text(found, table)


def _answered(options: argparse.Namespace) -> tuple[answer.Answer, str | None]:
    """The verb's answer, whatever happens in it."""
    from finetune_trainer.process import errors

    verb: answer.Command = options.verb
    try:
        return VERBS[verb][0](options)
    except documents.Invalid as invalid:
        code, message = answer.Exit.INVALID, f"{len(invalid.problems)} problems in the input"
        return answer.Answer(command=verb, exit_code=code, message=message, problems=list(invalid.problems)), None
    except errors.Failure as failure:
        code, message = answer.code(failure.reason), answer.place(failure.message)
        problem = answer.Problem(message=f"{failure.reason}: {message}")
        return answer.Answer(
            command=verb, exit_code=code, message=message, reason=failure.reason, problems=[problem]
        ), None
    except (KeyboardInterrupt, errors.Stopped):
        return _problem(verb, answer.Exit.STOPPED, "stopped"), None
    except MemoryError:
        return _problem(verb, answer.Exit.OUT_OF_MEMORY, "the memory of this machine does not suffice"), None
    except Exception as error:
        if isinstance(error, OSError) and error.errno and error.filename:  # of the user's disk, not of our making
            return _problem(verb, answer.Exit.INVALID, f"{error.filename}: {error.strerror}"), None
        return _defect(options, error), None


def _defect(options: argparse.Namespace, error: Exception) -> answer.Answer:
    from finetune_trainer.process import errors

    if options.debug:
        traceback.print_exception(error)
    return _problem(options.verb, answer.Exit.DEFECT, errors.defect(error))


def _problem(verb: answer.Command, code: answer.Exit, message: str) -> answer.Answer:
    return answer.Answer(command=verb, exit_code=code, message=message, problems=[answer.Problem(message=message)])


def entry() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Some containers set PYTHONDONTWRITEBYTECODE: each start then compiles torch and transformers again, 10 s of a core.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(main())


if __name__ == "__main__":
    entry()
