"""From timed turns to result rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evospec.bench.arms import ArmName
from evospec.bench.exactness import Exactness, OutputCheck, compare_turns
from evospec.bench.measure import Turn
from evospec.bench.results import FULL, PLAIN, Breakdown, Run, Spread
from evospec.bench.roofline import Roofline
from evospec.engine.counters import total
from evospec.engine.stats import EngineStats

SLOW_REQUEST = 0.95  # of plain decoding's speed
NONE = "none"  # the drafter is not adapted


@dataclass(frozen=True, slots=True)
class ArmFacts:
    """What is known of an arm besides its turns.

    Attributes:
        drafter: None where nothing drafts.
        roofline: None for peers, whose passes are not known.
        breakdowns: by domain.
    """

    name: ArmName
    drafter: str | None = None
    roofline: Roofline | None = None
    breakdowns: Mapping[str, Breakdown] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """What the rows of a bench are about; arms by the text of their names."""

    target: str
    batch: int
    arms: Mapping[str, ArmFacts]


@dataclass(frozen=True, slots=True)
class _Cell:
    """An arm's turns in one domain, plain decoding's of the same batches, and the verdict over them.

    Attributes:
        exactness: None when outputs can't be compared.
    """

    arm: ArmFacts
    domain: str
    turns: list[Turn]
    plain: list[Turn]
    exactness: Exactness | None


def summarise(turns: Sequence[Turn], subject: Subject, check: OutputCheck | None) -> list[Run]:
    """One row per domain and arm, in the order in which they ran.

    An arm that is inexact anywhere has failed everywhere: none of its speeds are given.

    Args:
        turns: of all arms, plain decoding included.
        check: judges outputs that differ from plain decoding's; None when they may (sampling).
    """
    plain = {turn.batch.number: turn for turn in turns if turn.arm == PLAIN}
    grouped: dict[tuple[str, str], list[Turn]] = {}
    for turn in turns:
        grouped.setdefault((turn.batch.domain, turn.arm), []).append(turn)
    cells = []
    for (domain, name), members in grouped.items():
        same = [plain[turn.batch.number] for turn in members]
        cells.append(_Cell(subject.arms[name], domain, members, same, _exactness(members, same, check)))
    failures: dict[str, str] = {}
    for cell in cells:
        if cell.exactness is not None and cell.exactness.problem is not None:
            failures.setdefault(cell.arm.name.text, cell.exactness.problem)
    return _compared([_run(cell, subject, failures.get(cell.arm.name.text)) for cell in cells])


def _compared(runs: Sequence[Run]) -> list[Run]:
    """With acceptance lengths held against those of arms that score all rows."""
    full = {
        (run.domain, run.drafting): run.acceptance_length
        for run in runs
        if run.policy == FULL and run.arm == NONE
    }
    compared = []
    for run in runs:
        length = full.get((run.domain, run.drafting)) if run.drafting is not None else None
        share = None if length is None else run.acceptance_length / length
        compared.append(run.model_copy(update={"share_of_full": share}))
    return compared


def _exactness(turns: Sequence[Turn], plain: Sequence[Turn], check: OutputCheck | None) -> Exactness | None:
    if check is None:
        return None
    return Exactness.of([compare_turns(turn, same, check) for turn, same in zip(turns, plain, strict=True)])


def _run(cell: _Cell, subject: Subject, failure: str | None) -> Run:
    arm, turns = cell.arm, cell.turns
    counters = total(turn.counters for turn in turns)
    drafts = arm.name.drafting is not None
    row = Run(
        target=subject.target,
        drafter=arm.drafter,
        policy=_policy(arm.name),
        arm=arm.name.adapter or NONE,
        domain=cell.domain,
        batch=subject.batch,
        tokens=sum(turn.tokens for turn in turns),
        cycles=counters.cycles,
        tokens_per_s=0.0,
        acceptance_length=counters.acceptance_length,
        acceptance_by_position=acceptance_by_position(counters),
        active_rows=_per_cycle(sum(turn.row_cycles for turn in turns), counters) if drafts else 0.0,
        coverage=counters.coverage if drafts else 0.0,
        draft_ms=_per_cycle(1000 * counters.draft_seconds, counters),
        verify_ms=_per_cycle(1000 * counters.verify_seconds, counters),
        peak_memory_mb=max(turn.peak_memory_mb for turn in turns),
        identical_to_plain=None if cell.exactness is None else cell.exactness.exact,
        prompts=sum(len(turn.batch.requests) for turn in turns),
        seconds=sum(turn.seconds for turn in turns),
        tokens_per_s_quartiles=(0.0, 0.0),
        near_ties=0 if cell.exactness is None else cell.exactness.near_ties,
        largest_gap=0.0 if cell.exactness is None else cell.exactness.largest_gap,
        status="ok" if failure is None else "failed",
        failure=failure,
        label=arm.name.text,
        drafting=None if arm.name.drafting is None else arm.name.drafting.text,
        plan_shares={plan: _per_cycle(n, counters) for plan, n in counters.cycles_per_plan.items()},
        reused_prompt_tokens=counters.reused_prompt_tokens,
        device_seconds=_device_seconds(turns),
        captures=sum(turn.captures for turn in turns),
        learning_share=float(np.median([turn.learning_seconds / turn.seconds for turn in turns])),
        breakdown=arm.breakdowns.get(cell.domain),
    )
    changes = _cycle_facts(cell, counters) | {"head_us": _head_us(cell)}
    if failure is None:
        changes |= _speeds(cell)
    return row.model_copy(update=changes)


def _policy(name: ArmName) -> str:
    shown = name.text.partition("@")[0]
    return shown if name.adapter is None else shown.removesuffix(f"+{name.adapter}")


def _cycle_facts(cell: _Cell, counters: EngineStats) -> dict[str, object]:
    """Fields that describe the mean cycle; none without one."""
    request_cycles = sum(turn.request_cycles for turn in cell.turns)
    if not request_cycles:
        return {}
    seconds = _cycle_seconds(cell.turns) / counters.cycles
    decoded = _decoded(cell.turns)
    facts: dict[str, object] = {"tokens_per_cycle": decoded / request_cycles, "cycle_ms": 1000 * seconds}
    bound = None if cell.arm.roofline is None else cell.arm.roofline.cycle_seconds(cell.turns)
    if bound is not None:
        facts |= {
            "roofline_ms": 1000 * bound,
            "roofline_share": bound / seconds,
            "roofline_tokens_per_s": decoded / counters.cycles / bound,
        }
    return facts


def _head_us(cell: _Cell) -> float | None:
    """Of one pass of the head: a draft takes as many as it is deep."""
    breakdown, roofline = cell.arm.breakdowns.get(cell.domain), cell.arm.roofline
    if breakdown is None or roofline is None:
        return None
    passes = sum(roofline.depths[plan] * count for plan, count in breakdown.cycles.items())
    if not passes:
        return None
    return 1000 * breakdown.draft_head_ms * sum(breakdown.cycles.values()) / passes


def _speeds(cell: _Cell) -> dict[str, object]:
    """Fields that say how fast an arm is, which one that failed does not have."""
    turns, plain = cell.turns, cell.plain
    speeds = [turn.tokens_per_s for turn in turns]
    ratios = [turn.tokens_per_s / same.tokens_per_s for turn, same in zip(turns, plain, strict=True)]
    first = [1000 * seconds for turn in turns for seconds in turn.first_token_seconds]
    requests = [
        own / reference
        for turn, same in zip(turns, plain, strict=True)
        for own, reference in zip(turn.request_speeds, same.request_speeds, strict=True)
    ]
    fields: dict[str, object] = {
        "tokens_per_s": float(np.median(speeds)),
        "tokens_per_s_quartiles": quartiles(speeds),
        "speedup": float(np.median(ratios)),
        "speedup_quartiles": quartiles(ratios),
        "ttft_ms": float(np.median(first)),
        "ttft_ms_quartiles": quartiles(first),
        "slowest_request": min(requests),
        "slow_requests": sum(ratio < SLOW_REQUEST for ratio in requests) / len(requests),
    }
    # A batch that ended with its first tokens has nothing to compare.
    pairs = [
        (turn.decode_tokens_per_s, same.decode_tokens_per_s)
        for turn, same in zip(turns, plain, strict=True)
        if turn.decode_tokens_per_s > 0 and same.decode_tokens_per_s > 0
    ]
    if not pairs:
        return fields
    own = [speed for speed, _ in pairs]
    against = [speed / reference for speed, reference in pairs]
    return fields | {
        "decode_tokens_per_s": float(np.median(own)),
        "decode_tokens_per_s_quartiles": quartiles(own),
        "decode_speedup": float(np.median(against)),
        "decode_speedup_quartiles": quartiles(against),
        "predicted_speedup": _rate(turns) / _rate(plain),
    }


def _rate(turns: Sequence[Turn]) -> float:
    """Tokens per second of cycles: tokens per cycle by a cycle's time."""
    return _decoded(turns) / _cycle_seconds(turns)


def _decoded(turns: Sequence[Turn]) -> int:
    return sum(turn.tokens - turn.first_tokens for turn in turns)


def _cycle_seconds(turns: Sequence[Turn]) -> float:
    return sum(turn.counters.draft_seconds + turn.counters.verify_seconds for turn in turns)


def _device_seconds(turns: Sequence[Turn]) -> float | None:
    measured = [turn.elapsed.device for turn in turns if turn.elapsed.device is not None]
    return sum(measured) if measured else None


def acceptance_by_position(counters: EngineStats) -> tuple[float, ...]:
    """Accepted / attempted per draft position, up to the last position that was attempted."""
    pairs = zip(counters.accepted_per_position, counters.attempted_per_position, strict=True)
    return tuple(accepted / attempted for accepted, attempted in pairs if attempted)


def _per_cycle(value: float, counters: EngineStats) -> float:
    return value / counters.cycles if counters.cycles else 0.0


def quartiles(values: Sequence[float]) -> Spread:
    low, high = np.percentile(values, [25, 75])
    return float(low), float(high)
