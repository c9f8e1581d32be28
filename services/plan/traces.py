"""What replicas record, and how much of it reaches the aligner."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evospec.align.recorder import FEWEST_SCORED
from evospec.align.trace_limits import TraceLimits, forms_of
from evospec.config import AlignmentConfig
from evospec.wire import Fingerprints
from services.plan.question import Question
from services.plan.shapes import TAPS, ModelShape

_NAMES = Fingerprints(target="", drafter="", tokenizer="")


@dataclass(frozen=True, slots=True)
class RequestTraces:
    """Of one request: how many, and their bytes."""

    count: int
    nbytes: float


@dataclass(frozen=True, slots=True)
class TracePlan:
    """
    Attributes:
        per_request: traces of a traced request, `mb_per_request` all together.
        recorded_share: of the requests; the budget of replicas leaves out the others.
        replica_mb_s: what a replica sends; `mb_s` all of them.
    """

    per_request: int
    mb_per_request: float
    recorded_share: float
    requests_per_s: float
    traces_per_s: float
    replica_mb_s: float
    mb_s: float


def request_traces(shape: ModelShape, config: AlignmentConfig, prompt: float, answer: float) -> RequestTraces:
    """Windows of a request of so many tokens, as `evospec.align.recorder` cuts them."""
    limits = _limits(shape, config)
    width, context = config.trace_positions, config.trace_positions // 4
    start, unscored, left = math.ceil(prompt) - 1, min(context, math.ceil(prompt) - 1), math.ceil(answer)
    start -= unscored
    count, total = 0, 0
    while left > 0:
        scored = min(left, width - unscored)
        if count and scored < FEWEST_SCORED:
            break
        past = min(start, config.trace_past)
        forms = forms_of(unscored + scored, past, limits, config.trace_features == "int8")
        total += sum(form.nbytes for form in forms.values())
        count, left = count + 1, left - scored
        start, unscored = start + unscored + scored - context, context
    return RequestTraces(count, total)


def plan_traces(question: Question, replicas: int) -> TracePlan:
    """Of the load that is shared out to so many replicas alike."""
    config, load = question.config.alignment, question.load
    each = request_traces(question.shape, config, load.prompt_tokens, load.answer_tokens)
    wanted = question.traced * load.requests_per_s / replicas if config.enabled else 0.0
    budget = config.trace_mb_per_s * 2**20
    recorded = min(wanted, budget / each.nbytes)
    return TracePlan(
        per_request=each.count,
        mb_per_request=each.nbytes / 1e6,
        recorded_share=recorded * replicas / load.requests_per_s,
        requests_per_s=recorded * replicas,
        traces_per_s=recorded * replicas * each.count,
        replica_mb_s=recorded * each.nbytes / 1e6,
        mb_s=recorded * replicas * each.nbytes / 1e6,
    )


def _limits(shape: ModelShape, config: AlignmentConfig) -> TraceLimits:
    return TraceLimits(
        vocab_size=shape.vocab,
        feature_size=TAPS * shape.hidden,
        top_k=config.trace_top_k,
        max_positions=config.trace_positions,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        context_size=shape.hidden,
        max_past=config.trace_past,
        max_length=2**31,
        fingerprints=_NAMES,
    )
