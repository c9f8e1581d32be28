"""From the chunks of a stream to its visits, and from held-out turns to result rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from evospec.bench.align_arms import NONE, AlignArm
from evospec.bench.align_records import RECOVERED, StreamChunk, TopicVisit
from evospec.bench.measure import Turn
from evospec.bench.results import Run
from evospec.bench.summary import acceptance_by_position, quartiles
from evospec.engine.counters import total

WINDOW = 16  # requests over which a gain is told


def visits_of(chunks: Sequence[StreamChunk], arms: Mapping[str, AlignArm]) -> list[TopicVisit]:
    """All visits of all arms that are still there; `arms` by their text, among them `none` with each
    policy."""
    found: list[TopicVisit] = []
    for name, arm in arms.items():
        base = next(text for text, one in arms.items() if not one.adapts and one.policy == arm.policy)
        own = _by_visit(chunks, name)
        others = {visit: same[: len(own.get(visit, ()))] for visit, same in _by_visit(chunks, base).items()}
        plateaus = {topic: late_gain(own[visit], others[visit]) for visit, topic in _last_visits(own).items()}
        seen: set[str] = set()
        for visit, members in own.items():
            topic = members[0].topic
            found.append(
                TopicVisit(
                    arm=name,
                    visit=visit,
                    topic=topic,
                    returns=topic in seen,
                    requests=sum(chunk.requests for chunk in members),
                    acceptance_length=pooled(members),
                    gain=pooled(members) / pooled(others[visit]),
                    late_gain=late_gain(members, others[visit]),
                    recovered_after=recovered_after(members, others[visit], plateaus[topic]),
                )
            )
            seen.add(topic)
    return found


def pooled(chunks: Sequence[StreamChunk]) -> float:
    """Acceptance length over all drafts."""
    drafts = sum(chunk.drafts for chunk in chunks)
    return 1.0 + sum(chunk.accepted for chunk in chunks) / drafts if drafts else 1.0


def late_gain(own: Sequence[StreamChunk], base: Sequence[StreamChunk]) -> float:
    """Of a visit's last quarter, and no fewer than WINDOW requests."""
    requests = sum(chunk.requests for chunk in own)
    first = _from_the_end(own, max(WINDOW, requests // 4))
    return pooled(own[first:]) / pooled(base[first:])


def recovered_after(own: Sequence[StreamChunk], base: Sequence[StreamChunk], plateau: float) -> int | None:
    """Requests of a visit before the first window whose gain is RECOVERED of the plateau."""
    requests = 0
    for first, chunk in enumerate(own):
        last = first
        while last < len(own) and sum(one.requests for one in own[first:last]) < WINDOW:
            last += 1
        if pooled(own[first:last]) / pooled(base[first:last]) >= RECOVERED * plateau:
            return requests
        requests += chunk.requests
    return None


def held_out_run(arm: AlignArm, turns: Sequence[Turn], target: str, drafter: str, batch: int) -> Run:
    """One arm on the held-out prompts of one domain."""
    counters = total(turn.counters for turn in turns)
    speeds = [turn.tokens_per_s for turn in turns]
    request_cycles = sum(turn.request_cycles for turn in turns)
    decoded = sum(turn.tokens - turn.first_tokens for turn in turns)
    cycles = max(1, counters.cycles)
    return Run(
        target=target,
        drafter=drafter,
        policy=arm.policy,
        arm=NONE if not arm.adapts else arm.text.partition("@")[0],
        domain=turns[0].batch.domain,
        batch=batch,
        tokens=sum(turn.tokens for turn in turns),
        cycles=counters.cycles,
        tokens_per_s=float(np.median(speeds)),
        tokens_per_s_quartiles=quartiles(speeds),
        acceptance_length=counters.acceptance_length,
        acceptance_by_position=acceptance_by_position(counters),
        active_rows=sum(turn.row_cycles for turn in turns) / cycles,
        coverage=counters.coverage,
        draft_ms=1000 * counters.draft_seconds / cycles,
        verify_ms=1000 * counters.verify_seconds / cycles,
        peak_memory_mb=max(turn.peak_memory_mb for turn in turns),
        identical_to_plain=None,
        prompts=sum(len(turn.batch.requests) for turn in turns),
        seconds=sum(turn.seconds for turn in turns),
        label=arm.text,
        tokens_per_cycle=decoded / request_cycles if request_cycles else None,
    )


def _by_visit(chunks: Sequence[StreamChunk], arm: str) -> dict[int, list[StreamChunk]]:
    own = [chunk for chunk in chunks if chunk.arm == arm]
    return {visit: list(members) for visit, members in groupby(own, key=lambda chunk: chunk.visit)}


def _last_visits(visits: Mapping[int, Sequence[StreamChunk]]) -> dict[int, str]:
    last = {members[0].topic: visit for visit, members in visits.items()}
    return {visit: topic for topic, visit in last.items()}


def _from_the_end(chunks: Sequence[StreamChunk], requests: int) -> int:
    """Index of the first chunk of the last so many requests."""
    left = len(chunks)
    while left and sum(chunk.requests for chunk in chunks[left:]) < requests:
        left -= 1
    return left
