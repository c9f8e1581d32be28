"""One timed turn: a batch of requests decoded by one policy's engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from evospec.bench.memory import PeakMemory
from evospec.engine.counters import growth, snapshot
from evospec.engine.request import Request, StepOutput
from evospec.engine.retrieval import RetrievalPump
from evospec.engine.stats import EngineStats


class BenchEngine(Protocol):
    """What a turn needs of `evospec.engine.engine.Engine`."""

    @property
    def stats(self) -> EngineStats: ...
    @property
    def has_work(self) -> bool: ...
    def admit(self, request: Request) -> None: ...
    def step(self) -> list[StepOutput]: ...


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy under test: its engine, which keeps what it learns, and its retrieval."""

    policy: str
    engine: BenchEngine
    retrieval: RetrievalPump


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of one domain that are decoded together; `number` is its place in the run."""

    number: int
    domain: str
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one arm did with one batch.

    Attributes:
        outputs: emitted token ids per request of the batch.
        counters: growth of the engine's counters.
        row_cycles: active rows summed over cycles.
    """

    policy: str
    batch: Batch
    outputs: tuple[tuple[int, ...], ...]
    seconds: float
    counters: EngineStats
    row_cycles: int
    peak_memory_mb: float

    @property
    def tokens(self) -> int:
        return sum(len(output) for output in self.outputs)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def interleave(arms: Sequence[Arm], batches: Sequence[Batch], memory: PeakMemory) -> Iterator[Turn]:
    """Runs every batch on each arm in turn (A B C A B C …), so that drift of the machine hits all alike."""
    for batch in batches:
        for arm in arms:
            yield run_turn(arm, batch, memory)


def run_turn(arm: Arm, batch: Batch, memory: PeakMemory) -> Turn:
    """Decodes a batch to its end; the time includes prompt processing and retrieval."""
    engine, stats = arm.engine, arm.engine.stats
    outputs: dict[str, list[int]] = {request.id: [] for request in batch.requests}
    before = snapshot(stats)
    row_cycles = 0
    memory.restart()
    began = perf_counter()
    for request in batch.requests:
        engine.admit(request)
    while engine.has_work:
        # Rows change at the end of a step: those at its beginning are what it scores.
        rows, cycles = stats.active_rows, stats.cycles
        for output in engine.step():
            outputs[output.request_id].extend(output.tokens)
        row_cycles += rows * (stats.cycles - cycles)
        arm.retrieval.run()
    seconds = perf_counter() - began
    return Turn(
        policy=arm.policy,
        batch=batch,
        outputs=tuple(tuple(outputs[request.id]) for request in batch.requests),
        seconds=seconds,
        counters=growth(before, stats),
        row_cycles=row_cycles,
        peak_memory_mb=memory.read_mb(),
    )
