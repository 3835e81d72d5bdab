"""The dashboard as Grafana's JSON, from `panels.BOARD`."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Final

from llama_endpoints.devtools.panels import BOARD, ROUTES, Panel, Section

SCHEMA_VERSION: Final = 42
"""That of grafana-foundation-sdk 0.0.21, which a test reads the dashboard with."""
COLUMNS: Final = 24
_HEIGHT: Final = {"stat": 4, "table": 4, "timeseries": 8}
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    return {
        "uid": "llama-endpoints",
        "title": "llama-endpoints",
        "description": "Servers of `llama-endpoints serve`. Generated: see docs/monitoring.md.",
        "tags": ["llama-endpoints"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}
    instances = "label_values(llama_ready, instance)"
    yield {
        "type": "query",
        "name": "instance",
        "label": "Server",
        "datasource": _SOURCE,
        "query": {"query": instances, "refId": "instance"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": "All", "value": "$__all"},
    }
    yield {"type": "constant", "name": "routes", "query": ROUTES, "hide": 2}


def _panels() -> Iterator[dict[str, Any]]:
    ids, top = count(1), 0
    for section in BOARD:
        yield {
            "id": next(ids),
            "type": "row",
            "title": section.question,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        yield from _in_a_row(section, ids, top + 1)
        top += 1 + _height(section)


def _height(section: Section) -> int:
    return max(_HEIGHT[panel.kind] for panel in section.panels)


def _in_a_row(section: Section, ids: "count[int]", top: int) -> Iterator[dict[str, Any]]:
    left = 0
    for panel in section.panels:
        place = {"x": left, "y": top, "w": panel.width, "h": _height(section)}
        yield {
            "id": next(ids),
            "type": panel.kind,
            "title": panel.title,
            "description": panel.meaning,
            "datasource": _SOURCE,
            "gridPos": place,
            "targets": list(_targets(panel)),
            "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
            **_OF_KIND[panel.kind],
        }
        left += panel.width


def _targets(panel: Panel) -> Iterator[dict[str, Any]]:
    for number, query in enumerate(panel.queries):
        target = {
            "refId": "ABCDEFGH"[number],
            "datasource": _SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
        }
        if panel.kind == "timeseries":
            yield {**target, "range": True, "instant": False}
        else:
            as_table = {"format": "table"} if panel.kind == "table" else {}
            yield {**target, "range": False, "instant": True, **as_table}


def _defaults(panel: Panel) -> dict[str, Any]:
    scale = {"min": 0} if panel.most is None else {"min": 0, "max": panel.most}
    drawn = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    custom = {"custom": drawn} if panel.kind == "timeseries" else {}
    return {"unit": panel.unit, **scale, **custom}


_NOT_SHOWN: Final = ("Time", "Value", "__name__", "job", "instructions")
_OF_KIND: Final[Mapping[str, Mapping[str, Any]]] = {
    "timeseries": {
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    },
    "stat": {
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
            "colorMode": "none",
            "graphMode": "none",
            "textMode": "auto",
        }
    },
    "table": {
        "options": {"showHeader": True, "cellHeight": "sm"},
        "transformations": [
            {
                "id": "organize",
                "options": {
                    "excludeByName": dict.fromkeys(_NOT_SHOWN, True),
                    "indexByName": {},
                    "renameByName": {},
                },
            }
        ],
    },
}
