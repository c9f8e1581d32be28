"""When to train: steps are paid for by the traces that come, more or fewer by how things stand."""

from __future__ import annotations

from evospec.align.drift import DriftDetector
from evospec.align.trace import Trace
from evospec.config import AlignmentConfig

_PATIENCE = 2  # candidates in a row that were no better, after which training slows down


class Cadence:
    """Credit in steps. Without traffic there is none, and the aligner rests.

    With `cadence: adaptive` a trace pays `drift_boost` times as much while acceptance drifts down, and
    `idle_share` as much once candidates have stopped being better.
    """

    def __init__(self, config: AlignmentConfig) -> None:
        self._config = config
        self._credit = 0.0
        self._vain = 0
        self.drift = DriftDetector(config.drift_short, config.drift_long, config.drift)

    @property
    def credit(self) -> float:
        """Steps that traces have paid for and that were not made yet."""
        return self._credit

    @property
    def earned(self) -> bool:
        """Whether a step is paid for, at least in part."""
        return self._credit > 0

    @property
    def pace(self) -> float:
        """What a trace pays for now, in steps."""
        config = self._config
        if config.cadence == "steady":
            return config.steps_per_trace
        if self.drift.drifted:
            return config.steps_per_trace * config.drift_boost
        return config.steps_per_trace * (config.idle_share if self._vain >= _PATIENCE else 1.0)

    def observe(self, trace: Trace) -> None:
        """A checked trace, admitted or not, says how the traffic is accepted."""
        self.drift.observe(trace)

    def admitted(self) -> None:
        """A trace was admitted for training or judging."""
        self._credit += self.pace

    def stepped(self) -> None:
        self._credit -= 1

    def resume(self, credit: float) -> None:
        """Owes what another one owed."""
        self._credit = credit

    def judged(self, *, better: bool) -> None:
        """A candidate was compared with the current version."""
        self._vain = 0 if better else self._vain + 1
