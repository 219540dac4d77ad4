"""The report in a real browser: what it asks for, what it complains of, whether it fits and can be read."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.report import example

from finetune_trainer import report
from support import browser

pytestmark = pytest.mark.slow

MEASURE = (Path(__file__).parent / "page.js").read_text()
EXAMPLES = ("everything", "failed", "bare", "plain_text", "hostile", "other_scripts")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.running(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(params=EXAMPLES)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / f"{request.param}.html"
    file.write_bytes(report.page(getattr(example, request.param)()).encode())
    return file


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [380, 1200])
def test_every_report_fits_is_quiet_and_can_be_read(
    chromium: browser.Browser, page: Path, width: int, dark: bool
) -> None:
    seen = chromium.open(page, width=width, dark=dark)
    assert seen == browser.Seen(requests=[], complaints=[])
    found = chromium.run(MEASURE)
    assert found["overflow"] <= 0
    assert found["beyond"] == []
    assert found["texts"] > 20
    assert found["pale"] == [], "texts need a contrast of 4.5"
    assert found["paleMarks"] == [], "drawings need a contrast of 3"
    assert found["background"] == ("rgb(17, 21, 28)" if dark else "rgb(255, 255, 255)")


def test_readers_of_screens_find_their_way(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    found = chromium.run(MEASURE)
    assert found["scopeless"] == found["nameless"] == found["ids"] == 0
    levels = found["headings"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels)), levels


def test_the_parts_come_in_the_order_in_which_readers_need_them(chromium: browser.Browser, tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    file.write_text(report.page(example.everything()))
    chromium.open(file)
    assert chromium.run(MEASURE)["sections"] == [
        "Which method is enough?", "Was fine-tuning the right tool?", "Gates", "Scores of every contender",
        "Is the difference real?", "Loss",
        "Tokens per request, and break-even", "Answers side by side", "The data", "Cost and facts",
    ]  # fmt: skip


def test_user_text_is_escaped(chromium: browser.Browser, tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    file.write_bytes(report.page(example.hostile()).encode())
    chromium.open(file)
    found = chromium.run(MEASURE)
    assert found["foreign"] == found["handlers"] == 0
    assert found["styles"] == 1
    assert found["body"].count("fetch('http://evil.test/a')") > 30


def test_on_paper_all_samples_are_open_and_the_page_is_white(chromium: browser.Browser, tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    file.write_bytes(report.page(example.everything()).encode())
    chromium.open(file, width=800, dark=True, media="print")
    hidden = "[...document.querySelectorAll('details .text')].filter(one => !one.getBoundingClientRect().height).length"
    assert chromium.run(hidden) == 0
    assert chromium.run("document.querySelectorAll('details:not([open])').length") > 3
    assert chromium.run(MEASURE)["background"] == "rgb(255, 255, 255)"
    assert chromium.run(MEASURE)["pale"] == []


def test_the_page_that_these_tests_are_for_would_be_noticed(chromium: browser.Browser, tmp_path: Path) -> None:
    """The measures see what they look for: a page with every fault, under the report's own policy, and without it."""
    faults = (
        "<script>console.error('said')</script><img src='http://evil.test/b' onerror=''><p style='color:#999;width:2000px'>pale"
        f"</p><p>{'x' * 900}</p><table><th>a</table><svg></svg>"
    )
    file = tmp_path / "r.html"
    file.write_text(f"<!doctype html><body style='background:#fff'>{faults}")
    seen = chromium.open(file, width=380)
    assert seen.requests == ["http://evil.test/b"]
    assert any("said" in one for one in seen.complaints)
    found = chromium.run(MEASURE)
    assert found["overflow"] > 1000
    assert found["pale"][0][0] == "pale"
    assert found["beyond"]
    assert found["scopeless"] == found["nameless"] == found["handlers"] == 1
    assert found["foreign"] == 2

    policed = report.page(example.bare()).replace("</main>", f"{faults}</main>")
    file.write_text(policed)
    seen = chromium.open(file)
    refusals = [one for one in seen.complaints if "Content Security Policy" in one or "ContentSecurityPolicy" in one]
    assert len(refusals) >= 2, "neither the script nor the picture is let through"
    assert not any('"said"' in one for one in seen.complaints)
