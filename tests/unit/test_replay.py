"""The replay buffer: bounded, remembers old topics, keeps held-out traces apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evospec.align.degenerate import is_degenerate, loop_share
from evospec.align.replay import Admission, ReplayBuffer
from evospec.align.replay_store import Reservoir, stored_bytes
from evospec.align.trace import Trace
from tests.unit.align_tiny import random_trace

TRACE = random_trace(0)
SIZE = stored_bytes(TRACE)


def numbered(number: int) -> Trace:
    return replace(TRACE, start=number)


def filled(arrivals: int, *, capacity: int = 40, holdout: float = 0.25, seed: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity * SIZE, holdout, seed)
    for number in range(arrivals):
        buffer.add(numbered(number))
    return buffer


def starts(traces: list[Trace]) -> set[int]:
    return {trace.start for trace in traces}


def test_bytes_stay_bounded_under_a_flood_of_any_sizes() -> None:
    buffer = ReplayBuffer(30 * SIZE, 0.2, seed=3)
    sizes = [random_trace(seed, width=2 + seed * 7 % 60) for seed in range(50)]
    for number in range(2000):
        buffer.add(sizes[number % len(sizes)])
        assert buffer.nbytes <= 30 * SIZE
    kept = buffer.training_traces + buffer.held_out_traces
    assert buffer.counts.training + buffer.counts.held_out - buffer.counts.evicted == kept
    assert kept > 10


def test_a_trace_larger_than_the_buffer_is_put_out_again() -> None:
    buffer = ReplayBuffer(SIZE // 2, 0.5, seed=0)
    for number in range(4):
        buffer.add(numbered(number))
    assert (buffer.nbytes, buffer.counts.evicted) == (0, 4)


def test_held_out_traces_are_never_sampled_for_training() -> None:
    buffer = filled(30)
    training, held_out = starts(buffer.sample(100)), starts(buffer.sample_held_out(100))
    assert not training & held_out
    assert training | held_out == set(range(30))


@given(st.floats(0.01, 0.99), st.integers(0, 100))
def test_the_held_out_share_never_strays_by_more_than_one_trace(holdout: float, seed: int) -> None:
    buffer = ReplayBuffer(1000 * SIZE, holdout, seed)
    for number in range(60):
        buffer.add(numbered(number))
        assert abs(buffer.counts.held_out - holdout * (number + 1)) <= 1


def test_equal_seeds_give_equal_buffers_and_samples() -> None:
    left, right, other = filled(200, seed=1), filled(200, seed=1), filled(200, seed=2)
    assert [t.start for t in left.sample(10)] == [t.start for t in right.sample(10)]
    assert [t.start for t in left.sample_held_out(5)] == [t.start for t in right.sample_held_out(5)]
    assert starts(left.sample(100)) != starts(other.sample(100))


def test_samples_are_distinct_and_at_most_what_is_there() -> None:
    buffer = filled(12)
    assert len(starts(buffer.sample(5))) == 5
    assert len(starts(buffer.sample(500))) == buffer.training_traces
    assert ReplayBuffer(SIZE, 0.5, 0).sample(3) == []


def test_reservoir_keeps_every_arrival_with_the_same_probability() -> None:
    """60 arrivals, 15 places, 800 repetitions: each arrival is kept 200 times, give or take 12."""
    kept: Counter[int] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(800):
        reservoir = Reservoir(15 * SIZE)
        for number in range(60):
            reservoir.offer(numbered(number), float(rng.random()))
        kept.update(trace.start for trace in reservoir.traces())
    counts = np.array([kept[number] for number in range(60)])
    assert counts.sum() == 800 * 15
    assert abs(counts - 200).max() < 5 * 12.3
    assert abs(counts[:20].mean() - counts[-20:].mean()) < 5 * 12.3 * (2 / 20) ** 0.5


def test_old_topics_survive_and_new_ones_are_seen() -> None:
    """After ten times as much of a second topic, the first is still there in proportion."""
    buffer = ReplayBuffer(100 * SIZE, 0.1, seed=0)
    for number in range(2200):
        buffer.add(numbered(number))
    training = starts(buffer.sample(1000))
    old = sum(number < 200 for number in training)
    latest = sum(number >= 2150 for number in training)
    assert 1 <= old <= 20
    assert latest >= 20  # a pure reservoir would hold two of the last fifty


def test_discarded_traces_are_gone() -> None:
    buffer = filled(200)
    batch = buffer.sample(10)
    before = buffer.training_traces
    buffer.discard(batch)
    assert buffer.counts.discarded == 10
    assert buffer.training_traces == before - 10
    assert not starts(batch) & starts(buffer.sample(1000))
    assert buffer.nbytes == SIZE * (buffer.training_traces + buffer.held_out_traces)


def test_degenerate_and_unscored_traces_are_counted_not_kept() -> None:
    buffer = ReplayBuffer(10 * SIZE, 0.5, seed=0)
    loop = replace(TRACE, token_ids=np.array([5, 6] * 12 + [5], dtype=np.int32))
    assert buffer.add(loop) is Admission.DEGENERATE
    only_first = np.arange(TRACE.width) == 0
    assert buffer.add(replace(TRACE, generated=only_first)) is Admission.UNSCORED
    assert buffer.add(TRACE) in (Admission.TRAINING, Admission.HELD_OUT)
    assert (buffer.counts.degenerate, buffer.counts.unscored, buffer.counts.training) == (1, 1, 1) or (
        buffer.counts.held_out == 1
    )


def test_only_generated_tokens_make_a_trace_degenerate() -> None:
    """A prompt may repeat itself as it likes."""
    tokens = TRACE.token_ids.copy()
    tokens[:18] = 9
    generated = np.arange(TRACE.width) >= 17
    buffer = ReplayBuffer(10 * SIZE, 0.5, seed=0)
    assert buffer.add(replace(TRACE, token_ids=tokens, generated=generated)) is not Admission.DEGENERATE


@pytest.mark.parametrize("period", [1, 2, 3, 7, 20])
def test_loops_of_short_period_are_degenerate(period: int) -> None:
    unit = np.arange(period) + 50
    assert is_degenerate(np.tile(unit, 80 // period + 1)[:80])
    text = np.random.default_rng(period).integers(0, 10_000, 40)
    assert is_degenerate(np.concatenate((text, np.tile(unit, 80 // period + 1))))


def test_varied_text_is_not_degenerate() -> None:
    rng = np.random.default_rng(0)
    assert not is_degenerate(rng.integers(0, 10_000, 128))
    table = np.concatenate([[1, 2, 3, *rng.integers(100, 10_000, 4), 4] for _ in range(16)])
    assert not is_degenerate(table)
    assert not is_degenerate(np.array([7, 7, 7, 7]))


def slow_loop_share(tokens: list[int], longest_period: int) -> float:
    best = 0
    for start in range(len(tokens)):
        for period in range(1, longest_period + 1):
            stop = start + period
            while stop < len(tokens) and tokens[stop] == tokens[stop - period]:
                stop += 1
            if stop <= len(tokens) and stop - start >= 3 * period:
                best = max(best, stop - start)
    return best / len(tokens) if tokens else 0.0


@given(st.lists(st.integers(0, 2), max_size=24))
def test_loop_share_agrees_with_its_definition(tokens: list[int]) -> None:
    assert loop_share(np.array(tokens, dtype=np.int32), 6) == slow_loop_share(tokens, 6)
