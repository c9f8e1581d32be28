"""What passing answers on takes of the gateway."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.pace import FEW, MOST_S
from services.plan import figures
from services.plan.question import Question


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """
    Attributes:
        pieces_per_s: of streamed answers, and one for each request's beginning.
        most_pieces_per_s: that the gateways pass on, `serve.gateways` of them.
        load: of these.
        needed: gateways that are no busier than replicas may be; two at least, so that one can be replaced.
    """

    pieces_per_s: float
    most_pieces_per_s: float
    load: float
    needed: int


def plan_gateway(question: Question, under_way: float) -> GatewayPlan:
    """
    Args:
        under_way: answers, on average; with many, pieces come further apart (`services.pace`).
    """
    gateways, chunk_s = question.config.serve.gateways, question.config.serve.chunk_ms / 1e3
    interval = max(chunk_s, min(chunk_s * under_way / gateways / FEW, MOST_S))
    load = question.load
    streaming = (
        load.requests_per_s * load.answer_tokens / question.acceptance
    )  # a cycle yields a piece at most
    if interval:
        streaming = min(streaming, under_way / interval)
    pieces = streaming + load.requests_per_s
    each = 1e3 / figures.PIECE.value
    needed = max(math.ceil(pieces / (each * question.utilisation)), 2)
    return GatewayPlan(pieces, gateways * each, pieces / (gateways * each), needed)
