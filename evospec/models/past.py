"""What a drafter attends to besides the window that it is unrolled over."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Past:
    """Pairs before a window, as the drafter has them in its cache: constants.

    Attributes:
        keys: rotated [rows, kv_heads, pairs, head_dim].
        values: [rows, kv_heads, pairs, head_dim].
        seen: which of them there are, bool [rows, pairs]; False on padding.
    """

    keys: Tensor
    values: Tensor
    seen: Tensor
