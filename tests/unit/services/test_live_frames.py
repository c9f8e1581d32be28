"""What the dashboard shows of what was seen."""

from __future__ import annotations

from evospec.engine.stats import EngineStats
from services.live.frames import Frames
from services.live.sighting import Sighting
from tests.unit.services.live_kit import status


def drafted(drafts: int, accepted: int, tokens: int) -> EngineStats:
    stats = EngineStats(emitted_tokens=tokens, covered_tokens=tokens - 1, coverable_tokens=tokens)
    for _ in range(drafts):
        stats.count_draft(3, accepted, 3)
    return stats


def sighting(time_s: float, **engines: EngineStats) -> Sighting:
    found = []
    for name, engine in engines.items():
        one = status(name)
        found.append(type(one)(one.replica, one.fingerprints, engine, one.traces, one.index, one.weights))
    return Sighting(time_s, tuple(found))


def test_rates_are_of_the_latest_seconds() -> None:
    frames = Frames()
    for second in range(60):
        tokens = 10 * second if second < 40 else 400 + 50 * (second - 40)
        frame = frames.frame(sighting(second, a=drafted(second, 1, tokens)))
    assert frame["tokens_per_s"] == 50
    assert frame["acceptance_length"] == 2.0
    assert frame["positions"][:2] == [{"attempted": 30, "accepted": 30}, {"attempted": 30, "accepted": 0}]


def test_what_was_not_observed_is_none() -> None:
    frame = Frames().frame(sighting(1.0, a=EngineStats()))
    assert frame["tokens_per_s"] is None
    assert frame["acceptance_length"] is None
    assert frame["coverage"] is None
    assert frame["rollout"] is None
    assert frame["aligner"] is None


def test_a_replica_that_joins_counts_from_zero_and_one_that_left_not_at_all() -> None:
    frames = Frames()
    frames.frame(sighting(0.0, a=drafted(100, 3, 1000)))
    frame = frames.frame(sighting(10.0, b=drafted(10, 1, 20)))
    assert frame["tokens_per_s"] == 2.0
    assert frame["acceptance_length"] == 2.0
    assert [one["name"] for one in frame["replicas"]] == ["b"]


def test_without_replicas_there_is_a_frame_of_nothing() -> None:
    frames = Frames()
    frames.frame(sighting(0.0, a=drafted(1, 1, 2)))
    frame = frames.frame(Sighting(5.0))
    assert frame["replicas"] == []
    assert frame["sources"] == {}
    assert frame["active_rows"] == 0
    assert frame["acceptance_length"] is None


def test_rows_by_source_are_the_replicas_mean() -> None:
    one, two = (
        EngineStats(rows_by_source={"core": 10, "context": 4}),
        EngineStats(rows_by_source={"core": 20}),
    )
    assert Frames().frame(sighting(0.0, a=one, b=two))["sources"] == {"core": 15.0, "context": 2.0}
