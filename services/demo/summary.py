"""From records and snapshots to a demo's result rows and verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evospec.bench.results import shown_name
from evospec.bench.summary import acceptance_by_position, quartiles
from evospec.config import Config
from services.demo.results import DemoRun, RequestRecord, Rollout
from services.demo.timeline import Snapshot, Timeline

MIN_VERSIONS = 2


def summarise(
    records: Sequence[RequestRecord], timeline: Timeline, config: Config, concurrency: int
) -> tuple[DemoRun, ...]:
    """One row per topic and round that answered at least one request, in order of time."""
    segments: dict[tuple[int, str], list[RequestRecord]] = {}
    for record in sorted(records, key=lambda record: record.started_s):
        segments.setdefault((record.round, record.topic), []).append(record)
    return tuple(
        _run(own, timeline, config, concurrency)
        for own in segments.values()
        if not all(record.failed for record in own)
    )


def _run(records: Sequence[RequestRecord], timeline: Timeline, config: Config, concurrency: int) -> DemoRun:
    answered = [record for record in records if not record.failed]
    start_s, end_s = records[0].started_s, max(record.finished_s for record in records)
    counters = timeline.between(start_s, end_s)
    speeds = [record.tokens_per_s for record in answered]
    tokens, cycles = sum(record.tokens for record in answered), sum(record.cycles for record in answered)
    drafter = config.model.drafter
    engine_cycles = max(counters.cycles, 1)
    return DemoRun(
        target=shown_name(config.model.target),
        drafter=None if drafter is None else shown_name(drafter),
        policy=config.vocabulary.policy,
        arm="lora" if config.alignment.enabled else "none",
        domain=records[0].topic,
        round=records[0].round,
        batch=concurrency,
        tokens=tokens,
        cycles=cycles,
        tokens_per_s=float(np.median(speeds)),
        # The token that prompt processing yields belongs to no cycle.
        acceptance_length=(tokens - len(answered)) / cycles if cycles else 1.0,
        acceptance_by_position=acceptance_by_position(counters),
        active_rows=_mean_rows([one for one in timeline.snapshots if start_s <= one.time_s <= end_s]),
        coverage=counters.coverage,
        draft_ms=1000 * counters.draft_seconds / engine_cycles,
        verify_ms=1000 * counters.verify_seconds / engine_cycles,
        peak_memory_mb=None,
        identical_to_plain=None,
        prompts=len(records),
        seconds=end_s - start_s,
        tokens_per_s_quartiles=quartiles(speeds),
        requests_failed=len(records) - len(answered),
    )


def shortcomings(
    records: Sequence[RequestRecord], planned: int, rollouts: Sequence[Rollout]
) -> tuple[str, ...]:
    """What the demo was to show and did not; each one line."""
    problems = []
    failed = [record for record in records if record.failed]
    if failed:
        problems.append(f"{len(failed)} of {planned} requests failed, the first with: {failed[0].error}")
    if len(records) < planned:
        problems.append(f"only {len(records)} of {planned} requests were sent")
    if len(rollouts) < MIN_VERSIONS:
        problems.append(
            f"{len(rollouts)} adapter versions reached all replicas, at least {MIN_VERSIONS} should have"
        )
    return tuple(problems)


def _mean_rows(snapshots: Sequence[Snapshot]) -> float:
    rows = [engine.active_rows for snapshot in snapshots for engine in snapshot.engines.values()]
    return float(np.mean(rows)) if rows else 0.0
