"""A cycle between its launch and its outcome."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evospec.config import EngineConfig
from evospec.engine.host_copy import Fetched
from evospec.engine.passes import Launched, Step
from evospec.engine.state import RequestState


@dataclass(frozen=True, slots=True)
class Flight:
    """What the host needs to read a cycle's outcome.

    Attributes:
        states: the requests in its rows.
        features: what traces record of it, see `Launched`; None when nothing is traced.
        adapter_version: what drafted in it.
        began, launched: when the host began to launch it, and when it had, in seconds.
    """

    states: tuple[RequestState, ...]
    step: Step
    outcome: Launched
    features: Fetched | None
    adapter_version: int
    began: float
    launched: float

    @property
    def launch_seconds(self) -> float:
        return self.launched - self.began

    @property
    def wanted(self) -> bool:
        """Whether any of its requests still waits for tokens."""
        return any(state.running for state in self.states)

    @property
    def settled(self) -> bool:
        """Whether all of them do."""
        return all(state.running for state in self.states)

    @property
    def lasting(self) -> bool:
        """Whether a request is sure to need another cycle, unless its text ends."""
        return any(state.remaining > self.step.reach for state in self.states)


def overlaps(config: EngineConfig, device: torch.device) -> bool:
    """Whether cycles are launched before the last one's outcome is known."""
    return config.overlap == "on" or (config.overlap == "auto" and device.type == "cuda")
