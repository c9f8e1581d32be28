"""What each slot's request is about, kept on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from evospec.engine.state import RequestState


class ContextVectors:
    """Means of the target's last hidden states, which the semantic index is searched by and kinds of traffic
    are told apart by: over a prompt at first, then decayed as tokens are emitted.

    Args:
        places: tokens that a cycle emits per row, at most.
        decay: what a mean keeps of itself at each token; 1 keeps it as it was after the prompt.

    Attributes:
        means: float32 [slots, hidden].
        advances: whether emitted tokens change them.
    """

    __slots__ = ("_keep", "_mean", "_read", "_reading", "_shares", "advances", "means")

    def __init__(self, slots: int, hidden_size: int, places: int, decay: float, device: torch.device) -> None:
        self.means = torch.zeros(slots, hidden_size, device=device)
        count = torch.arange(places + 1, device=device)
        # By tokens emitted [places + 1]: what a mean keeps, and what it takes of each state.
        self.advances = decay < 1.0
        self._keep = decay**count
        self._shares = (1 - self._keep) / count.clamp(min=1)
        self._reading: RequestState | None = None
        self._read = 0  # positions of its prompt
        self._mean = torch.zeros(hidden_size, device=device)  # over them: slots are for running requests

    def read(self, state: RequestState, hidden: Tensor) -> None:
        """Takes in the next part of a prompt [positions, hidden]; one prompt is read after the other.

        What a request shares with an earlier one and is not processed again does not count.
        """
        mean = hidden.float().mean(dim=0)
        if self._reading is not state:
            self._reading, self._read = state, 0
        self._read += len(hidden)
        share = len(hidden) / self._read
        self._mean = mean if share == 1.0 else torch.lerp(self._mean, mean, share)
        self.means[state.slot] = self._mean
        if state.prefilled + len(hidden) >= state.prompt_length:
            self._reading = None  # read whole: nothing holds on to the request

    def advance(self, hidden: Tensor, emitted: Tensor) -> None:
        """Takes in hidden states [rows, places, hidden], so many of each row [rows]; may be captured."""
        if hidden.is_cuda:
            from evospec.kernels.means import advance_means  # Triton comes with CUDA builds of PyTorch only

            advance_means(self.means, hidden, emitted, self._keep, self._shares)
            return
        rows, places, _ = hidden.shape
        counted = torch.arange(places) < emitted[:, None]  # [rows, places]
        change = (hidden.float() * counted[..., None]).sum(dim=1) * self._shares[emitted, None]
        self.means[:rows] = self.means[:rows] * self._keep[emitted, None] + change

    def move(self, source: int, target: int) -> None:
        self.means[target] = self.means[source]

    def vector(self, slot: int) -> Tensor:
        """Of unit length, float32 [hidden]."""
        return normalize(self.means[slot], dim=0)
