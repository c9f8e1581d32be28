"""The statistical index counts what it should, stays within its bounds, merges, and survives the wire."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evospec.errors import WireError
from evospec.vocab.successors import SuccessorIndex, SuccessorLimits, SuccessorTable
from evospec.vocab.successors_codec import decode, encode, max_bytes

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
    assert encode(again, "k") == encode(table, "k")


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
def test_a_table_survives_the_wire(requests: list[list[int]]) -> None:
    table = index_of(requests, WIDE).table()
    blob = encode(table, "tokenizer")
    assert len(blob) <= max_bytes(WIDE)
    read = decode(blob, "tokenizer", VOCAB, WIDE)
    for name in ("heads", "totals", "successors", "counts"):
        np.testing.assert_array_equal(getattr(read, name), getattr(table, name))
    index_of([], WIDE).merge(read)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    blob = bytearray(encode(index_of([[1, 10, 2, 11, 3]], WIDE).table(), "tokenizer"))
    place = data.draw(st.integers(0, len(blob) - 1))
    blob[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        decode(bytes(blob), "tokenizer", VOCAB, WIDE)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(WireError):
        decode(blob, "tokenizer", VOCAB, WIDE)


def test_a_table_of_elsewhere_is_refused() -> None:
    table = index_of([[1, 10, 2, 11]], WIDE).table()
    with pytest.raises(WireError, match="another tokenizer"):
        decode(encode(table, "other"), "tokenizer", VOCAB, WIDE)
    with pytest.raises(WireError, match="outside the vocabulary of 11"):
        decode(encode(table, "tokenizer"), "tokenizer", 11, WIDE)
    narrow = SuccessorLimits(heads=1, successors=1, window=1, half_life=1)
    with pytest.raises(WireError, match="at most"):
        decode(encode(table, "tokenizer") + bytes(2000), "tokenizer", VOCAB, narrow)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"totals": np.array([np.nan, 1.0])}, "not finite"),
        ({"totals": np.array([0.0, 1.0])}, "never seen"),
        ({"counts": np.array([[-1.0, 0.0], [1.0, 0.0]])}, "negative"),
        ({"counts": np.array([[0.0, 0.0], [1.0, 0.0]])}, "same places"),
        ({"successors": np.array([[9, 9], [9, -1]])}, "successor of one head comes twice"),
        ({"successors": np.array([[-2, -1], [9, -1]])}, "successors outside"),
        ({"heads": np.array([1, 1])}, "head comes twice"),
        ({"heads": np.array([-1, 1])}, "heads outside"),
        ({"heads": np.array([1, 2, 3])}, "different lengths"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    fields = {
        "heads": np.array([1, 2]),
        "totals": np.array([1.0, 1.0]),
        "successors": np.array([[9, -1], [9, -1]]),
        "counts": np.array([[1.0, 0.0], [1.0, 0.0]]),
    }
    with pytest.raises(WireError, match=message):
        decode(encode(SuccessorTable(**(fields | change)), "k"), "k", VOCAB, WIDE)
