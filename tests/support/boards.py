"""The chart's dashboards as Grafana would use them: every query of every panel, its variables filled in."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "charts" / "finetune-operator" / "dashboards"
GRAFANA = {"__rate_interval": "30s", "__range": "1h", "__interval": "5s"}
"""What Grafana fills in automatically, here for a scrape interval of some seconds."""


@dataclasses.dataclass(frozen=True)
class Query:
    """One query of one panel."""

    board: str
    panel: str
    text: str

    def __str__(self) -> str:
        return f"{self.board} / {self.panel}: {self.text}"

    def filled(self, values: Mapping[str, str]) -> str:
        """With its variables replaced; a variable that nobody chose is an error."""
        return re.sub(r"\$(\w+)", lambda found: {**GRAFANA, **values}[found[1]], self.text)


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def board(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{name}.json").read_text()))


def queries(name: str) -> list[Query]:
    found = board(name)
    return [Query(name, panel["title"], target["expr"]) for panel in found["panels"] for target in panel["targets"]]


def choices(name: str) -> list[Query]:
    """What fills the variables at the top: label_values(metric, label) as a query for the metric."""
    listed = [variable for variable in board(name)["templating"]["list"] if variable["type"] == "query"]
    texts = [re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"]) for variable in listed]
    return [Query(name, variable["name"], text[1]) for variable, text in zip(listed, texts, strict=True) if text]
