"""Results to show the report by. All numbers are invented: an example until a real job's report takes its place.

everything()     a support desk that answers as JSON: every part there, gates passed
failed()         the same task, overfitted, a gate failed, a prompt sufficient
bare()           the least that a results.json can hold
plain_text()     texts without answers: losses only
hostile()        markup, control characters and lone surrogates wherever users write
judged()         the same with a judge's verdicts
benchmarked()    the same with public benchmarks
other_scripts()  right-to-left texts and words without an end
"""

import datetime
import json
import math
import random
from typing import Any

from finetune_api import job, results, status

Metric = job.Metric
Contender = job.Contender
BASE, PROMPT, FEW_SHOT, TUNED = Contender.BASE, Contender.PROMPT, Contender.FEW_SHOT, Contender.TUNED
ADAPTER = "9f2b6c1d8e3a47509f2b6c1d8e3a47509f2b6c1d8e3a47509f2b6c1d8e3a4750"


def bare() -> results.Results:
    return results.Results(
        namespace="ml",
        name="bare",
        revision="r1",
        base_model="tiny",
        served_model_name="bare",
        rank=8,
        adapter=ADAPTER,
        intent=job.Intent(),
        evaluation=status.Evaluation(passed=True, examples=0),
        seconds=0.4,
    )


def everything() -> results.Results:
    return changed(
        bare(),
        namespace="example",
        name="support-desk",
        revision="4c81e0",
        base_model="qwen2.5-7b-instruct",
        base_model_revision="a09a354",
        served_model_name="support-desk",
        rank=16,
        intent=job.Intent(
            goals=[job.Goal.FORMAT, job.Goal.TOKEN_REDUCTION], prompt=job.Prompt(system="You sort mail.", few_shot=3)
        ),
        evaluation=status.Evaluation(
            passed=True,
            score="0.9200",
            examples=200,
            tokens_saved_per_request=802,
            gates=[
                gate(
                    Metric.EXACT_MATCH,
                    "ExactMatch at least 0.8",
                    "0.9200 (95 %: 0.8741 to 0.9501, n 200), a model at 0.8 gets this far in 1 of 10,000",
                ),
                gate(Metric.EXACT_MATCH, "ExactMatch better than FewShot by at least 0.05", "0.9200, FewShot 0.6100"),
                gate(Metric.FORGETTING, "Forgetting at most 0.05", "0.0110").model_copy(
                    update={"power": "with 64 examples a model passes in 80 of 100 cases if its true value is 0.018"}
                ),
            ],
            canary="s3://acme/finetune/example/support-desk/4c81e0/evaluation/77ab/canary.json",
        ),
        headline=Metric.EXACT_MATCH,
        best_baseline=FEW_SHOT,
        values=values(),
        comparisons=comparisons(),
        tokens=[
            results.Tokens(contender=BASE, prompt=78, answer=143),
            results.Tokens(contender=PROMPT, prompt=431, answer=52),
            results.Tokens(contender=FEW_SHOT, prompt=880, answer=39),
            results.Tokens(contender=TUNED, prompt=78, answer=37),
        ],
        break_even_requests=41_300,
        training=training(overfits=False),
        preflight=status.Preflight(
            verdict="Caution",
            advice=["Decide which of the contradicting answers is right."],
            examples=1_840,
            validation_examples=97,
            test_examples=200,
            tokens=221_904,
            trainable_tokens=68_310,
        ),
        baseline=status.Baseline(examples=97, message="The best baseline, FewShot, reaches 0.60 of the 0.80 required"),
        findings=[
            {
                "rule": "duplicates",
                "count": 14,
                "dropped": 14,
                "message": "14 of 2151 examples repeat an earlier one",
                "places": [
                    f"s3://acme/support/train.jsonl:{line} (like train.jsonl:{line - 40})" for line in range(60, 74)
                ],
            },
            {
                "rule": "contradictions",
                "count": 3,
                "dropped": 0,
                "message": "3 of 2137 examples have a prompt with several different answers",
                "places": ["s3://acme/support/train.jsonl:12", "s3://acme/support/train.jsonl:801"],
            },
        ],
        seconds=312.0,
        finished_at=datetime.datetime(2026, 11, 20, 16, 4, tzinfo=datetime.UTC),
        samples=samples(),
    )


def changed(found: results.Results, **parts: Any) -> results.Results:
    """The results with other parts, validated again."""
    fields = {name: getattr(found, name) for name in type(found).model_fields}
    return results.Results(**(fields | parts))


def gate(metric: job.Metric, requirement: str, observed: str, *, passed: bool = True) -> status.GateResult:
    return status.GateResult(metric=metric, requirement=requirement, observed=observed, passed=passed)


def values() -> list[results.Value]:
    shares = {
        Metric.EXACT_MATCH: {TUNED: 184, BASE: 0, PROMPT: 46, FEW_SHOT: 122},
        Metric.JSON_SCHEMA: {TUNED: 200, BASE: 0, PROMPT: 131, FEW_SHOT: 188},
        Metric.STOPPED: {TUNED: 200, BASE: 142, PROMPT: 190, FEW_SHOT: 199},
        Metric.CONSISTENCY: {TUNED: 189, BASE: 71},
    }
    made = [
        results.Value(metric=metric, contender=who, value=right / 200, low=low, high=high, examples=200)
        for metric, counted in shares.items()
        for who, right in counted.items()
        for low, high in [wilson(right, 200)]
    ]
    for who, loss, width in ((TUNED, 0.212, 0.03), (BASE, 2.493, 0.11), (PROMPT, 1.02, 0.08), (FEW_SHOT, 0.55, 0.05)):
        made.append(
            results.Value(
                metric=Metric.LOSS, contender=who, value=loss, low=loss - width, high=loss + width, examples=200
            )
        )
    made.append(
        results.Value(metric=Metric.FORGETTING, contender=TUNED, value=0.011, low=-0.004, high=0.027, examples=120)
    )
    made.append(
        results.Value(metric=Metric.DIVERGENCE, contender=TUNED, value=0.412, low=0.351, high=0.475, examples=24)
    )
    made.append(
        results.Value(
            metric=Metric.GENERAL_DIVERGENCE, contender=TUNED, value=0.018, low=-0.004, high=0.041, examples=24
        )
    )
    return made


def wilson(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score."""
    z, share = 1.96, right / of
    middle, under = share + z * z / (2 * of), 1 + z * z / of
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, (middle - half) / under), min(1.0, (middle + half) / under)


def comparisons() -> list[results.Comparison]:
    def one(metric: job.Metric, over: job.Contender, gain: float, half: float, p_value: float) -> results.Comparison:
        return results.Comparison(
            metric=metric, over=over, gain=gain, low=gain - half, high=gain + half, p_value=p_value, examples=200
        )

    return [
        one(Metric.EXACT_MATCH, BASE, 0.92, 0.04, 0.0001),
        one(Metric.EXACT_MATCH, PROMPT, 0.69, 0.07, 0.0001),
        one(Metric.EXACT_MATCH, FEW_SHOT, 0.31, 0.075, 0.0001),
        one(Metric.JSON_SCHEMA, FEW_SHOT, 0.06, 0.035, 0.0004),
        one(Metric.STOPPED, FEW_SHOT, 0.005, 0.01, 0.5),
        one(Metric.LOSS, FEW_SHOT, 0.338, 0.05, 0.0001),
    ]


def training(*, overfits: bool) -> results.Training:
    draw = random.Random(7)
    history = [
        {"step": step, "loss": 0.18 + 2.3 * math.exp(-step / 45) + draw.gauss(0, 0.05) * (1 + math.exp(-step / 60))}
        for step in range(1, 346)
    ]
    validations = [
        {"step": step, "loss": 0.24 + 2.1 * math.exp(-step / 50) + (max(0, step - 150) / 500 if overfits else 0)}
        for step in range(23, 346, 23)
    ]
    return results.Training(
        history=history,
        validations=validations,
        seconds=2_712.0,
        tokens_per_second=1_907.0,
        peak_memory=18_790_000_000,
        gpu_hours=0.75,
        cost=0.53,
        currency="USD",
    )


_MAILS = (
    ("Where is my parcel? It was due on Monday, order 5512.", "delivery", "high", "5512"),
    ("Thank you, the new lamp is lovely!", "praise", "low", None),
    ("I want my money back for order 871, it arrived broken.", "refund", "high", "871"),
    ("Can I change the address of order 90? We have moved.", "address", "normal", "90"),
    ("Your app logs me out every five minutes.", "technical", "normal", None),
    ("Do you ship to Norway?", "question", "low", None),
    ("Order 4410 came twice, who picks up the second one?", "delivery", "normal", "4410"),
    ("Cancel my subscription at once.", "cancellation", "high", None),
)


def samples() -> list[results.Sample]:
    made = []
    for index, (mail, intent, urgency, order) in enumerate(_MAILS):
        expected = json.dumps({"intent": intent, "urgency": urgency, "order": order, "reply": True})
        near = json.dumps({"intent": intent, "urgency": "normal" if urgency != "normal" else "high", "order": order})
        tuned = expected if index != 4 else expected.replace("technical", "question")
        few = near if index not in (1, 4) else expected
        few = near.replace(intent, "other") if index == 7 else few
        tuned = expected.replace('"high"', '"normal"') if index == 7 else tuned
        made.append(
            results.Sample(
                source=f"s3://acme/support/test.jsonl:{index + 1}",
                messages=[{"role": "system", "content": "Sort mail as JSON."}, {"role": "user", "content": mail}],
                expected=expected,
                answers={
                    BASE: f"Sure! I would be happy to help. The customer writes about {intent}, so I would answer soon.",
                    PROMPT: f"Here is the JSON:\n```\n{near}\n```",
                    FEW_SHOT: few,
                    TUNED: tuned,
                },
            )
        )
    return made


def failed() -> results.Results:
    found = everything()
    return changed(
        found,
        evaluation=status.Evaluation(
            passed=False,
            score="0.6400",
            examples=24,
            gates=[
                gate(Metric.EXACT_MATCH, "ExactMatch at least 0.8", "0.6400", passed=False),
                gate(Metric.EXACT_MATCH, "ExactMatch better than FewShot", "0.6400, FewShot 0.6700", passed=False),
                gate(Metric.FORGETTING, "Forgetting at most 0.05", "0.1100", passed=False),
            ],
        ),
        values=[
            results.Value(metric=Metric.EXACT_MATCH, contender=TUNED, value=0.64, low=0.44, high=0.8, examples=24),
            results.Value(metric=Metric.EXACT_MATCH, contender=FEW_SHOT, value=0.67, low=0.47, high=0.83, examples=24),
            results.Value(metric=Metric.FORGETTING, contender=TUNED, value=0.11, low=0.08, high=0.14, examples=120),
        ],
        comparisons=[
            results.Comparison(
                metric=Metric.EXACT_MATCH, over=FEW_SHOT, gain=-0.03, low=-0.2, high=0.14, p_value=0.63, examples=24
            )
        ],
        training=training(overfits=True),
        baseline=status.Baseline(
            sufficient=FEW_SHOT, examples=97, message="FewShot passes every gate without training"
        ),
        break_even_requests=None,
    )


def judged() -> results.Results:
    """A judge was asked, and not everywhere to the end."""
    comparisons = [
        results.PairwiseResult(
            over=BASE,
            win_rate=0.91,
            low=0.8377,
            high=0.9519,
            p_value=1e-12,
            wins=88,
            ties=6,
            losses=6,
            swayed=5,
            same=1,
        ),
        results.PairwiseResult(
            over=FEW_SHOT, win_rate=0.56, low=0.46, high=0.65, p_value=0.1, wins=30, ties=50, losses=18, unread=2
        ),
        results.PairwiseResult(over=PROMPT, wins=10, ties=5, losses=5, unread=80),
    ]
    part = results.Judgement(
        model="wise-70b", criteria="Friendly and short.", comparisons=comparisons, problem="160 verdicts late"
    )
    return changed(everything(), judgement=part)


def benchmarked() -> results.Results:
    """Tasks of every kind: better, worse, not told apart, without an interval, and no number."""

    def one(task: str, metric: str, base: float | None, tuned: float | None, **more: Any) -> results.Benchmark:
        scores = [
            results.Score(value=value, low=value * 0.9, high=value * 1.1) if value is not None else results.Score()
            for value in (base, tuned)
        ]
        return results.Benchmark(
            task=task, metric=metric, base=scores[0], tuned=scores[1], **{"examples": 200, "few_shot": 0} | more
        )

    listed = [
        one("hellaswag", "acc_norm", 0.43, 0.36, gain=-0.07, low=-0.11, high=-0.03, p_value=0.001),
        one(
            "gsm8k",
            "exact_match",
            0.05,
            0.09,
            filter="strict-match",
            few_shot=5,
            gain=0.04,
            low=0,
            high=0.08,
            p_value=0.02,
        ),
        one("arc_easy", "acc", 0.512, 0.515, gain=0.003, low=-0.02, high=0.03, p_value=0.9),
        one("boolq", "acc", 0.6, 0.6, gain=0, low=0, high=0, p_value=1),
        one(
            "wikitext",
            "word_perplexity",
            1204.0,
            13.4,
            higher_is_better=False,
            gain=1190.6,
            low=1100,
            high=1280,
            p_value=0.001,
        ),
        one("wmt14-en-fr", "bleu", 21.0, 20.0, gain=-1),
        one("lambada_openai", "perplexity", None, None, higher_is_better=False),
    ]
    part = results.Harness(release="0.4.13", chat_template=False, benchmarks=listed, problems=["piqa has no questions"])
    return changed(everything(), harness=part)


def plain_text() -> results.Results:
    values = [
        results.Value(metric=metric, contender=who, value=value, low=value * 0.95, high=value * 1.05, examples=60)
        for metric, tuned, base in ((Metric.LOSS, 1.9, 2.7), (Metric.PERPLEXITY, 6.7, 14.9))
        for who, value in ((TUNED, tuned), (BASE, base))
    ]
    texts = [results.Sample(source=f"x.jsonl:{line}", text="Once upon a time. " * 40) for line in range(5)]
    evaluation = status.Evaluation(passed=True, examples=60)
    return changed(
        bare(), evaluation=evaluation, headline=Metric.LOSS, best_baseline=BASE, values=values, samples=texts
    )


EVIL = (
    "</pre></script><script>fetch('http://evil.test/a')</script><img src=http://evil.test/b onerror=alert(1)>"
    "<style>*{background:url(http://evil.test/c)}</style>\"'><svg onload=alert(2)>&lt;b&gt;\x00\x1b[31m\x85\ud800<!-- -->"
)


def hostile() -> results.Results:
    """Every text that users or models write is an attack."""
    answers: dict[job.Contender, str | None] = {who: f"{who} {EVIL}" for who in Contender}
    return changed(
        everything(),
        namespace=EVIL,
        name=EVIL,
        revision=EVIL,
        base_model=EVIL,
        base_model_revision=EVIL,
        served_model_name=EVIL,
        adapter=EVIL,
        evaluation=status.Evaluation(
            passed=False, examples=200, gates=[gate(Metric.LOSS, EVIL, EVIL, passed=False)], canary=EVIL
        ),
        baseline=status.Baseline(sufficient=BASE, examples=3, message=EVIL),
        preflight=status.Preflight(
            verdict="NotRecommended", advice=[EVIL], findings=[EVIL], examples=1, tokens=1, trainable_tokens=1
        ),
        findings=[{"rule": EVIL, "count": EVIL, "message": EVIL, "dropped": EVIL, "places": [EVIL]}, {}],
        training=training(overfits=True).model_copy(update={"currency": EVIL}),
        judgement=results.Judgement(
            model=EVIL,
            criteria=EVIL,
            problem=EVIL,
            comparisons=[results.PairwiseResult(over=BASE, wins=0, ties=0, losses=0)],
        ),
        harness=results.Harness(
            release=EVIL,
            chat_template=True,
            problems=[EVIL],
            benchmarks=[
                results.Benchmark(
                    task=EVIL,
                    metric=EVIL,
                    filter=EVIL,
                    few_shot=1,
                    examples=1,
                    base=results.Score(),
                    tuned=results.Score(),
                )
            ],
        ),
        samples=[
            results.Sample(source=EVIL, messages=[{"role": EVIL, "content": EVIL}], expected=EVIL, answers=answers),
            results.Sample(source=EVIL, text=EVIL),
        ],
    )


def other_scripts() -> results.Results:
    arabic, endless = "أين طلبي رقم 5512؟ كان من المفترض أن يصل يوم الاثنين.", "x" * 3000
    chats = [
        results.Sample(
            source="t.jsonl:1",
            messages=[{"role": "user", "content": arabic}],
            expected="سيصل الطلب غدا (order 5512).",
            answers={TUNED: "سيصل الطلب اليوم (order 5512).", BASE: "I do not speak العربية."},
        ),
        results.Sample(
            source=endless,
            messages=[{"role": "user", "content": endless}],
            expected=endless,
            answers={TUNED: f"{endless}y", BASE: "\u202eevil\u202d " + endless},
        ),
    ]
    return changed(
        everything(),
        name=endless[:40],
        base_model=endless,
        samples=chats,
        findings=[{"rule": endless, "message": endless}],
    )
