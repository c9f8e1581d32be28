"""The arithmetic of a load run: percentiles, arrivals, order, speed over time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evospec.bench.prompts import Prompt
from services.event_stream import RequestFailedError, read_events
from services.load.over_time import bin_edges, tokens_per_s, under_way
from services.load.results import LoadRequest
from services.load.schedule import in_order, poisson_arrivals
from services.load.summary import failures, percentiles, summarise

TIMES = st.floats(0, 1e6, allow_nan=False)


@given(st.lists(TIMES, min_size=1, max_size=60), st.randoms())
def test_percentiles_rise_lie_within_and_know_no_order(values: list[float], chance: object) -> None:
    found = percentiles(values)
    assert found is not None
    shown = [found.p50, found.p90, found.p95, found.p99, found.largest]
    assert shown == sorted(shown)
    assert min(values) <= found.p50
    assert found.largest == max(values)
    assert min(values) - 1e-6 <= found.mean <= max(values) + 1e-6
    chance.shuffle(values)  # type: ignore[attr-defined]
    again = percentiles(values)
    assert again is not None
    assert again.model_copy(update={"mean": found.mean}) == found
    # At least half lie on either side, and so on: what a percentile means.
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.95, found.p95), (0.99, found.p99)):
        within = sum(one <= value + 1e-9 * abs(value) for one in values)
        assert within >= np.floor(share * (len(values) - 1)) + 1


def test_percentiles_between_two_values_are_interpolated() -> None:
    found = percentiles([float(number) for number in range(101)])
    assert found is not None
    assert (found.p50, found.p90, found.p95, found.p99, found.count) == (50, 90, 95, 99, 101)
    two = percentiles([None, 1.0, 2.0])
    assert two is not None
    assert (two.p50, two.p90) == (1.5, 1.9)
    assert percentiles([None]) is None


@given(st.floats(0.01, 1e4), st.integers(1, 50), st.integers(0, 100))
def test_arrivals_ascend_and_their_number_is_asked_for(rate: float, count: int, seed: int) -> None:
    arrivals = poisson_arrivals(rate, count, seed)
    assert len(arrivals) == count
    assert arrivals == sorted(arrivals)
    assert arrivals[0] > 0
    assert arrivals == poisson_arrivals(rate, count, seed)


def test_arrivals_are_poisson() -> None:
    """Mean and variance of the counts per second are the rate."""
    arrivals = poisson_arrivals(5.0, 20_000, 1)
    counts = np.bincount(np.asarray(arrivals, dtype=int))[:-1]
    assert counts.mean() == pytest.approx(5.0, rel=0.05)
    assert counts.var() == pytest.approx(5.0, rel=0.08)


def prompts_of(**counts: int) -> list[Prompt]:
    return [Prompt(f"{name}{one}", name, "") for name, count in counts.items() for one in range(count)]


def test_topics_take_turns_and_prompts_come_again() -> None:
    order = in_order(prompts_of(law=3, code=1), 8, every=2, seed=0)
    shown = [prompt.id for prompt in order]
    assert shown == ["law0", "law1", "code0", "code0", "law2", "law0", "code0", "code0"]


@given(st.integers(0, 40), st.integers(0, 5))
def test_a_mix_uses_all_prompts_before_one_comes_again(requests: int, seed: int) -> None:
    order = in_order(prompts_of(law=4, code=3), requests, every=None, seed=seed)
    assert len(order) == requests
    counts = Counter(prompt.id for prompt in order)
    assert max(counts.values(), default=0) - (min(counts.values()) if len(counts) == 7 else 0) <= 1


def request_of(due: float, first: float, end: float, **fields: object) -> LoadRequest:
    values = {"prompt": "p", "domain": "law", "status": 200, "tokens": 10, **fields}
    return LoadRequest.model_validate(
        {"due_s": due, "started_s": due, "first_token_s": first, "finished_s": end, **values}
    )


SPANS = st.lists(
    st.tuples(st.floats(0, 50), st.floats(0, 20), st.floats(0, 20)).map(
        lambda span: request_of(span[0], span[0] + span[1], span[0] + span[1] + span[2])
    ),
    min_size=1,
    max_size=12,
)


@given(SPANS)
def test_speed_over_time_loses_no_token_and_no_waiting(requests: list[LoadRequest]) -> None:
    assume(max(request.finished_s for request in requests) > 1e-9)  # what a clock can tell
    edges = bin_edges(requests)
    width = np.diff(edges)
    assert (tokens_per_s(requests, edges) * width).sum() == pytest.approx(10 * len(requests))
    waited = sum(request.finished_s - request.due_s for request in requests)
    assert (under_way(requests, edges) * width).sum() == pytest.approx(waited, abs=1e-6)


def test_latencies_count_from_when_a_request_was_due() -> None:
    late = request_of(1.0, 3.0, 4.0, started_s=2.5)
    assert late.ttft_ms == 2000
    assert late.latency_ms == 3000
    assert late.token_ms == pytest.approx(1000 / 9)
    (run,) = summarise([late], streamed=True)
    assert run.late_ms is not None
    assert run.late_ms.p50 == 1500
    assert run.tokens_per_s == pytest.approx(10 / 3)


def test_failed_requests_count_in_no_latency() -> None:
    requests = [
        request_of(0, 1, 2, cycles=3, drafted=9, accepted=6),
        request_of(0, 1, 90, error="late", status=408),
        request_of(1, 1, 80, error="late", status=408),
        request_of(1, 1, 80, error="gone", status=0),
    ]
    (run,) = summarise(requests, streamed=True)
    assert (run.requests, run.failed, run.tokens) == (4, 3, 10)
    assert run.latency_ms is not None
    assert run.latency_ms.count == 1
    assert run.acceptance_length == 3.0
    assert [(one.status, one.reason, one.count) for one in failures(requests)] == [
        (408, "late", 2),
        (0, "gone", 1),
    ]


# --- reading a stream ---


def read(content: bytes, size: int) -> list[dict[str, object]]:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), size):
            yield content[at : at + size]

    async def run() -> list[dict[str, object]]:
        return [event async for event in read_events(pieces())]

    return asyncio.run(run())


@given(st.integers(1, 60))
def test_events_are_whole_wherever_pieces_are_cut(size: int) -> None:
    content = 'data: {"a": "\u2028ü"}\r\n\r\n: a comment\n\ndata:{"b": 2}\n\ndata: [DONE]\n\n'.encode()
    assert read(content, size) == [{"a": "\u2028ü"}, {"b": 2}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'data: {"a": 1}\n\n', "closed in the middle"),
        (b"data: {\n\n", "not JSON"),
        (b"data: 3\n\n", "not a JSON object"),
        (b'data: {"error": {"message": "gone"}}\n\n', "gone"),
    ],
)
def test_broken_streams_are_told(content: bytes, reason: str) -> None:
    with pytest.raises(RequestFailedError, match=reason):
        read(content, 1000)
