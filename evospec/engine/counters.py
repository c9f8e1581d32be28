"""Arithmetic on engine counters: growth between two snapshots, totals of several engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import zip_longest

from evospec.engine.stats import EngineStats

_GAUGES = frozenset(
    {
        "running",
        "waiting",
        "active_rows",
        "rows_by_source",
        "vocabulary_epoch",
        "adapter_version",
        "draft_plan",
    }
)
_PER_POSITION = frozenset({"attempted_per_position", "accepted_per_position"})
_PER_NAME = frozenset({"cycles_per_plan", "requests_per_choice"})
_OTHER = _GAUGES | _PER_POSITION | _PER_NAME
_COUNTERS = tuple(field.name for field in fields(EngineStats) if field.name not in _OTHER)


def snapshot(stats: EngineStats) -> EngineStats:
    """A copy that later steps do not change."""
    return replace(
        stats,
        attempted_per_position=list(stats.attempted_per_position),
        accepted_per_position=list(stats.accepted_per_position),
        cycles_per_plan=dict(stats.cycles_per_plan),
        requests_per_choice=dict(stats.requests_per_choice),
    )


def growth(earlier: EngineStats, later: EngineStats) -> EngineStats:
    """Counters gained from one snapshot to a later one of the same engine; gauges are the later one's."""
    grown = snapshot(later)
    for name in _COUNTERS:
        setattr(grown, name, getattr(later, name) - getattr(earlier, name))
    for name in _PER_POSITION:
        pairs = zip_longest(getattr(later, name), getattr(earlier, name), fillvalue=0)
        setattr(grown, name, [new - old for new, old in pairs])
    for name in _PER_NAME:
        gained = Counter(getattr(later, name))
        gained.subtract(getattr(earlier, name))
        setattr(grown, name, {key: count for key, count in gained.items() if count})
    return grown


def total(parts: Iterable[EngineStats]) -> EngineStats:
    """Sums counters; gauges, which have no sum, are left at 0."""
    summed = EngineStats()
    for part in parts:
        for name in _COUNTERS:
            setattr(summed, name, getattr(summed, name) + getattr(part, name))
        for name in _PER_POSITION:
            pairs = zip_longest(getattr(summed, name), getattr(part, name), fillvalue=0)
            setattr(summed, name, [one + other for one, other in pairs])
        for name in _PER_NAME:
            setattr(summed, name, dict(Counter(getattr(summed, name)) + Counter(getattr(part, name))))
    return summed
