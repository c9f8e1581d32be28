"""Kinds of traffic are told apart by what requests are about, and none crowds out another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evospec.align.clusters import ANY, LEAST, NONE, WARM_UP, OnlineClusters
from evospec.align.replay import ReplayBuffer
from evospec.align.replay_store import stored_bytes
from evospec.align.trace import Trace, floats_of
from tests.unit.align_tiny import HIDDEN, random_trace, unit_bits

TRACE = random_trace(0)
SIZE = stored_bytes(TRACE)
KINDS = np.random.default_rng(1).normal(size=(5, HIDDEN))
COMMON = 3 * np.random.default_rng(2).normal(size=HIDDEN)  # what all contexts share, as real ones do
UNSEEN = 4  # a kind that nobody streams


def of_kind(kind: int, number: int) -> Trace:
    noise = 0.3 * np.random.default_rng(number).normal(size=HIDDEN)
    return replace(TRACE, start=kind, context=unit_bits(COMMON + KINDS[kind] + noise))


def contexts(traces: Sequence[Trace]) -> torch.Tensor:
    return torch.from_numpy(np.stack([floats_of(trace.context) for trace in traces]))


def stays(visits: int, length: int) -> list[Trace]:
    """Three kinds, one after the other, again and again."""
    return [of_kind(number // length % 3, number) for number in range(visits * length)]


def mixed(count: int) -> list[Trace]:
    rng = np.random.default_rng(0)
    return [of_kind(int(rng.integers(3)), number) for number in range(count)]


def numbered(traces: Sequence[Trace]) -> OnlineClusters:
    """Clusters of these traces, all of them numbered that have had some of them."""
    clusters = OnlineClusters(8)
    for trace in traces:
        clusters.assign(trace)
        for place in clusters.unnumbered(WARM_UP):
            clusters.number(place)
    return clusters


@pytest.mark.parametrize("traces", [stays(6, 20), mixed(120)], ids=["stays", "mixed"])
def test_kinds_of_traffic_become_clusters_in_whatever_order_they_come(traces: list[Trace]) -> None:
    clusters = OnlineClusters(8)
    found: dict[int, Counter[int]] = {kind: Counter() for kind in range(3)}
    for number, trace in enumerate(traces):
        cluster = clusters.assign(trace)
        if number >= 60:
            found[trace.start][cluster] += 1
    usual = [counts.most_common(1)[0] for counts in found.values()]
    assert len({cluster for cluster, _ in usual}) == 3
    assert sum(count for _, count in usual) > 0.9 * 60


@pytest.mark.parametrize("traces", [stays(6, 20), mixed(120)], ids=["stays", "mixed"])
def test_routes_lead_each_kind_to_its_number_and_what_is_unseen_nowhere(traces: list[Trace]) -> None:
    clusters = numbered(traces)
    routes = clusters.routes()
    assert routes is not None
    assert len(routes.centres) == clusters.kinds == 3
    fresh = [[of_kind(kind, 1000 + number) for number in range(30)] for kind in (0, 1, 2, UNSEEN)]
    chosen = [Counter(routes.choose(contexts(each)).tolist()) for each in fresh]
    usual = [counts.most_common(1)[0] for counts in chosen]
    assert sorted(choice for choice, _ in usual) == [0, 1, 2, 3]
    assert usual[-1][0] == 0
    assert all(count >= 27 for _, count in usual)
    assert clusters.kinds_of(fresh[0]).tolist() == (routes.choose(contexts(fresh[0])) - 1).tolist()


def test_numbers_stay_what_they_are() -> None:
    clusters = numbered(stays(3, 20))
    before = [Counter(clusters.kinds_of([of_kind(kind, 2000 + n) for n in range(20)])) for kind in range(3)]
    for trace in [*stays(9, 30), *(of_kind(3, n) for n in range(5000, 5100))]:
        clusters.assign(trace)
    for place in clusters.unnumbered(WARM_UP):
        clusters.number(place)
    after = [Counter(clusters.kinds_of([of_kind(kind, 2000 + n) for n in range(20)])) for kind in range(3)]
    assert [a.most_common(1)[0][0] for a in after] == [b.most_common(1)[0][0] for b in before]
    assert set(clusters.kinds_of([of_kind(3, 6000)])) == {3}


def test_one_kind_of_traffic_takes_everything_until_there_is_another() -> None:
    clusters = numbered([of_kind(0, number) for number in range(30)])
    routes = clusters.routes()
    assert routes is not None
    assert routes.least == ANY
    assert set(routes.choose(contexts([of_kind(kind, 99) for kind in range(5)])).tolist()) == {1}
    for number in range(12):
        clusters.assign(of_kind(1, number))
    routes = clusters.routes()
    assert routes is not None
    assert routes.least == LEAST
    assert routes.choose(contexts([of_kind(0, 99), of_kind(1, 99)])).tolist() == [1, 0]  # not numbered yet


def test_windows_of_one_request_say_nothing_of_what_is_far() -> None:
    once, thrice = OnlineClusters(8), OnlineClusters(8)
    for trace in stays(6, 20):
        once.assign(trace)
        for _ in range(3):
            thrice.assign(trace)
    assert once.count == thrice.count == 3


def test_kinds_go_on_from_published_routes() -> None:
    first = numbered(stays(6, 20))
    routes = first.routes()
    assert routes is not None
    second = OnlineClusters(8)
    second.begin_with(routes)
    again = second.routes()
    assert again is not None
    for mine, its in ((again.centres, routes.centres), (again.spread, routes.spread)):
        torch.testing.assert_close(mine, its)
    probes = [of_kind(kind, 3000 + number) for kind in range(3) for number in range(20)]
    assert second.kinds_of(probes).tolist() == first.kinds_of(probes).tolist()
    for trace in stays(3, 20):
        second.assign(trace)
    assert second.kinds_of(probes).tolist() == first.kinds_of(probes).tolist()
    second.begin_with(None)
    assert second.routes() is None
    assert set(second.kinds_of(probes)) == {NONE}


def test_a_single_published_kind_does_not_take_everything() -> None:
    """What it was told apart from is known although no cluster of it is."""
    first = OnlineClusters(8)
    for trace in stays(6, 20):
        first.assign(trace)
    first.number(int(first.places_of([of_kind(1, 7)])[0]))
    second = OnlineClusters(8)
    second.begin_with(first.routes())
    assert second.kinds_of([of_kind(kind, 99) for kind in range(3)]).tolist() == [NONE, 0, NONE]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10**6)), max_size=60))
def test_there_are_never_more_clusters_than_allowed(most: int, stream: list[tuple[int, int]]) -> None:
    clusters = OnlineClusters(most)
    for kind, number in stream:
        assert clusters.assign(of_kind(kind, number)) in range(most)
        assert 1 <= clusters.count <= most
        for place in clusters.unnumbered(5):
            clusters.number(place)
        assert clusters.kinds <= clusters.count
        routes = clusters.routes()
        if routes is not None:
            assert torch.isfinite(routes.units).all()
            assert (routes.spread > 0).all()


def kept_kinds(clusters: int) -> Counter[int]:
    """Of a short time of all kinds, and a long flood of one."""
    buffer = ReplayBuffer(60 * SIZE, 0.1, seed=0, clusters=clusters)
    for number in range(60):
        buffer.add(of_kind(number % 3, number))
    for number in range(60, 700):
        buffer.add(of_kind(0, number))
        assert buffer.nbytes <= 60 * SIZE
    counts = buffer.counts
    kept = buffer.training_traces + buffer.held_out_traces
    assert counts.training + counts.held_out - counts.evicted == kept
    return Counter(trace.start for trace in buffer.sample(100))


def test_a_flood_of_one_kind_leaves_the_others_their_part() -> None:
    together, apart = kept_kinds(1), kept_kinds(8)
    assert together[1] + together[2] < 8
    assert min(apart[1], apart[2]) >= 8


def test_samples_may_be_of_one_kind() -> None:
    buffer = ReplayBuffer(400 * SIZE, 0.25, seed=0, clusters=8)
    assert buffer.number_kind(8) is None
    for trace in mixed(90):
        buffer.add(trace)
    kinds = [buffer.number_kind(8) for _ in range(4)]
    assert kinds == [0, 1, 2, None]
    for kind in range(3):
        training, held_out = buffer.sides(kind)
        drawn, judged = buffer.sample(1000, kind), buffer.sample_held_out(1000, kind)
        assert (len(drawn), len(judged)) == (training, held_out)
        assert len({trace.start for trace in (*drawn, *judged)}) == 1
    whole = buffer.sides()
    assert whole == (buffer.training_traces, buffer.held_out_traces)
    assert sum(sum(buffer.sides(kind)) for kind in range(3)) >= 0.9 * sum(whole)
