"""The report: one HTML file without any request to elsewhere, light and dark, for people. Pure: values in, text out."""

import html
from typing import Any

from finetune_api import job, run, status

SAMPLES = 20
"""Samples shown side by side; samples.jsonl has all of them."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5b6576;--line:#d9dee7;--page:#fff;--box:#f6f8fb;--good:#13795b;
--bad:#b3261e;--a:#2f6fde;--b:#d97706}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa5b8;--line:#313a4a;--page:#12161d;--box:#1a202a;
--good:#4cc38a;--bad:#ff8a80;--a:#7aa7ff;--b:#f5b04c}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:32px 20px 64px}h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 12px}
p{margin:0 0 8px}.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}
.verdict{background:var(--box);border:1px solid var(--line);border-radius:10px;padding:16px 20px;margin:20px 0;font-size:18px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}th,td{padding:8px 12px;border-bottom:1px solid var(--line);
text-align:left;vertical-align:top}th{color:var(--soft);font-weight:600;font-size:14px}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums}pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.45 ui-monospace,monospace}
details{border:1px solid var(--line);border-radius:10px;margin:0 0 10px;padding:10px 14px;background:var(--box)}
summary{cursor:pointer}.pair{display:grid;grid-template-columns:repeat(3,1fr);gap:12px;margin-top:10px}
@media(max-width:720px){.pair{grid-template-columns:1fr}}.pair h3{font-size:13px;color:var(--soft);margin:0 0 4px}
svg{width:100%;height:auto;background:var(--box);border:1px solid var(--line);border-radius:10px}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}
"""


def page(spec: run.Run, found: status.Evaluation, samples: list[dict[str, Any]], history: dict[str, Any]) -> str:
    """The whole document."""
    title = f"{spec.namespace}/{spec.name}"
    return "".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            '<meta name=viewport content="width=device-width,initial-scale=1">',
            f"<title>Fine-tuning report: {_text(title)}</title><style>{STYLE}</style><main>",
            f"<h1>{_text(title)}</h1><p class=soft>revision {_text(spec.revision)} · base model "
            f"{_text(spec.base_model.name)} · LoRA rank {spec.training.lora.rank} · served as "
            f"{_text(spec.served_model_name)}</p>",
            f"<p class=verdict>{_verdict(found)}</p>",
            _metrics(found),
            _gates(found),
            _curve(history),
            _samples(samples),
            "</main></html>\n",
        ]
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _verdict(found: status.Evaluation) -> str:
    words = "<b class=good>Passed.</b>" if found.passed else "<b class=bad>Not passed.</b>"
    values = {(value.name, value.contender): value.value for value in found.metrics}
    parts = []
    for metric in (job.Metric.EXACT_MATCH, job.Metric.JSON_VALID, job.Metric.ROUGE_L, job.Metric.LOSS):
        tuned, base = values.get((metric, job.Contender.TUNED)), values.get((metric, job.Contender.BASE))
        if tuned is not None and base is not None:
            parts.append(f"{metric} {tuned} against {base}")
    compared = f"Tuned against base on {found.examples} held-out examples: {', '.join(parts[:3])}." if parts else ""
    return f"{words} {_text(compared)}"


def _metrics(found: status.Evaluation) -> str:
    rows = []
    for metric in job.Metric:
        values = {value.contender: value.value for value in found.metrics if value.name is metric}
        if not values:
            continue
        base, tuned = values.get(job.Contender.BASE), values.get(job.Contender.TUNED)
        change, style = "", ""
        if base is not None and tuned is not None:
            difference = float(tuned) - float(base)
            better = difference < 0 if metric in job.LOWER_IS_BETTER else difference > 0
            style = "" if not difference else " good" if better else " bad"
            change = f"{difference:+.4f}"
        hint = "lower is better" if metric in job.LOWER_IS_BETTER else "higher is better"
        rows.append(
            f"<tr><td>{metric} <span class=soft>({hint})</span><td class=n>{_text(base or '–')}"
            f"<td class=n>{_text(tuned or '–')}<td class='n{style}'>{change}"
        )
    head = "<tr><th>Metric<th class=n>Base<th class=n>Tuned<th class=n>Change"
    return f"<h2>Metrics</h2><div class=scroll><table>{head}{''.join(rows)}</table></div>"


def _gates(found: status.Evaluation) -> str:
    if not found.gates:
        return "<h2>Gates</h2><p class=soft>The job has no gates: every model passes.</p>"
    rows = [
        f"<tr><td>{_text(gate.requirement)}<td>{_text(gate.observed)}<td>"
        + ("<b class=good>passed</b>" if gate.passed else "<b class=bad>failed</b>")
        for gate in found.gates
    ]
    head = "<tr><th>Required<th>Measured<th>Result"
    return f"<h2>Gates</h2><div class=scroll><table>{head}{''.join(rows)}</table></div>"


def _curve(history: dict[str, Any]) -> str:
    """The losses as an inline drawing: every step as a line, validations as a line with dots."""
    steps, checks = history.get("history", []), history.get("validations", [])
    if len(steps) < 2:
        return ""
    width, height, left, bottom, top = 960, 300, 48, 28, 14
    last = max(point["step"] for point in steps)
    high = max(point["loss"] for point in [*steps, *checks]) * 1.05 or 1.0

    def place(point: dict[str, float]) -> tuple[float, float]:
        x = left + (width - left - 16) * (point["step"] - 1) / max(1, last - 1)
        return round(x, 1), round(top + (height - top - bottom) * (1 - point["loss"] / high), 1)

    def line(points: list[dict[str, float]], colour: str) -> str:
        path = " ".join(f"{x},{y}" for x, y in map(place, points))
        return f"<polyline fill=none stroke='var(--{colour})' stroke-width=2 points='{path}'/>"

    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = round(top + (height - top - bottom) * (1 - share), 1)
        marks.append(f"<line x1={left} x2={width - 16} y1={y} y2={y} stroke='var(--line)'/>")
        marks.append(f"<text x={left - 8} y={y + 4} text-anchor=end>{high * share:.2f}</text>")
    dots = "".join(f"<circle cx={x} cy={y} r=4 fill='var(--b)'/>" for x, y in map(place, checks))
    labels = (
        f"<text x={left} y={height - 8}>step 1</text><text x={width - 16} y={height - 8} text-anchor=end>step {last:g}"
        f"</text><text x={width - 24} y={top + 16} text-anchor=end><tspan style='fill:var(--a)'>training</tspan> "
        "<tspan style='fill:var(--b)'>validation</tspan></text>"
    )
    return (
        "<h2>Loss</h2><p class=soft>Nats per learned token.</p>"
        f"<svg viewBox='0 0 {width} {height}' role=img aria-label='Training and validation loss by step'>"
        f"{''.join(marks)}{line(steps, 'a')}{line(checks, 'b') if checks else ''}{dots}{labels}</svg>"
    )


def _samples(samples: list[dict[str, Any]]) -> str:
    blocks: list[str] = []
    for sample in samples[:SAMPLES]:
        if sample["expected"] is None:
            continue
        prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in sample["messages"])
        last = sample["messages"][-1]["content"]
        columns = "".join(
            f"<div><h3>{name}</h3><pre>{_text(sample[key] or '')}</pre></div>"
            for name, key in (("Expected", "expected"), ("Base", "base"), ("Tuned", "tuned"))
        )
        blocks.append(
            f"<details{' open' if len(blocks) < 3 else ''}><summary>{_text(last[:140])}</summary>"
            f"<p class=soft>{_text(sample['source'])}</p><pre>{_text(prompt)}</pre><div class=pair>{columns}</div></details>"
        )
    if not blocks:
        return ""
    note = f"The first {len(blocks)} of {len(samples)}; samples.jsonl has all." if len(samples) > len(blocks) else ""
    return f"<h2>Answers side by side</h2><p class=soft>{note}</p>{''.join(blocks)}"
