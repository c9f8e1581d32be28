"""What a load run leaves in results.json."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, JsonValue

from evospec.bench.record import Record
from evospec.bench.results import FILE_NAME, SCHEMA, Machine


class Percentiles(Record):
    """Of some values; p50 is the median. Between two values, percentiles are interpolated linearly."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    largest: float


class LoadRequest(Record):
    """A request as its client saw it; times are in seconds since the run began.

    Attributes:
        due_s: when it was to be sent; started_s: when it was.
        first_token_s: when its first text came; None without any.
        status: HTTP status, 0 without an answer.
        tokens: by the endpoint's count; pieces of text where it has none.
        cycles: EvoSpec's extension of `usage`; so are `drafted` and `accepted`. 0 elsewhere.
        gaps_ms: between pieces of text. Not in the file.
        error: why it failed.
    """

    prompt: str
    domain: str
    due_s: float
    started_s: float
    first_token_s: float | None
    finished_s: float
    status: int
    prompt_tokens: int = 0
    tokens: int = 0
    cycles: int = 0
    drafted: int = 0
    accepted: int = 0
    gaps_ms: tuple[float, ...] = Field((), exclude=True)
    error: str | None = None

    @property
    def failed(self) -> bool:
        return self.error is not None

    @property
    def ttft_ms(self) -> float | None:
        """To the first text, from when the request was due; so is `latency_ms`, to its end."""
        return None if self.first_token_s is None else (self.first_token_s - self.due_s) * 1e3

    @property
    def latency_ms(self) -> float:
        return (self.finished_s - self.due_s) * 1e3

    @property
    def token_ms(self) -> float | None:
        """Mean time per token behind the first; None without a second."""
        if self.first_token_s is None or self.tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) * 1e3 / (self.tokens - 1)

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per cycle; the token that prompt processing yields belongs to none."""
        return (self.tokens - 1) / self.cycles if self.cycles else None


class LoadRun(Record):
    """One domain, or all of them together.

    Attributes:
        seconds: from the first request that was due to the last answer.
        tokens: of answers that were complete; so are all figures below but `failed`.
        tokens_per_s: all requests together; requests_per_s likewise.
        ttft_ms: from when a request was due to its first text; None when not streamed.
        gap_ms: between two pieces of text, over all requests; None when not streamed.
        token_ms: per request, mean time per token behind the first; None when not streamed.
        latency_ms: from when a request was due to its end.
        late_ms: sent after it was due: what the load generator itself adds.
        acceptance_length: tokens per cycle; None where the endpoint doesn't tell.
        acceptance_rate: share of the draft tokens that were accepted; likewise.
    """

    domain: str
    requests: int
    failed: int
    seconds: float
    prompt_tokens: int
    tokens: int
    tokens_per_s: float
    requests_per_s: float
    ttft_ms: Percentiles | None
    gap_ms: Percentiles | None
    token_ms: Percentiles | None
    latency_ms: Percentiles | None
    late_ms: Percentiles | None
    acceptance_length: float | None
    acceptance_rate: float | None


class Failure(Record):
    """Requests that failed alike; status 0: no answer."""

    status: int
    reason: str
    count: int


class LoadResults(Record):
    """A whole result file. `runs` begins with all domains together."""

    schema_version: int = Field(SCHEMA, alias="schema")
    machine: Machine
    git: str
    settings: dict[str, JsonValue]
    runs: tuple[LoadRun, ...]
    failures: tuple[Failure, ...]
    requests: tuple[LoadRequest, ...]

    @property
    def total(self) -> LoadRun:
        return self.runs[0]

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    def write(self, folder: Path) -> Path:
        path = folder / FILE_NAME
        path.write_text(self.to_json(), encoding="utf-8")
        return path
