"""Pieces of HTML, for all parts of the report. Whatever was written by users goes through `text` or `quoted`."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

Html = str
"""Text that is HTML already, so that a reader of a signature sees what is escaped and what is not."""

_UNSEEN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
# C1 controls and lone surrogates: browsers guess at the first, and the second cannot be written as UTF-8 at all.
_WRONG = dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
_VISIBLE = _UNSEEN | _WRONG


def text(value: Any) -> Html:
    """A value as text of a page: escaped, control characters made visible."""
    return html.escape(str(value).replace("\r\n", "\n").translate(_VISIBLE))


def quoted(value: Any) -> Html:
    """Words of users inside a sentence of ours: their direction of writing ends with them."""
    return f"<bdi>{text(value)}</bdi>"


def block(value: Any, label: str, kind: str = "") -> Html:
    """A text of any length with its line breaks, scrolled where it is long; the keyboard reaches it."""
    return written(text(value), label, kind)


def written(inner: Html, label: str, kind: str = "") -> Html:
    """As `block`, of HTML."""
    return f'<pre class="text {kind}" dir="auto" tabindex="0" role="region" aria-label="{text(label)}">{inner}</pre>'


def section(name: str, title: str, *parts: Html) -> Html:
    """A part of the page with its heading; nothing when all its parts are empty."""
    if not any(parts):
        return ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{text(title)}</h2>{"".join(parts)}</section>'


def paragraph(inner: Html, kind: str = "") -> Html:
    return f'<p class="{kind}">{inner}</p>' if kind else f"<p>{inner}</p>"


def table(label: str, head: Sequence[Html], rows: Iterable[Sequence[Html]], kind: str = "") -> Html:
    """A table whose first column names its rows; narrow screens scroll it sideways by itself.

    A head or cell that begins with "=" holds a number: it stands to the right.
    """
    top = "".join(_cell("th", ' scope="col"', cell) for cell in head)
    body = "".join(
        "<tr>"
        + _cell("th", ' scope="row"', row[0] if row else "")
        + "".join(_cell("td", "", cell) for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}"><table class="{kind}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(tag: str, attributes: str, inner: Html) -> Html:
    number = ' class="n"' if inner.startswith("=") else ""
    return f"<{tag}{attributes}{number}>{inner.removeprefix('=')}</{tag}>"


def badge(kind: str, sign: str, words: str) -> Html:
    """A short judgement: a sign and words carry it, the colour only repeats them."""
    return f'<span class="badge {kind}"><span aria-hidden="true">{sign}</span> {text(words)}</span>'
