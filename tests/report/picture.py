"""Takes the pictures of a report for the documentation.

PYTHONPATH=tests:hack:. python -m tests.report.picture [results.json]

Without a results.json the report of invented numbers is shown (tests/report/example.py).
"""

import sys
import tempfile
from pathlib import Path

from tests.report import example

from finetune_api import results
from finetune_trainer import report
from support import browser

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"
WIDTH, HEIGHT, SCALE = 1140, 1960, 0.8


def main(arguments: list[str]) -> int:
    found = results.Results.model_validate_json(Path(arguments[0]).read_bytes()) if arguments else example.everything()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, browser.running(Path(name)) as chromium:
        page = Path(name) / "report.html"
        page.write_bytes(report.page(found).encode())
        for scheme in ("light", "dark"):
            chromium.open(page, width=WIDTH, dark=scheme == "dark")
            file = FOLDER / f"report-{scheme}.png"
            chromium.picture(file, HEIGHT, SCALE)
            print(file, f"{file.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
