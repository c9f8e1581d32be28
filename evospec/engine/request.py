"""A request as the engine sees it: token ids in, token ids out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from evospec.decoding.sampling import SamplingParams
from evospec.engine.token_scores import TokenScore

__all__ = ["FinishReason", "Request", "SamplingParams", "StepOutput"]

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue.

    `tenant` partitions what the semantic and the statistical index learn. `trace` False keeps the
    request out of traces and indexes. `logprobs` asks for the target's log-probability of each token,
    and of so many of the best tokens at its place.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tenant: str = ""
    trace: bool = True
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one cycle yielded for one request.

    Attributes:
        tokens: emitted token ids, end-of-sequence included; empty on cancellation.
        drafted: draft tokens verified in this cycle; 0 for the token that prefill yields.
        accepted: how many of them were accepted.
        finish_reason: set on the request's last output.
        first_accepted: whether the drafter's best guess for the first token was accepted, which
            means the same for chains of any length and for trees.
        scores: of each of the tokens, where the request asks for log-probabilities.
        covered: whether each token was among the active rows; what is not can't have been drafted.
    """

    request_id: str
    tokens: tuple[int, ...]
    drafted: int = 0
    accepted: int = 0
    finish_reason: FinishReason | None = None
    first_accepted: bool = False
    scores: tuple[TokenScore, ...] = ()
    covered: tuple[bool, ...] = ()
