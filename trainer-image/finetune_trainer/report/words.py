"""Numbers and names in words, for all parts of the report. Pure."""

import math

from finetune_api import evaluation, intent, job

Metric = job.Metric
Contender = job.Contender

_PLACES = {
    Metric.LOSS: 3,
    Metric.DIVERGENCE: 3,
    Metric.GENERAL_DIVERGENCE: 3,
    Metric.PERPLEXITY: 2,
    Metric.LENGTH_RATIO: 2,
}


def number(metric: Metric, value: float | None, *, sign: bool = False) -> str:
    """A value of a metric in its usual form: shares 0.92, forgetting 2.1 %."""
    if value is None or not math.isfinite(value):
        return "not defined"
    sign_ = "+" if sign else ""
    if metric is Metric.FORGETTING:
        return f"{100 * value:{sign_}.1f} %".replace("-", "−")
    small = sign and abs(value) < 0.1  # a gain of half a percent must be visible
    places = _PLACES.get(metric, 3 if small else 2)
    # A share close to 1 or 0 must not be shown as 1 or 0.
    while (
        places < 4
        and metric in job.SHARES
        and round(value, places) in (0.0, 1.0, -1.0)
        and round(value, 4) != round(value)
    ):
        places += 1
    return f"{round(value, places) + 0.0:{sign_}.{places}f}".replace("-", "−")


def interval(metric: Metric, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """0.85 to 0.96; empty where there is none."""
    if low is None or high is None:
        return ""
    return f"{number(metric, low, sign=sign)} to {number(metric, high, sign=sign)}"


def measured(metric: Metric, value: float, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """0.92 (0.85 to 0.96)."""
    inside = interval(metric, low, high, sign=sign)
    return number(metric, value, sign=sign) + (f" ({inside})" if inside else "")


def name(contender: Contender) -> str:
    """A contender as the heading of a column."""
    if contender.is_candidate:
        return str(contender)
    return {
        Contender.BASE: "Base",
        Contender.PROMPT: "Prompt",
        Contender.FEW_SHOT: "Few-shot",
        Contender.RETRIEVED: "Retrieved",
        Contender.OPTIMIZED: "Optimized",
        Contender.MANY_SHOT: "Many-shot",
        Contender.RAG: "RAG",
        Contender.STRUCTURED: "Structured",
        Contender.SERVING: "Serving",
        Contender.TUNED: "Tuned",
    }[contender]


def beside(contender: Contender, prompt: intent.Prompt) -> str:
    """A contender after the number that it reached: 0.61 *with a prompt and 3 examples*."""
    if contender in evaluation.BASELINES and contender is not Contender.BASE:
        return described(contender, prompt).removeprefix("the base model ")
    return f"by {described(contender, prompt)}"


def described(contender: Contender, prompt: intent.Prompt) -> str:
    """A contender within a sentence: the base model *with a prompt and 3 examples*."""
    if contender.is_candidate:
        return f"the candidate {contender}"
    examples = f"{prompt.few_shot} example{'' if prompt.few_shot == 1 else 's'}"
    also = "a prompt and " if prompt.system else ""
    return {
        Contender.BASE: "the base model alone",
        Contender.PROMPT: "the base model with a prompt",
        Contender.FEW_SHOT: f"the base model with {also}{examples}",
        Contender.RETRIEVED: f"the base model with {also}retrieved examples",
        Contender.OPTIMIZED: "the base model with the best of the written prompts",
        Contender.MANY_SHOT: f"the base model with {also}as many examples as fit",
        Contender.RAG: f"the base model with {also}passages of the documents",
        Contender.STRUCTURED: "the base model with structured decoding",
        Contender.SERVING: "the revision that is served",
        Contender.TUNED: "the tuned model",
    }[contender]


def share_of_cases(p_value: float) -> str:
    """A p-value as a share of cases: 1 of 10,000."""
    if not math.isfinite(p_value):
        return "an unknown share of cases"
    if p_value < 0.0001:
        return "fewer than 1 of 10,000"
    if p_value < 0.05:
        return f"1 of {_rounded(1 / p_value):,}"
    return f"{round(100 * p_value)} of 100"


def gained(gain: float, p_value: float) -> str:
    """A p-value as a clause, after the gain that it belongs to."""
    if gain <= 0:
        return "the tuned model is not better"
    words = f"a difference this large comes by chance in {share_of_cases(p_value)}"
    return words if p_value < 0.05 else f"{words}, so it could be chance"


def _rounded(value: float) -> int:
    """To two digits: 143 becomes 140."""
    step = 10.0 ** max(0, math.floor(math.log10(value)) - 1)
    return int(round(value / step) * step)


def count(value: float, unit: str = "") -> str:
    """1,204 tokens."""
    digits = f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.1f}"
    return f"{digits} {unit}".strip()


def duration(seconds: float) -> str:
    """1 h 20 min, 3 min 12 s, 45 s, 0.4 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def size(octets: float) -> str:
    """14.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if octets < 1024:
            return f"{octets:.0f} {unit}" if unit == "B" else f"{octets:.1f} {unit}"
        octets /= 1024
    return f"{octets:.1f} TiB"


def price(amount: float, currency: str | None) -> str:
    """0.85 USD; amounts below a cent with the digits that they need."""
    places = 2 if amount >= 0.01 or amount == 0 else 4
    return f"{amount:,.{places}f} {currency or ''}".strip()


def capital(text: str) -> str:
    """A clause as the beginning of a sentence."""
    return text[:1].upper() + text[1:]
