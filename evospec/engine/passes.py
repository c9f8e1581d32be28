"""What goes into a pass of the runner, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.decoding.verify import Verdict
from evospec.engine.plan import DraftPlan


@dataclass(frozen=True, slots=True)
class Verified:
    """What the target decided, place by place of what is emitted.

    Attributes:
        logits: float32 [rows, depth + 1, vocab].
        hidden: [rows, depth + 1, hidden].
        features: [rows, depth + 1, taps * hidden]; None when nothing is tapped.
    """

    verdict: Verdict
    logits: Tensor
    hidden: Tensor
    features: Tensor | None


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt's last chunk, and the first token.

    Attributes:
        hidden: [positions, hidden].
        features: [positions, taps * hidden]; None when nothing is tapped.
    """

    decided: Verified
    hidden: Tensor
    features: Tensor | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict on the host, per row.

    Attributes:
        accepted: accepted draft tokens.
        tokens: [depth + 1] each.
        first: whether the drafter's best guess for the first token was accepted.
    """

    accepted: list[int]
    tokens: list[list[int]]
    first: list[bool]

    @classmethod
    def of(cls, verdict: Verdict) -> Outcome:
        """Waits for the device, once."""
        # A tree bears its best guess for the first token at place 1.
        first = verdict.accepted > 0 if verdict.places is None else verdict.places[:, 1] == 1
        numbers = torch.cat((verdict.accepted[:, None], first[:, None].long(), verdict.tokens), dim=1)
        rows: list[list[int]] = numbers.tolist()
        return cls([row[0] for row in rows], [row[2:] for row in rows], [row[1] == 1 for row in rows])


@dataclass(frozen=True, slots=True)
class Step:
    """What tells one cycle's kernels from another's.

    Attributes:
        rows: running requests, rounded up where graphs are captured.
        span: no cache position read lies beyond it.
        pairs: pending pairs per row that are written to the drafter's cache; 0 leaves them waiting.
        head_rows: rows that the drafter scores.
        draws: whether sampled rows' drafts are drawn from the drafter's distribution.
    """

    rows: int
    plan: DraftPlan
    span: int
    pairs: int
    head_rows: int
    any_sampled: bool
    truncated: bool
    draws: bool
