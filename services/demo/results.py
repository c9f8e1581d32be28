"""What a demo leaves in results.json, beyond what every bench does."""

from __future__ import annotations

from evospec.bench.record import Record
from evospec.bench.results import Results, Run


class DemoRun(Run):
    """One topic in one round. Tokens/s are medians over requests, as their clients saw them."""

    round: int
    requests_failed: int


class RequestRecord(Record):
    """A request as its client saw it; times are in seconds since the traffic began.

    `cycles`, `drafted` and `accepted` are the server's counts. `error` says why it failed.
    """

    prompt: str
    topic: str
    round: int
    started_s: float
    first_token_s: float | None
    finished_s: float
    tokens: int = 0
    cycles: int = 0
    drafted: int = 0
    accepted: int = 0
    adapter_version: int = 0
    error: str | None = None

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / (self.finished_s - self.started_s)

    @property
    def acceptance_length(self) -> float:
        """Tokens per cycle; the token that prompt processing yields belongs to none."""
        return (self.tokens - 1) / self.cycles if self.cycles else 1.0


class ReplicaSample(Record):
    """A replica's counters at one moment."""

    replica: str
    emitted_tokens: int
    cycles: int
    drafts: int
    accepted_tokens: int
    active_rows: int
    vocabulary_epoch: int
    adapter_version: int
    running: int
    waiting: int


class TimelinePoint(Record):
    time_s: float
    replicas: tuple[ReplicaSample, ...]


class Rollout(Record):
    """When the last replica took up a version."""

    version: int
    time_s: float


class AlignerSummary(Record):
    """The aligner's counters at the end, and the tokens per cycle that a candidate had to gain."""

    traces: int
    steps: int
    candidates: int
    rejected: int
    published: int
    min_gain: float


class ControllerSummary(Record):
    """What the rollout controller decided, and why it last did or did not."""

    promoted: int
    revoked: int
    verdict: str


class DemoResults(Results):
    """`problems` is empty when the demo did what it is to show."""

    runs: tuple[DemoRun, ...]
    requests: tuple[RequestRecord, ...]
    timeline: tuple[TimelinePoint, ...]
    rollouts: tuple[Rollout, ...]
    aligner: AlignerSummary | None
    controller: ControllerSummary | None
    index_points: int
    problems: tuple[str, ...]
