"""Traces side by side as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.align.trace import Trace, floats_of
from evospec.models.past import Past


@dataclass(frozen=True, slots=True)
class TraceBatch:
    """Windows of several traces, padded on the right to the widest.

    Attributes:
        token_ids: int64 [rows, width + 1]; padding is 0.
        features: float32 [rows, width, taps * hidden].
        top_ids: int64 [rows, width, k]; row i of a window predicts token i + 1.
        top_logprobs: float32 [rows, width, k].
        scored: bool [rows, width]; position i predicts a generated token. False on padding.
        wrong: bool [rows, width]; scored, and the draft token checked there was the first one rejected.
        widths: unpadded width of each row.
        starts: position of each row's first token in its request, int64 [rows].
        past: what the drafter had before these; None when no row has any.
    """

    token_ids: Tensor
    features: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    scored: Tensor
    wrong: Tensor
    widths: tuple[int, ...]
    starts: Tensor
    past: Past | None = None

    @property
    def width(self) -> int:
        return self.features.shape[1]

    def drafter_tokens(self, steps: int) -> Tensor:
        """Tokens 1..width + steps - 1 [rows, width + steps - 1], as `unroll` reads them.

        What lies past the window is padding; only draft steps that leave the window read it.
        """
        return torch.nn.functional.pad(self.token_ids[:, 1:], (0, steps - 1))

    def first_scored(self) -> list[int]:
        """Index of each row's first scored position, or its padded width when there is none."""
        first = self.scored.int().argmax(dim=1)
        return torch.where(self.scored.any(dim=1), first, self.width).tolist()


def collate(traces: Sequence[Trace], device: torch.device) -> TraceBatch:
    """Pads and stacks traces of one top-k and one feature size; at least one trace."""
    width = max(trace.width for trace in traces)
    return TraceBatch(
        token_ids=_stack([trace.token_ids.astype(np.int64) for trace in traces], width + 1).to(device),
        features=_stack([trace.float_features() for trace in traces], width).to(device),
        top_ids=_stack([trace.top_ids.astype(np.int64) for trace in traces], width).to(device),
        top_logprobs=_stack([trace.top_logprobs.astype(np.float32) for trace in traces], width).to(device),
        scored=_stack([trace.generated for trace in traces], width).to(device),
        wrong=_stack([rejected(trace) for trace in traces], width).to(device),
        widths=tuple(trace.width for trace in traces),
        starts=torch.tensor([trace.start for trace in traces], device=device),
        past=_past(traces, device),
    )


def rejected(trace: Trace) -> np.ndarray:
    """Positions whose token replaced a draft token, bool [width]: the first rejection of each cycle."""
    wrong: np.ndarray = trace.generated & (trace.draft_position >= 0) & ~trace.accepted
    return wrong


def _past(traces: Sequence[Trace], device: torch.device) -> Past | None:
    if not any(trace.past_pairs for trace in traces):
        return None
    longest = max(trace.past_pairs for trace in traces)
    pairs = _stack([floats_of(trace.past).transpose(2, 0, 1, 3) for trace in traces], longest)
    keys, values = pairs.to(device).permute(2, 0, 3, 1, 4)  # [rows, kv_heads, pairs, head_dim] each
    seen = _stack([np.ones(trace.past_pairs, dtype=np.bool_) for trace in traces], longest)
    return Past(keys, values, seen.to(device))


def _stack(arrays: Sequence[np.ndarray], length: int) -> Tensor:
    """Arrays [n_i, ...] zero-padded to [rows, length, ...]."""
    stacked = np.zeros((len(arrays), length, *arrays[0].shape[1:]), dtype=arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(stacked)
