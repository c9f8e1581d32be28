"""What passing answers on takes of the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from services.pace import FEW, MOST_S
from services.plan import figures
from services.plan.question import Question


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """
    Attributes:
        pieces_per_s: of streamed answers, and one for each request's beginning.
        most_pieces_per_s: that one gateway process passes on.
        load: of it.
    """

    pieces_per_s: float
    most_pieces_per_s: float
    load: float


def plan_gateway(question: Question, under_way: float) -> GatewayPlan:
    """
    Args:
        under_way: answers, on average; with many, pieces come further apart (`services.pace`).
    """
    chunk_s = question.config.serve.chunk_ms / 1e3
    interval = max(chunk_s, min(chunk_s * under_way / FEW, MOST_S))
    load = question.load
    streaming = (
        load.requests_per_s * load.answer_tokens / question.acceptance
    )  # a cycle yields a piece at most
    if interval:
        streaming = min(streaming, under_way / interval)
    pieces = streaming + load.requests_per_s
    most = 1e3 / figures.PIECE.value
    return GatewayPlan(pieces, most, pieces / most)
