"""Answers as text: tables on stdout; progress of a run on stderr, as a bar in a terminal and as lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from finetune_api import job, results, status
from finetune_cli import answer

LINES = 30.0
"""Seconds between lines of progress without a terminal, unless another tenth is done."""

PLACES = 5
"""Places of a finding that the table shows; --output json has twenty."""

MARKS = {True: "[green]passed[/]", False: "[red]failed[/]"}
STYLES = {"Recommended": "green", "Caution": "yellow", "NotRecommended": "red"}
SEVERITIES = {"error": "red", "warning": "yellow", "note": "cyan"}


class Screen:
    """The progress of a run on stderr."""

    def __init__(self) -> None:
        import rich.console

        self._console = rich.console.Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def begin(self, wanted: answer.Job, work: Any) -> None:
        self.say(
            f"{wanted.namespace}/{wanted.name}, revision {wanted.revision}: results in {wanted.output}, logs in {work}"
        )

    def ended(self, stage: answer.StageResult) -> None:
        progress_text = "done" if not stage.exit_code else f"ended with code {stage.exit_code}"
        self.say(
            f"{stage.stage}: {progress_text} in {stage.seconds:.0f} s{': ' + stage.message if stage.message else ''}"
        )

    @contextlib.contextmanager
    def stage(self, stage: str, attempt: int) -> Iterator[Callable[[status.Progress], None]]:
        """A function that shows a stage's progress while it runs."""
        name = stage if attempt == 1 else f"{stage} (attempt {attempt})"
        if self._console.is_terminal:
            with self._bar(name) as update:
                yield update
        else:
            self.say(f"{name} ...")
            yield self._lines(name)

    @contextlib.contextmanager
    def _bar(self, name: str) -> Iterator[Callable[[status.Progress], None]]:
        from rich import progress

        columns = (
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[progress_text]}"),
            progress.TimeElapsedColumn(),
        )
        with progress.Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(name, total=None, progress_text="")

            def update(found: status.Progress) -> None:
                bar.update(task, total=found.total_steps, completed=found.step, progress_text=progress_text(found))

            yield update

    def _lines(self, name: str) -> Callable[[status.Progress], None]:
        last = {"percent": -10, "time": time.monotonic()}

        def update(found: status.Progress) -> None:
            late = time.monotonic() - last["time"] >= LINES
            if found.percent >= last["percent"] + 10 or (late and found.percent > last["percent"]):
                last.update(percent=found.percent, time=time.monotonic())
                self.say(f"{name}: {progress_text(found)}")

        return update


def progress_text(found: status.Progress) -> str:
    """Progress in a line: 43% step 12/28 loss 0.71 eta 12m30s."""
    parts = [f"{found.percent}%", f"step {found.step}/{found.total_steps}"]
    if found.trial:
        parts.append(f"learning rate {found.trial}")
    if found.loss:
        parts.append(f"loss {found.loss}")
    if found.validation_loss:
        parts.append(f"validation {found.validation_loss}")
    if found.tokens_per_second:
        parts.append(f"{found.tokens_per_second} tokens/s")
    if found.eta and found.percent < 100:
        parts.append(f"eta {found.eta}")
    return " ".join(parts)


def problems(found: answer.Answer) -> None:
    """The problems, on stderr: file:line first, as editors and CI parse it."""
    for problem in found.problems:
        print(problem.text, file=sys.stderr)


def text(found: answer.Answer, table: str | None = None) -> None:
    """The whole answer, on stdout. table: a ready table, printed after the head."""
    import rich.console

    # In a pipe, lines are not wrapped: a wrapped file:line cannot be opened.
    console = rich.console.Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = rich.console.Console(highlight=False, emoji=False, width=240)
    _head(console, found)
    if table is not None:
        print(table)
    _estimate(console, found)
    _findings(console, found, brief=found.command == "advise")
    for sentence in found.advice:
        console.print(f"- {sentence}", markup=False)
    _gates(console, found)
    _contenders(console, found)
    _judge(console, found)
    _benchmarks(console, found)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, style="dim")
    for label, value in (("adapter", found.adapter), ("report", found.report)):
        if value:
            console.print(f"{label}: {value}", markup=False, soft_wrap=True)


def _head(console: Any, found: answer.Answer) -> None:
    if found.job is not None and found.command != "run":
        console.print(f"{found.job.namespace}/{found.job.name}, revision {found.job.revision}", markup=False)
    if found.verdict is not None:
        console.print(f"is fine-tuning the right tool? [bold {STYLES[found.verdict]}]{found.verdict}[/]")
    if found.counts is not None and found.command != "estimate":
        counts = found.counts
        sizes = [
            f"{counts.examples} training",
            f"{counts.validation_examples} validation",
            f"{counts.test_examples} test examples",
        ]
        tokens = (
            ""
            if counts.tokens is None
            else f"; {counts.tokens} training tokens, {counts.trainable_tokens} of them learned"
        )
        console.print(", ".join(sizes) + tokens, markup=False)
    if found.learning_rate is not None:
        console.print(f"learning rate: {found.learning_rate}", markup=False)
    # Unless it ends the job, preflight's message repeats the lines above and below.
    if found.message and (found.command in ("validate", "run", "report") or found.reason is not None):
        style = "" if found.exit_code == answer.Exit.DONE else "red"
        console.print(f"{found.reason + ': ' if found.reason else ''}{found.message}", markup=False, style=style)


def _estimate(console: Any, found: answer.Answer) -> None:
    if found.estimate is None:
        return
    for label, value in (("duration", found.estimate.duration), ("cost", found.estimate.cost)):
        console.print(f"{label}: {value or 'unknown: the job has no gpuType of known speed and price'}", markup=False)


def _findings(console: Any, found: answer.Answer, *, brief: bool) -> None:
    """Each finding with its first places and what to do; `brief`: in one line, as the advice says what to do."""
    for one in found.findings:
        dropped = f", {one.dropped} left out" if one.dropped else ""
        console.print(
            f"[{SEVERITIES.get(one.severity, '')}]{one.severity}[/] [bold]{one.rule}[/] ({one.policy}{dropped}): ",
            end="",
        )
        if brief:
            more = f"; and {one.count - 1} more" if one.count > 1 and one.places else ""
            console.print(f"{one.message}{': ' if one.places else ''}{''.join(one.places[:1])}{more}", markup=False)
            continue
        console.print(one.message, markup=False)
        for place in one.places[:PLACES]:
            console.print(f"  {place}", markup=False, soft_wrap=True)
        if one.count > len(one.places[:PLACES]) and one.places:
            console.print(f"  and {one.count - len(one.places[:PLACES])} more", markup=False)
        if one.advice:
            console.print(f"  -> {one.advice}", markup=False, style="dim")


def _gates(console: Any, found: answer.Answer) -> None:
    if not found.gates:
        return
    import rich.markup

    table = _table("Required", "Measured", "Result")
    for gate in found.gates:
        table.add_row(rich.markup.escape(gate.requirement), rich.markup.escape(gate.observed), MARKS[gate.passed])
    console.print(table)


def _contenders(console: Any, found: answer.Answer) -> None:
    """A row for each metric, a column for each contender, with the 95 % interval where there is one."""
    if not found.contenders:
        return
    measured = dict.fromkeys(value.contender for value in found.contenders)
    who = [*(one for one in job.Contender if one in measured), *(one for one in measured if one.is_candidate)]
    table = _table("Metric", *who, "Examples", right=len(who) + 1)
    for metric in job.Metric:
        values = {value.contender: value for value in found.contenders if value.metric is metric}
        if values:
            examples = max(value.examples for value in values.values())
            table.add_row(metric, *(_value(values.get(one)) for one in who), str(examples))
    for tokens in ("prompt", "answer"):
        counts = {one.contender: getattr(one, tokens) for one in found.tokens}
        if counts:
            cells = (f"{counts[one]:.0f}" if one in counts else "-" for one in who)
            table.add_row(f"{tokens} tokens", *cells, "")
    console.print(table)
    for one in found.left_out:
        console.print(f"left out: {one}", markup=False)


def _judge(console: Any, found: answer.Answer) -> None:
    """The judge's win rates, a line for each contender."""
    for one in found.comparisons:
        if one.metric in job.PAIRWISE:
            console.print(
                f"{one.metric} over {one.over}: {one.gain + 0.5:.4f} ({one.low + 0.5:.3f} to {one.high + 0.5:.3f}), "
                f"{one.examples} questions",
                markup=False,
            )


def _benchmarks(console: Any, found: answer.Answer) -> None:
    """Base and tuned model, a row for each metric of a task."""
    if not found.benchmarks:
        return
    import rich.markup

    table = _table("Benchmark", "Metric", "Base", "Tuned", "Gain", "p", "Questions")
    for one in found.benchmarks:
        metric = f"{one.metric} ({one.filter})" if one.filter else one.metric
        gain = None if one.gain is None else results.Score(value=one.gain, low=one.low, high=one.high)
        p = "-" if one.p_value is None else f"{one.p_value:.2g}"
        cells = (_value(score if score and score.value is not None else None) for score in (one.base, one.tuned, gain))
        table.add_row(rich.markup.escape(one.task), rich.markup.escape(metric), *cells, p, str(one.examples))
    console.print(table)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    interval = (
        f" [dim]{value.low:.3f} to {value.high:.3f}[/]" if value.low is not None and value.high is not None else ""
    )
    return f"{value.value:.4f}{interval}"


def _table(*columns: str, right: int = 0) -> Any:
    import rich.box
    import rich.table

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if right and index else "left")
    return table
