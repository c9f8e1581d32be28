"""Rotary position embedding (Su et al., 2104.09864), half-split layout as in Llama."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(positions: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Cosines and sines, float32 [2, positions, head_dim]."""
    frequencies = theta ** (
        -torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    )  # [head_dim / 2]
    angles = torch.arange(positions, dtype=torch.float32, device=device)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)  # [positions, head_dim]
    return torch.stack((angles.cos(), angles.sin()))


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates [rows, heads, width, head_dim] by cos/sin [rows, 1, width, head_dim] (any float type)."""
    half = states.shape[-1] // 2
    swapped = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return (states * cos + swapped * sin).to(states.dtype)
