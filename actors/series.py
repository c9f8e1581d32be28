"""Values of a status record, and the names under which Prometheus sees them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, cast

from ray.serve.metrics import Counter, Gauge

Status = TypeVar("Status")
Kind = Literal["counter", "gauge"]
PERIOD_S = 5.0


@dataclass(frozen=True, slots=True)
class Series(Generic[Status]):
    """One value, or one for each value of a label, whose values are bounded.

    Attributes:
        read: totals since the process began, for a counter; by the label's value, or by "" without one.
        label: None for a single value.
    """

    kind: Kind
    name: str
    description: str
    read: Callable[[Status], Mapping[str, float]]
    label: str | None = None


def counter(name: str, description: str, read: Callable[[Status], float]) -> Series[Status]:
    return Series("counter", name, description, lambda status: {"": read(status)})


def gauge(name: str, description: str, read: Callable[[Status], float]) -> Series[Status]:
    return Series("gauge", name, description, lambda status: {"": read(status)})


class Exporter(Generic[Status]):
    """Brings the values of a status to Ray's metrics; in a Serve replica, these know which one it is.

    Args:
        tags: labels that all values get.
    """

    def __init__(self, series: tuple[Series[Status], ...], tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)
        self._sinks = [(one, _sink(one, tuple(tags))) for one in series]

    def publish(self, status: Status) -> None:
        for series, sink in self._sinks:
            values = series.read(status)
            # What is gone from a gauge is none, not what it was.
            for value in {**dict.fromkeys(sink.known, 0.0), **values} if series.kind == "gauge" else values:
                label = {} if series.label is None else {series.label: value}
                sink.bring(values.get(value, 0.0), {**self._tags, **label}, value)


def export_regularly(exporter: Exporter[Status], read: Callable[[], Status]) -> None:
    """Publishes what `read` returns on a thread of its own, as long as the process lives."""

    def run() -> None:
        pause = threading.Event()
        while not pause.wait(PERIOD_S):
            exporter.publish(read())

    threading.Thread(target=run, name="metrics", daemon=True).start()


class _Level:
    """A gauge."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self.known: set[str] = set()

    def bring(self, amount: float, tags: dict[str, str], value: str) -> None:
        self.known.add(value)
        self._metric.set(amount, tags)


class _Total:
    """A counter that is set by its total: Ray's only know increments."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._totals: dict[str, float] = {}

    @property
    def known(self) -> set[str]:
        return set(self._totals)

    def bring(self, amount: float, tags: dict[str, str], value: str) -> None:
        grown = amount - self._totals.get(value, 0.0)
        if grown > 0:  # Ray refuses to add nothing
            self._metric.inc(grown, tags)
            self._totals[value] = amount


def _sink(series: Series[Status], tags: tuple[str, ...]) -> _Level | _Total:
    # Any number of labels, in truth.
    labels = cast("tuple[str]", tags if series.label is None else (*tags, series.label))
    if series.kind == "gauge":
        return _Level(Gauge(series.name, series.description, labels))
    return _Total(Counter(series.name, series.description, labels))
