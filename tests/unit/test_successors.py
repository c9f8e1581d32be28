"""The statistical index counts what it should, stays within its bounds, and merges."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evospec.vocab.successor_table import SuccessorTable
from evospec.vocab.successors import SuccessorIndex, SuccessorLimits

VOCAB = 40
COMMON = np.arange(8)
NO_DECAY = 10**9
WIDE = SuccessorLimits(heads=VOCAB, successors=VOCAB, window=3, half_life=NO_DECAY)

sequences = st.lists(st.integers(0, VOCAB - 1), max_size=30)
traffic = st.lists(sequences, max_size=8)


def index_of(requests: list[list[int]], limits: SuccessorLimits) -> SuccessorIndex:
    index = SuccessorIndex(VOCAB, COMMON, limits)
    for request in requests:
        index.learn(request)
    return index


def counts_of(table: SuccessorTable) -> dict[tuple[int, int], float]:
    rows, places = np.nonzero(table.counts)
    return {
        (int(table.heads[row]), int(table.successors[row, place])): float(table.counts[row, place])
        for row, place in zip(rows, places, strict=True)
    }


def same(left: SuccessorTable, right: SuccessorTable) -> bool:
    return (
        np.array_equal(left.heads, right.heads)
        and np.array_equal(left.totals, right.totals)
        and np.array_equal(left.successors, right.successors)
        and np.array_equal(left.counts, right.counts)
    )


def counted_slowly(requests: list[list[int]], window: int) -> Counter[tuple[int, int]]:
    return Counter(
        (head, successor)
        for request in requests
        for place, head in enumerate(request)
        for successor in request[place + 1 : place + 1 + window]
        if successor >= len(COMMON) and successor != head
    )


@settings(max_examples=100, deadline=None)
@given(traffic)
def test_counts_are_those_of_a_slow_count(requests: list[list[int]]) -> None:
    counted = counts_of(index_of(requests, WIDE).table())
    assert counted == pytest.approx(dict(counted_slowly(requests, 3)), rel=1e-4)


@settings(max_examples=100, deadline=None)
@given(traffic)
def test_it_stays_within_its_bounds_and_keeps_the_most_seen(requests: list[list[int]]) -> None:
    limits = SuccessorLimits(heads=5, successors=3, window=3, half_life=NO_DECAY)
    index = index_of(requests, limits)
    table = index.table()
    assert len(index) == len(table) <= 5
    assert table.successors.shape[1] == 3
    assert len(set(table.heads.tolist())) == len(table)
    assert np.array_equal(table.counts > 0, table.successors >= 0)
    assert (np.diff(table.counts, axis=1) <= 0).all()
    again = index_of(requests, limits).table()
    assert same(again, table)


def test_the_least_seen_head_makes_room() -> None:
    limits = SuccessorLimits(heads=2, successors=2, window=1, half_life=NO_DECAY)
    index = index_of([[1, 10, 1, 10], [2, 11, 2, 11, 2]], limits)
    assert set(index.table().heads.tolist()) == {1, 2}
    index.learn([3, 12, 3, 12, 3, 12, 3, 12])
    assert set(index.table().heads.tolist()) == {2, 3}


def test_what_is_not_seen_again_fades() -> None:
    index = SuccessorIndex(VOCAB, COMMON, SuccessorLimits(heads=9, successors=1, window=1, half_life=2))
    for _ in range(3):
        index.learn([1, 10])
    for _ in range(4):
        index.learn([2, 12])
    assert counts_of(index.table())[1, 10] == pytest.approx((1 + 2**-0.5 + 2**-1) / 4)
    for _ in range(200):  # past the point where counts are brought back to their size
        index.learn([1, 11])
    assert counts_of(index.table())[1, 11] == pytest.approx(1 / (1 - 2**-0.5))
    assert (2, 12) not in counts_of(index.table())


def test_a_look_up_gives_shares_of_the_heads_occurrences() -> None:
    index = index_of([[1, 10, 2, 1, 11, 2, 1, 10]], WIDE)
    found = index.look_up(np.array([1, 39]))
    shares = dict(zip(found.token_ids.tolist(), found.shares.tolist(), strict=True))
    assert shares == pytest.approx({10: 2 / 3, 11: 1 / 3}, rel=1e-5)
    assert not len(index.look_up(np.array([39])).token_ids)


@settings(max_examples=60, deadline=None)
@given(traffic, traffic)
def test_merging_is_learning_both_in_any_order(first: list[list[int]], second: list[list[int]]) -> None:
    one, two = index_of(first, WIDE), index_of(second, WIDE)
    one_table, two_table = one.table(), two.table()
    one.merge(two_table)
    two.merge(one_table)
    expected = {pair: float(count) for pair, count in counted_slowly(first + second, 3).items()}
    assert counts_of(one.table()) == pytest.approx(expected, rel=1e-4)
    assert counts_of(two.table()) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_array_equal(one.table().heads, two.table().heads)
    np.testing.assert_allclose(one.table().totals, two.table().totals, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(traffic)
def test_a_table_gives_what_its_index_gives(requests: list[list[int]]) -> None:
    index = index_of(requests, WIDE)
    asked = np.arange(VOCAB)
    found, given = index.look_up(asked), index.table().look_up(asked)
    assert sorted(found.token_ids.tolist()) == sorted(given.token_ids.tolist())
    np.testing.assert_allclose(np.sort(found.shares), np.sort(given.shares), rtol=1e-4)
    assert not len(SuccessorTable.of_size(0, 1).look_up(asked).token_ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40), st.data())
def test_a_request_in_windows_is_counted_as_a_whole(request: list[int], data: st.DataObject) -> None:
    """Each window repeats at least as many tokens as a successor may be away."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(request)), max_size=4)))
    index = SuccessorIndex(VOCAB, COMMON, WIDE)
    for begin, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
        repeated = min(begin, data.draw(st.integers(3, 6)))
        index.learn(np.array(request[begin - repeated : end]), first=repeated)
    whole = index_of([request], WIDE).table()
    assert counts_of(index.table()) == pytest.approx(counts_of(whole), rel=1e-4)


def test_the_most_seen_heads_are_kept_in_less_memory() -> None:
    table = index_of([[1, 10, 2, 11, 1, 10, 3, 12, 1, 10, 2, 11]], WIDE).table()
    small = table.within(2 * (8 + 8 * VOCAB))
    assert small.heads.tolist() == [1, 10]
    assert counts_of(small) == {pair: count for pair, count in counts_of(table).items() if pair[0] in (1, 10)}
    assert table.within(10**6) is table
    assert not len(table.within(7))
