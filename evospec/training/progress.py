"""Where a training run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from evospec.training.plan import TrainingPlan

_KEEP = 0.95  # smoothing of what is shown
_UNTIMED = 3  # first steps of a process, which compile and allocate


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One optimiser step.

    Attributes:
        loss: of all draft steps, weighted.
        accuracy: share of learnt positions where the drafter's best token is the target's [steps].
        grad_norm: before clipping.
        tokens: of the documents, without padding.
        roots: positions from which drafts were learnt.
        seconds: it took; 0 for the first steps, which compile.
    """

    loss: float
    accuracy: tuple[float, ...]
    grad_norm: float
    rate: float
    tokens: int
    roots: int
    seconds: float = 0.0


@dataclass(slots=True)
class Progress:
    """Totals of a run, over all processes that continued it.

    Attributes:
        elapsed: seconds of the budget spent, pauses included.
        share: part of the budget spent.
        loss, accuracy: smoothed over recent steps.
        seconds, timed_tokens: of the steps that were timed.
        held_out: acceptance length on held-out conversations when it was last measured.
        latest: the step just done.
    """

    step: int = 0
    tokens: int = 0
    roots: int = 0
    elapsed: float = 0.0
    share: float = 0.0
    seconds: float = 0.0
    timed_tokens: int = 0
    loss: float = math.nan
    accuracy: tuple[float, ...] = ()
    held_out: float | None = None
    latest: StepFigures | None = field(default=None, repr=False)

    @property
    def tokens_per_s(self) -> float:
        """Of the steps alone: compiling, evaluation and checkpoints left out."""
        if self.seconds:
            return self.timed_tokens / self.seconds
        return self.tokens / self.elapsed if self.elapsed else 0.0

    @property
    def remaining_s(self) -> float:
        """Seconds to the end of the budget, at the pace so far."""
        return self.elapsed * (1 - self.share) / self.share if 0 < self.share < 1 else 0.0

    def spend(self, elapsed: float, plan: TrainingPlan) -> None:
        """Brings `elapsed` and `share` up to date."""
        self.elapsed = elapsed
        self.share = plan.share(self.step, elapsed)

    def add(self, figures: StepFigures) -> None:
        self.step += 1
        self.tokens += figures.tokens
        self.roots += figures.roots
        if figures.seconds:
            self.seconds += figures.seconds
            self.timed_tokens += figures.tokens
        self.latest = figures
        if not self.accuracy:
            self.loss, self.accuracy = figures.loss, figures.accuracy
            return
        self.loss = _KEEP * self.loss + (1 - _KEEP) * figures.loss
        pairs = zip(self.accuracy, figures.accuracy, strict=True)
        self.accuracy = tuple(_KEEP * old + (1 - _KEEP) * new for old, new in pairs)


def is_timed(steps_in_process: int) -> bool:
    """Whether a step's duration says how fast training is."""
    return steps_in_process >= _UNTIMED
