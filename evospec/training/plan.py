"""How a drafter is trained: everything that decides its weights, apart from target and corpus."""

from __future__ import annotations

from dataclasses import asdict, dataclass

LONGEST_DOCUMENT = 1_408  # tokens: the longest prompt and answer that the target writes

# What may change between a checkpoint and the run that resumes it: it decides how long and in how
# many parts, not what a step does.
_FREE = {"minutes", "logit_tokens"}


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Values are ours unless a source is given.

    Attributes:
        minutes: the budget; pauses for evaluation and checkpoints count.
        optimizer_steps: the budget in its place, when given.
        learning_rate, warmup: the peak, and the share of the budget in which it is reached.
        clip: largest norm of the gradient.
        ema: weight that the average of the weights keeps in each step; 0 takes the last weights.
        warm_start: begin from the target's own last layer, not from random weights.
        steps: draft steps unrolled (EAGLE-3 uses 5 to 7).
        step_decay: weight of step j is step_decay ** j (EAGLE-3: 0.8).
        unreached: weight of a step in addition, at roots where an earlier step is wrong; 1: as elsewhere.
        focus: how soon a root turns from KL to acceptance, as in `LossShape`; 0: never.
        tokens_per_batch: padded tokens per optimiser step.
        logit_tokens: positions whose full-vocabulary logits exist at one time.
        longest: documents are cut to this many tokens.
    """

    minutes: float = 2.0
    optimizer_steps: int | None = None
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.0
    warm_start: bool = True
    steps: int = 5
    step_decay: float = 0.8
    unreached: float = 0.3
    focus: float = 0.0
    tokens_per_batch: int = 16_384
    logit_tokens: int = 4_096
    longest: int = LONGEST_DOCUMENT
    seed: int = 0

    def share(self, step: int, elapsed_s: float) -> float:
        """Part of the budget that is spent; 1 or more ends training."""
        if self.optimizer_steps is not None:
            return step / self.optimizer_steps
        return elapsed_s / (60 * self.minutes)

    def differences(self, other: TrainingPlan) -> list[str]:
        """What keeps a run under `other` from continuing one under this plan: name and both values."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} is {theirs[name]}, was {value}"
            for name, value in mine.items()
            if name not in _FREE and value != theirs[name]
        ]
