"""What each slot's request is about, kept on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


class ContextVectors:
    """Decayed means of the target's last hidden states, which the semantic index is searched by.

    Args:
        places: tokens that a cycle emits per row, at most.
        decay: what a mean keeps of itself at each token.

    Attributes:
        means: float32 [slots, hidden].
    """

    __slots__ = ("_keep", "_weights", "means")

    def __init__(self, slots: int, hidden_size: int, places: int, decay: float, device: torch.device) -> None:
        self.means = torch.zeros(slots, hidden_size, device=device)
        count = torch.arange(places + 1, device=device)
        keep = decay**count
        self._keep = keep[:, None]  # by tokens emitted [places + 1, 1]
        shares = (1 - keep) / count.clamp(min=1)
        self._weights = torch.where(count[:places] < count[:, None], shares[:, None], 0.0)

    def start(self, slot: int, hidden: Tensor) -> None:
        """Begins with the mean of a prompt's hidden states [positions, hidden]."""
        self.means[slot] = hidden.float().mean(dim=0)

    def advance(self, hidden: Tensor, emitted: Tensor) -> None:
        """Takes in hidden states [rows, places, hidden], so many of each row [rows]; may be captured."""
        rows, places, _ = hidden.shape
        weights = self._weights[emitted, :places]  # [rows, places]
        change = torch.bmm(weights[:, None], hidden.float())[:, 0]
        self.means[:rows] = self.means[:rows] * self._keep[emitted] + change

    def move(self, source: int, target: int) -> None:
        self.means[target] = self.means[source]

    def vector(self, slot: int) -> Tensor:
        """Of unit length, float32 [hidden]."""
        return normalize(self.means[slot], dim=0)
