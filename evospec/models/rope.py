"""Rotary position embedding (Su et al., 2104.09864), half-split layout as in Llama."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


class Llama3Scaling(BaseModel):
    """Llama 3.1's context extension: low frequencies are slowed by `factor`, high ones kept.

    A frequency's wavelength, in units of `original_max_position_embeddings`, decides:
    above 1 / low_freq_factor it is slowed, below 1 / high_freq_factor kept, between the
    two interpolated (Llama 3.1, model card and reference code).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: float = Field(gt=0)
    low_freq_factor: float = Field(gt=0)
    high_freq_factor: float = Field(gt=0)
    original_max_position_embeddings: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Llama3Scaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be above low_freq_factor")
        return self

    def apply(self, frequencies: Tensor) -> Tensor:
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / self.factor)


def rope_table(
    positions: int,
    head_dim: int,
    theta: float,
    device: torch.device,
    scaling: Llama3Scaling | None = None,
) -> Tensor:
    """Cosines and sines, float32 [2, positions, head_dim]."""
    frequencies = theta ** (
        -torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    )  # [head_dim / 2]
    if scaling is not None:
        frequencies = scaling.apply(frequencies)
    angles = torch.arange(positions, dtype=torch.float32, device=device)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)  # [positions, head_dim]
    return torch.stack((angles.cos(), angles.sin()))


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates [rows, heads, width, head_dim] by cos/sin [rows, 1, width, head_dim] (any float type)."""
    half = states.shape[-1] // 2
    swapped = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return (states * cos + swapped * sin).to(states.dtype)
