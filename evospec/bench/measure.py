"""One timed turn: a batch of requests decoded by one arm."""

from __future__ import annotations

from collections import Counter
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
    def has_requests(self) -> bool: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def captures(self) -> int: ...
    def admit(self, request: Request) -> None: ...
    def step(self) -> list[StepOutput]: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of one domain that are decoded together; `number` is its place in the run."""

    number: int
    domain: str
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Covered:
    """Tokens of one step that were active when they were drafted, of all that could have been."""

    tokens: int
    of: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What one arm did with one batch.

    Attributes:
        outputs: emitted token ids per request of the batch.
        elapsed: of the whole turn.
        prompt_seconds: of `elapsed`, what processing the prompts took.
        first_token_seconds: from the turn's beginning, per request.
        last_token_seconds: the same of the last token.
        first_tokens: tokens that prompt processing emitted, of all requests.
        counters: growth of the engine's counters.
        row_cycles: active rows summed over cycles.
        request_cycles: running requests summed over cycles.
        key_cycles: tokens known summed over cycles and requests: the keys that attention reads.
        transient_mb: what was allocated on a CUDA device for a while; None elsewhere.
        captures: CUDA graphs captured meanwhile.
        learning_seconds: what was left to learn from took, after the last token.
        coverage: of the steps in which tokens were held against the active rows, in order.
    """

    arm: str
    batch: Batch
    outputs: tuple[tuple[int, ...], ...]
    elapsed: Elapsed
    prompt_seconds: float
    first_token_seconds: tuple[float, ...]
    last_token_seconds: tuple[float, ...]
    first_tokens: int
    counters: EngineStats
    row_cycles: int
    request_cycles: int
    key_cycles: int
    peak_memory_mb: float
    transient_mb: float | None = None
    captures: int = 0
    learning_seconds: float = 0.0
    coverage: tuple[Covered, ...] = ()

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

    @property
    def request_speeds(self) -> tuple[float, ...]:
        """Tokens per second of each request, from the batch's beginning to its own last token."""
        pairs = zip(self.outputs, self.last_token_seconds, strict=True)
        return tuple(len(output) / seconds for output, seconds in pairs)


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
        """The time includes prompt processing and retrieval, up to the last token. What is learned after it
        has a time of its own: where requests keep coming, it is learned beside them.
        """
        stats = self.engine.stats
        before, progress, captures = snapshot(stats), _Progress.of(batch), self.engine.captures
        clock = Clock(memory.device)
        memory.restart()
        clock.start()
        for request in batch.requests:
            self.engine.admit(request)
        while self.engine.has_requests:
            # Rows change at the end of a step: those at its beginning are what it scores.
            rows, cycles, decoding = stats.active_rows, stats.cycles, _decode_seconds(stats)
            covered, coverable = stats.covered_tokens, stats.coverable_tokens
            outputs = self.engine.step()
            # A step's cycle comes after the first tokens of its prompt.
            now = clock.glance()
            first_at = now - (_decode_seconds(stats) - decoding)
            progress.take(outputs, first_at, now, cycled=stats.cycles > cycles)
            progress.row_cycles += rows * (stats.cycles - cycles)
            if stats.coverable_tokens > coverable:
                step = Covered(stats.covered_tokens - covered, stats.coverable_tokens - coverable)
                progress.coverage.append(step)
            self.retrieval.run()
        elapsed = clock.read()
        while self.engine.has_work:
            self.engine.step()
            self.retrieval.run()
        counters = growth(before, stats)
        return Turn(
            arm=self.name.text,
            batch=batch,
            outputs=tuple(tuple(tokens) for tokens in progress.outputs.values()),
            elapsed=elapsed,
            prompt_seconds=counters.prefill_seconds,
            first_token_seconds=tuple(progress.first_seconds.values()),
            last_token_seconds=tuple(progress.last_seconds.values()),
            first_tokens=len(batch.requests),
            counters=counters,
            row_cycles=progress.row_cycles,
            request_cycles=progress.request_cycles,
            key_cycles=progress.key_cycles,
            peak_memory_mb=memory.read_mb(),
            transient_mb=memory.transient_mb(),
            captures=self.engine.captures - captures,
            learning_seconds=clock.glance() - elapsed.wall,
            coverage=tuple(progress.coverage),
        )


@dataclass(slots=True)
class _Progress:
    """What a turn has yielded so far; requests by id, in the order of the batch."""

    known: dict[str, int]
    outputs: dict[str, list[int]]
    first_seconds: dict[str, float] = field(default_factory=dict)
    last_seconds: dict[str, float] = field(default_factory=dict)
    coverage: list[Covered] = field(default_factory=list)
    row_cycles: int = 0
    request_cycles: int = 0
    key_cycles: int = 0

    @classmethod
    def of(cls, batch: Batch) -> _Progress:
        return cls(
            {request.id: len(request.prompt_ids) for request in batch.requests},
            {request.id: [] for request in batch.requests},
            {request.id: 0.0 for request in batch.requests},
            {request.id: 0.0 for request in batch.requests},
        )

    def take(self, outputs: Sequence[StepOutput], first_at: float, now: float, *, cycled: bool) -> None:
        """Args: first_at: when prompts' tokens came out, `now`: when the cycle's did."""
        for request_id, count in Counter(output.request_id for output in outputs).items():
            cycles = count  # one output each: a cycle under way may have ended in this step, too
            if not self.outputs[request_id]:
                self.first_seconds[request_id] = first_at
                cycles = max(1, count - 1)  # the prompt's token is of none
            self.last_seconds[request_id] = now
            if cycled:
                self.request_cycles += cycles
                self.key_cycles += cycles * self.known[request_id]
        for output in outputs:
            self.outputs[output.request_id].extend(output.tokens)
            self.known[output.request_id] += len(output.tokens)


def _decode_seconds(stats: EngineStats) -> float:
    return stats.draft_seconds + stats.verify_seconds
