"""A Grafana dashboard of the gateway's metrics, as JSON to import: what `aigw dashboard` prints.

The table below is the whole of it: rows of panels, each with its unit and its queries (PromQL). Sums are over what the
variables at the top leave in: gateways, models, upstreams. It knows the names of metrics and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

# Of metrics with these labels, what is chosen at the top; all, at first.
CHOSEN: Final = 'gateway=~"$gateway", model=~"$model", upstream=~"$upstream"'
VARIABLES: Final = ("gateway", "model", "upstream")
HEIGHT: Final = 8
WIDTH: Final = 24  # of the grid


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` are pairs: an expression, and how its series are named in the legend."""

    title: str
    unit: str  # Grafana's name of it
    queries: tuple[tuple[str, str], ...]
    is_number: bool = False  # the last value, instead of a curve


def _rate(metric: str, by: str, selected: str = CHOSEN) -> str:
    return f"sum by ({by}) (rate({metric}{{{selected}}}[$__rate_interval]))"


def _quantiles(metric: str, selected: str = CHOSEN) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"histogram_quantile({share}, {_rate(f'{metric}_bucket', 'le', selected)})", f"p{share * 100:g}")
        for share in (0.5, 0.95, 0.99)
    )


_UPSTREAM: Final = 'upstream=~"$upstream"'
_FAULTS: Final = f'{CHOSEN}, fault!="none"'
_NOT_OURS: Final = f'{CHOSEN}, fault=~"upstream|gateway"'

ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Now": (
        Panel("Requests", "reqps", ((f"sum(rate(aigw_requests_total{{{CHOSEN}}}[$__rate_interval]))", ""),), True),
        Panel(
            "Failed, not by clients",
            "percentunit",
            (
                (
                    f"sum(rate(aigw_requests_total{{{_NOT_OURS}}}[$__rate_interval])) "
                    f"/ sum(rate(aigw_requests_total{{{CHOSEN}}}[$__rate_interval]))",
                    "",
                ),
            ),
            True,
        ),
        Panel("In flight", "none", (("sum(aigw_in_flight)", ""),), True),
        Panel(
            "Cost per hour", "currencyUSD", ((f"sum(rate(aigw_cost_dollars_total{{{CHOSEN}}}[1h])) * 3600", ""),), True
        ),
    ),
    "Exchanges": (
        Panel("By model", "reqps", ((_rate("aigw_requests_total", "model"), "{{model}}"),)),
        Panel("By status and end", "reqps", ((_rate("aigw_requests_total", "status, end"), "{{status}} {{end}}"),)),
    ),
    "What failed": (
        Panel(
            "Attempts by outcome",
            "reqps",
            ((_rate("aigw_attempts_total", "upstream, outcome", _UPSTREAM), "{{upstream}} {{outcome}}"),),
        ),
        Panel(
            "Refused by limits",
            "reqps",
            (
                (
                    _rate("aigw_limit_rejections_total", "gateway, limit, shadow", 'gateway=~"$gateway"'),
                    "{{gateway}} {{limit}} shadow={{shadow}}",
                ),
            ),
        ),
        Panel(
            "Not ended well, by whose fault",
            "reqps",
            ((_rate("aigw_requests_total", "fault, upstream", _FAULTS), "{{fault}} {{upstream}}"),),
        ),
    ),
    "Time": (
        Panel("Whole exchange", "s", _quantiles("aigw_request_duration_seconds")),
        Panel("To the first token of a stream", "s", _quantiles("aigw_time_to_first_token_seconds")),
        Panel("Waiting for a connection", "s", _quantiles("aigw_queue_seconds", _UPSTREAM)),
        Panel("The gateway's own", "s", _quantiles("aigw_overhead_seconds", "")),
    ),
    "Tokens and cost": (
        Panel("Tokens by class", "none", ((_rate("aigw_tokens_total", "type"), "{{type}}"),)),
        Panel(
            "Output by model", "none", ((_rate("aigw_tokens_total", "model", f'{CHOSEN}, type="output"'), "{{model}}"),)
        ),
        Panel(
            "Dollars per hour by model",
            "currencyUSD",
            ((f"sum by (model) (rate(aigw_cost_dollars_total{{{CHOSEN}}}[1h])) * 3600", "{{model}}"),),
        ),
    ),
    "The gateway": (
        Panel("Connections", "none", (("sum by (side, state) (aigw_connections)", "{{side}} {{state}}"),)),
        Panel(
            "Targets in service", "none", (("min by (upstream, target) (aigw_target_up)", "{{upstream}} {{target}}"),)
        ),
        Panel("Open files", "none", (("sum by (process) (aigw_open_fds)", "{{process}}"),)),
        Panel(
            "What should stay at 0",
            "none",
            (
                ("sum(increase(aigw_worker_restarts_total[$__rate_interval]))", "worker restarts"),
                ("sum(increase(aigw_log_dropped_total[$__rate_interval]))", "log records lost"),
                (
                    "sum by (upstream) (increase(aigw_upstream_credential_refused_total[$__rate_interval]))",
                    "credential refused by {{upstream}}",
                ),
                ("count(aigw_config_last_reload_success == 0)", "configs not obeyed"),
                ("count(aigw_usage_store_up == 0)", "usage not written"),
            ),
        ),
        Panel("Config generation", "none", (("max(aigw_config_generation)", "generation"),)),
    ),
}


def dashboard() -> dict[str, Any]:
    """What Grafana imports (dashboard model of schema version 39)."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, WIDTH, 1), "panels": []}
        )
        width = WIDTH // len(row)
        height = HEIGHT // 2 if row[0].is_number else HEIGHT
        panels += (_panel(panel, _place(index * width, y + 1, width, height)) for index, panel in enumerate(row))
        y += 1 + height
    return {
        "title": "aigw",
        "uid": "aigw",
        "tags": ["aigw"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_DATASOURCE, *map(_variable, VARIABLES)]},
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, 1)],
    }


_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_DATASOURCE: Final = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": f"label_values(aigw_requests_total, {name})", "refId": name},
        "refresh": 2,  # with the time range
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "stat" if panel.is_number else "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + index), "datasource": _SOURCE, "expr": query, "legendFormat": legend or "__auto"}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }
