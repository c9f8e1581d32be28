"""From timed turns to result rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evospec.bench.exactness import Exactness, OutputCheck, compare_turns
from evospec.bench.measure import Turn
from evospec.bench.results import PLAIN, Run, Spread
from evospec.engine.counters import total
from evospec.engine.stats import EngineStats


@dataclass(frozen=True, slots=True)
class Subject:
    """What all rows of a bench share."""

    target: str
    drafter: str
    batch: int


@dataclass(frozen=True, slots=True)
class _Cell:
    """A policy's turns in one domain, and the verdict over them; None when outputs can't be compared."""

    policy: str
    domain: str
    turns: list[Turn]
    exactness: Exactness | None


def summarise(turns: Sequence[Turn], subject: Subject, check: OutputCheck | None) -> list[Run]:
    """One row per domain and policy, in the order in which they ran.

    A policy that is inexact anywhere has failed everywhere: none of its speeds are given.

    Args:
        turns: of all policies, plain decoding included.
        check: judges outputs that differ from plain decoding's; None when they may (sampling).
    """
    plain = {turn.batch.number: turn for turn in turns if turn.policy == PLAIN}
    grouped: dict[tuple[str, str], list[Turn]] = {}
    for turn in turns:
        grouped.setdefault((turn.batch.domain, turn.policy), []).append(turn)
    cells = [
        _Cell(policy, domain, members, _exactness(members, plain, check))
        for (domain, policy), members in grouped.items()
    ]
    failures: dict[str, str] = {}
    for cell in cells:
        if cell.exactness is not None and cell.exactness.problem is not None:
            failures.setdefault(cell.policy, cell.exactness.problem)
    return [_run(cell, subject, plain, failures.get(cell.policy)) for cell in cells]


def _exactness(
    turns: Sequence[Turn], plain: Mapping[int, Turn], check: OutputCheck | None
) -> Exactness | None:
    if check is None:
        return None
    return Exactness.of([compare_turns(turn, plain[turn.batch.number], check) for turn in turns])


def _run(cell: _Cell, subject: Subject, plain: Mapping[int, Turn], failure: str | None) -> Run:
    counters = total(turn.counters for turn in cell.turns)
    speeds = [turn.tokens_per_s for turn in cell.turns]
    ratios = [turn.tokens_per_s / plain[turn.batch.number].tokens_per_s for turn in cell.turns]
    drafts, failed = cell.policy != PLAIN, failure is not None
    return Run(
        target=subject.target,
        drafter=subject.drafter if drafts else None,
        policy=cell.policy,
        arm="none",
        domain=cell.domain,
        batch=subject.batch,
        tokens=sum(turn.tokens for turn in cell.turns),
        cycles=counters.cycles,
        tokens_per_s=0.0 if failed else float(np.median(speeds)),
        acceptance_length=counters.acceptance_length,
        acceptance_by_position=acceptance_by_position(counters),
        active_rows=_per_cycle(sum(turn.row_cycles for turn in cell.turns), counters) if drafts else 0.0,
        coverage=counters.coverage if drafts else 0.0,
        draft_ms=_per_cycle(1000 * counters.draft_seconds, counters),
        verify_ms=_per_cycle(1000 * counters.verify_seconds, counters),
        peak_memory_mb=max(turn.peak_memory_mb for turn in cell.turns),
        identical_to_plain=None if cell.exactness is None else cell.exactness.exact,
        prompts=sum(len(turn.batch.requests) for turn in cell.turns),
        seconds=sum(turn.seconds for turn in cell.turns),
        tokens_per_s_quartiles=(0.0, 0.0) if failed else quartiles(speeds),
        speedup=None if failed else float(np.median(ratios)),
        speedup_quartiles=None if failed else quartiles(ratios),
        near_ties=0 if cell.exactness is None else cell.exactness.near_ties,
        largest_gap=0.0 if cell.exactness is None else cell.exactness.largest_gap,
        status="failed" if failed else "ok",
        failure=failure,
    )


def acceptance_by_position(counters: EngineStats) -> tuple[float, ...]:
    """Accepted / attempted per draft position, up to the last position that was attempted."""
    pairs = zip(counters.accepted_per_position, counters.attempted_per_position, strict=True)
    return tuple(accepted / attempted for accepted, attempted in pairs if attempted)


def _per_cycle(value: float, counters: EngineStats) -> float:
    return value / counters.cycles if counters.cycles else 0.0


def quartiles(values: Sequence[float]) -> Spread:
    low, high = np.percentile(values, [25, 75])
    return float(low), float(high)
