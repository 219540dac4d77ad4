"""The whole page, made by the templates. They call the other modules of this package for the contents, and have all markup.

Jinja2 escapes every value; only the text of the templates themselves is markup.
"""

import functools
from typing import Any

import jinja2
import markupsafe

from finetune_api import checks, evaluation, job, results
from finetune_trainer.report import benchmarks, drawings, judgement, ladder, parts, reading, samples, scores, words

_UNSEEN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
# C1 controls and lone surrogates: browsers interpret the first differently, and the second cannot be encoded as UTF-8.
_WRONG = dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
_VISIBLE = _UNSEEN | _WRONG


def page(found: results.Results) -> str:
    """The HTML document of one evaluation. Any part of the results may be absent."""
    return environment().get_template("page.html.j2").render(found=found)


def visible(value: Any) -> Any:
    """A value as text, control characters made visible; Jinja2 escapes it then. Markup of a macro stays as it is."""
    return value if isinstance(value, markupsafe.Markup) else str(value).replace("\r\n", "\n").translate(_VISIBLE)


@functools.cache
def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    modules = (benchmarks, drawings, evaluation, judgement, ladder, parts, reading, samples, scores, words)
    made.globals |= {module.__name__.rpartition(".")[2]: module for module in modules}
    made.globals |= {"Contender": job.Contender, "Mark": judgement.Mark, "rules": checks.BY_ID}
    made.filters |= {"capital": words.capital, "count": words.count, "name": words.name}
    return made
