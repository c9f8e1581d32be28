"""Where a cycle's time goes, measured apart from the timed turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter
from statistics import fmean
from time import perf_counter
from typing import Protocol, get_args

import torch

from evospec.bench.measure import Batch, BenchEngine
from evospec.bench.results import Breakdown
from evospec.engine.retrieval import RetrievalPump
from evospec.stopwatch import NO_STOPWATCH, CyclePart, Stopwatch

_PARTS: tuple[CyclePart, ...] = get_args(CyclePart)


class WatchedEngine(BenchEngine, Protocol):
    def watch(self, stopwatch: Stopwatch) -> None: ...


class CycleStopwatch(Stopwatch, Protocol):
    """Measures one step at a time."""

    def start(self) -> None: ...

    def stop(self) -> dict[CyclePart, float]:
        """Seconds per part since `start`; without `host` where only the device's time is told apart."""
        ...


@dataclass(slots=True)
class HostStopwatch:
    """On the CPU work is done when the call returns: the host's clock sees it all."""

    _seconds: dict[CyclePart, float] = field(default_factory=lambda: dict.fromkeys(_PARTS, 0.0))
    _part: CyclePart = "host"
    _since: float = 0.0

    def start(self) -> None:
        self._seconds = dict.fromkeys(_PARTS, 0.0)
        self._part, self._since = "host", perf_counter()

    def mark(self, part: CyclePart) -> None:
        now = perf_counter()
        self._seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def stop(self) -> dict[CyclePart, float]:
        self.mark("host")
        return self._seconds


@dataclass(frozen=True, slots=True)
class _Mark:
    part: CyclePart
    event: torch.cuda.Event


class CudaStopwatch:
    """On the device parts are told by events. The host's own time is not among them: marks take some.

    Marks within a CUDA graph become nodes of it, recorded anew at each replay. Which graphs a
    step replayed is seen by the times: an event that lies before the step's beginning is of
    another.

    Learning runs on the host while the device is busy with the cycle: only what the device is
    kept from by it counts. `vocabulary` is the time between the end of the target's pass and the end
    of the row update behind it: writing rows, and waiting for bookkeeping that takes longer than the
    pass.
    """

    def __init__(self) -> None:
        self._captured: list[_Mark] = []
        self._live: list[_Mark] = []
        self._began = _new_event()

    def start(self) -> None:
        torch.cuda.synchronize()
        self._live.clear()
        self._began = _new_event()
        self._began.record()

    def mark(self, part: CyclePart) -> None:
        if torch.cuda.is_current_stream_capturing():
            event = _new_event(external=True)
            event.record()
            self._captured.append(_Mark(part, event))
            return
        event = _new_event()
        event.record()
        self._live.append(_Mark(part, event))

    def stop(self) -> dict[CyclePart, float]:
        torch.cuda.synchronize()
        seconds: dict[CyclePart, float] = dict.fromkeys(_PARTS, 0.0)
        timeline = sorted(
            ((self._at(mark), mark.part) for mark in (*self._captured, *self._live)),
            key=itemgetter(0),
        )
        ours = [entry for entry in timeline if entry[0] >= 0]
        for (began, part), (ended, _) in pairwise(ours):
            seconds[part] += ended - began
        del seconds["host"]
        return seconds

    def _at(self, mark: _Mark) -> float:
        return self._began.elapsed_time(mark.event) / 1000


def _new_event(*, external: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True, external=external)


def new_stopwatch(device: torch.device) -> CycleStopwatch:
    return CudaStopwatch() if device.type == "cuda" else HostStopwatch()


@dataclass(frozen=True, slots=True)
class TimedCycle:
    """A step with a cycle and nothing else, seconds; parts are None where nobody looked into it."""

    plan: str
    seconds: float
    parts: dict[CyclePart, float] | None


def profile(
    engine: WatchedEngine,
    retrieval: RetrievalPump,
    batches: Mapping[str, Batch],
    warm_up: Batch,
    device: torch.device,
) -> dict[str, Breakdown]:
    """Decodes a batch of each domain twice more, the second time under a stopwatch.

    Nothing of it goes to traces or index. Steps that process a prompt or capture a graph do not
    count; a domain without any other step is left out.

    Args:
        warm_up: is decoded before each pass.
    """
    untimed = _passes(engine, retrieval, batches, warm_up, None)
    stopwatch = new_stopwatch(device)
    engine.watch(stopwatch)
    watched = _passes(engine, retrieval, batches, warm_up, stopwatch)
    engine.watch(NO_STOPWATCH)
    found = {domain: breakdown_of(untimed[domain], watched[domain]) for domain in batches}
    return {domain: breakdown for domain, breakdown in found.items() if breakdown is not None}


def _passes(
    engine: WatchedEngine,
    retrieval: RetrievalPump,
    batches: Mapping[str, Batch],
    warm_up: Batch,
    stopwatch: CycleStopwatch | None,
) -> dict[str, list[TimedCycle]]:
    """The cycles of each domain's batch."""
    list(_decode(engine, retrieval, warm_up, stopwatch))
    return {domain: list(_decode(engine, retrieval, batch, stopwatch)) for domain, batch in batches.items()}


def _decode(
    engine: WatchedEngine, retrieval: RetrievalPump, batch: Batch, stopwatch: CycleStopwatch | None
) -> Iterator[TimedCycle]:
    for request in batch.requests:
        engine.admit(replace(request, trace=False))
    stats = engine.stats
    while engine.has_work:
        prompts, captures, plans = stats.prompt_tokens, engine.captures, dict(stats.cycles_per_plan)
        if stopwatch is not None:
            stopwatch.start()
        began = perf_counter()
        engine.step()
        seconds = perf_counter() - began
        parts = None if stopwatch is None else stopwatch.stop()
        retrieval.run()
        cycled = [plan for plan, count in stats.cycles_per_plan.items() if count > plans.get(plan, 0)]
        if len(cycled) == 1 and stats.prompt_tokens == prompts and engine.captures == captures:
            yield TimedCycle(cycled[0], seconds, parts)


def breakdown_of(untimed: Sequence[TimedCycle], watched: Sequence[TimedCycle]) -> Breakdown | None:
    """Means over the plans of the untimed cycles, as the passes may have drafted differently.

    None when less than half of the untimed cycles drafted as some of the watched ones did.
    """
    counts = Counter(cycle.plan for cycle in untimed)
    shared = {plan: count for plan, count in counts.items() if any(each.plan == plan for each in watched)}
    if not shared or 2 * sum(shared.values()) < len(untimed):
        return None
    seen = {plan: [cycle for cycle in watched if cycle.plan == plan] for plan in shared}
    alone = {plan: [cycle.seconds for cycle in untimed if cycle.plan == plan] for plan in shared}

    def mean_ms(of_plan: Mapping[str, Sequence[float]]) -> float:
        total = sum(count * fmean(of_plan[plan]) for plan, count in shared.items())
        return 1000 * total / sum(shared.values())

    def part_ms(part: CyclePart) -> float:
        return mean_ms({plan: [(cycle.parts or {}).get(part, 0.0) for cycle in seen[plan]] for plan in seen})

    cycle_ms = mean_ms(alone)
    parts = {f"{part}_ms": part_ms(part) for part in _PARTS}
    if not any("host" in (cycle.parts or {}) for cycle in watched):
        parts["host_ms"] = cycle_ms - sum(parts.values())
    watched_ms = mean_ms({plan: [cycle.seconds for cycle in cycles] for plan, cycles in seen.items()})
    return Breakdown(cycles=shared, cycle_ms=cycle_ms, watched_ms=watched_ms, **parts)
