"""One timed turn: a batch of requests decoded by one arm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evospec.bench.arms import ArmName
from evospec.bench.clock import Clock, Elapsed
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
        elapsed: of the whole turn.
        prompt_seconds: of `elapsed`, what processing the prompts took.
        first_token_seconds: from the turn's beginning, per request.
        first_tokens: tokens that prompt processing emitted, of all requests.
        counters: growth of the engine's counters.
        row_cycles: active rows summed over cycles.
        request_cycles: running requests summed over cycles.
        key_cycles: tokens known summed over cycles and requests: the keys that attention reads.
    """

    arm: str
    batch: Batch
    outputs: tuple[tuple[int, ...], ...]
    elapsed: Elapsed
    prompt_seconds: float
    first_token_seconds: tuple[float, ...]
    first_tokens: int
    counters: EngineStats
    row_cycles: int
    request_cycles: int
    key_cycles: int
    peak_memory_mb: float

    @property
    def tokens(self) -> int:
        return sum(len(output) for output in self.outputs)

    @property
    def seconds(self) -> float:
        return self.elapsed.wall

    @property
    def tokens_per_s(self) -> float:
        """From the prompts to the last token."""
        return self.tokens / self.seconds

    @property
    def decode_tokens_per_s(self) -> float:
        """Without prompt processing and the tokens that it yields; 0 when nothing was left to decode."""
        seconds = self.seconds - self.prompt_seconds
        return (self.tokens - self.first_tokens) / seconds if seconds > 0 else 0.0


class Arm(Protocol):
    """What is compared: our engine in one setting, or a peer."""

    @property
    def name(self) -> ArmName: ...
    def run(self, batch: Batch, memory: PeakMemory) -> Turn:
        """Decodes a batch to its end."""
        ...


def interleave(arms: Sequence[Arm], batches: Sequence[Batch], memory: PeakMemory) -> Iterator[Turn]:
    """Runs every batch on each arm in turn (A B C A B C …), so that drift of the machine hits all alike."""
    for batch in batches:
        for arm in arms:
            yield arm.run(batch, memory)


@dataclass(frozen=True, slots=True)
class EngineArm:
    """Our engine, which keeps what it learns, and its retrieval."""

    name: ArmName
    engine: BenchEngine
    retrieval: RetrievalPump

    def run(self, batch: Batch, memory: PeakMemory) -> Turn:
        """The time includes prompt processing and retrieval."""
        stats = self.engine.stats
        before, progress = snapshot(stats), _Progress.of(batch)
        clock = Clock(memory.device)
        memory.restart()
        clock.start()
        for request in batch.requests:
            self.engine.admit(request)
        while self.engine.has_work:
            # Rows change at the end of a step: those at its beginning are what it scores.
            rows, cycles, decoding = stats.active_rows, stats.cycles, _decode_seconds(stats)
            outputs = self.engine.step()
            # A step's cycle comes after the first tokens of its prompt.
            first_at = clock.glance() - (_decode_seconds(stats) - decoding)
            progress.take(outputs, first_at, cycled=stats.cycles > cycles)
            progress.row_cycles += rows * (stats.cycles - cycles)
            self.retrieval.run()
        elapsed = clock.read()
        counters = growth(before, stats)
        return Turn(
            arm=self.name.text,
            batch=batch,
            outputs=tuple(tuple(tokens) for tokens in progress.outputs.values()),
            elapsed=elapsed,
            prompt_seconds=counters.prefill_seconds,
            first_token_seconds=tuple(progress.first_seconds.values()),
            first_tokens=len(batch.requests),
            counters=counters,
            row_cycles=progress.row_cycles,
            request_cycles=progress.request_cycles,
            key_cycles=progress.key_cycles,
            peak_memory_mb=memory.read_mb(),
        )


@dataclass(slots=True)
class _Progress:
    """What a turn has yielded so far; requests by id, in the order of the batch."""

    known: dict[str, int]
    outputs: dict[str, list[int]]
    first_seconds: dict[str, float] = field(default_factory=dict)
    row_cycles: int = 0
    request_cycles: int = 0
    key_cycles: int = 0

    @classmethod
    def of(cls, batch: Batch) -> _Progress:
        return cls(
            {request.id: len(request.prompt_ids) for request in batch.requests},
            {request.id: [] for request in batch.requests},
            {request.id: 0.0 for request in batch.requests},
        )

    def take(self, outputs: Sequence[StepOutput], first_at: float, *, cycled: bool) -> None:
        for request_id in {output.request_id for output in outputs}:
            if not self.outputs[request_id]:
                self.first_seconds[request_id] = first_at
            if cycled:
                self.request_cycles += 1
                self.key_cycles += self.known[request_id]
        for output in outputs:
            self.outputs[output.request_id].extend(output.tokens)
            self.known[output.request_id] += len(output.tokens)


def _decode_seconds(stats: EngineStats) -> float:
    return stats.draft_seconds + stats.verify_seconds
