"""What the demo reads from the replicas' counters over time."""

from __future__ import annotations

import pytest

from actors.counts import FollowerCounts, IndexCounts, TraceCounts
from actors.status import ReplicaStatus
from evospec.engine.stats import EngineStats
from evospec.wire import Fingerprints
from services.demo.timeline import Timeline

FINGERPRINTS = Fingerprints(target="t", drafter="d", tokenizer="k")


def status(
    replica: str, *, tokens: int = 0, drafts: int = 0, accepted: int = 0, version: int = 0
) -> ReplicaStatus:
    engine = EngineStats(
        emitted_tokens=tokens, drafts=drafts, accepted_tokens=accepted, adapter_version=version, active_rows=9
    )
    return ReplicaStatus(replica, FINGERPRINTS, engine, TraceCounts(), IndexCounts(), FollowerCounts())


def at_versions(timeline: Timeline, time_s: float, *versions: int) -> None:
    timeline.add(time_s, [status(f"id{number}", version=one) for number, one in enumerate(versions)])


def rolled_out(timeline: Timeline) -> list[tuple[int, float]]:
    return [(rollout.version, rollout.time_s) for rollout in timeline.rollouts]


def test_a_version_is_rolled_out_once_the_last_replica_has_had_it() -> None:
    timeline = Timeline()
    for time_s, versions in enumerate([(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (2, 2)]):
        at_versions(timeline, time_s, *versions)
    assert rolled_out(timeline) == [(1, 2), (2, 4)]


def test_a_version_that_a_replica_skipped_was_not_rolled_out() -> None:
    timeline = Timeline()
    for time_s, versions in enumerate([(0, 0), (1, 0), (2, 0), (2, 2)]):
        at_versions(timeline, time_s, *versions)
    assert rolled_out(timeline) == [(2, 3)]


def test_a_replica_that_came_later_must_have_it_as_well() -> None:
    timeline = Timeline()
    at_versions(timeline, 0, 1, 0)
    timeline.add(1, [status("id0", version=1), status("new", version=0)])  # id1 was replaced
    assert rolled_out(timeline) == []
    timeline.add(2, [status("id0", version=1), status("new", version=1)])
    assert rolled_out(timeline) == [(1, 2)]
    assert list(timeline.snapshots[-1].engines) == ["replica 1", "replica 3"]


def test_rates_are_those_of_the_window() -> None:
    timeline = Timeline()
    for time_s, tokens, accepted in [(0, 0, 0), (2, 20, 0), (4, 60, 10), (6, 120, 40)]:
        timeline.add(
            time_s,
            [status("a", tokens=tokens, drafts=10 * time_s, accepted=accepted), status("b", tokens=tokens)],
        )
    rates = timeline.rates(2.0)
    assert [rate.time_s for rate in rates] == [2, 4, 6]
    assert [rate.tokens_per_s for rate in rates] == [20, 40, 60]
    assert [rate.acceptance_length for rate in rates] == [1.0, 1.5, 2.5]
    latest = timeline.latest(4.0)
    assert latest["replica 1"].tokens_per_s == 25
    assert latest["replica 1"].acceptance_length == 2.0
    assert latest["replica 2"].acceptance_length is None  # it drafted nothing


def test_growth_covers_the_whole_stretch() -> None:
    timeline = Timeline()
    for time_s in range(5):
        timeline.add(float(time_s), [status("a", tokens=10 * time_s)])
    assert timeline.between(1.5, 2.5).emitted_tokens == 20  # from 1 s to 3 s
    assert timeline.between(-1.0, 99.0).emitted_tokens == 40


def test_a_replica_that_joins_counts_from_zero() -> None:
    timeline = Timeline()
    timeline.add(0.0, [status("a", tokens=5)])
    timeline.add(1.0, [status("a", tokens=10), status("b", tokens=7)])
    assert timeline.rates(1.0)[0].tokens_per_s == 12


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_snapshots_there_are_no_rates(count: int) -> None:
    timeline = Timeline()
    for time_s in range(count):
        timeline.add(float(time_s), [status("a")])
    assert timeline.rates(1.0) == []
    assert timeline.latest(1.0) == {}
