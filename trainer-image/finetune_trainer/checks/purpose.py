"""Whether the examples are of the kind that the job needs: for its objective, its evaluation and its gates. Pure.

Each function returns None, or a sentence that says what was found, what the job needs and what to do.
"""

import numpy as np

from finetune_api import job, run
from finetune_trainer.checks import table
from finetune_trainer.data import dataset

WITHOUT_ANSWERS = frozenset({job.Metric.LOSS, job.Metric.PERPLEXITY})
"""Metrics of the test examples that plain text has, too."""

OF_OTHER_QUESTIONS = frozenset(
    {
        job.Metric.FORGETTING,
        job.Metric.GENERAL_ACCURACY,
        job.Metric.INSTRUCTION_FOLLOWING,
        job.Metric.GENERAL_DIVERGENCE,
    }
)
"""Metrics that no test example is needed for."""

MANY = 20
"""Examples of which some must be held out, gates or not."""


def objective(spec: run.Run, pairs: bool | None) -> str | None:
    """pairs: whether the examples are preference pairs; None: there is no example."""
    dpo = spec.training.objective is job.Objective.DPO
    if pairs is None or pairs is dpo:
        return None
    if pairs:
        return (
            "the examples are preference pairs (chosen and rejected), and training.objective is SFT, which would learn the "
            "rejected answers, too; set training.objective: DPO, or write the chosen answers alone, as "
            f"{dataset.EXPECTED[job.Format.PROMPT_COMPLETION]}"
        )
    return (
        "training.objective DPO learns from preference pairs, and these examples have one answer each; set "
        f"training.objective: SFT, or write rows such as {dataset.EXPECTED[job.Format.PREFERENCE]}"
    )


def evaluation(spec: run.Run, columns: table.Table, place: table.Array) -> str | None:
    """place, int8 [rows]: the split of each example: 0 train, 1 validation, 2 test, -1 none."""
    checks = (_no_turns, _no_validation, _no_test, _no_answers)
    return next(filter(None, (check(spec, columns, place) for check in checks)), None)


def _no_turns(spec: run.Run, columns: table.Table, place: table.Array) -> str | None:
    if spec.training.prompt is not job.TrainingPrompt.PROMPT or columns.answer[place >= 0].any():
        return None
    return (
        "training.prompt Prompt puts intent.prompt.system before each chat, and these examples are plain text, which has no "
        f"turns; remove training.prompt, or write rows such as {dataset.EXPECTED[job.Format.PROMPT_COMPLETION]}"
    )


def _no_validation(spec: run.Run, columns: table.Table, place: table.Array) -> str | None:
    if spec.training.search is None or (place == 1).any():
        return None
    return (
        "training.search chooses by the validation loss, and no example is left to validate on: add examples with other prompts, "
        "name validation files of your own (dataset.validation.uris), or remove training.search"
    )


def _no_test(spec: run.Run, columns: table.Table, place: table.Array) -> str | None:
    rows = int((place >= 0).sum())
    gates = [gate.metric for gate in spec.evaluation.stated if gate.metric not in OF_OTHER_QUESTIONS]
    if (place == 2).any() or not (gates or rows >= MANY):
        return None
    needs = f"the gate on {gates[0]} needs test examples" if gates else "the evaluation needs test examples"
    prompts = len(np.unique(columns.prompts.last[place >= 0]))
    if spec.dataset.group_by is not None:
        groups = len(np.unique(columns.group[place >= 0]))
        return (
            f"{needs}, and none can be held out: the {rows} examples have {groups} group{'s' if groups > 1 else ''} by "
            f"dataset.groupBy ({spec.dataset.group_by}) and {prompts} different prompts, and examples that share either stay in "
            "one split. Group by a field with more values, add examples of other groups, or name test files of your own "
            "(dataset.test.uris)."
        )
    if prompts == 1:
        found = f"all {rows} examples have the same prompt"
    else:
        found = f"the {rows} examples have {prompts} different prompts, some of them parts of the same chats"
    return (
        f"{needs}, and none can be held out: {found}, and examples that share a prompt stay in one split. Write into each prompt "
        "what its answer depends on, add examples with other prompts, or name test files of your own (dataset.test.uris; where "
        "they repeat the training prompts also dataset.checks: {leakage: Warn})."
    )


def _no_answers(spec: run.Run, columns: table.Table, place: table.Array) -> str | None:
    tested = columns.answer[place == 2]
    if spec.training.teacher is not None or not len(tested) or tested.any():
        return None
    rules = spec.evaluation
    scored = [
        f"the gate on {gate.metric}" for gate in rules.stated if gate.metric not in WITHOUT_ANSWERS | OF_OTHER_QUESTIONS
    ]
    wanted = {
        "evaluation.labels": rules.labels,
        "evaluation.outputSchema": rules.output_schema,
        "evaluation.judge": rules.judge,
        "evaluation.consistency": rules.consistency,
    }
    scored += [name for name, value in wanted.items() if value is not None]
    if not scored:
        return None
    return (
        f"{scored[0]} is about answers, and the test examples are plain text, which has none; write rows such as "
        f"{dataset.EXPECTED[job.Format.PROMPT_COMPLETION]}, or use gates on Loss and Perplexity alone"
    )
