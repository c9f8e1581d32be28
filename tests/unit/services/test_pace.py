"""How often answers are sent on."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack

from hypothesis import given
from hypothesis import strategies as st

from services.pace import FEW, MOST_S, Pace


def interval(pace: Pace, answers: int, *, streamed: bool = True) -> float:
    async def run() -> float:
        async with AsyncExitStack() as stack:
            for _ in range(answers):
                await stack.enter_async_context(pace.answer())
            return pace.interval(streamed=streamed)

    return asyncio.run(run())


def test_few_answers_come_as_often_as_they_may_and_many_share() -> None:
    pace = Pace(0.02)
    assert interval(pace, 0) == interval(pace, FEW) == 0.02
    assert interval(pace, 4 * FEW) == 0.08
    assert interval(pace, 1000 * FEW) == MOST_S
    assert interval(pace, 1) == 0.02  # those are over


@given(st.floats(0, 1), st.integers(0, 40))
def test_an_interval_is_never_below_what_was_set(chunk_s: float, answers: int) -> None:
    assert interval(Pace(chunk_s), answers) >= chunk_s


def test_each_cycle_is_sent_on_where_that_is_wanted_and_an_answer_in_one_piece_is_sent_whole() -> None:
    assert interval(Pace(0.0), 50) == 0.0
    assert interval(Pace(0.0), 50, streamed=False) == interval(Pace(0.02), 1, streamed=False) == math.inf
