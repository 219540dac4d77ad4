"""A dashboard as a list of panels, and how Grafana reads it.

A panel has a title, a description, and queries with legends; positions, colors and data source are the same for all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel. `queries`: legend -> PromQL. `kind`: timeseries, stat, bargauge or table."""

    title: str
    description: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False


@dataclasses.dataclass(frozen=True)
class Variable:
    """A selector at the top: the values of a label. `several`: allows more than one, or all."""

    name: str
    query: str
    several: bool


@dataclasses.dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    panels: Sequence[Panel]
    span: str = "now-6h"


NAMESPACES = Variable("namespace", "label_values(finetune_job_status, namespace)", True)


def quantiles(metric: str, by: str, span: str, *quantiles: float) -> dict[str, str]:
    """Legend -> query of some quantiles of a histogram; `metric` includes its selector, `by` is the label of the lines."""
    name, _, selector = metric.partition("{")
    buckets = f"{name}_bucket{{{selector}" if selector else f"{name}_bucket"
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return {
        f"{legend} p{quantile * 100:.0f}": f"histogram_quantile({quantile}, sum by (le, {by}) (rate({buckets}[{span}])))"
        for quantile in quantiles
    }


def render(board: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["finetune"],
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": board.span, "to": "now"},
        "links": [
            {"type": "dashboards", "tags": ["finetune"], "title": "FineTune", "asDropdown": True, "keepTime": True}
        ],
        "templating": {"list": [_source(), *map(_variable, board.variables)]},
        "panels": _placed(board.panels),
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(variable: Variable) -> dict[str, Any]:
    several = {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return {
        "name": variable.name,
        "label": variable.name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": variable.query, "refId": variable.name},
        "refresh": 2,
        "sort": 1,
        **(several if variable.several else {}),
    }


def _placed(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Panels from left to right, in rows of their own height."""
    placed, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > COLUMNS:
            x, y, height = 0, y + height, 0
        place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        placed.append({"id": number, "gridPos": place, **_panel(panel)})
        x, height = x + panel.width, max(height, panel.height)
    return placed


def _panel(panel: Panel) -> dict[str, Any]:
    instant = panel.kind != "timeseries"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": query,
            "legendFormat": legend,
            "editorMode": "code",
            **({"instant": True, "range": False} if instant else {"range": True}),
            **({"format": "table"} if panel.kind == "table" else {}),
        }
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
    style = {"fillOpacity": 30, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 5}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, **({} if instant else {"custom": style, "min": 0})},
            "overrides": [],
        },
        "options": _options(panel.kind),
    }


def _options(kind: str) -> dict[str, Any]:
    last = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    options: dict[str, dict[str, Any]] = {
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "stat": {**last, "colorMode": "none", "graphMode": "none", "textMode": "value_and_name"},
        "bargauge": {**last, "orientation": "horizontal", "displayMode": "basic"},
        "table": {},
    }
    return options[kind]
