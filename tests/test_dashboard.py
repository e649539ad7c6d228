"""The dashboard asks for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from counted import made
from prometheus_client.parser import text_string_to_metric_families
from test_metrics import facts, used

from aigw import cli
from aigw.metrics import render
from aigw.shared import Cells

__all__ = ["made"]

SELECTOR = re.compile(r"(aigw_\w+)(?:\{([^}]*)\})?")


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["dashboard"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def queries(board: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return found + [entry["query"]["query"] for entry in board["templating"]["list"][1:]]


def test_every_query_names_metrics_and_labels_that_there_are(made: Cells, capsys: pytest.CaptureFixture[str]) -> None:
    used(made)
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(render(facts(usage_store="usage.db"), made).decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    named = set()
    for query in queries(printed(capsys)):
        found = SELECTOR.findall(query)
        assert found, query
        asked = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
        asked |= set(re.findall(r"label_values\(\w+, (\w+)\)", query))
        for name, selected in found:
            named.add(name)
            assert name in labels, query
            assert asked | set(re.findall(r"(\w+)[=!]", selected)) <= labels[name], query
        assert query.count("(") == query.count(")")
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in labels if not name.endswith("_created")}
    assert shown - {re.sub(r"_bucket$", "", name) for name in named} == {"aigw_build_info"}


def test_panels_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    panels = printed(capsys)["panels"]
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
