"""Dashboard, alert rules and docs/metrics.md name metrics that exist, with labels that they have."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PAGE = runpy.run_path(str(ROOT / "infra" / "metrics_page.py"))
EXPORTED = [one for found in PAGE["exported"]().values() for one in found]
LABELS = {name: set(one.labels) for one in EXPORTED for name in one.series}
SERVE = {"application", "deployment", "replica"}  # Ray Serve adds them
HISTOGRAM = {"le"}
INTERVALS = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h"}


def grafana() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((ROOT / "infra/grafana/evospec.json").read_text(encoding="utf-8"))
    return board


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "infra/prometheus/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def plain(query: str) -> str:
    """A query with Grafana's variables filled in."""
    for name, value in INTERVALS.items():
        query = query.replace(name, value)
    return re.sub(r"\$\w+|\$\{\w+\}", "x", query)


def queries() -> Iterator[Any]:
    for panel in grafana()["panels"]:
        for target in panel.get("targets", ()):
            yield pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for annotation in grafana()["annotations"]["list"]:
        yield pytest.param(annotation["expr"], id=annotation["name"])
    for rule in rules():
        yield pytest.param(rule["expr"], id=rule["alert"])


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """All selectors of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for part in ("expr", "lhs", "rhs", "param", "vector_selector"):
        inner = getattr(node, part, None)
        if inner is not None:
            yield from selectors(inner)
    if isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument)


def groupings(query: str) -> set[str]:
    found = re.findall(r"\bby \(([^)]*)\)", query)
    return {label.strip() for names in found for label in names.split(",")}


@pytest.mark.parametrize("query", list(queries()))
def test_queries_parse_and_name_what_is_exported(query: str) -> None:
    found = list(selectors(promql_parser.parse(plain(query))))
    assert found
    known: set[str] = set()
    for selector in found:
        assert selector.name in LABELS
        labels = LABELS[selector.name] | SERVE | HISTOGRAM
        known |= labels
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels
    assert groupings(query) <= known


def test_every_query_of_a_counter_is_of_its_growth() -> None:
    """The level of a counter says nothing."""
    counters = [one.name for one in EXPORTED if one.kind == "counter"]
    for parameter in queries():
        (query,) = parameter.values
        for name in counters:
            for place in re.finditer(rf"\b{name}\b", query):
                assert re.search(r"(rate|increase)\($", query[: place.start()]), f"{parameter.id}: {name}"


def test_names_are_distinct_and_labels_bounded() -> None:
    names = [one.name for one in EXPORTED]
    assert len(names) == len(set(names))
    bounded = {"model_name", "position", "source", "plan", "kind", "path", "status", "outcome"}
    assert {label for one in EXPORTED for label in one.labels} <= bounded
    assert all(one.description.endswith(".") for one in EXPORTED)


def test_the_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == PAGE["page"](), "run `python infra/metrics_page.py`"


def test_alerts_say_what_happened_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_panels_lie_side_by_side() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in grafana()["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not own & cells
        assert at["x"] + at["w"] <= 24
        cells |= own
    assert len({panel["id"] for panel in grafana()["panels"]}) == len(grafana()["panels"])
