"""Whether a policy's output is the target's own: what speed is worth nothing without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evospec.bench.measure import Turn
from evospec.engine.request import Request
from evospec.models.kv_cache import Window
from evospec.models.target import Target

# A bfloat16 number has 8 significant bits, and a logit is the sum of many roundings. Decoding
# SmolLM2-135M with 6 positions a pass, emitted tokens were up to 2.6 units in the last place
# below the best logit of one long pass; the second best token is 12 or more below it at half
# of all positions, a random token 75 or more at every one.
TIE_UNITS = 6
BFLOAT16_UNIT = 2.0**-8
_LOGIT_ROWS = 64  # positions whose full-vocabulary logits are held at once


@dataclass(frozen=True, slots=True)
class Exactness:
    """Verdict over one or more outputs.

    Attributes:
        near_ties: emitted tokens within rounding of the target's first choice, but not it.
        largest_gap: greatest logit difference among them.
        problem: the first output that is not the target's; None when all are.
    """

    near_ties: int = 0
    largest_gap: float = 0.0
    problem: str | None = None

    @property
    def exact(self) -> bool:
        return self.problem is None

    @classmethod
    def of(cls, parts: Sequence[Exactness]) -> Exactness:
        return cls(
            near_ties=sum(part.near_ties for part in parts),
            largest_gap=max((part.largest_gap for part in parts), default=0.0),
            problem=next((part.problem for part in parts if part.problem is not None), None),
        )


class OutputCheck(Protocol):
    """Judges an output that differs from plain decoding's."""

    def __call__(self, request: Request, output: Sequence[int], difference: str) -> Exactness: ...


def compare_turns(turn: Turn, plain: Turn, judge: OutputCheck) -> Exactness:
    """Compares a policy's outputs for a batch with plain decoding's, token by token."""
    parts = []
    for request, output, expected in zip(turn.batch.requests, turn.outputs, plain.outputs, strict=True):
        difference = first_difference(output, expected)
        if difference is not None:
            parts.append(judge(request, output, f"{request.id}: {difference}"))
    return Exactness.of(parts)


def first_difference(output: Sequence[int], expected: Sequence[int]) -> str | None:
    """Where two outputs part, in words; None when they are equal."""
    for place, (one, other) in enumerate(zip(output, expected, strict=False)):
        if one != other:
            return f"output token {place} is {one}, plain decoding's is {other}"
    if len(output) != len(expected):
        return f"output has {len(output)} tokens, plain decoding's has {len(expected)}"
    return None


def demand_equality(request: Request, output: Sequence[int], difference: str) -> Exactness:
    """Float32: rounding never decides a token, so any difference is an error."""
    return Exactness(problem=difference)


@dataclass(frozen=True, slots=True)
class NearTies:
    """Bfloat16: the output is recomputed in one pass of the target, and may only differ by near-ties.

    Verifying k + 1 positions at once rounds differently than decoding one at a time. A
    token stands if its logit is within `TIE_UNITS` bfloat16 units of the best one's
    magnitude, and the output ended where it had to.
    """

    target: Target

    def __call__(self, request: Request, output: Sequence[int], difference: str) -> Exactness:
        ending = _wrong_ending(request, output, self.target.eos_ids)
        if ending is not None:
            return Exactness(problem=f"{request.id}: {ending}")
        hidden = _hidden_states(self.target, [*request.prompt_ids, *output[:-1]])  # [positions, hidden]
        deciding = hidden[len(request.prompt_ids) - 1 :]  # [output, hidden]
        parts = []
        for start in range(0, len(output), _LOGIT_ROWS):
            tokens = torch.tensor(output[start : start + _LOGIT_ROWS], device=hidden.device)
            logits = self.target.logits(deciding[start : start + _LOGIT_ROWS])  # [places, vocab]
            parts.append(judge_places(logits, tokens, f"{request.id}: output token", start))
        return Exactness.of(parts)


def judge_places(logits: Tensor, tokens: Tensor, label: str, start: int) -> Exactness:
    best = logits.max(dim=-1).values  # [places]
    gaps = best - logits.gather(-1, tokens[:, None]).squeeze(-1)
    allowed = TIE_UNITS * BFLOAT16_UNIT * best.abs()
    wrong = (gaps > allowed).nonzero().flatten().tolist()
    problem = None
    if wrong:
        place = wrong[0]
        problem = (
            f"{label} {start + place} is {tokens[place].item()}, {gaps[place].item():.2f} below the "
            f"target's best logit (near-ties reach {allowed[place].item():.2f})"
        )
    return Exactness(near_ties=int((gaps > 0).sum()), largest_gap=float(gaps.max()), problem=problem)


def _wrong_ending(request: Request, output: Sequence[int], eos_ids: frozenset[int]) -> str | None:
    if not output:
        return "the output is empty"
    early = [place for place, token in enumerate(output[:-1]) if token in eos_ids]
    if early:
        return f"the output goes on after its end-of-sequence token at {early[0]}"
    if output[-1] not in eos_ids and len(output) != request.sampling.max_tokens:
        return f"the output stops after {len(output)} tokens without an end-of-sequence token"
    return None


def _hidden_states(target: Target, tokens: Sequence[int]) -> Tensor:
    cache = target.new_cache(1, len(tokens))
    window = Window.of([0], len(tokens), target.device)
    return target.forward(torch.tensor([tokens], device=target.device), window, cache).hidden[0]
