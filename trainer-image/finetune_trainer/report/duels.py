"""What a judge preferred: a bar of won, tied and lost questions against each contender, with the win rate."""

from finetune_api import job, results
from finetune_trainer.report import drawings, markup, words

RATE = job.Metric.JUDGE_WIN_RATE
HALF = 0.5


def section(found: results.Results) -> markup.Html:
    """Empty where the job has no judge."""
    said = found.judgement
    if said is None:
        return ""
    note = (
        f"{markup.quoted(said.model)} was asked which of two answers to the same question is better: the tuned model's, or the "
        "other's. It was asked twice, with the answers in either order; what it said of one order alone is a tie. Asked to judge "
        f"by: {markup.quoted(said.criteria)} A judge is a model, too, and can be wrong in ways that no interval shows: read some "
        "of the answers below yourself."
    )
    problem = markup.paragraph(f"<strong>Not complete:</strong> {markup.quoted(said.problem)}") if said.problem else ""
    head = (
        "Against",
        "Win rate, 95 % interval",
        "Drawn around 0.5",
        "=Won",
        "=Tied",
        "=Lost",
        "Chance",
        "Of the ties, and left out",
    )
    return markup.section(
        "judge",
        "Which answers a judge prefers",
        problem,
        markup.paragraph(note, "soft"),
        markup.table("The judge's verdicts", head, [_row(one, found) for one in said.duels]) if said.duels else "",
    )


def _row(one: results.Duel, found: results.Results) -> list[markup.Html]:
    who = markup.text(words.capital(words.described(one.over, found.intent.prompt)))
    counts = [f"={words.count(number)}" for number in (one.wins, one.ties, one.losses)]
    details = [
        f"{words.count(one.same)} with the same text" if one.same else "",
        f"{words.count(one.swayed)} decided by the order" if one.swayed else "",
        f"{words.count(one.unread)} left out without a verdict" if one.unread else "",
    ]
    last = markup.text("; ".join(text for text in details if text))
    if one.win_rate is None:
        return [who, '<span class="soft">not measured: too few verdicts</span>', "", *counts, "", last]
    shown, inside = words.number(RATE, one.win_rate), words.interval(RATE, one.low, one.high)
    drawn = drawings.whisker(
        one.win_rate, one.low, one.high, drawings.Scale(0.0, 1.0), f"{shown}, 95 % interval {inside}", line=HALF
    )
    chance = words.gained(one.wins - one.losses, 1.0 if one.p_value is None else one.p_value)
    return [
        who,
        f'<span class="value">{shown}</span><span class="soft inside">{inside or "no interval"}</span>',
        drawn,
        *counts,
        markup.text(words.capital(chance)),
        last,
    ]
