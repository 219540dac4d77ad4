"""The whole page: head, style and the parts in their order."""

import functools
import importlib.resources

from finetune_api import results
from finetune_trainer.report import benchmarks, duels, markup, samples, scores, sections

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Whatever slipped through: a browser loads nothing and runs nothing of this page."""


def page(found: results.Results) -> str:
    """The HTML document of one evaluation. Any part of the results may be absent."""
    name = f"{found.namespace}/{found.name}"
    about = (
        f"revision {markup.quoted(found.revision)} · base model {markup.quoted(found.base_model)} · LoRA rank {found.rank} · "
        f"served as {markup.quoted(found.served_model_name)}"
    )
    parts = (
        sections.verdict(found),
        sections.reasons(found),
        sections.gates(found),
        scores.contenders(found),
        scores.comparisons(found),
        duels.section(found),
        benchmarks.section(found),
        sections.losses(found),
        sections.tokens(found),
        samples.section(found),
        sections.findings(found),
        sections.facts(found),
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{POLICY}"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f'<title>Fine-tuning report: {markup.text(name)}</title><link rel="icon" href="data:,"><style>{style()}</style></head>'
        f'<body><main><header><h1>{markup.quoted(name)}</h1><p class="soft">{about}</p></header>'
        f"{''.join(parts)}</main></body></html>\n"
    )


@functools.cache
def style() -> str:
    """style.css, which is a file of its own for those who edit it."""
    return importlib.resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
