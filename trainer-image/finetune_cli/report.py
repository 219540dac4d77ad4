"""`finetune report DIR|JOB.yaml`: results.json of a finished evaluation, as tables."""

import json
import pathlib
from typing import Any

import pydantic

from finetune_api import results, run, status
from finetune_cli import answer, documents, jobs

RESULTS = "results.json"
PAGE = "report.html"


def of_folder(folder: pathlib.Path) -> answer.Answer:
    """The newest evaluation below a folder of results. Raises documents.Invalid."""
    # A baseline's results are not those of an evaluation.
    found = (
        [path for path in folder.rglob(RESULTS) if "baseline" not in path.parts[-3:] and path.is_file()]
        if folder.is_dir()
        else [folder]
    )
    if not found:
        message = f"has no {RESULTS} of an evaluation: give a folder below storage.output, or the job's manifest"
        raise documents.Invalid([answer.Problem(file=str(folder), message=message)])
    newest = max(found, key=lambda path: path.stat().st_mtime)
    try:
        document = parsed(newest.read_bytes(), str(newest))
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise documents.Invalid([answer.Problem(file=str(newest), message=message)]) from None
    # <revision>/evaluation/<hash>/results.json beside <revision>/report.html
    pages = [parent / PAGE for parent in newest.parents[:3] if (parent / PAGE).is_file()]
    return to_answer(document, str(newest), str(pages[0]) if pages else None)


def parsed(data: bytes, place: str) -> dict[str, Any]:
    """results.json as a document. Raises documents.Invalid."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        problem = f"cut off or damaged: {error}" if data.strip() else "empty"
        message = f"is {problem}; run the evaluation again, or name another folder"
        raise documents.Invalid([answer.Problem(file=place, message=message)]) from None
    if not isinstance(found, dict):
        message = f"is not a results.json: expected an object, found a {type(found).__name__}"
        raise documents.Invalid([answer.Problem(file=place, message=message)])
    return found


def of_job(wanted: jobs.Job) -> answer.Answer:
    """The evaluation of a job's revision, wherever its results are. Raises documents.Invalid, Failure."""
    spec = wanted.run
    found = document(spec)
    if found is None:
        message = (
            f"revision {spec.revision} has no evaluation yet below {answer.place(spec.layout.root)}: run `finetune run` first, "
            "or give the folder of another revision"
        )
        raise documents.Invalid([answer.Problem(file=str(wanted.document.file), message=message)])
    made = to_answer(found, spec.layout.evaluation(spec.evaluation_hash), answer.place(spec.layout.report))
    return made.model_copy(update={"job": wanted.summary(), "notes": [*made.notes, *wanted.notes]})


def document(spec: run.Run) -> dict[str, Any] | None:
    """results.json of a run's evaluation; None where there is none. Raises Failure, documents.Invalid."""
    from finetune_trainer.process import errors
    from finetune_trainer.store import storage

    place = f"{spec.layout.evaluation(spec.evaluation_hash)}/{RESULTS}"
    try:
        return parsed(storage.of(spec.storage, 20).read(place), answer.place(place))
    except errors.NotFound:
        return None


def to_answer(found: dict[str, Any], place: str, page: str | None) -> answer.Answer:
    try:
        evaluation = status.Evaluation.model_validate(found.get("evaluation"))
        made = details(found, evaluation)
    except ValueError as error:
        count = error.error_count() if isinstance(error, pydantic.ValidationError) else 1
        message = f"is not a results.json of this version: {count} fields of its evaluation differ"
        raise documents.Invalid([answer.Problem(file=place, message=message)]) from error
    count = sum(gate.passed for gate in evaluation.gates)
    gates = f"{count} of {len(evaluation.gates)} gates passed" if evaluation.gates else "the job has no gates"
    again = f", evaluation {evaluation.tries} of this job on them" if (evaluation.tries or 1) > 1 else ""
    best = f"; the best baseline: {evaluation.best_baseline}" if evaluation.best_baseline else ""
    return answer.Answer(
        command="report",
        exit_code=answer.Exit.DONE if evaluation.passed else answer.Exit.GATES,
        message=f"{gates}, on {evaluation.examples} test examples{again}{best}",
        report=page,
        **made,
    )


def details(found: dict[str, Any] | None, evaluation: status.Evaluation) -> dict[str, Any]:
    """Gates and contenders as fields of an Answer; from the evaluation alone where results.json is of an older version."""
    made: dict[str, Any] = {
        "passed": evaluation.passed,
        "gates": evaluation.gates,
        "best_baseline": evaluation.best_baseline,
    }
    try:
        parsed = results.Results.model_validate(found)
    except pydantic.ValidationError:
        values = [
            results.Value(
                metric=one.name,
                contender=one.contender,
                value=float(one.value),
                low=_number(one.low),
                high=_number(one.high),
                examples=evaluation.examples,
            )
            for one in evaluation.metrics
        ]
        return {**made, "contenders": values}
    return {
        **made,
        "contenders": parsed.values,
        "left_out": parsed.left_out,
        "comparisons": parsed.comparisons,
        "tokens": parsed.tokens,
        "benchmarks": parsed.harness.benchmarks if parsed.harness else [],
        "baseline": parsed.baseline,
    }


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
