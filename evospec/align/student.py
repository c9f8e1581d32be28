"""One adapter in training."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evospec.align.adaptation import adaptation_of
from evospec.align.batch import collate
from evospec.align.cadence import Cadence
from evospec.align.objective import Objective
from evospec.align.optimiser import Optimiser
from evospec.align.trace import Trace
from evospec.align.training_state import Moments
from evospec.config import AlignmentConfig
from evospec.models.adapter import AdapterWeights
from evospec.models.deltas import Deltas
from evospec.models.drafter import Drafter


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimiser step.

    Attributes:
        loss: KL in nats, before the step.
        grad_norm: before clipping.
        seconds: wall time.
        traces: traces in the batch.
        applied: False when loss or gradients were not finite: the weights did not move.
        kind: of the traffic that was learned from; None: of all.
    """

    loss: float
    grad_norm: float
    seconds: float
    traces: int
    applied: bool
    kind: int | None = None


class Student:
    """What is trained of a frozen drafter, with the moments of its optimiser and the steps that it is owed.

    Attributes:
        kind: of the traffic that it learns; None: all.
        ahead: whether it has made steps that no version carries.
        moved: whether it has made steps that neither a version carries nor the gate has turned down.
    """

    def __init__(self, config: AlignmentConfig, drafter: Drafter, kind: int | None = None) -> None:
        self.kind = kind
        self.cadence = Cadence(config)
        self.ahead = self.moved = False
        self._config = config
        self._device = drafter.device
        self._adaptation = adaptation_of(config, drafter)
        self._parameters = self._adaptation.named_parameters()
        self._optimiser = Optimiser(config, self._parameters)
        self._learned: Deltas | None = None  # as long as the weights are those

    @property
    def carried_whole(self) -> bool:
        """Whether a version that carries what it has learned carries all of it."""
        return self._adaptation.exports_all

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Of all that is trained, by name."""
        return {name: parameter.shape for name, parameter in self._parameters.items()}

    def step(self, objective: Objective, traces: Sequence[Trace]) -> TrainingStep:
        """One optimiser step; neither weights nor optimiser move where loss or gradients are not finite."""
        started = time.perf_counter()
        self.cadence.stepped()
        self._optimiser.clear()
        loss = objective.loss(self._adaptation.merged(), collate(traces, self._device))
        loss.backward()
        value = loss.item()
        norm = self._optimiser.clip()
        applied = math.isfinite(value) and math.isfinite(norm)
        if applied:
            self._adaptation.pull(self._optimiser.rate * self._config.weight_decay)
            self._optimiser.step()
            self._learned = None
            self.ahead = self.moved = True
        return TrainingStep(
            loss=value,
            grad_norm=norm,
            seconds=time.perf_counter() - started,
            traces=len(traces),
            applied=applied,
            kind=self.kind,
        )

    def learned(self) -> Deltas:
        """What a version made now carries of the weights as they are, and the gate judges."""
        if self._learned is None:
            self._learned = self._adaptation.export(0).scaled(self._config.blend).general
        return self._learned

    def judged(self, *, better: bool) -> None:
        """What it has learned was compared with what is published."""
        self.moved = self.moved and better
        self.cadence.judged(better=better)

    def carried(self) -> None:
        """A version carries what it has learned."""
        self.ahead = self.moved = False

    def begin_with(self, published: AdapterWeights) -> None:
        """Goes on from what a version carries, with fresh moments.

        Raises:
            WireError: it does not fit the drafter or the configured rank. Nothing is changed then.
        """
        self._adaptation.load(published.scaled(1 / self._config.blend))
        self._optimiser = Optimiser(self._config, self._parameters)
        self._learned = None
        self.carried()

    def weights(self) -> dict[str, Tensor]:
        """Copies of all that is trained, on the CPU, by name."""
        return {name: one.detach().to("cpu", copy=True) for name, one in self._parameters.items()}

    def moments(self) -> dict[str, Moments]:
        return self._optimiser.moments()

    @torch.no_grad()
    def resume(
        self, moments: Mapping[str, Moments], weights: Mapping[str, Tensor], *, carried: bool = False
    ) -> None:
        """Goes on with what another one remembered, and with its weights where no version carries them or,
        where what it has learned is `carried`, only a cut of them."""
        self._optimiser.resume(moments)
        for name, weight in weights.items():
            parameter: nn.Parameter = self._parameters[name]
            parameter.copy_(weight)
        if weights:
            self._learned = None
            self.ahead = self.moved = not carried
