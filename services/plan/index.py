"""What look-ups and finished requests take of the token index."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.plan import figures
from services.plan.question import Question
from services.token_payload import TokenWeights

_DAY_S = 86_400.0
_NAME = "0" * 16  # as long as fingerprints are
_HIGHEST_TIME_S = 1e9 + 0.123456


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """
    Attributes:
        lookups_per_s: at admission and every `semantic.refresh_tokens`; `points_per_s` one a request.
        calls_per_s: both, and the search for a twin before each write.
        most_calls_per_s: that the index answers.
        mb_s: both ways, vectors and what is found.
        points: kept; `memory_s` is how much of the traffic they are.
        collection_mb: of them, graph and payloads included.
    """

    lookups_per_s: float
    points_per_s: float
    calls_per_s: float
    most_calls_per_s: float
    mb_s: float
    points: int
    memory_s: float
    collection_mb: float


def plan_index(question: Question) -> IndexPlan:
    config, load = question.config.semantic, question.load
    if not config.enabled:
        return IndexPlan(0, 0, 0, math.inf, 0, 0, 0, 0)
    dim = question.shape.hidden
    lookups = load.requests_per_s * (1 + math.floor(load.answer_tokens / config.refresh_tokens))
    points = load.requests_per_s * question.traced
    kept = math.ceil(min(config.max_points, points * config.max_age_days * _DAY_S))
    payload, vector = payload_bytes(question), dim * figures.JSON_FLOAT.value
    traffic = lookups * (vector + config.neighbours * payload) + points * (2 * vector + payload)
    return IndexPlan(
        lookups_per_s=lookups,
        points_per_s=points,
        calls_per_s=lookups + 2 * points,
        most_calls_per_s=_most_calls(question, kept),
        mb_s=traffic / 1e6,
        points=kept,
        memory_s=kept / points if points else math.inf,
        collection_mb=kept * (4 * dim * figures.INDEX_FACTOR.value + payload) / 1e6,
    )


def payload_bytes(question: Question) -> int:
    """What a full point carries beside its vector, as JSON."""
    count = question.config.semantic.tokens_per_point
    tokens = TokenWeights(tuple(range(question.shape.vocab - count, question.shape.vocab)), (1.0,) * count)
    fields = tokens.to_payload(tenant=_NAME, target=_NAME, time_s=_HIGHEST_TIME_S)
    return sum(len(f'"{name}":"{value}",') for name, value in fields.items())


def _most_calls(question: Question, points: int) -> float:
    if question.hardware.index == "server":
        return figures.INDEX_SERVER.value
    per_point = figures.INDEX_PER_POINT.value * question.shape.hidden / 576
    return 1e3 / (figures.INDEX_FIXED.value + points * per_point / 1e3)
