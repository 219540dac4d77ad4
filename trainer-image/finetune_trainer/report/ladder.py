"""The ladder of methods, from the base model alone to pre-training: a row for each rung. Pure, no HTML."""

import dataclasses
import urllib.parse

from finetune_api import job, results
from finetune_trainer.report import judgement, reading, words

Contender = job.Contender
Mark = judgement.Mark

HOW = {
    Contender.PROMPT: "set intent.prompt.system",
    Contender.FEW_SHOT: "set intent.prompt.fewShot",
    Contender.RAG: "set intent.retrieval",
    Contender.STRUCTURED: "set evaluation.outputSchema",
}
"""How to measure a rung; the others only need a place among evaluation.baselines."""


@dataclasses.dataclass(frozen=True)
class Rung:
    title: str
    takes: str
    """What this method needs."""
    reached: str
    """The headline metric with its interval, or why it was not measured."""
    cost: str
    """Of 1,000 requests; empty where nothing was measured."""
    verdict: str
    mark: Mark


def rungs(found: results.Results) -> list[Rung]:
    """From cheap to costly; the tuned model and pre-training come last."""
    order = (*reading.alternatives(found), Contender.TUNED)
    return [*(_rung(found, who) for who in order), _PRE_TRAINING]


_PRE_TRAINING = Rung(
    "Pre-training",
    "all weights, from scratch: a large part of the web, and the budget of a model vendor",
    "not measured",
    "",
    "only where no base model knows the language or the kind of data",
    Mark.UNMEASURED,
)


def _rung(found: results.Results, who: Contender) -> Rung:
    title = "Fine-tuning" if who is Contender.TUNED else words.name(who)
    reached = _reached(found, who)
    if reached is None:
        return Rung(title, _takes(found, who), _missing(found, who), "", "not measured", Mark.UNMEASURED)
    verdict, mark = _of_tuned(found) if who is Contender.TUNED else _of_baseline(found, who)
    return Rung(title, _takes(found, who), reached, cost(found, who), verdict, mark)


def _takes(found: results.Results, who: Contender) -> str:
    if who.is_candidate:
        other = candidate(found, who)
        host = urllib.parse.urlsplit(other.endpoint).hostname
        return f"{other.model} at {host}; the prompt of {words.name(other.prompt or Contender.PROMPT)}"
    retrieved = f"up to {found.retrieved.examples} of them" if found.retrieved else "the most similar ones"
    took = found.training.seconds
    price = f", {words.price(found.training.cost, found.training.currency)}" if found.training.cost is not None else ""
    training = f"training ({words.duration(took)}{price})" if took else "training"
    prompt = f"; the prompt of {words.name(found.structured)}" if found.structured else ""
    asked = "; the system prompt in each request" if found.training.prompt else ""
    return {
        Contender.BASE: "nothing",
        Contender.PROMPT: "a system prompt",
        Contender.FEW_SHOT: f"{words.count(found.intent.prompt.few_shot, 'examples')} in each request",
        Contender.RETRIEVED: f"an index of the training examples; {retrieved} in each request",
        Contender.OPTIMIZED: _optimized(found),
        Contender.MANY_SHOT: "as many examples as fit, in each request",
        Contender.RAG: "documents, and an index of them; passages in each request",
        Contender.STRUCTURED: f"the JSON schema in each request{prompt}",
        Contender.TUNED: f"{training}; an adapter of your own to serve{asked}",
    }[who]


def _optimized(found: results.Results) -> str:
    if found.optimized is None:
        return "an instruction on the form of the answer; a search among written prompts"
    place = "after the question" if found.optimized.placement == "Question" else "in the system prompt"
    examples = {
        Contender.FEW_SHOT: "; the examples of Few-shot",
        Contender.RETRIEVED: "; the examples of Retrieved",
    }.get(found.optimized.examples, "")
    return f"an instruction on the form of the answer {place}{examples}"


def candidate(found: results.Results, who: Contender) -> results.Candidate:
    return next(one for one in found.candidates if one.name == who)


def _reached(found: results.Results, who: Contender) -> str | None:
    metric = found.headline
    if metric is None:
        return None
    if metric in job.PAIRWISE:
        pairwise = reading.judged_against(found, who)
        if pairwise is None or pairwise.win_rate is None:
            return "as judged below" if who is Contender.TUNED else None
        return f"the tuned model wins {words.measured(metric, pairwise.win_rate, pairwise.low, pairwise.high)}"
    value = reading.value(found, metric, who)
    if value is None:
        return None
    some = f", on {value.examples} of them" if who.is_candidate and candidate(found, who).problem else ""
    return f"{metric} {words.measured(metric, value.value, value.low, value.high)}{some}"


def _missing(found: results.Results, who: Contender) -> str:
    if who.is_candidate:
        return candidate(found, who).problem or "not measured"
    if found.teacher == job.PROMPTED:
        reference = "the reference: it wrote the expected answers"
        return reference if who is Contender.PROMPT else "not compared: with training.teacher Prompt only Base is"
    named = [text for text in found.left_out if text.startswith(str(who))]
    if named:
        late = any("it would take" in text for text in named)
        return "no time: raise evaluation.baselineBudget" if late else named[0].removeprefix(f"{who}: ")
    return f"{HOW[who]} to measure it" if who in HOW else "not measured"


def cost(found: results.Results, who: Contender) -> str:
    """What 1,000 requests take: tokens, time of one device, and their price where it is known."""
    spent = reading.tokens(found, who)
    if spent is None:
        return ""
    parts = [words.count(1000 * (spent.prompt + spent.answer), "tokens")]
    if spent.seconds:
        parts.append(words.duration(1000 * spent.seconds))
    if spent.cost is not None:
        parts.append(words.price(spent.cost, found.currency))
    return ", ".join(parts)


def _of_baseline(found: results.Results, who: Contender) -> tuple[str, Mark]:
    best = "the best baseline; " if who is found.best_baseline else ""
    if found.baseline is not None and found.baseline.sufficient is who:
        return f"{best}passed the gates before training", Mark.AGAINST
    mark = _against(found, who)
    text = {
        Mark.FOR: "the tuned model is better",
        Mark.AGAINST: "better than the tuned model",
        Mark.UNDECIDED: "no certain difference from the tuned model",
    }
    return best + text.get(mark, "not compared"), mark


def _of_tuned(found: results.Results) -> tuple[str, Mark]:
    """Against every baseline that was measured: better than the best one means better than each."""
    marks = {who: _against(found, who) for who in reading.alternatives(found) if _reached(found, who) is not None}
    if not marks:
        return "no baseline to compare with", Mark.UNDECIDED
    worse = [words.name(who) for who, mark in marks.items() if mark is Mark.AGAINST]
    if worse:
        return f"worse than {', '.join(worse)}", Mark.AGAINST
    unsure = [words.name(who) for who, mark in marks.items() if mark is not Mark.FOR]
    if unsure:
        return f"not shown to be better than {', '.join(unsure)}", Mark.UNDECIDED
    listed = "alternative" if any(who.is_candidate for who in marks) else "baseline"
    return f"better than every {listed} that was measured", Mark.FOR


def _against(found: results.Results, who: Contender) -> Mark:
    """The tuned model against one baseline, by the headline metric."""
    one = reading.comparison(found, found.headline, who) if found.headline else None
    if one is None:
        return Mark.UNMEASURED
    if one.gain > 0 and one.p_value < judgement.ALPHA:
        return Mark.FOR
    return Mark.AGAINST if one.high < 0 else Mark.UNDECIDED
