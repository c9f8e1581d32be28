"""Growth and totals of engine counters."""

from __future__ import annotations

from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from evospec.engine.counters import growth, snapshot, total
from evospec.engine.stats import EngineStats

DRAFTS = st.lists(
    st.integers(1, 6).flatmap(lambda drafted: st.tuples(st.just(drafted), st.integers(0, drafted)))
)


def counted(drafts: list[tuple[int, int]]) -> EngineStats:
    stats = EngineStats()
    for drafted, accepted in drafts:
        stats.count_draft(drafted, accepted, nodes=drafted)
        stats.count_cycle(f"chain-{drafted}")
        stats.count_choice(accepted or None)
    return stats


def shape(stats: EngineStats) -> dict[str, object]:
    """Counters without trailing positions that were never reached."""
    values = asdict(stats)
    for name in ("attempted_per_position", "accepted_per_position"):
        while values[name] and values[name][-1] == 0:
            values[name].pop()
    return values


@given(DRAFTS, DRAFTS)
def test_growth_is_what_was_added_since(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    assert shape(growth(counted(first), counted(first + second))) == shape(counted(second))


@given(DRAFTS, DRAFTS)
def test_totals_are_those_of_one_engine(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    assert shape(total([counted(first), counted(second)])) == shape(counted(first + second))


def test_gauges_are_the_latest_and_have_no_total() -> None:
    earlier, later = EngineStats(active_rows=10, cycles=2), EngineStats(active_rows=30, cycles=5)
    grown = growth(earlier, later)
    assert (grown.active_rows, grown.cycles) == (30, 3)
    summed = total([earlier, later])
    assert (summed.active_rows, summed.cycles) == (0, 7)


def test_a_snapshot_does_not_change_with_its_engine() -> None:
    stats = counted([(3, 2)])
    taken = snapshot(stats)
    stats.count_draft(3, 3, nodes=3)
    stats.count_cycle("chain-3")
    stats.count_choice(2)
    assert taken.accepted_per_position == [1, 1, 0]
    assert taken.cycles_per_plan == {"chain-3": 1}
    assert taken.requests_per_choice == {2: 1}
