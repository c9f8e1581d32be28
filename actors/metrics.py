"""What a replica counts, as Prometheus metrics.

Under vLLM's names where vLLM has one, without its prefix. Ray exports them with `ray_` in front, and tags
them with deployment and replica. Label values are bounded: one model name, one position per
draft token, one source, one way to draft, one kind of traffic per adapter of the bank.
"""

from __future__ import annotations

from actors.series import Series, counter, gauge
from actors.status import ReplicaStatus


def _by_position(counts: list[int]) -> dict[str, float]:
    return {str(position): count for position, count in enumerate(counts)}


REPLICA: tuple[Series[ReplicaStatus], ...] = (
    counter("prompt_tokens", "Prompt tokens processed.", lambda s: s.engine.prompt_tokens),
    counter(
        "evospec_reused_prompt_tokens",
        "Prompt tokens not processed, because an earlier request began alike.",
        lambda s: s.engine.reused_prompt_tokens,
    ),
    counter("generation_tokens", "Tokens generated.", lambda s: s.engine.emitted_tokens),
    counter("request_success", "Requests that ran to their end.", lambda s: s.engine.requests_finished),
    counter("request_cancelled", "Requests given up by their client.", lambda s: s.engine.requests_cancelled),
    counter(
        "spec_decode_num_drafts", "Drafts verified, one per request and cycle.", lambda s: s.engine.drafts
    ),
    counter("spec_decode_num_draft_tokens", "Draft tokens verified.", lambda s: s.engine.draft_tokens),
    counter("spec_decode_num_accepted_tokens", "Draft tokens accepted.", lambda s: s.engine.accepted_tokens),
    counter("evospec_cycles", "Draft-and-verify rounds.", lambda s: s.engine.cycles),
    counter("evospec_covered_tokens", "Emitted tokens that were active.", lambda s: s.engine.covered_tokens),
    counter("evospec_coverable_tokens", "Emitted tokens that could be.", lambda s: s.engine.coverable_tokens),
    counter(
        "evospec_vocabulary_rows_changed", "Active rows changed.", lambda s: s.engine.vocabulary_rows_changed
    ),
    counter("evospec_adapter_swaps", "Adapter versions applied.", lambda s: s.engine.adapter_swaps),
    counter("evospec_draft_seconds", "Time spent drafting.", lambda s: s.engine.draft_seconds),
    counter("evospec_verify_seconds", "Time spent verifying.", lambda s: s.engine.verify_seconds),
    counter("evospec_prefill_seconds", "Time spent on prompts.", lambda s: s.engine.prefill_seconds),
    counter(
        "evospec_requests_untraced",
        "Requests not traced, because recording was behind or over its budget.",
        lambda s: s.engine.requests_untraced,
    ),
    counter("evospec_traces_sent", "Traces that reached the aligner.", lambda s: s.traces.sent),
    counter("evospec_traces_dropped", "Traces lost.", lambda s: s.traces.dropped),
    counter("evospec_index_lookups", "Look-ups in the token index.", lambda s: s.index.lookups),
    counter("evospec_index_hits", "Look-ups that found tokens.", lambda s: s.index.hits),
    counter("evospec_index_failures", "Calls that failed or came late.", lambda s: s.index.failures),
    counter("evospec_index_skipped", "Look-ups not made.", lambda s: s.index.skipped),
    counter(
        "evospec_registry_failures", "Registry calls that failed.", lambda s: s.weights.registry_failures
    ),
    counter("evospec_adapter_rollbacks", "Swaps to a lower version.", lambda s: s.weights.rollbacks),
    counter(
        "evospec_adapters_missing",
        "Polls of the registry that found the wanted adapter version gone.",
        lambda s: s.weights.missing,
    ),
    counter("evospec_adapters_refused", "Adapter versions refused.", lambda s: s.weights.refused),
    counter(
        "evospec_adapters_not_applied",
        "Swaps that the engine did not get to.",
        lambda s: s.weights.not_applied,
    ),
    counter(
        "evospec_index_breaker_opened",
        "Times that look-ups were suspended.",
        lambda s: s.index.breaker_opened,
    ),
    counter(
        "evospec_index_points_written",
        "Contexts written to the token index.",
        lambda s: s.index.points_written,
    ),
    counter("evospec_draft_plan_switches", "Changes of how to draft.", lambda s: s.engine.plan_switches),
    Series(
        "counter",
        "evospec_num_attempted_tokens_per_pos",
        "Drafts checked at a position.",
        lambda s: _by_position(s.engine.attempted_per_position),
        "position",
    ),
    Series(
        "counter",
        "spec_decode_num_accepted_tokens_per_pos",
        "Drafts accepted at a position.",
        lambda s: _by_position(s.engine.accepted_per_position),
        "position",
    ),
    Series(
        "counter",
        "evospec_cycles_by_plan",
        "Draft-and-verify rounds by how they drafted.",
        lambda s: s.engine.cycles_per_plan,
        "plan",
    ),
    Series(
        "counter",
        "evospec_requests_by_kind",
        "Requests by the kind of traffic whose adapter drafted for them; 0: of no kind.",
        lambda s: {str(kind): count for kind, count in s.engine.requests_per_choice.items()},
        "kind",
    ),
    gauge("num_requests_running", "Requests being decoded.", lambda s: s.engine.running),
    gauge("num_requests_waiting", "Requests waiting for a slot.", lambda s: s.engine.waiting),
    gauge(
        "evospec_active_rows", "Rows of the LM head that the drafter scores.", lambda s: s.engine.active_rows
    ),
    gauge("evospec_vocabulary_epoch", "Changes of the active rows.", lambda s: s.engine.vocabulary_epoch),
    gauge("evospec_adapter_version", "Adapter version that drafts.", lambda s: s.engine.adapter_version),
    gauge("evospec_traces_queued", "Traces that wait to be sent.", lambda s: s.traces.queued),
    Series(
        "gauge",
        "evospec_active_rows_by_source",
        "Active rows by the source that gave them.",
        lambda s: s.engine.rows_by_source,
        "source",
    ),
)
