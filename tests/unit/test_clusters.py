"""Kinds of traffic are told apart by their features, and none crowds out another."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from evospec.align.clusters import OnlineClusters
from evospec.align.replay import ReplayBuffer, stored_bytes
from evospec.align.trace import Trace
from tests.unit.align_tiny import HIDDEN, TAPS, bfloat16_bits, random_trace

TRACE = random_trace(0)
SIZE = stored_bytes(TRACE)
KINDS = np.random.default_rng(1).normal(size=(3, TAPS * HIDDEN))
COMMON = 50 * np.random.default_rng(2).normal(size=TAPS * HIDDEN)  # what all features share, as raw ones do


def of_kind(kind: int, number: int) -> Trace:
    rng = np.random.default_rng(number)
    noise = rng.normal(size=(TRACE.width, TAPS * HIDDEN))
    return replace(TRACE, start=kind, features=bfloat16_bits(COMMON + KINDS[kind] + noise))


def test_kinds_of_traffic_become_clusters() -> None:
    clusters = OnlineClusters(8)
    rng = np.random.default_rng(0)
    found: dict[int, Counter[int]] = {kind: Counter() for kind in range(3)}
    for number in range(150):
        kind = int(rng.integers(3))
        cluster = clusters.assign(of_kind(kind, number))
        if number >= 30:
            found[kind][cluster] += 1
    usual = [counts.most_common(1)[0] for counts in found.values()]
    assert len({cluster for cluster, _ in usual}) == 3
    assert sum(count for _, count in usual) > 0.9 * 120


def test_there_are_never_more_clusters_than_allowed() -> None:
    for most in (1, 2, 5):
        clusters = OnlineClusters(most)
        assigned = {clusters.assign(random_trace(seed)) for seed in range(60)}
        assert assigned <= set(range(most))
        assert clusters.count == max(assigned) + 1


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
