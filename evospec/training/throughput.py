"""How much of a device's arithmetic training uses."""

from __future__ import annotations

from dataclasses import dataclass

from evospec.models.drafter import Drafter
from evospec.models.target import Target

# Dense bfloat16 tensor TFLOP/s with float32 accumulation, from the vendor's data sheets, by a part of
# the device's name; the first that matches counts.
_PEAKS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("4090", 165.2),
)


@dataclass(frozen=True, slots=True)
class Work:
    """Multiplications and additions of training, without attention scores and norms.

    A linear layer of n weights takes 2n of them a token forward and 4n backward. So, with N_t weights
    in the target's body, N_f in the drafter's fusion layer, N_d in the rest of it, H in the head, and
    k draft steps:

        per token  2 N_t + 6 N_f + 6 k N_d   (the target runs forward only)
        per root   2 H + 4 k H               (logits of both; the head is frozen: one product back)
    """

    per_token: float
    per_root: float

    @classmethod
    def of(cls, target: Target, drafter: Drafter, steps: int) -> Work:
        tables = target.tables
        tied = tables.head.data_ptr() == tables.embedding.data_ptr()
        rows = tables.embedding.numel() + (0 if tied else tables.head.numel())
        body = sum(parameter.numel() for parameter in target.model.parameters()) - rows
        fusion = drafter.fc.weight.numel()
        layer = sum(parameter.numel() for parameter in drafter.parameters()) - fusion
        head = tables.head.numel()
        return cls(2 * body + 6 * fusion + 6 * steps * layer, (2 + 4 * steps) * head)

    def share_of(self, peak: float, tokens_per_s: float, roots_per_token: float) -> float:
        """Part of `peak` operations per second that these speeds come to."""
        return tokens_per_s * (self.per_token + roots_per_token * self.per_root) / peak


def bfloat16_peak(device_name: str) -> float | None:
    """Operations per second that a device can do in bfloat16; None for one that is not listed."""
    for part, teraflops in _PEAKS:
        if part in device_name:
            return teraflops * 1e12
    return None
