"""Values of a status on their way to Ray's metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from actors import series
from actors.series import Exporter, Series, counter, gauge


@dataclass(slots=True)
class Status:
    done: int = 0
    load: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Recorded:
    """Stands in for Ray's counters and gauges: what was added or set, by labels."""

    name: str
    description: str
    labels: tuple[str, ...]
    values: dict[tuple[tuple[str, str], ...], float] = field(default_factory=dict)

    def inc(self, amount: float, tags: dict[str, str]) -> None:
        assert amount > 0
        assert set(tags) == set(self.labels)
        key = tuple(sorted(tags.items()))
        self.values[key] = self.values.get(key, 0.0) + amount

    def set(self, amount: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.labels)
        self.values[tuple(sorted(tags.items()))] = amount


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    found: dict[str, Recorded] = {}

    def make(name: str, description: str, labels: tuple[str, ...]) -> Any:
        found[name] = Recorded(name, description, labels)
        return found[name]

    monkeypatch.setattr(series, "Counter", make)
    monkeypatch.setattr(series, "Gauge", make)
    return found


SERIES: tuple[Series[Status], ...] = (
    counter("done", "", lambda status: status.done),
    gauge("load", "", lambda status: status.load),
    Series("gauge", "rows", "", lambda status: status.rows, "source"),
)


def test_counters_grow_by_what_was_gained_and_gauges_follow(made: dict[str, Recorded]) -> None:
    exporter = Exporter(SERIES, {"model_name": "m"})
    for status in (Status(3, 0.5), Status(3, 0.25), Status(10, 0.0)):
        exporter.publish(status)
    model = (("model_name", "m"),)
    assert made["done"].values == {model: 10}
    assert made["load"].values == {model: 0.0}


def test_a_label_that_is_gone_from_a_gauge_is_none_left(made: dict[str, Recorded]) -> None:
    exporter = Exporter(SERIES, {})
    exporter.publish(Status(rows={"core": 8, "context": 3}))
    exporter.publish(Status(rows={"core": 9}))
    assert made["rows"].values == {(("source", "core"),): 9, (("source", "context"),): 0.0}
