"""Where a cycle's time goes, measured apart from the timed turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter
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

    def stop(self) -> dict[CyclePart, float] | None:
        """Seconds per part since `start`, which together are all of it; None when it can't be trusted."""
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
    """On the device parts are told by events; what is left of the host's time is `host`.

    Marks within a CUDA graph become nodes of it, recorded anew at each replay. Which graphs a
    step replayed is seen by the times: an event that lies before the step's beginning is of
    another.

    Learning runs on the host while the device is busy with the cycle: only what the device is
    kept from by it counts. `vocabulary` is the time between the end of the target's pass and the end
    of the row update behind it: writing rows, and waiting for bookkeeping that takes longer than the
    pass. `host` is the rest of the step, in which the device has nothing to do.
    """

    def __init__(self) -> None:
        self._captured: list[_Mark] = []
        self._live: list[_Mark] = []
        self._began = _new_event()
        self._wall = 0.0
        self._disturbed = False

    def start(self) -> None:
        torch.cuda.synchronize()
        self._live.clear()
        self._disturbed = False
        self._began = _new_event()
        self._began.record()
        self._wall = perf_counter()

    def mark(self, part: CyclePart) -> None:
        if torch.cuda.is_current_stream_capturing():
            event = _new_event(external=True)
            event.record()
            self._captured.append(_Mark(part, event))
            self._disturbed = True  # a step that captures takes far longer than any other
            return
        event = _new_event()
        event.record()
        self._live.append(_Mark(part, event))

    def stop(self) -> dict[CyclePart, float] | None:
        torch.cuda.synchronize()
        wall = perf_counter() - self._wall
        if self._disturbed:
            return None
        seconds: dict[CyclePart, float] = dict.fromkeys(_PARTS, 0.0)
        timeline = sorted(
            ((self._at(mark), mark.part) for mark in (*self._captured, *self._live)),
            key=itemgetter(0),
        )
        ours = [entry for entry in timeline if entry[0] >= 0]
        for (began, part), (ended, _) in pairwise(ours):
            seconds[part] += ended - began
        seconds["host"] = wall - sum(value for part, value in seconds.items() if part != "host")
        return seconds

    def _at(self, mark: _Mark) -> float:
        return self._began.elapsed_time(mark.event) / 1000


def _new_event(*, external: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True, external=external)


def new_stopwatch(device: torch.device) -> CycleStopwatch:
    return CudaStopwatch() if device.type == "cuda" else HostStopwatch()


def profile(
    engine: WatchedEngine, retrieval: RetrievalPump, batches: Sequence[Batch], device: torch.device
) -> Breakdown | None:
    """Decodes batches once more, under a stopwatch; nothing of it goes to traces or index.

    Only steps with a cycle and no prompt count. None when there was none.
    """
    stopwatch = new_stopwatch(device)
    cycles: list[dict[CyclePart, float]] = []
    engine.watch(stopwatch)
    for batch in batches:
        for request in batch.requests:
            engine.admit(replace(request, trace=False))
        while engine.has_work:
            prompts, before = engine.stats.prompt_tokens, engine.stats.cycles
            stopwatch.start()
            engine.step()
            seconds = stopwatch.stop()
            decoded = engine.stats.prompt_tokens == prompts and engine.stats.cycles > before
            if decoded and seconds is not None:
                cycles.append(seconds)
            retrieval.run()
    engine.watch(NO_STOPWATCH)
    if not cycles:
        return None
    mean = {f"{part}_ms": 1000 * sum(cycle[part] for cycle in cycles) / len(cycles) for part in _PARTS}
    return Breakdown(cycles=len(cycles), **mean)
