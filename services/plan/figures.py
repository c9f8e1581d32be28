"""The figures that a plan rests on, each with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["measured", "published", "assumed"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that a plan was made with.

    Attributes:
        value: in `unit`.
        kind: `measured` by us, `published` by others, or `assumed`: then a measurement should replace it.
        source: of measured ones, words of docs/measurements.md that the value stands in, or follows from.
    """

    value: float
    unit: str
    meaning: str
    kind: Kind
    source: str


PLAIN_H200: Final = Figure(
    0.70,
    "ms",
    "a pass of Qwen2.5-Coder-0.5B over one token, H200",
    "measured",
    "plain decoding took 0.73 ms a token (0.67 on the best host so far)",
)
PLAIN_H100: Final = Figure(
    0.82,
    "ms",
    "the same, H100",
    "measured",
    "0.82 to 0.83 ms, 1,200 tokens/s: **met**",
)
COPY_SHARE: Final = Figure(
    4.3 / 4.8,
    "of the data sheet's bandwidth",
    "what an H200 copies at; the H100's 3.0 of 3.35 TB/s is the same share",
    "measured",
    "memory that copies at 4.3 TB/s instead of 3.0",
)
CYCLE_1: Final = Figure(
    1.14,
    "ms",
    "a cycle with a chain of 5 and 4,096 rows, one request, H200",
    "measured",
    "| a cycle with chain 5 and 4,096 rows ≤ 1.5 ms | 1.12 to 1.14 ms: **met** |",
)
CYCLE_32: Final = Figure(
    2.07,
    "ms",
    "the same, 32 requests",
    "measured",
    "a cycle of 32 rows takes 2.07 ms with drafts of five",
)
PLAIN_32: Final = Figure(
    1.05,
    "ms",
    "a pass over one token of each of 32 requests, H200",
    "measured",
    "with drafts of five and 1.05 ms without",
)
DRAFT_1: Final = Figure(
    0.25,
    "ms",
    "five draft steps, one request, H200",
    "measured",
    "drafting takes 0.25 ms (layers 0.17, head 0.08)",
)
PROMPT: Final = Figure(
    53.5 / 32,
    "ms",
    "a short prompt between two cycles, H200 (32 of them: 52 to 55 ms)",
    "measured",
    "whose first tokens come after 52 to 55 ms",
)
SHARE_ALONE: Final = Figure(
    0.97,
    "of what cycles promise",
    "tokens/s of whole requests, one at a time",
    "measured",
    "decode speed is within 4 % of what τ and cycle predict",
)
SHARE_TOGETHER: Final = Figure(
    0.75,
    "of what cycles and prompts promise",
    "tokens/s of whole turns, 8 at once and more: learning, joining and leaving take the rest",
    "measured",
    "| **share of it** | 0.73 | 0.74 | 0.74 | 0.80 |",
)
ACCEPTANCE: Final = Figure(
    3.0,
    "tokens a cycle",
    "τ unless --acceptance says otherwise; the shipped drafters have 2.5 to 3.6 by domain",
    "assumed",
    "the middle of what was measured for the shipped drafters; measure your own traffic's",
)
TRACING_COST: Final = Figure(
    0.024,
    "of the cycles",
    "what making 5 MB/s of traces takes from a replica",
    "measured",
    "**0.976** (0.87 to 0.99)",
)
STEP: Final = Figure(
    43.4,
    "ms",
    "a training step of 8 traces, LoRA rank 64, Qwen2.5-Coder-0.5B's drafter, H200",
    "measured",
    "lora 806 MB and 43.4 ms a step",
)
STEP_MEMORY: Final = Figure(
    806.0, "MB", "an update's peak beside weights", "measured", "lora 806 MB and 43.4 ms a step"
)
GATE_STEPS: Final = Figure(
    2.0, "steps' time", "a gate over 32 held-out traces, once a version", "assumed", "not measured by itself"
)
TRACE_READ: Final = Figure(
    1.5,
    "ms of one core",
    "reading and checking a trace of 0.97 MB in the aligner",
    "measured",
    "reading and checking a trace of 0.97 MB takes 1.3 to 1.9 ms",
)
CONTEXT_READ: Final = Figure(
    3.0,
    "ms of one core",
    "grouping the contexts anew, once for each traced request",
    "measured",
    "A new request costs 3 ms of the aligner's CPU",
)
GRAPH_MEMORY: Final = Figure(
    312.0,
    "MiB",
    "an engine's memory over weights and KV, `drafting: auto`",
    "measured",
    "auto 502 → **312** (aim 300)",
)
MEMORY_SHARE: Final = Figure(
    0.9, "of a GPU's memory", "what is used; the rest is CUDA's and fragments", "assumed", "our own choice"
)
INDEX_FIXED: Final = Figure(
    4.0,
    "ms of one core",
    "a look-up in the embedded index, whatever its size",
    "measured",
    "| 1,000, 576 | 5 / 6 | 38 / 48 |",
)
INDEX_PER_POINT: Final = Figure(
    1.0,
    "µs of one core",
    "the same, for each point of 576 dimensions",
    "measured",
    "| 20,000, 576 | 24 / 27 | 187 / 196 |",
)
INDEX_SERVER: Final = Figure(
    2000.0,
    "calls/s",
    "look-ups and writes that one Qdrant server answers",
    "assumed",
    "no Qdrant server was measured: load-test yours",
)
INDEX_FACTOR: Final = Figure(
    1.5,
    "times the vectors' bytes",
    "a collection's vectors with their graph in memory",
    "published",
    "qdrant.tech/documentation/guides/capacity-planning",
)
JSON_FLOAT: Final = Figure(
    20.0, "bytes", "a number of a vector, sent by REST", "assumed", "17 digits, sign, point and comma"
)
PIECE: Final = Figure(
    0.5,
    "ms of one core",
    "passing on one piece of a streamed answer",
    "published",
    "Ray Serve's streaming through the proxy, as its users report; not measured on a large machine",
)
REDIS_CALLS: Final = Figure(
    50_000.0,
    "calls/s",
    "small calls that one Redis server answers",
    "published",
    "redis.io/docs/latest/operate/oss_and_stack/management/optimization/benchmarks, and half of it",
)

EVERY: Final = (
    PLAIN_H200,
    PLAIN_H100,
    COPY_SHARE,
    CYCLE_1,
    CYCLE_32,
    PLAIN_32,
    DRAFT_1,
    PROMPT,
    SHARE_ALONE,
    SHARE_TOGETHER,
    ACCEPTANCE,
    TRACING_COST,
    STEP,
    STEP_MEMORY,
    GATE_STEPS,
    TRACE_READ,
    CONTEXT_READ,
    GRAPH_MEMORY,
    MEMORY_SHARE,
    INDEX_FIXED,
    INDEX_PER_POINT,
    INDEX_SERVER,
    INDEX_FACTOR,
    JSON_FLOAT,
    PIECE,
    REDIS_CALLS,
)
