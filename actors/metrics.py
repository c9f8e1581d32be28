"""A replica's counters as Prometheus metrics, under vLLM's names where vLLM has one.

Ray exports them with `ray_` in front and tags each with deployment and replica.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from ray.serve.metrics import Counter, Gauge

from actors.status import ReplicaStatus


@dataclass(frozen=True, slots=True)
class Series:
    """One value of a replica's status and the name it is exported under."""

    name: str
    description: str
    read: Callable[[ReplicaStatus], float]


@dataclass(frozen=True, slots=True)
class PositionSeries:
    """A counter per draft position."""

    name: str
    description: str
    read: Callable[[ReplicaStatus], list[int]]


COUNTERS = (
    Series("prompt_tokens", "Prompt tokens processed.", lambda s: s.engine.prompt_tokens),
    Series(
        "evospec_reused_prompt_tokens",
        "Prompt tokens not processed, because an earlier request began alike.",
        lambda s: s.engine.reused_prompt_tokens,
    ),
    Series("generation_tokens", "Tokens generated.", lambda s: s.engine.emitted_tokens),
    Series("request_success", "Requests that ran to their end.", lambda s: s.engine.requests_finished),
    Series("request_cancelled", "Requests given up by their client.", lambda s: s.engine.requests_cancelled),
    Series(
        "spec_decode_num_drafts", "Drafts verified, one per request and cycle.", lambda s: s.engine.drafts
    ),
    Series("spec_decode_num_draft_tokens", "Draft tokens verified.", lambda s: s.engine.draft_tokens),
    Series("spec_decode_num_accepted_tokens", "Draft tokens accepted.", lambda s: s.engine.accepted_tokens),
    Series("evospec_cycles", "Draft-and-verify rounds.", lambda s: s.engine.cycles),
    Series("evospec_covered_tokens", "Emitted tokens that were active.", lambda s: s.engine.covered_tokens),
    Series("evospec_coverable_tokens", "Emitted tokens that could be.", lambda s: s.engine.coverable_tokens),
    Series(
        "evospec_vocabulary_rows_changed", "Active rows changed.", lambda s: s.engine.vocabulary_rows_changed
    ),
    Series("evospec_adapter_swaps", "Adapter versions applied.", lambda s: s.engine.adapter_swaps),
    Series("evospec_draft_seconds", "Time spent drafting.", lambda s: s.engine.draft_seconds),
    Series("evospec_verify_seconds", "Time spent verifying.", lambda s: s.engine.verify_seconds),
    Series("evospec_prefill_seconds", "Time spent on prompts.", lambda s: s.engine.prefill_seconds),
    Series(
        "evospec_requests_untraced",
        "Requests not traced, because recording was behind or over its budget.",
        lambda s: s.engine.requests_untraced,
    ),
    Series("evospec_traces_sent", "Traces that reached the aligner.", lambda s: s.traces.sent),
    Series("evospec_traces_dropped", "Traces lost.", lambda s: s.traces.dropped),
    Series("evospec_index_lookups", "Look-ups in the token index.", lambda s: s.index.lookups),
    Series("evospec_index_hits", "Look-ups that found tokens.", lambda s: s.index.hits),
    Series("evospec_index_failures", "Calls that failed or came late.", lambda s: s.index.failures),
    Series("evospec_index_skipped", "Look-ups not made.", lambda s: s.index.skipped),
    Series("evospec_registry_failures", "Registry calls that failed.", lambda s: s.weights.registry_failures),
    Series("evospec_adapter_rollbacks", "Swaps to a lower version.", lambda s: s.weights.rollbacks),
    Series(
        "evospec_adapters_missing",
        "Polls of the registry that found the wanted adapter version gone.",
        lambda s: s.weights.missing,
    ),
    Series("evospec_adapters_refused", "Adapter versions refused.", lambda s: s.weights.refused),
)
GAUGES = (
    Series("num_requests_running", "Requests being decoded.", lambda s: s.engine.running),
    Series("num_requests_waiting", "Requests waiting for a slot.", lambda s: s.engine.waiting),
    Series(
        "evospec_active_rows", "Rows of the LM head that the drafter scores.", lambda s: s.engine.active_rows
    ),
    Series("evospec_vocabulary_epoch", "Changes of the active rows.", lambda s: s.engine.vocabulary_epoch),
    Series("evospec_adapter_version", "Adapter version that drafts.", lambda s: s.engine.adapter_version),
)
PER_POSITION = (
    PositionSeries(
        "evospec_num_attempted_tokens_per_pos",
        "Drafts checked at a position.",
        lambda s: s.engine.attempted_per_position,
    ),
    PositionSeries(
        "spec_decode_num_accepted_tokens_per_pos",
        "Drafts accepted at a position.",
        lambda s: s.engine.accepted_per_position,
    ),
)


class ReplicaMetrics:
    """Publishes the growth of a replica's counters since the last call.

    Label values are bounded: one model name, one position per draft token.
    """

    def __init__(self, model: str) -> None:
        self._tags = {"model_name": model}
        self._gauges = [Gauge(series.name, series.description, ("model_name",)) for series in GAUGES]
        self._counters = [_Growing(series.name, series.description) for series in COUNTERS]
        self._positions = [
            _Growing(series.name, series.description, ("position",)) for series in PER_POSITION
        ]

    def publish(self, status: ReplicaStatus) -> None:
        for series, gauge in zip(GAUGES, self._gauges, strict=True):
            gauge.set(series.read(status), self._tags)
        for series, counter in zip(COUNTERS, self._counters, strict=True):
            counter.reach(series.read(status), self._tags)
        for positions, counter in zip(PER_POSITION, self._positions, strict=True):
            for position, count in enumerate(positions.read(status)):
                counter.reach(count, {**self._tags, "position": str(position)})


class _Growing:
    """A counter set by its total: Ray's only know increments."""

    def __init__(self, name: str, description: str, labels: tuple[str, ...] = ()) -> None:
        self._counter = Counter(
            name, description, cast("tuple[str]", ("model_name", *labels))
        )  # any number, in truth
        self._totals: dict[str, float] = {}

    def reach(self, total: float, tags: dict[str, str]) -> None:
        key = tags.get("position", "")
        grown = total - self._totals.get(key, 0.0)
        if grown > 0:  # Ray refuses to add nothing
            self._counter.inc(grown, tags)
            self._totals[key] = total
