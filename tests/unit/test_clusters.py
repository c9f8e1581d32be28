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

from evospec.align.clusters import OnlineClusters
from evospec.align.context_points import NONE
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
        clusters.learn(trace)
        for place in clusters.unnumbered(0.1):
            clusters.number(place)
    return clusters


@pytest.mark.parametrize("traces", [stays(6, 20), mixed(120)], ids=["stays", "mixed"])
def test_kinds_of_traffic_become_clusters_in_whatever_order_they_come(traces: list[Trace]) -> None:
    clusters = OnlineClusters(8)
    found: dict[int, Counter[int]] = {kind: Counter() for kind in range(3)}
    for number, trace in enumerate(traces):
        clusters.learn(trace)
        cluster = clusters.place(trace)
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
        clusters.learn(trace)
    for place in clusters.unnumbered(0.1):
        clusters.number(place)
    after = [Counter(clusters.kinds_of([of_kind(kind, 2000 + n) for n in range(20)])) for kind in range(3)]
    assert [a.most_common(1)[0][0] for a in after] == [b.most_common(1)[0][0] for b in before]
    assert set(clusters.kinds_of([of_kind(3, 6000)])) == {3}


def test_a_kind_takes_nothing_that_lies_farther_away_than_its_own() -> None:
    """Not even while there is no other."""
    routes = numbered([of_kind(0, number) for number in range(30)]).routes()
    assert routes is not None
    assert routes.choose(contexts([of_kind(kind, 99) for kind in range(5)])).tolist() == [1, 0, 0, 0, 0]
    own = routes.choose(contexts([of_kind(0, 1000 + number) for number in range(100)]))
    assert own.sum() >= 97


def test_windows_of_one_request_say_nothing_of_what_is_far() -> None:
    once, thrice = OnlineClusters(8), OnlineClusters(8)
    for trace in stays(6, 20):
        once.learn(trace)
        for _ in range(3):
            thrice.learn(trace)
    assert once.count == thrice.count == 3


def in_turns(kind: int, number: int) -> Trace:
    """Conversations of four turns, which lie much closer to each other than to others of their kind."""
    own = 0.3 * np.random.default_rng(number // 4).normal(size=HIDDEN)
    turn = 0.08 * np.random.default_rng(number).normal(size=HIDDEN)
    return replace(TRACE, start=kind, context=unit_bits(COMMON + KINDS[kind] + own + turn))


@pytest.mark.parametrize("length", [20, 120])
def test_conversations_of_a_kind_are_one_kind(length: int) -> None:
    stays = [in_turns(number // length % 2, number) for number in range(240)]
    clusters = numbered(stays)
    assert clusters.kinds == 2
    for kind in (0, 1):
        found = clusters.kinds_of([of_kind(kind, 1000 + number) for number in range(100)]).tolist()
        assert found.count(kind) >= 95
    assert set(clusters.kinds_of([of_kind(2, 2000 + number) for number in range(30)])) == {NONE}


def test_what_is_rare_is_of_no_kind_and_widens_none() -> None:
    rng = np.random.default_rng(0)
    clusters = numbered([of_kind(int(rng.choice(4, p=[0.48, 0.48, 0.02, 0.02])), n) for n in range(400)])
    assert clusters.kinds == 2
    assert set(clusters.kinds_of([of_kind(kind, 3000 + n) for kind in (2, 3) for n in range(30)])) == {NONE}


def test_a_flood_hides_nothing_that_comes_after_it() -> None:
    clusters = numbered([of_kind(0, number) for number in range(1000)])
    for number in range(2000, 2150):
        clusters.learn(of_kind(1, number))
    (place,) = clusters.unnumbered(0.1)
    assert clusters.number(place) == 1
    assert set(clusters.kinds_of([of_kind(1, 9000 + number) for number in range(30)])) == {1}


def test_clusters_join_the_nearest_kind_when_no_number_is_left() -> None:
    near = [
        replace(TRACE, context=unit_bits(COMMON + 0.7 * KINDS[0] + 0.7 * KINDS[3] + noise))
        for noise in 0.3 * np.random.default_rng(7).normal(size=(80, HIDDEN))
    ]
    clusters = OnlineClusters(8)
    for number in range(60):
        for trace in (of_kind(0, number), of_kind(1, 500 + number), near[number]):
            clusters.learn(trace)
    for probe in (of_kind(0, 900), of_kind(1, 901)):
        clusters.number(int(clusters.places_of([probe])[0]))
    assert clusters.kinds_of(near).tolist() == [NONE] * 80
    (waiting,) = clusters.unnumbered(0.1)
    assert clusters.join(waiting) == 0
    assert clusters.kinds == 2
    assert clusters.kinds_of(near).tolist().count(0) >= 76
    assert clusters.kinds_of([of_kind(0, 902), of_kind(1, 903)]).tolist() == [0, 1]
    assert clusters.unnumbered(0.1) == []
    routes = clusters.routes()
    assert routes is not None
    assert routes.kinds.tolist() == [0, 0, 1]
    again = OnlineClusters(8)
    again.begin_with(routes)
    assert again.kinds_of(near).tolist() == clusters.kinds_of(near).tolist()
    assert again.kinds == 2


def test_kinds_go_on_from_published_routes() -> None:
    first = numbered(stays(6, 20))
    routes = first.routes()
    assert routes is not None
    second = OnlineClusters(8)
    second.begin_with(routes)
    again = second.routes()
    assert again is not None
    for mine, its in ((again.centres, routes.centres), (again.least, routes.least)):
        assert torch.equal(mine, its)
    probes = [of_kind(kind, 3000 + number) for kind in range(3) for number in range(20)]
    assert second.kinds_of(probes).tolist() == first.kinds_of(probes).tolist()
    for trace in stays(3, 20):
        second.learn(trace)
    assert second.kinds_of(probes).tolist() == first.kinds_of(probes).tolist()
    second.begin_with(None)
    assert second.routes() is None
    assert set(second.kinds_of(probes)) == {NONE}


def test_a_single_published_kind_does_not_take_everything() -> None:
    first = OnlineClusters(8)
    for trace in stays(6, 20):
        first.learn(trace)
    first.number(int(first.places_of([of_kind(1, 7)])[0]))
    second = OnlineClusters(8)
    second.begin_with(first.routes())
    assert second.kinds_of([of_kind(kind, 99) for kind in range(3)]).tolist() == [NONE, 0, NONE]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10**6)), max_size=60))
def test_there_are_never_more_clusters_than_allowed(most: int, stream: list[tuple[int, int]]) -> None:
    clusters = OnlineClusters(most)
    for kind, number in stream:
        clusters.learn(of_kind(kind, number))
        assert clusters.place(of_kind(kind, number)) in range(most)
        assert 1 <= clusters.count <= most
        before = clusters.routes()
        for place in clusters.unnumbered(0.0):
            clusters.number(place)
        assert clusters.kinds <= clusters.count
        routes = clusters.routes()
        if before is not None:
            assert routes is not None
            assert routes.kinds.tolist()[: len(before.kinds)] == before.kinds.tolist()
        if routes is not None:
            assert torch.isfinite(routes.units).all()
            assert ((routes.least > -1) & (routes.least < 1)).all()


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
    assert buffer.waiting(8, 0.1) is None
    for trace in mixed(90):
        buffer.add(trace)
    assert buffer.waiting(8, 0.9) is None
    assert buffer.waiting(80, 0.1) is None
    for kind in range(3):
        waiting = buffer.waiting(8, 0.1)
        assert waiting is not None
        assert buffer.clusters.number(waiting.place) == kind
        assert sum(buffer.sides(kind)) == waiting.traces
    assert buffer.waiting(8, 0.1) is None
    for kind in range(3):
        training, held_out = buffer.sides(kind)
        drawn, judged = buffer.sample(1000, kind), buffer.sample_held_out(1000, kind)
        assert (len(drawn), len(judged)) == (training, held_out)
        assert len({trace.start for trace in (*drawn, *judged)}) == 1
    whole = buffer.sides()
    assert whole == (buffer.training_traces, buffer.held_out_traces)
    assert sum(sum(buffer.sides(kind)) for kind in range(3)) >= 0.9 * sum(whole)
