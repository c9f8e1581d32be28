"""From the turns of a stream, one request each, to what its report shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evospec.bench.measure import Covered, Turn
from evospec.bench.stream_records import (
    BUCKET,
    RECOVERED,
    AfterSwitch,
    NthRequest,
    Stream,
    StreamRequest,
)
from evospec.engine.counters import total


@dataclass(frozen=True, slots=True)
class _Segment:
    """Requests of one arm between two switches, in order."""

    turns: list[Turn]


def summarise_stream(turns: Sequence[Turn], arms: Sequence[str]) -> Stream:
    """Args: turns: of all arms, each in the order of the stream; arms: those that draft."""
    requests: list[StreamRequest] = []
    after: list[AfterSwitch] = []
    for arm in arms:
        segments = _segments([turn for turn in turns if turn.arm == arm])
        requests += [
            _request(turn, number)
            for segment in segments
            for number, turn in enumerate(segment.turns, start=1)
        ]
        after.append(_after(arm, segments[1:]))
    return Stream(requests=tuple(requests), arms=tuple(after))


def coverage_of(steps: Iterable[Covered]) -> float | None:
    """None without a token that could be covered."""
    listed = list(steps)
    tokens = sum(step.of for step in listed)
    return sum(step.tokens for step in listed) / tokens if tokens else None


def bucketed(steps: Iterable[Covered], size: int) -> list[Covered]:
    """Coverage of each `size` tokens, in order; the last may hold fewer.

    A step's covered tokens are taken to come before its missed ones: which they are is not known.
    """
    buckets: list[Covered] = []
    room, covered, held = size, 0, 0
    for step in steps:
        left, of = step.tokens, step.of
        while of:
            taken = min(of, room)
            good = min(left, taken)
            covered, held, room = covered + good, held + taken, room - taken
            left, of = left - good, of - taken
            if not room:
                buckets.append(Covered(covered, held))
                room, covered, held = size, 0, 0
    if held:
        buckets.append(Covered(covered, held))
    return buckets


def _segments(turns: Sequence[Turn]) -> list[_Segment]:
    segments: list[_Segment] = []
    for turn in turns:
        if not segments or segments[-1].turns[-1].batch.domain != turn.batch.domain:
            segments.append(_Segment([]))
        segments[-1].turns.append(turn)
    return segments


def _request(turn: Turn, number: int) -> StreamRequest:
    counters = turn.counters
    return StreamRequest(
        arm=turn.arm,
        place=turn.batch.number,
        topic=turn.batch.domain,
        since_switch=number,
        tokens=turn.tokens,
        coverage=coverage_of(turn.coverage),
        first_coverage=coverage_of(bucketed(turn.coverage, BUCKET)[:1]),
        acceptance_length=counters.acceptance_length,
        active_rows=turn.row_cycles / counters.cycles if counters.cycles else 0.0,
        tokens_per_s=turn.tokens_per_s,
    )


def _after(arm: str, segments: Sequence[_Segment]) -> AfterSwitch:
    longest = max((len(segment.turns) for segment in segments), default=0)
    buckets = _pooled_buckets(segments)
    recovered = [place for place, share in enumerate(buckets) if share is not None and share >= RECOVERED]
    return AfterSwitch(
        arm=arm,
        switches=len(segments),
        requests=tuple(_nth(segments, place) for place in range(longest)),
        buckets=tuple(buckets),
        recovered_after=recovered[0] * BUCKET if recovered else None,
    )


def _nth(segments: Sequence[_Segment], place: int) -> NthRequest:
    turns = [segment.turns[place] for segment in segments if len(segment.turns) > place]
    firsts = [first for turn in turns for first in bucketed(turn.coverage, BUCKET)[:1]]
    return NthRequest(
        number=place + 1,
        requests=len(turns),
        coverage=coverage_of(step for turn in turns for step in turn.coverage),
        first_coverage=coverage_of(firsts),
        acceptance_length=total(turn.counters for turn in turns).acceptance_length,
    )


def _pooled_buckets(segments: Sequence[_Segment]) -> list[float | None]:
    """Of tokens since the switch, over all segments."""
    rows = [
        bucketed((step for turn in segment.turns for step in turn.coverage), BUCKET) for segment in segments
    ]
    longest = max((len(row) for row in rows), default=0)
    return [coverage_of(row[place] for row in rows if len(row) > place) for place in range(longest)]
