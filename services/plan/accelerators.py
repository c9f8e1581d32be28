"""GPUs that a plan may be made for, by their data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from services.plan.errors import PlanError


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU.

    Attributes:
        memory_gb: 1e9 bytes.
        bandwidth_tb_s: of its memory, as published; 1e12 bytes a second.
        tflops: bfloat16, dense, as published.
        measured: EvoSpec was measured on it; figures of others are scaled, see `services.plan.speed`.
    """

    name: str
    memory_gb: float
    bandwidth_tb_s: float
    tflops: float
    measured: bool = False


H200: Final = Accelerator("h200", 141, 4.8, 989, measured=True)
H100: Final = Accelerator("h100", 80, 3.35, 989, measured=True)
_OTHERS = (
    Accelerator("b200", 180, 8.0, 2250),
    Accelerator("a100", 80, 2.04, 312),
    Accelerator("l40s", 48, 0.864, 362),
    Accelerator("a10", 24, 0.6, 125),
    Accelerator("l4", 24, 0.3, 121),
)
ACCELERATORS: Mapping[str, Accelerator] = MappingProxyType({one.name: one for one in (H200, H100, *_OTHERS)})


def accelerator_of(name: str) -> Accelerator:
    """Raises PlanError naming those that there are."""
    if name not in ACCELERATORS:
        raise PlanError(f"unknown GPU {name!r}: choose one of {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]
